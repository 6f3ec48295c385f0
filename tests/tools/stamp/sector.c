// SPDX-License-Identifier: GPL-2.0-or-later
/* Stamped sectors; see sector.h. The CRC is CRC-32C (RFC 3720), one table, bytewise: 1 us a sector is fast enough. */
#include "sector.h"

#include <stddef.h>
#include <string.h>

static const char sector_magic[8] = {'F', 'L', 'S', 'T', 'A', 'M', 'P', '1'};

_Static_assert(sizeof(struct sector) == SECTOR_BYTES, "a sector has 512 bytes");

/* Four bits at a time: the table is small enough to be a constant. */
static uint32_t crc32c(const void *bytes, size_t length)
{
    static const uint32_t table[16] = {0x00000000, 0x105ec76f, 0x20bd8ede, 0x30e349b1, 0x417b1dbc, 0x5125dad3,
                                       0x61c69362, 0x7198540d, 0x82f63b78, 0x92a8fc17, 0xa24bb5a6, 0xb21572c9,
                                       0xc38d26c4, 0xd3d3e1ab, 0xe330a81a, 0xf36e6f75};
    uint32_t crc = UINT32_MAX;
    for (const uint8_t *byte = bytes; length > 0; length--, byte++) {
        crc = table[(crc ^ *byte) & 15] ^ (crc >> 4);
        crc = table[(crc ^ (uint32_t)(*byte >> 4)) & 15] ^ (crc >> 4);
    }
    return ~crc;
}

/* splitmix64 (Steele, Lea, Flood 2014). */
static uint64_t next_random(uint64_t *state)
{
    uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

void sector_seal(struct sector *sector)
{
    memcpy(sector->magic, sector_magic, sizeof(sector_magic));
    uint64_t state = sector->run ^ sector->offset_bytes << 20 ^ sector->sequence << 4 ^ sector->disk;
    for (size_t at = 0; at < sizeof(sector->fill); at += 8) {
        uint64_t value = next_random(&state);
        size_t left = sizeof(sector->fill) - at;
        memcpy(sector->fill + at, &value, left < 8 ? left : 8);
    }
    sector->crc = crc32c(sector, offsetof(struct sector, crc));
}

enum sector_verdict sector_judge(const struct sector *sector, const struct sector *expected)
{
    if (memcmp(sector->magic, sector_magic, sizeof(sector_magic)) != 0 || sector->run != expected->run)
        return SECTOR_FOREIGN;
    if (sector->crc != crc32c(sector, offsetof(struct sector, crc)))
        return SECTOR_DAMAGED;
    if (sector->offset_bytes != expected->offset_bytes || sector->disk != expected->disk ||
        sector->writer != expected->writer)
        return SECTOR_MISPLACED;
    return SECTOR_GOOD;
}
