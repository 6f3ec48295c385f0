/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Write zeroes and discard.
 *
 * The whole pages inside the range are zeroed by the kernel without moving data: by punching a hole, or keeping the
 * space (NO_HOLE). Where the kernel cannot punch it is asked to zero, and where it cannot do that either the zeroes are
 * written; except with FAST_ZERO, which then fails before anything has changed. What the range covers of pages at its
 * two ends is written as data afterwards: the kernel would do it in the page cache, behind the back of direct I/O.
 *
 * A block device zeroes by its own command or not at all when it is asked to punch, but may write zeroes when it is
 * asked to zero: so FAST_ZERO never asks for that.
 *
 * Discard is a hint: whole pages only, and no error when it cannot be done.
 */
#include <assert.h>
#include <errno.h>

#include "base/probe.h"
#include "driver/file_internal.h"

/* The whole pages before the tail; empty when there are none. */
static struct range inner_of(const struct file_node *file, struct range range)
{
    uint64_t start = round_up(range.start, file->space_bytes), end = range_end(range);
    if (MUTANT(file_zeroes_whole_pages_around))
        start = round_down(range.start, file->space_bytes);
    if (end > file->tail_start)
        end = file->tail_start;
    end = round_down(end, file->space_bytes);
    return (struct range){start, start < end ? end - start : 0};
}

static bool is_unsupported(int64_t result)
{
    return result == -EOPNOTSUPP || result == -ENOSYS || result == -ENODEV || result == -ENOTTY;
}

/* The edges. */

static void start_edge(struct request *req, uint64_t start, uint64_t end)
{
    file_op_of(req)->span = (struct range){start, end - start};
    file_start_bounced(req);
}

void file_continue_zeroes(struct request *req)
{
    struct file_op *op = file_op_of(req);
    struct range inner = inner_of(op->file, req->range);
    if (inner.length == 0) { /* the one edge was all of it */
        file_finish_synced(req);
    } else if (op->edges == 0) {
        op->edges = 1;
        if (req->range.start < inner.start)
            start_edge(req, req->range.start, inner.start);
        else
            file_continue_zeroes(req);
    } else if (op->edges == 1) {
        op->edges = 2;
        if (range_end(inner) < range_end(req->range) && !MUTANT(file_second_edge_forgotten))
            start_edge(req, range_end(inner), range_end(req->range));
        else
            file_finish_synced(req);
    } else {
        file_finish_synced(req);
    }
}

/* Zeroes as data. */

static void zero_data_done(struct io_op *io_op, int64_t result);

static void start_zero_piece(struct request *req)
{
    struct file_op *op = file_op_of(req);
    struct file_node *file = op->file;
    uint64_t left = op->end - op->at, fragments = left / FILE_ZERO_BYTES;
    const struct iovec *iov = file->zero_iov;
    if (fragments > FILE_ZERO_FRAGMENTS)
        fragments = FILE_ZERO_FRAGMENTS;
    if (fragments == 0) {
        op->flat = (struct iovec){file->zeroes, left};
        iov = &op->flat;
        fragments = 1;
    }
    req->op.done = zero_data_done;
    io_writev(file->node.io, &req->op, file->fd, iov, (unsigned)fragments, op->at, file->apart ? IO_WRITE_APART : 0);
}

static void zero_data_done(struct io_op *io_op, int64_t result)
{
    struct request *req = container_of(io_op, struct request, op);
    struct file_op *op = file_op_of(req);
    if (file_retry(op, result)) {
        start_zero_piece(req);
        return;
    }
    uint64_t done = result > 0 ? round_down((uint64_t)result, op->file->alignment_bytes) : 0;
    if (done == 0) {
        file_finish(req, result < 0 ? (int)result : -EIO);
        return;
    }
    op->at += done;
    if (op->at < op->end)
        start_zero_piece(req);
    else
        file_continue_zeroes(req);
}

/* By the kernel. */

static void allocate_done(struct io_op *io_op, int64_t result);

static void start_allocate(struct request *req)
{
    struct file_op *op = file_op_of(req);
    enum io_allocate_mode mode = op->phase == FILE_ZERO_RANGE ? IO_ZERO_RANGE : IO_PUNCH_HOLE;
    if (op->phase == FILE_DISCARD && op->file->is_block_device)
        mode = IO_DISCARD;
    req->op.done = allocate_done;
    io_allocate(op->file->node.io, &req->op, op->file->fd, mode, inner_of(op->file, req->range));
}

/* The next way to zero, from the cheapest to data. */
static void start_next_way(struct request *req)
{
    struct file_op *op = file_op_of(req);
    struct file_node *file = op->file;
    bool fast = req->flags & REQUEST_FAST_ZERO;
    if (op->phase == FILE_BEGIN && !(req->flags & REQUEST_NO_HOLE) && !file->no_punch) {
        file_move(op, FILE_PUNCH);
        start_allocate(req);
    } else if (op->phase != FILE_ZERO_RANGE && !file->no_zero_range && !(fast && file->is_block_device)) {
        file_move(op, FILE_ZERO_RANGE);
        start_allocate(req);
    } else if (fast) {
        PROBE(file_zero_not_fast);
        file_finish(req, -EOPNOTSUPP);
    } else {
        PROBE(file_zero_as_data);
        file_move(op, FILE_ZERO_DATA);
        struct range inner = inner_of(file, req->range);
        op->at = inner.start;
        op->end = range_end(inner);
        start_zero_piece(req);
    }
}

static void allocate_done(struct io_op *io_op, int64_t result)
{
    struct request *req = container_of(io_op, struct request, op);
    struct file_op *op = file_op_of(req);
    struct file_node *file = op->file;
    if (file_retry(op, result)) {
        start_allocate(req);
    } else if (op->phase == FILE_DISCARD) {
        if (result < 0 && (!is_unsupported(result) || (req->flags & REQUEST_NO_HINT)))
            file_finish(req, (int)result);
        else
            file_finish_synced(req);
    } else if (is_unsupported(result)) {
        if (op->phase == FILE_PUNCH)
            file->no_punch = true;
        else
            file->no_zero_range = true;
        file->node.can_fast_zero = file->node.can_fast_zero && !(file->no_punch && file->no_zero_range);
        start_next_way(req);
    } else if (result < 0) {
        file_finish(req, (int)result);
    } else {
        file_continue_zeroes(req);
    }
}

void file_start_zeroes(struct request *req)
{
    struct file_op *op = file_op_of(req);
    if (inner_of(op->file, req->range).length == 0) /* less than two pages: as cheap as anything else */
        start_edge(req, req->range.start, range_end(req->range));
    else
        start_next_way(req);
}

void file_start_discard(struct request *req)
{
    struct file_op *op = file_op_of(req);
    if (inner_of(op->file, req->range).length == 0) {
        file_finish(req, 0);
    } else {
        file_move(op, FILE_DISCARD);
        start_allocate(req);
    }
}
