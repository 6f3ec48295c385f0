/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * From the guest's clusters to the file's, through the L1 and the L2 tables. An entry is believed when its reserved bits
 * are zero and it points at whole clusters inside the file that belong to neither the header nor the tables that the
 * header names; any other one is damage, and whoever needs it gets -EIO.
 */
#include <assert.h>
#include <errno.h>

#include "base/probe.h"
#include "driver/qcow2/internal.h"

static uint64_t l1_place(const struct qcow2 *image, uint64_t cluster)
{
    return image->header.l1_offset + (cluster >> image->l2_bits) * 8;
}

int l2_find(struct qcow2 *image, uint64_t cluster, struct qcow2_waiter *waiter, struct page **page, unsigned *index,
            uint64_t *table_end)
{
    struct page *l1;
    uint64_t at = l1_place(image, cluster);
    int status = page_get(image, PAGE_L1, at, waiter, &l1);
    if (status < 0)
        return status;
    uint64_t entry = load_be64(l1->bytes + at % image->page_bytes), table = entry & QCOW2_PLACE_MASK;
    *table_end = ((cluster >> image->l2_bits) + 1) << image->l2_bits;
    if (entry == 0)
        return -ENOENT;
    if (entry & ~(QCOW2_PLACE_MASK | QCOW2_COPIED) || !qcow2_place_is_right(image, table, image->cluster_bytes))
        return -EIO;
    if (!(entry & QCOW2_COPIED) && !image->node.read_only)
        return -EIO; /* only snapshots share tables, and an image with these is not written */
    uint64_t place = (cluster & ((UINT64_C(1) << image->l2_bits) - 1)) * image->entry_bytes;
    *index = (unsigned)(place % image->page_bytes / image->entry_bytes);
    return page_get(image, PAGE_L2, table + place, waiter, page);
}

int l2_find_for_write(struct qcow2 *image, uint64_t cluster, struct qcow2_waiter *waiter, struct page **page,
                      unsigned *index, uint64_t *table_end)
{
    struct page *l1;
    int status = l2_find(image, cluster, waiter, page, index, table_end);
    if (status < 0 || image->write_back || MUTANT(qcow2_l1_not_awaited))
        return status;
    status = page_get(image, PAGE_L1, l1_place(image, cluster), waiter, &l1);
    return status < 0 ? status : page_through(l1, waiter);
}

/* A table, and its first page in memory, dirty: so a commit writes that before the L1 entry, and the file reaches there. */
static int table_begin(struct qcow2 *image, struct qcow2_waiter *waiter, uint64_t *table)
{
    struct page *l2;
    uint64_t count;
    *table = image->begun_table;
    int status = *table ? 0 : clusters_take(image, 1, waiter, table, &count);
    if (status < 0)
        return status;
    status = page_new(image, PAGE_L2, *table, waiter, &l2);
    image->begun_table = status == -EAGAIN ? *table : 0;
    return status < 0 || page_change(l2) ? status : -ENOMEM;
}

int l2_create(struct qcow2 *image, uint64_t cluster, struct qcow2_waiter *waiter)
{
    struct page *l1;
    uint64_t at = l1_place(image, cluster), table, count;
    if (image->l1_move && !MUTANT(qcow2_l1_changes_while_it_moves)) {
        l1_wait(image, waiter);
        return -EAGAIN;
    }
    int status = page_get(image, PAGE_L1, at, waiter, &l1);
    if (status < 0)
        return status;
    if (image->write_back && !page_change(l1)) /* dirty: it stays until we are done */
        return -ENOMEM;
    status = image->write_back ? table_begin(image, waiter, &table) : clusters_take(image, 1, waiter, &table, &count);
    if (status < 0)
        return status;
    if (!page_change(l1))
        return -ENOMEM;
    assert(load_be64(l1->bytes + at % image->page_bytes) == 0);
    store_be64(l1->bytes + at % image->page_bytes, table | QCOW2_COPIED);
    return image->write_back ? 0 : page_through(l1, waiter);
}

static int decode_compressed(const struct qcow2 *image, uint64_t entry, struct cluster *cluster)
{
    unsigned place_bits = 62 - (image->cluster_bits - 8);
    uint64_t sectors = (entry & (QCOW2_COMPRESSED - 1)) >> place_bits;
    cluster->compressed = true;
    cluster->host = entry & ((UINT64_C(1) << place_bits) - 1);
    cluster->compressed_bytes = (uint32_t)((sectors + 1) * IMAGE_SECTOR_BYTES - cluster->host % IMAGE_SECTOR_BYTES);
    if (entry & QCOW2_COPIED || cluster->host < image->cluster_bytes || cluster->host >= qcow2_end(image))
        return -EIO;
    uint64_t left = qcow2_end(image) - cluster->host; /* what lies behind the last sector is not needed */
    if (cluster->compressed_bytes > left)
        cluster->compressed_bytes = (uint32_t)left;
    struct range whole = range_align_out((struct range){cluster->host, cluster->compressed_bytes},
                                         image->cluster_bytes);
    return qcow2_place_is_right(image, whole.start, whole.length) ? 0 : -EIO;
}

int cluster_decode(const struct qcow2 *image, const struct page *page, unsigned index, struct cluster *cluster)
{
    const char *at = page->bytes + index * image->entry_bytes;
    uint64_t entry = load_be64(at), bitmap = 0, all = image->subclusters == 1 ? QCOW2_ALL_ZERO : 0;
    *cluster = (struct cluster){0};
    if (image->subclusters > 1)
        bitmap = load_be64(at + 8);
    if (entry & QCOW2_COMPRESSED)
        return decode_compressed(image, entry, cluster);
    if (entry & ~(QCOW2_PLACE_MASK | QCOW2_COPIED | (image->header.version > 2 ? all : 0)))
        return -EIO;
    cluster->host = entry & QCOW2_PLACE_MASK;
    cluster->copied = entry & QCOW2_COPIED;
    if (image->subclusters > 1) {
        cluster->data = (uint32_t)bitmap;
        cluster->zero = (uint32_t)(bitmap >> 32);
    } else {
        cluster->zero = entry & QCOW2_ALL_ZERO;
        cluster->data = cluster->host && !cluster->zero;
    }
    if ((cluster->data && !cluster->host) || (cluster->data & cluster->zero) || (cluster->copied && !cluster->host))
        return -EIO;
    return !cluster->host || qcow2_place_is_right(image, cluster->host, image->cluster_bytes) ? 0 : -EIO;
}

void cluster_encode(const struct qcow2 *image, struct page *page, unsigned index, const struct cluster *cluster)
{
    char *at = page->bytes + index * image->entry_bytes;
    assert(page->dirty && !(cluster->data & cluster->zero));
    uint64_t entry = cluster->host ? cluster->host | QCOW2_COPIED : 0;
    if (cluster->compressed) {
        uint64_t sectors = (cluster->host + cluster->compressed_bytes - 1) / IMAGE_SECTOR_BYTES -
                           cluster->host / IMAGE_SECTOR_BYTES;
        entry = cluster->host | QCOW2_COMPRESSED | sectors << (62 - (image->cluster_bits - 8));
    } else if (image->subclusters == 1 && cluster->zero) {
        entry |= QCOW2_ALL_ZERO;
    }
    store_be64(at, entry);
    if (image->subclusters > 1)
        store_be64(at + 8, cluster->compressed ? 0 : (uint64_t)cluster->zero << 32 | cluster->data);
}

static enum mapping_kind kind_of(const struct cluster *cluster, unsigned subcluster)
{
    if (cluster->compressed)
        return MAP_COMPRESSED;
    if (cluster->data >> subcluster & 1)
        return MAP_DATA;
    return cluster->zero >> subcluster & 1 ? MAP_ZERO : MAP_NONE;
}

int mapping_find(struct qcow2 *image, uint64_t at, uint64_t length, struct qcow2_waiter *waiter,
                 struct mapping *mapping)
{
    struct page *page;
    unsigned index;
    uint64_t number = at >> image->cluster_bits, table_end, end = at + length;
    int status = l2_find(image, number, waiter, &page, &index, &table_end);
    *mapping = (struct mapping){.kind = MAP_NONE};
    if (status == -ENOENT) {
        uint64_t left = (table_end << image->cluster_bits) - at;
        mapping->length = left < length ? left : length;
        return 0;
    }
    if (status < 0)
        return status;
    for (uint64_t to = at; to < end && index < l2_page_entries(image); index++) {
        struct cluster cluster;
        status = cluster_decode(image, page, index, &cluster);
        if (status < 0)
            return mapping->length ? 0 : status; /* the part before the damage */
        do {
            uint64_t inside = to % image->cluster_bytes;
            unsigned subcluster = (unsigned)(inside / image->granule_bytes);
            enum mapping_kind kind = kind_of(&cluster, subcluster);
            uint64_t unit = kind == MAP_COMPRESSED ? image->cluster_bytes : image->granule_bytes;
            uint64_t host = kind == MAP_COMPRESSED ? cluster.host : cluster.host + inside;
            if (mapping->length == 0)
                *mapping = (struct mapping){kind, host, 0, cluster.compressed_bytes};
            else if (kind != mapping->kind || kind == MAP_COMPRESSED ||
                     (kind == MAP_DATA && host != mapping->host + mapping->length))
                return 0;
            uint64_t next = round_down(to, unit) + unit;
            next = next < end ? next : end;
            mapping->length += next - to;
            to = next;
        } while (to < end && to % image->cluster_bytes != 0);
    }
    return 0;
}
