/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The cache files of a daemon's disks: where they are to be, and the hooks by which the VM has them made and taken away.
 * Control thread, where nothing else is said.
 */
#ifndef FLEECE_DAEMON_CACHES_H
#define FLEECE_DAEMON_CACHES_H

#include "block/disk.h"
#include "daemon/cache_file.h"
#include "daemon/options.h"

struct caches {
    struct io *control;
    const struct options *options;
    char *folders[LIMIT_DISKS]; /* of the disks; NULL: the disk needs none, as nobody can write it */
    uint64_t max_bytes;         /* of all files together; 0: there is no disk tier */
    struct list files;          /* of struct cache: made, being made or being taken away */
    unsigned freeing;           /* of them, those whose space is being given back */
    struct cache_sweep swept;   /* what a killed daemon left */
    uint64_t space;             /* free in the folders, when it was last looked at */
    struct io_op look;
    bool looking;
    void (*idle)(void *argument);
    void *idle_argument;
};

void caches_init(struct caches *caches, struct io *control, const struct options *options);
/*
 * The places, before the disks are opened: 0, or -errno with a sentence (a folder that is missing or can't be written, no
 * place for the cache of a block device). May block: on a helper thread.
 */
int caches_choose(struct caches *caches, struct error *err);
/* After the disks were opened, with their sizes: how much there may be. Likewise. */
int caches_prepare(struct caches *caches, struct node *const *leaves, struct error *err);
/* After what can be adopted was adopted: away with all else that a killed daemon left. May block as well. */
void caches_sweep(struct caches *caches);
/* When the guest is served: gives back the space of what a killed daemon left. */
void caches_free_left_overs(struct caches *caches);
/* Whether no file is there and none's space is being given back. */
bool caches_are_idle(const struct caches *caches);
/* Calls idle(argument) later, when they are; nothing is opened any more. */
void caches_when_idle(struct caches *caches, void (*idle)(void *argument), void *argument);
/* They are idle, or the process ends. */
void caches_fini(struct caches *caches);
/* Nothing waits any more: takes the names of all files away at once. */
void caches_give_up(struct caches *caches);

/* Of files that are made from now on. */
void caches_resize(struct caches *caches, uint64_t max_bytes);

/* Bytes that are free for more cache files, as they were when it was last asked; asks anew, on a helper thread. */
uint64_t caches_space(struct caches *caches);

/*
 * For struct vm_hooks; the context is the struct caches. A disk that nobody can write gets no file and no error. A file is
 * closed when its name is gone; its space is given back after that, and the next file is made when it has been.
 */
void caches_open(void *context, const struct disk *disk, uint64_t block_bytes,
                 void (*done)(void *argument, struct node *file, const struct error *err), void *argument);
void caches_describe(const struct caches *caches, const struct node *file, struct cache_file_id *id);
void caches_adopt(struct caches *caches, const struct disk *disk, uint64_t block_bytes, const struct cache_file_id *id,
                  void (*done)(void *argument, struct node *file, const struct error *err), void *argument);
void caches_close(void *context, const struct disk *disk, struct node *file, void (*done)(void *argument),
                  void *argument);

#endif
