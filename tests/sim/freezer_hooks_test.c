/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Hooks, which are real programs, around a freeze: their order, what fails, hangs and vanishes, whom they may belong to. */
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
#include "freezer_scene.h"
#include "guest/freeze_record.h"

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
    for (unsigned tries = 0; tries < 30000 && (file = fopen(path, "r")) != NULL;
         tries++) { /* it dies in its own time */
        assert_int_equal(fscanf(file, "%*d (%*[^)]) %c", &state), 1);
        fclose(file);
        if (state == 'Z' || state == 'X')
            return false;
        usleep(10000);
    }
    return file != NULL;
}

/* Three hooks, of which the second is that; the freeze has failed. */
static void fail_by_a_hook(struct scene *scene, const char *script, uint64_t timeout_ns)
{
    scene_begin(scene, 1);
    scene->use_hooks = true;
    write_hook(scene, "1", "", 0755);
    write_hook(scene, "2", script, 0755);
    write_hook(scene, "3", "", 0755);
    scene->timeout_ns = timeout_ns;
    daemon_begin(scene);
    world_call(scene->io, wish, scene);
    assert_true(world_run_until(scene->world, is_idle, scene, 100 * NS_PER_S));
    assert_int_equal(scene->failed_count, 1);
}

/* The first hook and the second are undone, the third has not begun. */
static void check_undone(const struct scene *scene, const char *failure)
{
    char log[1000];
    assert_non_null(strstr(scene->error.text, failure));
    read_log(scene, log);
    assert_string_equal(log, "1 freeze web1 nightly\n2 freeze web1 nightly\n"
                             "2 thaw web1 nightly\n1 thaw web1 nightly\n");
    assert_int_equal(scene->guest.freezes, 0);
}

static void a_hook_that_fails_is_undone(void **state)
{
    (void)state;
    struct scene scene;
    fail_by_a_hook(&scene, "[ $1 = thaw ]", TIMEOUT_NS);
    check_undone(&scene, "failed with status 1");
    scene_end(&scene);
    fail_by_a_hook(&scene, "[ $1 = thaw ] || kill -9 $$", TIMEOUT_NS);
    check_undone(&scene, "ended by signal 9");
    scene_end(&scene);
}

/* It hangs with a child of its own. The timeout passes in earnest, and where others have the processor it may be over before
 * the hook has come so far: then once more, with a longer one. */
static void a_hook_that_hangs_is_undone(void **state)
{
    (void)state;
    struct scene scene;
    struct stat child = {0};
    char path[200];
    for (uint64_t timeout_ns = 300 * NS_PER_MS;; timeout_ns *= 4) {
        fail_by_a_hook(&scene, "[ $1 = thaw ] || { sleep 1000 & echo $! >${0%/*}/../child; wait; }", timeout_ns);
        snprintf(path, sizeof path, "%s/child", scene.folder);
        if ((stat(path, &child) == 0 && child.st_size > 0) || timeout_ns > 10 * NS_PER_S)
            break;
        scene_end(&scene);
    }
    check_undone(&scene, "did not end within");
    assert_false(child_lives(&scene));
    scene_end(&scene);
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

/* What a hook has frozen does not wait for a guest that is deaf, and is not thawed with it again and again. */
static void hooks_do_not_wait_for_the_agent(void **state)
{
    (void)state;
    struct scene scene;
    char log[1000];
    scene_begin(&scene, 1);
    scene.use_hooks = true;
    write_hook(&scene, "1", "", 0755);
    write_hook(&scene, "2", "", 0755);
    daemon_begin(&scene);
    world_call(scene.io, wish_without_a_cut, &scene);
    assert_true(world_run_until(scene.world, is_still, &scene, TIMEOUT_NS));
    scene.guest.deaf = true;
    world_call(scene.io, thaw_now, &scene);
    world_run_for(scene.world, 60 * NS_PER_S);
    assert_int_equal(scene.guest.frozen, FILE_SYSTEMS);
    read_log(&scene, log);
    assert_string_equal(log, "1 freeze web1 s\n2 freeze web1 s\n2 thaw web1 s\n1 thaw web1 s\n");
    scene.guest.deaf = false;
    scene.asked = 1;
    scene_end(&scene);
}

/* A daemon that ends runs a hook that fails to thaw once more, and waits no longer; nor for an agent that is gone. */
static void the_end_does_not_wait_for_what_fails(void **state)
{
    (void)state;
    for (unsigned gone = 0; gone < 2; gone++) {
        struct scene scene;
        struct freeze_record record;
        char log[1000], path[200];
        scene_begin(&scene, 1);
        scene.use_hooks = true;
        write_hook(&scene, "1", "[ $1 = freeze ] || [ -e ${0%/*}/../well ]", 0755);
        daemon_begin(&scene);
        world_call(scene.io, wish_without_a_cut, &scene);
        assert_true(world_run_until(scene.world, is_still, &scene, TIMEOUT_NS));
        scene.still_at_cut = true;
        if (gone)
            move_agent(&scene, "unix:/moved.sock");
        world_call(scene.io, thaw_now, &scene);
        world_run_for(scene.world, NS_PER_S);
        world_call(scene.io, stop, &scene);
        assert_true(world_run_until(scene.world, has_stopped, &scene, NS_PER_S));
        assert_false(scene.thawed_at_stop);
        read_log(&scene, log);
        assert_string_equal(log, "1 freeze web1 s\n1 thaw web1 s\n1 thaw web1 s\n");
        assert_int_equal(freeze_record_load(scene.record, &record, NULL), 0);
        assert_true(record.hooks.count == 1 && (record.agent[0] || !gone));
        freezer_destroy(scene.freezer);
        scene.stopped = false;
        scene.frozen_count = scene.settled_count = 0;
        scene.agent = gone ? "unix:/moved.sock" : NULL;
        snprintf(path, sizeof path, "%s/well", scene.folder);
        fclose(fopen(path, "w"));
        daemon_begin(&scene);
        scene_end(&scene);
    }
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

/* It has frozen nothing, so nothing is to be thawed, and the next freeze need not wait for that. */
static void a_hook_that_cannot_be_started_is_not_run_again(void **state)
{
    (void)state;
    struct scene scene;
    char log[1000], path[200];
    scene_begin(&scene, 1);
    scene.use_hooks = true;
    write_hook(&scene, "1", "", 0755);
    write_hook(&scene, "2", "", 0755);
    snprintf(path, sizeof path, "%s/2", scene.hooks);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs("#!/no/such/shell\n", file);
    fclose(file);
    story(&scene);
    assert_int_equal(scene.failed_count, 1);
    assert_non_null(strstr(scene.error.text, "hooks/2 can't be started"));
    read_log(&scene, log);
    assert_string_equal(log, "1 freeze web1 nightly\n1 thaw web1 nightly\n");
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hooks_run_in_order_and_back),
        cmocka_unit_test(a_hook_that_fails_is_undone),
        cmocka_unit_test(a_hook_that_hangs_is_undone),
        cmocka_unit_test(a_hook_that_does_not_thaw_is_run_again),
        cmocka_unit_test(hooks_do_not_wait_for_the_agent),
        cmocka_unit_test(the_end_does_not_wait_for_what_fails),
        cmocka_unit_test(a_hook_that_is_gone_is_not_waited_for),
        cmocka_unit_test(a_hook_that_cannot_be_started_is_not_run_again),
        cmocka_unit_test(no_hook_freezes_nothing),
        cmocka_unit_test(hooks_of_strangers_are_not_run),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
