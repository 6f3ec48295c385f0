/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Copy-on-read: blocks that are read while a snapshot lives are kept in RAM that nobody else wants. When the guest writes
 * such a block later its old data is here already: it is dated, and no copy is made. A read of a kept block, the guest's or
 * a snapshot's, skips the disk.
 *
 * A kept block equals the disk, and must go on doing so: whatever overwrites it dates its entry first, or drops it where
 * nobody needs the block, in the step that lets the write through. So the filter stays in the graph as long as something
 * is kept. What a read brings may be kept only if no write can have passed since it began: the newest live point is
 * still the same, and that or an older one needs the block and has no copy of it.
 *
 * A crash loses what was kept, and it was only ever a copy of the disk.
 */
#include "base/probe.h"
#include "fleece/cbw_internal.h"

void cbw_keep_read(struct copy_before_write *cbw, struct range range, const struct iovec *iov, unsigned iov_count,
                   uint32_t epoch)
{
    if (!cbw->copy_on_read || (epoch != cbw->newest_live && !MUTANT(kept_over_a_cut)) || !cbw->newest_live)
        return;
    struct block_range blocks = range_to_blocks(range, cbw->block_shift);
    for (uint64_t block = blocks.first; block < block_range_end(blocks); block++) {
        struct range part = blocks_to_range((struct block_range){block, 1}, cbw->block_shift, cbw->node.size_bytes);
        uint64_t end = block_range_end(blocks);
        if (part.start < range.start || range_end(part) > range_end(range) || !cbw_block_needed(cbw, block) ||
            fleecing_cache_kept(&cbw->cache, block) != PLACE_NONE || cbw_copy_at(cbw, block, &end))
            continue;
        PROBE(read_kept);
        fleecing_cache_keep(&cbw->cache, block, iov, iov_count, part.start - range.start, part.length);
    }
}

static void kept_read_done(struct request *req, int status)
{
    struct kept_read *read = container_of(req, struct kept_read, req);
    struct copy_before_write *cbw = read->cbw;
    if (status == 0)
        cbw_keep_read(cbw, req->range, req->iov, req->iov_count, read->epoch);
    request_complete(read->guest, status);
    read->guest = NULL;
    cbw->reads_kept--;
    list_append(&cbw->idle_reads, &read->link);
    cbw_look_quiet(cbw);
}

/* Whether all blocks of the range are kept: then they are copied out. */
static bool read_from_kept(struct copy_before_write *cbw, const struct request *req)
{
    struct block_range blocks = range_to_blocks(req->range, cbw->block_shift);
    for (uint64_t block = blocks.first; block < block_range_end(blocks); block++)
        if (fleecing_cache_kept(&cbw->cache, block) == PLACE_NONE)
            return false;
    for (uint64_t block = blocks.first; block < block_range_end(blocks); block++) {
        uint64_t start = block << cbw->block_shift, end = start + (UINT64_C(1) << cbw->block_shift);
        uint64_t from = start > req->range.start ? start : req->range.start;
        uint64_t to = end < range_end(req->range) ? end : range_end(req->range);
        const char *memory = fleecing_cache_memory(&cbw->cache, fleecing_cache_kept(&cbw->cache, block));
        iov_copy_in(req->iov, req->iov_count, from - req->range.start, memory + (from - start), to - from);
    }
    return true;
}

bool cbw_read(struct copy_before_write *cbw, struct request *req)
{
    if (!cbw->copy_on_read || req->kind != REQUEST_READ)
        return false;
    if (cbw->cache.spare_blocks > 0 && read_from_kept(cbw, req)) {
        PROBE(guest_read_from_ram);
        request_complete(req, 0);
        return true;
    }
    if (!cbw->newest_live || list_empty(&cbw->idle_reads) || !fleecing_cache_has_spare(&cbw->cache))
        return false;
    struct kept_read *read = container_of(list_take_first(&cbw->idle_reads), struct kept_read, link);
    read->guest = req;
    read->epoch = cbw->newest_live;
    read->req = (struct request){.kind = REQUEST_READ,
                                 .flags = req->flags,
                                 .range = req->range,
                                 .iov = req->iov,
                                 .iov_count = req->iov_count,
                                 .done = kept_read_done};
    cbw->reads_kept++;
    node_submit(cbw->disk->leaf, &read->req);
    return true;
}

void cbw_date_kept(struct copy_before_write *cbw, struct range range)
{
    if (cbw->cache.spare_blocks == 0 || MUTANT(kept_after_write))
        return;
    struct block_range blocks = range_to_blocks(range, cbw->block_shift);
    for (uint64_t block = blocks.first; block < block_range_end(blocks); block++) {
        uint32_t place = fleecing_cache_kept(&cbw->cache, block);
        if (place == PLACE_NONE)
            continue;
        if (cbw_block_needed(cbw, block)) {
            PROBE(kept_block_dated);
            fleecing_cache_date(&cbw->cache, place, cbw->newest_live);
            cbw->blocks_preserved++;
        } else {
            PROBE(kept_block_unneeded);
            fleecing_cache_free(&cbw->cache, place);
        }
    }
    if (!cbw->newest_live)
        cbw_update_filter(cbw);
}

void cbw_reads_init(struct copy_before_write *cbw, bool copy_on_read)
{
    cbw->copy_on_read = copy_on_read;
    list_init(&cbw->idle_reads);
    for (unsigned i = 0; copy_on_read && i < LIMIT_KEPT_READS; i++) {
        cbw->reads[i].cbw = cbw;
        list_append(&cbw->idle_reads, &cbw->reads[i].link);
    }
}
