/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The pool of slots against a naive model: one byte a slot and a state a segment, all answers found by looking at them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "fleece/slot_pool.h"

enum { SEGMENTS_MAX = 150, STEPS = 20000 };

struct model {
    uint32_t segments, slots; /* segments_max, slots_per_segment */
    bool present[SEGMENTS_MAX], closed[SEGMENTS_MAX];
    uint8_t taken[SEGMENTS_MAX * LIMIT_SEGMENT_SLOTS];
};

static uint32_t used(const struct model *model, uint32_t segment)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < model->slots; i++)
        count += model->taken[segment * model->slots + i];
    return count;
}

/* The lowest segment that slots can be taken from; SLOT_NONE: none. */
static uint32_t with_room(const struct model *model)
{
    for (uint32_t i = 0; i < model->segments; i++)
        if (model->present[i] && !model->closed[i] && used(model, i) < model->slots)
            return i;
    return SLOT_NONE;
}

static uint32_t lowest_absent(const struct model *model)
{
    for (uint32_t i = 0; i < model->segments; i++)
        if (!model->present[i])
            return i;
    return SLOT_NONE;
}

static void check(const struct slot_pool *pool, const struct model *model)
{
    uint32_t slots_used = 0, slots_free = 0, present = 0, next = SLOT_NONE;
    for (uint32_t i = 0; i < model->segments; i++) {
        slots_used += used(model, i);
        present += model->present[i];
        if (model->present[i] && !model->closed[i])
            slots_free += model->slots - used(model, i);
        assert_int_equal(pool->segments[i].present, model->present[i]);
        if (model->present[i]) {
            assert_int_equal(pool->segments[i].used, used(model, i));
            assert_true(i < pool->segments_end);
        }
    }
    assert_int_equal(pool->slots_used, slots_used);
    assert_int_equal(pool->slots_free, slots_free);
    assert_int_equal(pool->segments_present, present);
    assert_int_equal(slot_pool_has_room(pool), with_room(model) != SLOT_NONE);
    assert_int_equal(slot_pool_next_absent(pool, &next), lowest_absent(model) != SLOT_NONE);
    if (lowest_absent(model) != SLOT_NONE)
        assert_int_equal(next, lowest_absent(model));
    for (uint32_t i = 0; i < model->segments * model->slots; i++)
        assert_int_equal(slot_pool_taken(pool, i), model->taken[i]);
}

static void take(struct slot_pool *pool, struct model *model, uint32_t count)
{
    uint32_t segment = with_room(model), first = 0, run = 0;
    uint32_t taken = slot_pool_take(pool, count, &first);
    if (segment == SLOT_NONE) {
        assert_int_equal(taken, 0);
        return;
    }
    uint32_t start = segment * model->slots, end = start + model->slots;
    while (model->taken[start])
        start++;
    while (run < count && start + run < end && !model->taken[start + run])
        model->taken[start + run++] = 1;
    assert_int_equal(first, start);
    assert_int_equal(taken, run);
}

static void give(struct slot_pool *pool, struct model *model, uint32_t slot)
{
    if (!model->taken[slot])
        return;
    model->taken[slot] = 0;
    assert_int_equal(slot_pool_give(pool, slot), used(model, slot / model->slots));
}

/* Adds the segment, drops it, opens or closes it, takes all of it or gives much of it back. */
static void change(struct slot_pool *pool, struct model *model, uint32_t segment)
{
    if (!model->present[segment]) {
        slot_pool_add(pool, segment);
        model->present[segment] = true;
    } else if (rand() % 2) {
        (model->closed[segment] ? slot_pool_open : slot_pool_close)(pool, segment);
        model->closed[segment] = !model->closed[segment];
    } else if (used(model, segment) > 0) {
        for (uint32_t i = 0; i < model->slots; i++)
            if (rand() % 8)
                give(pool, model, segment * model->slots + i);
    } else if (rand() % 2) {
        slot_pool_drop(pool, segment);
        model->present[segment] = model->closed[segment] = false;
    } else {
        slot_pool_take_segment(pool, segment);
        memset(&model->taken[segment * model->slots], 1, model->slots);
    }
}

static void run(uint32_t segments, uint32_t slots)
{
    struct model *model = calloc(1, sizeof *model);
    struct slot_pool pool;
    assert_non_null(model);
    *model = (struct model){.segments = segments, .slots = slots};
    assert_int_equal(slot_pool_init(&pool, segments, slots), 0);
    check(&pool, model);
    for (unsigned step = 0; step < STEPS; step++) {
        uint32_t segment = (uint32_t)rand() % segments, next;
        switch (rand() % 8) {
        case 0:
            change(&pool, model, segment);
            break;
        case 1:
            if (slot_pool_next_absent(&pool, &next) && with_room(model) == SLOT_NONE) {
                slot_pool_add(&pool, next);
                model->present[next] = true;
            }
            break;
        case 2:
        case 3:
        case 4:
            take(&pool, model, 1 + (uint32_t)rand() % slots);
            break;
        default:
            give(&pool, model, (uint32_t)rand() % (segments * slots));
            break;
        }
        if (step % 64 == 0)
            check(&pool, model);
    }
    check(&pool, model);
    for (uint32_t i = 0; i < segments * slots; i++)
        give(&pool, model, i);
    slot_pool_fini(&pool);
    free(model);
}

static void test_against_model(void **state)
{
    (void)state;
    srand(1);
    run(1, 1);
    run(SEGMENTS_MAX, 1);
    run(7, 4);
    run(SEGMENTS_MAX, 32);
    run(65, 64);
    run(5, 128);
    run(20, LIMIT_SEGMENT_SLOTS);
}

/* As for FLEECE_DISK_CACHE_MAX: made at once, and touched only where it is used. */
static void test_huge(void **state)
{
    (void)state;
    struct slot_pool pool;
    uint32_t segments = (uint32_t)(FLEECE_DISK_CACHE_MAX / SEGMENT_BYTES_DEFAULT), first, segment;
    assert_int_equal(slot_pool_init(&pool, segments - 1, LIMIT_SEGMENT_SLOTS), 0);
    slot_pool_add(&pool, 0);
    slot_pool_add(&pool, 1000000);
    assert_true(slot_pool_next_absent(&pool, &segment));
    assert_int_equal(segment, 1);
    slot_pool_take_segment(&pool, 0);
    assert_int_equal(slot_pool_take(&pool, 3, &first), 3);
    assert_int_equal(first, 1000000 * LIMIT_SEGMENT_SLOTS);
    for (uint32_t i = 0; i < LIMIT_SEGMENT_SLOTS; i++)
        slot_pool_give(&pool, i);
    assert_int_equal(slot_pool_take(&pool, 1, &segment), 1);
    assert_int_equal(segment, 0);
    slot_pool_give(&pool, 0);
    for (uint32_t i = 0; i < 3; i++)
        slot_pool_give(&pool, first + i);
    slot_pool_fini(&pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_against_model), cmocka_unit_test(test_huge)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
