/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Pushes that a killed daemon has left. Each has a record, which says how far it had come:
 *
 *     OPENING    nobody was told of it: files that it made are removed, its snapshot goes, there is no such job
 *     COPYING    it goes on: the targets are opened again, on a helper thread; then everything that its snapshot still needs
 *                is copied. Or it fails with the reason
 *     COPIED     it ends well, as it was about to
 *     FAILED     it ends so: what it made is removed
 *     CONCLUDED  it waits for job-dismiss
 *
 * What is safe at a target has been released at the snapshot, after a flush and before anything relied on it; so what the
 * snapshot still needs is all that may be missing. Some of that had been written: it is written again, with the same bytes,
 * for a point never changes. So it is harmless as well if a write of the dead daemon lands late, at a server far away: it
 * carries what is there, or what will be. A file's are awaited, by its lock (C10).
 *
 * It does not go on, but fails with the reason, when
 *
 *  - its snapshot is gone, or broken (R4);
 *  - a target is another file or device than before, was changed by somebody else, or is not to be had;
 *  - a target is an NBD export (whose server may have been started anew, and hold nothing), a block device or a file on a
 *    file system of several machines, and something had been released: nobody can say whether it still holds what was
 *    written then, and the snapshot has it no more (job/target.c);
 *  - old data went straight to the targets (modes ram and plain): until they are open again, which may take long or never
 *    come about, the guest's writes would have nowhere to leave old data, and would wait at the start of the daemon (R2).
 *
 * A job that was paused or cancelled is so again. Whoever watched it has lost the connection: it stays for a while when it
 * is over, also when it would have been dismissed at once. Snapshots of pushes that no record claims end here.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/log.h"
#include "base/probe.h"
#include "vm/push_internal.h"
#include "vm/snapshot_internal.h"

/* ---- going on ---- */

static void opened_again(struct io_op *op, int64_t result)
{
    struct push *push = container_of(op, struct push, work);
    (void)result;
    if (push_targets_are_open(push))
        push_copy(push);
    else
        push_end(push);
}

void push_go_on(struct push *push)
{
    if (push_record_state(&push->record) == PUSH_RECORD_CONCLUDED) {
        push_move(push, PUSH_OVER);
        push->removed = true;
        job_ended(&push->job, push->status, &push->err);
    } else if (push->status < 0 || push_record_state(&push->record) != PUSH_RECORD_COPYING) {
        push_end(push);
    } else {
        push_move(push, PUSH_OPENING_AGAIN);
        push_open_targets(push, opened_again);
    }
}

/* ---- whether it can ---- */

static int check_snapshot(struct push *push, struct snapshot *snapshot, struct error *err)
{
    const char *id = push->job.id;
    if (!snapshot || snapshot->step != LIVE || strcmp(snapshot->uuid, push->snapshot_uuid) != 0)
        return error_set(err, EIO, "the snapshot of job '%s' has not survived the end of the daemon", id);
    if (snapshot->broken)
        return error_set(err, EIO, "the snapshot of job '%s' broke: %s", id, snapshot->reason);
    for (unsigned i = 0; i < push->disk_count; i++)
        if (push->disks[i].where && snapshot_size(snapshot, i) != push->disks[i].size_bytes)
            return error_set(err, EIO, "the snapshot of job '%s' has another size than disk %s had", id,
                             push->disks[i].disk->name);
    return 0;
}

static int check_mode(const struct push *push, struct error *err)
{
    if (push->options.mode != PUSH_BOTH)
        return error_set(err, EIO,
                         "job '%s' can't go on after the end of the daemon: in mode '%s' old data went straight to its "
                         "targets",
                         push->job.id, push->options.mode == PUSH_RAM ? "ram" : "plain");
    return 0;
}

static void hold_snapshot(struct push *push)
{
    struct snapshot *snapshot = vm_snapshot_find(push->vm, push->job.id);
    struct error err;
    if (check_mode(push, &err) < 0 || check_snapshot(push, snapshot, &err) < 0 ||
        vm_snapshot_lease(push->vm, push->snapshot_uuid, push, &err) < 0) {
        push_fail(push, &err);
        return;
    }
    push_hold_snapshot(push, snapshot);
}

/* ---- taking over ---- */

/* Nobody waits for it, or nobody could: what it made is removed, but for a copy that is whole and was not cancelled, and for
 * what is nobody's business any more. */
static void forget_record(struct push_record *record)
{
    const enum push_record_state state = push_record_state(record);
    const bool keep = state == PUSH_RECORD_CONCLUDED ||
                      (state == PUSH_RECORD_COPIED && !push_record_is_cancelled(record));
    for (unsigned i = 0; i < record->layout->sealed.disk_count && !keep; i++) {
        struct target target;
        struct target_note *note = &record->layout->progress[i].note;
        if (target_take_over(push_record_where(record, i), note, &target) == 0 && !MUTANT(push_file_stays))
            target_remove(&target);
        target_fini(&target);
    }
    push_record_destroy(record);
}

static struct push_disk *find_disk(struct push *push, const char *name)
{
    for (unsigned i = 0; i < push->disk_count; i++)
        if (strcmp(push->disks[i].disk->name, name) == 0)
            return &push->disks[i];
    return NULL;
}

static int take_disk(struct push *push, const struct push_record *record, unsigned number, struct error *err)
{
    const struct push_record_disk *from = &record->layout->sealed.disks[number];
    struct push_record_progress *progress = &record->layout->progress[number];
    struct push_disk *disk = find_disk(push, from->name);
    if (!disk || disk->where)
        return error_set(err, ENODEV, "disk %s is not there any more", from->name);
    const char *where = push_record_where(record, number);
    disk->where = strdup(where);
    if (!disk->where || target_take_over(where, &progress->note, &disk->target) < 0)
        return error_set(err, ENOMEM, "no memory for a job");
    disk->progress = progress;
    disk->size_bytes = from->size_bytes;
    disk->before_done_bytes = push_record_done(progress);
    disk->before_done_bytes = disk->before_done_bytes < disk->size_bytes ? disk->before_done_bytes : disk->size_bytes;
    disk->before_data_bytes = push_record_data(progress);
    disk->options.needed_only = !MUTANT(push_released_is_read);
    push->job.total_bytes += disk->size_bytes;
    push->job.done_bytes += disk->before_done_bytes;
    return 0;
}

static struct push_options options_of(const struct push_record *record)
{
    const uint32_t flags = record->layout->sealed.flags;
    return (struct push_options){
        .mode = (enum push_mode)record->layout->sealed.mode,
        .speed = push_record_speed(record),
        .no_advice = flags & PUSH_RECORD_NO_ADVICE,
        .no_release = flags & PUSH_RECORD_NO_RELEASE,
        .keep_concluded = flags & PUSH_RECORD_KEEP_CONCLUDED,
        .wait_to_finalize = flags & PUSH_RECORD_WAIT_TO_FINALIZE,
    };
}

/* The push as the record tells of it, in the table. It takes the record. NULL with the reason. */
static struct push *push_take_over(struct vm *vm, struct job_table *jobs, struct push_record *record, unsigned number,
                                   struct error *err)
{
    const struct push_record_layout *layout = record->layout;
    const struct push_options options = options_of(record);
    struct push *push = push_make(vm, &options);
    int status = push ? 0 : error_set(err, ENOMEM, "no memory for a job");
    for (unsigned i = 0; status == 0 && i < layout->sealed.disk_count; i++)
        status = take_disk(push, record, i, err);
    if (status == 0 && layout->sealed.bitmap[0] && !(push->bitmap = strdup(layout->sealed.bitmap)))
        status = error_set(err, ENOMEM, "no memory for a job");
    if (status == 0)
        status = job_create(jobs, &push->job, layout->sealed.job, err);
    if (status < 0) {
        if (push)
            push_free(&push->job);
        return NULL;
    }
    push->record = *record;
    push->number = number;
    push->step = PUSH_TAKEN_OVER;
    push->started = push->taken_over = true;
    push->job.auto_dismiss = false; /* see push_settled() */
    push->job.cancelled = push_record_is_cancelled(record) && !MUTANT(push_cancelling_forgotten);
    memcpy(push->snapshot_uuid, layout->cut.snapshot, sizeof push->snapshot_uuid);
    memcpy(push->consistency_reason, layout->cut.reason, sizeof push->consistency_reason);
    push->cut = (struct push_cut){.hold_ns = layout->cut.hold_ns,
                                  .frozen_ns = layout->cut.frozen_ns,
                                  .consistency = (enum consistency)layout->cut.consistency,
                                  .consistency_reason = layout->cut.reason[0] ? push->consistency_reason : NULL};
    return push;
}

static void tell(const struct push *push)
{
    if (push->status < 0)
        log_warning("a job of the daemon that was killed has failed: %s", push->err.text);
    else
        log_info("job %s has survived", push->job.id);
}

static void push_start_again(struct push *push)
{
    const struct push_record_end *end = push_record_end(&push->record);
    struct job *job = &push->job;
    const enum push_record_state state = push_record_state(&push->record);
    const bool concluded = state == PUSH_RECORD_CONCLUDED, paused = push_record_is_paused(&push->record);
    struct error err;
    if (state >= PUSH_RECORD_FAILED && end->status < 0) {
        error_set(&err, -end->status, "%s", end->reason);
        push_fail(push, &err);
    }
    if (!concluded && job->cancelled)
        push_fail_cancelled(push);
    if (state == PUSH_RECORD_COPYING && push->status == 0)
        hold_snapshot(push);
    if (state == PUSH_RECORD_COPIED || (concluded && push->status == 0))
        for (unsigned i = 0; i < push->disk_count; i++)
            if (push->disks[i].where)
                push->disks[i].before_done_bytes = push->disks[i].size_bytes;
    tell(push);
    const bool going_on = push->snapshot != NULL;
    job->auto_finalize |= concluded; /* it has been */
    job_start(job);
    if (going_on && paused)
        (void)job_verb(job, JOB_VERB_PAUSE, &err);
}

static void record_take_over(struct vm *vm, struct job_table *jobs, unsigned number)
{
    struct push_record record;
    struct error err = {0};
    int status = push_record_adopt(&record, vm->io, vm->memory_folder, number, &err);
    if (status < 0 && status != -ENOENT && status != -EBADMSG)
        log_warning("a job of the daemon that was killed is lost: %s", err.text);
    if (status < 0 && status != -EBADMSG)
        return;
    struct push *push = NULL;
    err.code = 0;
    if (push_record_state(&record) != PUSH_RECORD_OPENING)
        push = push_take_over(vm, jobs, &record, number, &err);
    if (push) {
        push_start_again(push);
        return;
    }
    if (err.code)
        log_warning("job %s of the daemon that was killed is lost: %s", record.layout->sealed.job, err.text);
    forget_record(&record);
}

static void unclaimed_gone(void *argument, const struct error *err)
{
    (void)argument;
    (void)err;
}

/* It lives, was a push's, and no push has it. */
static const struct snapshot *find_unclaimed(const struct vm *vm)
{
    for (struct snapshot *snapshot = NULL; (snapshot = vm_snapshot_next(vm, snapshot));)
        if (snapshot->step == LIVE && snapshot->no_export && snapshot->holds == 0)
            return snapshot;
    return NULL;
}

void pushes_take_over(struct vm *vm, struct job_table *jobs)
{
    const struct snapshot *snapshot;
    for (unsigned i = 0; i < LIMIT_JOBS && vm->memory_folder[0]; i++)
        record_take_over(vm, jobs, i);
    while (!MUTANT(push_unclaimed_snapshot_stays) && (snapshot = find_unclaimed(vm)))
        vm_snapshot_delete(vm, snapshot->name, unclaimed_gone, NULL);
}
