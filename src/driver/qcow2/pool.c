/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Clusters for new mappings: those that became free since the image was opened, or the end of the file.
 *
 * Free ones are remembered (`unused`) when nothing on stable storage refers to them any more, nobody reads or writes there
 * (commit.c), and they have been punched out: so they are zero, as those at the end of the file are.
 *
 * With mappings in memory a cluster is counted when it is taken; the commit writes counts before mappings.
 *
 * Written through (through.c) the count has to be on stable storage before the mapping is written, and the cluster in the
 * file, and zero there. So they are counted ahead:
 *
 *     idle -> count -> extend -> commit -> idle
 *
 * a batch at a time, each twice as large as the one before: the counts are changed in memory, the last page of the batch is
 * written (zeroes) if the file ends before it, and a commit makes all of that stable, punched holes included. Then the
 * batch is ready. The next one is begun when half of it is used, so that nobody has to wait as long as the disk keeps up.
 *
 * What is ready or on its way and was not used is given back before the image is closed (REQUEST_LAST); after a crash it
 * stays counted: clusters leak, without space on the disk.
 */
#include <assert.h>
#include <errno.h>

#include "base/probe.h"
#include "driver/qcow2/internal.h"

static struct qcow2 *image_of(struct pool *pool)
{
    return container_of(pool, struct qcow2, pool);
}

static void pool_move(struct pool *pool, enum pool_step step)
{
    static const enum pool_step before[] = {
        [POOL_COUNT] = POOL_IDLE, [POOL_EXTEND] = POOL_COUNT, [POOL_COMMIT] = POOL_EXTEND};
    assert(step == POOL_IDLE || pool->step == before[step]);
    pool->step = step;
}

/* Runs. */

/* The shortest that is long enough, or the longest. */
static unsigned best_run(const struct cluster_run *runs, unsigned count, uint64_t most)
{
    unsigned best = 0;
    for (unsigned i = 1; i < count; i++) {
        bool better = runs[best].count < most ? runs[i].count > runs[best].count
                                              : runs[i].count >= most && runs[i].count < runs[best].count;
        if (better)
            best = i;
    }
    return best;
}

/* From its beginning; an empty one goes. */
static void shorten_run(struct cluster_run *runs, unsigned *count, unsigned index, uint64_t taken)
{
    runs[index].first += taken;
    runs[index].count -= taken;
    if (runs[index].count == 0)
        runs[index] = runs[--*count];
}

void unused_add(struct qcow2 *image, struct cluster_run run)
{
    for (unsigned i = 0; i < image->unused_count; i++) {
        struct cluster_run *other = &image->unused[i];
        if (other->first + other->count != run.first && run.first + run.count != other->first)
            continue;
        run.first = other->first < run.first ? other->first : run.first;
        run.count += other->count;
        *other = image->unused[--image->unused_count];
        i = (unsigned)-1; /* it may meet another one now */
    }
    if (image->unused_count < LIMIT_QCOW2_UNUSED)
        image->unused[image->unused_count++] = run;
}

/* Counts some of the free ones. -ENOENT: there are none. */
static int take_unused(struct qcow2 *image, uint64_t most, struct qcow2_waiter *waiter, struct cluster_run *run)
{
    while (image->unused_count > 0) {
        unsigned index = best_run(image->unused, image->unused_count, most);
        *run = image->unused[index];
        run->count = run->count < most ? run->count : most;
        int status = 0;
        struct range place = {run->first << image->cluster_bits, run->count << image->cluster_bits};
        if (cache_has(image, place)) /* a damaged image: a table refers to what is free */
            status = -EIO;
        else
            status = clusters_count(image, *run, waiter);
        if (status < 0 && status != -EIO)
            return status;
        shorten_run(image->unused, &image->unused_count, index, run->count);
        if (status == 0) {
            PROBE(qcow2_cluster_reused);
            return 0;
        }
    }
    return -ENOENT;
}

static int take_run(struct qcow2 *image, uint64_t most, struct qcow2_waiter *waiter, struct cluster_run *run)
{
    uint64_t offset, page_entries = l2_page_entries(image);
    most = most < page_entries ? most : page_entries;
    int status = take_unused(image, most, waiter, run);
    if (status != -ENOENT)
        return status;
    status = clusters_allocate(image, most, waiter, &offset);
    if (status == 0)
        *run = (struct cluster_run){offset >> image->cluster_bits, most};
    return status;
}

/* Counting ahead. */

static void pool_go_on(struct pool *pool, int status);

static void pool_wake(struct qcow2_waiter *waiter, int status)
{
    pool_go_on(container_of(waiter, struct pool, waiter), status);
}

static void pool_extended(struct request *req, int status)
{
    struct pool *pool = container_of(req, struct pool, req);
    if (status == 0)
        pool->extended_bytes = pool->extending_bytes;
    pool_go_on(pool, status);
}

static void pool_start(struct io_task *task)
{
    pool_go_on(container_of(task, struct pool, task), 0);
}

static void refill(struct qcow2 *image)
{
    struct pool *pool = &image->pool;
    if (pool->step != POOL_IDLE)
        return;
    pool_move(pool, POOL_COUNT);
    io_task_queue(image->node.io, &pool->task);
}

static void pool_end(struct pool *pool, int status)
{
    struct qcow2 *image = image_of(pool);
    pool_move(pool, POOL_IDLE);
    if (status < 0)
        PROBE(qcow2_pool_failed);
    qcow2_wake_all(&pool->waiting, status);
    qcow2_wake_all(&pool->closing, 0);
    if (image->doomed)
        io_task_queue(image->node.io, &image->doom);
}

static uint64_t next_clusters(const struct pool *pool)
{
    uint64_t count = 0;
    for (unsigned i = 0; i < pool->next_count; i++)
        count += pool->next[i].count;
    return count;
}

/* What there is of a batch is enough to go on. */
static int count_batch(struct pool *pool)
{
    struct qcow2 *image = image_of(pool);
    uint64_t have = next_clusters(pool);
    while (have < pool->batch && pool->next_count < LIMIT_QCOW2_POOL_RUNS / 2) {
        struct cluster_run run, *last = pool->next_count ? &pool->next[pool->next_count - 1] : NULL;
        int status = take_run(image, pool->batch - have, &pool->waiter, &run);
        if (status < 0)
            return status == -EAGAIN || have == 0 ? status : 0;
        have += run.count;
        if (last && last->first + last->count == run.first)
            last->count += run.count;
        else
            pool->next[pool->next_count++] = run;
    }
    return 0;
}

/* Whether the file reaches so far. */
static bool extend(struct pool *pool)
{
    struct qcow2 *image = image_of(pool);
    uint64_t end = 0;
    for (unsigned i = 0; i < pool->next_count; i++) {
        uint64_t run_end = (pool->next[i].first + pool->next[i].count) << image->cluster_bits;
        end = end > run_end ? end : run_end;
    }
    if (end <= pool->extended_bytes || MUTANT(qcow2_file_not_extended))
        return true;
    pool->extending_bytes = end;
    pool->iov = (struct iovec){image->zeroes, image->page_bytes};
    pool->req = (struct request){.kind = REQUEST_WRITE,
                                 .range = {end - image->page_bytes, image->page_bytes},
                                 .iov = &pool->iov,
                                 .iov_count = 1,
                                 .done = pool_extended};
    node_submit(image->file, &pool->req);
    return false;
}

static void batch_ready(struct pool *pool)
{
    pool->ready_clusters += next_clusters(pool);
    for (unsigned i = 0; i < pool->next_count; i++)
        pool->ready[pool->ready_count++] = pool->next[i];
    pool->next_count = 0;
    pool->batch = 2 * pool->batch < pool->batch_max ? 2 * pool->batch : pool->batch_max;
    pool_end(pool, 0);
}

static void pool_go_on(struct pool *pool, int status)
{
    struct qcow2 *image = image_of(pool);
    pool->waiter.wake = pool_wake;
    if (status == 0 && pool->step == POOL_COUNT) {
        status = count_batch(pool);
        if (status == -EAGAIN)
            return;
        if (status == 0) {
            pool_move(pool, POOL_EXTEND);
            if (!extend(pool))
                return;
        }
    }
    if (status < 0) {
        pool_end(pool, status);
    } else if (pool->step == POOL_COMMIT) {
        batch_ready(pool);
    } else {
        pool_move(pool, POOL_COMMIT);
        if (MUTANT(qcow2_counted_too_late))
            batch_ready(pool);
        else
            commit_wait_counts(image, &pool->waiter);
    }
}

void pool_init(struct qcow2 *image)
{
    struct pool *pool = &image->pool;
    list_init(&pool->waiting);
    list_init(&pool->closing);
    pool->task.run = pool_start;
    pool->extended_bytes = image->file->end_bytes;
    pool->batch = QCOW2_POOL_BYTES >> image->cluster_bits;
    pool->batch_max = QCOW2_POOL_MAX_BYTES >> image->cluster_bits;
    pool->batch = pool->batch > QCOW2_POOL_CLUSTERS ? pool->batch : QCOW2_POOL_CLUSTERS;
    pool->batch_max = pool->batch_max < LIMIT_QCOW2_POOL_CLUSTERS ? pool->batch_max : LIMIT_QCOW2_POOL_CLUSTERS;
}

int clusters_take(struct qcow2 *image, uint64_t most, struct qcow2_waiter *waiter, uint64_t *offset, uint64_t *count)
{
    struct pool *pool = &image->pool;
    struct cluster_run run;
    if (image->write_back) {
        int status = take_run(image, most, waiter, &run);
        *offset = run.first << image->cluster_bits;
        *count = run.count;
        return status;
    }
    if (pool->ready_clusters < pool->batch / 2 && pool->ready_count <= LIMIT_QCOW2_POOL_RUNS / 2)
        refill(image);
    if (pool->ready_clusters == 0) {
        PROBE(qcow2_pool_empty);
        qcow2_wait(&pool->waiting, waiter);
        refill(image);
        return -EAGAIN;
    }
    unsigned index = best_run(pool->ready, pool->ready_count, most);
    run = pool->ready[index];
    *offset = run.first << image->cluster_bits;
    *count = run.count < most ? run.count : most;
    pool->ready_clusters -= *count;
    shorten_run(pool->ready, &pool->ready_count, index, *count);
    return 0;
}

int pool_give_back(struct qcow2 *image, struct qcow2_waiter *waiter)
{
    struct pool *pool = &image->pool;
    if (pool->step != POOL_IDLE) {
        qcow2_wait(&pool->closing, waiter);
        return -EAGAIN;
    }
    int status = freed_reserve(image, pool->ready_count + pool->next_count + (image->begun_table != 0), waiter);
    if (status < 0)
        return status;
    if (image->begun_table)
        freed_add(image, image->begun_table, image->cluster_bytes, true);
    image->begun_table = 0;
    for (unsigned i = 0; i < pool->ready_count; i++)
        freed_add(image, pool->ready[i].first << image->cluster_bits, pool->ready[i].count << image->cluster_bits,
                  true);
    for (unsigned i = 0; i < pool->next_count; i++)
        freed_add(image, pool->next[i].first << image->cluster_bits, pool->next[i].count << image->cluster_bits, true);
    pool->ready_count = pool->next_count = 0;
    pool->ready_clusters = 0;
    return 0;
}
