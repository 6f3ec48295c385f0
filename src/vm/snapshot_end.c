/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The end of a snapshot, whole or half made: the steps from ENDING on (vm/snapshot.c has the table of all). The points die
 * first, on every disk, and the record that would let the next daemon adopt it is withdrawn before that: whatever comes
 * later, nothing is preserved for it any more and nothing of it is served (C12). What was made before the cut and never went
 * live begins at FREEING.
 *
 * Whoever holds its views (a push, an audit of where blocks live) is waited for in WITHDRAWING, like the connections of its
 * exports. A crash in here leaves what the next start recognises and takes away.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "base/probe.h"
#include "vm/snapshot_internal.h"

static void snapshot_gone(struct snapshot *snapshot)
{
    struct vm *vm = snapshot->vm;
    list_remove(&snapshot->link);
    vm->snapshot_count--;
    if (vm->cutting == snapshot || (!vm->cutting && snapshot->step == CLOSING))
        snapshot_turn_over(vm);
    if (snapshot->failure.code)
        snapshot->created(snapshot->created_argument, NULL, &snapshot->failure);
    else if (snapshot->bare)
        snapshot->created(snapshot->created_argument, snapshot, NULL);
    else
        vm->options.hooks.snapshot_deleted(vm->options.hooks.context, snapshot->name, snapshot->uuid);
    if (snapshot->deleted)
        snapshot->deleted(snapshot->deleted_argument, NULL);
    free(snapshot);
    vm_check_closed(vm);
}

/* Whether another snapshot uses the filters. */
static bool filters_in_use(const struct snapshot *without)
{
    list_each (link, &without->vm->snapshots) {
        const struct snapshot *snapshot = container_of(link, struct snapshot, link);
        if (snapshot != without && snapshot->step > QUEUED && !snapshot->bare)
            return true;
    }
    return false;
}

static void filters_closed(struct snapshot *snapshot)
{
    snapshot_table_destroy(&snapshot->vm->table);
    snapshot->vm->filters = FILTERS_NONE;
    snapshot_gone(snapshot);
}

static void file_closed(void *argument)
{
    struct part *part = argument;
    struct snapshot *snapshot = part->snapshot;
    part->vd->file = NULL;
    if (--snapshot->parts_out > 0)
        return;
    filters_closed(snapshot);
}

static void filters_gone(struct snapshot *snapshot)
{
    struct vm *vm = snapshot->vm;
    snapshot->parts_out = 1; /* our own, so that it does not reach 0 within the loop */
    for (unsigned i = 0; i < vm->disk_count; i++) {
        struct vm_disk *vd = &vm->disks[i];
        if (!vd->file || MUTANT(cache_stays_open))
            continue;
        snapshot->parts_out++;
        vm->options.hooks.cache_close(vm->options.hooks.context, vd->disk, vd->file, file_closed, &snapshot->parts[i]);
    }
    if (--snapshot->parts_out == 0)
        filters_closed(snapshot);
}

/* Its parts have gone, and the guest has thawed. */
static void snapshot_leave(struct snapshot *snapshot)
{
    snapshot_record_free(snapshot);
    if (snapshot->vm->filters != FILTERS_MADE || snapshot->bare || filters_in_use(snapshot)) {
        snapshot_gone(snapshot);
        return;
    }
    snapshot_move(snapshot, CLOSING);
    snapshot->vm->filters = FILTERS_CLOSING;
    parts_send(snapshot, part_close, filters_gone);
}

static void snapshot_freed(struct snapshot *snapshot)
{
    snapshot_when_settled(snapshot, snapshot_leave);
}

void snapshot_free(struct snapshot *snapshot)
{
    snapshot_thaw(snapshot);
    snapshot_move(snapshot, FREEING);
    parts_send(snapshot, part_free, snapshot_freed);
}

static void part_withdrawn(void *argument, int status)
{
    struct part *part = argument;
    struct snapshot *snapshot = part->snapshot;
    (void)status;
    part->published = false;
    if (--snapshot->parts_out == 0)
        snapshot_free(snapshot);
}

static void snapshot_withdraw(struct snapshot *snapshot)
{
    struct vm *vm = snapshot->vm;
    snapshot_move(snapshot, WITHDRAWING);
    snapshot->parts_out = 1 + snapshot->holds; /* one is our own, so that it does not reach 0 within the loop */
    for (unsigned i = 0; i < vm->disk_count; i++) {
        struct part *part = &snapshot->parts[i];
        if (!part->published || MUTANT(export_not_withdrawn))
            continue;
        snapshot->parts_out++;
        vm->options.hooks.unpublish(vm->options.hooks.context, part->export_name, part_withdrawn, part);
    }
    if (--snapshot->parts_out == 0)
        snapshot_free(snapshot);
}

bool snapshot_hold(struct snapshot *snapshot)
{
    if (snapshot->step == LIVE)
        snapshot->holds++;
    return snapshot->step == LIVE;
}

void snapshot_let_go(struct snapshot *snapshot)
{
    assert(snapshot->holds > 0 && snapshot->step >= LIVE && snapshot->step <= WITHDRAWING);
    snapshot->holds--;
    if (snapshot->step == WITHDRAWING && --snapshot->parts_out == 0)
        snapshot_free(snapshot);
}

void snapshot_end(struct snapshot *snapshot)
{
    io_timer_cancel(snapshot->vm->io, &snapshot->grace);
    snapshot_move(snapshot, ENDING);
    if (!MUTANT(restart_end_not_stored))
        snapshot_record_end(snapshot);
    parts_send(snapshot, part_end, snapshot_withdraw);
}

/* Nobody waits for it any more, or the VM has left (away.c); `fate`: what became of it. */
void snapshot_forsaken(struct snapshot *snapshot, const char *fate)
{
    const bool closing = snapshot->vm->closing;
    const char *reason = snapshot->reason[0] && !snapshot->adopted ? snapshot->reason : "its client is gone";
    error_set(&snapshot->failure, closing ? ESHUTDOWN : ECANCELED, "snapshot '%s' was %s: %s", snapshot->name, fate,
              closing ? "the daemon is shutting down" : reason);
}

void snapshot_doom(struct snapshot *snapshot)
{
    switch (snapshot->step) {
    case QUEUED:
        snapshot_forsaken(snapshot, "not taken");
        snapshot_free(snapshot);
        break;
    case FREEZING: {
        const struct vm_hooks *hooks = &snapshot->vm->options.hooks;
        hooks->freeze_cancel(hooks->context);
        snapshot_forsaken(snapshot, "not taken");
        snapshot_free(snapshot);
        break;
    }
    case OPENING:
    case PREPARING:
    case CUTTING:
    case RECORDING:
    case PUBLISHING:
        PROBE(snapshot_doomed_in_making);
        snapshot->doomed = !MUTANT(lease_end_ignored);
        break;
    case ADOPTED:
    case LIVE:
        snapshot_end(snapshot);
        break;
    case ENDING:
    case WITHDRAWING:
    case FREEING:
    case CLOSING:
        break;
    }
}
