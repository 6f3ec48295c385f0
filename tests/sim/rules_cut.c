/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The rules of the cut, each with a script that drives exactly the interleaving that it is about: C2 half a VM, C3 the
 * hold, C4 the bit belongs to the leaf. The names of the rules are those of docs/ARCHITECTURE.md.
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

/* vdb does not drain, for `stuck` writes to it: both disks are held. */
static struct stage_snapshot *create_and_hold(struct stage *stage, struct stage_request *stuck)
{
    stage_write_held(stage, WORLD_WRITE, stuck, 1, 3, 1, 200);
    struct stage_snapshot *snapshot = stage_create(stage, "s", 5 * NS_PER_MS);
    STAGE_STEP_UNTIL(stage, stage->disks[0]->holding && stage->disks[1]->holding);
    return snapshot;
}

/* ---- C2 ---- */

/* One disk does not drain: no disk is cut, and none keeps a filter. */
static void c2_no_disk_is_cut_unless_all_drain(void **state)
{
    struct stage *stage = *state;
    struct stage_request stuck = {0}, held = {0};
    struct stage_snapshot *snapshot = create_and_hold(stage, &stuck);
    stage_write(stage, &held, 0, 5, 1, 201);
    world_run_for(stage->world, 3 * NS_PER_MS);
    assert_false(held.done); /* the disk that has drained waits for the other one */
    assert_null(stage->disks[0]->filter);
    stage_settle(stage);
    assert_true(snapshot->answered && !snapshot->created);
    assert_int_equal(snapshot->code, ETIMEDOUT);
    assert_non_null(strstr(snapshot->text, "vdb"));
    assert_true(stage_succeeded(&held));
    assert_null(stage->disks[0]->filter);
    assert_null(stage->disks[1]->filter);
    stage_let_go(stage);
    stage_settle(stage);
    assert_true(stage_succeeded(&stuck));
    struct stage_snapshot *next = stage_snapshot(stage, "t");
    assert_int_equal(stage_value(stage, next, 1, 3), 200);
}

/* The same with the limits that hold by default: tried again for 30 s, and no write is held for longer than one attempt. */
static void a_disk_that_does_not_drain_is_refused_after_30_s(void **state)
{
    struct stage *stage = *state;
    struct stage_request stuck = {0};
    stage_write_held(stage, WORLD_WRITE, &stuck, 1, 3, 1, 200);
    const uint64_t began_ns = world_now(stage->world);
    struct stage_snapshot *snapshot = stage_create(stage, "s", 0);
    unsigned written = 0;
    for (; !snapshot->answered; written++) {
        struct stage_request request = {0};
        const uint64_t at_ns = world_now(stage->world);
        assert_true(at_ns < began_ns + CUT_TOTAL_MAX_NS + NS_PER_S);
        stage_write(stage, &request, 0, 5, 1, 201);
        while (!request.done)
            assert_true(world_step(stage->world));
        assert_true(stage_succeeded(&request));
        assert_true(world_now(stage->world) - at_ns <= CUT_ATTEMPT_NS + 10 * NS_PER_MS);
    }
    assert_true(!snapshot->created && snapshot->code == ETIMEDOUT && strstr(snapshot->text, "vdb"));
    assert_true(world_now(stage->world) >= began_ns + CUT_TOTAL_MAX_NS - CUT_ATTEMPT_NS && written > 30);
    stage_let_go(stage);
    stage_settle(stage);
    assert_true(stage_succeeded(&stuck));
}

/* vda is cut and goes on; vdb, whose thread hangs, is still held: a write that depends on vda's is in neither. */
static void c2_a_slow_disk_is_cut_at_the_same_instant(void **state)
{
    struct stage *stage = *state;
    struct stage_request last = {0}, first = {0}, second = {0};
    stage_write_held(stage, WORLD_WRITE, &last, 0, 1, 1, 200);
    struct stage_snapshot *snapshot = stage_create(stage, "s", 0);
    STAGE_STEP_UNTIL(stage, stage->disks[0]->holding && stage->disks[1]->holding);
    world_run_for(stage->world, NS_PER_MS);
    world_stall(stage->io[1], world_now(stage->world) + 500 * NS_PER_MS);
    stage_let_go(stage); /* vda drains last and moves the word */
    STAGE_STEP_UNTIL(stage, !stage->disks[0]->holding);
    assert_true(stage->disks[1]->holding);
    stage_write(stage, &first, 0, 2, 1, 201);
    STAGE_STEP_UNTIL(stage, first.done);
    stage_write(stage, &second, 1, 2, 1, 202);
    assert_true(stage->disks[1]->holding);
    world_run_for(stage->world, 600 * NS_PER_MS);
    assert_true(stage_succeeded(&last) && stage_succeeded(&first) && stage_succeeded(&second) && snapshot->created);
    assert_int_equal(stage_value(stage, snapshot, 0, 1), 200);
    assert_int_equal(stage_value(stage, snapshot, 0, 2), stage_first_value(0, 2));
    assert_int_equal(stage_value(stage, snapshot, 1, 2), stage_first_value(1, 2));
}

/* A disk that broke breaks the snapshot on every disk. */
static void c2_a_snapshot_breaks_on_all_disks(void **state)
{
    struct stage *stage = *state;
    struct stage_snapshot *snapshot = stage_snapshot(stage, "s");
    stage_lose(stage, 0, 7);
    assert_true(snapshot->broken);
    assert_int_equal(stage_value(stage, snapshot, 0, 9), -EIO);
    assert_int_equal(stage_value(stage, snapshot, 1, 9), -EIO);
}

/* ---- C3 ---- */

/* The control thread hangs in the middle of the hold: the reactors give it up by themselves at the deadline. */
static void c3_reactors_abort_without_the_control_thread(void **state)
{
    struct stage *stage = *state;
    struct stage_request stuck = {0}, held = {0};
    struct stage_snapshot *snapshot = create_and_hold(stage, &stuck);
    world_stall(stage->control, world_now(stage->world) + 10 * NS_PER_S);
    stage_write(stage, &held, 0, 5, 1, 201);
    world_run_for(stage->world, 20 * NS_PER_MS);
    assert_false(stage->disks[0]->holding || stage->disks[1]->holding);
    assert_true(stage_succeeded(&held));
    assert_false(snapshot->answered);
    stage_let_go(stage);
    world_run_for(stage->world, 11 * NS_PER_S);
    assert_int_equal(snapshot->code, ETIMEDOUT);
}

/* A thread hangs before the hold reaches it, at each possible step: a hold that comes after the deadline holds nothing. */
static void c3_a_late_hold_holds_nothing(void **state)
{
    struct stage *stage = *state;
    unsigned refused = 0;
    for (unsigned steps = 0; steps < 12; steps++) {
        struct stage_request writes[2] = {0};
        char name[16];
        snprintf(name, sizeof(name), "s%u", steps);
        struct stage_snapshot *snapshot = stage_create(stage, name, 5 * NS_PER_MS);
        for (unsigned i = 0; i < steps; i++)
            world_step(stage->world);
        world_stall(stage->io[1], world_now(stage->world) + 30 * NS_PER_MS);
        world_run_for(stage->world, 20 * NS_PER_MS);
        assert_false(stage->disks[0]->holding); /* nobody waits for the one that hangs */
        stage_settle(stage);
        assert_false(stage->disks[1]->holding);
        for (unsigned i = 0; i < 2; i++)
            stage_write(stage, &writes[i], i, 1, 1, 200);
        stage_settle(stage);
        assert_true(stage_succeeded(&writes[0]) && stage_succeeded(&writes[1]) && snapshot->answered);
        assert_true(snapshot->created || snapshot->code == ETIMEDOUT);
        refused += !snapshot->created;
    }
    assert_true(refused > 0);
}

/* A write that waits for a copy is not in flight: the cut goes on, and the write is decided again after it. */
static void c3_a_parked_write_does_not_delay_the_cut(void **state)
{
    struct stage *stage = *state;
    struct stage_request write = {0};
    struct stage_snapshot *first = stage_snapshot(stage, "s1");
    stage_write_held(stage, WORLD_READ, &write, 0, 4, 1, 200);
    assert_int_equal(stage->held_count, 1); /* the copy */
    struct stage_snapshot *second = stage_snapshot(stage, "s2");
    assert_false(write.done);
    stage_let_go(stage);
    stage_settle(stage);
    assert_true(stage_succeeded(&write));
    assert_int_equal(stage_value(stage, first, 0, 4), stage_first_value(0, 4));
    assert_int_equal(stage_value(stage, second, 0, 4), stage_first_value(0, 4));
    assert_int_equal(world_file_bytes(stage->files[0])[4 * STAGE_BLOCK], 200);
}

/* ---- C4 ---- */

/* In flight lasts until the kernel's completion, though the data has landed long before. */
static void c4_in_flight_lasts_until_the_completion(void **state)
{
    struct stage *stage = *state;
    struct stage_request write = {0};
    stage_write_held(stage, WORLD_WRITE, &write, 0, 4, 1, 200);
    assert_true(world_land(stage->world, stage->held[0]));
    assert_int_equal(stage->disks[0]->writes_in_flight, 1);
    struct stage_snapshot *snapshot = stage_create(stage, "s", 0);
    stage_settle(stage);
    assert_true(stage->disks[0]->holding && !snapshot->answered);
    stage_let_go(stage);
    stage_settle(stage);
    assert_true(stage_succeeded(&write) && snapshot->created);
    assert_int_equal(stage_value(stage, snapshot, 0, 4), 200);
}

/* A parked write counts when it is handed to the leaf, in the step that decides, and not before. */
static void c4_a_parked_write_is_not_in_flight(void **state)
{
    struct stage *stage = *state;
    struct stage_request write = {0};
    stage_snapshot(stage, "s");
    stage_hold(stage, WORLD_READ, 0);
    stage_write(stage, &write, 0, 4, 1, 200);
    stage_hold(stage, WORLD_WRITE, 0);
    stage_settle(stage);
    assert_int_equal(stage->disks[0]->writes_in_flight, 0);
    world_let_go_all(stage->world);
    stage_settle(stage);
    assert_int_equal(stage->disks[0]->writes_in_flight, 1);
    assert_false(write.done);
    stage_let_go(stage);
    stage_settle(stage);
    assert_int_equal(stage->disks[0]->writes_in_flight, 0);
    assert_true(stage_succeeded(&write));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        STAGE_TEST(c2_no_disk_is_cut_unless_all_drain, .disk_count = 2),
        STAGE_TEST(a_disk_that_does_not_drain_is_refused_after_30_s, .disk_count = 2),
        STAGE_TEST(c2_a_slow_disk_is_cut_at_the_same_instant, .disk_count = 2),
        STAGE_TEST(c2_a_snapshot_breaks_on_all_disks, .disk_count = 2),
        STAGE_TEST(c3_reactors_abort_without_the_control_thread, .disk_count = 2),
        STAGE_TEST(c3_a_late_hold_holds_nothing, .disk_count = 2),
        STAGE_TEST(c3_a_parked_write_does_not_delay_the_cut, .disk_count = 1),
        STAGE_TEST(c4_in_flight_lasts_until_the_completion, .disk_count = 1),
        STAGE_TEST(c4_a_parked_write_is_not_in_flight, .disk_count = 1),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
