/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The copy engine.
 *
 * The disk is cut into extents of 1 MiB, each with its own hash. A *worker* takes one extent at a time through
 *
 *     read the parts that may hold data -> hash and look for zeroes (helper thread) -> write the parts that hold data
 *
 * and several workers are under way at once, so that the source, the helpers and the target are all busy. Ahead of them
 * one *scan* asks the source for its block status, so that holes are never read; an extent that is known to be zero needs
 * no worker at all unless the target must be told.
 *
 * Within an extent everything is counted in cells of 4 KiB: a bitmap says which cells may hold data (from the block
 * status), later which ones do (from looking). Parts nearer to each other than COPY_GAP_CELLS are read and written as one:
 * a request costs more than the few zeroes between them.
 *
 * Extents are hashed before they are written, so with `expected` nothing wrong reaches the target.
 *
 * All decisions are taken in copy_run(), a task that every completion queues. The first error (or the cancelling) stops
 * new work; the end comes when nothing is under way, after a flush of the target if there was no error.
 */
#include "job/copy.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <gnutls/crypto.h>

#define CELL_BYTES ((uint64_t)4096)
#define EXTENT_CELLS (COPY_EXTENT_BYTES / CELL_BYTES)
#define COPY_GAP_CELLS 4
/* Runs of the scan that are kept: one answer being used, one that came ahead. */
#define COPY_RUNS (2 * LIMIT_STATUS_EXTENTS)

struct cells { /* of one extent */
    uint64_t bits[EXTENT_CELLS / 64];
};

struct scan_run {
    uint64_t length; /* bytes */
    bool zero;
};

struct worker {
    struct copy *copy;
    struct list_node link; /* in copy->idle */
    struct range extent;
    struct cells data;  /* cells that may hold data, then those that do */
    unsigned next_cell; /* reading or writing has come so far */
    char *buffer;
    uint8_t hash[COPY_HASH_BYTES];
    struct iovec iov;
    struct request req;
    struct io_op op;
};

struct copy {
    struct copy_options options;
    struct worker *workers;
    unsigned worker_count;
    char *buffers;
    struct list idle;
    unsigned busy;
    struct io_task task;
    uint64_t next; /* byte at which the next extent begins */
    /* The scan: runs[first_run..run_end) cover [runs_start, runs_end); the next question begins at `scanned`. */
    struct scan_run *runs;
    struct block_extent *answer;
    unsigned first_run, run_end;
    uint64_t runs_start, runs_end, scanned;
    struct request scan;
    bool scanning;
    struct request flush;
    bool flushing, flushed;
    int status;
    struct error err;
    uint64_t done_bytes, data_bytes, reported_ns;
    uint8_t zero_hash[COPY_HASH_BYTES], zero_tail_hash[COPY_HASH_BYTES];
};

/* --- cells */

static bool cell_get(const struct cells *cells, unsigned cell)
{
    return cells->bits[cell / 64] >> (cell % 64) & 1;
}

static void cells_set(struct cells *cells, unsigned first, unsigned end)
{
    for (unsigned cell = first; cell < end; cell++)
        cells->bits[cell / 64] |= UINT64_C(1) << (cell % 64);
}

static void cell_clear(struct cells *cells, unsigned cell)
{
    cells->bits[cell / 64] &= ~(UINT64_C(1) << (cell % 64));
}

static bool cells_empty(const struct cells *cells)
{
    uint64_t any = 0;
    for (unsigned i = 0; i < EXTENT_CELLS / 64; i++)
        any |= cells->bits[i];
    return any == 0;
}

static unsigned cell_count(const struct worker *worker)
{
    return (unsigned)((worker->extent.length + CELL_BYTES - 1) / CELL_BYTES);
}

/* The bytes of cells [first, end) within the extent; the last cell of a disk may be short. */
static struct range cells_range(const struct worker *worker, unsigned first, unsigned end)
{
    uint64_t start = first * CELL_BYTES, stop = end * CELL_BYTES, length = worker->extent.length;
    start = start < length ? start : length;
    stop = stop < length ? stop : length;
    return (struct range){start, stop - start};
}

/* The end of the part with data that begins at `first`, across short gaps. */
static unsigned data_end(const struct worker *worker, unsigned first)
{
    unsigned end = first, count = cell_count(worker);
    for (unsigned cell = first; cell < count && cell - end < COPY_GAP_CELLS; cell++)
        if (cell_get(&worker->data, cell))
            end = cell + 1;
    return end;
}

/* The end of the part without data that begins at `first`. */
static unsigned gap_end(const struct worker *worker, unsigned first)
{
    unsigned cell = first, count = cell_count(worker);
    while (cell < count && !cell_get(&worker->data, cell))
        cell++;
    return cell;
}

/* --- ends and errors */

static void copy_wake(struct copy *copy)
{
    io_task_queue(copy->options.io, &copy->task);
}

/* Keeps the first error; new work stops. */
static void copy_fail(struct copy *copy, int status, const char *what, const char *name, struct range range)
{
    if (copy->status < 0)
        return;
    copy->status = error_set(&copy->err, -status, "%s %s failed at byte %llu (%llu bytes): %s", what, name,
                             (unsigned long long)range.start, (unsigned long long)range.length, error_name(status));
}

static void copy_report(struct copy *copy, bool last)
{
    uint64_t now_ns = io_now_ns(copy->options.io);
    if (!copy->options.progress || (!last && now_ns - copy->reported_ns < COPY_PROGRESS_NS))
        return;
    copy->reported_ns = now_ns;
    copy->options.progress(copy->options.context, copy->done_bytes, copy->options.source->size_bytes, copy->data_bytes);
}

static void copy_free(struct copy *copy)
{
    free(copy->buffers);
    free(copy->workers);
    free(copy->runs);
    free(copy->answer);
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

/* --- hashes */

static int hash_bytes(const void *bytes, size_t length, uint8_t *hash)
{
    return gnutls_hash_fast(GNUTLS_DIG_SHA256, bytes, length, hash) == 0 ? 0 : -EIO;
}

/* Notes the hash of an extent. false: it is not the one that was expected. */
static bool extent_hashed(struct copy *copy, struct range extent, const uint8_t *hash)
{
    uint64_t at = extent.start / COPY_EXTENT_BYTES * COPY_HASH_BYTES;
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
            copy->options.source_name, (unsigned long long)(extent.start / COPY_EXTENT_BYTES),
            (unsigned long long)extent.start, (unsigned long long)range_end(extent) - 1);
    return false;
}

static bool is_zero(const char *bytes, size_t length)
{
    if (length == 0 || bytes[0] != 0)
        return length == 0;
    return memcmp(bytes, bytes + 1, length - 1) == 0;
}

/* On a helper thread: it alone touches the worker meanwhile. */
static int64_t worker_look(void *argument)
{
    struct worker *worker = argument;
    for (unsigned cell = 0; cell < cell_count(worker); cell++) {
        struct range range = cells_range(worker, cell, cell + 1);
        if (cell_get(&worker->data, cell) && is_zero(worker->buffer + range.start, range.length))
            cell_clear(&worker->data, cell);
    }
    if (!worker->copy->options.hashes && !worker->copy->options.expected)
        return 0;
    return hash_bytes(worker->buffer, worker->extent.length, worker->hash);
}

/* --- one extent through its worker */

static void worker_submit(struct worker *worker, struct node *node, enum request_kind kind, struct range range,
                          void (*done)(struct request *req, int status))
{
    worker->iov = (struct iovec){worker->buffer + range.start, range.length};
    worker->req = (struct request){.kind = kind,
                                   .range = {worker->extent.start + range.start, range.length},
                                   .iov = &worker->iov,
                                   .iov_count = 1,
                                   .done = done};
    node_submit(node, &worker->req);
}

/* The extent is done with, well or not. */
static void worker_release(struct worker *worker, bool well)
{
    struct copy *copy = worker->copy;
    if (well)
        copy->done_bytes += worker->extent.length;
    copy->busy--;
    list_append(&copy->idle, &worker->link);
    copy_wake(copy);
}

static void worker_write(struct worker *worker);

static void worker_written(struct request *req, int status)
{
    struct worker *worker = container_of(req, struct worker, req);
    if (status < 0)
        copy_fail(worker->copy, status, "writing", worker->copy->options.target_name, req->range);
    worker_write(worker);
}

/* The next part: data is written; the rest is zeroes, which a target that is zero already need not hear about. */
static void worker_write(struct worker *worker)
{
    struct copy *copy = worker->copy;
    unsigned first = worker->next_cell, count = cell_count(worker);
    if (copy->options.target_is_zero)
        first = gap_end(worker, first);
    if (copy->status < 0 || first == count || !copy->options.target) {
        worker_release(worker, copy->status == 0);
        return;
    }
    bool data = cell_get(&worker->data, first);
    unsigned end = data ? data_end(worker, first) : gap_end(worker, first);
    worker->next_cell = end;
    worker_submit(worker, copy->options.target, data ? REQUEST_WRITE : REQUEST_WRITE_ZEROES,
                  cells_range(worker, first, end), worker_written);
}

static void worker_looked(struct io_op *op, int64_t result)
{
    struct worker *worker = container_of(op, struct worker, op);
    struct copy *copy = worker->copy;
    if (result < 0)
        copy_fail(copy, (int)result, "hashing", copy->options.source_name, worker->extent);
    for (unsigned cell = 0; cell < cell_count(worker); cell++)
        if (cell_get(&worker->data, cell))
            copy->data_bytes += cells_range(worker, cell, cell + 1).length;
    worker->next_cell = 0;
    bool wanted = copy->options.hashes || copy->options.expected;
    if (copy->status < 0 || (wanted && !extent_hashed(copy, worker->extent, worker->hash)))
        worker_release(worker, copy->status == 0);
    else
        worker_write(worker);
}

static void worker_read(struct worker *worker);

static void worker_has_read(struct request *req, int status)
{
    struct worker *worker = container_of(req, struct worker, req);
    if (status < 0)
        copy_fail(worker->copy, status, "reading", worker->copy->options.source_name, req->range);
    worker_read(worker);
}

/* The next part that may hold data; what lies between is zero, and the buffer says so. */
static void worker_read(struct worker *worker)
{
    struct copy *copy = worker->copy;
    unsigned first = gap_end(worker, worker->next_cell), count = cell_count(worker);
    struct range gap = cells_range(worker, worker->next_cell, first);
    if (copy->status < 0) {
        worker_release(worker, false);
        return;
    }
    memset(worker->buffer + gap.start, 0, gap.length);
    if (first == count) {
        worker->op.done = worker_looked;
        io_work(copy->options.io, &worker->op, worker_look, worker);
        return;
    }
    worker->next_cell = data_end(worker, first);
    worker_submit(worker, copy->options.source, REQUEST_READ, cells_range(worker, first, worker->next_cell),
                  worker_has_read);
}

/* --- the scan */

/*
 * Adds the next `length` bytes to the runs. What follows data in the same cell counts as data, so that at most two runs
 * begin in a cell and 512 make up an extent, however finely the source answers; otherwise the runs that are kept might
 * never reach the end of an extent.
 */
static void scan_add(struct copy *copy, uint64_t length, bool zero)
{
    uint64_t size = copy->options.source->size_bytes;
    copy->scanned += length;
    uint64_t end = zero ? copy->scanned : round_up(copy->scanned, CELL_BYTES);
    end = end < size ? end : size;
    if (end <= copy->runs_end)
        return;
    if (copy->run_end == copy->first_run || copy->runs[copy->run_end - 1].zero != zero)
        copy->runs[copy->run_end++] = (struct scan_run){0, zero};
    copy->runs[copy->run_end - 1].length += end - copy->runs_end;
    copy->runs_end = end;
}

static void scan_done(struct request *req, int status)
{
    struct copy *copy = container_of(req, struct copy, scan);
    copy->scanning = false;
    copy_wake(copy);
    if (status < 0) {
        copy_fail(copy, status, "asking for the block status of", copy->options.source_name, req->range);
        return;
    }
    assert(req->extent_count > 0 && req->extent_count <= LIMIT_STATUS_EXTENTS);
    copy->run_end -= copy->first_run;
    memmove(copy->runs, copy->runs + copy->first_run, copy->run_end * sizeof *copy->runs);
    copy->first_run = 0;
    for (unsigned i = 0; i < req->extent_count; i++)
        scan_add(copy, copy->answer[i].length, copy->answer[i].flags & EXTENT_ZERO);
    assert(copy->scanned <= copy->options.source->size_bytes);
}

/* Keeps the scan ahead of the workers. */
static void scan_go_on(struct copy *copy)
{
    uint64_t left = copy->options.source->size_bytes - copy->scanned;
    if (copy->scanning || left == 0 || copy->run_end - copy->first_run > COPY_RUNS - LIMIT_STATUS_EXTENTS)
        return;
    copy->scanning = true;
    copy->scan = (struct request){.kind = REQUEST_BLOCK_STATUS,
                                  .range = {copy->scanned, left < COPY_SCAN_BYTES ? left : COPY_SCAN_BYTES},
                                  .extents = copy->answer,
                                  .extent_max = LIMIT_STATUS_EXTENTS,
                                  .done = scan_done};
    node_submit(copy->options.source, &copy->scan);
}

/* Which cells of the extent may hold data. It lies in what was scanned; runs before it are dropped. */
static struct cells scan_cells(struct copy *copy, struct range extent)
{
    struct cells data = {{0}};
    assert(range_end(extent) <= copy->scanned && extent.start >= copy->runs_start);
    while (copy->runs_start + copy->runs[copy->first_run].length <= extent.start)
        copy->runs_start += copy->runs[copy->first_run++].length;
    uint64_t start = copy->runs_start;
    for (unsigned run = copy->first_run; start < range_end(extent); run++) {
        uint64_t end = start + copy->runs[run].length;
        if (!copy->runs[run].zero) {
            uint64_t from = (start > extent.start ? start : extent.start) - extent.start;
            uint64_t to = (end < range_end(extent) ? end : range_end(extent)) - extent.start;
            cells_set(&data, (unsigned)(from / CELL_BYTES), (unsigned)((to + CELL_BYTES - 1) / CELL_BYTES));
        }
        start = end;
    }
    return data;
}

/* --- the whole */

static struct range next_extent(const struct copy *copy)
{
    uint64_t left = copy->options.source->size_bytes - copy->next;
    return (struct range){copy->next, left < COPY_EXTENT_BYTES ? left : COPY_EXTENT_BYTES};
}

static bool copy_all_taken(const struct copy *copy)
{
    return copy->status < 0 || copy->next == copy->options.source->size_bytes;
}

/* Takes the next extent, which was scanned. false: no worker is free for it. */
static bool copy_take_extent(struct copy *copy, struct range extent)
{
    struct cells data = scan_cells(copy, extent);
    bool zero = cells_empty(&data);
    if (zero && (!copy->options.target || copy->options.target_is_zero)) {
        bool whole = extent.length == COPY_EXTENT_BYTES;
        extent_hashed(copy, extent, whole ? copy->zero_hash : copy->zero_tail_hash);
        copy->done_bytes += extent.length;
        copy->next = range_end(extent);
        return true;
    }
    struct list_node *link = list_take_first(&copy->idle);
    if (!link)
        return false;
    struct worker *worker = container_of(link, struct worker, link);
    copy->busy++;
    copy->next = range_end(extent);
    worker->extent = extent;
    worker->data = data;
    worker->next_cell = 0;
    if (zero) {
        memcpy(worker->hash, extent.length == COPY_EXTENT_BYTES ? copy->zero_hash : copy->zero_tail_hash,
               COPY_HASH_BYTES);
        worker_looked(&worker->op, 0);
    } else {
        worker_read(worker);
    }
    return true;
}

static void flush_done(struct request *req, int status)
{
    struct copy *copy = container_of(req, struct copy, flush);
    if (status < 0 && copy->status == 0)
        copy->status = error_set(&copy->err, -status, "flushing %s failed: %s", copy->options.target_name,
                                 error_name(status));
    copy->flushing = false;
    copy->flushed = true;
    copy_wake(copy);
}

static void copy_run(struct io_task *task)
{
    struct copy *copy = container_of(task, struct copy, task);
    for (unsigned i = 0; !copy_all_taken(copy); i++) {
        struct range extent = next_extent(copy);
        if (range_end(extent) > copy->scanned || i == LIMIT_COPY_ZERO_BATCH || !copy_take_extent(copy, extent)) {
            if (i == LIMIT_COPY_ZERO_BATCH)
                copy_wake(copy);
            break;
        }
    }
    if (!copy_all_taken(copy))
        scan_go_on(copy);
    copy_report(copy, false);
    if (!copy_all_taken(copy) || copy->busy > 0 || copy->scanning || copy->flushing)
        return;
    if (copy->status < 0 || copy->flushed || !copy->options.target) {
        copy_finish(copy);
        return;
    }
    copy->flushing = true;
    copy->flush = (struct request){.kind = REQUEST_FLUSH, .done = flush_done};
    node_submit(copy->options.target, &copy->flush);
}

static int hash_zeroes(struct copy *copy)
{
    uint64_t tail = copy->options.source->size_bytes % COPY_EXTENT_BYTES;
    memset(copy->buffers, 0, COPY_EXTENT_BYTES);
    int status = hash_bytes(copy->buffers, COPY_EXTENT_BYTES, copy->zero_hash);
    return status < 0 ? status : hash_bytes(copy->buffers, tail, copy->zero_tail_hash);
}

struct copy *copy_start(const struct copy_options *options)
{
    assert(io_on_owner(options->io) && options->done && options->source_name);
    assert(!options->target || (options->target_name && options->target->size_bytes >= options->source->size_bytes));
    assert(options->workers <= LIMIT_COPY_WORKERS);
    struct copy *copy = calloc(1, sizeof *copy);
    if (!copy)
        return NULL;
    copy->options = *options;
    copy->worker_count = options->workers ? options->workers : COPY_WORKERS_DEFAULT;
    copy->workers = calloc(copy->worker_count, sizeof *copy->workers);
    copy->buffers = aligned_alloc(LIMIT_ALIGNMENT_BYTES, copy->worker_count * COPY_EXTENT_BYTES);
    copy->runs = calloc(COPY_RUNS, sizeof *copy->runs);
    copy->answer = calloc(LIMIT_STATUS_EXTENTS, sizeof *copy->answer);
    if (!copy->workers || !copy->buffers || !copy->runs || !copy->answer || hash_zeroes(copy) < 0) {
        copy_free(copy);
        return NULL;
    }
    list_init(&copy->idle);
    for (unsigned i = 0; i < copy->worker_count; i++) {
        copy->workers[i].copy = copy;
        copy->workers[i].buffer = copy->buffers + i * COPY_EXTENT_BYTES;
        list_append(&copy->idle, &copy->workers[i].link);
    }
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
