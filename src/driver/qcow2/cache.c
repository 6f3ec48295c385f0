/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Pages of metadata in memory, found by their place in the file.
 *
 *     loading -> clean <-> dirty -> committing -> clean, or dirty when it has changed meanwhile
 *                clean -> gone, when another page needs the room: the one that was used longest ago
 *
 * A page that is dirty stays until it has been written, by a commit (commit.c) or through (through.c). When none may go, a
 * commit begins, and whoever wants a page waits. What is written is what the page held when that began: a page that changes
 * meanwhile leaves the write its old memory (`shadow`) and goes on with a copy. So while a commit lasts there are at most
 * twice LIMIT_QCOW2_PAGES of memory.
 *
 * The commit itself needs pages, to count down what became free, at a time when all may be dirty and nobody but the commit
 * can write them. So it may have a few more than there is room for, and when these are dirty too it is told so (-ENOBUFS),
 * writes them, and goes on. Others wait until the bound is kept again, so what is the commit's stays its own.
 *
 * Who waits for a page decides afresh when it is there, and needs others again: an L1 page, a page of the refcount table, of
 * counts at the end of the file. All ask for these, so they are those that were used last; and the last few never go. So
 * when somebody's own page has come, which wakes him at once, the rest is there and he goes on, however few pages there are.
 * If the last few are all that is left, the others are on their way (being read or written), or dirty: then a commit begins.
 *
 * One place has one class. An image that uses the same cluster for two kinds of tables is damaged.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "base/probe.h"
#include "driver/qcow2/internal.h"

void cache_init(struct qcow2 *image)
{
    for (unsigned i = 0; i < LIMIT_QCOW2_BUCKETS; i++)
        list_init(&image->buckets[i]);
    image->page_max = LIMIT_QCOW2_PAGES;
    list_init(&image->clean);
    list_init(&image->room_waiters);
    for (unsigned class = 0; class < PAGE_CLASSES; class ++)
        list_init(&image->dirty[class]);
}

static struct list *bucket_of(struct qcow2 *image, uint64_t offset)
{
    uint64_t number = offset / image->page_bytes * UINT64_C(0x9e3779b97f4a7c15);
    return &image->buckets[(number >> 32) % LIMIT_QCOW2_BUCKETS];
}

static void page_free(struct page *page)
{
    if (list_linked(&page->link))
        list_remove(&page->link);
    list_remove(&page->hash_link);
    page->image->page_count--;
    free(page->shadow);
    free(page->bytes);
    free(page);
}

void cache_fini(struct qcow2 *image)
{
    for (unsigned i = 0; i < LIMIT_QCOW2_BUCKETS; i++)
        while (!list_empty(&image->buckets[i]))
            page_free(list_first(&image->buckets[i], struct page, hash_link));
    assert(image->page_count == 0);
}

void page_settle(struct page *page)
{
    list_append(page->dirty ? &page->image->dirty[page->class] : &page->image->clean, &page->link);
}

void page_write(struct page *page, void (*done)(struct request *req, int status))
{
    const uint64_t length = page->image->page_bytes;
    page->iov = (struct iovec){page->shadow ? page->shadow : page->bytes, length};
    page->req = (struct request){
        .kind = REQUEST_WRITE, .range = {page->offset, length}, .iov = &page->iov, .iov_count = 1, .done = done};
    node_submit(page->image->file, &page->req);
}

void page_finish(struct page *page, bool written)
{
    page->committing = false;
    free(page->shadow);
    page->shadow = NULL;
    if (!written && !page->dirty) {
        page->dirty = true;
        page->image->dirty_count++;
    }
    page_settle(page);
}

bool page_change(struct page *page)
{
    struct qcow2 *image = page->image;
    assert(!page->loading);
    if (page->committing && !page->shadow && !MUTANT(qcow2_page_changes_under_commit)) {
        char *copy = aligned_alloc(image->page_bytes, image->page_bytes);
        if (!copy)
            return false;
        PROBE(qcow2_page_shadowed);
        memcpy(copy, page->bytes, image->page_bytes);
        page->shadow = page->bytes;
        page->bytes = copy;
    }
    if (!page->dirty) {
        page->dirty = true;
        image->dirty_count++;
        if (!page->committing) {
            list_remove(&page->link);
            page_settle(page);
        }
    }
    return true;
}

static struct page *page_find(struct qcow2 *image, uint64_t offset)
{
    list_each (node, bucket_of(image, offset)) {
        struct page *page = container_of(node, struct page, hash_link);
        if (page->offset == offset)
            return page;
    }
    return NULL;
}

void cache_trim(struct qcow2 *image)
{
    while (image->page_count > image->page_max && !list_empty(&image->clean))
        page_free(list_first(&image->clean, struct page, link));
}

/* Whether one may go, besides those that were just used. */
static bool can_spare(const struct qcow2 *image, unsigned kept)
{
    unsigned clean = 0;
    list_each (node, &image->clean)
        if (++clean > kept)
            return true;
    return clean > 0 && MUTANT(qcow2_last_page_goes);
}

bool cache_is_full(const struct qcow2 *image)
{
    return image->page_count >= image->page_max && !can_spare(image, QCOW2_PAGES_KEPT);
}

/* It needs a page of the table and one of counts at the same time. */
static int make_room_for_commit(struct qcow2 *image)
{
    const unsigned max = image->page_max + LIMIT_QCOW2_COMMIT_PAGES;
    if (image->page_count >= max && can_spare(image, 1))
        page_free(list_first(&image->clean, struct page, link));
    if (image->page_count < max)
        return 0;
    PROBE(qcow2_commit_needs_room);
    return -ENOBUFS;
}

/* Room for one more page. */
static int make_room(struct qcow2 *image, struct qcow2_waiter *waiter)
{
    if (waiter == &image->commit.waiter && !MUTANT(qcow2_commit_waits_for_itself))
        return make_room_for_commit(image);
    if (image->page_count == image->page_max && can_spare(image, QCOW2_PAGES_KEPT))
        page_free(list_first(&image->clean, struct page, link));
    if (image->page_count < image->page_max) {
        if (image->dirty_count > image->page_max / 4 * 3)
            commit_begin(image);
        return 0;
    }
    qcow2_wait(&image->room_waiters, waiter);
    commit_begin(image);
    return -EAGAIN;
}

static int page_add(struct qcow2 *image, enum page_class class, uint64_t offset, struct qcow2_waiter *waiter,
                    struct page **page)
{
    int status = make_room(image, waiter);
    if (status < 0)
        return status;
    struct page *made = calloc(1, sizeof *made);
    char *bytes = aligned_alloc(image->page_bytes, image->page_bytes);
    if (!made || !bytes) {
        free(made);
        free(bytes);
        return -ENOMEM;
    }
    made->image = image;
    made->class = class;
    made->offset = offset;
    made->bytes = bytes;
    list_init(&made->waiting);
    list_init(&made->now);
    list_init(&made->next);
    list_append(bucket_of(image, offset), &made->hash_link);
    image->page_count++;
    *page = made;
    return 0;
}

static void page_loaded(struct request *req, int status)
{
    struct page *page = container_of(req, struct page, req);
    struct qcow2 *image = page->image;
    struct list waiting;
    list_init(&waiting);
    list_take_all(&waiting, &page->waiting);
    page->loading = false;
    if (status < 0)
        page_free(page);
    else
        page_settle(page);
    qcow2_wake_all(&waiting, status);
    qcow2_wake_all(&image->room_waiters, 0);
}

int page_get(struct qcow2 *image, enum page_class class, uint64_t offset, struct qcow2_waiter *waiter,
             struct page **page)
{
    offset = round_down(offset, image->page_bytes);
    struct page *found = page_find(image, offset);
    if (found && found->class != class)
        return -EIO;
    if (found && found->loading) {
        qcow2_wait(&found->waiting, waiter);
        return -EAGAIN;
    }
    if (found) {
        if (!found->dirty && !found->committing) {
            list_remove(&found->link);
            page_settle(found);
        }
        *page = found;
        return 0;
    }
    uint64_t file_bytes = image->file->size_bytes; /* its last cluster may be cut off: behind it are zeroes */
    if (offset >= file_bytes)
        return page_new(image, class, offset, waiter, page);
    int status = page_add(image, class, offset, waiter, &found);
    if (status < 0)
        return status;
    found->loading = true;
    qcow2_wait(&found->waiting, waiter);
    found->iov = (struct iovec){found->bytes, image->page_bytes};
    if (file_bytes - offset < image->page_bytes) {
        found->iov.iov_len = file_bytes - offset;
        memset(found->bytes + found->iov.iov_len, 0, image->page_bytes - found->iov.iov_len);
    }
    found->req = (struct request){.kind = REQUEST_READ,
                                  .range = {offset, found->iov.iov_len},
                                  .iov = &found->iov,
                                  .iov_count = 1,
                                  .done = page_loaded};
    node_submit(image->file, &found->req);
    return -EAGAIN;
}

int page_new(struct qcow2 *image, enum page_class class, uint64_t offset, struct qcow2_waiter *waiter,
             struct page **page)
{
    offset = round_down(offset, image->page_bytes);
    if (page_find(image, offset))
        return -EIO;
    int status = page_add(image, class, offset, waiter, page);
    if (status < 0)
        return status;
    memset((*page)->bytes, 0, image->page_bytes);
    page_settle(*page);
    return 0;
}

bool cache_has(struct qcow2 *image, struct range place)
{
    for (uint64_t at = place.start; at < range_end(place); at += image->page_bytes)
        if (page_find(image, at))
            return true;
    return false;
}

int cache_drop(struct qcow2 *image, struct range place, struct qcow2_waiter *waiter)
{
    for (uint64_t at = place.start; at < range_end(place); at += image->page_bytes) {
        struct page *page = page_find(image, at);
        if (page && page->loading) {
            qcow2_wait(&page->waiting, waiter);
            return -EAGAIN;
        }
        if (page) {
            assert(!page->dirty && !page->committing);
            page_free(page);
        }
    }
    return 0;
}
