/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The life of a session and its receiving side.
 *
 *   ARRIVING -> SERVING -> SHUTTING -> DRAINING -> CLOSED -> freed      (each may go on to any later one)
 *
 * One receive and one send are under way at most, and always a poll for the client's hang-up, since nothing is received
 * while the session has no room. One receive brings many commands; they are parsed in order until the input ends or there
 * is no room for the next one, in which case whatever gives room (a reply that was sent) wakes the session up.
 *
 * How it ends: DISC, or the end of the client's bytes after a whole command: what is under way is answered, then closed.
 * A hang-up in both directions, an error of the socket, bytes that are no command: closed at once; unread and unfinished
 * commands are dropped, those at the node complete and are answered to nobody. A hang-up of the client's direction only
 * may have a DISC before it: the session goes on with what was sent, for NBD_LINGER_NS at most.
 *
 * A session is freed in its own task only, when no operation, request or task refers to it any more.
 */
#include "export/nbd/session.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"

static const uint8_t allowed_moves[] = {
    /* bits of the states that may follow */
    [NBD_SESSION_ARRIVING] = 1 << NBD_SESSION_SERVING | 1 << NBD_SESSION_CLOSED,
    [NBD_SESSION_SERVING] = 1 << NBD_SESSION_SHUTTING | 1 << NBD_SESSION_DRAINING | 1 << NBD_SESSION_CLOSED,
    [NBD_SESSION_SHUTTING] = 1 << NBD_SESSION_DRAINING | 1 << NBD_SESSION_CLOSED,
    [NBD_SESSION_DRAINING] = 1 << NBD_SESSION_CLOSED,
    [NBD_SESSION_CLOSED] = 0,
};

static void session_move(struct nbd_session *session, enum nbd_session_state state)
{
    assert(allowed_moves[session->state] & 1 << state);
    session->state = state;
}

static void deadline_set(struct nbd_session *session, uint64_t in_ns)
{
    io_timer_set(session->io, &session->deadline, io_now_ns(session->io) + in_ns);
}

void nbd_session_wake(struct nbd_session *session)
{
    io_task_queue(session->io, &session->work);
}

static void session_drain(struct nbd_session *session)
{
    session_move(session, NBD_SESSION_DRAINING);
    nbd_home_depart(session);
    if (!io_timer_armed(&session->deadline))
        deadline_set(session, NBD_LINGER_NS);
}

static enum nbd_step command_step(struct nbd_session *session)
{
    if (session->input_end - session->input_start < NBD_REQUEST_BYTES)
        return NBD_STEP_NEEDS_INPUT;
    struct nbd_command command;
    if (!nbd_command_parse(session->input + session->input_start, &command)) {
        nbd_session_close(session);
        return NBD_STEP_BLOCKED;
    }
    if (command.type == NBD_CMD_DISC) {
        session->goodbye = session->request_count == 0;
        session_drain(session);
        return NBD_STEP_BLOCKED;
    }
    struct nbd_refusal refusal = nbd_command_check(&command, &session->terms);
    if (session->state == NBD_SESSION_SHUTTING)
        refusal = nbd_refusal_of(-ESHUTDOWN, &session->terms);
    bool moves_data = (command.type == NBD_CMD_READ || command.type == NBD_CMD_WRITE) && command.length > 0;
    if (moves_data && !refusal.error) {
        nbd_transfer_begin(session, &command, NULL);
    } else {
        struct nbd_request *request = nbd_request_get(session, &command);
        if (!request)
            return NBD_STEP_BLOCKED;
        request->refusal = refusal;
        if (refusal.error && command.type == NBD_CMD_WRITE && moves_data) {
            nbd_transfer_begin(session, &command, request);
        } else if (refusal.error || moves_data || command.type == NBD_CMD_WRITE || command.type == NBD_CMD_READ) {
            nbd_reply_status(request, refusal);
        } else if (!nbd_command_submit(request)) {
            nbd_request_put(request);
            return NBD_STEP_BLOCKED;
        }
    }
    session->input_start += NBD_REQUEST_BYTES;
    return NBD_STEP_ON;
}

/* Receiving. */

static void input_set(struct nbd_session *session, uint8_t *input, uint32_t size)
{
    session->input = input;
    session->input_size = size;
    session->input_start = session->input_end = 0;
}

/* The session was busy and is not any more, or its payloads do not go through the buffer. */
static void input_shrink(struct nbd_session *session)
{
    assert(session->input_start == session->input_end && !session->receiving);
    if (!session->input_busy.bytes)
        return;
    nbd_budget_give(session->window.budget, session->input_busy.size);
    nbd_pool_put(&session->home->reactor->pool, &session->input_busy);
    input_set(session, session->small_input, sizeof session->small_input);
}

static void input_grow(struct nbd_session *session)
{
    if (session->input_busy.bytes || !nbd_budget_take(session->window.budget, LIMIT_NBD_INPUT_BUSY_BYTES))
        return;
    if (!nbd_pool_get(&session->home->reactor->pool, LIMIT_NBD_INPUT_BUSY_BYTES, &session->input_busy)) {
        nbd_budget_give(session->window.budget, LIMIT_NBD_INPUT_BUSY_BYTES);
        return;
    }
    uint32_t here = session->input_end - session->input_start;
    const uint8_t *from = session->input + session->input_start;
    input_set(session, (uint8_t *)session->input_busy.bytes, session->input_busy.size);
    memcpy(session->input, from, here);
    session->input_end = here;
}

static void receive_start(struct nbd_session *session)
{
    struct iovec room = nbd_transfer_room(session);
    if (session->input_was_full && (!session->fill || session->fill->iov.iov_len <= LIMIT_NBD_COPIED_BYTES))
        input_grow(session);
    session->input_was_full = false;
    session->receiving = true;
    session->receiving_payload = room.iov_len > LIMIT_NBD_COPIED_BYTES || room.iov_len > session->input_size / 2;
    if (session->receiving_payload) {
        session->receiving = false;
        if (room.iov_len > LIMIT_NBD_COPIED_BYTES)
            input_shrink(session);
        session->receiving = true;
        io_recv(session->io, &session->receive, session->fd, room.iov_base, room.iov_len);
        return;
    }
    uint32_t here = session->input_end - session->input_start;
    memmove(session->input, session->input + session->input_start, here);
    session->input_start = 0;
    session->input_end = here;
    io_recv(session->io, &session->receive, session->fd, session->input + here, session->input_size - here);
}

/* The client's bytes have ended, and everything before the end was understood. */
static void input_end_reached(struct nbd_session *session)
{
    if (session->transferring || session->input_start != session->input_end)
        nbd_session_close(session); /* in the middle of a command */
    else
        session_drain(session);
}

static bool session_parses(const struct nbd_session *session)
{
    return session->state == NBD_SESSION_SERVING || session->state == NBD_SESSION_SHUTTING;
}

static void session_process(struct nbd_session *session)
{
    enum nbd_step step = session->stalled ? NBD_STEP_BLOCKED : NBD_STEP_ON;
    while (step == NBD_STEP_ON && !list_empty(&session->unread) && session->state != NBD_SESSION_CLOSED)
        step = nbd_transfer_read_again(session);
    while (step == NBD_STEP_ON && session_parses(session))
        step = session->transferring ? nbd_transfer_step(session) : command_step(session);
    if (!session_parses(session))
        return;
    if (step == NBD_STEP_BLOCKED || session->receiving)
        return;
    if (session->input_ended)
        input_end_reached(session);
    else
        receive_start(session);
}

static void receive_done(struct io_op *op, int64_t result)
{
    struct nbd_session *session = container_of(op, struct nbd_session, receive);
    session->receiving = false;
    session->active = true;
    if (session->state == NBD_SESSION_CLOSED) {
        nbd_session_wake(session);
        return;
    }
    if (result > 0 && session->receiving_payload) {
        nbd_transfer_received(session, (uint32_t)result);
    } else if (result > 0) {
        session->input_end += (uint32_t)result;
        session->input_was_full = session->input_end == session->input_size;
    } else if (result == 0) {
        session->input_ended = true;
    } else if (result == -ECANCELED && session->input_start == session->input_end) {
        input_shrink(session); /* the sweep asked for it */
    } else if (result != -ECANCELED && result != -EINTR && result != -EAGAIN) {
        nbd_session_close(session);
        return;
    }
    session_process(session);
    if (session->state != NBD_SESSION_SERVING)
        nbd_session_wake(session);
}

void nbd_session_sweep(struct nbd_session *session)
{
    bool idle = !session->active;
    session->active = false;
    if (idle && session->receiving && !session->receiving_payload && session->input_busy.bytes &&
        session->input_start == session->input_end)
        io_cancel(session->io, &session->receive);
    nbd_reply_sweep(session);
    if (!session->receiving)
        nbd_session_wake(session); /* memory may be there again */
}

/* Beginning and end. */

static void hangup_arm(struct nbd_session *session, short events)
{
    session->hangup_armed = true;
    io_poll(session->io, &session->hangup, session->fd, events);
}

/* A client that has all its replies may have said goodbye before it hung up: with read-once that makes a difference. */
static bool hangup_may_follow_disc(const struct nbd_session *session)
{
    return session->state == NBD_SESSION_SERVING && session->read_once && session->receiving &&
           session->request_count == 0;
}

static void hangup_done(struct io_op *op, int64_t result)
{
    struct nbd_session *session = container_of(op, struct nbd_session, hangup);
    session->hangup_armed = false;
    if (session->state == NBD_SESSION_CLOSED) {
        nbd_session_wake(session);
    } else if (result >= 0 && hangup_may_follow_disc(session)) {
        nbd_home_depart(session); /* what is being received says whether it did */
        deadline_set(session, NBD_LINGER_NS);
    } else if (result < 0 || (result & (POLLHUP | POLLERR | POLLNVAL))) {
        nbd_session_close(session);
    } else {
        session->half_closed = true;
        if (session->state != NBD_SESSION_ARRIVING)
            nbd_home_depart(session);
        deadline_set(session, NBD_LINGER_NS);
        hangup_arm(session, 0);
    }
}

static void deadline_passed(struct io_timer *timer)
{
    nbd_session_close(container_of(timer, struct nbd_session, deadline));
}

static void barrier_passed(struct io_op *op, int64_t result)
{
    struct nbd_session *session = container_of(op, struct nbd_session, barrier);
    (void)result;
    session->barrier_armed = false;
    nbd_session_wake(session); /* behind all completions of this tick */
}

void nbd_session_begin(struct nbd_session *session)
{
    session_move(session, NBD_SESSION_SERVING);
    if (session->half_closed)
        nbd_home_depart(session);
    nbd_session_wake(session);
}

void nbd_session_shut(struct nbd_session *session)
{
    if (session->state == NBD_SESSION_ARRIVING) {
        nbd_session_close(session);
    } else if (session->state == NBD_SESSION_SERVING) {
        session_move(session, NBD_SESSION_SHUTTING);
        deadline_set(session, NBD_SHUTDOWN_NS);
        nbd_session_wake(session);
    }
}

void nbd_session_close(struct nbd_session *session)
{
    if (session->state != NBD_SESSION_CLOSED) {
        session_move(session, NBD_SESSION_CLOSED);
        nbd_home_depart(session);
        if (session->read_once)
            nbd_read_once_end(session->read_once, session->goodbye);
        session->read_once = NULL;
        io_timer_cancel(session->io, &session->deadline);
        io_shutdown(session->io, session->fd);
        if (session->hangup_armed)
            io_cancel(session->io, &session->hangup);
        if (session->barrier_armed)
            io_cancel(session->io, &session->barrier);
        if (!session->receiving_payload || !session->receiving)
            nbd_transfer_drop(session);
    }
    if (!session->sending)
        nbd_reply_drop_all(session);
    nbd_session_wake(session);
}

static void session_free(struct nbd_session *session)
{
    assert(session->submitted == 0 && session->window.held_bytes == 0);
    session->input_start = session->input_end = 0;
    input_shrink(session);
    io_close(session->io, session->fd);
    nbd_home_part(session);
    free(session);
}

static void session_work(struct io_task *task)
{
    struct nbd_session *session = container_of(task, struct nbd_session, work);
    if (session->state == NBD_SESSION_ARRIVING && !session->barrier_armed && !session->admitted) {
        session->admitted = true;
        nbd_home_admit(session);
    }
    session_process(session);
    if ((session->state == NBD_SESSION_SHUTTING || session->state == NBD_SESSION_DRAINING) &&
        session->request_count == 0 && !session->transferring)
        nbd_session_close(session);
    if (session->state == NBD_SESSION_CLOSED && !session->receiving)
        nbd_transfer_drop(session);
    if (session->state >= NBD_SESSION_DRAINING && session->submitted == 0 && !session->transferring)
        nbd_home_settle(session);
    if (session->state == NBD_SESSION_CLOSED && session->request_count == 0 && !session->receiving &&
        !session->sending && !session->hangup_armed && !session->barrier_armed && !list_linked(&session->work.link) &&
        !list_linked(&session->send_task.link))
        session_free(session);
    else if (list_linked(&session->send_task.link))
        nbd_session_wake(session);
}

static void session_arrive(struct io_message *message)
{
    struct nbd_session *session = container_of(message, struct nbd_session, arrive);
    hangup_arm(session, POLLRDHUP);
    session->barrier_armed = true;
    io_poll(session->io, &session->barrier, session->fd, POLLOUT);
    nbd_home_join(session->home, session);
}

struct nbd_session *nbd_session_create(struct nbd_home *home, int fd, const struct nbd_terms *terms, const void *unread,
                                       size_t unread_length)
{
    struct nbd_session *session = calloc(1, sizeof *session);
    if (!session)
        return NULL;
    assert(unread_length <= sizeof session->small_input);
    session->io = home->reactor->io;
    session->home = home;
    session->fd = fd;
    session->terms = *terms;
    session->window.budget = home->reactor->pool.budget;
    session->arrive.deliver = session_arrive;
    session->barrier.done = barrier_passed;
    session->hangup.done = hangup_done;
    session->receive.done = receive_done;
    session->deadline.fire = deadline_passed;
    session->work.run = session_work;
    input_set(session, session->small_input, sizeof session->small_input);
    memcpy(session->input, unread, unread_length);
    session->input_end = (uint32_t)unread_length;
    nbd_reply_init(session);
    return session;
}

void nbd_session_start(struct nbd_session *session)
{
    io_post(session->io, &session->arrive);
}
