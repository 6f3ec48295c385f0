/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Copy-before-write with several points on one disk.
 *
 * The invariant that everything rests on: while a point is live, a write in flight to the leaf covers only blocks that
 * are preserved for that point. It holds because a write is let through only in the step that has looked at every block
 * (decide or park), and because a point goes live only at a cut, when no write is in flight.
 *
 * A block needs preserving when some live point is newer than the newest preserved copy of it. It is then read from the
 * leaf into a slot and entered under the newest live epoch; that one copy serves every point back to the block's next
 * older entry (C5). So a block is preserved at most once between two points (R3). A copy under way during a cut serves
 * the new point, too: its write is still parked. But when the points that needed a block die during its copy, writes pass
 * the copy, so what it reads is no point's data, not even that of a point cut later: such a copy is abandoned.
 *
 * A point dies by point_end() or cbw_break(): from that step on it counts nowhere. A sweep then walks the slots in small
 * steps and frees those whose interval contains no live point. When the last point dies the filter leaves the graph.
 *
 * Where a write may wait: on a copy (`parked` of that copy), for a free copy (`for_copy`), for room (`for_room`). Each
 * queue is first come, first served, and each wake-up decides from the top (C8). A copy that cannot be read loses the
 * blocks: the points that needed them break and the write goes on (R2, R4). Without room `full` is called: whoever sets
 * the policy breaks a point, or frees something, and calls cbw_retry().
 *
 * A crash loses cache and points: snapshots are ephemeral here. The disk itself is never changed by this filter.
 */
#include "fleece/copy_before_write.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/probe.h"
#include "fleece/block_map.h"
#include "fleece/ram_tier.h"

struct copy {
    struct list_node link; /* in `copies` (under way) or `idle_copies` */
    struct copy_before_write *cbw;
    struct block_range blocks;
    struct request read;
    struct list parked; /* writes that wait for it */
    bool abandoned;     /* a write may have passed while it was read: its data belongs to no point */
    uint32_t slots[LIMIT_COPY_BLOCKS];
    struct iovec iov[LIMIT_COPY_BLOCKS];
};

struct copy_before_write {
    struct node node; /* the filter */
    struct disk *disk;
    struct cbw_hooks hooks;
    unsigned block_shift;
    struct list points;   /* oldest first; every point that went live and is not freed */
    struct list prepared; /* points that did not go live yet */
    uint32_t newest_live;
    struct ram_tier tier;
    struct block_map map;
    struct read_gate gate;

    struct copy pool[LIMIT_COPIES];
    struct list copies, idle_copies;
    uint32_t copies_in_flight;
    struct list for_copy, for_room;
    bool full_reported;

    struct io_task sweep;
    struct io_timer sweep_again;
    bool sweeping;
    uint32_t sweep_at; /* slot */
    struct list waiters;
    uint64_t blocks_preserved;
};

/* ---- points ---- */

static bool live_point_between(const struct copy_before_write *cbw, uint32_t after, uint32_t last)
{
    list_each (link, &cbw->points) {
        const struct point *point = container_of(link, struct point, link);
        if (point->state == POINT_LIVE && point->epoch > after && point->epoch <= last)
            return true;
    }
    return false;
}

struct point *point_create(struct copy_before_write *cbw, uint32_t epoch)
{
    struct point *point = calloc(1, sizeof *point);
    if (!point)
        return NULL;
    point->cbw = cbw;
    point->epoch = epoch;
    point->state = POINT_PREPARED;
    list_append(&cbw->prepared, &point->link);
    return point;
}

void point_go_live(struct point *point)
{
    struct copy_before_write *cbw = point->cbw;
    assert(point->state == POINT_PREPARED && point->epoch > cbw->newest_live);
    assert(cbw->disk->holding && cbw->disk->writes_in_flight == 0);
    list_remove(&point->link);
    list_append(&cbw->points, &point->link);
    if (point->broken_early) {
        point->state = POINT_BROKEN;
        return;
    }
    point->state = POINT_LIVE;
    if (!cbw->newest_live)
        disk_set_filter(cbw->disk, &cbw->node);
    cbw->newest_live = point->epoch;
}

static bool block_needed(const struct copy_before_write *cbw, uint64_t block);

static void abandon_unneeded_copies(struct copy_before_write *cbw)
{
    list_each (link, &cbw->copies) {
        struct copy *copy = container_of(link, struct copy, link);
        for (uint64_t block = copy->blocks.first; block < block_range_end(copy->blocks); block++) {
            if (!block_needed(cbw, block) && !MUTANT(stale_copy_kept)) {
                PROBE(copy_abandoned);
                copy->abandoned = true;
            }
        }
    }
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
    if (cbw->newest_live && !newest && !MUTANT(filter_stays)) {
        disk_set_filter(cbw->disk, NULL);
        disk_resubmit_all(cbw->disk, &cbw->for_copy);
        disk_resubmit_all(cbw->disk, &cbw->for_room);
    }
    cbw->newest_live = newest;
    abandon_unneeded_copies(cbw);
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
    free(point);
}

void cbw_break(struct copy_before_write *cbw, uint32_t first_epoch, uint32_t last_epoch)
{
    bool died = false;
    list_each (link, &cbw->points) {
        struct point *point = container_of(link, struct point, link);
        if (point->state == POINT_LIVE && point->epoch >= first_epoch && point->epoch <= last_epoch) {
            PROBE(point_broken);
            point->state = POINT_BROKEN;
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

bool cbw_has_points(const struct copy_before_write *cbw)
{
    return !list_empty(&cbw->prepared) || !list_empty(&cbw->points);
}

const char *point_preserved(const struct point *point, uint64_t block)
{
    const struct copy_before_write *cbw = point->cbw;
    uint32_t slot = block_map_find(&cbw->map, block, point->epoch);
    return slot == SLOT_NONE ? NULL : ram_tier_memory(&cbw->tier, slot);
}

/* ---- freeing in the background ---- */

static void cbw_tell_waiters(struct copy_before_write *cbw)
{
    if (cbw->sweeping || (!cbw_has_points(cbw) && cbw->copies_in_flight > 0))
        return;
    struct list waiters;
    list_init(&waiters);
    list_take_all(&waiters, &cbw->waiters);
    for (struct list_node *link; (link = list_take_first(&waiters));) { /* the last one may free the filter */
        struct cbw_waiter *waiter = container_of(link, struct cbw_waiter, link);
        waiter->quiet(waiter);
    }
}

static void cbw_free_slot(struct copy_before_write *cbw, uint32_t slot)
{
    block_map_remove(&cbw->map, slot);
    ram_tier_give(&cbw->tier, slot);
}

/* Frees what it may in a few slots; false: there are more. */
static bool cbw_sweep_some(struct copy_before_write *cbw)
{
    uint32_t end = cbw->sweep_at + LIMIT_SWEEP_STEP, freed = 0;
    if (end > cbw->tier.slots_end)
        end = cbw->tier.slots_end;
    for (; cbw->sweep_at < end && freed < LIMIT_SWEEP_FREES; cbw->sweep_at++) {
        uint32_t epoch = block_map_epoch(&cbw->map, cbw->sweep_at);
        if (epoch &&
            (!live_point_between(cbw, block_map_older(&cbw->map, cbw->sweep_at), epoch) || MUTANT(sweep_frees_all))) {
            cbw_free_slot(cbw, cbw->sweep_at);
            freed++;
        }
    }
    return cbw->sweep_at == cbw->tier.slots_end;
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
        disk_resubmit_all(cbw->disk, &cbw->for_room);
    }
    cbw_tell_waiters(cbw);
}

static void cbw_sweep_on(struct io_timer *timer)
{
    struct copy_before_write *cbw = container_of(timer, struct copy_before_write, sweep_again);
    io_task_queue(cbw->node.io, &cbw->sweep);
}

void cbw_when_quiet(struct copy_before_write *cbw, struct cbw_waiter *waiter)
{
    list_append(&cbw->waiters, &waiter->link);
    io_task_queue(cbw->node.io, &cbw->sweep);
}

void cbw_retry(struct copy_before_write *cbw)
{
    cbw->full_reported = MUTANT(full_told_once);
    disk_resubmit_all(cbw->disk, &cbw->for_room);
}

/* ---- copies ---- */

/* Whether a live point needs the block as it is on the disk now. */
static bool block_needed(const struct copy_before_write *cbw, uint64_t block)
{
    uint32_t newest = block_map_newest(&cbw->map, block);
    return cbw->newest_live > newest && !(newest && MUTANT(old_copy_serves_new_point));
}

/* The copy under way that covers the block, or NULL and where the next one begins (at most *end). */
static struct copy *copy_at(const struct copy_before_write *cbw, uint64_t block, uint64_t *end)
{
    list_each (link, &cbw->copies) {
        struct copy *copy = container_of(link, struct copy, link);
        if (copy->abandoned)
            continue;
        if (copy->blocks.first <= block && block < block_range_end(copy->blocks))
            return copy;
        if (copy->blocks.first > block && copy->blocks.first < *end)
            *end = copy->blocks.first;
    }
    return NULL;
}

/* Blocks that could not be preserved: no point that needed them can be served any more. */
static void copy_lost(struct copy_before_write *cbw, struct block_range blocks, int status)
{
    uint32_t oldest = UINT32_MAX;
    for (uint64_t block = blocks.first; block < block_range_end(blocks); block++) {
        uint32_t newest = block_map_newest(&cbw->map, block);
        if (newest < oldest)
            oldest = newest;
    }
    if (oldest >= cbw->newest_live)
        return;
    PROBE(copy_lost);
    uint32_t last = cbw->newest_live;
    cbw_break(cbw, oldest + 1, last);
    cbw->hooks.lost(cbw->hooks.context, oldest + 1, last, status);
}

static void copy_done(struct request *read, int status)
{
    struct copy *copy = container_of(read, struct copy, read);
    struct copy_before_write *cbw = copy->cbw;
    bool keep = !copy->abandoned && (status == 0 || MUTANT(copy_error_taken_for_data));
    list_remove(&copy->link);
    cbw->copies_in_flight--;
    for (uint32_t i = 0; i < copy->blocks.count; i++) {
        uint64_t block = copy->blocks.first + i;
        if (keep && block_needed(cbw, block)) {
            block_map_insert(&cbw->map, copy->slots[i], block, cbw->newest_live);
            cbw->blocks_preserved += MUTANT(preserved_counted_twice) ? 2 : 1;
        } else {
            ram_tier_give(&cbw->tier, copy->slots[i]);
        }
    }
    if (status < 0 && !copy->abandoned)
        copy_lost(cbw, copy->blocks, status);
    if (status < 0 && !list_empty(&copy->parked) && MUTANT(guest_pays_for_copy))
        request_complete(container_of(list_take_first(&copy->parked), struct request, link), status);
    disk_resubmit_all(cbw->disk, &copy->parked);
    if (!MUTANT(pool_wakes_nobody))
        disk_resubmit_all(cbw->disk, &cbw->for_copy);
    list_append(&cbw->idle_copies, &copy->link);
    if (!list_empty(&cbw->waiters))
        io_task_queue(cbw->node.io, &cbw->sweep);
}

/* Takes slots for the blocks as far as there is room; returns for how many. */
static uint32_t copy_take_slots(struct copy *copy, uint64_t count)
{
    struct copy_before_write *cbw = copy->cbw;
    uint32_t taken = 0, first;
    unsigned fragments = 0;
    if (count > LIMIT_COPY_BLOCKS)
        count = LIMIT_COPY_BLOCKS;
    while (taken < count) {
        uint32_t run = ram_tier_take(&cbw->tier, (uint32_t)count - taken, &first);
        if (run == 0)
            break;
        copy->iov[fragments++] = (struct iovec){ram_tier_memory(&cbw->tier, first), (size_t)run << cbw->block_shift};
        for (uint32_t i = 0; i < run; i++)
            copy->slots[taken++] = first + i;
    }
    copy->read.iov_count = fragments;
    return taken;
}

/* Starts to preserve the blocks; fewer when there is not room for all, NULL when there is none. */
static struct copy *copy_start(struct copy_before_write *cbw, struct block_range blocks)
{
    struct copy *copy = list_first(&cbw->idle_copies, struct copy, link);
    copy->blocks = (struct block_range){blocks.first, copy_take_slots(copy, blocks.count)};
    if (copy->blocks.count == 0)
        return NULL;
    copy->abandoned = false;
    list_remove(&copy->link);
    list_append(&cbw->copies, &copy->link);
    cbw->copies_in_flight++;
    struct range range = blocks_to_range(copy->blocks, cbw->block_shift, cbw->node.size_bytes);
    struct iovec *last = &copy->iov[copy->read.iov_count - 1];
    size_t beyond_end = (copy->blocks.count << cbw->block_shift) - range.length;
    last->iov_len -= beyond_end;
    memset((char *)last->iov_base + last->iov_len, 0, beyond_end);
    copy->read.kind = REQUEST_READ;
    copy->read.range = range;
    copy->read.iov = copy->iov;
    copy->read.done = copy_done;
    node_submit(cbw->disk->leaf, &copy->read);
    return copy;
}

/* ---- writes ---- */

/* Whether someone else came first to the queue that the request is about to bypass. */
static bool must_queue(const struct list *queue, const struct request *req)
{
    if (list_empty(queue))
        return false;
    const struct request *head = list_first(queue, struct request, link);
    return !req->parked_since_ns || req->parked_since_ns > head->parked_since_ns;
}

static void cbw_wait_for_room(struct copy_before_write *cbw, struct request *req)
{
    PROBE(park_room);
    if (MUTANT(guest_pays_for_full_cache)) {
        request_complete(req, -ENOSPC);
        return;
    }
    disk_park(&cbw->for_room, req);
    if (cbw->full_reported || cbw->sweeping)
        return;
    cbw->full_reported = true;
    list_each (link, &cbw->points) {
        const struct point *point = container_of(link, struct point, link);
        if (point->state == POINT_LIVE) {
            cbw->hooks.full(cbw->hooks.context, point->epoch);
            return;
        }
    }
}

/*
 * Decides about a write: starts the copies that it lacks, as far as that goes, and parks it on the last one that it must
 * wait for, or in a queue; or finds that nothing is missing and returns true.
 */
static bool cbw_preserve(struct copy_before_write *cbw, struct request *req)
{
    struct block_range blocks = range_to_blocks(req->range, cbw->block_shift);
    if (blocks.count > 1 && MUTANT(last_block_forgotten))
        blocks.count--;
    struct copy *wait_for = NULL;
    struct list *queue = NULL;
    for (uint64_t block = blocks.first; block < block_range_end(blocks) && !queue;) {
        if (!block_needed(cbw, block)) {
            block++;
            continue;
        }
        uint64_t end = block_range_end(blocks);
        struct copy *copy = copy_at(cbw, block, &end);
        if (!copy) {
            uint64_t last = block + 1;
            while (last < end && block_needed(cbw, last))
                last++;
            if (list_empty(&cbw->idle_copies) || must_queue(&cbw->for_copy, req))
                queue = &cbw->for_copy;
            else if (must_queue(&cbw->for_room, req) ||
                     !(copy = copy_start(cbw, (struct block_range){block, last - block})))
                queue = &cbw->for_room;
        }
        if (copy) {
            wait_for = MUTANT(write_passes_copy) ? wait_for : copy;
            block = block_range_end(copy->blocks);
        }
    }
    if (wait_for) {
        PROBE(park_copy);
        disk_park(&wait_for->parked, req);
    } else if (queue == &cbw->for_copy) {
        PROBE(park_copy_pool);
        disk_park(queue, req);
    } else if (queue) {
        cbw_wait_for_room(cbw, req);
    }
    return !wait_for && !queue;
}

static void cbw_submit(struct node *node, struct request *req)
{
    struct copy_before_write *cbw = container_of(node, struct copy_before_write, node);
    if (!request_is_write(req) || (req->kind == REQUEST_DISCARD && MUTANT(discard_not_preserved)) ||
        (req->kind == REQUEST_WRITE_ZEROES && MUTANT(zeroes_not_preserved)) || cbw_preserve(cbw, req))
        disk_issue(cbw->disk, req);
}

/* ---- life ---- */

static void cbw_destroy_node(struct node *node)
{
    cbw_destroy(container_of(node, struct copy_before_write, node));
}

static const struct node_ops cbw_node_ops = {
    .driver = "copy-before-write",
    .submit = cbw_submit,
    .destroy = cbw_destroy_node,
};

static void cbw_init_lists(struct copy_before_write *cbw)
{
    list_init(&cbw->prepared);
    list_init(&cbw->points);
    list_init(&cbw->copies);
    list_init(&cbw->idle_copies);
    list_init(&cbw->for_copy);
    list_init(&cbw->for_room);
    list_init(&cbw->waiters);
    for (unsigned i = 0; i < LIMIT_COPIES; i++) {
        cbw->pool[i].cbw = cbw;
        list_init(&cbw->pool[i].parked);
        list_append(&cbw->idle_copies, &cbw->pool[i].link);
    }
}

int cbw_create(const struct cbw_options *options, struct copy_before_write **created, struct error *err)
{
    assert(options->block_bytes && (options->block_bytes & (options->block_bytes - 1)) == 0);
    struct disk *disk = options->disk;
    struct copy_before_write *cbw = calloc(1, sizeof *cbw);
    if (!cbw)
        return error_set(err, ENOMEM, "no memory for a snapshot of disk %s", disk->name);
    cbw->node = disk->node;
    cbw->node.ops = &cbw_node_ops;
    cbw->disk = disk;
    cbw->hooks = options->hooks;
    cbw->block_shift = (unsigned)__builtin_ctzll(options->block_bytes);
    cbw->sweep.run = cbw_sweep_step;
    cbw->sweep_again.fire = cbw_sweep_on;
    cbw_init_lists(cbw);
    read_gate_init(&cbw->gate, disk, &cbw->copies_in_flight, options->segment_bytes);
    int status = ram_tier_init(&cbw->tier, disk->node.io, options->budget, cbw->block_shift, options->segment_bytes,
                               err);
    if (status == 0 && block_map_init(&cbw->map, ram_tier_slots_max(&cbw->tier)) < 0) {
        ram_tier_fini(&cbw->tier);
        status = error_set(err, ENOMEM, "no memory for the fleecing cache's map of disk %s", disk->name);
    }
    if (status < 0) {
        free(cbw);
        return status;
    }
    *created = cbw;
    return 0;
}

void cbw_destroy(struct copy_before_write *cbw)
{
    assert(!cbw_has_points(cbw) && cbw->copies_in_flight == 0 && !cbw->sweeping);
    assert(list_empty(&cbw->for_copy) && list_empty(&cbw->for_room) && list_empty(&cbw->waiters));
    assert(cbw->disk->filter != &cbw->node);
    if (list_linked(&cbw->sweep.link))
        list_remove(&cbw->sweep.link);
    read_gate_fini(&cbw->gate);
    block_map_fini(&cbw->map);
    ram_tier_fini(&cbw->tier);
    free(cbw);
}

bool cbw_is_empty(const struct copy_before_write *cbw)
{
    return cbw->tier.slots_used == 0;
}

struct disk *cbw_disk(const struct copy_before_write *cbw)
{
    return cbw->disk;
}

struct read_gate *cbw_read_gate(struct copy_before_write *cbw)
{
    return &cbw->gate;
}

unsigned cbw_block_shift(const struct copy_before_write *cbw)
{
    return cbw->block_shift;
}

static uint32_t list_length(const struct list *list)
{
    uint32_t length = 0;
    list_each (link, list)
        length++;
    return length;
}

void cbw_status(const struct copy_before_write *cbw, struct cbw_status *status)
{
    *status = (struct cbw_status){
        .blocks_preserved = cbw->blocks_preserved,
        .slots_used = cbw->tier.slots_used,
        .copies_in_flight = cbw->copies_in_flight,
        .writes_parked = list_length(&cbw->for_copy) + list_length(&cbw->for_room),
    };
    list_each (link, &cbw->copies)
        status->writes_parked += list_length(&container_of(link, struct copy, link)->parked);
}
