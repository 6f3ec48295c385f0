/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The disk has another size (C22). What was lost or added is dirty in every span: whoever compares a block there with an
 * earlier backup compares it with nothing. The bits are set and stored, and then a superblock has the new size. A crash
 * before that finds a disk whose size is not the one that was noted, and that makes the checkpoints invalid.
 *
 * Bits lie at the same place whatever the size is. What is beyond the new end is cleared, so that a disk that grows again
 * begins with what is set by then.
 */
#include <assert.h>
#include <errno.h>

#include "track/tracker_internal.h"

static void resize_written(struct tracker *tracker, int status)
{
    if (status < 0)
        tracker_fail(tracker, "its sidecar cannot be written (superblock): %s", error_name(status));
    if (!tracker_op_voided(tracker))
        tracker_op_finish(tracker, 0);
}

static void resize_stored(struct tracker *tracker)
{
    if (!tracker_op_voided(tracker))
        superblock_write(tracker, resize_written);
}

/* From the smaller size's last block on to the end. */
static int dirty_tail(struct tracker *tracker, uint64_t old_bits, uint64_t new_bits)
{
    uint64_t first = old_bits < new_bits ? old_bits : new_bits;
    first = first > 0 ? first - 1 : 0; /* it may have been a part of a block */
    for (unsigned i = 0; i < tracker->span_count; i++) {
        struct span *span = tracker->spans[i];
        int status = span_grow(span, first, new_bits - first);
        if (status < 0)
            return status;
        span_set(span, first, new_bits - first);
    }
    return 0;
}

void tracker_run_resize(struct tracker_op *op)
{
    struct tracker *tracker = op->tracker;
    const uint64_t size = tracker->disk->node.size_bytes, old_bits = tracker->memory.bit_count;
    assert(tracker->disk->writes_in_flight == 0);
    if (tracker_op_voided(tracker))
        return;
    const uint64_t new_bits = (size + tracker_granularity(tracker) - 1) >> tracker->shift;
    int status = 0;
    if (sidecar_pages(size, tracker->shift) > tracker->memory.sidecar_pages)
        status = -EFBIG;
    else
        status = activity_log_resize(&tracker->log, tracker_extents(new_bits));
    log_writer_release(tracker); /* slots may have become free */
    for (unsigned i = 0; i < tracker->span_count && status == 0; i++)
        if (new_bits < old_bits)
            span_clear_from(tracker->spans[i], new_bits);
    tracker->disk_bytes = size;
    tracker->memory.bit_count = new_bits;
    disk_watch_touch(&tracker->watch);
    if (tracker->memory.open)
        span_memory_set_size(&tracker->memory, size);
    if (status == 0)
        status = dirty_tail(tracker, old_bits, new_bits);
    if (status < 0)
        tracker_fail(tracker, "the disk has %llu bytes now: %s", (unsigned long long)size, error_name(status));
    if (tracker_op_voided(tracker))
        return;
    spans_count(tracker->spans, tracker->span_count);
    page_store_want(tracker, NULL, resize_stored);
}
