/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Runs of blocks that are in the same place. What was released is known by the needed set, which passes over equal chunks
 * at once; where nothing is preserved the map's regions say so. Only blocks in regions with entries are looked up, at most
 * LIMIT_STATUS_BLOCKS of them in one answer: so a disk of terabytes with little in the cache is described by a few steps.
 *
 * Dirty maps are fixed at the cut, whatever is preserved, overwritten or released later. An answer looks at
 * LIMIT_BITMAP_STEP_CHUNKS chunks of them at most, and passes over those that are all equal.
 */
#include "fleece/snapshot_status.h"

#include <errno.h>

#include "base/probe.h"

struct walk {
    const struct point *point;
    unsigned shift, looks; /* blocks that may still be looked up */
};

static uint32_t place_flags(const struct walk *walk, uint64_t block)
{
    uint32_t place = point_place(walk->point, block);
    if (place == PLACE_NONE || MUTANT(status_ignores_cache))
        return 0;
    const struct fleecing_cache *cache = cbw_cache(walk->point->cbw);
    if (block_map_epoch(&cache->map, place) == EPOCH_UNCHANGED)
        return RESIDENCE_RAM;
    switch (fleecing_cache_kind(cache, place)) {
    case PLACE_RAM:
        return RESIDENCE_CHANGED | RESIDENCE_RAM;
    case PLACE_FILE:
        return MUTANT(residence_knows_no_file) ? 0 : RESIDENCE_CHANGED | RESIDENCE_CACHE;
    case PLACE_ZERO:
        return RESIDENCE_CHANGED | RESIDENCE_ZERO;
    }
    return 0;
}

/* The run of bytes from range.start, within the range, that have the same residence as far as one step sees. */
static uint64_t next_run(struct walk *walk, struct range range, uint32_t *flags)
{
    const struct bitmap *needed = &walk->point->needed;
    const struct block_map *map = &cbw_cache(walk->point->cbw)->map;
    struct block_range blocks = range_to_blocks(range, walk->shift);
    uint64_t block = blocks.first, end = block_range_end(blocks), run_end;
    if (!bitmap_get(needed, block)) {
        *flags = RESIDENCE_RELEASED;
        run_end = bitmap_next_before(needed, block, end, true);
    } else if ((run_end = block_map_next(map, block, end)) > block) {
        *flags = 0;
        run_end = bitmap_next_before(needed, block, run_end, false);
    } else {
        *flags = place_flags(walk, block);
        run_end = block + 1;
        walk->looks--;
    }
    return run_end < end ? (run_end << walk->shift) - range.start : range.length;
}

void snapshot_residence(const struct point *point, struct request *req)
{
    struct walk walk = {point, cbw_block_shift(point->cbw), LIMIT_STATUS_BLOCKS};
    struct range rest = req->range;
    req->extent_count = 0;
    while (rest.length > 0 && walk.looks > 0) {
        uint32_t flags;
        uint64_t length = next_run(&walk, rest, &flags);
        if (!request_add_extent(req, length, flags))
            return;
        rest = (struct range){rest.start + length, rest.length - length};
    }
    if (rest.length > 0)
        PROBE(status_clipped);
}

void snapshot_dirty(const struct dirty_map *map, struct request *req)
{
    const uint64_t most = LIMIT_BITMAP_STEP_CHUNKS * BITMAP_CHUNK_BITS;
    struct block_range bits = range_to_blocks(req->range, map->shift);
    uint64_t bit = bits.first, end = block_range_end(bits);
    end = end - bit > most ? bit + most : end;
    const uint64_t bytes_end = block_range_end(bits) > end ? end << map->shift : range_end(req->range);
    req->extent_count = 0;
    for (uint64_t at = req->range.start; at < bytes_end;) {
        bool dirty = bitmap_get(&map->changed, bit);
        bit = bitmap_next_before(&map->changed, bit, end, !dirty);
        uint64_t run_end = bit < end ? bit << map->shift : bytes_end;
        if (!request_add_extent(req, run_end - at, dirty ? EXTENT_DIRTY : 0))
            return;
        at = run_end;
    }
}

int snapshot_allocation(const struct point *point, struct request *req, const struct request *base)
{
    struct walk walk = {point, cbw_block_shift(point->cbw), LIMIT_STATUS_BLOCKS};
    uint64_t at = base->range.start;
    req->extent_count = 0;
    for (unsigned i = 0; i < base->extent_count; i++) {
        struct range rest = {at, base->extents[i].length};
        while (rest.length > 0) {
            uint32_t flags;
            uint64_t length = next_run(&walk, rest, &flags);
            if ((flags & RESIDENCE_RELEASED) && !MUTANT(released_block_described))
                return req->extent_count > 0 ? 0 : -ENODATA;
            uint32_t says = flags == 0               ? base->extents[i].flags
                            : flags & RESIDENCE_ZERO ? (uint32_t)(EXTENT_HOLE | EXTENT_ZERO)
                                                     : 0;
            if (walk.looks == 0)
                PROBE(status_clipped);
            if (walk.looks == 0 || !request_add_extent(req, length, says))
                return 0;
            rest = (struct range){rest.start + length, rest.length - length};
        }
        at += base->extents[i].length;
    }
    return 0;
}
