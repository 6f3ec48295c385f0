/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The protocol, from QEMU's qga/qapi-schema.json: commands and replies are lines of JSON. A client begins with a byte 0xFF,
 * which has the agent forget half a command of its predecessor, and guest-sync-delimited with a random number; the agent
 * says 0xFF and that number, after whatever it still had to say to others. All before it is passed over.
 *
 *     IDLE    nothing is asked; what comes is passed over
 *     SYNC    the number is waited for
 *     ANSWER  the next line is the answer
 *     BROKEN  the line has ended, or has said more than anybody reads; asking again says so again
 *
 * QEMU serves one client of the socket at a time: a connection to a socket that somebody else uses succeeds, and nobody
 * answers. Neither does an agent that does not run. Only the deadline tells.
 *
 * Bytes that were not taken yet (the guest hangs) wait in `out`, whose room bounds what can be asked meanwhile.
 */
#include "guest/agent_line.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum line_state { IDLE, SYNC, ANSWER, BROKEN };

struct agent_line {
    struct io *io;
    int fd;
    enum line_state state;
    enum agent_question question;
    uint64_t number; /* of the sync */
    bool sent_ahead; /* the command went along with it */
    struct agent_reader reader;
    uint64_t passed_over; /* bytes, since the question */
    struct error broken;
    char in[LIMIT_AGENT_INPUT_BYTES], out[LIMIT_AGENT_OUTPUT_BYTES], sending[LIMIT_AGENT_OUTPUT_BYTES];
    size_t out_used;
    struct iovec iov;
    struct io_op receive, send;
    bool receiving, is_sending;
    struct io_timer deadline;
    struct io_task tell; /* of what was found out inside agent_line_ask() */
    void (*answered)(void *argument, const struct agent_reply *reply, const struct error *err);
    void *answered_argument;
    bool closing;
    void (*closed)(void *argument);
    void *closed_argument;
};

static const char *const commands[] = {
    [AGENT_STATUS] = "guest-fsfreeze-status",
    [AGENT_FREEZE] = "guest-fsfreeze-freeze",
    [AGENT_THAW] = "guest-fsfreeze-thaw",
};

static void line_check_closed(struct agent_line *line)
{
    if (!line->closing || line->receiving || line->is_sending || list_linked(&line->tell.link))
        return;
    void (*closed)(void *) = line->closed;
    void *argument = line->closed_argument;
    io_close(line->io, line->fd);
    free(line);
    closed(argument);
}

/* The question is over. */
static void answer(struct agent_line *line, const struct agent_reply *reply, const struct error *err)
{
    void (*answered)(void *, const struct agent_reply *, const struct error *) = line->answered;
    io_timer_cancel(line->io, &line->deadline);
    line->answered = NULL;
    if (line->state != BROKEN)
        line->state = IDLE;
    if (answered && !line->closing)
        answered(line->answered_argument, reply, err);
}

static void line_break(struct agent_line *line, int code, const char *why)
{
    if (line->state == BROKEN)
        return;
    error_set(&line->broken, code, "the guest agent's line has ended: %s", why);
    line->state = BROKEN;
    answer(line, NULL, &line->broken);
}

/* ---- out ---- */

static void send_more(struct agent_line *line)
{
    if (line->is_sending || line->out_used == 0 || line->closing || line->state == BROKEN)
        return;
    memcpy(line->sending, line->out, line->out_used);
    line->iov = (struct iovec){line->sending, line->out_used};
    line->out_used = 0;
    line->is_sending = true;
    io_sendv(line->io, &line->send, line->fd, &line->iov, 1);
}

static void sent(struct io_op *op, int64_t result)
{
    struct agent_line *line = container_of(op, struct agent_line, send);
    if (result > 0 && !line->closing && (size_t)result < line->iov.iov_len) {
        line->iov.iov_base = (char *)line->iov.iov_base + result;
        line->iov.iov_len -= (size_t)result;
        io_sendv(line->io, &line->send, line->fd, &line->iov, 1);
        return;
    }
    line->is_sending = false;
    if (line->closing)
        line_check_closed(line);
    else if (result <= 0)
        line_break(line, result < 0 ? (int)-result : EPIPE, error_name(result < 0 ? (int)result : EPIPE));
    else
        send_more(line);
}

static bool say(struct agent_line *line, const char *text)
{
    const size_t length = strlen(text);
    if (length > sizeof line->out - line->out_used)
        return false;
    memcpy(line->out + line->out_used, text, length);
    line->out_used += length;
    return true;
}

static bool say_command(struct agent_line *line)
{
    char text[LIMIT_AGENT_QUESTION_BYTES];
    snprintf(text, sizeof text, "{\"execute\":\"%s\"}\n", commands[line->question]);
    return say(line, text);
}

static bool say_sync(struct agent_line *line)
{
    char text[LIMIT_AGENT_QUESTION_BYTES];
    io_random(line->io, &line->number, sizeof line->number);
    line->number >>= 11; /* what every JSON reader keeps exact */
    snprintf(text, sizeof text, "\xff{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":%" PRIu64 "}}\n",
             line->number);
    return say(line, text);
}

/* ---- in ---- */

static void line_said(struct agent_line *line, const struct agent_reply *reply)
{
    if (line->state == ANSWER) {
        answer(line, reply, NULL);
        return;
    }
    if (line->state != SYNC || reply->kind != AGENT_NUMBER || (uint64_t)reply->number != line->number)
        return;
    line->state = ANSWER;
    if (!line->sent_ahead)
        (void)say_command(line); /* its sync has been answered, so `out` is empty */
    send_more(line);
}

static void receive_more(struct agent_line *line)
{
    line->receiving = true;
    io_recv(line->io, &line->receive, line->fd, line->in, sizeof line->in);
}

static void received(struct io_op *op, int64_t result)
{
    struct agent_line *line = container_of(op, struct agent_line, receive);
    struct agent_reply reply;
    const char *bytes = line->in;
    size_t length = result > 0 ? (size_t)result : 0;
    line->receiving = false;
    line->passed_over += length;
    while (!line->closing && line->state != BROKEN && agent_reader_take(&line->reader, &bytes, &length, &reply))
        line_said(line, &reply);
    if (!line->closing && result <= 0)
        line_break(line, ECONNRESET, result < 0 ? error_name((int)result) : "it was hung up");
    else if (!line->closing && line->passed_over > LIMIT_AGENT_PASSED_OVER_BYTES)
        line_break(line, EPROTO, "it says more and more, and nothing that was asked for");
    if (line->closing)
        line_check_closed(line);
    else if (line->state != BROKEN)
        receive_more(line);
}

/* ---- questions ---- */

static void deadline_passed(struct io_timer *timer)
{
    struct agent_line *line = container_of(timer, struct agent_line, deadline);
    struct error err;
    if (line->state == SYNC)
        error_set(&err, ETIMEDOUT,
                  "the guest agent does not answer: it does not run, or somebody else uses its socket");
    else
        error_set(&err, ETIMEDOUT, "the guest agent has not answered %s in time", commands[line->question]);
    answer(line, NULL, &err);
}

static void tell_broken(struct io_task *task)
{
    struct agent_line *line = container_of(task, struct agent_line, tell);
    if (line->closing)
        line_check_closed(line);
    else
        answer(line, NULL, &line->broken);
}

struct agent_line *agent_line_open(struct io *io, const char *address, struct error *err)
{
    assert(io_on_owner(io));
    struct agent_line *line = calloc(1, sizeof *line);
    if (!line) {
        error_set(err, ENOMEM, "no memory to talk to the guest agent");
        return NULL;
    }
    line->io = io;
    line->fd = io_connect(io, address, err);
    if (line->fd < 0) {
        error_prefix(err, "the guest agent can't be reached");
        free(line);
        return NULL;
    }
    line->receive.done = received;
    line->send.done = sent;
    line->deadline.fire = deadline_passed;
    line->tell.run = tell_broken;
    receive_more(line);
    return line;
}

void agent_line_ask(struct agent_line *line, enum agent_question question, uint64_t deadline_ns,
                    void (*answered)(void *argument, const struct agent_reply *reply, const struct error *err),
                    void *argument)
{
    assert(io_on_owner(line->io) && !line->closing);
    line->answered = answered;
    line->answered_argument = argument;
    line->question = question;
    line->passed_over = 0;
    line->sent_ahead = question == AGENT_THAW;
    if (line->state != BROKEN && (!say_sync(line) || (line->sent_ahead && !say_command(line)))) {
        error_set(&line->broken, ENOBUFS, "the guest agent takes nothing any more");
        line->state = BROKEN;
    }
    if (line->state == BROKEN) {
        io_task_queue(line->io, &line->tell);
        return;
    }
    line->state = SYNC;
    io_timer_set(line->io, &line->deadline, deadline_ns);
    send_more(line);
}

void agent_line_close(struct agent_line *line, void (*closed)(void *argument), void *argument)
{
    assert(io_on_owner(line->io) && !line->closing);
    line->closing = true;
    line->closed = closed;
    line->closed_argument = argument;
    io_timer_cancel(line->io, &line->deadline);
    io_shutdown(line->io, line->fd);
    if (!line->receiving && !line->is_sending) /* told at the end of the tick */
        io_task_queue(line->io, &line->tell);
}
