/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the reactor on io_uring owes beyond the conformance suite: threads, socket files, a kernel that says no. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <liburing.h>
#include <limits.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/limits.h"
#include "io/address.h"
#include "io/ring.h"
#include "io/timer_heap.h"

/* Children, for what cannot be undone. */

static void in_child(void (*body)(void))
{
    fflush(stdout);
    fflush(stderr);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        body();
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

static void child_must(bool condition, int code)
{
    if (!condition)
        _exit(code);
}

/* From here on this process's io_uring_setup() fails with `error`. */
static void forbid_io_uring(unsigned error)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof code / sizeof code[0], code};
    child_must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, 10);
    child_must(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0, 11);
}

static void forbidden_child(void)
{
    struct io *io;
    struct error err;
    forbid_io_uring(EPERM);
    child_must(ring_create(&io, &err) == -EPERM, 12);
    child_must(strstr(err.text, "kernel.io_uring_disabled") && strstr(err.text, "seccomp"), 13);
    child_must(ring_start("never", &io, &err) == -EPERM, 14);
}

static void missing_child(void)
{
    struct io *io;
    struct error err;
    forbid_io_uring(ENOSYS);
    child_must(ring_create(&io, &err) == -ENOSYS, 12);
    child_must(strstr(err.text, "missing") && strstr(err.text, "5.10"), 13);
}

static void wrong_mask_child(void)
{
    struct io *io;
    struct error err;
    setenv("FLEECE_RING_FEATURES", "some", 1);
    child_must(ring_create(&io, &err) == -EINVAL, 12);
    child_must(strstr(err.text, "some"), 13);
}

static void a_refusing_kernel_is_explained(void **state)
{
    (void)state;
    in_child(forbidden_child);
    in_child(missing_child);
    in_child(wrong_mask_child);
}

/* Shared memory on other mounts; they need root, in a mount namespace of their own. */

static void small_tmpfs_child(void)
{
    struct io_shm shm;
    struct error err;
    child_must(mount("none", "/dev/shm", "tmpfs", 0, "size=4m") == 0, 77);
    struct io *io;
    child_must(ring_create(&io, &err) == 0, 20);
    child_must(io_shm_create(io, &shm, NULL, 64 * MIB, &err) == 0, 21);
    child_must(io_shm_grow(io, &shm, (struct range){0, 3 * MIB}) == 0, 22);
    memset(shm.base, 1, 3 * MIB);
    child_must(io_shm_grow(io, &shm, (struct range){3 * MIB, 2 * MIB}) == -ENOSPC, 23); /* and no SIGBUS */
    io_shm_punch(io, &shm, (struct range){0, 2 * MIB});
    child_must(io_shm_grow(io, &shm, (struct range){8 * MIB, 2 * MIB}) == 0, 24); /* the space came back */
    memset(shm.base + 8 * MIB, 1, 2 * MIB);
    io_shm_destroy(io, &shm);
    ring_destroy(io);
}

static void no_tmpfs_child(void)
{
    struct io_shm shm;
    struct error err;
    child_must(mount("none", "/dev/shm", "ramfs", 0, NULL) == 0, 77);
    struct io *io;
    child_must(ring_create(&io, &err) == 0, 20);
    child_must(io_shm_create(io, &shm, NULL, 64 * MIB, &err) == 0, 21);
    child_must(io_shm_grow(io, &shm, (struct range){0, MIB}) == 0, 22);
    char link[64], target[128] = "";
    snprintf(link, sizeof link, "/proc/self/fd/%d", shm.fd);
    child_must(readlink(link, target, sizeof target - 1) > 0 && strstr(target, "memfd:"), 23);
    io_shm_destroy(io, &shm);
    ring_destroy(io);
}

static void shared_memory_respects_its_file_system(void **state)
{
    (void)state;
    if (geteuid() != 0 || unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0)
        skip();
    in_child(small_tmpfs_child);
    in_child(no_tmpfs_child);
}

/* Two VMs of one user: the folder above both goes with the last file in it, under whoever is about to make one. */

enum { COMINGS = 3000 };

struct coming {
    struct io *io;
    char folder[64];
    unsigned failed;
    struct error err;
};

static void *come_and_go(void *argument)
{
    struct coming *coming = argument;
    const struct io_shm_name name = {coming->folder, "vda"};
    for (unsigned i = 0; i < COMINGS; i++) {
        struct io_shm shm;
        if (io_shm_create(coming->io, &shm, &name, MIB, &coming->err) < 0) {
            coming->failed++;
            continue;
        }
        io_shm_destroy(coming->io, &shm);
        io_shm_remove(coming->io, &name);
    }
    return NULL;
}

static void folders_of_shared_memory_come_and_go(void **state)
{
    (void)state;
    struct coming here = {0}, there = {0};
    pthread_t thread;
    assert_int_equal(ring_create(&here.io, NULL), 0);
    there.io = here.io; /* which is not asked */
    snprintf(here.folder, sizeof here.folder, "/dev/shm/fleece-test-%d/one", (int)getpid());
    snprintf(there.folder, sizeof there.folder, "/dev/shm/fleece-test-%d/other", (int)getpid());
    assert_int_equal(pthread_create(&thread, NULL, come_and_go, &there), 0);
    come_and_go(&here);
    assert_int_equal(pthread_join(thread, NULL), 0);
    if (here.failed || there.failed)
        fail_msg("%u and %u were not made: %s", here.failed, there.failed,
                 here.failed ? here.err.text : there.err.text);
    ring_destroy(here.io);
}

/* Threads. */

enum { SENDERS = 4, EACH = 20000 };

struct parcel {
    struct io_message message;
    struct post_office *office;
    unsigned sender, number;
};

struct post_office {
    struct io *io;
    unsigned next[SENDERS], arrived;
    bool disordered;
    struct parcel *parcels[SENDERS];
};

static void parcel_deliver(struct io_message *message)
{
    struct parcel *parcel = container_of(message, struct parcel, message);
    struct post_office *office = parcel->office;
    if (!io_on_owner(office->io) || parcel->number != office->next[parcel->sender]++)
        office->disordered = true;
    if (++office->arrived == SENDERS * EACH)
        ring_quit(office->io);
}

struct sender {
    struct post_office *office;
    unsigned index;
};

static void *sender_main(void *argument)
{
    struct sender *sender = argument;
    struct parcel *parcels = sender->office->parcels[sender->index];
    for (unsigned i = 0; i < EACH; i++) {
        parcels[i] = (struct parcel){
            .message = {.deliver = parcel_deliver}, .office = sender->office, .sender = sender->index, .number = i};
        io_post(sender->office->io, &parcels[i].message);
        if (i % 1000 == 0)
            usleep(500); /* so that the receiver falls asleep now and then */
    }
    return NULL;
}

static void messages_of_many_threads_arrive_in_order(void **state)
{
    (void)state;
    struct post_office office = {0};
    struct sender senders[SENDERS];
    pthread_t threads[SENDERS];
    assert_int_equal(ring_create(&office.io, NULL), 0);
    for (unsigned i = 0; i < SENDERS; i++) {
        office.parcels[i] = calloc(EACH, sizeof *office.parcels[i]);
        senders[i] = (struct sender){&office, i};
        assert_int_equal(pthread_create(&threads[i], NULL, sender_main, &senders[i]), 0);
    }
    ring_run(office.io);
    for (unsigned i = 0; i < SENDERS; i++) {
        pthread_join(threads[i], NULL);
        free(office.parcels[i]);
    }
    assert_int_equal(office.arrived, SENDERS * EACH);
    assert_false(office.disordered);
    ring_destroy(office.io);
}

struct ping {
    struct io_message message;
    struct io *here, *there;
    atomic_uint left;
};

static void ping_deliver(struct io_message *message)
{
    struct ping *ping = container_of(message, struct ping, message);
    if (atomic_fetch_sub(&ping->left, 1) == 1) {
        ring_quit(ping->here);
        return;
    }
    io_post(io_on_owner(ping->here) ? ping->there : ping->here, message); /* back and forth: both sleep in between */
}

static void reactors_wake_each_other(void **state)
{
    (void)state;
    struct ping ping = {.message = {.deliver = ping_deliver}};
    assert_int_equal(ring_create(&ping.here, NULL), 0);
    assert_int_equal(ring_start("other", &ping.there, NULL), 0);
    assert_false(io_on_owner(ping.there));
    atomic_store(&ping.left, 2001);
    io_post(ping.there, &ping.message);
    ring_run(ping.here);
    assert_int_equal(atomic_load(&ping.left), 0);
    ring_destroy(ping.there);
    ring_destroy(ping.here);
}

static void threads_start_and_end(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 30; i++) {
        struct io *io;
        assert_int_equal(ring_start("short", &io, NULL), 0);
        assert_non_null(strstr(ring_features(io), "io_uring"));
        ring_destroy(io);
    }
}

/* Helpers. */

struct gauge {
    atomic_uint running, most;
    atomic_bool open;
};

struct helped {
    struct io_op op;
    struct gauge *gauge;
    struct io *io;
    unsigned *left;
    int64_t result;
};

static int64_t work_at_the_gate(void *argument)
{
    struct gauge *gauge = argument;
    unsigned running = atomic_fetch_add(&gauge->running, 1) + 1, most = atomic_load(&gauge->most);
    while (running > most && !atomic_compare_exchange_weak(&gauge->most, &most, running))
        ;
    while (!atomic_load(&gauge->open))
        usleep(1000);
    atomic_fetch_sub(&gauge->running, 1);
    return 7;
}

static void helped_done(struct io_op *op, int64_t result)
{
    struct helped *helped = container_of(op, struct helped, op);
    helped->result = result;
    if (--*helped->left == 0)
        ring_quit(helped->io);
}

static void helpers_are_few_and_waiting_work_can_be_cancelled(void **state)
{
    (void)state;
    enum { COUNT = LIMIT_HELPERS + 3 };
    struct gauge gauge = {0};
    struct helped helped[COUNT];
    struct io *io;
    unsigned left = COUNT;
    assert_int_equal(ring_create(&io, NULL), 0);
    for (unsigned i = 0; i < COUNT; i++) {
        helped[i] = (struct helped){.op = {.done = helped_done}, .gauge = &gauge, .io = io, .left = &left};
        io_work(io, &helped[i].op, work_at_the_gate, &gauge);
    }
    while (atomic_load(&gauge.running) < LIMIT_HELPERS)
        usleep(1000);
    io_cancel(io, &helped[COUNT - 1].op); /* waits still */
    io_cancel(io, &helped[0].op);         /* runs: no effect */
    atomic_store(&gauge.open, true);
    ring_run(io);
    assert_int_equal(helped[COUNT - 1].result, -ECANCELED);
    for (unsigned i = 0; i < COUNT - 1; i++)
        assert_int_equal(helped[i].result, 7);
    assert_int_equal(atomic_load(&gauge.most), LIMIT_HELPERS);
    ring_destroy(io);
}

/* Socket files. */

struct place {
    struct io *io;
    char folder[64], path[100], address[120];
    struct error err;
};

static void place_begin(struct place *place)
{
    *place = (struct place){.folder = "/tmp/fleece-place-XXXXXX"};
    assert_non_null(mkdtemp(place->folder));
    assert_int_equal(ring_create(&place->io, NULL), 0);
    snprintf(place->path, sizeof place->path, "%s/socket", place->folder);
    snprintf(place->address, sizeof place->address, "unix:%s", place->path);
}

static void place_end(struct place *place)
{
    ring_destroy(place->io);
    unlink(place->path);
    assert_int_equal(rmdir(place->folder), 0); /* nothing else was left */
}

static int bind_path(const char *path)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    strcpy(name.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&name, sizeof name), 0);
    return fd;
}

static void socket_files_are_private_and_removed(void **state)
{
    (void)state;
    struct place place;
    place_begin(&place);
    mode_t before = umask(0);
    int fd = io_listen(place.io, place.address, &place.err);
    umask(before);
    assert_true(fd >= 0);
    struct stat st;
    assert_int_equal(lstat(place.path, &st), 0);
    assert_true(S_ISSOCK(st.st_mode));
    assert_int_equal(st.st_mode & 07777, 0600);
    io_close(place.io, fd);
    assert_int_equal(lstat(place.path, &st), -1);
    place_end(&place);
}

static void stale_sockets_are_replaced_and_nothing_else(void **state)
{
    (void)state;
    struct place place;
    struct stat st;
    place_begin(&place);
    close(bind_path(place.path)); /* a dead server's */
    int fd = io_listen(place.io, place.address, &place.err);
    assert_true(fd >= 0);
    assert_int_equal(io_listen(place.io, place.address, &place.err), -EADDRINUSE); /* a live one */
    assert_non_null(strstr(place.err.text, "in use"));
    assert_int_equal(lstat(place.path, &st), 0);
    /* Somebody put another socket in its place: that one stays when ours is closed. */
    assert_int_equal(unlink(place.path), 0);
    int other = bind_path(place.path);
    io_close(place.io, fd);
    assert_int_equal(lstat(place.path, &st), 0);
    close(other);
    unlink(place.path);
    /* A user's file. */
    FILE *file = fopen(place.path, "w");
    fputs("precious", file);
    fclose(file);
    assert_int_equal(io_listen(place.io, place.address, &place.err), -EEXIST);
    assert_non_null(strstr(place.err.text, "not a socket"));
    assert_int_equal(stat(place.path, &st), 0);
    assert_int_equal(st.st_size, 8);
    place_end(&place);
}

static void a_server_with_a_full_queue_is_alive(void **state)
{
    (void)state;
    struct place place;
    place_begin(&place);
    int server = bind_path(place.path), clients[8];
    assert_int_equal(listen(server, 0), 0);
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    strcpy(name.sun_path, place.path);
    for (unsigned i = 0; i < 8; i++) {
        clients[i] = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
        (void)connect(clients[i], (struct sockaddr *)&name, sizeof name);
    }
    assert_int_equal(io_listen(place.io, place.address, &place.err), -EADDRINUSE); /* and does not hang */
    for (unsigned i = 0; i < 8; i++)
        close(clients[i]);
    close(server);
    place_end(&place);
}

static void a_missing_folder_is_named(void **state)
{
    (void)state;
    struct place place;
    place_begin(&place);
    char address[120];
    snprintf(address, sizeof address, "unix:%s/none/socket", place.folder);
    assert_int_equal(io_listen(place.io, address, &place.err), -ENOENT);
    assert_non_null(strstr(place.err.text, "none/socket"));
    place_end(&place);
}

/* TCP. */

struct accepted {
    struct io_op op;
    struct io *io;
    int64_t result;
};

static void accepted_done(struct io_op *op, int64_t result)
{
    struct accepted *accepted = container_of(op, struct accepted, op);
    accepted->result = result;
    ring_quit(accepted->io);
}

static void tcp_connections_do_not_delay(void **state)
{
    (void)state;
    struct io *io;
    struct error err;
    assert_int_equal(ring_create(&io, NULL), 0);
    struct sockaddr_in6 name;
    socklen_t length;
    int listener = -EADDRINUSE;
    for (unsigned tries = 0; listener == -EADDRINUSE && tries < 100; tries++) { /* somebody else may take the port */
        name = (struct sockaddr_in6){.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
        length = sizeof name;
        int probe = socket(AF_INET6, SOCK_STREAM, 0);
        if (probe < 0 || bind(probe, (struct sockaddr *)&name, length) != 0) {
            ring_destroy(io);
            skip(); /* no IPv6 here */
        }
        assert_int_equal(getsockname(probe, (struct sockaddr *)&name, &length), 0);
        close(probe);
        char address[64];
        snprintf(address, sizeof address, "tcp:[::1]:%u", ntohs(name.sin6_port));
        listener = io_listen(io, address, &err);
    }
    assert_true(listener >= 0);
    struct accepted accepted = {.op = {.done = accepted_done}, .io = io};
    io_accept(io, &accepted.op, listener);
    int client = socket(AF_INET6, SOCK_STREAM, 0);
    assert_int_equal(connect(client, (struct sockaddr *)&name, sizeof name), 0);
    ring_run(io);
    int fd = (int)accepted.result, value = 0;
    assert_true(fd >= 0);
    length = sizeof value;
    assert_int_equal(getsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &value, &length), 0);
    assert_true(value);
    close(client);
    io_close(io, fd);
    io_close(io, listener);
    ring_destroy(io);
}

static void addresses_are_taken_apart(void **state)
{
    (void)state;
    struct address address;
    struct error err;
    assert_int_equal(address_parse("tcp:[fe80::1]:10809", &address, &err), 0);
    assert_int_equal(address.kind, ADDRESS_TCP);
    assert_string_equal(address.host, "fe80::1");
    assert_string_equal(address.port, "10809");
    assert_int_equal(address_parse("tcp:host:65535", &address, &err), 0);
    assert_string_equal(address.port, "65535");
    assert_int_equal(address_parse("unix:/run/a:b", &address, &err), 0);
    assert_string_equal(address.path, "/run/a:b");
    static const char *const wrong[] = {
        "",          "unix:",        "tcp:",        "tcp:host",      "tcp:host:",
        "tcp::1",    "tcp:host:0",   "tcp:h:65536", "tcp:host:1x",   "tcp:fe80::1:10809",
        "tcp:[::1]", "tcp:[::1:100", "/run/socket", "tcp:h:-1",      "tcp:h: 1",
        "udp:h:1",   "tcp:h:000001", "tcp:[::1]:",  "tcp:h:99999999"};
    for (unsigned i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        assert_int_equal(address_parse(wrong[i], &address, &err), -EINVAL);
        assert_non_null(strstr(err.text, wrong[i]));
    }
    assert_int_equal(address_check_loopback("tcp:127.0.0.2:1", &err), 0);
    assert_int_equal(address_check_loopback("tcp:[::1]:1", &err), 0);
    assert_int_equal(address_check_loopback("unix:/x", &err), 0);
    assert_int_equal(address_check_loopback("tcp:0.0.0.0:1", &err), -EACCES);
    assert_int_equal(address_check_loopback("tcp:[::]:1", &err), -EACCES);
    assert_int_equal(address_check_loopback("tcp:192.0.2.1:1", &err), -EACCES);
    assert_non_null(strstr(err.text, "192.0.2.1"));
}

/* The heap against a plain array. */

static atomic_uint entered; /* the kernel, without waiting; reactors of other tests do it on threads of theirs */
static unsigned ticks_left;
static struct io *watcher;

int __real_io_uring_submit_and_get_events(struct io_uring *ring);
int __wrap_io_uring_submit_and_get_events(struct io_uring *ring);

int __wrap_io_uring_submit_and_get_events(struct io_uring *ring)
{
    entered++;
    return __real_io_uring_submit_and_get_events(ring);
}

static void watch(struct io_timer *timer)
{
    if (ticks_left-- == 0)
        ring_quit(watcher);
    else
        io_timer_set(watcher, timer, 0);
}

static void heard(struct io_op *op, int64_t result)
{
    (void)op;
    assert_int_equal(result, 0);
    ring_quit(watcher);
}

/* Memory is looked at in each tick: that takes no system calls, and what the kernel has to tell is heard all the same. */
static void watching_takes_no_system_calls(void **state)
{
    (void)state;
    struct error err;
    struct io_timer timer = {.fire = watch};
    struct io_op op = {.done = heard};
    assert_int_equal(ring_create(&watcher, &err), 0);
    io_timer_set(watcher, &timer, 0);
    ticks_left = 10000;
    entered = 0;
    ring_run(watcher);
    assert_in_range(entered, 0, 100);
    int event = eventfd(0, EFD_CLOEXEC);
    io_event_wait(watcher, &op, event);
    io_timer_set(watcher, &timer, 0);
    ticks_left = 10;
    ring_run(watcher); /* it is being waited for */
    assert_int_equal(eventfd_write(event, 1), 0);
    io_timer_set(watcher, &timer, 0);
    ticks_left = UINT_MAX;
    ring_run(watcher);
    assert_true(ticks_left > 0);
    io_timer_cancel(watcher, &timer);
    close(event);
    ring_destroy(watcher);
}

static void never_fire(struct io_timer *timer)
{
    (void)timer;
    fail();
}

static void the_heap_always_gives_the_soonest(void **state)
{
    (void)state;
    enum { TIMERS = 200 };
    struct io_timer timers[TIMERS];
    memset(timers, 0, sizeof timers);
    struct timer_heap heap;
    timer_heap_init(&heap);
    uint64_t chance = 1;
    for (unsigned step = 0; step < 20000; step++) {
        chance = chance * 6364136223846793005u + 1442695040888963407u;
        struct io_timer *timer = &timers[(chance >> 33) % TIMERS];
        timer->fire = never_fire;
        if (chance >> 62 == 0)
            timer_heap_cancel(&heap, timer);
        else
            timer_heap_set(&heap, timer, (chance >> 40) % 1000);
        uint64_t soonest = UINT64_MAX;
        for (unsigned i = 0; i < TIMERS; i++)
            if (io_timer_armed(&timers[i]) && timers[i].deadline_ns < soonest)
                soonest = timers[i].deadline_ns;
        assert_true(timer_heap_deadline(&heap) == soonest);
        if (chance >> 61 == 7 && soonest != UINT64_MAX) {
            assert_null(soonest ? timer_heap_take_due(&heap, soonest - 1) : NULL);
            struct io_timer *due = timer_heap_take_due(&heap, soonest);
            assert_true(due && due->deadline_ns == soonest && !io_timer_armed(due));
        }
    }
    while (timer_heap_take_due(&heap, UINT64_MAX))
        ;
    timer_heap_fini(&heap);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_refusing_kernel_is_explained),
        cmocka_unit_test(messages_of_many_threads_arrive_in_order),
        cmocka_unit_test(reactors_wake_each_other),
        cmocka_unit_test(threads_start_and_end),
        cmocka_unit_test(helpers_are_few_and_waiting_work_can_be_cancelled),
        cmocka_unit_test(socket_files_are_private_and_removed),
        cmocka_unit_test(stale_sockets_are_replaced_and_nothing_else),
        cmocka_unit_test(a_server_with_a_full_queue_is_alive),
        cmocka_unit_test(a_missing_folder_is_named),
        cmocka_unit_test(tcp_connections_do_not_delay),
        cmocka_unit_test(addresses_are_taken_apart),
        cmocka_unit_test(watching_takes_no_system_calls),
        cmocka_unit_test(the_heap_always_gives_the_soonest),
        cmocka_unit_test(folders_of_shared_memory_come_and_go),
        cmocka_unit_test(shared_memory_respects_its_file_system), /* last: leaves the mount namespace */
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
