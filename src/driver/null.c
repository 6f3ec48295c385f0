/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A disk that holds nothing: reads are zeroes, writes are forgotten, everything completes in the tick of its submission. */
#include "driver/null.h"

#include <assert.h>
#include <stdlib.h>

static void null_submit(struct node *node, struct request *req)
{
    (void)node;
    if (req->kind == REQUEST_READ) {
        iov_zero(req->iov, req->iov_count, 0, req->range.length);
    } else if (req->kind == REQUEST_BLOCK_STATUS) {
        assert(req->extent_max > 0);
        req->extents[0] = (struct block_extent){req->range.length, EXTENT_HOLE | EXTENT_ZERO};
        req->extent_count = 1;
    }
    request_complete(req, 0);
}

static void null_destroy(struct node *node)
{
    free(node);
}

static const struct node_ops null_ops = {.driver = "null", .submit = null_submit, .destroy = null_destroy};

struct node *null_create(struct io *io, uint64_t size_bytes)
{
    struct node *node = calloc(1, sizeof *node);
    if (node)
        *node = (struct node){.ops = &null_ops,
                              .io = io,
                              .size_bytes = size_bytes,
                              .alignment_bytes = 1,
                              .can_discard = true,
                              .can_fast_zero = true};
    return node;
}
