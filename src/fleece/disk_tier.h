/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The disk tier of one disk's fleecing cache: segments that were spilled from RAM, in a cache file that describes itself
 * (docs/formats/cache-file.md). The file is a node like any other; whoever made it takes it away afterwards. The budget, in
 * bytes of the file, is shared by all disks of a VM. Owner: the disk's reactor.
 *
 * A spill takes what a RAM segment holds and writes it as one large sequential write into a free segment of the file, or,
 * when there is none left, into the gaps that released slots have left in others. Nothing is known of the map here: the
 * caller keeps serving reads from RAM until the spill is done, and then moves the entries over.
 */
#ifndef FLEECE_FLEECE_DISK_TIER_H
#define FLEECE_FLEECE_DISK_TIER_H

#include "block/node.h"
#include "fleece/budget.h"
#include "fleece/cache_memory.h"
#include "fleece/slot_pool.h"

struct punch { /* a piece of the file on its way out */
    struct request request;
    uint32_t first, count; /* segments; count 0: not under way */
    uint64_t since_ns;
};

struct disk_tier {
    struct io *io;
    struct node *file;
    struct budget *budget;
    struct cache_memory *memory; /* where the places have their records; NULL: a crash ends them */
    unsigned block_shift;
    struct slot_pool pool;                    /* a segment is present as long as it has a share of the budget */
    uint32_t adopting;                        /* segments that the budget was charged for while slots are adopted */
    uint64_t sequence;                        /* of the next segment header */
    unsigned writes, punches;                 /* spills and punches (one at most) under way */
    int failure;                              /* -errno of the last spill that failed; 0: the last one succeeded */
    uint64_t spilled_segments, punched_bytes; /* ever */
    uint64_t punches_failed;                  /* ever: what they were for stays used until the file goes */
    /* By the caller, may be NULL: a punch is over, so there may be a place for a spill. */
    void (*punched)(void *context);
    void *context;
    /* Private: */
    uint32_t write_flags;        /* enum request_flags */
    struct index_set idle, kept; /* segments that hold nothing: to be punched; that cannot be */
    uint32_t idle_count, kept_count;
    void *sets;
    size_t sets_bytes;
    struct punch punch;
    uint64_t punch_bytes; /* the longest piece now */
    void (*quiet)(void *context);
    void *quiet_context;
    struct io_task quiet_task;
};

struct disk_tier_options {
    struct node *file; /* at least disk_tier_file_bytes(…, 1) long; its size is the most that is ever used of it */
    struct budget *budget;
    unsigned block_shift;
    uint64_t segment_bytes;      /* of data; the same as the RAM tier's */
    struct cache_memory *memory; /* made or adopted later, before the first spill; NULL: there is none */
};

struct spill_write { /* one request of a spill */
    struct request request;
    struct spill *spill;
    bool under_way, is_header;
    struct iovec iov[LIMIT_REQUEST_FRAGMENTS];
};

enum spill_step { SPILL_FREE, SPILL_FAILING, SPILL_SUMMING, SPILL_READING, SPILL_WRITING };

struct spill { /* of one RAM segment; belongs to the caller, and to the tier until `done` */
    /* By the caller: */
    char *memory;         /* segment_bytes, aligned; must not change for the slots that have a key */
    const uint64_t *keys; /* one a slot, as in the map (block << EPOCH_BITS | epoch); 0: the slot is free. Copied. */
    /* status 0: slots[i] is where slot i has gone, SLOT_NONE where its key was 0. Otherwise -ENOSPC (the budget, or the file
     * system, is exhausted), or what the write failed with; nothing is taken then. Called later, never inside the call. */
    void (*done)(struct spill *spill, int status);
    uint32_t slots[LIMIT_SEGMENT_SLOTS];
    /* Private: */
    struct disk_tier *tier;
    enum spill_step step;
    bool fresh;     /* goes into a segment of its own, not into gaps */
    uint32_t count; /* slots that have a key: entries of `from`, `crcs` and `from_keys`, in the order of the file */
    uint32_t at;    /* the next of them to be written, and how much of it has been given to a request */
    uint64_t at_bytes;
    uint32_t group_end; /* those before it go into one segment */
    unsigned in_flight;
    int status;
    bool header_lost; /* what the group's header says now is not known */
    struct cache_segment_header *header;
    struct spill_write writes[LIMIT_SPILL_WRITES];
    struct io_op summing;
    struct io_task task;
    uint32_t from[LIMIT_SEGMENT_SLOTS]; /* slots in RAM */
    uint32_t crcs[LIMIT_SEGMENT_SLOTS];
    uint64_t from_keys[LIMIT_SEGMENT_SLOTS];
};

/* 0, -ENOMEM, or -EINVAL (the file is too short). */
int disk_tier_init(struct disk_tier *tier, struct io *io, const struct disk_tier_options *options, struct error *err);
/* No slot is taken, nothing is under way. Gives back what the budget still counts: best after the file is gone. */
void disk_tier_fini(struct disk_tier *tier);

int spill_init(struct spill *spill, struct disk_tier *tier); /* -ENOMEM */
void spill_fini(struct spill *spill);
void disk_tier_spill(struct disk_tier *tier, struct spill *spill);
/* Whether a spill of `slots` slots could find a place: budget and gaps. A hint: the file system may still be full. */
bool disk_tier_has_room(const struct disk_tier *tier, uint32_t slots);

/* Of a file that was adopted: so many segments hold something; the budget is charged for them, or -ENOSPC. Then each slot
 * that holds a block, and the end. When all disks have come so far: segments below `end` have been used; what space those
 * have that hold nothing is given back in the background. */
int disk_tier_adopt(struct disk_tier *tier, uint32_t segments);
void disk_tier_adopt_slot(struct disk_tier *tier, uint32_t slot);
void disk_tier_adopt_end(struct disk_tier *tier);
void disk_tier_adopted(struct disk_tier *tier, uint32_t end);
/* Gives one slot back; what is free is punched out of the file in large pieces, in the background. No read of it by a live
 * point is under way. */
void disk_tier_give(struct disk_tier *tier, uint32_t slot);
/* Where the slot's block is in the file. */
uint64_t disk_tier_offset(const struct disk_tier *tier, uint32_t slot);
uint32_t disk_tier_slots_max(const struct disk_tier *tier);
/* Calls quiet(context) later, once no spill and no punch is under way. While no slot is taken, what is idle is not punched
 * any more: the file is about to go. One caller at a time. */
void disk_tier_when_quiet(struct disk_tier *tier, void (*quiet)(void *context), void *context);

/* How many segments a file of this size has room for. */
uint32_t disk_tier_segments_max(uint64_t file_bytes, uint64_t segment_bytes, unsigned block_shift);
/* Bytes of a cache file with so many segments. */
uint64_t disk_tier_file_bytes(uint64_t segment_bytes, uint64_t segments);

#endif
