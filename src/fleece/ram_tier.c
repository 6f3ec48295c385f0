/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Slots and segments of the RAM tier.
 *
 * A segment holds no memory until it is grown (fallocate in tmpfs: a full tmpfs says ENOSPC here and never kills us with
 * SIGBUS later, C13), and is punched as soon as its last slot is given back. Its memory and the map's share for its slots
 * are charged to the budget while it is there. The shared memory has no name: a crash leaves nothing.
 */
#include "fleece/ram_tier.h"

#include <errno.h>
#include <stdlib.h>

#include "base/probe.h"

struct segment {
    struct list_node link; /* in with_room or given_back; in neither when full or never used */
    uint32_t used;
    uint64_t taken[SEGMENT_BYTES_DEFAULT / BLOCK_BYTES_DEFAULT / 64]; /* one bit per slot */
};

static uint64_t segment_bytes(const struct ram_tier *tier)
{
    return (uint64_t)tier->slots_per_segment << tier->block_shift;
}

static uint64_t segment_charge(const struct ram_tier *tier)
{
    return segment_bytes(tier) + tier->slots_per_segment * LIMIT_MAP_BYTES_PER_SLOT;
}

static struct range segment_range(const struct ram_tier *tier, uint32_t index)
{
    return (struct range){index * segment_bytes(tier), segment_bytes(tier)};
}

int ram_tier_init(struct ram_tier *tier, struct io *io, struct budget *budget, unsigned block_shift,
                  uint64_t bytes_per_segment, struct error *err)
{
    *tier = (struct ram_tier){
        .io = io,
        .budget = budget,
        .block_shift = block_shift,
        .slots_per_segment = (uint32_t)(bytes_per_segment >> block_shift),
    };
    assert(tier->slots_per_segment > 0 && tier->slots_per_segment <= 64 * sizeof(((struct segment *)0)->taken) / 8);
    tier->segments_max = (uint32_t)(budget->max_bytes / segment_charge(tier));
    list_init(&tier->with_room);
    list_init(&tier->given_back);
    tier->segments = calloc(tier->segments_max ? tier->segments_max : 1, sizeof *tier->segments);
    if (!tier->segments)
        return error_set(err, ENOMEM, "no memory for the fleecing cache's list of %u segments", tier->segments_max);
    int status = io_shm_create(io, &tier->shm, tier->segments_max * segment_bytes(tier), err);
    if (status < 0) {
        free(tier->segments);
        tier->segments = NULL;
    }
    return status;
}

void ram_tier_fini(struct ram_tier *tier)
{
    assert(tier->slots_used == 0 && list_empty(&tier->with_room));
    io_shm_destroy(tier->io, &tier->shm);
    free(tier->segments);
    tier->segments = NULL;
}

/* Makes a segment with memory; NULL: the budget or tmpfs has none. */
static struct segment *segment_grow(struct ram_tier *tier)
{
    uint32_t fresh = tier->slots_end / tier->slots_per_segment;
    bool reuse = !list_empty(&tier->given_back);
    if (!reuse && fresh == tier->segments_max)
        return NULL;
    if (!budget_take(tier->budget, segment_charge(tier)) && !MUTANT(budget_overdrawn)) {
        PROBE(ram_tier_budget_spent);
        return NULL;
    }
    struct segment *segment = reuse ? list_first(&tier->given_back, struct segment, link) : &tier->segments[fresh];
    if (io_shm_grow(tier->io, &tier->shm, segment_range(tier, (uint32_t)(segment - tier->segments))) < 0 &&
        !MUTANT(full_tmpfs_ignored)) {
        PROBE(ram_tier_tmpfs_full);
        budget_give(tier->budget, segment_charge(tier));
        return NULL;
    }
    if (reuse) {
        PROBE(ram_tier_segment_reused);
        list_remove(&segment->link);
    } else {
        tier->slots_end += tier->slots_per_segment;
    }
    list_prepend(&tier->with_room, &segment->link);
    return segment;
}

static bool segment_taken(const struct segment *segment, uint32_t slot)
{
    return segment->taken[slot / 64] >> (slot % 64) & 1;
}

uint32_t ram_tier_take(struct ram_tier *tier, uint32_t count, uint32_t *first)
{
    struct segment *segment = list_empty(&tier->with_room) ? segment_grow(tier)
                                                           : list_first(&tier->with_room, struct segment, link);
    if (!segment)
        return 0;
    uint32_t start = 0, taken = 0;
    for (uint32_t word = 0; ~segment->taken[word] == 0; word++)
        start += 64;
    start += (uint32_t)__builtin_ctzll(~segment->taken[start / 64]);
    assert(start < tier->slots_per_segment);
    while (taken < count && start + taken < tier->slots_per_segment && !segment_taken(segment, start + taken)) {
        uint32_t slot = start + taken++;
        segment->taken[slot / 64] |= UINT64_C(1) << (slot % 64);
    }
    segment->used += taken;
    tier->slots_used += taken;
    if (segment->used == tier->slots_per_segment)
        list_remove(&segment->link);
    *first = (uint32_t)(segment - tier->segments) * tier->slots_per_segment + start;
    return taken;
}

void ram_tier_give(struct ram_tier *tier, uint32_t slot)
{
    uint32_t index = slot / tier->slots_per_segment, in_segment = slot % tier->slots_per_segment;
    struct segment *segment = &tier->segments[index];
    assert(segment_taken(segment, in_segment) && segment->used > 0);
    segment->taken[in_segment / 64] &= ~(UINT64_C(1) << (in_segment % 64));
    tier->slots_used--;
    if (segment->used-- == tier->slots_per_segment)
        list_append(&tier->with_room, &segment->link);
    if (segment->used > 0 && !MUTANT(segment_punched_early))
        return;
    list_remove(&segment->link);
    list_append(&tier->given_back, &segment->link);
    io_shm_punch(tier->io, &tier->shm, segment_range(tier, index));
    budget_give(tier->budget, segment_charge(tier));
}

char *ram_tier_memory(const struct ram_tier *tier, uint32_t slot)
{
    return tier->shm.base + ((uint64_t)slot << tier->block_shift);
}

uint32_t ram_tier_slots_max(const struct ram_tier *tier)
{
    return tier->segments_max * tier->slots_per_segment;
}
