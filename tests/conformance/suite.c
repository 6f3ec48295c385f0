/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "suite.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"

static void try_done(struct io_op *op, int64_t result)
{
    struct try *try = container_of(op, struct try, op);
    try->done = true;
    try->result = result;
    try->calls++;
}

void try_init(struct try *try)
{
    *try = (struct try){.op = {.done = try_done}};
}

static bool try_is_done(void *context)
{
    return ((struct try *)context)->done;
}

int64_t try_wait(struct suite *suite, struct try *try)
{
    assert_false(try->done);
    suite_run_until(suite, try_is_done, try);
    assert_int_equal(try->calls, 1);
    try->done = false;
    try->calls = 0;
    return try->result;
}

void suite_run_until(struct suite *suite, bool (*reached)(void *context), void *context)
{
    assert_true(suite->fixture->run_until(suite->io, reached, context));
}

struct sleep {
    struct io *io;
    uint64_t until_ns;
};

static bool sleep_is_over(void *context)
{
    struct sleep *sleep = context;
    return io_now_ns(sleep->io) >= sleep->until_ns;
}

void suite_sleep(struct suite *suite, uint64_t duration_ns)
{
    struct sleep sleep = {suite->io, io_now_ns(suite->io) + duration_ns};
    suite_run_until(suite, sleep_is_over, &sleep);
}

void suite_write(struct suite *suite, int fd, const void *data, size_t length, uint64_t offset)
{
    while (length > 0) {
        struct iovec iov = {(void *)(uintptr_t)data, length};
        struct try try;
        try_init(&try);
        io_writev(suite->io, &try.op, fd, &iov, 1, offset, 0);
        int64_t written = try_wait(suite, &try);
        assert_in_range(written, 1, length);
        data = (const char *)data + written;
        offset += (uint64_t)written;
        length -= (size_t)written;
    }
}

size_t suite_read(struct suite *suite, int fd, void *data, size_t length, uint64_t offset)
{
    size_t got = 0;
    while (got < length) {
        struct iovec iov = {(char *)data + got, length - got};
        struct try try;
        try_init(&try);
        io_readv(suite->io, &try.op, fd, &iov, 1, offset + got);
        int64_t result = try_wait(suite, &try);
        assert_true(result >= 0 && (size_t)result <= length - got);
        if (result == 0)
            break;
        got += (size_t)result;
    }
    return got;
}

void suite_assert_filled(const void *data, unsigned char with, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        if (((const unsigned char *)data)[i] != with)
            fail_msg("byte %zu of %zu is %u, not %u", i, length, ((const unsigned char *)data)[i], with);
    }
}

int suite_create_file(struct suite *suite, const char *name)
{
    int fd = io_open(suite->io, suite->fixture->path(suite->io, name), O_RDWR | O_CREAT | O_EXCL, 0600);
    assert_true(fd >= 0);
    return fd;
}

static int begin_test(void **state)
{
    struct suite *suite = *state;
    suite->io = suite->fixture->begin();
    return suite->io ? 0 : -1;
}

static int end_test(void **state)
{
    struct suite *suite = *state;
    suite->fixture->end(suite->io);
    return 0;
}

int conformance_run(const char *name, const struct conformance_fixture *fixture)
{
    const struct {
        const struct CMUnitTest *tests;
        size_t count;
    } groups[] = {{loop_tests, loop_tests_count},
                  {disk_tests, disk_tests_count},
                  {shm_tests, shm_tests_count},
                  {socket_tests, socket_tests_count},
                  {packet_tests, packet_tests_count}};
    struct suite suite = {.fixture = fixture};
    struct CMUnitTest tests[64];
    size_t count = 0;
    for (size_t group = 0; group < sizeof groups / sizeof groups[0]; group++) {
        for (size_t i = 0; i < groups[group].count; i++, count++) {
            assert_true(count < sizeof tests / sizeof tests[0]);
            tests[count] = groups[group].tests[i];
            tests[count].setup_func = begin_test;
            tests[count].teardown_func = end_test;
            tests[count].initial_state = &suite;
        }
    }
    return _cmocka_run_group_tests(name, tests, count, NULL, NULL);
}
