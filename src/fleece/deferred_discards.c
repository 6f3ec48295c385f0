/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Discards of blocks that a snapshot needs, put off until nobody needs them.
 *
 * To the guest a discard is a promise that it does not care for the content. To preserve what it throws away would fill
 * the cache with what it no longer uses, so the discard waits, and the blocks stay on the disk, where the snapshot reads
 * them. A write or zeroing of some of them cancels the discard there. The guest was told that it is done: it is a hint,
 * and reads of the blocks may give anything that was there.
 *
 *     waiting (a set of ranges) -> cancelled by a write
 *                               -> running, when nobody needs the blocks any more -> done
 *
 * A deferred discard is a write of its own when it runs (C7): it goes through the disk from the top, so a cut holds it,
 * write observers are told of it, and it is put off again when a new point needs the blocks meanwhile. It has its range for
 * itself: the guest's writes that overlap park on it. While some wait or run the filter stays in the graph.
 *
 * Only what is needed waits. To the rest of such a discard the guest may have writes under way, which must not be undone
 * after they were acknowledged: it runs at once, as far as runs are free, and the guest hears when it is done.
 *
 * Where blocks are needed less, there it looks, a few thousand blocks a tick. The set is bounded: a discard that finds no
 * room is not done. A crash forgets them all, and nothing is lost but space.
 */
#include "base/probe.h"
#include "fleece/cbw_internal.h"

bool cbw_has_discards(const struct copy_before_write *cbw)
{
    return cbw->discards.waiting.count > 0 || cbw->discards.running > 0;
}

void cbw_cancel_discards(struct copy_before_write *cbw, struct range range)
{
    if (cbw->discards.waiting.count == 0 || MUTANT(discard_not_cancelled))
        return;
    range_set_remove(&cbw->discards.waiting, range);
    if (!cbw->newest_live)
        cbw_update_filter(cbw);
}

struct discard_run *cbw_discard_running(struct copy_before_write *cbw, struct range range)
{
    for (unsigned i = 0; cbw->discards.running > 0 && i < LIMIT_DISCARDS_RUNNING; i++) {
        struct discard_run *run = &cbw->discards.runs[i];
        if (run->busy && range_overlaps(run->req.range, range))
            return run;
    }
    return NULL;
}

/* A part of the guest's discard is done, or has been put off: the last one completes it. */
static void discard_part_done(struct request *whole)
{
    if (--whole->leaf_scratch[0] == 0)
        request_complete(whole, 0);
}

static void discard_done(struct request *req, int status)
{
    struct discard_run *run = container_of(req, struct discard_run, req);
    struct copy_before_write *cbw = run->cbw;
    (void)status; /* a hint */
    run->busy = false;
    cbw->discards.running--;
    if (run->whole)
        discard_part_done(run->whole);
    disk_resubmit_all(cbw->disk, &run->parked);
    io_task_queue(cbw->node.io, &cbw->discards.task);
}

static void discard_start(struct copy_before_write *cbw, struct range range, struct request *whole)
{
    struct discard_run *run = cbw->discards.runs;
    while (run->busy)
        run++;
    range_set_remove(&cbw->discards.waiting, range);
    run->busy = true;
    run->whole = whole;
    cbw->discards.running++;
    PROBE(discard_runs);
    run->req = (struct request){.kind = REQUEST_DISCARD, .flags = REQUEST_OWN, .range = range, .done = discard_done};
    node_submit(&cbw->disk->node, &run->req);
}

/* The run of bytes from range.start that are needed, or that are not. */
static struct range next_run(const struct copy_before_write *cbw, struct range range, bool *needed)
{
    struct block_range blocks = range_to_blocks(range, cbw->block_shift);
    uint64_t end = blocks.first + 1;
    *needed = cbw_block_needed(cbw, blocks.first);
    while (end < block_range_end(blocks) && cbw_block_needed(cbw, end) == *needed)
        end++;
    uint64_t stop = end < block_range_end(blocks) ? end << cbw->block_shift : range_end(range);
    return (struct range){range.start, stop - range.start};
}

void cbw_defer_discard(struct copy_before_write *cbw, struct request *req)
{
    struct deferred_discards *discards = &cbw->discards;
    struct range rest = req->range;
    PROBE(discard_deferred);
    req->leaf_scratch[0] = 1; /* parts to come: this one is the end of the loop */
    while (rest.length > 0) {
        bool needed;
        struct range run = next_run(cbw, rest, &needed);
        bool kept = needed ? range_set_add(&discards->waiting, run) : discards->running < LIMIT_DISCARDS_RUNNING;
        if (kept && !needed) {
            req->leaf_scratch[0]++;
            discard_start(cbw, run, req);
        }
        discards->dropped += !kept;
        rest = (struct range){range_end(run), rest.length - run.length};
    }
    discard_part_done(req);
}

/* The first bytes of the range that nobody needs, as far as `looks` blocks go (counted down); empty: there are none. */
static struct range unneeded_in(const struct copy_before_write *cbw, struct range range, uint32_t *looks)
{
    const uint64_t longest = LIMIT_NBD_RANGE_BYTES;
    if (!cbw->newest_live)
        return (struct range){range.start, range.length < longest ? range.length : longest};
    struct block_range blocks = range_to_blocks(range, cbw->block_shift);
    uint64_t first = blocks.first, end;
    for (; first < block_range_end(blocks) && *looks > 0 && cbw_block_needed(cbw, first); first++)
        (*looks)--;
    for (end = first; end < block_range_end(blocks) && *looks > 0 && !cbw_block_needed(cbw, end); end++)
        (*looks)--;
    uint64_t start = first << cbw->block_shift, stop = end << cbw->block_shift;
    start = start > range.start ? start : range.start;
    stop = stop < range_end(range) ? stop : range_end(range);
    return (struct range){start, start < stop ? stop - start : 0};
}

/* Looks where it was told to look, as far as there are free runs. */
static void discards_look(struct io_task *task)
{
    struct copy_before_write *cbw = container_of(task, struct copy_before_write, discards.task);
    struct deferred_discards *discards = &cbw->discards;
    uint32_t looks = LIMIT_SWEEP_STEP;
    while (discards->look.length > 0 && discards->running < LIMIT_DISCARDS_RUNNING && looks > 0) {
        struct range found = range_set_first_in(&discards->waiting, discards->look);
        if (found.length == 0) {
            discards->look.length = 0;
            break;
        }
        struct range range = unneeded_in(cbw, found, &looks);
        uint64_t end = range.length > 0 ? range_end(range) : looks > 0 ? range_end(found) : range.start;
        discards->look = (struct range){end, range_end(discards->look) - end};
        if (range.length > 0)
            discard_start(cbw, range, NULL);
    }
    if (discards->look.length > 0 && looks == 0)
        io_timer_set(cbw->node.io, &discards->again, io_now_ns(cbw->node.io));
    if (!cbw->newest_live)
        cbw_update_filter(cbw);
    cbw_look_quiet(cbw);
}

static void discards_look_on(struct io_timer *timer)
{
    struct copy_before_write *cbw = container_of(timer, struct copy_before_write, discards.again);
    io_task_queue(cbw->node.io, &cbw->discards.task);
}

void cbw_look_at_discards(struct copy_before_write *cbw, struct range range)
{
    struct range *look = &cbw->discards.look;
    if (cbw->discards.waiting.count == 0)
        return;
    uint64_t start = look->length > 0 && look->start < range.start ? look->start : range.start;
    uint64_t end = look->length > 0 && range_end(*look) > range_end(range) ? range_end(*look) : range_end(range);
    *look = (struct range){start, end - start};
    io_task_queue(cbw->node.io, &cbw->discards.task);
}

void cbw_discards_init(struct copy_before_write *cbw)
{
    struct deferred_discards *discards = &cbw->discards;
    discards->waiting = (struct range_set){.ranges = discards->ranges, .max = LIMIT_DEFERRED_DISCARDS};
    discards->task.run = discards_look;
    discards->again.fire = discards_look_on;
    for (unsigned i = 0; i < LIMIT_DISCARDS_RUNNING; i++) {
        discards->runs[i].cbw = cbw;
        list_init(&discards->runs[i].parked);
    }
}

void cbw_discards_fini(struct copy_before_write *cbw)
{
    assert(!cbw_has_discards(cbw));
    io_timer_cancel(cbw->node.io, &cbw->discards.again);
    if (list_linked(&cbw->discards.task.link))
        list_remove(&cbw->discards.task.link);
}
