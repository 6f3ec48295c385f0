/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * BLOCK_STATUS: one chunk for each context that was selected.
 *
 *     buffer taken -> (context asked for -> its extents, made a chunk in place)... -> reply of all chunks, or of the error
 *
 * The contexts are asked for one after the other, by one request, into one buffer: so a reply takes the same memory however
 * many there are, and a session that may hold no more than its window still gets it. Each context gets an equal part of
 * the room that is left. The reply leaves when the last one is told; an error of any is the whole reply.
 *
 * Released blocks have no allocation, which the node says with an error; a client that also asked for their residence is
 * told "data", for as far as that calls them released. So the residence is asked for first. What changed since a
 * checkpoint is known of released blocks as of all others.
 */
#include <assert.h>
#include <errno.h>

#include "export/nbd/contexts.h"
#include "export/nbd/session.h"

enum {
    CHUNK_HEAD_BYTES = NBD_CHUNK_BYTES + 4, /* with the number of the context */
    DESCRIPTOR_BYTES = 8,
    FEW_BYTES = 4096,
    MANY_BYTES = LIMIT_STATUS_EXTENTS * (int)sizeof(struct block_extent),
};
_Static_assert(CHUNK_HEAD_BYTES % _Alignof(struct block_extent) == 0 &&
                   DESCRIPTOR_BYTES % _Alignof(struct block_extent) == 0,
               "extents lie behind a head, and behind descriptors");
_Static_assert(FEW_BYTES / NBD_CONTEXT_COUNT >= CHUNK_HEAD_BYTES + (int)sizeof(struct block_extent),
               "every context can tell something");

static void status_done(struct request *block, int status);

static void status_ask_next(struct nbd_request *request)
{
    const struct nbd_command *command = &request->command;
    const uint32_t residence = NBD_CONTEXT_BIT(NBD_CONTEXT_RESIDENCE);
    uint32_t next = request->contexts_left & residence ? residence : request->contexts_left;
    uint32_t share = (request->buffer.size - request->told) / (uint32_t)__builtin_popcount(request->contexts_left);
    bool one = command->flags & NBD_CMD_FLAG_REQ_ONE;
    uint32_t flags = one ? REQUEST_ONE : 0;
    request->context = (unsigned)__builtin_ctz(next);
    request->contexts_left &= ~NBD_CONTEXT_BIT(request->context);
    if (request->context == NBD_CONTEXT_RESIDENCE)
        flags |= REQUEST_RESIDENCE;
    if (request->context >= NBD_CONTEXT_DIRTY) {
        flags |= REQUEST_DIRTY;
        request->block.dirty_map = request->context - NBD_CONTEXT_DIRTY;
    }
    request->block.extents = (struct block_extent *)(void *)(request->buffer.bytes + request->told + CHUNK_HEAD_BYTES);
    request->block.extent_max = one ? 1 : (share - CHUNK_HEAD_BYTES) / (uint32_t)sizeof(struct block_extent);
    nbd_request_submit(request, REQUEST_BLOCK_STATUS, (struct range){command->offset, command->length}, flags,
                       status_done);
}

/* The extents become descriptors in place: those are smaller. */
static void status_tell(struct nbd_request *request)
{
    const struct request *block = &request->block;
    uint32_t mask = EXTENT_HOLE | EXTENT_ZERO;
    if (request->context != NBD_CONTEXT_BASE_ALLOCATION)
        mask = request->context == NBD_CONTEXT_RESIDENCE ? UINT32_MAX : EXTENT_DIRTY;
    uint32_t length = block->extent_count * DESCRIPTOR_BYTES;
    char *at = request->buffer.bytes + request->told;
    at = wire_put_chunk(at, request->command.cookie, NBD_CHUNK_BLOCK_STATUS, request->contexts_left == 0, 4 + length);
    at = wire_put32(at, NBD_CONTEXT_ID(request->context));
    for (unsigned i = 0; i < block->extent_count; i++) {
        struct block_extent extent = block->extents[i];
        at = wire_put32(at, (uint32_t)extent.length);
        at = wire_put32(at, extent.flags & mask);
    }
    request->told = (uint32_t)(at - request->buffer.bytes);
}

static int status_forgive(struct nbd_request *request, int status)
{
    struct request *block = &request->block;
    if (status == 0 && request->context == NBD_CONTEXT_RESIDENCE && (block->extents[0].flags & RESIDENCE_RELEASED))
        request->released_bytes = block->extents[0].length;
    if (status != -ENODATA || request->context != NBD_CONTEXT_BASE_ALLOCATION || request->released_bytes == 0)
        return status;
    block->extents[0] = (struct block_extent){request->released_bytes, 0};
    block->extent_count = 1;
    return 0;
}

static void status_done(struct request *block, int status)
{
    struct nbd_request *request = container_of(block, struct nbd_request, block);
    struct nbd_session *session = request->session;
    session->submitted--;
    status = status_forgive(request, status);
    if (status == 0)
        status_tell(request);
    if (status == 0 && request->contexts_left && session->state != NBD_SESSION_CLOSED) {
        status_ask_next(request);
        return;
    }
    if (status)
        nbd_reply_status(request, nbd_refusal_of(status, &session->terms));
    else
        nbd_reply_chunks(request, request->told);
    nbd_session_wake(session);
}

bool nbd_block_status_submit(struct nbd_request *request)
{
    bool one = request->command.flags & NBD_CMD_FLAG_REQ_ONE;
    if ((one || !nbd_request_get_buffer(request, MANY_BYTES)) && !nbd_request_get_buffer(request, FEW_BYTES))
        return false;
    request->contexts_left = request->session->terms.contexts;
    assert(request->contexts_left);
    status_ask_next(request);
    return true;
}
