/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The RAM tier of one disk's fleecing cache: slots of one block each, in segments of shared memory that are taken from
 * the VM's budget one by one and given back as soon as they are empty, but for one that is kept ready. Owner: the disk's
 * reactor.
 */
#ifndef FLEECE_FLEECE_RAM_TIER_H
#define FLEECE_FLEECE_RAM_TIER_H

#include "fleece/budget.h"
#include "fleece/cache_memory.h"
#include "fleece/slot_pool.h"
#include "io/io.h"

enum ram_spare { SPARE_NONE, SPARE_GROWING, SPARE_READY };

struct ram_tier {
    struct io *io;
    struct budget *budget;
    struct cache_memory *memory; /* where the places have their records; NULL: a crash ends them */
    struct io_shm shm;
    unsigned block_shift;
    uint64_t segment_bytes, segment_charge; /* memory, and what of the budget it takes with its share of the map */
    struct slot_pool pool;
    enum ram_spare spare; /* a segment ahead of need: charged, but not in the pool */
    uint32_t spare_segment;
    bool refused;        /* tmpfs had no room for a spare; until it has room for a segment */
    struct io_op growth; /* of the spare; while that is under way it belongs to a helper thread */
    void (*grown)(void *context);
    void *context;
};

struct ram_tier_options {
    struct io *io;
    struct budget *budget;
    struct cache_memory *memory; /* made or adopted; NULL: the slots have no name */
    unsigned block_shift;
    uint64_t segment_bytes, segment_charge;
    uint32_t segments_max;
};

/* Reserves addresses for segments_max, no memory; or maps the slots of a memory that was adopted. 0 or -errno with a
 * sentence. Set grown(context) after it: called when a spare has grown, or has not; then there may be room, and
 * ram_tier_is_growing() is over. */
int ram_tier_init(struct ram_tier *tier, const struct ram_tier_options *options, struct error *err);
/* No slot may be taken, and nothing is growing. */
void ram_tier_fini(struct ram_tier *tier);

/* Takes a run of up to `count` neighbouring slots; returns how many (0: full) and the first in *first. */
uint32_t ram_tier_take(struct ram_tier *tier, uint32_t count, uint32_t *first);
/* A slot that holds a block already; the budget has been charged for its segment. Then, once, for all that were not told of:
 * what memory they have is given back. */
void ram_tier_adopt(struct ram_tier *tier, uint32_t slot);
void ram_tier_adopted(struct ram_tier *tier);
/* Gives one slot back. No I/O may be under way on it (C13), but for the spill of a closed segment. */
void ram_tier_give(struct ram_tier *tier, uint32_t slot);
bool ram_tier_is_growing(const struct ram_tier *tier);
/* Gives the spare back for others to use; one that is growing goes on growing. */
void ram_tier_trim(struct ram_tier *tier);
char *ram_tier_memory(const struct ram_tier *tier, uint32_t slot);

/* While a segment is closed nothing new is put into it and its memory stays. */
void ram_tier_close(struct ram_tier *tier, uint32_t segment);
/* The end of that: an empty one gives its memory back. */
void ram_tier_open(struct ram_tier *tier, uint32_t segment);

#endif
