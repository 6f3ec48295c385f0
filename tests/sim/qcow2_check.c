/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Counts the references to each cluster and compares them with the counts of the image. More references than counted, or a
 * place where no cluster can be, is an error; fewer are a leak. It believes the header.
 */
#include "qcow2_check.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PLACE UINT64_C(0x00fffffffffffe00)
enum { OLD_BYTES = 72, NEW_BYTES = 112 }; /* of headers */

struct check {
    const uint8_t *bytes;
    uint64_t file_bytes, clusters;
    unsigned bits, refcount_order;
    bool extended, has_zero_flag;
    uint32_t *references;
    struct qcow2_verdict *verdict;
};

static void __attribute__((format(printf, 2, 3))) complain(struct check *check, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    if (check->verdict->error[0] == '\0')
        vsnprintf(check->verdict->error, sizeof check->verdict->error, format, args);
    va_end(args);
}

/* Behind the end of the file there are zeroes. */
static uint64_t number_at(const struct check *check, uint64_t at, unsigned width)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < width; i++)
        value = value << 8 | (at + i < check->file_bytes ? check->bytes[at + i] : 0);
    return value;
}

static bool refer(struct check *check, const char *what, uint64_t at, uint64_t length, bool shared)
{
    uint64_t first = at >> check->bits, last = (at + length - 1) >> check->bits;
    if (at == 0 || last >= check->clusters || (!shared && at & ((UINT64_C(1) << check->bits) - 1))) {
        complain(check, "%s at %llu: no cluster is there", what, (unsigned long long)at);
        return false;
    }
    for (uint64_t cluster = first; cluster <= last; cluster++)
        if (check->references[cluster]++ > 0 && !shared)
            complain(check, "%s at %llu: the cluster has another user", what, (unsigned long long)at);
    return true;
}

static void check_entry(struct check *check, uint64_t at)
{
    uint64_t entry = number_at(check, at, 8), bitmap = check->extended ? number_at(check, at + 8, 8) : 0;
    uint64_t host = entry & PLACE;
    if (entry >> 62 & 1) {
        unsigned place_bits = 62 - (check->bits - 8);
        uint64_t place = entry & ((UINT64_C(1) << place_bits) - 1);
        uint64_t sectors = (entry & ((UINT64_C(1) << 62) - 1)) >> place_bits;
        refer(check, "compressed data", place, (sectors + 1) * 512 - place % 512, true);
        return;
    }
    if (entry & ~(PLACE | UINT64_C(1) << 63 | check->has_zero_flag))
        complain(check, "the entry at %llu has reserved bits", (unsigned long long)at);
    if ((bitmap & bitmap >> 32) || ((uint32_t)bitmap && host == 0))
        complain(check, "the entry at %llu has wrong subclusters", (unsigned long long)at);
    if (host && !(entry >> 63))
        complain(check, "the entry at %llu calls its cluster shared", (unsigned long long)at);
    if (host)
        refer(check, "data", host, 1, false);
}

static uint64_t count_of(const struct check *check, uint64_t table, uint64_t cluster)
{
    uint64_t bits = UINT64_C(1) << check->refcount_order, per_block = (UINT64_C(8) << check->bits) / bits;
    uint64_t block = number_at(check, table + cluster / per_block * 8, 8), index = cluster % per_block;
    if (block == 0)
        return 0;
    if (bits >= 8)
        return number_at(check, block + index * bits / 8, (unsigned)bits / 8);
    return number_at(check, block + index * bits / 8, 1) >> (index * bits % 8) & ((1u << bits) - 1);
}

void qcow2_check(const uint8_t *bytes, uint64_t file_bytes, struct qcow2_verdict *verdict)
{
    struct check check = {.bytes = bytes, .file_bytes = file_bytes, .verdict = verdict};
    *verdict = (struct qcow2_verdict){0};
    if (number_at(&check, 0, 4) != 0x514649fb) {
        complain(&check, "it is no image");
        return;
    }
    check.bits = (unsigned)number_at(&check, 20, 4);
    const bool is_old = number_at(&check, 4, 4) == 2; /* it has no features, and counts of 16 bits */
    check.refcount_order = is_old ? 4 : (unsigned)number_at(&check, 96, 4);
    check.extended = !is_old && number_at(&check, 72, 8) & 16;
    check.has_zero_flag = !is_old && !check.extended;
    uint64_t cluster_bytes = UINT64_C(1) << check.bits, l1 = number_at(&check, 40, 8),
             l1_entries = number_at(&check, 36, 4);
    uint64_t table = number_at(&check, 48, 8), table_clusters = number_at(&check, 56, 4);
    check.clusters = (file_bytes + cluster_bytes - 1) / cluster_bytes;
    check.references = calloc(check.clusters + 1, sizeof *check.references);
    check.references[0] = 1;
    uint64_t mapped = (cluster_bytes / (check.extended ? 16 : 8)) << check.bits, size = number_at(&check, 24, 8);
    if (l1_entries * mapped < size)
        complain(&check, "the L1 table ends before the disk");
    refer(&check, "the refcount table", table, table_clusters * cluster_bytes, false);
    refer(&check, "the L1 table", l1, l1_entries * 8, false);
    for (uint64_t at = table; at < table + table_clusters * cluster_bytes; at += 8)
        if (number_at(&check, at, 8))
            refer(&check, "a refcount block", number_at(&check, at, 8), 1, false);
    for (uint64_t i = 0; i < l1_entries; i++) {
        uint64_t l2 = number_at(&check, l1 + i * 8, 8) & PLACE;
        if (l2 && refer(&check, "an L2 table", l2, 1, false))
            for (uint64_t at = l2; at < l2 + cluster_bytes; at += check.extended ? 16 : 8)
                check_entry(&check, at);
    }
    for (uint64_t cluster = 0; cluster < check.clusters; cluster++) {
        uint64_t count = count_of(&check, table, cluster);
        if (count < check.references[cluster])
            complain(&check, "cluster %llu is counted %llu times, and has %u users", (unsigned long long)cluster,
                     (unsigned long long)count, check.references[cluster]);
        verdict->leaks += count > check.references[cluster];
    }
    free(check.references);
}

void qcow2_make_old(uint8_t *bytes, size_t length)
{
    bytes[7] = 2;
    memmove(bytes + OLD_BYTES, bytes + NEW_BYTES, length - NEW_BYTES);
    memset(bytes + length - (NEW_BYTES - OLD_BYTES), 0, NEW_BYTES - OLD_BYTES);
    const unsigned name_at = (unsigned)bytes[14] << 8 | bytes[15];
    if (name_at) {
        bytes[14] = (uint8_t)((name_at - (NEW_BYTES - OLD_BYTES)) >> 8);
        bytes[15] = (uint8_t)(name_at - (NEW_BYTES - OLD_BYTES));
    }
}
