/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Hashes prove what an image reads as, but not what it is made of: a wrong count harms nobody until somebody writes to the
 * image, or lets a tool repair it. So the tables are looked at, too, as the format's specification (qcow2.txt of QEMU) has
 * them:
 *
 *  - everything that header, L1, L2 and refcount table point at is counted, cluster by cluster, and then compared with the
 *    counts that the image keeps
 *  - bits that are reserved, and what is behind the end of a table's content, have to be zero
 *
 * Images inside of a set have no snapshots in them, so every cluster is referred to once, but for those that several
 * compressed clusters share. A backup that was interrupted and went on may have left clusters that are counted and that
 * nothing refers to.
 *
 * Rules alone don't find everything: two mappings may be exchanged, an L1 table may be longer than it has to be. So what is
 * read on the way is hashed as well, cluster by cluster, each once: header, L1 table, L2 tables, refcount table, refcount
 * blocks. What is left of the file then are the guest's data, which have hashes of their own, and bytes that the format
 * gives no meaning: clusters that are free or leaked, what a cluster holds behind the end of the disk or of a compressed
 * stream, and of subclusters that are not allocated.
 */
#include "set/qcow2_check.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <gnutls/crypto.h>

#include "base/range.h"
#include "driver/qcow2/header.h"

/* Fields of the header, by their places, and how long it is: with or without the way in which clusters are compressed. */
enum {
    HEADER_BYTES = 104,
    HEADER_ZSTD_BYTES = 112,

    AT_BACKING = 8,
    AT_BACKING_BYTES = 16,
    AT_L1_ENTRIES = 36,
    AT_SNAPSHOTS_PLACE = 64,
    AT_COMPATIBLE = 80,
    AT_HEADER_BYTES = 100
};

struct check {
    const struct qcow2_check_options *options;
    struct qcow2_header header;
    uint64_t file_bytes, cluster_bytes, cluster_count;
    uint16_t *found; /* of each cluster of the file: how often it is referred to */
    uint8_t *table;  /* one cluster */
    uint8_t *reftable;
    struct window *window;
    gnutls_hash_hd_t hash;
};

/* A piece of the file: where tables lie near each other, as in images of small clusters, they are read together. */
struct window {
    uint64_t start, length; /* what is in memory */
    uint64_t last;          /* the piece that was read from last */
    uint8_t bytes[QCOW2_CHECK_WINDOW_BYTES];
};

static void tell(const struct check *check, uint64_t offset, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static void tell(const struct check *check, uint64_t offset, const char *format, ...)
{
    char what[LIMIT_ERROR_BYTES / 2];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    check->options->damage(check->options->context, offset, what);
}

/* What is behind the end of the file is zero. */
static int read_file(const struct check *check, uint64_t offset, void *bytes, size_t length, struct error *err)
{
    char *to = bytes;
    while (length > 0) {
        ssize_t got = pread(check->options->fd, to, length, (off_t)offset);
        if (got < 0 && errno != EINTR)
            return error_set(err, errno, "reading it failed at byte %" PRIu64 ": %s", offset, error_name(errno));
        if (got == 0) {
            memset(to, 0, length);
            return 0;
        }
        if (got > 0) {
            to += got;
            offset += (uint64_t)got;
            length -= (size_t)got;
        }
    }
    return 0;
}

static int read_at(const struct check *check, uint64_t offset, void *bytes, size_t length, struct error *err)
{
    struct window *window = check->window;
    uint64_t start = round_down(offset, sizeof window->bytes), last = window->last;
    window->last = start;
    if (offset + length > start + sizeof window->bytes ||
        (start > last ? start - last : last - start) > sizeof window->bytes)
        return read_file(check, offset, bytes, length, err);
    if (window->length == 0 || window->start != start) {
        window->length = 0;
        int status = read_file(check, start, window->bytes, sizeof window->bytes, err);
        if (status < 0)
            return status;
        window->start = start;
        window->length = sizeof window->bytes;
    }
    memcpy(bytes, window->bytes + (offset - start), length);
    return 0;
}

/* The same of one cluster of the tables, which goes into the hash. */
static int read_table(const struct check *check, uint64_t offset, struct error *err)
{
    int status = read_at(check, offset, check->table, check->cluster_bytes, err);
    if (status == 0)
        gnutls_hash(check->hash, check->table, check->cluster_bytes);
    return status;
}

/* Whole clusters of a table that is read in pieces besides. */
static int hash_table(const struct check *check, uint64_t offset, uint64_t length, struct error *err)
{
    int status = 0;
    for (uint64_t at = 0; at < length && status == 0; at += check->cluster_bytes)
        status = read_table(check, offset + at, err);
    return status;
}

/* Whether others refer to the table as well. Each is looked at once, so that the length of the file bounds the time. */
static bool is_shared(const struct check *check, uint64_t from, uint64_t table)
{
    bool shared = check->found[table / check->cluster_bytes] > 1;
    if (shared)
        tell(check, from, "the table at byte %" PRIu64 " is referred to more than once", table);
    return shared;
}

/* Something at byte `from` of the file refers to these bytes of it. */
static bool refer(const struct check *check, uint64_t from, const char *what, struct range place)
{
    if (!range_within(place, check->cluster_count * check->cluster_bytes)) {
        tell(check, from, "%s points behind the end of the file, to byte %" PRIu64, what, place.start);
        return false;
    }
    for (uint64_t i = place.start / check->cluster_bytes; i * check->cluster_bytes < range_end(place); i++)
        if (check->found[i] < UINT16_MAX)
            check->found[i]++;
    return true;
}

/* --- the header */

static void mark(uint8_t *used, uint64_t length, uint64_t start, uint64_t bytes)
{
    for (uint64_t at = start; at < start + bytes && at < length; at++)
        used[at] = 1;
}

/* Header, extensions and the backing file's name; everything between them has to be zero. */
static void check_header(const struct check *check, const uint8_t *bytes, uint64_t length)
{
    uint8_t *used = calloc(length, 1);
    uint64_t at = load_be32(bytes + AT_HEADER_BYTES);
    if (!used)
        return;
    if (check->header.snapshots > 0 || load_be64(bytes + AT_SNAPSHOTS_PLACE) != 0)
        tell(check, AT_SNAPSHOTS_PLACE - 4, "it says that it has snapshots inside");
    if (load_be64(bytes + AT_COMPATIBLE) > 1 || check->header.autoclear)
        tell(check, AT_COMPATIBLE, "it says that it has features that no image of a set has");
    if (at != HEADER_BYTES && at != HEADER_ZSTD_BYTES)
        tell(check, AT_HEADER_BYTES, "the header has %" PRIu64 " bytes, neither %d nor %d", at, HEADER_BYTES,
             HEADER_ZSTD_BYTES);
    if (load_be64(bytes + AT_BACKING) == 0 && load_be32(bytes + AT_BACKING_BYTES) != 0)
        tell(check, AT_BACKING_BYTES, "the name of the backing file has a length, but no place");
    mark(used, length, 0, at);
    while (at + 8 <= length && load_be32(bytes + at) != 0) {
        uint64_t extension = 8 + round_up(load_be32(bytes + at + 4), 8);
        mark(used, length, at, extension);
        at += extension;
    }
    mark(used, length, load_be64(bytes + AT_BACKING), load_be32(bytes + AT_BACKING_BYTES));
    for (at = 0; at < length; at++)
        if (!used[at] && bytes[at]) {
            tell(check, at, "there is something between the parts of the header, where zeroes have to be");
            break;
        }
    free(used);
}

/* --- L1 and L2 */

static void check_compressed(const struct check *check, uint64_t from, uint64_t entry, uint64_t bitmap)
{
    unsigned place_bits = 62 - (check->header.cluster_bits - 8);
    uint64_t place = entry & ((UINT64_C(1) << place_bits) - 1),
             sectors = (entry & (QCOW2_COMPRESSED - 1)) >> place_bits;
    uint64_t end = round_down(place, 512) + (sectors + 1) * 512, file_end = check->cluster_count * check->cluster_bytes;
    if (entry & QCOW2_COPIED || bitmap)
        tell(check, from, "the mapping of a compressed cluster has bits that have to be zero");
    if (place < file_end && end > file_end)
        end = file_end; /* the last sector need not be there */
    refer(check, from, "the mapping of a compressed cluster", (struct range){place, end > place ? end - place : 1});
}

static void check_mapping(const struct check *check, uint64_t from, uint64_t entry, uint64_t bitmap)
{
    uint64_t place = entry & QCOW2_PLACE_MASK,
             reserved = ~(QCOW2_PLACE_MASK | QCOW2_COPIED | (check->header.extended_l2 ? 0 : QCOW2_ALL_ZERO));
    uint32_t data = (uint32_t)bitmap, zero = (uint32_t)(bitmap >> 32);
    if (entry & QCOW2_COMPRESSED) {
        check_compressed(check, from, entry, bitmap);
        return;
    }
    if (entry & reserved || (place == 0 && entry & QCOW2_COPIED) || place % check->cluster_bytes)
        tell(check, from, "a mapping has bits that have to be zero");
    else if (data & zero || (data && !place))
        tell(check, from, "the bits of a mapping's subclusters contradict each other");
    else if (place && !(entry & QCOW2_COPIED))
        tell(check, from, "a mapping says that its cluster is shared");
    if (place)
        refer(check, from, "a mapping", (struct range){place, check->cluster_bytes});
}

static int check_l2(const struct check *check, uint64_t table, uint64_t first_cluster, struct error *err)
{
    unsigned entry_bytes = check->header.extended_l2 ? 16 : 8;
    uint64_t size = check->header.size_bytes;
    int status = read_table(check, table, err);
    for (uint64_t at = 0; at < check->cluster_bytes && status == 0; at += entry_bytes) {
        uint64_t entry = load_be64(check->table + at), cluster = first_cluster + at / entry_bytes;
        uint64_t bitmap = check->header.extended_l2 ? load_be64(check->table + at + 8) : 0;
        if (entry == 0 && bitmap == 0)
            continue;
        if (cluster * check->cluster_bytes >= size)
            tell(check, table + at, "there is a mapping behind the end of the disk");
        check_mapping(check, table + at, entry, bitmap);
    }
    return status;
}

static int check_mappings(const struct check *check, uint64_t l1_entries, struct error *err)
{
    uint64_t l2_entries = check->cluster_bytes / (check->header.extended_l2 ? 16 : 8);
    uint8_t chunk[QCOW2_PAGE_BYTES];
    for (uint64_t i = 0; i < l1_entries; i++) {
        uint64_t at = check->header.l1_offset + i * 8;
        int status = i % (sizeof chunk / 8) ? 0 : read_at(check, at, chunk, sizeof chunk, err);
        if (status < 0)
            return status;
        uint64_t entry = load_be64(chunk + i % (sizeof chunk / 8) * 8), table = entry & QCOW2_PLACE_MASK;
        if (entry == 0)
            continue;
        if (i >= check->header.l1_entries)
            tell(check, at, "there is a table of mappings behind the end of the disk");
        if (entry & ~(QCOW2_PLACE_MASK | QCOW2_COPIED) || table % check->cluster_bytes || !(entry & QCOW2_COPIED)) {
            tell(check, at, "an entry of the L1 table has wrong bits");
            continue;
        }
        if (refer(check, at, "an entry of the L1 table", (struct range){table, check->cluster_bytes}) &&
            !is_shared(check, at, table))
            status = check_l2(check, table, i * l2_entries, err);
        if (status < 0)
            return status;
    }
    return 0;
}

/* --- counts */

static uint64_t load_count(const struct check *check, uint64_t index)
{
    unsigned bits = 1u << check->header.refcount_order;
    const uint8_t *at = check->table + index * bits / 8;
    uint64_t count = 0;
    if (bits < 8)
        return *at >> index * bits % 8 & ((1u << bits) - 1);
    for (unsigned i = 0; i < bits / 8; i++)
        count = count << 8 | at[i];
    return count;
}

/* Neighbours that are wrong in the same way are one place. */
struct count_run {
    uint64_t first, end, stored, right;
};

static void tell_counts(const struct check *check, struct count_run *run)
{
    if (run->end > run->first)
        tell(check, run->first * check->cluster_bytes,
             "the count of %" PRIu64 " cluster%s from byte %" PRIu64 " of the file on is %" PRIu64 ", not %" PRIu64,
             run->end - run->first, run->end - run->first == 1 ? "" : "s", run->first * check->cluster_bytes,
             run->stored, run->right);
    run->end = run->first = 0;
}

static void compare_count(const struct check *check, struct count_run *run, uint64_t cluster, uint64_t stored)
{
    uint64_t right = cluster < check->cluster_count ? check->found[cluster] : 0;
    if (stored == right || (right == 0 && check->options->allow_leaks))
        return;
    if (run->end != cluster || run->stored != stored || run->right != right) {
        tell_counts(check, run);
        *run = (struct count_run){cluster, cluster, stored, right};
    }
    run->end++;
}

static int read_reftable(struct check *check, uint64_t bytes, struct error *err)
{
    check->reftable = malloc(bytes + 1);
    if (!check->reftable)
        return error_set(err, ENOMEM, "no memory for a refcount table of %" PRIu64 " bytes", bytes);
    int status = read_file(check, check->header.reftable_offset, check->reftable, bytes, err);
    if (status == 0)
        gnutls_hash(check->hash, check->reftable, bytes);
    return status;
}

static int check_counts(struct check *check, struct error *err)
{
    uint64_t entries = check->header.reftable_clusters * check->cluster_bytes / 8;
    uint64_t per_block = (8 * check->cluster_bytes) >> check->header.refcount_order;
    struct count_run run = {0};
    int status = read_reftable(check, entries * 8, err);
    for (uint64_t i = 0; i < entries && status == 0; i++) { /* the blocks are clusters themselves */
        uint64_t at = check->header.reftable_offset + i * 8, block = load_be64(check->reftable + i * 8);
        if (block % check->cluster_bytes)
            tell(check, at, "an entry of the refcount table has wrong bits");
        else if (block)
            refer(check, at, "an entry of the refcount table", (struct range){block, check->cluster_bytes});
    }
    for (uint64_t i = 0; i < entries && status == 0; i++) {
        uint64_t block = load_be64(check->reftable + i * 8);
        bool usable = block && block % check->cluster_bytes == 0 && block < check->cluster_count * check->cluster_bytes;
        if (usable && is_shared(check, check->header.reftable_offset + i * 8, block))
            continue;
        if (usable)
            status = read_table(check, block, err);
        for (uint64_t j = 0; j < per_block && status == 0; j++)
            if (usable || i * per_block + j < check->cluster_count)
                compare_count(check, &run, i * per_block + j, usable ? load_count(check, j) : 0);
            else
                break;
    }
    for (uint64_t i = entries * per_block; i < check->cluster_count && status == 0; i++)
        compare_count(check, &run, i, 0);
    tell_counts(check, &run);
    return status;
}

/* --- the whole */

static int check_tables(struct check *check, const uint8_t *head, uint64_t length, struct error *err)
{
    uint64_t l1_entries = load_be32(head + AT_L1_ENTRIES), l1 = round_up(l1_entries * 8, check->cluster_bytes);
    check->cluster_count = (check->file_bytes + check->cluster_bytes - 1) / check->cluster_bytes;
    check->found = calloc(check->cluster_count, sizeof *check->found);
    check->table = malloc(check->cluster_bytes);
    check->window = calloc(1, sizeof *check->window);
    if (!check->found || !check->table || !check->window)
        return error_set(err, ENOMEM, "no memory for the counts of %" PRIu64 " clusters", check->cluster_count);
    check_header(check, head, length < check->cluster_bytes ? length : check->cluster_bytes);
    refer(check, 0, "the header", (struct range){0, check->cluster_bytes});
    bool counts = refer(
        check, 48, "the place of the refcount table",
        (struct range){check->header.reftable_offset, check->header.reftable_clusters * check->cluster_bytes});
    bool mappings = refer(check, 40, "the place of the L1 table", (struct range){check->header.l1_offset, l1});
    int status = hash_table(check, 0, check->cluster_bytes, err);
    if (!counts || !mappings) /* said; what is not there can't be looked at */
        return status;
    if (status == 0)
        status = hash_table(check, check->header.l1_offset, l1, err);
    if (status == 0)
        status = check_mappings(check, l1 / 8, err);
    return status == 0 ? check_counts(check, err) : status;
}

int qcow2_check(const struct qcow2_check_options *options, uint8_t *sha256, struct error *err)
{
    struct check check = {.options = options};
    struct stat stat;
    uint8_t *head = malloc(LIMIT_QCOW2_HEADER_BYTES);
    int status = head ? 0 : error_set(err, ENOMEM, "no memory for a header");
    if (status == 0 && fstat(options->fd, &stat) < 0)
        status = error_set(err, errno, "it can't be read: %s", error_name(errno));
    if (status == 0) {
        check.file_bytes = (uint64_t)stat.st_size;
        status = read_file(&check, 0, head, LIMIT_QCOW2_HEADER_BYTES, err);
    }
    uint64_t length = check.file_bytes < LIMIT_QCOW2_HEADER_BYTES ? check.file_bytes : LIMIT_QCOW2_HEADER_BYTES;
    if (status == 0)
        status = qcow2_header_parse(head, length, check.file_bytes, &check.header, err);
    if (status == 0 && gnutls_hash_init(&check.hash, GNUTLS_DIG_SHA256) != 0)
        status = error_set(err, ENOMEM, "no memory for its SHA-256");
    if (status == 0) {
        check.cluster_bytes = UINT64_C(1) << check.header.cluster_bits;
        status = check_tables(&check, head, length, err);
        gnutls_hash_deinit(check.hash, sha256);
    }
    free(check.found);
    free(check.table);
    free(check.reftable);
    free(check.window);
    free(head);
    return status;
}
