/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The protocol is that of qga/qapi-schema.json, as much of it as a freeze needs. */
#include "scripted_guest.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/limits.h"

static void guest_accept(struct guest *guest)
{
    io_accept(guest->io, &guest->accept, guest->listener);
}

static void guest_say_out(struct guest *guest)
{
    if (guest->sending || guest->out_used == 0 || guest->fd < 0)
        return;
    guest->sending = true;
    guest->iov = (struct iovec){guest->out, guest->out_used};
    io_sendv(guest->io, &guest->send, guest->fd, &guest->iov, 1);
}

static void guest_drop(struct guest *guest)
{
    if (guest->sending || guest->receiving || guest->fd < 0)
        return;
    io_close(guest->io, guest->fd);
    guest->fd = -1;
    guest->hanging_up = false;
    guest_accept(guest);
}

static void guest_sent(struct io_op *op, int64_t result)
{
    struct guest *guest = container_of(op, struct guest, send);
    guest->sending = false;
    if (result > 0) {
        guest->out_used -= (size_t)result;
        memmove(guest->out, guest->out + result, guest->out_used);
        guest_say_out(guest);
    } else {
        guest->out_used = 0;
    }
    if (guest->hanging_up)
        guest_drop(guest);
}

static void guest_say(struct guest *guest, const char *text)
{
    const size_t length = strlen(text);
    if (guest->fd < 0 || length > sizeof guest->out - guest->out_used)
        return;
    memcpy(guest->out + guest->out_used, text, length);
    guest->out_used += length;
    guest_say_out(guest);
}

static void guest_freeze(struct guest *guest, unsigned count)
{
    if (guest->frozen == 0)
        guest->frozen_since = io_now_ns(guest->io);
    guest->frozen = count;
    guest->freezes++;
}

unsigned guest_thaw(struct guest *guest)
{
    const unsigned count = guest->frozen;
    const uint64_t frozen_ns = io_now_ns(guest->io) - guest->frozen_since;
    if (count > 0 && frozen_ns > guest->frozen_longest)
        guest->frozen_longest = frozen_ns;
    guest->frozen = 0;
    guest->thaws++;
    return count;
}

/* Does what the line says; the reply goes into reply[200]. */
static void guest_do(struct guest *guest, const char *line, enum fault fault, char *reply)
{
    const char *number = strstr(line, "\"id\":");
    bool undone = fault == NONE || fault == REFUSED || fault == PARTLY;
    if (number)
        snprintf(reply, 200, "\xff{\"return\": %lld}\n", strtoll(number + 5, NULL, 10));
    else if (strstr(line, "guest-fsfreeze-status"))
        snprintf(reply, 200, "{\"return\": \"%s\"}\n", guest->frozen ? "frozen" : "thawed");
    else if (strstr(line, "guest-fsfreeze-freeze") && guest->frozen)
        snprintf(reply, 200, "{\"error\": {\"class\": \"GenericError\", \"desc\": \"disabled while frozen\"}}\n");
    else if (strstr(line, "guest-fsfreeze-freeze"))
        guest_freeze(guest, undone ? fault == PARTLY : FILE_SYSTEMS),
            snprintf(reply, 200, "{\"return\": %u}\n", guest->frozen);
    else if (strstr(line, "guest-fsfreeze-thaw"))
        snprintf(reply, 200, "{\"return\": %u}\n", undone ? 0 : guest_thaw(guest));
    else
        snprintf(reply, 200, "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"what?\"}}\n");
    if (fault == NONE && !number)
        snprintf(reply, 200, "{\"return\": 0}\n");
    if (fault == REFUSED || fault == PARTLY)
        snprintf(reply, 200, "{\"error\": {\"class\": \"GenericError\", \"desc\": \"can't \\u00e4 \\n\"}}\n");
}

static void guest_take_line(struct guest *guest)
{
    const enum fault fault = ++guest->heard == guest->fault_at ? guest->fault : NO_FAULT;
    char reply[200] = "", endless[4001];
    if (guest->deaf || fault == LOST)
        return;
    if (fault == LATE || fault == LATE_DONE)
        io_timer_set(guest->io, &guest->busy, io_now_ns(guest->io) + 15 * NS_PER_S);
    if (fault == LATE) {
        snprintf(guest->late, sizeof guest->late, "%.190s", guest->line);
        return;
    }
    if (fault != CLOSED)
        guest_do(guest, guest->line, fault, reply);
    switch (fault) {
    case LATE_DONE:
        snprintf(guest->late, sizeof guest->late, "%s", reply);
        break;
    case GARBAGE:
        guest_say(guest, "}]\x01 nonsense {\"return\": \n");
        break;
    case HALF:
        reply[strlen(reply) / 2] = 0;
        guest_say(guest, reply);
        break;
    case ENDLESS:
        memset(endless, '7', sizeof endless);
        endless[4000] = 0;
        guest_say(guest, "{\"return\": ");
        guest_say(guest, endless);
        guest_say(guest, endless);
        guest_say(guest, "}\n");
        break;
    case STALE:
        guest_say(guest, "{\"return\": 77}\n\n{\"return\": \"frozen\"}\n");
        guest_say(guest, strchr(reply, '\xff') ? "{\"error\": {\"class" : "");
        guest_say(guest, reply);
        break;
    case WRONG:
        guest_say(guest, "{\"return\": {\"a\": [1, 2]}}\n");
        break;
    case CLOSED:
    case DONE_CLOSED:
        guest->hanging_up = true;
        io_shutdown(guest->io, guest->fd);
        break;
    case UNHEARD:
        break;
    default:
        guest_say(guest, reply);
        break;
    }
}

/* The agent does one thing after the other: while it is busy it hears nothing. */
static void guest_hear(struct guest *guest)
{
    while (!io_timer_armed(&guest->busy)) {
        char *end = memchr(guest->line, '\n', guest->line_used);
        if (!end)
            return;
        *end = 0;
        const size_t length = (size_t)(end - guest->line) + 1;
        guest_take_line(guest);
        guest->line_used -= length;
        memmove(guest->line, guest->line + length, guest->line_used);
    }
}

static void guest_not_busy(struct io_timer *timer)
{
    struct guest *guest = container_of(timer, struct guest, busy);
    char reply[200] = "";
    if (guest->fault == LATE) {
        guest_do(guest, guest->late, NO_FAULT, reply);
        guest_say(guest, reply);
    } else {
        guest_say(guest, guest->late);
    }
    guest_hear(guest);
}

/* What was said on a connection stays in the channel to the agent when it ends. */
static void guest_received(struct io_op *op, int64_t result)
{
    struct guest *guest = container_of(op, struct guest, receive);
    guest->receiving = false;
    if (result <= 0) {
        guest->hanging_up = true;
        guest_drop(guest);
        return;
    }
    assert_true((size_t)result <= sizeof guest->line - guest->line_used);
    memcpy(guest->line + guest->line_used, guest->in, (size_t)result);
    guest->line_used += (size_t)result;
    guest_hear(guest);
    guest->receiving = true;
    io_recv(guest->io, &guest->receive, guest->fd, guest->in, 200);
}

static void guest_accepted(struct io_op *op, int64_t result)
{
    struct guest *guest = container_of(op, struct guest, accept);
    assert_true(result >= 0);
    guest->fd = (int)result;
    guest->out_used = 0;
    guest->receiving = true;
    io_recv(guest->io, &guest->receive, guest->fd, guest->in, 200);
}

void guest_start(void *argument)
{
    struct guest *guest = argument;
    struct error err;
    guest->fd = -1;
    guest->accept.done = guest_accepted;
    guest->receive.done = guest_received;
    guest->send.done = guest_sent;
    guest->busy.fire = guest_not_busy;
    guest->listener = io_listen(guest->io, guest->address ? guest->address : GUEST_ADDRESS, &err);
    assert_true(guest->listener >= 0);
    guest_accept(guest);
}
