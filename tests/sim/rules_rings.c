/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the rings of vhost-user are bound by, as everything that writes is: C2, C4, C8 and C10 to C14. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <cmocka.h>

#include "base/limits.h"
#include "site.h"
#include "vm/vm_private.h"

/* Half a VM is never cut: a write in the ring of one disk waits until the other one's, which is in flight, has ended. */
static void c2_a_ring_waits_for_the_cut_of_all_disks(void **state)
{
    struct stage *stage = *state;
    struct site site;
    site_begin(&site, stage, false);
    stage_hold(stage, WORLD_WRITE, 0);
    front_write(&site, 0, 1, 200);
    STAGE_STEP_UNTIL(stage, stage->held_count == 1);
    struct stage_snapshot *snapshot = stage_create(stage, "s", 0);
    STAGE_STEP_UNTIL(stage, stage->disks[0]->holding && stage->disks[1]->holding);
    front_write(&site, 1, 2, 201);
    world_run_for(stage->world, 5 * NS_PER_MS);
    assert_true(stage->disks[1]->holding);
    assert_int_equal(world_file_bytes(stage->files[1])[2 * STAGE_BLOCK], stage_first_value(1, 2));
    front_stop(&site, 1); /* what the cut holds is of the time before, too (C14) */
    world_run_for(stage->world, 5 * NS_PER_MS);
    assert_true(stage->disks[1]->holding && !site.fronts[1].answered);
    stage_let_go(stage);
    STAGE_STEP_UNTIL(stage, site.fronts[1].answered);
    stage_settle(stage);
    assert_true(snapshot->created && front_has_written(&site.fronts[0]) && front_has_written(&site.fronts[1]));
    assert_int_equal(stage_value(stage, snapshot, 0, 1), 200);
    assert_int_equal(stage_value(stage, snapshot, 1, 2), stage_first_value(1, 2));
    assert_int_equal(world_file_bytes(stage->files[1])[2 * STAGE_BLOCK], 201);
    site_end(&site);
}

struct watcher {
    struct write_observer observer; /* first; of the bits of a disk */
    unsigned told;
};

static void written(struct write_observer *observer, struct range range)
{
    assert_true(range.start == 7 * STAGE_BLOCK && range.length == STAGE_BLOCK);
    ((struct watcher *)observer)->told++;
}

/* A write in a ring waits for a copy, and a cut passes it: neither a bit nor the count of what is in flight has it before
 * the very step that hands it to the leaf, and it is of the time after the cut. In flight it is until the kernel's answer,
 * though it has landed. */
static void c4_a_rings_write_counts_when_it_is_submitted(void **state)
{
    struct stage *stage = *state;
    struct disk *disk = stage->disks[0];
    struct watcher watcher = {.observer.written = written};
    struct site site;
    site_begin(&site, stage, false);
    list_append(&disk->observers, &watcher.observer.link);
    struct stage_snapshot *before = stage_snapshot(stage, "s");
    stage_hold(stage, WORLD_READ, 0);
    front_write(&site, 0, 7, 70);
    STAGE_STEP_UNTIL(stage, stage->held_count == 1);
    struct stage_snapshot *passed = stage_snapshot(stage, "t");
    assert_true(watcher.told == 0 && disk->writes_in_flight == 0);
    stage_hold(stage, WORLD_WRITE, 0);
    assert_true(world_let_go(stage->world, stage->held[0]));
    while (stage->held_count < 2) {
        assert_true(watcher.told == 0 && disk->writes_in_flight == 0);
        assert_true(world_step(stage->world));
    }
    assert_true(watcher.told == 1 && disk->writes_in_flight == 1);
    assert_true(world_land(stage->world, stage->held[1]));
    struct stage_snapshot *after = stage_create(stage, "u", 0);
    stage_settle(stage);
    assert_true(disk->holding && !after->answered && !front_has_written(&site.fronts[0]));
    stage_let_go(stage);
    stage_settle(stage);
    assert_true(after->created && watcher.told == 1 && disk->writes_in_flight == 0);
    assert_true(front_has_written(&site.fronts[0]));
    assert_int_equal(stage_value(stage, before, 0, 7), stage_first_value(0, 7));
    assert_int_equal(stage_value(stage, passed, 0, 7), stage_first_value(0, 7));
    assert_int_equal(stage_value(stage, after, 0, 7), 70);
    list_remove(&watcher.observer.link);
    site_end(&site);
}

/* A write in a ring waits for room, and parks again after each release: its time is counted from its first park. */
static void c8_a_rings_write_waits_from_its_first_park(void **state)
{
    struct stage *stage = *state;
    struct site site;
    site_begin(&site, stage, false);
    struct stage_snapshot *snapshot = stage_snapshot(stage, "s");
    stage_overwrite_all(stage, 0, 0, 128, 200); /* all the room that there is */
    assert_int_equal(stage_release(stage, snapshot, 0, 0, 1), 0);
    const uint64_t began_ns = world_now(stage->world);
    front_write_blocks(&site, 0, 200, 4, 201);
    for (uint64_t block = 1; block < 3; block++) {
        world_run_for(stage->world, 8 * NS_PER_MS);
        assert_false(front_has_written(&site.fronts[0]) || snapshot->broken);
        assert_int_equal(stage_release(stage, snapshot, 0, block, 1), 0);
    }
    STAGE_STEP_UNTIL(stage, front_has_written(&site.fronts[0]));
    const uint64_t waited_ns = world_now(stage->world) - began_ns;
    assert_true(waited_ns >= 20 * NS_PER_MS && waited_ns < 30 * NS_PER_MS);
    stage_settle(stage);
    assert_true(snapshot->broken && strstr(snapshot->reason, "waited"));
    assert_int_equal(world_file_bytes(stage->files[0])[203 * STAGE_BLOCK], 201);
    site_end(&site);
}

/* A daemon is killed with a write in flight: it has landed before the next one serves a ring, and not on top of what the
 * guest writes then. The snapshot is the next daemon's (C11), with what was preserved, and without what was released
 * (C12). */
static void c10_c11_c12_rings_of_the_next_daemon(void **state)
{
    struct stage *stage = *state;
    struct site site;
    site_begin(&site, stage, false);
    struct stage_snapshot *snapshot = stage_snapshot(stage, "s");
    front_write(&site, 0, 3, 50);
    STAGE_STEP_UNTIL(stage, front_has_written(&site.fronts[0]));
    assert_int_equal(stage_release(stage, snapshot, 0, 4, 1), 0);
    front_write(&site, 0, 4, 51); /* nothing preserves it */
    STAGE_STEP_UNTIL(stage, front_has_written(&site.fronts[0]));
    front_write(&site, 0, 5, 52);
    STAGE_STEP_UNTIL(stage, front_has_written(&site.fronts[0]));
    stage_hold(stage, WORLD_WRITE, 0);
    front_write(&site, 0, 5, 53); /* in flight for ever, as far as this daemon knows */
    STAGE_STEP_UNTIL(stage, stage->held_count == 1);
    site_restart(&site);
    front_write(&site, 0, 5, 54);
    STAGE_STEP_UNTIL(stage, front_has_written(&site.fronts[0]));
    world_run_for(stage->world, 10 * NS_PER_S);
    assert_int_equal(world_file_bytes(stage->files[0])[5 * STAGE_BLOCK], 54);
    assert_int_equal(stage_value(stage, snapshot, 0, 3), stage_first_value(0, 3));
    assert_int_equal(stage_value(stage, snapshot, 0, 4), -ENODATA);
    assert_int_equal(stage_value(stage, snapshot, 0, 5), stage_first_value(0, 5));
    /* The other disk's blocks are preserved by the next daemon as they were by the first. */
    front_write(&site, 1, 6, 55);
    STAGE_STEP_UNTIL(stage, front_has_written(&site.fronts[1]));
    assert_int_equal(stage_value(stage, snapshot, 1, 6), stage_first_value(1, 6));
    site_end(&site);
}

/* Without room for old data the snapshot goes; the guest has every write done. */
static void c13_a_full_tmpfs_costs_a_ring_nothing(void **state)
{
    struct stage *stage = *state;
    struct site site;
    site_begin(&site, stage, false);
    struct stage_snapshot *snapshot = stage_snapshot(stage, "s");
    for (uint64_t block = 0; block < 130; block++) {
        front_write(&site, 0, block, 200);
        STAGE_STEP_UNTIL(stage, front_has_written(&site.fronts[0]));
    }
    assert_true(snapshot->broken);
    assert_int_equal(stage_value(stage, snapshot, 0, 3), -EIO);
    site_end(&site);
}

/* A VMM is gone while its write waits for the old data of a snapshot. The next one's first message is answered when that has
 * settled, so its writes come after it. */
static void c14_a_parked_write_is_settled_before_the_next_vmm(void **state)
{
    struct stage *stage = *state;
    struct site site;
    site_begin(&site, stage, false);
    struct stage_snapshot *snapshot = stage_snapshot(stage, "s");
    stage_hold(stage, WORLD_READ, 0);
    front_write(&site, 0, 7, 70);
    STAGE_STEP_UNTIL(stage, stage->held_count == 1);
    front_hang_up(&site, &site.fronts[0]);
    front_connect(&site, 0);
    front_send(&site, &site.fronts[0], VHOST_GET_FEATURES, NULL, 0, -1, true);
    world_run_for(stage->world, 5 * NS_PER_MS);
    assert_false(site.fronts[0].answered);
    stage_let_go(stage);
    stage_hold_no_more(stage);
    STAGE_STEP_UNTIL(stage, site.fronts[0].answered);
    const uint8_t settled = world_file_bytes(stage->files[0])[7 * STAGE_BLOCK];
    front_forget(&site.fronts[0]);
    front_set_up(&site, 0, false);
    front_start(&site, 0);
    front_write(&site, 0, 8, 71);
    STAGE_STEP_UNTIL(stage, front_has_written(&site.fronts[0]));
    world_run_for(stage->world, NS_PER_S);
    assert_int_equal(world_file_bytes(stage->files[0])[7 * STAGE_BLOCK], settled);
    assert_int_equal(stage_value(stage, snapshot, 0, 7), stage_first_value(0, 7));
    site_end(&site);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        STAGE_TEST(c2_a_ring_waits_for_the_cut_of_all_disks, .disk_count = 2),
        STAGE_TEST(c4_a_rings_write_counts_when_it_is_submitted, .disk_count = 2),
        STAGE_TEST(c8_a_rings_write_waits_from_its_first_park, .disk_count = 2, .segments = 2,
                   .cbw_timeout_ns = 20 * NS_PER_MS),
        STAGE_TEST(c10_c11_c12_rings_of_the_next_daemon, .disk_count = 2, .restartable = true),
        STAGE_TEST(c13_a_full_tmpfs_costs_a_ring_nothing, .disk_count = 2, .tmpfs_bytes = 64 * STAGE_BLOCK),
        STAGE_TEST(c14_a_parked_write_is_settled_before_the_next_vmm, .disk_count = 2),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
