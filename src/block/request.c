/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The end of requests, and the memory that they carry.
 *
 *     submitted -> (parked -> submitted again)* -> completed, and settled with its disk -> `done`, at the end of the tick
 *
 * The disk counts a write as landed in the very step in which the leaf says so (C4); only the submitter hears of it later,
 * so that no completion is ever delivered inside node_submit(). A crash ends all requests: what was acknowledged is on the
 * disk as far as it was flushed, what was not may be there or not.
 */
#include "block/request.h"

#include <assert.h>
#include <string.h>

#include "base/probe.h"
#include "block/disk.h"

static void request_deliver(struct io_task *task)
{
    struct request *req = container_of(task, struct request, completion);
    req->done(req, req->status);
}

void request_complete(struct request *req, int status)
{
    assert(status <= 0);
    assert(!list_linked(&req->completion.link) && !list_linked(&req->link));
    req->status = status;
    if (req->disk)
        disk_settle(req->disk, req);
    if (MUTANT(completed_inside_submit)) {
        req->done(req, status);
        return;
    }
    req->completion.run = request_deliver;
    io_task_queue(req->io, &req->completion);
}

bool request_add_extent(struct request *req, uint64_t length, uint32_t flags)
{
    struct block_extent *last = req->extent_count > 0 ? &req->extents[req->extent_count - 1] : NULL;
    if (last && last->flags == flags) {
        last->length += length;
        return true;
    }
    if (req->extent_count == req->extent_max || (last && (req->flags & REQUEST_ONE)))
        return false;
    req->extents[req->extent_count++] = (struct block_extent){length, flags};
    return true;
}

/* Walks the pieces of memory that make up [at, at+length) of the fragments. */
struct iov_walk {
    const struct iovec *iov;
    unsigned iov_count;
    size_t at, length;
    struct iovec piece;
};

static bool iov_walk_next(struct iov_walk *walk)
{
    while (walk->length > 0 && walk->iov_count > 0 && walk->at >= walk->iov->iov_len) {
        walk->at -= walk->iov->iov_len;
        walk->iov++;
        walk->iov_count--;
    }
    if (walk->length == 0)
        return false;
    assert(walk->iov_count > 0);
    size_t left = walk->iov->iov_len - walk->at;
    walk->piece.iov_base = (char *)walk->iov->iov_base + walk->at;
    walk->piece.iov_len = left < walk->length ? left : walk->length;
    walk->at += walk->piece.iov_len;
    walk->length -= walk->piece.iov_len;
    return true;
}

void iov_copy_out(const struct iovec *iov, unsigned iov_count, size_t at, void *to, size_t length)
{
    char *out = to;
    for (struct iov_walk walk = {iov, iov_count, at, length, {0}}; iov_walk_next(&walk);) {
        memcpy(out, walk.piece.iov_base, walk.piece.iov_len);
        out += walk.piece.iov_len;
    }
}

void iov_copy_in(const struct iovec *iov, unsigned iov_count, size_t at, const void *from, size_t length)
{
    const char *in = from;
    for (struct iov_walk walk = {iov, iov_count, at, length, {0}}; iov_walk_next(&walk);) {
        memcpy(walk.piece.iov_base, in, walk.piece.iov_len);
        in += walk.piece.iov_len;
    }
}

void iov_zero(const struct iovec *iov, unsigned iov_count, size_t at, size_t length)
{
    for (struct iov_walk walk = {iov, iov_count, at, length, {0}}; iov_walk_next(&walk);)
        memset(walk.piece.iov_base, 0, walk.piece.iov_len);
}

unsigned iov_slice(const struct iovec *iov, unsigned iov_count, size_t at, size_t length, struct iovec *slice)
{
    unsigned count = 0;
    for (struct iov_walk walk = {iov, iov_count, at, length, {0}}; iov_walk_next(&walk);)
        slice[count++] = walk.piece;
    return count;
}
