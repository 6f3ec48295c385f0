/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the files of the conformance suite share. */
#ifndef FLEECE_TESTS_SUITE_H
#define FLEECE_TESTS_SUITE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "conformance.h"

struct suite {
    const struct conformance_fixture *fixture;
    struct io *io; /* of the test that runs */
};

/* An operation with its result. */
struct
try {
    struct io_op op;
    bool done;
    int64_t result;
    unsigned calls;
};

void try_init(struct try *try);
/* Runs the loop until the operation is done; asserts that it completed exactly once and not inside the call that
 * started it. */
int64_t try_wait(struct suite *suite, struct try *try);
void suite_run_until(struct suite *suite, bool (*reached)(void *context), void *context);
/* Lets time pass. */
void suite_sleep(struct suite *suite, uint64_t duration_ns);

/* Whole transfers, short ones continued. read: bytes got, fewer at the end of the file. */
void suite_write(struct suite *suite, int fd, const void *data, size_t length, uint64_t offset);
size_t suite_read(struct suite *suite, int fd, void *data, size_t length, uint64_t offset);
void suite_assert_filled(const void *data, unsigned char with, size_t length);
int suite_create_file(struct suite *suite, const char *name);

#define SUITE_TESTS(group)                  \
    extern const struct CMUnitTest group[]; \
    extern const size_t group##_count
SUITE_TESTS(loop_tests);
SUITE_TESTS(disk_tests);
SUITE_TESTS(shm_tests);
SUITE_TESTS(socket_tests);
SUITE_TESTS(packet_tests);
#define SUITE_COUNT(group) const size_t group##_count = sizeof group / sizeof group[0]

#endif
