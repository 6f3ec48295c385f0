/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Segments of the RAM tier.
 *
 * A segment holds no memory until it is grown (fallocate in tmpfs: a full tmpfs says ENOSPC here and never kills us with
 * SIGBUS later, C13), and is punched as soon as its last slot is given back, unless it is closed: then it is on its way to
 * the cache file, and is punched when that is over. Its memory and the map's share for its slots are charged to the budget
 * while it is there. The shared memory has no name: a crash leaves nothing.
 */
#include "fleece/ram_tier.h"

#include <assert.h>
#include <errno.h>

#include "base/probe.h"

static struct range segment_range(const struct ram_tier *tier, uint32_t segment)
{
    return (struct range){segment * tier->segment_bytes, tier->segment_bytes};
}

int ram_tier_init(struct ram_tier *tier, struct io *io, struct budget *budget, unsigned block_shift,
                  uint64_t segment_bytes, uint64_t segment_charge, uint32_t segments_max, struct error *err)
{
    *tier = (struct ram_tier){
        .io = io,
        .budget = budget,
        .block_shift = block_shift,
        .segment_bytes = segment_bytes,
        .segment_charge = segment_charge,
    };
    if (slot_pool_init(&tier->pool, segments_max, (uint32_t)(segment_bytes >> block_shift)) < 0)
        return error_set(err, ENOMEM, "no memory for the fleecing cache's list of %u segments", segments_max);
    int status = io_shm_create(io, &tier->shm, segments_max * segment_bytes, err);
    if (status < 0)
        slot_pool_fini(&tier->pool);
    return status;
}

void ram_tier_fini(struct ram_tier *tier)
{
    assert(tier->pool.segments_present == 0);
    io_shm_destroy(tier->io, &tier->shm);
    slot_pool_fini(&tier->pool);
}

/* Makes a segment with memory; false: the budget or tmpfs has none. */
static bool segment_grow(struct ram_tier *tier)
{
    uint32_t segment;
    if (!slot_pool_next_absent(&tier->pool, &segment))
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
    if (segment < tier->pool.segments_end)
        PROBE(ram_tier_segment_reused);
    slot_pool_add(&tier->pool, segment);
    return true;
}

static void segment_drop(struct ram_tier *tier, uint32_t segment)
{
    slot_pool_drop(&tier->pool, segment);
    io_shm_punch(tier->io, &tier->shm, segment_range(tier, segment));
    budget_give(tier->budget, tier->segment_charge);
}

uint32_t ram_tier_take(struct ram_tier *tier, uint32_t count, uint32_t *first)
{
    uint32_t taken = slot_pool_take(&tier->pool, count, first);
    if (taken == 0 && segment_grow(tier))
        taken = slot_pool_take(&tier->pool, count, first);
    return taken;
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
