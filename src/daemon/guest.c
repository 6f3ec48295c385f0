/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The record of a freeze lies in the run-time folder, whose lock we hold: so it is a killed daemon's if it is there at the
 * start. `fleeced --thaw` is that part of a start alone, for a daemon that is not to be started again.
 */
#include "daemon/guest.h"

#include <errno.h>
#include <stdio.h>

#include "base/log.h"
#include "daemon/daemon.h"
#include "io/ring.h"

int guest_start(struct guest *guest, struct io *io, const struct options *options, const struct runtime *runtime,
                struct error *err)
{
    snprintf(guest->record_path, sizeof guest->record_path, "%s/freeze", runtime->folder);
    const struct freezer_options wanted = {
        .vm = options->vm,
        .agent = options->guest_agent,
        .hook_folder = options->hook_dir,
        .record_path = guest->record_path,
        .timeout_ns = options->freeze_timeout_ns ? options->freeze_timeout_ns : FREEZE_TIMEOUT_DEFAULT_NS,
    };
    if (options->guest_agent || options->hook_dir)
        guest->consistency = options->guest_agent ? CONSISTENT_AGENT : CONSISTENT_HOOKS;
    guest->freezer = freezer_create(io, &wanted);
    if (!guest->freezer)
        return error_set(err, ENOMEM, "no memory for the guest's freezer");
    freezer_recover(guest->freezer);
    return 0;
}

void guest_arrived(struct guest *guest, struct io *io, const struct options *options)
{
    if (options->guest_agent)
        guest->arrival = arrival_create(io, options->guest_agent);
    if (options->guest_agent && !guest->arrival)
        log_warning("no memory to ask whether the guest has arrived frozen");
}

bool guest_can_freeze(const struct guest *guest)
{
    return guest->consistency != CONSISTENT_CRASH;
}

static void outcome_known(void *argument, const struct freeze_outcome *outcome)
{
    struct guest *guest = argument;
    guest->settled(guest->settled_argument, outcome->held ? guest->consistency : CONSISTENT_CRASH, outcome->reason,
                   outcome->frozen_ns);
}

void guest_thaw(struct guest *guest,
                void (*settled)(void *argument, enum consistency consistency, const char *reason, uint64_t frozen_ns),
                void *argument)
{
    guest->settled = settled;
    guest->settled_argument = argument;
    freezer_thaw(guest->freezer, outcome_known, guest);
}

static void freezer_stopped(void *argument, bool thawed)
{
    struct guest *guest = argument;
    (void)thawed; /* it has been logged, and the record is there */
    guest->stopped(guest->stopped_argument);
}

static void arrival_is_over(void *argument)
{
    struct guest *guest = argument;
    guest->arrival = NULL;
    if (guest->freezer)
        freezer_stop(guest->freezer, freezer_stopped, guest);
    else
        guest->stopped(guest->stopped_argument);
}

void guest_stop(struct guest *guest, void (*stopped)(void *argument), void *argument)
{
    guest->stopped = stopped;
    guest->stopped_argument = argument;
    if (guest->arrival)
        arrival_end(guest->arrival, arrival_is_over, guest);
    else
        arrival_is_over(guest);
}

void guest_fini(struct guest *guest)
{
    if (guest->freezer)
        freezer_destroy(guest->freezer);
    guest->freezer = NULL;
}

/* --- fleeced --thaw */

struct thawing {
    struct io *io;
    struct guest guest;
    bool thawed;
};

static void thawing_over(void *argument, bool thawed)
{
    struct thawing *thawing = argument;
    thawing->thawed = thawed;
    ring_quit(thawing->io);
}

static int thaw(struct thawing *thawing, const struct options *options, const struct runtime *runtime,
                struct error *err)
{
    int status = ring_create(&thawing->io, err);
    if (status < 0)
        return status;
    status = guest_start(&thawing->guest, thawing->io, options, runtime, err);
    if (status == 0) {
        freezer_stop(thawing->guest.freezer, thawing_over, thawing);
        ring_run(thawing->io);
    }
    guest_fini(&thawing->guest);
    ring_destroy(thawing->io);
    return status == 0 && !thawing->thawed ? error_set(err, ETIMEDOUT, "the guest of VM %s did not thaw", options->vm)
                                           : status;
}

int guest_thaw_only(const struct options *options)
{
    struct runtime runtime = {.lock_fd = -1};
    struct thawing thawing = {.thawed = false};
    struct error err;
    int status = runtime_claim(&runtime, options->vm, options->lock_wait_ns, &err);
    if (status == 0)
        status = thaw(&thawing, options, &runtime, &err);
    if (status < 0)
        log_error("%s", err.text);
    runtime_release(&runtime);
    return status < 0 ? EXIT_FAILED : 0;
}
