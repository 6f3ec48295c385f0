/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Descriptors that travel over sockets: eventfds, and the kernel's own (world_kernel.c).
 *
 * A descriptor that was sent is a second description of the same eventfd from that moment on, as in a kernel: the sender
 * may close its own. A parcel stands at the byte that it was sent with; no receive goes past the beginning of the next one.
 */
#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "world_internal.h"

#define UNDER_WAY UINT_MAX /* no process */

static struct event *packet_event(struct io *io, enum world_kind kind, struct io_op *op, int fd)
{
    struct event *event = event_new(reactor_of(io), kind, op);
    event->fd = fd;
    return event;
}

void net_recv_packet(struct io *io, struct io_op *op, int fd, struct io_packet *packet)
{
    world_check_owner(io, "recv_packet");
    struct event *event = packet_event(io, WORLD_RECV_PACKET, op, fd);
    packet->fd_count = 0;
    packet->fds_lost = packet->fds_strange = false;
    event->argument = packet->bytes;
    event->range.length = packet->length;
    packet->iov = (struct iovec){packet->bytes, packet->length};
    event->iov = &packet->iov;
    socket_start(event);
}

void net_send_packet(struct io *io, struct io_op *op, int fd, struct io_packet *packet)
{
    world_check_owner(io, "send_packet");
    struct event *event = packet_event(io, WORLD_SEND_PACKET, op, fd);
    packet->iov = (struct iovec){packet->bytes, packet->length};
    event->iov = &packet->iov;
    event->iov_count = 1;
    event->range.length = packet->length;
    socket_start(event);
}

void net_event_wait(struct io *io, struct io_op *op, int fd)
{
    world_check_owner(io, "event_wait");
    socket_start(packet_event(io, WORLD_EVENT_WAIT, op, fd));
}

void net_event_signal(struct io *io, struct io_op *op, int fd)
{
    world_check_owner(io, "event_signal");
    socket_start(packet_event(io, WORLD_EVENT_SIGNAL, op, fd));
}

int world_event(struct world *world)
{
    struct socket *socket = socket_new();
    socket->is_event = true;
    return socket_open(world, socket, world->current != NULL ? world->current->process : 0);
}

uint64_t packet_bound(const struct socket *socket, uint64_t length)
{
    for (const struct parcel *parcel = socket->parcels; parcel != NULL; parcel = parcel->next)
        if (parcel->position > socket->received)
            return parcel->position - socket->received < length ? parcel->position - socket->received : length;
    return length;
}

void packet_drop(struct world *world, struct socket *socket, uint64_t before)
{
    for (struct parcel *parcel; (parcel = socket->parcels) != NULL && parcel->position < before;) {
        socket->parcels = parcel->next;
        for (unsigned i = 0; i < parcel->fd_count; i++)
            description_drop(world, parcel->fds[i]);
        free(parcel);
    }
}

static void receive_packet(struct world *world, struct event *event, struct socket *socket)
{
    struct io_packet *packet = container_of(event->iov, struct io_packet, iov);
    struct parcel *parcel = socket->parcels;
    bool readable = socket->inbox_used > 0 && !socket->reset && event->range.length > 0;
    if (readable && parcel != NULL && parcel->position == socket->received) {
        socket->parcels = parcel->next;
        packet->fd_count = parcel->fd_count;
        for (unsigned i = 0; i < parcel->fd_count; i++) {
            packet->fds[i] = parcel->fds[i];
            if (is_kernel_descriptor(parcel->fds[i]))
                kernel_give(world, parcel->fds[i], event->reactor->process);
            else
                description_at(world, parcel->fds[i])->process = event->reactor->process;
        }
        free(parcel);
    }
    try_recv(world, event, socket);
}

static void add_parcel(struct world *world, struct socket *to, const struct io_packet *packet)
{
    struct parcel *parcel = calloc(1, sizeof(*parcel)), **end = &to->parcels;
    if (parcel == NULL)
        abort();
    parcel->position = to->received + to->inbox_used;
    parcel->fd_count = packet->fd_count;
    for (unsigned i = 0; i < packet->fd_count; i++) {
        if (is_kernel_descriptor(packet->fds[i])) {
            parcel->fds[i] = kernel_copy(world, packet->fds[i]);
            continue;
        }
        struct socket *event = description_of(world, packet->fds[i])->socket;
        if (event == NULL || !event->is_event)
            world_violation(world, "descriptor %d is sent, which is no eventfd", packet->fds[i]);
        event->shared++;
        parcel->fds[i] = socket_open(world, event, UNDER_WAY); /* the sender may die before it is received */
        if (parcel->fds[i] < 0)
            abort();
    }
    while (*end != NULL)
        end = &(*end)->next;
    *end = parcel;
}

static void send_packet(struct world *world, struct event *event, struct socket *socket)
{
    const struct io_packet *packet = container_of(event->iov, struct io_packet, iov);
    struct socket *peer = socket->peer;
    bool sends = !socket->reset && peer != NULL && !socket->no_output && !peer->end_of_input &&
                 peer->inbox_used < WORLD_SOCKET_BYTES && event->range.length > 0;
    if (sends && packet->fd_count > 0)
        add_parcel(world, peer, packet);
    try_send(world, event, socket);
}

void packet_try(struct world *world, struct event *event, struct socket *socket)
{
    if (event->kind == WORLD_RECV_PACKET) {
        receive_packet(world, event, socket);
    } else if (event->kind == WORLD_SEND_PACKET) {
        send_packet(world, event, socket);
    } else if (!socket->is_event) {
        world_violation(world, "an operation for eventfds on descriptor %d, which is none", event->fd);
    } else if (event->kind == WORLD_EVENT_SIGNAL) {
        socket->signalled = true;
        socket_wake(world, socket);
        event_finish(world, event, 0);
    } else if (socket->signalled) {
        socket->signalled = false;
        event_finish(world, event, 0);
    } else {
        socket_wait(socket, event);
    }
}
