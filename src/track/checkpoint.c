/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A checkpoint's life, as operations of the tracker.
 *
 *     prepare   room in the sidecar (allocated and durable) and in shared memory; nobody sees anything
 *     cut       the new span is the last one; writes set their bits in it and in the one before
 *     record    the disk is flushed, a flush begun after the cut (C1); samples (C19); a superblock names the checkpoint as
 *               pending; from then on the span before gets no more bits
 *     commit    a superblock says so
 *     remove    the span before takes over the bits, in steps, while writes set theirs in both; its pages are stored; a
 *               superblock without the checkpoint; then the span is gone. The first one has none before: what changed
 *               between it and the next is of interest to nobody
 *
 * When the sidecar is broken, everything in it is void, and removing forgets what is void; nothing is written.
 *
 * A crash before a superblock is durable leaves things as they were before: the span that recovery follows has all bits.
 * After an adoption, a span that was being merged into may hold more in memory than is stored: it says so (unstored), and
 * all of its pages count as changed.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/probe.h"
#include "track/tracker_internal.h"

/* ---- prepare */

static void prepare_failed(struct tracker *tracker, int status, const char *what)
{
    free(tracker->subject);
    tracker_op_fail(tracker, -status, "%s: %s", what, error_name(status));
}

static bool prepare_voided(struct tracker *tracker)
{
    if (tracker->voiding.phase == VOID_NONE)
        return false;
    free(tracker->subject);
    return tracker_op_voided(tracker);
}

static void prepare_memory(struct tracker *tracker)
{
    struct tracker_checkpoint *checkpoint = tracker->subject;
    if (prepare_voided(tracker))
        return;
    int status = span_create(&checkpoint->span, &tracker->memory, checkpoint->span.area,
                             checkpoint->span.first_sequence);
    if (status == 0) {
        status = tracker_grow_active(tracker, &checkpoint->span);
        if (status < 0)
            span_destroy(&checkpoint->span);
        tracker_reap(tracker);
    }
    if (status < 0) {
        prepare_failed(tracker, status, "no memory for the bitmap of a checkpoint");
        return;
    }
    tracker->prepared = checkpoint;
    tracker_op_finish(tracker, 0);
}

static void prepare_allocate(struct tracker *tracker);

static void prepare_allocated(struct sidecar_io *io, int status)
{
    struct tracker *tracker = container_of(io, struct tracker, op_io);
    if (status < 0) {
        prepare_failed(tracker, status, "no room in the sidecar for a checkpoint");
        return;
    }
    tracker->progress += LIMIT_NBD_RANGE_BYTES / SIDECAR_BLOCK_BYTES;
    if (!prepare_voided(tracker))
        prepare_allocate(tracker);
}

/* The area of its span, in pieces. */
static void prepare_allocate(struct tracker *tracker)
{
    const uint64_t most = LIMIT_NBD_RANGE_BYTES / SIDECAR_BLOCK_BYTES;
    uint64_t blocks = 2 * sidecar_pages(tracker->disk_bytes, tracker->shift), at = tracker->progress;
    if (at >= blocks) {
        prepare_memory(tracker);
        return;
    }
    tracker->op_io.done = prepare_allocated;
    sidecar_allocate(&tracker->sidecar, &tracker->op_io,
                     sidecar_page_block(&tracker->sidecar, tracker->subject->span.area, 0, 0) + at,
                     blocks - at < most ? blocks - at : most);
}

static int64_t memory_create(void *argument)
{
    struct tracker *tracker = argument;
    struct span_key key = tracker_key(tracker, tracker->nonce);
    int status = span_memory_create(&tracker->memory, &key, &tracker->op->error);
    if (status == 0) {
        disk_note_begin(span_memory_note(&tracker->memory), tracker->memory.io, &tracker->options.identity);
        span_memory_settle(&tracker->memory);
    }
    return status;
}

static void memory_created(struct io_op *op, int64_t result)
{
    struct tracker *tracker = container_of(op, struct tracker, work);
    if (result < 0) {
        free(tracker->subject);
        error_prefix(&tracker->op->error, "change tracking of disk %s", tracker->disk->name);
        tracker_op_finish(tracker, (int)result);
    } else {
        tracker_watch(tracker);
        if (!prepare_voided(tracker))
            prepare_allocate(tracker);
    }
}

static int check_new(struct tracker *tracker, const struct checkpoint_id *id)
{
    struct error *err = &tracker->op->error;
    const char *disk = tracker->disk->name;
    if (!tracker->opened || tracker->broken)
        return error_set(err, EIO, "disk %s: changes are not tracked: %.300s: 'fleece checkpoint reset %s' begins anew",
                         disk, tracker->reason, disk);
    if (tracker->prepared || (tracker->count > 0 && !tracker->checkpoints[tracker->count - 1]->recorded))
        return error_set(err, EBUSY, "disk %s: another checkpoint is being made", disk);
    for (unsigned i = 0; i < tracker->count; i++)
        if (strcmp(tracker->checkpoints[i]->id.name, id->name) == 0 ||
            strcmp(tracker->checkpoints[i]->id.uuid, id->uuid) == 0)
            return error_set(err, EEXIST, "disk %s has a checkpoint '%s' (%s) already", disk,
                             tracker->checkpoints[i]->id.name, tracker->checkpoints[i]->id.uuid);
    if (tracker->count == LIMIT_CHECKPOINTS)
        return error_set(err, ENOSPC, "checkpoint '%s' is one too many: a disk has at most %d, delete one", id->name,
                         LIMIT_CHECKPOINTS);
    return 0;
}

static void prepare_again(struct io_timer *timer)
{
    struct tracker *tracker = container_of(timer, struct tracker, pause);
    if (!tracker_op_voided(tracker))
        tracker_run_prepare(tracker->op);
}

/* Every area is somebody's, or its memory is being given back. */
static void prepare_later(struct tracker *tracker)
{
    struct io *io = tracker->disk->node.io;
    tracker->pause.fire = prepare_again;
    io_timer_set(io, &tracker->pause, io_now_ns(io) + NS_PER_MS);
}

void tracker_run_prepare(struct tracker_op *op)
{
    struct tracker *tracker = op->tracker;
    int status = check_new(tracker, &op->id);
    if (status < 0) {
        tracker_op_finish(tracker, status);
        return;
    }
    if (tracker_free_area(tracker) < 0) {
        prepare_later(tracker);
        return;
    }
    struct tracker_checkpoint *checkpoint = calloc(1, sizeof *checkpoint);
    if (!checkpoint) {
        tracker_op_fail(tracker, ENOMEM, "no memory for checkpoint '%s'", op->id.name);
        return;
    }
    checkpoint->id = op->id;
    checkpoint->state = CHECKPOINT_PENDING;
    checkpoint->span.area = (unsigned)tracker_free_area(tracker);
    checkpoint->span.first_sequence = sidecar_next_sequence(&tracker->sidecar);
    tracker->subject = checkpoint;
    tracker->progress = 0;
    if (tracker->memory.open) {
        prepare_allocate(tracker);
        return;
    }
    tracker->work.done = memory_created;
    io_work(tracker->disk->node.io, &tracker->work, memory_create, tracker);
}

void tracker_abandon(struct tracker *tracker)
{
    assert(tracker->prepared);
    span_destroy(&tracker->prepared->span);
    tracker_reap(tracker);
    free(tracker->prepared);
    tracker->prepared = NULL;
}

/* ---- cut, record */

void tracker_cut(struct tracker *tracker)
{
    struct tracker_checkpoint *checkpoint = tracker->prepared;
    assert(checkpoint && tracker->disk->writes_in_flight == 0);
    tracker->prepared = NULL;
    tracker->checkpoints[tracker->count++] = checkpoint;
    if (checkpoint->state != CHECKPOINT_INVALID)
        span_publish(&checkpoint->span);
    tracker_update(tracker);
}

static void record_failed(struct tracker *tracker)
{
    struct tracker_checkpoint *checkpoint = tracker->subject;
    char reason[SIDECAR_REASON_BYTES];
    memcpy(reason, tracker->voiding.phase == VOID_NONE ? tracker->reason : tracker->voiding.reason, sizeof reason);
    tracker_forget(tracker, checkpoint);
    tracker_op_fail(tracker, EIO, "the checkpoint was lost: %.400s", reason);
}

static void record_written(struct tracker *tracker, int status)
{
    if (status < 0)
        tracker_fail(tracker, "its sidecar cannot be written (superblock): %s", error_name(status));
    if (tracker->voiding.phase != VOID_NONE) {
        record_failed(tracker);
        return;
    }
    tracker->subject->recorded = true;
    tracker_update(tracker);
    tracker_op_finish(tracker, 0);
}

static void record_sampled(struct tracker *tracker, bool differs)
{
    (void)differs;
    if (tracker->voiding.phase != VOID_NONE) {
        record_failed(tracker);
        return;
    }
    tracker->subject->named = true;
    if (MUTANT(track_record_not_written))
        record_written(tracker, 0);
    else
        superblock_write(tracker, record_written);
}

static void record_flushed(struct request *req, int status)
{
    struct tracker *tracker = container_of(req, struct tracker, flush);
    if (status < 0)
        tracker_fail(tracker, "the flush of the disk at a checkpoint failed: %s", error_name(status));
    if (tracker->voiding.phase != VOID_NONE)
        record_failed(tracker);
    else
        sampler_take(tracker, record_sampled);
}

void tracker_run_record(struct tracker_op *op)
{
    struct tracker *tracker = op->tracker;
    assert(tracker->count > 0 && !tracker->checkpoints[tracker->count - 1]->recorded);
    tracker->subject = tracker->checkpoints[tracker->count - 1];
    if (tracker->subject->state == CHECKPOINT_INVALID || tracker->voiding.phase != VOID_NONE)
        record_failed(tracker);
    else if (MUTANT(track_records_without_a_flush))
        sampler_take(tracker, record_sampled);
    else
        tracker_flush_disk(tracker, record_flushed);
}

/* ---- commit */

static bool find_subject(struct tracker *tracker)
{
    tracker->subject = tracker_find(tracker, tracker->op->id.uuid);
    if (!tracker->subject)
        tracker_op_fail(tracker, ENOENT, "there is no checkpoint %s", tracker->op->id.uuid);
    return tracker->subject != NULL;
}

static void commit_written(struct tracker *tracker, int status)
{
    if (status < 0)
        tracker_fail(tracker, "its sidecar cannot be written (superblock): %s", error_name(status));
    if (!tracker_op_voided(tracker))
        tracker_op_finish(tracker, 0);
}

void tracker_run_commit(struct tracker_op *op)
{
    struct tracker *tracker = op->tracker;
    if (tracker_op_voided(tracker) || !find_subject(tracker))
        return;
    if (tracker->subject->state == CHECKPOINT_INVALID) {
        tracker_op_fail(tracker, ESTALE, "checkpoint '%s' is invalid: %.300s", tracker->subject->id.name,
                        tracker->reason);
    } else if (tracker->subject->state == CHECKPOINT_COMMITTED) {
        tracker_op_finish(tracker, 0);
    } else {
        tracker->subject->state = CHECKPOINT_COMMITTED;
        if (MUTANT(track_commit_not_written))
            commit_written(tracker, 0);
        else
            superblock_write(tracker, commit_written);
    }
}

/* ---- remove */

static struct tracker_checkpoint *before(const struct tracker *tracker, const struct tracker_checkpoint *checkpoint)
{
    unsigned at = 0;
    while (tracker->checkpoints[at] != checkpoint)
        at++;
    return at > 0 && tracker->checkpoints[at - 1]->state != CHECKPOINT_INVALID ? tracker->checkpoints[at - 1] : NULL;
}

static void remove_written(struct tracker *tracker, int status)
{
    struct tracker_checkpoint *checkpoint = tracker->subject;
    if (status < 0)
        tracker_fail(tracker, "its sidecar cannot be written (superblock): %s", error_name(status));
    if (tracker_op_voided(tracker))
        return;
    struct tracker_checkpoint *into = before(tracker, checkpoint);
    tracker_forget(tracker, checkpoint);
    if (into)
        span_set_unstored(&into->span, false);
    if (tracker->span_count == 0) {
        activity_log_reset(&tracker->log); /* nothing is tracked any more */
        log_writer_release(tracker);
    }
    if (tracker->count == 0)
        memset(tracker->reason, 0, sizeof tracker->reason);
    tracker_op_finish(tracker, 0);
}

static void remove_name(struct tracker *tracker)
{
    if (tracker_op_voided(tracker))
        return;
    tracker->subject->named = false;
    if (MUTANT(track_removal_not_written))
        remove_written(tracker, 0);
    else
        superblock_write(tracker, remove_written);
}

static void merge_step(struct io_timer *timer)
{
    struct tracker *tracker = container_of(timer, struct tracker, pause);
    struct io *io = tracker->disk->node.io;
    if (tracker_op_voided(tracker))
        return;
    struct tracker_checkpoint *into = before(tracker, tracker->subject);
    uint64_t end = tracker->progress + LIMIT_BITMAP_STEP_CHUNKS;
    for (; tracker->progress < end && tracker->progress < tracker->memory.pages; tracker->progress++) {
        int status = span_merge_page(&into->span, &tracker->subject->span, tracker->progress);
        if (status == 0)
            continue;
        tracker->subject->merging = false; /* what has been merged already does no harm */
        tracker_update(tracker);
        tracker_op_fail(tracker, -status, "no memory to remove checkpoint '%s'", tracker->subject->id.name);
        return;
    }
    if (tracker->progress < tracker->memory.pages)
        io_timer_set(io, timer, io_now_ns(io));
    else if (MUTANT(track_merge_not_stored))
        remove_name(tracker);
    else
        page_store_want(tracker, &into->span, remove_name);
}

/* The sidecar takes no writes. Nobody will read it, if that could be noted; else the checkpoint could be back one day. */
static void remove_from_broken(struct tracker *tracker)
{
    if (!tracker->voiding.condemned) {
        tracker_op_fail(tracker, EIO, "%.300s: 'fleece checkpoint reset %s' removes all checkpoints of the disk",
                        tracker->reason, tracker->disk->name);
        return;
    }
    tracker_forget(tracker, tracker->subject);
    tracker_op_finish(tracker, 0);
}

void tracker_run_remove(struct tracker_op *op)
{
    struct tracker *tracker = op->tracker;
    struct io *io = tracker->disk->node.io;
    if (tracker_op_voided(tracker) || !find_subject(tracker))
        return;
    if (tracker->broken) {
        remove_from_broken(tracker);
        return;
    }
    struct tracker_checkpoint *into = tracker->subject->state == CHECKPOINT_INVALID ? NULL
                                                                                    : before(tracker, tracker->subject);
    if (!into || MUTANT(track_removal_does_not_merge)) {
        remove_name(tracker);
        return;
    }
    PROBE(track_merge);
    span_set_unstored(&into->span, true);
    int status = tracker_grow_active(tracker, &into->span);
    if (status < 0) {
        tracker_op_fail(tracker, -status, "no memory to remove checkpoint '%s'", tracker->subject->id.name);
        return;
    }
    tracker->subject->merging = true;
    tracker_update(tracker);
    tracker->progress = 0;
    tracker->pause.fire = merge_step;
    io_timer_set(io, &tracker->pause, io_now_ns(io));
}
