/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The end in good order: the log is idle; the disk is flushed; all pages that differ are stored; a log block names no extent
 * any more; samples of the disk and its identity are taken, which nobody changes from here on; a superblock says that all
 * this holds. A crash before that superblock is durable is a crash like any other. When everything becomes void
 * meanwhile, the close fails as soon as that is noted.
 */
#include <assert.h>
#include <errno.h>

#include "track/tracker_internal.h"

/* Everything is void: that has been noted, and nothing is under way to the sidecar any more. */
static void close_void_continue(struct io_timer *timer)
{
    struct tracker *tracker = container_of(timer, struct tracker, pause);
    struct io *io = tracker->disk->node.io;
    if (tracker_is_busy(tracker))
        io_timer_set(io, timer, io_now_ns(io) + 10 * NS_PER_MS);
    else
        tracker_op_fail(tracker, EIO, "%.400s",
                        tracker->voiding.phase == VOID_NONE ? tracker->reason : tracker->voiding.reason);
}

static bool close_voided(struct tracker *tracker)
{
    if (tracker->voiding.phase == VOID_NONE && !tracker->broken)
        return false;
    tracker->pause.fire = close_void_continue;
    io_timer_set(tracker->disk->node.io, &tracker->pause, io_now_ns(tracker->disk->node.io));
    return true;
}

static void close_written(struct tracker *tracker, int status)
{
    tracker->closing = false;
    if (close_voided(tracker))
        return;
    if (status < 0) {
        tracker_op_fail(tracker, -status, "its sidecar cannot be written (superblock): %s", error_name(status));
        return;
    }
    tracker->opened = false;
    tracker->closed = true;
    tracker_update(tracker);
    tracker_op_finish(tracker, 0);
}

static void close_sampled(struct tracker *tracker, bool differs)
{
    (void)differs;
    if (close_voided(tracker))
        return;
    if (tracker->options.identify)
        tracker->identity = tracker->options.identify(tracker->options.identify_context);
    tracker->closing = true;
    superblock_write(tracker, close_written);
}

static void close_logged(struct tracker *tracker)
{
    if (!close_voided(tracker))
        sampler_take(tracker, close_sampled);
}

static void close_stored(struct tracker *tracker)
{
    if (close_voided(tracker))
        return;
    activity_log_reset(&tracker->log);
    log_writer_request(tracker);
    log_writer_when_idle(tracker, close_logged);
}

static void close_flushed(struct request *req, int status)
{
    struct tracker *tracker = container_of(req, struct tracker, flush);
    if (status < 0)
        tracker_fail(tracker, "the flush of the disk at the end failed: %s", error_name(status));
    if (!close_voided(tracker))
        page_store_want(tracker, NULL, close_stored);
}

static void close_idle(struct tracker *tracker)
{
    assert(list_empty(&tracker->writer.waiting) && list_empty(&tracker->writer.composed));
    if (!close_voided(tracker))
        tracker_flush_disk(tracker, close_flushed);
}

void tracker_run_close(struct tracker_op *op)
{
    struct tracker *tracker = op->tracker;
    if (tracker->prepared)
        tracker_abandon(tracker);
    if (!tracker->opened)
        tracker_op_finish(tracker, 0);
    else if (!close_voided(tracker))
        log_writer_when_idle(tracker, close_idle);
}
