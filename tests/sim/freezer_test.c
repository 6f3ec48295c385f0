/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The freezer against a guest agent that plays by a script, on a simulated machine: whatever is lost, late, wrong or closed,
 * whenever the watchdog fires and the daemon dies, in the end the guest has thawed, and the freezer has never said that it
 * was still when it was not.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/limits.h"
#include "freezer_scene.h"
#include "guest/freeze_record.h"

static void a_freeze_is_as_long_as_the_cut(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 50; seed++) {
        struct scene scene;
        scene_begin(&scene, seed);
        story(&scene);
        assert_int_equal(scene.frozen_count, 1);
        assert_true(scene.outcome.held);
        assert_int_equal(scene.guest.freezes, 1);
        assert_int_equal(scene.guest.thaws, 1);
        assert_true(scene.guest.frozen_longest < 10 * NS_PER_MS);
        assert_true(scene.guest.frozen_longest >= scene.outcome.frozen_ns);
        scene_end(&scene);
    }
}

/* Status's sync, status, freeze's sync, freeze, thaw's sync, thaw: with each of them, everything goes wrong once. */
static void whatever_goes_wrong_it_thaws(void **state)
{
    (void)state;
    for (unsigned at = 1; at <= 6; at++)
        for (unsigned fault = LOST; fault < FAULTS; fault++) {
            if (at == 6 && fault == NONE)
                continue; /* an agent that says it has thawed, and has not, is believed */
            struct scene scene;
            scene_begin(&scene, at * 100 + fault);
            scene.guest.fault_at = at;
            scene.guest.fault = fault;
            story(&scene);
            assert_true(scene.guest.heard >= at);
            assert_true(scene.guest.thaws > 0 || scene.guest.freezes == 0);
            assert_true(scene.guest.frozen_longest < TIMEOUT_NS + 22 * NS_PER_S);
            if (fault == STALE && at % 2 == 1) /* before a sync, what others had asked for does no harm */
                assert_true(scene.outcome.held);
            scene_end(&scene);
        }
}

/* The same: what is asked next time is answered. */
static void it_freezes_again_afterwards(void **state)
{
    (void)state;
    for (unsigned at = 1; at <= 6; at++)
        for (unsigned fault = NO_FAULT; fault < FAULTS; fault++) {
            if (at == 6 && fault == NONE)
                continue;
            struct scene scene;
            scene_begin(&scene, at * 100 + fault);
            scene.guest.fault_at = at;
            scene.guest.fault = fault;
            story(&scene);
            scene.outcome.held = false;
            world_run_for(scene.world, 20 * NS_PER_S);
            world_call(scene.io, wish, &scene);
            assert_true(world_run_until(scene.world, is_idle, &scene, 100 * NS_PER_S));
            assert_true(scene.outcome.held);
            scene_end(&scene);
        }
}

static void nobody_answers(void **state)
{
    (void)state;
    struct scene scene;
    scene_begin(&scene, 1);
    scene.guest.deaf = true;
    story(&scene);
    assert_int_equal(scene.failed_count, 1);
    assert_non_null(strstr(scene.error.text, "does not answer"));
    assert_int_equal(scene.guest.heard, 1); /* no freeze waits for an agent that starts later */
    scene_end(&scene);

    scene_begin(&scene, 1);
    kill_agent(&scene);
    story(&scene);
    assert_int_equal(scene.failed_count, 1);
    assert_non_null(strstr(scene.error.text, "can't be reached"));
    scene_end(&scene);
}

/* Somebody else has frozen the guest: he thaws it. */
static void others_freezes_are_theirs(void **state)
{
    (void)state;
    struct scene scene;
    scene_begin(&scene, 1);
    scene.guest.frozen = 2;
    story(&scene);
    assert_int_equal(scene.failed_count, 1);
    assert_non_null(strstr(scene.error.text, "frozen already"));
    assert_int_equal(scene.guest.frozen, 2);
    scene.guest.frozen = 0;
    scene_end(&scene);
}

/* It has thawed before the cut, by itself. */
static void a_guest_that_was_thawed_early_is_noticed(void **state)
{
    (void)state;
    struct scene scene;
    scene_begin(&scene, 1);
    scene.guest.thawed_by_itself = true;
    story(&scene);
    assert_false(scene.outcome.held);
    assert_non_null(strstr(scene.reason, "of 3 frozen file systems only 0"));
    scene_end(&scene);
}

static void cancel_now(void *argument)
{
    struct scene *scene = argument;
    freezer_cancel(scene->freezer);
}

/* The cut takes too long: the watchdog thaws, and the caller is told when it comes. */
static void the_watchdog_thaws(void **state)
{
    (void)state;
    struct scene scene;
    scene_begin(&scene, 1);
    daemon_begin(&scene);
    world_call(scene.io, wish_without_a_cut, &scene);
    assert_true(world_run_until(scene.world, is_still, &scene, TIMEOUT_NS));
    world_run_for(scene.world, TIMEOUT_NS + NS_PER_S);
    assert_int_equal(scene.guest.frozen, 0);
    assert_true(scene.guest.frozen_longest <= TIMEOUT_NS);
    world_call(scene.io, thaw_now, &scene);
    world_run_for(scene.world, NS_PER_S);
    assert_int_equal(scene.settled_count, 1);
    assert_false(scene.outcome.held);
    assert_non_null(strstr(scene.reason, "10.0 s"));
    scene.asked = 1;
    scene_end(&scene);
}

/* Its client is gone, at any moment: nothing is said any more, all thaws. */
static void a_wish_is_taken_back(void **state)
{
    (void)state;
    for (unsigned steps = 0; steps < 60; steps++) {
        struct scene scene;
        scene_begin(&scene, steps);
        scene.use_hooks = steps % 10 == 3;
        write_hook(&scene, "10-first", "", 0755);
        daemon_begin(&scene);
        world_call(scene.io, wish_without_a_cut, &scene);
        for (unsigned i = 0; i < steps && world_step(scene.world); i++)
            ;
        const bool is_frozen = scene.frozen_count == 1;
        scene.still_at_cut = is_frozen;
        world_call(scene.io, is_frozen ? thaw_now : cancel_now, &scene);
        world_run_for(scene.world, 2 * NS_PER_S);
        assert_int_equal(scene.settled_count, is_frozen);
        assert_int_equal(scene.frozen_count, is_frozen);
        scene.asked = is_frozen;
        scene_end(&scene);
    }
}

/* kill -9 after any step of the story: the next daemon thaws, hooks and all. */
static void a_killed_daemons_freeze_is_thawed(void **state)
{
    (void)state;
    unsigned found_frozen = 0, steps = 0;
    for (bool over = false; !over; steps++) {
        struct scene scene;
        char log[1000];
        scene_begin(&scene, 1);
        scene.use_hooks = steps % 4 == 0;
        write_hook(&scene, "10-first", "", 0755);
        write_hook(&scene, "20-second", "", 0755);
        daemon_begin(&scene);
        world_call(scene.io, wish, &scene);
        for (unsigned i = 0; i < steps && !over; i++)
            over = !world_step(scene.world) || (scene.settled_count == 1 && is_idle(&scene));
        world_kill(scene.world, scene.process);
        found_frozen += scene.guest.frozen > 0;
        scene.asked = scene.frozen_count = scene.failed_count = scene.settled_count = 0;
        daemon_begin(&scene);
        assert_true(world_run_until(scene.world, is_idle, &scene, 20 * NS_PER_S));
        world_run_for(scene.world, NS_PER_S);
        assert_int_equal(scene.guest.frozen, 0);
        read_log(&scene, log);
        assert_true(!strstr(log, "10-first freeze") || strstr(log, "10-first thaw web1 nightly"));
        assert_true(!strstr(log, "20-second freeze") || strstr(log, "20-second thaw web1 nightly"));
        world_call(scene.io, wish, &scene); /* and all is as before */
        assert_true(world_run_until(scene.world, is_idle, &scene, 20 * NS_PER_S));
        assert_true(scene.outcome.held);
        scene_end(&scene);
    }
    assert_true(found_frozen > 3 && steps > 20);
}

/* The guest is away while the next daemon starts: it is thawed when it is there again. */
static void a_thaw_is_owed_until_it_is_done(void **state)
{
    (void)state;
    struct scene scene;
    struct freezer_status status;
    scene_begin(&scene, 1);
    daemon_begin(&scene);
    world_call(scene.io, wish_without_a_cut, &scene);
    assert_true(world_run_until(scene.world, is_still, &scene, TIMEOUT_NS));
    scene.guest.deaf = true;
    world_kill(scene.world, scene.process);
    scene.frozen_count = 0;
    daemon_begin(&scene);
    world_run_for(scene.world, 60 * NS_PER_S);
    freezer_status(scene.freezer, &status);
    assert_string_equal(status.state, "thawing");
    assert_non_null(strstr(status.trouble, "did not confirm"));
    world_call(scene.io, wish, &scene); /* no other freeze meanwhile: at once */
    world_run_for(scene.world, NS_PER_S);
    assert_int_equal(scene.failed_count, 1);
    assert_non_null(strstr(scene.error.text, "did not confirm"));
    scene.guest.deaf = false;
    scene_end(&scene);
}

/* The next daemon has another address for the agent, and where the last one had it nobody is any more. */
static void an_agent_that_has_moved(void **state)
{
    (void)state;
    struct scene scene;
    scene_begin(&scene, 1);
    leave_frozen(&scene);
    move_agent(&scene, "unix:/moved.sock");
    scene.agent = "unix:/moved.sock";
    daemon_begin(&scene);
    scene_end(&scene);

    scene_begin(&scene, 1); /* but while somebody is there, he is asked */
    leave_frozen(&scene);
    scene.agent = "unix:/nowhere.sock";
    daemon_begin(&scene);
    scene_end(&scene);
}

/* The next daemon has no agent, and where the last one had it nobody is any more: it tries for a while. */
static void an_agent_that_is_gone_is_given_up(void **state)
{
    (void)state;
    struct scene scene;
    struct freeze_record record;
    struct freezer_status status;
    struct error err;
    char log[1000];
    scene_begin(&scene, 1);
    scene.use_hooks = true;
    write_hook(&scene, "1", "", 0755);
    leave_frozen(&scene);
    move_agent(&scene, "unix:/moved.sock");
    scene.use_agent = false;
    daemon_begin(&scene);
    world_run_for(scene.world, THAW_GIVE_UP_NS - 2 * NS_PER_S);
    freezer_status(scene.freezer, &status);
    assert_string_equal(status.state, "thawing");
    assert_non_null(strstr(status.trouble, "can't be reached"));
    read_log(&scene, log); /* what hooks have frozen has not waited for it */
    assert_string_equal(log, "1 freeze web1 s\n1 thaw web1 s\n");
    world_run_for(scene.world, 5 * NS_PER_S);
    freezer_status(scene.freezer, &status);
    assert_string_equal(status.state, "idle");
    assert_null(status.trouble);
    assert_int_equal(freeze_record_load(scene.record, &record, &err), 0); /* for whoever knows better */
    assert_true(record.hooks.count == 0 && strcmp(record.agent, GUEST_ADDRESS) == 0);
    world_call(scene.io, wish, &scene); /* hooks freeze and thaw, which is another thing */
    world_run_for(scene.world, 5 * NS_PER_S);
    assert_true(scene.settled_count == 1 && scene.outcome.held);
    assert_int_equal(freeze_record_load(scene.record, &record, &err), 0);
    assert_true(record.hooks.count == 0 && strcmp(record.agent, GUEST_ADDRESS) == 0);
    world_call(scene.io, stop, &scene);
    assert_true(world_run_until(scene.world, has_stopped, &scene, NS_PER_S));
    assert_false(scene.thawed_at_stop);
    freezer_destroy(scene.freezer);
    scene.stopped = scene.use_hooks = false;
    scene.asked = scene.frozen_count = scene.settled_count = 0;
    scene.use_agent = true;
    scene.agent = "unix:/moved.sock";
    daemon_begin(&scene);
    scene_end(&scene);
}

/* The daemon ends in good order while the guest is frozen, and while it is deaf. */
static void the_end_of_the_daemon(void **state)
{
    (void)state;
    for (unsigned steps = 0; steps < 40; steps++) {
        struct scene scene;
        scene_begin(&scene, steps);
        daemon_begin(&scene);
        world_call(scene.io, wish, &scene);
        for (unsigned i = 0; i < steps && world_step(scene.world); i++)
            ;
        scene_end(&scene);
    }
    struct scene scene;
    struct freeze_record record;
    struct error err;
    scene_begin(&scene, 1);
    scene.timeout_ns = NS_PER_S;
    daemon_begin(&scene);
    world_call(scene.io, wish_without_a_cut, &scene);
    assert_true(world_run_until(scene.world, is_still, &scene, TIMEOUT_NS));
    scene.guest.deaf = true;
    world_call(scene.io, thaw_now, &scene);
    world_call(scene.io, stop, &scene);
    assert_true(world_run_until(scene.world, has_stopped, &scene, 2 * NS_PER_S));
    assert_false(scene.thawed_at_stop);
    assert_true(scene.settled_count == 1 && !scene.outcome.held);         /* the snapshot that waits can end */
    assert_int_equal(freeze_record_load(scene.record, &record, &err), 0); /* for the next one */
    freezer_destroy(scene.freezer);
    scene.guest.deaf = scene.stopped = false;
    scene.frozen_count = scene.settled_count = 0;
    daemon_begin(&scene);
    scene_end(&scene);
}

/* ---- the record ---- */

static void a_damaged_record_is_told(void **state)
{
    (void)state;
    struct scene scene;
    struct error err;
    struct freeze_record record = {.agent = GUEST_ADDRESS, .snapshot = "s", .hooks = {.folder = "/h", .count = 1}},
                         loaded;
    scene_begin(&scene, 1);
    strcpy(record.hooks.names[0], "x");
    record.running = (struct hook_process){999999999, 1234567890123456789};
    assert_int_equal(freeze_record_store(scene.record, &record, &err), 0);
    assert_int_equal(freeze_record_load(scene.record, &loaded, &err), 0);
    assert_memory_equal(&record, &loaded, sizeof record);
    struct stat stat;
    assert_int_equal(lstat(scene.record, &stat), 0);
    for (off_t length = stat.st_size - 2; length >= 0; length--) { /* without the end of its last line it is whole */
        assert_int_equal(truncate(scene.record, length), 0);
        assert_int_equal(freeze_record_load(scene.record, &loaded, &err), -EINVAL);
    }
    daemon_begin(&scene);
    scene_end(&scene);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_freeze_is_as_long_as_the_cut),
        cmocka_unit_test(whatever_goes_wrong_it_thaws),
        cmocka_unit_test(it_freezes_again_afterwards),
        cmocka_unit_test(nobody_answers),
        cmocka_unit_test(others_freezes_are_theirs),
        cmocka_unit_test(a_guest_that_was_thawed_early_is_noticed),
        cmocka_unit_test(the_watchdog_thaws),
        cmocka_unit_test(a_wish_is_taken_back),
        cmocka_unit_test(a_killed_daemons_freeze_is_thawed),
        cmocka_unit_test(a_thaw_is_owed_until_it_is_done),
        cmocka_unit_test(an_agent_that_has_moved),
        cmocka_unit_test(an_agent_that_is_gone_is_given_up),
        cmocka_unit_test(the_end_of_the_daemon),
        cmocka_unit_test(a_damaged_record_is_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
