/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A disk grows while it is served. It waits its turn with the snapshots, so that no set of blocks is made for a disk of one
 * size and cut on one of another. Then, on the disk's reactor:
 *
 *     LOOKING     what it lies on says how long it is, if nobody has said how long the disk is to be
 *     ANNOUNCING  tracker and caches note durably, or for the next daemon, which size the disk is about to get (C22)
 *     EXTENDING   what it lies on gets that size
 *     FLUSHING    which is on stable storage then
 *     HOLDING     new writes wait until none is in flight; then, in one step: leaf, disk, filter, dirty bitmaps and tracker
 *                 have the new size, and what was added is dirty in all that note changes
 *     RECORDING   the tracker makes that durable
 *
 * So the disk itself is larger first, then those who watch it, and guest and clients are told last. A crash before the
 * announcement leaves the disk as it was. One after it leaves a disk of either size, and the next start knows of both.
 * A failure before the disk has the new size leaves it as it was, and what it lies on gets its old size again (RETURNING);
 * when not even that succeeds that stays longer, and growing again takes it over. Nothing fails after the hold: when the
 * tracker can't record it, checkpoints are invalid, and say so.
 *
 * A hold that does not drain is given up after CUT_ATTEMPT_NS and tried again, like a cut; and so is one that finds copies
 * of dirty bitmaps being made, which have a size.
 *
 * Disks do not become smaller: the guest would lose what it has there, and so would snapshots.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/probe.h"
#include "fleece/copy_before_write.h"
#include "vm/vm_private.h"

struct growth {
    struct list_node link;
    struct vm *vm;
    struct vm_disk *vd;
    struct tracker *tracker; /* NULL: the disk is not tracked */
    struct io_message message;
    uint64_t old_bytes, size_bytes; /* size 0: not known yet */
    struct node_extension extension;
    struct tracker_op op;
    struct request flush;
    struct io_timer timer;
    uint64_t give_up_ns;
    bool announced, extending;
    struct error error; /* code 0: none */
    void (*done)(void *argument, uint64_t size_bytes, const struct error *err);
    void *argument;
};

/* ---- the end ---- */

static void growth_done(struct io_message *message)
{
    struct growth *growth = container_of(message, struct growth, message);
    struct vm *vm = growth->vm;
    const struct vm_hooks *hooks = &vm->options.hooks;
    const bool grown = !growth->error.code && growth->size_bytes > growth->old_bytes;
    if (vm->growing == growth)
        vm->growing = NULL;
    if (grown && hooks->disk_grown)
        hooks->disk_grown(hooks->context, growth->vd->disk, growth->old_bytes, growth->size_bytes);
    growth->done(growth->argument, growth->size_bytes, growth->error.code ? &growth->error : NULL);
    free(growth);
    vm->operations--;
    vm_take_turns(vm);
    vm_check_closed(vm);
}

static void growth_back(struct growth *growth)
{
    growth->message.deliver = growth_done;
    io_post(growth->vm->io, &growth->message);
}

static void growth_failed(struct growth *growth)
{
    if (growth->announced && growth->tracker)
        tracker_forgo_growth(growth->tracker);
    if (growth->announced)
        disk_watch_release(&growth->vd->watch);
    growth_back(growth);
}

static void growth_returned(struct node_extension *extension, int status)
{
    struct growth *growth = container_of(extension, struct growth, extension);
    if (status < 0)
        log_warning("disk %s %s", growth->vd->disk->name, extension->error.text);
    growth_failed(growth);
}

static void growth_extend(struct growth *growth, uint64_t size_bytes,
                          void (*done)(struct node_extension *extension, int status))
{
    struct node *leaf = growth->vd->disk->leaf;
    growth->extension = (struct node_extension){.size_bytes = size_bytes, .done = done};
    leaf->ops->extend(leaf, &growth->extension);
}

static void growth_fail(struct growth *growth, const struct error *err)
{
    growth->error = *err;
    if (growth->extending)
        PROBE(growth_taken_back);
    if (growth->extending && !MUTANT(growth_stays_below))
        growth_extend(growth, growth->old_bytes, growth_returned);
    else
        growth_failed(growth);
}

/* ---- HOLDING, RECORDING ---- */

static void growth_recorded(struct tracker_op *op)
{
    growth_back(container_of(op, struct growth, op)); /* its failure is one of the checkpoints, not of the disk */
}

static void growth_hold(struct growth *growth);

static void growth_hold_again(struct io_timer *timer)
{
    growth_hold(container_of(timer, struct growth, timer));
}

/* Nothing is in flight, and no copy of a size is being made. */
static void growth_take_place(struct growth *growth)
{
    struct vm_disk *vd = growth->vd;
    disk_grow(vd->disk, growth->size_bytes);
    if (vd->cbw)
        cbw_grow(vd->cbw);
    dirty_bitmaps_grow(&vd->bitmaps);
    if (growth->tracker)
        tracker_grow(growth->tracker);
    disk_watch_release(&vd->watch);
}

static void growth_give_up(struct growth *growth, bool in_use)
{
    struct io *io = growth->vd->disk->node.io;
    const char *name = growth->vd->disk->name;
    struct error err;
    disk_release(growth->vd->disk);
    if (io_now_ns(io) < growth->give_up_ns) {
        PROBE(growth_held_again);
        growth->timer.fire = growth_hold_again;
        io_timer_set(io, &growth->timer, io_now_ns(io) + CUT_RETRY_PAUSE_NS);
        return;
    }
    if (in_use)
        error_set(&err, EBUSY, "disk %s does not grow: its dirty bitmaps are in use: try again later", name);
    else
        error_set(&err, ETIMEDOUT, "disk %s does not grow: its writes in flight did not finish", name);
    growth_fail(growth, &err);
}

static void growth_undrained(struct io_timer *timer)
{
    growth_give_up(container_of(timer, struct growth, timer), false);
}

static void growth_drained(void *context)
{
    struct growth *growth = context;
    io_timer_cancel(growth->vd->disk->node.io, &growth->timer);
    if (dirty_bitmaps_in_use(&growth->vd->bitmaps)) {
        growth_give_up(growth, true);
        return;
    }
    growth_take_place(growth);
    disk_release(growth->vd->disk);
    growth->op = (struct tracker_op){.done = growth_recorded};
    if (growth->tracker)
        tracker_record_growth(growth->tracker, &growth->op);
    else
        growth_back(growth);
}

static void growth_hold(struct growth *growth)
{
    struct io *io = growth->vd->disk->node.io;
    growth->timer.fire = growth_undrained;
    io_timer_set(io, &growth->timer, io_now_ns(io) + CUT_ATTEMPT_NS);
    disk_hold(growth->vd->disk, growth_drained, growth);
}

/* ---- EXTENDING, FLUSHING ---- */

static void growth_flushed(struct request *req, int status)
{
    struct growth *growth = container_of(req, struct growth, flush);
    struct error err;
    if (status < 0) {
        error_set(&err, -status, "disk %s does not grow: it can't be flushed: %s", growth->vd->disk->name,
                  error_name(status));
        growth_fail(growth, &err);
        return;
    }
    growth->give_up_ns = io_now_ns(growth->vd->disk->node.io) + CUT_TOTAL_MAX_NS;
    growth_hold(growth);
}

static void growth_extended(struct node_extension *extension, int status)
{
    struct growth *growth = container_of(extension, struct growth, extension);
    if (status < 0) {
        struct error err = extension->error;
        error_prefix(&err, "disk %s", growth->vd->disk->name);
        growth_fail(growth, &err);
        return;
    }
    growth->flush = (struct request){.kind = REQUEST_FLUSH, .done = growth_flushed};
    node_submit(growth->vd->disk->leaf, &growth->flush);
}

/* ---- LOOKING, ANNOUNCING ---- */

static void growth_announced(struct growth *growth)
{
    struct vm_disk *vd = growth->vd;
    growth->announced = true;
    disk_watch_hold(&vd->watch);
    if (vd->cbw)
        cbw_announce_growth(vd->cbw, growth->size_bytes);
    growth->extending = true;
    growth_extend(growth, growth->size_bytes, growth_extended);
}

static void tracker_announced(struct tracker_op *op)
{
    struct growth *growth = container_of(op, struct growth, op);
    if (op->status < 0)
        growth_fail(growth, &op->error);
    else
        growth_announced(growth);
}

/* The new size is known. */
static void growth_announce(struct growth *growth)
{
    struct vm_disk *vd = growth->vd;
    const uint64_t room = vd->cbw ? cbw_room_bytes(vd->cbw) : LIMIT_DISK_BYTES;
    struct error err = {0};
    growth->old_bytes = vd->disk->node.size_bytes;
    if (growth->size_bytes < growth->old_bytes)
        error_set(&err, ENOTSUP, "disk %s has %llu bytes: a disk that is served can't be made smaller, to %llu",
                  vd->disk->name, (unsigned long long)growth->old_bytes, (unsigned long long)growth->size_bytes);
    else if (growth->size_bytes > room)
        error_set(&err, EFBIG,
                  "disk %s can't get %llu bytes while it has snapshots: there is room for %llu until they are deleted",
                  vd->disk->name, (unsigned long long)growth->size_bytes, (unsigned long long)room);
    if (err.code) {
        growth_fail(growth, &err);
    } else if (growth->size_bytes == growth->old_bytes) {
        growth_back(growth);
    } else if (growth->tracker) {
        growth->op = (struct tracker_op){.done = tracker_announced};
        tracker_announce_growth(growth->tracker, growth->size_bytes, &growth->op);
    } else {
        growth_announced(growth);
    }
}

static void growth_looked(struct node_extension *extension, int status)
{
    struct growth *growth = container_of(extension, struct growth, extension);
    if (status < 0) {
        struct error err = extension->error;
        error_prefix(&err, "disk %s", growth->vd->disk->name);
        growth_fail(growth, &err);
    } else {
        growth->size_bytes = extension->size_bytes;
        growth_announce(growth);
    }
}

static void growth_look(struct io_message *message)
{
    struct growth *growth = container_of(message, struct growth, message);
    if (growth->size_bytes) {
        growth_announce(growth);
        return;
    }
    growth_extend(growth, 0, growth_looked);
}

/* ---- the beginning ---- */

bool growth_begin(struct vm *vm)
{
    struct list_node *first = list_take_first(&vm->growths);
    if (!first)
        return false;
    struct growth *growth = container_of(first, struct growth, link);
    struct tracking *tracking = &growth->vd->tracking;
    vm->growing = growth;
    if (vm->away) { /* since it was asked for */
        error_set(&growth->error, EBUSY, "disk %s does not grow: %s", growth->vd->disk->name, vm->away);
        growth_back(growth);
        return true;
    }
    if (tracking->state == TRACKING_RESETTING) {
        error_set(&growth->error, EBUSY, "disk %s does not grow: its tracking is being reset: try again later",
                  growth->vd->disk->name);
        growth_back(growth);
        return true;
    }
    growth->tracker = tracking->state == TRACKING_ON ? tracking->tracker : NULL;
    growth->message.deliver = growth_look;
    io_post(growth->vd->disk->node.io, &growth->message);
    return true;
}

void growths_refuse(struct vm *vm)
{
    for (struct list_node *link; (link = list_take_first(&vm->growths));) {
        struct growth *growth = container_of(link, struct growth, link);
        error_set(&growth->error, ESHUTDOWN, "disk %s does not grow: the daemon is shutting down",
                  growth->vd->disk->name);
        growth_back(growth);
    }
}

static struct vm_disk *disk_to_grow(struct vm *vm, const char *name, struct error *err)
{
    for (unsigned i = 0; i < vm->disk_count; i++) {
        struct vm_disk *vd = &vm->disks[i];
        if (strcmp(vd->disk->name, name) != 0)
            continue;
        if (vm->closing)
            error_set(err, ESHUTDOWN, "disk %s does not grow: the daemon is shutting down", name);
        else if (vm->away)
            error_set(err, EBUSY, "disk %s does not grow: %s", name, vm->away);
        else if (vd->disk->node.read_only)
            error_set(err, ENOTSUP, "disk %s does not grow: it is served read-only", name);
        else if (!vd->disk->leaf->ops->extend)
            error_set(err, ENOTSUP,
                      "disk %s can't grow while it is served, for its driver is '%s': grow what it lies on, and start "
                      "the daemon anew",
                      name, vd->disk->leaf->ops->driver);
        else
            return vd;
        return NULL;
    }
    error_set(err, ENODEV, "VM %s has no disk '%.80s'", vm->name, name);
    return NULL;
}

void vm_disk_grow(struct vm *vm, const char *disk, uint64_t size_bytes,
                  void (*done)(void *argument, uint64_t size_bytes, const struct error *err), void *argument)
{
    struct error err;
    struct vm_disk *vd = disk_to_grow(vm, disk, &err);
    struct growth *growth = vd ? calloc(1, sizeof *growth) : NULL;
    if (!growth) {
        if (vd)
            error_set(&err, ENOMEM, "no memory to make disk %s grow", disk);
        done(argument, 0, &err);
        return;
    }
    *growth = (struct growth){.vm = vm, .vd = vd, .size_bytes = size_bytes, .done = done, .argument = argument};
    vm->operations++;
    list_append(&vm->growths, &growth->link);
    vm_take_turns(vm);
}
