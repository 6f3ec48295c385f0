/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * C22: a disk that grows while it is tracked. What power loss does to unstable writes is chance, so each of these runs with
 * a number of seeds.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "track/sidecar_format.h"
#include "track_scene.h"

enum { SEEDS = 30, A = 1, B = 2 };

static uint64_t block_of(uint64_t extent, uint64_t at)
{
    return extent * SCENE_EXTENT_BLOCKS + at;
}

static void assert_state(struct scene *scene, unsigned name, enum checkpoint_state expected)
{
    enum checkpoint_state state;
    assert_true(scene_has(scene, name, &state));
    assert_int_equal(state, expected);
}

static void begin(struct scene *scene, uint64_t seed)
{
    scene_create(scene, seed);
    assert_int_equal(scene_start(scene), 0);
}

/* The disk's file gets another size, and only that. */
static void extend(struct scene *scene, uint64_t blocks)
{
    world_act_as(scene->world, scene->io);
    int fd = scene->io->ops->open(scene->io, SCENE_DISK, 2 /* O_RDWR */, 0);
    assert_int_equal(io_truncate(scene->io, fd, blocks * SCENE_BLOCK), 0);
    io_close(scene->io, fd);
}

static int grow_step(struct scene *scene, uint64_t announced_blocks)
{
    scene->op = (struct tracker_op){.done = scene->op.done};
    scene->op_busy = true;
    world_act_as(scene->world, scene->io);
    if (announced_blocks)
        tracker_announce_growth(scene->tracker, announced_blocks * SCENE_BLOCK, &scene->op);
    else
        tracker_record_growth(scene->tracker, &scene->op);
    return scene_end_op(scene);
}

static void held(void *context)
{
    (void)context;
}

static void grow(struct scene *scene, uint64_t blocks)
{
    world_act_as(scene->world, scene->io);
    disk_hold(scene->disk, held, NULL);
    disk_grow(scene->disk, blocks * SCENE_BLOCK);
    tracker_grow(scene->tracker);
    disk_release(scene->disk);
}

static void assert_grown(struct scene *scene, uint64_t blocks)
{
    assert_null(tracker_invalid_reason(scene->tracker));
    assert_int_equal(scene->leaf->size_bytes, blocks * SCENE_BLOCK);
    for (unsigned since = A; since <= B; since++)
        assert_true(scene_changed(scene, since, SCENE_BLOCKS - 1) && scene_changed(scene, since, SCENE_BLOCKS) &&
                    scene_changed(scene, since, blocks - 1) && !scene_changed(scene, since, 5));
}

enum growth { ANNOUNCED, EXTENDED, GROWN, WRITTEN, RECORDED, GROWTH_STEPS };

/* What is added to a disk is dirty since every checkpoint, whichever step of the growth a crash comes after. */
static void c22_an_added_range_is_dirty_everywhere(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        const uint64_t blocks = SCENE_BLOCKS + 1 + seed % 3 * (SCENE_EXTENT_BLOCKS + 7);
        const enum growth last = (enum growth)(seed % GROWTH_STEPS);
        struct scene scene;
        begin(&scene, seed);
        scene_write(&scene, block_of(3, 5), 11);
        scene_checkpoint(&scene, A);
        scene_checkpoint(&scene, B);
        assert_int_equal(grow_step(&scene, blocks), 0);
        if (last >= EXTENDED)
            extend(&scene, blocks);
        if (last >= GROWN)
            grow(&scene, blocks);
        if (last >= WRITTEN)
            scene_write(&scene, blocks - 1, 12);
        if (last >= RECORDED)
            assert_int_equal(grow_step(&scene, 0), 0);
        for (unsigned again = 0; again < 3; again++) { /* what recovery has done lasts, whatever crashes */
            if (seed / GROWTH_STEPS % 2)
                scene_power_loss(&scene);
            else
                scene_kill(&scene);
            assert_int_equal(scene_start(&scene), 0);
            if (last >= EXTENDED)
                assert_grown(&scene, blocks);
            else
                assert_null(tracker_invalid_reason(scene.tracker));
        }
        scene_close(&scene);
        assert_int_equal(scene_start(&scene), 0);
        if (last >= EXTENDED)
            assert_grown(&scene, blocks);
        else
            assert_false(scene_changed(&scene, B, SCENE_BLOCKS - 1));
        scene_destroy(&scene);
    }
}

/* A disk of a size that nobody has announced was changed by somebody else, also when another size was. */
static void c22_a_size_that_was_not_announced_is_strange(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        struct scene scene;
        begin(&scene, seed);
        scene_checkpoint(&scene, A);
        if (seed % 2)
            assert_int_equal(grow_step(&scene, SCENE_BLOCKS + 40), 0);
        extend(&scene, SCENE_BLOCKS + 41);
        if (seed % 3)
            scene_power_loss(&scene);
        else
            scene_kill(&scene);
        assert_int_equal(scene_start(&scene), 0);
        assert_state(&scene, A, CHECKPOINT_INVALID);
        scene_destroy(&scene);
    }
}

/* The sidecar is made for disks up to a size: a larger one is refused before anything has happened. */
static void c22_more_than_the_sidecar_has_room_for_is_refused(void **state)
{
    (void)state;
    struct scene scene;
    begin(&scene, 1);
    scene_checkpoint(&scene, A);
    assert_int_equal(grow_step(&scene, SCENE_BLOCKS * 1000), -EFBIG);
    assert_non_null(strstr(scene.op.error.text, "has room for a disk of"));
    scene_close(&scene);
    assert_int_equal(scene_start(&scene), 0);
    assert_state(&scene, A, CHECKPOINT_PENDING);
    scene_destroy(&scene);
}

static void removed(struct tracker_op *op)
{
    op->size_bytes = 1; /* it is done */
}

/* A checkpoint that is removed meanwhile, with the span that gets the bits, goes when they are there. */
static void c22_a_removal_waits_for_the_growth(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 4; seed++) {
        const uint64_t blocks = SCENE_BLOCKS + 40 * SCENE_EXTENT_BLOCKS;
        struct checkpoint_info infos[2];
        struct tracker_op op = {.done = removed};
        struct scene scene;
        begin(&scene, seed);
        scene_checkpoint(&scene, A);
        scene_checkpoint(&scene, B);
        assert_int_equal(grow_step(&scene, blocks), 0);
        assert_int_equal(tracker_checkpoints(scene.tracker, infos, 2), 2);
        world_act_as(scene.world, scene.io);
        tracker_remove(scene.tracker, infos[1].id.uuid, &op);
        world_run_for(scene.world, NS_PER_S);
        assert_int_equal(op.size_bytes, 0);
        extend(&scene, blocks);
        grow(&scene, blocks);
        assert_int_equal(grow_step(&scene, 0), 0);
        world_run_for(scene.world, 10 * NS_PER_S);
        assert_true(op.size_bytes == 1 && op.status == 0);
        if (seed % 2)
            scene_power_loss(&scene);
        else
            scene_kill(&scene);
        assert_int_equal(scene_start(&scene), 0);
        assert_true(scene_changed(&scene, A, SCENE_BLOCKS) && scene_changed(&scene, A, blocks - 1));
        scene_destroy(&scene);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(c22_an_added_range_is_dirty_everywhere),
        cmocka_unit_test(c22_a_size_that_was_not_announced_is_strange),
        cmocka_unit_test(c22_a_removal_waits_for_the_growth),
        cmocka_unit_test(c22_more_than_the_sidecar_has_room_for_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
