/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Request objects, and the commands that move no data. An object is charged to the session's window from the moment it
 * is taken until its reply has been sent, and so is its buffer: that is the whole of the flow control.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "export/nbd/session.h"

struct nbd_request *nbd_request_get(struct nbd_session *session, const struct nbd_command *command)
{
    struct nbd_reactor *reactor = session->home->reactor;
    struct nbd_request *request;
    if (session->request_count >= LIMIT_NBD_REQUESTS || !nbd_window_take(&session->window, sizeof *request))
        return NULL;
    if (list_empty(&reactor->spare)) {
        request = calloc(1, sizeof *request);
        if (!request) {
            nbd_window_give(&session->window, sizeof *request);
            return NULL;
        }
    } else {
        request = container_of(list_take_first(&reactor->spare), struct nbd_request, link);
        reactor->spare_count--;
    }
    request->session = session;
    request->command = *command;
    session->request_count++;
    return request;
}

bool nbd_request_get_buffer(struct nbd_request *request, uint64_t bytes)
{
    struct nbd_session *session = request->session;
    uint32_t size = nbd_buffer_size(bytes);
    if (!nbd_window_take(&session->window, size))
        return false;
    if (nbd_pool_get(&session->home->reactor->pool, bytes, &request->buffer))
        return true;
    nbd_window_give(&session->window, size);
    return false;
}

void nbd_request_put_buffer(struct nbd_request *request)
{
    if (!request->buffer.bytes)
        return;
    nbd_window_give(&request->session->window, request->buffer.size);
    nbd_pool_put(&request->session->home->reactor->pool, &request->buffer);
}

void nbd_request_put(struct nbd_request *request)
{
    struct nbd_session *session = request->session;
    struct nbd_reactor *reactor = session->home->reactor;
    nbd_request_put_buffer(request);
    nbd_window_give(&session->window, sizeof *request);
    session->request_count--;
    if (reactor->spare_count < LIMIT_NBD_SPARE_REQUESTS) {
        memset(request, 0, sizeof *request);
        list_prepend(&reactor->spare, &request->link);
        reactor->spare_count++;
    } else {
        free(request);
    }
}

void nbd_request_submit(struct nbd_request *request, enum request_kind kind, struct range range, uint32_t flags,
                        void (*done)(struct request *block, int status))
{
    request->block.kind = kind;
    request->block.flags = flags;
    request->block.range = range;
    if (kind == REQUEST_READ || kind == REQUEST_WRITE) {
        request->block.iov = &request->iov;
        request->block.iov_count = 1;
    }
    request->block.done = done;
    request->session->submitted++;
    node_submit(request->session->home->node, &request->block);
}

/* Commands without a transfer. */

static void command_done(struct request *block, int status);

/*
 * TRIM and WRITE_ZEROES of any length go to the node piece by piece, one after the other. Pieces end where blocks do (of
 * BLOCK_BYTES_MAX at most), so that no block is covered partly by two of them.
 */
static void range_piece_submit(struct nbd_request *request, uint64_t start, enum request_kind kind, uint32_t flags)
{
    uint64_t end = request->command.offset + request->command.length;
    if (end - start > LIMIT_NBD_RANGE_BYTES)
        end = round_down(start + LIMIT_NBD_RANGE_BYTES, BLOCK_BYTES_MAX);
    nbd_request_submit(request, kind, (struct range){start, end - start}, flags, command_done);
}

static void command_done(struct request *block, int status)
{
    struct nbd_request *request = container_of(block, struct nbd_request, block);
    struct nbd_session *session = request->session;
    uint64_t end = request->command.offset + request->command.length;
    session->submitted--;
    if (status == 0 && block->kind != REQUEST_FLUSH && range_end(block->range) < end &&
        session->state != NBD_SESSION_CLOSED) {
        range_piece_submit(request, range_end(block->range), block->kind, block->flags);
        return;
    }
    nbd_reply_status(request, nbd_refusal_of(status, &session->terms));
    nbd_session_wake(session);
}

/*
 * Block status. Each context that was selected has a request of its own, two at most. When both are back, each becomes one
 * chunk of the reply; an error of either is the whole reply. Released blocks have no allocation, which the node says with
 * an error; a client that also asked for their residence is told "data", for as far as that calls them released.
 */

/* The extents become descriptors in place: those are smaller. */
static uint32_t descriptors_put(struct nbd_request *request)
{
    const struct request *block = &request->block;
    uint32_t mask = request->context == NBD_CONTEXT_RESIDENCE ? UINT32_MAX : EXTENT_HOLE | EXTENT_ZERO;
    char *to = request->buffer.bytes;
    for (unsigned i = 0; i < block->extent_count; i++) {
        struct block_extent extent = block->extents[i];
        to = wire_put32(to, (uint32_t)extent.length);
        to = wire_put32(to, extent.flags & mask);
    }
    return (uint32_t)(to - request->buffer.bytes);
}

static void block_status_reply(struct nbd_request *request, bool last)
{
    nbd_reply_block_status(request, NBD_CONTEXT_ID(request->context), descriptors_put(request), last);
}

/* Both are back: `base` is the allocation's. */
static void block_status_reply_both(struct nbd_request *base, struct nbd_request *residence)
{
    const struct nbd_terms *terms = &base->session->terms;
    const struct block_extent *first = residence->block.extents;
    if (base->status == -ENODATA && residence->status == 0 && (first->flags & RESIDENCE_RELEASED)) {
        base->block.extents[0] = (struct block_extent){first->length, 0};
        base->block.extent_count = 1;
        base->status = 0;
    }
    int status = base->status ? base->status : residence->status;
    if (status) {
        nbd_request_put(base);
        nbd_reply_status(residence, nbd_refusal_of(status, terms));
    } else {
        block_status_reply(base, false);
        block_status_reply(residence, true);
    }
}

static void block_status_done(struct request *block, int status)
{
    struct nbd_request *request = container_of(block, struct nbd_request, block), *twin = request->twin;
    struct nbd_session *session = request->session;
    session->submitted--;
    request->status = status;
    request->answered = true;
    if (!twin && status)
        nbd_reply_status(request, nbd_refusal_of(status, &session->terms));
    else if (!twin)
        block_status_reply(request, true);
    else if (twin->answered && request->context == NBD_CONTEXT_RESIDENCE)
        block_status_reply_both(twin, request);
    else if (twin->answered)
        block_status_reply_both(request, twin);
    nbd_session_wake(session);
}

static bool block_status_get_buffers(struct nbd_request *request, struct nbd_request *twin, size_t bytes)
{
    if (!nbd_request_get_buffer(request, bytes))
        return false;
    if (!twin || nbd_request_get_buffer(twin, bytes))
        return true;
    nbd_request_put_buffer(request);
    return false;
}

static void block_status_go(struct nbd_request *request, enum nbd_context context)
{
    const struct nbd_command *command = &request->command;
    bool one = command->flags & NBD_CMD_FLAG_REQ_ONE;
    request->context = context;
    request->block.extents = (struct block_extent *)(void *)request->buffer.bytes;
    request->block.extent_max = one ? 1 : request->buffer.size / (uint32_t)sizeof(struct block_extent);
    uint32_t flags = (one ? REQUEST_ONE : 0) | (context == NBD_CONTEXT_RESIDENCE ? REQUEST_RESIDENCE : 0);
    nbd_request_submit(request, REQUEST_BLOCK_STATUS, (struct range){command->offset, command->length}, flags,
                       block_status_done);
}

static bool block_status_submit(struct nbd_request *request)
{
    struct nbd_session *session = request->session;
    const uint32_t base = NBD_CONTEXT_BIT(NBD_CONTEXT_BASE_ALLOCATION), both = NBD_CONTEXT_BIT(NBD_CONTEXT_COUNT) - 1;
    const size_t few = 4096, many = LIMIT_STATUS_EXTENTS * sizeof(struct block_extent);
    bool one = request->command.flags & NBD_CMD_FLAG_REQ_ONE;
    struct nbd_request *twin = NULL;
    if (session->terms.contexts == both) {
        twin = nbd_request_get(session, &request->command);
        if (!twin)
            return false;
    }
    if ((one || !block_status_get_buffers(request, twin, many)) && !block_status_get_buffers(request, twin, few)) {
        if (twin)
            nbd_request_put(twin);
        return false;
    }
    request->twin = twin;
    block_status_go(request, session->terms.contexts & base ? NBD_CONTEXT_BASE_ALLOCATION : NBD_CONTEXT_RESIDENCE);
    if (twin) {
        twin->twin = request;
        block_status_go(twin, NBD_CONTEXT_RESIDENCE);
    }
    return true;
}

bool nbd_command_submit(struct nbd_request *request)
{
    const struct nbd_command *command = &request->command;
    uint32_t flags = command->flags & NBD_CMD_FLAG_FUA ? REQUEST_FUA : 0;
    if (command->type == NBD_CMD_BLOCK_STATUS)
        return block_status_submit(request);
    if (command->type == NBD_CMD_FLUSH) {
        nbd_request_submit(request, REQUEST_FLUSH, (struct range){0, 0}, 0, command_done);
    } else if (command->length == 0 || command->type == NBD_CMD_CACHE) { /* CACHE is a hint, and taken as one */
        nbd_reply_status(request, (struct nbd_refusal){0});
    } else if (command->type == NBD_CMD_TRIM) {
        range_piece_submit(request, command->offset, REQUEST_DISCARD, flags);
    } else {
        assert(command->type == NBD_CMD_WRITE_ZEROES);
        if (command->flags & NBD_CMD_FLAG_NO_HOLE)
            flags |= REQUEST_NO_HOLE;
        if (command->flags & NBD_CMD_FLAG_FAST_ZERO)
            flags |= REQUEST_FAST_ZERO;
        range_piece_submit(request, command->offset, REQUEST_WRITE_ZEROES, flags);
    }
    return true;
}
