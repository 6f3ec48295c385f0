/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Leases: a snapshot that was made for a client ends with its connection, or, with a grace time, that long after it. Whoever
 * knows its UUID may take the lease again until then; its pending checkpoint comes along. A daemon that adopts a leased
 * snapshot gives its client the same time to come back.
 */
#include <errno.h>
#include <string.h>

#include "vm/checkpoint_table.h"
#include "vm/snapshot_internal.h"

void snapshot_grace_over(struct io_timer *timer)
{
    snapshot_end(container_of(timer, struct snapshot, grace));
}

void snapshot_wait_for_lease(struct snapshot *snapshot)
{
    struct vm *vm = snapshot->vm;
    snapshot->grace_until_ns = io_now_ns(vm->io) + snapshot->grace_ns;
    io_timer_set(vm->io, &snapshot->grace, snapshot->grace_until_ns);
}

void vm_lease_end(struct vm *vm, const void *lease)
{
    list_each_safe (link, &vm->snapshots) {
        struct snapshot *snapshot = container_of(link, struct snapshot, link);
        if (!lease || snapshot->lease != lease)
            continue;
        if (snapshot->grace_ns == 0 || snapshot->step != LIVE) {
            snapshot_doom(snapshot);
            continue;
        }
        snapshot->lease = NULL;
        snapshot_wait_for_lease(snapshot);
    }
    checkpoints_lease_end(vm, lease);
}

int vm_snapshot_lease(struct vm *vm, const char *uuid, const void *lease, struct error *err)
{
    struct snapshot *snapshot = NULL;
    while ((snapshot = vm_snapshot_next(vm, snapshot)) && strcmp(snapshot->uuid, uuid) != 0)
        ;
    if (!snapshot || snapshot->step != LIVE)
        return error_set(err, ENOENT, "there is no snapshot %.40s (any more)", uuid);
    if (snapshot->lease && snapshot->lease != lease)
        return error_set(err, EBUSY, "snapshot '%s' belongs to another connection", snapshot->name);
    io_timer_cancel(vm->io, &snapshot->grace);
    snapshot->lease = lease;
    if (snapshot->record)
        snapshot->record->leased = 1;
    if (!snapshot->grace_ns)
        snapshot->grace_ns = LEASE_GRACE_DEFAULT_NS;
    struct checkpoint *checkpoint = snapshot->checkpoint.name[0] ? checkpoint_find(vm, snapshot->checkpoint.uuid)
                                                                 : NULL;
    if (checkpoint && !checkpoint->committed)
        checkpoint_hold(checkpoint, lease, snapshot->grace_ns);
    return 0;
}
