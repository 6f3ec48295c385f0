// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What a hostile guest writes into its rings: chains that never end, lead out of the table, point outside of memory; indices
 * that jump. The device may stop the ring, fail the request or close the connection. It must go on
 * answering messages unless it closed, and serve the next one.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "conform.h"

enum { SETTLE_US = 3000, FUZZ_ROUNDS = 60, TABLE = 64 };

/* A good request in descriptors 0 to 2 (header, data, status), not yet available; the tests spoil it. */
struct victim {
    struct ring *ring;
    uint64_t header, data, table, end; /* end: of memory */
};

static bool prepare(struct scene *scene, struct victim *v, bool packed)
{
    struct front_options options = scene->options->front;
    options.packed = packed;
    options.regions = 2;
    options.region_bytes = 8 << 20;
    options.gap = 1 << 20;
    if (!scene_started_with(scene, &options) || !scene_works(scene, 0))
        return false;
    struct guest_memory *memory = &scene->front->memory;
    v->ring = &scene->front->rings[0];
    v->header = guest_take(memory, 0, 17, 16);
    v->data = guest_take(memory, 0, 4096, 4096);
    v->table = guest_take(memory, 0, 16 * 1024, 16);
    v->end = memory->regions[1].guest + memory->regions[1].size;
    struct blk_header read = {BLK_READ, 0, 0};
    memcpy(guest_at(memory, v->header), &read, sizeof(read));
    return true;
}

static void good_chain(struct split_desc *desc, const struct victim *v)
{
    desc[0] = (struct split_desc){v->header, 16, DESC_NEXT, 1};
    desc[1] = (struct split_desc){v->data, 4096, DESC_NEXT | DESC_WRITE, 2};
    desc[2] = (struct split_desc){v->header + 16, 1, DESC_WRITE, 0};
}

static bool survives(struct scene *scene, struct victim *v)
{
    ring_kick_always(v->ring);
    usleep(SETTLE_US);
    return scene_answers_or_closed(scene);
}

/* One spoilt field of one descriptor. */
struct spoil {
    unsigned at;
    uint64_t addr;
    uint32_t len;
    int flags; /* -1: as it was */
    int next;
};

enum { AS_IS = -1 };
static const uint64_t addr_as_is = UINT64_MAX - 1;
static const uint32_t len_as_is = UINT32_MAX - 1;

/* The same list for the ring's own table and for an indirect one. */
static const struct spoil spoils[] = {
    {0, addr_as_is, len_as_is, AS_IS, 0},                  /* to itself */
    {2, addr_as_is, len_as_is, DESC_NEXT | DESC_WRITE, 0}, /* back to the first */
    {2, addr_as_is, len_as_is, DESC_NEXT | DESC_WRITE, 1}, /* back to the second */
    {1, addr_as_is, len_as_is, AS_IS, 128},                /* out of the table */
    {1, addr_as_is, len_as_is, AS_IS, 65535},              /* far out of it */
    {0, addr_as_is, 0, AS_IS, 1},                          /* length 0 */
    {1, addr_as_is, 0, AS_IS, 2},                          /* ... of the data */
    {2, addr_as_is, 0, AS_IS, 0},                          /* ... of the status */
    {1, addr_as_is, UINT32_MAX, AS_IS, 2},                 /* 4 GiB - 1 */
    {1, addr_as_is, 1u << 31, AS_IS, 2},                   /* 2 GiB */
    {0, addr_as_is, UINT32_MAX, AS_IS, 1},                 /* a large header */
    {2, addr_as_is, UINT32_MAX, AS_IS, 0},                 /* a large status */
    {0, UINT64_MAX, len_as_is, AS_IS, 1},                  /* past 2^64 */
    {1, UINT64_MAX - 15, len_as_is, AS_IS, 2},             /* ... */
    {1, UINT64_C(1) << 63, len_as_is, AS_IS, 2},           /* nowhere */
    {0, UINT64_C(1) << 40, len_as_is, AS_IS, 1},           /* ... the header */
    {2, UINT64_C(1) << 40, len_as_is, AS_IS, 0},           /* ... the status */
    {1, 8 << 20, len_as_is, AS_IS, 2},                     /* in the gap */
    {1, (8 << 20) - 512, len_as_is, AS_IS, 2},             /* into the gap */
    {1, (17 << 20) - 512, len_as_is, AS_IS, 2},            /* past the end */
    {1, addr_as_is, len_as_is, DESC_INDIRECT, 2}, /* an indirect table in the middle of a chain, of what is data */
    {0, addr_as_is, len_as_is, DESC_INDIRECT | DESC_NEXT, 1}, /* both */
    {1, addr_as_is, len_as_is, 0xffff, 2},                    /* all flags */
    {0, addr_as_is, len_as_is, 0xfff8, 1},                    /* unknown flags */
};

enum { SPOILS = sizeof(spoils) / sizeof(spoils[0]) };

static void spoil_one(struct split_desc *desc, const struct spoil *spoil)
{
    struct split_desc *one = &desc[spoil->at];
    if (spoil->addr != addr_as_is)
        one->addr = spoil->addr;
    if (spoil->len != len_as_is)
        one->len = spoil->len;
    if (spoil->flags != AS_IS)
        one->flags = (uint16_t)spoil->flags;
    one->next = (uint16_t)spoil->next;
}

static bool spoilt_chains(struct scene *scene)
{
    for (unsigned i = 0; i < SPOILS; i++) {
        struct victim v;
        if (!prepare(scene, &v, false))
            return false;
        good_chain(ring_split_desc(v.ring, 0), &v);
        spoil_one(ring_split_desc(v.ring, 0), &spoils[i]);
        ring_publish(v.ring, 0);
        if (!survives(scene, &v))
            return scene_fail(scene, "chain %u: %s", i, scene->front->error);
    }
    return true;
}

static bool spoilt_tables(struct scene *scene)
{
    for (unsigned i = 0; i < SPOILS; i++) {
        struct victim v;
        if (!prepare(scene, &v, false))
            return false;
        struct split_desc *table = guest_at(&scene->front->memory, v.table);
        good_chain(table, &v);
        spoil_one(table, &spoils[i]);
        *ring_split_desc(v.ring, 0) = (struct split_desc){v.table, 3 * 16, DESC_INDIRECT, 0};
        ring_publish(v.ring, 0);
        if (!survives(scene, &v))
            return scene_fail(scene, "table %u: %s", i, scene->front->error);
    }
    return true;
}

/* Tables that are wrong themselves: their address, their length, another table within. */
static bool tables_outside(struct scene *scene)
{
    for (unsigned i = 0; i < 16; i++) {
        struct victim v;
        if (!prepare(scene, &v, false))
            return false;
        struct split_desc *table = guest_at(&scene->front->memory, v.table), *first = ring_split_desc(v.ring, 0);
        good_chain(table, &v);
        struct split_desc wrong[] = {{v.table, 0, DESC_INDIRECT, 0},
                                     {v.table, 15, DESC_INDIRECT, 0},
                                     {v.table, 3 * 16 + 8, DESC_INDIRECT, 0},
                                     {v.table, 2 * 16, DESC_INDIRECT, 0},
                                     {v.table, UINT32_MAX, DESC_INDIRECT, 0},
                                     {v.table, UINT32_MAX & ~15u, DESC_INDIRECT, 0},
                                     {v.end - 16, 3 * 16, DESC_INDIRECT, 0},
                                     {(8 << 20) - 16, 3 * 16, DESC_INDIRECT, 0},
                                     {UINT64_MAX - 15, 3 * 16, DESC_INDIRECT, 0},
                                     {UINT64_C(1) << 50, 3 * 16, DESC_INDIRECT, 0},
                                     {v.table, 3 * 16, DESC_INDIRECT | DESC_NEXT, 1},
                                     {v.table, 3 * 16, DESC_INDIRECT | DESC_NEXT, 0},
                                     {v.table + 1, 3 * 16, DESC_INDIRECT, 0},
                                     {v.table, 3 * 16, DESC_INDIRECT, 0},
                                     {v.table, 1024 * 16, DESC_INDIRECT, 0},
                                     {v.ring->descriptors, 16 * v.ring->size, DESC_INDIRECT, 0}};
        *first = wrong[i];
        if (i == 13) /* a table within the table */
            table[0] = (struct split_desc){v.table, 3 * 16, DESC_INDIRECT, 0};
        for (unsigned d = 0; i == 14 && d < 1024; d++) /* far longer than the ring, and all of it is in use */
            table[d] = (struct split_desc){d ? v.data : v.header, d ? 4096 : 16,
                                           (uint16_t)(d < 1023 ? DESC_NEXT | (d ? DESC_WRITE : 0) : DESC_WRITE),
                                           (uint16_t)(d + 1)};
        ring_publish(v.ring, 0);
        if (!survives(scene, &v))
            return scene_fail(scene, "table %u: %s", i, scene->front->error);
    }
    return true;
}

/* Indirect tables from a driver that has not negotiated them. */
static bool table_not_negotiated(struct scene *scene)
{
    struct front_options options = scene->options->front;
    options.features_off |= 1u << FEATURE_INDIRECT;
    if (!scene_started_with(scene, &options))
        return false;
    struct victim v = {.ring = &scene->front->rings[0],
                       .header = guest_take(&scene->front->memory, 0, 17, 16),
                       .data = guest_take(&scene->front->memory, 0, 4096, 4096),
                       .table = guest_take(&scene->front->memory, 0, 48, 16)};
    good_chain(guest_at(&scene->front->memory, v.table), &v);
    *ring_split_desc(v.ring, 0) = (struct split_desc){v.table, 48, DESC_INDIRECT, 0};
    ring_publish(v.ring, 0);
    return survives(scene, &v);
}

/* Heads and indices that can't be. */
static bool available_ring(struct scene *scene)
{
    for (unsigned i = 0; i < 10; i++) {
        struct victim v;
        if (!prepare(scene, &v, false))
            return false;
        good_chain(ring_split_desc(v.ring, 0), &v);
        uint16_t *idx = ring_avail_idx(v.ring);
        if (i < 3)
            ring_publish(v.ring, (uint16_t)(i == 0 ? v.ring->size : i == 1 ? 65535 : 1000));
        else if (i == 3)
            *idx = (uint16_t)(*idx + v.ring->size + 1);
        else if (i == 4)
            *idx = (uint16_t)(*idx - 1);
        else if (i == 5)
            *idx = (uint16_t)(*idx + 32768);
        else
            for (unsigned times = 0; times < v.ring->size; times++) /* one head, so many times at once */
                ring_publish(v.ring, 0);
        if (i == 7) /* and its descriptors are its own data */
            ring_split_desc(v.ring, 1)->addr = v.ring->descriptors;
        if (i == 8)
            ring_split_desc(v.ring, 1)->addr = v.ring->device_area;
        if (i == 9)
            ring_split_desc(v.ring, 2)->addr = v.ring->driver_area + 2;
        if (!survives(scene, &v))
            return scene_fail(scene, "kind %u: %s", i, scene->front->error);
    }
    return true;
}

/* The used ring is the device's alone, but a guest can write it. */
static bool used_ring_overwritten(struct scene *scene)
{
    struct victim v;
    if (!prepare(scene, &v, false))
        return false;
    rng_fill(&scene->rng, guest_at(&scene->front->memory, v.ring->device_area), 6 + 8 * v.ring->size);
    good_chain(ring_split_desc(v.ring, 0), &v);
    ring_publish(v.ring, 0);
    return survives(scene, &v);
}

/* Rings of random bytes, of addresses that often lie in memory, changed while the device reads them. */
static bool fuzzed_rings(struct scene *scene, bool packed)
{
    for (unsigned round = 0; round < FUZZ_ROUNDS; round++) {
        struct victim v;
        if (!prepare(scene, &v, packed))
            return false;
        struct guest_memory *memory = &scene->front->memory;
        struct rng *rng = &scene->rng;
        for (unsigned step = 0; step < 20; step++) {
            for (unsigned i = 0; i < v.ring->size; i++) {
                struct split_desc *desc = ring_split_desc(v.ring, i);
                desc->addr = rng_below(rng, 8) ? rng_below(rng, v.end + 4096) : rng_next(rng);
                desc->len = rng_below(rng, 4) ? (uint32_t)rng_below(rng, 5000) : (uint32_t)rng_next(rng);
                desc->flags = (uint16_t)(rng_below(rng, 8) ? rng_below(rng, 8) & (rng_below(rng, 4) ? 3 : 7)
                                                           : rng_next(rng));
                desc->next = (uint16_t)(rng_below(rng, 16) ? rng_below(rng, v.ring->size) : rng_next(rng));
                if (packed) { /* here `flags` is the id, `next` the flags */
                    uint16_t flags = desc->flags;
                    desc->flags = desc->next;
                    desc->next = (uint16_t)(flags | (v.ring->avail_wrap ? DESC_AVAIL : DESC_USED));
                }
            }
            if (round % 2) /* a read's header wherever a chain may begin */
                for (unsigned at = 0; at < 64; at++)
                    ((uint64_t *)guest_at(memory, v.table))[at] = at % 2 ? rng_below(rng, 1000) : rng_below(rng, 16);
            if (packed)
                ring_kick_always(v.ring);
            else
                for (unsigned i = 0; i < 8; i++)
                    ring_publish(v.ring, (uint16_t)rng_below(rng, v.ring->size + (i == 7)));
            ring_kick_always(v.ring);
            usleep((unsigned)rng_below(rng, 300));
        }
        if (!scene_answers_or_closed(scene))
            return scene_fail(scene, "round %u: %s", round, scene->front->error);
    }
    return true;
}

static bool fuzzed_split(struct scene *scene)
{
    return fuzzed_rings(scene, false);
}

static bool fuzzed_packed(struct scene *scene)
{
    return fuzzed_rings(scene, true);
}

/* Packed: chains without an end, ids that can't be, wrong lengths and addresses. */
static bool spoilt_packed(struct scene *scene)
{
    for (unsigned i = 0; i < 18; i++) {
        struct victim v;
        if (!prepare(scene, &v, true))
            return false;
        struct ring *ring = v.ring;
        struct packed_desc desc[3] = {
            {v.header, 16, 0, DESC_NEXT}, {v.data, 4096, 0, DESC_NEXT | DESC_WRITE}, {v.header + 16, 1, 0, DESC_WRITE}};
        static const uint16_t ids[] = {128, 1000, 65535};
        unsigned at = ring->avail_at, count = 3;
        if (i < 3)
            desc[2].id = ids[i];
        else if (i == 3)
            count = ring->size; /* all of the ring is one chain, which goes on */
        else if (i < 7)
            desc[i - 4].len = 0;
        else if (i < 10)
            desc[i - 7].len = UINT32_MAX;
        else if (i < 13)
            desc[i - 10].addr = i == 10 ? UINT64_MAX : i == 11 ? v.end - 16 : UINT64_C(1) << 40;
        else if (i == 13)
            desc[1].flags |= DESC_INDIRECT;
        else if (i == 14)
            desc[0] = (struct packed_desc){v.table, 0, 0, DESC_INDIRECT};
        else if (i == 15)
            desc[0] = (struct packed_desc){v.table, UINT32_MAX, 0, DESC_INDIRECT};
        else if (i == 16)
            desc[0] = (struct packed_desc){v.end - 16, 48, 0, DESC_INDIRECT};
        else
            desc[0] = (struct packed_desc){v.table, 40, 0, DESC_INDIRECT | DESC_NEXT};
        for (unsigned n = count; n-- > 0;) {
            bool wrapped = at + n >= ring->size, wrap = ring->avail_wrap ^ wrapped;
            struct packed_desc one = desc[n < 3 ? n : 1];
            one.flags |= wrap ? DESC_AVAIL : DESC_USED;
            *ring_packed_desc(ring, (at + n) % ring->size) = one;
            __atomic_thread_fence(__ATOMIC_SEQ_CST);
        }
        if (!survives(scene, &v))
            return scene_fail(scene, "chain %u: %s", i, scene->front->error);
    }
    return true;
}

/* One ring is spoilt; the others of the same disk go on, or the connection is closed: no guest waits for nothing. */
static bool other_rings(struct scene *scene)
{
    struct front_options options = scene->options->front;
    options.queues = 2;
    if (!scene_started_with(scene, &options) || !scene_works(scene, 0) || !scene_works(scene, 1))
        return false;
    struct ring *ring = &scene->front->rings[0];
    *ring_split_desc(ring, 0) = (struct split_desc){UINT64_C(1) << 50, 16, DESC_NEXT, 0};
    ring_publish(ring, 0);
    ring_kick_always(ring);
    usleep(SETTLE_US);
    return scene_works(scene, 1) || channel_hung_up(scene->front->socket, 0);
}

const struct conform_case conform_rings[] = {
    {"spoilt-chains", spoilt_chains},
    {"spoilt-tables", spoilt_tables},
    {"tables-outside", tables_outside},
    {"table-not-negotiated", table_not_negotiated},
    {"available-ring", available_ring},
    {"used-ring-overwritten", used_ring_overwritten},
    {"fuzzed-split", fuzzed_split},
    {"fuzzed-packed", fuzzed_packed},
    {"spoilt-packed", spoilt_packed},
    {"other-rings", other_rings},
    {0},
};
