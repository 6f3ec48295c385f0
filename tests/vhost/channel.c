// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "channel.h"

static int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int channel_connect(const char *path, int timeout_ms)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof(address.sun_path))
        return -ENAMETOOLONG;
    memcpy(address.sun_path, path, strlen(path));
    for (int64_t end = now_ms() + timeout_ms;;) {
        /* Not blocking: it would wait for ever for a back-end whose queue of connections is full. */
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd < 0)
            return -errno;
        if (connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0 && fcntl(fd, F_SETFL, 0) == 0)
            return fd;
        int reason = errno;
        close(fd);
        if ((reason != ENOENT && reason != ECONNREFUSED && reason != EAGAIN) || now_ms() >= end)
            return -reason;
        usleep(5000);
    }
}

int channel_send_raw(int socket, const void *bytes, size_t size, const int *fds, unsigned fd_count)
{
    union {
        char bytes[CMSG_SPACE(CHANNEL_FDS * sizeof(int))];
        struct cmsghdr align;
    } control;
    for (size_t done = 0; done < size || size == 0;) {
        struct iovec part = {(char *)(uintptr_t)bytes + done, size - done};
        struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
        if (done == 0 && fd_count > 0) {
            message.msg_control = &control;
            message.msg_controllen = CMSG_SPACE(fd_count * sizeof(int));
            struct cmsghdr *header = CMSG_FIRSTHDR(&message);
            *header = (struct cmsghdr){CMSG_LEN(fd_count * sizeof(int)), SOL_SOCKET, SCM_RIGHTS};
            memcpy(CMSG_DATA(header), fds, fd_count * sizeof(int));
        }
        ssize_t sent = sendmsg(socket, &message, MSG_NOSIGNAL);
        if (sent < 0 && errno != EINTR)
            return -errno;
        if (size == 0)
            break;
        done += sent > 0 ? (size_t)sent : 0;
    }
    return 0;
}

int channel_send(int socket, uint32_t request, uint32_t flags, const void *payload, uint32_t size, const int *fds,
                 unsigned fd_count)
{
    struct wire_header header = {request, flags, size};
    char bytes[WIRE_HEADER_BYTES + WIRE_PAYLOAD_MAX];
    if (size > WIRE_PAYLOAD_MAX)
        return -EMSGSIZE;
    memcpy(bytes, &header, WIRE_HEADER_BYTES);
    if (size)
        memcpy(bytes + WIRE_HEADER_BYTES, payload, size);
    return channel_send_raw(socket, bytes, WIRE_HEADER_BYTES + size, fds, fd_count);
}

static int wait_readable(int socket, int64_t end)
{
    struct pollfd wait = {socket, POLLIN, 0};
    int64_t left = end - now_ms();
    int ready = poll(&wait, 1, left > 0 ? (int)left : 0);
    return ready < 0 && errno != EINTR ? -errno : ready == 0 ? -ETIMEDOUT : 0;
}

/* Takes the first descriptor and closes more, which no reply has. */
static void take_fds(struct msghdr *message, int *fd)
{
    for (struct cmsghdr *header = CMSG_FIRSTHDR(message); header; header = CMSG_NXTHDR(message, header)) {
        if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS)
            continue;
        size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++) {
            int one;
            memcpy(&one, CMSG_DATA(header) + i * sizeof(int), sizeof(int));
            if (*fd < 0)
                *fd = one;
            else
                close(one);
        }
    }
}

static int receive_all(int socket, void *to, size_t size, int *fd, int64_t end)
{
    union {
        char bytes[CMSG_SPACE(8 * sizeof(int))];
        struct cmsghdr align;
    } control;
    for (size_t done = 0; done < size;) {
        int status = wait_readable(socket, end);
        if (status != 0)
            return status;
        struct iovec part = {(char *)to + done, size - done};
        struct msghdr message = {
            .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
        ssize_t got = recvmsg(socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
        if (got == 0)
            return -ECONNRESET;
        if (got < 0 && errno != EINTR && errno != EAGAIN)
            return -errno;
        if (got > 0) {
            take_fds(&message, fd);
            done += (size_t)got;
        }
    }
    return 0;
}

int channel_receive(int socket, struct channel_reply *reply, int timeout_ms)
{
    int64_t end = now_ms() + timeout_ms;
    reply->fd = -1;
    int status = receive_all(socket, &reply->header, WIRE_HEADER_BYTES, &reply->fd, end);
    if (status == 0 && reply->header.size > sizeof(reply->payload))
        status = -EBADMSG;
    if (status == 0)
        status = receive_all(socket, &reply->payload, reply->header.size, &reply->fd, end);
    if (status != 0 && reply->fd >= 0) {
        close(reply->fd);
        reply->fd = -1;
    }
    return status;
}

int channel_hung_up(int socket, int timeout_ms)
{
    int64_t end = now_ms() + timeout_ms;
    while (wait_readable(socket, end) == 0) {
        char bytes[512];
        ssize_t got = recv(socket, bytes, sizeof(bytes), MSG_DONTWAIT);
        if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR))
            return true;
    }
    return false;
}
