/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A guest, or its VMM, takes as much of a disk's reactor as it can get: what it gets is bounded, and what it asked for is
 * done all the same, later.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "export/vhost_user/shared_map.h"
#include "vhost_scene.h"

enum { ROOM_AT = 0x80000, ROOM_BYTES = 256 << 10 };

static unsigned returned(struct scene *scene)
{
    uint32_t cookie, written;
    unsigned count = 0;
    while (driver_get(&scene->driver, &cookie, &written))
        count++;
    return count;
}

/* --- data under way */

/* Of 1 MiB. */
static void add_long_write(struct scene *scene)
{
    struct virtio_blk_header *header = (void *)(scene->memory + DATA_AT);
    const struct part parts[] = {{DATA_AT, sizeof *header, false}, {ROOM_AT, ROOM_BYTES, false},
                                 {ROOM_AT, ROOM_BYTES, false},     {ROOM_AT, ROOM_BYTES, false},
                                 {ROOM_AT, ROOM_BYTES, false},     {DATA_AT + 1024, 1, true}};
    *header = (struct virtio_blk_header){.type = VIRTIO_BLK_T_OUT};
    assert_true(driver_add(&scene->driver, parts, sizeof parts / sizeof parts[0], 0, 5));
}

static bool holds_enough(struct scene *scene)
{
    return scene->held_count >= LIMIT_VHOST_BYTES / MIB;
}

/* A backup's request finds no more than that before it in the disk's queue. */
static void data_under_way_is_bounded(void **state)
{
    struct scene *scene = *state;
    enum { COUNT = 100 };
    unsigned done = 0;
    scene->node.size_bytes = 16 * MIB;
    for (unsigned i = 0; i < COUNT; i++)
        add_long_write(scene);
    driver_show(&scene->driver);
    assert_int_equal(eventfd_write(scene->kick, 1), 0);
    scene_run_until(scene, holds_enough);
    scene_run_on(scene);
    assert_int_equal(scene->held_count, LIMIT_VHOST_BYTES / MIB);
    while (done < COUNT) {
        scene_let_go(scene);
        scene_run_on(scene);
        assert_in_range(scene->held_count, 0, LIMIT_VHOST_BYTES / MIB);
        done += returned(scene);
    }
    scene_write_sector(scene);
}

/* A VMM that hangs up while its rings hold more than could be taken: the next one finds a disk. */
static void a_starved_ring_keeps_no_connection(void **state)
{
    struct scene *scene = *state;
    for (unsigned i = 0; i < LIMIT_VHOST_REQUESTS + 10; i++)
        scene_add_write(scene);
    scene_run_until(scene, scene_holds_all);
    close(scene->fd);
    scene_run_on(scene);
    scene_let_go(scene);
    scene_connect(scene);
    memset(scene->memory, 0, MEMORY_BYTES);
    driver_init(&scene->driver, scene->memory, &scene_ring_place, QUEUE_SIZE, false, false);
    scene_start_ring(scene);
    scene_write_sector(scene);
}

/* --- the time of a tick */

static uint64_t step_ns, ahead_ns; /* the clock goes on by so much whenever it is looked at */

int __real_clock_gettime(clockid_t clock, struct timespec *now);
int __wrap_clock_gettime(clockid_t clock, struct timespec *now);

int __wrap_clock_gettime(clockid_t clock, struct timespec *now)
{
    const int result = __real_clock_gettime(clock, now);
    ahead_ns += step_ns;
    const uint64_t ns = (uint64_t)now->tv_nsec + ahead_ns;
    now->tv_sec += (time_t)(ns / NS_PER_S);
    now->tv_nsec = (long)(ns % NS_PER_S);
    return result;
}

static void count_requests(struct io_timer *timer)
{
    struct scene *scene = container_of(timer, struct scene, tick);
    struct vhost_export_status status;
    vhost_export_status(scene->export, &status);
    if (status.requests - scene->seen > scene->most)
        scene->most = status.requests - scene->seen;
    scene->seen = status.requests;
    io_timer_set(scene->io, timer, io_now_ns(scene->io));
}

static bool all_were_taken(struct scene *scene)
{
    struct vhost_export_status status;
    vhost_export_status(scene->export, &status);
    return status.requests >= QUEUE_SIZE / 2;
}

/* On a slow processor, or with the longest of chains: requests that are answered at once, without the disk. */
static void a_tick_has_its_time(void **state)
{
    struct scene *scene = *state;
    struct virtio_blk_header *header = (void *)(scene->memory + DATA_AT);
    const struct part parts[] = {{DATA_AT, sizeof *header, false}, {DATA_AT + 1024, 1, true}};
    *header = (struct virtio_blk_header){.type = 99};
    for (unsigned i = 0; i < QUEUE_SIZE / 2; i++)
        assert_true(driver_add(&scene->driver, parts, 2, 0, i));
    driver_show(&scene->driver);
    assert_int_equal(eventfd_write(scene->kick, 1), 0);
    scene->tick.fire = count_requests;
    io_timer_set(scene->io, &scene->tick, io_now_ns(scene->io));
    step_ns = VHOST_TURN_NS / 2; /* a batch */
    scene_run_until(scene, all_were_taken);
    step_ns = 0;
    io_timer_cancel(scene->io, &scene->tick);
    scene_run_on(scene);
    assert_int_equal(returned(scene), QUEUE_SIZE / 2);
    assert_in_range(scene->most, 1, 4 * LIMIT_VHOST_BATCH);
}

/* --- kicks */

static uint64_t kicks(const struct scene *scene)
{
    struct vhost_export_status status;
    vhost_export_status(scene->export, &status);
    return status.kicks;
}

/* A timer that always has rung. What is in the ring is found by the slow clock, and a better kick is heard again. */
static void kicks_in_vain_make_deaf(void **state)
{
    struct scene *scene = *state;
    const struct itimerspec always = {{0, 1}, {0, 1}};
    uint64_t index = 0;
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    assert_int_equal(timerfd_settime(timer, 0, &always, NULL), 0);
    scene_run_on(scene);
    const uint64_t before = kicks(scene), began_ns = io_now_ns(scene->io);
    scene_ask(scene, VHOST_SET_VRING_KICK, &index, sizeof index, timer);
    close(timer);
    scene_run_on(scene);
    const uint64_t most = VHOST_VAIN_KICKS + 2 + (io_now_ns(scene->io) - began_ns) / VHOST_NO_KICK_NS;
    assert_in_range(kicks(scene) - before, VHOST_VAIN_KICKS + 1, most);
    scene_write_sector(scene);
    scene_let_go(scene);
    scene_ask(scene, VHOST_SET_VRING_KICK, &index, sizeof index, scene->kick);
    scene_run_on(scene);
    const uint64_t heard = kicks(scene);
    scene_write_sector(scene);
    assert_true(kicks(scene) > heard);
}

/* --- memory */

static void set_table(struct scene *scene)
{
    struct {
        struct vhost_memory head;
        struct vhost_region region;
    } table = {{1, 0}, {0, MEMORY_BYTES, USER_ADDRESS, 0}};
    scene_tell(scene, VHOST_SET_MEM_TABLE, &table, sizeof table, scene->memory_fd);
}

static void acknowledged(struct scene *scene)
{
    uint64_t result = 99;
    scene_answer(scene, VHOST_SET_MEM_TABLE, &result, sizeof result);
    assert_int_equal(result, 0);
}

static bool holds_another(struct scene *scene)
{
    return scene->held_count > scene->seen;
}

/* Each request holds the memory of its time, so there may not be any number of those. */
static void memory_changes_wait_for_the_oldest(void **state)
{
    struct scene *scene = *state;
    unsigned changes = 0;
    for (bool waits = false; !waits; changes++) {
        scene->seen = scene->held_count;
        scene_add_write(scene);
        scene_run_until(scene, holds_another);
        set_table(scene);
        if (changes < LIMIT_GUEST_TABLES - 1)
            acknowledged(scene);
        else
            waits = true;
    }
    scene_run_on(scene);
    assert_false(scene_has_answer(scene));
    scene_let_go(scene);
    acknowledged(scene);
    scene_run_on(scene);
    assert_int_equal(returned(scene), changes);
    scene_write_sector(scene);
}

/* --- the log */

static bool is_hung_up(struct scene *scene)
{
    char byte;
    return recv(scene->fd, &byte, 1, MSG_DONTWAIT) == 0;
}

static unsigned lines_of(int fd)
{
    static char text[1 << 16];
    const ssize_t length = pread(fd, text, sizeof text, 0);
    unsigned lines = 0;
    for (ssize_t i = 0; i < length; i++)
        lines += text[i] == '\n';
    return lines;
}

/* One line for each wrong message would fill somebody's disk. */
static void complaints_are_few(void **state)
{
    struct scene *scene = *state;
    const struct vhost_header nonsense = {.request = 99, .flags = VHOST_VERSION};
    int said = memfd_create("stderr", MFD_CLOEXEC), before = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3);
    assert_true(dup2(said, STDERR_FILENO) >= 0);
    for (unsigned i = 0; i < 5 * LIMIT_VHOST_COMPLAINTS; i++) {
        assert_int_equal(send(scene->fd, &nonsense, sizeof nonsense, MSG_NOSIGNAL), sizeof nonsense);
        scene_run_until(scene, is_hung_up);
        close(scene->fd);
        scene_connect(scene);
    }
    const unsigned lines = lines_of(said);
    ahead_ns += VHOST_COMPLAINTS_NS;
    assert_int_equal(send(scene->fd, &nonsense, sizeof nonsense, MSG_NOSIGNAL), sizeof nonsense);
    scene_run_until(scene, is_hung_up);
    const unsigned later = lines_of(said);
    assert_true(dup2(before, STDERR_FILENO) >= 0);
    close(before);
    close(said);
    assert_in_range(lines, 1, LIMIT_VHOST_COMPLAINTS);
    assert_int_equal(later, lines + 2); /* how many were left out, and this one */
}

/* --- descriptors */

static void send_byte_with_descriptor(struct scene *scene, char byte, int fd)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = {{0}};
    struct iovec iov = {&byte, 1};
    struct msghdr message = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
    struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
    *rights = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof fd), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    memcpy(CMSG_DATA(rights), &fd, sizeof fd);
    assert_int_equal(sendmsg(scene->fd, &message, MSG_NOSIGNAL), 1);
}

/* What nobody has read makes an error of it. */
static bool is_hung_up_or_reset(struct scene *scene)
{
    char byte;
    return recv(scene->fd, &byte, 1, MSG_DONTWAIT) == 0 || errno == ECONNRESET;
}

/* A request in memory that is gone ends the connection, on which a message has been sent already, byte by byte and each with
 * a descriptor: one is received after the end. */
static void descriptors_that_come_after_the_end_are_closed(void **state)
{
    struct scene *scene = *state;
    const struct vhost_header header = {VHOST_SET_VRING_CALL, VHOST_VERSION, sizeof(uint64_t)};
    const struct part parts[] = {{DATA_AT, sizeof(struct virtio_blk_header), false}, {DATA_AT + 1024, 1, true}};
    struct error err;
    int pipes[2];
    char byte;
    assert_int_equal(shared_map_guard(&err), 0);
    assert_int_equal(pipe2(pipes, O_CLOEXEC | O_NONBLOCK), 0);
    assert_int_equal(ftruncate(scene->memory_fd, DATA_AT), 0);
    assert_true(driver_add(&scene->driver, parts, 2, 0, 5));
    driver_show(&scene->driver);
    assert_int_equal(eventfd_write(scene->kick, 1), 0);
    for (unsigned i = 0; i < LIMIT_PACKET_DESCRIPTORS; i++)
        send_byte_with_descriptor(scene, ((const char *)&header)[i], pipes[1]);
    close(pipes[1]);
    scene_run_until(scene, is_hung_up_or_reset);
    scene_run_on(scene);
    assert_int_equal(read(pipes[0], &byte, 1), 0); /* nobody has the other end any more */
    close(pipes[0]);
}

/* --- a neighbour on the same reactor */

struct street { /* one guest keeps its ring full, the other one has one request at a time */
    struct scene *abuser, *neighbour;
    void (*add)(struct scene *scene); /* the abuser's request */
    struct io_timer tick;
    uint64_t abuses, served, enough; /* requests returned */
};

/* Costs no disk anything, and has no room for an answer. */
static void add_short_request(struct scene *scene)
{
    const struct part part = {DATA_AT, sizeof(struct virtio_blk_header), false};
    *(struct virtio_blk_header *)(void *)(scene->memory + DATA_AT) = (struct virtio_blk_header){.type = 99};
    assert_true(driver_add(&scene->driver, &part, 1, 0, 5));
}

static void show(struct scene *scene)
{
    driver_show(&scene->driver);
    if (driver_must_kick(&scene->driver))
        assert_int_equal(eventfd_write(scene->kick, 1), 0);
}

static void live(struct io_timer *timer)
{
    struct street *street = container_of(timer, struct street, tick);
    enum { LONGEST = 6 }; /* descriptors */
    scene_let_go(street->abuser);
    street->abuses += returned(street->abuser);
    while (street->abuser->driver.free_count >= LONGEST)
        street->add(street->abuser);
    show(street->abuser);
    if (street->neighbour->driver.free_count == QUEUE_SIZE || returned(street->neighbour) > 0) {
        street->served++;
        add_short_request(street->neighbour);
        show(street->neighbour);
    }
    if (street->abuses >= street->enough)
        ring_quit(street->abuser->io);
    else
        io_timer_set(street->abuser->io, timer, io_now_ns(street->abuser->io));
}

static void run_street(struct scene *abuser, void (*add)(struct scene *scene), uint64_t enough, uint64_t share)
{
    struct street street = {.abuser = abuser, .add = add, .tick.fire = live, .enough = enough};
    void *neighbour = street.neighbour = scene_begin_beside(abuser);
    assert_non_null(neighbour);
    abuser->node.size_bytes = 16 * MIB;
    io_timer_set(abuser->io, &street.tick, 0);
    ring_run(abuser->io);
    scene_end(&neighbour);
    assert_true(street.served >= street.abuses / share);
}

/* What a guest may take in two ticks, or have under way, is the most that it gets done for each request of its neighbour's:
 * counted, not timed, for all of it is one thread. */
static void a_neighbour_of_short_requests_has_its_share(void **state)
{
    run_street(*state, add_short_request, 200000, 2 * LIMIT_VHOST_REQUESTS);
}

static void a_neighbour_of_long_requests_has_its_share(void **state)
{
    run_street(*state, add_long_write, 4000, LIMIT_VHOST_BYTES / MIB);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(data_under_way_is_bounded, scene_begin, scene_end),
        cmocka_unit_test_setup_teardown(a_starved_ring_keeps_no_connection, scene_begin, scene_end),
        cmocka_unit_test_setup_teardown(a_tick_has_its_time, scene_begin, scene_end),
        cmocka_unit_test_setup_teardown(kicks_in_vain_make_deaf, scene_begin, scene_end),
        cmocka_unit_test_setup_teardown(memory_changes_wait_for_the_oldest, scene_begin, scene_end),
        cmocka_unit_test_setup_teardown(complaints_are_few, scene_begin, scene_end),
        cmocka_unit_test_setup_teardown(descriptors_that_come_after_the_end_are_closed, scene_begin, scene_end),
        cmocka_unit_test_setup_teardown(a_neighbour_of_short_requests_has_its_share, scene_begin, scene_end),
        cmocka_unit_test_setup_teardown(a_neighbour_of_long_requests_has_its_share, scene_begin, scene_end),
    };
    return cmocka_run_group_tests_name("vhost_hostile", tests, NULL, NULL);
}
