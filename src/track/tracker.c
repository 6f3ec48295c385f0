/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Change tracking that outlives the daemon: how its parts work together.
 *
 *   gate.c          what a write of the guest passes: bits are set in the step that hands it to the leaf (C4)
 *   activity_log.c  which extents are active; log_writer.c writes the log's blocks
 *   span.c          the bitmaps, in named shared memory
 *   store.c         pages of bitmaps go to the sidecar; extents are retired
 *   superblock.c    which checkpoints there are
 *   checkpoint.c    a checkpoint's life: prepare, cut, record, commit, remove
 *   recovery.c      opening; close.c; grow.c
 *   samples.c       whether the disk is what it was; disk_watch.c: after a kill
 *   tracker_void.c  the end of tracking when something fails
 *
 * What makes it safe is one invariant: the bits of an idle extent in memory are exactly those on stable storage, in every
 * span. So a write may go when its extents are active, that is, named by the newest durable block of the log: then a power
 * loss sets all their bits in all spans (C15). Or when all its bits are set already in the spans that recovery would follow,
 * where the extent is not active: then they are stored. An extent becomes idle again only when its pages of all spans that
 * differ from what is stored have been stored (C16), and a block of the log without it is composed.
 *
 * From the cut to the durable superblock that names the new checkpoint, recovery would follow the span before: writes set
 * their bits in both, and both are asked (`targets`, `checked`). While a checkpoint is removed, its span and the one before
 * get the bits, and the one before gets those of the span in steps; recovery follows the span until the superblock without
 * it.
 *
 * Operations run one after the other; each is a chain of steps that end with tracker_op_finish(). Void may come in between
 * any two steps: they look (tracker_op_voided()) before they touch a span.
 */
#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/probe.h"
#include "track/tracker_internal.h"

uint64_t tracker_sidecar_bytes(uint64_t disk_bytes, uint64_t granularity_bytes)
{
    unsigned shift = (unsigned)__builtin_ctzll(granularity_bytes ? granularity_bytes : BLOCK_BYTES_DEFAULT);
    uint64_t largest = disk_bytes < LIMIT_DISK_BYTES / TRACK_GROWTH ? disk_bytes * TRACK_GROWTH : LIMIT_DISK_BYTES;
    return (SIDECAR_AREAS_AT + SIDECAR_AREAS * 2 * sidecar_pages(largest, shift)) * SIDECAR_BLOCK_BYTES;
}

/* Operations. */

static void ops_run(struct io_task *task)
{
    struct tracker *tracker = container_of(task, struct tracker, op_task);
    if (tracker->op || list_empty(&tracker->ops))
        return;
    tracker_drop_spans(tracker);
    if ((tracker->drop_pending || tracker->voiding.phase == VOID_NOTING) && !tracker->broken)
        return; /* goes on when they are gone */
    struct tracker_op *op = container_of(tracker->ops.head.next, struct tracker_op, link);
    if (tracker->growing) {
        op = NULL;
        list_each (link, &tracker->ops)
            if (container_of(link, struct tracker_op, link)->run == tracker_run_grown)
                op = container_of(link, struct tracker_op, link);
        if (!op)
            return;
    }
    list_remove(&op->link);
    tracker->op = op;
    op->run(op);
}

void tracker_ops_next(struct tracker *tracker)
{
    if (!tracker->op && !list_empty(&tracker->ops))
        io_task_queue(tracker->disk->node.io, &tracker->op_task);
}

static void op_queue(struct tracker *tracker, struct tracker_op *op, void (*run)(struct tracker_op *op))
{
    assert(io_on_owner(tracker->disk->node.io));
    op->tracker = tracker;
    op->run = run;
    op->status = 0;
    list_append(&tracker->ops, &op->link);
    tracker_ops_next(tracker);
}

void tracker_op_finish(struct tracker *tracker, int status)
{
    struct tracker_op *op = tracker->op;
    tracker->op = NULL;
    tracker->subject = NULL;
    op->status = status;
    tracker_drop_spans(tracker);
    tracker_ops_next(tracker);
    op->done(op);
}

void tracker_op_fail(struct tracker *tracker, int code, const char *format, ...)
{
    char text[LIMIT_ERROR_BYTES];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    int status = error_set(&tracker->op->error, code, "change tracking of disk %s: %s", tracker->disk->name, text);
    tracker_op_finish(tracker, status);
}

bool tracker_op_voided(struct tracker *tracker)
{
    if (tracker->voiding.phase == VOID_NONE)
        return false;
    tracker_op_fail(tracker, EIO, "%.400s", tracker->voiding.reason);
    return true;
}

void tracker_watch(struct tracker *tracker)
{
    if (tracker->memory.open)
        disk_watch_start(&tracker->watch, tracker->disk, span_memory_note(&tracker->memory), tracker->options.identify,
                         tracker->options.identify_context);
}

void tracker_flush_disk(struct tracker *tracker, void (*done)(struct request *req, int status))
{
    tracker->flush = (struct request){.kind = REQUEST_FLUSH, .done = done};
    node_submit(tracker->disk->leaf, &tracker->flush);
}

/* Checkpoints. */

struct tracker_checkpoint *tracker_find(const struct tracker *tracker, const char *uuid)
{
    for (unsigned i = 0; i < tracker->count; i++)
        if (tracker->checkpoints[i]->recorded && strcmp(tracker->checkpoints[i]->id.uuid, uuid) == 0)
            return tracker->checkpoints[i];
    return NULL;
}

void tracker_forget(struct tracker *tracker, struct tracker_checkpoint *checkpoint)
{
    unsigned at = 0;
    while (tracker->checkpoints[at] != checkpoint)
        at++;
    tracker->count--;
    memmove(tracker->checkpoints + at, tracker->checkpoints + at + 1,
            (tracker->count - at) * sizeof(struct tracker_checkpoint *));
    tracker_update(tracker);
    page_store_forget(tracker, &checkpoint->span);
    span_destroy(&checkpoint->span);
    tracker_reap(tracker);
    free(checkpoint);
}

void tracker_update(struct tracker *tracker)
{
    tracker->span_count = tracker->target_count = tracker->checked_count = 0;
    for (unsigned i = 0; i < tracker->count; i++)
        if (tracker->checkpoints[i]->state != CHECKPOINT_INVALID)
            tracker->spans[tracker->span_count++] = &tracker->checkpoints[i]->span;
    const unsigned count = tracker->count, valid = tracker->span_count;
    if (valid > 0) {
        tracker->targets[tracker->target_count++] = tracker->spans[valid - 1];
        if (!tracker->checkpoints[count - 1]->recorded && valid > 1 && !MUTANT(track_bits_go_to_the_new_span_only))
            tracker->targets[tracker->target_count++] = tracker->spans[valid - 2];
        tracker->checked_count = tracker->target_count;
        for (unsigned i = 1; i <= tracker->checked_count; i++)
            if (tracker->checkpoints[count - i]->merging && valid > i && !MUTANT(track_merge_misses_writes))
                tracker->targets[tracker->target_count++] = tracker->spans[valid - i - 1];
    }
    tracker->recording = tracker->target_count == 1 ? tracker->targets[0]->words : NULL;
    tracker->disk->gate = tracker->opened && valid > 0 ? &tracker->gate : NULL;
}

int tracker_grow_active(struct tracker *tracker, struct span *span)
{
    int status = 0;
    list_each (link, &tracker->log.order) {
        struct block_range bits = extent_bits(tracker, container_of(link, struct activity_slot, link)->extent);
        if (status == 0)
            status = span_grow(span, bits.first, bits.count);
    }
    return status;
}

int tracker_free_area(const struct tracker *tracker)
{
    bool used[SIDECAR_AREAS] = {false};
    for (unsigned i = 0; i < tracker->count; i++)
        if (tracker->checkpoints[i]->state != CHECKPOINT_INVALID)
            used[tracker->checkpoints[i]->span.area] = true;
    for (int area = 0; area < SIDECAR_AREAS; area++)
        if (!used[area] && !span_area_is_doomed(&tracker->memory, (unsigned)area))
            return area;
    return -1;
}

struct span_key tracker_key(const struct tracker *tracker, const uint8_t nonce[SPAN_NONCE_BYTES])
{
    struct span_key key = {.disk_bytes = tracker->noted_bytes,
                           .next_bytes = tracker->disk->leaf->size_bytes == tracker->next_bytes ? tracker->next_bytes
                                                                                                : 0,
                           .granularity_shift = tracker->shift};
    io_boot_id(tracker->disk->node.io, key.boot_id);
    memcpy(key.uuid, tracker->sidecar.uuid, sizeof key.uuid);
    memcpy(key.nonce, nonce, sizeof key.nonce);
    return key;
}

/* Its life. */

static void tracker_free(struct tracker *tracker)
{
    for (unsigned i = 0; i < tracker->count; i++) {
        free(tracker->checkpoints[i]->span.changed);
        free(tracker->checkpoints[i]);
    }
    if (tracker->prepared) {
        free(tracker->prepared->span.changed);
        free(tracker->prepared);
    }
    activity_log_fini(&tracker->log);
    free(tracker->memory_folder);
    free(tracker->memory_file);
    free(tracker->store.blocks);
    free(tracker->writer.block);
    free(tracker->super.blocks);
    free(tracker->sampler.buffer);
    free(tracker);
}

struct tracker *tracker_create(struct disk *disk, const struct tracker_options *options)
{
    uint64_t granularity = options->granularity_bytes ? options->granularity_bytes : BLOCK_BYTES_DEFAULT;
    struct tracker *tracker = calloc(1, sizeof *tracker);
    assert(options->sidecar->io == disk->node.io);
    if (tracker) {
        tracker->gate.admit = tracker_admit;
        tracker->disk = disk;
        tracker->options = *options;
        tracker->sidecar.node = options->sidecar;
        tracker->sidecar.granularity_shift = tracker->shift = (unsigned)__builtin_ctzll(granularity);
        tracker->memory_folder = strdup(options->memory.folder);
        tracker->memory_file = strdup(options->memory.file);
        tracker->store.blocks = aligned_alloc(SIDECAR_BLOCK_BYTES, LIMIT_TRACK_PAGES * SIDECAR_BLOCK_BYTES);
        tracker->writer.block = aligned_alloc(SIDECAR_BLOCK_BYTES, SIDECAR_BLOCK_BYTES);
        tracker->super.blocks = aligned_alloc(SIDECAR_BLOCK_BYTES, SIDECAR_SUPER_BLOCKS * SIDECAR_BLOCK_BYTES);
        tracker->sampler.buffer = aligned_alloc(SIDECAR_BLOCK_BYTES, SIDECAR_BLOCK_BYTES);
        tracker->op_task.run = ops_run;
        list_init(&tracker->ops);
        log_writer_init(tracker);
    }
    if (tracker && tracker->memory_folder && tracker->memory_file && tracker->store.blocks && tracker->writer.block &&
        tracker->super.blocks && tracker->sampler.buffer)
        return tracker;
    if (tracker)
        tracker_free(tracker);
    node_destroy(options->sidecar);
    return NULL;
}

void tracker_destroy(struct tracker *tracker)
{
    struct io *io = tracker->disk->node.io;
    assert(!tracker->op && list_empty(&tracker->ops) && list_empty(&tracker->writer.waiting) &&
           list_empty(&tracker->writer.composed));
    assert(!tracker->writer.busy && !tracker->super.busy && !tracker->voiding.condemning);
    io_timer_cancel(io, &tracker->writer.stalled);
    io_timer_cancel(io, &tracker->voiding.timer);
    tracker->disk->gate = NULL;
    io_timer_cancel(io, &tracker->reap);
    disk_watch_stop(&tracker->watch);
    span_memory_close(&tracker->memory, tracker->dropping);
    if (tracker->closed)
        io_shm_remove(io, &tracker->memory.name);
    node_destroy(tracker->sidecar.node);
    tracker_free(tracker);
}

/* Calls. */

void tracker_open(struct tracker *tracker, struct tracker_op *op)
{
    assert(!tracker->opened);
    op_queue(tracker, op, tracker_run_open);
}

void tracker_close(struct tracker *tracker, struct tracker_op *op)
{
    op_queue(tracker, op, tracker_run_close);
}

void tracker_prepare(struct tracker *tracker, const struct checkpoint_id *id, struct tracker_op *op)
{
    op->id = *id;
    op_queue(tracker, op, tracker_run_prepare);
}

void tracker_record(struct tracker *tracker, struct tracker_op *op)
{
    op_queue(tracker, op, tracker_run_record);
}

static void op_queue_for(struct tracker *tracker, const char *uuid, struct tracker_op *op,
                         void (*run)(struct tracker_op *op))
{
    op->id = (struct checkpoint_id){0};
    memccpy(op->id.uuid, uuid, 0, sizeof op->id.uuid - 1);
    op_queue(tracker, op, run);
}

void tracker_commit(struct tracker *tracker, const char *uuid, struct tracker_op *op)
{
    op_queue_for(tracker, uuid, op, tracker_run_commit);
}

void tracker_remove(struct tracker *tracker, const char *uuid, struct tracker_op *op)
{
    op_queue_for(tracker, uuid, op, tracker_run_remove);
}

/* Then the tracker may be destroyed: what was written when it became void has ended, too. */
static void invalidate_continue(struct io_timer *timer)
{
    struct tracker *tracker = container_of(timer, struct tracker, pause);
    struct io *io = tracker->disk->node.io;
    if (!tracker_is_busy(tracker))
        tracker_drop_spans(tracker);
    if (tracker_is_busy(tracker) || tracker->drop_pending) {
        io_timer_set(io, timer, io_now_ns(io) + NS_PER_MS);
        return;
    }
    tracker->op_awaits_drop = false;
    if (tracker->broken)
        tracker_op_fail(tracker, EIO, "%.400s", tracker->voiding.reason);
    else
        tracker_op_finish(tracker, 0);
}

static void run_invalidate(struct tracker_op *op)
{
    struct tracker *tracker = op->tracker;
    struct io *io = tracker->disk->node.io;
    tracker_fail(tracker, "%.500s", op->error.text);
    tracker->op_awaits_drop = true;
    tracker->pause.fire = invalidate_continue;
    io_timer_set(io, &tracker->pause, io_now_ns(io));
}

void tracker_invalidate(struct tracker *tracker, const char *reason, struct tracker_op *op)
{
    op->error.text[0] = '\0'; /* it keeps the reason until it runs */
    memccpy(op->error.text, reason, 0, sizeof op->error.text - 1);
    op->error.text[sizeof op->error.text - 1] = '\0';
    op_queue(tracker, op, run_invalidate);
}

void tracker_announce_growth(struct tracker *tracker, uint64_t size_bytes, struct tracker_op *op)
{
    op->size_bytes = size_bytes;
    op_queue(tracker, op, tracker_run_announce);
}

void tracker_record_growth(struct tracker *tracker, struct tracker_op *op)
{
    op_queue(tracker, op, tracker_run_grown);
}

/* Questions. */

uint64_t tracker_granularity(const struct tracker *tracker)
{
    return UINT64_C(1) << tracker->shift;
}

unsigned tracker_checkpoints(const struct tracker *tracker, struct checkpoint_info *infos, unsigned max)
{
    unsigned count = 0;
    for (unsigned i = 0; i < tracker->count; i++) {
        const struct tracker_checkpoint *checkpoint = tracker->checkpoints[i];
        const struct span *span = checkpoint->span.memory ? &checkpoint->span : NULL;
        if (!checkpoint->recorded)
            continue;
        if (count++ >= max)
            continue;
        struct checkpoint_info *info = &infos[count - 1];
        *info = (struct checkpoint_info){.id = checkpoint->id, .state = checkpoint->state};
        if (tracker->voiding.phase != VOID_NONE)
            info->state = CHECKPOINT_INVALID; /* also while that is still being noted */
        if (!span || info->state == CHECKPOINT_INVALID)
            continue;
        uint64_t changed = span->since_count << tracker->shift;
        info->changed_bytes = changed < tracker->disk_bytes ? changed : tracker->disk_bytes;
        info->memory_bytes = span_memory_bytes(span);
        info->file_bytes = 2 * SIDECAR_BLOCK_BYTES * sidecar_pages(tracker->disk_bytes, tracker->shift);
    }
    return count;
}

const char *tracker_invalid_reason(const struct tracker *tracker)
{
    if (tracker->voiding.phase != VOID_NONE)
        return tracker->voiding.reason;
    bool invalid = tracker->count > 0 && tracker->checkpoints[tracker->count - 1]->state == CHECKPOINT_INVALID;
    return invalid || tracker->broken ? tracker->reason : NULL;
}

const char *tracker_lost_reason(const struct tracker *tracker)
{
    return tracker->voiding.phase == VOID_NONE ? tracker->reason : tracker->voiding.reason;
}

enum tracker_recovery tracker_recovery(const struct tracker *tracker)
{
    return tracker->recovery;
}

void tracker_counters(const struct tracker *tracker, struct tracker_counters *counters)
{
    *counters = tracker->counters;
    counters->slots = tracker->log.limit;
    counters->active_now = tracker->log.used_count;
}

int tracker_changed(const struct tracker *tracker, const char *uuid, uint64_t from, struct range *run, uint64_t *next)
{
    const struct tracker_checkpoint *checkpoint = tracker_find(tracker, uuid);
    *run = (struct range){0};
    *next = tracker->disk_bytes;
    if (!checkpoint)
        return -ENOENT;
    if (checkpoint->state == CHECKPOINT_INVALID || tracker->voiding.phase != VOID_NONE)
        return -ESTALE;
    unsigned first = 0;
    while (tracker->spans[first] != &checkpoint->span)
        first++;
    struct span *const *spans = tracker->spans + first;
    struct block_range bits = spans_next(spans, tracker->span_count - first, from >> tracker->shift,
                                         tracker->memory.bit_count, LIMIT_BITMAP_STEP_CHUNKS);
    uint64_t end = block_range_end(bits);
    if (end < tracker->memory.bit_count)
        *next = end << tracker->shift;
    if (bits.count == 0)
        return 0;
    *run = blocks_to_range(bits, tracker->shift, tracker->disk_bytes);
    if (run->start < from) {
        run->length -= from - run->start;
        run->start = from;
    }
    return 0;
}
