/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The cut: one instant over all disks of a VM, each on its own reactor.
 *
 * hold all -> wait until no write is in flight on any -> cut all -> release all. One atomic word is the commit record of
 * the whole VM (C2): the last disk that drains moves it from HOLD to CUT; any reactor that sees the deadline pass first
 * moves it to ABORT, with no help from the control thread (C3). A disk resumes as soon as it has done its own part,
 * since every other disk is still held or cut already.
 */
#ifndef FLEECE_BLOCK_CUT_H
#define FLEECE_BLOCK_CUT_H

#include <stdatomic.h>

#include "block/disk.h"

enum cut_state { CUT_HOLD, CUT_DONE, CUT_ABORTED };

struct cut;

struct cut_disk {
    struct disk *disk;
    void *context; /* the caller's */
    /* Private: */
    struct cut *cut;
    struct io_message message;
    struct io_timer deadline;
    bool holding, drained;
    uint64_t held_at_ns;
};

struct cut {
    /* Set by the caller, zeroed otherwise; all must stay until `done`: */
    struct io *io;          /* the caller's thread */
    struct cut_disk *disks; /* at least one */
    unsigned disk_count;
    uint64_t deadline_ns; /* monotonic; when the hold is given up */
    /* In the one step of each disk, on its thread, nothing in flight on any disk. Must not fail or park. */
    void (*at_cut)(struct cut_disk *disk);
    /* On the caller's thread, when every disk has resumed: 0, or -ETIMEDOUT when nothing was cut. */
    void (*done)(struct cut *cut, int status);
    /* Results: */
    uint64_t hold_ns;         /* longest time for which a disk was held */
    const char *slowest_disk; /* the one that drained last, or (aborted) one that did not drain */
    /* Private: */
    atomic_uint state; /* enum cut_state */
    atomic_uint undrained;
    atomic_uint unfinished;
    atomic_ullong hold_max_ns;
    _Atomic(struct cut_disk *) slowest;
    struct io_message finished;
};

void cut_start(struct cut *cut);

#endif
