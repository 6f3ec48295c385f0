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

bool nbd_command_submit(struct nbd_request *request)
{
    const struct nbd_command *command = &request->command;
    uint32_t flags = command->flags & NBD_CMD_FLAG_FUA ? REQUEST_FUA : 0;
    if (command->type == NBD_CMD_BLOCK_STATUS)
        return nbd_block_status_submit(request);
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
