/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A VM that goes on elsewhere, as scripts: what is under way in the moment in which its guest stops ends with its reason
 * (L12, R4), and is broken for the next daemon as well (C12). How its front-ends say so: rules_parting.c; what a seed
 * decides: vhost_migration.c.
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
#include "vm/vm_private.h"

static const char reason[] = "the VM migrates: this is a test";

/* ---- the VM alone ---- */

static void has_left(void *argument)
{
    *(bool *)argument = true;
}

static void begin_to_leave(struct stage *stage, bool *left)
{
    *left = false;
    world_act_as(stage->world, stage->control);
    vm_leave(stage->vm, reason, has_left, left);
    world_act_as(stage->world, NULL);
}

static void leave(struct stage *stage)
{
    bool left;
    begin_to_leave(stage, &left);
    STAGE_STEP_UNTIL(stage, left);
}

static void come_back(struct stage *stage)
{
    world_act_as(stage->world, stage->control);
    vm_come_back(stage->vm);
    world_act_as(stage->world, NULL);
}

static void check_refused(struct stage *stage, const char *name)
{
    struct stage_snapshot *snapshot = stage_create(stage, name, 0);
    assert_true(snapshot->answered && !snapshot->created);
    assert_non_null(strstr(snapshot->text, reason));
}

/* The guest stops in each moment of the making of a snapshot, and after it. */
static void no_snapshot_outlives_the_leaving(void **state)
{
    struct stage *stage = *state;
    unsigned taken = 0, refused = 0;
    for (unsigned steps = 0; steps < 30; steps++) {
        char name[16];
        snprintf(name, sizeof name, "s%u", steps);
        struct stage_snapshot *snapshot = stage_create(stage, name, 0);
        for (unsigned i = 0; i < steps; i++)
            (void)world_step(stage->world);
        leave(stage);
        const bool was_there = snapshot->created;
        stage_settle(stage);
        assert_true(snapshot->answered && snapshot->created == was_there);
        if (snapshot->created) {
            assert_true(snapshot->broken);
            assert_string_equal(snapshot->reason, reason);
            assert_int_equal(stage_value(stage, snapshot, 0, 1), -EIO);
            assert_int_equal(stage_value(stage, snapshot, 1, 1), -EIO);
            stage_delete(stage, snapshot);
            taken++;
        } else {
            assert_int_equal(snapshot->code, ECANCELED);
            assert_non_null(strstr(snapshot->text, reason));
            assert_null(vm_snapshot_find(stage->vm, name));
            refused++;
        }
        stage_settle(stage);
        come_back(stage);
    }
    assert_true(taken > 3 && refused > 3);
    assert_null(stage->disks[0]->filter); /* nothing is left (R7) */
    assert_int_equal(stage_value(stage, stage_snapshot(stage, "last"), 1, 4), stage_first_value(1, 4));
}

/* A cut is waiting for a write that does not come back: it is not taken, however that write ends. */
static void a_cut_in_progress_is_not_taken(void **state)
{
    struct stage *stage = *state;
    struct stage_request stuck = {0};
    stage_write_held(stage, WORLD_WRITE, &stuck, 1, 3, 1, 200);
    struct stage_snapshot *snapshot = stage_create(stage, "s", 0);
    STAGE_STEP_UNTIL(stage, stage->disks[0]->holding && stage->disks[1]->holding);
    leave(stage); /* waits for no request */
    stage_let_go(stage);
    stage_settle(stage);
    assert_true(stuck.done && snapshot->answered && !snapshot->created);
    assert_non_null(strstr(snapshot->text, reason));
    assert_null(snapshot->views[0]); /* it was cut, but nobody was shown it */
    assert_false(stage->disks[0]->holding || stage->disks[1]->holding);
    check_refused(stage, "t");
}

/* Two wait behind one that is being cut: none of the three is taken. */
static void those_that_wait_are_not_taken(void **state)
{
    struct stage *stage = *state;
    struct stage_request stuck = {0};
    stage_write_held(stage, WORLD_WRITE, &stuck, 0, 3, 1, 200);
    struct stage_snapshot *all[] = {stage_create(stage, "a", 0), stage_create(stage, "b", 0),
                                    stage_create(stage, "c", 0)};
    STAGE_STEP_UNTIL(stage, stage->disks[0]->holding);
    leave(stage);
    stage_let_go(stage);
    stage_settle(stage);
    for (unsigned i = 0; i < 3; i++) {
        assert_true(all[i]->answered && !all[i]->created);
        assert_non_null(strstr(all[i]->text, reason));
    }
}

static struct {
    void (*frozen)(void *argument, const struct error *err);
    unsigned cancels, thaws;
} freezer;

static void freeze(void *context, const char *snapshot, void (*frozen)(void *argument, const struct error *err),
                   void *argument)
{
    (void)context;
    (void)snapshot;
    (void)argument;
    freezer.frozen = frozen;
}

static void freeze_cancel(void *context)
{
    (void)context;
    assert_non_null(freezer.frozen);
    freezer.frozen = NULL;
    freezer.cancels++;
}

static void thaw(void *context,
                 void (*settled)(void *argument, enum consistency consistency, const char *why, uint64_t frozen_ns),
                 void *argument)
{
    (void)context;
    (void)settled;
    (void)argument;
    freezer.thaws++;
}

/* A guest that is being frozen stops: the freeze is taken back, so it thaws. */
static void a_freeze_in_progress_is_taken_back(void **state)
{
    struct stage *stage = *state;
    memset(&freezer, 0, sizeof freezer);
    stage->vm->options.hooks.freeze = freeze;
    stage->vm->options.hooks.freeze_cancel = freeze_cancel;
    stage->vm->options.hooks.thaw = thaw;
    struct stage_snapshot *snapshot = stage_create(stage, "s", 0);
    STAGE_STEP_UNTIL(stage, freezer.frozen != NULL);
    leave(stage);
    stage_settle(stage);
    assert_int_equal(freezer.cancels, 1);
    assert_int_equal(freezer.thaws, 0);
    assert_true(snapshot->answered && !snapshot->created);
    assert_non_null(strstr(snapshot->text, reason));
}

static void grown(void *argument, uint64_t size_bytes, const struct error *err)
{
    (void)size_bytes;
    struct error *into = argument;
    *into = err ? *err : (struct error){.code = -1};
}

/* No disk grows of a VM that is away; and a disk that can't grow says so when it is back. */
static void no_disk_grows_that_is_away(void **state)
{
    struct stage *stage = *state;
    struct error err = {0};
    leave(stage);
    world_act_as(stage->world, stage->control);
    vm_disk_grow(stage->vm, "vda", 2 * STAGE_DISK_BYTES, grown, &err);
    world_act_as(stage->world, NULL);
    assert_int_equal(err.code, EBUSY);
    assert_non_null(strstr(err.text, reason));
    come_back(stage);
}

/* One that waited for its turn when the VM went does not begin either. */
static void no_disk_that_waits_grows_when_away(void **state)
{
    struct stage *stage = *state;
    struct stage_request stuck = {0};
    struct error err = {0};
    stage_write_held(stage, WORLD_WRITE, &stuck, 1, 3, 1, 200);
    struct stage_snapshot *snapshot = stage_create(stage, "s", 0);
    STAGE_STEP_UNTIL(stage, stage->disks[0]->holding && stage->disks[1]->holding);
    world_act_as(stage->world, stage->control);
    vm_disk_grow(stage->vm, "vda", 2 * STAGE_DISK_BYTES, grown, &err);
    world_act_as(stage->world, NULL);
    assert_int_equal(err.code, 0);
    leave(stage);
    stage_let_go(stage);
    stage_settle(stage);
    assert_true(snapshot->answered && !snapshot->created);
    assert_int_equal(err.code, EBUSY);
    assert_non_null(strstr(err.text, reason));
    assert_int_equal(stage->disks[0]->leaf->size_bytes, STAGE_DISK_BYTES);
    come_back(stage);
}

/* It has not left before that is durable (C20); coming back waits for nothing, and is noted after that. */
static void nobody_leaves_before_that_is_noted(void **state)
{
    struct stage *stage = *state;
    bool left;
    stage_note_away(stage);
    begin_to_leave(stage, &left);
    stage_settle(stage);
    assert_false(left);
    come_back(stage); /* before it was noted */
    assert_int_equal(stage->away.away, 1);
    assert_int_equal(stage->away.back, 0);
    world_call(stage->control, stage_noted, stage);
    stage_settle(stage);
    assert_int_equal(stage->away.back, 1);
    assert_false(left || stage->away.noted);
    world_call(stage->control, stage_noted, stage);
    assert_true(left);
    begin_to_leave(stage, &left);
    stage_settle(stage);
    assert_true(stage->away.noted && !left);
    world_call(stage->control, stage_noted, stage);
    STAGE_STEP_UNTIL(stage, left);
    come_back(stage); /* and it ends while that is being noted */
    assert_int_equal(stage->away.back, 2);
    stage_destroy_vm(stage);
    stage_settle(stage);
    assert_false(stage->gone);
    world_call(stage->control, stage_noted, stage);
    stage_settle(stage);
    assert_true(stage->gone);
}

/* Whoever is killed away leaves snapshots that are broken for the next daemon, too (C12). */
static void broken_for_the_next_daemon_as_well(void **state)
{
    struct stage *stage = *state;
    struct stage_snapshot *snapshot = stage_snapshot(stage, "s");
    bool left;
    stage->slow_from = stage->control; /* no disk has heard of it yet */
    stage->slow_to = stage->io[1];
    begin_to_leave(stage, &left);
    world_run_for(stage->world, NS_PER_MS);
    assert_false(left);
    stage->slow_from = stage->slow_to = NULL;
    stage_kill(stage);
    stage_restart(stage);
    assert_non_null(snapshot->views[0]);
    assert_int_equal(stage_value(stage, snapshot, 0, 1), -EIO);
    assert_int_equal(stage_value(stage, snapshot, 1, 1), -EIO);
    struct snapshot_info info;
    snapshot_info(vm_snapshot_find(stage->vm, "s"), &info);
    assert_string_equal(info.reason, reason);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        STAGE_TEST(no_snapshot_outlives_the_leaving, .disk_count = 2),
        STAGE_TEST(a_cut_in_progress_is_not_taken, .disk_count = 2),
        STAGE_TEST(those_that_wait_are_not_taken, .disk_count = 2),
        STAGE_TEST(a_freeze_in_progress_is_taken_back, .disk_count = 2),
        STAGE_TEST(no_disk_grows_that_is_away, .disk_count = 2),
        STAGE_TEST(no_disk_that_waits_grows_when_away, .disk_count = 2),
        STAGE_TEST(nobody_leaves_before_that_is_noted, .disk_count = 2),
        STAGE_TEST(broken_for_the_next_daemon_as_well, .disk_count = 2, .restartable = true),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
