/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Reads and writes of data.
 *
 * A request whose range and memory suit the descriptor goes straight to the kernel, and that is nearly all of them. The
 * others, and those that the kernel cut short, go through a bounce buffer that mirrors the blocks around the range:
 *
 *   read    FILE_READ all blocks, copy the range out
 *   write   FILE_READ_HEAD and FILE_READ_TAIL read the blocks that are covered in part, the data is copied over them,
 *           FILE_WRITE writes all blocks. file_order.c sees to it that nobody writes these blocks meanwhile.
 *
 * The last bytes of a disk whose size is no multiple of the alignment (the tail) go through a descriptor of their own
 * with page cache. The tail begins at a page, so no page of the cache ever holds bytes that are also read and written
 * directly. It needs no read-modify-write, and no write reaches beyond it: the file never grows.
 *
 * Unless it is to: a growing file has no tail. It is written in whole blocks, which move its end, and where the kernel finds
 * nothing to read any more there are zeroes.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/probe.h"
#include "driver/file_internal.h"

static bool is_data_write(const struct request *req)
{
    return req->kind == REQUEST_WRITE;
}

static unsigned write_flags(struct request *req)
{
    const bool stable = is_data_write(req) && (req->flags & REQUEST_FUA) && !MUTANT(file_fua_forgotten);
    return (stable ? IO_WRITE_DSYNC : 0) | (file_op_of(req)->file->apart ? IO_WRITE_APART : 0);
}

/* The blocks that a range touches; exact at an end that lies in the tail. */
struct range file_touched(const struct file_node *file, struct range range)
{
    uint64_t start = range.start, end = range_end(range);
    if (start < file->tail_start)
        start = round_down(start, file->alignment_bytes);
    if (end < file->tail_start)
        end = round_up(end, file->alignment_bytes);
    return (struct range){start, end - start};
}

bool file_has_edges(const struct file_node *file, struct range range)
{
    struct range touched = file_touched(file, range);
    return touched.start != range.start || touched.length != range.length;
}

/* Straight to the kernel. */

static bool fits_straight(const struct file_node *file, const struct request *req)
{
    if (req->range.start >= file->tail_start)
        return true;
    if (range_end(req->range) > file->tail_start)
        return false;
    uint64_t bits = req->range.start | req->range.length;
    for (unsigned i = 0; i < req->iov_count; i++)
        bits |= (uintptr_t)req->iov[i].iov_base | req->iov[i].iov_len;
    return (bits & (file->alignment_bytes - 1)) == 0;
}

static void straight_done(struct io_op *io_op, int64_t result);

static void start_straight(struct request *req)
{
    struct file_node *file = file_op_of(req)->file;
    int fd = req->range.start < file->tail_start ? file->fd : file->tail_fd;
    req->op.done = straight_done;
    if (req->kind == REQUEST_READ)
        io_readv(file->node.io, &req->op, fd, req->iov, req->iov_count, req->range.start);
    else
        io_writev(file->node.io, &req->op, fd, req->iov, req->iov_count, req->range.start, write_flags(req));
}

static void straight_done(struct io_op *io_op, int64_t result)
{
    struct request *req = container_of(io_op, struct request, op);
    if ((uint64_t)result == req->range.length || (result > 0 && MUTANT(file_short_is_enough)))
        file_finish(req, 0);
    else if (file_retry(file_op_of(req), result))
        start_straight(req);
    else if (result == 0 && req->kind == REQUEST_READ && file_op_of(req)->file->node.growable) {
        PROBE(file_read_behind_end);
        iov_zero(req->iov, req->iov_count, 0, req->range.length);
        file_finish(req, 0);
    } else if (result <= 0)
        file_finish(req, result < 0 ? (int)result : -EIO); /* nothing: the file has become shorter than the disk */
    else {
        PROBE(file_straight_short);
        file_start_bounced(req); /* all of it once more: reads and writes may be repeated */
    }
}

void file_start_transfer(struct request *req)
{
    struct file_op *op = file_op_of(req);
    op->span = req->range;
    if (fits_straight(op->file, req)) {
        file_move(op, FILE_STRAIGHT);
        start_straight(req);
    } else {
        file_start_bounced(req);
    }
}

/* Through a bounce buffer. */

static void piece_done(struct io_op *io_op, int64_t result);

/* Starts the next piece of the transfer [at, end): what lies before the tail, or in it. */
static void start_piece(struct request *req)
{
    struct file_op *op = file_op_of(req);
    struct file_node *file = op->file;
    bool in_tail = op->at >= file->tail_start;
    uint64_t end = in_tail || op->end <= file->tail_start ? op->end : file->tail_start;
    int fd = in_tail ? file->tail_fd : file->fd;
    op->flat.iov_base = op->bounce + (op->at - file_touched(file, op->span).start);
    op->flat.iov_len = end - op->at;
    req->op.done = piece_done;
    if (op->phase == FILE_WRITE)
        io_writev(file->node.io, &req->op, fd, &op->flat, 1, op->at, write_flags(req));
    else
        io_readv(file->node.io, &req->op, fd, &op->flat, 1, op->at);
}

static void start_phase(struct request *req, enum file_phase phase, uint64_t at, uint64_t end)
{
    struct file_op *op = file_op_of(req);
    file_move(op, phase);
    op->at = at;
    op->end = end;
    start_piece(req);
}

static void start_write(struct request *req)
{
    struct file_op *op = file_op_of(req);
    struct range touched = file_touched(op->file, op->span);
    char *data = op->bounce + (op->span.start - touched.start);
    if (is_data_write(req))
        iov_copy_out(req->iov, req->iov_count, 0, data, op->span.length);
    else
        memset(data, 0, op->span.length);
    start_phase(req, FILE_WRITE, touched.start, range_end(touched));
}

/* The last block, unless it is covered whole or is the one that has been read as the first. */
static void start_tail_or_write(struct request *req)
{
    struct file_op *op = file_op_of(req);
    struct range touched = file_touched(op->file, op->span);
    uint64_t last = range_end(touched) - op->file->alignment_bytes;
    bool in_part = range_end(touched) != range_end(op->span);
    if (in_part && !MUTANT(file_last_block_not_read) && (op->phase != FILE_READ_HEAD || last != touched.start))
        start_phase(req, FILE_READ_TAIL, last, range_end(touched));
    else
        start_write(req);
}

static void start_bounced(struct request *req)
{
    struct file_op *op = file_op_of(req);
    struct range touched = file_touched(op->file, op->span);
    if (req->kind == REQUEST_READ) {
        start_phase(req, FILE_READ, touched.start, range_end(touched));
    } else if (touched.start != op->span.start) {
        PROBE(file_read_modify_write);
        start_phase(req, FILE_READ_HEAD, touched.start, touched.start + op->file->alignment_bytes);
    } else {
        start_tail_or_write(req);
    }
}

void file_start_bounced(struct request *req)
{
    struct file_op *op = file_op_of(req);
    if (!op->bounce)
        op->bounce = bounce_take(&op->file->bounce, file_touched(op->file, op->span).length, &op->bounce_wait);
    if (op->bounce)
        start_bounced(req);
    else
        PROBE(file_waits_for_buffer);
}

void file_bounce_release(struct file_op *op)
{
    struct list_node *node = bounce_put(&op->file->bounce, op->bounce);
    char *bounce = op->bounce;
    op->bounce = NULL;
    if (node) {
        struct file_op *waiter = container_of(node, struct file_op, bounce_wait);
        waiter->bounce = bounce;
        start_bounced(file_op_request(waiter));
    }
}

static void piece_done(struct io_op *io_op, int64_t result)
{
    struct request *req = container_of(io_op, struct request, op);
    struct file_op *op = file_op_of(req);
    if (file_retry(op, result)) {
        start_piece(req);
        return;
    }
    if (result < 0) {
        file_finish(req, (int)result);
        return;
    }
    uint64_t done = (uint64_t)result;
    if (op->at < op->file->tail_start) /* direct I/O goes on at a whole block */
        done = round_down(done, op->file->alignment_bytes);
    if (done == 0 && op->phase != FILE_WRITE &&
        op->file->node.growable) { /* what was read of the last block is in its place */
        PROBE(file_bounce_behind_end);
        memset((char *)op->flat.iov_base + result, 0, op->flat.iov_len - (uint64_t)result);
        done = op->end - op->at;
    }
    if (done == 0) { /* the file has become shorter than the disk */
        file_finish(req, -EIO);
        return;
    }
    op->at += done;
    if (op->at < op->end) {
        start_piece(req);
    } else if (op->phase == FILE_READ) {
        struct range touched = file_touched(op->file, op->span);
        iov_copy_in(req->iov, req->iov_count, 0, op->bounce + (op->span.start - touched.start), op->span.length);
        file_finish(req, 0);
    } else if (op->phase == FILE_READ_HEAD) {
        start_tail_or_write(req);
    } else if (op->phase == FILE_READ_TAIL) {
        start_write(req);
    } else if (is_data_write(req)) {
        file_finish(req, 0);
    } else {
        file_continue_zeroes(req);
    }
}
