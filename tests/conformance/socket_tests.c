/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Sockets: listening, both directions, ends of connections, cancelling. */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "suite.h"

struct connection {
    char address[200];
    int listener, server, client;
};

static void connection_begin(struct suite *suite, struct connection *c)
{
    struct error err;
    strcpy(c->address, suite->fixture->address(suite->io, false));
    c->listener = io_listen(suite->io, c->address, &err);
    assert_true(c->listener >= 0);
    struct try try;
    try_init(&try);
    io_accept(suite->io, &try.op, c->listener);
    c->client = suite->fixture->connect(suite->io, c->address);
    assert_true(c->client >= 0);
    c->server = (int)try_wait(suite, &try);
    assert_true(c->server >= 0 && c->server != c->client);
}

static void connection_end(struct suite *suite, struct connection *c)
{
    if (c->client >= 0)
        io_close(suite->io, c->client);
    if (c->server >= 0)
        io_close(suite->io, c->server);
    io_close(suite->io, c->listener);
}

static size_t send_some(struct suite *suite, int fd, const char *data, size_t length)
{
    struct iovec iov[3] = {{(void *)(uintptr_t)data, length / 3},
                           {(void *)(uintptr_t)(data + length / 3), length / 2 - length / 3},
                           {(void *)(uintptr_t)(data + length / 2), length - length / 2}};
    struct try try;
    try_init(&try);
    io_sendv(suite->io, &try.op, fd, iov, 3);
    int64_t sent = try_wait(suite, &try);
    assert_in_range(sent, 1, length);
    return (size_t)sent;
}

static size_t recv_some(struct suite *suite, int fd, char *data, size_t length)
{
    struct try try;
    try_init(&try);
    io_recv(suite->io, &try.op, fd, data, length);
    int64_t got = try_wait(suite, &try);
    assert_true(got >= 0 && (size_t)got <= length);
    return (size_t)got;
}

static void bytes_arrive_in_order(void **state)
{
    struct suite *suite = *state;
    struct connection c;
    connection_begin(suite, &c);
    char data[5000], back[5000];
    for (int way = 0; way < 2; way++) {
        int from = way ? c.server : c.client, to = way ? c.client : c.server;
        for (size_t i = 0; i < sizeof data; i++)
            data[i] = (char)(i / 7 + (size_t)way);
        for (size_t sent = 0; sent < sizeof data;)
            sent += send_some(suite, from, data + sent, sizeof data - sent);
        for (size_t got = 0; got < sizeof back;) {
            size_t more = recv_some(suite, to, back + got, sizeof back - got);
            assert_true(more > 0);
            got += more;
        }
        assert_memory_equal(data, back, sizeof data);
    }
    connection_end(suite, &c);
}

static void receive_waits_for_bytes(void **state)
{
    struct suite *suite = *state;
    struct connection c;
    connection_begin(suite, &c);
    char byte = 0;
    struct try try;
    try_init(&try);
    io_recv(suite->io, &try.op, c.server, &byte, 1);
    suite_sleep(suite, 5 * NS_PER_MS);
    assert_false(try.done);
    assert_int_equal(send_some(suite, c.client, "abc", 1), 1);
    if (!try.done)
        try_wait(suite, &try);
    assert_int_equal(try.result, 1);
    assert_int_equal(byte, 'a');
    connection_end(suite, &c);
}

static void a_full_connection_makes_the_sender_wait(void **state)
{
    struct suite *suite = *state;
    struct connection c;
    connection_begin(suite, &c);
    const size_t size = 16 * MIB; /* more than any socket buffers */
    char *data = malloc(size), *back = malloc(size);
    for (size_t i = 0; i < size; i++)
        data[i] = (char)(i * 2654435761u >> 13);
    size_t sent = 0, got = 0;
    struct try sending;
    struct iovec iov = {data, size};
    try_init(&sending);
    io_sendv(suite->io, &sending.op, c.client, &iov, 1);
    while (got < size) {
        if (sending.done && sent < size) {
            assert_true(sending.result > 0);
            sent += (size_t)sending.result;
            if (sent < size) {
                iov = (struct iovec){data + sent, size - sent};
                try_init(&sending);
                io_sendv(suite->io, &sending.op, c.client, &iov, 1);
            }
        }
        size_t more = recv_some(suite, c.server, back + got, size - got);
        assert_true(more > 0);
        got += more;
    }
    if (!sending.done)
        try_wait(suite, &sending);
    assert_memory_equal(data, back, size);
    free(data);
    free(back);
    connection_end(suite, &c);
}

static void a_closed_peer_is_the_end(void **state)
{
    struct suite *suite = *state;
    struct connection c;
    connection_begin(suite, &c);
    assert_int_equal(send_some(suite, c.client, "abc", 3), 3);
    io_close(suite->io, c.client);
    c.client = -1;
    char data[10];
    size_t got = 0, more;
    while ((more = recv_some(suite, c.server, data + got, sizeof data - got)) > 0)
        got += more;
    assert_int_equal(got, 3); /* what was sent before arrives, then the end */
    struct iovec iov = {data, 3};
    struct try try;
    try_init(&try);
    io_sendv(suite->io, &try.op, c.server, &iov, 1);
    int64_t result = try_wait(suite, &try); /* and no signal */
    assert_true(result == -EPIPE || result == -ECONNRESET);
    connection_end(suite, &c);
}

static void shutdown_ends_what_is_under_way(void **state)
{
    struct suite *suite = *state;
    struct connection c;
    connection_begin(suite, &c);
    char byte;
    struct try mine, peers;
    try_init(&mine);
    try_init(&peers);
    io_recv(suite->io, &mine.op, c.server, &byte, 1);
    io_recv(suite->io, &peers.op, c.client, &byte, 1);
    suite_sleep(suite, NS_PER_MS);
    assert_false(mine.done || peers.done);
    io_shutdown(suite->io, c.server);
    assert_false(mine.done || peers.done);
    try_wait(suite, &mine);
    assert_true(mine.result <= 0);
    if (!peers.done)
        try_wait(suite, &peers);
    assert_true(peers.result <= 0);
    struct iovec iov = {&byte, 1};
    try_init(&mine);
    io_sendv(suite->io, &mine.op, c.server, &iov, 1);
    assert_int_equal(try_wait(suite, &mine), -EPIPE);
    connection_end(suite, &c);
}

static void shutdown_ends_an_accept(void **state)
{
    struct suite *suite = *state;
    int listener = io_listen(suite->io, suite->fixture->address(suite->io, false), NULL);
    assert_true(listener >= 0);
    struct try try;
    try_init(&try);
    io_accept(suite->io, &try.op, listener);
    suite_sleep(suite, NS_PER_MS);
    assert_false(try.done);
    io_shutdown(suite->io, listener);
    assert_true(try_wait(suite, &try) < 0);
    io_close(suite->io, listener);
}

static void cancelled_operations_complete(void **state)
{
    struct suite *suite = *state;
    struct connection c;
    connection_begin(suite, &c);
    char byte;
    struct try recv, accept;
    try_init(&recv);
    try_init(&accept);
    io_recv(suite->io, &recv.op, c.server, &byte, 1);
    io_accept(suite->io, &accept.op, c.listener);
    io_cancel(suite->io, &recv.op); /* before it was ever submitted */
    assert_false(recv.done);
    assert_int_equal(try_wait(suite, &recv), -ECANCELED);
    suite_sleep(suite, NS_PER_MS);
    io_cancel(suite->io, &accept.op);
    io_cancel(suite->io, &accept.op); /* twice is no harm */
    assert_false(accept.done);
    assert_int_equal(try_wait(suite, &accept), -ECANCELED);
    /* The connection is as good as before. */
    assert_int_equal(send_some(suite, c.client, "abc", 1), 1);
    assert_int_equal(recv_some(suite, c.server, &byte, 1), 1);
    connection_end(suite, &c);
}

static void poll_tells_when_bytes_can_be_read(void **state)
{
    struct suite *suite = *state;
    struct connection c;
    connection_begin(suite, &c);
    struct try try;
    try_init(&try);
    io_poll(suite->io, &try.op, c.server, POLLIN);
    suite_sleep(suite, NS_PER_MS);
    assert_false(try.done);
    assert_int_equal(send_some(suite, c.client, "abc", 3), 3);
    if (!try.done)
        try_wait(suite, &try);
    assert_true(try.result & POLLIN);
    connection_end(suite, &c);
}

/* To a server that listens, and to one that does not. */
static void connecting(void **state)
{
    struct suite *suite = *state;
    struct connection c;
    struct error err;
    struct try accepted;
    char data[8];
    connection_begin(suite, &c);
    int client = io_connect(suite->io, c.address, &err);
    assert_true(client >= 0);
    try_init(&accepted);
    io_accept(suite->io, &accepted.op, c.listener);
    int server = (int)try_wait(suite, &accepted);
    assert_true(server >= 0);
    size_t sent = send_some(suite, client, "abcdef", 6);
    for (size_t got = 0; got < sent;)
        got += recv_some(suite, server, data + got, sent - got);
    assert_memory_equal(data, "abcdef", sent);
    io_close(suite->io, client);
    io_close(suite->io, server);
    connection_end(suite, &c);
    assert_true(io_connect(suite->io, suite->fixture->address(suite->io, false), &err) < 0);
    assert_true(err.code == ECONNREFUSED || err.code == ENOENT);
}

static void an_address_in_use_is_refused(void **state)
{
    struct suite *suite = *state;
    for (int tcp = 0; tcp < 2; tcp++) {
        const char *text = suite->fixture->address(suite->io, tcp);
        if (!text)
            continue;
        char address[200];
        strcpy(address, text);
        struct error err = {0};
        int listener = io_listen(suite->io, address, &err);
        assert_true(listener >= 0);
        assert_int_equal(io_listen(suite->io, address, &err), -EADDRINUSE);
        assert_int_equal(err.code, EADDRINUSE);
        assert_non_null(strstr(err.text, "in use"));
        io_close(suite->io, listener);
        assert_true(suite->fixture->connect(suite->io, address) < 0);
        listener = io_listen(suite->io, address, &err); /* closed is free again */
        assert_true(listener >= 0);
        io_close(suite->io, listener);
    }
}

static void a_wrong_address_says_what_is_wrong(void **state)
{
    struct suite *suite = *state;
    struct error err = {0};
    assert_int_equal(io_listen(suite->io, "nonsense", &err), -EINVAL);
    assert_non_null(strstr(err.text, "nonsense"));
    assert_int_equal(io_listen(suite->io, "tcp:127.0.0.1:0", &err), -EINVAL);
    assert_int_equal(io_listen(suite->io, "tcp:127.0.0.1", &err), -EINVAL);
    char path[200] = "unix:/tmp/";
    memset(path + strlen(path), 'x', 108);
    assert_int_equal(io_listen(suite->io, path, &err), -ENAMETOOLONG);
    assert_non_null(strstr(err.text, "107"));
}

const struct CMUnitTest socket_tests[] = {
    cmocka_unit_test(bytes_arrive_in_order),
    cmocka_unit_test(receive_waits_for_bytes),
    cmocka_unit_test(a_full_connection_makes_the_sender_wait),
    cmocka_unit_test(a_closed_peer_is_the_end),
    cmocka_unit_test(shutdown_ends_what_is_under_way),
    cmocka_unit_test(shutdown_ends_an_accept),
    cmocka_unit_test(cancelled_operations_complete),
    cmocka_unit_test(poll_tells_when_bytes_can_be_read),
    cmocka_unit_test(connecting),
    cmocka_unit_test(an_address_in_use_is_refused),
    cmocka_unit_test(a_wrong_address_says_what_is_wrong),
};
SUITE_COUNT(socket_tests);
