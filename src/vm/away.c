/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A VM that goes on elsewhere.
 *
 *   HERE -- vm_migrates(): its memory is being copied -----------------------------------------------> MIGRATES
 *   HERE, MIGRATES -- vm_leave(): the guest has stopped, and another machine may write the disks ----> AWAY
 *   AWAY -- vm_come_back(): it has not gone after all -----------------------------------------------> as before
 *   MIGRATES -- vm_stays(): the migration was given up ----------------------------------------------> HERE
 *
 * A snapshot is the disk of the instant of its cut, as far as it was not copied: what somebody else writes there would
 * stand in it as if it had been there. So all live ones break, with the reason, those being made are not taken, and no new
 * ones come. First it is noted, for the next daemon as well, that they are broken (C12), then no disk serves old data any
 * more, and then vm_leave() is done. What was being made is taken back as soon as its step is over, and says why. Change
 * tracking goes on: it is closed with the disks, and finds out for itself whether they were changed meanwhile. A disk that
 * grows in that moment goes on growing; no other one begins to. A crash when it is AWAY leaves what any crash leaves.
 *
 * The guest may come back before vm_leave() is done: what is made from then on is behind it in every disk's queue, and
 * stays.
 *
 * A VMM does not need us to go on elsewhere: were we killed just before the guest stops, or in the midst of that, it would
 * find a connection that is closed, and go. So it is noted for the next daemon already when the VM MIGRATES, before
 * vm_migrates() is done: in the table of snapshots, which then adopts them as broken ones (L12; they may be shown what was
 * written elsewhere, since nobody preserves anything there), and durably for what else stays behind (vm_hooks.disks_away).
 * That it is HERE is noted at some time after vm_stays(). A crash in between costs snapshots and checkpoints of a VM that
 * has stayed, and no changes (C20). vm_leave() notes the same where it was not.
 */
#include <assert.h>
#include <stdio.h>

#include "base/probe.h"
#include "vm/snapshot_internal.h"

static void break_all(struct vm *vm)
{
    list_each_safe (link, &vm->snapshots) {
        struct snapshot *snapshot = container_of(link, struct snapshot, link);
        if (snapshot->step < LIVE) {
            PROBE(vhost_away_in_the_making);
            snprintf(snapshot->reason, sizeof snapshot->reason, "%s", vm->away);
            snapshot_doom(snapshot);
        } else if (snapshot->step == LIVE && !snapshot->broken) {
            PROBE(vhost_away_breaks);
            snprintf(snapshot->reason, sizeof snapshot->reason, "%s", vm->away);
            snapshot_broke(snapshot);
        }
    }
}

static void counts(struct vm *vm)
{
    if (--vm->leaving == 0)
        vm->left(vm->left_argument);
}

/* ---- what is noted for the next daemon ---- */

static void note(struct vm *vm);

static void tell_who_migrates(struct vm *vm)
{
    void (*told)(void *) = vm->migration_noted;
    vm->migration_noted = NULL;
    if (told)
        told(vm->migration_argument);
}

static void noted(void *argument)
{
    struct vm *vm = argument;
    vm->noting = false;
    vm->operations--;
    note(vm);
    vm_check_closed(vm);
}

/* Until it is noted what is true by then; who migrates, or leaves, waits for that. */
static void note(struct vm *vm)
{
    const struct vm_hooks *hooks = &vm->options.hooks;
    const bool away = vm->away || vm->migrates;
    if (vm->noting)
        return;
    if (hooks->disks_away && vm->noted != away) {
        vm->noted = away;
        vm->noting = true;
        vm->operations++;
        hooks->disks_away(hooks->context, away, noted, vm);
        return;
    }
    tell_who_migrates(vm);
    if (vm->leave_waits) {
        vm->leave_waits = false;
        counts(vm);
    }
}

void vm_migrates(struct vm *vm, void (*done)(void *argument), void *argument)
{
    assert(!vm->migration_noted);
    vm->migrates = true;
    vm->migration_noted = done;
    vm->migration_argument = argument;
    if (!MUTANT(vhost_migration_not_in_table))
        snapshot_table_note_migration(&vm->table, true);
    note(vm);
}

void vm_stays(struct vm *vm)
{
    vm->migrates = false;
    snapshot_table_note_migration(&vm->table, false);
    note(vm);
}

/* ---- leaving ---- */

static void disk_left(struct io_message *message)
{
    counts(container_of(message, struct vm_disk, leaving)->vm);
}

static void disk_leaves(struct io_message *message)
{
    struct vm_disk *vd = container_of(message, struct vm_disk, leaving);
    if (vd->cbw && !MUTANT(vhost_away_points_stay))
        cbw_break(vd->cbw, 1, UINT32_MAX);
    message->deliver = disk_left;
    io_post(vd->vm->io, message);
}

void vm_leave(struct vm *vm, const char *reason, void (*done)(void *argument), void *argument)
{
    assert(vm->leaving == 0 && vm->disk_count > 0);
    vm->away = reason;
    vm->left = done;
    vm->left_argument = argument;
    if (!MUTANT(vhost_away_snapshots_stay))
        break_all(vm);
    vm->leaving = 1 + vm->disk_count;
    for (unsigned i = 0; i < vm->disk_count; i++) {
        vm->disks[i].leaving.deliver = disk_leaves;
        io_post(vm->disks[i].disk->node.io, &vm->disks[i].leaving);
    }
    vm->leave_waits = true;
    note(vm);
}

void vm_come_back(struct vm *vm)
{
    if (vm->away)
        PROBE(vhost_away_came_back);
    vm->away = NULL;
    note(vm);
}
