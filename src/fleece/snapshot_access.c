/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Reads of a snapshot that never delay a write.
 *
 * A block that a live point needs is either preserved in the cache, or unchanged on the disk. A read takes what lies between
 * its first and its last unpreserved block from the disk at once, without any lock, and looks again when the data is here:
 * in the point's state, its needed set and the map as they are then (C6). A block that was preserved meanwhile is taken
 * from the cache over what was read, which may be old, new or torn; for any other block no write can have passed, so what
 * was read is right. Block status is answered by the same rule.
 *
 * Blocks in RAM are copied out within that step, so no slot is pinned while a reply travels. Blocks in the cache file are
 * read next, straight into the reply; an entry stays where it is in the file for as long as the point needs it, so it is
 * enough to look again at the end whether it still does. What cannot be read from the file is lost, and its points break.
 *
 * States of a read: submitted -> (parked, when all LIMIT_SNAPSHOT_READS are out) -> (waits at the disk's read gate, which
 * keeps readers from filling the disk's queue; then it looks at the map afresh) -> base read under way -> settled ->
 * (file reads under way) -> done. A discard releases blocks, piece by piece and a few a tick. A crash loses the point with
 * its view.
 */
#include "fleece/snapshot_access.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/probe.h"
#include "fleece/snapshot_status.h"

struct file_read { /* of neighbouring slots of the cache file */
    struct snapshot_read *read;
    struct block_range blocks;
    struct request req;
    struct iovec iov[LIMIT_SNAPSHOT_FILE_FRAGMENTS];
};

struct snapshot_read {
    struct list_node link; /* in `idle` */
    struct snapshot_access *access;
    struct request *req;
    struct request base;
    struct read_gate_waiter gate;
    struct iovec iov[LIMIT_REQUEST_FRAGMENTS];
    struct block_extent extents[LIMIT_SNAPSHOT_EXTENTS];
    struct file_read file_reads[LIMIT_SNAPSHOT_FILE_READS];
    unsigned files_out;
    uint32_t epoch;   /* the newest live one when the disk was asked */
    uint64_t file_at; /* block: those before it that are in the file have been asked for */
    int status;
};

struct snapshot_access {
    struct node node;
    struct point *point;
    struct list idle;
    struct list parked; /* for an idle read, first come, first served */
    struct io_task wake;
    struct list releases;    /* under way, one after the other */
    uint64_t released_bytes; /* of the first */
    struct io_timer release_on;
    struct dirty_map maps[LIMIT_DIRTY_MAPS];
    const char *map_names[LIMIT_DIRTY_MAPS];
    struct snapshot_read reads[LIMIT_SNAPSHOT_READS];
};

static unsigned access_shift(const struct snapshot_access *access)
{
    return cbw_block_shift(access->point->cbw);
}

static const struct fleecing_cache *access_cache(const struct snapshot_access *access)
{
    return cbw_cache(access->point->cbw);
}

static struct read_gate *access_gate(const struct snapshot_access *access)
{
    return cbw_read_gate(access->point->cbw);
}

static int access_status(const struct snapshot_access *access)
{
    switch (access->point->state) {
    case POINT_LIVE:
        return 0;
    case POINT_BROKEN:
        PROBE(read_of_broken_point);
        return MUTANT(broken_point_served) ? 0 : -EIO;
    case POINT_PREPARED:
    case POINT_DELETED:
        PROBE(read_of_deleted_point);
        return MUTANT(deleted_point_served) ? 0 : -ESHUTDOWN;
    }
    abort();
}

/* Of a request for the range: the point's state, and whether it needs all of it. */
static int range_status(const struct snapshot_access *access, struct range range)
{
    int status = access_status(access);
    struct block_range blocks = range_to_blocks(range, access_shift(access));
    uint64_t end = block_range_end(blocks);
    if (status == 0 && bitmap_next_before(&access->point->needed, blocks.first, end, false) < end &&
        !MUTANT(released_block_served)) {
        PROBE(read_of_released_block);
        status = -ENODATA;
    }
    return status;
}

/* The part of a block that lies in the request, as bytes. */
static struct range block_part(const struct snapshot_access *access, uint64_t block, struct range range)
{
    struct range part = blocks_to_range((struct block_range){block, 1}, access_shift(access), access->node.size_bytes);
    if (part.start < range.start) {
        part.length -= range.start - part.start;
        part.start = range.start;
    }
    if (range_end(part) > range_end(range))
        part.length = range_end(range) - part.start;
    return part;
}

/* Whether the block must be read from the disk, or (kept) was only kept in RAM and may be dropped any time. */
static bool is_unpreserved(const struct snapshot_access *access, uint64_t block, bool *kept)
{
    uint32_t place = point_place(access->point, block);
    bool is_kept = place != PLACE_NONE && block_map_epoch(&access_cache(access)->map, place) == EPOCH_UNCHANGED;
    *kept = *kept || is_kept;
    return place == PLACE_NONE || (is_kept && !MUTANT(kept_block_relied_on));
}

/* What has to be read from the disk: from the first unpreserved block to the last one. Empty: nothing. */
static struct range unpreserved_span(const struct snapshot_access *access, struct range range)
{
    if (fleecing_cache_is_empty(access_cache(access)))
        return range;
    struct block_range blocks = range_to_blocks(range, access_shift(access));
    uint64_t first = blocks.first, end = block_range_end(blocks), missing = 0;
    bool kept = false;
    while (first < end && !is_unpreserved(access, first, &kept))
        first++;
    while (end > first && !is_unpreserved(access, end - 1, &kept))
        end--;
    for (uint64_t block = first; kept && block < end; block++)
        missing += point_place(access->point, block) == PLACE_NONE;
    if (first == end || (kept && missing == 0)) /* all of it is here, and taken in this step */
        return (struct range){range.start, 0};
    uint64_t start = block_part(access, first, range).start;
    return (struct range){start, range_end(block_part(access, end - 1, range)) - start};
}

/* Takes what is in RAM; returns the first block that is in the cache file, or where the request ends. */
static uint64_t take_preserved(const struct snapshot_access *access, const struct request *req)
{
    const struct fleecing_cache *cache = access_cache(access);
    unsigned shift = access_shift(access);
    struct block_range blocks = range_to_blocks(req->range, shift);
    uint64_t end = block_range_end(blocks), first_in_file = end;
    if (fleecing_cache_is_empty(cache) || MUTANT(read_not_looked_at_again))
        return end;
    for (uint64_t block = blocks.first; (block = block_map_next(&cache->map, block, end)) < end; block++) {
        uint32_t place = point_place(access->point, block);
        if (place == PLACE_NONE)
            continue;
        struct range part = block_part(access, block, req->range);
        uint64_t at = part.start - req->range.start;
        switch (fleecing_cache_kind(cache, place)) {
        case PLACE_RAM:
            PROBE(read_from_ram);
            iov_copy_in(req->iov, req->iov_count, at,
                        fleecing_cache_memory(cache, place) + (part.start - (block << shift)), part.length);
            break;
        case PLACE_ZERO:
            PROBE(read_from_mark);
            if (!MUTANT(mark_taken_for_data))
                iov_zero(req->iov, req->iov_count, at, part.length);
            break;
        case PLACE_FILE:
            if (first_in_file == end)
                first_in_file = block;
            break;
        }
    }
    return first_in_file;
}

static void read_finish(struct snapshot_read *read, int status)
{
    struct snapshot_access *access = read->access;
    request_complete(read->req, status);
    read->req = NULL;
    list_prepend(&access->idle, &read->link);
    if (!list_empty(&access->parked))
        io_task_queue(access->node.io, &access->wake);
}

/* ---- from the cache file ---- */

static void read_file_on(struct snapshot_read *read);

static void read_file_done(struct request *req, int status)
{
    struct file_read *file_read = container_of(req, struct file_read, req);
    struct snapshot_read *read = file_read->read;
    if (status < 0 && !MUTANT(cache_error_taken_for_data)) {
        PROBE(read_of_file_failed);
        read->status = status;
        point_lost_cached(read->access->point, file_read->blocks, status);
    }
    file_read->read = NULL;
    read->files_out--;
    read_file_on(read);
}

static uint32_t place_in_file(const struct snapshot_access *access, uint64_t block)
{
    uint32_t place = point_place(access->point, block);
    bool in_file = place != PLACE_NONE && fleecing_cache_kind(access_cache(access), place) == PLACE_FILE;
    return in_file ? place : PLACE_NONE;
}

/* The next run of blocks that are neighbours in the file as well; empty: there is none before `end`. */
static struct block_range next_file_run(const struct snapshot_access *access, uint64_t from, uint64_t end,
                                        uint32_t *place)
{
    while (from < end && (*place = place_in_file(access, from)) == PLACE_NONE)
        from++;
    struct block_range run = {from, from < end};
    if (run.count == 0)
        return run;
    const struct fleecing_cache *cache = access_cache(access);
    uint64_t offset = fleecing_cache_offset(cache, *place);
    for (uint32_t next; from + run.count < end && (next = place_in_file(access, from + run.count)) != PLACE_NONE &&
                        fleecing_cache_offset(cache, next) == offset + (run.count << access_shift(access));)
        run.count++;
    return run;
}

/* Reads as much of the run as the fragments allow; returns how many blocks. */
static uint64_t file_read_submit(struct snapshot_read *read, struct block_range run, uint32_t place)
{
    struct snapshot_access *access = read->access;
    const struct request *req = read->req;
    const unsigned shift = access_shift(access);
    struct file_read *file_read = read->file_reads;
    while (file_read->read)
        file_read++;
    struct range first = block_part(access, run.first, req->range), part;
    unsigned fragments;
    for (;; run.count = run.count / 2) { /* the fragments of a request are few: it hardly ever happens */
        part = (struct range){first.start,
                              range_end(block_part(access, block_range_end(run) - 1, req->range)) - first.start};
        struct iovec slices[LIMIT_REQUEST_FRAGMENTS];
        fragments = iov_slice(req->iov, req->iov_count, part.start - req->range.start, part.length, slices);
        if (fragments <= LIMIT_SNAPSHOT_FILE_FRAGMENTS) {
            memcpy(file_read->iov, slices, fragments * sizeof *slices);
            break;
        }
        assert(run.count > 1);
    }
    file_read->read = read;
    file_read->blocks = run;
    file_read->req = (struct request){
        .kind = REQUEST_READ,
        .range = {fleecing_cache_offset(access_cache(access), place) + (part.start - (run.first << shift)),
                  part.length},
        .iov = file_read->iov,
        .iov_count = fragments,
        .done = read_file_done,
    };
    read->files_out++;
    node_submit(access_cache(access)->disk.file, &file_read->req);
    return run.count;
}

/* Asks for more, or finds that all is here: then it looks again whether it was still needed. */
static void read_file_on(struct snapshot_read *read)
{
    struct snapshot_access *access = read->access;
    struct block_range blocks = range_to_blocks(read->req->range, access_shift(access));
    uint64_t end = block_range_end(blocks);
    int status = range_status(access, read->req->range);
    if (status < 0 && !MUTANT(cached_read_not_looked_at_again))
        read->status = status;
    while (read->status == 0 && read->files_out < LIMIT_SNAPSHOT_FILE_READS && read->file_at < end) {
        uint32_t place = PLACE_NONE;
        struct block_range run = next_file_run(access, read->file_at, end, &place);
        if (run.count > 0)
            PROBE(read_from_file);
        read->file_at = run.count > 0 ? run.first + file_read_submit(read, run, place) : end;
    }
    if (read->files_out == 0)
        read_finish(read, read->status);
}

/* What the disk had to give is here: the rest comes from the cache. */
static void read_settle(struct snapshot_read *read)
{
    struct snapshot_access *access = read->access;
    uint64_t in_file = take_preserved(access, read->req);
    if (in_file == block_range_end(range_to_blocks(read->req->range, access_shift(access)))) {
        read_finish(read, 0);
        return;
    }
    read->file_at = in_file;
    read->status = 0;
    read_file_on(read);
}

/* ---- from the disk ---- */

static void read_base_done(struct request *base, int status)
{
    struct snapshot_read *read = container_of(base, struct snapshot_read, base);
    read_gate_leave(access_gate(read->access), base->range.length);
    int now = range_status(read->access, read->req->range);
    if (now < 0 && !MUTANT(state_not_looked_at_again))
        status = now;
    if (status < 0) {
        read_finish(read, status);
        return;
    }
    if (read->access->node.read_once == READ_MANY)
        cbw_keep_read(read->access->point->cbw, base->range, base->iov, base->iov_count, read->epoch);
    read_settle(read);
}

static void read_base_submit(struct snapshot_read *read, struct range span)
{
    struct request *req = read->req, *base = &read->base;
    base->kind = REQUEST_READ;
    base->range = span;
    base->done = read_base_done;
    read->epoch = cbw_newest_live(read->access->point->cbw);
    if (span.length == req->range.length) {
        base->iov = req->iov;
        base->iov_count = req->iov_count;
    } else {
        base->iov = read->iov;
        base->iov_count = iov_slice(req->iov, req->iov_count, span.start - req->range.start, span.length, read->iov);
    }
    node_submit(cbw_disk(read->access->point->cbw)->leaf, base);
}

/* What needs no disk any more is answered; false: the span has to be read. */
static bool read_without_disk(struct snapshot_read *read, struct range *span)
{
    int status = range_status(read->access, read->req->range);
    if (status == 0)
        *span = unpreserved_span(read->access, read->req->range);
    if (status == 0 && span->length > 0)
        return false;
    if (status == 0)
        read_settle(read);
    else
        read_finish(read, status);
    return true;
}

static void read_start(struct snapshot_access *access, struct snapshot_read *read)
{
    struct range span;
    if (!read_without_disk(read, &span) && read_gate_enter(access_gate(access), span.length, &read->gate))
        read_base_submit(read, span);
}

/* The gate has room. Blocks may have been preserved, or the point may have died, while the read waited. */
static void read_let_in(struct read_gate_waiter *waiter)
{
    struct snapshot_read *read = container_of(waiter, struct snapshot_read, gate);
    struct range span;
    if (!read_without_disk(read, &span)) {
        read_gate_enter_now(access_gate(read->access), span.length);
        read_base_submit(read, span);
    }
}

/* ---- block status ---- */

static void status_base_done(struct request *base, int status)
{
    struct snapshot_read *read = container_of(base, struct snapshot_read, base);
    int now = access_status(read->access);
    if (now < 0)
        status = now;
    if (status == 0)
        status = snapshot_allocation(read->access->point, read->req, base);
    read_finish(read, status);
}

static void status_start(struct snapshot_access *access, struct snapshot_read *read)
{
    struct request *base = &read->base;
    base->kind = REQUEST_BLOCK_STATUS;
    base->flags = read->req->flags;
    base->range = read->req->range;
    base->extents = read->extents;
    base->extent_max = LIMIT_SNAPSHOT_EXTENTS;
    base->extent_count = 0;
    base->done = status_base_done;
    node_submit(cbw_disk(access->point->cbw)->leaf, base);
}

/* ---- release ---- */

/* The next piece; pieces end where blocks do, so that none is covered partly by two of them. */
static struct range release_piece(const struct snapshot_access *access, struct range range)
{
    const uint64_t block = UINT64_C(1) << access_shift(access);
    const uint64_t most = block > LIMIT_RELEASE_PIECE_BYTES ? block : LIMIT_RELEASE_PIECE_BYTES;
    uint64_t start = range.start + access->released_bytes, end = range_end(range);
    if (end - start > most)
        end = round_down(start + most, block);
    return (struct range){start, end - start};
}

/* One step a tick: to give back the memory of what is released takes its time, and the guest must not wait for it. */
static void releases_go_on(struct snapshot_access *access)
{
    const struct fleecing_cache *cache = access_cache(access);
    const uint32_t before = cache->map.entries;
    for (unsigned pieces = 0; !list_empty(&access->releases); pieces++) {
        struct request *req = list_first(&access->releases, struct request, link);
        if (pieces == LIMIT_RELEASE_PIECES || before - cache->map.entries >= LIMIT_SWEEP_FREES) {
            io_timer_set(access->node.io, &access->release_on, io_now_ns(access->node.io));
            return;
        }
        struct range piece = release_piece(access, req->range);
        int status = access_status(access);
        if (status == 0)
            status = point_release(access->point, piece);
        access->released_bytes += piece.length;
        if (status == 0 && access->released_bytes < req->range.length)
            continue;
        access->released_bytes = 0;
        list_remove(&req->link);
        request_complete(req, status);
    }
}

static void releases_fire(struct io_timer *timer)
{
    releases_go_on(container_of(timer, struct snapshot_access, release_on));
}

/* ---- the node ---- */

static void access_submit(struct node *node, struct request *req)
{
    struct snapshot_access *access = container_of(node, struct snapshot_access, node);
    int status = access_status(access);
    if (status == 0 && req->kind == REQUEST_DISCARD) {
        list_append(&access->releases, &req->link);
        if (!io_timer_armed(&access->release_on))
            releases_go_on(access);
        return;
    }
    if (status == 0 && req->kind == REQUEST_BLOCK_STATUS && (req->flags & REQUEST_RESIDENCE))
        snapshot_residence(access->point, req);
    else if (status == 0 && req->kind == REQUEST_BLOCK_STATUS && (req->flags & REQUEST_DIRTY))
        snapshot_dirty(&access->maps[req->dirty_map], req);
    if (status < 0 || (req->kind != REQUEST_READ && req->kind != REQUEST_BLOCK_STATUS) ||
        (req->flags & (REQUEST_RESIDENCE | REQUEST_DIRTY))) {
        request_complete(req, status);
        return;
    }
    struct list_node *idle = list_take_first(&access->idle);
    if (!idle) {
        PROBE(park_snapshot_read);
        list_append(&access->parked, &req->link);
        return;
    }
    struct snapshot_read *read = container_of(idle, struct snapshot_read, link);
    read->req = req;
    read->base.flags = 0;
    if (req->kind == REQUEST_READ)
        read_start(access, read);
    else
        status_start(access, read);
}

static void access_wake(struct io_task *task)
{
    struct snapshot_access *access = container_of(task, struct snapshot_access, wake);
    while (!list_empty(&access->parked) && (!list_empty(&access->idle) || access_status(access) < 0))
        access_submit(&access->node, container_of(list_take_first(&access->parked), struct request, link));
}

static void access_destroy(struct node *node)
{
    struct snapshot_access *access = container_of(node, struct snapshot_access, node);
    assert(list_empty(&access->parked) && list_empty(&access->releases));
    io_timer_cancel(access->node.io, &access->release_on);
    for (unsigned i = 0; i < LIMIT_SNAPSHOT_READS; i++)
        assert(!access->reads[i].req);
    for (unsigned i = 0; i < access->node.dirty_map_count; i++)
        bitmap_fini(&access->maps[i].changed);
    if (list_linked(&access->wake.link))
        list_remove(&access->wake.link);
    free(access);
}

static const struct node_ops snapshot_access_ops = {
    .driver = "snapshot-access",
    .submit = access_submit,
    .destroy = access_destroy,
};

struct node *snapshot_access_create(struct point *point)
{
    struct snapshot_access *access = calloc(1, sizeof *access);
    if (!access)
        return NULL;
    access->node = cbw_disk(point->cbw)->node;
    access->node.ops = &snapshot_access_ops;
    access->node.size_bytes = point->size_bytes;
    access->node.read_only = true;
    access->node.can_release = access->node.can_discard = true;
    access->node.can_fast_zero = false;
    access->node.block_bytes = UINT32_C(1) << cbw_block_shift(point->cbw);
    access->point = point;
    access->wake.run = access_wake;
    access->release_on.fire = releases_fire;
    list_init(&access->releases);
    list_init(&access->idle);
    list_init(&access->parked);
    for (unsigned i = 0; i < LIMIT_SNAPSHOT_READS; i++) {
        access->reads[i].access = access;
        access->reads[i].gate.go = read_let_in;
        list_append(&access->idle, &access->reads[i].link);
    }
    return &access->node;
}

void snapshot_access_set_maps(struct node *view, struct dirty_map *maps, unsigned count)
{
    struct snapshot_access *access = container_of(view, struct snapshot_access, node);
    assert(view->dirty_map_count == 0 && count <= LIMIT_DIRTY_MAPS);
    for (unsigned i = 0; i < count; i++) {
        assert(maps[i].changed.bit_count == round_up(view->size_bytes, UINT64_C(1) << maps[i].shift) >> maps[i].shift);
        access->maps[i] = maps[i];
        access->map_names[i] = access->maps[i].name;
        maps[i].changed = (struct bitmap){0};
    }
    view->dirty_maps = access->map_names;
    view->dirty_map_count = count;
}
