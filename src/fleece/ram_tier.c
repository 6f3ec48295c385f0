/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Segments of the RAM tier.
 *
 * A segment holds no memory until it is grown (fallocate in tmpfs: a full tmpfs says ENOSPC here and never kills us with
 * SIGBUS later, C13), and is punched as soon as its last slot is given back, unless it is closed: then it is on its way to
 * the cache file, and is punched when that is over. Its memory and the map's share for its slots are charged to the budget
 * while it is there. The shared memory has no name: a crash leaves nothing. Or it has one: then the records (cache_memory.c)
 * say which slots hold something, and what else has memory is punched when it is adopted.
 *
 * To grow a segment and to clear its pages takes as long as ten guest writes (0.1 ms and 0.3 ms a MiB). So the next one is
 * made ahead, by a helper thread, when less than half a segment is free:
 *
 *     NONE -> GROWING -> READY -> NONE (it goes into the pool, or is given back)
 *
 * The spare is charged, is in no pool, and while it grows nobody but the helper touches it: who needs a segment then grows
 * another one himself. Above three quarters of the budget none is made ahead, but a segment that empties may stay as the
 * spare; so blocks of zeroes, whose slots come back at once, do not grow and punch a segment each. Spares never count
 * against others: ram_tier_trim() gives them back when anybody is short, and a spare that is growing is room that comes.
 */
#include "fleece/ram_tier.h"

#include <assert.h>
#include <errno.h>

#include "base/probe.h"

static struct range segment_range(const struct ram_tier *tier, uint32_t segment)
{
    return (struct range){segment * tier->segment_bytes, tier->segment_bytes};
}

static void spare_grown(struct io_op *op, int64_t result);

/* The memory of the slots: new, or as it was left. */
static int slots_open(struct ram_tier *tier, uint64_t bytes, struct error *err)
{
    if (!tier->memory)
        return io_shm_create(tier->io, &tier->shm, NULL, bytes, err);
    const struct io_shm_name name = cache_memory_slots(tier->memory);
    if (!tier->memory->adopted)
        return io_shm_create(tier->io, &tier->shm, &name, bytes, err);
    int status = io_shm_adopt(tier->io, &tier->shm, &name, err);
    if (status == 0 && tier->shm.reserved_bytes != bytes) {
        io_shm_destroy(tier->io, &tier->shm);
        status = error_set(err, EINVAL, "the shared memory %s has not the right size", name.file);
    }
    return status;
}

int ram_tier_init(struct ram_tier *tier, const struct ram_tier_options *options, struct error *err)
{
    *tier = (struct ram_tier){
        .io = options->io,
        .budget = options->budget,
        .memory = options->memory,
        .block_shift = options->block_shift,
        .segment_bytes = options->segment_bytes,
        .segment_charge = options->segment_charge,
        .growth.done = spare_grown,
    };
    uint32_t slots = (uint32_t)(options->segment_bytes >> options->block_shift);
    if (slot_pool_init(&tier->pool, options->segments_max, slots) < 0)
        return error_set(err, ENOMEM, "no memory for the fleecing cache's list of %u segments", options->segments_max);
    int status = slots_open(tier, options->segments_max * options->segment_bytes, err);
    if (status < 0)
        slot_pool_fini(&tier->pool);
    return status;
}

void ram_tier_fini(struct ram_tier *tier)
{
    assert(tier->pool.segments_present == 0 && tier->spare != SPARE_GROWING);
    ram_tier_trim(tier);
    io_shm_destroy(tier->io, &tier->shm);
    slot_pool_fini(&tier->pool);
}

static int64_t spare_grow(void *argument)
{
    struct ram_tier *tier = argument;
    int result = io_shm_grow(tier->io, &tier->shm, segment_range(tier, tier->spare_segment));
    if (result == 0)
        io_shm_populate(tier->io, &tier->shm, segment_range(tier, tier->spare_segment));
    return result;
}

static void spare_prepare(struct ram_tier *tier)
{
    const uint32_t per_segment = tier->pool.slots_per_segment;
    const uint32_t slots_free = tier->pool.segments_present * per_segment - tier->pool.slots_used;
    if (tier->spare != SPARE_NONE || 2 * slots_free > per_segment || tier->refused ||
        budget_is_short(tier->budget, 0) || !slot_pool_next_absent(&tier->pool, &tier->spare_segment) ||
        !budget_take(tier->budget, tier->segment_charge))
        return;
    tier->spare = SPARE_GROWING;
    io_work(tier->io, &tier->growth, spare_grow, tier);
}

static void spare_grown(struct io_op *op, int64_t result)
{
    struct ram_tier *tier = container_of(op, struct ram_tier, growth);
    assert(tier->spare == SPARE_GROWING);
    if (result < 0) {
        PROBE(ram_tier_spare_refused);
        tier->spare = SPARE_NONE;
        tier->refused = true;
        if (!MUTANT(spare_stays_charged))
            budget_give(tier->budget, tier->segment_charge);
    } else {
        tier->spare = SPARE_READY;
    }
    tier->grown(tier->context);
}

bool ram_tier_is_growing(const struct ram_tier *tier)
{
    return tier->spare == SPARE_GROWING;
}

void ram_tier_trim(struct ram_tier *tier)
{
    if (tier->spare != SPARE_READY)
        return;
    PROBE(ram_tier_spare_given_back);
    tier->spare = SPARE_NONE;
    io_shm_punch(tier->io, &tier->shm, segment_range(tier, tier->spare_segment));
    budget_give(tier->budget, tier->segment_charge);
}

/* The next segment without memory, but for the spare. */
static bool segment_choose(const struct ram_tier *tier, uint32_t *segment)
{
    if (!slot_pool_next_absent(&tier->pool, segment))
        return false;
    if (tier->spare == SPARE_NONE || *segment != tier->spare_segment)
        return true;
    PROBE(ram_tier_spare_is_late);
    *segment = *segment < tier->pool.segments_end ? tier->pool.segments_end : *segment + 1;
    return *segment < tier->pool.segments_max;
}

/* Makes a segment with memory; false: the budget or tmpfs has none. */
static bool segment_grow(struct ram_tier *tier)
{
    uint32_t segment;
    if (!segment_choose(tier, &segment))
        return false;
    if (!budget_take(tier->budget, tier->segment_charge) && !MUTANT(budget_overdrawn)) {
        PROBE(ram_tier_budget_spent);
        return false;
    }
    if (io_shm_grow(tier->io, &tier->shm, segment_range(tier, segment)) < 0 && !MUTANT(full_tmpfs_ignored)) {
        PROBE(ram_tier_tmpfs_full);
        budget_give(tier->budget, tier->segment_charge);
        return false;
    }
    if (cache_memory_reach(tier->memory, PLACE_RAM, segment + 1) < 0) {
        io_shm_punch(tier->io, &tier->shm, segment_range(tier, segment));
        budget_give(tier->budget, tier->segment_charge);
        return false;
    }
    if (segment < tier->pool.segments_end)
        PROBE(ram_tier_segment_reused);
    slot_pool_add(&tier->pool, segment);
    tier->refused = false;
    return true;
}

/* A segment for the pool: the spare, or a new one. */
static bool segment_add(struct ram_tier *tier)
{
    if (tier->spare == SPARE_READY || (tier->spare == SPARE_GROWING && MUTANT(spare_taken_early))) {
        if (cache_memory_reach(tier->memory, PLACE_RAM, tier->spare_segment + 1) < 0)
            return false;
        PROBE(ram_tier_spare_used);
        tier->spare = SPARE_NONE;
        slot_pool_add(&tier->pool, tier->spare_segment);
        return true;
    }
    return segment_grow(tier);
}

static void segment_drop(struct ram_tier *tier, uint32_t segment)
{
    slot_pool_drop(&tier->pool, segment);
    if (tier->spare == SPARE_NONE && !atomic_load(&tier->budget->wanted)) {
        PROBE(ram_tier_spare_kept);
        tier->spare = SPARE_READY;
        tier->spare_segment = segment;
        return;
    }
    io_shm_punch(tier->io, &tier->shm, segment_range(tier, segment));
    budget_give(tier->budget, tier->segment_charge);
}

uint32_t ram_tier_take(struct ram_tier *tier, uint32_t count, uint32_t *first)
{
    uint32_t taken = slot_pool_take(&tier->pool, count, first);
    if (taken == 0 && segment_add(tier))
        taken = slot_pool_take(&tier->pool, count, first);
    if (taken > 0)
        spare_prepare(tier);
    return taken;
}

void ram_tier_adopt(struct ram_tier *tier, uint32_t slot)
{
    slot_pool_adopt(&tier->pool, slot);
}

void ram_tier_adopted(struct ram_tier *tier)
{
    const uint32_t end = tier->pool.segments_end;
    for (uint32_t segment = 0; segment < end; segment++)
        if (!tier->pool.segments[segment].present)
            io_shm_punch(tier->io, &tier->shm, segment_range(tier, segment));
    const uint64_t start = end * tier->segment_bytes;
    if (start < tier->shm.reserved_bytes)
        io_shm_punch(tier->io, &tier->shm, (struct range){start, tier->shm.reserved_bytes - start});
}

void ram_tier_give(struct ram_tier *tier, uint32_t slot)
{
    uint32_t segment = slot / tier->pool.slots_per_segment;
    uint32_t left = slot_pool_give(&tier->pool, slot);
    if (MUTANT(segment_punched_early) && left > 0)
        io_shm_punch(tier->io, &tier->shm, segment_range(tier, segment));
    if (left == 0 && !tier->pool.segments[segment].closed)
        segment_drop(tier, segment);
}

char *ram_tier_memory(const struct ram_tier *tier, uint32_t slot)
{
    return tier->shm.base + ((uint64_t)slot << tier->block_shift);
}

void ram_tier_close(struct ram_tier *tier, uint32_t segment)
{
    slot_pool_close(&tier->pool, segment);
}

void ram_tier_open(struct ram_tier *tier, uint32_t segment)
{
    slot_pool_open(&tier->pool, segment);
    if (tier->pool.segments[segment].used == 0)
        segment_drop(tier, segment);
}
