/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A VM that goes on elsewhere.
 *
 *   HERE -- vm_leave(): the guest has stopped, and another machine may write the disks from now on --> AWAY
 *   AWAY -- vm_come_back(): it has not gone after all -------------------------------------------> HERE
 *
 * A snapshot is the disk of the instant of its cut, as far as it was not copied: what somebody else writes there would stand
 * in it as if it had been there. So all live ones break, with the reason, those being made are not taken, and no new ones
 * come. No disk serves old data any more when vm_leave() is done. Change tracking goes on: it is closed with the disks, and
 * finds out for itself whether they were changed meanwhile. A crash when it is AWAY leaves what any crash leaves.
 */
#include <assert.h>
#include <stdio.h>

#include "vm/snapshot_internal.h"

static void break_all(struct vm *vm)
{
    list_each_safe (link, &vm->snapshots) {
        struct snapshot *snapshot = container_of(link, struct snapshot, link);
        if (snapshot->step != LIVE) {
            snapshot_doom(snapshot);
        } else if (!snapshot->broken) {
            snprintf(snapshot->reason, sizeof snapshot->reason, "%s", vm->away);
            snapshot_broke(snapshot);
        }
    }
}

static void disk_left(struct io_message *message)
{
    struct vm *vm = container_of(message, struct vm_disk, leaving)->vm;
    if (--vm->leaving == 0)
        vm->left(vm->left_argument);
}

static void disk_leaves(struct io_message *message)
{
    struct vm_disk *vd = container_of(message, struct vm_disk, leaving);
    if (vd->cbw)
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
    break_all(vm);
    vm->leaving = vm->disk_count;
    for (unsigned i = 0; i < vm->disk_count; i++) {
        vm->disks[i].leaving.deliver = disk_leaves;
        io_post(vm->disks[i].disk->node.io, &vm->disks[i].leaving);
    }
}

void vm_come_back(struct vm *vm)
{
    vm->away = NULL;
}
