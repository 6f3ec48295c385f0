/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The checkpoints of a VM, over all its disks. What is durable is with the disks' trackers; here is the table of what there
 * is, so that names can be looked up, and who is waited for.
 *
 *     made       with a snapshot or alone: recorded durably on every disk that could, as PENDING
 *     PENDING -> COMMITTED   a client says that its backup is safe: durable on every disk before it is told so (C24)
 *     PENDING -> gone        it was deleted, or its client went away and the grace time has passed (C21)
 *     any -> gone            deleted: each tracker merges its span into the one before
 *
 * After a restart (vm_recover) the table is made from what the trackers know. A crash in the middle of a commit leaves a
 * checkpoint committed on some disks: somebody's backup is safe, so it is committed on the rest. A crash in the middle of
 * recording leaves one on some disks only, that nobody was told of: it is dropped (C2). Any other pending one has its grace
 * time from then on.
 */
#include "vm/checkpoints.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/name.h"
#include "vm/checkpoint_table.h"
#include "vm/snapshot_internal.h"

struct answer { /* whom to tell */
    void (*done)(void *argument, const struct error *err);
    void *argument;
};

static void checkpoint_tell(struct vm *vm, enum vm_checkpoint_event event, const struct checkpoint_id *id)
{
    const struct vm_hooks *hooks = &vm->options.hooks;
    if (hooks->checkpoint_event)
        hooks->checkpoint_event(hooks->context, event, id, NULL, NULL);
}

/* ---- the table ---- */

struct checkpoint *checkpoint_find(const struct vm *vm, const char *which)
{
    list_each (link, &vm->checkpoints) {
        struct checkpoint *checkpoint = container_of(link, struct checkpoint, link);
        if (strcmp(checkpoint->id.uuid, which) == 0 || strcmp(checkpoint->id.name, which) == 0)
            return checkpoint;
    }
    return NULL;
}

int checkpoint_check_new(const struct vm *vm, const char *name, struct error *err)
{
    int status = name_check("checkpoint name", name, err);
    if (status < 0)
        return status;
    if (checkpoint_find(vm, name))
        return error_set(err, EEXIST, "there is a checkpoint '%s' already: choose another name, or delete it", name);
    if (vm->checkpoint_count >= LIMIT_CHECKPOINTS)
        return error_set(err, ENOSPC, "checkpoint '%s' is one too many: a VM has at most %d, delete one", name,
                         LIMIT_CHECKPOINTS);
    return 0;
}

static void checkpoint_forget(struct checkpoint *checkpoint)
{
    struct vm *vm = checkpoint->vm;
    io_timer_cancel(vm->io, &checkpoint->grace);
    list_remove(&checkpoint->link);
    vm->checkpoint_count--;
    free(checkpoint);
}

void checkpoints_fini(struct vm *vm)
{
    list_each_safe (link, &vm->checkpoints)
        checkpoint_forget(container_of(link, struct checkpoint, link));
}

static void dropped(void *argument, const struct error *err)
{
    (void)argument;
    (void)err; /* it is still listed, and can be deleted by hand */
}

static void grace_over(struct io_timer *timer)
{
    struct checkpoint *checkpoint = container_of(timer, struct checkpoint, grace);
    vm_checkpoint_delete(checkpoint->vm, checkpoint->id.uuid, dropped, NULL);
}

static void checkpoint_wait(struct checkpoint *checkpoint)
{
    checkpoint->lease = NULL;
    if (!checkpoint->committed && !checkpoint->vm->closing)
        io_timer_set(checkpoint->vm->io, &checkpoint->grace,
                     io_now_ns(checkpoint->vm->io) +
                         (checkpoint->grace_ns ? checkpoint->grace_ns : LEASE_GRACE_DEFAULT_NS));
}

struct checkpoint *checkpoint_add(struct vm *vm, const struct checkpoint_id *id, uint64_t disks)
{
    struct checkpoint *checkpoint = calloc(1, sizeof *checkpoint);
    if (!checkpoint)
        return NULL;
    checkpoint->vm = vm;
    checkpoint->id = *id;
    checkpoint->disks = disks;
    checkpoint->grace.fire = grace_over;
    list_append(&vm->checkpoints, &checkpoint->link);
    vm->checkpoint_count++;
    return checkpoint;
}

void checkpoint_hold(struct checkpoint *checkpoint, const void *lease, uint64_t grace_ns)
{
    io_timer_cancel(checkpoint->vm->io, &checkpoint->grace);
    checkpoint->lease = lease;
    checkpoint->grace_ns = grace_ns;
}

void checkpoint_made(struct checkpoint *checkpoint)
{
    checkpoint_tell(checkpoint->vm, VM_CHECKPOINT_CREATED, &checkpoint->id);
}

void checkpoints_lease_end(struct vm *vm, const void *lease)
{
    list_each (link, &vm->checkpoints) {
        struct checkpoint *checkpoint = container_of(link, struct checkpoint, link);
        if (lease && checkpoint->lease == lease)
            checkpoint_wait(checkpoint);
    }
}

/* ---- commit and delete ---- */

static struct tracking_work *work_on(struct checkpoint *checkpoint, void (*start)(struct tracking_part *part),
                                     void (*done)(struct tracking_work *work), struct answer answer, struct error *err)
{
    struct answer *kept = malloc(sizeof *kept);
    struct tracking_work *work = kept ? tracking_work_new(checkpoint->vm) : NULL;
    if (!work) {
        free(kept);
        error_set(err, ENOMEM, "no memory for an operation on checkpoint '%s'", checkpoint->id.name);
        return NULL;
    }
    *kept = answer;
    for (unsigned i = 0; i < checkpoint->vm->disk_count; i++)
        work->parts[i].wanted = work->parts[i].wanted && (checkpoint->disks >> i & 1);
    work->id = checkpoint->id;
    work->start = start;
    work->done = done;
    work->context = checkpoint;
    work->argument = kept;
    checkpoint->busy = true;
    return work;
}

static struct checkpoint *checkpoint_to_change(struct vm *vm, const char *which, struct error *err)
{
    struct checkpoint *checkpoint = checkpoint_find(vm, which);
    *err = (struct error){0};
    if (vm->closing)
        error_set(err, ESHUTDOWN, "nothing is done with checkpoint '%.80s': the daemon is shutting down", which);
    else if (!checkpoint)
        error_set(err, ENOENT, "there is no checkpoint '%.80s'", which);
    else if (checkpoint->busy)
        error_set(err, EBUSY, "checkpoint '%s' is in use by another operation: try again later", checkpoint->id.name);
    return err->code ? NULL : checkpoint;
}

/* A part whose tracker has no such checkpoint (any more) has nothing to do. */
static const struct error *work_error_but_missing(struct tracking_work *work)
{
    for (unsigned i = 0; i < work->vm->disk_count; i++)
        if (work->parts[i].op.status == -ENOENT)
            work->parts[i].op.status = 0;
    return tracking_work_error(work);
}

static void part_commit(struct tracking_part *part)
{
    tracker_commit(part->vd->tracking.tracker, part->work->id.uuid, &part->op);
}

static void committed(struct tracking_work *work)
{
    struct checkpoint *checkpoint = work->context;
    struct answer *answer = work->argument;
    const struct error *err = work_error_but_missing(work);
    checkpoint->busy = false;
    if (!err) {
        checkpoint->committed = true;
        io_timer_cancel(work->vm->io, &checkpoint->grace);
        checkpoint_tell(work->vm, VM_CHECKPOINT_COMMITTED, &checkpoint->id);
    } else if (!checkpoint->lease && !io_timer_armed(&checkpoint->grace)) {
        checkpoint_wait(checkpoint);
    }
    answer->done(answer->argument, err);
    free(answer);
}

void vm_checkpoint_commit(struct vm *vm, const char *uuid, void (*done)(void *argument, const struct error *err),
                          void *argument)
{
    struct error err;
    struct checkpoint *checkpoint = checkpoint_to_change(vm, uuid, &err);
    if (checkpoint && checkpoint->committed) {
        done(argument, NULL);
        return;
    }
    struct tracking_work *work = checkpoint ? work_on(checkpoint, part_commit, committed,
                                                      (struct answer){done, argument}, &err)
                                            : NULL;
    if (work)
        tracking_work_start(work);
    else
        done(argument, &err);
}

static void part_remove(struct tracking_part *part)
{
    tracker_remove(part->vd->tracking.tracker, part->work->id.uuid, &part->op);
}

static void removed(struct tracking_work *work)
{
    struct checkpoint *checkpoint = work->context;
    struct answer *answer = work->argument;
    const struct error *err = work_error_but_missing(work);
    checkpoint->busy = false;
    if (!err) {
        checkpoint_tell(work->vm, VM_CHECKPOINT_DELETED, &checkpoint->id);
        checkpoint_forget(checkpoint);
    }
    answer->done(answer->argument, err);
    free(answer);
}

void vm_checkpoint_delete(struct vm *vm, const char *which, void (*done)(void *argument, const struct error *err),
                          void *argument)
{
    struct error err;
    struct checkpoint *checkpoint = checkpoint_to_change(vm, which, &err);
    struct tracking_work *work = checkpoint
                                     ? work_on(checkpoint, part_remove, removed, (struct answer){done, argument}, &err)
                                     : NULL;
    if (work)
        tracking_work_start(work);
    else
        done(argument, &err);
}

/* ---- a checkpoint alone ---- */

struct creation {
    struct vm *vm;
    struct checkpoint_id id;
    void (*done)(void *argument, const struct checkpoint_id *id, const struct error *err);
    void *argument;
};

static void creation_end(struct creation *creation, const struct error *err)
{
    creation->done(creation->argument, err ? NULL : &creation->id, err);
    free(creation);
}

/* Nobody's backup depends on it: it is committed at once, and what could not be is given up in time. */
static void creation_committed(void *argument, const struct error *err)
{
    creation_end(argument, err);
}

static void creation_recorded(void *argument, struct snapshot *snapshot, const struct error *err)
{
    struct creation *creation = argument;
    if (err) {
        creation_end(creation, err);
        return;
    }
    creation->id = snapshot->checkpoint;
    checkpoint_made(checkpoint_find(creation->vm, creation->id.uuid));
    vm_checkpoint_commit(creation->vm, creation->id.uuid, creation_committed, creation);
}

void vm_checkpoint_create(struct vm *vm, const char *name,
                          void (*done)(void *argument, const struct checkpoint_id *id, const struct error *err),
                          void *argument)
{
    struct error err;
    struct creation *creation = malloc(sizeof *creation);
    if (!creation) {
        error_set(&err, ENOMEM, "no memory for checkpoint '%.80s'", name);
        done(argument, NULL, &err);
        return;
    }
    *creation = (struct creation){.vm = vm, .done = done, .argument = argument};
    if (!snapshot_create_bare(vm, name, creation_recorded, creation, &err))
        creation_end(creation, &err);
}

/* ---- reset ---- */

struct reset {
    struct vm_disk *vd;
    struct answer answer;
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
    }
    reset->answer.done(reset->answer.argument, err);
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
    reset->vd->tracking.state = TRACKING_REFUSED;
    error_set(&reset->vd->tracking.error, ENOTSUP, "the tracking of disk %s is being reset", reset->vd->disk->name);
    reset_file(reset);
}

static bool any_busy(const struct vm *vm)
{
    list_each (link, &vm->checkpoints)
        if (container_of(link, struct checkpoint, link)->busy)
            return true;
    return vm->cutting != NULL;
}

static struct vm_disk *disk_to_reset(struct vm *vm, const char *disk, struct error *err)
{
    for (unsigned i = 0; i < vm->disk_count; i++) {
        struct vm_disk *vd = &vm->disks[i];
        if (strcmp(vd->disk->name, disk) != 0)
            continue;
        if (vm->closing)
            error_set(err, ESHUTDOWN, "the tracking of disk %s is not reset: the daemon is shutting down", disk);
        else if (any_busy(vm) || vd->tracking.state == TRACKING_OPENING)
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
    *reset = (struct reset){vd, {done, argument}};
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

/* ---- recovery ---- */

struct recovery {
    struct vm *vm;
    unsigned unopened;
    void (*done)(void *argument, const struct error *err);
    void *argument;
};

static void part_ask(struct tracking_part *part)
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

/* Brings one checkpoint in step over all disks; `tracked`: those that know checkpoints from before. */
static void table_settle(struct checkpoint *checkpoint, uint64_t tracked)
{
    struct vm *vm = checkpoint->vm;
    if (checkpoint->committed && checkpoint->pending) {
        checkpoint->committed = false;
        vm_checkpoint_commit(vm, checkpoint->id.uuid, dropped, NULL);
    } else if (checkpoint->pending && (checkpoint->disks & tracked) != tracked) {
        vm_checkpoint_delete(vm, checkpoint->id.uuid, dropped, NULL);
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
    uint64_t tracked = 0;
    for (unsigned i = 0; i < vm->disk_count && !failure; i++) {
        const struct tracking_part *part = &work->parts[i];
        if (part->info_count > 0)
            tracked |= UINT64_C(1) << i;
        if (table_enter(vm, part) < 0) {
            error_set(&err, ENOMEM, "no memory for the checkpoints of VM %s", vm->name);
            failure = &err;
        }
    }
    for (unsigned i = 0; i < vm->disk_count; i++)
        free(work->parts[i].infos);
    table_sort(vm);
    list_each_safe (link, &vm->checkpoints)
        table_settle(container_of(link, struct checkpoint, link), tracked);
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
    work->start = part_ask;
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

/* ---- questions ---- */

struct query {
    void (*done)(void *argument, const struct vm_checkpoints *checkpoints);
    void *argument;
    struct vm_checkpoints answer;
    char reasons[LIMIT_DISKS][LIMIT_ERROR_BYTES];
    char lacking[LIMIT_DISKS][LIMIT_ERROR_BYTES];
    char lost[LIMIT_DISKS][LIMIT_ERROR_BYTES]; /* why parts are invalid */
};

static void part_look(struct tracking_part *part)
{
    struct query *query = part->work->argument;
    const unsigned index = (unsigned)(part->vd - part->work->vm->disks);
    struct vm_tracking_disk *disk = &query->answer.disks[index];
    const struct tracker *tracker = part->vd->tracking.tracker;
    const char *reason = tracker_invalid_reason(tracker);
    disk->tracked = !reason;
    disk->recovery = tracker_recovery(tracker);
    disk->granularity_bytes = tracker_granularity(tracker);
    tracker_counters(tracker, &disk->counters);
    memccpy(query->lost[index], tracker_lost_reason(tracker), 0, LIMIT_ERROR_BYTES - 1);
    if (reason) {
        memccpy(query->reasons[index], reason, 0, LIMIT_ERROR_BYTES - 1);
        disk->reason = query->reasons[index];
    }
    part_ask(part);
}

static void query_fill(struct query *query, const struct tracking_work *work, struct vm_checkpoint *to,
                       const struct checkpoint *from)
{
    bool valid = false;
    to->id = from->id;
    for (unsigned i = 0; i < work->vm->disk_count; i++) {
        const struct tracking_part *part = &work->parts[i];
        struct vm_checkpoint_disk *disk = &to->disks[i];
        *disk = (struct vm_checkpoint_disk){
            .disk = work->vm->disks[i].disk->name, .state = CHECKPOINT_INVALID, .reason = query->lacking[i]};
        for (unsigned j = 0; part->infos && j < part->info_count; j++) {
            const struct checkpoint_info *info = &part->infos[j];
            if (strcmp(info->id.uuid, from->id.uuid) != 0)
                continue;
            disk->present = true;
            disk->state = info->state;
            disk->reason = info->state == CHECKPOINT_INVALID ? query->lost[i] : NULL;
            disk->changed_bytes = info->changed_bytes;
            disk->memory_bytes = info->memory_bytes;
            disk->file_bytes = info->file_bytes;
            valid = valid || info->state != CHECKPOINT_INVALID;
        }
    }
    to->state = !valid ? CHECKPOINT_INVALID : from->committed ? CHECKPOINT_COMMITTED : CHECKPOINT_PENDING;
}

/* Why a disk may have no part of a checkpoint. */
static void query_lacking(struct query *query, const struct vm *vm)
{
    for (unsigned i = 0; i < vm->disk_count; i++) {
        const struct tracking *tracking = &vm->disks[i].tracking;
        struct vm_tracking_disk *disk = &query->answer.disks[i];
        disk->disk = vm->disks[i].disk->name;
        if (tracking->state == TRACKING_REFUSED) {
            memcpy(query->reasons[i], tracking->error.text, LIMIT_ERROR_BYTES);
            disk->reason = query->reasons[i];
        }
        struct error lacking;
        error_set(&lacking, ENOENT, "%s%s%s", tracking->state == TRACKING_REFUSED ? query->reasons[i] : "disk ",
                  tracking->state == TRACKING_REFUSED ? "" : disk->disk,
                  tracking->state == TRACKING_REFUSED ? "" : " was not tracked then");
        memcpy(query->lacking[i], lacking.text, LIMIT_ERROR_BYTES);
    }
}

static void query_answered(struct tracking_work *work)
{
    struct query *query = work->argument;
    const struct vm *vm = work->vm;
    struct vm_checkpoint *all = calloc(vm->checkpoint_count + 1, sizeof *all);
    query->answer.checkpoints = all;
    list_each (link, &vm->checkpoints)
        if (all)
            query_fill(query, work, &all[query->answer.count++], container_of(link, struct checkpoint, link));
    for (unsigned i = 0; i < vm->disk_count; i++)
        free(work->parts[i].infos);
    query->done(query->argument, all && !tracking_work_error(work) ? &query->answer : NULL);
    free(all);
    free(query);
}

void vm_checkpoints_query(struct vm *vm, void (*done)(void *argument, const struct vm_checkpoints *checkpoints),
                          void *argument)
{
    struct query *query = calloc(1, sizeof *query);
    struct tracking_work *work = query ? tracking_work_new(vm) : NULL;
    if (!work) {
        free(query);
        done(argument, NULL);
        return;
    }
    query->done = done;
    query->argument = argument;
    query->answer.disk_count = vm->disk_count;
    query_lacking(query, vm);
    work->start = part_look;
    work->done = query_answered;
    work->argument = query;
    tracking_work_start(work);
}
