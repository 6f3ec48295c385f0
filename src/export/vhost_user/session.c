/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The life of a session, and its socket.
 *
 *   SERVING -> LEAVING -> CLOSED -> freed      (SERVING may go on to CLOSED)
 *
 * Messages come one at a time: header (with the descriptors), payload, deed, answer; the next one is received after that. A
 * message that is wrong ends the connection with one logged sentence, and so does memory that the VMM has cut short;
 * the disk serves the next connection.
 *
 * LEAVING is our own orderly end: nothing more is taken, what was taken is returned and the driver told, then the socket is
 * closed: a successor finds rings with nothing under way, the guest sees a pause.
 *
 * CLOSED: the front-end is gone, or has to go. The rings are its own again and are not touched any more, in-flight region
 * included: what was taken and is not returned is found there by the next connection. Requests at the node complete
 * (C14), into memory that they hold; the session is freed when none is left, and only then is the next connection
 * accepted. A crash of ours is the same, but for the requests: those are fenced (C10) before a successor listens.
 */
#include "export/vhost_user/session.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/probe.h"

void vhost_session_wake(struct vhost_session *session)
{
    io_task_queue(session->io, &session->work);
}

void vhost_session_complain(struct vhost_session *session, const char *format, ...)
{
    struct vhost_counters *counters = session->counters;
    const uint64_t now_ns = io_now_ns(session->io);
    char text[sizeof((struct error *)0)->text + 100];
    if (counters->complaints.since_ns == 0 || now_ns - counters->complaints.since_ns >= VHOST_COMPLAINTS_NS) {
        if (counters->complaints.unsaid > 0)
            log_warning("vhost-user disk %s: %u more lines like the last were left out", session->name,
                        counters->complaints.unsaid);
        counters->complaints.since_ns = now_ns;
        counters->complaints.said = counters->complaints.unsaid = 0;
    }
    if (counters->complaints.said == LIMIT_VHOST_COMPLAINTS) {
        counters->complaints.unsaid++;
        return;
    }
    counters->complaints.said++;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    log_warning("vhost-user disk %s: %s", session->name, text);
}

/* --- messages */

static void close_descriptors(struct vhost_session *session)
{
    for (unsigned i = 0; i < session->fd_count; i++)
        if (session->fds[i] >= 0)
            io_close(session->io, session->fds[i]);
    session->fd_count = 0;
}

static void receive_next(struct vhost_session *session)
{
    session->receiving = true;
    if (session->received < VHOST_HEADER_BYTES) {
        session->packet.bytes = (char *)&session->header + session->received;
        session->packet.length = VHOST_HEADER_BYTES - session->received;
        io_recv_packet(session->io, &session->receive, session->fd, &session->packet);
    } else {
        uint32_t got = session->received - VHOST_HEADER_BYTES;
        session->packet.fd_count = 0;
        session->packet.fds_lost = session->packet.fds_strange = false;
        io_recv(session->io, &session->receive, session->fd, session->message.payload + got,
                session->message.size - got);
    }
}

static void message_begin(struct vhost_session *session)
{
    session->received = 0;
    receive_next(session);
}

static void answer_send(struct vhost_session *session)
{
    session->sending = true;
    io_send_packet(session->io, &session->send, session->fd, &session->reply);
}

static void answer(struct vhost_session *session)
{
    bool acknowledge = session->message.need_reply &&
                       (session->protocol_features & VHOST_BIT(VHOST_PROTOCOL_REPLY_ACK));
    if (!session->message.has_own_reply && !acknowledge) {
        message_begin(session);
        return;
    }
    if (!session->message.has_own_reply) {
        uint64_t word = session->refused;
        memcpy(session->answer.payload, &word, sizeof word);
        session->answer.header.size = sizeof word;
    }
    session->answer.header.request = session->message.id;
    session->answer.header.flags = VHOST_VERSION | VHOST_REPLY;
    session->reply.bytes = &session->answer;
    session->reply.length = VHOST_HEADER_BYTES + session->answer.header.size;
    answer_send(session);
}

static void message_do(struct vhost_session *session)
{
    struct error err;
    memset(&session->answer, 0, sizeof session->answer);
    session->reply.fd_count = 0;
    session->refused = false;
    enum vhost_done done = vhost_device_do(session, &err);
    session->waiting = done == VHOST_WAITS;
    if (session->waiting)
        return;
    close_descriptors(session);
    if (done == VHOST_WRONG)
        vhost_session_close(session, &err);
    else if (session->state != VHOST_SESSION_CLOSED)
        answer(session);
}

static void answer_descriptors_close(struct vhost_session *session)
{
    for (unsigned i = 0; i < session->reply.fd_count; i++)
        io_close(session->io, session->reply.fds[i]);
    session->reply.fd_count = 0;
}

static void send_done(struct io_op *op, int64_t result)
{
    struct vhost_session *session = container_of(op, struct vhost_session, send);
    session->sending = false;
    answer_descriptors_close(session);
    if (result <= 0 || session->state == VHOST_SESSION_CLOSED) {
        vhost_session_close(session, NULL);
        return;
    }
    session->reply.bytes = (char *)session->reply.bytes + result;
    session->reply.length -= (size_t)result;
    if (session->reply.length > 0)
        answer_send(session);
    else
        message_begin(session);
}

/* Keeps the descriptors that came. False: more than a message may have. */
static bool keep_descriptors(struct vhost_session *session)
{
    bool kept = !session->packet.fds_lost;
    for (unsigned i = 0; i < session->packet.fd_count; i++) {
        if (session->fd_count < LIMIT_PACKET_DESCRIPTORS) {
            session->fds[session->fd_count++] = session->packet.fds[i];
        } else {
            io_close(session->io, session->packet.fds[i]);
            kept = false;
        }
    }
    session->packet.fd_count = 0;
    return kept;
}

/* More bytes of a message: 0, or -EPROTO with a sentence. */
static int message_grow(struct vhost_session *session, uint32_t length, struct error *err)
{
    bool was_header = session->received < VHOST_HEADER_BYTES;
    session->received += length;
    if (session->received < VHOST_HEADER_BYTES)
        return 0;
    if (was_header) {
        int result = vhost_message_begin(&session->message, &session->header, err);
        if (result < 0)
            return result;
    }
    if (session->received < VHOST_HEADER_BYTES + session->message.size)
        return 0;
    return vhost_message_check(&session->message, session->fd_count, session->protocol_features, err);
}

static void receive_done(struct io_op *op, int64_t result)
{
    struct vhost_session *session = container_of(op, struct vhost_session, receive);
    struct error err;
    session->receiving = false;
    bool kept = keep_descriptors(session);
    if (result <= 0 || session->state == VHOST_SESSION_CLOSED) {
        close_descriptors(session); /* what was sent before the end is received after it, too */
        vhost_session_close(session, NULL);
        return;
    }
    if (session->packet.fds_strange) {
        error_set(
            &err, EPROTO,
            "a descriptor whose owner could keep us waiting (a device, a folder, a network's socket, a file of FUSE "
            "or of a network); eventfds, memfds and files of local file systems are taken");
        vhost_session_close(session, &err);
    } else if (!kept) {
        error_set(&err, EPROTO, "a message with more than %u descriptors", LIMIT_PACKET_DESCRIPTORS);
        vhost_session_close(session, &err);
    } else if (message_grow(session, (uint32_t)result, &err) < 0) {
        vhost_session_close(session, &err);
    } else if (session->received < VHOST_HEADER_BYTES ||
               session->received < VHOST_HEADER_BYTES + session->message.size) {
        receive_next(session);
    } else {
        message_do(session);
    }
}

/* --- requests */

static struct vhost_request *request_create(struct vhost_session *session)
{
    struct vhost_request *request = calloc(1, sizeof *request);
    if (request)
        session->request_count++;
    return request;
}

void vhost_session_charge(struct vhost_request *request, uint64_t bytes)
{
    struct vhost_session *session = request->queue->session;
    assert(session->charged_bytes >= request->charged_bytes);
    session->charged_bytes += bytes - request->charged_bytes;
    request->charged_bytes = bytes;
}

struct vhost_request *vhost_session_take_request(struct vhost_session *session)
{
    if (session->charged_bytes >= LIMIT_VHOST_BYTES)
        return NULL;
    if (!list_empty(&session->spare))
        return container_of(list_take_first(&session->spare), struct vhost_request, link);
    return session->request_count < LIMIT_VHOST_REQUESTS ? request_create(session) : NULL;
}

void vhost_session_put_request(struct vhost_session *session, struct vhost_request *request)
{
    list_prepend(&session->spare, &request->link);
}

void vhost_session_finish(struct vhost_request *request, uint32_t written)
{
    struct vhost_queue *queue = request->queue;
    struct vhost_session *session = queue->session;
    assert(queue->in_flight > 0 && session->in_flight > 0);
    if (session->state == VHOST_SESSION_CLOSED) {
        virtqueue_drop(&request->chain);
        vhost_session_wake(session);
    } else {
        virtqueue_return(queue->ring, &request->chain, written);
        io_task_queue(session->io, &queue->publish);
    }
    queue->in_flight--;
    session->in_flight--;
    vhost_session_charge(request, 0);
    session->table_users[request->table]--;
    vhost_session_put_request(session, request);
    for (unsigned i = 0; i < session->queue_end; i++)
        if (vhost_session_queue(session, i)->starved)
            vhost_queue_look(vhost_session_queue(session, i));
}

void vhost_session_log(const struct vhost_request *request, const struct iovec *iov, unsigned count)
{
    const struct vhost_session *session = request->queue->session;
    for (unsigned i = MUTANT(vhost_log_lacks_a_fragment) ? 1 : 0; i < count; i++)
        dirty_log_mark_memory(&session->log, request->chain.memory, iov[i].iov_base, iov[i].iov_len);
}

bool vhost_session_is_torn(const struct vhost_session *session)
{
    return (session->memory && guest_memory_is_torn(session->memory)) || inflight_region_is_torn(&session->inflight) ||
           dirty_log_is_torn(&session->log);
}

static void logged_idle(struct vhost_event *event)
{
    vhost_session_wake(container_of(event, struct vhost_session, logged));
}

/* --- beginning and end */

static void session_free(struct vhost_session *session)
{
    assert(session->in_flight == 0);
    for (unsigned i = 0; i < session->queue_end; i++)
        vhost_queue_fini(&session->queues[i]);
    while (!list_empty(&session->spare))
        free(container_of(list_take_first(&session->spare), struct vhost_request, link));
    vhost_transfers_fini(&session->transfers);
    back_channel_fini(&session->back);
    inflight_region_drop(&session->inflight);
    dirty_log_drop(&session->log);
    guest_memory_unref(session->memory);
    if (session->fd >= 0) {
        atomic_store(&session->counters->connected, 0);
        io_close(session->io, session->fd);
    }
    void (*gone)(void *) = session->gone;
    void *argument = session->argument;
    free(session);
    if (gone)
        gone(argument);
}

static bool is_busy(const struct vhost_session *session)
{
    for (unsigned i = 0; i < session->queue_end; i++)
        if (vhost_queue_is_busy(&session->queues[i]))
            return true;
    return session->receiving || session->sending || back_channel_is_busy(&session->back) || session->in_flight > 0 ||
           vhost_event_is_busy(&session->logged);
}

static bool is_still(const struct vhost_session *session)
{
    for (unsigned i = 0; i < session->queue_end; i++)
        if (!vhost_queue_is_still(&session->queues[i]))
            return false;
    return true;
}

static void session_work(struct io_task *task)
{
    struct vhost_session *session = container_of(task, struct vhost_session, work);
    if (session->state == VHOST_SESSION_LEAVING && (is_still(session) || MUTANT(vhost_leaves_at_once)))
        vhost_session_close(session, NULL);
    else if (session->waiting && session->state == VHOST_SESSION_SERVING)
        message_do(session);
    if (session->state == VHOST_SESSION_CLOSED && !is_busy(session) && !list_linked(&session->work.link))
        session_free(session);
}

void vhost_session_close(struct vhost_session *session, const struct error *err)
{
    vhost_session_wake(session);
    if (session->state == VHOST_SESSION_CLOSED)
        return;
    if (err)
        vhost_session_complain(session, "the connection is ended: %s", err->text);
    if (session->in_flight > 0)
        PROBE(vhost_closed_with_requests); /* C14 */
    session->state = VHOST_SESSION_CLOSED;
    session->waiting = false;
    close_descriptors(session);
    io_shutdown(session->io, session->fd);
    back_channel_shut(&session->back);
    vhost_poll_fini(session);
    vhost_event_set(&session->logged, -1);
    for (unsigned i = 0; i < session->queue_end; i++)
        vhost_queue_abandon(&session->queues[i]);
}

void vhost_session_resized(struct vhost_session *session)
{
    if (session->state == VHOST_SESSION_SERVING && (session->protocol_features & VHOST_BIT(VHOST_PROTOCOL_CONFIG)))
        back_channel_config_changed(&session->back);
}

void vhost_session_leave(struct vhost_session *session)
{
    if (session->state != VHOST_SESSION_SERVING)
        return;
    if (session->in_flight > 0)
        PROBE(vhost_left_with_requests);
    session->state = VHOST_SESSION_LEAVING;
    vhost_poll_fini(session);
    for (unsigned i = 0; i < session->queue_end; i++)
        vhost_queue_halt(&session->queues[i]);
    vhost_session_wake(session);
}

static void back_is_idle(void *context)
{
    vhost_session_wake(context);
}

struct vhost_session *vhost_session_create(struct io *io, struct node *node, const char *name,
                                           struct vhost_counters *counters)
{
    struct vhost_session *session = calloc(1, sizeof *session);
    if (!session)
        return NULL;
    session->io = io;
    session->node = node;
    session->name = name;
    session->counters = counters;
    session->fd = -1;
    session->work.run = session_work;
    back_channel_init(&session->back, io, name, back_is_idle, session);
    session->receive.done = receive_done;
    session->send.done = send_done;
    list_init(&session->spare);
    bool complete = vhost_transfers_init(&session->transfers);
    vhost_event_init(&session->logged, io, NULL, logged_idle);
    vhost_poll_init(session);
    for (unsigned i = 0; i < LIMIT_VHOST_QUEUES; i++)
        vhost_queue_init(&session->queues[i], session, i);
    for (unsigned i = 0; i < VHOST_REQUESTS_MIN; i++) {
        struct vhost_request *request = request_create(session);
        if (request)
            vhost_session_put_request(session, request);
    }
    if (complete && session->request_count == VHOST_REQUESTS_MIN)
        return session;
    session_free(session);
    return NULL;
}

void vhost_session_start(struct vhost_session *session, int fd, void (*gone)(void *argument), void *argument)
{
    session->fd = fd;
    session->gone = gone;
    session->argument = argument;
    atomic_fetch_add(&session->counters->connections, 1);
    atomic_store(&session->counters->connected, 1);
    message_begin(session);
}
