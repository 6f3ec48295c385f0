/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A transfer goes to the block layer in pieces of LIMIT_REQUEST_BYTES, LIMIT_VHOST_TRANSFER_PIECES of them at once, each
 * with a copy of its fragments, for two neighbours may share one. A session has LIMIT_VHOST_PIECES. Transfers that find
 * none wait in line, and a piece that ends sends its own to the end of it, so that all get on.
 *
 * No more is submitted after a piece has failed, or the session has been closed (C14); what was submitted is waited for. The
 * transfer then has moved what lies before the first piece that failed.
 */
#include "export/vhost_user/transfer.h"

#include <assert.h>
#include <stdlib.h>

#include "export/vhost_user/session.h"

struct vhost_piece {
    struct list_node link; /* spare */
    struct vhost_request *request;
    struct request block;
    struct iovec iov[LIMIT_VIRTQUEUE_FRAGMENTS];
};

bool vhost_transfers_init(struct vhost_transfers *transfers)
{
    transfers->pieces = calloc(LIMIT_VHOST_PIECES, sizeof *transfers->pieces);
    list_init(&transfers->spare);
    list_init(&transfers->waiting);
    return transfers->pieces;
}

void vhost_transfers_fini(struct vhost_transfers *transfers)
{
    assert(list_empty(&transfers->waiting));
    free(transfers->pieces);
}

static struct vhost_piece *piece_take(struct vhost_transfers *transfers)
{
    if (!list_empty(&transfers->spare))
        return container_of(list_take_first(&transfers->spare), struct vhost_piece, link);
    return transfers->touched < LIMIT_VHOST_PIECES ? &transfers->pieces[transfers->touched++] : NULL;
}

static bool has_more(const struct vhost_request *request)
{
    return request->left_bytes > 0 && request->failed_at == UINT64_MAX &&
           request->queue->session->state != VHOST_SESSION_CLOSED;
}

/* The fragments of the next bytes become the piece's, and are no longer the request's. */
static unsigned piece_cut(struct vhost_piece *piece, struct vhost_request *request, uint64_t bytes)
{
    unsigned count = 0;
    while (bytes > 0) {
        struct iovec *first = request->data, *mine = &piece->iov[count++];
        assert(request->data_count > 0);
        *mine = *first;
        if (bytes < first->iov_len) {
            mine->iov_len = bytes;
            first->iov_base = (char *)first->iov_base + bytes;
            first->iov_len -= bytes;
            return count;
        }
        bytes -= first->iov_len;
        request->data++;
        request->data_count--;
    }
    return count;
}

static void piece_done(struct request *block, int status);

static void piece_submit(struct vhost_piece *piece, struct vhost_request *request)
{
    const uint64_t length = request->left_bytes < LIMIT_REQUEST_BYTES ? request->left_bytes : LIMIT_REQUEST_BYTES;
    piece->request = request;
    piece->block.kind = request->block.kind;
    piece->block.flags = request->block.flags;
    piece->block.range = (struct range){request->offset, length};
    piece->block.iov = piece->iov;
    piece->block.iov_count = piece_cut(piece, request, length);
    piece->block.done = piece_done;
    request->pieces++;
    request->offset += length;
    request->left_bytes -= length;
    node_submit(request->queue->session->node, &piece->block);
}

static void transfer_go_on(struct vhost_request *request)
{
    struct vhost_transfers *transfers = &request->queue->session->transfers;
    while (has_more(request) && request->pieces < LIMIT_VHOST_TRANSFER_PIECES) {
        struct vhost_piece *piece = piece_take(transfers);
        if (!piece) {
            list_append(&transfers->waiting, &request->link);
            return;
        }
        piece_submit(piece, request);
    }
    if (request->pieces > 0)
        return;
    const uint64_t end = request->offset + request->left_bytes;
    if (request->reads && request->failed_at != UINT64_MAX)
        request->moved_bytes -= end - request->failed_at;
    const bool whole = request->left_bytes == 0 && request->failed_at == UINT64_MAX;
    vhost_request_finish(request, whole ? VIRTIO_BLK_S_OK : VIRTIO_BLK_S_IOERR);
}

static void piece_done(struct request *block, int status)
{
    struct vhost_piece *piece = container_of(block, struct vhost_piece, block);
    struct vhost_request *request = piece->request;
    struct vhost_session *session = request->queue->session;
    struct vhost_transfers *transfers = &session->transfers;
    if (request->reads) /* also when it has failed: some may have come */
        vhost_session_wrote(session, request, block->iov, block->iov_count);
    if (status < 0 && block->range.start < request->failed_at)
        request->failed_at = block->range.start;
    request->pieces--;
    list_prepend(&transfers->spare, &piece->link);
    if (!list_linked(&request->link))
        list_append(&transfers->waiting, &request->link);
    struct list line;
    list_init(&line);
    list_take_all(&line, &transfers->waiting);
    for (struct list_node *node; (node = list_take_first(&line));)
        transfer_go_on(container_of(node, struct vhost_request, link));
}

void vhost_transfer_begin(struct vhost_request *request)
{
    request->failed_at = UINT64_MAX;
    request->pieces = 0;
    request->moved_bytes = request->reads ? request->left_bytes : 0;
    transfer_go_on(request);
}
