/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A qcow2 image as a node.
 *
 *   header.c    the header: bytes to checked numbers and back
 *   open.c      opening        create.c  an empty image
 *   cache.c     pages of metadata in memory
 *   commit.c    ... and to the file, in an order that a crash may interrupt
 *   through.c   ... or at once
 *   refcount.c  which clusters are used; new ones            reftable_grow.c  a larger table of counts
 *   pool.c      ... counted ahead; those that became free
 *   extend.c    a larger disk      l1_grow.c  its L1 table
 *   header_change.c  what the header says, one change after the other
 *   mapping.c   from the guest's clusters to the file's
 *   read.c, inflate.c, status.c, write.c, give_back.c, zero.c  requests
 *
 * What a request needs of the metadata it asks for with its waiter: it gets it at once, or waits for it and then decides
 * afresh. Data goes to the file at once. Where mappings go is the choice of whoever opens the image:
 *
 *   - through, to the kernel, before a write is over: for the disk of a guest, which lives on when this process is killed.
 *     What was told to be written is there then; a power loss takes it back to the last flush, or later.
 *   - back: mappings and counts stay in memory until a flush, or until many pages have changed. For an image that is of no
 *     use before its last flush, as a backup is. It is as it was at its last flush, or later, whatever happens.
 *
 * What a crash takes away are counts: clusters that are counted and not used.
 *
 * Images with snapshots inside are read, but not written: nothing here counts references of more than one table.
 */
#include "driver/qcow2/qcow2.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "driver/qcow2/internal.h"

void qcow2_wake_all(struct list *queue, int status)
{
    struct list woken;
    list_init(&woken);
    list_take_all(&woken, queue);
    while (!list_empty(&woken)) {
        struct qcow2_waiter *waiter = container_of(list_take_first(&woken), struct qcow2_waiter, link);
        waiter->wake(waiter, status);
    }
}

void qcow2_wake_one(struct list *queue)
{
    struct qcow2_waiter *waiter = container_of(list_take_first(queue), struct qcow2_waiter, link);
    waiter->wake(waiter, 0);
}

uint64_t qcow2_end(const struct qcow2 *image)
{
    const struct node *file = image->file;
    uint64_t end = round_up(file->growable ? file->end_bytes : file->size_bytes, image->cluster_bytes);
    uint64_t taken = image->cursor << image->cluster_bits;
    return end > taken ? end : taken;
}

bool qcow2_place_is_right(const struct qcow2 *image, uint64_t offset, uint64_t length)
{
    const struct qcow2_header *header = &image->header;
    struct range place = {offset, length}, l1 = {header->l1_offset, header->l1_entries * 8};
    struct range table = {header->reftable_offset, header->reftable_clusters << image->cluster_bits};
    return offset >= image->cluster_bytes && range_aligned(place, image->cluster_bytes) &&
           range_within(place, qcow2_end(image)) && !range_overlaps(place, l1) && !range_overlaps(place, table);
}

uint64_t qcow2_fragments_length(const struct request *req, uint64_t at, uint64_t length)
{
    uint64_t skip = at - req->range.start, covered = 0;
    unsigned used = 0;
    for (unsigned i = 0; i < req->iov_count && used < LIMIT_QCOW2_FRAGMENTS && covered < length; i++) {
        uint64_t here = req->iov[i].iov_len;
        if (here <= skip) {
            skip -= here;
            continue;
        }
        covered += here - skip;
        skip = 0;
        used++;
    }
    return covered < length ? covered : length;
}

static void flushed(struct qcow2_waiter *waiter, int status)
{
    request_complete(qcow2_op_request(container_of(waiter, struct qcow2_op, waiter)), status);
}

/* The last one: what was counted ahead goes back first. */
static void give_back(struct qcow2_waiter *waiter, int status)
{
    struct qcow2_op *op = container_of(waiter, struct qcow2_op, waiter);
    if (status == 0)
        status = pool_give_back(op->image, waiter);
    if (status == -EAGAIN)
        return;
    waiter->wake = flushed; /* whatever came of it: a flush it is */
    commit_wait_end(op->image, waiter);
}

static void flush_submit(struct qcow2 *image, struct request *req)
{
    struct qcow2_op *op = qcow2_op_of(req);
    if (image->node.read_only) {
        request_complete(req, 0);
        return;
    }
    *op = (struct qcow2_op){.image = image, .waiter = {.wake = flushed}};
    if (req->flags & REQUEST_LAST) {
        op->waiter.wake = give_back;
        give_back(&op->waiter, 0);
    } else {
        commit_wait(image, &op->waiter);
    }
}

static void qcow2_submit(struct node *node, struct request *req)
{
    struct qcow2 *image = qcow2_of(node);
    switch (req->kind) {
    case REQUEST_READ:
        read_submit(image, req);
        break;
    case REQUEST_WRITE:
    case REQUEST_WRITE_ZEROES:
    case REQUEST_DISCARD:
        write_submit(image, req);
        break;
    case REQUEST_FLUSH:
        flush_submit(image, req);
        break;
    case REQUEST_BLOCK_STATUS:
        status_submit(image, req);
        break;
    }
}

static void destroy_again(struct io_task *task)
{
    node_destroy(&container_of(task, struct qcow2, doom)->node);
}

/* What was not flushed is lost, as with any disk. What began by itself ends first. */
static void qcow2_destroy(struct node *node)
{
    struct qcow2 *image = qcow2_of(node);
    image->doomed = true;
    image->doom.run = destroy_again;
    if (image->commit.step != COMMIT_IDLE || image->pool.step != POOL_IDLE)
        return;
    assert(list_empty(&image->writes) && image->inflating == 0);
    qcow2_image_free(image);
    node_destroy(image->file);
    if (image->backing)
        node_destroy(image->backing);
    free(image);
}

const struct node_ops qcow2_ops = {
    .driver = "qcow2", .submit = qcow2_submit, .destroy = qcow2_destroy, .extend = qcow2_extend, .grow = qcow2_grow};

void qcow2_info(const struct node *image, struct qcow2_info *info)
{
    assert(image->ops == &qcow2_ops);
    *info = ((const struct qcow2 *)(const void *)image)->header.info;
}

void qcow2_backing_set(struct node *node, struct node *backing)
{
    struct qcow2 *image = qcow2_of(node);
    assert(node->ops == &qcow2_ops && image->header.has_backing && !image->backing);
    image->backing = backing;
}

void qcow2_write_back_set(struct node *node)
{
    assert(node->ops == &qcow2_ops && !node->read_only);
    qcow2_of(node)->write_back = true;
}

void qcow2_compress_set(struct node *node)
{
    struct qcow2 *image = qcow2_of(node);
    assert(node->ops == &qcow2_ops && image->header.zstd && image->write_back);
    assert(image->refcount_bits >= 16); /* many compressed clusters share one */
    image->compress = true;
}
