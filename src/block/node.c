/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Every request passes here once for each node: what a node may rely on is asserted, and what all but snapshot views would
 * answer alike (where blocks are) is answered. */
#include "block/node.h"

#include <assert.h>

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

void node_destroy(struct node *node)
{
    node->ops->destroy(node);
}
