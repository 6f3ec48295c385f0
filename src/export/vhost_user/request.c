/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Header, data and status may lie in any fragments of a chain (any layout): the header is the first 16 bytes that the device
 * reads, the status the last byte that it writes, all between is data.
 *
 * What the block layer does not take at once (LIMIT_REQUEST_BYTES, LIMIT_VHOST_RANGE_BYTES) is done in pieces, one after the
 * other, in place: the fragments of the chain are the request's own, and the one that a piece ends in is cut for its time.
 * The first piece that fails ends the request.
 *
 * Errors are those of the standard: IOERR for what lies beyond the disk, is no whole number of sectors, exceeds what the
 * configuration space says, or writes to a read-only disk; UNSUPP for commands that were not negotiated and flags that
 * do not exist, a DISCARD with the unmap flag among them. Nothing of a request is done before all of it has been
 * checked.
 */
#include "export/vhost_user/request.h"

#include <assert.h>
#include <string.h>

#include "export/vhost_user/config.h"
#include "export/vhost_user/session.h"

static void request_finish(struct vhost_request *request, enum virtio_blk_status status)
{
    uint32_t written = 0; /* bytes from the beginning of what the driver gave us to write to */
    if (request->reads)
        written = (uint32_t)request->moved_bytes;
    if (request->status && request->queue->session->state != VHOST_SESSION_CLOSED) {
        *request->status = (uint8_t)status;
        vhost_session_wrote(request->queue->session, request, &(struct iovec){request->status, 1}, 1);
        if (!request->reads || status == VIRTIO_BLK_S_OK)
            written++;
    }
    vhost_session_finish(request, written);
}

/* --- fragments */

static void data_skip(struct vhost_request *request, uint64_t bytes)
{
    while (bytes > 0) {
        assert(request->data_count > 0);
        struct iovec *first = request->data;
        if (bytes < first->iov_len) {
            first->iov_base = (char *)first->iov_base + bytes;
            first->iov_len -= bytes;
            return;
        }
        bytes -= first->iov_len;
        request->data++;
        request->data_count--;
    }
}

/* How many fragments hold the first bytes of the data; the last of them ends there until data_join(). */
static unsigned data_cut(struct vhost_request *request, uint64_t bytes)
{
    unsigned count = 0;
    while (bytes > request->data[count].iov_len)
        bytes -= request->data[count++].iov_len;
    request->cut = request->data[count];
    request->data[count].iov_len = bytes;
    return count + 1;
}

static void data_join(struct vhost_request *request, unsigned count, uint64_t bytes)
{
    request->data[count - 1] = request->cut;
    data_skip(request, bytes);
}

/* Takes the status byte off the fragments that the device writes; false: there is none. */
static bool take_status(struct vhost_request *request)
{
    struct virtqueue_chain *chain = &request->chain;
    if (chain->write_count == 0)
        return false;
    struct iovec *last = &chain->iov[chain->read_count + chain->write_count - 1];
    request->status = (uint8_t *)last->iov_base + --last->iov_len;
    chain->write_bytes--;
    if (last->iov_len == 0)
        chain->write_count--;
    return true;
}

/* --- pieces */

static void piece_done(struct request *block, int status);

static void piece_submit(struct vhost_request *request)
{
    struct vhost_session *session = request->queue->session;
    struct request *block = &request->block;
    bool moves = block->kind == REQUEST_READ || block->kind == REQUEST_WRITE;
    uint64_t most = moves ? LIMIT_REQUEST_BYTES : LIMIT_VHOST_RANGE_BYTES;
    uint64_t length = request->left_bytes < most ? request->left_bytes : most;
    block->range = (struct range){request->offset, length};
    block->done = piece_done;
    block->iov = NULL;
    block->iov_count = 0;
    if (moves) {
        block->iov = request->data;
        block->iov_count = data_cut(request, length);
    }
    node_submit(session->node, block);
}

static void range_begin(struct vhost_request *request)
{
    struct virtio_blk_range range = request->ranges[request->range_at];
    request->offset = range.sector * IMAGE_SECTOR_BYTES;
    request->left_bytes = (uint64_t)range.sectors * IMAGE_SECTOR_BYTES;
    if (request->block.kind == REQUEST_WRITE_ZEROES) {
        request->block.flags &= ~(uint32_t)REQUEST_NO_HOLE;
        if (!(range.flags & VIRTIO_BLK_RANGE_UNMAP))
            request->block.flags |= REQUEST_NO_HOLE;
    }
}

/* Goes on with what is left. */
static void request_go_on(struct vhost_request *request)
{
    while (request->left_bytes == 0 && request->range_at + 1 < request->range_count) {
        request->range_at++;
        range_begin(request);
    }
    if (request->left_bytes > 0)
        piece_submit(request);
    else
        request_finish(request, VIRTIO_BLK_S_OK);
}

static void piece_done(struct request *block, int status)
{
    struct vhost_request *request = container_of(block, struct vhost_request, block);
    struct vhost_session *session = request->queue->session;
    uint64_t length = block->range.length;
    if (request->reads) /* also when it has failed: some may have come */
        vhost_session_wrote(session, request, block->iov, block->iov_count);
    if (block->iov_count > 0)
        data_join(request, block->iov_count, length);
    if (status < 0) {
        request_finish(request, VIRTIO_BLK_S_IOERR);
        return;
    }
    request->offset += length;
    request->left_bytes -= length;
    if (request->reads)
        request->moved_bytes += length;
    bool more = request->left_bytes > 0 || request->range_at + 1 < request->range_count;
    if (more && session->state == VHOST_SESSION_CLOSED) { /* what was not submitted never will be (C14) */
        request_finish(request, VIRTIO_BLK_S_IOERR);
        return;
    }
    request_go_on(request);
}

static void begin_block(struct vhost_request *request, enum request_kind kind)
{
    const struct vhost_session *session = request->queue->session;
    request->block.kind = kind;
    request->block.flags = 0;
    /* A driver that can't flush takes every write for durable once it is done. */
    if (request_is_write(&request->block) && !(session->features & VHOST_BIT(VIRTIO_BLK_F_FLUSH)))
        request->block.flags = REQUEST_FUA;
}

/* --- commands */

static void begin_transfer(struct vhost_request *request, enum request_kind kind, uint64_t sector, uint64_t bytes)
{
    const struct node *node = request->queue->session->node;
    uint64_t sectors = vhost_config_sectors(node);
    if (bytes % IMAGE_SECTOR_BYTES || sector > sectors || bytes / IMAGE_SECTOR_BYTES > sectors - sector ||
        (kind == REQUEST_WRITE && node->read_only)) {
        request_finish(request, VIRTIO_BLK_S_IOERR);
        return;
    }
    begin_block(request, kind);
    request->offset = sector * IMAGE_SECTOR_BYTES;
    request->left_bytes = bytes;
    request_go_on(request);
}

static void begin_flush(struct vhost_request *request)
{
    begin_block(request, REQUEST_FLUSH);
    request->block.range = (struct range){0, 0};
    request->block.iov = NULL;
    request->block.iov_count = 0;
    request->block.done = piece_done;
    node_submit(request->queue->session->node, &request->block);
}

static enum virtio_blk_status check_range(const struct vhost_session *session, enum request_kind kind,
                                          const struct virtio_blk_range *range)
{
    uint64_t sectors = vhost_config_sectors(session->node);
    uint32_t known = kind == REQUEST_WRITE_ZEROES ? VIRTIO_BLK_RANGE_UNMAP : 0;
    if (range->flags & ~known)
        return VIRTIO_BLK_S_UNSUPP;
    if (range->sectors > VIRTIO_BLK_RANGE_BYTES / IMAGE_SECTOR_BYTES || range->sector > sectors ||
        range->sectors > sectors - range->sector)
        return VIRTIO_BLK_S_IOERR;
    return VIRTIO_BLK_S_OK;
}

static void begin_ranges(struct vhost_request *request, enum request_kind kind, enum virtio_feature feature)
{
    const struct vhost_session *session = request->queue->session;
    uint64_t bytes = request->chain.read_bytes - sizeof(struct virtio_blk_header);
    enum virtio_blk_status status = VIRTIO_BLK_S_OK;
    if (!(session->features & VHOST_BIT(feature)))
        status = VIRTIO_BLK_S_UNSUPP;
    else if (session->node->read_only || bytes == 0 || bytes > sizeof request->ranges ||
             bytes % sizeof request->ranges[0])
        status = VIRTIO_BLK_S_IOERR;
    else
        iov_copy_out(request->data, request->data_count, 0, request->ranges, bytes);
    request->range_count = (unsigned)(bytes / sizeof request->ranges[0]);
    for (unsigned i = 0; status == VIRTIO_BLK_S_OK && i < request->range_count; i++)
        status = check_range(session, kind, &request->ranges[i]);
    if (status != VIRTIO_BLK_S_OK) {
        request_finish(request, status);
        return;
    }
    begin_block(request, kind);
    request->range_at = 0;
    range_begin(request);
    request_go_on(request);
}

static void give_id(struct vhost_request *request)
{
    char id[VIRTIO_BLK_ID_BYTES] = {0};
    const char *name = request->queue->session->name;
    size_t length = strnlen(name, sizeof id);
    memcpy(id, name, length);
    if (request->chain.write_bytes < sizeof id) {
        request_finish(request, VIRTIO_BLK_S_IOERR);
        return;
    }
    iov_copy_in(request->data, request->data_count, 0, id, sizeof id);
    vhost_session_wrote(request->queue->session, request, request->data, request->data_count);
    request->moved_bytes = request->chain.write_bytes; /* the status lies behind all of the room that we were given */
    request_finish(request, VIRTIO_BLK_S_OK);
}

static void use_read_part(struct vhost_request *request)
{
    request->data = request->chain.iov;
    request->data_count = request->chain.read_count;
}

static void use_write_part(struct vhost_request *request)
{
    request->reads = true;
    request->data = request->chain.iov + request->chain.read_count;
    request->data_count = request->chain.write_count;
}

void vhost_request_begin(struct vhost_request *request)
{
    struct virtqueue_chain *chain = &request->chain;
    struct virtio_blk_header header;
    request->status = NULL;
    request->reads = false;
    request->moved_bytes = request->left_bytes = 0;
    request->range_at = request->range_count = 0;
    if (!take_status(request) || chain->read_bytes < sizeof header) {
        request_finish(request, VIRTIO_BLK_S_IOERR);
        return;
    }
    use_read_part(request);
    iov_copy_out(request->data, request->data_count, 0, &header, sizeof header);
    data_skip(request, sizeof header);
    switch (header.type) {
    case VIRTIO_BLK_T_IN:
        use_write_part(request);
        begin_transfer(request, REQUEST_READ, header.sector, chain->write_bytes);
        return;
    case VIRTIO_BLK_T_OUT:
        begin_transfer(request, REQUEST_WRITE, header.sector, chain->read_bytes - sizeof header);
        return;
    case VIRTIO_BLK_T_FLUSH:
        begin_flush(request);
        return;
    case VIRTIO_BLK_T_GET_ID:
        use_write_part(request);
        give_id(request);
        return;
    case VIRTIO_BLK_T_DISCARD:
        begin_ranges(request, REQUEST_DISCARD, VIRTIO_BLK_F_DISCARD);
        return;
    case VIRTIO_BLK_T_WRITE_ZEROES:
        begin_ranges(request, REQUEST_WRITE_ZEROES, VIRTIO_BLK_F_WRITE_ZEROES);
        return;
    default:
        request_finish(request, VIRTIO_BLK_S_UNSUPP);
        return;
    }
}
