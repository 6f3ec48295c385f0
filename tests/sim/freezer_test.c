/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The freezer against a guest agent that plays by a script, on a simulated machine: whatever is lost, late, wrong or closed,
 * whenever the watchdog fires and the daemon dies, in the end the guest has thawed, and the freezer has never said that it
 * was still when it was not. Hooks and the record are real files.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/limits.h"
#include "guest/freeze_record.h"
#include "guest/freezer.h"
#include "scripted_guest.h"
#include "world.h"

enum { AGENT_PROCESS = 1000 };

#define TIMEOUT_NS (10 * NS_PER_S)

struct scene {
    struct world *world;
    struct guest guest;
    struct io *io;
    unsigned process;
    struct freezer *freezer;
    char folder[64], record[96], hooks[96], log[96];
    bool use_hooks, use_agent;
    uint64_t timeout_ns;
    /* What the freezer has said: */
    unsigned frozen_count, failed_count, settled_count;
    struct error error;
    uint64_t wished_ns, answered_ns;
    struct freeze_outcome outcome;
    char reason[LIMIT_ERROR_BYTES];
    bool still_at_cut, stopped, thawed_at_stop;
    unsigned asked;
};

/* ---- the freezer's caller ---- */

static void settled(void *argument, const struct freeze_outcome *outcome)
{
    struct scene *scene = argument;
    scene->settled_count++;
    scene->outcome = *outcome;
    snprintf(scene->reason, sizeof scene->reason, "%s", outcome->reason);
    if (outcome->held)
        assert_true(scene->still_at_cut);
    else
        assert_true(outcome->reason[0]);
}

/* The cut: as soon as it is frozen. */
static void frozen(void *argument, const struct error *err)
{
    struct scene *scene = argument;
    scene->answered_ns = world_now(scene->world);
    assert_true(scene->frozen_count + scene->failed_count < scene->asked);
    if (err) {
        scene->failed_count++;
        scene->error = *err;
        return;
    }
    scene->frozen_count++;
    scene->still_at_cut = !scene->use_agent || scene->guest.frozen == FILE_SYSTEMS;
    if (scene->guest.thawed_by_itself) { /* after the freeze, before the cut */
        (void)guest_thaw(&scene->guest);
        scene->still_at_cut = false;
    }
    freezer_thaw(scene->freezer, settled, scene);
}

static void freezer_begin(void *argument)
{
    struct scene *scene = argument;
    const struct freezer_options options = {
        .vm = "web1",
        .agent = scene->use_agent ? GUEST_ADDRESS : NULL,
        .hook_folder = scene->use_hooks ? scene->hooks : NULL,
        .record_path = scene->record,
        .timeout_ns = scene->timeout_ns,
    };
    scene->freezer = freezer_create(scene->io, &options);
    assert_non_null(scene->freezer);
    freezer_recover(scene->freezer);
}

static void wish(void *argument)
{
    struct scene *scene = argument;
    scene->asked++;
    scene->wished_ns = world_now(scene->world);
    freezer_freeze(scene->freezer, "nightly", frozen, scene);
}

/* A daemon begins; its predecessor has been killed. */
static void daemon_begin(struct scene *scene)
{
    scene->process++;
    scene->io = world_reactor(scene->world, "control", scene->process);
    world_call(scene->io, freezer_begin, scene);
}

static bool is_idle(void *argument)
{
    const struct scene *scene = argument;
    struct freezer_status status;
    freezer_status(scene->freezer, &status);
    return strcmp(status.state, "idle") == 0 && scene->frozen_count + scene->failed_count == scene->asked &&
           scene->settled_count == scene->frozen_count;
}

static void write_hook(const struct scene *scene, const char *name, const char *script, mode_t mode)
{
    char path[200];
    snprintf(path, sizeof path, "%s/%s", scene->hooks, name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fprintf(file, "#!/bin/sh\nexec 2>&1\necho \"%s $1 $FLEECE_VM $FLEECE_SNAPSHOT\" >>%s\n%s\n", name, scene->log,
            script);
    fclose(file);
    assert_int_equal(chmod(path, mode), 0);
}

static void scene_begin(struct scene *scene, uint64_t seed)
{
    *scene = (struct scene){.use_agent = true, .timeout_ns = TIMEOUT_NS};
    strcpy(scene->folder, "/tmp/freezer.XXXXXX");
    assert_non_null(mkdtemp(scene->folder));
    snprintf(scene->record, sizeof scene->record, "%s/freeze", scene->folder);
    snprintf(scene->hooks, sizeof scene->hooks, "%s/hooks", scene->folder);
    snprintf(scene->log, sizeof scene->log, "%s/log", scene->folder);
    assert_int_equal(mkdir(scene->hooks, 0700), 0);
    scene->world = world_create(&(struct world_options){.seed = seed, .short_per_1024 = 100});
    scene->guest.io = world_reactor(scene->world, "guest", AGENT_PROCESS);
    world_call(scene->guest.io, guest_start, &scene->guest);
}

static void stopped(void *argument, bool thawed)
{
    struct scene *scene = argument;
    scene->stopped = true;
    scene->thawed_at_stop = thawed;
}

static void stop(void *argument)
{
    struct scene *scene = argument;
    freezer_stop(scene->freezer, stopped, scene);
}

static bool has_stopped(void *argument)
{
    return ((struct scene *)argument)->stopped;
}

static void scene_remove_files(const struct scene *scene)
{
    char command[200];
    snprintf(command, sizeof command, "rm -r %s", scene->folder);
    assert_int_equal(system(command), 0);
}

/* All has ended well: nothing is frozen, nothing is noted. */
static void scene_end(struct scene *scene)
{
    struct freeze_record record;
    assert_true(world_run_until(scene->world, is_idle, scene, 100 * NS_PER_S));
    assert_int_equal(scene->guest.frozen, 0);
    assert_int_equal(freeze_record_load(scene->record, &record, NULL), -ENOENT);
    world_call(scene->io, stop, scene);
    assert_true(world_run_until(scene->world, has_stopped, scene, 100 * NS_PER_S));
    assert_true(scene->thawed_at_stop);
    freezer_destroy(scene->freezer);
    world_kill(scene->world, AGENT_PROCESS);
    world_run_for(scene->world, 5 * NS_PER_S);
    assert_int_equal(world_destroy(scene->world, NULL), 0);
    scene_remove_files(scene);
}

/* One freeze; the guest and what is said of it are judged. */
static void story(struct scene *scene)
{
    daemon_begin(scene);
    world_call(scene->io, wish, scene);
    assert_true(world_run_until(scene->world, is_idle, scene, 100 * NS_PER_S));
    assert_true(scene->answered_ns <= scene->wished_ns + TIMEOUT_NS);
}

static void read_log(const struct scene *scene, char text[1000])
{
    FILE *file = fopen(scene->log, "r");
    size_t length = file ? fread(text, 1, 999, file) : 0;
    text[length] = 0;
    if (file)
        fclose(file);
}

/* ---- tests ---- */

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
    world_kill(scene.world, AGENT_PROCESS);
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

static void frozen_without_a_cut(void *argument, const struct error *err)
{
    struct scene *scene = argument;
    assert_null(err);
    scene->frozen_count++;
}

static void wish_without_a_cut(void *argument)
{
    struct scene *scene = argument;
    freezer_freeze(scene->freezer, "s", frozen_without_a_cut, scene);
}

static void thaw_now(void *argument)
{
    struct scene *scene = argument;
    freezer_thaw(scene->freezer, settled, scene);
}

static void cancel_now(void *argument)
{
    struct scene *scene = argument;
    freezer_cancel(scene->freezer);
}

static bool is_still(void *argument)
{
    return ((struct scene *)argument)->frozen_count == 1;
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

/* ---- hooks ---- */

static void hooks_run_in_order_and_back(void **state)
{
    (void)state;
    struct scene scene;
    char log[1000];
    scene_begin(&scene, 1);
    scene.use_hooks = true;
    scene.use_agent = false;
    write_hook(&scene, "20-b", "", 0755);
    write_hook(&scene, "10-a", "sleep 0 & echo said", 0755);
    write_hook(&scene, "30-not-executable", "", 0644);
    write_hook(&scene, ".hidden", "", 0755);
    write_hook(&scene, "README~", "", 0755);
    story(&scene);
    assert_true(scene.outcome.held);
    read_log(&scene, log);
    assert_string_equal(log, "10-a freeze web1 nightly\n20-b freeze web1 nightly\n"
                             "20-b thaw web1 nightly\n10-a thaw web1 nightly\n");
    scene_end(&scene);
}

/* Of the hook that hangs: its group was killed, too, before the hooks after it began. */
static bool child_lives(const struct scene *scene)
{
    char path[200], state = 'X';
    long pid = 0;
    snprintf(path, sizeof path, "%s/child", scene->folder);
    FILE *file = fopen(path, "r");
    assert_true(file && fscanf(file, "%ld", &pid) == 1);
    fclose(file);
    snprintf(path, sizeof path, "/proc/%ld/stat", pid);
    for (unsigned tries = 0; tries < 1000 && (file = fopen(path, "r")) != NULL; tries++) { /* it dies in its own time */
        assert_int_equal(fscanf(file, "%*d (%*[^)]) %c", &state), 1);
        fclose(file);
        if (state == 'Z' || state == 'X')
            return false;
        usleep(10000);
    }
    return file != NULL;
}

/* The second one fails, or hangs with a child of its own: it and the first are undone, the third has not begun. */
static void a_hook_that_fails_is_undone(void **state)
{
    (void)state;
    static const char *const failures[][2] = {
        {"[ $1 = thaw ]", "failed with status 1"},
        {"[ $1 = thaw ] || kill -9 $$", "ended by signal 9"},
        {"[ $1 = thaw ] || { sleep 1000 & echo $! >${0%/*}/../child; wait; }", "did not end within"},
    };
    for (unsigned i = 0; i < 3; i++) {
        struct scene scene;
        char log[1000];
        scene_begin(&scene, 1);
        scene.use_hooks = true;
        write_hook(&scene, "1", "", 0755);
        write_hook(&scene, "2", failures[i][0], 0755);
        write_hook(&scene, "3", "", 0755);
        scene.timeout_ns = i == 2 ? 300 * NS_PER_MS : TIMEOUT_NS; /* it passes in earnest */
        daemon_begin(&scene);
        world_call(scene.io, wish, &scene);
        assert_true(world_run_until(scene.world, is_idle, &scene, 100 * NS_PER_S));
        assert_int_equal(scene.failed_count, 1);
        assert_non_null(strstr(scene.error.text, failures[i][1]));
        read_log(&scene, log);
        assert_string_equal(log, "1 freeze web1 nightly\n2 freeze web1 nightly\n"
                                 "2 thaw web1 nightly\n1 thaw web1 nightly\n");
        assert_int_equal(scene.guest.freezes, 0);
        assert_false(i == 2 && child_lives(&scene));
        scene_end(&scene);
    }
}

/* Nobody else thaws what a hook has frozen: one that fails to is run again, alone, and nothing freezes meanwhile. */
static void a_hook_that_does_not_thaw_is_run_again(void **state)
{
    (void)state;
    struct scene scene;
    struct freezer_status status;
    struct freeze_record record;
    char log[1000], path[200];
    scene_begin(&scene, 1);
    scene.use_hooks = true;
    write_hook(&scene, "1", "", 0755);
    write_hook(&scene, "2", "[ $1 = freeze ] || [ -e ${0%/*}/../well ]", 0755);
    write_hook(&scene, "3", "", 0755);
    daemon_begin(&scene);
    world_call(scene.io, wish, &scene);
    world_run_for(scene.world, 6 * NS_PER_S);
    assert_true(scene.settled_count == 1 && scene.outcome.held);
    read_log(&scene, log);
    assert_non_null(
        strstr(log, "3 thaw web1 nightly\n2 thaw web1 nightly\n1 thaw web1 nightly\n2 thaw web1 nightly\n"));
    freezer_status(scene.freezer, &status);
    assert_string_equal(status.state, "thawing");
    assert_non_null(strstr(status.trouble, "hook 2 thaw failed with status 1"));
    world_call(scene.io, wish, &scene);
    world_run_for(scene.world, NS_PER_S);
    assert_true(scene.failed_count == 1 && strstr(scene.error.text, "hook 2 thaw failed"));
    world_kill(scene.world, scene.process); /* the next daemon goes on */
    assert_int_equal(freeze_record_load(scene.record, &record, NULL), 0);
    scene.asked = scene.frozen_count = scene.failed_count = scene.settled_count = 0;
    daemon_begin(&scene);
    world_run_for(scene.world, NS_PER_S);
    freezer_status(scene.freezer, &status);
    assert_string_equal(status.state, "thawing");
    snprintf(path, sizeof path, "%s/well", scene.folder);
    fclose(fopen(path, "w"));
    scene_end(&scene);
}

/* But one that has been removed meanwhile. */
static void a_hook_that_is_gone_is_not_waited_for(void **state)
{
    (void)state;
    struct scene scene;
    scene_begin(&scene, 1);
    scene.use_hooks = true;
    scene.use_agent = false;
    write_hook(&scene, "1", "[ $1 = thaw ] || rm $0", 0755);
    story(&scene);
    scene_end(&scene);
}

/* Without a hook nothing was frozen, and the snapshot must not be called so. */
static void no_hook_freezes_nothing(void **state)
{
    (void)state;
    struct scene scene;
    scene_begin(&scene, 1);
    scene.use_hooks = true;
    scene.use_agent = false;
    write_hook(&scene, "not-executable", "", 0644);
    story(&scene);
    assert_int_equal(scene.failed_count, 1);
    assert_non_null(strstr(scene.error.text, "no program in"));
    scene_end(&scene);
}

/* Whoever may write a hook may be root's guest, but not its master. */
static void hooks_of_strangers_are_not_run(void **state)
{
    (void)state;
    static const mode_t modes[] = {0757, 0775};
    for (unsigned i = 0; i < 8; i++) {
        struct scene scene;
        char log[1000], path[200];
        scene_begin(&scene, 1);
        scene.use_hooks = true;
        write_hook(&scene, "1", "", i < 2 ? modes[i] : 0755);
        snprintf(path, sizeof path, "%s/1", scene.hooks);
        if (i == 2 || i == 3)
            assert_int_equal(chmod(scene.hooks, modes[i - 2]), 0);
        if (i >= 6) /* a folder above: theirs, or one in which they can put another in the place of ours */
            assert_int_equal(chmod(scene.folder, modes[i - 6]), 0);
        if (i == 4 && chown(path, 12345, 12345) != 0)
            assert_int_equal(chmod(path, 0757), 0); /* we are not root */
        if (i == 5) {
            char link[200];
            snprintf(link, sizeof link, "%s/2", scene.hooks);
            assert_int_equal(symlink(path, link), 0);
        }
        story(&scene);
        assert_int_equal(scene.failed_count, 1);
        assert_non_null(strstr(scene.error.text, "is not trusted"));
        read_log(&scene, log);
        assert_string_equal(log, "");
        scene_end(&scene);
    }
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
        cmocka_unit_test(the_end_of_the_daemon),
        cmocka_unit_test(hooks_run_in_order_and_back),
        cmocka_unit_test(a_hook_that_fails_is_undone),
        cmocka_unit_test(a_hook_that_does_not_thaw_is_run_again),
        cmocka_unit_test(a_hook_that_is_gone_is_not_waited_for),
        cmocka_unit_test(no_hook_freezes_nothing),
        cmocka_unit_test(hooks_of_strangers_are_not_run),
        cmocka_unit_test(a_damaged_record_is_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
