/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The advice of a snapshot: where its blocks are, asked in rounds over the whole source, since a guest that goes on writing
 * fills the cache with further blocks. An extent with a block in RAM is copied before all others, so that the RAM comes
 * free; one with blocks in the cache file late, since it costs no more there than it has cost already.
 *
 * The first round runs ahead of the workers, so that with needed_only an extent that is not needed at all is passed over
 * before anybody looks at it. Later rounds only move extents from one queue to another; a wrong one costs time, never data.
 */
#include "job/copy_internal.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

int advice_init(struct copy *copy)
{
    if (!copy->options.advice && !copy->options.needed_only) {
        copy->advised_first = copy->size_bytes;
        return 0;
    }
    copy->residence = calloc(LIMIT_STATUS_EXTENTS, sizeof *copy->residence);
    return copy->residence ? 0 : -ENOMEM;
}

void advice_fini(struct copy *copy)
{
    io_timer_cancel(copy->options.io, &copy->advice_timer);
    free(copy->residence);
}

static enum copy_state state_for(const struct copy *copy, uint32_t flags)
{
    if (!copy->options.advice)
        return COPY_UNREAD;
    return flags & RESIDENCE_RAM ? COPY_RAM : flags & RESIDENCE_CACHE ? COPY_CACHED : COPY_UNREAD;
}

/* The next `length` bytes are like this. Extents of which all is known now go to their queues. */
static void advice_add(struct copy *copy, uint64_t length, uint32_t flags)
{
    uint64_t size = copy->size_bytes, at = copy->advised, end = at + length;
    copy->advised = end;
    while (at < end) {
        struct range extent = copy_extent_range(copy, copy_extent_of(at));
        bool begins = at == extent.start;
        copy->advice_any = (begins ? 0 : copy->advice_any) | flags;
        copy->advice_all = (begins ? ~UINT32_C(0) : copy->advice_all) & flags;
        if (end < range_end(extent))
            return;
        uint64_t first = copy_extent_of(extent.start), last = first + 1;
        if (begins) /* all extents that lie whole in this run at once */
            last = end == size ? copy->order.count : copy_extent_of(end);
        bool unneeded = copy->options.needed_only && (copy->advice_all & RESIDENCE_RELEASED);
        if (!unneeded)
            copy_order_advise_run(&copy->order, first, last, state_for(copy, copy->advice_any));
        for (uint64_t i = first; unneeded && i < last; i++)
            if (copy_state_is_todo((enum copy_state)copy->order.states[i])) {
                copy_order_set(&copy->order, i, COPY_DONE);
                copy->done_bytes += copy_extent_range(copy, i).length;
            }
        at = last == copy->order.count ? size : last * COPY_EXTENT_BYTES;
    }
}

static void advice_again(struct io_timer *timer)
{
    struct copy *copy = container_of(timer, struct copy, advice_timer);
    uint64_t first = copy_order_first(&copy->order);
    if (first < copy->order.count)
        copy->advised = first * COPY_EXTENT_BYTES;
    copy_wake(copy);
}

/* The round has come to `advised`. */
static void advice_came_to(struct copy *copy, uint64_t advised)
{
    copy->advised = advised;
    if (copy->advised_first < advised)
        copy->advised_first = advised;
    if (advised == copy->size_bytes && copy->options.advice)
        io_timer_set(copy->options.io, &copy->advice_timer, io_now_ns(copy->options.io) + COPY_ADVICE_NS);
}

/* Extents that were taken may have been released, and answers about them are of no use. */
static void advice_skip_taken(struct copy *copy)
{
    uint64_t at = copy_extent_of(copy->advised), next = copy_order_todo_from(&copy->order, at);
    if (next > at)
        advice_came_to(copy, next < copy->order.count ? next * COPY_EXTENT_BYTES : copy->size_bytes);
}

static void advice_done(struct request *req, int status)
{
    struct copy *copy = container_of(req, struct copy, advice);
    copy->advising = false;
    copy_wake(copy);
    if (status < 0 && copy_may_be_released(copy, status)) {
        advice_came_to(copy, range_end(copy_extent_range(copy, copy_extent_of(copy->advised))));
        return;
    }
    if (status < 0) {
        copy_fail(copy, status, "asking for the residence of", copy->options.source_name, req->range);
        return;
    }
    assert(req->extent_count > 0 && req->extent_count <= LIMIT_STATUS_EXTENTS);
    for (unsigned i = 0; i < req->extent_count; i++)
        advice_add(copy, copy->residence[i].length, copy->residence[i].flags);
    assert(copy->advised <= copy->size_bytes);
    advice_came_to(copy, copy->advised);
}

void advice_go_on(struct copy *copy)
{
    uint64_t size = copy->size_bytes;
    if (!copy->residence || copy->advising || copy->advised >= size)
        return;
    advice_skip_taken(copy);
    if (copy->advised >= size)
        return;
    uint64_t left = size - copy->advised;
    copy->advising = true;
    copy->advice_timer.fire = advice_again;
    copy->advice = (struct request){.kind = REQUEST_BLOCK_STATUS,
                                    .flags = REQUEST_RESIDENCE,
                                    .range = {copy->advised, left < COPY_SCAN_BYTES ? left : COPY_SCAN_BYTES},
                                    .extents = copy->residence,
                                    .extent_max = LIMIT_STATUS_EXTENTS,
                                    .done = advice_done};
    node_submit(copy_answering(copy, REQUEST_RESIDENCE), &copy->advice);
}
