/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Copying only some blocks: what a dirty map of the source calls dirty (an incremental backup), or what a mask wants (the
 * blocks that an incremental image holds).
 *
 * A block that is selected is written whatever it holds: in an overlay a block that is left out shows what the backing file
 * has (C25). A block that is not selected is neither read nor written: the source may refuse it, and what the target has
 * there is right. So a part of an extent that goes over the wire never reaches across one.
 *
 * The source's map is asked by the scan, ahead of the workers; an extent that is taken out of turn is asked about by its
 * worker. An answer counts for every cell that it touches, so that more is copied rather than less.
 */
#include "job/copy_internal.h"

#include <assert.h>
#include <string.h>

#include <gnutls/crypto.h>

struct cells select_wanted(const struct copy *copy, uint64_t extent)
{
    struct cells cells = {{0}};
    const uint8_t *mask = copy->options.wanted + extent * COPY_MASK_BYTES;
    for (unsigned i = 0; i < COPY_MASK_BYTES; i++)
        cells.bits[i / 8] |= (uint64_t)mask[i] << (i % 8 * 8);
    return cells;
}

void select_init(struct copy *copy)
{
    for (uint64_t extent = 0; extent < copy->order.count; extent++) {
        bool already = copy->options.already && copy->options.already[extent];
        struct cells wanted = {{0}};
        if (!already && copy->options.wanted)
            wanted = select_wanted(copy, extent);
        if (already || (copy->options.wanted && cells_empty(&wanted)))
            copy_extent_passed(copy, copy_extent_range(copy, extent));
        if (already && copy->options.data)
            copy->data_bytes += copy->options.data[extent];
    }
}

void select_cells(struct worker *worker, const struct cells *cells)
{
    for (unsigned i = 0; i < EXTENT_CELLS / 64; i++)
        worker->skipped.bits[i] = ~cells->bits[i];
}

void select_note(struct worker *worker)
{
    struct copy *copy = worker->copy;
    if (!copy->options.masks)
        return;
    uint8_t *mask = copy->options.masks + copy_extent_of(worker->extent.start) * COPY_MASK_BYTES;
    for (unsigned cell = 0; cell < worker_cell_count(worker); cell++)
        if (!cell_get(&worker->skipped, cell))
            mask[cell / 8] |= (uint8_t)(1u << cell % 8);
}

int select_hash(struct worker *worker)
{
    gnutls_hash_hd_t state;
    unsigned count = worker_cell_count(worker), first = 0;
    if (gnutls_hash_init(&state, GNUTLS_DIG_SHA256) != 0)
        return -EIO;
    while (first < count) {
        unsigned end = first + 1;
        while (end < count && cell_get(&worker->skipped, end) == cell_get(&worker->skipped, first))
            end++;
        struct range part = worker_cells_range(worker, first, end);
        if (!cell_get(&worker->skipped, first))
            gnutls_hash(state, worker->buffer + part.start, part.length);
        first = end;
    }
    gnutls_hash_deinit(state, worker->hash);
    return 0;
}
