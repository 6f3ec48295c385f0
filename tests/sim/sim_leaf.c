/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sim_leaf.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>

#include "block/request.h"

struct sim_leaf {
    struct node node;
    int fd;
    bool block_device;
    bool extended;    /* further than the node says */
    int growth_fails; /* the next one, so: -EIO: its flush does */
    struct list under_way;
};

struct scratch { /* in request.leaf_scratch */
    struct sim_leaf *leaf;
    uint64_t at; /* block status */
    struct io_extent extent;
};

static struct scratch *scratch_of(struct request *req)
{
    _Static_assert(sizeof(struct scratch) <= sizeof(req->leaf_scratch), "scratch");
    return (struct scratch *)(void *)req->leaf_scratch;
}

struct request *sim_leaf_request(const struct io_op *op)
{
    return container_of((struct io_op *)(uintptr_t)op, struct request, op);
}

static void leaf_complete(struct request *req, int status)
{
    list_remove(&req->link);
    request_complete(req, status);
}

static void leaf_done(struct io_op *op, int64_t result)
{
    struct request *req = container_of(op, struct request, op);
    if (result > 0)
        assert((uint64_t)result == req->range.length);
    leaf_complete(req, result < 0 ? (int)result : 0);
}

static void leaf_allocated(struct io_op *op, int64_t result)
{
    struct request *req = container_of(op, struct request, op);
    if (result == 0 && (req->flags & REQUEST_FUA) != 0) {
        op->done = leaf_done;
        io_datasync(req->io, op, scratch_of(req)->leaf->fd);
        return;
    }
    leaf_complete(req, (int)result);
}

static void leaf_extent(struct io_op *op, int64_t result)
{
    struct request *req = container_of(op, struct request, op);
    struct scratch *scratch = scratch_of(req);
    if (result < 0) {
        leaf_complete(req, (int)result);
        return;
    }
    uint64_t end = scratch->extent.end < range_end(req->range) ? scratch->extent.end : range_end(req->range);
    uint32_t flags = scratch->extent.hole ? EXTENT_HOLE | EXTENT_ZERO : 0;
    struct block_extent *last = req->extent_count > 0 ? &req->extents[req->extent_count - 1] : NULL;
    if (last && last->flags == flags)
        last->length += end - scratch->at;
    else
        req->extents[req->extent_count++] = (struct block_extent){end - scratch->at, flags};
    scratch->at = end;
    if (end == range_end(req->range) || req->extent_count == req->extent_max || (req->flags & REQUEST_ONE) != 0)
        leaf_complete(req, 0);
    else
        io_extent(req->io, op, scratch->leaf->fd, end, &scratch->extent);
}

static void leaf_discard(struct sim_leaf *leaf, struct request *req)
{
    struct range range = req->range;
    if (leaf->block_device) { /* whole sectors only: the rest stays */
        range.start = round_up(range.start, 512);
        uint64_t end = round_down(range_end(req->range), 512);
        range.length = end > range.start ? end - range.start : 0;
    }
    if (range.length == 0)
        leaf_complete(req, 0);
    else
        io_allocate(req->io, &req->op, leaf->fd, leaf->block_device ? IO_DISCARD : IO_PUNCH_HOLE, range);
}

static void leaf_zero(struct sim_leaf *leaf, struct request *req)
{
    bool keep = (req->flags & REQUEST_NO_HOLE) != 0;
    if (leaf->block_device && !range_aligned(req->range, 512)) {
        if ((req->flags & REQUEST_FAST_ZERO) != 0) {
            leaf_complete(req, -EOPNOTSUPP);
            return;
        }
        static const uint8_t zeroes[LIMIT_REQUEST_BYTES];
        struct iovec *iov = (struct iovec *)(void *)&scratch_of(req)->at;
        *iov = (struct iovec){(void *)(uintptr_t)zeroes, req->range.length};
        req->op.done = leaf_done;
        io_writev(req->io, &req->op, leaf->fd, iov, 1, req->range.start,
                  (req->flags & REQUEST_FUA) != 0 ? IO_WRITE_DSYNC : 0);
        return;
    }
    io_allocate(req->io, &req->op, leaf->fd, keep ? IO_ZERO_RANGE : IO_PUNCH_HOLE, req->range);
}

static void leaf_submit(struct node *node, struct request *req)
{
    struct sim_leaf *leaf = container_of(node, struct sim_leaf, node);
    *scratch_of(req) = (struct scratch){.leaf = leaf, .at = req->range.start};
    list_append(&leaf->under_way, &req->link);
    req->op.done = leaf_done;
    switch (req->kind) {
    case REQUEST_READ:
        io_readv(node->io, &req->op, leaf->fd, req->iov, req->iov_count, req->range.start);
        break;
    case REQUEST_WRITE:
        io_writev(node->io, &req->op, leaf->fd, req->iov, req->iov_count, req->range.start,
                  (req->flags & REQUEST_FUA) != 0 ? IO_WRITE_DSYNC : 0);
        break;
    case REQUEST_WRITE_ZEROES:
        req->op.done = leaf_allocated;
        leaf_zero(leaf, req);
        break;
    case REQUEST_DISCARD:
        req->op.done = leaf_allocated;
        leaf_discard(leaf, req);
        break;
    case REQUEST_FLUSH:
        if (leaf->growth_fails == -EIO && leaf->extended) {
            leaf->growth_fails = 0;
            leaf_complete(req, -EIO);
            break;
        }
        io_datasync(node->io, &req->op, leaf->fd);
        break;
    case REQUEST_BLOCK_STATUS:
        req->op.done = leaf_extent;
        req->extent_count = 0;
        io_extent(node->io, &req->op, leaf->fd, req->range.start, &scratch_of(req)->extent);
        break;
    }
}

static int64_t extend_work(void *argument)
{
    struct node_extension *extension = argument;
    struct sim_leaf *leaf = container_of(extension->node, struct sim_leaf, node);
    if (leaf->growth_fails == -ENOSPC && extension->size_bytes > leaf->node.size_bytes) {
        leaf->growth_fails = 0;
        return error_set(&extension->error, ENOSPC, "can't be made larger: no space left");
    }
    leaf->extended = extension->size_bytes > leaf->node.size_bytes;
    return io_truncate(leaf->node.io, leaf->fd, extension->size_bytes);
}

static void extended(struct io_op *op, int64_t result)
{
    struct node_extension *extension = container_of(op, struct node_extension, work);
    extension->done(extension, (int)result);
}

static void leaf_extend(struct node *node, struct node_extension *extension)
{
    assert(extension->size_bytes > 0); /* nobody asks how long it is */
    extension->node = node;
    extension->work.done = extended;
    io_work(node->io, &extension->work, extend_work, extension);
}

static void leaf_grow(struct node *node, uint64_t size_bytes)
{
    container_of(node, struct sim_leaf, node)->extended = false;
    node_set_size(node, size_bytes);
}

void sim_leaf_fail_growth(struct node *node, int status)
{
    container_of(node, struct sim_leaf, node)->growth_fails = status;
}

static void leaf_destroy(struct node *node)
{
    struct sim_leaf *leaf = container_of(node, struct sim_leaf, node);
    assert(list_empty(&leaf->under_way));
    io_close(node->io, leaf->fd);
    free(leaf);
}

static const struct node_ops leaf_ops = {
    .driver = "sim-leaf",
    .submit = leaf_submit,
    .destroy = leaf_destroy,
    .extend = leaf_extend,
    .grow = leaf_grow,
};

int sim_leaf_open(struct io *io, const char *path, struct node **node)
{
    int fd = io_open(io, path, O_RDWR, 0);
    if (fd < 0)
        return fd;
    struct io_stat stat;
    io_stat(io, fd, &stat);
    struct sim_leaf *leaf = calloc(1, sizeof(*leaf));
    if (leaf == NULL)
        abort();
    leaf->node = (struct node){.ops = &leaf_ops,
                               .io = io,
                               .size_bytes = stat.size_bytes,
                               .alignment_bytes = 1,
                               .can_discard = true,
                               .can_fast_zero = true};
    leaf->fd = fd;
    leaf->block_device = stat.is_block_device;
    list_init(&leaf->under_way);
    *node = &leaf->node;
    return 0;
}
