/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Block status. Data is data; zero clusters, and what nobody has, are holes that read as zeroes. Where this image has
 * nothing its backing file answers; or, with REQUEST_TOP, nobody: EXTENT_BACKING.
 *
 * One request looks at LIMIT_QCOW2_STATUS_STEPS runs at most, so an answer may be shorter than the question.
 */
#include <assert.h>
#include <errno.h>

#include "base/probe.h"
#include "driver/qcow2/internal.h"

static void status_go_on(struct request *req);

/* Where there is room: whoever calls has looked. */
static void add_extent(struct request *req, uint64_t length, uint32_t flags)
{
    const bool added = request_add_extent(req, length, flags);
    assert(added);
    qcow2_op_of(req)->at += length;
}

/* What is known is a good answer. */
static void status_end(struct request *req, int status)
{
    request_complete(req, req->extent_count > 0 ? 0 : status);
}

static void status_wake(struct qcow2_waiter *waiter, int status)
{
    struct request *req = qcow2_op_request(container_of(waiter, struct qcow2_op, waiter));
    if (status < 0)
        status_end(req, status);
    else
        status_go_on(req);
}

/* The backing file's extents lie behind ours. */
static void backing_answered(struct request *child, int status)
{
    struct piece *piece = container_of(child, struct piece, req);
    struct request *req = piece->parent;
    unsigned first = req->extent_count;
    qcow2_op_of(req)->pending++;
    if (status == 0) {
        for (unsigned i = 0; i < child->extent_count; i++) {
            struct block_extent extent = req->extents[first + i]; /* before it is overwritten */
            add_extent(req, extent.length, extent.flags);
        }
    }
    piece_put(qcow2_op_of(req)->image, piece);
    if (status < 0 || (req->flags & REQUEST_ONE))
        status_end(req, status);
    else
        status_go_on(req);
}

static bool is_full(const struct request *req)
{
    return req->extent_count == req->extent_max || ((req->flags & REQUEST_ONE) && req->extent_count > 0);
}

/* Whether the part is answered; else its answer comes, or the request is over. */
static bool answer_part(struct request *req, const struct mapping *mapping)
{
    struct qcow2_op *op = qcow2_op_of(req);
    struct qcow2 *image = op->image;
    uint64_t length = mapping->length;
    if (mapping->kind == MAP_DATA || mapping->kind == MAP_COMPRESSED) {
        add_extent(req, length, 0);
    } else if (mapping->kind == MAP_ZERO || !image->header.has_backing) {
        add_extent(req, length, EXTENT_HOLE | EXTENT_ZERO);
    } else if (req->flags & REQUEST_TOP) {
        add_extent(req, length, EXTENT_BACKING);
    } else if (!image->backing) {
        status_end(req, -ENODATA);
        return false;
    } else if (op->at >= image->backing->size_bytes) {
        add_extent(req, length, EXTENT_HOLE | EXTENT_ZERO);
    } else {
        struct piece *piece = piece_take(image, req);
        if (!piece) {
            qcow2_wait(&image->piece_waiters, &op->waiter);
            return false;
        }
        uint64_t left = image->backing->size_bytes - op->at;
        piece->req = (struct request){.kind = REQUEST_BLOCK_STATUS,
                                      .flags = req->flags,
                                      .range = {op->at, length < left ? length : left},
                                      .extents = req->extents + req->extent_count,
                                      .extent_max = req->extent_max - req->extent_count,
                                      .done = backing_answered};
        node_submit(image->backing, &piece->req);
        return false;
    }
    return true;
}

static void status_go_on(struct request *req)
{
    struct qcow2_op *op = qcow2_op_of(req);
    uint64_t end = range_end(req->range);
    for (; op->at < end && op->pending < LIMIT_QCOW2_STATUS_STEPS; op->pending++) {
        struct mapping mapping;
        int status = mapping_find(op->image, op->at, end - op->at, &op->waiter, &mapping);
        if (status == -EAGAIN)
            return;
        if (status < 0) {
            status_end(req, status);
            return;
        }
        if (is_full(req)) /* it may be that the last extent goes on, but nobody needs to know */
            break;
        if (!answer_part(req, &mapping))
            return;
    }
    status_end(req, 0);
}

void status_submit(struct qcow2 *image, struct request *req)
{
    assert(req->extent_max > 0);
    req->extent_count = 0;
    struct qcow2_op *op = qcow2_op_of(req);
    *op = (struct qcow2_op){.image = image, .waiter = {.wake = status_wake}, .at = req->range.start};
    status_go_on(req);
}
