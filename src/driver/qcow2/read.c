/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Reads: each part goes where its mapping says, as many at once as there are pieces. A part that needs a page of metadata,
 * a piece or room for a compressed cluster parks the request, which goes on from there; what was started meanwhile runs.
 *
 * A read sees each mapping at the instant it looks; what it then reads there is right as long as it takes, since no
 * cluster is used again before all reads have ended that may have looked earlier (mapped_enter()).
 */
#include <assert.h>
#include <errno.h>

#include "base/probe.h"
#include "driver/qcow2/internal.h"

static void read_go_on(struct request *req);

struct piece *piece_take(struct qcow2 *image, struct request *parent)
{
    struct list_node *node = list_take_first(&image->free_pieces);
    if (!node)
        return NULL;
    struct piece *piece = container_of(node, struct piece, link);
    piece->parent = parent;
    return piece;
}

void piece_put(struct qcow2 *image, struct piece *piece)
{
    list_append(&image->free_pieces, &piece->link);
    while (!list_empty(&image->free_pieces) && !list_empty(&image->piece_waiters))
        qcow2_wake_one(&image->piece_waiters);
}

static void read_end(struct request *req)
{
    struct qcow2_op *op = qcow2_op_of(req);
    bool over = op->at == range_end(req->range) || op->status < 0;
    if (over && op->pending == 0 && !op->waiting)
        request_complete(req, op->status);
}

static void read_wake(struct qcow2_waiter *waiter, int status)
{
    struct qcow2_op *op = container_of(waiter, struct qcow2_op, waiter);
    op->waiting = false;
    if (status < 0 && op->status == 0)
        op->status = status;
    read_go_on(qcow2_op_request(op));
}

static void piece_done(struct request *child, int status)
{
    struct piece *piece = container_of(child, struct piece, req);
    struct request *req = piece->parent;
    struct qcow2_op *op = qcow2_op_of(req);
    op->pending--;
    if (status < 0 && op->status == 0)
        op->status = status;
    if (piece->counted)
        mapped_leave(op->image, piece->side);
    piece_put(op->image, piece);
    read_end(req);
}

static void read_piece(struct request *req, struct piece *piece, struct node *node, uint64_t at, uint64_t length)
{
    struct qcow2_op *op = qcow2_op_of(req);
    unsigned count = iov_slice(req->iov, req->iov_count, op->at - req->range.start, length, piece->iov);
    piece->req = (struct request){
        .kind = REQUEST_READ, .range = {at, length}, .iov = piece->iov, .iov_count = count, .done = piece_done};
    op->pending++;
    piece->counted = node == op->image->file;
    if (piece->counted)
        piece->side = mapped_enter(op->image);
    node_submit(node, &piece->req);
}

static void inflated(struct inflate *inflate, int status)
{
    struct qcow2 *image = inflate->image;
    struct request *req = inflate->parent;
    struct qcow2_op *op = qcow2_op_of(req);
    op->pending--;
    if (status < 0 && op->status == 0)
        op->status = status;
    mapped_leave(image, inflate->side);
    inflate_free(inflate);
    image->inflating--;
    while (image->inflating < LIMIT_QCOW2_INFLATES && !list_empty(&image->inflate_waiters))
        qcow2_wake_one(&image->inflate_waiters);
    if (!op->waiting)
        read_go_on(req);
}

/* Starts the part that begins at op->at. How long it is; 0: it waits, or failed. */
static uint64_t read_part(struct request *req, const struct mapping *mapping)
{
    struct qcow2_op *op = qcow2_op_of(req);
    struct qcow2 *image = op->image;
    uint64_t length = mapping->length;
    if (mapping->kind == MAP_COMPRESSED) {
        if (image->inflating < LIMIT_QCOW2_INFLATES && inflate_start(image, req, op->at, length, mapping, inflated)) {
            op->pending++;
            return length;
        }
        op->waiting = image->inflating > 0;
        if (op->waiting)
            qcow2_wait(&image->inflate_waiters, &op->waiter);
        else
            op->status = -ENOMEM;
        return 0;
    }
    struct node *node = mapping->kind == MAP_DATA ? image->file : image->backing;
    bool is_open = mapping->kind != MAP_NONE || !image->header.has_backing || node;
    if (!is_open) {
        op->status = -ENODATA;
        return 0;
    }
    uint64_t at = mapping->kind == MAP_DATA ? mapping->host : op->at;
    if (mapping->kind == MAP_ZERO || !node || at >= node->size_bytes) { /* the last cluster of a file may be cut off */
        iov_zero(req->iov, req->iov_count, op->at - req->range.start, length);
        return length;
    }
    if (length > node->size_bytes - at)
        length = node->size_bytes - at;
    length = qcow2_fragments_length(req, op->at, length);
    struct piece *piece = piece_take(image, req);
    if (!piece) {
        PROBE(qcow2_read_waits_for_piece);
        op->waiting = true;
        qcow2_wait(&image->piece_waiters, &op->waiter);
        return 0;
    }
    read_piece(req, piece, node, at, length);
    return length;
}

static void read_go_on(struct request *req)
{
    struct qcow2_op *op = qcow2_op_of(req);
    uint64_t end = range_end(req->range);
    while (op->at < end && op->status == 0 && !op->waiting) {
        struct mapping mapping;
        int status = mapping_find(op->image, op->at, end - op->at, &op->waiter, &mapping);
        if (status == -EAGAIN)
            op->waiting = true;
        else if (status < 0)
            op->status = status;
        else
            op->at += read_part(req, &mapping);
    }
    read_end(req);
}

void read_submit(struct qcow2 *image, struct request *req)
{
    struct qcow2_op *op = qcow2_op_of(req);
    *op = (struct qcow2_op){.image = image, .waiter = {.wake = read_wake}, .at = req->range.start};
    read_go_on(req);
}
