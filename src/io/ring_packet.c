/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Descriptors that travel over unix sockets, and eventfds.
 *
 * Whoever gave us an eventfd may have made it blocking or not, may read it himself between our poll and our read, and may
 * have given us something else altogether: so it is read in a way that never blocks the reactor. A signal is a write of
 * the ring: it goes to the kernel with all that the tick has started, at no system call of its own. One that finds the
 * counter full (nobody has looked for 2^64 signals) waits in the ring.
 */
#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "io/ring_internal.h"
#include "io/stranger.h"

_Static_assert(sizeof((struct io_packet *)0)->control >= CMSG_SPACE(LIMIT_PACKET_DESCRIPTORS * sizeof(int)),
               "a packet has no room for its descriptors");

/* --- burials: see stranger.h. One after the other, so that strangers keep one helper of the reactor's at most. */

static void bury_first(struct ring *ring);

static struct io_packet *packet_of(struct ring_op *mine)
{
    return mine->argument;
}

static void close_strange(struct io_packet *packet)
{
    while (packet->strange_count > 0)
        close(packet->strange[--packet->strange_count]);
}

/* On a helper. */
static void bury(struct helper_job *job)
{
    struct ring_op *mine = container_of(job, struct ring_op, job);
    close_strange(packet_of(mine));
    io_post(&mine->ring->io, &mine->finished);
}

static void buried(struct io_message *message)
{
    struct ring_op *mine = container_of(message, struct ring_op, finished);
    struct ring *ring = mine->ring;
    struct io_op *op = ring_op_back(mine);
    list_remove(&op->link);
    bury_first(ring);
    op->done(op, mine->result);
}

static void bury_first(struct ring *ring)
{
    if (list_empty(&ring->burials))
        return;
    struct io_op *op = container_of(ring->burials.head.next, struct io_op, link);
    struct ring_op *mine = ring_op_of(op);
    if (helpers_queue(&ring->helpers, &mine->job) == 0)
        return;
    close_strange(packet_of(mine)); /* a process that can't start a thread has to wait */
    io_post(&ring->io, &mine->finished);
}

/* The operation ends later. It is in a list until then, so it can't be cancelled. */
static void bury_later(struct ring *ring, struct ring_op *mine, struct io_packet *packet)
{
    struct io_op *op = ring_op_back(mine);
    mine->job = (struct helper_job){.run = bury};
    mine->finished = (struct io_message){.deliver = buried};
    mine->ring = ring;
    mine->argument = packet;
    const bool first = list_empty(&ring->burials);
    list_append(&ring->burials, &op->link);
    if (first)
        bury_first(ring);
}

/* --- packets */

static void take_descriptor(struct io_packet *packet, int fd)
{
    const bool harmless = stranger_is_harmless(fd);
    if (!harmless)
        packet->fds_strange = true;
    if (harmless && packet->fd_count < LIMIT_PACKET_DESCRIPTORS) {
        packet->fds[packet->fd_count++] = fd;
    } else if (!harmless) {
        packet->strange[packet->strange_count++] = fd;
    } else { /* padding of the control buffer made room for one more */
        close(fd);
        packet->fds_lost = true;
    }
}

static void take_descriptors(struct io_packet *packet, const struct msghdr *message)
{
    for (struct cmsghdr *at = CMSG_FIRSTHDR(message); at; at = CMSG_NXTHDR((struct msghdr *)(uintptr_t)message, at)) {
        if (at->cmsg_level != SOL_SOCKET || at->cmsg_type != SCM_RIGHTS)
            continue;
        size_t count = (at->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(at) + i * sizeof fd, sizeof fd);
            take_descriptor(packet, fd);
        }
    }
}

static bool recv_packet_finish(struct ring *ring, struct ring_op *mine)
{
    struct io_packet *packet = container_of(mine->message.msg_iov, struct io_packet, iov);
    if (mine->result < 0)
        return true;
    take_descriptors(packet, &mine->message);
    if (mine->message.msg_flags & MSG_CTRUNC)
        packet->fds_lost = true;
    if (packet->strange_count == 0)
        return true;
    bury_later(ring, mine, packet);
    return false;
}

void ring_recv_packet(struct io *io, struct io_op *op, int fd, struct io_packet *packet)
{
    struct ring_op *mine = ring_op_of(op);
    packet->fd_count = packet->strange_count = 0;
    packet->fds_lost = packet->fds_strange = false;
    packet->iov = (struct iovec){packet->bytes, packet->length};
    struct io_uring_sqe *sqe = ring_begin(ring_of(io), op);
    mine->message = (struct msghdr){.msg_iov = &packet->iov,
                                    .msg_iovlen = 1,
                                    .msg_control = packet->control,
                                    .msg_controllen = sizeof packet->control};
    mine->finish = recv_packet_finish;
    io_uring_prep_recvmsg(sqe, fd, &mine->message, MSG_CMSG_CLOEXEC);
}

void ring_send_packet(struct io *io, struct io_op *op, int fd, struct io_packet *packet)
{
    struct ring_op *mine = ring_op_of(op);
    assert(packet->fd_count <= LIMIT_PACKET_DESCRIPTORS);
    packet->iov = (struct iovec){packet->bytes, packet->length};
    struct io_uring_sqe *sqe = ring_begin(ring_of(io), op);
    mine->message = (struct msghdr){.msg_iov = &packet->iov, .msg_iovlen = 1};
    if (packet->fd_count > 0) {
        size_t length = packet->fd_count * sizeof(int);
        memset(packet->control, 0, sizeof packet->control);
        mine->message.msg_control = packet->control;
        mine->message.msg_controllen = CMSG_SPACE(length);
        struct cmsghdr *rights = CMSG_FIRSTHDR(&mine->message);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(length);
        memcpy(CMSG_DATA(rights), packet->fds, length);
    }
    io_uring_prep_sendmsg(sqe, fd, &mine->message, MSG_NOSIGNAL);
}

/* Takes what was signalled. The result: 0, or why it is no event (-EIO: its other end is gone). */
static bool event_finish(struct ring *ring, struct ring_op *mine)
{
    (void)ring;
    if (mine->result < 0)
        return true;
    uint64_t count;
    struct iovec iov = {&count, sizeof count};
    ssize_t got = mine->result & POLLIN ? preadv2(mine->fd, &iov, 1, -1, RWF_NOWAIT) : 0;
    if (got < 0 && errno == EAGAIN) /* somebody else was faster; that it was signalled is true all the same */
        got = sizeof count;
    mine->result = got > 0 ? 0 : got == 0 ? -EIO : -errno;
    return true;
}

void ring_event_wait(struct io *io, struct io_op *op, int fd)
{
    struct io_uring_sqe *sqe = ring_begin(ring_of(io), op);
    ring_op_of(op)->fd = fd;
    ring_op_of(op)->finish = event_finish;
    io_uring_prep_poll_add(sqe, fd, POLLIN);
}

static bool signal_finish(struct ring *ring, struct ring_op *mine)
{
    (void)ring;
    if (mine->result > 0 || mine->result == -EAGAIN) /* a full counter of a nonblocking one: it is signalled as it is */
        mine->result = 0;
    return true;
}

void ring_event_signal(struct io *io, struct io_op *op, int fd)
{
    static const uint64_t one = 1;
    struct io_uring_sqe *sqe = ring_begin(ring_of(io), op);
    ring_op_of(op)->finish = signal_finish;
    io_uring_prep_write(sqe, fd, &one, sizeof one, (uint64_t)-1);
}
