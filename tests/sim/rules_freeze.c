/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a VM does with a guest that can be frozen: when, for how long, and what becomes of its snapshot when that fails. The
 * freezer itself is in freezer_test.c and freezer_hooks_test.c; here it is a script.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/limits.h"
#include "stage.h"
#include "vm/vm_private.h"

static struct script {
    struct stage *stage;
    void (*frozen)(void *argument, const struct error *err);
    void *frozen_argument;
    void (*settled)(void *argument, enum consistency consistency, const char *reason, uint64_t frozen_ns);
    void *settled_argument;
    unsigned freezes, thaws, cancels;
    bool cut_at_thaw; /* all disks had their points in the graph */
} script;

static void freeze(void *context, const char *snapshot, void (*frozen)(void *argument, const struct error *err),
                   void *argument)
{
    (void)context;
    assert_true(snapshot[0] != '\0');
    script.frozen = frozen;
    script.frozen_argument = argument;
    script.freezes++;
}

static void freeze_cancel(void *context)
{
    (void)context;
    assert_non_null(script.frozen);
    script.frozen = NULL;
    script.cancels++;
}

static void thaw(void *context,
                 void (*settled)(void *argument, enum consistency consistency, const char *reason, uint64_t frozen_ns),
                 void *argument)
{
    (void)context;
    script.settled = settled;
    script.settled_argument = argument;
    script.thaws++;
    script.cut_at_thaw = script.stage->disks[0]->filter && script.stage->disks[1]->filter;
}

static void say_frozen(void *argument)
{
    const struct error *err = argument;
    void (*frozen)(void *, const struct error *) = script.frozen;
    assert_non_null(frozen);
    script.frozen = NULL;
    frozen(script.frozen_argument, err);
}

static void say_settled(void *argument)
{
    const char *reason = argument;
    void (*settled)(void *, enum consistency, const char *, uint64_t) = script.settled;
    assert_non_null(settled);
    script.settled = NULL;
    settled(script.settled_argument, reason ? CONSISTENT_CRASH : CONSISTENT_AGENT, reason, 7 * NS_PER_MS);
}

static struct stage *begin(void **state)
{
    struct stage *stage = *state;
    script = (struct script){.stage = stage};
    stage->vm->options.hooks.freeze = freeze;
    stage->vm->options.hooks.freeze_cancel = freeze_cancel;
    stage->vm->options.hooks.thaw = thaw;
    return stage;
}

static struct stage_snapshot *create(struct stage *stage, const char *name, enum consistency_wish wish)
{
    const struct snapshot_options options = {.consistency = wish, .lease = stage->leases ? stage : NULL};
    struct stage_snapshot *snapshot = stage_create_with(stage, name, &options);
    stage_settle(stage);
    return snapshot;
}

static struct snapshot_info info_of(const struct stage *stage, const char *name)
{
    struct snapshot_info info;
    struct snapshot *snapshot = vm_snapshot_find(stage->vm, name);
    assert_non_null(snapshot);
    snapshot_info(snapshot, &info);
    return info;
}

/* Frozen when all is prepared; thawed when it is cut; told when it is known how that was. The guest's I/O goes on. */
static void frozen_for_the_cut_only(void **state)
{
    struct stage *stage = begin(state);
    struct stage_request before = {0}, after = {0};
    struct stage_snapshot *snapshot = create(stage, "s", CONSISTENCY_AUTO);
    assert_true(script.freezes == 1 && script.thaws == 0 && !snapshot->answered);
    assert_non_null(stage->vm->disks[1].cbw); /* prepared, */
    assert_null(stage->disks[1]->filter);     /* and not cut */
    stage_write(stage, &before, 0, 5, 1, 201);
    stage_settle(stage);
    assert_true(stage_succeeded(&before));
    world_call(stage->control, say_frozen, NULL);
    stage_settle(stage);
    assert_true(script.thaws == 1 && script.cut_at_thaw && !snapshot->answered);
    stage_write(stage, &after, 0, 5, 1, 202);
    stage_settle(stage);
    assert_true(stage_succeeded(&after));
    world_call(stage->control, say_settled, NULL);
    stage_settle(stage);
    assert_true(snapshot->created);
    assert_int_equal(stage_value(stage, snapshot, 0, 5), 201);
    const struct snapshot_info info = info_of(stage, "s");
    assert_int_equal(info.consistency, CONSISTENT_AGENT);
    assert_null(info.consistency_reason);
    assert_int_equal(info.frozen_ns, 7 * NS_PER_MS);
    create(stage, "t", CONSISTENCY_CRASH);
    assert_int_equal(script.freezes, 1);
    assert_int_equal(info_of(stage, "t").consistency, CONSISTENT_CRASH);
}

/* It can't be frozen, or was not still until the cut. */
static void without_the_guest(void **state)
{
    struct stage *stage = begin(state);
    struct error err = {EIO, "nobody is there"};
    for (unsigned late = 0; late < 2; late++) {
        struct stage_snapshot *snapshot = create(stage, late ? "b" : "a", CONSISTENCY_AUTO);
        world_call(stage->control, say_frozen, late ? NULL : &err);
        stage_settle(stage);
        if (late)
            world_call(stage->control, say_settled, err.text);
        stage_settle(stage);
        assert_true(snapshot->created && script.thaws == late); /* nothing to thaw where nothing froze */
        assert_int_equal(info_of(stage, snapshot->name).consistency, CONSISTENT_CRASH);
        assert_string_equal(info_of(stage, snapshot->name).consistency_reason, err.text);
        stage_delete(stage, snapshot);
        stage_settle(stage);
        assert_true(snapshot->deleted);

        snapshot = create(stage, late ? "d" : "c", CONSISTENCY_REQUIRED);
        world_call(stage->control, say_frozen, late ? NULL : &err);
        stage_settle(stage);
        assert_true(late || snapshot->answered);
        if (late)
            world_call(stage->control, say_settled, err.text);
        stage_settle(stage);
        assert_true(snapshot->answered && !snapshot->created);
        assert_int_equal(snapshot->code, EAGAIN);
        assert_non_null(strstr(snapshot->text, "refused: nobody is there"));
        assert_null(stage->disks[0]->filter);
    }
    stage->vm->options.hooks.freeze = NULL;
    struct stage_snapshot *snapshot = create(stage, "e", CONSISTENCY_REQUIRED);
    assert_int_equal(snapshot->code, EINVAL);
}

static void end_leases(void *argument)
{
    struct stage *stage = argument;
    vm_lease_end(stage->vm, stage);
}

/* Its client goes while the guest freezes; the next one has its turn. */
static void the_client_goes_meanwhile(void **state)
{
    struct stage *stage = begin(state);
    stage->leases = true;
    struct stage_snapshot *snapshot = create(stage, "s", CONSISTENCY_AUTO),
                          *next = create(stage, "t", CONSISTENCY_AUTO);
    assert_int_equal(script.freezes, 1);
    world_call(stage->control, end_leases, stage);
    stage_settle(stage);
    assert_true(snapshot->answered && !snapshot->created && next->answered && !next->created);
    assert_int_equal(script.cancels, 1);
    assert_null(stage->disks[0]->filter);
    stage->leases = false;
    snapshot = create(stage, "u", CONSISTENCY_AUTO);
    world_call(stage->control, say_frozen, NULL);
    stage_settle(stage);
    world_call(stage->control, say_settled, NULL);
    stage_settle(stage);
    assert_true(snapshot->created);
}

/* The cut is refused: the guest thaws at once, and the snapshot stays until it is known that it has. */
static void a_cut_that_fails_thaws(void **state)
{
    struct stage *stage = begin(state);
    struct stage_request stuck = {0};
    const struct snapshot_options options = {.drain_ns = 5 * NS_PER_MS, .total_ns = 5 * NS_PER_MS};
    stage_write_held(stage, WORLD_WRITE, &stuck, 1, 3, 1, 200);
    struct stage_snapshot *snapshot = stage_create_with(stage, "s", &options);
    stage_settle(stage); /* freezing does not take from the time of the cut */
    world_run_for(stage->world, NS_PER_S);
    assert_false(snapshot->answered);
    world_call(stage->control, say_frozen, NULL);
    stage_settle(stage);
    assert_true(script.thaws == 1 && !snapshot->answered);
    world_call(stage->control, say_settled, NULL);
    stage_settle(stage);
    assert_true(snapshot->answered && !snapshot->created);
    assert_int_equal(snapshot->code, ETIMEDOUT);
    stage_let_go(stage);
    stage_settle(stage);
    assert_true(stage_succeeded(&stuck));
}

/* A restart: the next daemon knows how consistent it is. */
static void it_is_known_after_a_restart(void **state)
{
    struct stage *stage = begin(state);
    create(stage, "s", CONSISTENCY_AUTO);
    world_call(stage->control, say_frozen, NULL);
    stage_settle(stage);
    world_call(stage->control, say_settled, NULL);
    stage_settle(stage);
    struct error err = {EIO, "nobody is there"};
    create(stage, "t", CONSISTENCY_AUTO);
    world_call(stage->control, say_frozen, &err);
    stage_settle(stage);
    stage_kill(stage);
    stage_restart(stage);
    assert_int_equal(info_of(stage, "s").consistency, CONSISTENT_AGENT);
    assert_int_equal(info_of(stage, "s").frozen_ns, 7 * NS_PER_MS);
    assert_int_equal(info_of(stage, "t").consistency, CONSISTENT_CRASH);
    assert_string_equal(info_of(stage, "t").consistency_reason, "nobody is there");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        STAGE_TEST(frozen_for_the_cut_only, .disk_count = 2),
        STAGE_TEST(without_the_guest, .disk_count = 2),
        STAGE_TEST(the_client_goes_meanwhile, .disk_count = 2),
        STAGE_TEST(a_cut_that_fails_thaws, .disk_count = 2),
        STAGE_TEST(it_is_known_after_a_restart, .disk_count = 2, .restartable = true),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
