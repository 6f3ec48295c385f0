/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One extent through its worker:
 *
 *     (ask which blocks are needed, or dirty) -> (ask which cells may hold data) -> read those -> hash and look for
 *     zeroes (helper thread) -> write the cells that hold data, and zeroes where the target has to be told
 *
 * Everything is counted in cells of 4 KiB: a bitmap says which ones may hold data (from the block status), later which ones
 * do (from looking). Parts nearer to each other than COPY_GAP_CELLS are read and written as one: a request costs more than
 * the few zeroes between them. A cell that is skipped is neither read nor written, so no part reaches across it.
 *
 * Extents are hashed before they are written, so with `expected` nothing wrong reaches the target.
 */
#include "job/copy_internal.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/zero.h"

static void cell_clear(struct cells *cells, unsigned cell)
{
    cells->bits[cell / 64] &= ~(UINT64_C(1) << (cell % 64));
}

unsigned worker_cell_count(const struct worker *worker)
{
    return (unsigned)((worker->extent.length + CELL_BYTES - 1) / CELL_BYTES);
}

/* The bytes of cells [first, end) within the extent; the last cell of a disk may be short. */
struct range worker_cells_range(const struct worker *worker, unsigned first, unsigned end)
{
    uint64_t start = first * CELL_BYTES, stop = end * CELL_BYTES, length = worker->extent.length;
    start = start < length ? start : length;
    stop = stop < length ? stop : length;
    return (struct range){start, stop - start};
}

/* The end of the part with data that begins at `first`, across short gaps. */
static unsigned data_end(const struct worker *worker, unsigned first)
{
    unsigned end = first, count = worker_cell_count(worker);
    for (unsigned cell = first; cell < count && cell - end < COPY_GAP_CELLS && !cell_get(&worker->skipped, cell);
         cell++)
        if (cell_get(&worker->data, cell))
            end = cell + 1;
    return end;
}

/* The first cell from `first` on that holds data. */
static unsigned next_data(const struct worker *worker, unsigned first)
{
    unsigned cell = first, count = worker_cell_count(worker);
    while (cell < count && !cell_get(&worker->data, cell))
        cell++;
    return cell;
}

/* The first cell from `first` on that is not skipped. */
static unsigned next_wanted(const struct worker *worker, unsigned first)
{
    unsigned cell = first, count = worker_cell_count(worker);
    while (cell < count && cell_get(&worker->skipped, cell))
        cell++;
    return cell;
}

/* The first cell that is skipped. */
static unsigned next_skipped(const struct worker *worker)
{
    unsigned cell = 0, count = worker_cell_count(worker);
    while (cell < count && !cell_get(&worker->skipped, cell))
        cell++;
    return cell;
}

/* The end of the zeroes that begin at `first`, which is neither skipped nor data. */
static unsigned zeroes_end(const struct worker *worker, unsigned first)
{
    unsigned cell = first, count = worker_cell_count(worker);
    while (cell < count && !cell_get(&worker->data, cell) && !cell_get(&worker->skipped, cell))
        cell++;
    return cell;
}

/* Bytes of the cells that are set, or that are not; the last one of a disk may be short. */
static uint64_t cells_bytes(const struct worker *worker, const struct cells *cells, bool value)
{
    unsigned count = worker_cell_count(worker), set = 0;
    for (unsigned cell = 0; cell < count; cell += 64) {
        uint64_t within = count - cell < 64 ? (UINT64_C(1) << (count - cell)) - 1 : UINT64_MAX;
        uint64_t bits = value ? cells->bits[cell / 64] : ~cells->bits[cell / 64];
        set += (unsigned)__builtin_popcountll(bits & within);
    }
    uint64_t missing = count * CELL_BYTES - worker->extent.length;
    return set * CELL_BYTES - (cell_get(cells, count - 1) == value ? missing : 0);
}

static uint64_t data_bytes(const struct worker *worker)
{
    return cells_bytes(worker, &worker->data, true);
}

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
    if (well) {
        bool written = copy->options.target && !copy->options.target_is_zero;
        copy->unflushed_bytes += written ? cells_bytes(worker, &worker->skipped, false) : data_bytes(worker);
        copy_extent_done(copy, worker->extent);
    }
    copy->busy--;
    list_append(&copy->idle, &worker->link);
    copy_wake(copy);
}

/* --- writing */

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
    unsigned first = next_wanted(worker, worker->next_cell), count = worker_cell_count(worker);
    if (copy->options.target_is_zero)
        first = next_data(worker, first);
    if (copy->status < 0 || first == count || !copy->options.target) {
        worker_release(worker, copy->status == 0);
        return;
    }
    bool data = cell_get(&worker->data, first);
    unsigned end = data ? data_end(worker, first) : zeroes_end(worker, first);
    worker->next_cell = end;
    if (copy->options.writing)
        copy->options.writing(copy->options.context);
    worker_submit(worker, copy->options.target, data ? REQUEST_WRITE : REQUEST_WRITE_ZEROES,
                  worker_cells_range(worker, first, end), worker_written);
}

/* --- looking */

/* On a helper thread: it alone touches the worker meanwhile. */
static int64_t worker_look(void *argument)
{
    struct worker *worker = argument;
    for (unsigned cell = 0; cell < worker_cell_count(worker); cell++) {
        struct range range = worker_cells_range(worker, cell, cell + 1);
        if (cell_get(&worker->data, cell) && memory_is_zero(worker->buffer + range.start, range.length))
            cell_clear(&worker->data, cell);
    }
    if (!copy_wants_hashes(worker->copy) || worker->proved)
        return 0;
    return copy_selects(&worker->copy->options) ? select_hash(worker)
                                                : copy_hash_bytes(worker->buffer, worker->extent.length, worker->hash);
}

static void worker_looked(struct io_op *op, int64_t result)
{
    struct worker *worker = container_of(op, struct worker, op);
    struct copy *copy = worker->copy;
    if (result < 0)
        copy_fail(copy, (int)result, "hashing", copy->options.source_name, worker->extent);
    copy->data_bytes += data_bytes(worker);
    if (copy->options.data)
        copy->options.data[copy_extent_of(worker->extent.start)] = (uint32_t)data_bytes(worker);
    select_note(worker);
    worker->next_cell = 0;
    if (copy->status < 0 || (copy_wants_hashes(copy) && !copy_hashed(copy, worker->extent, worker->hash)))
        worker_release(worker, copy->status == 0);
    else
        worker_write(worker);
}

/* --- reading */

static void worker_read(struct worker *worker);
static void worker_ask(struct worker *worker, uint32_t flags);

/* Blocks have become unneeded while they were read (the target got them straight from a write): what is left is known to lie
 * within what was. */
static void worker_again(struct worker *worker)
{
    worker->asked = 0;
    worker->data_known = true;
    worker_ask(worker, REQUEST_RESIDENCE);
}

static void worker_has_read(struct request *req, int status)
{
    struct worker *worker = container_of(req, struct worker, req);
    if (status == -ENODATA && worker->copy->options.needed_only && worker->copy->status == 0) {
        worker_again(worker);
        return;
    }
    if (status < 0)
        copy_fail(worker->copy, status, "reading", worker->copy->options.source_name, req->range);
    worker_read(worker);
}

/* Cells [first, end) hold no data: the buffer says so of those that anybody looks at. */
static void worker_clear(struct worker *worker, unsigned first, unsigned end)
{
    while ((first = next_wanted(worker, first)) < end) {
        unsigned stop = first + 1;
        while (stop < end && !cell_get(&worker->skipped, stop))
            stop++;
        struct range gap = worker_cells_range(worker, first, stop);
        memset(worker->buffer + gap.start, 0, gap.length);
        first = stop;
    }
}

/* All is in the buffer. A few blocks are looked at here; what is only read (verified) need not be. */
static void worker_begin_look(struct worker *worker)
{
    struct copy *copy = worker->copy;
    if (!copy->options.target && !copy_wants_hashes(copy) && !copy->options.data) {
        worker_looked(&worker->op, 0);
        return;
    }
    worker->proved = copy->options.proved &&
                     copy->options.proved(copy->options.context, copy_extent_of(worker->extent.start), worker->hash);
    if (copy_selects(&copy->options) &&
        cells_bytes(worker, &worker->skipped, false) <= LIMIT_HASH_INLINE_BLOCKS * CELL_BYTES) {
        worker_looked(&worker->op, worker_look(worker));
        return;
    }
    worker->op.done = worker_looked;
    io_work(copy->options.io, &worker->op, worker_look, worker);
}

/* The next part that may hold data; what lies between is zero. */
static void worker_read(struct worker *worker)
{
    struct copy *copy = worker->copy;
    unsigned first = next_data(worker, worker->next_cell), count = worker_cell_count(worker);
    if (copy->status < 0) {
        worker_release(worker, false);
        return;
    }
    worker_clear(worker, worker->next_cell, first);
    if (first == count) {
        worker_begin_look(worker);
        return;
    }
    worker->next_cell = data_end(worker, first);
    worker_submit(worker, copy->options.source, REQUEST_READ, worker_cells_range(worker, first, worker->next_cell),
                  worker_has_read);
}

/* It is known which cells may hold data. */
static void worker_begin(struct worker *worker)
{
    for (unsigned i = 0; i < EXTENT_CELLS / 64; i++)
        worker->data.bits[i] &= ~worker->skipped.bits[i];
    throttle_charge(&worker->copy->throttle, (int64_t)data_bytes(worker) - (int64_t)worker->charged);
    worker->charged = data_bytes(worker);
    worker->next_cell = 0;
    if (cells_empty(&worker->data) && !copy_selects(&worker->copy->options)) {
        memcpy(worker->hash, copy_zero_hash(worker->copy, worker->extent), COPY_HASH_BYTES);
        worker_looked(&worker->op, 0);
    } else {
        worker_read(worker);
    }
}

/* --- questions about the extent */

static void worker_answered(struct request *req, int status);

static void worker_ask(struct worker *worker, uint32_t flags)
{
    worker->req = (struct request){
        .kind = REQUEST_BLOCK_STATUS,
        .flags = flags,
        .dirty_map = worker->copy->options.dirty_map,
        .range = {worker->extent.start + worker->asked, worker->extent.length - worker->asked},
        .extents = worker->answer,
        .extent_max = EXTENT_CELLS,
        .done = worker_answered};
    node_submit(copy_answering(worker->copy, flags), &worker->req);
}

static void worker_ask_data(struct worker *worker)
{
    struct copy *copy = worker->copy;
    worker->asked = 0;
    if (!worker->data_known && copy->options.needed_only) { /* there is no answer about what is not needed: look */
        cells_set(&worker->data, 0, worker->extent.length);
        worker->data_known = true;
    }
    if (worker->data_known) {
        worker_begin(worker);
        return;
    }
    worker_ask(worker, 0);
}

/* It is known which cells are selected. */
static void worker_selected(struct worker *worker)
{
    struct copy *copy = worker->copy;
    select_cells(worker, &worker->data);
    if (cells_empty(&worker->data)) {
        throttle_charge(&copy->throttle, -(int64_t)worker->charged);
        copy_extent_passed(copy, worker->extent);
        worker_release(worker, false);
        return;
    }
    if (copy->options.dirty && next_skipped(worker) == worker_cell_count(worker)) {
        memset(&worker->data, 0, sizeof worker->data); /* the whole extent: it may have been discarded */
        worker_ask(worker, 0);
    } else {
        worker_begin(worker);
    }
}

/* A part of the answer has come; each part goes into the bitmap that it is about. */
static void worker_answered(struct request *req, int status)
{
    struct worker *worker = container_of(req, struct worker, req);
    struct copy *copy = worker->copy;
    bool residence = req->flags & REQUEST_RESIDENCE, dirty = req->flags & REQUEST_DIRTY;
    if (status < 0)
        copy_fail(copy, status,
                  residence ? "asking for the residence of"
                  : dirty   ? "asking for the changes of"
                            : "asking for the block status of",
                  copy->options.source_name, req->range);
    if (copy->status < 0) {
        worker_release(worker, false);
        return;
    }
    assert(req->extent_count > 0 && req->extent_count <= EXTENT_CELLS);
    for (unsigned i = 0; i < req->extent_count; i++) {
        const struct block_extent *extent = &worker->answer[i];
        uint64_t start = worker->asked;
        worker->asked += extent->length;
        if (residence && (extent->flags & RESIDENCE_RELEASED))
            cells_set(&worker->skipped, start, worker->asked);
        else if (!residence && (dirty ? extent->flags & EXTENT_DIRTY : !(extent->flags & EXTENT_ZERO)))
            cells_set(&worker->data, start, worker->asked);
    }
    assert(worker->asked <= worker->extent.length);
    if (worker->asked < worker->extent.length) {
        worker_ask(worker, req->flags);
    } else if (residence) {
        worker_ask_data(worker);
    } else if (dirty) {
        worker->asked = 0;
        worker_selected(worker);
    } else {
        worker_begin(worker);
    }
}

void worker_start(struct worker *worker, struct range extent, const struct cells *data)
{
    struct copy *copy = worker->copy;
    copy->busy++;
    worker->extent = extent;
    worker->data_known = data != NULL;
    worker->asked = 0;
    memset(&worker->skipped, 0, sizeof worker->skipped);
    memset(&worker->data, 0, sizeof worker->data);
    if (data)
        worker->data = *data;
    worker->charged = data ? data_bytes(worker) : extent.length; /* until it is known */
    throttle_charge(&copy->throttle, (int64_t)worker->charged);
    if (copy->options.needed_only)
        worker_ask(worker, REQUEST_RESIDENCE);
    else if (copy_selects(&copy->options) && data)
        worker_selected(worker);
    else if (copy->options.dirty)
        worker_ask(worker, REQUEST_DIRTY);
    else
        worker_ask_data(worker);
}
