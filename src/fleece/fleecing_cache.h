/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The fleecing cache of one disk: old blocks in RAM, then in the cache file, and the map that finds them. It knows nothing
 * of who needs what: copy-before-write puts blocks in and takes them out. Owner: the disk's reactor.
 *
 * Old data is read from the disk into a slot of RAM. What fills up is spilled to the cache file in the background, before
 * RAM runs out. A block of zeroes is a mark in the map and takes no slot.
 */
#ifndef FLEECE_FLEECE_FLEECING_CACHE_H
#define FLEECE_FLEECE_FLEECING_CACHE_H

#include "fleece/block_map.h"
#include "fleece/disk_tier.h"
#include "fleece/ram_tier.h"

struct cache_spill { /* one segment on its way to the file */
    struct spill spill;
    struct fleecing_cache *cache;
    uint32_t segment;
    bool busy;
    uint64_t keys[LIMIT_SEGMENT_SLOTS]; /* as they were when it left */
};

struct fleecing_cache {
    struct io *io;
    struct cache_memory *memory; /* NULL: a crash ends the cache */
    struct budget *ram_budget;
    unsigned block_shift;
    struct block_map map;
    struct ram_tier ram;
    struct disk_tier disk; /* .file NULL: there is none */
    struct slot_pool marks;
    uint32_t *spare; /* places of unchanged blocks, oldest first, a ring; some are not that any more. NULL: not kept */
    uint32_t spare_first, spare_listed; /* of the ring */
    uint32_t spare_blocks;              /* entries of EPOCH_UNCHANGED in the map */
    uint32_t disk_base, mark_base;      /* places: RAM slots from 0, then the file's, then marks */
    uint64_t disk_map_charge;           /* of the budget, for the map's share of the file's slots */
    uint64_t debt;                      /* of that, not charged yet */
    struct cache_spill *spills;         /* LIMIT_SPILLS */
    unsigned spills_busy;
    uint32_t spill_cursor;   /* segment to look at next */
    uint64_t spill_again_ns; /* after a failure: not before */
    /* RAM has come back, or won't: whoever waits for it should look again. */
    void (*changed)(void *context);
    void *context;
};

struct fleecing_cache_options {
    struct io *io;
    struct budget *ram_budget;
    unsigned block_shift;
    uint64_t segment_bytes, disk_bytes;
    uint64_t room_bytes;                 /* so far the disk may grow */
    struct node *file;                   /* NULL: RAM only */
    struct budget *file_budget;          /* bytes of cache files */
    struct cache_memory *memory;         /* named, to be made; or adopted; NULL: a crash ends the cache */
    const struct cache_file_id *file_id; /* with a file and a memory that is to be made */
    bool keep_unchanged;                 /* blocks that were only read, in RAM that nobody else wants */
    void (*changed)(void *context);
    void *context;
};

/* The largest RAM budget that a cache made with `bytes` can use: so far its budget may grow while it lives. */
uint64_t fleecing_cache_growth_max(uint64_t bytes);
/* Reserves addresses, takes no memory for blocks yet; with an adopted memory it has what is recorded there. 0 or -errno with
 * a sentence. */
int fleecing_cache_init(struct fleecing_cache *cache, const struct fleecing_cache_options *options, struct error *err);
/* Of an adopted one, once, when those of all disks are there: charges what else takes room until it is freed. */
void fleecing_cache_adopted(struct fleecing_cache *cache);
/* It is empty and quiet. */
void fleecing_cache_fini(struct fleecing_cache *cache);
bool fleecing_cache_is_empty(const struct fleecing_cache *cache);
/* Whether memory for it is on its way; `changed` is called when it is here. */
bool fleecing_cache_is_growing(const struct fleecing_cache *cache);
bool fleecing_cache_is_quiet(const struct fleecing_cache *cache);
/* Calls quiet(context) later, when no spill is under way and nothing of the file is being punched. */
void fleecing_cache_when_quiet(struct fleecing_cache *cache, void (*quiet)(void *context), void *context);

/* A run of up to `count` free slots in RAM for data that is going to be read; 0: there is no room. */
uint32_t fleecing_cache_take(struct fleecing_cache *cache, uint32_t count, uint32_t *first);
/* A slot that was taken and is not wanted after all. */
void fleecing_cache_give(struct fleecing_cache *cache, uint32_t slot);
/* The slot holds the block as the points up to `epoch` need it. Blocks of zeroes become a mark, if there is room for one. */
void fleecing_cache_insert(struct fleecing_cache *cache, uint32_t slot, uint64_t block, uint32_t epoch);
/* Whether there is spare RAM for blocks that were only read. */
bool fleecing_cache_has_spare(const struct fleecing_cache *cache);
/* Keeps the block, which is unchanged on the disk, unless it is zeroes or RAM is short. It has no such entry yet. */
void fleecing_cache_keep(struct fleecing_cache *cache, uint64_t block, const struct iovec *iov, unsigned iov_count,
                         size_t at, size_t length);
/* Where the unchanged block is; PLACE_NONE: it is not kept. */
uint32_t fleecing_cache_kept(const struct fleecing_cache *cache, uint64_t block);
/* The kept block at this place is about to be overwritten: it is preserved for the points up to `epoch` from now on. */
void fleecing_cache_date(struct fleecing_cache *cache, uint32_t place, uint32_t epoch);
/* The entry at this place is needed by nobody any more. */
void fleecing_cache_free(struct fleecing_cache *cache, uint32_t place);
/* The next place in use at or after `from`, looking at `*steps` places at most (counted down); PLACE_NONE with steps left:
 * there is none; without: go on at *at. */
uint32_t fleecing_cache_scan(const struct fleecing_cache *cache, uint32_t *at, uint32_t *steps);

enum place_kind fleecing_cache_kind(const struct fleecing_cache *cache, uint32_t place);
const char *fleecing_cache_memory(const struct fleecing_cache *cache, uint32_t place); /* of PLACE_RAM */
uint64_t fleecing_cache_offset(const struct fleecing_cache *cache, uint32_t place);    /* of PLACE_FILE, in the file */

/* Something was inserted: spills begin before RAM runs out. */
void fleecing_cache_look_ahead(struct fleecing_cache *cache);
/* Makes room by all means that cost nobody anything: whether some may come of it. `changed` is called then. */
bool fleecing_cache_squeeze(struct fleecing_cache *cache);
/* -errno of what keeps the file from taking more; 0: nothing, or there is no file. */
int fleecing_cache_failure(const struct fleecing_cache *cache);

struct fleecing_cache_status {
    uint64_t ram_blocks, file_blocks, zero_blocks;
    uint64_t spare_blocks;  /* of those in RAM: unchanged ones */
    uint64_t file_bytes;    /* of segments that are in use */
    uint64_t spilled_bytes; /* ever */
    uint32_t spills_in_flight;
};
void fleecing_cache_status(const struct fleecing_cache *cache, struct fleecing_cache_status *status);

#endif
