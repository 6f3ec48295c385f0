/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The way of a tracker:
 *
 *     NONE -> OPENING    the daemon opens or makes the sidecar (hooks.sidecar_open, later)
 *     OPENING -> ON      tracker_open() has recovered what there was, on the disk's reactor
 *     OPENING -> NONE    there is no sidecar, and none was wanted
 *     OPENING -> REFUSED it can't be had, is malformed, or the disk is written without tracking (C11)
 *     ON, REFUSED -> RESETTING -> NONE    sidecar and memory are gone; no work on several disks reaches the tracker any more
 *     RESETTING -> REFUSED                the sidecar is void, but could not be removed
 *
 * A new sidecar has no name until the tracker has written into it, so a crash before leaves nothing (R7). A disk that can't
 * be tracked is served all the same: its backups are full ones, and say why.
 *
 * Work on several disks goes out as one message per disk and comes back when the tracker has done it.
 */
#include "vm/tracking.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "vm/vm_private.h"

/* ---- opening ---- */

static void tracking_settle(struct vm_disk *vd, enum tracking_state state)
{
    struct tracking *tracking = &vd->tracking;
    assert(tracking->state == TRACKING_OPENING);
    tracking->state = state;
    vd->vm->operations--;
    tracking->opened(vd);
    vm_check_closed(vd->vm);
}

static void tracking_refuse(struct vm_disk *vd, const struct error *err)
{
    vd->tracking.error = *err;
    tracking_settle(vd, TRACKING_REFUSED);
}

static void tracker_given_up(struct io_message *message)
{
    struct vm_disk *vd = container_of(message, struct vm_disk, tracking.message);
    const struct error err = vd->tracking.error;
    vd->tracking.tracker = NULL;
    tracking_refuse(vd, &err);
}

/* No checkpoint depends on it yet: no write waits for it. */
static void tracker_give_up(struct io_message *message)
{
    struct vm_disk *vd = container_of(message, struct vm_disk, tracking.message);
    tracker_destroy(vd->tracking.tracker);
    message->deliver = tracker_given_up;
    io_post(vd->vm->io, message);
}

static void sidecar_kept(void *argument, const struct error *err)
{
    struct vm_disk *vd = argument;
    if (!err) {
        tracking_settle(vd, TRACKING_ON);
        return;
    }
    vd->tracking.error = *err;
    vd->tracking.message.deliver = tracker_give_up;
    io_post(vd->disk->node.io, &vd->tracking.message);
}

static void tracker_opened(struct io_message *message)
{
    struct vm_disk *vd = container_of(message, struct vm_disk, tracking.message);
    struct tracking *tracking = &vd->tracking;
    if (tracking->op.status < 0) {
        tracking->tracker = NULL;
        tracking_refuse(vd, &tracking->op.error);
        return;
    }
    if (tracking->forbidden) {
        struct error err;
        tracking->tracker = NULL;
        error_set(&err, ENOTSUP, "disk %s is served with track=off", vd->disk->name);
        tracking_refuse(vd, &err);
        return;
    }
    if (!tracking->created) {
        tracking_settle(vd, TRACKING_ON);
        return;
    }
    tracking->created = false;
    vd->vm->options.hooks.sidecar_keep(vd->vm->options.hooks.context, vd->disk, sidecar_kept, vd);
}

static int64_t sidecar_condemn(void *argument)
{
    const struct tracking *tracking = argument;
    return tracking->options.condemn(tracking->options.condemn_context, tracking->op.error.text);
}

/* Without a sidecar nobody adopts what a killed daemon has left in memory. */
static void memory_drop(const struct vm_disk *vd, struct io *io)
{
    const struct io_shm_name name = {vd->vm->memory_folder, vd->memory_file};
    if (name.folder[0])
        io_shm_remove(io, &name);
}

static void sidecar_condemned(struct io_op *op, int64_t result)
{
    struct vm_disk *vd = container_of(op, struct vm_disk, tracking.condemn);
    memory_drop(vd, vd->disk->node.io);
    if (result < 0)
        log_error("it could not be noted anywhere that the checkpoints of disk %s are void: %s", vd->disk->name,
                  vd->tracking.op.error.text);
    vd->tracking.message.deliver = tracker_opened;
    io_post(vd->vm->io, &vd->tracking.message);
}

/* A sidecar that could not be opened, and is not malformed, might be opened the next time: but by then the disk has been
 * written without it (C11). */
static void tracker_op_done(struct tracker_op *op)
{
    struct vm_disk *vd = container_of(op, struct vm_disk, tracking.op);
    struct tracking *tracking = &vd->tracking;
    if (tracking->tracker && (op->status < 0 || tracking->forbidden))
        tracker_destroy(tracking->tracker);
    if (op->status < 0 && op->status != -EBADMSG && !tracking->created && tracking->options.condemn) {
        tracking->condemn.done = sidecar_condemned;
        io_work(vd->disk->node.io, &tracking->condemn, sidecar_condemn, tracking);
        return;
    }
    tracking->message.deliver = tracker_opened;
    io_post(vd->vm->io, &tracking->message);
}

/* track=off: the sidecar must not be believed by whoever tracks the disk again (C11). */
static void tracker_voided(struct tracker_op *op)
{
    struct vm_disk *vd = container_of(op, struct vm_disk, tracking.op);
    op->done = tracker_op_done;
    tracker_close(vd->tracking.tracker, op);
}

static void tracker_to_void(struct tracker_op *op)
{
    struct vm_disk *vd = container_of(op, struct vm_disk, tracking.op);
    if (op->status < 0) {
        tracker_op_done(op);
        return;
    }
    op->done = tracker_voided;
    tracker_invalidate(vd->tracking.tracker, "the disk was served with track=off", op);
}

static void tracker_begin(struct io_message *message)
{
    struct vm_disk *vd = container_of(message, struct vm_disk, tracking.message);
    struct tracking *tracking = &vd->tracking;
    tracking->op = (struct tracker_op){.done = tracking->forbidden ? tracker_to_void : tracker_op_done};
    tracking->tracker = tracker_create(vd->disk, &tracking->options);
    if (tracking->tracker) {
        tracker_open(tracking->tracker, &tracking->op);
        return;
    }
    tracking->op.status = error_set(&tracking->op.error, ENOMEM, "no memory to track disk %s", vd->disk->name);
    tracker_op_done(&tracking->op);
}

/* ---- it ends by itself ---- */

static void tracker_is_void(struct io_message *message)
{
    struct vm_disk *vd = container_of(message, struct vm_disk, tracking.invalid);
    const struct vm_hooks *hooks = &vd->vm->options.hooks;
    char reason[LIMIT_ERROR_BYTES];
    memcpy(reason, vd->tracking.reason, sizeof reason);
    atomic_store(&vd->tracking.telling, false);
    if (hooks->checkpoint_event)
        hooks->checkpoint_event(hooks->context, VM_CHECKPOINT_INVALID, NULL, vd->disk->name, reason);
}

/* The tracker goes on, without checkpoints, unless its sidecar is broken: so it may happen again. */
static void tracker_invalidated(void *context, const char *reason)
{
    struct vm_disk *vd = context;
    if (atomic_exchange(&vd->tracking.telling, true))
        return;
    memset(vd->tracking.reason, 0, sizeof vd->tracking.reason);
    memccpy(vd->tracking.reason, reason, 0, sizeof vd->tracking.reason - 1);
    vd->tracking.invalid.deliver = tracker_is_void;
    io_post(vd->vm->io, &vd->tracking.invalid);
}

static void sidecar_opened(void *argument, const struct vm_sidecar *sidecar, const struct error *err)
{
    struct vm_disk *vd = argument;
    struct tracking *tracking = &vd->tracking;
    if (!sidecar)
        memory_drop(vd, vd->vm->io);
    if (err) {
        tracking_refuse(vd, err);
        return;
    }
    if (!sidecar) {
        tracking_settle(vd, TRACKING_NONE);
        return;
    }
    tracking->created = sidecar->created;
    tracking->forbidden = sidecar->forbidden;
    tracking->options = (struct tracker_options){
        .sidecar = sidecar->node,
        .create = sidecar->created,
        .granularity_bytes = sidecar->granularity_bytes,
        .memory = {.folder = vd->vm->memory_folder, .file = vd->memory_file},
        .identity = sidecar->identity,
        .identify = sidecar->identify,
        .identify_context = sidecar->context,
        .condemn = sidecar->condemn,
        .condemn_context = sidecar->context,
        .invalidated = tracker_invalidated,
        .invalidated_context = vd,
    };
    tracking->message.deliver = tracker_begin;
    io_post(vd->disk->node.io, &tracking->message);
}

void tracking_open(struct vm_disk *vd, bool create, void (*opened)(struct vm_disk *vd), void *context)
{
    struct tracking *tracking = &vd->tracking;
    const struct vm_hooks *hooks = &vd->vm->options.hooks;
    assert(tracking->state == TRACKING_NONE);
    tracking->state = TRACKING_OPENING;
    tracking->opened = opened;
    tracking->opened_context = context;
    vd->vm->operations++;
    if (hooks->sidecar_open && !vd->disk->node.read_only)
        hooks->sidecar_open(hooks->context, vd->disk, create, sidecar_opened, vd);
    else {
        struct error err;
        error_set(&err, ENOTSUP, vd->disk->node.read_only ? "disk %s is read-only" : "disk %s can't be tracked",
                  vd->disk->name);
        tracking_refuse(vd, &err);
    }
}

/* ---- work on several disks ---- */

struct tracking_work *tracking_work_new(struct vm *vm)
{
    struct tracking_work *work = calloc(1, sizeof *work + vm->disk_count * sizeof work->parts[0]);
    if (!work)
        return NULL;
    work->vm = vm;
    vm->operations++;
    for (unsigned i = 0; i < vm->disk_count; i++) {
        work->parts[i].work = work;
        work->parts[i].vd = &vm->disks[i];
        work->parts[i].wanted = vm->disks[i].tracking.state == TRACKING_ON;
    }
    return work;
}

static void work_finish(struct io_message *message)
{
    struct tracking_work *work = container_of(message, struct tracking_part, message)->work;
    struct vm *vm = work->vm;
    if (--work->unanswered > 0)
        return;
    work->done(work);
    free(work);
    vm->operations--;
    vm_check_closed(vm);
}

static void part_begin(struct io_message *message)
{
    struct tracking_part *part = container_of(message, struct tracking_part, message);
    part->work->start(part);
}

void tracking_part_back(struct tracking_part *part)
{
    part->message.deliver = work_finish;
    io_post(part->work->vm->io, &part->message);
}

void tracking_part_done(struct tracker_op *op)
{
    tracking_part_back(container_of(op, struct tracking_part, op));
}

/* With no part wanted, the first one comes back by itself: done() is never called inside. */
void tracking_work_start(struct tracking_work *work)
{
    for (unsigned i = 0; i < work->vm->disk_count; i++)
        work->unanswered += work->parts[i].wanted;
    const bool idle = work->unanswered == 0;
    work->unanswered += idle;
    for (unsigned i = 0; i < work->vm->disk_count; i++) {
        struct tracking_part *part = &work->parts[i];
        part->op.done = tracking_part_done;
        if (!part->wanted && !(idle && i == 0))
            continue;
        part->message.deliver = idle ? work_finish : part_begin;
        io_post(idle ? work->vm->io : part->vd->disk->node.io, &part->message);
    }
}

const struct error *tracking_work_error(const struct tracking_work *work)
{
    for (unsigned i = 0; i < work->vm->disk_count; i++)
        if (work->parts[i].wanted && work->parts[i].op.status < 0)
            return &work->parts[i].op.error;
    return NULL;
}
