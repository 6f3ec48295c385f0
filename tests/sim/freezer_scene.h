/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A freezer, its caller and a scripted guest on a simulated machine. Hooks and the record are real files. The freezer may
 * never say that the guest was still when it was not: that is asserted in every scene.
 */
#ifndef TESTS_SIM_FREEZER_SCENE_H
#define TESTS_SIM_FREEZER_SCENE_H

#include <sys/types.h>

#include "guest/freezer.h"
#include "scripted_guest.h"
#include "world.h"

#define TIMEOUT_NS (10 * NS_PER_S)

struct scene {
    struct world *world;
    struct guest guest;
    struct io *io;
    unsigned process;
    struct freezer *freezer;
    char folder[64], record[96], hooks[96], log[96];
    bool use_hooks, use_agent;
    const char *agent; /* its address, in the options; NULL: where it is at first */
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

void scene_begin(struct scene *scene, uint64_t seed);
/* All has ended well: nothing is frozen, nothing is noted. */
void scene_end(struct scene *scene);
/* A daemon begins; its predecessor has been killed. */
void daemon_begin(struct scene *scene);
/* One freeze by a new daemon; the guest and what is said of it are judged. */
void story(struct scene *scene);
/* A daemon is killed while the guest is frozen by its agent and its hooks, if there are any. */
void leave_frozen(struct scene *scene);
/* The guest's VMM hangs up its socket, and listens at another address. */
void move_agent(struct scene *scene, const char *address);
void kill_agent(struct scene *scene);

void write_hook(const struct scene *scene, const char *name, const char *script, mode_t mode);
/* What hooks have said: "NAME VERB VM SNAPSHOT" in each line. */
void read_log(const struct scene *scene, char text[1000]);

/* For world_call(): the argument is the scene. */
void wish(void *argument); /* with a cut as soon as it is frozen */
void wish_without_a_cut(void *argument);
void thaw_now(void *argument);
void stop(void *argument);
/* For world_run_until(). */
bool is_idle(void *argument);
bool is_still(void *argument);
bool has_stopped(void *argument);

#endif
