/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The header, as QEMU's docs/interop/qcow2.txt describes it. Nothing that a stranger's file says is believed: every offset
 * is aligned and lies in the file, every count is within its limit before anybody multiplies by it, and the two tables
 * that the header points at overlap neither it nor one another.
 *
 * Features that we do not know: incompatible ones are refused by the name that the image's own table gives them,
 * compatible ones are ignored, autoclear ones are cleared before the first write (open.c).
 */
#include "driver/qcow2/header.h"

#include <errno.h>
#include <stdio.h>

#include "base/range.h"

enum { HEADER_V2_BYTES = 72, HEADER_V3_BYTES = 104, HEADER_OURS_BYTES = 112, COMPRESSION_AT = 104 };
enum { FEATURE_ENTRY_BYTES = 48, FEATURE_NAME_BYTES = 46 };

#define EXTENSION_END UINT32_C(0)
#define EXTENSION_BACKING_FORMAT UINT32_C(0xe2792aca)
#define EXTENSION_FEATURE_NAMES UINT32_C(0x6803f857)

struct parsing {
    const uint8_t *bytes;
    size_t length;
    uint64_t file_bytes, cluster_bytes, incompatible;
    uint32_t header_bytes;
    const uint8_t *feature_names;
    size_t feature_names_length;
    struct qcow2_header *header;
    struct error *err;
};

uint64_t qcow2_l1_entries(uint64_t size_bytes, uint32_t cluster_bits, bool extended_l2)
{
    uint32_t covered_bits = cluster_bits + cluster_bits - (extended_l2 ? 4 : 3);
    return (size_bytes + (UINT64_C(1) << covered_bits) - 1) >> covered_bits;
}

static int parse_fixed(struct parsing *p)
{
    struct qcow2_header *header = p->header;
    const uint8_t *bytes = p->bytes;
    if (p->length < HEADER_V2_BYTES || load_be32(bytes) != QCOW2_MAGIC)
        return error_set(p->err, EINVAL, "it is no qcow2 image: it does not begin with \"QFI\\xfb\"");
    header->version = load_be32(bytes + 4);
    if (header->version != 2 && header->version != 3)
        return error_set(p->err, ENOTSUP, "its format is qcow2 version %u; versions 2 and 3 can be read",
                         header->version);
    header->cluster_bits = load_be32(bytes + 20);
    if (header->cluster_bits < QCOW2_CLUSTER_BITS_MIN || header->cluster_bits > QCOW2_CLUSTER_BITS_MAX)
        return error_set(p->err, EINVAL, "its clusters have 2^%u bytes; 2^%d to 2^%d are right", header->cluster_bits,
                         QCOW2_CLUSTER_BITS_MIN, QCOW2_CLUSTER_BITS_MAX);
    p->cluster_bytes = UINT64_C(1) << header->cluster_bits;
    header->size_bytes = load_be64(bytes + QCOW2_SIZE_AT);
    if (header->size_bytes == 0 || header->size_bytes > LIMIT_DISK_BYTES)
        return error_set(p->err, EFBIG, "its disk has %llu bytes; 1 to %llu are right",
                         (unsigned long long)header->size_bytes, (unsigned long long)LIMIT_DISK_BYTES);
    if (load_be32(bytes + 32) != 0)
        return error_set(p->err, ENOTSUP, "it is encrypted (method %u), which is not supported", load_be32(bytes + 32));
    header->l1_entries = load_be32(bytes + QCOW2_L1_ENTRIES_AT);
    header->l1_offset = load_be64(bytes + QCOW2_L1_OFFSET_AT);
    header->reftable_offset = load_be64(bytes + QCOW2_REFTABLE_OFFSET_AT);
    header->reftable_clusters = load_be32(bytes + QCOW2_REFTABLE_CLUSTERS_AT);
    header->snapshots = load_be32(bytes + 60);
    header->refcount_order = 4;
    p->header_bytes = HEADER_V2_BYTES;
    return 0;
}

static int parse_version_3(struct parsing *p)
{
    struct qcow2_header *header = p->header;
    if (header->version == 2)
        return 0;
    if (p->length < HEADER_V3_BYTES)
        return error_set(p->err, EINVAL, "its header is cut off after %zu bytes", p->length);
    p->incompatible = load_be64(p->bytes + 72);
    header->autoclear = load_be64(p->bytes + QCOW2_AUTOCLEAR_AT);
    header->refcount_order = load_be32(p->bytes + 96);
    p->header_bytes = load_be32(p->bytes + 100);
    if (header->refcount_order > 6)
        return error_set(p->err, EINVAL, "its refcounts have 2^%u bits; 2^0 to 2^6 are right", header->refcount_order);
    if (p->header_bytes < HEADER_V3_BYTES || p->header_bytes % 8 != 0 || p->header_bytes > p->length ||
        p->header_bytes > p->cluster_bytes)
        return error_set(p->err, EINVAL, "its header says that it has %u bytes; a multiple of 8 from %d on is right",
                         p->header_bytes, HEADER_V3_BYTES);
    return 0;
}

/* Extensions lie between the header and the end of the first cluster. */
static int parse_extensions(struct parsing *p)
{
    uint64_t limit = p->length < p->cluster_bytes ? p->length : p->cluster_bytes;
    uint64_t backing_at = load_be64(p->bytes + 8);
    if (backing_at != 0 && backing_at < limit)
        limit = backing_at;
    for (uint64_t at = p->header_bytes; at + 8 <= limit;) {
        uint32_t type = load_be32(p->bytes + at), length = load_be32(p->bytes + at + 4);
        const uint8_t *data = p->bytes + at + 8;
        if (type == EXTENSION_END)
            return 0;
        if (length > limit - at - 8)
            return error_set(p->err, EINVAL, "its header extension 0x%08x has %u bytes, more than there is room for",
                             type, length);
        if (type == EXTENSION_FEATURE_NAMES) {
            p->feature_names = data;
            p->feature_names_length = length;
        } else if (type == EXTENSION_BACKING_FORMAT) {
            if (length >= sizeof p->header->info.backing_format)
                return error_set(p->err, EINVAL, "the format of its backing file is a name of %u bytes", length);
            memcpy(p->header->info.backing_format, data, length);
            p->header->info.backing_format[length] = '\0';
        }
        at += 8 + round_up(length, 8);
    }
    return 0;
}

static void feature_name(const struct parsing *p, unsigned bit, char *name, size_t size)
{
    for (size_t at = 0; at + FEATURE_ENTRY_BYTES <= p->feature_names_length; at += FEATURE_ENTRY_BYTES) {
        const uint8_t *entry = p->feature_names + at;
        if (entry[0] != 0 || entry[1] != bit)
            continue;
        size_t length = strnlen((const char *)entry + 2, FEATURE_NAME_BYTES);
        snprintf(name, size, "%.*s", (int)length, (const char *)entry + 2);
        for (char *c = name; *c; c++)
            *c = *c < ' ' || *c > '~' ? '?' : *c;
        return;
    }
    snprintf(name, size, "bit %u", bit);
}

static int check_features(struct parsing *p)
{
    struct qcow2_header *header = p->header;
    uint64_t known = QCOW2_DIRTY | QCOW2_CORRUPT | QCOW2_DATA_FILE | QCOW2_COMPRESSION_TYPE | QCOW2_EXTENDED_L2;
    if (p->incompatible & ~known) {
        char name[FEATURE_NAME_BYTES + 1];
        feature_name(p, (unsigned)__builtin_ctzll(p->incompatible & ~known), name, sizeof name);
        return error_set(p->err, ENOTSUP, "it uses a feature that is not supported: \"%s\"", name);
    }
    if (p->incompatible & QCOW2_CORRUPT)
        return error_set(p->err, EBADMSG, "it is marked as corrupt; `qemu-img check -r all` may repair it");
    if (p->incompatible & QCOW2_DIRTY)
        return error_set(p->err, EBADMSG,
                         "it is marked as dirty: its last writer did not close it; `qemu-img check -r all` repairs it");
    if (p->incompatible & QCOW2_DATA_FILE)
        return error_set(p->err, ENOTSUP, "it keeps its data in another file, which is not supported");
    header->extended_l2 = p->incompatible & QCOW2_EXTENDED_L2;
    if (header->extended_l2 && header->cluster_bits < QCOW2_EXTENDED_BITS_MIN)
        return error_set(p->err, EINVAL, "its clusters have 2^%u bytes; with extended L2 entries 2^%d is the least",
                         header->cluster_bits, QCOW2_EXTENDED_BITS_MIN);
    uint8_t compression = p->header_bytes > COMPRESSION_AT ? p->bytes[COMPRESSION_AT] : 0;
    header->zstd = p->incompatible & QCOW2_COMPRESSION_TYPE;
    if (compression != header->zstd)
        return error_set(p->err, ENOTSUP,
                         "its clusters are compressed by method %u%s; 0 (deflate) and 1 (zstd) can be read",
                         compression, header->zstd ? "" : ", which its features do not tell");
    return 0;
}

static int parse_backing(struct parsing *p)
{
    uint64_t at = load_be64(p->bytes + 8);
    uint32_t length = load_be32(p->bytes + 16);
    struct qcow2_info *info = &p->header->info;
    info->size_bytes = p->header->size_bytes;
    if (at == 0) {
        info->backing_format[0] = '\0';
        return 0;
    }
    if (length == 0 || length >= sizeof info->backing_name)
        return error_set(p->err, EINVAL, "the name of its backing file has %u bytes; 1 to %zu are right", length,
                         sizeof info->backing_name - 1);
    if (length > p->cluster_bytes || at < p->header_bytes || at > p->cluster_bytes - length || at > p->length ||
        length > p->length - at)
        return error_set(p->err, EINVAL, "the name of its backing file lies at byte %llu, outside its header",
                         (unsigned long long)at);
    memcpy(info->backing_name, p->bytes + at, length);
    info->backing_name[length] = '\0';
    if (strlen(info->backing_name) != length)
        return error_set(p->err, EINVAL, "the name of its backing file has a zero byte");
    p->header->has_backing = true;
    return 0;
}

/* A table of `length` bytes, where the header says. */
static int check_table(struct parsing *p, const char *name, uint64_t offset, uint64_t length, uint64_t length_max)
{
    uint64_t end = round_up(p->file_bytes, p->cluster_bytes);
    if (length == 0 || length > length_max)
        return error_set(p->err, EFBIG, "its %s has %llu bytes; 1 to %llu are right", name, (unsigned long long)length,
                         (unsigned long long)length_max);
    if (offset % p->cluster_bytes != 0 || offset < p->cluster_bytes)
        return error_set(p->err, EINVAL, "its %s begins at byte %llu, which is not a cluster behind the header", name,
                         (unsigned long long)offset);
    if (offset > end || length > end - offset)
        return error_set(p->err, EINVAL, "its %s (%llu bytes from byte %llu on) reaches beyond the end of the file",
                         name, (unsigned long long)length, (unsigned long long)offset);
    return 0;
}

static int check_tables(struct parsing *p)
{
    struct qcow2_header *header = p->header;
    uint64_t needed = qcow2_l1_entries(header->size_bytes, header->cluster_bits, header->extended_l2);
    if (header->l1_entries < needed)
        return error_set(p->err, EINVAL, "its L1 table has %llu entries, its size needs %llu",
                         (unsigned long long)header->l1_entries, (unsigned long long)needed);
    header->l1_entries = needed;
    int status = check_table(p, "L1 table", header->l1_offset, needed * 8, LIMIT_QCOW2_L1_BYTES);
    if (status == 0)
        status = check_table(p, "refcount table", header->reftable_offset, header->reftable_clusters * p->cluster_bytes,
                             LIMIT_QCOW2_REFTABLE_BYTES);
    if (status < 0)
        return status;
    struct range l1 = {header->l1_offset, needed * 8};
    struct range reftable = {header->reftable_offset, header->reftable_clusters * p->cluster_bytes};
    if (range_overlaps(l1, reftable))
        return error_set(p->err, EINVAL, "its L1 table and its refcount table overlap");
    return 0;
}

int qcow2_header_parse(const uint8_t *bytes, size_t length, uint64_t file_bytes, struct qcow2_header *header,
                       struct error *err)
{
    struct parsing parsing = {.bytes = bytes, .length = length, .file_bytes = file_bytes, .header = header, .err = err};
    memset(header, 0, sizeof *header);
    int status = parse_fixed(&parsing);
    if (status == 0)
        status = parse_version_3(&parsing);
    if (status == 0)
        status = parse_extensions(&parsing);
    if (status == 0)
        status = check_features(&parsing);
    if (status == 0)
        status = parse_backing(&parsing);
    return status < 0 ? status : check_tables(&parsing);
}

static size_t put_extension(uint8_t *bytes, size_t at, uint32_t type, const char *text)
{
    size_t length = strlen(text);
    store_be32(bytes + at, type);
    store_be32(bytes + at + 4, (uint32_t)length);
    memcpy(bytes + at + 8, text, length);
    return at + 8 + round_up(length, 8);
}

int qcow2_header_build(const struct qcow2_header *header, uint8_t *bytes, size_t length, struct error *err)
{
    const struct qcow2_info *info = &header->info;
    size_t name_length = header->has_backing ? strlen(info->backing_name) : 0, at = HEADER_OURS_BYTES;
    if (at + 8 + sizeof info->backing_format + 8 + name_length > length)
        return error_set(err, EINVAL, "the name of the backing file has %zu bytes, too many for a header of %zu",
                         name_length, length);
    memset(bytes, 0, length);
    store_be32(bytes, QCOW2_MAGIC);
    store_be32(bytes + 4, 3);
    store_be32(bytes + 20, header->cluster_bits);
    store_be64(bytes + QCOW2_SIZE_AT, header->size_bytes);
    store_be32(bytes + QCOW2_L1_ENTRIES_AT, (uint32_t)header->l1_entries);
    store_be64(bytes + QCOW2_L1_OFFSET_AT, header->l1_offset);
    store_be64(bytes + QCOW2_REFTABLE_OFFSET_AT, header->reftable_offset);
    store_be32(bytes + QCOW2_REFTABLE_CLUSTERS_AT, (uint32_t)header->reftable_clusters);
    store_be64(bytes + 72,
               (header->zstd ? QCOW2_COMPRESSION_TYPE : 0u) | (header->extended_l2 ? QCOW2_EXTENDED_L2 : 0u));
    store_be32(bytes + 96, header->refcount_order);
    store_be32(bytes + 100, HEADER_OURS_BYTES);
    bytes[COMPRESSION_AT] = header->zstd;
    if (header->has_backing) {
        at = put_extension(bytes, at, EXTENSION_BACKING_FORMAT, info->backing_format) +
             8; /* and the end of extensions */
        store_be64(bytes + 8, at);
        store_be32(bytes + 16, (uint32_t)name_length);
        memcpy(bytes + at, info->backing_name, name_length);
    }
    return 0;
}
