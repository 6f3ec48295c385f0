/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * READ and WRITE. Most are one piece: one buffer, one request to the node, one reply. A command that is longer than a
 * piece, or than what the session may hold, is cut up while it goes:
 *
 *  - WRITE: the payload is received into one piece after the other, each is submitted when it is full; the reply waits
 *    for all. After an error the rest of the payload is thrown away.
 *  - READ with structured replies: each piece is a chunk of its own, in any order; a last chunk without data ends the
 *    reply, or one with the error.
 *  - READ that must be one run of bytes (simple replies, DF): it waits until everything before it is sent, then goes
 *    piece by piece behind one header, with nothing between. An error behind that header can only close the connection.
 *
 * Data that was read but not taken by the client for a while is given up and read again later (see reply.c). The protocol
 * allows it: a READ may see any state between its arrival and its reply.
 *
 * A command is cut up only when it would not fit even if the session held nothing else; otherwise it waits, since
 * everything held comes back. While one is cut up, nothing behind it is parsed: so one is enough state.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "export/nbd/session.h"

void nbd_transfer_begin(struct nbd_session *session, const struct nbd_command *command, struct nbd_request *refusal)
{
    assert(!session->transferring && command->length > 0);
    session->transferring = true;
    session->transfer = *command;
    session->transfer_left = command->length;
    session->whole = refusal;
    session->discarding = refusal != NULL;
    session->streaming = false;
}

static bool transfer_is_read(const struct nbd_session *session)
{
    return session->transfer.type == NBD_CMD_READ;
}

static void transfer_end(struct nbd_session *session)
{
    session->transferring = session->discarding = session->streaming = false;
    session->whole = NULL;
    assert(!session->fill);
}

/* The command in pieces is answered once all are back. */
static void whole_check(struct nbd_request *whole)
{
    if (whole->issued && whole->pieces == 0)
        nbd_reply_status(whole, whole->refusal);
}

/*
 * The length of the next piece; 0: wait. `overhead` is what must fit besides the payload. A piece that is not the last
 * ends at a multiple of 4096, so that the pieces behind it are aligned.
 */
static uint32_t piece_length(const struct nbd_session *session, uint64_t overhead)
{
    uint32_t left = session->transfer_left;
    uint32_t want = left < LIMIT_NBD_PIECE_BYTES ? left : (uint32_t)LIMIT_NBD_PIECE_BYTES;
    uint64_t room = nbd_window_room(&session->window);
    uint32_t size = nbd_buffer_size(want);
    uint64_t ours = session->whole ? sizeof(struct nbd_request) : 0; /* held until all pieces are back */
    if (size + overhead + ours > room) {
        uint64_t whole = nbd_window_whole(&session->window);
        while (size + overhead + ours > whole && size > 4096)
            size /= 2;
    }
    if (size + overhead > room)
        return 0;
    if (want < size || left <= size)
        return want;
    uint64_t at = session->transfer.offset + (session->transfer.length - left);
    return size - (uint32_t)(at & 4095);
}

/* Takes the object and buffer of the next piece out of the window; NULL: wait. */
static struct nbd_request *piece_get(struct nbd_session *session, uint32_t *length)
{
    uint64_t objects = session->whole ? 1 : 2; /* a command in pieces needs one for itself */
    *length = piece_length(session, objects * sizeof(struct nbd_request));
    if (*length == 0)
        return NULL;
    bool in_pieces = session->whole || *length < session->transfer_left;
    bool one_run = !session->terms.structured || (session->transfer.flags & NBD_CMD_FLAG_DF);
    if (in_pieces && transfer_is_read(session) && one_run) {
        unsigned ours = session->whole ? 1 : 0;
        if (session->whole ? session->whole->pieces > 0 : session->request_count > ours)
            return NULL;
        if (session->request_count > 1 + LIMIT_NBD_STREAM_PIECES)
            return NULL;
        session->streaming = true;
    }
    if (in_pieces && session->request_count + 2 > LIMIT_NBD_REQUESTS)
        return NULL;
    if (in_pieces && !session->whole) {
        session->whole = nbd_request_get(session, &session->transfer);
        if (!session->whole)
            return NULL;
    }
    struct nbd_request *piece = nbd_request_get(session, &session->transfer);
    if (piece && !nbd_request_get_buffer(piece, *length)) {
        nbd_request_put(piece);
        piece = NULL;
    }
    if (piece) {
        piece->iov = (struct iovec){piece->buffer.bytes, *length};
        piece->whole = session->whole;
        if (session->whole)
            session->whole->pieces++;
    }
    return piece;
}

/* Moves on behind the piece; returns its range on the disk. */
static struct range piece_issue(struct nbd_session *session, uint32_t length)
{
    uint64_t start = session->transfer.offset + (session->transfer.length - session->transfer_left);
    session->transfer_left -= length;
    if (session->transfer_left == 0 && session->whole)
        session->whole->issued = true;
    return (struct range){start, length};
}

/*
 * A piece of a reply that is one run of bytes. The transfer ends only here, with the last piece in the send queue: a
 * command behind it must not be answered in its midst.
 */
static void stream_piece_read(struct nbd_request *piece, int status)
{
    struct nbd_session *session = piece->session;
    struct nbd_request *whole = piece->whole;
    uint32_t length = (uint32_t)piece->iov.iov_len;
    bool first = piece->block.range.start == whole->command.offset;
    assert(session->streaming && session->whole == whole);
    whole->pieces--;
    if (status) {
        nbd_request_put(piece);
        if (!first) {
            nbd_session_close(session);
            return;
        }
        transfer_end(session); /* nothing was said yet: answer the error, and forget the rest */
        nbd_reply_status(whole, nbd_refusal_of(status, &session->terms));
    } else {
        if (first)
            nbd_reply_stream_first(piece, length, whole->command.length);
        else
            nbd_reply_stream_next(piece, length);
        if (whole->issued) {
            transfer_end(session);
            nbd_request_put(whole);
        }
    }
    nbd_session_wake(session);
}

static void read_done(struct request *block, int status)
{
    struct nbd_request *piece = container_of(block, struct nbd_request, block);
    struct nbd_session *session = piece->session;
    struct nbd_request *whole = piece->whole;
    session->submitted--;
    if (session->state == NBD_SESSION_CLOSED) {
        if (whole && --whole->pieces == 0 && whole->issued)
            nbd_request_put(whole);
        nbd_request_put(piece);
        nbd_session_wake(session);
    } else if (!whole) {
        if (status)
            nbd_reply_status(piece, nbd_refusal_of(status, &session->terms));
        else
            nbd_reply_data(piece, block->range.start, (uint32_t)piece->iov.iov_len, true);
    } else if (nbd_reply_is_one_run(piece)) {
        stream_piece_read(piece, status);
    } else {
        if (status && !whole->refusal.error)
            whole->refusal = nbd_refusal_of(status, &session->terms);
        if (status)
            nbd_request_put(piece);
        else
            nbd_reply_data(piece, block->range.start, (uint32_t)piece->iov.iov_len, false);
        whole->pieces--;
        whole_check(whole);
        nbd_session_wake(session);
    }
}

static void write_done(struct request *block, int status)
{
    struct nbd_request *piece = container_of(block, struct nbd_request, block);
    struct nbd_session *session = piece->session;
    struct nbd_request *whole = piece->whole;
    session->submitted--;
    session->window.proven_bytes += piece->iov.iov_len;
    if (!whole) {
        nbd_reply_status(piece, nbd_refusal_of(status, &session->terms));
    } else {
        nbd_request_put(piece);
        if (status && !whole->refusal.error)
            whole->refusal = nbd_refusal_of(status, &session->terms);
        whole->pieces--;
        whole_check(whole);
    }
    nbd_session_wake(session);
}

static enum nbd_step read_step(struct nbd_session *session)
{
    if (!session->streaming && session->whole && session->whole->refusal.error) { /* the rest is not worth reading */
        piece_issue(session, session->transfer_left);
        whole_check(session->whole);
        transfer_end(session);
        return NBD_STEP_ON;
    }
    if (session->transfer_left == 0) /* the last piece of a run of bytes is not queued yet */
        return NBD_STEP_BLOCKED;
    uint32_t length;
    struct nbd_request *piece = piece_get(session, &length);
    if (!piece)
        return NBD_STEP_BLOCKED;
    struct range range = piece_issue(session, length);
    if (session->transfer_left == 0 && !session->streaming)
        transfer_end(session);
    nbd_request_submit(piece, REQUEST_READ, range, 0, read_done);
    return NBD_STEP_ON;
}

static void fill_submit(struct nbd_session *session)
{
    struct nbd_request *piece = session->fill;
    session->fill = NULL;
    uint32_t fua = piece->command.flags & NBD_CMD_FLAG_FUA ? REQUEST_FUA : 0;
    struct range range = piece_issue(session, session->filled);
    if (session->transfer_left == 0)
        transfer_end(session);
    nbd_request_submit(piece, REQUEST_WRITE, range, fua, write_done);
}

static enum nbd_step discard_step(struct nbd_session *session)
{
    uint32_t here = session->input_end - session->input_start;
    if (here > session->transfer_left)
        here = session->transfer_left;
    session->input_start += here;
    session->transfer_left -= here;
    if (session->transfer_left > 0)
        return NBD_STEP_NEEDS_INPUT;
    struct nbd_request *whole = session->whole;
    transfer_end(session);
    whole->issued = true;
    whole_check(whole);
    return NBD_STEP_ON;
}

static enum nbd_step write_step(struct nbd_session *session)
{
    if (!session->fill && session->whole && session->whole->refusal.error)
        session->discarding = true;
    if (session->discarding)
        return discard_step(session);
    if (!session->fill) {
        uint32_t length;
        session->fill = piece_get(session, &length);
        if (!session->fill)
            return NBD_STEP_BLOCKED;
        session->filled = 0;
    }
    uint32_t length = (uint32_t)session->fill->iov.iov_len;
    uint32_t here = session->input_end - session->input_start;
    if (here > length - session->filled)
        here = length - session->filled;
    memcpy(session->fill->buffer.bytes + session->filled, session->input + session->input_start, here);
    session->input_start += here;
    session->filled += here;
    if (session->filled < length)
        return NBD_STEP_NEEDS_INPUT;
    fill_submit(session);
    return NBD_STEP_ON;
}

enum nbd_step nbd_transfer_step(struct nbd_session *session)
{
    assert(session->transferring);
    return transfer_is_read(session) ? read_step(session) : write_step(session);
}

struct iovec nbd_transfer_room(struct nbd_session *session)
{
    if (!session->fill)
        return (struct iovec){NULL, 0};
    return (struct iovec){session->fill->buffer.bytes + session->filled, session->fill->iov.iov_len - session->filled};
}

void nbd_transfer_received(struct nbd_session *session, uint32_t length)
{
    session->filled += length;
    assert(session->filled <= session->fill->iov.iov_len);
    if (session->filled == session->fill->iov.iov_len)
        fill_submit(session);
}

void nbd_transfer_give_up(struct nbd_request *request)
{
    struct nbd_session *session = request->session;
    struct nbd_request *whole = request->whole;
    list_remove(&request->link);
    list_append(&session->unread, &request->link);
    nbd_request_put_buffer(request);
    if (!whole)
        return;
    whole->pieces++;
    if (list_linked(&whole->link)) /* the end of the reply, which had followed */
        list_remove(&whole->link);
}

enum nbd_step nbd_transfer_read_again(struct nbd_session *session)
{
    struct nbd_request *request = list_first(&session->unread, struct nbd_request, link);
    if (!nbd_request_get_buffer(request, request->iov.iov_len))
        return NBD_STEP_BLOCKED;
    list_remove(&request->link);
    request->iov.iov_base = request->buffer.bytes;
    nbd_request_submit(request, REQUEST_READ, request->block.range, 0, read_done);
    return NBD_STEP_ON;
}

/* Closed: what was not submitted never will be. Pieces that are under way still point at the whole. */
void nbd_transfer_drop(struct nbd_session *session)
{
    while (!list_empty(&session->unread)) {
        struct nbd_request *request = container_of(list_take_first(&session->unread), struct nbd_request, link);
        struct nbd_request *whole = request->whole;
        nbd_request_put(request);
        if (whole) {
            whole->pieces--;
            whole_check(whole);
        }
    }
    if (!session->transferring)
        return;
    if (session->fill) {
        if (session->whole)
            session->whole->pieces--;
        nbd_request_put(session->fill);
        session->fill = NULL;
    }
    if (session->whole) {
        session->whole->issued = true;
        whole_check(session->whole);
    }
    transfer_end(session);
}
