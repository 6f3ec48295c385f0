/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Descriptors that travel over a socket, and eventfds. */
#include <errno.h>
#include <string.h>

#include "base/limits.h"
#include "suite.h"

struct pair {
    int listener, server, client;
};

static void pair_begin(struct suite *suite, struct pair *pair)
{
    char address[200];
    strcpy(address, suite->fixture->address(suite->io, false));
    pair->listener = io_listen(suite->io, address, NULL);
    assert_true(pair->listener >= 0);
    struct try try;
    try_init(&try);
    io_accept(suite->io, &try.op, pair->listener);
    pair->client = suite->fixture->connect(suite->io, address);
    pair->server = (int)try_wait(suite, &try);
    assert_true(pair->client >= 0 && pair->server >= 0);
}

static void pair_end(struct suite *suite, struct pair *pair)
{
    io_close(suite->io, pair->client);
    io_close(suite->io, pair->server);
    io_close(suite->io, pair->listener);
}

/* Sends all bytes; the descriptors go with the first. */
static void send_with(struct suite *suite, int fd, char *text, const int *fds, unsigned fd_count)
{
    struct io_packet packet = {.bytes = text, .length = strlen(text), .fd_count = fd_count};
    memcpy(packet.fds, fds, fd_count * sizeof fds[0]);
    while (packet.length > 0) {
        struct try try;
        try_init(&try);
        io_send_packet(suite->io, &try.op, fd, &packet);
        int64_t sent = try_wait(suite, &try);
        assert_in_range(sent, 1, packet.length);
        packet.bytes = (char *)packet.bytes + sent;
        packet.length -= (size_t)sent;
        packet.fd_count = 0;
    }
}

static int64_t receive(struct suite *suite, int fd, struct io_packet *packet, char *bytes, size_t length)
{
    struct try try;
    try_init(&try);
    *packet = (struct io_packet){.bytes = bytes, .length = length};
    io_recv_packet(suite->io, &try.op, fd, packet);
    return try_wait(suite, &try);
}

static void signal_event(struct suite *suite, int fd)
{
    struct try try;
    try_init(&try);
    io_event_signal(suite->io, &try.op, fd);
    assert_int_equal(try_wait(suite, &try), 0);
}

static void wait_event(struct suite *suite, int fd)
{
    struct try try;
    try_init(&try);
    io_event_wait(suite->io, &try.op, fd);
    assert_int_equal(try_wait(suite, &try), 0);
}

static void descriptors_travel_with_their_bytes(void **state)
{
    struct suite *suite = *state;
    struct pair pair;
    pair_begin(suite, &pair);
    int events[2] = {suite->fixture->event(suite->io, false), suite->fixture->event(suite->io, true)};
    send_with(suite, pair.client, "abc", events, 2);
    io_close(suite->io, events[0]);
    struct io_packet packet;
    char bytes[8];
    assert_in_range(receive(suite, pair.server, &packet, bytes, sizeof bytes), 1, 3);
    assert_int_equal(bytes[0], 'a');
    assert_int_equal(packet.fd_count, 2);
    assert_false(packet.fds_lost);
    assert_true(packet.fds[1] != events[1]);
    signal_event(suite, packet.fds[1]);
    wait_event(suite, events[1]); /* it is the same event */
    signal_event(suite, packet.fds[0]);
    wait_event(suite, packet.fds[0]); /* which outlives the descriptor that was sent */
    io_close(suite->io, packet.fds[0]);
    io_close(suite->io, packet.fds[1]);
    io_close(suite->io, events[1]);
    pair_end(suite, &pair);
}

static void a_receive_ends_where_the_next_descriptors_begin(void **state)
{
    struct suite *suite = *state;
    struct pair pair;
    pair_begin(suite, &pair);
    int event = suite->fixture->event(suite->io, false);
    send_with(suite, pair.client, "ab", &event, 1);
    send_with(suite, pair.client, "cd", &event, 1);
    char bytes[8];
    unsigned fds_of[2] = {0, 0};
    for (size_t got = 0; got < 4;) {
        struct io_packet packet;
        int64_t more = receive(suite, pair.server, &packet, bytes + got, sizeof bytes - got);
        assert_true(more > 0);
        assert_true(got >= 2 || got + (size_t)more <= 2);
        fds_of[got >= 2] += packet.fd_count;
        for (unsigned i = 0; i < packet.fd_count; i++)
            io_close(suite->io, packet.fds[i]);
        got += (size_t)more;
    }
    assert_memory_equal(bytes, "abcd", 4);
    assert_int_equal(fds_of[0], 1);
    assert_int_equal(fds_of[1], 1);
    io_close(suite->io, event);
    pair_end(suite, &pair);
}

static void the_end_of_a_connection_ends_packets(void **state)
{
    struct suite *suite = *state;
    struct pair pair;
    pair_begin(suite, &pair);
    io_shutdown(suite->io, pair.client);
    struct io_packet packet;
    char byte;
    assert_int_equal(receive(suite, pair.server, &packet, &byte, 1), 0);
    assert_int_equal(packet.fd_count, 0);
    pair_end(suite, &pair);
}

static void many_signals_are_one_wake(void **state)
{
    struct suite *suite = *state;
    for (int blocking = 0; blocking < 2; blocking++) {
        int event = suite->fixture->event(suite->io, blocking);
        struct try try;
        try_init(&try);
        io_event_wait(suite->io, &try.op, event);
        suite_sleep(suite, 2 * NS_PER_MS);
        assert_false(try.done);
        signal_event(suite, event);
        if (!try.done)
            assert_int_equal(try_wait(suite, &try), 0);
        for (int i = 0; i < 3; i++)
            signal_event(suite, event);
        wait_event(suite, event);
        try_init(&try);
        io_event_wait(suite->io, &try.op, event); /* all three were taken */
        suite_sleep(suite, 2 * NS_PER_MS);
        assert_false(try.done);
        io_cancel(suite->io, &try.op);
        assert_int_equal(try_wait(suite, &try), -ECANCELED);
        io_close(suite->io, event);
    }
}

const struct CMUnitTest packet_tests[] = {
    cmocka_unit_test(descriptors_travel_with_their_bytes),
    cmocka_unit_test(a_receive_ends_where_the_next_descriptors_begin),
    cmocka_unit_test(the_end_of_a_connection_ends_packets),
    cmocka_unit_test(many_signals_are_one_wake),
};
SUITE_COUNT(packet_tests);
