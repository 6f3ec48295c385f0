/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Places, and the way from RAM to the cache file.
 *
 * Every entry of the map has a place: a slot of RAM, a slot of the file, or a mark that says zeroes. An entry moves once
 * at most, from RAM to the file:
 *
 *     slot taken -> (data is read into it) -> inserted -> its segment closes and is spilled -> moved -> freed
 *                                                 \-> freed at any time; a closed segment's slot is not used again before
 *                                                     the write is over
 *
 * While a segment is being written its entries go on being served from RAM; when the write is done, those that are still
 * there move, and the slots of those that are gone are given back. A write that fails changes nothing: the blocks are
 * still in RAM. So a cache device that is full, broken or stalled costs room and nothing else.
 *
 * Segments are spilled when three quarters of the budget are used, the longest filled first (round the ring of segments),
 * so that RAM is ready for a burst; when the filter has no room at all (squeeze), those that are only partly used as well.
 *
 * Blocks that were only read may be kept, too (EPOCH_UNCHANGED), as long as RAM is not short. They are never spilled, and
 * are dropped first, the longest kept first. The filter dates such an entry when its block is about to be overwritten.
 *
 * The budget: a segment of RAM is charged with its share of the map, and where there is a file with the share that the map
 * will need for the same blocks in the file. So a spill never needs budget that it has not got: it could not be had at the
 * moment when it is needed most.
 *
 * A crash ends the cache: RAM has no name, and the file is recognised by its header and removed. Unless it has a memory that
 * outlives the daemon (cache_memory.c): then the next daemon begins with the entries that are recorded there. What was kept
 * only is forgotten, a spill under way has not happened, and an entry that was just being moved counts where it was.
 */
#include "fleece/fleecing_cache.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/name.h"
#include "base/probe.h"
#include "base/zero.h"

static void file_punched(void *context);

static uint64_t map_share(const struct fleecing_cache *cache)
{
    return (uint64_t)cache->ram.pool.slots_per_segment * LIMIT_MAP_BYTES_PER_SLOT;
}

/* ---- life ---- */

uint64_t fleecing_cache_growth_max(uint64_t bytes)
{
    uint64_t most = bytes * CACHE_GROWTH < CACHE_GROWTH_BYTES_MAX ? bytes * CACHE_GROWTH : CACHE_GROWTH_BYTES_MAX;
    return most > bytes ? most : bytes;
}

static uint64_t reserved_segments(uint64_t bytes, uint64_t charge)
{
    return fleecing_cache_growth_max(bytes) / charge;
}

static int spills_create(struct fleecing_cache *cache)
{
    cache->spills = calloc(LIMIT_SPILLS, sizeof *cache->spills);
    if (!cache->spills)
        return -ENOMEM;
    for (unsigned i = 0; i < LIMIT_SPILLS; i++) {
        cache->spills[i].cache = cache;
        if (spill_init(&cache->spills[i].spill, &cache->disk) < 0)
            return -ENOMEM;
    }
    return 0;
}

static void spills_destroy(struct fleecing_cache *cache)
{
    for (unsigned i = 0; cache->spills && i < LIMIT_SPILLS; i++)
        spill_fini(&cache->spills[i].spill);
    free(cache->spills);
    cache->spills = NULL;
}

/* How many places there are of each kind; -ENOMEM: more than can be numbered. */
static int plan_places(const struct fleecing_cache_options *options, uint64_t charge, struct cache_memory_plan *plan)
{
    const uint64_t blocks = (options->room_bytes >> options->block_shift) + 1;
    const uint64_t per_segment = options->segment_bytes >> options->block_shift;
    const uint64_t useful = 4 * blocks / per_segment + 1;
    *plan = (struct cache_memory_plan){.room_bytes = options->room_bytes,
                                       .block_shift = options->block_shift,
                                       .slots_per_segment = (uint32_t)per_segment};
    plan->segments_max[PLACE_RAM] = (uint32_t)reserved_segments(options->ram_budget->max_bytes, charge);
    if (options->file)
        plan->segments_max[PLACE_FILE] = disk_tier_segments_max(options->file->size_bytes, options->segment_bytes,
                                                                options->block_shift);
    uint64_t marks = reserved_segments(options->ram_budget->max_bytes, per_segment * LIMIT_MAP_BYTES_PER_SLOT);
    const uint64_t others = cache_memory_base(plan, PLACE_ZERO), left = PLACE_NONE - 1 - others;
    if (others >= PLACE_NONE - CACHE_PLACES_ALIGNMENT)
        return -ENOMEM;
    marks = marks < useful ? marks : useful;
    if (marks * per_segment + CACHE_PLACES_ALIGNMENT > left)
        marks = (left - CACHE_PLACES_ALIGNMENT) / per_segment;
    plan->segments_max[PLACE_ZERO] = (uint32_t)marks;
    return 0;
}

/* Whether the cache that is to be adopted is what this one would be: but for the budgets, which may have changed. */
static int check_adopted(const struct fleecing_cache_options *options, const struct cache_memory_plan *has,
                         const struct cache_memory_plan *wants, struct error *err)
{
    if (has->block_shift != wants->block_shift || has->slots_per_segment != wants->slots_per_segment)
        return error_set(err, EINVAL, "blocks of %llu bytes are preserved now, it was %llu", 1ULL << wants->block_shift,
                         1ULL << has->block_shift);
    if (has->segments_max[PLACE_FILE] != wants->segments_max[PLACE_FILE])
        return error_set(err, EINVAL,
                         options->file ? "its cache file has another size" : "it has no cache file any more");
    return 0;
}

/* Numbers the places, in a memory that outlives the daemon if there is to be one. */
static int places_create(struct fleecing_cache *cache, const struct fleecing_cache_options *options, uint64_t charge,
                         struct cache_memory_plan *plan, struct error *err)
{
    int status = plan_places(options, charge, plan);
    if (status < 0)
        return error_set(err, -status, "no memory for the map of a fleecing cache");
    if (cache->memory && cache->memory->adopted) {
        const struct cache_memory_plan has = cache_memory_plan(cache->memory);
        status = cache_memory_check_disk(cache->memory, options->disk_bytes, err);
        if (status == 0)
            status = check_adopted(options, &has, plan, err);
        *plan = has;
    } else if (cache->memory) {
        status = cache_memory_create(cache->memory, plan, options->disk_bytes, options->file ? options->file_id : NULL,
                                     err);
    }
    cache->disk_base = cache_memory_base(plan, PLACE_FILE);
    cache->mark_base = cache_memory_base(plan, PLACE_ZERO);
    return status;
}

static int map_create(struct fleecing_cache *cache, const struct cache_memory_plan *plan)
{
    int status = slot_pool_init(&cache->marks, plan->segments_max[PLACE_ZERO], plan->slots_per_segment);
    if (status == 0)
        status = block_map_init(&cache->map, cache_memory_base(plan, PLACE_KINDS),
                                (plan->room_bytes >> plan->block_shift) + 1,
                                cache->memory ? cache->memory->keys : NULL);
    return status;
}

static int cache_adopt(struct fleecing_cache *cache, const struct cache_memory_plan *plan, struct error *err);

int fleecing_cache_init(struct fleecing_cache *cache, const struct fleecing_cache_options *options, struct error *err)
{
    *cache = (struct fleecing_cache){
        .io = options->io,
        .memory = options->memory,
        .ram_budget = options->ram_budget,
        .block_shift = options->block_shift,
        .changed = options->changed,
        .context = options->context,
    };
    const uint64_t share = (options->segment_bytes >> options->block_shift) * LIMIT_MAP_BYTES_PER_SLOT;
    const uint64_t charge = options->segment_bytes + (options->file ? 2 : 1) * share;
    struct cache_memory_plan plan;
    int status = places_create(cache, options, charge, &plan, err);
    if (status < 0)
        return status;
    const struct ram_tier_options ram = {
        options->io, options->ram_budget,         cache->memory, options->block_shift, options->segment_bytes,
        charge,      plan.segments_max[PLACE_RAM]};
    status = ram_tier_init(&cache->ram, &ram, err);
    if (status < 0)
        return status;
    cache->ram.grown = options->changed;
    cache->ram.context = options->context;
    if (options->file) {
        const struct disk_tier_options disk = {options->file, options->file_budget, options->block_shift,
                                               options->segment_bytes, cache->memory};
        status = disk_tier_init(&cache->disk, options->io, &disk, err);
        cache->disk.punched = file_punched;
        cache->disk.context = cache;
    }
    if (options->keep_unchanged)
        cache->spare = calloc(LIMIT_SPARE_BLOCKS, sizeof *cache->spare);
    if (status == 0 && ((options->keep_unchanged && !cache->spare) || map_create(cache, &plan) < 0 ||
                        (options->file && spills_create(cache) < 0)))
        status = error_set(err, ENOMEM, "no memory for the map of a fleecing cache");
    if (status == 0 && cache->memory && cache->memory->adopted)
        status = cache_adopt(cache, &plan, err);
    if (status < 0)
        fleecing_cache_fini(cache);
    return status;
}

void fleecing_cache_fini(struct fleecing_cache *cache)
{
    assert(cache->spills_busy == 0);
    budget_give(cache->ram_budget, cache->disk_map_charge - cache->debt);
    spills_destroy(cache);
    free(cache->spare);
    block_map_fini(&cache->map);
    slot_pool_fini(&cache->marks);
    if (cache->disk.file)
        disk_tier_fini(&cache->disk);
    ram_tier_fini(&cache->ram);
}

bool fleecing_cache_is_empty(const struct fleecing_cache *cache)
{
    return cache->map.entries == 0;
}

bool fleecing_cache_is_growing(const struct fleecing_cache *cache)
{
    return ram_tier_is_growing(&cache->ram);
}

bool fleecing_cache_is_quiet(const struct fleecing_cache *cache)
{
    return cache->spills_busy == 0 && cache->disk.writes == 0 && cache->disk.punches == 0;
}

void fleecing_cache_when_quiet(struct fleecing_cache *cache, void (*quiet)(void *context), void *context)
{
    disk_tier_when_quiet(&cache->disk, quiet, context);
}

/* ---- places ---- */

enum place_kind fleecing_cache_kind(const struct fleecing_cache *cache, uint32_t place)
{
    return place < cache->disk_base ? PLACE_RAM : place < cache->mark_base ? PLACE_FILE : PLACE_ZERO;
}

const char *fleecing_cache_memory(const struct fleecing_cache *cache, uint32_t place)
{
    assert(place < cache->disk_base);
    return ram_tier_memory(&cache->ram, place);
}

uint64_t fleecing_cache_offset(const struct fleecing_cache *cache, uint32_t place)
{
    assert(fleecing_cache_kind(cache, place) == PLACE_FILE);
    return disk_tier_offset(&cache->disk, place - cache->disk_base);
}

/* A place for a mark; PLACE_NONE: the budget has no room for more map. */
static uint32_t mark_take(struct fleecing_cache *cache)
{
    uint32_t segment, mark;
    if (slot_pool_take(&cache->marks, 1, &mark) == 0) {
        if (!slot_pool_next_absent(&cache->marks, &segment) ||
            cache_memory_reach(cache->memory, PLACE_ZERO, segment + 1) < 0 ||
            !budget_take(cache->ram_budget, map_share(cache)))
            return PLACE_NONE;
        slot_pool_add(&cache->marks, segment);
        slot_pool_take(&cache->marks, 1, &mark);
    }
    return cache->mark_base + mark;
}

static void mark_give(struct fleecing_cache *cache, uint32_t mark)
{
    if (slot_pool_give(&cache->marks, mark) > 0)
        return;
    slot_pool_drop(&cache->marks, mark / cache->marks.slots_per_segment);
    budget_give(cache->ram_budget, map_share(cache));
}

void fleecing_cache_give(struct fleecing_cache *cache, uint32_t slot)
{
    ram_tier_give(&cache->ram, slot);
}

void fleecing_cache_insert(struct fleecing_cache *cache, uint32_t slot, uint64_t block, uint32_t epoch)
{
    uint32_t place = slot;
    if (memory_is_zero(ram_tier_memory(&cache->ram, slot),
                       (size_t)1 << (cache->block_shift - (MUTANT(half_a_block_is_zero) ? 1 : 0)))) {
        uint32_t mark = mark_take(cache);
        if (mark != PLACE_NONE) {
            PROBE(cache_zero_mark);
            ram_tier_give(&cache->ram, slot);
            place = mark;
        }
    }
    block_map_insert(&cache->map, place, block, epoch);
}

/* The map's share for the file's slots follows the file; a segment that was spilled brought its own. */
static void disk_map_recharge(struct fleecing_cache *cache)
{
    uint64_t charge = cache->disk.pool.segments_end * map_share(cache);
    cache->debt += charge > cache->disk_map_charge ? charge - cache->disk_map_charge : 0;
    uint64_t back = cache->disk_map_charge > charge ? cache->disk_map_charge - charge : 0;
    uint64_t settled = back < cache->debt ? back : cache->debt;
    cache->debt -= settled;
    budget_give(cache->ram_budget, back - settled);
    cache->disk_map_charge = charge;
    if (cache->debt > 0 && budget_take(cache->ram_budget, cache->debt))
        cache->debt = 0;
}

/* ---- adoption ---- */

/* Whether the place is recorded to hold an old block; -EINVAL: what is recorded cannot be. */
static int record_counts(const struct fleecing_cache *cache, const struct cache_memory_plan *plan, uint32_t place)
{
    const uint64_t key = cache->map.keys[place];
    if (key == 0 || (block_map_epoch(&cache->map, place) == EPOCH_UNCHANGED && !MUTANT(restart_kept_block_believed)))
        return 0;
    bool possible = block_map_epoch(&cache->map, place) > 0 &&
                    block_map_block(&cache->map, place) <= plan->room_bytes >> plan->block_shift;
    return possible ? 1 : -EINVAL;
}

/* Counts the segments of a kind that hold something. */
static int survey(const struct fleecing_cache *cache, const struct cache_memory_plan *plan, enum place_kind kind,
                  uint32_t *segments)
{
    const uint32_t base = cache_memory_base(plan, kind), end = cache_memory_reached(cache->memory, kind);
    *segments = 0;
    for (uint32_t segment = 0; segment < end; segment++) {
        bool used = false;
        for (uint32_t i = 0; i < plan->slots_per_segment; i++) {
            int counts = record_counts(cache, plan, base + segment * plan->slots_per_segment + i);
            if (counts < 0)
                return counts;
            used = used || counts > 0;
        }
        *segments += used;
    }
    return 0;
}

static void adopt_place(struct fleecing_cache *cache, uint32_t place)
{
    if (!block_map_adopt(&cache->map, place)) {
        cache->map.keys[place] = 0;
        return;
    }
    switch (fleecing_cache_kind(cache, place)) {
    case PLACE_RAM:
        ram_tier_adopt(&cache->ram, place);
        break;
    case PLACE_FILE:
        disk_tier_adopt_slot(&cache->disk, place - cache->disk_base);
        break;
    case PLACE_ZERO:
        slot_pool_adopt(&cache->marks, place - cache->mark_base);
        break;
    }
}

/* Takes over what is recorded: the budgets are charged for all of it before anything is entered, so nothing fails
 * half way. */
static int cache_adopt(struct fleecing_cache *cache, const struct cache_memory_plan *plan, struct error *err)
{
    uint32_t segments[PLACE_KINDS] = {0};
    char needs[16], has[16];
    for (unsigned kind = 0; kind < PLACE_KINDS; kind++)
        if (survey(cache, plan, kind, &segments[kind]) < 0)
            return error_set(err, EINVAL, "its records are damaged");
    const uint64_t charge = segments[PLACE_RAM] * cache->ram.segment_charge + segments[PLACE_ZERO] * map_share(cache);
    if (!budget_take(cache->ram_budget, charge))
        return error_set(err, ENOSPC, "it holds %s in RAM, and %s are allowed for all disks",
                         size_format(needs, charge), size_format(has, cache->ram_budget->max_bytes));
    if (cache->disk.file && disk_tier_adopt(&cache->disk, segments[PLACE_FILE]) < 0) {
        budget_give(cache->ram_budget, charge);
        return error_set(err, ENOSPC, "its cache file holds more than what is allowed for all cache files");
    }
    for (unsigned kind = 0; kind < PLACE_KINDS; kind++) {
        const uint32_t base = cache_memory_base(plan, kind);
        const uint32_t end = base + cache_memory_reached(cache->memory, kind) * plan->slots_per_segment;
        for (uint32_t place = base; place < end; place++) {
            if (record_counts(cache, plan, place) > 0)
                adopt_place(cache, place);
            else
                cache->map.keys[place] = 0;
        }
    }
    ram_tier_adopted(&cache->ram);
    if (cache->disk.file)
        disk_tier_adopt_end(&cache->disk);
    return 0;
}

void fleecing_cache_adopted(struct fleecing_cache *cache)
{
    if (!cache->disk.file)
        return;
    disk_tier_adopted(&cache->disk, cache_memory_reached(cache->memory, PLACE_FILE));
    disk_map_recharge(cache);
}

void fleecing_cache_free(struct fleecing_cache *cache, uint32_t place)
{
    cache->spare_blocks -= block_map_epoch(&cache->map, place) == EPOCH_UNCHANGED;
    block_map_remove(&cache->map, place);
    switch (fleecing_cache_kind(cache, place)) {
    case PLACE_RAM:
        ram_tier_give(&cache->ram, place);
        break;
    case PLACE_FILE:
        disk_tier_give(&cache->disk, place - cache->disk_base);
        disk_map_recharge(cache);
        break;
    case PLACE_ZERO:
        mark_give(cache, place - cache->mark_base);
        break;
    }
}

/* The first place beyond those that were ever in use of this one's kind, or PLACE_NONE when it is one of them. */
static uint32_t skip_unused(const struct fleecing_cache *cache, uint32_t place)
{
    const uint32_t per_segment = cache->ram.pool.slots_per_segment;
    if (place < cache->disk_base)
        return place < cache->ram.pool.segments_end * per_segment ? PLACE_NONE : cache->disk_base;
    if (place < cache->mark_base)
        return place - cache->disk_base < cache->disk.pool.segments_end * per_segment ? PLACE_NONE : cache->mark_base;
    return place - cache->mark_base < cache->marks.segments_end * per_segment ? PLACE_NONE : cache->map.places_max;
}

uint32_t fleecing_cache_scan(const struct fleecing_cache *cache, uint32_t *at, uint32_t *steps)
{
    while (*steps > 0 && *at < cache->map.places_max) {
        uint32_t skip = skip_unused(cache, *at);
        if (skip != PLACE_NONE) {
            *at = skip;
            continue;
        }
        (*steps)--;
        uint32_t place = (*at)++;
        if (block_map_epoch(&cache->map, place))
            return place;
    }
    return PLACE_NONE;
}

/* ---- unchanged blocks ---- */

bool fleecing_cache_has_spare(const struct fleecing_cache *cache)
{
    return cache->spare && !budget_is_short(cache->ram_budget, 0);
}

uint32_t fleecing_cache_kept(const struct fleecing_cache *cache, uint64_t block)
{
    if (cache->spare_blocks == 0)
        return PLACE_NONE;
    uint32_t place = block_map_first(&cache->map, block);
    return place != PLACE_NONE && block_map_epoch(&cache->map, place) == EPOCH_UNCHANGED ? place : PLACE_NONE;
}

void fleecing_cache_date(struct fleecing_cache *cache, uint32_t place, uint32_t epoch)
{
    block_map_date(&cache->map, place, epoch);
    cache->spare_blocks--;
}

/* Drops up to `count` unchanged blocks, the longest kept first; false: there were none. */
static bool spare_drop(struct fleecing_cache *cache, uint32_t count)
{
    bool dropped = false;
    while (count > 0 && cache->spare_listed > 0) {
        uint32_t place = cache->spare[cache->spare_first];
        cache->spare_first = (cache->spare_first + 1) % LIMIT_SPARE_BLOCKS;
        cache->spare_listed--;
        if (block_map_epoch(&cache->map, place) != EPOCH_UNCHANGED)
            continue;
        PROBE(spare_dropped);
        fleecing_cache_free(cache, place);
        dropped = true;
        count--;
    }
    return dropped;
}

void fleecing_cache_keep(struct fleecing_cache *cache, uint64_t block, const struct iovec *iov, unsigned iov_count,
                         size_t at, size_t length)
{
    uint32_t slot;
    if (!fleecing_cache_has_spare(cache) || ram_tier_take(&cache->ram, 1, &slot) == 0)
        return;
    char *memory = ram_tier_memory(&cache->ram, slot);
    iov_copy_out(iov, iov_count, at, memory, length);
    memset(memory + length, 0, ((size_t)1 << cache->block_shift) - length);
    if (memory_is_zero(memory, length)) {
        ram_tier_give(&cache->ram, slot);
        return;
    }
    if (cache->spare_listed == LIMIT_SPARE_BLOCKS)
        spare_drop(cache, 1);
    cache->spare[(cache->spare_first + cache->spare_listed++) % LIMIT_SPARE_BLOCKS] = slot;
    cache->spare_blocks++;
    block_map_insert(&cache->map, slot, block, EPOCH_UNCHANGED);
}

/* ---- from RAM to the file ---- */

static void spill_settle(struct cache_spill *spilled, int status)
{
    struct fleecing_cache *cache = spilled->cache;
    const uint32_t per_segment = cache->ram.pool.slots_per_segment;
    for (uint32_t i = 0; i < per_segment && status == 0; i++) {
        uint32_t slot = spilled->segment * per_segment + i, place = spilled->spill.slots[i];
        if (place == SLOT_NONE && block_map_epoch(&cache->map, slot) == EPOCH_UNCHANGED)
            fleecing_cache_free(cache, slot); /* in the way of giving the segment back */
        if (place == SLOT_NONE)
            continue;
        if (cache->map.keys[slot] == spilled->keys[i] || MUTANT(spill_moves_what_is_gone)) {
            block_map_move(&cache->map, slot, cache->disk_base + place);
            ram_tier_give(&cache->ram, slot);
        } else {
            PROBE(spilled_entry_gone);
            disk_tier_give(&cache->disk, place);
        }
    }
}

static void spill_some(struct fleecing_cache *cache, bool partly_used);

static void spill_done(struct spill *spill, int status)
{
    struct cache_spill *spilled = container_of(spill, struct cache_spill, spill);
    struct fleecing_cache *cache = spilled->cache;
    spill_settle(spilled, status);
    if (status < 0) {
        PROBE(spill_failed);
        cache->spill_again_ns = io_now_ns(cache->io) + SPILL_RETRY_NS;
    }
    spilled->busy = false;
    cache->spills_busy--;
    ram_tier_open(&cache->ram, spilled->segment);
    if (status == 0) {
        disk_map_recharge(cache);
        spill_some(cache, false);
    }
    cache->changed(cache->context);
}

static void spill_start(struct fleecing_cache *cache, uint32_t segment)
{
    const uint32_t per_segment = cache->ram.pool.slots_per_segment;
    struct cache_spill *spilled = cache->spills;
    while (spilled->busy)
        spilled++;
    for (uint32_t i = 0; i < per_segment; i++) {
        uint32_t slot = segment * per_segment + i;
        bool spare = block_map_epoch(&cache->map, slot) == EPOCH_UNCHANGED && !MUTANT(spare_spilled);
        spilled->keys[i] = spare ? 0 : cache->map.keys[slot];
    }
    spilled->segment = segment;
    spilled->busy = true;
    spilled->spill.memory = ram_tier_memory(&cache->ram, segment * per_segment);
    spilled->spill.keys = spilled->keys;
    spilled->spill.done = spill_done;
    cache->spills_busy++;
    if (!MUTANT(spilled_segment_stays_open))
        ram_tier_close(&cache->ram, segment);
    disk_tier_spill(&cache->disk, &spilled->spill);
}

/* Whether all that is in the segment is in the map: nothing of it is still being read from the disk. */
static bool segment_settled(const struct fleecing_cache *cache, uint32_t segment)
{
    const struct slot_segment *seg = &cache->ram.pool.segments[segment];
    const uint32_t per_segment = cache->ram.pool.slots_per_segment;
    uint32_t entries = 0;
    for (uint32_t i = 0; i < per_segment; i++)
        entries += cache->map.keys[segment * per_segment + i] != 0;
    return entries == seg->used && entries > 0;
}

/* The next segment to spill, round the ring; full ones only, or also those that are partly used. */
static bool spill_choose(struct fleecing_cache *cache, bool partly_used, uint32_t *segment)
{
    const struct slot_pool *pool = &cache->ram.pool;
    for (uint32_t i = 0; i < pool->segments_end; i++) {
        uint32_t at = (cache->spill_cursor + i) % pool->segments_end;
        const struct slot_segment *seg = &pool->segments[at];
        if (!seg->present || seg->closed || (!partly_used && seg->used < pool->slots_per_segment) ||
            !segment_settled(cache, at))
            continue;
        cache->spill_cursor = at + 1;
        *segment = at;
        return true;
    }
    return false;
}

static bool spill_possible(const struct fleecing_cache *cache)
{
    return cache->disk.file && cache->spills_busy < LIMIT_SPILLS && io_now_ns(cache->io) >= cache->spill_again_ns;
}

/* Starts spills as long as RAM is short, counting those under way as done. */
static void spill_some(struct fleecing_cache *cache, bool partly_used)
{
    uint32_t segment;
    while (budget_is_short(cache->ram_budget, 0) && spare_drop(cache, LIMIT_SEGMENT_SLOTS))
        ;
    while (spill_possible(cache) &&
           (partly_used || budget_is_short(cache->ram_budget, cache->spills_busy * cache->ram.segment_charge)) &&
           spill_choose(cache, partly_used, &segment)) {
        if (!disk_tier_has_room(&cache->disk, cache->ram.pool.segments[segment].used))
            return;
        PROBE(spill_begun);
        spill_start(cache, segment);
    }
}

static void file_punched(void *context)
{
    struct fleecing_cache *cache = context;
    spill_some(cache, false);
    cache->changed(cache->context);
}

uint32_t fleecing_cache_take(struct fleecing_cache *cache, uint32_t count, uint32_t *first)
{
    uint32_t segments = cache->ram.pool.segments_present;
    uint32_t taken = ram_tier_take(&cache->ram, count, first);
    if (taken == 0 && spare_drop(cache, count))
        taken = ram_tier_take(&cache->ram, count, first);
    if (cache->ram.pool.segments_present != segments)
        spill_some(cache, false);
    return taken;
}

void fleecing_cache_look_ahead(struct fleecing_cache *cache)
{
    if (cache->disk.file && cache->spills_busy == 0 && budget_is_short(cache->ram_budget, 0))
        spill_some(cache, false);
}

bool fleecing_cache_squeeze(struct fleecing_cache *cache)
{
    spill_some(cache, cache->spills_busy == 0);
    ram_tier_trim(&cache->ram);
    bool file_moves = cache->spills_busy > 0 || cache->disk.punches > 0;
    return file_moves || ram_tier_is_growing(&cache->ram);
}

int fleecing_cache_failure(const struct fleecing_cache *cache)
{
    return cache->disk.file ? cache->disk.failure : 0;
}

void fleecing_cache_status(const struct fleecing_cache *cache, struct fleecing_cache_status *status)
{
    *status = (struct fleecing_cache_status){
        .ram_blocks = cache->ram.pool.slots_used,
        .zero_blocks = cache->marks.slots_used,
        .spare_blocks = cache->spare_blocks,
        .spills_in_flight = cache->spills_busy,
    };
    if (!cache->disk.file)
        return;
    status->file_blocks = cache->disk.pool.slots_used;
    status->file_bytes = disk_tier_file_bytes(cache->ram.segment_bytes, cache->disk.pool.segments_present);
    status->spilled_bytes = cache->disk.spilled_segments * cache->ram.segment_bytes;
}
