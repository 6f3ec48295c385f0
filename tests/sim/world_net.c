/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Sockets with small buffers, so that senders wait and receive in pieces.
 *
 * An operation comes to net_try() when its time has come. It ends there, or waits at its socket until the other end does
 * something; then all that wait get a new time, so that their order is the seed's.
 */
#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "io/address.h"
#include "world_internal.h"

struct socket *socket_new(void)
{
    struct socket *socket = calloc(1, sizeof(*socket));
    if (socket == NULL)
        abort();
    return socket;
}

int socket_open(struct world *world, struct socket *socket, unsigned process)
{
    int fd = description_new(world, process);
    if (fd >= 0)
        description_at(world, fd)->socket = socket;
    return fd;
}

/* Something happened: who waits at this socket tries again soon. */
void socket_wake(struct world *world, struct socket *socket)
{
    for (struct event *event; (event = socket->waiters) != NULL;) {
        socket->waiters = event->next;
        event_schedule(world, event, world->now + world_latency(world, world->options.message_ns));
    }
}

void socket_wait(struct socket *socket, struct event *event)
{
    struct event **end = &socket->waiters;
    while (*end != NULL)
        end = &(*end)->next;
    event->next = NULL;
    *end = event;
}

void socket_start(struct event *event)
{
    struct world *world = event->reactor->world;
    struct description *description = description_of(world, event->fd);
    if (description->socket == NULL)
        world_violation(world, "a socket operation on descriptor %d, which is no socket", event->fd);
    description->under_way++;
    event_schedule(world, event, world->now + world_latency(world, world->options.message_ns));
}

void net_accept(struct io *io, struct io_op *op, int fd)
{
    world_check_owner(io, "accept");
    struct event *event = event_new(reactor_of(io), WORLD_ACCEPT, op);
    event->fd = fd;
    socket_start(event);
}

void net_recv(struct io *io, struct io_op *op, int fd, void *buffer, size_t length)
{
    world_check_owner(io, "recv");
    struct event *event = event_new(reactor_of(io), WORLD_RECV, op);
    event->fd = fd;
    event->argument = buffer;
    event->range.length = length;
    memset(buffer, 0xdb, length < 256 ? length : 256);
    socket_start(event);
}

void net_sendv(struct io *io, struct io_op *op, int fd, const struct iovec *iov, unsigned iov_count)
{
    world_check_owner(io, "sendv");
    struct event *event = event_new(reactor_of(io), WORLD_SEND, op);
    event->fd = fd;
    event->iov = iov;
    event->iov_count = iov_count;
    for (unsigned i = 0; i < iov_count; i++)
        event->range.length += iov[i].iov_len;
    socket_start(event);
}

void net_poll(struct io *io, struct io_op *op, int fd, short events)
{
    world_check_owner(io, "poll");
    struct event *event = event_new(reactor_of(io), WORLD_POLL, op);
    event->fd = fd;
    event->flags = (unsigned)events;
    socket_start(event);
}

static void try_accept(struct world *world, struct event *event, struct socket *socket)
{
    if (socket->end_of_input) {
        event_finish(world, event, -EINVAL);
    } else if (socket->backlog_count == 0) {
        socket_wait(socket, event);
    } else {
        int fd = socket->backlog[0];
        memmove(socket->backlog, socket->backlog + 1, --socket->backlog_count * sizeof(int));
        description_at(world, fd)->process = event->reactor->process;
        event_finish(world, event, fd);
    }
}

static void inbox_take(struct socket *socket, uint8_t *to, uint64_t length)
{
    uint64_t whole = WORLD_SOCKET_BYTES - socket->inbox_start;
    if (length <= whole) {
        memcpy(to, socket->inbox + socket->inbox_start, length);
    } else {
        memcpy(to, socket->inbox + socket->inbox_start, whole);
        memcpy(to + whole, socket->inbox, length - whole);
    }
    socket->inbox_start = (uint32_t)((socket->inbox_start + length) % WORLD_SOCKET_BYTES);
    socket->inbox_used -= (uint32_t)length;
}

void try_recv(struct world *world, struct event *event, struct socket *socket)
{
    if (socket->reset) {
        event_finish(world, event, -ECONNRESET);
    } else if (socket->inbox_used == 0) {
        if (socket->end_of_input || event->range.length == 0)
            event_finish(world, event, 0);
        else
            socket_wait(socket, event);
    } else {
        uint64_t length = event->range.length < socket->inbox_used ? event->range.length : socket->inbox_used;
        if (length > 1 && world_chance(world, world->options.short_per_1024))
            length = 1 + world_below(world, length);
        length = packet_bound(socket, length);
        if (length > 0)
            inbox_take(socket, event->argument, length);
        socket->received += length;
        packet_drop(world, socket, socket->received);
        if (socket->peer != NULL)
            socket_wake(world, socket->peer);
        event_finish(world, event, (int64_t)length);
    }
}

/* Adds what the peer has room for. */
static void inbox_add(struct socket *peer, const uint8_t *from, uint64_t length)
{
    uint64_t end = (peer->inbox_start + peer->inbox_used) % WORLD_SOCKET_BYTES;
    uint64_t whole = WORLD_SOCKET_BYTES - end;
    if (length <= whole) {
        memcpy(peer->inbox + end, from, length);
    } else {
        memcpy(peer->inbox + end, from, whole);
        memcpy(peer->inbox, from + whole, length - whole);
    }
    peer->inbox_used += (uint32_t)length;
}

void try_send(struct world *world, struct event *event, struct socket *socket)
{
    struct socket *peer = socket->peer;
    if (socket->reset) {
        event_finish(world, event, -ECONNRESET);
    } else if (peer == NULL || socket->no_output || peer->end_of_input) {
        event_finish(world, event, -EPIPE);
    } else if (peer->inbox_used == WORLD_SOCKET_BYTES) {
        socket_wait(socket, event);
    } else {
        uint64_t room = WORLD_SOCKET_BYTES - peer->inbox_used, sent = 0;
        uint64_t length = event->range.length < room ? event->range.length : room;
        if (length > 64 && world_chance(world, world->options.short_per_1024))
            length = 1 + world_below(world, length);
        for (unsigned i = 0; i < event->iov_count && sent < length; i++) {
            uint64_t part = event->iov[i].iov_len < length - sent ? event->iov[i].iov_len : length - sent;
            if (part > 0)
                inbox_add(peer, event->iov[i].iov_base, part);
            sent += part;
        }
        socket_wake(world, peer);
        event_finish(world, event, (int64_t)sent);
    }
}

static void try_poll(struct world *world, struct event *event, struct socket *socket)
{
    unsigned ready = 0;
    if (socket->reset)
        ready |= POLLERR | POLLHUP;
    if (socket->inbox_used > 0 || socket->end_of_input || socket->backlog_count > 0 || socket->signalled)
        ready |= POLLIN;
    if (socket->peer != NULL && !socket->no_output && socket->peer->inbox_used < WORLD_SOCKET_BYTES)
        ready |= POLLOUT;
    if (socket->end_of_input)
        ready |= POLLRDHUP;
    if (!socket->listening && !socket->is_event &&
        (socket->peer == NULL || (socket->end_of_input && socket->no_output)))
        ready |= POLLHUP;
    ready &= event->flags | POLLERR | POLLHUP;
    if (ready != 0)
        event_finish(world, event, ready);
    else
        socket_wait(socket, event);
}

void net_try(struct world *world, struct event *event)
{
    struct socket *socket = description_at(world, event->fd)->socket;
    if (event->canceled)
        event_finish(world, event, -ECANCELED);
    else if (event->kind == WORLD_ACCEPT)
        try_accept(world, event, socket);
    else if (event->kind == WORLD_RECV)
        try_recv(world, event, socket);
    else if (event->kind == WORLD_SEND)
        try_send(world, event, socket);
    else if (event->kind == WORLD_POLL)
        try_poll(world, event, socket);
    else
        packet_try(world, event, socket);
}

void net_cancel_waiter(struct world *world, struct event *event)
{
    struct socket *socket = description_at(world, event->fd)->socket;
    for (struct event **at = &socket->waiters; *at != NULL; at = &(*at)->next)
        if (*at == event) {
            *at = event->next;
            event_schedule(world, event, world->now + world_latency(world, world->options.message_ns));
            return;
        }
}

static struct description *find_listener(struct world *world, const char *address)
{
    for (int fd = WORLD_DESCRIPTOR_FIRST; fd < WORLD_DESCRIPTOR_END; fd++) {
        struct description *description = description_at(world, fd);
        if (description->open && description->socket != NULL && description->socket->listening &&
            strcmp(description->socket->address, address) == 0)
            return description;
    }
    return NULL;
}

int net_listen(struct io *io, const char *address, struct error *err)
{
    struct world *world = reactor_of(io)->world;
    struct address parsed;
    int status = address_parse(address, &parsed, err);
    if (status < 0)
        return status;
    if (find_listener(world, address) != NULL)
        return error_set(err, EADDRINUSE, "cannot listen on %s: the address is in use", address);
    struct socket *socket = socket_new();
    socket->listening = true;
    snprintf(socket->address, sizeof(socket->address), "%s", address);
    return socket_open(world, socket, reactor_of(io)->process);
}

static void connect_pair(struct socket *a, struct socket *b)
{
    a->peer = b;
    b->peer = a;
}

void world_pair(struct world *world, int descriptors[2])
{
    struct socket *ends[2] = {socket_new(), socket_new()};
    connect_pair(ends[0], ends[1]);
    for (int i = 0; i < 2; i++)
        descriptors[i] = socket_open(world, ends[i], world->current != NULL ? world->current->process : 0);
}

int world_connect(struct world *world, const char *address)
{
    struct description *description = find_listener(world, address);
    struct socket *listener = description != NULL ? description->socket : NULL;
    if (listener == NULL || listener->backlog_count == 64)
        return -ECONNREFUSED;
    int descriptors[2];
    world_pair(world, descriptors);
    description_at(world, descriptors[1])->process = description->process; /* it stays there when the client dies */
    listener->backlog[listener->backlog_count++] = descriptors[1];
    socket_wake(world, listener);
    return descriptors[0];
}

int net_connect(struct io *io, const char *address, struct error *err)
{
    struct address parsed;
    int status = address_parse(address, &parsed, err);
    if (status == 0)
        status = world_connect(reactor_of(io)->world, address);
    return status >= 0 ? status : error_set(err, -status, "cannot connect to %s: %s", address, error_name(status));
}

/* This end says nothing more; the other end reads what is there, then the end of input. */
static void end_output(struct world *world, struct socket *socket)
{
    socket->no_output = true;
    if (socket->peer != NULL) {
        socket->peer->end_of_input = true;
        socket_wake(world, socket->peer);
    }
}

void net_shutdown(struct io *io, int fd)
{
    struct world *world = reactor_of(io)->world;
    struct socket *socket = description_of(world, fd)->socket;
    end_output(world, socket);
    socket->end_of_input = true;
    socket->inbox_used = 0;
    socket_wake(world, socket);
}

void world_reset(struct world *world, int descriptor)
{
    struct socket *socket = description_of(world, descriptor)->socket;
    struct socket *ends[2] = {socket, socket->peer};
    for (int i = 0; i < 2; i++) {
        if (ends[i] == NULL)
            continue;
        ends[i]->reset = true;
        ends[i]->peer = NULL;
        ends[i]->inbox_used = 0;
        socket_wake(world, ends[i]);
    }
}

void socket_close(struct world *world, struct socket *socket)
{
    if (socket->shared > 0) {
        socket->shared--;
        return;
    }
    assert(socket->waiters == NULL);
    packet_drop(world, socket, UINT64_MAX);
    for (unsigned i = 0; i < socket->backlog_count; i++)
        description_drop(world, socket->backlog[i]);
    if (socket->peer != NULL) {
        /* unread data at the close of a socket is a reset for the other end */
        if (socket->inbox_used > 0)
            socket->peer->reset = true;
        end_output(world, socket);
        socket->peer->peer = NULL;
    }
    free(socket);
}

/* The operations of a killed process that wait at a socket vanish; its sockets are closed by the caller. */
void socket_drop_process(struct world *world, unsigned process)
{
    for (int fd = WORLD_DESCRIPTOR_FIRST; fd < WORLD_DESCRIPTOR_END; fd++) {
        struct description *description = description_at(world, fd);
        if (!description->open || description->socket == NULL)
            continue;
        for (struct event **at = &description->socket->waiters; *at != NULL;) {
            struct event *event = *at;
            if (event->reactor->process != process) {
                at = &event->next;
                continue;
            }
            *at = event->next;
            description_at(world, event->fd)->under_way--; /* an eventfd may have several */
            event_free(world, event);
        }
    }
}
