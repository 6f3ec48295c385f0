/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The bits of a large, scattered bitmap are megabytes: copied in one go they would hold up the guest for as long as some
 * hundred writes take. So the copy takes a step a tick, of about 100 us.
 *
 * The order that must not change: first the copy becomes an observer of writes, then it reads the source from the first bit
 * to the last. What is written meanwhile is set in the copy by the observer, whether the reading has passed there or not,
 * and the source loses no bits before it has been read, for it counts as in use until then. So the copy is a superset
 * of the source at every moment from the end of the reading to its own end, and a cut in between needs no memory at all.
 *
 * A source that becomes inconsistent meanwhile does not matter: the write that it missed is in the copy. When there is no
 * memory for a bit of the copy, `status` says so for ever; whoever wants the copy must look at it last.
 */
#include "track/bitmap_copy.h"

#include <string.h>

#include "base/probe.h"

static void copy_written(struct write_observer *observer, struct range range)
{
    struct bitmap_copy *copy = container_of(observer, struct bitmap_copy, observer);
    struct block_range granules = range_to_blocks(range, copy->source_shift);
    struct range bytes = blocks_to_range(granules, copy->source_shift, copy->disk->node.size_bytes);
    struct block_range blocks = range_to_blocks(bytes, copy->block_shift);
    if (copy->status == 0 && !MUTANT(needed_set_misses_writes))
        copy->status = bitmap_assign(&copy->blocks, blocks.first, blocks.count, true);
}

/* As many chunks as a step may, word by word. */
static void copy_chunks(struct bitmap_copy *copy)
{
    const struct bitmap *from = &copy->source->bits;
    uint64_t most = LIMIT_BITMAP_STEP_CHUNKS * BITMAP_CHUNK_BITS, left = from->bit_count - copy->at;
    uint64_t count = left < most ? left : most;
    copy->status = bitmap_merge_range(&copy->blocks, from, copy->at, count);
    copy->at += count;
}

/* As many runs of bits as a step may; also when the bits of the source are smaller than blocks, each block once. */
static void copy_runs(struct bitmap_copy *copy)
{
    const struct bitmap *from = &copy->source->bits;
    const unsigned shift = copy->source_shift;
    for (unsigned runs = 0; runs < LIMIT_BITMAP_STEP_RUNS && copy->at < from->bit_count && copy->status == 0; runs++) {
        uint64_t first = bitmap_next(from, copy->at, true);
        copy->at = first;
        if (first == from->bit_count)
            return;
        uint64_t end = bitmap_next(from, first, false);
        struct range range = blocks_to_range((struct block_range){first, end - first}, shift, copy->source->size_bytes);
        struct block_range blocks = range_to_blocks(range, copy->block_shift);
        copy->status = bitmap_assign(&copy->blocks, blocks.first, blocks.count, true);
        uint64_t next = block_range_end(blocks) << copy->block_shift >> shift;
        copy->at = next > end ? next : end;
        if (copy->at > from->bit_count)
            copy->at = from->bit_count;
    }
}

/* Runs of a checkpoint's changes, which the tracker finds in its spans. */
static void copy_changes(struct bitmap_copy *copy)
{
    for (unsigned runs = 0; runs < LIMIT_BITMAP_STEP_RUNS && copy->at < copy->disk->node.size_bytes; runs++) {
        struct range run;
        uint64_t next;
        copy->status = tracker_changed(copy->tracker, copy->checkpoint, copy->at, &run, &next);
        if (copy->status < 0)
            return;
        copy->at = next;
        if (run.length == 0)
            return; /* it has looked at as much as a step may */
        struct block_range blocks = range_to_blocks(run, copy->block_shift);
        copy->status = bitmap_assign(&copy->blocks, blocks.first, blocks.count, true);
        if (copy->status < 0)
            return;
    }
}

/* One step a tick: the next one comes by a timer, not by a task, for the tasks of a tick all run before its I/O does. */
static void copy_step(struct io_task *task)
{
    struct bitmap_copy *copy = container_of(task, struct bitmap_copy, step);
    struct dirty_bitmap *source = copy->source;
    const uint64_t end = source ? source->bits.bit_count : copy->disk->node.size_bytes;
    if (copy->status == 0 && copy->tracker)
        copy_changes(copy);
    else if (copy->status == 0 && copy->source_shift == copy->block_shift)
        copy_chunks(copy);
    else if (copy->status == 0)
        copy_runs(copy);
    if (copy->status == 0 && copy->at < end) {
        io_timer_set(copy->disk->node.io, &copy->next, io_now_ns(copy->disk->node.io));
        return;
    }
    copy->source = NULL;
    copy->tracker = NULL;
    if (source)
        dirty_bitmap_copied(source);
    copy->done(copy);
}

static void copy_next(struct io_timer *timer)
{
    struct bitmap_copy *copy = container_of(timer, struct bitmap_copy, next);
    io_task_queue(copy->disk->node.io, &copy->step);
}

static void copy_start(struct bitmap_copy *copy, struct disk *disk, unsigned source_shift, unsigned block_shift,
                       void (*done)(struct bitmap_copy *copy))
{
    assert(io_on_owner(disk->node.io));
    const uint64_t block_bytes = UINT64_C(1) << block_shift;
    *copy = (struct bitmap_copy){
        .block_shift = block_shift,
        .source_shift = source_shift,
        .disk = disk,
        .observer = {.written = copy_written},
        .step = {.run = copy_step},
        .next = {.fire = copy_next},
        .done = done,
    };
    copy->status = bitmap_init(&copy->blocks, (disk->node.size_bytes + block_bytes - 1) >> block_shift, false);
    list_append(&disk->observers, &copy->observer.link);
    io_timer_set(disk->node.io, &copy->next, io_now_ns(disk->node.io));
}

void bitmap_copy_start(struct bitmap_copy *copy, struct disk *disk, struct dirty_bitmap *source, unsigned block_shift,
                       void (*done)(struct bitmap_copy *copy))
{
    assert(!source->inconsistent);
    copy_start(copy, disk, source->granularity_shift, block_shift, done);
    copy->source = source;
    source->copies++;
}

void bitmap_copy_start_since(struct bitmap_copy *copy, struct disk *disk, struct tracker *tracker,
                             const char *checkpoint_uuid, unsigned block_shift, void (*done)(struct bitmap_copy *copy))
{
    copy_start(copy, disk, (unsigned)__builtin_ctzll(tracker_granularity(tracker)), block_shift, done);
    copy->tracker = tracker;
    memcpy(copy->checkpoint, checkpoint_uuid, sizeof copy->checkpoint);
}

void bitmap_copy_end(struct bitmap_copy *copy)
{
    assert(!copy->source && !copy->tracker);
    if (list_linked(&copy->observer.link))
        list_remove(&copy->observer.link);
}
