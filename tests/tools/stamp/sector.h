/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A stamped sector: 512 bytes that say where they belong, who wrote them and when in his sequence, under a CRC. A record
 * is one or eight of them, so that a torn record is seen. Byte order is the machine's: writer and judge are one program.
 */
#ifndef STAMP_SECTOR_H
#define STAMP_SECTOR_H

#include <stdint.h>

enum { SECTOR_BYTES = 512 };

struct sector {
    char magic[8];
    uint64_t run;          /* random; sectors of other runs count as what was there before */
    uint64_t offset_bytes; /* of this sector on its disk */
    uint64_t sequence;     /* of the record among those of its writer on its disk; from 1 */
    uint32_t disk, writer;
    uint8_t fill[468]; /* bytes that neither repeat nor compress, made from the above */
    uint32_t crc;      /* CRC-32C of all bytes before it */
};

enum sector_verdict {
    SECTOR_FOREIGN,   /* not of this run: what was there before the first record */
    SECTOR_GOOD,      /* sequence is what it says */
    SECTOR_DAMAGED,   /* of this run, but its CRC is wrong */
    SECTOR_MISPLACED, /* of this run and whole, but it belongs to another place or writer */
};

/* Fills in fill and crc; everything else has been set, but for the magic. */
void sector_seal(struct sector *sector);
/* `expected` says run, offset, disk and writer. */
enum sector_verdict sector_judge(const struct sector *sector, const struct sector *expected);

#endif
