/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The copy engine.
 *
 * The disk is cut into extents of 1 MiB, each with its own hash. A *worker* takes one extent at a time from the source to
 * the target (copy_worker.c), and several workers are under way at once, so that the source, the helpers and the target are
 * all busy. Ahead of them one *scan* asks the source for its block status (copy_scan.c), so that holes are never read; an
 * extent that is known to be zero needs no worker at all unless the target must be told.
 *
 * Which extent is next says copy_order.c: in the order of the disk, unless the source is a snapshot that gives *advice*
 * (copy_advice.c). What the target has flushed may be *released* at the source (copy_release.c).
 *
 * A speed limit, a pause and a cancelling all act where an extent is taken, and nowhere else: what is under way goes on. So
 * they delay the copy, and never anybody who shares a node with it.
 *
 * All decisions are taken in copy_run(), a task that every completion queues. The first error (or the cancelling) stops
 * new work; the end comes when nothing is under way, after a flush of the target if there was no error.
 */
#include "job/copy_internal.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <gnutls/crypto.h>

/* --- ends and errors */

void copy_wake(struct copy *copy)
{
    io_task_queue(copy->options.io, &copy->task);
}

void copy_fail(struct copy *copy, int status, const char *what, const char *name, struct range range)
{
    if (copy->status < 0)
        return;
    copy->status = error_set(&copy->err, -status, "%s %s failed at byte %llu (%llu bytes): %s", what, name,
                             (unsigned long long)range.start, (unsigned long long)range.length, error_name(status));
    if (copy->options.io_error)
        copy->options.io_error(copy->options.context, name == copy->options.source_name);
}

void copy_flush_failed(struct copy *copy, int status)
{
    if (copy->status < 0)
        return;
    copy->status = error_set(&copy->err, -status, "flushing %s failed: %s", copy->options.target_name,
                             error_name(status));
    if (copy->options.io_error)
        copy->options.io_error(copy->options.context, false);
}

void copy_record_failed(struct copy *copy, int status)
{
    if (copy->status == 0)
        copy->status = error_set(&copy->err, -status, "noting what %s holds already failed: %s",
                                 copy->options.target_name, error_name(status));
}

static void copy_report(struct copy *copy, bool last)
{
    uint64_t now_ns = io_now_ns(copy->options.io);
    if (!copy->options.progress || (!last && now_ns - copy->reported_ns < COPY_PROGRESS_NS))
        return;
    copy->reported_ns = now_ns;
    copy->options.progress(copy->options.context, copy->done_bytes, copy->size_bytes, copy->data_bytes);
}

static void copy_free(struct copy *copy)
{
    io_timer_cancel(copy->options.io, &copy->throttle_timer);
    scan_fini(copy);
    advice_fini(copy);
    release_fini(copy);
    copy_order_fini(&copy->order);
    free(copy->buffers);
    free(copy->workers);
    free(copy);
}

static void copy_finish(struct copy *copy)
{
    copy_report(copy, true);
    struct copy_options options = copy->options;
    struct error err = copy->err;
    int status = copy->status;
    copy_free(copy);
    options.done(options.context, status, &err);
}

/* --- extents that are done */

int copy_hash_bytes(const void *bytes, size_t length, uint8_t *hash)
{
    return gnutls_hash_fast(GNUTLS_DIG_SHA256, bytes, length, hash) == 0 ? 0 : -EIO;
}

bool copy_hashed(struct copy *copy, struct range extent, const uint8_t *hash)
{
    uint64_t at = copy_extent_of(extent.start) * COPY_HASH_BYTES;
    if (copy->options.hashes)
        memcpy(copy->options.hashes + at, hash, COPY_HASH_BYTES);
    if (!copy->options.expected || memcmp(copy->options.expected + at, hash, COPY_HASH_BYTES) == 0)
        return true;
    if (copy->options.mismatch)
        copy->options.mismatch(copy->options.context, extent);
    else if (copy->status == 0)
        copy->status = error_set(
            &copy->err, EBADMSG,
            "%s is damaged: extent %llu (bytes %llu to %llu) has another SHA-256 than was recorded",
            copy->options.source_name, (unsigned long long)copy_extent_of(extent.start),
            (unsigned long long)extent.start, (unsigned long long)range_end(extent) - 1);
    return false;
}

void copy_extent_done(struct copy *copy, struct range extent)
{
    copy->done_bytes += extent.length;
    copy_order_set(&copy->order, copy_extent_of(extent.start), copy_notes_flushes(copy) ? COPY_WRITTEN : COPY_DONE);
}

void copy_extent_passed(struct copy *copy, struct range extent)
{
    copy->done_bytes += extent.length;
    copy_order_set(&copy->order, copy_extent_of(extent.start), COPY_DONE);
}

/* --- what is taken next */

static bool copy_all_taken(const struct copy *copy)
{
    return copy->status < 0 || copy_order_todo(&copy->order) == 0;
}

static void copy_may_go_on(struct io_timer *timer)
{
    copy_wake(container_of(timer, struct copy, throttle_timer));
}

/* false: the speed limit says not yet; the copy wakes up again. */
static bool copy_within_speed(struct copy *copy)
{
    uint64_t now_ns = io_now_ns(copy->options.io), wait_ns = throttle_wait_ns(&copy->throttle, now_ns);
    if (wait_ns == 0 || copy->hurried)
        return true;
    io_timer_set(copy->options.io, &copy->throttle_timer, now_ns + wait_ns);
    return false;
}

/* An extent that reads as zeroes needs no worker now: the target is told last, or not at all. */
static void copy_pass_zeroes(struct copy *copy, uint64_t extent)
{
    struct range range = copy_extent_range(copy, extent);
    if (copy->options.target && !copy->options.target_is_zero) {
        copy_order_set(&copy->order, extent, COPY_ZEROES);
        return;
    }
    copy_order_set(&copy->order, extent, COPY_TAKEN);
    copy_hashed(copy, range, copy_zero_hash(copy, range));
    copy_extent_done(copy, range);
}

static bool copy_to_worker(struct copy *copy, uint64_t extent, const struct cells *data)
{
    struct list_node *link = list_empty(&copy->idle) || !copy_within_speed(copy) ? NULL : list_take_first(&copy->idle);
    if (!link)
        return false;
    copy_order_set(&copy->order, extent, COPY_TAKEN);
    worker_start(container_of(link, struct worker, link), copy_extent_range(copy, extent), data);
    return true;
}

/* The next extent in the order of the disk, as far as it was scanned. */
static bool copy_take_in_order(struct copy *copy)
{
    const uint64_t count = copy->order.count;
    uint64_t extent = copy_order_find(&copy->order, COPY_UNREAD, copy->next);
    if (extent == count)
        extent = copy_order_find(&copy->order, COPY_UNREAD, 0);
    copy->next = extent;
    struct range range = copy_extent_range(copy, extent);
    if (copy->options.wanted) {
        struct cells wanted = select_wanted(copy, extent);
        return copy_to_worker(copy, extent, &wanted);
    }
    scan_skip_to(copy, range.start);
    if (range_end(range) > copy->advised_first)
        return false;
    if (range.start < copy->runs_start) /* it was passed by, for the advice was another one then */
        return copy_to_worker(copy, extent, NULL);
    if (range_end(range) > copy->scanned)
        return false;
    struct cells data = scan_cells(copy, range);
    bool zero = cells_empty(&data);
    if (copy_selects(&copy->options)) {
        if (!zero)
            return copy_to_worker(copy, extent, &data);
        copy_extent_passed(copy, range);
        return true;
    }
    if (zero && (copy->options.advice || !copy->options.target || copy->options.target_is_zero)) {
        copy_pass_zeroes(copy, extent);
        return true;
    }
    return copy_to_worker(copy, extent, &data);
}

/* Takes one more extent. false: not now. */
static bool copy_take(struct copy *copy)
{
    static const struct cells no_data;
    enum copy_state from = copy_order_next(&copy->order, copy->hurried);
    if (from == COPY_UNREAD)
        return copy_take_in_order(copy);
    return copy_to_worker(copy, copy_order_find(&copy->order, from, 0), from == COPY_ZEROES ? &no_data : NULL);
}

/* --- the whole */

static void flush_done(struct request *req, int status)
{
    struct copy *copy = container_of(req, struct copy, flush);
    if (status < 0)
        copy_flush_failed(copy, status);
    copy->flushing = false;
    copy->flushed = true;
    copy_wake(copy);
}

static void copy_tell_paused(struct copy *copy)
{
    if (copy->status < 0 || !copy->paused || copy->paused_told || copy->busy > 0)
        return;
    copy->paused_told = true;
    if (copy->options.paused)
        copy->options.paused(copy->options.context);
}

static void copy_run(struct io_task *task)
{
    struct copy *copy = container_of(task, struct copy, task);
    for (unsigned i = 0; !copy->paused && !copy_all_taken(copy); i++) {
        if (i == LIMIT_COPY_ZERO_BATCH)
            copy_wake(copy);
        if (i == LIMIT_COPY_ZERO_BATCH || !copy_take(copy))
            break;
    }
    if (!copy->paused && !copy_all_taken(copy)) {
        scan_go_on(copy);
        advice_go_on(copy);
    }
    release_go_on(copy);
    copy_report(copy, false);
    copy_tell_paused(copy);
    if (!copy_all_taken(copy) || copy->busy > 0 || copy->scanning || copy->advising || copy->flushing ||
        copy->discarding || (copy->paused && copy->status == 0) || list_linked(&copy->task.link))
        return;
    if (copy->status < 0 || copy->flushed || !copy->options.target) {
        copy_finish(copy);
        return;
    }
    if (copy->options.record && copy->order.in_state[COPY_WRITTEN] > 0) {
        release_flush(copy);
        return;
    }
    copy->flushing = true;
    copy->flush = (struct request){.kind = REQUEST_FLUSH, .done = flush_done};
    node_submit(copy->options.target, &copy->flush);
}

static int hash_zeroes(struct copy *copy)
{
    uint64_t tail = copy->size_bytes % COPY_EXTENT_BYTES;
    memset(copy->buffers, 0, COPY_EXTENT_BYTES);
    int status = copy_hash_bytes(copy->buffers, COPY_EXTENT_BYTES, copy->zero_hash);
    return status < 0 ? status : copy_hash_bytes(copy->buffers, tail, copy->zero_tail_hash);
}

static int workers_init(struct copy *copy)
{
    copy->worker_count = copy->options.workers ? copy->options.workers : COPY_WORKERS_DEFAULT;
    copy->workers = calloc(copy->worker_count, sizeof *copy->workers);
    copy->buffers = aligned_alloc(LIMIT_ALIGNMENT_BYTES, copy->worker_count * COPY_EXTENT_BYTES);
    if (!copy->workers || !copy->buffers)
        return -ENOMEM;
    list_init(&copy->idle);
    for (unsigned i = 0; i < copy->worker_count; i++) {
        copy->workers[i].copy = copy;
        copy->workers[i].buffer = copy->buffers + i * COPY_EXTENT_BYTES;
        list_append(&copy->idle, &copy->workers[i].link);
    }
    return 0;
}

struct copy *copy_start(const struct copy_options *options)
{
    assert(io_on_owner(options->io) && options->done && options->source_name);
    uint64_t size_bytes = options->size_bytes ? options->size_bytes : options->source->size_bytes;
    assert(size_bytes <= options->source->size_bytes);
    assert(!options->target || (options->target_name && options->target->size_bytes >= size_bytes));
    assert(options->workers <= LIMIT_COPY_WORKERS);
    assert(!(options->dirty && options->wanted) && !(copy_selects(options) && options->needed_only));
    const struct node *records = options->records ? options->records : options->source;
    assert(records->size_bytes == options->source->size_bytes);
    assert(!options->dirty || (options->dirty_map < records->dirty_map_count && !options->target_is_zero));
    assert(!options->needed_only || (!options->hashes && !options->expected && options->target));
    struct copy *copy = calloc(1, sizeof *copy);
    if (!copy)
        return NULL;
    copy->options = *options;
    copy->size_bytes = size_bytes;
    if (copy_order_init(&copy->order, copy_extent_count(copy->size_bytes)) < 0 || workers_init(copy) < 0 ||
        scan_init(copy) < 0 || advice_init(copy) < 0 || (copy_wants_hashes(copy) && hash_zeroes(copy) < 0)) {
        copy_free(copy);
        return NULL;
    }
    release_init(copy);
    select_init(copy);
    copy->throttle_timer.fire = copy_may_go_on;
    throttle_set(&copy->throttle, options->speed, io_now_ns(options->io));
    copy->task.run = copy_run;
    copy_wake(copy);
    return copy;
}

void copy_cancel(struct copy *copy)
{
    assert(io_on_owner(copy->options.io));
    if (copy->status == 0)
        copy->status = error_set(&copy->err, ECANCELED, "the copy of %s was cancelled", copy->options.source_name);
    copy_wake(copy);
}

void copy_pause(struct copy *copy)
{
    assert(io_on_owner(copy->options.io));
    copy->paused = true;
    copy->paused_told = false;
    copy_wake(copy);
}

void copy_resume(struct copy *copy)
{
    assert(io_on_owner(copy->options.io));
    copy->paused = false;
    copy_wake(copy);
}

void copy_set_speed(struct copy *copy, uint64_t speed)
{
    assert(io_on_owner(copy->options.io));
    throttle_set(&copy->throttle, speed, io_now_ns(copy->options.io));
    copy_wake(copy);
}

void copy_hurry(struct copy *copy, bool hurry)
{
    assert(io_on_owner(copy->options.io));
    copy->hurried = hurry;
    copy_wake(copy);
}
