/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * An empty image:
 *
 *     header | refcount table | L1 table | refcount blocks of all these clusters
 *
 * The tables are zeroes, which an empty file has by itself, but for the first page of the refcount table. Both are as
 * large as a disk of this size can ever need: the L1 table for all its clusters, the refcount table for twice as many.
 *
 * The header is written last, when the rest is stable: an image that was not finished is no image.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "driver/qcow2/internal.h"

#define REFCOUNT_ORDER 4
enum { OVERLAY_BITS = 12, FULL_BITS = 16, EXTENDED_BITS = 17 }; /* clusters of 4, 64 and 128 KiB */

struct creating {
    struct node *file;
    struct qcow2_header header;
    char *header_page, *table_page, *blocks;
    uint64_t table_at, blocks_at, blocks_bytes;
    unsigned step;
    void (*done)(void *argument, int status, const struct error *err);
    void *argument;
    struct error err;
    struct request req;
    struct iovec iov;
};

static void creating_end(struct creating *creating, int status)
{
    if (status < 0 && creating->err.code == 0)
        error_set(&creating->err, -status, "it can't be written: %s", error_name(status));
    creating->done(creating->argument, status, &creating->err);
    free(creating->header_page);
    free(creating->table_page);
    free(creating->blocks);
    free(creating);
}

static void creating_go_on(struct request *req, int status);

static void submit(struct creating *creating, enum request_kind kind, uint64_t at, char *bytes, uint64_t length)
{
    creating->iov = (struct iovec){bytes, length};
    creating->req = (struct request){
        .kind = kind, .range = {at, length}, .iov = &creating->iov, .iov_count = length > 0, .done = creating_go_on};
    node_submit(creating->file, &creating->req);
}

static void creating_go_on(struct request *req, int status)
{
    struct creating *creating = container_of(req, struct creating, req);
    unsigned step = creating->step++;
    if (status < 0 || step == 5)
        creating_end(creating, status);
    else if (step == 0)
        submit(creating, REQUEST_WRITE, creating->blocks_at, creating->blocks, creating->blocks_bytes);
    else if (step == 1)
        submit(creating, REQUEST_WRITE, creating->table_at, creating->table_page, QCOW2_PAGE_BYTES);
    else if (step == 2 || step == 4)
        submit(creating, REQUEST_FLUSH, 0, NULL, 0);
    else
        submit(creating, REQUEST_WRITE, 0, creating->header_page, QCOW2_PAGE_BYTES);
}

static uint64_t clusters_of(uint64_t bytes, uint32_t cluster_bits)
{
    return (bytes + (UINT64_C(1) << cluster_bits) - 1) >> cluster_bits;
}

/* Refcount blocks for twice the disk. */
static uint64_t reftable_entries(uint64_t size_bytes, uint32_t cluster_bits)
{
    uint64_t block_entries = (UINT64_C(8) << cluster_bits) >> REFCOUNT_ORDER;
    return (2 * clusters_of(size_bytes, cluster_bits) + block_entries - 1) / block_entries;
}

/*
 * Full images have clusters of 64 KiB. Overlays store scattered changes of 4 KiB in clusters of 4 KiB; disks too large for
 * that (by QEMU's bounds of the two tables) in subclusters of 4 KiB. So a block of 4 KiB is always written whole, and
 * nothing is ever read from the backing file for it.
 */
static void choose_clusters(struct qcow2_header *header)
{
    header->cluster_bits = header->has_backing ? OVERLAY_BITS : FULL_BITS;
    header->extended_l2 = header->has_backing &&
                          (reftable_entries(header->size_bytes, OVERLAY_BITS) * 8 > LIMIT_QCOW2_REFTABLE_BYTES ||
                           qcow2_l1_entries(header->size_bytes, OVERLAY_BITS, false) * 8 > LIMIT_QCOW2_L1_BYTES);
    if (header->extended_l2)
        header->cluster_bits = EXTENDED_BITS;
}

/* Lays the image out: the header, the first page of the table, and the blocks that count all of it. */
static int lay_out(struct creating *creating)
{
    struct qcow2_header *header = &creating->header;
    uint32_t bits = header->cluster_bits;
    uint64_t cluster_bytes = UINT64_C(1) << bits, block_entries = cluster_bytes / 2;
    header->refcount_order = REFCOUNT_ORDER;
    header->reftable_clusters = clusters_of(reftable_entries(header->size_bytes, bits) * 8, bits);
    header->reftable_offset = cluster_bytes;
    header->l1_entries = qcow2_l1_entries(header->size_bytes, bits, header->extended_l2);
    header->l1_offset = header->reftable_offset + (header->reftable_clusters << bits);
    creating->table_at = header->reftable_offset;
    creating->blocks_at = header->l1_offset + (clusters_of(header->l1_entries * 8, bits) << bits);
    uint64_t before = creating->blocks_at >> bits, blocks = 1;
    while (blocks * block_entries < before + blocks)
        blocks++;
    creating->blocks_bytes = blocks << bits;
    assert(blocks * 8 <= QCOW2_PAGE_BYTES && creating->blocks_bytes <= LIMIT_REQUEST_BYTES);
    creating->header_page = aligned_alloc(LIMIT_ALIGNMENT_BYTES, QCOW2_PAGE_BYTES);
    creating->table_page = aligned_alloc(LIMIT_ALIGNMENT_BYTES, QCOW2_PAGE_BYTES);
    creating->blocks = aligned_alloc(LIMIT_ALIGNMENT_BYTES, creating->blocks_bytes);
    if (!creating->header_page || !creating->table_page || !creating->blocks)
        return -ENOMEM;
    memset(creating->table_page, 0, QCOW2_PAGE_BYTES);
    memset(creating->blocks, 0, creating->blocks_bytes);
    for (uint64_t i = 0; i < blocks; i++)
        store_be64(creating->table_page + i * 8, creating->blocks_at + (i << bits));
    for (uint64_t i = 0; i < before + blocks; i++)
        creating->blocks[i * 2 + 1] = 1;
    return qcow2_header_build(header, (uint8_t *)creating->header_page, QCOW2_PAGE_BYTES, &creating->err);
}

static int check_options(const struct qcow2_create_options *options, struct error *err)
{
    const struct qcow2_info *info = NULL;
    if (options->size_bytes == 0 || options->size_bytes > LIMIT_DISK_BYTES)
        return error_set(err, EINVAL, "a disk of %llu bytes has no image; 1 to %llu are right",
                         (unsigned long long)options->size_bytes, (unsigned long long)LIMIT_DISK_BYTES);
    if (options->backing_name && strlen(options->backing_name) >= sizeof info->backing_name)
        return error_set(err, ENAMETOOLONG, "the name of the backing file has %zu bytes; %zu at most are right",
                         strlen(options->backing_name), sizeof info->backing_name - 1);
    return 0;
}

int qcow2_create(struct node *file, const struct qcow2_create_options *options,
                 void (*done)(void *argument, int status, const struct error *err), void *argument)
{
    struct creating *creating = calloc(1, sizeof *creating);
    if (!creating)
        return -ENOMEM;
    assert(file->growable && (!options->backing_name || options->backing_format));
    creating->file = file;
    creating->done = done;
    creating->argument = argument;
    struct qcow2_header *header = &creating->header;
    int status = check_options(options, &creating->err);
    if (status == 0) {
        header->size_bytes = options->size_bytes;
        header->zstd = options->compression == QCOW2_ZSTD;
        header->has_backing = options->backing_name != NULL;
        choose_clusters(header);
        if (header->has_backing) {
            strcpy(header->info.backing_name, options->backing_name);
            strncpy(header->info.backing_format, options->backing_format, sizeof header->info.backing_format - 1);
        }
        status = lay_out(creating);
    }
    creating->req.io = file->io;
    creating->req.done = creating_go_on;
    request_complete(&creating->req, status); /* to its first step, or its end */
    return 0;
}
