/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The scan of a copy: runs ahead of the workers through the source's block status, or through its dirty map, so that they
 * need not ask about each extent. Extents that are taken out of this order are asked about by their workers. What was
 * taken already is passed over: it may have been released, and a snapshot does not answer for that.
 */
#include "job/copy_internal.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Runs of the scan that are kept: one answer being used, one that came ahead. */
#define COPY_RUNS (2 * LIMIT_STATUS_EXTENTS)

int scan_init(struct copy *copy)
{
    copy->runs = calloc(COPY_RUNS, sizeof *copy->runs);
    copy->answer = calloc(LIMIT_STATUS_EXTENTS, sizeof *copy->answer);
    return copy->runs && copy->answer ? 0 : -ENOMEM;
}

void scan_fini(struct copy *copy)
{
    free(copy->runs);
    free(copy->answer);
}

/*
 * Adds the next `length` bytes to the runs. What follows data in the same cell counts as data, so that at most two runs
 * begin in a cell and 512 make up an extent, however finely the source answers; otherwise the runs that are kept might
 * never reach the end of an extent.
 */
static void scan_add(struct copy *copy, uint64_t length, bool zero)
{
    uint64_t size = copy->size_bytes;
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

/* The rest of the extent that the scan is in counts as data: whoever takes it looks for itself. */
static void scan_pass_extent(struct copy *copy)
{
    scan_add(copy, range_end(copy_extent_range(copy, copy_extent_of(copy->scanned))) - copy->scanned, false);
}

static void scan_done(struct request *req, int status)
{
    struct copy *copy = container_of(req, struct copy, scan);
    copy->scanning = false;
    copy_wake(copy);
    bool dirty = req->flags & REQUEST_DIRTY; /* which is answered for what was released, too */
    if (status < 0 && !dirty && copy_may_be_released(copy, status)) {
        scan_pass_extent(copy);
        return;
    }
    if (status < 0) {
        copy_fail(copy, status, dirty ? "asking for the changes of" : "asking for the block status of",
                  copy->options.source_name, req->range);
        return;
    }
    assert(req->extent_count > 0 && req->extent_count <= LIMIT_STATUS_EXTENTS);
    copy->run_end -= copy->first_run;
    memmove(copy->runs, copy->runs + copy->first_run, copy->run_end * sizeof *copy->runs);
    copy->first_run = 0;
    for (unsigned i = 0; i < req->extent_count; i++)
        scan_add(copy, copy->answer[i].length,
                 dirty ? !(copy->answer[i].flags & EXTENT_DIRTY) : copy->answer[i].flags & EXTENT_ZERO);
    assert(copy->scanned <= copy->size_bytes);
}

void scan_go_on(struct copy *copy)
{
    uint64_t size = copy->size_bytes;
    if (copy->options.wanted)
        return;
    while (!copy->scanning && copy->scanned < size &&
           !copy_state_is_todo((enum copy_state)copy->order.states[copy_extent_of(copy->scanned)]))
        scan_pass_extent(copy);
    uint64_t left = size - copy->scanned;
    if (copy->scanning || left == 0 || copy->run_end - copy->first_run > COPY_RUNS - LIMIT_STATUS_EXTENTS)
        return;
    copy->scanning = true;
    copy->scan = (struct request){.kind = REQUEST_BLOCK_STATUS,
                                  .flags = copy->options.dirty ? REQUEST_DIRTY : 0,
                                  .dirty_map = copy->options.dirty_map,
                                  .range = {copy->scanned, left < COPY_SCAN_BYTES ? left : COPY_SCAN_BYTES},
                                  .extents = copy->answer,
                                  .extent_max = LIMIT_STATUS_EXTENTS,
                                  .done = scan_done};
    node_submit(copy_answering(copy, copy->scan.flags), &copy->scan);
}

void scan_skip_to(struct copy *copy, uint64_t byte)
{
    while (copy->first_run < copy->run_end && copy->runs_start + copy->runs[copy->first_run].length <= byte)
        copy->runs_start += copy->runs[copy->first_run++].length;
    if (copy->first_run == copy->run_end && !copy->scanning && byte > copy->scanned)
        copy->runs_start = copy->runs_end = copy->scanned = byte;
}

struct cells scan_cells(const struct copy *copy, struct range extent)
{
    struct cells data = {{0}};
    uint64_t start = copy->runs_start;
    assert(range_end(extent) <= copy->scanned && extent.start >= start);
    for (unsigned run = copy->first_run; start < range_end(extent); run++) {
        uint64_t end = start + copy->runs[run].length;
        if (!copy->runs[run].zero && end > extent.start)
            cells_set(&data, (start > extent.start ? start : extent.start) - extent.start,
                      (end < range_end(extent) ? end : range_end(extent)) - extent.start);
        start = end;
    }
    return data;
}
