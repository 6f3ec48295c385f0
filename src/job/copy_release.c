/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Releases at the source what the target can't lose any more. An extent goes
 *
 *     WRITTEN -> FLUSHING (a flush of the target began after it was written, then its record is made, if there is one)
 *     -> FLUSHED -> released by a discard: DONE
 *
 * So whoever goes on after a crash finds in the record everything that the source has no more (C24).
 * A block of the snapshot that is larger than an extent is released when all its extents are FLUSHED. A flush that fails
 * fails the copy and is never tried again. A release that fails costs room in the cache and nothing else: no further one is
 * tried. What is still in the way at the end goes with the snapshot.
 */
#include "job/copy_internal.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

static void flush_is_due(struct io_timer *timer)
{
    copy_wake(container_of(timer, struct copy, flush_timer));
}

void release_init(struct copy *copy)
{
    const struct node *source = copy->options.source;
    copy->release_off = !copy->options.release || !copy->options.target || !source->can_release;
    copy->release_group = source->block_bytes > COPY_EXTENT_BYTES ? source->block_bytes / COPY_EXTENT_BYTES : 1;
    copy->flush_due_ns = io_now_ns(copy->options.io) + COPY_RELEASE_NS;
    copy->flush_timer.fire = flush_is_due;
}

void release_fini(struct copy *copy)
{
    free(copy->record_runs);
    io_timer_cancel(copy->options.io, &copy->flush_timer);
}

static void move_all(struct copy_order *order, enum copy_state from, enum copy_state to)
{
    for (uint64_t i = copy_order_find(order, from, 0); i < order->count; i = copy_order_find(order, from, i))
        copy_order_set(order, i, to);
}

/* What is FLUSHING is safe: at the target, and in the record. Or the copy has failed. */
static void release_safe(struct copy *copy)
{
    copy->flushing = false;
    copy->flush_due_ns = io_now_ns(copy->options.io) + COPY_RELEASE_NS;
    copy_wake(copy);
    if (copy->status < 0)
        return;
    move_all(&copy->order, COPY_FLUSHING, COPY_FLUSHED);
    copy->release_look = true;
    copy->release_next = 0;
}

/* The runs of what is FLUSHING. */
static int collect_runs(struct copy *copy)
{
    struct copy_order *order = &copy->order;
    free(copy->record_runs);
    copy->record_runs = malloc((order->in_state[COPY_FLUSHING] + 1) * sizeof *copy->record_runs);
    copy->record_count = 0;
    if (!copy->record_runs)
        return -ENOMEM;
    for (uint64_t end, first = 0; (first = copy_order_find(order, COPY_FLUSHING, first)) < order->count; first = end) {
        for (end = first + 1; end < order->count && order->states[end] == COPY_FLUSHING;)
            end++;
        copy->record_runs[copy->record_count++] = (struct copy_run){first, end - first};
    }
    return 0;
}

/* On a helper thread. */
static int64_t release_record(void *argument)
{
    const struct copy *copy = argument;
    return copy->options.record(copy->options.context, copy->record_runs, copy->record_count);
}

static void release_recorded(struct io_op *op, int64_t result)
{
    struct copy *copy = container_of(op, struct copy, record);
    if (result < 0)
        copy_record_failed(copy, (int)result);
    release_safe(copy);
}

static void release_flushed(struct request *req, int status)
{
    struct copy *copy = container_of(req, struct copy, flush);
    if (status == 0 && copy->options.record) {
        status = collect_runs(copy);
        copy->record.done = release_recorded;
        if (status == 0) {
            io_work(copy->options.io, &copy->record, release_record, copy);
            return;
        }
    }
    if (status < 0)
        copy_flush_failed(copy, status);
    release_safe(copy);
}

void release_flush(struct copy *copy)
{
    move_all(&copy->order, COPY_WRITTEN, COPY_FLUSHING);
    copy->unflushed_bytes = 0;
    copy->flushing = true;
    copy->flush = (struct request){.kind = REQUEST_FLUSH, .done = release_flushed};
    node_submit(copy->options.target, &copy->flush);
}

static void release_discarded(struct request *req, int status)
{
    struct copy *copy = container_of(req, struct copy, discard);
    copy->discarding = false;
    copy->release_off |= status < 0;
    copy_wake(copy);
}

/* The end of the extents from `first` on that may be released together: the last of them is FLUSHED, and others in
 * between, a few at a time, were never needed. */
static uint64_t release_run_end(const struct copy *copy, uint64_t first)
{
    const struct copy_order *order = &copy->order;
    const uint64_t most = LIMIT_NBD_RANGE_BYTES / COPY_EXTENT_BYTES;
    uint64_t end = first + 1;
    for (uint64_t at = end; at < order->count && at - first < most && at - end <= COPY_RELEASE_GAP_EXTENTS; at++) {
        if (order->states[at] == COPY_FLUSHED)
            end = at + 1;
        else if (order->states[at] != COPY_DONE)
            break;
    }
    return end;
}

/* The next run of whole groups that are safe, as long as a release may be. false: there is none. */
static bool release_next(struct copy *copy, uint64_t *first, uint64_t *end)
{
    const struct copy_order *order = &copy->order;
    const uint64_t group = copy->release_group;
    while ((*first = copy_order_find(order, COPY_FLUSHED, copy->release_next)) < order->count) {
        *end = copy->release_next = release_run_end(copy, *first);
        *first = round_up(*first, group);
        *end = *end == order->count ? *end : *end / group * group;
        if (*first < *end)
            return true;
    }
    return false;
}

static void release_discard(struct copy *copy)
{
    uint64_t first, end;
    if (!release_next(copy, &first, &end)) {
        copy->release_look = false;
        return;
    }
    for (uint64_t i = first; i < end; i++)
        if (copy->order.states[i] == COPY_FLUSHED)
            copy_order_set(&copy->order, i, COPY_DONE);
    struct range last = copy_extent_range(copy, end - 1);
    copy->discarding = true;
    copy->discard = (struct request){.kind = REQUEST_DISCARD,
                                     .range = {first * COPY_EXTENT_BYTES, range_end(last) - first * COPY_EXTENT_BYTES},
                                     .done = release_discarded};
    node_submit(copy->options.source, &copy->discard);
}

void release_go_on(struct copy *copy)
{
    if (!copy_notes_flushes(copy) || copy->status < 0)
        return;
    if (copy->release_look && !copy->discarding && !copy->release_off)
        release_discard(copy);
    if (copy->flushing || copy->flushed || copy->order.in_state[COPY_WRITTEN] == 0)
        return;
    if (copy->unflushed_bytes >= COPY_RELEASE_BYTES || io_now_ns(copy->options.io) >= copy->flush_due_ns)
        release_flush(copy);
    else if (!io_timer_armed(&copy->flush_timer))
        io_timer_set(copy->options.io, &copy->flush_timer, copy->flush_due_ns);
}
