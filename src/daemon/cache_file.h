/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Cache files as files: made, recognised and removed. docs/formats/cache-file.md says what is in them. All functions may
 * block: they are for helper threads.
 */
#ifndef FLEECE_DAEMON_CACHE_FILE_H
#define FLEECE_DAEMON_CACHE_FILE_H

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "fleece/cache_format.h"
#include "fleece/cache_memory.h"

struct cache_file_plan {
    const char *folder, *vm, *disk;
    uint64_t max_bytes; /* the budget; the file gets addresses for more, see CACHE_FILE_HEADROOM */
    uint64_t block_bytes, disk_bytes, created_ns;
    uint8_t uuid[CACHE_UUID_BYTES];
    bool named_at_once; /* as where a file can't be made without a name; for tests */
};

struct cache_file {
    int fd; /* open for reading and writing; its byte FILE_LOCK_BYTE is locked */
    bool direct;
    bool can_punch; /* the file system gives space back */
    dev_t device;
    ino_t inode;
    char path[PATH_MAX];
};

/* Size of a segment's data for such blocks: the same for RAM and file. */
uint64_t cache_file_segment_bytes(uint64_t block_bytes);

/*
 * Makes a sparse file with its header, locked, under the first name of the folder that nobody has:
 * VM.DISK.fleece-cache, then with -1, -2, … 0 or -errno with a sentence; nothing is left then.
 */
int cache_file_make(const struct cache_file_plan *plan, struct cache_file *file, struct error *err);
/* Takes its name away, if it is still the file's. -errno: it is still there. */
int cache_file_unlink(const struct cache_file *file);

/*
 * Opens the file that a killed daemon has left, waits for its lock (patience_ns at most) and takes it. It must be the very
 * file, with the header of a cache file of this disk. 0 or -errno with a sentence; then it is left as it is.
 */
int cache_file_adopt(const struct cache_file_plan *plan, const struct cache_file_id *id, uint64_t patience_ns,
                     struct cache_file *file, struct error *err);

struct cache_sweep {
    const char *vm;
    /* Files of ours, which stay. */
    struct {
        dev_t device;
        ino_t inode;
    } kept[LIMIT_DISKS];
    unsigned kept_count;
    uint64_t patience_ns; /* for files that are in use: the last writes of a killed daemon may be landing */
    /* Of removed files, still open: the last close gives back the space, which may take many seconds. */
    int removed[LIMIT_DISKS];
    unsigned removed_count;
};

/*
 * Removes what killed daemons of the VM have left in the folder: regular files with the name and the header of a cache
 * file of this VM, whose lock nobody holds. Everything else stays. May be called for several folders in turn.
 */
void cache_file_sweep(struct cache_sweep *sweep, const char *folder);

#endif
