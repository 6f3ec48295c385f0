/* SPDX-License-Identifier: GPL-2.0-or-later */
/* CRC32C: the vectors of RFC 3720 (appendix B.4), the usual check value, and both ways against one another. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include "base/crc32c.h"

static void check(const void *bytes, size_t length, uint32_t sum)
{
    assert_int_equal(crc32c(0, bytes, length), sum);
    assert_int_equal(crc32c_by_table(0, bytes, length), sum);
}

static void test_known(void **state)
{
    (void)state;
    uint8_t bytes[48];
    memset(bytes, 0, 32);
    check(bytes, 32, 0x8a9136aa);
    memset(bytes, 0xff, 32);
    check(bytes, 32, 0x62a8ab43);
    for (unsigned i = 0; i < 32; i++)
        bytes[i] = (uint8_t)i;
    check(bytes, 32, 0x46dd794e);
    for (unsigned i = 0; i < 32; i++)
        bytes[i] = (uint8_t)(31 - i);
    check(bytes, 32, 0x113fdb5c);
    static const uint8_t iscsi_read[48] = {
        0x01, 0xc0, 0, 0,    0, 0, 0, 0,    0,    0, 0, 0, 0, 0, 0, 0, 0x14, 0, 0, 0, 0, 0, 0x04, 0,
        0,    0,    0, 0x14, 0, 0, 0, 0x18, 0x28, 0, 0, 0, 0, 0, 0, 0, 0x02, 0, 0, 0, 0, 0, 0,    0,
    };
    check(iscsi_read, sizeof iscsi_read, 0xd9963a56);
    check("123456789", 9, 0xe3069283);
    check("", 0, 0);
}

static void test_both_ways_and_in_pieces(void **state)
{
    (void)state;
    static uint8_t bytes[4096];
    uint64_t random = 1;
    for (size_t i = 0; i < sizeof bytes; i++) {
        random = random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        bytes[i] = (uint8_t)(random >> 56);
    }
    for (size_t start = 0; start < 17; start++)
        for (size_t length = 0; start + length <= sizeof bytes; length += 1 + length / 3) {
            uint32_t whole = crc32c(0, bytes + start, length);
            assert_int_equal(whole, crc32c_by_table(0, bytes + start, length));
            assert_int_equal(
                whole, crc32c(crc32c(0, bytes + start, length / 3), bytes + start + length / 3, length - length / 3));
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_known), cmocka_unit_test(test_both_ways_and_in_pieces)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
