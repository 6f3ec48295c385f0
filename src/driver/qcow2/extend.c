/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The virtual disk gets another size, while it is used: the image first, the node when no write is in flight (qcow2_grow()).
 *
 *     L1 table long enough (l1_grow.c) -> what lies behind the old end -> zeroed -> commit -> size in the header -> done
 *
 * What is added reads as zeroes. An image may have something there, which nobody could see so far: data in the rest of the
 * last cluster, or in clusters behind it, of a disk that was made smaller once; and the backing file's, where that is
 * longer. It is zeroed before the header has the new size, and that is stable.
 *
 * So whenever a crash comes the image has the old size or the new one, with all that it held, and zeroes behind. An L1 table
 * that is longer than needed, and clusters behind the end that are mapped as zeroes, are of no harm; clusters of an L1
 * table may leak. When the header can't be written it has either size, and either is right.
 *
 * Taken back is the size alone, which the header has then told in vain.
 */
#include <assert.h>
#include <errno.h>

#include "base/probe.h"
#include "driver/qcow2/internal.h"

static void extend_go_on(struct qcow2_extend *extend, int status);

static void extend_wake(struct qcow2_waiter *waiter, int status)
{
    extend_go_on(container_of(waiter, struct qcow2_extend, waiter), status);
}

static void zeroed(struct request *req, int status)
{
    extend_go_on(container_of(req, struct qcow2_extend, req), status);
}

static void name_size(struct header_change *change, uint8_t *sector)
{
    const struct qcow2_extend *extend = container_of(change, struct qcow2_extend, header);
    change->image->named_bytes = extend->extension->size_bytes;
    store_be64(sector + QCOW2_SIZE_AT, extend->extension->size_bytes);
}

static void header_changed(struct header_change *change, int status)
{
    extend_go_on(container_of(change, struct qcow2_extend, header), status);
}

static void extend_end(struct qcow2_extend *extend, int status)
{
    static const char *const whats[] = {
        [EXTEND_TABLE] = "its L1 table can't be made larger",
        [EXTEND_LOOK] = "what lies behind its end can't be looked at",
        [EXTEND_ZERO] = "what lies behind its end can't be zeroed",
        [EXTEND_COMMIT] = "its tables can't be written",
        [EXTEND_HEADER] = "its header can't be written",
    };
    struct qcow2 *image = extend->image;
    struct node_extension *extension = extend->extension;
    if (status < 0 && extension->error.code == 0)
        error_set(&extension->error, -status, "can't be made larger: %s: %s", whats[extend->step], error_name(status));
    if (status == 0 && extension->size_bytes == image->node.size_bytes)
        image->named_bytes = 0;
    header_change_fini(&extend->header);
    extension->done(extension, status);
}

/* Data from the old end on, as far as the L2 table that maps that goes: those behind are not there. */
static int look(struct qcow2_extend *extend)
{
    struct qcow2 *image = extend->image;
    const uint64_t old = image->node.size_bytes, size = extend->extension->size_bytes;
    const uint64_t table_bytes = UINT64_C(1) << (image->cluster_bits + image->l2_bits);
    uint64_t end = round_up(old, table_bytes);
    end = end < size ? end : size;
    while (extend->at < end) {
        struct mapping mapping;
        int status = mapping_find(image, extend->at, end - extend->at, &extend->waiter, &mapping);
        if (status < 0)
            return status;
        extend->at += mapping.length;
        if (mapping.kind == MAP_DATA || mapping.kind == MAP_COMPRESSED)
            extend->zero_end = extend->at;
    }
    const uint64_t backing = image->header.has_backing ? image->backing->size_bytes : 0;
    if (extend->zero_end < backing)
        extend->zero_end = backing;
    if (extend->zero_end > old) /* whole clusters can be said to be zero */
        extend->zero_end = round_up(extend->zero_end, image->cluster_bytes);
    extend->zero_end = extend->zero_end < size ? extend->zero_end : size;
    return 0;
}

/* Begins the step, or goes on with it. 0: it is over; -EAGAIN: it goes on later; or an error. */
static int do_step(struct qcow2_extend *extend, bool begins)
{
    struct qcow2 *image = extend->image;
    const uint64_t old = image->node.size_bytes, size = extend->extension->size_bytes;
    const uint64_t entries = qcow2_l1_entries(size, image->cluster_bits, image->subclusters > 1);
    switch (extend->step) {
    case EXTEND_TABLE:
        return entries > image->header.l1_entries ? l1_grow(image, entries, &extend->waiter) : 0;
    case EXTEND_LOOK:
        if (begins)
            extend->at = extend->zero_end = old;
        return look(extend);
    case EXTEND_ZERO:
        if (!begins || extend->zero_end <= old || MUTANT(qcow2_old_content_shows))
            return 0;
        PROBE(qcow2_extended_over_data);
        extend->req = (struct request){
            .kind = REQUEST_WRITE_ZEROES, .range = {old, extend->zero_end - old}, .io = image->node.io, .done = zeroed};
        write_submit(image, &extend->req); /* the node ends before */
        return -EAGAIN;
    case EXTEND_COMMIT:
        if (!begins || MUTANT(qcow2_size_named_first))
            return 0;
        commit_wait(image, &extend->waiter);
        return -EAGAIN;
    case EXTEND_HEADER:
        if (!begins)
            return 0;
        header_change_start(&extend->header);
        return -EAGAIN;
    case EXTEND_END:
        break;
    }
    return 0;
}

static void extend_go_on(struct qcow2_extend *extend, int status)
{
    if (status == 0)
        status = do_step(extend, false);
    while (status == 0 && extend->step < EXTEND_END) {
        extend->step++;
        status = do_step(extend, true);
    }
    if (status != -EAGAIN)
        extend_end(extend, status);
}

/* What the image can have at all. */
static int check_size(const struct qcow2 *image, uint64_t size, struct error *err)
{
    const uint64_t l1_bytes = 8 * qcow2_l1_entries(size, image->cluster_bits, image->subclusters > 1);
    const uint64_t counts = (l1_bytes >> image->cluster_bits) * image->refcount_bits / 8;
    const int status = node_check_size(size, IMAGE_SECTOR_BYTES, err);
    if (status < 0)
        return status;
    if (l1_bytes > LIMIT_QCOW2_L1_BYTES || counts > (uint64_t)LIMIT_QCOW2_L1_COUNT_PAGES * image->page_bytes)
        return error_set(err, EFBIG,
                         "can't get %llu bytes: its image has clusters of %u bytes, and would need an L1 table of %llu",
                         (unsigned long long)size, image->cluster_bytes, (unsigned long long)l1_bytes);
    if (image->header.has_backing && !image->backing)
        return error_set(err, ENODATA, "can't get %llu bytes: the backing file of its image is not there",
                         (unsigned long long)size);
    return 0;
}

static void extend_start(struct io_task *task)
{
    struct qcow2_extend *extend = container_of(task, struct qcow2_extend, task);
    struct qcow2 *image = extend->image;
    struct node_extension *extension = extend->extension;
    const bool back = extension->size_bytes == image->node.size_bytes;
    int status = back ? 0 : check_size(image, extension->size_bytes, &extension->error);
    if (status == 0 && !header_change_init(&extend->header, image, name_size, header_changed))
        status = -ENOMEM;
    if (status < 0 || (back && image->named_bytes == 0)) {
        extend_end(extend, status);
    } else if (back) {
        PROBE(qcow2_size_taken_back);
        extend->step = EXTEND_HEADER;
        header_change_start(&extend->header);
    } else {
        extend_go_on(extend, 0);
    }
}

void qcow2_extend(struct node *node, struct node_extension *extension)
{
    struct qcow2 *image = qcow2_of(node);
    assert(!node->read_only && (extension->size_bytes == 0 || extension->size_bytes >= node->size_bytes));
    if (extension->size_bytes == 0) /* nobody else makes it longer */
        extension->size_bytes = node->size_bytes;
    extension->error.code = 0;
    image->extend = (struct qcow2_extend){
        .image = image, .extension = extension, .waiter.wake = extend_wake, .task.run = extend_start};
    io_task_queue(node->io, &image->extend.task);
}

void qcow2_grow(struct node *node, uint64_t size_bytes)
{
    struct qcow2 *image = qcow2_of(node);
    assert(image->named_bytes == size_bytes);
    image->header.size_bytes = image->header.info.size_bytes = size_bytes;
    image->named_bytes = 0;
    node_set_size(node, size_bytes);
}
