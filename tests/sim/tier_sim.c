/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The disk tier over a simulated cache file, against a model that knows what every slot must hold. Random spills and gives,
 * with a budget and a file so small that gaps get filled; then every disk operation of such a run fails in turn, once and
 * for good, until none is left to fail; then a punch and a spill that never come back.
 *
 * Looked at whenever nothing is under way: each taken slot reads back from the file, its segment's header names it with the
 * right key and sum (unless that header was lost to a fault), the budget is charged for exactly the present segments, and
 * the file takes no more space than that.
 */
#include <endian.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "fleece/cache_format.h"
#include "fleece/disk_tier.h"
#include "sim_leaf.h"
#include "world.h"

enum { SPILLS = 2, SLOTS_MAX = 4096 };

struct shape {
    unsigned block_shift;
    uint32_t slots, file_segments, budget_segments, steps;
};

struct
try {
    struct spill spill;
    struct scene *scene;
    uint64_t keys[LIMIT_SEGMENT_SLOTS];
    char *memory;
    bool busy, is_done;
    int status;
};

struct scene {
    struct world *world;
    struct world_file *cache;
    struct io *io;
    struct node *leaf;
    struct budget budget;
    struct disk_tier tier;
    struct shape shape;
    struct try tries[SPILLS];
    uint64_t held[SLOTS_MAX]; /* by slot of the file: its key; 0: free */
    uint64_t next_block;
    /* Faults: */
    uint64_t fail_number; /* of the disk operation; 0: none */
    int fail_with;
    bool fail_on; /* all that follow, too */
    enum world_kind hold_kind;
    uint64_t held_number;
    bool hold;
    unsigned failed, spilled, full;
    bool is_quiet;
};

static int fault(void *context, const struct world_io *io)
{
    struct scene *scene = context;
    if (io->kind == WORLD_WRITE) /* this leaf is no direct I/O: only a stable write can't be lost silently */
        assert_true(sim_leaf_request(io->op)->flags & REQUEST_FUA);
    if (scene->fail_number == 0 || io->number < scene->fail_number)
        return 0;
    if (io->number > scene->fail_number && !scene->fail_on)
        return 0;
    return scene->fail_with;
}

static bool gate(void *context, const struct world_io *io)
{
    struct scene *scene = context;
    if (!scene->hold || io->kind != scene->hold_kind || scene->held_number)
        return false;
    scene->held_number = io->number;
    return true;
}

static uint64_t segment_bytes(const struct shape *shape)
{
    return (uint64_t)shape->slots << shape->block_shift;
}

static uint64_t stride(const struct shape *shape)
{
    return CACHE_HEADER_BYTES + segment_bytes(shape);
}

/* What the block with that key holds. */
static void pattern(char *memory, size_t length, uint64_t key)
{
    for (size_t i = 0; i + sizeof key <= length; i += 512)
        memcpy(memory + i, &key, sizeof key);
}

static bool is_pattern(const uint8_t *memory, size_t length, uint64_t key)
{
    for (size_t i = 0; i + sizeof key <= length; i += 512)
        if (memcmp(memory + i, &key, sizeof key) != 0)
            return false;
    return true;
}

static void scene_open(struct scene *scene, const struct shape *shape, uint64_t seed)
{
    struct error err;
    memset(scene, 0, sizeof *scene);
    scene->shape = *shape;
    scene->budget.max_bytes = shape->budget_segments * stride(shape);
    scene->world = world_create(&(struct world_options){.seed = seed, .context = scene, .fault = fault, .gate = gate});
    scene->io = world_reactor(scene->world, "disk", 0);
    scene->cache = world_file_create(scene->world, "cache",
                                     disk_tier_file_bytes(segment_bytes(shape), shape->file_segments), 512, false);
    world_act_as(scene->world, scene->io);
    assert_int_equal(sim_leaf_open(scene->io, "cache", &scene->leaf), 0);
    struct disk_tier_options options = {.file = scene->leaf,
                                        .budget = &scene->budget,
                                        .block_shift = shape->block_shift,
                                        .segment_bytes = segment_bytes(shape)};
    assert_int_equal(disk_tier_init(&scene->tier, scene->io, &options, &err), 0);
    assert_true(disk_tier_slots_max(&scene->tier) <= SLOTS_MAX);
    for (unsigned i = 0; i < SPILLS; i++) {
        struct try *try = &scene->tries[i];
        assert_int_equal(spill_init(&try->spill, &scene->tier), 0);
        try->scene = scene;
        try->memory = aligned_alloc(4096, segment_bytes(shape));
        assert_non_null(try->memory);
        memset(try->memory, 0, segment_bytes(shape));
    }
    world_act_as(scene->world, NULL);
}

static void quiet(void *context)
{
    ((struct scene *)context)->is_quiet = true;
}

static void run_dry(struct scene *scene)
{
    world_act_as(scene->world, NULL);
    world_run_for(scene->world, NS_PER_S);
}

/* Spills. */

static void spill_done(struct spill *spill, int status)
{
    struct try *try = container_of(spill, struct try, spill);
    struct scene *scene = try->scene;
    assert_true(try->busy && !try->is_done);
    try->is_done = true;
    try->status = status;
    for (uint32_t i = 0; i < scene->shape.slots; i++) {
        uint32_t slot = spill->slots[i];
        if (status < 0 || try->keys[i] == 0) {
            assert_int_equal(slot, SLOT_NONE);
            continue;
        }
        assert_true(slot < disk_tier_slots_max(&scene->tier));
        assert_int_equal(scene->held[slot], 0);
        scene->held[slot] = try->keys[i];
    }
    try->busy = false;
    if (status < 0)
        scene->failed++;
    else
        scene->spilled++;
    if (status == -ENOSPC)
        scene->full++;
}

/* Starts a spill of a segment of which `per_8` of 8 slots hold something. */
static void spill_start(struct scene *scene, struct try *try, unsigned per_8)
{
    size_t block = (size_t)1 << scene->shape.block_shift;
    if (try->busy)
        return;
    for (uint32_t i = 0; i < scene->shape.slots; i++) {
        try->keys[i] = world_below(scene->world, 8) < per_8 ? ++scene->next_block << 28 | 1 : 0;
        if (try->keys[i])
            pattern(try->memory + i * block, block, try->keys[i]);
    }
    try->busy = true;
    try->is_done = false;
    try->spill.memory = try->memory;
    try->spill.keys = try->keys;
    try->spill.done = spill_done;
    world_act_as(scene->world, scene->io);
    disk_tier_spill(&scene->tier, &try->spill);
    assert_false(try->is_done); /* never inside the call */
    world_act_as(scene->world, NULL);
}

static void give(struct scene *scene, uint32_t slot)
{
    if (scene->held[slot] == 0)
        return;
    scene->held[slot] = 0;
    world_act_as(scene->world, scene->io);
    disk_tier_give(&scene->tier, slot);
    world_act_as(scene->world, NULL);
}

/* The judge. */

static void check_slot(struct scene *scene, uint32_t slot)
{
    size_t block = (size_t)1 << scene->shape.block_shift;
    uint32_t segment = slot / scene->shape.slots, in_segment = slot % scene->shape.slots;
    const uint8_t *bytes = world_file_bytes(scene->cache);
    const uint8_t *data = bytes + disk_tier_offset(&scene->tier, slot);
    assert_true(slot_pool_taken(&scene->tier.pool, slot));
    assert_true(is_pattern(data, block, scene->held[slot]));
    if (scene->tier.pool.segments[segment].closed) { /* its header was lost to a fault */
        assert_true(scene->fail_number > 0);
        return;
    }
    struct cache_segment_header header;
    memcpy(&header, bytes + CACHE_HEADER_BYTES + segment * stride(&scene->shape), sizeof header);
    assert_memory_equal(header.magic, CACHE_SEGMENT_MAGIC, CACHE_MAGIC_BYTES);
    assert_int_equal(le32toh(header.crc), cache_header_crc(&header));
    assert_int_equal(le32toh(header.segment), segment);
    assert_int_equal(le32toh(header.slots_per_segment), scene->shape.slots);
    assert_int_equal(le32toh(header.block_bytes), block);
    assert_true(le64toh(header.keys[in_segment]) == scene->held[slot]);
    assert_int_equal(le32toh(header.crcs[in_segment]), crc32c(0, data, block));
}

static void check(struct scene *scene)
{
    uint32_t held = 0;
    for (uint32_t slot = 0; slot < disk_tier_slots_max(&scene->tier); slot++)
        if (scene->held[slot]) {
            held++;
            check_slot(scene, slot);
        }
    assert_int_equal(scene->tier.pool.slots_used, held);
    assert_int_equal(scene->tier.writes, 0);
    assert_true(scene->budget.used_bytes == scene->tier.pool.segments_present * stride(&scene->shape));
    assert_true(scene->budget.peak_bytes <= scene->budget.max_bytes);
    assert_true(world_file_allocated(scene->cache) <= scene->budget.used_bytes + CACHE_HEADER_BYTES);
}

/* After the last slot: nothing is left of anything. */
static void scene_close(struct scene *scene)
{
    for (uint32_t slot = 0; slot < disk_tier_slots_max(&scene->tier); slot++)
        give(scene, slot);
    run_dry(scene);
    check(scene);
    assert_true(scene->tier.pool.segments_present == scene->tier.kept_count);
    assert_true(scene->fail_number > 0 || scene->tier.pool.segments_present == 0);
    world_act_as(scene->world, scene->io);
    disk_tier_when_quiet(&scene->tier, quiet, scene);
    assert_false(scene->is_quiet);
    run_dry(scene);
    assert_true(scene->is_quiet);
    world_act_as(scene->world, scene->io);
    for (unsigned i = 0; i < SPILLS; i++) {
        spill_fini(&scene->tries[i].spill);
        free(scene->tries[i].memory);
    }
    disk_tier_fini(&scene->tier);
    assert_true(scene->budget.used_bytes == 0);
    node_destroy(scene->leaf);
    world_act_as(scene->world, NULL);
    assert_int_equal(world_destroy(scene->world, stderr), 0);
}

static void give_some(struct scene *scene, unsigned one_in)
{
    for (uint32_t slot = 0; slot < disk_tier_slots_max(&scene->tier); slot++)
        if (world_below(scene->world, one_in) == 0)
            give(scene, slot);
}

static void step(struct scene *scene)
{
    switch (world_below(scene->world, 8)) {
    case 0:
    case 1:
    case 2:
        spill_start(scene, &scene->tries[world_below(scene->world, SPILLS)],
                    1 + (unsigned)world_below(scene->world, 8));
        break;
    case 3:
        spill_start(scene, &scene->tries[world_below(scene->world, SPILLS)], 8);
        break;
    case 4:
        give_some(scene, 2 + (uint32_t)world_below(scene->world, 8));
        break;
    case 5: { /* a whole segment, and its neighbour */
        uint32_t first = (uint32_t)world_below(scene->world, scene->shape.file_segments) * scene->shape.slots;
        for (uint32_t i = first; i < first + 2 * scene->shape.slots && i < disk_tier_slots_max(&scene->tier); i++)
            give(scene, i);
        break;
    }
    case 6:
        world_run_for(scene->world, world_below(scene->world, 200) * NS_PER_US);
        break;
    default:
        run_dry(scene);
        check(scene);
        break;
    }
}

static void run(struct scene *scene)
{
    for (uint32_t i = 0; i < scene->shape.steps; i++)
        step(scene);
    run_dry(scene);
    check(scene);
}

static const struct shape shapes[] = {
    {12, 8, 6, 4, 400},   {12, 4, 9, 9, 400},  {12, 64, 5, 3, 100}, {16, 16, 4, 4, 100},
    {12, 1, 20, 12, 300}, {12, 256, 3, 2, 30}, {21, 1, 3, 2, 20},   {20, 4, 3, 2, 20},
};

static void test_random(void **state)
{
    struct scene *scene = malloc(sizeof *scene);
    unsigned full = 0;
    (void)state;
    assert_non_null(scene);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (uint64_t seed = 1; seed <= 5; seed++) {
            scene_open(scene, &shapes[i], seed);
            run(scene);
            assert_true(scene->failed == scene->full); /* nothing but want of room */
            assert_true(scene->spilled > 0 && scene->tier.punches_failed == 0);
            full += scene->full;
            scene_close(scene);
        }
    assert_true(full > 0);
    free(scene);
}

/* Segments in use that nothing is added to any more. */
static unsigned headers_lost(const struct scene *scene)
{
    unsigned count = 0;
    for (uint32_t i = 0; i < scene->tier.pool.segments_end; i++)
        count += scene->tier.pool.segments[i].closed && scene->tier.pool.segments[i].used > 0;
    return count;
}

/* Every operation of a run fails in turn, until none is left to fail. */
static void test_faults(void **state)
{
    static const struct shape small = {12, 8, 6, 3, 60};
    static const int errors[] = {-EIO, -ENOSPC};
    struct scene *scene = malloc(sizeof *scene);
    (void)state;
    assert_non_null(scene);
    unsigned lost = 0;
    for (unsigned kind = 0; kind < 16; kind++) {
        bool some_left = true;
        for (uint64_t number = 1; some_left; number++) {
            scene_open(scene, &small, kind / 4 + 1);
            scene->fail_number = number;
            scene->fail_with = errors[kind % 2];
            scene->fail_on = kind / 2 % 2 == 1;
            run(scene);
            lost += headers_lost(scene);
            some_left = world_disk_operations(scene->world) >= number;
            scene_close(scene);
        }
    }
    assert_true(lost > 0);
    free(scene);
}

/* The file system is full though the budget is not: gaps serve, the space that was tried is given back. */
static void test_full_file_system(void **state)
{
    static const struct shape shape = {12, 8, 6, 6, 0};
    struct scene *scene = malloc(sizeof *scene);
    (void)state;
    assert_non_null(scene);
    scene_open(scene, &shape, 3);
    spill_start(scene, &scene->tries[0], 8);
    spill_start(scene, &scene->tries[1], 8);
    run_dry(scene);
    assert_int_equal(scene->spilled, 2);
    for (uint32_t slot = 0; slot < 16; slot += 2)
        give(scene, slot);
    run_dry(scene);
    check(scene);
    scene->fail_number = world_disk_operations(scene->world) + 1; /* a third segment cannot be written */
    scene->fail_with = -ENOSPC;
    spill_start(scene, &scene->tries[0], 8);
    run_dry(scene);
    assert_int_equal(scene->spilled, 3);
    assert_int_equal(scene->tier.pool.segments_present, 2);
    assert_int_equal(scene->tier.pool.slots_used, 16);
    assert_int_equal(scene->tier.failure, 0);
    check(scene);
    scene->fail_number = world_disk_operations(scene->world) + 1; /* and no gap is left now */
    spill_start(scene, &scene->tries[0], 8);
    run_dry(scene);
    assert_int_equal(scene->tries[0].status, -ENOSPC);
    assert_int_equal(scene->tier.failure, -ENOSPC);
    scene_close(scene);
    free(scene);
}

/* A punch that hangs holds its own segments only; a spill that hangs, its own segment only. */
static void test_stalls(void **state)
{
    static const struct shape shape = {12, 8, 6, 6, 0};
    struct scene *scene = malloc(sizeof *scene);
    (void)state;
    assert_non_null(scene);
    for (unsigned kind = 0; kind < 2; kind++) {
        scene_open(scene, &shape, 5);
        scene->hold = true;
        scene->hold_kind = kind == 0 ? WORLD_ALLOCATE : WORLD_WRITE;
        for (unsigned i = 0; i < 40; i++) {
            spill_start(scene, &scene->tries[0], 8);
            run_dry(scene);
            spill_start(scene, &scene->tries[1], 8);
            run_dry(scene);
            for (uint32_t slot = 0; slot < disk_tier_slots_max(&scene->tier); slot++)
                give(scene, slot);
            run_dry(scene);
        }
        assert_true(scene->held_number > 0);
        assert_int_equal(scene->failed, 0);
        assert_int_equal(scene->spilled, kind == 0 ? 80 : 40);
        assert_int_equal(scene->tier.pool.segments_present, 1 + scene->tier.idle_count);
        assert_true(scene->tier.idle_count <= 2); /* used again and again meanwhile */
        world_act_as(scene->world, scene->io);
        disk_tier_when_quiet(&scene->tier, quiet, scene);
        run_dry(scene);
        assert_false(scene->is_quiet); /* the file must not go before what is under way on it */
        scene->hold = false;
        world_let_go_all(scene->world);
        run_dry(scene);
        assert_true(scene->is_quiet);
        scene->is_quiet = false;
        spill_start(scene, &scene->tries[0], 1); /* after all: what was left idle is punched with the next */
        run_dry(scene);
        scene_close(scene);
    }
    free(scene);
}

/* Punches that take long get shorter, so that reads and spills of the file get their turn; quick ones get longer. */
static void test_length_of_punches(void **state)
{
    static const struct shape shape = {12, 256, 12, 12, 0};
    struct scene *scene = malloc(sizeof *scene);
    (void)state;
    assert_non_null(scene);
    scene_open(scene, &shape, 5);
    assert_int_equal(scene->tier.punch_bytes, PUNCH_FIRST_BYTES);
    for (unsigned i = 0; i < 12; i++) {
        spill_start(scene, &scene->tries[0], 8);
        run_dry(scene);
    }
    scene->hold = true;
    scene->hold_kind = WORLD_ALLOCATE;
    for (uint32_t slot = 0; slot < disk_tier_slots_max(&scene->tier); slot++)
        give(scene, slot);
    for (unsigned i = 0; scene->tier.punches > 0; i++) {
        assert_true(i < 20);
        world_run_for(scene->world, 60 * NS_PER_MS);
        scene->held_number = 0;
        world_let_go_all(scene->world);
        world_run_for(scene->world, NS_PER_MS);
        assert_true(scene->tier.punch_bytes <= 2 * stride(&shape)); /* was one segment, then as many as 4 MiB hold */
    }
    assert_true(scene->tier.punch_bytes < stride(&shape));
    scene->hold = false;
    world_let_go_all(scene->world);
    for (unsigned i = 0; i < 20; i++) {
        spill_start(scene, &scene->tries[0], 8);
        run_dry(scene);
        for (uint32_t slot = 0; slot < disk_tier_slots_max(&scene->tier); slot++)
            give(scene, slot);
        run_dry(scene);
    }
    assert_int_equal(scene->tier.punch_bytes, LIMIT_PUNCH_BYTES);
    scene_close(scene);
    free(scene);
}

/* Neighbours that empty while a punch is under way go out in one piece. */
static void test_merged(void **state)
{
    static const struct shape shape = {12, 8, 40, 40, 0};
    struct scene *scene = malloc(sizeof *scene);
    (void)state;
    assert_non_null(scene);
    scene_open(scene, &shape, 5);
    for (unsigned i = 0; i < 40; i++) {
        spill_start(scene, &scene->tries[0], 8);
        run_dry(scene);
    }
    uint64_t before = world_disk_operations(scene->world);
    for (uint32_t slot = 0; slot < disk_tier_slots_max(&scene->tier); slot++)
        give(scene, slot);
    run_dry(scene);
    assert_int_equal(scene->tier.punched_bytes, 40 * stride(&shape));
    assert_true(world_disk_operations(scene->world) - before <= 2);
    assert_true(world_file_allocated(scene->cache) <= CACHE_HEADER_BYTES);
    scene_close(scene);
    free(scene);
}

/* A file that cannot be punched: its segments are used again, and never counted as free space. */
static void test_no_punch(void **state)
{
    static const struct shape shape = {12, 8, 6, 3, 0};
    struct scene *scene = malloc(sizeof *scene);
    (void)state;
    assert_non_null(scene);
    scene_open(scene, &shape, 5);
    scene->fail_number = UINT64_MAX; /* none: allows for what is kept */
    scene->leaf->can_discard = false;
    for (unsigned i = 0; i < 10; i++) {
        for (unsigned j = 0; j < 3; j++) {
            assert_true(disk_tier_has_room(&scene->tier, 8));
            spill_start(scene, &scene->tries[0], 8);
            run_dry(scene);
        }
        assert_false(disk_tier_has_room(&scene->tier, 1));
        for (uint32_t slot = 0; slot < disk_tier_slots_max(&scene->tier); slot++)
            give(scene, slot);
    }
    assert_int_equal(scene->failed, 0);
    assert_int_equal(scene->tier.kept_count, 3);
    scene_close(scene);
    free(scene);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random),
        cmocka_unit_test(test_faults),
        cmocka_unit_test(test_full_file_system),
        cmocka_unit_test(test_stalls),
        cmocka_unit_test(test_length_of_punches),
        cmocka_unit_test(test_merged),
        cmocka_unit_test(test_no_punch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
