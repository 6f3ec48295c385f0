/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Opening: the header is read and checked; features that are to be cleared by whoever writes are cleared, and that is stable
 * before the image is handed out. Nothing else is read: tables are looked at when they are needed, entry by entry.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "driver/qcow2/internal.h"

struct opening {
    struct node *file;
    bool read_only;
    char *bytes;
    uint64_t length;
    struct qcow2 *image;
    struct error err;
    void (*done)(void *argument, struct node *image, const struct error *err);
    void *argument;
    struct header_change clear; /* features */
    struct request req;
    struct iovec iov;
};

static void opening_end(struct opening *opening, int status)
{
    struct qcow2 *image = opening->image;
    if (status < 0 && opening->err.code == 0)
        error_set(&opening->err, -status, "its header can't be read or changed: %s", error_name(status));
    if (status < 0 && image) {
        qcow2_image_free(image);
        free(image);
        image = NULL;
    }
    opening->done(opening->argument, image ? &image->node : NULL, &opening->err);
    free(opening->bytes);
    free(opening);
}

static int pieces_init(struct qcow2 *image)
{
    list_init(&image->free_pieces);
    list_init(&image->piece_waiters);
    list_init(&image->inflate_waiters);
    image->pieces = calloc(LIMIT_QCOW2_PIECES, sizeof *image->pieces);
    for (unsigned i = 0; image->pieces && i < LIMIT_QCOW2_PIECES; i++)
        list_append(&image->free_pieces, &image->pieces[i].link);
    return image->pieces ? 0 : -ENOMEM;
}

static int writes_init(struct qcow2 *image)
{
    list_init(&image->free_writes);
    list_init(&image->writes);
    list_init(&image->waiting_writes);
    list_init(&image->blocked);
    list_init(&image->buffer_waiters);
    list_init(&image->grow_waiters);
    list_init(&image->l1_waiters);
    list_init(&image->header_waiters);
    if (image->node.read_only)
        return 0;
    image->write_slots = calloc(LIMIT_QCOW2_WRITES, sizeof *image->write_slots);
    image->freed_max = LIMIT_QCOW2_FREED;
    image->freed = calloc(LIMIT_QCOW2_FREED, sizeof *image->freed);
    image->unused = calloc(LIMIT_QCOW2_UNUSED, sizeof *image->unused);
    image->zeroes = aligned_alloc(LIMIT_ALIGNMENT_BYTES, FILE_ZERO_BYTES);
    if (!image->write_slots || !image->freed || !image->unused || !image->zeroes)
        return -ENOMEM;
    memset(image->zeroes, 0, FILE_ZERO_BYTES);
    for (unsigned i = 0; i < LIMIT_QCOW2_WRITES; i++)
        list_append(&image->free_writes, &image->write_slots[i].link);
    return 0;
}

void qcow2_image_free(struct qcow2 *image)
{
    cache_fini(image);
    grow_free(image);
    l1_move_free(image);
    free(image->unused);
    free(image->pieces);
    free(image->write_slots);
    free(image->freed);
    free(image->zeroes);
}

static int image_init(struct qcow2 *image, struct node *file, bool read_only)
{
    const struct qcow2_header *header = &image->header;
    image->file = file;
    image->cluster_bits = header->cluster_bits;
    image->cluster_bytes = 1u << header->cluster_bits;
    image->page_bytes = image->cluster_bytes < QCOW2_PAGE_BYTES ? image->cluster_bytes : QCOW2_PAGE_BYTES;
    image->subclusters = header->extended_l2 ? QCOW2_SUBCLUSTERS : 1;
    image->granule_bytes = image->cluster_bytes / image->subclusters;
    image->entry_bytes = header->extended_l2 ? 16 : 8;
    image->l2_bits = header->cluster_bits - (header->extended_l2 ? 4 : 3);
    image->refcount_bits = 1u << header->refcount_order;
    image->refblock_entries = (uint64_t)image->cluster_bytes * 8 / image->refcount_bits;
    image->cursor = qcow2_end(image) >> image->cluster_bits;
    image->node = (struct node){
        .ops = &qcow2_ops,
        .io = file->io,
        .size_bytes = header->size_bytes,
        .alignment_bytes = image->granule_bytes < 4096 ? 512 : 4096,
        .read_only = read_only,
        .gives_back = !read_only,
        .can_discard = !read_only,
        .can_fast_zero = !read_only && header->version > 2,
    };
    cache_init(image);
    commit_init(image);
    through_init(image);
    pool_init(image);
    int status = pieces_init(image);
    int writes = writes_init(image);
    return status < 0 ? status : writes;
}

static void clear_features(struct header_change *change, uint8_t *sector)
{
    (void)change;
    store_be64(sector + QCOW2_AUTOCLEAR_AT, 0);
}

static void features_cleared(struct header_change *change, int status)
{
    struct opening *opening = container_of(change, struct opening, clear);
    header_change_fini(change);
    opening_end(opening, status);
}

static int check_writable(const struct opening *opening, const struct qcow2_header *header, struct error *err)
{
    if (header->snapshots > 0)
        return error_set(err, EROFS, "it has %u snapshots inside: it can be read, but not written", header->snapshots);
    if (!opening->file->growable)
        return error_set(err, EROFS, "it can't be written: its file can't grow");
    return 0;
}

static void header_read(struct request *req, int status)
{
    struct opening *opening = container_of(req, struct opening, req);
    struct node *file = opening->file;
    struct qcow2_header *header = &opening->image->header;
    uint64_t file_bytes = file->growable ? file->end_bytes : file->size_bytes;
    if (status == 0)
        status = qcow2_header_parse((const uint8_t *)opening->bytes, opening->length, file_bytes, header,
                                    &opening->err);
    if (status == 0 && !opening->read_only)
        status = check_writable(opening, header, &opening->err);
    if (status < 0) {
        free(opening->image);
        opening->image = NULL;
        opening_end(opening, status);
        return;
    }
    status = image_init(opening->image, file, opening->read_only);
    if (status < 0 || opening->read_only || header->autoclear == 0) {
        opening_end(opening, status);
        return;
    }
    if (header_change_init(&opening->clear, opening->image, clear_features, features_cleared))
        header_change_start(&opening->clear);
    else
        opening_end(opening, -ENOMEM);
}

int qcow2_open(struct node *file, bool read_only,
               void (*done)(void *argument, struct node *image, const struct error *err), void *argument)
{
    struct opening *opening = calloc(1, sizeof *opening);
    struct qcow2 *image = calloc(1, sizeof *image);
    char *bytes = aligned_alloc(LIMIT_ALIGNMENT_BYTES, LIMIT_QCOW2_HEADER_BYTES);
    if (!opening || !image || !bytes) {
        free(opening);
        free(image);
        free(bytes);
        return -ENOMEM;
    }
    uint64_t length = file->size_bytes < LIMIT_QCOW2_HEADER_BYTES ? file->size_bytes : LIMIT_QCOW2_HEADER_BYTES;
    *opening = (struct opening){.file = file,
                                .read_only = read_only,
                                .bytes = bytes,
                                .length = length,
                                .image = image,
                                .done = done,
                                .argument = argument,
                                .iov = {bytes, length}};
    opening->req = (struct request){
        .kind = REQUEST_READ, .range = {0, length}, .iov = &opening->iov, .iov_count = 1, .done = header_read};
    node_submit(file, &opening->req);
    return 0;
}
