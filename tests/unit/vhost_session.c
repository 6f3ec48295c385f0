/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A session of vhost-user over a node that answers when the test says so: what waits for requests under way (C14), and what
 * is left of them in the rings.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "vhost_scene.h"

static void add_zeroes_of_two_ranges(struct scene *scene)
{
    struct virtio_blk_header *header = (void *)(scene->memory + DATA_AT);
    struct virtio_blk_range *ranges = (void *)(scene->memory + DATA_AT + 512);
    *header = (struct virtio_blk_header){.type = VIRTIO_BLK_T_WRITE_ZEROES};
    ranges[0] = (struct virtio_blk_range){.sector = 3, .sectors = 1};
    ranges[1] = (struct virtio_blk_range){.sector = 9, .sectors = 1};
    const struct part parts[] = {
        {DATA_AT, sizeof *header, false}, {DATA_AT + 512, 2 * sizeof *ranges, false}, {DATA_AT + 1024, 1, true}};
    scene->memory[DATA_AT + 1024] = 77;
    assert_true(driver_add(&scene->driver, parts, 3, 0, 5));
    driver_show(&scene->driver);
    if (driver_must_kick(&scene->driver))
        assert_int_equal(eventfd_write(scene->kick, 1), 0);
}

/* Ring 1, with one write of a sector in it. */
static void start_other_ring(struct scene *scene, struct driver *other)
{
    struct driver_place place = {0x60000, 0x70000, 0x80000};
    struct vhost_vring_state size = {1, 64}, base = {1, 0}, enable = {1, 1};
    struct vhost_vring_addr addr = {.index = 1,
                                    .descriptors = USER_ADDRESS + place.descriptors,
                                    .available = USER_ADDRESS + place.available,
                                    .used = USER_ADDRESS + place.used};
    uint64_t word = 1 | VHOST_VRING_NO_FD;
    struct virtio_blk_header *header = (void *)(scene->memory + OTHER_DATA_AT);
    *header = (struct virtio_blk_header){.type = VIRTIO_BLK_T_OUT, .sector = OTHER_SECTOR};
    const struct part parts[] = {
        {OTHER_DATA_AT, sizeof *header, false}, {OTHER_DATA_AT + 512, 512, false}, {OTHER_DATA_AT + 1024, 1, true}};
    driver_init(other, scene->memory, &place, 64, false, false);
    assert_true(driver_add(other, parts, 3, 0, 6));
    driver_show(other);
    scene_ask(scene, VHOST_SET_VRING_NUM, &size, sizeof size, -1);
    scene_ask(scene, VHOST_SET_VRING_BASE, &base, sizeof base, -1);
    scene_ask(scene, VHOST_SET_VRING_ADDR, &addr, sizeof addr, -1);
    scene_ask(scene, VHOST_SET_VRING_KICK, &word, sizeof word, -1);
    scene_ask(scene, VHOST_SET_VRING_ENABLE, &enable, sizeof enable, -1);
}

/* --- tests */

static void a_ring_stops_when_its_requests_are_returned(void **state)
{
    struct scene *scene = *state;
    struct vhost_vring_state base = {0, 0};
    scene_write_sector(scene);
    scene_tell(scene, VHOST_GET_VRING_BASE, &base, sizeof base, -1);
    scene_run_on(scene);
    assert_false(scene_has_answer(scene));
    scene_let_go(scene);
    scene_answer(scene, VHOST_GET_VRING_BASE, &base, sizeof base);
    assert_int_equal(base.num, 1);
    assert_true(scene_request_is_returned(scene));
}

static void a_reset_waits_for_requests(void **state)
{
    struct scene *scene = *state;
    uint64_t result;
    scene_write_sector(scene);
    scene_tell(scene, VHOST_RESET_DEVICE, NULL, 0, -1);
    scene_run_on(scene);
    assert_false(scene_has_answer(scene));
    scene_let_go(scene);
    scene_answer(scene, VHOST_RESET_DEVICE, &result, sizeof result);
    assert_true(scene_request_is_returned(scene));
}

static void the_next_connection_waits_for_requests(void **state)
{
    struct scene *scene = *state;
    uint64_t features;
    scene_write_sector(scene);
    close(scene->fd);
    scene_run_on(scene);
    scene_connect(scene);
    scene_tell(scene, VHOST_GET_FEATURES, NULL, 0, -1);
    scene_run_on(scene);
    assert_false(scene_has_answer(scene));
    scene_let_go(scene);
    scene_answer(scene, VHOST_GET_FEATURES, &features, sizeof features);
    assert_false(scene_request_is_returned(scene));      /* the ring was the front-end's own since it hung up, */
    assert_int_equal(scene->memory[DATA_AT + 1024], 77); /* and so was the status */
}

static void an_orderly_end_answers_requests(void **state)
{
    struct scene *scene = *state;
    scene_write_sector(scene);
    vhost_export_end(scene->export, scene_ended, scene);
    scene_run_on(scene);
    assert_false(scene->ended);
    scene_let_go(scene);
    scene_run_until(scene, scene_is_ended);
    assert_true(scene_request_is_returned(scene));
    uint64_t calls;
    assert_int_equal(eventfd_read(scene->call, &calls), 0);
}

/* What was submitted completes; nothing more of the request is submitted (C14). */
static void a_lost_connection_submits_nothing_more(void **state)
{
    struct scene *scene = *state;
    add_zeroes_of_two_ranges(scene);
    scene_run_until(scene, scene_holds_one);
    close(scene->fd);
    scene->fd = -1;
    scene_run_on(scene);
    scene_let_go(scene);
    scene_run_on(scene);
    assert_int_equal(scene->held_count, 0);
}

/* An interrupt that can't be delivered, since nobody has taken 2^64 of them. */
static void a_full_eventfd_keeps_nothing_from_ending(void **state)
{
    struct scene *scene = *state;
    uint64_t index = 0;
    int full = eventfd(0, EFD_CLOEXEC);
    assert_int_equal(eventfd_write(full, UINT64_MAX - 1), 0);
    scene_ask(scene, VHOST_SET_VRING_CALL, &index, sizeof index, full);
    scene_write_sector(scene);
    scene_let_go(scene);
    scene_run_on(scene);
    vhost_export_end(scene->export, scene_ended, scene);
    scene_run_until(scene, scene_is_ended);
    assert_true(scene_request_is_returned(scene));
    close(full);
}

static bool new_call_came(struct scene *scene)
{
    struct pollfd ready = {.fd = scene->new_call, .events = POLLIN};
    return poll(&ready, 1, 0) > 0;
}

/* A VMM exchanges the eventfd when the guest unmasks the interrupt, and looks at the old one no more. */
static void a_new_eventfd_hears_of_what_went_to_the_old_one(void **state)
{
    struct scene *scene = *state;
    uint64_t index = 0, calls;
    scene_write_sector(scene);
    scene_let_go(scene);
    scene_run_on(scene);
    assert_int_equal(eventfd_read(scene->call, &calls), 0);
    scene->new_call = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    scene_ask(scene, VHOST_SET_VRING_CALL, &index, sizeof index, scene->new_call);
    scene_run_until(scene, new_call_came);
    close(scene->new_call);
}

/* As many requests as there may be, and not one more in the ring: when they are done, the next one must be kicked for. */
static void all_requests_at_once(void **state)
{
    struct scene *scene = *state;
    for (unsigned i = 0; i < LIMIT_VHOST_REQUESTS; i++)
        scene_add_write(scene);
    scene_run_until(scene, scene_holds_all);
    scene_run_on(scene);
    scene_let_go(scene);
    scene_run_on(scene);
    for (unsigned i = 0; i < LIMIT_VHOST_REQUESTS; i++)
        assert_true(scene_request_is_returned(scene));
    scene_write_sector(scene);
}

static void let_one_go(struct scene *scene)
{
    struct request *req = container_of(list_take_first(&scene->held), struct request, link);
    scene->held_count--;
    request_complete(req, 0);
}

/* A queue that could use all requests alone, for ever, leaves some to another one. */
static void no_queue_takes_all_requests(void **state)
{
    struct scene *scene = *state;
    struct driver other;
    bool taken = false;
    for (unsigned i = 0; i < LIMIT_VHOST_REQUESTS + 100; i++)
        scene_add_write(scene);
    scene_run_until(scene, scene_holds_all);
    start_other_ring(scene, &other);
    for (unsigned i = 0; i < 4 && !taken; i++) {
        let_one_go(scene);
        scene_run_until(scene, scene_holds_all);
        taken = container_of(scene->held.head.prev, struct request, link)->range.start == OTHER_SECTOR * 512;
    }
    assert_true(taken);
    while (scene->held_count > 0) {
        scene_let_go(scene);
        scene_run_on(scene);
    }
}

/* --- what is left in the in-flight region */

/* The version of the first queue's part. */
static unsigned inflight_version(const struct scene *scene)
{
    uint16_t version;
    assert_int_equal(pread(scene->inflight_fd, &version, sizeof version, 8), sizeof version);
    return version;
}

static void stop_ring(struct scene *scene)
{
    struct vhost_vring_state base = {0, 0};
    scene_tell(scene, VHOST_GET_VRING_BASE, &base, sizeof base, -1);
    scene_answer(scene, VHOST_GET_VRING_BASE, &base, sizeof base);
}

static void connect_again(struct scene *scene)
{
    close(scene->fd);
    scene_run_on(scene);
    scene_let_go(scene);
    scene_connect(scene);
    scene_start_ring(scene);
}

static void use_inflight(struct scene *scene)
{
    scene->inflight_fd = memfd_create("inflight", MFD_CLOEXEC);
    assert_int_equal(ftruncate(scene->inflight_fd, INFLIGHT_BYTES), 0);
    connect_again(scene);
    scene_run_on(scene);
    assert_int_equal(inflight_version(scene), 1);
}

/* A request that was lost with its connection, and whose chain makes no sense any more. */
static void leave_a_broken_chain(struct scene *scene)
{
    use_inflight(scene);
    scene_write_sector(scene);
    driver_descriptor(&scene->driver, 0)->address = UINT64_MAX / 2;
    connect_again(scene);
    scene_run_on(scene);
    assert_int_equal(scene->held_count, 0);
    stop_ring(scene);
    assert_int_equal(inflight_version(scene), 1);
}

static void a_reset_forgets_what_broke_the_ring(void **state)
{
    struct scene *scene = *state;
    leave_a_broken_chain(scene);
    scene_ask(scene, VHOST_RESET_DEVICE, NULL, 0, -1);
    assert_int_equal(inflight_version(scene), 0);
    driver_init(&scene->driver, scene->memory, &scene_ring_place, QUEUE_SIZE, false, false);
    scene_start_ring(scene);
    scene_write_sector(scene);
    close(scene->inflight_fd);
}

/* A VMM says so when it stops to migrate, too. */
static void a_status_of_zero_forgets_nothing(void **state)
{
    struct scene *scene = *state;
    uint64_t status = 0;
    leave_a_broken_chain(scene);
    scene_ask(scene, VHOST_SET_STATUS, &status, sizeof status, -1);
    assert_int_equal(inflight_version(scene), 1);
    close(scene->inflight_fd);
}

/* Rings that were never enabled: the next driver may begin at another base. */
static void a_ring_without_a_request_leaves_nothing(void **state)
{
    struct scene *scene = *state;
    struct vhost_vring_state disable = {0, 0};
    uint64_t index = 0;
    use_inflight(scene);
    stop_ring(scene);
    scene_ask(scene, VHOST_SET_VRING_ENABLE, &disable, sizeof disable, -1);
    scene_ask(scene, VHOST_SET_VRING_KICK, &index, sizeof index, scene->kick);
    assert_int_equal(inflight_version(scene), 1);
    stop_ring(scene);
    assert_int_equal(inflight_version(scene), 0);
    close(scene->inflight_fd);
}

/* --- kicks and turns */

/* A kick that is no eventfd and can never come. */
static void a_failed_kick_is_made_up_for_by_the_clock(void **state)
{
    struct scene *scene = *state;
    uint64_t index = 0;
    int pipes[2];
    assert_int_equal(pipe(pipes), 0);
    close(pipes[1]);
    scene_ask(scene, VHOST_SET_VRING_KICK, &index, sizeof index, pipes[0]);
    close(pipes[0]);
    scene_run_on(scene);
    scene_write_sector(scene);
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

/* They cost the node nothing, so only their number bounds the tick in which they are answered. */
static void requests_answered_at_once_end_a_tick(void **state)
{
    struct scene *scene = *state;
    const unsigned count = QUEUE_SIZE / 2;
    struct virtio_blk_header *header = (void *)(scene->memory + DATA_AT);
    const struct part parts[] = {{DATA_AT, sizeof *header, false}, {DATA_AT + 1024, 1, true}};
    uint32_t cookie, written;
    *header = (struct virtio_blk_header){.type = 99};
    for (unsigned i = 0; i < count; i++)
        assert_true(driver_add(&scene->driver, parts, 2, 0, i));
    driver_show(&scene->driver);
    assert_int_equal(eventfd_write(scene->kick, 1), 0);
    scene->tick.fire = count_requests;
    io_timer_set(scene->io, &scene->tick, io_now_ns(scene->io));
    scene_run_on(scene);
    io_timer_cancel(scene->io, &scene->tick);
    for (unsigned i = 0; i < count; i++)
        assert_true(driver_get(&scene->driver, &cookie, &written));
    assert_in_range(scene->most, 1, LIMIT_VHOST_REQUESTS + LIMIT_VHOST_BATCH);
}

/* A processor that is gone for a while whenever it is offered; and a guest that kicks as soon as kicks are asked for, now
 * and then with a request. */
enum { AWAY_NS = 300 * 1000 };
static struct scene *eager;
static unsigned yields, sleeps;
static uint64_t yield_ended_ns, least_rest_ns;

int __wrap_sched_yield(void);

static uint64_t clock_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

int __wrap_sched_yield(void)
{
    const uint64_t began_ns = clock_ns();
    if (yields++ > 0 && began_ns - yield_ended_ns < least_rest_ns)
        least_rest_ns = began_ns - yield_ended_ns;
    nanosleep(&(struct timespec){.tv_nsec = AWAY_NS}, NULL);
    yield_ended_ns = clock_ns();
    return 0;
}

static bool has_yielded_often(struct scene *scene)
{
    (void)scene;
    return yields >= 4;
}

/* It is offered to others while rings are watched, and when they keep it, rings are not watched for a while. */
static void a_wanted_processor_is_not_watched_from(void **state)
{
    struct scene *scene = *state;
    yields = 0;
    least_rest_ns = UINT64_MAX;
    eager = scene;
    assert_int_equal(eventfd_write(scene->kick, 1), 0);
    scene_run_until(scene, has_yielded_often);
    eager = NULL;
    eager = NULL;
    assert_true(least_rest_ns >= (VHOST_CONTENDED_TIMES - 1) * (uint64_t)AWAY_NS);
}

/* A request that is answered at once. */
static void send_unknown(struct scene *scene)
{
    struct virtio_blk_header *header = (void *)(scene->memory + DATA_AT);
    const struct part parts[] = {{DATA_AT, sizeof *header, false}, {DATA_AT + 1024, 1, true}};
    uint32_t cookie, written;
    while (driver_get(&scene->driver, &cookie, &written))
        ;
    *header = (struct virtio_blk_header){.type = 99};
    assert_true(driver_add(&scene->driver, parts, 2, 0, 7));
    driver_show(&scene->driver);
    assert_int_equal(eventfd_write(scene->kick, 1), 0);
}

bool __real_virtqueue_want_kicks(struct virtqueue *queue);
bool __wrap_virtqueue_want_kicks(struct virtqueue *queue);
static char *spoil_available; /* the available ring: its index jumps before kicks are asked for; NULL: it does not */

bool __wrap_virtqueue_want_kicks(struct virtqueue *queue)
{
    if (spoil_available)
        ((uint16_t *)(void *)spoil_available)[1] = QUEUE_SIZE + 99;
    const bool more = __real_virtqueue_want_kicks(queue);
    if (eager && ++sleeps % (VHOST_VAIN_KICKS / 2) == 0)
        send_unknown(eager);
    else if (eager)
        assert_int_equal(eventfd_write(eager->kick, 1), 0);
    return more;
}

static bool error_came(struct scene *scene)
{
    struct pollfd ready = {.fd = scene->new_call, .events = POLLIN};
    return poll(&ready, 1, 0) > 0;
}

/* Found when kicks are asked for, and told at once: no kick may ever come. */
static void a_ring_that_breaks_at_the_end_says_so(void **state)
{
    struct scene *scene = *state;
    uint64_t index = 0;
    scene->new_call = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    scene_ask(scene, VHOST_SET_VRING_ERR, &index, sizeof index, scene->new_call);
    scene_write_sector(scene);
    spoil_available = scene->memory + scene_ring_place.available;
    scene_let_go(scene);
    scene_run_until(scene, error_came);
    spoil_available = NULL;
    close(scene->new_call);
}

static void replaced_eventfds_are_closed(void **state)
{
    struct scene *scene = *state;
    int pipes[2];
    uint64_t index = 0;
    char byte;
    assert_int_equal(pipe(pipes), 0);
    scene_ask(scene, VHOST_SET_VRING_KICK, &index, sizeof index, pipes[1]);
    close(pipes[1]);
    scene_ask(scene, VHOST_SET_VRING_KICK, &index, sizeof index, scene->kick);
    scene_run_on(scene);
    assert_int_equal(read(pipes[0], &byte, 1), 0); /* nobody has the other end any more */
    close(pipes[0]);
    scene_write_sector(scene);
    scene_let_go(scene);
    scene_run_on(scene);
    assert_true(scene_request_is_returned(scene));
}

static void wrong_messages_are_told_apart(void **state)
{
    (void)state;
    static const struct {
        struct vhost_header header;
        const char *says;
    } headers[] = {
        {{VHOST_GET_FEATURES, 2, 0}, "version 2"},
        {{VHOST_GET_FEATURES, VHOST_VERSION | VHOST_REPLY, 0}, "a reply"},
        {{0, VHOST_VERSION, 0}, "message 0"},
        {{19, VHOST_VERSION, 8}, "message 19"},
        {{UINT32_MAX, VHOST_VERSION, 0}, "message 4294967295"},
        {{VHOST_SET_FEATURES, VHOST_VERSION, 7}, "SET_FEATURES with 7 bytes; it has 8"},
        {{VHOST_GET_CONFIG, VHOST_VERSION, 11}, "it has 12 or more"},
        {{VHOST_GET_CONFIG, VHOST_VERSION, 269}, "GET_CONFIG with 269 bytes"},
        {{VHOST_SET_MEM_TABLE, VHOST_VERSION, 265}, "SET_MEM_TABLE with 265 bytes"},
    };
    struct vhost_message message;
    struct error err;
    for (size_t i = 0; i < sizeof headers / sizeof *headers; i++) {
        assert_true(vhost_message_begin(&message, &headers[i].header, &err) < 0);
        if (!strstr(err.text, headers[i].says))
            fail_msg("\"%s\" does not say \"%s\"", err.text, headers[i].says);
    }
    const struct vhost_header table = {VHOST_SET_MEM_TABLE, VHOST_VERSION, sizeof(struct vhost_memory)};
    assert_int_equal(vhost_message_begin(&message, &table, &err), 0);
    message.memory.count = 9000;
    assert_true(vhost_message_check(&message, 0, 0, &err) < 0 && strstr(err.text, "9000 regions"));
    message.memory.count = 1;
    assert_true(vhost_message_check(&message, 1, 0, &err) < 0 && strstr(err.text, "1 regions in 8 bytes"));
    const struct vhost_header count = {VHOST_GET_QUEUE_NUM, VHOST_VERSION, 0};
    assert_int_equal(vhost_message_begin(&message, &count, &err), 0);
    assert_true(vhost_message_check(&message, 0, 0, &err) < 0 && strstr(err.text, "without its protocol feature"));
    assert_int_equal(vhost_message_check(&message, 0, VHOST_BIT(VHOST_PROTOCOL_MQ), &err), 0);
    assert_true(vhost_message_check(&message, 1, VHOST_BIT(VHOST_PROTOCOL_MQ), &err) < 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_ring_stops_when_its_requests_are_returned, scene_begin, scene_end),
        cmocka_unit_test_setup_teardown(a_reset_waits_for_requests, scene_begin, scene_end),
        cmocka_unit_test_setup_teardown(the_next_connection_waits_for_requests, scene_begin, scene_end),
        cmocka_unit_test_setup_teardown(an_orderly_end_answers_requests, scene_begin, scene_end),
        cmocka_unit_test_setup_teardown(a_lost_connection_submits_nothing_more, scene_begin, scene_end),
        cmocka_unit_test_setup_teardown(a_full_eventfd_keeps_nothing_from_ending, scene_begin, scene_end),
        cmocka_unit_test_setup_teardown(a_new_eventfd_hears_of_what_went_to_the_old_one, scene_begin, scene_end),
        cmocka_unit_test_setup_teardown(all_requests_at_once, scene_begin, scene_end),
        cmocka_unit_test_setup_teardown(no_queue_takes_all_requests, scene_begin, scene_end),
        cmocka_unit_test_setup_teardown(a_reset_forgets_what_broke_the_ring, scene_begin, scene_end),
        cmocka_unit_test_setup_teardown(a_status_of_zero_forgets_nothing, scene_begin, scene_end),
        cmocka_unit_test_setup_teardown(a_ring_without_a_request_leaves_nothing, scene_begin, scene_end),
        cmocka_unit_test_setup_teardown(a_failed_kick_is_made_up_for_by_the_clock, scene_begin, scene_end),
        cmocka_unit_test_setup_teardown(requests_answered_at_once_end_a_tick, scene_begin, scene_end),
        cmocka_unit_test_setup_teardown(a_wanted_processor_is_not_watched_from, scene_begin, scene_end),
        cmocka_unit_test_setup_teardown(a_ring_that_breaks_at_the_end_says_so, scene_begin, scene_end),
        cmocka_unit_test_setup_teardown(replaced_eventfds_are_closed, scene_begin, scene_end),
        cmocka_unit_test(wrong_messages_are_told_apart),
    };
    return cmocka_run_group_tests_name("vhost session", tests, NULL, NULL);
}
