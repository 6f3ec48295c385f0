/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The cache's map against a naive model: every (block, epoch) pair listed, the answers found by looking at all of them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>

#include "fleece/block_map.h"

enum { SLOTS = 700, BLOCKS = 40 };

struct model {
    uint64_t block[SLOTS];
    uint32_t epoch[SLOTS]; /* 0: not in the map */
};

static uint32_t model_find(const struct model *model, uint64_t block, uint32_t epoch)
{
    uint32_t best = PLACE_NONE;
    for (uint32_t slot = 0; slot < SLOTS; slot++)
        if (model->epoch[slot] >= epoch && model->epoch[slot] && model->block[slot] == block &&
            (best == PLACE_NONE || model->epoch[slot] < model->epoch[best]))
            best = slot;
    return best;
}

static uint32_t model_last_before(const struct model *model, uint64_t block, uint32_t epoch)
{
    uint32_t last = 0;
    for (uint32_t slot = 0; slot < SLOTS; slot++)
        if (model->block[slot] == block && model->epoch[slot] < epoch && model->epoch[slot] > last)
            last = model->epoch[slot];
    return last;
}

/* Blocks that share buckets (same low bits) and neighbours. */
static uint64_t block_number(unsigned i)
{
    return i % 2 ? (uint64_t)i << 20 : i;
}

static void check(const struct block_map *map, const struct model *model, uint32_t newest_epoch)
{
    for (unsigned i = 0; i < BLOCKS; i++) {
        uint64_t block = block_number(i);
        uint32_t newest = model_last_before(model, block, UINT32_MAX);
        assert_int_equal(block_map_newest(map, block), newest);
        if (newest) /* no walk passes over it, wherever it starts */
            for (uint64_t before = 0; before <= block && before < 5000; before += 700)
                assert_true(block_map_next(map, block - before, block + 1) <= block);
        for (uint32_t epoch = 1; epoch <= newest_epoch + 1; epoch += 3)
            assert_int_equal(block_map_find(map, block, epoch), model_find(model, block, epoch));
    }
    for (uint32_t slot = 0; slot < SLOTS; slot++) {
        assert_int_equal(block_map_epoch(map, slot), model->epoch[slot]);
        if (model->epoch[slot])
            assert_int_equal(block_map_older(map, slot),
                             model_last_before(model, model->block[slot], model->epoch[slot]));
    }
}

static void against_model(void **state)
{
    (void)state;
    struct block_map map;
    struct model model = {0};
    uint32_t epoch = 1;
    srand(1);
    assert_int_equal(block_map_init(&map, SLOTS, (uint64_t)BLOCKS << 20, NULL), 0);
    for (unsigned step = 0; step < 6000; step++) {
        uint32_t slot = (uint32_t)rand() % SLOTS;
        uint64_t block = block_number((unsigned)rand() % BLOCKS);
        if (rand() % 50 == 0)
            epoch++;
        if (model.epoch[slot]) {
            block_map_remove(&map, slot);
            model.epoch[slot] = 0;
        } else if (block_map_newest(&map, block) < epoch) {
            block_map_insert(&map, slot, block, epoch);
            model.block[slot] = block;
            model.epoch[slot] = epoch;
        }
        if (step % 100 == 0)
            check(&map, &model, epoch);
    }
    check(&map, &model, epoch);
    for (uint32_t slot = 0; slot < SLOTS; slot++)
        if (model.epoch[slot])
            block_map_remove(&map, slot);
    const uint64_t end = (uint64_t)BLOCKS << 20;
    assert_int_equal(block_map_next(&map, 0, end), end);
    block_map_insert(&map, 3, 5 * MAP_REGION_BLOCKS + 100, epoch);
    uint64_t first = 5 * MAP_REGION_BLOCKS + 100 / MAP_GROUP_BLOCKS * MAP_GROUP_BLOCKS;
    assert_int_equal(block_map_next(&map, 7, end), first);
    assert_int_equal(block_map_next(&map, first + MAP_GROUP_BLOCKS, end), end);
    assert_int_equal(block_map_next(&map, 7, first - 3), first - 3);
    block_map_fini(&map);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(against_model)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
