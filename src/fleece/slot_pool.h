/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which slots of a tier are taken: slots of one block, in segments that come and go as a whole. Knows numbers only: what a
 * slot or a segment is made of is the tier's affair. Both tiers of the fleecing cache use it. One owner, no I/O.
 */
#ifndef FLEECE_FLEECE_SLOT_POOL_H
#define FLEECE_FLEECE_SLOT_POOL_H

#include <stdbool.h>
#include <stdint.h>

#include "base/index_set.h"
#include "base/limits.h"

#define SLOT_NONE UINT32_MAX

struct slot_segment {
    uint32_t used;
    bool present;  /* it has memory, or a place in the file */
    bool closed;   /* nothing is taken from it for now: I/O is under way on the whole of it */
    uint16_t free; /* slots that can be taken: none, unless it is present and open */
    uint64_t taken[LIMIT_SEGMENT_SLOTS / 64]; /* one bit per slot; those that do not exist are set */
};

struct slot_pool {
    uint32_t slots_per_segment; /* power of two, LIMIT_SEGMENT_SLOTS at most; 1 is allowed */
    uint32_t segments_max, segments_present;
    uint32_t segments_end;           /* no segment at or beyond it is present */
    uint32_t slots_used, slots_free; /* free: of all segments that are present and open */
    struct slot_segment *segments;   /* one mapping, touched as it comes into use */
    struct index_set with_room;      /* segments: present, open, with a free slot */
    struct index_set absent;         /* segments: were present, below segments_end */
    uint64_t bytes;                  /* of the mapping */
};

/* 0 or -ENOMEM. */
int slot_pool_init(struct slot_pool *pool, uint32_t segments_max, uint32_t slots_per_segment);
void slot_pool_fini(struct slot_pool *pool); /* no slot is taken */

/* The segment that slot_pool_add() would make present next: the lowest absent one. false: there is none. */
bool slot_pool_next_absent(const struct slot_pool *pool, uint32_t *segment);
void slot_pool_add(struct slot_pool *pool, uint32_t segment);
/* It is present and none of its slots is taken. */
void slot_pool_drop(struct slot_pool *pool, uint32_t segment);

/* Takes a run of up to `count` neighbouring slots of the lowest segment with room; returns how many (0: no segment has
 * room) and the first in *first. */
uint32_t slot_pool_take(struct slot_pool *pool, uint32_t count, uint32_t *first);
/* Takes this one, whose segment becomes present if it is not. */
void slot_pool_adopt(struct slot_pool *pool, uint32_t slot);
/* Takes all slots of a present segment that has none taken yet. */
void slot_pool_take_segment(struct slot_pool *pool, uint32_t segment);
/* Gives one slot back; returns how many of its segment are still taken. */
uint32_t slot_pool_give(struct slot_pool *pool, uint32_t slot);
/* false: nothing can be taken from the segments that are present and open. */
bool slot_pool_has_room(const struct slot_pool *pool);
bool slot_pool_taken(const struct slot_pool *pool, uint32_t slot);
/* Nothing more is taken from the segment until it is opened again; its slots may be given back meanwhile. */
void slot_pool_close(struct slot_pool *pool, uint32_t segment);
void slot_pool_open(struct slot_pool *pool, uint32_t segment);

#endif
