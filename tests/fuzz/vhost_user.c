/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Any bytes as a front-end of vhost-user: a real session on a real ring, in front of a disk that forgets.
 *
 * An input is a list of messages: [request, flags, descriptors, length] of a byte each, then so many bytes of payload. Of
 * `descriptors` the lower half says how many come along, the upper half of which kind: a guest's memory (whose rings hold a
 * few requests), eventfds, a pipe, and what should be none of them. Request 255 stands for bytes without a header. Three
 * more are no messages, but what guest and VMM do meanwhile: the payload is written to all memory, at 256 * flags +
 * descriptors; all memory is cut to 256 * flags bytes; all eventfds are signalled. At the end the front-end hangs up.
 * The session must end without anything left, whatever it was told: its assertions and a sanitizer judge.
 */
#include <assert.h>
#include <fcntl.h>
#include <signal.h>
#include <poll.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "export/vhost_user/session.h"
#include "export/vhost_user/shared_map.h"
#include "io/ring.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length);

enum { MEMORY_BYTES = 1 << 16, RAW = 255, WRITE = 254, CUT = 253, KICK = 252, FDS_MAX = 12, KEPT = 16 };

struct scene {
    struct io *io;
    struct node node;
    struct vhost_counters counters;
    struct io_timer timer;
    int fd;
    bool gone, hung_up;
    unsigned patience;
    int memories[KEPT], events[KEPT]; /* the last ones that were sent */
    unsigned memory_count, event_count;
    const uint8_t *data;
    size_t length;
};

static void complete(struct node *node, struct request *req)
{
    (void)node;
    request_complete(req, 0);
}

static const struct node_ops forgetting_ops = {.driver = "forgetting", .submit = complete};

static void gone(void *argument)
{
    struct scene *scene = argument;
    scene->gone = true;
    ring_quit(scene->io);
}

/* Two split rings at 0 and 0x4000, with a read, a write and nonsense in each. */
static int make_memory(void)
{
    static const uint64_t descriptors[][2] = {
        {0x8000, UINT64_C(0x0001000100000010)}, {0x9000, UINT64_C(0x0002000300000200)},
        {0x8100, UINT64_C(0x0000000200000001)}, {0x8010, UINT64_C(0x0004000100000010)},
        {0x9000, UINT64_C(0x0005000100000200)}, {0x8101, UINT64_C(0x0000000200000001)},
        {0xfff0, UINT64_C(0x0000000400000020)}, {0x8000, UINT64_C(0x0007000100000010)},
    };
    static const uint16_t available[] = {0, 4, 0, 3, 6, 7};
    static const uint32_t out[4] = {VIRTIO_BLK_T_OUT, 0, 1, 0};
    int fd = memfd_create("guest", MFD_CLOEXEC);
    if (fd < 0)
        abort();
    for (off_t ring = 0; ring <= 0x4000; ring += 0x4000)
        if (pwrite(fd, descriptors, sizeof descriptors, ring) < 0 ||
            pwrite(fd, available, sizeof available, ring + 0x1000) < 0)
            abort();
    if (pwrite(fd, out, sizeof out, 0x8010) < 0 || ftruncate(fd, MEMORY_BYTES) < 0)
        abort();
    return fd;
}

static int other_end(int ends[2], int made)
{
    if (made != 0)
        abort();
    close(ends[0]);
    return ends[1];
}

static int make_timer(void)
{
    const struct itimerspec always = {{0, 1}, {0, 1}};
    int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (timerfd_settime(fd, 0, &always, NULL) != 0)
        abort();
    return fd;
}

static int make_descriptor(unsigned kind)
{
    int ends[2];
    switch (kind) {
    case 0:
    case 4:
    case 8:
        return make_memory();
    case 1:
    case 5:
        return eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK);
    case 2:
    case 6:
        return eventfd(0, EFD_CLOEXEC);
    case 9:
        return make_timer();
    case 10:
        return other_end(ends, socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends));
    case 11:
        return open("/dev/zero", O_RDWR | O_CLOEXEC);
    case 12:
        return socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    case 13:
        return epoll_create1(EPOLL_CLOEXEC);
    case 14:
        return open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    case 15:
        return memfd_create("empty", MFD_CLOEXEC);
    default:
        return other_end(ends, pipe2(ends, O_CLOEXEC));
    }
}

static void keep(int *kept, unsigned *count, int fd)
{
    int *at = &kept[(*count)++ % KEPT];
    if (*at >= 0)
        close(*at);
    *at = fcntl(fd, F_DUPFD_CLOEXEC, 3);
}

/* What is no message. False: it is one. */
static bool act(struct scene *scene, const uint8_t *head, const uint8_t *bytes, size_t size)
{
    const uint64_t one = 1;
    if (head[0] < KICK || head[0] == RAW)
        return false;
    for (unsigned i = 0; i < KEPT; i++) {
        if (head[0] == WRITE && scene->memories[i] >= 0)
            (void)!pwrite(scene->memories[i], bytes, size, 256 * head[1] + head[2]);
        else if (head[0] == CUT && scene->memories[i] >= 0)
            (void)!ftruncate(scene->memories[i], 256 * head[1]);
        else if (head[0] == KICK && scene->events[i] >= 0)
            (void)!write(scene->events[i], &one, sizeof one);
    }
    return true;
}

/* Takes the next message from the input and sends it, as far as the socket takes it. */
static void send_next(struct scene *scene)
{
    scene->patience += 8; /* a message takes a few ticks */
    uint8_t head[4] = {0}, bytes[sizeof(struct vhost_header) + 255];
    size_t taken = scene->length < sizeof head ? scene->length : sizeof head;
    memcpy(head, scene->data, taken);
    scene->data += taken;
    scene->length -= taken;
    size_t size = head[3] < scene->length ? head[3] : scene->length, at = 0;
    const uint8_t *payload = scene->data;
    struct vhost_header header = {head[0], head[1], head[3]};
    if (head[0] != RAW) {
        memcpy(bytes, &header, sizeof header);
        at = sizeof header;
    }
    memcpy(bytes + at, scene->data, size);
    scene->data += size;
    scene->length -= size;
    if (act(scene, head, payload, size))
        return;
    int fds[FDS_MAX];
    unsigned fd_count = (head[2] & 15) < FDS_MAX ? head[2] & 15 : FDS_MAX;
    union {
        char bytes[CMSG_SPACE(FDS_MAX * sizeof(int))];
        struct cmsghdr align;
    } control = {{0}};
    struct iovec iov = {bytes, at + size};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
    for (unsigned i = 0; i < fd_count; i++)
        fds[i] = make_descriptor(head[2] >> 4);
    if (fd_count > 0 && head[2] >> 4 < 9 && (head[2] >> 4) % 4 == 0)
        keep(scene->memories, &scene->memory_count, fds[0]);
    else if (fd_count > 0 && head[2] >> 4 < 7 && (head[2] >> 4) % 4 != 3)
        keep(scene->events, &scene->event_count, fds[0]);
    if (fd_count > 0) {
        message.msg_control = control.bytes;
        message.msg_controllen = CMSG_SPACE(fd_count * sizeof fds[0]);
        struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
        *rights = (struct cmsghdr){
            .cmsg_len = CMSG_LEN(fd_count * sizeof fds[0]), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
        memcpy(CMSG_DATA(rights), fds, fd_count * sizeof fds[0]);
    }
    (void)!sendmsg(scene->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    for (unsigned i = 0; i < fd_count; i++)
        close(fds[i]);
}

/* A message at every tick; answers are read and thrown away; then the end. */
static void go_on(struct io_timer *timer)
{
    struct scene *scene = container_of(timer, struct scene, timer);
    char answers[1024];
    while (recv(scene->fd, answers, sizeof answers, MSG_DONTWAIT) > 0)
        ;
    if (scene->length > 0) {
        send_next(scene);
    } else if (scene->patience > 0) {
        scene->patience--;
    } else if (!scene->hung_up) {
        scene->hung_up = true;
        shutdown(scene->fd, SHUT_RDWR);
    }
    if (!scene->gone)
        io_timer_set(scene->io, timer, 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length)
{
    struct scene scene = {.data = data, .length = length, .timer = {.fire = go_on}};
    struct error err;
    int sockets[2];
    if (length > 1 << 14)
        return 0;
    static bool guarded;
    if (!guarded && shared_map_guard(&err) < 0)
        abort();
    guarded = true;
    for (unsigned i = 0; i < KEPT; i++)
        scene.memories[i] = scene.events[i] = -1;
    signal(SIGPIPE, SIG_IGN); /* as the daemon has it: what should be an eventfd may be a pipe */
    if (ring_create(&scene.io, &err) < 0 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) != 0)
        abort();
    scene.node = (struct node){
        .ops = &forgetting_ops, .io = scene.io, .size_bytes = 1 << 20, .alignment_bytes = 512, .can_discard = true};
    scene.fd = sockets[0];
    struct vhost_session *session = vhost_session_create(scene.io, &scene.node, "fuzz", &scene.counters);
    if (!session)
        abort();
    vhost_session_start(session, sockets[1], gone, &scene);
    io_timer_set(scene.io, &scene.timer, 0);
    ring_run(scene.io);
    assert(scene.gone && atomic_load(&scene.counters.queues) == 0);
    io_timer_cancel(scene.io, &scene.timer);
    close(scene.fd);
    for (unsigned i = 0; i < KEPT; i++) {
        if (scene.memories[i] >= 0)
            close(scene.memories[i]);
        if (scene.events[i] >= 0)
            close(scene.events[i]);
    }
    ring_destroy(scene.io);
    return 0;
}
