/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The rules of waiting and of room, each with a script that drives exactly the interleaving that it is about: C8 first
 * come, first served, C13 tmpfs, R7 nothing is left over. The names of the rules are those of docs/ARCHITECTURE.md.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/limits.h"
#include "faults.h"
#include "stage.h"

/* ---- C8 ---- */

/* A write that has waited for a copy is held by a cut: it stands before one that came later and was held first, and the
 * time since when it waits is that of its first park. */
static void c8_first_parked_first_served(void **state)
{
    struct stage *stage = *state;
    struct stage_request stuck = {0}, first = {0}, second = {0};
    stage_snapshot(stage, "s1");
    stage_overwrite(stage, 0, 9, 199); /* preserved: the next write of it goes straight to the disk */
    stage_hold(stage, WORLD_WRITE, 0);
    stage_write(stage, &stuck, 0, 9, 1, 200);
    stage_hold(stage, WORLD_READ, 0);
    stage_write(stage, &first, 0, 4, 1, 201); /* parks on its copy */
    stage_hold_no_more(stage);
    assert_int_equal(stage->held_count, 2);
    uint64_t parked_since_ns = first.req.parked_since_ns;
    assert_true(parked_since_ns != 0);
    world_run_for(stage->world, NS_PER_MS);
    struct stage_snapshot *snapshot = stage_create(stage, "s2", 0);
    STAGE_STEP_UNTIL(stage, stage->disks[0]->holding);
    stage_write(stage, &second, 0, 20, 1, 202); /* parks in the hold */
    world_run_for(stage->world, NS_PER_MS);
    assert_true(world_let_go(stage->world, stage->held[1])); /* the copy is done: `first` is decided, and held */
    stage_settle(stage);
    assert_true(stage->disks[0]->holding);
    struct list *held = &stage->disks[0]->held;
    assert_ptr_equal(list_first(held, struct request, link), &first.req);
    assert_ptr_equal(list_last(held, struct request, link), &second.req);
    assert_int_equal(first.req.parked_since_ns, parked_since_ns);
    stage_let_go(stage);
    stage_settle(stage);
    assert_true(stage_succeeded(&stuck) && stage_succeeded(&first) && stage_succeeded(&second) && snapshot->created);
    assert_int_equal(stage_value(stage, snapshot, 0, 4), stage_first_value(0, 4));
}

/* A full cache: those who wait for room get it in the order in which they came. */
static void c8_room_is_given_in_order(void **state)
{
    struct stage *stage = *state;
    struct stage_request writes[4] = {0};
    stage_snapshot(stage, "s1");
    struct stage_request fill[32] = {0};
    for (unsigned i = 0; i < 32; i++) /* 128 blocks: all slots that there are */
        stage_write(stage, &fill[i], 1, 4 * i, 4, 200);
    stage_settle(stage);
    world_stall(stage->io[0], world_now(stage->world) + 20 * NS_PER_MS); /* the room's reactor */
    unsigned before = stage->landed_count;
    for (unsigned i = 0; i < 4; i++)
        stage_write(stage, &writes[i], 1, 200 + i, 1, 201);
    world_run_for(stage->world, 10 * NS_PER_MS);
    assert_int_equal(stage->landed_count, before); /* they wait */
    for (unsigned i = 1; i < 4; i++)
        assert_ptr_equal(writes[i - 1].req.link.next, &writes[i].req.link);
    stage_settle(stage);
    for (unsigned i = 0; i < 4; i++)
        assert_true(stage_succeeded(&writes[i]));
    assert_true(stage->snapshots[0].broken);
}

/* ---- last resorts ---- */

/* The whole cache file is on its way back to the file system when RAM runs full: the writes wait for that, and nothing
 * breaks; they go on when it has come back, not when they ask again. */
static void a_punch_under_way_is_hope(void **state)
{
    struct stage *stage = *state;
    struct stage_request writes[40] = {0};
    struct stage_snapshot *first = stage_snapshot(stage, "s1");
    stage_overwrite_all(stage, 0, 0, 160, 200);
    assert_int_equal(stage_status_of_vm(stage).disks[0].file_blocks, 64);
    struct stage_snapshot *second = stage_snapshot(stage, "s2");
    stage_hold_cache(stage, WORLD_ALLOCATE, 0);
    stage_delete(stage, first);
    stage_settle(stage);
    assert_int_equal(stage->held_count, 1);
    stage_hold_no_more(stage);
    for (unsigned i = 0; i < 40; i++) /* 160 blocks; 128 have room in RAM */
        stage_write(stage, &writes[i], 0, 4 * i, 4, 201);
    stage_settle(stage);
    assert_false(second->broken);
    assert_false(stage_succeeded(&writes[39]));
    uint64_t now = world_now(stage->world);
    assert_true(world_let_go(stage->world, stage->held[0]));
    STAGE_STEP_UNTIL(stage, stage_succeeded(&writes[39]));
    assert_true(world_now(stage->world) - now < 100 * NS_PER_MS);
    stage_settle(stage);
    for (unsigned i = 0; i < 40; i++)
        assert_true(stage_succeeded(&writes[i]));
    assert_false(second->broken);
    assert_int_equal(stage_value(stage, second, 0, 7), 200);
    assert_int_equal(stage_value(stage, second, 0, 170), stage_first_value(0, 170));
}

/* ---- C13 ---- */

/* tmpfs is full: the snapshot breaks, the guest goes on, nothing touches memory that is not there. */
static void c13_a_full_tmpfs_breaks_the_snapshot(void **state)
{
    struct stage *stage = *state;
    struct stage_snapshot *snapshot = stage_snapshot(stage, "s");
    for (uint64_t block = 0; block < 64; block++)
        stage_overwrite(stage, 0, block, 200);
    assert_false(snapshot->broken);
    stage_overwrite(stage, 0, 64, 200);
    assert_true(snapshot->broken);
    assert_int_equal(stage_value(stage, snapshot, 0, 3), -EIO);
}

/* The last point goes while a copy is being read into a segment: the segment stays until the read is over. */
static void c13_a_segment_in_use_is_not_punched(void **state)
{
    struct stage *stage = *state;
    struct stage_request write = {0};
    struct stage_snapshot *snapshot = stage_snapshot(stage, "s");
    stage_write_held(stage, WORLD_READ, &write, 0, 4, 2, 200);
    stage_delete(stage, snapshot);
    stage_settle(stage);
    assert_int_equal(stage->held_count, 1);
    stage_let_go(stage); /* lands in the slot: a fault, were it punched */
    stage_settle(stage);
    assert_true(stage_succeeded(&write) && snapshot->deleted);
    assert_null(stage->disks[0]->filter);
}

/* ---- L14 ---- */

/* Neither the disk nor the cache file is synced for the guest's writes, however many go through both tiers: every sync would
 * be held for ever here. */
static void l14_no_write_waits_for_a_sync(void **state)
{
    struct stage *stage = *state;
    struct stage_snapshot *snapshots[2];
    for (unsigned i = 0; i < 2; i++) {
        snapshots[i] = stage_snapshot(stage, i == 0 ? "disk" : "cache");
        if (i == 0)
            stage_hold(stage, WORLD_SYNC, 0);
        else
            stage_hold_cache(stage, WORLD_SYNC, 0);
        stage_overwrite_all(stage, 0, 0, 200, (uint8_t)(200 + i));
        assert_int_equal(stage->held_count, 0);
        stage_hold_no_more(stage);
    }
    assert_true(stage->cache_operations > 0);
    assert_int_equal(stage_value(stage, snapshots[0], 0, 199), stage_first_value(0, 199));
    assert_int_equal(stage_value(stage, snapshots[1], 0, 199), 200);
}

/* ---- R7 ---- */

/* A disk has lost data and told the room; the news is slower than the end of the last snapshot: the VM waits for it. */
static void r7_the_vm_waits_for_what_was_asked(void **state)
{
    struct stage *stage = *state;
    struct stage_snapshot *snapshot = stage_snapshot(stage, "s");
    stage->slow_from = stage->io[1];
    stage->slow_to = stage->io[0];
    stage_lose(stage, 1, 7);
    stage_delete(stage, snapshot);
    stage_settle(stage);
    assert_true(snapshot->deleted);
    stage_destroy_vm(stage);
    stage_settle(stage);
    assert_false(stage->gone);
    stage->slow_from = NULL;
    world_run_for(stage->world, 2 * NS_PER_S);
    assert_true(stage->gone);
}

static int run_all(void)
{
    const struct CMUnitTest tests[] = {
        STAGE_TEST(c8_first_parked_first_served, .disk_count = 1),
        STAGE_TEST(c8_room_is_given_in_order, .disk_count = 2, .segments = 2),
        STAGE_TEST(a_punch_under_way_is_hope, .disk_count = 1, .segments = 2, .cache_segments = 1),
        STAGE_TEST(c13_a_full_tmpfs_breaks_the_snapshot, .disk_count = 1, .tmpfs_bytes = 64 * STAGE_BLOCK),
        STAGE_TEST(c13_a_segment_in_use_is_not_punched, .disk_count = 1),
        STAGE_TEST(l14_no_write_waits_for_a_sync, .disk_count = 1, .segments = 2, .cache_segments = 16),
        STAGE_TEST(r7_the_vm_waits_for_what_was_asked, .disk_count = 2),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

int main(void)
{
    struct mutant *hopeless = fault_find("hope_given_up_early");
    return run_all() == 0 && hopeless && fault_is_caught(hopeless, run_all, 60) ? 0 : 1;
}
