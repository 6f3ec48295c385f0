/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Clusters and how often each is referred to.
 *
 * New clusters are taken at the end of the file (`cursor`), where all is free and zero, side by side; or they are some
 * that became free since the image was opened (pool.c). So a new one is known to be all zeroes, and nothing that a crash
 * left half done is ever used again: a mapping that was lost can't meet new data in its old place.
 *
 * A refcount block takes the first cluster that is free, and counts itself when it is the one that covers it. The table of
 * blocks that qcow2_create() makes is large enough for all that a disk of this size can need; others grow (reftable_grow.c).
 *
 * An allocation is decided afresh from its beginning after each wait, and changes counts only when all pages that it needs
 * are in memory: a page of an L2 table has 512 entries at most, and the counts of 512 clusters lie in two to nine pages.
 */
#include <assert.h>
#include <errno.h>

#include "base/probe.h"
#include "driver/qcow2/internal.h"

static uint64_t refcount_get(const struct qcow2 *image, const struct page *page, uint64_t cluster)
{
    uint64_t index = cluster % (image->page_bytes * 8 / image->refcount_bits);
    const uint8_t *bytes = (const uint8_t *)page->bytes;
    if (image->refcount_bits < 8) {
        unsigned per_byte = 8 / image->refcount_bits;
        return bytes[index / per_byte] >> (index % per_byte * image->refcount_bits) &
               ((1u << image->refcount_bits) - 1);
    }
    uint64_t value = 0;
    unsigned width = image->refcount_bits / 8;
    for (unsigned i = 0; i < width; i++)
        value = value << 8 | bytes[index * width + i];
    return value;
}

static void refcount_set(const struct qcow2 *image, struct page *page, uint64_t cluster, uint64_t value)
{
    uint64_t index = cluster % (image->page_bytes * 8 / image->refcount_bits);
    uint8_t *bytes = (uint8_t *)page->bytes;
    if (image->refcount_bits < 8) {
        unsigned per_byte = 8 / image->refcount_bits, shift = (unsigned)(index % per_byte) * image->refcount_bits;
        unsigned mask = (1u << image->refcount_bits) - 1;
        bytes[index / per_byte] = (uint8_t)((bytes[index / per_byte] & ~(mask << shift)) | ((unsigned)value & mask)
                                                                                               << shift);
        return;
    }
    unsigned width = image->refcount_bits / 8;
    for (unsigned i = 0; i < width; i++)
        bytes[index * width + i] = (uint8_t)(value >> (8 * (width - 1 - i)));
}

static uint64_t refcount_max(const struct qcow2 *image)
{
    return image->refcount_bits == 64 ? UINT64_MAX : (UINT64_C(1) << image->refcount_bits) - 1;
}

/* The page with the table's entry for this cluster. */
static int table_page(struct qcow2 *image, uint64_t cluster, struct qcow2_waiter *waiter, struct page **page)
{
    uint64_t at = cluster / image->refblock_entries * 8;
    if (at >= image->header.reftable_clusters << image->cluster_bits)
        return -ENOSPC;
    return page_get(image, PAGE_REFTABLE, image->header.reftable_offset + at, waiter, page);
}

static char *table_entry(const struct qcow2 *image, const struct page *page, uint64_t cluster)
{
    return page->bytes + cluster / image->refblock_entries * 8 % image->page_bytes;
}

/* Where the count of the cluster lies in its block. */
static uint64_t place_in_block(const struct qcow2 *image, uint64_t cluster)
{
    return cluster % image->refblock_entries * image->refcount_bits / 8;
}

/* The page with the cluster's count. -ENOENT: there is no such block yet. */
static int count_page(struct qcow2 *image, uint64_t cluster, struct qcow2_waiter *waiter, struct page **page)
{
    struct page *table;
    int status = table_page(image, cluster, waiter, &table);
    if (status < 0)
        return status;
    uint64_t block = load_be64(table_entry(image, table, cluster));
    if (block == 0)
        return -ENOENT;
    if (block & ~QCOW2_PLACE_MASK || !qcow2_place_is_right(image, block, image->cluster_bytes))
        return -EIO;
    return page_get(image, PAGE_REFBLOCK, block + place_in_block(image, cluster), waiter, page);
}

/* A block for this cluster, in the first free one, which is the cluster itself or lies before it. */
static int block_create(struct qcow2 *image, uint64_t cluster, struct qcow2_waiter *waiter)
{
    struct page *table, *counts, *block;
    uint64_t place = image->cursor, offset = place << image->cluster_bits;
    int status = table_page(image, cluster, waiter, &table);
    if (status < 0)
        return status;
    if (!page_change(table)) /* dirty: it stays until we are done */
        return -ENOMEM;
    if (place / image->refblock_entries == cluster / image->refblock_entries) {
        PROBE(qcow2_block_counts_itself);
        status = page_new(image, PAGE_REFBLOCK, offset + place_in_block(image, place), waiter, &counts);
    } else {
        PROBE(qcow2_block_counted_elsewhere);
        status = count_page(image, place, waiter, &counts);
    }
    if (status < 0)
        return status;
    if (!page_change(counts))
        return -ENOMEM;
    if (refcount_get(image, counts, place) != 0) { /* somebody's who crashed: the next one */
        image->cursor++;
        return 0;
    }
    if (place / image->refblock_entries != cluster / image->refblock_entries) { /* the file is to reach into it */
        status = page_new(image, PAGE_REFBLOCK, offset + place_in_block(image, cluster), waiter, &block);
        if (status < 0)
            return status;
        if (!page_change(block))
            return -ENOMEM;
    }
    image->cursor++;
    refcount_set(image, counts, place, 1);
    store_be64(table_entry(image, table, cluster), offset);
    return 0;
}

/* The next cluster whose count lies in another page. */
static uint64_t next_page_cluster(const struct qcow2 *image, uint64_t cluster)
{
    uint64_t per_page = image->page_bytes * 8 / image->refcount_bits;
    return (cluster / per_page + 1) * per_page;
}

/* Brings the counts of the clusters into memory, ready to be changed. -ESTALE: that took clusters itself. */
static int counts_ready(struct qcow2 *image, uint64_t first, uint64_t count, struct qcow2_waiter *waiter)
{
    for (uint64_t cluster = first; cluster < first + count; cluster = next_page_cluster(image, cluster)) {
        struct page *page;
        int status = count_page(image, cluster, waiter, &page);
        if (status == -ENOENT) {
            status = block_create(image, cluster, waiter);
            return status < 0 ? status : -ESTALE;
        }
        if (status < 0)
            return status;
        if (!page_change(page))
            return -ENOMEM;
    }
    return 0;
}

/* The page of a count that is ready. */
static struct page *ready_page(struct qcow2 *image, uint64_t cluster)
{
    struct page *page = NULL;
    int status = count_page(image, cluster, NULL, &page);
    assert(status == 0);
    return page;
}

/* The first of the clusters that is in use; their end: none. Their counts are ready. */
static uint64_t first_used(struct qcow2 *image, uint64_t first, uint64_t count)
{
    uint64_t cluster = first;
    while (cluster < first + count && refcount_get(image, ready_page(image, cluster), cluster) == 0)
        cluster++;
    return cluster;
}

/* What a crash counted and never wrote lies behind the end of the file. Whole files of it are no crash's doing. */
static int pass_used(struct qcow2 *image, uint64_t used)
{
    image->cursor = used + 1;
    return ++image->passed > LIMIT_QCOW2_PASSED ? -EIO : 0;
}

/* Brings the counts at the end of the file into memory, and the table that these need. */
static int counts_ready_at_end(struct qcow2 *image, uint64_t first, uint64_t count, struct qcow2_waiter *waiter)
{
    if (image->grow) {
        grow_wait(image, waiter);
        return -EAGAIN;
    }
    int status = counts_ready(image, first, count, waiter);
    return status == -ENOSPC ? table_grow(image, first + count - 1, waiter) : status;
}

int clusters_allocate(struct qcow2 *image, uint64_t count, struct qcow2_waiter *waiter, uint64_t *offset)
{
    for (;;) {
        uint64_t first = image->cursor;
        int status = counts_ready_at_end(image, first, count, waiter);
        if (status == -ESTALE)
            continue;
        if (status < 0)
            return status;
        uint64_t used = first_used(image, first, count);
        if (used < first + count) {
            if (pass_used(image, used) < 0)
                return -EIO;
            continue;
        }
        for (uint64_t cluster = first; cluster < first + count && !MUTANT(qcow2_not_counted); cluster++)
            refcount_set(image, ready_page(image, cluster), cluster, 1);
        image->cursor = first + count;
        *offset = first << image->cluster_bits;
        return 0;
    }
}

int clusters_count(struct qcow2 *image, struct cluster_run run, struct qcow2_waiter *waiter)
{
    if (image->grow) {
        grow_wait(image, waiter);
        return -EAGAIN;
    }
    int status = counts_ready(image, run.first, run.count, waiter);
    if (status < 0)
        return status == -ESTALE ? -EIO : status;
    if (first_used(image, run.first, run.count) < run.first + run.count)
        return -EIO;
    for (uint64_t cluster = run.first; cluster < run.first + run.count; cluster++)
        refcount_set(image, ready_page(image, cluster), cluster, 1);
    return 0;
}

/* Compressed data: runs of sectors that may share clusters. */

/* Counts what begins at `at`, one behind the other; or only looks whether the counts are wide enough for that. */
static bool count_packed(struct qcow2 *image, uint64_t at, const uint32_t *sizes, unsigned count, bool only_look)
{
    uint64_t room = UINT64_MAX;
    for (unsigned i = 0; i < count; i++) {
        uint64_t last = (at + sizes[i] - 1) >> image->cluster_bits;
        for (uint64_t cluster = at >> image->cluster_bits; sizes[i] > 0 && cluster <= last; cluster++) {
            struct page *page = ready_page(image, cluster);
            uint64_t value = refcount_get(image, page, cluster), left = refcount_max(image) - value;
            room = left < room ? left : room;
            if (!only_look)
                refcount_set(image, page, cluster, value + 1);
        }
        at += sizes[i];
    }
    return room > count; /* all of them might lie in one cluster */
}

int packed_allocate(struct qcow2 *image, const uint32_t *sizes, unsigned count, struct qcow2_waiter *waiter,
                    uint64_t *offset)
{
    uint64_t bytes = 0;
    for (unsigned i = 0; i < count; i++)
        bytes += sizes[i];
    assert(bytes > 0);
    for (;;) {
        uint64_t start = image->pack_at, fresh = image->cursor << image->cluster_bits;
        if (start == 0 || round_up(start, image->cluster_bytes) != fresh) /* others came in between */
            start = image->pack_at = fresh;
        uint64_t end = round_up(start + bytes, QCOW2_PACK_ALIGNMENT);
        uint64_t first = start >> image->cluster_bits;
        uint64_t last = (end - 1) >> image->cluster_bits;
        int status = counts_ready_at_end(image, first, last - first + 1, waiter);
        if (status == -ESTALE)
            continue;
        if (status < 0)
            return status;
        uint64_t used = first_used(image, image->cursor, last + 1 - image->cursor);
        if (last >= image->cursor && used <= last) {
            if (pass_used(image, used) < 0)
                return -EIO;
            continue;
        }
        if (!count_packed(image, start, sizes, count, true)) {
            assert(start != fresh); /* so many fit into a new one: see qcow2_compress_set() */
            image->pack_at = 0;
            continue;
        }
        count_packed(image, start, sizes, count, false);
        image->cursor = last + 1 > image->cursor ? last + 1 : image->cursor;
        image->pack_at = end;
        *offset = start;
        return 0;
    }
}

/* Clusters that are not needed any more. */

int freed_reserve(struct qcow2 *image, unsigned count, struct qcow2_waiter *waiter)
{
    if (image->freed_count + count <= image->freed_max)
        return 0;
    PROBE(qcow2_freed_full);
    qcow2_wait(&image->room_waiters, waiter);
    commit_begin(image);
    return -EAGAIN;
}

void freed_add(struct qcow2 *image, uint64_t offset, uint64_t bytes, bool zero)
{
    uint64_t first = offset >> image->cluster_bits, end = (offset + bytes - 1) >> image->cluster_bits;
    unsigned mine = image->commit.step == COMMIT_IDLE ? 0 : image->commit.freed; /* those before belong to the commit */
    if (image->freed_count > mine) {
        struct freed *last = &image->freed[image->freed_count - 1];
        if (last->zero == zero && last->run.first + last->run.count == first &&
            last->run.count < LIMIT_QCOW2_FREED_RUN) {
            last->run.count += end - first + 1;
            return;
        }
    }
    assert(image->freed_count < LIMIT_QCOW2_FREED);
    image->freed[image->freed_count++] = (struct freed){.run = {first, end - first + 1}, .zero = zero};
}

int clusters_release(struct qcow2 *image, struct freed *freed, struct qcow2_waiter *waiter)
{
    uint64_t cluster = freed->run.first + freed->released, end = freed->run.first + freed->run.count;
    struct page *page;
    int status = count_page(image, cluster, waiter, &page);
    if (status == -ENOENT)
        return -EIO;
    if (status < 0)
        return status;
    if (!page_change(page))
        return -ENOMEM;
    end = end < next_page_cluster(image, cluster) ? end : next_page_cluster(image, cluster);
    for (; cluster < end; cluster++) {
        uint64_t value = refcount_get(image, page, cluster);
        if (value > 0)
            refcount_set(image, page, cluster, value - 1);
        freed->used |= value != 1;
        freed->released++;
        if (value == 1 && image->pack_at > 0 && (image->pack_at - 1) >> image->cluster_bits == cluster)
            image->pack_at = 0; /* it is not ours any more */
    }
    return 0;
}
