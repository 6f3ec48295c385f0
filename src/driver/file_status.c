/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Block status: the holes of a file are not allocated and read as zeroes, everything else is data. Each step asks for one
 * run; runs of one kind are joined. A block device does not tell, so all of it is data.
 */
#include <assert.h>
#include <errno.h>

#include "driver/file_internal.h"

static void extent_done(struct io_op *io_op, int64_t result);

static void start_extent(struct request *req)
{
    struct file_op *op = file_op_of(req);
    req->op.done = extent_done;
    io_extent(op->file->node.io, &req->op, op->file->fd, op->at, &op->extent);
}

static void extent_done(struct io_op *io_op, int64_t result)
{
    struct request *req = container_of(io_op, struct request, op);
    struct file_op *op = file_op_of(req);
    if (file_retry(op, result)) {
        start_extent(req);
        return;
    }
    if (result == -ENXIO && op->file->node.growable) { /* behind its end */
        op->extent = (struct io_extent){.end = op->end, .hole = true};
        result = 0;
    }
    if (result < 0) {
        /* What is known is a good answer; beyond the end of the file there is no disk any more. */
        file_finish(req, req->extent_count ? 0 : result == -ENXIO ? -EIO : (int)result);
        return;
    }
    assert(op->extent.end > op->at);
    uint64_t end = op->extent.end < op->end ? op->extent.end : op->end;
    const bool added = request_add_extent(req, end - op->at, op->extent.hole ? EXTENT_HOLE | EXTENT_ZERO : 0);
    assert(added); /* there is room, or it would have ended before */
    op->at = end;
    if (op->at == op->end || req->extent_count == req->extent_max || (req->flags & REQUEST_ONE))
        file_finish(req, 0);
    else
        start_extent(req);
}

void file_start_status(struct request *req)
{
    struct file_op *op = file_op_of(req);
    assert(req->extent_max > 0);
    file_move(op, FILE_STATUS);
    req->extent_count = 0;
    op->at = req->range.start;
    op->end = range_end(req->range);
    if (op->file->is_block_device) {
        (void)request_add_extent(req, req->range.length, 0); /* the first one: there is room */
        file_finish(req, 0);
    } else {
        start_extent(req);
    }
}
