/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a sidecar looks like: docs/formats/sidecar.md, in C. Numbers are little-endian. Everything in it is a block of eight
 * sectors, each with a sum, a sequence number and 496 bytes of payload of its own: so a torn write is a mixture of valid
 * sectors with different sequence numbers, and can be told from damage.
 */
#ifndef FLEECE_TRACK_SIDECAR_FORMAT_H
#define FLEECE_TRACK_SIDECAR_FORMAT_H

#include <endian.h>
#include <stdint.h>

#include "base/limits.h"

#define SIDECAR_MAGIC "FLEECESC"
/* Behind the name of a disk's image: its sidecar. */
#define SIDECAR_SUFFIX ".fleece"

enum {
    SIDECAR_VERSION = 1,
    SIDECAR_MAGIC_BYTES = 8,
    SIDECAR_UUID_BYTES = 16,
    SIDECAR_BLOCK_BYTES = 4096,
    SIDECAR_SECTORS = 8, /* of a block */
    SIDECAR_SECTOR_BYTES = 512,
    SIDECAR_SECTOR_PAYLOAD = 496,
    SIDECAR_PAYLOAD = SIDECAR_SECTORS * SIDECAR_SECTOR_PAYLOAD, /* of a block */

    SIDECAR_EXTENT_BITS = 1024,
    SIDECAR_EXTENT_BYTES = SIDECAR_EXTENT_BITS / 8,
    SIDECAR_PAGE_EXTENTS = SIDECAR_PAYLOAD / SIDECAR_EXTENT_BYTES, /* 31, exactly */
    SIDECAR_PAGE_BITS = SIDECAR_PAGE_EXTENTS * SIDECAR_EXTENT_BITS,

    SIDECAR_SUPERS = 2,
    SIDECAR_SUPER_BLOCKS = 4, /* of each */
    SIDECAR_LOGS = 8,
    SIDECAR_LOG_SLOTS = 960,
    SIDECAR_AREAS = LIMIT_CHECKPOINTS,

    /* Numbers of blocks. */
    SIDECAR_SUPER_AT = 1,
    SIDECAR_LOG_AT = SIDECAR_SUPER_AT + SIDECAR_SUPERS * SIDECAR_SUPER_BLOCKS,
    SIDECAR_AREAS_AT = SIDECAR_LOG_AT + SIDECAR_LOGS,

    SIDECAR_REASON_BYTES = 512,
    SIDECAR_UUID_TEXT_BYTES = 40,
};
_Static_assert(SIDECAR_PAGE_EXTENTS *SIDECAR_EXTENT_BYTES == SIDECAR_PAYLOAD, "a page is full of extents");

/* Sequence numbers: the upper bits count the writable opens, the lower ones the blocks written in each. */
#define SIDECAR_OPEN_SHIFT 40
/* What a block counts, for itself: superblocks, log blocks, writes of one page. 24 bits. */
#define SIDECAR_NUMBER_MASK UINT32_C(0xffffff)

enum sidecar_kind { SIDECAR_HEADER = 1, SIDECAR_SUPER, SIDECAR_LOG, SIDECAR_PAGE };

struct sidecar_sector {
    uint32_t
        crc; /* CRC32C of the sidecar's UUID (header: zeroes), the sector's number in the file (8 bytes) and the rest */
    uint32_t tag;      /* kind << 24 | number */
    uint64_t sequence; /* never 0; a sector of zeroes was never written */
    uint8_t payload[SIDECAR_SECTOR_PAYLOAD];
};
_Static_assert(sizeof(struct sidecar_sector) == SIDECAR_SECTOR_BYTES, "one sector");

struct sidecar_block {
    struct sidecar_sector sectors[SIDECAR_SECTORS];
};

struct sidecar_header { /* the payload of block 0; zeroes follow */
    char magic[SIDECAR_MAGIC_BYTES];
    uint32_t version;
    uint32_t granularity_bytes;
    uint8_t uuid[SIDECAR_UUID_BYTES];
    uint64_t area_blocks;
    uint64_t created_ns; /* since 1970, UTC */
};

struct sidecar_identity {
    uint64_t size_bytes, device, inode, mtime_ns, ctime_ns;
};

struct sidecar_checkpoint {
    char name[LIMIT_NAME_BYTES]; /* padded with zero bytes, like all text */
    char uuid[SIDECAR_UUID_TEXT_BYTES];
    uint64_t created_ns;
    uint64_t first_sequence; /* of its span's pages: what is older is no page of it */
    uint64_t bit_count;      /* set in its span, where `clean` */
    uint32_t state;          /* 1 pending, 2 committed, 3 invalid */
    uint32_t area;           /* of its span; not for invalid ones */
    uint64_t zero;
};
_Static_assert(sizeof(struct sidecar_checkpoint) == 144, "as documented");

struct sidecar_sample {
    uint64_t start;  /* in the disk, a multiple of 4096 */
    uint32_t length; /* at most 4096 */
    uint32_t crc;    /* CRC32C of what is there */
};

struct sidecar_super { /* the payload of the four blocks of a superblock, one behind the other */
    uint64_t disk_bytes;
    uint8_t nonce[SIDECAR_UUID_BYTES];   /* of the open that wrote it */
    uint8_t boot_id[SIDECAR_UUID_BYTES]; /* of its machine */
    uint32_t clean;                      /* 1: closed in good order */
    uint32_t checkpoint_count;
    uint32_t sample_count;
    uint32_t zero;
    struct sidecar_identity identity;  /* of the disk, where `clean` */
    char reason[SIDECAR_REASON_BYTES]; /* why there are invalid checkpoints */
    char disk_name[LIMIT_NAME_BYTES];  /* of the open that wrote it; empty: not known */
    uint64_t next_bytes;               /* that the disk may have by now, for it was about to grow; 0: it was not */
    uint8_t zero_too[344];
    struct sidecar_checkpoint checkpoints[LIMIT_CHECKPOINTS]; /* oldest first */
    struct sidecar_sample samples[LIMIT_TRACK_SAMPLES];
    uint8_t zero_end[4608];
};
_Static_assert(sizeof(struct sidecar_super) == SIDECAR_SUPER_BLOCKS * SIDECAR_PAYLOAD, "four blocks");

struct sidecar_log { /* the payload of a log block */
    uint32_t extent_count;
    uint8_t zero[124];
    uint32_t extents[SIDECAR_LOG_SLOTS]; /* all that are active */
};
_Static_assert(sizeof(struct sidecar_log) == SIDECAR_PAYLOAD, "one block");

#endif
