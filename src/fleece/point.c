/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Points: who still needs what, and the freeing of what nobody needs.
 *
 * A point needs a block until it is released, or until the point itself dies, by point_end() or cbw_break(). From that step
 * on the block counts no more: writes pass it, reads of it fail. An entry of the cache serves an interval of points; it is
 * freed when no live point of its interval needs its block any more (C5), whatever the order in which points go. A release
 * frees at once what it can; the death of a point starts a sweep, which walks over the places of the cache in small
 * steps. When the last point dies the filter leaves the graph.
 *
 * While old data is being read, its block may be released or its points may die. From then on writes pass it, so what is
 * read is no point's data, not even that of a point cut later: the copy is stale there.
 *
 * Whatever permits an unpreserved overwrite comes first (C12): the needed bit falls before a slot is freed, in one step; and
 * for a point that outlives the daemon the bit falls in its shared memory before that, and a break is noted there first.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/probe.h"
#include "fleece/cbw_internal.h"

uint64_t cbw_block_count(const struct copy_before_write *cbw)
{
    return range_to_blocks((struct range){0, cbw->node.size_bytes}, cbw->block_shift).count;
}

bool cbw_needed_between(const struct copy_before_write *cbw, uint64_t block, uint32_t after, uint32_t last)
{
    const struct list_node *head = &cbw->points.head;
    for (const struct list_node *link = head->prev; link != head; link = link->prev) { /* newest first */
        const struct point *point = container_of(link, const struct point, link);
        if (point->epoch <= after)
            return false;
        if (point->epoch <= last && point->state == POINT_LIVE &&
            (point_needs(point, block) || MUTANT(released_block_preserved)))
            return true;
    }
    return false;
}

void cbw_mark_losers(const struct copy_before_write *cbw, uint64_t block, uint32_t after, uint32_t last)
{
    list_each (link, &cbw->points) {
        struct point *point = container_of(link, struct point, link);
        if (point->state == POINT_LIVE && point->epoch > after && point->epoch <= last && point_needs(point, block))
            point->loses = true;
    }
}

bool cbw_block_needed(const struct copy_before_write *cbw, uint64_t block)
{
    uint32_t newest = block_map_newest(&cbw->cache.map, block);
    return cbw->newest_live > newest && !(newest && MUTANT(old_copy_serves_new_point)) &&
           cbw_needed_between(cbw, block, newest, cbw->newest_live);
}

/* ---- life ---- */

struct point *point_create(struct copy_before_write *cbw, uint32_t epoch, struct bitmap *needed)
{
    struct point *point = calloc(1, sizeof *point);
    bool made = point && (needed || bitmap_init(&point->needed, cbw_block_count(cbw), true) == 0);
    if (!made) {
        free(point);
        if (needed)
            bitmap_fini(needed);
        return NULL;
    }
    if (needed) {
        assert(needed->bit_count == cbw_block_count(cbw));
        point->needed = *needed;
        *needed = (struct bitmap){0};
    }
    point->cbw = cbw;
    point->epoch = epoch;
    point->size_bytes = cbw->node.size_bytes;
    point->state = POINT_PREPARED;
    list_append(&cbw->prepared, &point->link);
    return point;
}

int point_keep(struct point *point, unsigned number, atomic_uint *broken)
{
    struct copy_before_write *cbw = point->cbw;
    assert(point->state == POINT_PREPARED && cbw->cache.memory && !point->through);
    int status = needed_memory_begin(&point->stored, cbw->cache.memory, number, cbw_block_count(cbw));
    if (status == 0) {
        cache_memory_note_point(cbw->cache.memory, number, point->size_bytes);
        point->broken = broken;
    }
    return status;
}

int point_keep_changed(struct point *point, unsigned number)
{
    assert(point->state == POINT_PREPARED && point->stored.memory);
    return needed_memory_begin(&point->changed, point->stored.memory, NEEDED_AT_CUT(number), point->needed.bit_count);
}

int point_adopt_changed(struct point *point, unsigned number, struct bitmap *changed)
{
    int status = bitmap_init(changed, point->needed.bit_count, true);
    if (status == 0)
        status = needed_memory_adopt(&point->changed, point->stored.memory, NEEDED_AT_CUT(number), changed);
    if (status < 0)
        bitmap_fini(changed);
    return status;
}

int point_store_needed(struct point *point, uint64_t *at)
{
    uint64_t also = *at; /* both take the same steps */
    int status = MUTANT(restart_changes_not_stored) ? 0 : needed_memory_store(&point->changed, &point->needed, &also);
    return status < 0 ? status : needed_memory_store(&point->stored, &point->needed, at);
}

/* Before anything relies on it. */
static void point_note_broken(struct point *point)
{
    if (point->broken && !MUTANT(restart_break_not_stored))
        atomic_store(point->broken, 1);
    point->state = POINT_BROKEN;
}

void point_limit(struct point *point, struct bitmap *needed)
{
    struct bitmap before = point->needed;
    assert(point->state == POINT_PREPARED && needed->bit_count == before.bit_count);
    point->needed = *needed;
    *needed = before;
}

void point_go_live(struct point *point)
{
    struct copy_before_write *cbw = point->cbw;
    assert(point->state == POINT_PREPARED && point->epoch > cbw->newest_live);
    assert(cbw->disk->holding && cbw->disk->writes_in_flight == 0);
    list_remove(&point->link);
    list_append(&cbw->points, &point->link);
    if (point->broken_early) {
        point_note_broken(point);
        return;
    }
    point->state = POINT_LIVE;
    cbw->newest_live = point->epoch;
    cbw_update_filter(cbw);
}

void cbw_update_filter(struct copy_before_write *cbw)
{
    bool wanted = cbw->newest_live || cbw_has_discards(cbw) || cbw->cache.spare_blocks > 0 || MUTANT(filter_stays);
    struct node *filter = wanted ? &cbw->node : NULL;
    if (cbw->disk->filter != filter)
        disk_set_filter(cbw->disk, filter);
}

/* After points died: what may leave the graph, be freed, or be decided again. */
static void points_died(struct copy_before_write *cbw)
{
    uint32_t newest = 0;
    list_each (link, &cbw->points) {
        const struct point *point = container_of(link, struct point, link);
        if (point->state == POINT_LIVE)
            newest = point->epoch;
    }
    cbw->newest_live = newest;
    if (!newest || cbw->through.under_way > 0)
        disk_resubmit_all(cbw->disk, &cbw->for_copy);
    if (!newest)
        disk_resubmit_all(cbw->disk, &cbw->for_room);
    cbw_update_filter(cbw);
    cbw_look_at_discards(cbw, (struct range){0, cbw->node.size_bytes});
    cbw_abandon_unneeded_copies(cbw);
    cbw->sweep_at = 0;
    cbw->sweeping = true;
    io_task_queue(cbw->node.io, &cbw->sweep);
}

void point_end(struct point *point)
{
    assert(point->state == POINT_LIVE || point->state == POINT_BROKEN);
    bool was_live = point->state == POINT_LIVE;
    point->state = POINT_DELETED;
    if (was_live)
        points_died(point->cbw);
}

void point_free(struct point *point)
{
    assert(point->state == POINT_DELETED || point->state == POINT_PREPARED);
    list_remove(&point->link);
    needed_memory_end(&point->stored);
    needed_memory_end(&point->changed);
    bitmap_fini(&point->needed);
    free(point);
}

void cbw_break(struct copy_before_write *cbw, uint32_t first_epoch, uint32_t last_epoch)
{
    bool died = false;
    list_each (link, &cbw->points) {
        struct point *point = container_of(link, struct point, link);
        if (point->state == POINT_LIVE && point->epoch >= first_epoch && point->epoch <= last_epoch) {
            PROBE(point_broken);
            point_note_broken(point);
            died = true;
        }
    }
    list_each (link, &cbw->prepared) {
        struct point *point = container_of(link, struct point, link);
        if (point->epoch >= first_epoch && point->epoch <= last_epoch)
            point->broken_early = true;
    }
    if (died)
        points_died(cbw);
}

bool cbw_break_losers(struct copy_before_write *cbw, enum cbw_loss loss, int status)
{
    bool died = false;
    list_each (link, &cbw->points) {
        struct point *point = container_of(link, struct point, link);
        if (!point->loses)
            continue;
        PROBE(point_loses);
        point->loses = false;
        point_note_broken(point);
        died = true;
        if (loss != LOST_CACHED || !MUTANT(lost_in_the_file_stays_here))
            cbw->hooks.lost(cbw->hooks.context, point->epoch, loss, status);
    }
    if (died)
        points_died(cbw);
    return died;
}

struct point *point_adopt(struct copy_before_write *cbw, uint32_t epoch, unsigned number, atomic_uint *broken)
{
    struct point *point = calloc(1, sizeof *point);
    const uint64_t size = cache_memory_point(cbw->cache.memory, number);
    const bool right = size > 0 && size <= cbw->node.size_bytes;
    const uint64_t blocks = right ? range_to_blocks((struct range){0, size}, cbw->block_shift).count : 0;
    assert(epoch > cbw->newest_live);
    if (!point || !right || bitmap_init(&point->needed, blocks, true) < 0) {
        free(point);
        return NULL;
    }
    if (needed_memory_adopt(&point->stored, cbw->cache.memory, number, &point->needed) < 0) {
        bitmap_fini(&point->needed);
        free(point);
        return NULL;
    }
    point->cbw = cbw;
    point->epoch = epoch;
    point->size_bytes = size;
    point->broken = broken;
    list_append(&cbw->points, &point->link);
    point->state = atomic_load(broken) ? POINT_BROKEN : POINT_LIVE;
    if (point->state == POINT_LIVE) {
        cbw->newest_live = epoch;
        cbw_update_filter(cbw);
    }
    return point;
}

void cbw_adopted(struct copy_before_write *cbw)
{
    fleecing_cache_adopted(&cbw->cache);
    points_died(cbw);
}

bool cbw_has_points(const struct copy_before_write *cbw)
{
    return !list_empty(&cbw->prepared) || !list_empty(&cbw->points);
}

uint32_t point_place(const struct point *point, uint64_t block)
{
    return block_map_find(&point->cbw->cache.map, block, point->epoch);
}

void point_lost_cached(struct point *point, struct block_range blocks, int status)
{
    struct copy_before_write *cbw = point->cbw;
    const struct block_map *map = &cbw->cache.map;
    if (point->state != POINT_LIVE)
        return;
    for (uint64_t block = blocks.first; block < block_range_end(blocks); block++) {
        uint32_t place = point_place(point, block);
        if (place != PLACE_NONE && fleecing_cache_kind(&cbw->cache, place) == PLACE_FILE)
            cbw_mark_losers(cbw, block, block_map_older(map, place), block_map_epoch(map, place));
    }
    if (cbw_break_losers(cbw, LOST_CACHED, status))
        PROBE(cached_block_lost);
}

/* ---- release ---- */

static struct block_range whole_blocks(const struct point *point, struct range range)
{
    const unsigned shift = point->cbw->block_shift;
    uint64_t first = round_up(range.start, MUTANT(release_takes_parts) ? 1 : UINT64_C(1) << shift) >> shift;
    uint64_t end = range_end(range) == point->size_bytes ? point->needed.bit_count : range_end(range) >> shift;
    return (struct block_range){first, end > first ? end - first : 0};
}

/* Frees the point's entries of the blocks, as far as nobody else needs them. */
static void point_free_entries(struct point *point, struct block_range blocks)
{
    struct copy_before_write *cbw = point->cbw;
    const struct block_map *map = &cbw->cache.map;
    const uint64_t end = block_range_end(blocks);
    for (uint64_t block = blocks.first; (block = block_map_next(map, block, end)) < end; block++) {
        uint32_t place = block_map_find(map, block, point->epoch);
        if (place == PLACE_NONE)
            continue;
        if (cbw_needed_between(cbw, block, block_map_older(map, place), block_map_epoch(map, place)) &&
            !MUTANT(release_takes_from_others)) {
            PROBE(released_block_serves_others);
            continue;
        }
        PROBE(released_block_freed);
        fleecing_cache_free(&cbw->cache, place);
    }
}

int point_release(struct point *point, struct range range)
{
    struct copy_before_write *cbw = point->cbw;
    struct block_range blocks = whole_blocks(point, range);
    cbw->blocks_cut += range_to_blocks(range, cbw->block_shift).count - blocks.count;
    point->released_ns = io_now_ns(cbw->node.io);
    if (blocks.count == 0)
        return 0;
    uint64_t before = point->needed.set_count;
    int status = MUTANT(restart_release_not_stored) ? 0
                                                    : needed_memory_release(&point->stored, blocks.first, blocks.count);
    if (status < 0)
        return status;
    status = bitmap_assign(&point->needed, blocks.first, blocks.count, false);
    cbw->blocks_released += before - point->needed.set_count;
    point_free_entries(point, blocks);
    if (!MUTANT(release_keeps_copies))
        cbw_abandon_unneeded_copies(cbw);
    cbw_look_at_discards(cbw, range);
    cbw_room_came(cbw);
    return status;
}

/* ---- freeing in the background ---- */

static void cache_fell_quiet(void *context)
{
    struct copy_before_write *cbw = context;
    cbw->quiet_awaited = false;
    cbw_look_quiet(cbw);
}

/* Whether something is under way that must end before the filter may go. */
static bool cbw_is_busy(struct copy_before_write *cbw)
{
    if (cbw_has_points(cbw))
        return false;
    if (!fleecing_cache_is_quiet(&cbw->cache) && !cbw->quiet_awaited) {
        PROBE(cache_quiet_awaited);
        cbw->quiet_awaited = true;
        fleecing_cache_when_quiet(&cbw->cache, cache_fell_quiet, cbw);
    }
    return cbw->copies_in_flight > 0 || cbw->reads_kept > 0 || cbw->quiet_awaited || cbw_has_discards(cbw) ||
           fleecing_cache_is_growing(&cbw->cache);
}

static void cbw_tell_waiters(struct copy_before_write *cbw)
{
    if (cbw->sweeping || list_empty(&cbw->waiters))
        return;
    bool busy = cbw_is_busy(cbw);
    struct list waiters;
    list_init(&waiters);
    list_take_all(&waiters, &cbw->waiters);
    for (struct list_node *link; (link = list_take_first(&waiters));) {
        struct cbw_waiter *waiter = container_of(link, struct cbw_waiter, link);
        if ((busy || cbw->through.under_way > 0) && !waiter->swept_only)
            list_append(&cbw->waiters, &waiter->link);
        else
            waiter->quiet(waiter);
    }
}

/* Frees what it may in a few steps; false: there is more. */
static bool cbw_sweep_some(struct copy_before_write *cbw)
{
    uint32_t steps = LIMIT_SWEEP_STEP, freed = 0, place;
    const struct block_map *map = &cbw->cache.map;
    while (freed < LIMIT_SWEEP_FREES &&
           (place = fleecing_cache_scan(&cbw->cache, &cbw->sweep_at, &steps)) != PLACE_NONE) {
        if (!cbw_needed_between(cbw, block_map_block(map, place), block_map_older(map, place),
                                block_map_epoch(map, place)) ||
            MUTANT(sweep_frees_all)) {
            fleecing_cache_free(&cbw->cache, place);
            freed++;
        }
    }
    return freed < LIMIT_SWEEP_FREES && steps > 0;
}

/* One step a tick: the rest goes on by a timer, not by a task, for the tasks of a tick all run before its I/O does. */
static void cbw_sweep_step(struct io_task *task)
{
    struct copy_before_write *cbw = container_of(task, struct copy_before_write, sweep);
    if (cbw->sweeping) {
        if (!cbw_sweep_some(cbw)) {
            PROBE(sweep_goes_on);
            io_timer_set(cbw->node.io, &cbw->sweep_again, io_now_ns(cbw->node.io));
            return;
        }
        io_timer_cancel(cbw->node.io, &cbw->sweep_again);
        cbw->sweeping = false;
        cbw_update_filter(cbw);
        cbw_room_came(cbw);
    }
    cbw_tell_waiters(cbw);
}

static void cbw_sweep_on(struct io_timer *timer)
{
    struct copy_before_write *cbw = container_of(timer, struct copy_before_write, sweep_again);
    io_task_queue(cbw->node.io, &cbw->sweep);
}

void cbw_look_quiet(struct copy_before_write *cbw)
{
    if (!list_empty(&cbw->waiters))
        io_task_queue(cbw->node.io, &cbw->sweep);
}

void cbw_when_quiet(struct copy_before_write *cbw, struct cbw_waiter *waiter)
{
    list_append(&cbw->waiters, &waiter->link);
    io_task_queue(cbw->node.io, &cbw->sweep);
}

void cbw_sweep_init(struct copy_before_write *cbw)
{
    cbw->sweep.run = cbw_sweep_step;
    cbw->sweep_again.fire = cbw_sweep_on;
}

void cbw_sweep_fini(struct copy_before_write *cbw)
{
    assert(!cbw->sweeping && list_empty(&cbw->waiters));
    if (list_linked(&cbw->sweep.link))
        list_remove(&cbw->sweep.link);
}
