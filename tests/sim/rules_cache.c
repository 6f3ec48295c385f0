/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The rules where the cache has two tiers and consumers release, each with a script that drives exactly the interleaving
 * that it is about: C5 several points, C6 optimistic reads, C7 lazy discards, C8 time-outs, C12 release before record, C13
 * segments in use. The names of the rules are those of docs/ARCHITECTURE.md.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/limits.h"
#include "stage.h"

static const uint8_t *on_disk(struct stage *stage, uint64_t block)
{
    return world_file_bytes(stage->files[0]) + block * STAGE_BLOCK;
}

/* A block of the snapshot that is in the cache file. */
static uint64_t block_in_file(struct stage *stage, struct stage_snapshot *snapshot)
{
    for (uint64_t block = 0; block < STAGE_DISK_BYTES / STAGE_BLOCK; block++)
        if ((stage_residence(stage, snapshot, 0, block) & RESIDENCE_CACHE) != 0)
            return block;
    fail_msg("nothing is in the cache file");
    return 0;
}

/* ---- C5 ---- */

/* One copy serves two points. The newer one's consumer releases it: the older one still has it; then nobody. */
static void c5_a_release_keeps_what_an_older_point_needs(void **state)
{
    struct stage *stage = *state;
    struct stage_snapshot *older = stage_snapshot(stage, "s1"), *newer = stage_snapshot(stage, "s2");
    stage_overwrite(stage, 0, 4, 200);
    assert_int_equal(stage_release(stage, newer, 0, 4, 1), 0);
    assert_int_equal(stage_value(stage, newer, 0, 4), -ENODATA);
    assert_int_equal(stage_value(stage, newer, 0, 5), stage_first_value(0, 5));
    assert_int_equal(stage_value(stage, older, 0, 4), stage_first_value(0, 4));
    stage_overwrite(stage, 0, 4, 201);
    assert_int_equal(stage_value(stage, older, 0, 4), stage_first_value(0, 4));
    assert_int_equal(stage_status_of_vm(stage).disks[0].ram_blocks, 1);
    assert_int_equal(stage_release(stage, older, 0, 4, 1), 0);
    assert_int_equal(stage_value(stage, older, 0, 4), -ENODATA);
    assert_int_equal(stage_status_of_vm(stage).disks[0].cache_blocks_now, 0);
}

/* The older point's consumer is done, the newer one's is not: its copy stays, in RAM and in the file. */
static void c5_a_release_by_the_older_point_takes_nothing_from_the_newer(void **state)
{
    struct stage *stage = *state;
    struct stage_snapshot *older = stage_snapshot(stage, "s1"), *newer = stage_snapshot(stage, "s2");
    stage_overwrite_all(stage, 0, 0, 200, 200);
    block_in_file(stage, newer);
    assert_int_equal(stage_release(stage, older, 0, 0, 256), 0);
    for (uint64_t block = 0; block < 200; block += 7)
        assert_int_equal(stage_value(stage, newer, 0, block), stage_first_value(0, block));
    assert_int_equal(stage_value(stage, older, 0, 3), -ENODATA);
}

/* ---- C6 ---- */

/* The block is released, and its place in the file used again, while it is being read from there. */
static void c6_a_block_released_while_it_is_read_from_the_file(void **state)
{
    struct stage *stage = *state;
    struct stage_request read = {0};
    struct stage_snapshot *snapshot = stage_snapshot(stage, "s");
    stage_overwrite_all(stage, 0, 0, 200, 200);
    uint64_t block = block_in_file(stage, snapshot);
    stage_hold_cache(stage, WORLD_READ, 0);
    stage_read(stage, &read, snapshot->views[0], block, 1);
    stage_hold_no_more(stage);
    assert_int_equal(stage->held_count, 1);
    assert_int_equal(stage_release(stage, snapshot, 0, 0, 200), 0); /* punched, and written again: */
    stage_settle(stage);
    struct stage_snapshot *next = stage_snapshot(stage, "t");
    stage_overwrite_all(stage, 0, 0, 200, 201);
    block_in_file(stage, next);
    stage_let_go(stage);
    stage_settle(stage);
    assert_true(read.done);
    assert_int_equal(read.status, -ENODATA);
    for (uint64_t i = 0; i < 200; i += 9)
        assert_int_equal(stage_value(stage, next, 0, i), 200);
}

/* A reader's base read is under way; the block is overwritten, preserved, and spilled to the file before it comes back. */
static void c6_a_block_spilled_during_the_base_read_comes_from_the_file(void **state)
{
    struct stage *stage = *state;
    struct stage_request read = {0};
    struct stage_snapshot *snapshot = stage_snapshot(stage, "s");
    stage_read_held(stage, &read, snapshot->views[0], 0, 4);
    assert_int_equal(stage->held_count, 1);
    stage_overwrite_all(stage, 0, 0, 200, 200);
    assert_true(block_in_file(stage, snapshot) < 4);
    assert_false(read.done);
    stage_let_go(stage);
    stage_settle(stage);
    assert_true(stage_succeeded(&read));
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(read.buffer[i * STAGE_BLOCK], stage_first_value(0, i));
}

/* ---- C7 ---- */

static void discard(struct stage *stage, uint64_t block, uint64_t count)
{
    struct stage_request request = {0};
    stage_discard(stage, &request, 0, block, count);
    stage_settle(stage);
    assert_true(stage_succeeded(&request));
}

/* A discard of needed blocks preserves nothing and changes nothing; it is done when the snapshot goes. */
static void c7_a_discard_waits_for_the_end_of_the_snapshot(void **state)
{
    struct stage *stage = *state;
    struct stage_snapshot *snapshot = stage_snapshot(stage, "s");
    discard(stage, 4, 3);
    assert_int_equal(on_disk(stage, 5)[0], stage_first_value(0, 5));
    assert_int_equal(stage_value(stage, snapshot, 0, 5), stage_first_value(0, 5));
    assert_int_equal(stage_status_of_vm(stage).disks[0].blocks_preserved, 0);
    stage_delete(stage, snapshot);
    stage_settle(stage);
    assert_true(snapshot->deleted);
    for (uint64_t block = 4; block < 7; block++)
        assert_int_equal(on_disk(stage, block)[0], 0);
    assert_int_equal(on_disk(stage, 7)[0], stage_first_value(0, 7));
    assert_null(stage->disks[0]->filter);
}

/* An overwrite cancels the discard where it writes, and only there. */
static void c7_a_write_cancels_the_discard(void **state)
{
    struct stage *stage = *state;
    struct stage_snapshot *snapshot = stage_snapshot(stage, "s");
    discard(stage, 4, 3);
    stage_overwrite(stage, 0, 5, 200);
    assert_int_equal(stage_value(stage, snapshot, 0, 5), stage_first_value(0, 5));
    stage_delete(stage, snapshot);
    stage_settle(stage);
    assert_int_equal(on_disk(stage, 4)[0], 0);
    assert_int_equal(on_disk(stage, 5)[0], 200);
    assert_int_equal(on_disk(stage, 6)[0], 0);
}

/* A point that was cut after the discard needs what is on the disk, too: the discard goes on waiting for that one. */
static void c7_a_newer_point_keeps_the_discard_waiting(void **state)
{
    struct stage *stage = *state;
    struct stage_snapshot *older = stage_snapshot(stage, "s1");
    discard(stage, 4, 1);
    struct stage_snapshot *newer = stage_snapshot(stage, "s2");
    stage_delete(stage, older);
    stage_settle(stage);
    assert_int_equal(on_disk(stage, 4)[0], stage_first_value(0, 4));
    assert_int_equal(stage_value(stage, newer, 0, 4), stage_first_value(0, 4));
    assert_int_equal(stage_release(stage, newer, 0, 4, 1), 0);
    stage_settle(stage);
    assert_int_equal(on_disk(stage, 4)[0], 0);
}

/* When it runs it is a write of its own: a cut waits for it, and the guest's writes of its range wait, too. */
static void c7_a_running_discard_has_its_range_for_itself(void **state)
{
    struct stage *stage = *state;
    struct stage_request write = {0};
    struct stage_snapshot *first = stage_snapshot(stage, "s1");
    discard(stage, 4, 3);
    stage_hold(stage, WORLD_ALLOCATE, 0);
    stage_delete(stage, first);
    stage_settle(stage);
    stage_hold_no_more(stage);
    assert_int_equal(stage->held_count, 1);
    assert_int_equal(stage->disks[0]->writes_in_flight, 1);
    stage_write(stage, &write, 0, 5, 1, 200);
    struct stage_snapshot *second = stage_create(stage, "s2", 0);
    stage_settle(stage);
    assert_false(write.done || second->answered);
    stage_let_go(stage);
    stage_settle(stage);
    assert_true(stage_succeeded(&write) && second->created);
    assert_int_equal(on_disk(stage, 4)[0], 0);
    assert_int_equal(on_disk(stage, 5)[0], 200);
    assert_int_equal(stage_value(stage, second, 0, 4), 0);
    int value = stage_value(stage, second, 0, 5); /* the write is decided before the cut or after it */
    assert_true(value == 0 || value == 200);
}

/* ---- C8 ---- */

/* Fills the cache: 64 slots, no file. */
static struct stage_snapshot *fill(struct stage *stage)
{
    struct stage_snapshot *snapshot = stage_snapshot(stage, "s");
    stage_overwrite_all(stage, 0, 0, 64, 200);
    assert_false(snapshot->broken);
    return snapshot;
}

/* Nobody releases: there is nothing to wait for. */
static void c8_without_hope_nobody_waits(void **state)
{
    struct stage *stage = *state;
    struct stage_request write = {0};
    struct stage_snapshot *snapshot = fill(stage);
    uint64_t began_ns = world_now(stage->world);
    stage_write(stage, &write, 0, 100, 4, 201);
    STAGE_STEP_UNTIL(stage, write.done);
    assert_true(world_now(stage->world) - began_ns < 10 * NS_PER_MS);
    stage_settle(stage);
    assert_true(stage_succeeded(&write) && snapshot->broken);
}

/* A write waits while the consumer releases, goes on when there is room, and breaks nothing. */
static void c8_a_write_waits_while_a_consumer_releases(void **state)
{
    struct stage *stage = *state;
    struct stage_request write = {0};
    struct stage_snapshot *snapshot = fill(stage);
    assert_int_equal(stage_release(stage, snapshot, 0, 60, 2), 0);
    stage_write(stage, &write, 0, 100, 4, 201);
    world_run_for(stage->world, 5 * NS_PER_MS);
    assert_false(write.done);
    assert_int_equal(stage_release(stage, snapshot, 0, 62, 2), 0);
    world_run_for(stage->world, 5 * NS_PER_MS);
    assert_true(stage_succeeded(&write));
    stage_settle(stage);
    assert_false(snapshot->broken);
    assert_int_equal(stage_value(stage, snapshot, 0, 101), stage_first_value(0, 101));
    assert_int_equal(stage_value(stage, snapshot, 0, 61), -ENODATA);
}

/* It is decided again at each release, and still its time is counted from its first park. */
static void c8_the_time_out_counts_from_the_first_park(void **state)
{
    struct stage *stage = *state;
    struct stage_request write = {0};
    struct stage_snapshot *snapshot = fill(stage);
    assert_int_equal(stage_release(stage, snapshot, 0, 0, 1), 0);
    uint64_t began_ns = world_now(stage->world);
    stage_write(stage, &write, 0, 100, 4, 201);
    for (uint64_t block = 1; block < 3; block++) {
        world_run_for(stage->world, 8 * NS_PER_MS);
        assert_false(write.done || snapshot->broken);
        assert_int_equal(stage_release(stage, snapshot, 0, block, 1), 0);
    }
    STAGE_STEP_UNTIL(stage, write.done);
    uint64_t waited_ns = world_now(stage->world) - began_ns;
    assert_true(waited_ns >= 20 * NS_PER_MS && waited_ns < 30 * NS_PER_MS);
    stage_settle(stage);
    assert_true(stage_succeeded(&write) && snapshot->broken);
    assert_non_null(strstr(snapshot->reason, "waited"));
}

/* A cache device that hangs gives hope, and only for as long as a write may wait. */
static void c8_a_hanging_device_is_waited_for_no_longer_than_that(void **state)
{
    struct stage *stage = *state;
    struct stage_snapshot *snapshot = stage_snapshot(stage, "s");
    struct stage_request writes[64] = {0};
    stage_hold_cache(stage, WORLD_WRITE, 0);
    uint64_t began_ns = world_now(stage->world);
    for (unsigned i = 0; i < 64; i++)
        stage_write(stage, &writes[i], 0, 4 * i, 4, 200);
    for (unsigned i = 0; i < 64; i++)
        STAGE_STEP_UNTIL(stage, writes[i].done);
    assert_true(world_now(stage->world) - began_ns < 30 * NS_PER_MS);
    stage_settle(stage);
    assert_true(snapshot->broken && stage->held_count > 0);
    stage_let_go(stage);
    stage_settle(stage);
}

/* ---- C12 ---- */

/* What is released may be overwritten unpreserved, and reads of it fail from that very step on; nobody else's does. */
static void c12_what_is_released_is_not_preserved(void **state)
{
    struct stage *stage = *state;
    struct stage_snapshot *snapshot = stage_snapshot(stage, "s");
    assert_int_equal(stage_release(stage, snapshot, 0, 4, 2), 0);
    stage_overwrite(stage, 0, 4, 200);
    stage_overwrite(stage, 0, 6, 201);
    assert_int_equal(stage_status_of_vm(stage).disks[0].blocks_preserved, 1);
    assert_int_equal(stage_value(stage, snapshot, 0, 4), -ENODATA);
    assert_int_equal(stage_value(stage, snapshot, 0, 5), -ENODATA);
    assert_int_equal(stage_value(stage, snapshot, 0, 6), stage_first_value(0, 6));
    assert_int_equal(stage_residence(stage, snapshot, 0, 5), RESIDENCE_RELEASED);
}

/* A block is released while it is being copied; a write passes; a point is cut: the copy must not become that point's. */
static void c12_a_copy_of_a_released_block_serves_nobody(void **state)
{
    struct stage *stage = *state;
    struct stage_request write = {0}, passing = {0};
    struct stage_snapshot *snapshot = stage_snapshot(stage, "s1");
    stage_write_held(stage, WORLD_READ, &write, 0, 4, 1, 200);
    assert_true(world_land(stage->world, stage->held[0])); /* it has read the first value, and is not back yet */
    assert_int_equal(stage_release(stage, snapshot, 0, 4, 1), 0);
    stage_write(stage, &passing, 0, 4, 1, 201);
    stage_settle(stage);
    assert_true(stage_succeeded(&passing));
    struct stage_snapshot *next = stage_create(stage, "s2", 0);
    stage_settle(stage);
    stage_let_go(stage);
    stage_settle(stage);
    assert_true(next->created && stage_succeeded(&write));
    assert_int_equal(stage_value(stage, next, 0, 4), 201);
}

/* ---- C13 ---- */

/* The snapshot goes while a segment of RAM is being written to the file: its memory stays until the write is over. */
static void c13_a_segment_that_is_being_spilled_is_not_punched(void **state)
{
    struct stage *stage = *state;
    struct stage_request writes[40] = {0};
    struct stage_snapshot *snapshot = stage_snapshot(stage, "s");
    stage_hold_cache(stage, WORLD_WRITE, 0);
    for (unsigned i = 0; i < 40; i++)
        stage_write(stage, &writes[i], 0, 4 * i, 4, 200);
    world_run_for(stage->world, 2 * NS_PER_MS);
    assert_true(stage->held_count > 0);
    stage_delete(stage, snapshot);
    stage_settle(stage);
    for (unsigned i = 0; i < 40; i++)
        assert_true(stage_succeeded(&writes[i]));
    stage_let_go(stage); /* they take the data from the slots: a fault, were those punched */
    stage_settle(stage);
    assert_true(snapshot->deleted);
    assert_int_equal(stage->caches_open, 0);
}

/* ---- zeroes, and what was only read ---- */

static void blocks_of_zeroes_take_no_slot(void **state)
{
    struct stage *stage = *state;
    for (uint64_t block = 4; block < 8; block++)
        stage_overwrite(stage, 0, block, 0);
    struct stage_snapshot *snapshot = stage_snapshot(stage, "s");
    stage_overwrite_all(stage, 0, 4, 8, 200);
    struct vm_status status = stage_status_of_vm(stage);
    assert_int_equal(status.disks[0].zero_blocks, 4);
    assert_int_equal(status.disks[0].ram_blocks, 4);
    assert_int_equal(stage_residence(stage, snapshot, 0, 5), RESIDENCE_CHANGED | RESIDENCE_ZERO);
    assert_int_equal(stage_value(stage, snapshot, 0, 5), 0);
    assert_int_equal(stage_value(stage, snapshot, 0, 9), stage_first_value(0, 9));
}

/* A block that was read is in RAM: the next read costs nothing, and neither does preserving it before a write. */
static void a_block_that_was_read_is_read_once(void **state)
{
    struct stage *stage = *state;
    struct stage_snapshot *snapshot = stage_snapshot(stage, "s");
    assert_int_equal(stage_value(stage, snapshot, 0, 4), stage_first_value(0, 4));
    assert_int_equal(stage_residence(stage, snapshot, 0, 4), RESIDENCE_RAM);
    uint64_t before = world_disk_operations(stage->world);
    assert_int_equal(stage_value(stage, snapshot, 0, 4), stage_first_value(0, 4));
    assert_int_equal(world_disk_operations(stage->world), before);
    stage_overwrite(stage, 0, 4, 200);
    assert_int_equal(world_disk_operations(stage->world), before + 1); /* the guest's own */
    assert_int_equal(stage_residence(stage, snapshot, 0, 4), RESIDENCE_CHANGED | RESIDENCE_RAM);
    assert_int_equal(stage_value(stage, snapshot, 0, 4), stage_first_value(0, 4));
    assert_int_equal(on_disk(stage, 4)[0], 200);
}

#define ONE_DISK .disk_count = 1
#define TWO_TIERS .disk_count = 1, .segments = 2, .cache_segments = 6
#define FULL_SOON .disk_count = 1, .segments = 1, .cbw_timeout_ns = 20 * NS_PER_MS

int main(void)
{
    const struct CMUnitTest tests[] = {
        STAGE_TEST(c5_a_release_keeps_what_an_older_point_needs, ONE_DISK),
        STAGE_TEST(c5_a_release_by_the_older_point_takes_nothing_from_the_newer, TWO_TIERS),
        STAGE_TEST(c6_a_block_released_while_it_is_read_from_the_file, TWO_TIERS),
        STAGE_TEST(c6_a_block_spilled_during_the_base_read_comes_from_the_file, TWO_TIERS),
        STAGE_TEST(c7_a_discard_waits_for_the_end_of_the_snapshot, ONE_DISK),
        STAGE_TEST(c7_a_write_cancels_the_discard, ONE_DISK),
        STAGE_TEST(c7_a_newer_point_keeps_the_discard_waiting, ONE_DISK),
        STAGE_TEST(c7_a_running_discard_has_its_range_for_itself, ONE_DISK),
        STAGE_TEST(c8_without_hope_nobody_waits, FULL_SOON),
        STAGE_TEST(c8_a_write_waits_while_a_consumer_releases, FULL_SOON),
        STAGE_TEST(c8_the_time_out_counts_from_the_first_park, FULL_SOON),
        STAGE_TEST(c8_a_hanging_device_is_waited_for_no_longer_than_that, TWO_TIERS, .cbw_timeout_ns = 20 * NS_PER_MS),
        STAGE_TEST(c12_what_is_released_is_not_preserved, ONE_DISK),
        STAGE_TEST(c12_a_copy_of_a_released_block_serves_nobody, ONE_DISK),
        STAGE_TEST(c13_a_segment_that_is_being_spilled_is_not_punched, TWO_TIERS),
        STAGE_TEST(blocks_of_zeroes_take_no_slot, ONE_DISK),
        STAGE_TEST(a_block_that_was_read_is_read_once, ONE_DISK, .copy_on_read = true),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
