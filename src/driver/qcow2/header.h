/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The header of a qcow2 image: bytes to numbers that have been checked, and back. No I/O. */
#ifndef FLEECE_DRIVER_QCOW2_HEADER_H
#define FLEECE_DRIVER_QCOW2_HEADER_H

#include <endian.h>
#include <string.h>

#include "base/error.h"
#include "driver/qcow2/qcow2.h"

#define QCOW2_MAGIC UINT32_C(0x514649fb)
/* Cluster sizes, as QEMU takes them: 512 bytes to 2 MiB; subclusters need 16 KiB. */
enum { QCOW2_CLUSTER_BITS_MIN = 9, QCOW2_CLUSTER_BITS_MAX = 21, QCOW2_EXTENDED_BITS_MIN = 14 };
enum { QCOW2_SUBCLUSTERS = 32 };

/* Where the header has what is changed in place, all in its first sector. */
enum {
    QCOW2_SIZE_AT = 24,
    QCOW2_L1_ENTRIES_AT = 36,
    QCOW2_L1_OFFSET_AT = 40,
    QCOW2_REFTABLE_OFFSET_AT = 48,
    QCOW2_REFTABLE_CLUSTERS_AT = 56,
    QCOW2_AUTOCLEAR_AT = 88, /* in version 3 */
};

/* Of entries of the L1, L2 and refcount tables: where they point to; bits of L1 and L2 entries; of standard L2 entries. */
#define QCOW2_PLACE_MASK UINT64_C(0x00fffffffffffe00)
#define QCOW2_COPIED (UINT64_C(1) << 63)
#define QCOW2_COMPRESSED (UINT64_C(1) << 62)
#define QCOW2_ALL_ZERO UINT64_C(1)

enum qcow2_incompatible {
    QCOW2_DIRTY = 1,
    QCOW2_CORRUPT = 2,
    QCOW2_DATA_FILE = 4,
    QCOW2_COMPRESSION_TYPE = 8,
    QCOW2_EXTENDED_L2 = 16,
};

struct qcow2_header {
    uint32_t version, cluster_bits, refcount_order, snapshots;
    uint64_t size_bytes;
    uint64_t l1_offset, l1_entries;              /* as many as the size needs, whatever else the image has */
    uint64_t reftable_offset, reftable_clusters; /* the table of refcount blocks */
    uint64_t autoclear;
    bool extended_l2, zstd, has_backing;
    struct qcow2_info info;
};

/*
 * Checks everything that the header says, as far as it can be without other parts of the image: unknown features, bounds,
 * overlaps. `bytes`: the first `length` of a file of file_bytes. 0 or -errno with the sentence, which does not name the
 * file.
 */
int qcow2_header_parse(const uint8_t *bytes, size_t length, uint64_t file_bytes, struct qcow2_header *header,
                       struct error *err);
/* The first page of a new image of version 3, at most `length` bytes. 0, or -EINVAL when the names have no room. */
int qcow2_header_build(const struct qcow2_header *header, uint8_t *bytes, size_t length, struct error *err);

/* How many entries of the L1 table the size needs. */
uint64_t qcow2_l1_entries(uint64_t size_bytes, uint32_t cluster_bits, bool extended_l2);

static inline uint64_t load_be64(const void *bytes)
{
    uint64_t value;
    memcpy(&value, bytes, sizeof value);
    return be64toh(value);
}

static inline uint32_t load_be32(const void *bytes)
{
    uint32_t value;
    memcpy(&value, bytes, sizeof value);
    return be32toh(value);
}

static inline void store_be64(void *bytes, uint64_t value)
{
    value = htobe64(value);
    memcpy(bytes, &value, sizeof value);
}

static inline void store_be32(void *bytes, uint32_t value)
{
    value = htobe32(value);
    memcpy(bytes, &value, sizeof value);
}

#endif
