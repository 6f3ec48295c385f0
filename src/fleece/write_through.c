/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Old data that goes straight to a backup's target, for a point without a cache (THROUGH_ALWAYS), or when its cache has no
 * room (THROUGH_WHEN_FULL). A copy reads it into a buffer, writes it to the target at its place, and releases the blocks
 * for the point: the target has them, so nobody will ask. Only then the guest's write goes on: here, and nowhere else, the
 * guest waits for a target.
 *
 *     reading -> writing -> released (or the point broke) -> idle
 *
 * What became stale while it was read is not written: the target may have it already, and a write of the guest have passed.
 *
 * Blocks that other points need as well go into the cache like all others, and the point reads them there.
 *
 * The guest waits no longer than the filter's time-out, counted from when the old data is here: then the point breaks, and
 * its writes go on at once, while the target keeps the buffer until it answers (P3). So does an error of the target.
 *
 * A crash ends point and job.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/probe.h"
#include "fleece/cbw_internal.h"

static struct point *point_of(const struct copy_before_write *cbw, uint32_t epoch)
{
    list_each (link, &cbw->points) {
        struct point *point = container_of(link, struct point, link);
        if (point->epoch == epoch && point->state == POINT_LIVE)
            return point;
    }
    return NULL;
}

int point_write_through(struct point *point, struct node *target, enum through_mode mode)
{
    struct copy_before_write *cbw = point->cbw;
    struct through_copies *through = &cbw->through;
    assert(point->state == POINT_PREPARED && !point->stored.memory && target->size_bytes >= cbw->node.size_bytes);
    if (!through->buffers) {
        size_t block = (size_t)1 << cbw->block_shift;
        through->buffer_bytes = block > THROUGH_BUFFER_BYTES ? block : THROUGH_BUFFER_BYTES;
        through->buffers = aligned_alloc(LIMIT_ALIGNMENT_BYTES, LIMIT_THROUGH_COPIES * through->buffer_bytes);
        if (!through->buffers)
            return -ENOMEM;
    }
    point->through = target;
    point->through_mode = mode;
    return 0;
}

const struct point *cbw_through_point(const struct copy_before_write *cbw, uint64_t block, bool full)
{
    if (!cbw->through.buffers)
        return NULL;
    const uint32_t newest = block_map_newest(&cbw->cache.map, block);
    const struct point *found = NULL;
    list_each (link, &cbw->points) {
        const struct point *point = container_of(link, struct point, link);
        if (point->state != POINT_LIVE || point->epoch <= newest || !point_needs(point, block))
            continue;
        if (found || (point->through_mode != THROUGH_ALWAYS && !(full && point->through_mode == THROUGH_WHEN_FULL)))
            return NULL;
        found = point;
    }
    return found;
}

uint32_t cbw_through_prepare(struct copy *copy, const struct point *point, struct block_range blocks)
{
    struct copy_before_write *cbw = copy->cbw;
    struct through_copies *through = &cbw->through;
    uint32_t most = (uint32_t)(through->buffer_bytes >> cbw->block_shift), count = 0, index = 0;
    most = most < LIMIT_COPY_BLOCKS ? most : LIMIT_COPY_BLOCKS;
    while (index < LIMIT_THROUGH_COPIES && (through->busy >> index & 1))
        index++;
    if (index == LIMIT_THROUGH_COPIES) {
        PROBE(through_buffers_busy);
        return 0;
    }
    while (count < most && count < blocks.count && cbw_through_point(cbw, blocks.first + count, true) == point)
        count++;
    through->busy |= 1U << index;
    through->under_way++;
    copy->through_epoch = point->epoch;
    copy->buffer = through->buffers + index * through->buffer_bytes;
    copy->iov[0] = (struct iovec){copy->buffer, (size_t)count << cbw->block_shift};
    copy->read.iov_count = 1;
    return count;
}

static void point_lost_target(struct point *point, int status)
{
    struct copy_before_write *cbw = point->cbw;
    PROBE(through_lost);
    point->loses = true;
    cbw_break_losers(cbw, LOST_TARGET, status);
}

/* The next run of whole data, and where it begins in the range; length 0: there is none. */
static struct range next_piece(const struct copy *copy)
{
    const unsigned shift = copy->cbw->block_shift;
    uint64_t start = copy->written_bytes, end;
    while (start < copy->range.length && (copy->torn >> (start >> shift) & 1))
        start = ((start >> shift) + 1) << shift;
    for (end = start; end < copy->range.length && !(copy->torn >> (end >> shift) & 1);)
        end = ((end >> shift) + 1) << shift;
    end = end < copy->range.length ? end : copy->range.length;
    start = start < end ? start : end;
    return (struct range){start, end - start < LIMIT_REQUEST_BYTES ? end - start : LIMIT_REQUEST_BYTES};
}

static void through_written(struct copy *copy, struct point *point, int status)
{
    for (uint32_t i = 0; point && status == 0 && i < copy->blocks.count; i++) {
        if (copy->torn >> i & 1)
            continue;
        status = bitmap_assign(&point->needed, copy->blocks.first + i, 1, false);
        copy->cbw->through.blocks += status == 0;
    }
    if (point && status < 0)
        point_lost_target(point, status);
    cbw_copy_finish(copy, 0);
}

static void through_write_on(struct copy *copy);

static void through_write_done(struct request *req, int status)
{
    struct copy *copy = container_of(req, struct copy, read);
    if (status < 0)
        through_written(copy, point_of(copy->cbw, copy->through_epoch), MUTANT(through_error_ignored) ? 0 : status);
    else
        through_write_on(copy);
}

static void through_write_on(struct copy *copy)
{
    struct point *point = point_of(copy->cbw, copy->through_epoch);
    struct range piece = next_piece(copy);
    if (!point || piece.length == 0) {
        through_written(copy, point, 0);
        return;
    }
    PROBE(through_writing);
    copy->written_bytes = range_end(piece);
    copy->iov[0] = (struct iovec){copy->buffer + piece.start, piece.length};
    copy->read.kind = REQUEST_WRITE;
    copy->read.range = (struct range){copy->range.start + piece.start, piece.length};
    copy->read.iov_count = 1;
    copy->read.done = through_write_done;
    node_submit(point->through, &copy->read);
}

uint64_t cbw_through_end(const struct copy *copy)
{
    return point_of(copy->cbw, copy->through_epoch)->size_bytes;
}

bool cbw_through_wanted(const struct copy *copy)
{
    return point_of(copy->cbw, copy->through_epoch) || MUTANT(hung_target_waited_for);
}

void cbw_through_write(struct copy *copy)
{
    copy->torn = MUTANT(through_writes_torn) ? 0 : copy->stale;
    copy->written_bytes = 0;
    copy->begun_ns = io_now_ns(copy->cbw->node.io);
    if (!io_timer_armed(&copy->cbw->through.overdue))
        io_timer_set(copy->cbw->node.io, &copy->cbw->through.overdue, copy->begun_ns + copy->cbw->timeout_ns);
    through_write_on(copy);
}

void cbw_through_done(struct copy *copy)
{
    struct through_copies *through = &copy->cbw->through;
    through->busy &= ~(1U << ((size_t)(copy->buffer - through->buffers) / through->buffer_bytes));
    through->under_way--;
    copy->buffer = NULL;
}

/* What has taken too long breaks its point; then the timer waits for the oldest of the others. */
static void through_overdue(struct io_timer *timer)
{
    struct copy_before_write *cbw = container_of(timer, struct copy_before_write, through.overdue);
    const uint64_t now = io_now_ns(cbw->node.io);
    uint64_t next = 0;
    list_each (link, &cbw->copies) {
        const struct copy *copy = container_of(link, struct copy, link);
        struct point *point = copy->buffer && copy->begun_ns ? point_of(cbw, copy->through_epoch) : NULL;
        const uint64_t due = copy->begun_ns + cbw->timeout_ns;
        if (point && due <= now && !MUTANT(through_never_overdue)) {
            PROBE(through_overdue);
            point_lost_target(point, -ETIMEDOUT);
        } else if (point && (next == 0 || due < next)) {
            next = due;
        }
    }
    if (next)
        io_timer_set(cbw->node.io, timer, next > now ? next : now + cbw->timeout_ns);
}

void cbw_through_init(struct copy_before_write *cbw)
{
    cbw->through.overdue.fire = through_overdue;
}

void cbw_through_fini(struct copy_before_write *cbw)
{
    assert(cbw->through.under_way == 0);
    io_timer_cancel(cbw->node.io, &cbw->through.overdue);
    free(cbw->through.buffers);
}
