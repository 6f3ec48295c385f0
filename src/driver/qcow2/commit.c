/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Metadata to the file, in the order that a crash may interrupt anywhere:
 *
 *     refcount blocks, sync (and with them all data written so far), refcount table, sync, L2 tables, sync, L1 table, sync;
 *     then what nothing refers to any more is counted down, and these counts are written, and its space is punched out.
 *
 * So a mapping that is on the disk always finds there what it refers to: the data, the table, a count that is not zero. What
 * is lost, or there in part, is at worst a cluster that is counted and not used. Steps with nothing to do are left out: a
 * backup that only maps new clusters has two syncs.
 *
 * Of an image that is written through (through.c) the tables of mappings are with the kernel, or on their way: instead of
 * writing them the commit waits for those on their way. What they may name was counted by an earlier commit (pool.c). So
 * when its counts can't be written, as when the file system is full, only those who wait for counts hear of it: what was
 * answered becomes stable all the same, and what is free is given back, which makes room.
 *
 * What becomes free is used again (pool.c), and whoever looked up the old mapping may still read or write there. So before
 * it is counted down all I/O on mapped clusters that began earlier has to end: it is counted on two sides in turn, as many
 * as began before and since the last such grace. Nothing that this I/O needs waits for a commit.
 *
 * A flush is over when all is stable. Only the last one (REQUEST_LAST) waits for what is freed behind that, too; and what
 * goes wrong there fails no other.
 *
 * A commit takes the pages that are dirty when it begins, at one instant, so what it writes fits together; mappings made
 * later wait for the next commit. It begins when somebody flushes, or when the cache runs out of pages that may go.
 *
 * When a step fails nothing of the later steps is written, the flushes of this commit fail, and the pages stay dirty.
 */
#include <assert.h>
#include <errno.h>

#include "base/probe.h"
#include "driver/qcow2/internal.h"

#define TO(step) (1u << (step))
static const uint32_t allowed_moves[] = {
    [COMMIT_IDLE] = TO(COMMIT_REFBLOCKS),
    [COMMIT_REFBLOCKS] = TO(COMMIT_SYNC_DATA) | TO(COMMIT_END),
    [COMMIT_SYNC_DATA] = TO(COMMIT_REFTABLE) | TO(COMMIT_END),
    [COMMIT_REFTABLE] = TO(COMMIT_SYNC_REFTABLE) | TO(COMMIT_SETTLE) | TO(COMMIT_END),
    [COMMIT_SYNC_REFTABLE] = TO(COMMIT_L2) | TO(COMMIT_END),
    [COMMIT_L2] = TO(COMMIT_SYNC_L2) | TO(COMMIT_END),
    [COMMIT_SYNC_L2] = TO(COMMIT_L1) | TO(COMMIT_END),
    [COMMIT_L1] = TO(COMMIT_SYNC_END) | TO(COMMIT_END),
    [COMMIT_SETTLE] = TO(COMMIT_SYNC_END) | TO(COMMIT_END),
    [COMMIT_SYNC_END] = TO(COMMIT_GRACE) | TO(COMMIT_END),
    [COMMIT_GRACE] = TO(COMMIT_FREE),
    [COMMIT_FREE] = TO(COMMIT_FREED) | TO(COMMIT_END),
    [COMMIT_FREED] = TO(COMMIT_FREE) | TO(COMMIT_PUNCH) | TO(COMMIT_END),
    [COMMIT_PUNCH] = TO(COMMIT_END),
    [COMMIT_END] = TO(COMMIT_IDLE),
};

static struct qcow2 *image_of(struct commit *commit)
{
    return container_of(commit, struct qcow2, commit);
}

static void commit_move(struct commit *commit, enum commit_step step)
{
    assert(allowed_moves[commit->step] & TO(step));
    commit->step = step;
}

static void commit_go_on(struct commit *commit);

void commit_init(struct qcow2 *image)
{
    for (unsigned class = 0; class < PAGE_CLASSES; class ++)
        list_init(&image->commit.pages[class]);
    list_init(&image->commit.flushers);
    list_init(&image->commit.enders);
    list_init(&image->commit.next);
    list_init(&image->commit.next_end);
    list_init(&image->commit.counters);
    list_init(&image->commit.next_counters);
}

static void take_dirty(struct qcow2 *image, enum page_class class)
{
    list_each (node, &image->dirty[class]) {
        struct page *page = container_of(node, struct page, link);
        page->dirty = false;
        page->committing = true;
        image->dirty_count--;
    }
    list_take_all(&image->commit.pages[class], &image->dirty[class]);
}

static void page_settled(struct qcow2_waiter *waiter, int status)
{
    struct commit *commit = &container_of(waiter, struct page, settled)->image->commit;
    commit->settling--;
    if (status < 0 && commit->status == 0)
        commit->status = status;
    commit_go_on(commit);
}

/* Waits for what these pages of mappings hold now. */
static void settle(struct commit *commit, struct list *pages)
{
    list_each (node, pages) {
        struct page *page = container_of(node, struct page, link);
        page->settled.wake = page_settled;
        if (page_through(page, &page->settled) == -EAGAIN)
            commit->settling++;
    }
}

static void take_mappings(struct commit *commit)
{
    struct qcow2 *image = image_of(commit);
    if (image->write_back) {
        take_dirty(image, PAGE_L2);
        take_dirty(image, PAGE_L1);
        return;
    }
    settle(commit, &image->writing);
    settle(commit, &image->dirty[PAGE_L2]);
    settle(commit, &image->dirty[PAGE_L1]);
}

static bool is_awaited(const struct commit *commit)
{
    return !list_empty(&commit->next) || !list_empty(&commit->next_end) || !list_empty(&commit->next_counters);
}

void commit_begin(struct qcow2 *image)
{
    struct commit *commit = &image->commit;
    bool has_work = image->dirty_count > 0 || image->freed_count > 0 || is_awaited(commit);
    if (commit->step != COMMIT_IDLE || !has_work) /* with work it never ends in here */
        return;
    commit_move(commit, COMMIT_REFBLOCKS);
    commit->status = commit->count_status = 0;
    commit->unsynced = false;
    take_dirty(image, PAGE_REFBLOCK);
    take_dirty(image, PAGE_REFTABLE);
    take_mappings(commit);
    list_take_all(&commit->flushers, &commit->next);
    list_take_all(&commit->enders, &commit->next_end);
    list_take_all(&commit->counters, &commit->next_counters);
    commit->freed = image->freed_count;
    commit->next_freed = 0;
    commit_go_on(commit);
}

void commit_wait(struct qcow2 *image, struct qcow2_waiter *waiter)
{
    qcow2_wait(&image->commit.next, waiter);
    commit_begin(image);
}

void commit_wait_end(struct qcow2 *image, struct qcow2_waiter *waiter)
{
    qcow2_wait(&image->commit.next_end, waiter);
    commit_begin(image);
}

void commit_wait_counts(struct qcow2 *image, struct qcow2_waiter *waiter)
{
    qcow2_wait(&image->commit.next_counters, waiter);
    commit_begin(image);
}

static void page_written(struct request *req, int status)
{
    struct page *page = container_of(req, struct page, req);
    struct commit *commit = &page->image->commit;
    int *fate = page->image->write_back ? &commit->status : &commit->count_status;
    commit->writing--;
    if (status < 0 && *fate == 0)
        *fate = status;
    page_finish(page, status == 0);
    commit_go_on(commit);
}

/* Whether the step is over: all pages of the class are written, or one could not be. */
static bool write_pages(struct commit *commit, enum page_class class)
{
    while (commit->status == 0 && commit->writing < LIMIT_QCOW2_PAGE_WRITES && !list_empty(&commit->pages[class])) {
        struct page *page = container_of(list_take_first(&commit->pages[class]), struct page, link);
        commit->writing++;
        commit->unsynced = true;
        page_write(page, page_written);
    }
    return commit->writing == 0;
}

static void request_done(struct request *req, int status)
{
    struct commit *commit = container_of(req, struct commit, req);
    struct qcow2 *image = image_of(commit);
    if (commit->step == COMMIT_PUNCH && status == 0) /* space that stays is no loss */
        unused_add(image, image->freed[commit->next_freed - 1].run);
    else if (commit->step != COMMIT_PUNCH && status < 0 && commit->status == 0)
        commit->status = status;
    commit->writing--;
    commit_go_on(commit);
}

static void start_request(struct commit *commit, enum request_kind kind, struct range range)
{
    commit->writing++;
    commit->req = (struct request){.kind = kind, .range = range, .done = request_done};
    if (kind == REQUEST_WRITE_ZEROES)
        commit->req.flags = REQUEST_FAST_ZERO;
    node_submit(image_of(commit)->file, &commit->req);
}

static bool has_pages(const struct commit *commit, enum page_class first)
{
    for (unsigned class = first; class < PAGE_CLASSES; class ++)
        if (!list_empty(&commit->pages[class]))
            return true;
    return false;
}

/* Moves on, with a sync when one is due. Whether there is none under way. */
static bool next_with_sync(struct commit *commit, enum commit_step step, bool due)
{
    commit_move(commit, commit->status < 0 ? COMMIT_END : step);
    if (commit->status < 0 || !due)
        return true;
    commit->unsynced = false;
    if (MUTANT(qcow2_mapping_before_data) && step == COMMIT_SYNC_DATA)
        return true;
    start_request(commit, REQUEST_FLUSH, (struct range){0, 0});
    return false;
}

/* The next of the freed ones can't be counted down: it leaks. Nothing that is durable by now fails for that. */
static int freed_leak(struct commit *commit)
{
    PROBE(qcow2_freed_leaked);
    image_of(commit)->freed[commit->next_freed++].used = true;
    return 0;
}

static void free_wake(struct qcow2_waiter *waiter, int status)
{
    struct commit *commit = container_of(waiter, struct commit, waiter);
    if (status < 0)
        freed_leak(commit);
    commit_go_on(commit);
}

/* Whether I/O that began before the mappings changed has ended. */
static bool grace_is_over(const struct commit *commit)
{
    const struct qcow2 *image = container_of(commit, const struct qcow2, commit);
    return commit->freed == 0 || image->under_way[commit->side] == 0 || MUTANT(qcow2_freed_under_io);
}

static void grace_begin(struct commit *commit)
{
    struct qcow2 *image = image_of(commit);
    commit->side = image->side;
    if (commit->status == 0 && commit->freed > 0)
        image->side = !image->side;
}

bool mapped_enter(struct qcow2 *image)
{
    image->under_way[image->side]++;
    return image->side;
}

void mapped_leave(struct qcow2 *image, bool side)
{
    struct commit *commit = &image->commit;
    if (--image->under_way[side] == 0 && commit->step == COMMIT_GRACE && commit->side == side && commit->freed > 0) {
        PROBE(qcow2_grace_waited);
        commit_go_on(commit);
    }
}

/* Whether it needs no more memory. A block that can't be read keeps its counts: clusters leak, nothing else. */
static bool free_clusters(struct commit *commit)
{
    struct qcow2 *image = image_of(commit);
    int status = 0;
    commit->waiter.wake = free_wake;
    while (commit->status == 0 && status == 0 && commit->next_freed < commit->freed) {
        struct freed *freed = &image->freed[commit->next_freed];
        status = clusters_release(image, freed, &commit->waiter);
        if (status == -EAGAIN)
            return false;
        if (status == -ENOBUFS && list_empty(&image->dirty[PAGE_REFBLOCK]))
            commit->freed = commit->next_freed; /* the others' pages are to be written first: the next commit */
        else if (status < 0 && status != -ENOBUFS)
            status = freed_leak(commit);
        else if (status == 0 && freed->released == freed->run.count)
            commit->next_freed++;
    }
    take_dirty(image, PAGE_REFBLOCK);
    return true;
}

/* Whether nothing is left to punch. */
static bool punch_next(struct commit *commit)
{
    struct qcow2 *image = image_of(commit);
    while (commit->next_freed < commit->freed) {
        const struct freed *freed = &image->freed[commit->next_freed++];
        if (freed->used)
            continue;
        if (freed->zero) {
            unused_add(image, freed->run);
        } else if (image->file->can_fast_zero) {
            start_request(
                commit, REQUEST_WRITE_ZEROES,
                (struct range){freed->run.first << image->cluster_bits, freed->run.count << image->cluster_bits});
            return false;
        }
    }
    return true;
}

/* What a failure has left goes back, and the waiters hear of it. */
static void commit_end(struct commit *commit)
{
    struct qcow2 *image = image_of(commit);
    struct list waiters, counters;
    assert(commit->writing == 0);
    for (unsigned class = 0; class < PAGE_CLASSES; class ++)
        while (!list_empty(&commit->pages[class]))
            page_finish(container_of(list_take_first(&commit->pages[class]), struct page, link), false);
    if (commit->status == 0 || commit->next_freed > 0) {
        unsigned done = commit->status == 0 ? commit->freed : commit->next_freed;
        image->freed_count -= done;
        memmove(image->freed, image->freed + done, image->freed_count * sizeof *image->freed);
    }
    list_init(&waiters);
    list_init(&counters);
    list_take_all(&waiters, &commit->flushers);
    list_take_all(&waiters, &commit->enders);
    list_take_all(&counters, &commit->counters);
    commit_move(commit, COMMIT_IDLE);
    cache_trim(image);
    int status = commit->status, count_status = status < 0 ? status : commit->count_status;
    if (status < 0)
        PROBE(qcow2_commit_failed);
    qcow2_wake_all(&waiters, status);
    qcow2_wake_all(&counters, count_status);
    /* Whoever waits for room hears of it too when there will be none. */
    qcow2_wake_all(&image->room_waiters, status < 0 || cache_is_full(image) ? count_status : 0);
    if (is_awaited(commit))
        commit_begin(image);
    else if (image->doomed)
        io_task_queue(image->node.io, &image->doom);
}

static bool end_sync_is_due(const struct commit *commit)
{
    return !list_empty(&commit->flushers) || !list_empty(&commit->enders) || !list_empty(&commit->counters) ||
           commit->freed > 0;
}

/* The table, and what it leads to: it names no block that could not be written. */
static bool mappings_are_due(const struct commit *commit)
{
    return commit->count_status == 0 && has_pages(commit, PAGE_REFTABLE);
}

static void freed_written(struct commit *commit)
{
    if (commit->count_status < 0)
        commit->freed =
            commit->next_freed; /* what is counted down in memory is free; the others with the next commit */
    bool all = commit->next_freed == commit->freed;
    commit_move(commit, commit->status < 0 ? COMMIT_END : all ? COMMIT_PUNCH : COMMIT_FREE);
    if (commit->step == COMMIT_PUNCH)
        commit->next_freed = 0;
}

static void commit_go_on(struct commit *commit)
{
    bool finished = commit->writing == 0;
    while (finished && commit->step != COMMIT_IDLE) {
        switch (commit->step) {
        case COMMIT_REFBLOCKS:
            finished = write_pages(commit, PAGE_REFBLOCK) &&
                       next_with_sync(commit, COMMIT_SYNC_DATA, mappings_are_due(commit));
            break;
        case COMMIT_SYNC_DATA:
            commit_move(commit, commit->status < 0 ? COMMIT_END : COMMIT_REFTABLE);
            break;
        case COMMIT_REFTABLE:
            finished = !mappings_are_due(commit) || write_pages(commit, PAGE_REFTABLE);
            if (finished && !image_of(commit)->write_back)
                commit_move(commit, commit->status < 0 ? COMMIT_END : COMMIT_SETTLE);
            else if (finished)
                finished = next_with_sync(commit, COMMIT_SYNC_REFTABLE, commit->unsynced && has_pages(commit, PAGE_L2));
            break;
        case COMMIT_SYNC_REFTABLE:
            commit_move(commit, commit->status < 0 ? COMMIT_END : COMMIT_L2);
            break;
        case COMMIT_L2:
            finished = write_pages(commit, PAGE_L2) &&
                       next_with_sync(commit, COMMIT_SYNC_L2, commit->unsynced && has_pages(commit, PAGE_L1));
            break;
        case COMMIT_SYNC_L2:
            commit_move(commit, commit->status < 0 ? COMMIT_END : COMMIT_L1);
            break;
        case COMMIT_L1:
            finished = write_pages(commit, PAGE_L1) && next_with_sync(commit, COMMIT_SYNC_END, end_sync_is_due(commit));
            break;
        case COMMIT_SETTLE:
            finished = commit->settling == 0 && next_with_sync(commit, COMMIT_SYNC_END, end_sync_is_due(commit));
            break;
        case COMMIT_SYNC_END:
            if (commit->status == 0) { /* the others hear of it at the end */
                qcow2_wake_all(&commit->flushers, 0);
                qcow2_wake_all(&commit->counters, commit->count_status);
            }
            grace_begin(commit);
            commit_move(commit, commit->status < 0 ? COMMIT_END : COMMIT_GRACE);
            break;
        case COMMIT_GRACE:
            finished = grace_is_over(commit);
            if (finished)
                commit_move(commit, COMMIT_FREE);
            break;
        case COMMIT_FREE:
            finished = free_clusters(commit);
            if (finished)
                commit_move(commit, commit->status < 0 ? COMMIT_END : COMMIT_FREED);
            break;
        case COMMIT_FREED:
            finished = write_pages(commit, PAGE_REFBLOCK);
            if (finished)
                freed_written(commit);
            break;
        case COMMIT_PUNCH:
            finished = punch_next(commit);
            if (finished)
                commit_move(commit, COMMIT_END);
            break;
        case COMMIT_END:
            if (commit->settling == 0)
                commit_end(commit);
            return;
        case COMMIT_IDLE:
            break;
        }
    }
}
