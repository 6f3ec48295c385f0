/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How the front-ends of a VM say where it is: two disks that stop one after the other with a migration's log on, a guest
 * that comes back too soon, a VMM that dies in between, a daemon that is killed in each of its moments (L12), and a second
 * daemon that awaits the VM while requests of the first are in flight (C10, C14).
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/limits.h"
#include "driver/file.h"
#include "site.h"
#include "vm/vm_private.h"

/* One disk after the other: it is the last one with which the VM has left, and that one waits for it. */
static void the_last_disk_waits(void **state)
{
    struct stage *stage = *state;
    struct site site;
    site_begin(&site, stage, true);
    struct stage_snapshot *snapshot = stage_snapshot(stage, "s");
    front_stop(&site, 1);
    STAGE_STEP_UNTIL(stage, site.fronts[1].answered);
    stage_settle(stage);
    assert_false(snapshot->broken || site.exports.away);
    assert_true(stage_snapshot(stage, "t")->created); /* a VM of which one disk has stopped is here */
    stage->slow_from = stage->control;                /* vdb hears of it late */
    stage->slow_to = stage->io[1];
    front_stop(&site, 0);
    stage_settle(stage);
    assert_true(snapshot->broken && site.exports.away);
    assert_false(site.fronts[0].answered);
    STAGE_STEP_UNTIL(stage, site.fronts[0].answered);
    stage->slow_from = stage->slow_to = NULL;
    assert_int_equal(stage_value(stage, snapshot, 1, 1), -EIO);
    struct stage_snapshot *refused = stage_create(stage, "u", 0);
    assert_true(refused->answered && !refused->created);
    front_go_on(&site, 1); /* it goes on here after all: one disk says so for all */
    stage_settle(stage);
    assert_false(site.exports.away);
    struct stage_snapshot *again = stage_snapshot(stage, "v");
    front_go_on(&site, 0);
    front_write(&site, 0, 7, 77);
    STAGE_STEP_UNTIL(stage, front_has_written(&site.fronts[0]));
    assert_int_equal(stage_value(stage, again, 0, 7), stage_first_value(0, 7));
    site_end(&site);
}

/* The guest is back before it is noted that it has left, and stops once more: it goes on when that is noted, and what was
 * taken in between ends before its stop is answered. */
static void back_too_soon_and_gone_again(void **state)
{
    struct stage *stage = *state;
    struct site site;
    site_begin(&site, stage, true);
    stage_note_away(stage);
    front_stop(&site, 1);
    STAGE_STEP_UNTIL(stage, site.fronts[1].answered);
    (void)stage_snapshot(stage, "s");
    front_stop(&site, 0);
    stage_settle(stage);
    assert_true(site.exports.away && stage->away.noted && !site.fronts[0].answered);
    front_go_on(&site, 1);
    stage_settle(stage);
    assert_false(site.exports.away);
    struct stage_snapshot *between = stage_snapshot(stage, "between");
    front_stop(&site, 1);
    stage_settle(stage);
    assert_false(site.fronts[1].answered || between->broken);
    world_call(stage->control, stage_noted, stage);
    STAGE_STEP_UNTIL(stage, site.fronts[0].answered && site.fronts[1].answered);
    assert_true(site.exports.away && between->broken && stage->away.noted);
    assert_int_equal(stage->away.away, 1); /* as long as it migrates */
    assert_int_equal(stage->away.back, 0);
    assert_int_equal(stage_value(stage, between, 0, 1), -EIO);
    site_end(&site);
}

/* The same while a disk has yet to hear of the first time: that it has left is said anew before the stop is answered. */
static void gone_again_before_all_disks_know(void **state)
{
    struct stage *stage = *state;
    struct site site;
    site_begin(&site, stage, true);
    front_stop(&site, 1);
    STAGE_STEP_UNTIL(stage, site.fronts[1].answered);
    stage->slow_from = stage->control;
    stage->slow_to = stage->io[0];
    front_stop(&site, 0);
    STAGE_STEP_UNTIL(stage, site.exports.leaving);
    front_go_on(&site, 1);
    STAGE_STEP_UNTIL(stage, !site.exports.away);
    front_stop(&site, 1);
    STAGE_STEP_UNTIL(stage, site.exports.parted_again);
    assert_false(site.fronts[0].answered || site.fronts[1].answered);
    world_run_for(stage->world, 3 * NS_PER_S);
    assert_true(site.exports.away && site.fronts[0].answered && site.fronts[1].answered);
    stage->slow_from = stage->slow_to = NULL;
    front_go_on(&site, 1);
    stage_settle(stage);
    assert_true(!site.exports.away && stage_snapshot(stage, "s")->created);
    site_end(&site);
}

/* The VMM dies while its last disk waits for the answer: the next connection is served, and what it starts is back. */
static void a_vmm_that_dies_while_it_asks(void **state)
{
    struct stage *stage = *state;
    struct site site;
    site_begin(&site, stage, true);
    struct stage_snapshot *snapshot = stage_snapshot(stage, "s");
    front_stop(&site, 1);
    STAGE_STEP_UNTIL(stage, site.fronts[1].answered);
    stage->slow_from = stage->control;
    stage->slow_to = stage->io[1];
    front_stop(&site, 0);
    stage_settle(stage);
    front_hang_up(&site, &site.fronts[0]);
    stage->slow_from = stage->slow_to = NULL;
    stage_settle(stage);
    front_connect(&site, 0);
    front_set_up(&site, 0, false);
    front_start(&site, 0);
    world_run_for(stage->world, 2 * NS_PER_S);
    assert_true(snapshot->broken && !site.exports.away);
    front_write(&site, 0, 9, 99);
    STAGE_STEP_UNTIL(stage, front_has_written(&site.fronts[0]));
    assert_int_equal(world_file_bytes(stage->files[0])[9 * STAGE_BLOCK], 99);
    site_end(&site);
}

/* ---- a daemon that dies in mid-migration: its VMM goes on, here or elsewhere, and asks nobody ---- */

static const char *reason_of(struct stage *stage, const char *name)
{
    struct snapshot_info info;
    const struct snapshot *snapshot = vm_snapshot_find(stage->vm, name);
    assert_non_null(snapshot);
    snapshot_info(snapshot, &info);
    return info.reason;
}

static void set_log(struct site *site, bool on)
{
    for (unsigned i = 0; i < STAGE_DISKS; i++) {
        struct front *front = &site->fronts[i];
        front->features = on ? front->features | VHOST_BIT(VHOST_F_LOG_ALL)
                             : front->features & ~VHOST_BIT(VHOST_F_LOG_ALL);
        front_tell(site, front, VHOST_SET_FEATURES, &front->features, sizeof front->features, -1);
    }
    site->migrates = on;
    stage_settle(site->stage);
}

/* Killed so many steps after the guest's last disk has been told to stop (0: before that). True: when that was answered. */
static bool killed_after(unsigned steps, unsigned *forsaken)
{
    const struct stage_options options = {.disk_count = 2, .restartable = true};
    void *state = (void *)(uintptr_t)&options;
    struct site site;
    assert_int_equal(stage_set_up(&state), 0);
    struct stage *stage = state;
    site_begin(&site, stage, true);
    struct stage_snapshot *old = stage_snapshot(stage, "old");
    front_stop(&site, 1);
    STAGE_STEP_UNTIL(stage, site.fronts[1].answered);
    if (steps > 0)
        front_stop(&site, 0);
    for (unsigned i = 1; i < steps; i++)
        (void)world_step(stage->world);
    const bool answered = steps > 0 && site.fronts[0].answered;
    site_restart(&site);
    assert_int_equal(stage_value(stage, old, 0, 1), -EIO);
    assert_int_equal(stage_value(stage, old, 1, 1), -EIO);
    const bool told = strstr(reason_of(stage, "old"), "its disks may be written elsewhere from now on") != NULL;
    assert_true(told || (!answered && strstr(reason_of(stage, "old"), "ended while the VM migrated")));
    *forsaken += !told;
    stage_delete(stage, old);
    struct stage_snapshot *next = stage_snapshot(stage, "next"); /* it goes on here */
    front_write(&site, 0, 7, 70);
    STAGE_STEP_UNTIL(stage, front_has_written(&site.fronts[0]));
    assert_int_equal(stage_value(stage, next, 0, 7), stage_first_value(0, 7));
    site_end(&site);
    stage_tear_down(&state);
    return answered;
}

/* In each moment from the guest's last running on to the answer to its last ring's stop: whichever way it goes, nobody is
 * shown the old snapshot again (L12); and where it goes on here the next one is right. */
static void killed_in_each_moment_of_the_parting(void **state)
{
    unsigned steps = 0, forsaken = 0;
    (void)state;
    while (!killed_after(steps, &forsaken))
        steps++;
    assert_true(forsaken > 1 && steps > forsaken);
}

/* Snapshots outlive a daemon that is killed before or after a migration, but none that is killed in it. */
static void a_migration_that_was_given_up_costs_nothing(void **state)
{
    struct stage *stage = *state;
    struct site site;
    site_begin(&site, stage, false);
    struct stage_snapshot *snapshot = stage_snapshot(stage, "s");
    set_log(&site, true); /* no log has come: that does not count */
    site_restart(&site);
    assert_int_equal(stage_value(stage, snapshot, 0, 1), stage_first_value(0, 1));
    set_log(&site, false);
    front_write(&site, 0, 1, 99);
    STAGE_STEP_UNTIL(stage, front_has_written(&site.fronts[0]));
    site_restart(&site);
    assert_null(reason_of(stage, "s"));
    assert_int_equal(stage_value(stage, snapshot, 0, 1), stage_first_value(0, 1));
    assert_int_equal(stage_value(stage, snapshot, 1, 1), stage_first_value(1, 1));
    set_log(&site, true);
    site_restart(&site); /* with rings that start with a log */
    stage_delete(stage, snapshot);
    stage_settle(stage);
    (void)stage_snapshot(stage, "t"); /* its table is younger than the log */
    site_restart(&site);
    assert_non_null(strstr(reason_of(stage, "t"), "ended while the VM migrated"));
    site_end(&site);
}

/* A guest that runs gets its log when that is noted durably, and not before; so do all disks at once. */
static void no_log_before_that_is_noted(void **state)
{
    struct stage *stage = *state;
    struct site site;
    site_begin(&site, stage, true);
    set_log(&site, false);
    stage_note_away(stage);
    set_log(&site, true);
    for (unsigned i = 0; i < STAGE_DISKS; i++)
        front_send(&site, &site.fronts[i], VHOST_GET_FEATURES, NULL, 0, -1, true);
    stage_settle(stage);
    assert_true(stage->away.noted && !site.fronts[0].answered && !site.fronts[1].answered);
    world_call(stage->control, stage_noted, stage);
    STAGE_STEP_UNTIL(stage, site.fronts[0].answered && site.fronts[1].answered);
    front_write(&site, 0, 7, 70); /* it is back before that is noted, and waits for nothing */
    set_log(&site, false);
    STAGE_STEP_UNTIL(stage, front_has_written(&site.fronts[0]));
    assert_int_equal(stage->away.away, 1);
    assert_int_equal(stage->away.back, 1);
    set_log(&site, true);
    site_stop(&site); /* nor does the daemon's end wait for a log that nobody gets */
    stage_settle(stage);
    assert_false(site.ended);
    world_call(stage->control, stage_noted, stage);
    stage_settle(stage);
    assert_int_equal(stage->away.away, 2);
    world_call(stage->control, stage_noted, stage);
    STAGE_STEP_UNTIL(stage, site.ended);
    for (unsigned i = 0; i < STAGE_DISKS; i++)
        front_free(&site, &site.fronts[i]);
    world_kill(stage->world, SITE_VMM);
}

/* A guest whose rings stop without a log is not leaving, nor is one whose migration was given up. */
static void only_a_log_tells(void **state)
{
    struct stage *stage = *state;
    struct site site;
    site_begin(&site, stage, true);
    struct stage_snapshot *snapshot = stage_snapshot(stage, "s");
    for (unsigned i = 0; i < STAGE_DISKS; i++) {
        struct front *front = &site.fronts[i];
        front->features &= ~VHOST_BIT(VHOST_F_LOG_ALL);
        front_tell(&site, front, VHOST_SET_FEATURES, &front->features, sizeof front->features, -1);
    }
    for (unsigned i = 0; i < STAGE_DISKS; i++) {
        front_stop(&site, i);
        STAGE_STEP_UNTIL(stage, site.fronts[i].answered);
    }
    stage_settle(stage);
    assert_false(snapshot->broken || site.exports.away);
    site_end(&site);
}

/* The daemon ends while disks have yet to hear of it. */
static void an_end_in_the_leaving(void **state)
{
    struct stage *stage = *state;
    struct site site;
    site_begin(&site, stage, true);
    (void)stage_snapshot(stage, "s");
    front_stop(&site, 0);
    STAGE_STEP_UNTIL(stage, site.fronts[0].answered);
    stage->slow_from = stage->control;
    stage->slow_to = stage->io[0];
    front_stop(&site, 1);
    stage_settle(stage);
    stage->slow_from = stage->slow_to = NULL;
    site_stop(&site);
    stage_settle(stage);
    assert_false(site.ended); /* what is told to the disks needs them */
    world_run_for(stage->world, 2 * NS_PER_S);
    assert_true(site.ended && site.exports.away);
    for (unsigned i = 0; i < STAGE_DISKS; i++)
        front_free(&site, &site.fronts[i]);
    world_kill(stage->world, SITE_VMM);
}

/* ---- a daemon that awaits the VM ---- */

struct heir { /* the second daemon: its files are opened when its VMM wants a disk */
    struct site site;
    struct io *control, *io[STAGE_DISKS];
    struct node stand_ins[STAGE_DISKS];
    struct vm *vm;
    bool wanted;
};

static void heir_wanted(void *argument)
{
    container_of((struct site *)argument, struct heir, site)->wanted = true;
}

static void heir_await(struct heir *heir, struct stage *stage)
{
    const unsigned process = 50;
    site_options(&heir->site, stage, "there");
    heir->control = world_reactor(stage->world, "there", process);
    for (unsigned i = 0; i < STAGE_DISKS; i++) {
        heir->io[i] = world_reactor(stage->world, heir->site.options.disks[i].name, process);
        heir->stand_ins[i] = (struct node){.io = heir->io[i], .size_bytes = STAGE_DISK_BYTES, .alignment_bytes = 512};
    }
    world_act_as(stage->world, heir->control);
    vhost_exports_start(&heir->site.exports, heir->control, NULL, heir->stand_ins, &heir->site.options, heir_wanted,
                        site_started, &heir->site);
    world_act_as(stage->world, NULL);
    STAGE_STEP_UNTIL(stage, heir->site.started);
}

/* 0, or why the disk can't be had yet. */
static int heir_open(struct heir *heir, struct stage *stage, unsigned disk)
{
    struct error err;
    struct node *leaf;
    const struct file_options options = {.path = heir->site.options.disks[disk].name};
    world_act_as(stage->world, heir->io[disk]);
    int status = file_open(heir->io[disk], &options, &leaf, &err);
    world_act_as(stage->world, heir->control);
    if (status == 0)
        assert_int_equal(vm_add_disk(heir->vm, options.path, leaf, 0, &err), 0);
    world_act_as(stage->world, NULL);
    return status;
}

/* The guest's last write at the first daemon has not landed when that is killed, and the guest writes the same block at the
 * second one: that waits until nothing of the first is in flight, so the later write stays (C10, C14). */
static void two_daemons_are_never_two_writers(void **state)
{
    struct stage *stage = *state;
    static struct site site;
    static struct heir heir;
    struct error err;
    site_begin(&site, stage, true);
    heir_await(&heir, stage);
    site_fronts(&heir.site, SITE_VMM + 1);
    struct stage_request *lost = calloc(1, sizeof *lost); /* the killed daemon's for ever */
    stage_write(stage, lost, 1, 5, 1, 55);                /* somebody else's, NBD's: it holds nobody up that stops */
    for (unsigned i = 0; i < STAGE_DISKS; i++) {
        front_stop(&site, i);
        STAGE_STEP_UNTIL(stage, site.fronts[i].answered);
        front_hang_up(&site, &site.fronts[i]);
    }
    stage_settle(stage);
    stage_hold(stage, WORLD_WRITE, 1); /* what is in flight when it dies */
    struct stage_request *last = calloc(1, sizeof *last);
    stage_write(stage, last, 1, 6, 1, 66);
    world_run_for(stage->world, NS_PER_MS);
    for (unsigned i = 0; i < STAGE_DISKS; i++)
        front_set_up(&heir.site, i, false);
    front_start(&heir.site, 1);
    front_write(&heir.site, 1, 6, 67);
    STAGE_STEP_UNTIL(stage, heir.wanted);
    const struct vm_options options = {.name = "stage",
                                       .ram_bytes = stage->options.ram_bytes,
                                       .block_bytes = STAGE_BLOCK,
                                       .segment_bytes = stage->options.segment_bytes};
    world_act_as(stage->world, heir.control);
    heir.vm = vm_create(heir.control, &options);
    world_act_as(stage->world, NULL);
    assert_int_equal(heir_open(&heir, stage, 0), -EAGAIN); /* the first daemon lives */
    stage_kill(stage);
    uint64_t waited_ns = world_now(stage->world);
    int status[STAGE_DISKS] = {-EAGAIN, -EAGAIN};
    for (unsigned i = 0; i < STAGE_DISKS; i++) {
        while (status[i] != 0) {
            assert_int_not_equal(world_file_bytes(stage->files[1])[6 * STAGE_BLOCK], 67);
            world_run_for(stage->world, 10 * NS_PER_MS);
            status[i] = heir_open(&heir, stage, i);
        }
    }
    waited_ns = world_now(stage->world) - waited_ns;
    assert_true(waited_ns < 10 * NS_PER_S);
    world_act_as(stage->world, heir.control);
    assert_int_equal(vm_start(heir.vm, &err), 0);
    vhost_exports_open(&heir.site.exports, heir.vm);
    world_act_as(stage->world, NULL);
    STAGE_STEP_UNTIL(stage, front_has_written(&heir.site.fronts[1]));
    world_run_for(stage->world, 10 * NS_PER_S);
    assert_int_equal(world_file_bytes(stage->files[1])[6 * STAGE_BLOCK], 67);
    assert_int_equal(world_file_bytes(stage->files[1])[5 * STAGE_BLOCK], 55);
    stage->control = heir.control; /* of whom there is one now */
    stage->vm = heir.vm;
    stage->caches_open = 0;
    site_end(&heir.site);
    world_kill(stage->world, SITE_VMM + 1);
    for (unsigned i = 0; i < STAGE_DISKS; i++)
        front_free(&site, &site.fronts[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        STAGE_TEST(the_last_disk_waits, .disk_count = 2),
        STAGE_TEST(back_too_soon_and_gone_again, .disk_count = 2),
        STAGE_TEST(gone_again_before_all_disks_know, .disk_count = 2),
        STAGE_TEST(a_vmm_that_dies_while_it_asks, .disk_count = 2),
        cmocka_unit_test(killed_in_each_moment_of_the_parting),
        STAGE_TEST(a_migration_that_was_given_up_costs_nothing, .disk_count = 2, .restartable = true),
        STAGE_TEST(no_log_before_that_is_noted, .disk_count = 2),
        STAGE_TEST(only_a_log_tells, .disk_count = 2),
        STAGE_TEST(an_end_in_the_leaving, .disk_count = 2),
        STAGE_TEST(two_daemons_are_never_two_writers, .disk_count = 2, .restartable = true),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
