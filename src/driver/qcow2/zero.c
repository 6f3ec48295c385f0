/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Write zeroes and discard, as far as the tables can say it: whole clusters, or whole subclusters of extended entries.
 * Edges are zeroes written as data (write.c), discards leave them out.
 *
 *   with a backing file      zero clusters: nothing may show through
 *   without                  clusters that nobody has, which read as zeroes as well
 *   version 2 with backing   has no zero clusters: zeroes are data, discards do nothing
 *
 * A page of a table is done in one step, between two looks at what others are mapping.
 */
#include <assert.h>
#include <errno.h>

#include "base/probe.h"
#include "driver/qcow2/internal.h"

static bool has_zero_clusters(const struct qcow2 *image)
{
    return image->header.version > 2 || MUTANT(qcow2_zero_clusters_in_version_2);
}

static uint64_t unit_of(const struct qcow2_write *w)
{
    return w->req->kind == REQUEST_DISCARD ? w->image->cluster_bytes : w->image->granule_bytes;
}

/* Of the disk; or what is zeroed lies behind that, before the disk grows (extend.c). */
static uint64_t disk_end(const struct qcow2_write *w)
{
    uint64_t size = w->image->node.size_bytes, end = range_end(w->req->range);
    return end > size ? end : size;
}

/* The end of the unit that `at` is in; the last one ends with the disk. */
static uint64_t unit_end(const struct qcow2_write *w, uint64_t at)
{
    uint64_t end = round_down(at, unit_of(w)) + unit_of(w), size = disk_end(w);
    return end < size ? end : size;
}

/* A unit that is not covered whole. */
static int edge_go_on(struct qcow2_write *w, uint64_t limit, bool *as_data)
{
    struct qcow2 *image = w->image;
    uint64_t end = unit_end(w, w->at);
    struct mapping mapping;
    end = end < limit ? end : limit;
    if (w->req->kind == REQUEST_DISCARD) {
        w->at = end;
        return 0;
    }
    int status = mapping_find(image, w->at, end - w->at, &w->waiter, &mapping);
    if (status < 0)
        return status;
    *as_data = mapping.kind != MAP_ZERO && (mapping.kind != MAP_NONE || image->header.has_backing);
    if (*as_data)
        w->data_end = w->at + mapping.length;
    else
        w->at += mapping.length;
    return 0;
}

/* What the cluster becomes when [from, to) of it is zero. false: the tables can't say that. */
static bool zero_cluster(const struct qcow2_write *w, struct cluster *cluster, uint64_t from, uint64_t to)
{
    const struct qcow2 *image = w->image;
    uint32_t all = image->subclusters == 1 ? 1 : UINT32_MAX, bits = all;
    bool whole = from == 0 && to == image->cluster_bytes;
    if (!whole && (cluster->compressed || (cluster->data && !cluster->copied)))
        return false;
    if (!whole) {
        unsigned first = (unsigned)(from / image->granule_bytes), end = (unsigned)(to / image->granule_bytes);
        bits = (end < 32 ? (UINT32_C(1) << end) - 1 : UINT32_MAX) & ~((UINT32_C(1) << first) - 1);
    }
    if (whole)
        *cluster = (struct cluster){.zero = image->header.has_backing ? all : 0};
    cluster->data &= ~bits;
    if (!whole)
        cluster->zero |= bits;
    if (!cluster->data) {
        cluster->host = 0;
        cluster->copied = false;
    }
    return true;
}

static bool cluster_equal(const struct cluster *a, const struct cluster *b)
{
    return a->host == b->host && a->data == b->data && a->zero == b->zero && a->compressed == b->compressed;
}

/* The units from w->at on that lie in this page of the table. */
static int zero_page(struct qcow2_write *w, struct page *page, unsigned index, uint64_t limit, bool *as_data)
{
    struct qcow2 *image = w->image;
    for (; index < l2_page_entries(image) && w->at < limit; index++) {
        struct cluster old, new;
        uint64_t start = round_down(w->at, image->cluster_bytes), end = start + image->cluster_bytes;
        uint64_t to = end < limit || limit == disk_end(w) ? end : round_down(limit, unit_of(w));
        if (to <= w->at)
            break; /* an edge */
        int status = cluster_decode(image, page, index, &old);
        if (status < 0)
            return status;
        new = old;
        if (!zero_cluster(w, &new, w->at - start, to - start)) {
            *as_data = true;
            w->data_end = to < limit ? to : limit;
            return 0;
        }
        if (!cluster_equal(&old, &new)) {
            if (!page_change(page))
                return -ENOMEM;
            cluster_encode(image, page, index, &new);
        }
        if (old.host && !new.host)
            freed_add(image, old.host, old.compressed ? old.compressed_bytes : image->cluster_bytes, false);
        w->at = to < limit ? to : limit;
    }
    return 0;
}

int zero_go_on(struct qcow2_write *w, uint64_t limit, bool *as_data)
{
    struct qcow2 *image = w->image;
    struct page *page;
    unsigned index;
    uint64_t table_end;
    bool discard = w->req->kind == REQUEST_DISCARD;
    *as_data = !discard &&
               ((w->req->flags & REQUEST_NO_HOLE) || (!has_zero_clusters(image) && image->header.has_backing));
    w->data_end = limit;
    if (*as_data)
        return 0;
    if (discard && !has_zero_clusters(image) && image->header.has_backing) {
        w->at = limit;
        return 0;
    }
    if (w->at % unit_of(w) != 0 || limit < unit_end(w, w->at))
        return edge_go_on(w, limit, as_data);
    int status = l2_find_for_write(image, w->at >> image->cluster_bits, &w->waiter, &page, &index, &table_end);
    if (status == -ENOENT && !image->header.has_backing) {
        uint64_t end = table_end << image->cluster_bits;
        w->at = end < limit ? end : limit;
        return 0;
    }
    if (status == -ENOENT)
        return l2_create(image, w->at >> image->cluster_bits, &w->waiter);
    if (status == 0)
        status = freed_reserve(image, l2_page_entries(image), &w->waiter);
    if (status < 0)
        return status;
    return zero_page(w, page, index, limit, as_data);
}
