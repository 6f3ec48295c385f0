/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Two ways to the same sum: the crc32 instruction of x86-64 (SSE 4.2), eight bytes at a time; and, everywhere else,
 * a constant table for half a byte, slower than the usual 8 KiB of tables, and enough for a fallback.
 */
#include "base/crc32c.h"

#include <string.h>

/* Entry n: what the low four bits n of a sum turn into when they are shifted out. */
static const uint32_t NIBBLES[16] = {
    0x00000000, 0x105ec76f, 0x20bd8ede, 0x30e349b1, 0x417b1dbc, 0x5125dad3, 0x61c69362, 0x7198540d,
    0x82f63b78, 0x92a8fc17, 0xa24bb5a6, 0xb21572c9, 0xc38d26c4, 0xd3d3e1ab, 0xe330a81a, 0xf36e6f75,
};

uint32_t crc32c_by_table(uint32_t so_far, const void *bytes, size_t length)
{
    const uint8_t *at = bytes;
    uint32_t sum = ~so_far;
    for (; length > 0; at++, length--) {
        sum ^= *at;
        sum = sum >> 4 ^ NIBBLES[sum & 15];
        sum = sum >> 4 ^ NIBBLES[sum & 15];
    }
    return ~sum;
}

#if defined(__x86_64__)

__attribute__((target("sse4.2"))) static uint32_t by_instruction(uint32_t so_far, const uint8_t *at, size_t length)
{
    uint64_t sum = ~so_far;
    for (; length >= sizeof(uint64_t); at += sizeof(uint64_t), length -= sizeof(uint64_t)) {
        uint64_t word;
        memcpy(&word, at, sizeof word);
        sum = __builtin_ia32_crc32di(sum, word);
    }
    uint32_t rest = (uint32_t)sum;
    for (; length > 0; at++, length--)
        rest = __builtin_ia32_crc32qi(rest, *at);
    return ~rest;
}

uint32_t crc32c(uint32_t so_far, const void *bytes, size_t length)
{
    if (__builtin_cpu_supports("sse4.2"))
        return by_instruction(so_far, bytes, length);
    return crc32c_by_table(so_far, bytes, length);
}

#else

uint32_t crc32c(uint32_t so_far, const void *bytes, size_t length)
{
    return crc32c_by_table(so_far, bytes, length);
}

#endif
