/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The disk grows while it is tracked (C22). What is added is dirty since every checkpoint: whoever compares a block there
 * with an earlier backup compares it with nothing. So it is set in the last span, and with it the block that was cut short
 * by the old end.
 *
 *     announce   room in the sidecar for every span, memory for the last one; then a superblock says that the disk may have
 *                the new size by now
 *                                                the disk is extended and flushed by others; writes are held
 *     grow       the bits are set, in one step with the new size of the disk
 *     record     the bits are stored; then a superblock has the new size
 *
 * A crash before the announcement is durable finds the disk as it was. One after it finds a disk of the old size, and
 * nothing has happened; or of the new one, and it was our doing: recovery sets the bits and records them, as often as it
 * takes. A disk of any other size was changed by somebody else. Until the record is durable the bits need not be: for
 * what recovery sets anyway, a write has to wait for nothing.
 *
 * No other operation runs between announcement and record: one that merges the last span into the one before would miss
 * what is set in it then.
 *
 * A disk that does not grow after all keeps its announcement, for perhaps it was extended and only that could not be told.
 * The next open, or the next growth, does away with it.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/probe.h"
#include "track/tracker_internal.h"

static uint64_t bits_of(const struct tracker *tracker, uint64_t size_bytes)
{
    return (size_bytes + tracker_granularity(tracker) - 1) >> tracker->shift;
}

/* From the last block on, which may have been a part of one. */
static struct block_range added_bits(const struct tracker *tracker, uint64_t old_bytes, uint64_t size_bytes)
{
    const uint64_t first = bits_of(tracker, old_bytes) - 1;
    return (struct block_range){first, bits_of(tracker, size_bytes) - first};
}

static struct span *last_span(const struct tracker *tracker)
{
    return tracker->span_count > 0 ? tracker->spans[tracker->span_count - 1] : NULL;
}

/* ---- what was added becomes dirty */

static void dirty_added(struct tracker *tracker, struct block_range added)
{
    struct span *span = last_span(tracker);
    if (!span || MUTANT(track_added_is_clean))
        return;
    tracker_set_bits(tracker, added.first, 1);
    for (unsigned i = 0; i < tracker->span_count; i++)
        tracker->spans[i]->since_count += added.count - 1; /* nobody has written there yet */
    if (added.count > 1)
        span_set(span, added.first + 1, added.count - 1);
    span_change(span, added.first, added.count); /* an adopted one may have them without having stored them */
}

static void take_size(struct tracker *tracker, uint64_t size_bytes)
{
    const struct block_range added = added_bits(tracker, tracker->disk_bytes, size_bytes);
    tracker->disk_bytes = size_bytes;
    tracker->memory.bit_count = block_range_end(added);
    if (tracker->memory.open)
        span_memory_set_size(&tracker->memory, size_bytes);
    dirty_added(tracker, added);
}

void tracker_grow(struct tracker *tracker)
{
    assert(tracker->disk->writes_in_flight == 0 && tracker->disk->node.size_bytes == tracker->next_bytes);
    take_size(tracker, tracker->next_bytes);
}

int tracker_take_growth(struct tracker *tracker)
{
    PROBE(track_growth_taken_over);
    const struct block_range added = added_bits(tracker, tracker->noted_bytes, tracker->next_bytes);
    struct span *span = last_span(tracker);
    int status = activity_log_resize(&tracker->log, tracker_extents(block_range_end(added)));
    if (status == 0 && span)
        status = span_grow(span, added.first, added.count);
    if (status == 0)
        take_size(tracker, tracker->next_bytes);
    return status;
}

/* ---- announce */

static bool announce_voided(struct tracker *tracker)
{
    if (tracker->voiding.phase == VOID_NONE)
        return false;
    disk_watch_release(&tracker->watch);
    return tracker_op_voided(tracker);
}

static void announce_failed(struct tracker *tracker, int status, const char *what)
{
    disk_watch_release(&tracker->watch);
    tracker_op_fail(tracker, -status, "%s: %s", what, error_name(status));
}

static void announced(struct tracker *tracker, int status)
{
    if (status < 0)
        tracker_fail(tracker, "its sidecar cannot be written (superblock): %s", error_name(status));
    if (announce_voided(tracker))
        return;
    tracker->growing = true;
    tracker_op_finish(tracker, 0);
}

static void reserve_memory(struct tracker *tracker);

static void reserve_on(struct io_timer *timer)
{
    struct tracker *tracker = container_of(timer, struct tracker, pause);
    if (!announce_voided(tracker))
        reserve_memory(tracker);
}

/* A few pages a tick, so that the guest does not wait for all of them. */
static void reserve_memory(struct tracker *tracker)
{
    struct io *io = tracker->disk->node.io;
    struct span *span = last_span(tracker);
    const struct block_range added = added_bits(tracker, tracker->disk_bytes, tracker->op->size_bytes);
    const uint64_t most = LIMIT_BITMAP_STEP_CHUNKS * SPAN_PAGE_BITS, left = added.count - tracker->progress;
    int status = span ? span_grow(span, added.first + tracker->progress, left < most ? left : most) : 0;
    if (status == 0 && span && left > most) {
        tracker->progress += most;
        tracker->pause.fire = reserve_on;
        io_timer_set(io, &tracker->pause, io_now_ns(io));
        return;
    }
    if (status == 0)
        status = activity_log_resize(&tracker->log, tracker_extents(block_range_end(added)));
    if (status < 0) {
        announce_failed(tracker, status, "no memory for the bitmap of a larger disk");
        return;
    }
    tracker->next_bytes = tracker->op->size_bytes;
    if (MUTANT(track_growth_not_announced))
        announced(tracker, 0);
    else
        superblock_write(tracker, announced);
}

static void reserve_room(struct tracker *tracker);

static void room_reserved(struct sidecar_io *io, int status)
{
    struct tracker *tracker = container_of(io, struct tracker, op_io);
    if (announce_voided(tracker))
        return;
    if (status < 0) {
        announce_failed(tracker, status, "no room in the sidecar for a larger disk");
        return;
    }
    tracker->progress += LIMIT_NBD_RANGE_BYTES / SIDECAR_BLOCK_BYTES;
    reserve_room(tracker);
}

/* The pages that are added to the areas of all spans, one after the other, in pieces. */
static void reserve_room(struct tracker *tracker)
{
    const uint64_t most = LIMIT_NBD_RANGE_BYTES / SIDECAR_BLOCK_BYTES;
    const uint64_t first = 2 * sidecar_pages(tracker->disk_bytes, tracker->shift),
                   end = 2 * sidecar_pages(tracker->op->size_bytes, tracker->shift);
    if (first + tracker->progress >= end) {
        tracker->progress = 0;
        tracker->at_span++;
    }
    if (first == end || tracker->at_span >= tracker->span_count) {
        tracker->progress = 0;
        reserve_memory(tracker);
        return;
    }
    const uint64_t at = first + tracker->progress;
    tracker->op_io.done = room_reserved;
    sidecar_allocate(&tracker->sidecar, &tracker->op_io,
                     sidecar_page_block(&tracker->sidecar, tracker->spans[tracker->at_span]->area, 0, 0) + at,
                     end - at < most ? end - at : most);
}

void tracker_run_announce(struct tracker_op *op)
{
    struct tracker *tracker = op->tracker;
    const uint64_t room = tracker->sidecar.area_blocks / 2 * SIDECAR_PAGE_BITS << tracker->shift;
    assert(!tracker->prepared && op->size_bytes > tracker->disk_bytes);
    if (op->size_bytes > room) {
        tracker_op_fail(tracker, EFBIG,
                        "its sidecar has room for a disk of %llu bytes, not of %llu: 'fleece checkpoint reset %s' "
                        "begins anew",
                        (unsigned long long)room, (unsigned long long)op->size_bytes, tracker->disk->name);
    } else if (tracker->broken) { /* all is void, and said so elsewhere */
        tracker->next_bytes = op->size_bytes;
        int status = activity_log_resize(&tracker->log, tracker_extents(bits_of(tracker, op->size_bytes)));
        tracker->growing = status == 0;
        tracker_op_finish(tracker, status);
    } else if (!tracker_op_voided(tracker)) {
        disk_watch_hold(&tracker->watch); /* the file's times are about to change */
        tracker->progress = 0;
        tracker->at_span = 0;
        reserve_room(tracker);
    }
}

void tracker_forgo_growth(struct tracker *tracker)
{
    disk_watch_release(&tracker->watch);
    tracker->growing = false;
    tracker_ops_next(tracker);
}

/* ---- record */

static void growth_written(struct tracker *tracker, int status)
{
    if (status < 0)
        tracker_fail(tracker, "its sidecar cannot be written (superblock): %s", error_name(status));
    tracker->growth_stored(tracker, status);
}

static void growth_stored(struct tracker *tracker)
{
    if (tracker->voiding.phase != VOID_NONE) {
        tracker->growth_stored(tracker, -EIO);
        return;
    }
    tracker->noted_bytes = tracker->disk_bytes;
    tracker->next_bytes = 0;
    superblock_write(tracker, growth_written);
}

void tracker_store_growth(struct tracker *tracker, void (*done)(struct tracker *tracker, int status))
{
    tracker->growth_stored = done;
    if (last_span(tracker) && !MUTANT(track_growth_named_first))
        page_store_want(tracker, last_span(tracker), growth_stored);
    else
        growth_stored(tracker);
}

static void growth_recorded(struct tracker *tracker, int status)
{
    (void)status;
    if (!tracker_op_voided(tracker))
        tracker_op_finish(tracker, 0);
}

void tracker_run_grown(struct tracker_op *op)
{
    struct tracker *tracker = op->tracker;
    disk_watch_release(&tracker->watch);
    tracker->growing = false;
    if (tracker->broken)
        tracker_op_finish(tracker, 0);
    else if (!tracker_op_voided(tracker))
        tracker_store_growth(tracker, growth_recorded);
}
