/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Reads of a snapshot that never delay a write.
 *
 * A block of a live point is either preserved in the cache, or unchanged on the disk. A read takes what lies between its
 * first and its last unpreserved block from the disk at once, without any lock, and looks again when the data is here:
 * in the point's state and in the map as they are then (C6). A block that was preserved meanwhile is taken from the cache
 * over what was read, which may be old, new or torn; for any other block no write can have passed, so what was read is
 * right. Block status is answered by the same rule. Cached blocks are copied out within that step, so no slot is pinned
 * while a reply travels.
 *
 * States of a read: submitted -> (parked, when all LIMIT_SNAPSHOT_READS are out) -> (waits at the disk's read gate, which
 * keeps readers from filling the disk's queue; then it looks at the map afresh) -> base read under way -> settled. A crash
 * loses the point with its view.
 */
#include "fleece/snapshot_access.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/probe.h"

struct snapshot_read {
    struct list_node link; /* in `idle` */
    struct snapshot_access *access;
    struct request *req;
    struct request base;
    struct read_gate_waiter gate;
    struct iovec iov[LIMIT_REQUEST_FRAGMENTS];
    struct block_extent extents[64];
};

struct snapshot_access {
    struct node node;
    struct point *point;
    struct list idle;
    struct list parked; /* for an idle read, first come, first served */
    struct io_task wake;
    struct snapshot_read reads[LIMIT_SNAPSHOT_READS];
};

static unsigned access_shift(const struct snapshot_access *access)
{
    return cbw_block_shift(access->point->cbw);
}

static struct read_gate *access_gate(const struct snapshot_access *access)
{
    return cbw_read_gate(access->point->cbw);
}

static int access_status(const struct snapshot_access *access)
{
    switch (access->point->state) {
    case POINT_LIVE:
        return 0;
    case POINT_BROKEN:
        PROBE(read_of_broken_point);
        return MUTANT(broken_point_served) ? 0 : -EIO;
    case POINT_PREPARED:
    case POINT_DELETED:
        PROBE(read_of_deleted_point);
        return MUTANT(deleted_point_served) ? 0 : -ESHUTDOWN;
    }
    abort();
}

/* The part of a block that lies in the request, as bytes. */
static struct range block_part(const struct snapshot_access *access, uint64_t block, struct range range)
{
    struct range part = blocks_to_range((struct block_range){block, 1}, access_shift(access), access->node.size_bytes);
    if (part.start < range.start) {
        part.length -= range.start - part.start;
        part.start = range.start;
    }
    if (range_end(part) > range_end(range))
        part.length = range_end(range) - part.start;
    return part;
}

/* What has to be read from the disk: from the first unpreserved block to the last one. Empty: nothing. */
static struct range unpreserved_span(const struct snapshot_access *access, struct range range)
{
    if (cbw_is_empty(access->point->cbw))
        return range;
    struct block_range blocks = range_to_blocks(range, access_shift(access));
    uint64_t first = blocks.first, end = block_range_end(blocks);
    while (first < end && point_preserved(access->point, first))
        first++;
    while (end > first && point_preserved(access->point, end - 1))
        end--;
    if (first == end)
        return (struct range){range.start, 0};
    uint64_t start = block_part(access, first, range).start;
    return (struct range){start, range_end(block_part(access, end - 1, range)) - start};
}

static void copy_preserved(const struct snapshot_access *access, const struct request *req)
{
    unsigned shift = access_shift(access);
    struct block_range blocks = range_to_blocks(req->range, shift);
    if (cbw_is_empty(access->point->cbw) || MUTANT(read_not_looked_at_again))
        return;
    for (uint64_t block = blocks.first; block < block_range_end(blocks); block++) {
        const char *data = point_preserved(access->point, block);
        if (!data)
            continue;
        PROBE(read_from_cache);
        struct range part = block_part(access, block, req->range);
        iov_copy_in(req->iov, req->iov_count, part.start - req->range.start, data + (part.start - (block << shift)),
                    part.length);
    }
}

static void read_finish(struct snapshot_read *read, int status)
{
    struct snapshot_access *access = read->access;
    request_complete(read->req, status);
    read->req = NULL;
    list_prepend(&access->idle, &read->link);
    if (!list_empty(&access->parked))
        io_task_queue(access->node.io, &access->wake);
}

static void read_base_done(struct request *base, int status)
{
    struct snapshot_read *read = container_of(base, struct snapshot_read, base);
    read_gate_leave(access_gate(read->access), base->range.length);
    if (access_status(read->access) < 0 && !MUTANT(state_not_looked_at_again))
        status = access_status(read->access);
    if (status == 0)
        copy_preserved(read->access, read->req);
    read_finish(read, status);
}

static void read_base_submit(struct snapshot_read *read, struct range span)
{
    struct request *req = read->req, *base = &read->base;
    base->kind = REQUEST_READ;
    base->range = span;
    base->done = read_base_done;
    if (span.length == req->range.length) {
        base->iov = req->iov;
        base->iov_count = req->iov_count;
    } else {
        base->iov = read->iov;
        base->iov_count = iov_slice(req->iov, req->iov_count, span.start - req->range.start, span.length, read->iov);
    }
    node_submit(cbw_disk(read->access->point->cbw)->leaf, base);
}

/* What needs no disk any more is answered; false: the span has to be read. */
static bool read_without_disk(struct snapshot_read *read, struct range *span)
{
    int status = access_status(read->access);
    if (status == 0)
        *span = unpreserved_span(read->access, read->req->range);
    if (status == 0 && span->length > 0)
        return false;
    if (status == 0)
        copy_preserved(read->access, read->req);
    read_finish(read, status);
    return true;
}

static void read_start(struct snapshot_access *access, struct snapshot_read *read)
{
    struct range span;
    if (!read_without_disk(read, &span) && read_gate_enter(access_gate(access), span.length, &read->gate))
        read_base_submit(read, span);
}

/* The gate has room. Blocks may have been preserved, or the point may have died, while the read waited. */
static void read_let_in(struct read_gate_waiter *waiter)
{
    struct snapshot_read *read = container_of(waiter, struct snapshot_read, gate);
    struct range span;
    if (!read_without_disk(read, &span)) {
        read_gate_enter_now(access_gate(read->access), span.length);
        read_base_submit(read, span);
    }
}

/* ---- block status ---- */

static bool extent_append(struct request *req, uint64_t length, uint32_t flags)
{
    struct block_extent *last = req->extent_count ? &req->extents[req->extent_count - 1] : NULL;
    if (last && last->flags == flags) {
        last->length += length;
    } else {
        if (req->extent_count == req->extent_max || (req->extent_count == 1 && (req->flags & REQUEST_ONE)))
            return false;
        req->extents[req->extent_count++] = (struct block_extent){length, flags};
    }
    return true;
}

/* The disk's answer, with every preserved block as data. */
static void status_settle(const struct snapshot_access *access, struct request *req, const struct request *base)
{
    uint64_t at = base->range.start;
    bool nothing_preserved = cbw_is_empty(access->point->cbw);
    req->extent_count = 0;
    for (unsigned i = 0; i < base->extent_count; i++) {
        const struct block_extent *extent = &base->extents[i];
        uint64_t end = at + extent->length;
        if (nothing_preserved || (extent->flags == 0)) {
            if (!extent_append(req, extent->length, extent->flags))
                return;
            at = end;
        }
        while (at < end) {
            uint64_t block = at >> access_shift(access);
            struct range part = block_part(access, block, (struct range){at, end - at});
            bool preserved = point_preserved(access->point, block) && !MUTANT(status_ignores_cache);
            if (!extent_append(req, part.length, preserved ? 0 : extent->flags))
                return;
            at = range_end(part);
        }
    }
}

static void status_base_done(struct request *base, int status)
{
    struct snapshot_read *read = container_of(base, struct snapshot_read, base);
    if (access_status(read->access) < 0)
        status = access_status(read->access);
    if (status == 0)
        status_settle(read->access, read->req, base);
    read_finish(read, status);
}

static void status_start(struct snapshot_access *access, struct snapshot_read *read)
{
    struct request *base = &read->base;
    const uint64_t most = (uint64_t)LIMIT_STATUS_BLOCKS << access_shift(access);
    base->kind = REQUEST_BLOCK_STATUS;
    base->flags = read->req->flags;
    base->range = read->req->range;
    if (!cbw_is_empty(access->point->cbw) && base->range.length > most) {
        PROBE(status_clipped);
        base->range.length = most;
    }
    base->extents = read->extents;
    base->extent_max = sizeof read->extents / sizeof *read->extents;
    base->extent_count = 0;
    base->done = status_base_done;
    node_submit(cbw_disk(access->point->cbw)->leaf, base);
}

/* ---- the node ---- */

static void access_submit(struct node *node, struct request *req)
{
    struct snapshot_access *access = container_of(node, struct snapshot_access, node);
    int status = access_status(access);
    if (status < 0 || req->kind == REQUEST_FLUSH) {
        request_complete(req, status);
        return;
    }
    assert(req->kind == REQUEST_READ || req->kind == REQUEST_BLOCK_STATUS);
    struct list_node *idle = list_take_first(&access->idle);
    if (!idle) {
        PROBE(park_snapshot_read);
        list_append(&access->parked, &req->link);
        return;
    }
    struct snapshot_read *read = container_of(idle, struct snapshot_read, link);
    read->req = req;
    read->base.flags = 0;
    if (req->kind == REQUEST_READ)
        read_start(access, read);
    else
        status_start(access, read);
}

static void access_wake(struct io_task *task)
{
    struct snapshot_access *access = container_of(task, struct snapshot_access, wake);
    while (!list_empty(&access->parked) && (!list_empty(&access->idle) || access_status(access) < 0))
        access_submit(&access->node, container_of(list_take_first(&access->parked), struct request, link));
}

static void access_destroy(struct node *node)
{
    struct snapshot_access *access = container_of(node, struct snapshot_access, node);
    assert(list_empty(&access->parked));
    for (unsigned i = 0; i < LIMIT_SNAPSHOT_READS; i++)
        assert(!access->reads[i].req);
    if (list_linked(&access->wake.link))
        list_remove(&access->wake.link);
    free(access);
}

static const struct node_ops snapshot_access_ops = {
    .driver = "snapshot-access",
    .submit = access_submit,
    .destroy = access_destroy,
};

struct node *snapshot_access_create(struct point *point)
{
    struct snapshot_access *access = calloc(1, sizeof *access);
    if (!access)
        return NULL;
    access->node = cbw_disk(point->cbw)->node;
    access->node.ops = &snapshot_access_ops;
    access->node.read_only = true;
    access->node.can_discard = access->node.can_fast_zero = false;
    access->point = point;
    access->wake.run = access_wake;
    list_init(&access->idle);
    list_init(&access->parked);
    for (unsigned i = 0; i < LIMIT_SNAPSHOT_READS; i++) {
        access->reads[i].access = access;
        access->reads[i].gate.go = read_let_in;
        list_append(&access->idle, &access->reads[i].link);
    }
    return &access->node;
}
