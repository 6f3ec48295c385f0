/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * When nobody but us can have changed a disk's file: noted in shared memory while a daemon runs, and compared when the next
 * one of the same boot adopts what a killed daemon has left. Owner: the disk's reactor, where nothing else is said.
 */
#ifndef FLEECE_TRACK_DISK_WATCH_H
#define FLEECE_TRACK_DISK_WATCH_H

#include "base/error.h"
#include "block/disk.h"

/* What a disk's file was when it was last known, to see that somebody else has changed it. */
struct disk_identity {
    uint64_t size_bytes, device, inode, mtime_ns, ctime_ns; /* 0: not known */
    bool local;        /* its times are of this machine's clock, and set before the write that they tell of is done */
    uint64_t instance; /* of a block device: another one, in a boot, when it is made or gets a medium; 0: not known */
};

struct disk_note {          /* in shared memory; zeroes: nothing is known */
    uint64_t device, inode; /* whose it is */
    uint64_t instance;
    uint64_t state;
    uint64_t wall_ns, clock_ns;              /* the last look at a disk that is written, on both clocks */
    uint64_t size_bytes, mtime_ns, ctime_ns; /* of its file, when it was not */
};

struct disk_watch {
    struct disk *disk;
    struct disk_note *note; /* NULL: it does not run */
    struct disk_identity (*identify)(void *context);
    void *context;
    struct write_observer observer;
    bool observing; /* nothing has been written since it was put in */
    bool idle;      /* nothing was in flight then */
    bool held;      /* its times are about to change */
    struct io_timer timer;
};

/* From now on, the note says what is known. Before the disk is written. `identify` may be called at any time later, and
 * must not block; where it says that the times are not local, nothing is noted. No-op when it runs. */
void disk_watch_start(struct disk_watch *watch, struct disk *disk, struct disk_note *note,
                      struct disk_identity (*identify)(void *context), void *context);
/* The file is about to be changed by us, but not by a write of the disk; until it has been. No-op when it does not run. */
void disk_watch_hold(struct disk_watch *watch);
void disk_watch_release(struct disk_watch *watch);
/* Before the note goes. No-op when it does not run. */
void disk_watch_stop(struct disk_watch *watch);

/* A note of memory that is made anew: the disk may be written from now on. Any thread, nobody else has it. */
void disk_note_begin(struct disk_note *note, struct io *io, const struct disk_identity *is);
/*
 * Whether the file, as it is before anybody serves it again and after the killed daemon's lock was free (C10), can be what
 * that daemon has left. 0; or -ESTALE with a sentence that goes on after "disk NAME" or stands alone. Any thread, likewise.
 */
int disk_note_check(const struct disk_note *note, struct io *io, const struct disk_identity *is, struct error *err);

#endif
