/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The rules of points and their readers, each with a script that drives exactly the interleaving that it is about: C5
 * several points, C6 optimistic reads. The names of the rules are those of docs/ARCHITECTURE.md.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/limits.h"
#include "stage.h"

/* ---- C5 ---- */

/* The copy was made for the newer point and serves the older one, too: deleting the newer one must not take it. */
static void c5_deleting_a_newer_point_keeps_what_an_older_one_needs(void **state)
{
    struct stage *stage = *state;
    struct stage_snapshot *older = stage_snapshot(stage, "s1"), *newer = stage_snapshot(stage, "s2");
    stage_overwrite(stage, 0, 4, 200);
    stage_delete(stage, newer);
    stage_settle(stage);
    assert_true(newer->deleted);
    stage_overwrite(stage, 0, 4, 201);
    assert_int_equal(stage_value(stage, older, 0, 4), stage_first_value(0, 4));
}

/* Each point sees its own time; deleting the oldest frees only what it alone needed. */
static void c5_each_point_keeps_its_own(void **state)
{
    struct stage *stage = *state;
    struct stage_snapshot *s1 = stage_snapshot(stage, "s1");
    stage_overwrite(stage, 0, 4, 200);
    struct stage_snapshot *s2 = stage_snapshot(stage, "s2");
    stage_overwrite(stage, 0, 4, 201);
    struct stage_snapshot *s3 = stage_snapshot(stage, "s3");
    stage_overwrite(stage, 0, 4, 202);
    assert_int_equal(stage_value(stage, s1, 0, 4), stage_first_value(0, 4));
    assert_int_equal(stage_value(stage, s2, 0, 4), 200);
    assert_int_equal(stage_value(stage, s3, 0, 4), 201);
    stage_delete(stage, s1);
    stage_settle(stage);
    assert_int_equal(stage_value(stage, s2, 0, 4), 200);
    stage_delete(stage, s3);
    stage_settle(stage);
    assert_int_equal(stage_value(stage, s2, 0, 4), 200);
}

/* All points that needed a block die while it is copied; a write passes the copy; a new point is cut: the copy, which may
 * hold the newer data, must not become the new point's. */
static void c5_a_copy_that_was_passed_serves_nobody(void **state)
{
    struct stage *stage = *state;
    struct stage_request write = {0};
    struct stage_snapshot *s1 = stage_snapshot(stage, "s1");
    stage_write_held(stage, WORLD_READ, &write, 0, 4, 1, 200);
    assert_true(world_land(stage->world, stage->held[0])); /* it has read the first value, and is not back yet */
    stage_delete(stage, s1);
    stage_settle(stage);
    struct stage_request passing = {0};
    stage_write(stage, &passing, 0, 4, 1, 201);
    stage_settle(stage);
    assert_true(stage_succeeded(&passing));
    struct stage_snapshot *s2 = stage_create(stage, "s2", 0);
    stage_settle(stage);
    stage_let_go(stage);
    stage_settle(stage);
    assert_true(s2->created && stage_succeeded(&write));
    int value = stage_value(stage, s2, 0, 4); /* the parked write is decided after the cut, or before it */
    assert_int_equal(value, 201);
}

/* ---- C6 ---- */

/* The block is overwritten, and preserved, while a reader's base read is under way: it lands late and brings new data. */
static void c6_a_block_preserved_during_the_read_comes_from_the_cache(void **state)
{
    struct stage *stage = *state;
    struct stage_request read = {0};
    struct stage_snapshot *snapshot = stage_snapshot(stage, "s");
    stage_read_held(stage, &read, snapshot->views[0], 3, 3);
    stage_overwrite(stage, 0, 4, 200); /* a reader never delays a writer */
    assert_false(read.done);
    stage_let_go(stage);
    stage_settle(stage);
    assert_true(stage_succeeded(&read));
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(read.buffer[i * STAGE_BLOCK], stage_first_value(0, 3 + i));
}

/* The point breaks while the base read is under way. */
static void c6_a_point_that_breaks_during_the_read_fails_it(void **state)
{
    struct stage *stage = *state;
    struct stage_request read = {0};
    struct stage_snapshot *snapshot = stage_snapshot(stage, "s");
    stage_hold(stage, WORLD_READ, 0);
    stage_read(stage, &read, snapshot->views[0], 4, 1);
    stage->fail_with = -EIO; /* the copy's read */
    stage_overwrite(stage, 0, 4, 200);
    assert_true(snapshot->broken);
    stage_let_go(stage);
    stage_settle(stage);
    assert_true(read.done);
    assert_int_equal(read.status, -EIO);
}

/* The point is deleted while the base read is under way, and its blocks are overwritten: the read fails, and the view
 * waits for it. */
static void c6_a_point_deleted_during_the_read_fails_it(void **state)
{
    struct stage *stage = *state;
    struct stage_request read = {0};
    struct stage_snapshot *snapshot = stage_snapshot(stage, "s");
    stage_read_held(stage, &read, snapshot->views[0], 4, 1);
    stage->keep_exports = true; /* an export ends when its requests have */
    stage_delete(stage, snapshot);
    stage_settle(stage);
    stage_overwrite(stage, 0, 4, 200);
    assert_false(snapshot->deleted);
    stage_let_go(stage);
    stage_settle(stage);
    assert_true(read.done);
    assert_int_equal(read.status, -ESHUTDOWN);
    stage_withdraw(stage);
    stage_settle(stage);
    assert_true(snapshot->deleted);
}

/* The same for block status: a block that became a hole meanwhile was data at the cut. */
static void c6_block_status_looks_again(void **state)
{
    struct stage *stage = *state;
    struct stage_request status = {0}, discard = {0};
    struct stage_snapshot *snapshot = stage_snapshot(stage, "s");
    stage_hold(stage, WORLD_EXTENT, 0);
    stage_status(stage, &status, snapshot->views[0], 4, 2);
    stage_hold_no_more(stage);
    stage_discard(stage, &discard, 0, 4, 1);
    stage_settle(stage);
    assert_true(stage_succeeded(&discard));
    stage_let_go(stage);
    stage_settle(stage);
    assert_true(stage_succeeded(&status));
    uint64_t at = 0;
    for (unsigned i = 0; i < status.req.extent_count; at += status.extents[i++].length)
        assert_int_equal(status.extents[i].flags & EXTENT_ZERO, 0);
    assert_true(at >= STAGE_BLOCK);
    assert_int_equal(stage_value(stage, snapshot, 0, 4), stage_first_value(0, 4));
}

/* ---- R4 ---- */

/* Two losses while the other threads hang, one of the oldest point and one of the newest: the point between them had
 * released both blocks, and needs none of them. It goes on, on every disk, and each of the two says its own reason. */
static void r4_only_who_needed_it_breaks(void **state)
{
    struct stage *stage = *state;
    struct stage_request writes[2] = {0};
    struct stage_snapshot *s[3];
    for (unsigned i = 0; i < 3; i++)
        s[i] = stage_snapshot(stage, (const char *[]){"s1", "s2", "s3"}[i]);
    assert_int_equal(stage_release(stage, s[0], 1, 9, 1), 0);
    assert_int_equal(stage_release(stage, s[1], 1, 5, 1), 0);
    assert_int_equal(stage_release(stage, s[1], 1, 9, 1), 0);
    assert_int_equal(stage_release(stage, s[2], 1, 5, 1), 0);
    world_stall(stage->control, world_now(stage->world) + 20 * NS_PER_MS);
    world_stall(stage->io[0], world_now(stage->world) + 20 * NS_PER_MS);
    stage_hold(stage, WORLD_READ, 1);
    stage->fail_with = -EIO;
    stage_write(stage, &writes[0], 1, 5, 1, 200);
    stage_write(stage, &writes[1], 1, 9, 1, 200);
    world_run_for(stage->world, 10 * NS_PER_MS);
    stage_hold_no_more(stage);
    stage_settle(stage);
    assert_true(stage_succeeded(&writes[0]) && stage_succeeded(&writes[1]));
    assert_true(s[0]->broken && s[2]->broken);
    assert_false(s[1]->broken);
    for (unsigned disk = 0; disk < 2; disk++) {
        assert_int_equal(stage_value(stage, s[0], disk, 4), -EIO);
        assert_int_equal(stage_value(stage, s[1], disk, 4), stage_first_value(disk, 4));
        assert_int_equal(stage_value(stage, s[2], disk, 4), -EIO);
    }
}

/* One block is lost that the oldest and the newest point need. */
static void r4_a_loss_passes_over_who_released_the_block(void **state)
{
    struct stage *stage = *state;
    struct stage_snapshot *s[3];
    for (unsigned i = 0; i < 3; i++)
        s[i] = stage_snapshot(stage, (const char *[]){"s1", "s2", "s3"}[i]);
    assert_int_equal(stage_release(stage, s[1], 1, 5, 1), 0);
    stage_lose(stage, 1, 5);
    stage_settle(stage);
    assert_true(s[0]->broken && s[2]->broken);
    assert_false(s[1]->broken);
    for (unsigned disk = 0; disk < 2; disk++)
        assert_int_equal(stage_value(stage, s[1], disk, 4), stage_first_value(disk, 4));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        STAGE_TEST(c5_deleting_a_newer_point_keeps_what_an_older_one_needs, .disk_count = 1),
        STAGE_TEST(c5_each_point_keeps_its_own, .disk_count = 1),
        STAGE_TEST(c5_a_copy_that_was_passed_serves_nobody, .disk_count = 1),
        STAGE_TEST(c6_a_block_preserved_during_the_read_comes_from_the_cache, .disk_count = 1),
        STAGE_TEST(c6_a_point_that_breaks_during_the_read_fails_it, .disk_count = 1),
        STAGE_TEST(c6_a_point_deleted_during_the_read_fails_it, .disk_count = 1),
        STAGE_TEST(c6_block_status_looks_again, .disk_count = 1),
        STAGE_TEST(r4_only_who_needed_it_breaks, .disk_count = 2),
        STAGE_TEST(r4_a_loss_passes_over_who_released_the_block, .disk_count = 2),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
