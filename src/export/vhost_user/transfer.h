/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Reads and writes that are longer than what the block layer takes at once. Owner: the session's reactor. */
#ifndef FLEECE_EXPORT_VHOST_USER_TRANSFER_H
#define FLEECE_EXPORT_VHOST_USER_TRANSFER_H

#include "base/list.h"
#include "block/request.h"

struct vhost_piece;
struct vhost_request;

struct vhost_transfers { /* of a session */
    struct vhost_piece *pieces;
    unsigned touched;    /* pieces that were in use ever */
    struct list spare;   /* of those */
    struct list waiting; /* of requests: more of them could be submitted if there were a piece */
};

/* False: no memory. */
bool vhost_transfers_init(struct vhost_transfers *transfers);
void vhost_transfers_fini(struct vhost_transfers *transfers);
/* request->offset, left_bytes (not 0), data and block (kind, flags) are set. Ends in vhost_request_finish(), later. */
void vhost_transfer_begin(struct vhost_request *request);

#endif
