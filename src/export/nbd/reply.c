/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The send queue of a session. All replies that are ready at the end of a tick leave in one send, one send is under way
 * at a time, and data is sent from the buffer that it was read into. A reply's object, its buffer and its share of the
 * window come back only when the kernel has taken the last byte: that is what bounds a client that never reads.
 *
 * A client that was quick has earned a large window. When it stops taking replies (its own disk is slow, it was stopped)
 * for the time of a sweep or two, the data of all its replies but the first is given up, and is read again when it goes
 * on; until then nothing more is begun for it. So a backup that waits for its target keeps no memory from the guest.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "export/nbd/session.h"

static void send_run(struct io_task *task);
static void send_done(struct io_op *op, int64_t result);

void nbd_reply_init(struct nbd_session *session)
{
    list_init(&session->replies);
    list_init(&session->unread);
    session->send.done = send_done;
    session->send_task.run = send_run;
}

bool nbd_reply_is_one_run(const struct nbd_request *request)
{
    return !request->session->terms.structured || (request->command.flags & NBD_CMD_FLAG_DF);
}

static void reply_queue(struct nbd_request *request)
{
    struct nbd_session *session = request->session;
    if (session->state == NBD_SESSION_CLOSED) {
        nbd_request_put(request);
        return;
    }
    list_append(&session->replies, &request->link);
    if (!session->sending)
        io_task_queue(session->io, &session->send_task);
}

static void put_chunk_header(struct nbd_request *request, enum nbd_chunk_type type, bool last, uint32_t length)
{
    wire_put_chunk(request->header, request->command.cookie, type, last, length);
    request->header_length = NBD_CHUNK_BYTES;
}

static void put_simple_header(struct nbd_request *request, enum nbd_error error)
{
    uint8_t *at = request->header;
    at = wire_put32(at, NBD_SIMPLE_REPLY_MAGIC);
    at = wire_put32(at, error);
    wire_put64(at, request->command.cookie);
    request->header_length = NBD_SIMPLE_REPLY_BYTES;
}

static void put_in_header(struct nbd_request *request, const void *bytes, uint32_t length)
{
    assert(request->header_length + length <= sizeof request->header);
    memcpy(request->header + request->header_length, bytes, length);
    request->header_length += length;
}

void nbd_reply_status(struct nbd_request *request, struct nbd_refusal refusal)
{
    enum nbd_error error = refusal.error;
    request->refusal = refusal;
    request->payload_length = 0;
    if (error)
        nbd_request_put_buffer(request);
    if (!request->session->terms.structured) {
        put_simple_header(request, error);
    } else if (error) {
        uint8_t body[6]; /* the error, and the length of the sentence behind it */
        size_t length = refusal.text ? strlen(refusal.text) : 0;
        wire_put16(wire_put32(body, error), (uint16_t)length);
        put_chunk_header(request, NBD_CHUNK_ERROR, true, (uint32_t)(sizeof body + length));
        put_in_header(request, body, sizeof body);
        request->payload = refusal.text;
        request->payload_length = (uint32_t)length;
    } else if (request->command.type == NBD_CMD_READ) {
        put_chunk_header(request, NBD_CHUNK_NONE, true, 0);
    } else {
        put_simple_header(request, error);
    }
    reply_queue(request);
}

static void put_payload(struct nbd_request *request, uint32_t length)
{
    request->payload = request->buffer.bytes;
    request->payload_length = length;
}

static void put_data_header(struct nbd_request *request, uint64_t offset, uint32_t length, bool last)
{
    if (!request->session->terms.structured) {
        put_simple_header(request, NBD_SUCCESS);
        return;
    }
    uint8_t body[8];
    wire_put64(body, offset);
    put_chunk_header(request, NBD_CHUNK_OFFSET_DATA, last, length + (uint32_t)sizeof body);
    put_in_header(request, body, sizeof body);
}

void nbd_reply_data(struct nbd_request *request, uint64_t offset, uint32_t length, bool last)
{
    put_data_header(request, offset, length, last);
    put_payload(request, length);
    reply_queue(request);
}

void nbd_reply_stream_first(struct nbd_request *request, uint32_t length, uint32_t total)
{
    put_data_header(request, request->command.offset, total, true);
    put_payload(request, length);
    reply_queue(request);
}

void nbd_reply_stream_next(struct nbd_request *request, uint32_t length)
{
    request->header_length = 0;
    put_payload(request, length);
    reply_queue(request);
}

void nbd_reply_chunks(struct nbd_request *request, uint32_t length)
{
    request->header_length = 0;
    put_payload(request, length);
    reply_queue(request);
}

static unsigned add_fragment(struct iovec *iov, unsigned count, const void *bytes, uint32_t length, uint32_t *skip)
{
    if (*skip >= length) {
        *skip -= length;
        return count;
    }
    iov[count] = (struct iovec){(char *)(uintptr_t)bytes + *skip, length - *skip};
    *skip = 0;
    return count + 1;
}

/* Two fragments for each reply: header and payload. */
static unsigned gather(struct nbd_session *session, struct iovec *iov, unsigned max)
{
    unsigned count = 0;
    uint32_t skip = session->sent;
    list_each (node, &session->replies) {
        struct nbd_request *request = container_of(node, struct nbd_request, link);
        if (count + 2 > max)
            break;
        count = add_fragment(iov, count, request->header, request->header_length, &skip);
        count = add_fragment(iov, count, request->payload, request->payload_length, &skip);
    }
    return count;
}

static bool more_replies_than(const struct nbd_session *session, unsigned count)
{
    list_each (node, &session->replies)
        if (count-- == 0)
            return true;
    return false;
}

static void send_run(struct io_task *task)
{
    struct nbd_session *session = container_of(task, struct nbd_session, send_task);
    if (session->sending || session->state == NBD_SESSION_CLOSED || list_empty(&session->replies))
        return;
    struct iovec *iov = session->few;
    unsigned max = sizeof session->few / sizeof session->few[0];
    uint32_t size = LIMIT_NBD_SEND_FRAGMENTS * sizeof(struct iovec);
    if (more_replies_than(session, max / 2) && nbd_window_take(&session->window, nbd_buffer_size(size))) {
        if (nbd_pool_get(&session->home->reactor->pool, size, &session->many)) {
            iov = (struct iovec *)(void *)session->many.bytes;
            max = LIMIT_NBD_SEND_FRAGMENTS;
        } else {
            nbd_window_give(&session->window, nbd_buffer_size(size));
        }
    }
    unsigned count = gather(session, iov, max);
    session->sending = true;
    io_sendv(session->io, &session->send, session->fd, iov, count);
}

/*
 * Whether it was the last part of the whole reply to a READ that succeeded: an answer in one piece, the chunk that ends one
 * in pieces, or the last piece of one run of bytes.
 */
static bool reply_ends_read(const struct nbd_request *request)
{
    const struct nbd_command *command = &request->command;
    if (command->type != NBD_CMD_READ || request->refusal.error || command->length == 0)
        return false;
    return !request->whole ||
           (nbd_reply_is_one_run(request) && range_end(request->block.range) == command->offset + command->length);
}

/* Replies that are out are put back. */
static void take_sent(struct nbd_session *session, uint64_t bytes)
{
    session->window.proven_bytes += bytes;
    bytes += session->sent;
    while (!list_empty(&session->replies)) {
        struct nbd_request *request = list_first(&session->replies, struct nbd_request, link);
        uint32_t length = request->header_length + request->payload_length;
        if (bytes < length)
            break;
        bytes -= length;
        list_remove(&request->link);
        if (reply_ends_read(request))
            nbd_read_once_note(session->home, &session->read_once,
                               (struct range){request->command.offset, request->command.length});
        nbd_request_put(request);
    }
    session->sent = (uint32_t)bytes;
}

/*
 * The first reply behind the first one whose data could be read again; NULL: none. Pieces of one run of bytes have no
 * header of their own, but for the first: which is the first of all, since the run waited for everything before it.
 */
static struct nbd_request *spare_data(struct nbd_session *session)
{
    bool first = true;
    list_each (node, &session->replies) {
        struct nbd_request *request = container_of(node, struct nbd_request, link);
        if (!first && request->command.type == NBD_CMD_READ && request->buffer.bytes && request->header_length > 0)
            return request;
        first = false;
    }
    return NULL;
}

void nbd_reply_sweep(struct nbd_session *session)
{
    if (session->sending && !session->send_moved && session->state != NBD_SESSION_CLOSED) {
        session->stalled = true;
        if (spare_data(session))
            io_cancel(session->io, &session->send);
    }
    session->send_moved = false;
}

static void send_done(struct io_op *op, int64_t result)
{
    struct nbd_session *session = container_of(op, struct nbd_session, send);
    session->sending = false;
    if (session->many.bytes) {
        nbd_window_give(&session->window, session->many.size);
        nbd_pool_put(&session->home->reactor->pool, &session->many);
    }
    bool given_up = session->stalled && result == -ECANCELED;
    if (session->state == NBD_SESSION_CLOSED || (result <= 0 && !given_up)) {
        nbd_session_close(session);
        return;
    }
    if (given_up) {
        for (struct nbd_request *request; (request = spare_data(session)) != NULL;)
            nbd_transfer_give_up(request);
        io_task_queue(session->io, &session->send_task);
        return;
    }
    session->send_moved = true;
    session->stalled = false;
    take_sent(session, (uint64_t)result);
    if (!list_empty(&session->replies))
        io_task_queue(session->io, &session->send_task);
    nbd_session_wake(session);
}

void nbd_reply_drop_all(struct nbd_session *session)
{
    assert(!session->sending);
    session->sent = 0;
    while (!list_empty(&session->replies))
        nbd_request_put(container_of(list_take_first(&session->replies), struct nbd_request, link));
}
