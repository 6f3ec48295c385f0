/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a cache file looks like: docs/formats/cache-file.md, in C. Numbers are little-endian. A file is one header block,
 * then segments, each a header block and its slots. A header block is valid when its sum, taken with the field of the
 * sum itself as zero, is right.
 */
#ifndef FLEECE_FLEECE_CACHE_FORMAT_H
#define FLEECE_FLEECE_CACHE_FORMAT_H

#include <endian.h>
#include <stddef.h>
#include <string.h>

#include "base/crc32c.h"
#include "base/limits.h"

#define CACHE_HEADER_BYTES (4 * KIB)
#define CACHE_FILE_MAGIC "FLEECECF"
#define CACHE_SEGMENT_MAGIC "FLEECESG"

enum { CACHE_MAGIC_BYTES = 8, CACHE_VERSION = 1, CACHE_UUID_BYTES = 16 };

struct cache_file_header {
    char magic[CACHE_MAGIC_BYTES];
    uint32_t version;
    uint32_t crc;
    uint32_t header_bytes; /* CACHE_HEADER_BYTES */
    uint32_t block_bytes;
    uint32_t slots_per_segment;
    uint32_t segments_max;
    uint64_t disk_bytes; /* size of the disk whose blocks these are */
    uint64_t created_ns; /* since 1970, UTC */
    uint8_t uuid[CACHE_UUID_BYTES];
    char vm[LIMIT_NAME_BYTES]; /* padded with zero bytes */
    char disk[LIMIT_NAME_BYTES];
    uint8_t zero[3904];
};
_Static_assert(sizeof(struct cache_file_header) == CACHE_HEADER_BYTES, "one block");

struct cache_segment_header {
    char magic[CACHE_MAGIC_BYTES];
    uint32_t version;
    uint32_t crc;
    uint64_t sequence; /* counts the headers written to the file, from 1 */
    uint32_t segment;  /* its number: 0 is right behind the header of the file */
    uint32_t block_bytes;
    uint32_t slots_per_segment;
    uint8_t zero[28];
    uint64_t keys[LIMIT_SEGMENT_SLOTS]; /* block << 28 | epoch; 0: the slot holds nothing */
    uint32_t crcs[LIMIT_SEGMENT_SLOTS]; /* of the slot's block, where it has a key */
    uint8_t zero_too[960];
};
_Static_assert(sizeof(struct cache_segment_header) == CACHE_HEADER_BYTES, "one block");
_Static_assert(offsetof(struct cache_file_header, crc) == offsetof(struct cache_segment_header, crc), "at one place");

/* The sum that belongs into the header block's field `crc`. */
static inline uint32_t cache_header_crc(const void *header)
{
    static const uint32_t zero;
    const size_t at = offsetof(struct cache_segment_header, crc), after = at + sizeof zero;
    uint32_t sum = crc32c(0, header, at);
    sum = crc32c(sum, &zero, sizeof zero);
    return crc32c(sum, (const char *)header + after, CACHE_HEADER_BYTES - after);
}

#endif
