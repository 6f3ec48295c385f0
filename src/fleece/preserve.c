/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Copies: old data on its way from the disk into the cache.
 *
 *     idle -> reading (a large block in several requests, one after the other) -> inserted, or given up -> idle
 *
 * Neighbouring blocks are read by one request straight into slots of RAM. When the data is here, each block that is still
 * needed, and that no write has passed, is entered under the newest live epoch; that one copy serves every point back to
 * the block's next older entry (C5). So a block is preserved at most once between two points (R3). A copy under way during
 * a cut serves the new point, too: its write is still parked.
 *
 * For a point that has no cache, or whose cache is full, the data goes on from a buffer to the target (write_through.c).
 *
 * What cannot be read is lost: the points that needed it break, and the write goes on (R2, R4). A crash loses everything.
 */
#include <string.h>

#include "base/probe.h"
#include "fleece/cbw_internal.h"

struct copy *cbw_copy_at(const struct copy_before_write *cbw, uint64_t block, uint64_t *end)
{
    list_each (link, &cbw->copies) {
        struct copy *copy = container_of(link, struct copy, link);
        if (copy->blocks.first <= block && block < block_range_end(copy->blocks)) {
            if (!(copy->stale >> (block - copy->blocks.first) & 1))
                return copy;
        } else if (copy->blocks.first > block && copy->blocks.first < *end) {
            *end = copy->blocks.first;
        }
    }
    return NULL;
}

void cbw_abandon_unneeded_copies(struct copy_before_write *cbw)
{
    list_each (link, &cbw->copies) {
        struct copy *copy = container_of(link, struct copy, link);
        bool in_vain = copy->buffer && !cbw_through_wanted(copy); /* though a newer point may need its blocks */
        for (uint32_t i = 0; i < copy->blocks.count; i++) {
            if ((in_vain || !cbw_block_needed(cbw, copy->blocks.first + i)) && !MUTANT(stale_copy_kept)) {
                PROBE(copy_abandoned);
                copy->stale |= UINT64_C(1) << i;
            }
        }
        if (copy->buffer &&
            copy->stale == UINT64_MAX >> (64 - copy->blocks.count)) /* nobody waits for a target in vain */
            disk_resubmit_all(cbw->disk, &copy->parked);
    }
}

void cbw_abandon_copy(struct copy_before_write *cbw, uint64_t block)
{
    uint64_t end = block + 1;
    for (struct copy *copy; (copy = cbw_copy_at(cbw, block, &end));)
        copy->stale |= UINT64_C(1) << (block - copy->blocks.first);
}

/* Blocks that could not be preserved: no point that needed them can be served any more. */
static void copy_lost(struct copy *copy, int status)
{
    struct copy_before_write *cbw = copy->cbw;
    for (uint32_t i = 0; i < copy->blocks.count; i++) {
        uint64_t block = copy->blocks.first + i;
        if (!(copy->stale >> i & 1))
            cbw_mark_losers(cbw, block, block_map_newest(&cbw->cache.map, block), cbw->newest_live);
    }
    if (cbw_break_losers(cbw, LOST_OLD_DATA, status))
        PROBE(copy_lost);
}

void cbw_copy_finish(struct copy *copy, int status)
{
    struct copy_before_write *cbw = copy->cbw;
    bool here = status == 0 || MUTANT(copy_error_taken_for_data);
    list_remove(&copy->link);
    cbw->copies_in_flight--;
    if (copy->buffer)
        cbw_through_done(copy);
    for (uint32_t i = 0; i < copy->blocks.count && !copy->through_epoch; i++) {
        uint64_t block = copy->blocks.first + i;
        if (here && !(copy->stale >> i & 1) && cbw_block_needed(cbw, block)) {
            fleecing_cache_insert(&cbw->cache, copy->slots[i], block, cbw->newest_live);
            cbw->blocks_preserved += MUTANT(preserved_counted_twice) ? 2 : 1;
        } else {
            fleecing_cache_give(&cbw->cache, copy->slots[i]);
        }
    }
    fleecing_cache_look_ahead(&cbw->cache);
    if (status < 0)
        copy_lost(copy, status);
    if (status < 0 && !list_empty(&copy->parked) && MUTANT(guest_pays_for_copy))
        request_complete(container_of(list_take_first(&copy->parked), struct request, link), status);
    disk_resubmit_all(cbw->disk, &copy->parked);
    if (!MUTANT(pool_wakes_nobody))
        disk_resubmit_all(cbw->disk, &cbw->for_copy);
    list_append(&cbw->idle_copies, &copy->link);
    if (atomic_load(&cbw->ram_budget->wanted)) /* slots came back, or can be spilled now */
        cbw_room_came(cbw);
    cbw_look_quiet(cbw);
}

static void copy_read_on(struct copy *copy);

static void copy_read_done(struct request *read, int status)
{
    struct copy *copy = container_of(read, struct copy, read);
    copy->filled_bytes += read->range.length;
    if (status == 0 && copy->filled_bytes < copy->range.length)
        copy_read_on(copy);
    else if (status == 0 && copy->through_epoch)
        cbw_through_write(copy);
    else
        cbw_copy_finish(copy, status);
}

/* Reads the next part: all of it, but for a block that is longer than a request may be. */
static void copy_read_on(struct copy *copy)
{
    uint64_t length = copy->range.length - copy->filled_bytes;
    if (length > LIMIT_REQUEST_BYTES) {
        PROBE(copy_in_parts);
        length = LIMIT_REQUEST_BYTES;
    }
    if (copy->range.length > LIMIT_REQUEST_BYTES) { /* one block: one piece of memory */
        char *slot = copy->buffer ? copy->buffer : ram_tier_memory(&copy->cbw->cache.ram, copy->slots[0]);
        copy->iov[0] = (struct iovec){slot + copy->filled_bytes, length};
        copy->read.iov_count = 1;
    }
    copy->read.kind = REQUEST_READ;
    copy->read.range = (struct range){copy->range.start + copy->filled_bytes, length};
    copy->read.iov = copy->iov;
    copy->read.done = copy_read_done;
    node_submit(copy->cbw->disk->leaf, &copy->read);
}

/* Takes slots for the blocks as far as there is room; returns for how many. */
static uint32_t copy_take_slots(struct copy *copy, uint64_t count)
{
    struct copy_before_write *cbw = copy->cbw;
    uint32_t taken = 0, first;
    unsigned fragments = 0;
    uint64_t most = LIMIT_REQUEST_BYTES >> cbw->block_shift;
    most = most < 1 ? 1 : most > LIMIT_COPY_BLOCKS ? LIMIT_COPY_BLOCKS : most;
    if (count > most)
        count = most;
    while (taken < count) {
        uint32_t run = fleecing_cache_take(&cbw->cache, (uint32_t)count - taken, &first);
        if (run == 0)
            break;
        copy->iov[fragments++] = (struct iovec){ram_tier_memory(&cbw->cache.ram, first),
                                                (size_t)run << cbw->block_shift};
        for (uint32_t i = 0; i < run; i++)
            copy->slots[taken++] = first + i;
    }
    copy->read.iov_count = fragments;
    return taken;
}

/* Memory for the blocks: a buffer, when they go straight to a target; else slots. Returns for how many, or (0) the queue. */
static uint32_t copy_take_memory(struct copy *copy, struct block_range blocks, struct list **queue)
{
    struct copy_before_write *cbw = copy->cbw;
    copy->buffer = NULL;
    copy->through_epoch = 0;
    const struct point *through = cbw_through_point(cbw, blocks.first, false);
    uint32_t taken = through ? 0 : copy_take_slots(copy, blocks.count);
    if (taken == 0 && !through)
        through = cbw_through_point(cbw, blocks.first, true);
    if (through)
        taken = cbw_through_prepare(copy, through, blocks);
    *queue = through ? &cbw->for_copy : &cbw->for_room;
    return taken;
}

struct copy *cbw_copy_start(struct copy_before_write *cbw, struct block_range blocks, struct list **queue)
{
    struct copy *copy = list_first(&cbw->idle_copies, struct copy, link);
    copy->blocks = (struct block_range){blocks.first, copy_take_memory(copy, blocks, queue)};
    if (copy->blocks.count == 0)
        return NULL;
    copy->begun_ns = 0;
    copy->stale = 0;
    copy->filled_bytes = 0;
    list_remove(&copy->link);
    list_append(&cbw->copies, &copy->link);
    cbw->copies_in_flight++;
    const uint64_t end = copy->through_epoch ? cbw_through_end(copy) : cbw->node.size_bytes;
    copy->range = blocks_to_range(copy->blocks, cbw->block_shift, end);
    struct iovec *last = &copy->iov[copy->read.iov_count - 1];
    size_t beyond_end = (copy->blocks.count << cbw->block_shift) - copy->range.length;
    last->iov_len -= beyond_end;
    memset((char *)last->iov_base + last->iov_len, 0, beyond_end);
    copy_read_on(copy);
    return copy;
}
