/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Writes the blocks of the activity log, one at a time: whatever is activated while one is on its way shares the next one
 * (group commit), and it is composed at the end of a tick, when all writes of that tick have come.
 *
 * Block n goes to place n modulo SIDECAR_LOGS: recovery knows where a torn one may be, and forgives it there only (C17).
 *
 * A write of the guest never waits for long: when nothing that waits here has gone on for TRACK_STALL_NS, everything is
 * made void, and that is bounded itself (C20).
 */
#include <assert.h>

#include "base/probe.h"
#include "track/tracker_internal.h"

static void log_writer_check_idle(struct tracker *tracker)
{
    struct log_writer *writer = &tracker->writer;
    if (!writer->idle || writer->busy || writer->wanted)
        return;
    void (*idle)(struct tracker *) = writer->idle;
    writer->idle = NULL;
    idle(tracker);
}

/* The time of those who wait begins anew. */
static void log_writer_watch(struct tracker *tracker)
{
    struct log_writer *writer = &tracker->writer;
    struct io *io = tracker->disk->node.io;
    io_timer_cancel(io, &writer->stalled);
    if (tracker->voiding.phase == VOID_NONE && !list_empty(&writer->waiting))
        io_timer_set(io, &writer->stalled, io_now_ns(io) + TRACK_STALL_NS);
}

void log_writer_release(struct tracker *tracker)
{
    disk_resubmit_all(tracker->disk, &tracker->writer.composed);
    disk_resubmit_all(tracker->disk, &tracker->writer.waiting);
    log_writer_watch(tracker);
}

static void log_written(struct sidecar_io *io, int status)
{
    struct tracker *tracker = container_of(io, struct tracker, writer.io);
    struct log_writer *writer = &tracker->writer;
    writer->busy = false;
    if (status < 0) {
        tracker_fail(tracker, "its sidecar cannot be written (log block %u): %s", (writer->number + 1) % SIDECAR_LOGS,
                     error_name(status));
    } else {
        writer->number = (writer->number + 1) & SIDECAR_NUMBER_MASK;
        tracker->counters.activations += activity_log_composed(&tracker->log);
        if (tracker->voiding.phase != VOID_NOTING && !MUTANT(track_log_wakes_nobody)) {
            disk_resubmit_all(tracker->disk, &writer->composed);
            log_writer_watch(tracker);
        }
    }
    if (writer->wanted)
        io_task_queue(tracker->disk->node.io, &writer->task);
    page_store_next(tracker);
    log_writer_check_idle(tracker);
    tracker_drop_spans(tracker);
}

static void log_write(struct io_task *task)
{
    struct tracker *tracker = container_of(task, struct tracker, writer.task);
    struct log_writer *writer = &tracker->writer;
    struct sidecar_log payload;
    if (writer->busy || !writer->wanted)
        return;
    writer->wanted = false;
    if (tracker->broken) {
        log_writer_check_idle(tracker);
        return;
    }
    bool stored = tracker->store.phase == STORE_STORED;
    activity_log_compose(&tracker->log, stored, &payload);
    list_take_all(&writer->composed, &writer->waiting);
    if (stored)
        tracker->store.phase = STORE_IDLE;
    uint32_t number = (writer->number + 1) & SIDECAR_NUMBER_MASK;
    uint64_t block = SIDECAR_LOG_AT + (MUTANT(track_log_in_one_place) ? 0 : number % SIDECAR_LOGS);
    sidecar_put_payload(writer->block, 1, &payload);
    sidecar_seal(&tracker->sidecar, writer->block, 1, block, SIDECAR_LOG, number,
                 sidecar_next_sequence(&tracker->sidecar));
    writer->busy = true;
    writer->io.done = log_written;
    tracker->counters.log_writes++;
    sidecar_write(&tracker->sidecar, &writer->io, block, 1, writer->block, !MUTANT(track_log_not_durable));
    if (MUTANT(track_log_not_awaited)) {
        activity_log_composed(&tracker->log);
        disk_resubmit_all(tracker->disk, &writer->composed);
    }
}

void log_writer_request(struct tracker *tracker)
{
    tracker->writer.wanted = true;
    if (!tracker->writer.busy)
        io_task_queue(tracker->disk->node.io, &tracker->writer.task);
}

void log_writer_park(struct tracker *tracker, struct request *req, bool next_block)
{
    struct log_writer *writer = &tracker->writer;
    struct io *io = tracker->disk->node.io;
    tracker->counters.writes_parked++;
    disk_park(next_block ? &writer->waiting : &writer->composed, req);
    if (tracker->voiding.phase == VOID_NONE && !io_timer_armed(&writer->stalled) && !MUTANT(track_waits_for_ever))
        io_timer_set(io, &writer->stalled, io_now_ns(io) + TRACK_STALL_NS);
    if (tracker->log.fresh_count > 0)
        log_writer_request(tracker);
}

static void log_stalled(struct io_timer *timer)
{
    struct tracker *tracker = container_of(timer, struct tracker, writer.stalled);
    PROBE(track_sidecar_hangs);
    tracker_fail(tracker, "its sidecar did not answer for %llu seconds",
                 (unsigned long long)(TRACK_STALL_NS / NS_PER_S));
}

void log_writer_when_idle(struct tracker *tracker, void (*idle)(struct tracker *tracker))
{
    assert(!tracker->writer.idle);
    tracker->writer.idle = idle;
    log_writer_check_idle(tracker);
}

void log_writer_init(struct tracker *tracker)
{
    list_init(&tracker->writer.waiting);
    list_init(&tracker->writer.composed);
    tracker->writer.task.run = log_write;
    tracker->writer.stalled.fire = log_stalled;
}
