/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * After a restart: the sidecars that are there are opened, and the table of checkpoints is made from what the trackers know.
 *
 * A crash in the middle of a commit leaves a checkpoint committed on some disks: somebody's backup is safe, so it is
 * committed on the rest. Any pending one has its grace time from then on; the snapshot that it was made with, if that is
 * adopted, says how long. A crash in here changes nothing of that.
 *
 * So has one that some tracked disks lack. It may be what a crash in the middle of recording has left, of which nobody was
 * told and which goes when nobody asks for it in time (C2). But a disk lacks one as well when it had no room for it, was
 * reset since, was tracked later, or has come to the VM with checkpoints of its own; then somebody's backup waits to be
 * committed, and the disk alone goes full. Either way what the other disks say since then is right.
 */
#include "vm/checkpoints.h"

#include <errno.h>
#include <stdlib.h>

#include "vm/checkpoint_table.h"
#include "vm/vm_private.h"

struct recovery {
    struct vm *vm;
    unsigned unopened;
    void (*done)(void *argument, const struct error *err);
    void *argument;
};

void checkpoint_part_ask(struct tracking_part *part)
{
    part->infos = calloc(LIMIT_CHECKPOINTS, sizeof *part->infos);
    if (part->infos)
        part->info_count = tracker_checkpoints(part->vd->tracking.tracker, part->infos, LIMIT_CHECKPOINTS);
    else
        part->op.status = error_set(&part->op.error, ENOMEM, "no memory for the checkpoints of disk %s",
                                    part->vd->disk->name);
    tracking_part_back(part);
}

/* Enters what one disk knows. 0 or -ENOMEM. */
static int table_enter(struct vm *vm, const struct tracking_part *part)
{
    const uint64_t bit = UINT64_C(1) << (part->vd - vm->disks);
    for (unsigned i = 0; i < part->info_count; i++) {
        const struct checkpoint_info *info = &part->infos[i];
        struct checkpoint *checkpoint = checkpoint_find(vm, info->id.uuid);
        if (!checkpoint && !(checkpoint = checkpoint_add(vm, &info->id, 0)))
            return -ENOMEM;
        checkpoint->disks |= bit;
        if (info->state == CHECKPOINT_PENDING)
            checkpoint->pending |= bit;
        else if (info->state == CHECKPOINT_COMMITTED)
            checkpoint->committed = true;
    }
    return 0;
}

static void table_sort(struct vm *vm)
{
    struct list sorted;
    list_init(&sorted);
    for (struct list_node *link; (link = list_take_first(&vm->checkpoints));) {
        const uint64_t created = container_of(link, struct checkpoint, link)->id.created_wall_ns;
        struct list_node *before = &sorted.head;
        while (before->prev != &sorted.head &&
               container_of(before->prev, struct checkpoint, link)->id.created_wall_ns > created)
            before = before->prev;
        list_insert_before(before, link);
    }
    list_take_all(&vm->checkpoints, &sorted);
}

/* Brings one checkpoint in step over all disks. */
static void table_settle(struct checkpoint *checkpoint)
{
    struct vm *vm = checkpoint->vm;
    if (checkpoint->committed && checkpoint->pending) {
        checkpoint->committed = false;
        vm_checkpoint_commit(vm, checkpoint->id.uuid, checkpoint_dropped, NULL);
    } else if (checkpoint->pending) {
        checkpoint_wait(checkpoint);
    } else {
        checkpoint->committed = true; /* or invalid everywhere: nobody is waited for */
    }
    checkpoint->pending = 0;
}

static void recovery_asked(struct tracking_work *work)
{
    struct recovery *recovery = work->argument;
    struct vm *vm = work->vm;
    const struct error *failure = tracking_work_error(work);
    struct error err;
    for (unsigned i = 0; i < vm->disk_count && !failure; i++) {
        const struct tracking_part *part = &work->parts[i];
        if (table_enter(vm, part) < 0) {
            error_set(&err, ENOMEM, "no memory for the checkpoints of VM %s", vm->name);
            failure = &err;
        }
    }
    for (unsigned i = 0; i < vm->disk_count; i++)
        free(work->parts[i].infos);
    table_sort(vm);
    list_each_safe (link, &vm->checkpoints)
        table_settle(container_of(link, struct checkpoint, link));
    recovery->done(recovery->argument, failure);
    free(recovery);
}

static void recovery_ask(struct recovery *recovery)
{
    struct tracking_work *work = tracking_work_new(recovery->vm);
    if (!work) {
        struct error err;
        error_set(&err, ENOMEM, "no memory for the checkpoints of VM %s", recovery->vm->name);
        recovery->done(recovery->argument, &err);
        free(recovery);
        return;
    }
    work->start = checkpoint_part_ask;
    work->done = recovery_asked;
    work->argument = recovery;
    tracking_work_start(work);
}

static void recovery_opened(struct vm_disk *vd)
{
    struct recovery *recovery = vd->tracking.opened_context;
    if (--recovery->unopened == 0)
        recovery_ask(recovery);
}

void vm_recover(struct vm *vm, void (*done)(void *argument, const struct error *err), void *argument)
{
    struct error err;
    struct recovery *recovery = malloc(sizeof *recovery);
    if (!recovery) {
        error_set(&err, ENOMEM, "no memory for the checkpoints of VM %s", vm->name);
        done(argument, &err);
        return;
    }
    *recovery = (struct recovery){vm, 1, done, argument};
    for (unsigned i = 0; i < vm->disk_count && vm->options.hooks.sidecar_open; i++) {
        if (vm->disks[i].disk->node.read_only)
            continue;
        recovery->unopened++;
        tracking_open(&vm->disks[i], false, recovery_opened, recovery);
    }
    if (--recovery->unopened == 0)
        recovery_ask(recovery);
}
