/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "freezer_scene.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "base/limits.h"
#include "guest/freeze_record.h"

enum { AGENT_PROCESS = 1000 };

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
        .agent = !scene->use_agent ? NULL
                 : scene->agent    ? scene->agent
                                   : GUEST_ADDRESS,
        .hook_folder = scene->use_hooks ? scene->hooks : NULL,
        .record_path = scene->record,
        .timeout_ns = scene->timeout_ns,
    };
    scene->freezer = freezer_create(scene->io, &options);
    assert_non_null(scene->freezer);
    freezer_recover(scene->freezer);
}

void wish(void *argument)
{
    struct scene *scene = argument;
    scene->asked++;
    scene->wished_ns = world_now(scene->world);
    freezer_freeze(scene->freezer, "nightly", frozen, scene);
}

/* A daemon begins; its predecessor has been killed. */
void daemon_begin(struct scene *scene)
{
    scene->process++;
    scene->io = world_reactor(scene->world, "control", scene->process);
    world_call(scene->io, freezer_begin, scene);
}

bool is_idle(void *argument)
{
    const struct scene *scene = argument;
    struct freezer_status status;
    freezer_status(scene->freezer, &status);
    return strcmp(status.state, "idle") == 0 && scene->frozen_count + scene->failed_count == scene->asked &&
           scene->settled_count == scene->frozen_count;
}

void write_hook(const struct scene *scene, const char *name, const char *script, mode_t mode)
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

void scene_begin(struct scene *scene, uint64_t seed)
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

void stop(void *argument)
{
    struct scene *scene = argument;
    freezer_stop(scene->freezer, stopped, scene);
}

bool has_stopped(void *argument)
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
void scene_end(struct scene *scene)
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
void story(struct scene *scene)
{
    daemon_begin(scene);
    world_call(scene->io, wish, scene);
    assert_true(world_run_until(scene->world, is_idle, scene, 100 * NS_PER_S));
    assert_true(scene->answered_ns <= scene->wished_ns + TIMEOUT_NS);
}

void read_log(const struct scene *scene, char text[1000])
{
    FILE *file = fopen(scene->log, "r");
    size_t length = file ? fread(text, 1, 999, file) : 0;
    text[length] = 0;
    if (file)
        fclose(file);
}

static void frozen_without_a_cut(void *argument, const struct error *err)
{
    struct scene *scene = argument;
    assert_null(err);
    scene->frozen_count++;
}

void wish_without_a_cut(void *argument)
{
    struct scene *scene = argument;
    freezer_freeze(scene->freezer, "s", frozen_without_a_cut, scene);
}

void thaw_now(void *argument)
{
    struct scene *scene = argument;
    freezer_thaw(scene->freezer, settled, scene);
}

bool is_still(void *argument)
{
    return ((struct scene *)argument)->frozen_count == 1;
}

/* A daemon is killed while the guest is frozen by its agent and its hooks, if there are any. */
void leave_frozen(struct scene *scene)
{
    daemon_begin(scene);
    world_call(scene->io, wish_without_a_cut, scene);
    assert_true(world_run_until(scene->world, is_still, scene, TIMEOUT_NS));
    world_kill(scene->world, scene->process);
    scene->frozen_count = 0;
}

/* The guest's VMM hangs up its socket, and listens at another address. */
void move_agent(struct scene *scene, const char *address)
{
    const unsigned frozen = scene->guest.frozen;
    world_kill(scene->world, AGENT_PROCESS);
    world_run_for(scene->world, NS_PER_S);
    scene->guest = (struct guest){.address = address, .frozen = frozen};
    scene->guest.io = world_reactor(scene->world, "guest moved", AGENT_PROCESS);
    world_call(scene->guest.io, guest_start, &scene->guest);
}

void kill_agent(struct scene *scene)
{
    world_kill(scene->world, AGENT_PROCESS);
}
