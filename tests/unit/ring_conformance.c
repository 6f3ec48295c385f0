/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The conformance suite on io_uring and a real kernel. */
#include "conformance.h"

#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/limits.h"
#include "io/address.h"
#include "io/ring.h"

static char folder[64], text[200];
static unsigned addresses;

static struct io *fixture_begin(void)
{
    strcpy(folder, "/tmp/fleece-ring-XXXXXX");
    struct io *io;
    struct error err;
    if (!mkdtemp(folder))
        return NULL;
    if (ring_create(&io, &err) < 0) {
        fprintf(stderr, "%s\n", err.text);
        rmdir(folder);
        return NULL;
    }
    return io;
}

static void fixture_end(struct io *io)
{
    ring_destroy(io);
    char command[128];
    snprintf(command, sizeof command, "rm -r %s", folder);
    if (system(command) != 0)
        fprintf(stderr, "cannot remove %s\n", folder);
}

struct watch {
    struct io_timer timer;
    struct io *io;
    bool (*reached)(void *context);
    void *context;
    uint64_t deadline_ns;
    bool result;
};

static void watch_look(struct io_timer *timer)
{
    struct watch *watch = container_of(timer, struct watch, timer);
    uint64_t now_ns = io_now_ns(watch->io);
    watch->result = watch->reached(watch->context);
    if (watch->result || now_ns >= watch->deadline_ns)
        ring_quit(watch->io);
    else
        io_timer_set(watch->io, timer, now_ns + 200 * NS_PER_US);
}

static bool fixture_run_until(struct io *io, bool (*reached)(void *context), void *context)
{
    struct watch watch = {.timer = {.fire = watch_look},
                          .io = io,
                          .reached = reached,
                          .context = context,
                          .deadline_ns = io_now_ns(io) + 60 * NS_PER_S};
    io_timer_set(io, &watch.timer, 0);
    ring_run(io);
    return watch.result;
}

static const char *fixture_path(struct io *io, const char *name)
{
    (void)io;
    snprintf(text, sizeof text, "%s/%s", folder, name);
    return text;
}

static int free_port(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, length) != 0 ||
        getsockname(fd, (struct sockaddr *)&address, &length) != 0)
        abort();
    close(fd);
    return ntohs(address.sin_port);
}

static const char *fixture_address(struct io *io, bool tcp)
{
    (void)io;
    if (tcp)
        snprintf(text, sizeof text, "tcp:127.0.0.1:%d", free_port());
    else
        snprintf(text, sizeof text, "unix:%s/socket%u", folder, addresses++);
    return text;
}

static int fixture_connect(struct io *io, const char *address)
{
    (void)io;
    struct address parsed;
    if (address_parse(address, &parsed, NULL) < 0)
        abort();
    struct sockaddr_un local = {.sun_family = AF_UNIX};
    struct sockaddr_in internet = {.sin_family = AF_INET,
                                   .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                                   .sin_port = htons((uint16_t)atoi(parsed.port))};
    bool is_local = parsed.kind == ADDRESS_UNIX;
    strcpy(local.sun_path, parsed.path);
    int fd = socket(is_local ? AF_UNIX : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        abort();
    if (connect(fd, is_local ? (struct sockaddr *)&local : (struct sockaddr *)&internet,
                is_local ? sizeof local : sizeof internet) == 0)
        return fd;
    int result = -errno;
    close(fd);
    return result;
}

static int fixture_event(struct io *io, bool blocking)
{
    (void)io;
    int fd = eventfd(0, EFD_CLOEXEC | (blocking ? 0 : EFD_NONBLOCK));
    if (fd < 0)
        abort();
    return fd;
}

struct call {
    void (*body)(void *argument);
    void *argument;
};

static void *call_main(void *argument)
{
    struct call *call = argument;
    call->body(call->argument);
    return NULL;
}

static void fixture_elsewhere(struct io *io, void (*body)(void *argument), void *argument)
{
    (void)io;
    struct call call = {body, argument};
    pthread_t thread;
    if (pthread_create(&thread, NULL, call_main, &call) != 0)
        abort();
    pthread_join(thread, NULL);
}

int main(void)
{
    static const struct conformance_fixture fixture = {.begin = fixture_begin,
                                                       .end = fixture_end,
                                                       .run_until = fixture_run_until,
                                                       .path = fixture_path,
                                                       .address = fixture_address,
                                                       .connect = fixture_connect,
                                                       .event = fixture_event,
                                                       .elsewhere = fixture_elsewhere};
    return conformance_run("ring conformance", &fixture);
}
