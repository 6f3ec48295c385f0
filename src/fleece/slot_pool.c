/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Bookkeeping of slots and segments.
 *
 * A segment is never used, present or absent (was present); a present one is open or closed. The two index sets follow
 * from that and from `used`: with_room = present, open and not full; absent = below segments_end and not present. Both are
 * asked for their lowest member only, so that what is taken gathers at the low end, and the high end empties and goes.
 *
 * All arrays are one mapping without reserve: a cache of 8 TiB may be allowed and 1 GiB of it used, and calloc() would
 * clear the rest on the disk's reactor.
 */
#include "fleece/slot_pool.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

enum { SEGMENT_WORDS = LIMIT_SEGMENT_SLOTS / 64 };

int slot_pool_init(struct slot_pool *pool, uint32_t segments_max, uint32_t slots_per_segment)
{
    assert(slots_per_segment > 0 && slots_per_segment <= LIMIT_SEGMENT_SLOTS);
    assert((slots_per_segment & (slots_per_segment - 1)) == 0);
    assert((uint64_t)segments_max * slots_per_segment < SLOT_NONE);
    size_t set_bytes = index_set_bytes(segments_max), segment_bytes = segments_max * sizeof(struct slot_segment);
    *pool = (struct slot_pool){
        .slots_per_segment = slots_per_segment, .segments_max = segments_max, .bytes = segment_bytes + 2 * set_bytes};
    char *memory = mmap(NULL, pool->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        *pool = (struct slot_pool){0};
        return -ENOMEM;
    }
    pool->segments = (struct slot_segment *)(void *)memory;
    index_set_init(&pool->with_room, segments_max, memory + segment_bytes);
    index_set_init(&pool->absent, segments_max, memory + segment_bytes + set_bytes);
    return 0;
}

void slot_pool_fini(struct slot_pool *pool)
{
    assert(pool->slots_used == 0);
    if (pool->bytes)
        munmap(pool->segments, pool->bytes);
    *pool = (struct slot_pool){0};
}

bool slot_pool_next_absent(const struct slot_pool *pool, uint32_t *segment)
{
    if (index_set_lowest(&pool->absent, segment))
        return true;
    *segment = pool->segments_end;
    return pool->segments_end < pool->segments_max;
}

/* The slots that a segment does not have count as taken for ever. */
static uint64_t word_without_slots(const struct slot_pool *pool, uint32_t word)
{
    uint32_t slots = pool->slots_per_segment, first = word * 64;
    if (slots >= first + 64)
        return 0;
    return slots <= first ? UINT64_MAX : UINT64_MAX << (slots - first);
}

/* After a change of `used` or of the state. */
static void segment_settle(struct slot_pool *pool, uint32_t segment)
{
    struct slot_segment *s = &pool->segments[segment];
    pool->slots_free -= s->free;
    s->free = s->present && !s->closed ? (uint16_t)(pool->slots_per_segment - s->used) : 0;
    pool->slots_free += s->free;
    if (s->free > 0)
        index_set_add(&pool->with_room, segment);
    else
        index_set_remove(&pool->with_room, segment);
}

void slot_pool_add(struct slot_pool *pool, uint32_t segment)
{
    struct slot_segment *s = &pool->segments[segment];
    assert(segment < pool->segments_max && !s->present);
    /* Those that are skipped can be had later. */
    for (; pool->segments_end <= segment; pool->segments_end++)
        index_set_add(&pool->absent, pool->segments_end);
    index_set_remove(&pool->absent, segment);
    *s = (struct slot_segment){.present = true};
    for (uint32_t word = 0; word < SEGMENT_WORDS; word++)
        s->taken[word] = word_without_slots(pool, word);
    pool->segments_present++;
    segment_settle(pool, segment);
}

void slot_pool_drop(struct slot_pool *pool, uint32_t segment)
{
    struct slot_segment *s = &pool->segments[segment];
    assert(segment < pool->segments_end && s->present && s->used == 0);
    s->present = s->closed = false;
    pool->segments_present--;
    segment_settle(pool, segment);
    index_set_add(&pool->absent, segment);
}

static bool segment_taken(const struct slot_segment *s, uint32_t slot)
{
    return s->taken[slot / 64] >> (slot % 64) & 1;
}

uint32_t slot_pool_take(struct slot_pool *pool, uint32_t count, uint32_t *first)
{
    uint32_t segment, word = 0, taken = 0;
    if (count == 0 || !index_set_lowest(&pool->with_room, &segment))
        return 0;
    struct slot_segment *s = &pool->segments[segment];
    while (~s->taken[word] == 0)
        word++;
    uint32_t start = word * 64 + (uint32_t)__builtin_ctzll(~s->taken[word]);
    assert(start < pool->slots_per_segment);
    while (taken < count && start + taken < pool->slots_per_segment && !segment_taken(s, start + taken)) {
        uint32_t slot = start + taken++;
        s->taken[slot / 64] |= UINT64_C(1) << (slot % 64);
    }
    s->used += taken;
    pool->slots_used += taken;
    segment_settle(pool, segment);
    *first = segment * pool->slots_per_segment + start;
    return taken;
}

void slot_pool_adopt(struct slot_pool *pool, uint32_t slot)
{
    uint32_t segment = slot / pool->slots_per_segment, in_segment = slot % pool->slots_per_segment;
    struct slot_segment *s = &pool->segments[segment];
    if (!s->present)
        slot_pool_add(pool, segment);
    assert(!s->closed && !segment_taken(s, in_segment));
    s->taken[in_segment / 64] |= UINT64_C(1) << (in_segment % 64);
    s->used++;
    pool->slots_used++;
    segment_settle(pool, segment);
}

void slot_pool_take_segment(struct slot_pool *pool, uint32_t segment)
{
    struct slot_segment *s = &pool->segments[segment];
    assert(s->present && s->used == 0);
    memset(s->taken, 0xff, sizeof s->taken);
    s->used = pool->slots_per_segment;
    pool->slots_used += s->used;
    segment_settle(pool, segment);
}

uint32_t slot_pool_give(struct slot_pool *pool, uint32_t slot)
{
    uint32_t segment = slot / pool->slots_per_segment, in_segment = slot % pool->slots_per_segment;
    struct slot_segment *s = &pool->segments[segment];
    assert(s->present && s->used > 0 && segment_taken(s, in_segment));
    s->taken[in_segment / 64] &= ~(UINT64_C(1) << (in_segment % 64));
    s->used--;
    pool->slots_used--;
    segment_settle(pool, segment);
    return s->used;
}

bool slot_pool_has_room(const struct slot_pool *pool)
{
    uint32_t segment;
    return index_set_lowest(&pool->with_room, &segment);
}

bool slot_pool_taken(const struct slot_pool *pool, uint32_t slot)
{
    uint32_t segment = slot / pool->slots_per_segment;
    return segment < pool->segments_end && pool->segments[segment].present &&
           segment_taken(&pool->segments[segment], slot % pool->slots_per_segment);
}

void slot_pool_close(struct slot_pool *pool, uint32_t segment)
{
    assert(pool->segments[segment].present && !pool->segments[segment].closed);
    pool->segments[segment].closed = true;
    segment_settle(pool, segment);
}

void slot_pool_open(struct slot_pool *pool, uint32_t segment)
{
    assert(pool->segments[segment].present && pool->segments[segment].closed);
    pool->segments[segment].closed = false;
    segment_settle(pool, segment);
}
