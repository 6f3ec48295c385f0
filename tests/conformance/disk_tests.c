/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Files: reads, writes, syncs, allocation, extents, locks. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "suite.h"

static uint64_t file_size(struct suite *suite, int fd)
{
    struct io_stat stat;
    assert_int_equal(io_stat(suite->io, fd, &stat), 0);
    assert_true(stat.is_regular && !stat.is_block_device && !stat.is_directory);
    assert_int_equal(stat.alignment_bytes, 1); /* these files are not opened for direct I/O */
    return stat.size_bytes;
}

static void files_keep_what_is_written(void **state)
{
    struct suite *suite = *state;
    int fd = suite_create_file(suite, "kept");
    char data[10000], back[10000];
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (char)(i * 31 >> 3);
    suite_write(suite, fd, data, sizeof data, 777);
    assert_int_equal(file_size(suite, fd), 777 + sizeof data);
    assert_int_equal(suite_read(suite, fd, back, sizeof back, 777), sizeof back);
    assert_memory_equal(data, back, sizeof data);
    assert_int_equal(suite_read(suite, fd, back, 777, 0), 777);
    suite_assert_filled(back, 0, 777);
    io_close(suite->io, fd);

    fd = io_open(suite->io, suite->fixture->path(suite->io, "kept"), O_RDONLY, 0);
    assert_true(fd >= 0);
    assert_int_equal(suite_read(suite, fd, back, sizeof back, 777), sizeof back);
    assert_memory_equal(data, back, sizeof data);
    struct iovec iov = {data, sizeof data};
    struct try try;
    try_init(&try);
    io_writev(suite->io, &try.op, fd, &iov, 1, 0, 0);
    assert_int_equal(try_wait(suite, &try), -EBADF);
    io_close(suite->io, fd);
}

static void open_says_why_not(void **state)
{
    struct suite *suite = *state;
    assert_int_equal(io_open(suite->io, suite->fixture->path(suite->io, "missing"), O_RDWR, 0), -ENOENT);
    io_close(suite->io, suite_create_file(suite, "there"));
    assert_int_equal(io_open(suite->io, suite->fixture->path(suite->io, "there"), O_RDWR | O_CREAT | O_EXCL, 0600),
                     -EEXIST);
}

static void reads_end_at_the_end(void **state)
{
    struct suite *suite = *state;
    int fd = suite_create_file(suite, "short");
    char data[1000];
    memset(data, 9, sizeof data);
    suite_write(suite, fd, data, sizeof data, 0);
    assert_int_equal(suite_read(suite, fd, data, sizeof data, 400), 600);
    assert_int_equal(suite_read(suite, fd, data, sizeof data, 1000), 0);
    assert_int_equal(suite_read(suite, fd, data, sizeof data, 5000), 0);
    io_close(suite->io, fd);
}

static void vectors_are_gathered_and_scattered(void **state)
{
    struct suite *suite = *state;
    int fd = suite_create_file(suite, "vectors");
    enum { PIECES = LIMIT_REQUEST_FRAGMENTS };
    char *data = malloc(PIECES * 512), *back = malloc(PIECES * 512);
    struct iovec iov[PIECES];
    for (int i = 0; i < PIECES; i++) {
        memset(data + i * 512, i + 1, 512);
        iov[i] = (struct iovec){data + (PIECES - 1 - i) * 512, 512}; /* backwards */
    }
    size_t total = PIECES * 512, at = 0;
    while (at < total) { /* continue after a short write at the fragment that it ended in */
        size_t first = at / 512, inside = at % 512;
        struct iovec rest[PIECES];
        memcpy(rest, iov + first, (PIECES - first) * sizeof *iov);
        rest[0] = (struct iovec){(char *)rest[0].iov_base + inside, 512 - inside};
        struct try try;
        try_init(&try);
        io_writev(suite->io, &try.op, fd, rest, (unsigned)(PIECES - first), at, IO_WRITE_DSYNC);
        int64_t written = try_wait(suite, &try);
        assert_in_range(written, 1, total - at);
        at += (size_t)written;
    }
    assert_int_equal(suite_read(suite, fd, back, total, 0), total);
    for (int i = 0; i < PIECES; i++)
        assert_memory_equal(back + i * 512, data + (PIECES - 1 - i) * 512, 512);
    memset(back, 0, total);
    for (int i = 0; i < PIECES; i++)
        iov[i] = (struct iovec){back + i * 512, 512};
    struct try try;
    try_init(&try);
    io_readv(suite->io, &try.op, fd, iov, PIECES, 100);
    int64_t got = try_wait(suite, &try);
    assert_in_range(got, 1, total - 100);
    for (int64_t i = 0; i < got; i++)
        assert_int_equal(back[i], data[(PIECES - 1 - (i + 100) / 512) * 512]);
    io_close(suite->io, fd);
    free(data);
    free(back);
}

static void many_operations_at_once(void **state)
{
    struct suite *suite = *state;
    enum { COUNT = 3 * LIMIT_RING_ENTRIES };
    int fd = suite_create_file(suite, "many");
    struct try *tries = calloc(COUNT, sizeof *tries);
    unsigned char(*data)[512] = calloc(COUNT, sizeof *data);
    struct iovec *iov = calloc(COUNT, sizeof *iov);
    for (unsigned i = 0; i < COUNT; i++) { /* more than the queue has room for, in one tick */
        memset(data[i], (int)i % 251, 512);
        iov[i] = (struct iovec){data[i], 512};
        try_init(&tries[i]);
        io_writev(suite->io, &tries[i].op, fd, &iov[i], 1, (uint64_t)i * 512, 0);
    }
    for (unsigned i = 0; i < COUNT; i++)
        assert_false(tries[i].done);
    for (unsigned i = 0; i < COUNT; i++) {
        while (!tries[i].done)
            suite_sleep(suite, 100 * NS_PER_US);
        assert_int_equal(tries[i].calls, 1);
        assert_in_range(tries[i].result, 1, 512);
        if (tries[i].result < 512)
            suite_write(suite, fd, data[i], 512, (uint64_t)i * 512);
    }
    unsigned char back[512];
    for (unsigned i = 0; i < COUNT; i++) {
        assert_int_equal(suite_read(suite, fd, back, 512, (uint64_t)i * 512), 512);
        assert_memory_equal(back, data[i], 512);
    }
    io_close(suite->io, fd);
    free(iov);
    free(data);
    free(tries);
}

static void syncs_succeed(void **state)
{
    struct suite *suite = *state;
    int fd = suite_create_file(suite, "synced");
    suite_write(suite, fd, "x", 1, 0);
    struct try try;
    try_init(&try);
    io_datasync(suite->io, &try.op, fd);
    assert_int_equal(try_wait(suite, &try), 0);
    io_close(suite->io, fd);
}

static void truncation_sets_the_size(void **state)
{
    struct suite *suite = *state;
    int fd = suite_create_file(suite, "truncated");
    char data[100];
    memset(data, 3, sizeof data);
    suite_write(suite, fd, data, sizeof data, 0);
    assert_int_equal(io_truncate(suite->io, fd, 50), 0);
    assert_int_equal(file_size(suite, fd), 50);
    assert_int_equal(io_truncate(suite->io, fd, 100), 0);
    assert_int_equal(suite_read(suite, fd, data, sizeof data, 0), 100);
    suite_assert_filled(data, 3, 50);
    suite_assert_filled(data + 50, 0, 50);
    io_close(suite->io, fd);
}

static int64_t allocate(struct suite *suite, int fd, enum io_allocate_mode mode, uint64_t start, uint64_t length)
{
    struct try try;
    try_init(&try);
    io_allocate(suite->io, &try.op, fd, mode, (struct range){start, length});
    return try_wait(suite, &try);
}

static struct io_extent extent_at(struct suite *suite, int fd, uint64_t offset, int64_t expect)
{
    struct io_extent extent = {0};
    struct try try;
    try_init(&try);
    io_extent(suite->io, &try.op, fd, offset, &extent);
    assert_int_equal(try_wait(suite, &try), expect);
    return extent;
}

static void allocation_keeps_size_and_neighbours(void **state)
{
    struct suite *suite = *state;
    int fd = suite_create_file(suite, "allocated");
    const size_t size = 256 * KIB;
    char *data = malloc(size);
    memset(data, 6, size);
    suite_write(suite, fd, data, size, 0);
    assert_int_equal(allocate(suite, fd, IO_PUNCH_HOLE, 64 * KIB, 64 * KIB), 0);
    assert_int_equal(allocate(suite, fd, IO_ZERO_RANGE, 128 * KIB + 100, 1000), 0);
    assert_int_equal(allocate(suite, fd, IO_PUNCH_HOLE, size - 10, 100), 0); /* beyond the end: the size stays */
    assert_int_equal(file_size(suite, fd), size);
    assert_int_equal(suite_read(suite, fd, data, size, 0), size);
    suite_assert_filled(data, 6, 64 * KIB);
    suite_assert_filled(data + 64 * KIB, 0, 64 * KIB);
    suite_assert_filled(data + 128 * KIB, 6, 100);
    suite_assert_filled(data + 128 * KIB + 100, 0, 1000);
    suite_assert_filled(data + 128 * KIB + 1100, 6, 128 * KIB - 1110);
    suite_assert_filled(data + size - 10, 0, 10);
    free(data);
    io_close(suite->io, fd);
}

static void extents_tell_holes_from_data(void **state)
{
    struct suite *suite = *state;
    int fd = suite_create_file(suite, "extents");
    const size_t unit = 64 * KIB;
    char *data = malloc(unit);
    memset(data, 8, unit);
    assert_int_equal(io_truncate(suite->io, fd, 4 * unit), 0);
    suite_write(suite, fd, data, unit, unit);
    struct io_extent extent = extent_at(suite, fd, 0, 0);
    assert_true(extent.hole && extent.end == unit);
    extent = extent_at(suite, fd, unit + 5000, 0);
    assert_true(!extent.hole && extent.end == 2 * unit);
    extent = extent_at(suite, fd, 2 * unit, 0);
    assert_true(extent.hole && extent.end == 4 * unit);
    extent = extent_at(suite, fd, 4 * unit - 1, 0);
    assert_true(extent.hole && extent.end == 4 * unit);
    extent_at(suite, fd, 4 * unit, -ENXIO);
    extent_at(suite, fd, 40 * unit, -ENXIO);
    assert_int_equal(allocate(suite, fd, IO_PUNCH_HOLE, unit, unit), 0);
    extent = extent_at(suite, fd, 0, 0);
    assert_true(extent.hole && extent.end == 4 * unit);
    suite_write(suite, fd, data, unit, 3 * unit);
    extent = extent_at(suite, fd, 3 * unit, 0);
    assert_true(!extent.hole && extent.end == 4 * unit);
    free(data);
    io_close(suite->io, fd);
}

static void locks_belong_to_descriptions(void **state)
{
    struct suite *suite = *state;
    struct io *io = suite->io;
    int a = suite_create_file(suite, "locked");
    int b = io_open(io, suite->fixture->path(io, "locked"), O_RDWR, 0);
    assert_true(b >= 0);
    assert_int_equal(io_lock(io, a, 100, 1, true), 0);
    assert_int_equal(io_lock(io, a, 100, 1, true), 0); /* again: ours already */
    assert_int_equal(io_lock(io, b, 100, 1, true), -EAGAIN);
    assert_int_equal(io_lock(io, b, 100, 1, false), -EAGAIN);
    assert_int_equal(io_lock_test(io, b, 100, 1, false), -EAGAIN);
    assert_int_equal(io_lock_test(io, b, 90, 20, true), -EAGAIN);
    assert_int_equal(io_lock_test(io, a, 100, 1, true), 0);
    assert_int_equal(io_lock(io, b, 101, 1, true), 0); /* a neighbour */
    assert_int_equal(io_lock(io, a, 200, 1, false), 0);
    assert_int_equal(io_lock(io, b, 200, 1, false), 0); /* shared by both */
    assert_int_equal(io_lock_test(io, b, 200, 1, true), -EAGAIN);
    assert_int_equal(io_lock_test(io, b, 200, 1, false), 0);
    io_close(io, a); /* lets go of its locks */
    assert_int_equal(io_lock_test(io, b, 100, 1, true), 0);
    assert_int_equal(io_lock_test(io, b, 200, 1, true), 0);
    assert_int_equal(io_lock(io, b, 100, 1, true), 0);
    io_close(io, b);
}

const struct CMUnitTest disk_tests[] = {
    cmocka_unit_test(files_keep_what_is_written),   cmocka_unit_test(open_says_why_not),
    cmocka_unit_test(reads_end_at_the_end),         cmocka_unit_test(vectors_are_gathered_and_scattered),
    cmocka_unit_test(many_operations_at_once),      cmocka_unit_test(syncs_succeed),
    cmocka_unit_test(truncation_sets_the_size),     cmocka_unit_test(allocation_keeps_size_and_neighbours),
    cmocka_unit_test(extents_tell_holes_from_data), cmocka_unit_test(locks_belong_to_descriptions),
};
SUITE_COUNT(disk_tests);
