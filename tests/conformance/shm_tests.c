/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Shared memory: growth, use by disk reads, punching. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/limits.h"
#include "suite.h"

static void shm_grows_reads_and_forgets(void **state)
{
    struct suite *suite = *state;
    struct io_shm shm;
    struct error err;
    assert_int_equal(io_shm_create(suite->io, &shm, NULL, 64 * MIB, &err), 0);
    assert_non_null(shm.base);
    assert_int_equal(shm.reserved_bytes, 64 * MIB);
    assert_int_equal(io_shm_grow(suite->io, &shm, (struct range){MIB, MIB}), 0);
    suite_assert_filled(shm.base + MIB, 0, MIB);
    memset(shm.base + MIB, 0x5a, MIB);
    assert_int_equal(io_shm_grow(suite->io, &shm, (struct range){MIB, 2 * MIB}), 0); /* what is there stays */
    io_shm_populate(suite->io, &shm, (struct range){MIB, 2 * MIB});                  /* here as well */
    suite_assert_filled(shm.base + MIB, 0x5a, MIB);

    int fd = suite_create_file(suite, "source");
    char data[8192];
    memset(data, 0x77, sizeof data);
    suite_write(suite, fd, data, sizeof data, 0);
    assert_int_equal(suite_read(suite, fd, shm.base + 2 * MIB + 4096, sizeof data, 0), sizeof data);
    suite_assert_filled(shm.base + 2 * MIB + 4096, 0x77, sizeof data);
    io_close(suite->io, fd);

    io_shm_punch(suite->io, &shm, (struct range){MIB, MIB});
    assert_int_equal(io_shm_grow(suite->io, &shm, (struct range){MIB, MIB}), 0);
    suite_assert_filled(shm.base + MIB, 0, MIB);
    suite_assert_filled(shm.base + 2 * MIB + 4096, 0x77, sizeof data);
    io_shm_destroy(suite->io, &shm);
}

static void shm_pieces_are_separate(void **state)
{
    struct suite *suite = *state;
    struct io_shm a, b;
    assert_int_equal(io_shm_create(suite->io, &a, NULL, MIB, NULL), 0);
    assert_int_equal(io_shm_create(suite->io, &b, NULL, MIB, NULL), 0);
    assert_int_equal(io_shm_grow(suite->io, &a, (struct range){0, MIB}), 0);
    assert_int_equal(io_shm_grow(suite->io, &b, (struct range){0, MIB}), 0);
    memset(a.base, 1, MIB);
    memset(b.base, 2, MIB);
    suite_assert_filled(a.base, 1, MIB);
    io_shm_destroy(suite->io, &a);
    suite_assert_filled(b.base, 2, MIB);
    io_shm_destroy(suite->io, &b);
}

/* The lock and the content go with the description, the name stays until it is removed. */
static void shm_with_a_name_is_adopted(void **state)
{
    struct suite *suite = *state;
    struct io_shm a, b;
    struct error err;
    char folder[64];
    snprintf(folder, sizeof folder, "/dev/shm/fleece-test-%d/vm", (int)getpid());
    const struct io_shm_name name = {folder, "vda"};
    assert_int_equal(io_shm_adopt(suite->io, &b, &name, &err), -ENOENT);
    assert_int_equal(io_shm_create(suite->io, &a, &name, MIB, &err), 0);
    assert_int_equal(io_shm_grow(suite->io, &a, (struct range){4096, 8192}), 0);
    memset(a.base + 4096, 7, 8192);
    assert_int_equal(io_shm_adopt(suite->io, &b, &name, &err), -EAGAIN);
    io_shm_destroy(suite->io, &a);
    assert_int_equal(io_shm_adopt(suite->io, &b, &name, &err), 0);
    assert_int_equal(b.reserved_bytes, MIB);
    suite_assert_filled(b.base + 4096, 7, 8192);
    io_shm_remove(suite->io, &name);
    suite_assert_filled(b.base + 4096, 7, 8192);
    assert_int_equal(io_shm_adopt(suite->io, &a, &name, &err), -ENOENT);
    io_shm_destroy(suite->io, &b);
    assert_int_equal(io_shm_create(suite->io, &a, &name, MIB, &err), 0);
    io_shm_remove(suite->io, &name);
    io_shm_destroy(suite->io, &a);
}

const struct CMUnitTest shm_tests[] = {
    cmocka_unit_test(shm_with_a_name_is_adopted),
    cmocka_unit_test(shm_grows_reads_and_forgets),
    cmocka_unit_test(shm_pieces_are_separate),
};
SUITE_COUNT(shm_tests);
