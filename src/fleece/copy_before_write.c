/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Copy-before-write with several points on one disk: the guest's way through the filter.
 *
 * The invariant that everything rests on: while a point is live, a write in flight to the leaf covers only blocks that
 * the point does not need, or that are preserved for it. It holds because a write is let through only in the step that has
 * looked at every block (decide or park), and because a point goes live only at a cut, when no write is in flight.
 *
 * A block needs preserving when some live point that needs it is newer than the newest preserved copy of it (point.c);
 * copies read it into the cache (preserve.c).
 *
 * Where a write may wait: on a copy (`parked` of that copy), for a free copy (`for_copy`), for room (`for_room`). Each
 * queue is first come, first served, and each wake-up decides from the top (C8). Without room `full` is called: whoever
 * sets the policy makes some on this or another disk, waits for a consumer that releases, or breaks a point, and calls
 * cbw_retry(). As long as writes wait, `full` is called again when the policy should look again, and says so when the
 * first of them has waited for its time-out, counted from its first park (C8).
 *
 * A discard of blocks that are needed changes nothing yet: it is put off (deferred_discards.c), and a write of the same
 * blocks cancels it.
 *
 * A crash loses cache and points, but for what is in a memory that outlives it: cache_memory.c has the blocks,
 * needed_memory.c what is needed of them. The disk itself is never changed by this filter.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/probe.h"
#include "fleece/cbw_internal.h"

/* ---- room ---- */

static void cbw_ask_for_room(struct copy_before_write *cbw)
{
    uint64_t now = io_now_ns(cbw->node.io);
    uint64_t parked = list_first(&cbw->for_room, struct request, link)->parked_since_ns;
    bool overdue = now >= parked + cbw->timeout_ns && !MUTANT(never_overdue);
    uint64_t again = now + RELEASE_PATIENCE_NS;
    if (!overdue && parked + cbw->timeout_ns < again)
        again = parked + cbw->timeout_ns;
    io_timer_set(cbw->node.io, &cbw->room_timer, again);
    cbw->full_reported = true;
    list_each (link, &cbw->points) {
        const struct point *point = container_of(link, struct point, link);
        if (point->state == POINT_LIVE && point->needed.set_count > 0) { /* else its end frees nothing */
            if (overdue)
                PROBE(room_overdue);
            cbw->hooks.full(cbw->hooks.context, point->epoch, overdue, fleecing_cache_failure(&cbw->cache));
            return;
        }
    }
}

static void cbw_room_timer(struct io_timer *timer)
{
    struct copy_before_write *cbw = container_of(timer, struct copy_before_write, room_timer);
    if (!list_empty(&cbw->for_room))
        cbw_ask_for_room(cbw);
}

static void cbw_wait_for_room(struct copy_before_write *cbw, struct request *req)
{
    PROBE(park_room);
    if (MUTANT(guest_pays_for_full_cache)) {
        request_complete(req, -ENOSPC);
        return;
    }
    if (MUTANT(timeout_starts_anew))
        req->parked_since_ns = 0;
    disk_park(&cbw->for_room, req);
    if (!cbw->full_reported && !cbw->sweeping)
        cbw_ask_for_room(cbw);
}

void cbw_retry(struct copy_before_write *cbw)
{
    cbw->full_reported = MUTANT(full_told_once);
    disk_resubmit_all(cbw->disk, &cbw->for_room);
}

void cbw_room_came(struct copy_before_write *cbw)
{
    cbw_retry(cbw);
    if (atomic_load(&cbw->ram_budget->wanted))
        cbw->hooks.freed(cbw->hooks.context);
}

static void cache_changed(void *context)
{
    struct copy_before_write *cbw = context;
    cbw_room_came(cbw);
    cbw_look_quiet(cbw);
}

bool cbw_squeeze(struct copy_before_write *cbw)
{
    bool spills_later = cbw->copies_in_flight > 0 && cbw->cache.disk.file && !fleecing_cache_failure(&cbw->cache);
    bool hopeful = fleecing_cache_squeeze(&cbw->cache) || cbw->sweeping || spills_later;
    uint64_t now = io_now_ns(cbw->node.io);
    list_each (link, &cbw->points) {
        const struct point *point = container_of(link, struct point, link);
        if (point->state == POINT_LIVE && point->released_ns && now < point->released_ns + RELEASE_PATIENCE_NS)
            hopeful = true;
    }
    return hopeful && !MUTANT(hope_given_up_early);
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
        if (!cbw_block_needed(cbw, block)) {
            block++;
            continue;
        }
        uint64_t end = block_range_end(blocks);
        struct copy *copy = cbw_copy_at(cbw, block, &end);
        if (!copy) {
            uint64_t last = block + 1;
            while (last < end && cbw_block_needed(cbw, last))
                last++;
            if (list_empty(&cbw->idle_copies) || must_queue(&cbw->for_copy, req))
                queue = &cbw->for_copy;
            else if (must_queue(&cbw->for_room, req))
                queue = &cbw->for_room;
            else
                copy = cbw_copy_start(cbw, (struct block_range){block, last - block}, &queue);
        }
        if (copy) {
            queue = NULL;
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

bool cbw_range_needed(const struct copy_before_write *cbw, struct range range)
{
    struct block_range blocks = range_to_blocks(range, cbw->block_shift);
    for (uint64_t block = blocks.first; block < block_range_end(blocks); block++)
        if (cbw_block_needed(cbw, block))
            return true;
    return false;
}

/* Whether the write is to be handed on now; else it is parked, or was put off. */
static bool cbw_admit(struct copy_before_write *cbw, struct request *req)
{
    bool discard = req->kind == REQUEST_DISCARD;
    if ((discard && MUTANT(discard_not_preserved)) ||
        (req->kind == REQUEST_WRITE_ZEROES && MUTANT(zeroes_not_preserved)))
        return true;
    struct discard_run *running = req->flags & REQUEST_OWN ? NULL : cbw_discard_running(cbw, req->range);
    if (running && !MUTANT(write_passes_discard)) {
        PROBE(park_discard);
        disk_park(&running->parked, req);
        return false;
    }
    if (discard && cbw_range_needed(cbw, req->range) && !MUTANT(discard_runs_on_needed)) {
        cbw_defer_discard(cbw, req);
        return false;
    }
    cbw_date_kept(cbw, req->range);
    if (discard)
        return true;
    cbw_cancel_discards(cbw, req->range);
    return cbw_preserve(cbw, req);
}

static void cbw_submit(struct node *node, struct request *req)
{
    struct copy_before_write *cbw = container_of(node, struct copy_before_write, node);
    if (request_is_write(req) ? cbw_admit(cbw, req) : !cbw_read(cbw, req))
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

/* For the disk that it may become. */
static uint64_t room_for(uint64_t disk_bytes)
{
    return disk_bytes < LIMIT_DISK_BYTES / DISK_GROWTH ? disk_bytes * DISK_GROWTH : LIMIT_DISK_BYTES;
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
    cbw->timeout_ns = options->timeout_ns;
    cbw->ram_budget = options->ram_budget;
    cbw->room_timer.fire = cbw_room_timer;
    cbw_sweep_init(cbw);
    cbw_discards_init(cbw);
    cbw_through_init(cbw);
    cbw_init_lists(cbw);
    cbw_reads_init(cbw, options->copy_on_read);
    read_gate_init(&cbw->gate, disk, &cbw->copies_in_flight, options->segment_bytes);
    const struct fleecing_cache_options cache = {
        .io = disk->node.io,
        .ram_budget = options->ram_budget,
        .block_shift = cbw->block_shift,
        .segment_bytes = options->segment_bytes > options->block_bytes ? options->segment_bytes : options->block_bytes,
        .disk_bytes = disk->node.size_bytes,
        .room_bytes = room_for(disk->node.size_bytes),
        .file = options->file,
        .file_budget = options->file_budget,
        .memory = options->memory,
        .file_id = options->file_id,
        .keep_unchanged = options->copy_on_read,
        .changed = cache_changed,
        .context = cbw,
    };
    int status = fleecing_cache_init(&cbw->cache, &cache, err);
    cbw->room_bytes = cache.memory && status == 0 ? cache_memory_plan(cache.memory).room_bytes : cache.room_bytes;
    if (status < 0) {
        free(cbw);
        return status;
    }
    *created = cbw;
    return 0;
}

uint64_t cbw_room_bytes(const struct copy_before_write *cbw)
{
    return cbw->room_bytes;
}

void cbw_announce_growth(struct copy_before_write *cbw, uint64_t size_bytes)
{
    assert(size_bytes <= cbw->room_bytes && list_empty(&cbw->prepared));
    if (!MUTANT(restart_growth_unannounced))
        cache_memory_announce_growth(cbw->cache.memory, size_bytes);
}

/* The last block may have been a part of one, and what was read or is being read of it goes no further. To points that
 * there are that is enough; but it must not pass for the whole block when a new one needs it: where somebody else has made
 * room for the disk (a volume), what was added need not be zeroes. */
void cbw_grow(struct copy_before_write *cbw)
{
    const uint64_t old_bytes = cbw->node.size_bytes, last = (old_bytes - 1) >> cbw->block_shift;
    assert(cbw->disk->writes_in_flight == 0 && list_empty(&cbw->prepared));
    node_set_size(&cbw->node, cbw->disk->node.size_bytes);
    cache_memory_grow(cbw->cache.memory, cbw->node.size_bytes);
    if (old_bytes == (last + 1) << cbw->block_shift)
        return;
    PROBE(old_end_within_a_block);
    if (!MUTANT(growth_copy_goes_on))
        cbw_abandon_copy(cbw, last);
    cbw_date_kept(cbw, (struct range){last << cbw->block_shift, old_bytes - (last << cbw->block_shift)});
}

void cbw_destroy(struct copy_before_write *cbw)
{
    assert(!cbw_has_points(cbw) && cbw->copies_in_flight == 0);
    assert(list_empty(&cbw->for_copy) && list_empty(&cbw->for_room));
    assert(cbw->disk->filter != &cbw->node);
    io_timer_cancel(cbw->node.io, &cbw->room_timer);
    cbw_sweep_fini(cbw);
    cbw_discards_fini(cbw);
    cbw_through_fini(cbw);
    read_gate_fini(&cbw->gate);
    fleecing_cache_fini(&cbw->cache);
    free(cbw);
}

const struct fleecing_cache *cbw_cache(const struct copy_before_write *cbw)
{
    return &cbw->cache;
}

uint32_t cbw_newest_live(const struct copy_before_write *cbw)
{
    return cbw->newest_live;
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
        .blocks_released = cbw->blocks_released,
        .blocks_cut = cbw->blocks_cut,
        .copies_in_flight = cbw->copies_in_flight,
        .writes_parked = list_length(&cbw->for_copy) + list_length(&cbw->for_room),
    };
    fleecing_cache_status(&cbw->cache, &status->cache);
    list_each (link, &cbw->copies)
        status->writes_parked += list_length(&container_of(link, struct copy, link)->parked);
}
