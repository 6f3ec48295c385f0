/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The RAM tier of one disk's fleecing cache: slots of one block each, in segments of shared memory that are taken from
 * the VM's budget one by one and given back as soon as they are empty. Owner: the disk's reactor.
 */
#ifndef FLEECE_FLEECE_RAM_TIER_H
#define FLEECE_FLEECE_RAM_TIER_H

#include "fleece/budget.h"
#include "io/io.h"

#define SLOT_NONE UINT32_MAX

struct segment;

struct ram_tier {
    struct io *io;
    struct budget *budget;
    struct io_shm shm;
    unsigned block_shift;
    uint32_t slots_per_segment; /* power of two, 64 at least */
    uint32_t segments_max;
    uint32_t slots_end; /* no slot at or beyond it was ever taken */
    uint32_t slots_used;
    struct segment *segments;
    struct list with_room; /* segments that hold memory and have a free slot */
    struct list given_back;
};

/* Reserves addresses, no memory. 0 or -errno with a sentence. */
int ram_tier_init(struct ram_tier *tier, struct io *io, struct budget *budget, unsigned block_shift,
                  uint64_t segment_bytes, struct error *err);
/* No slot may be taken. */
void ram_tier_fini(struct ram_tier *tier);

/* Takes a run of up to `count` neighbouring slots; returns how many (0: full) and the first in *first. */
uint32_t ram_tier_take(struct ram_tier *tier, uint32_t count, uint32_t *first);
/* Gives one slot back. No I/O may be under way on it (C13). */
void ram_tier_give(struct ram_tier *tier, uint32_t slot);
char *ram_tier_memory(const struct ram_tier *tier, uint32_t slot);
/* All slots that there can ever be. */
uint32_t ram_tier_slots_max(const struct ram_tier *tier);

#endif
