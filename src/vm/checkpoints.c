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
 * checkpoint_recovery.c makes the table after a restart, checkpoint_query.c tells what is in it.
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

void checkpoint_tell(struct vm *vm, enum vm_checkpoint_event event, const struct checkpoint_id *id)
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

/* 36 hexadecimal digits and hyphens: where a UUID is meant, such a name must not be found (C24). */
static bool looks_like_uuid(const char *name)
{
    return strlen(name) == UUID_TEXT_BYTES - 1 && strspn(name, "0123456789abcdefABCDEF-") == UUID_TEXT_BYTES - 1;
}

int checkpoint_check_new(const struct vm *vm, const char *name, struct error *err)
{
    int status = name_check("checkpoint name", name, err);
    if (status < 0)
        return status;
    if (looks_like_uuid(name))
        return error_set(err, EINVAL, "checkpoint name '%s' looks like a UUID: choose another one", name);
    if (checkpoint_find(vm, name))
        return error_set(err, EEXIST, "there is a checkpoint '%s' already: choose another name, or delete it", name);
    if (vm->checkpoint_count >= LIMIT_CHECKPOINTS)
        return error_set(err, ENOSPC, "checkpoint '%s' is one too many: a VM has at most %d, delete one", name,
                         LIMIT_CHECKPOINTS);
    return 0;
}

void checkpoint_forget(struct checkpoint *checkpoint)
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

void checkpoint_dropped(void *argument, const struct error *err)
{
    (void)argument;
    (void)err; /* it is still listed, and can be deleted by hand */
}

static void grace_over(struct io_timer *timer)
{
    struct checkpoint *checkpoint = container_of(timer, struct checkpoint, grace);
    vm_checkpoint_delete(checkpoint->vm, checkpoint->id.uuid, checkpoint_dropped, NULL);
}

void checkpoint_wait(struct checkpoint *checkpoint)
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

/* A disk that has lost its part is backed up in full next time, alone: the parts of the others hold. */
static void work_forgive_lost(struct tracking_work *work)
{
    bool done = false;
    for (unsigned i = 0; i < work->vm->disk_count; i++)
        done = done || (work->parts[i].wanted && work->parts[i].op.status == 0);
    for (unsigned i = 0; i < work->vm->disk_count && done; i++)
        if (work->parts[i].op.status == -ESTALE)
            work->parts[i].op.status = 0;
}

static void committed(struct tracking_work *work)
{
    struct checkpoint *checkpoint = work->context;
    struct answer *answer = work->argument;
    work_forgive_lost(work);
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
    if (err.code == ENOENT)
        error_set(&err, ENOENT,
                  "there is no checkpoint '%.80s': it was deleted, or given up because its client stayed away too long",
                  uuid);
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
    struct checkpoint *checkpoint = checkpoint_find(creation->vm, creation->id.uuid);
    if (checkpoint) /* or somebody has deleted it already: the commit says so */
        checkpoint_made(checkpoint);
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
