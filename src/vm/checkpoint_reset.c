/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Reset: everything that is known about the changes of one disk is thrown away, whatever state its sidecar is in, and
 * the disk can be tracked anew.
 *
 *     the tracker (if there is one) becomes void, durably, and goes; then the sidecar; then its part of every checkpoint
 *
 * A crash in between leaves a void sidecar, or none: both say that nothing is known.
 */
#include "vm/checkpoints.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "vm/checkpoint_table.h"
#include "vm/vm_private.h"

struct reset {
    struct vm_disk *vd;
    void (*done)(void *argument, const struct error *err);
    void *argument;
};

static void reset_end(struct reset *reset, const struct error *err)
{
    struct vm *vm = reset->vd->vm;
    const unsigned index = (unsigned)(reset->vd - vm->disks);
    if (!err) {
        reset->vd->tracking = (struct tracking){.state = TRACKING_NONE};
        list_each_safe (link, &vm->checkpoints) {
            struct checkpoint *checkpoint = container_of(link, struct checkpoint, link);
            checkpoint->disks &= ~(UINT64_C(1) << index);
            if (checkpoint->disks || checkpoint->busy)
                continue;
            checkpoint_tell(vm, VM_CHECKPOINT_DELETED, &checkpoint->id);
            checkpoint_forget(checkpoint);
        }
    } else {
        reset->vd->tracking.error = *err;
        reset->vd->tracking.state = TRACKING_REFUSED;
    }
    reset->done(reset->argument, err);
    free(reset);
    vm->operations--;
    vm_check_closed(vm);
}

static void reset_removed(void *argument, const struct error *err)
{
    reset_end(argument, err);
}

static void reset_file(struct reset *reset)
{
    const struct vm_hooks *hooks = &reset->vd->vm->options.hooks;
    reset->vd->vm->operations++;
    hooks->sidecar_remove(hooks->context, reset->vd->disk, reset_removed, reset);
}

static void part_voided(struct tracker_op *op)
{
    struct tracking_part *part = container_of(op, struct tracking_part, op);
    tracker_destroy(part->vd->tracking.tracker); /* void: no write waits for it any more */
    tracking_part_back(part);
}

static void part_reset(struct tracking_part *part)
{
    part->op.done = part_voided;
    tracker_invalidate(part->vd->tracking.tracker, "it was reset", &part->op);
}

static void part_was_reset(struct tracking_work *work)
{
    struct reset *reset = work->argument;
    reset->vd->tracking.tracker = NULL;
    reset_file(reset);
}

static bool any_busy(const struct vm *vm)
{
    list_each (link, &vm->checkpoints)
        if (container_of(link, struct checkpoint, link)->busy)
            return true;
    return vm->cutting != NULL || vm->growing != NULL;
}

static struct vm_disk *disk_to_reset(struct vm *vm, const char *disk, struct error *err)
{
    for (unsigned i = 0; i < vm->disk_count; i++) {
        struct vm_disk *vd = &vm->disks[i];
        if (strcmp(vd->disk->name, disk) != 0)
            continue;
        if (vm->closing)
            error_set(err, ESHUTDOWN, "the tracking of disk %s is not reset: the daemon is shutting down", disk);
        else if (any_busy(vm) || vd->tracking.state == TRACKING_OPENING || vd->tracking.state == TRACKING_RESETTING)
            error_set(err, EBUSY, "the tracking of disk %s is in use by another operation: try again later", disk);
        else if (!vm->options.hooks.sidecar_remove)
            error_set(err, ENOTSUP, "disk %s can't be tracked", disk);
        else
            return vd;
        return NULL;
    }
    error_set(err, ENODEV, "VM %s has no disk '%.80s'", vm->name, disk);
    return NULL;
}

void vm_checkpoint_reset(struct vm *vm, const char *disk, void (*done)(void *argument, const struct error *err),
                         void *argument)
{
    struct error err;
    struct vm_disk *vd = disk_to_reset(vm, disk, &err);
    struct reset *reset = vd ? malloc(sizeof *reset) : NULL;
    struct tracking_work *work = reset && vd->tracking.state == TRACKING_ON ? tracking_work_new(vm) : NULL;
    if (!reset || (!work && vd->tracking.state == TRACKING_ON)) {
        if (vd)
            error_set(&err, ENOMEM, "no memory to reset the tracking of disk %s", disk);
        free(reset);
        done(argument, &err);
        return;
    }
    *reset = (struct reset){vd, done, argument};
    vd->tracking.state = TRACKING_RESETTING; /* before anybody else asks the tracker, which is about to go */
    error_set(&vd->tracking.error, ENOTSUP, "the tracking of disk %s is being reset", disk);
    if (!work) {
        reset_file(reset);
        return;
    }
    for (unsigned i = 0; i < vm->disk_count; i++)
        work->parts[i].wanted = &vm->disks[i] == vd;
    work->start = part_reset;
    work->done = part_was_reset;
    work->argument = reset;
    tracking_work_start(work);
}
