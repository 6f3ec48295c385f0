/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Header, data and status may lie in any fragments of a chain (any layout): the header is the first 16 bytes that the device
 * reads, the status the last byte that it writes, all between is data.
 *
 * Reads and writes that the block layer does not take at once are transfer.c's. Ranges longer than
 * LIMIT_VHOST_RANGE_BYTES are done in pieces, one after the other; the first that fails ends the request.
 *
 * Errors are those of the standard: IOERR for what lies beyond the disk, is no whole number of sectors, exceeds what the
 * configuration space says, or writes to a read-only disk; UNSUPP for commands that were not negotiated and flags that
 * do not exist, a DISCARD with the unmap flag among them. Nothing of a request is done before all of it has been
 * checked.
 */
#include "export/vhost_user/request.h"

#include <assert.h>
#include <string.h>

#include "base/probe.h"
#include "export/vhost_user/config.h"
#include "export/vhost_user/session.h"

void vhost_request_finish(struct vhost_request *request, enum virtio_blk_status status)
{
    uint32_t written = 0; /* bytes from the beginning of what the driver gave us to write to */
    if (request->reads)
        written = (uint32_t)request->moved_bytes;
    if (request->status && request->queue->session->state != VHOST_SESSION_CLOSED) {
        *request->status = (uint8_t)status;
        if (!MUTANT(vhost_log_lacks_the_status))
            vhost_session_wrote(request->queue->session, request, &(struct iovec){request->status, 1}, 1);
        if ((!request->reads || status == VIRTIO_BLK_S_OK) && !MUTANT(vhost_status_is_not_counted))
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

/* --- ranges */

static void piece_done(struct request *block, int status);

static void piece_submit(struct vhost_request *request)
{
    struct request *block = &request->block;
    uint64_t length = request->left_bytes < LIMIT_VHOST_RANGE_BYTES ? request->left_bytes : LIMIT_VHOST_RANGE_BYTES;
    block->range = (struct range){request->offset, length};
    block->done = piece_done;
    block->iov = NULL;
    block->iov_count = 0;
    node_submit(request->queue->session->node, block);
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
    while (request->left_bytes == 0 && request->range_at + 1 < request->range_count &&
           !MUTANT(vhost_first_range_only)) {
        PROBE(vhost_next_range);
        request->range_at++;
        range_begin(request);
    }
    if (request->left_bytes > 0)
        piece_submit(request);
    else
        vhost_request_finish(request, VIRTIO_BLK_S_OK);
}

static void piece_done(struct request *block, int status)
{
    struct vhost_request *request = container_of(block, struct vhost_request, block);
    if (request->queue->session->state == VHOST_SESSION_CLOSED)
        PROBE(vhost_request_ends_after_close); /* C14 */
    if (status < 0 && !MUTANT(vhost_error_is_success)) {
        PROBE(vhost_request_fails);
        vhost_request_finish(request, VIRTIO_BLK_S_IOERR);
        return;
    }
    request->offset += block->range.length;
    request->left_bytes -= block->range.length;
    bool more = request->left_bytes > 0 || request->range_at + 1 < request->range_count;
    if (more &&
        request->queue->session->state == VHOST_SESSION_CLOSED) { /* what was not submitted never will be (C14) */
        vhost_request_finish(request, VIRTIO_BLK_S_IOERR);
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

static void transfer_done(struct request *block, int status)
{
    struct vhost_request *request = container_of(block, struct vhost_request, block);
    if (request->reads) { /* also when it has failed: some may have come */
        vhost_session_wrote(request->queue->session, request, block->iov, block->iov_count);
        request->moved_bytes = status < 0 ? 0 : block->range.length;
    }
    vhost_request_finish(request, status < 0 ? VIRTIO_BLK_S_IOERR : VIRTIO_BLK_S_OK);
}

static void begin_transfer(struct vhost_request *request, enum request_kind kind, uint64_t sector, uint64_t bytes)
{
    struct node *node = request->queue->session->node;
    uint64_t sectors = vhost_config_sectors(node);
    if (bytes % IMAGE_SECTOR_BYTES || sector > sectors || bytes / IMAGE_SECTOR_BYTES > sectors - sector ||
        (kind == REQUEST_WRITE && node->read_only)) {
        vhost_request_finish(request, VIRTIO_BLK_S_IOERR);
        return;
    }
    if (bytes == 0) {
        vhost_request_finish(request, VIRTIO_BLK_S_OK);
        return;
    }
    begin_block(request, kind);
    request->offset = sector * IMAGE_SECTOR_BYTES;
    request->left_bytes = bytes;
    if (bytes > LIMIT_REQUEST_BYTES) {
        vhost_transfer_begin(request);
        return;
    }
    request->block.range = (struct range){request->offset, bytes};
    request->block.iov = request->data;
    request->block.iov_count = request->data_count;
    request->block.done = transfer_done;
    node_submit(node, &request->block);
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
        vhost_request_finish(request, status);
        return;
    }
    begin_block(request, kind);
    request->range_at = 0;
    range_begin(request);
    vhost_session_charge(request, LIMIT_REQUEST_BYTES); /* whatever it is to the disk, not less */
    request_go_on(request);
}

/* The first `bytes` of the fragments were written. */
static void wrote_first(const struct vhost_request *request, uint64_t bytes)
{
    for (unsigned i = 0; i < request->data_count && bytes > 0; i++) {
        struct iovec part = request->data[i];
        part.iov_len = part.iov_len < bytes ? part.iov_len : bytes;
        bytes -= part.iov_len;
        vhost_session_wrote(request->queue->session, request, &part, 1);
    }
}

static void give_id(struct vhost_request *request)
{
    char id[VIRTIO_BLK_ID_BYTES] = {0};
    const char *name = request->queue->session->name;
    size_t length = strnlen(name, sizeof id);
    memcpy(id, name, length);
    if (request->chain.write_bytes < sizeof id) {
        vhost_request_finish(request, VIRTIO_BLK_S_IOERR);
        return;
    }
    iov_copy_in(request->data, request->data_count, 0, id, sizeof id);
    wrote_first(request, sizeof id);                   /* the room may be 4 GiB, a million bits of a log */
    request->moved_bytes = request->chain.write_bytes; /* the status lies behind all of the room that we were given */
    vhost_request_finish(request, VIRTIO_BLK_S_OK);
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
        vhost_request_finish(request, VIRTIO_BLK_S_IOERR);
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
        vhost_request_finish(request, VIRTIO_BLK_S_UNSUPP);
        return;
    }
}
