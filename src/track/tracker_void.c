/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * When tracking cannot go on: the sidecar fails or hangs, memory runs out, the disk's flush has failed, somebody says so.
 *
 *     NONE -> NOTING -> NOTED
 *
 * Before the first write goes untracked, it must be durable somewhere that the checkpoints are void (C20). While it is being
 * noted, writes to active extents go on, for these are tracked; others wait. It is noted by a superblock in which all
 * checkpoints are invalid. When that fails, or has not happened after TRACK_CONDEMN_NS, then by condemn(), outside of the
 * sidecar. When nothing at all has taken it after TRACK_STALL_NS the guest goes on all the same: it waits for nobody for
 * longer. The shared memory is condemned at once, so that a kill in between is safe; what is left is a power loss after
 * sidecar and state directory have both failed. That is said in the log.
 *
 * Bits, slots and memory are given back when no operation and no batch of pages looks at them any more; the memory in steps.
 */
#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/probe.h"
#include "track/tracker_internal.h"

static void void_noted(struct tracker *tracker, bool durably)
{
    struct tracker_void *voiding = &tracker->voiding;
    if (voiding->phase != VOID_NOTING)
        return;
    PROBE(track_void_noted);
    voiding->phase = VOID_NOTED;
    io_timer_cancel(tracker->disk->node.io, &voiding->timer);
    memcpy(tracker->reason, voiding->reason, sizeof tracker->reason);
    for (unsigned i = 0; i < tracker->count; i++)
        tracker->checkpoints[i]->state = CHECKPOINT_INVALID;
    if (tracker->prepared)
        tracker->prepared->state = CHECKPOINT_INVALID;
    tracker->drop_pending = true;
    if (!durably)
        log_error("disk %s: it could not be noted anywhere that its checkpoints are void: %s", tracker->disk->name,
                  voiding->reason);
    tracker_update(tracker);
    log_writer_release(tracker);
    if (tracker->options.invalidated)
        tracker->options.invalidated(tracker->options.invalidated_context, voiding->reason);
    page_store_next(tracker);
    tracker_drop_spans(tracker);
    tracker_ops_next(tracker);
}

static int64_t condemn_work(void *argument)
{
    struct tracker *tracker = argument;
    return tracker->options.condemn(tracker->options.condemn_context, tracker->voiding.reason);
}

static void condemn_done(struct io_op *op, int64_t result)
{
    struct tracker *tracker = container_of(op, struct tracker, voiding.condemn);
    tracker->voiding.condemning = false;
    PROBE(track_condemned);
    if (result == 0)
        tracker->broken = tracker->voiding.condemned = true;
    if (result == 0 || (tracker->voiding.super_tried && !tracker->super.busy))
        void_noted(tracker, result == 0);
    tracker_ops_next(tracker);
}

static void condemn(struct tracker *tracker)
{
    struct tracker_void *voiding = &tracker->voiding;
    if (!tracker->options.condemn) {
        if (!tracker->super.busy)
            void_noted(tracker, false);
        return;
    }
    if (voiding->condemning || voiding->condemned)
        return;
    voiding->condemning = true;
    voiding->condemn.done = condemn_done;
    io_work(tracker->disk->node.io, &voiding->condemn, condemn_work, tracker);
}

static void void_written(struct tracker *tracker, int status)
{
    if (status == 0) {
        void_noted(tracker, true);
    } else {
        tracker->broken = true;
        if (MUTANT(track_does_not_condemn))
            void_noted(tracker, true);
        else
            condemn(tracker);
    }
    tracker_ops_next(tracker);
}

void tracker_void_continue(struct tracker *tracker)
{
    struct tracker_void *voiding = &tracker->voiding;
    if (voiding->phase != VOID_NOTING || voiding->super_tried || tracker->super.busy)
        return;
    voiding->super_tried = true;
    if (MUTANT(track_void_not_noted))
        void_noted(tracker, true);
    else
        superblock_write(tracker, void_written);
}

static void void_timeout(struct io_timer *timer)
{
    struct tracker *tracker = container_of(timer, struct tracker, voiding.timer);
    struct io *io = tracker->disk->node.io;
    tracker->broken = true;
    if (tracker->voiding.give_up) {
        void_noted(tracker, false);
        return;
    }
    tracker->voiding.give_up = true;
    io_timer_set(io, timer, io_now_ns(io) + TRACK_STALL_NS - TRACK_CONDEMN_NS);
    condemn(tracker);
}

void tracker_fail(struct tracker *tracker, const char *format, ...)
{
    struct tracker_void *voiding = &tracker->voiding;
    struct io *io = tracker->disk->node.io;
    if (voiding->phase != VOID_NONE)
        return;
    *voiding = (struct tracker_void){.phase = VOID_NOTING, .timer = {.fire = void_timeout}};
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(voiding->reason, sizeof voiding->reason, format, arguments);
    va_end(arguments);
    if (tracker->memory.open)
        span_memory_condemn(&tracker->memory);
    io_timer_cancel(io, &tracker->writer.stalled);
    io_timer_set(io, &voiding->timer, io_now_ns(io) + TRACK_CONDEMN_NS);
    tracker_void_continue(tracker);
}

bool tracker_is_busy(const struct tracker *tracker)
{
    const struct page_store *store = &tracker->store;
    bool storing = store->phase == STORE_WRITING || store->phase == STORE_SYNCING;
    bool noting = tracker->voiding.phase == VOID_NOTING || tracker->voiding.condemning;
    return noting || storing || tracker->writer.busy || tracker->writer.wanted || tracker->super.busy;
}

static void drop_end(struct tracker *tracker)
{
    tracker->drop_pending = tracker->dropping = false;
    span_memory_close(&tracker->memory, true);
    tracker->sampler.kept_count = 0;
    tracker->voiding.phase = VOID_NONE;
    tracker_update(tracker);
    tracker_ops_next(tracker);
}

static void reap_step(struct io_timer *timer)
{
    struct tracker *tracker = container_of(timer, struct tracker, reap);
    if (span_memory_reap(&tracker->memory))
        tracker_reap(tracker);
    else if (tracker->dropping)
        drop_end(tracker);
}

void tracker_reap(struct tracker *tracker)
{
    struct io *io = tracker->disk->node.io;
    if (!tracker->memory.open || !tracker->memory.doomed || io_timer_armed(&tracker->reap))
        return;
    tracker->reap.fire = reap_step;
    io_timer_set(io, &tracker->reap, io_now_ns(io));
}

void tracker_drop_spans(struct tracker *tracker)
{
    bool busy = tracker->store.phase == STORE_WRITING || tracker->store.phase == STORE_SYNCING;
    bool used = tracker->op && !tracker->op_awaits_drop;
    if (!tracker->drop_pending || tracker->dropping || used || busy || tracker->voiding.condemning)
        return;
    tracker->dropping = true;
    tracker->store.phase = STORE_IDLE;
    for (unsigned i = 0; i < tracker->count; i++)
        span_destroy(&tracker->checkpoints[i]->span);
    if (tracker->prepared)
        span_destroy(&tracker->prepared->span);
    activity_log_reset(&tracker->log);
    disk_watch_stop(&tracker->watch);
    tracker_reap(tracker);
    if (!io_timer_armed(&tracker->reap))
        drop_end(tracker);
}
