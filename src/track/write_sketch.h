/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How many different blocks of a disk were written in the last minutes, to 3 % or so, in 5 KiB: what an estimate of the
 * cache that a backup will need is made from. Writing the same block again counts once. Owner: the disk's reactor.
 */
#ifndef FLEECE_TRACK_WRITE_SKETCH_H
#define FLEECE_TRACK_WRITE_SKETCH_H

#include "block/disk.h"

struct write_sketch {
    struct write_observer observer;
    struct disk *disk;
    unsigned block_shift;
    uint64_t begun_ns;
    unsigned window;   /* the one that is being filled; the others are older ones, round the ring */
    uint64_t unlooked; /* bytes written since the clock was looked at */
    struct {
        uint64_t begun_ns; /* 0: never */
        uint8_t registers[SKETCH_REGISTERS];
    } windows[SKETCH_WINDOWS];
};

/* Observes from now on. Any thread, before the disk is used. */
void write_sketch_begin(struct write_sketch *sketch, struct disk *disk, unsigned block_shift);
void write_sketch_end(struct write_sketch *sketch);

struct write_sketch_answer {
    uint64_t distinct_bytes; /* at most the size of the disk */
    uint64_t duration_ns;    /* in which they were written */
};
struct write_sketch_answer write_sketch_ask(struct write_sketch *sketch);

#endif
