// SPDX-License-Identifier: GPL-2.0-or-later
/* Stamped sectors; see sector.h. */
#include "sector.h"

#include <stddef.h>
#include <string.h>

#include "base/crc32c.h"

static const char sector_magic[8] = {'F', 'L', 'S', 'T', 'A', 'M', 'P', '1'};

_Static_assert(sizeof(struct sector) == SECTOR_BYTES, "a sector has 512 bytes");

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
    sector->crc = crc32c(0, sector, offsetof(struct sector, crc));
}

enum sector_verdict sector_judge(const struct sector *sector, const struct sector *expected)
{
    if (memcmp(sector->magic, sector_magic, sizeof(sector_magic)) != 0 || sector->run != expected->run)
        return SECTOR_FOREIGN;
    if (sector->crc != crc32c(0, sector, offsetof(struct sector, crc)))
        return SECTOR_DAMAGED;
    if (sector->offset_bytes != expected->offset_bytes || sector->disk != expected->disk ||
        sector->writer != expected->writer)
        return SECTOR_MISPLACED;
    return SECTOR_GOOD;
}
