/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Sockets. A unix socket is made 0600 before anybody can connect to it: its inode gets the mode of the socket
 * that is bound, so the mode is set first.
 *
 * A socket file that is there already belongs to a live server or to a dead one; only a connection tells. If
 * it is refused the file is removed and bound anew. The folder is locked (flock) while we look, so that two
 * servers that start together cannot take each other's new socket for a dead one. Anything that is not a
 * socket is left alone. When a listener is closed its file goes too, but only while it still is ours: another
 * server may have replaced it.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "io/address.h"
#include "io/ring_internal.h"

struct listener {
    struct list_node link;
    int fd;
    dev_t device;
    ino_t inode;
    char path[108];
};

/* Keeps other starting servers out of the folder; waits for one second at most. A descriptor, or -1 without
 * the lock. */
static int lock_folder_of(const char *path)
{
    char copy[108];
    strcpy(copy, path);
    int fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    for (int tries = 0; fd >= 0 && tries < 50 && flock(fd, LOCK_EX | LOCK_NB) != 0; tries++)
        nanosleep(&(struct timespec){0, 20 * (long)NS_PER_MS}, NULL);
    return fd;
}

/* The file is there: removes it if it is the socket of a dead server. */
static int remove_stale_socket(const struct sockaddr_un *address, struct error *err)
{
    const char *path = address->sun_path;
    struct stat st;
    if (lstat(path, &st) != 0)
        return errno == ENOENT ? 0 : error_set(err, errno, "socket \"%s\": %s", path, error_name(errno));
    if (!S_ISSOCK(st.st_mode))
        return error_set(err, EEXIST, "socket \"%s\": a file that is not a socket is in the way", path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return error_set(err, errno, "cannot make a socket: %s", error_name(errno));
    int problem = connect(fd, (const struct sockaddr *)address, sizeof *address) == 0 ? 0 : errno;
    close(fd);
    if (problem == ENOENT)
        return 0;
    if (problem != ECONNREFUSED)
        return error_set(err, EADDRINUSE, "socket \"%s\" is in use by another server", path);
    if (unlink(path) != 0 && errno != ENOENT)
        return error_set(err, errno, "the stale socket \"%s\" cannot be removed: %s", path, error_name(errno));
    return 0;
}

static int bind_unix(int fd, const struct sockaddr_un *address, struct error *err)
{
    const char *path = address->sun_path;
    for (int tries = 0; tries < 2; tries++) {
        if (bind(fd, (const struct sockaddr *)address, sizeof *address) == 0)
            return listen(fd, SOMAXCONN) == 0
                       ? 0
                       : error_set(err, errno, "cannot listen on socket \"%s\": %s", path, error_name(errno));
        if (errno != EADDRINUSE)
            return error_set(err, errno, "cannot make socket \"%s\": %s", path, error_name(errno));
        int result = remove_stale_socket(address, err);
        if (result < 0)
            return result;
    }
    return error_set(err, EADDRINUSE, "socket \"%s\" is in use by another server", path);
}

static int listen_unix(struct ring *ring, const struct address *address, struct error *err)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    strcpy(name.sun_path, address->path);
    struct listener *listener = calloc(1, sizeof *listener);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (!listener || fd < 0 || fchmod(fd, 0600) != 0) {
        int error = listener ? errno : ENOMEM;
        free(listener);
        if (fd >= 0)
            close(fd);
        return error_set(err, error, "cannot make a socket: %s", error_name(error));
    }
    int folder = lock_folder_of(address->path);
    int result = bind_unix(fd, &name, err);
    struct stat st;
    if (result == 0 && lstat(address->path, &st) != 0)
        result = error_set(err, errno, "socket \"%s\": %s", address->path, error_name(errno));
    if (folder >= 0)
        close(folder);
    if (result < 0) {
        close(fd);
        free(listener);
        return result;
    }
    *listener = (struct listener){.fd = fd, .device = st.st_dev, .inode = st.st_ino};
    strcpy(listener->path, address->path);
    pthread_mutex_lock(&ring->listeners_mutex);
    list_append(&ring->listeners, &listener->link);
    pthread_mutex_unlock(&ring->listeners_mutex);
    return fd;
}

static int listen_tcp(const char *text, const struct address *address, struct error *err)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV}, *found;
    int problem = getaddrinfo(address->host, address->port, &hints, &found);
    if (problem)
        return error_set(err, EADDRNOTAVAIL, "address \"%s\": host \"%s\" is unknown: %s", text, address->host,
                         gai_strerror(problem));
    int fd = -1, error = EADDRNOTAVAIL;
    for (struct addrinfo *at = found; at && fd < 0; at = at->ai_next) {
        fd = socket(at->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
        int one = 1;
        if (fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) == 0 &&
            bind(fd, at->ai_addr, at->ai_addrlen) == 0 && listen(fd, SOMAXCONN) == 0)
            break;
        error = errno;
        if (fd >= 0)
            close(fd);
        fd = -1;
    }
    freeaddrinfo(found);
    if (fd >= 0)
        return fd;
    if (error == EADDRINUSE)
        return error_set(err, error, "address \"%s\": port %s is in use", text, address->port);
    return error_set(err, error, "cannot listen on \"%s\": %s", text, error_name(error));
}

int ring_listen(struct io *io, const char *address, struct error *err)
{
    struct address parsed;
    int result = address_parse(address, &parsed, err);
    if (result < 0)
        return result;
    return parsed.kind == ADDRESS_UNIX ? listen_unix(ring_of(io), &parsed, err) : listen_tcp(address, &parsed, err);
}

static struct listener *take_listener(struct ring *ring, int fd)
{
    struct listener *found = NULL;
    pthread_mutex_lock(&ring->listeners_mutex);
    list_each_safe (node, &ring->listeners) {
        struct listener *listener = container_of(node, struct listener, link);
        if (listener->fd == fd) {
            list_remove(node);
            found = listener;
            break;
        }
    }
    pthread_mutex_unlock(&ring->listeners_mutex);
    return found;
}

void ring_close(struct io *io, int fd)
{
    assert(fd >= 0);
    struct listener *listener = take_listener(ring_of(io), fd);
    if (listener) {
        struct stat st;
        if (lstat(listener->path, &st) == 0 && st.st_dev == listener->device && st.st_ino == listener->inode)
            unlink(listener->path);
        free(listener);
    }
    close(fd); /* Linux gives the descriptor back even when it says EINTR */
}

static bool accept_finish(struct ring *ring, struct ring_op *mine)
{
    (void)ring;
    int one = 1;
    if (mine->result >= 0) /* refused by unix sockets, which need it not */
        (void)setsockopt((int)mine->result, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return true;
}

void ring_accept(struct io *io, struct io_op *op, int fd)
{
    struct io_uring_sqe *sqe = ring_begin(ring_of(io), op);
    io_uring_prep_accept(sqe, fd, NULL, NULL, SOCK_CLOEXEC);
    ring_op_of(op)->finish = accept_finish;
}

/* Not blocking, or a server that does not accept would hold us up; afterwards blocking, for the ring waits only then. */
int ring_connect(struct io *io, const char *address, struct error *err)
{
    (void)io;
    struct address parsed;
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    int status = address_parse(address, &parsed, err);
    if (status < 0)
        return status;
    if (parsed.kind != ADDRESS_UNIX)
        return error_set(err, EINVAL, "address \"%s\" is not unix:PATH", address);
    strcpy(name.sun_path, parsed.path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd >= 0 && connect(fd, (const struct sockaddr *)&name, sizeof name) == 0 && fcntl(fd, F_SETFL, 0) == 0)
        return fd;
    int error = errno;
    if (fd >= 0)
        close(fd);
    return error_set(err, error, "can't connect to socket \"%s\": %s", parsed.path, error_name(error));
}

void ring_recv(struct io *io, struct io_op *op, int fd, void *buffer, size_t length)
{
    io_uring_prep_recv(ring_begin(ring_of(io), op), fd, buffer, length, 0);
}

/*
 * Nearly always the socket has room: then it is one plain system call, which is cheaper than the way through the ring, and
 * the peer is woken while we go on. Else the ring waits.
 */
void ring_sendv(struct io *io, struct io_op *op, int fd, const struct iovec *iov, unsigned iov_count)
{
    struct ring *ring = ring_of(io);
    struct ring_op *mine = ring_op_of(op);
    mine->message = (struct msghdr){.msg_iov = (struct iovec *)(uintptr_t)iov, .msg_iovlen = iov_count};
    long sent = syscall(SYS_sendmsg, fd, &mine->message, MSG_NOSIGNAL | MSG_DONTWAIT); /* no cancellation point */
    if (sent >= 0 || (errno != EAGAIN && errno != EINTR)) {
        mine->on_helper = mine->cancelled = false;
        ring_complete(ring, op, sent >= 0 ? sent : -errno);
        return;
    }
    io_uring_prep_sendmsg(ring_begin(ring, op), fd, &mine->message, MSG_NOSIGNAL);
}

void ring_shutdown(struct io *io, int fd)
{
    (void)io;
    (void)shutdown(fd, SHUT_RDWR); /* not connected any more: nothing to end */
}

void ring_poll(struct io *io, struct io_op *op, int fd, short events)
{
    io_uring_prep_poll_add(ring_begin(ring_of(io), op), fd, (unsigned)(unsigned short)events);
}
