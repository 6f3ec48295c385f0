/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The life of a push, on the control thread:
 *
 *     OPENING   the targets, on a helper thread, since that may block
 *     CUTTING   the snapshot of the VM; when it is there the job runs, and whoever asked for it hears so
 *     COPYING   one engine for each disk, on its reactor (push_disk.c)
 *     VERDICT   a read failed: for a moment, to learn whether the snapshot broke: then that is the reason
 *     ENDING    the snapshot is let go and deleted
 *     CLOSING   the targets, on their reactors
 *     KEEPING   names of new files are made durable, on a helper thread
 *     OVER      the job has ended; when it is certain that it failed, files that it made are removed
 *
 * A failure or a cancelling leads from each step on through the later ones, so that nothing is left behind (R7). The
 * snapshot is leased to the push and has no export: nobody else can release or delete blocks of it unseen. A target that
 * does not answer is hung up on, at once when the cancelling is by force, else after TRANSFER_PATIENCE. The guest never
 * waits for a target here, in no step (R2).
 *
 * A record of it outlives the daemon, and so does its snapshot (push_record.h): the next daemon goes on with the job, or
 * ends it, in push_restart.c. A record says what was done last, so it is stored
 *
 *     before the first target is touched; when the snapshot is there, in the step in which that is committed; before the
 *     snapshot goes (COPIED: the targets have flushed all of it; FAILED: why); before files are removed; and, when the job
 *     is no more, it goes.
 */
#include "vm/push.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/probe.h"
#include "vm/push_internal.h"

static struct push *push_of(const struct job *job)
{
    return container_of((struct job *)(uintptr_t)job, struct push, job);
}

void push_move(struct push *push, enum push_step to)
{
    static const unsigned allowed[] = {
        [PUSH_OPENING] = 1 << PUSH_CUTTING | 1 << PUSH_CLOSING,
        [PUSH_CUTTING] = 1 << PUSH_COPYING | 1 << PUSH_ENDING | 1 << PUSH_CLOSING,
        [PUSH_TAKEN_OVER] = 1 << PUSH_OPENING_AGAIN | 1 << PUSH_ENDING | 1 << PUSH_OVER,
        [PUSH_OPENING_AGAIN] = 1 << PUSH_COPYING | 1 << PUSH_ENDING,
        [PUSH_COPYING] = 1 << PUSH_VERDICT | 1 << PUSH_ENDING,
        [PUSH_VERDICT] = 1 << PUSH_ENDING,
        [PUSH_ENDING] = 1 << PUSH_CLOSING,
        [PUSH_CLOSING] = 1 << PUSH_KEEPING | 1 << PUSH_OVER,
        [PUSH_KEEPING] = 1 << PUSH_OVER,
        [PUSH_OVER] = 0,
    };
    assert(allowed[push->step] & 1U << to);
    push->step = to;
}

void push_fail(struct push *push, const struct error *err)
{
    if (push->status == 0) {
        push->status = -err->code;
        push->err = *err;
    }
}

void push_fail_cancelled(struct push *push)
{
    struct error err;
    error_set(&err, ECANCELED, "job '%s' was cancelled", push->job.id);
    push_fail(push, &err);
}

/* ---- OVER, KEEPING, CLOSING ---- */

void push_free(struct job *job)
{
    struct push *push = push_of(job);
    io_timer_cancel(push->vm->io, &push->timer);
    if (!MUTANT(push_record_stays))
        push_record_destroy(&push->record);
    for (unsigned i = 0; i < push->disk_count; i++) {
        free(push->disks[i].where);
        target_fini(&push->disks[i].target);
    }
    free(push->bitmap);
    free(push);
}

/* On a helper thread. */
static int64_t remove_targets(void *argument)
{
    struct push *push = argument;
    for (unsigned i = 0; i < push->disk_count; i++)
        target_remove(&push->disks[i].target);
    return 0;
}

static void push_dismiss(struct io_timer *timer)
{
    job_verb(&container_of(timer, struct push, timer)->job, JOB_VERB_DISMISS, NULL);
}

/* Who watched it has lost the connection to the daemon that was killed, and may come to see how it ended. */
static void push_settled(struct push *push)
{
    const bool lingers = push->taken_over && !push->options.keep_concluded && !push->job.table->ending;
    struct vm *vm = push->vm;
    push_record_conclude(&push->record, push->job.status, push->job.status < 0 ? push->job.err.text : "");
    if (lingers) {
        push->timer.fire = push_dismiss;
        io_timer_set(vm->io, &push->timer, io_now_ns(vm->io) + PUSH_LINGER_NS);
    }
    job_settled(&push->job);
}

static void targets_removed(struct io_op *op, int64_t result)
{
    (void)result;
    push_settled(container_of(op, struct push, work));
}

static void push_settle(struct job *job)
{
    struct push *push = push_of(job);
    if (job->status == 0 || push->removed) {
        push_settled(push);
        return;
    }
    push_record_note_cancelled(&push->record, job->cancelled);
    push_record_fail(&push->record, job->status, job->err.text);
    push->work.done = targets_removed;
    io_work(push->vm->io, &push->work, remove_targets, push);
}

/* It never ran: whoever asked for it hears why, and the job is gone, or (cancelled) ends like others. */
static void push_forgotten(struct io_op *op, int64_t result)
{
    struct push *push = container_of(op, struct push, work);
    void (*begun)(void *, const struct job *, const struct error *) = push->begun;
    void *argument = push->argument;
    struct error err = push->err;
    (void)result;
    push->removed = true;
    if (push->job.cancelled)
        job_ended(&push->job, push->status, &err);
    else
        job_forget(&push->job);
    begun(argument, NULL, &err);
}

static void push_over(struct push *push)
{
    push_move(push, PUSH_OVER);
    if (push->started) {
        job_ended(&push->job, push->status, &push->err);
        return;
    }
    push->work.done = push_forgotten;
    io_work(push->vm->io, &push->work, remove_targets, push);
}

/* On a helper thread. */
static int64_t keep_targets(void *argument)
{
    struct push *push = argument;
    for (unsigned i = 0; i < push->disk_count; i++)
        if (push->disks[i].where)
            push->disks[i].status = target_keep(&push->disks[i].target, &push->disks[i].err);
    return 0;
}

static void targets_kept(struct io_op *op, int64_t result)
{
    struct push *push = container_of(op, struct push, work);
    (void)result;
    for (unsigned i = 0; i < push->disk_count; i++)
        if (push->disks[i].status < 0)
            push_fail(push, &push->disks[i].err);
    push_over(push);
}

static void push_disk_closed(struct push_disk *disk)
{
    struct push *push = disk->context;
    if (--push->out > 0)
        return;
    if (push->status < 0) {
        push_over(push);
        return;
    }
    push_move(push, PUSH_KEEPING);
    push->work.done = targets_kept;
    io_work(push->vm->io, &push->work, keep_targets, push);
}

static void push_close(struct push *push)
{
    push_move(push, PUSH_CLOSING);
    io_timer_cancel(push->vm->io, &push->timer);
    push->out = push->disk_count;
    for (unsigned i = 0; i < push->disk_count; i++)
        push_disk_close(&push->disks[i]);
}

/* ---- ENDING, VERDICT ---- */

static void snapshot_deleted(void *argument, const struct error *err)
{
    struct push *push = argument;
    if (err && err->code == EBUSY) /* somebody else deletes it: its writes to the targets must have ended, too */
        io_timer_set(push->vm->io, &push->retry, io_now_ns(push->vm->io) + PUSH_RETRY_NS);
    else
        push_close(push);
}

static void push_delete_snapshot(struct push *push)
{
    const struct snapshot *snapshot = vm_snapshot_find(push->vm, push->job.id);
    struct snapshot_info info;
    if (snapshot)
        snapshot_info(snapshot, &info);
    if (snapshot && strcmp(info.uuid, push->snapshot_uuid) == 0)
        vm_snapshot_delete(push->vm, push->job.id, snapshot_deleted, push);
    else
        push_close(push);
}

static void push_delete_again(struct io_timer *timer)
{
    push_delete_snapshot(container_of(timer, struct push, retry));
}

/* Hangs up on targets that have not come back in time. */
static void push_lose_patience(struct io_timer *timer)
{
    struct push *push = container_of(timer, struct push, timer);
    for (unsigned i = 0; i < push->disk_count; i++) {
        atomic_store(&push->disks[i].wishes.hang_up, true);
        push_disk_nudge(&push->disks[i]);
    }
}

static void push_be_patient(struct push *push)
{
    push->timer.fire = push_lose_patience;
    if (push->forced)
        push_lose_patience(&push->timer);
    else if (!io_timer_armed(&push->timer))
        io_timer_set(push->vm->io, &push->timer, io_now_ns(push->vm->io) + TRANSFER_PATIENCE_NS);
}

/* What old data is on its way to a target straight from the guest's writes comes back, or is hung up on, like all else.
 * Before the snapshot goes, the record says why. */
void push_end(struct push *push)
{
    push_move(push, PUSH_ENDING);
    if (push->status < 0)
        push_record_fail(&push->record, push->status, push->err.text);
    else if (!MUTANT(push_copied_not_recorded))
        push_record_copied(&push->record);
    io_timer_cancel(push->vm->io, &push->timer);
    push_be_patient(push);
    if (push->snapshot)
        snapshot_let_go(push->snapshot);
    push->snapshot = NULL;
    push->retry.fire = push_delete_again;
    push_delete_snapshot(push);
}

/* Why its reads failed, if the snapshot knows. */
static bool push_find_cause(struct push *push)
{
    struct snapshot_info info;
    snapshot_info(push->snapshot, &info);
    if (info.reason)
        push->status = error_set(&push->err, EIO, "the snapshot of job '%s' broke: %s", push->job.id, info.reason);
    else if (info.state == SNAPSHOT_DELETING)
        push->status = error_set(&push->err, ECANCELED, "the snapshot of job '%s' was deleted", push->job.id);
    return info.reason || info.state == SNAPSHOT_DELETING;
}

static bool push_failed_reading(const struct push *push)
{
    for (unsigned i = 0; i < push->disk_count; i++)
        if (push->disks[i].failed_io && push->disks[i].failed_reading)
            return true;
    return false;
}

static void push_verdict_due(struct io_timer *timer)
{
    struct push *push = container_of(timer, struct push, timer);
    push_find_cause(push);
    push_end(push);
}

static void push_copied(struct push *push)
{
    io_timer_cancel(push->vm->io, &push->timer);
    io_timer_cancel(push->vm->io, &push->retry);
    if (push->status == 0 || push->job.cancelled || !push_failed_reading(push) || push_find_cause(push)) {
        push_end(push);
        return;
    }
    push_move(push, PUSH_VERDICT);
    push->timer.fire = push_verdict_due;
    io_timer_set(push->vm->io, &push->timer, io_now_ns(push->vm->io) + PUSH_VERDICT_NS);
}

/* ---- COPYING ---- */

/* Ends the engines: those whose target does not answer by hanging up, at once or after a while. */
static void push_stop(struct push *push)
{
    for (unsigned i = 0; i < push->disk_count; i++) {
        atomic_store(&push->disks[i].wishes.cancel, true);
        push_disk_nudge(&push->disks[i]);
    }
    push_be_patient(push);
}

/* The limit is for the job: its disks share it, and what ends leaves its part to the others. */
static void push_share_speed(struct push *push)
{
    unsigned running = 0;
    for (unsigned i = 0; i < push->disk_count; i++)
        running += push->disks[i].where && (push->disks[i].running || !push->disks[i].begun);
    for (unsigned i = 0; i < push->disk_count; i++) {
        uint64_t share = running ? push->job.speed / running : push->job.speed;
        atomic_store(&push->disks[i].wishes.speed, push->job.speed && share == 0 ? 1 : share);
        push_disk_nudge(&push->disks[i]);
    }
}

static void push_check_paused(struct push *push)
{
    bool any = false;
    for (unsigned i = 0; i < push->disk_count; i++) {
        const struct push_disk *disk = &push->disks[i];
        if (!disk->running || !disk->where)
            continue;
        any = true;
        if (atomic_load(&disk->paused_number) != atomic_load(&disk->wishes.pause_number))
            return;
    }
    if (any)
        job_paused(&push->job);
}

/* Whether the copy is all that may still keep a snapshot from breaking. */
static bool room_is_short(const struct vm *vm)
{
    return budget_is_short(vm->options.disk_bytes ? &vm->file_budget : &vm->ram_budget, 0);
}

static void push_disk_news(struct push_disk *disk)
{
    struct push *push = disk->context;
    bool hurry = room_is_short(push->vm);
    push->job.done_bytes = 0;
    for (unsigned i = 0; i < push->disk_count; i++) {
        struct push_disk *each = &push->disks[i];
        push->job.done_bytes += push_disk_done(each);
        push_disk_note(each);
        if (atomic_exchange(&each->wishes.hurry, hurry) != hurry)
            push_disk_nudge(each);
        if (each->running && atomic_exchange(&each->failing, false))
            push_stop(push);
    }
    if (push->job.user_paused)
        push_check_paused(push);
}

/* Whether the snapshot still lives, also when no engine moves that would notice. */
static void push_look(struct io_timer *timer)
{
    struct push *push = container_of(timer, struct push, retry);
    if (push->status == 0 && push_find_cause(push)) {
        job_io_error(&push->job, true); /* what the next read would say */
        push_stop(push);
    } else
        io_timer_set(push->vm->io, &push->retry, io_now_ns(push->vm->io) + PUSH_LOOK_NS);
}

static void push_disk_ended(struct push_disk *disk)
{
    struct push *push = disk->context;
    if (disk->status < 0 && push->status == 0) {
        push_fail(push, &disk->err);
        if (disk->failed_io && !push->job.cancelled)
            job_io_error(&push->job, disk->failed_reading);
        push_stop(push);
    }
    push_disk_news(disk);
    push->out--;
    if (push->out == 0)
        push_copied(push);
    else if (push->status == 0)
        push_share_speed(push);
}

void push_copy(struct push *push)
{
    push_move(push, PUSH_COPYING);
    if (MUTANT(push_copied_too_early))
        push_record_copied(&push->record);
    push->out = push->disk_count;
    push_share_speed(push); /* before an engine could begin without a limit */
    for (unsigned i = 0; i < push->disk_count; i++)
        push_disk_begin(&push->disks[i]);
    push->retry.fire = push_look;
    io_timer_set(push->vm->io, &push->retry, io_now_ns(push->vm->io) + PUSH_LOOK_NS);
}

/* From the job's verbs. */
static void push_begin(struct job *job)
{
    struct push *push = push_of(job);
    if (push->taken_over)
        push_go_on(push);
    else
        push_copy(push);
}

static void push_cancel(struct job *job, bool force)
{
    struct push *push = push_of(job);
    push_record_note_cancelled(&push->record, true);
    atomic_store(&push->stop, true);
    push->forced |= force;
    push_fail_cancelled(push);
    if (push->step == PUSH_CUTTING)
        vm_lease_end(push->vm, push);
    else if (push->step == PUSH_COPYING)
        push_stop(push);
    else if (push->step == PUSH_ENDING)
        push_be_patient(push);
}

static void push_pause(struct job *job)
{
    struct push *push = push_of(job);
    push_record_note_paused(&push->record, true);
    for (unsigned i = 0; i < push->disk_count; i++) {
        atomic_fetch_add(&push->disks[i].wishes.pause_number, 1);
        atomic_store(&push->disks[i].wishes.pause, true);
        push_disk_nudge(&push->disks[i]);
    }
}

static void push_resume(struct job *job)
{
    struct push *push = push_of(job);
    push_record_note_paused(&push->record, false);
    for (unsigned i = 0; i < push->disk_count; i++) {
        atomic_store(&push->disks[i].wishes.pause, false);
        push_disk_nudge(&push->disks[i]);
    }
}

static void push_set_speed(struct job *job, uint64_t speed)
{
    struct push *push = push_of(job);
    push_record_note_speed(&push->record, speed);
    push_share_speed(push);
}

static const struct job_ops push_ops = {
    .type = "backup",
    .start = push_begin,
    .cancel = push_cancel,
    .pause = push_pause,
    .resume = push_resume,
    .set_speed = push_set_speed,
    .settle = push_settle,
    .free = push_free,
};

/* ---- CUTTING, OPENING ---- */

static void push_note_cut(struct push *push, const struct snapshot_info *info)
{
    push->cut = (struct push_cut){
        .hold_ns = info->hold_ns, .consistency = info->consistency, .frozen_ns = info->frozen_ns};
    if (info->consistency_reason) {
        snprintf(push->consistency_reason, sizeof push->consistency_reason, "%s", info->consistency_reason);
        push->cut.consistency_reason = push->consistency_reason;
    }
}

void push_hold_snapshot(struct push *push, struct snapshot *snapshot)
{
    struct snapshot_info info;
    bool held = snapshot_hold(snapshot);
    assert(held);
    (void)held;
    snapshot_info(snapshot, &info);
    push->snapshot = snapshot;
    push_note_cut(push, &info);
    memcpy(push->snapshot_uuid, info.uuid, sizeof push->snapshot_uuid);
    for (unsigned i = 0; i < push->disk_count; i++)
        push->disks[i].view = snapshot_view(snapshot, i);
}

static void push_has_snapshot(void *argument, struct snapshot *snapshot, const struct error *err)
{
    struct push *push = argument;
    if (!snapshot) {
        push_fail(push, err);
        push_close(push);
        return;
    }
    push_hold_snapshot(push, snapshot);
    if (push->job.cancelled) {
        push_end(push);
        return;
    }
    for (unsigned i = 0; i < push->disk_count; i++) {
        const struct push_disk *disk = &push->disks[i];
        struct error grown;
        if (!disk->where || disk->view->size_bytes == disk->size_bytes)
            continue;
        error_set(&grown, EAGAIN, "disk %s has grown while the job began: start it again", disk->disk->name);
        push_fail(push, &grown);
    }
    if (push->status < 0) {
        push_end(push);
        return;
    }
    push->started = true;
    if (!MUTANT(push_begin_not_recorded))
        push_record_begin(&push->record, push->snapshot_uuid, &push->cut);
    job_start(&push->job);
    push->begun(push->argument, &push->job, NULL);
}

/* On a helper thread; the push is only read. */
static int64_t open_targets(void *argument)
{
    struct push *push = argument;
    int (*const open)(struct io *, const struct target_options *, struct target *,
                      struct error *) = push->taken_over ? target_open_again : target_open;
    int status = 0;
    for (unsigned i = 0; i < push->disk_count && status == 0; i++) {
        struct push_disk *disk = &push->disks[i];
        if (!disk->where)
            continue;
        const struct target_options options = {.where = disk->where,
                                               .size_bytes = disk->size_bytes,
                                               .existing = push->bitmap != NULL,
                                               .force = push->options.force,
                                               .stop = &push->stop,
                                               .note = disk->progress ? &disk->progress->note : &disk->note,
                                               .written = disk->progress ? &disk->progress->written : NULL,
                                               .released = disk->progress && push_record_has_released(disk->progress)};
        status = atomic_load(&push->stop) ? error_set(&disk->err, ECANCELED, "job '%s' was cancelled", push->job.id)
                                          : open(disk->disk->node.io, &options, &disk->target, &disk->err);
        disk->status = status;
    }
    return 0;
}

void push_open_targets(struct push *push, void (*opened)(struct io_op *op, int64_t result))
{
    push->work.done = opened;
    io_work(push->vm->io, &push->work, open_targets, push);
}

bool push_targets_are_open(struct push *push)
{
    for (unsigned i = 0; i < push->disk_count; i++)
        if (push->disks[i].status < 0)
            push_fail(push, &push->disks[i].err);
    return push->status == 0;
}

static void targets_opened(struct io_op *op, int64_t result)
{
    struct push *push = container_of(op, struct push, work);
    (void)result;
    if (!push_targets_are_open(push)) {
        push_close(push);
        return;
    }
    push_move(push, PUSH_CUTTING);
    for (unsigned i = 0; i < push->disk_count; i++)
        push->through[i] = push->disks[i].target.node;
    const struct snapshot_options options = {.name = push->job.id,
                                             .lease = push,
                                             .bitmap = push->bitmap,
                                             .through = push->options.mode == PUSH_BOTH ? NULL : push->through,
                                             .through_always = push->options.mode == PUSH_PLAIN,
                                             .no_export = true,
                                             .consistency = push->options.consistency,
                                             .ephemeral = !push->record.layout || MUTANT(push_snapshot_ephemeral)};
    vm_snapshot_create(push->vm, &options, push_has_snapshot, push);
}

/* Where each disk of the VM goes, and that each target is meant once. */
static int push_take_targets(struct push *push, const struct push_options *options, struct error *err)
{
    for (unsigned i = 0; i < options->target_count; i++) {
        const struct push_target *target = &options->targets[i];
        unsigned index = 0;
        while (index < push->disk_count && strcmp(push->disks[index].disk->name, target->disk) != 0)
            index++;
        if (index == push->disk_count)
            return error_set(err, ENOENT, "there is no disk '%.80s'", target->disk);
        if (push->disks[index].where)
            return error_set(err, EINVAL, "disk '%s' has two targets: one job copies it once", target->disk);
        for (unsigned k = 0; k < i; k++)
            if (strcmp(options->targets[k].where, target->where) == 0)
                return error_set(err, EINVAL, "target '%.300s' is named for two disks", target->where);
        if (target_check(target->where, err) < 0)
            return -err->code;
        push->disks[index].where = strdup(target->where);
        if (!push->disks[index].where)
            return error_set(err, ENOMEM, "no memory for a job");
        push->job.total_bytes += push->disks[index].size_bytes;
    }
    return options->target_count ? 0 : error_set(err, EINVAL, "no target is named: which disk goes where?");
}

static int push_check_mode(const struct vm *vm, const struct push_options *options, struct error *err)
{
    if (options->mode == PUSH_RAM && vm->options.disk_bytes > 0)
        return error_set(err, EINVAL, "mode 'ram' can't be had: this daemon's cache has files, too (--fleece max=)");
    return 0;
}

struct push *push_make(struct vm *vm, const struct push_options *options)
{
    struct push *push = calloc(1, sizeof *push + vm->disk_count * sizeof push->disks[0]);
    if (!push)
        return NULL;
    push->vm = vm;
    push->options = *options;
    push->disk_count = vm->disk_count;
    push->job.ops = &push_ops;
    push->job.auto_dismiss = !options->keep_concluded;
    push->job.auto_finalize = !options->wait_to_finalize;
    push->job.speed = options->speed;
    for (unsigned i = 0; i < vm->disk_count; i++) {
        struct push_disk *disk = &push->disks[i];
        disk->context = push;
        target_note_begin(&disk->note);
        disk->control = vm->io;
        disk->hooks = (struct push_disk_hooks){push_disk_news, push_disk_ended, push_disk_closed};
        disk->disk = vm->disks[i].disk;
        disk->size_bytes = node_size(&disk->disk->node);
        disk->options = (struct push_disk_options){
            .advice = !options->no_advice,
            .release = !options->no_release,
            .needed_only = options->bitmap != NULL || options->mode != PUSH_BOTH,
            .workers = options->mode == PUSH_BOTH ? 0 : PUSH_THROUGH_WORKERS,
        };
        snprintf(disk->source_name, sizeof disk->source_name, "disk %s", disk->disk->name);
    }
    return push;
}

/* A number that no other push has. */
static unsigned free_number(const struct job_table *jobs, const struct push *without)
{
    uint64_t taken = 0;
    unsigned number = 0;
    list_each (link, &jobs->jobs) {
        const struct push *push = push_of(container_of(link, struct job, link));
        taken |= push == without ? 0 : UINT64_C(1) << push->number;
    }
    while (taken >> number & 1)
        number++;
    assert(number < LIMIT_JOBS);
    return number;
}

/* Before anything of it is made. Where there can be no record, the job ends with the daemon. */
static void push_make_record(struct push *push, const struct push_options *options)
{
    const struct vm *vm = push->vm;
    const struct vm_hooks *hooks = &vm->options.hooks;
    struct push_record_target targets[LIMIT_DISKS] = {0};
    struct push_disk *disks[LIMIT_DISKS];
    struct error err;
    unsigned count = 0;
    if (!vm->memory_folder[0])
        return;
    for (unsigned i = 0; i < push->disk_count; i++) {
        struct push_disk *disk = &push->disks[i];
        if (!disk->where)
            continue;
        targets[count] = (struct push_record_target){disk->disk->name, disk->where, disk->size_bytes, {0}};
        if (hooks->disk_identity)
            targets[count].identity = hooks->disk_identity(hooks->context, disk->disk);
        disks[count++] = disk;
    }
    if (push_record_create(&push->record, vm->io, vm->memory_folder, push->number, options, push->job.id, targets,
                           count, &err) < 0) {
        log_warning("job %s will end with the daemon: %s", push->job.id, err.text);
        return;
    }
    for (unsigned i = 0; i < count; i++)
        disks[i]->progress = &push->record.layout->progress[i];
}

void push_start(struct vm *vm, struct job_table *jobs, const struct push_options *options,
                void (*begun)(void *argument, const struct job *job, const struct error *err), void *argument)
{
    struct error err = {0};
    struct push *push = push_make(vm, options);
    int status = push ? push_check_mode(vm, options, &err) : error_set(&err, ENOMEM, "no memory for a job");
    if (status == 0)
        status = push_take_targets(push, options, &err);
    if (status == 0 && options->bitmap && !(push->bitmap = strdup(options->bitmap)))
        status = error_set(&err, ENOMEM, "no memory for a job");
    if (status == 0)
        status = job_create(jobs, &push->job, options->job_id, &err);
    if (status < 0) {
        if (push)
            push_free(&push->job);
        begun(argument, NULL, &err);
        return;
    }
    push->begun = begun;
    push->argument = argument;
    push->number = free_number(jobs, push);
    push_make_record(push, options);
    push_open_targets(push, targets_opened);
}

bool push_disk_info(const struct job *job, unsigned index, struct push_disk_info *info)
{
    const struct push *push = push_of(job);
    for (unsigned i = 0; i < push->disk_count; i++) {
        const struct push_disk *disk = &push->disks[i];
        if (!disk->where || index-- > 0)
            continue;
        *info = (struct push_disk_info){.disk = disk->disk->name,
                                        .target = disk->where,
                                        .done_bytes = push_disk_done(disk),
                                        .total_bytes = disk->size_bytes,
                                        .data_bytes = push_disk_data(disk)};
        return true;
    }
    return false;
}

bool push_cut(const struct job *job, struct push_cut *cut)
{
    const struct push *push = push_of(job);
    *cut = push->cut;
    return push->started;
}
