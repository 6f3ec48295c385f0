/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The guest is frozen for the cut of a snapshot, if somebody can do that: by then all that takes memory or time has been
 * prepared, and it thaws as soon as the cut is done, before anything is recorded or exported. A guest that is frozen writes
 * nothing, so the cut never waits for it.
 *
 * Whether it was still at the cut is known only when it has thawed (`settling`), which goes on beside the steps after the
 * cut: a snapshot waits for it before it becomes LIVE, and before it is freed. What could not be frozen is crash-consistent,
 * and says why, unless its maker wants it refused.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>

#include "base/log.h"
#include "vm/snapshot_internal.h"

bool snapshot_wants_freeze(const struct snapshot *snapshot)
{
    return snapshot->vm->options.hooks.freeze && snapshot->consistency_wish != CONSISTENCY_CRASH && !snapshot->bare;
}

static void is_crash_consistent(struct snapshot *snapshot, const char *reason)
{
    snapshot->consistency = CONSISTENT_CRASH;
    snprintf(snapshot->consistency_reason, sizeof snapshot->consistency_reason, "%s", reason);
    if (snapshot->consistency_wish != CONSISTENCY_REQUIRED)
        log_warning("snapshot '%s' is crash-consistent: %s", snapshot->name, reason);
}

int snapshot_check_consistency(const struct snapshot *snapshot, struct error *err)
{
    if (snapshot->consistency_wish != CONSISTENCY_REQUIRED || snapshot->consistency != CONSISTENT_CRASH)
        return 0;
    return error_set(err, EAGAIN, "snapshot '%s' refused: %s", snapshot->name, snapshot->consistency_reason);
}

static void guest_frozen(void *argument, const struct error *err)
{
    struct snapshot *snapshot = argument;
    snapshot->frozen = !err;
    if (err)
        is_crash_consistent(snapshot, err->text);
    snapshot_frozen(snapshot);
}

void snapshot_freeze(struct snapshot *snapshot)
{
    const struct vm_hooks *hooks = &snapshot->vm->options.hooks;
    hooks->freeze(hooks->context, snapshot->name, guest_frozen, snapshot);
}

static void guest_settled(void *argument, enum consistency consistency, const char *reason, uint64_t frozen_ns)
{
    struct snapshot *snapshot = argument;
    void (*next)(struct snapshot *) = snapshot->when_settled;
    snapshot->settling = false;
    snapshot->when_settled = NULL;
    snapshot->consistency = consistency;
    snapshot->frozen_ns = frozen_ns;
    if (consistency == CONSISTENT_CRASH)
        is_crash_consistent(snapshot, reason);
    if (next)
        next(snapshot);
}

void snapshot_thaw(struct snapshot *snapshot)
{
    const struct vm_hooks *hooks = &snapshot->vm->options.hooks;
    if (!snapshot->frozen)
        return;
    snapshot->frozen = false;
    snapshot->settling = true;
    hooks->thaw(hooks->context, guest_settled, snapshot);
}

void snapshot_when_settled(struct snapshot *snapshot, void (*next)(struct snapshot *snapshot))
{
    assert(!snapshot->when_settled);
    if (snapshot->settling)
        snapshot->when_settled = next;
    else
        next(snapshot);
}
