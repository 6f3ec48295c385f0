/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Every request passes here once for each node: what a node may rely on is asserted, and what all but snapshot views would
 * answer alike (where blocks are) is answered. */
#include "block/node.h"

#include <assert.h>
#include <errno.h>

void node_submit(struct node *node, struct request *req)
{
    assert(io_on_owner(node->io));
    assert(range_within(req->range, node->size_bytes));
    assert(req->kind == REQUEST_FLUSH || req->range.length > 0);
    assert((req->kind != REQUEST_READ && req->kind != REQUEST_WRITE) || req->range.length <= LIMIT_REQUEST_BYTES);
    assert(!node->read_only || !request_is_write(req) || (req->kind == REQUEST_DISCARD && node->can_release));
    assert(!(req->flags & REQUEST_DIRTY) ||
           (req->kind == REQUEST_BLOCK_STATUS && req->dirty_map < node->dirty_map_count));
    assert(!list_linked(&req->link));
    req->io = node->io;
    if ((req->flags & REQUEST_RESIDENCE) && req->kind == REQUEST_BLOCK_STATUS && !node->can_release) {
        req->extents[0] = (struct block_extent){req->range.length, 0}; /* only a snapshot's view has anything to tell */
        req->extent_count = 1;
        request_complete(req, 0);
        return;
    }
    node->ops->submit(node, req);
}

int node_check_size(uint64_t size_bytes, uint64_t unit_bytes, struct error *err)
{
    if (size_bytes > LIMIT_DISK_BYTES)
        return error_set(err, EFBIG, "can't have %llu bytes, the limit is %llu", (unsigned long long)size_bytes,
                         (unsigned long long)LIMIT_DISK_BYTES);
    if (size_bytes % unit_bytes != 0)
        return error_set(err, EINVAL, "can't get %llu bytes: the size must be a multiple of %llu",
                         (unsigned long long)size_bytes, (unsigned long long)unit_bytes);
    return 0;
}

void node_destroy(struct node *node)
{
    node->ops->destroy(node);
}
