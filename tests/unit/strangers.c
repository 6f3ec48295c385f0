/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Descriptors by which their maker can keep others waiting arrive at a reactor: its other work goes on. One is a file of
 * FUSE whose server has stopped to answer, the other a socket that lingers; closing either waits until the test lets it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "io/ring.h"
#include "io/stranger.h"

enum { TICKS = 200, FUSE_MESSAGE = 1 << 17, FUSE_FILE = 2 };

struct scene {
    struct io *io;
    int sockets[2];
    struct io_op op;
    struct io_packet packet;
    char byte;
    bool ended;
    int64_t result;
    struct io_timer timer;
    unsigned ticks;
};

static void received(struct io_op *op, int64_t result)
{
    struct scene *scene = container_of(op, struct scene, op);
    scene->ended = true;
    scene->result = result;
    ring_quit(scene->io);
}

static void tick(struct io_timer *timer)
{
    struct scene *scene = container_of(timer, struct scene, timer);
    if (++scene->ticks == TICKS)
        ring_quit(scene->io);
    else
        io_timer_set(scene->io, timer, io_now_ns(scene->io) + NS_PER_MS);
}

static int begin(void **state)
{
    struct scene *scene = calloc(1, sizeof *scene);
    struct error err;
    *state = scene;
    if (ring_create(&scene->io, &err) < 0 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, scene->sockets) != 0)
        return -1;
    scene->op.done = received;
    scene->timer.fire = tick;
    return 0;
}

static int end(void **state)
{
    struct scene *scene = *state;
    ring_destroy(scene->io);
    close(scene->sockets[0]);
    close(scene->sockets[1]);
    free(scene);
    return 0;
}

static void send_descriptors(int to, const int *fds, unsigned count)
{
    char byte = 'x';
    union {
        char bytes[CMSG_SPACE(LIMIT_PACKET_DESCRIPTORS * sizeof(int))];
        struct cmsghdr align;
    } control = {{0}};
    struct iovec iov = {&byte, 1};
    struct msghdr message = {.msg_iov = &iov,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = CMSG_SPACE(count * sizeof fds[0])};
    struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
    *rights = (struct cmsghdr){
        .cmsg_len = CMSG_LEN(count * sizeof fds[0]), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    memcpy(CMSG_DATA(rights), fds, count * sizeof fds[0]);
    if (sendmsg(to, &message, MSG_NOSIGNAL) != 1)
        abort();
}

static void receive(struct scene *scene)
{
    scene->packet = (struct io_packet){.bytes = &scene->byte, .length = 1};
    io_recv_packet(scene->io, &scene->op, scene->sockets[1], &scene->packet);
    io_timer_set(scene->io, &scene->timer, 0);
    ring_run(scene->io);
}

/* The reactor has ticked on, and the operation has not ended. */
static void assert_only_that_waits(struct scene *scene)
{
    assert_int_equal(scene->ticks, TICKS);
    assert_false(scene->ended);
    io_cancel(scene->io, &scene->op); /* means nothing to it */
}

static void assert_ends(struct scene *scene)
{
    while (!scene->ended)
        ring_run(scene->io);
    assert_int_equal(scene->result, 1);
    assert_true(scene->packet.fds_strange);
    assert_int_equal(scene->packet.fd_count, 1); /* the harmless one among them */
    io_close(scene->io, scene->packet.fds[0]);
}

/* --- a socket of a network that lingers: its last close waits until the other side has everything */

static void fill(int fd)
{
    static char bytes[1 << 16];
    while (send(fd, bytes, sizeof bytes, MSG_DONTWAIT) > 0)
        ;
    assert_int_equal(errno, EAGAIN);
}

static void connect_over_tcp(int ends[2])
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(listener, (struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(listen(listener, 1), 0);
    assert_int_equal(getsockname(listener, (struct sockaddr *)&address, &length), 0);
    ends[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(ends[0], (struct sockaddr *)&address, sizeof address), 0);
    ends[1] = accept(listener, NULL, NULL);
    assert_true(ends[1] >= 0);
    close(listener);
}

static void a_socket_that_lingers(void **state)
{
    struct scene *scene = *state;
    struct linger linger = {1, 3600};
    static char bytes[1 << 16];
    int ends[2], fds[2] = {-1, eventfd(0, EFD_CLOEXEC)};
    connect_over_tcp(ends);
    fill(ends[0]);
    assert_int_equal(setsockopt(ends[0], SOL_SOCKET, SO_LINGER, &linger, sizeof linger), 0);
    fds[0] = ends[0];
    send_descriptors(scene->sockets[0], fds, 2);
    close(fds[0]); /* not the last one: that is on its way */
    close(fds[1]);
    receive(scene);
    assert_only_that_waits(scene);
    while (recv(ends[1], bytes, sizeof bytes, 0) > 0)
        ;
    assert_ends(scene);
    close(ends[1]);
}

/* --- a file of FUSE whose server has gone silent */

struct server {
    int fd; /* /dev/fuse */
    atomic_bool silent;
};

static void reply(const struct server *server, uint64_t unique, int error, const void *body, size_t length)
{
    char bytes[512];
    struct fuse_out_header header = {(uint32_t)(sizeof header + length), error, unique};
    memcpy(bytes, &header, sizeof header);
    if (length > 0)
        memcpy(bytes + sizeof header, body, length);
    (void)!write(server->fd, bytes, sizeof header + length);
}

static struct fuse_attr attributes(uint64_t node)
{
    return (struct fuse_attr){
        .ino = node, .mode = node == FUSE_FILE ? S_IFREG | 0600 : S_IFDIR | 0700, .nlink = 1, .size = 1 << 20};
}

static void serve_one(const struct server *server, const struct fuse_in_header *in)
{
    const struct fuse_init_out init = {.major = FUSE_KERNEL_VERSION, .minor = 31, .max_write = 4096};
    const struct fuse_entry_out entry = {.nodeid = FUSE_FILE, .attr = attributes(FUSE_FILE)};
    const struct fuse_attr_out attr = {.attr = attributes(in->nodeid)}; /* valid for no time */
    const struct fuse_open_out open = {.fh = 1};
    switch (in->opcode) {
    case FUSE_INIT:
        reply(server, in->unique, 0, &init, sizeof init);
        break;
    case FUSE_LOOKUP:
        reply(server, in->unique, 0, &entry, sizeof entry);
        break;
    case FUSE_GETATTR:
        reply(server, in->unique, 0, &attr, sizeof attr);
        break;
    case FUSE_OPEN:
        reply(server, in->unique, 0, &open, sizeof open);
        break;
    case FUSE_FLUSH:
    case FUSE_RELEASE:
        reply(server, in->unique, 0, NULL, 0);
        break;
    case FUSE_FORGET:
        break;
    default:
        reply(server, in->unique, -ENOSYS, NULL, 0);
    }
}

static void *serve(void *argument)
{
    struct server *server = argument;
    _Alignas(8) static char bytes[FUSE_MESSAGE];
    while (read(server->fd, bytes, sizeof bytes) > 0)
        if (!atomic_load(&server->silent))
            serve_one(server, (struct fuse_in_header *)(void *)bytes);
    return NULL;
}

static int mount_fuse(const char *folder)
{
    char options[100];
    int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0", fd);
    if (fd < 0 || unshare(geteuid() == 0 ? CLONE_NEWNS : CLONE_NEWNS | CLONE_NEWUSER) != 0 ||
        mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("fuse", folder, "fuse", MS_NOSUID | MS_NODEV, options) != 0)
        return -1;
    return fd;
}

/* A process of its own, with a mount that nobody else sees. Sends a file of it; goes silent; ends when it is let go. */
static void be_a_server(const char *folder, int to, int ready, int let_go)
{
    struct server server = {.fd = mount_fuse(folder)};
    pthread_t thread;
    char path[100], byte = 0;
    if (server.fd < 0 || pthread_create(&thread, NULL, serve, &server) != 0)
        _exit(77);
    snprintf(path, sizeof path, "%s/file", folder);
    int fds[2] = {open(path, O_RDWR | O_CLOEXEC), eventfd(0, EFD_CLOEXEC)};
    if (fds[0] < 0)
        _exit(1);
    send_descriptors(to, fds, 2);
    close(fds[0]);
    atomic_store(&server.silent, true);
    (void)!write(ready, &byte, 1);
    (void)!read(let_go, &byte, 1);
    _exit(0);
}

static void a_file_of_fuse(void **state)
{
    struct scene *scene = *state;
    char folder[] = "/tmp/fleece-strangers-XXXXXX", byte;
    int ready[2], let_go[2], status;
    assert_non_null(mkdtemp(folder));
    assert_int_equal(pipe2(ready, O_CLOEXEC) | pipe2(let_go, O_CLOEXEC), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        close(let_go[1]);
        be_a_server(folder, scene->sockets[0], ready[1], let_go[0]);
    }
    close(ready[1]);
    close(let_go[0]);
    const bool works = read(ready[0], &byte, 1) == 1;
    if (works) {
        receive(scene);
        assert_only_that_waits(scene);
    }
    close(let_go[1]);
    assert_int_equal(waitpid(child, &status, 0), child);
    if (works)
        assert_ends(scene);
    close(ready[0]);
    rmdir(folder);
    if (!works) {
        assert_int_equal(WEXITSTATUS(status), 77);
        skip(); /* no FUSE here */
    }
}

/* --- what is taken */

static bool is_taken(int fd)
{
    assert_true(fd >= 0);
    const bool harmless = stranger_is_harmless(fd);
    close(fd);
    return harmless;
}

static void who_is_harmless(void **state)
{
    (void)state;
    char path[] = "/tmp/fleece-strangers-XXXXXX";
    int pair[2], pipes[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) | pipe(pipes), 0);
    assert_true(is_taken(memfd_create("guest", MFD_CLOEXEC)));
    assert_true(is_taken(eventfd(0, EFD_CLOEXEC)));
    assert_true(is_taken(epoll_create1(EPOLL_CLOEXEC)));
    for (unsigned i = 0; i < 2; i++)
        assert_true(is_taken(pair[i]) && is_taken(pipes[i]));
    assert_true(is_taken(mkstemp(path))); /* whatever file system the tests run on */
    unlink(path);
    assert_false(is_taken(open("/dev/zero", O_RDWR | O_CLOEXEC)));
    assert_false(is_taken(open("/tmp", O_RDONLY | O_DIRECTORY | O_CLOEXEC)));
    assert_false(is_taken(open("/proc/self/stat", O_RDONLY | O_CLOEXEC)));
    assert_false(is_taken(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)));
    assert_false(stranger_is_harmless(-1));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(who_is_harmless),
        cmocka_unit_test_setup_teardown(a_socket_that_lingers, begin, end),
        cmocka_unit_test_setup_teardown(a_file_of_fuse, begin, end),
    };
    return cmocka_run_group_tests_name("strangers", tests, NULL, NULL);
}
