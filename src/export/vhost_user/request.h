/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A request of a virtio-blk driver: straight between the guest's memory and the node. Owner: the session's reactor.
 */
#ifndef FLEECE_EXPORT_VHOST_USER_REQUEST_H
#define FLEECE_EXPORT_VHOST_USER_REQUEST_H

#include "block/request.h"
#include "export/vhost_user/virtqueue.h"
#include "export/vhost_user/wire.h"

struct vhost_queue;

struct vhost_request {
    struct list_node link; /* spare; taken and not begun; a long transfer that waits for a piece */
    struct vhost_queue *queue;
    struct virtqueue_chain chain;
    uint8_t *status; /* in the guest's memory; NULL: the driver has left no room for it */
    /* What is left to be done: */
    struct iovec *data; /* in the chain: fragments after the header or before the status */
    unsigned data_count;
    uint64_t offset, left_bytes; /* on the disk; of the range that is under way; of a transfer: not submitted yet */
    struct virtio_blk_range ranges[VIRTIO_BLK_RANGES];
    unsigned range_at, range_count;
    uint64_t charged_bytes;
    unsigned table;       /* of guest memory, that the chain holds */
    uint64_t moved_bytes; /* read into the guest's memory */
    bool reads;
    unsigned pieces;    /* of a long transfer: under way */
    uint64_t failed_at; /* ... on the disk, the first that failed; UINT64_MAX: none */
    struct request block;
};

/* Its chain was taken from the queue's ring. Ends in vhost_session_finish(): inside this call when the node need not be
 * asked. */
void vhost_request_begin(struct vhost_request *request);
/* For transfer.c: shows the driver the status and, of reads, the bytes moved. */
void vhost_request_finish(struct vhost_request *request, enum virtio_blk_status status);

#endif
