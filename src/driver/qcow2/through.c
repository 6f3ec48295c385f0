/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Writing through, for disks whose guest lives on when we are killed: a write is told to be done when the kernel has the
 * pages of the L1 and L2 tables that lead to its data. After kill -9 the image is so as the guest was told.
 *
 *     changed -> queued -> being written -> clean, or queued again when it has changed meanwhile
 *                                        -> failed: it stays dirty, and is written again when somebody needs it
 *
 * At most one write of a page is under way; all changes of a tick go with one write, and those that come while it is under
 * way with the next. Whoever waits, waits for a write that began after his change.
 *
 * A power loss may let any of these writes vanish, in any order, since there is no sync between them, and none is needed:
 *
 *   - all clusters that a mapping may name were counted, and in the file, and zero, on stable storage before (pool.c)
 *   - a new L2 table is zeroes in the file: its L1 entry may land without it, and then the table maps nothing
 *   - a new data cluster is zeroes in the file. Where zeroes were mapped before that is the old content, and right: the
 *     data is written at the same time (write.c). Where the mapping hides something else (the backing file's data, a
 *     compressed cluster) the data is synced first (WRITE_SOLID); one sync serves all who wait at that time
 *   - what a mapping no longer names is neither given back nor used before a sync (commit.c)
 *
 * So each sector of a table is an old or a new one, and leads to old or new data. At worst clusters leak.
 */
#include <assert.h>
#include <errno.h>

#include "base/probe.h"
#include "driver/qcow2/internal.h"

/* The commit's place in the queue is part of the page, and a page that is clean may go as soon as anybody is woken. */
static void wake_commit_first(struct page *page, struct list *waiting, int status)
{
    list_each (node, waiting) {
        if (node != &page->settled.link)
            continue;
        list_remove(node);
        page->settled.wake(&page->settled, status);
        return;
    }
}

static void page_written(struct request *req, int status)
{
    struct page *page = container_of(req, struct page, req);
    struct qcow2 *image = page->image;
    struct list waiting;
    list_init(&waiting);
    list_take_all(&waiting, &page->now);
    list_remove(&page->link);
    page->failed = status < 0;
    if (status < 0)
        PROBE(qcow2_through_failed);
    page_finish(page, status == 0);
    if (!list_empty(&page->next))
        io_task_queue(image->node.io, &image->through);
    wake_commit_first(page, &waiting, status);
    qcow2_wake_all(&waiting, status);
    qcow2_wake_all(&image->room_waiters, 0);
}

static void page_put_through(struct page *page)
{
    struct qcow2 *image = page->image;
    list_remove(&page->link);
    list_append(&image->writing, &page->link);
    list_take_all(&page->now, &page->next);
    page->dirty = false;
    page->committing = true;
    image->dirty_count--;
    page_write(page, page_written);
}

static void put_through(struct io_task *task)
{
    struct qcow2 *image = container_of(task, struct qcow2, through);
    for (unsigned class = PAGE_L2; class < PAGE_CLASSES; class ++) {
        struct list dirty;
        list_init(&dirty);
        list_take_all(&dirty, &image->dirty[class]);
        while (!list_empty(&dirty)) {
            struct page *page = list_first(&dirty, struct page, link);
            if (!list_empty(&page->next)) {
                page_put_through(page);
            } else {
                list_remove(&page->link);
                page_settle(page);
            }
        }
    }
}

int page_through(struct page *page, struct qcow2_waiter *waiter)
{
    struct qcow2 *image = page->image;
    assert(!image->write_back && (page->class == PAGE_L2 || page->class == PAGE_L1));
    if (!page->dirty && !page->committing)
        return 0;
    if (page->dirty) {
        qcow2_wait(&page->next, waiter);
        if (!page->committing)
            io_task_queue(image->node.io, &image->through);
    } else {
        qcow2_wait(&page->now, waiter);
    }
    return -EAGAIN;
}

/* Syncs. */

static void sync_done(struct request *req, int status)
{
    struct group_sync *sync = container_of(req, struct group_sync, req);
    struct qcow2 *image = container_of(sync, struct qcow2, sync);
    sync->busy = false;
    if (!list_empty(&sync->next))
        io_task_queue(image->node.io, &sync->task);
    qcow2_wake_all(&sync->now, status);
}

static void sync_start(struct io_task *task)
{
    struct group_sync *sync = container_of(task, struct group_sync, task);
    struct qcow2 *image = container_of(sync, struct qcow2, sync);
    if (sync->busy)
        return;
    sync->busy = true;
    list_take_all(&sync->now, &sync->next);
    sync->req = (struct request){.kind = REQUEST_FLUSH, .done = sync_done};
    node_submit(image->file, &sync->req);
}

void sync_wait(struct qcow2 *image, struct qcow2_waiter *waiter)
{
    qcow2_wait(&image->sync.next, waiter);
    if (!image->sync.busy)
        io_task_queue(image->node.io, &image->sync.task);
}

void through_init(struct qcow2 *image)
{
    list_init(&image->writing);
    list_init(&image->sync.now);
    list_init(&image->sync.next);
    image->through.run = put_through;
    image->sync.task.run = sync_start;
}
