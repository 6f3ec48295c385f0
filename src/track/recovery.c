/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Opening: what is known about a disk when a daemon starts, and how it is known.
 *
 *     NEW        the sidecar is made: header, log, superblock 1, superblock 2, each durable before the next
 *     CLEAN      closed in good order: the stored pages are the truth; the disk must be what it was (identity, all samples)
 *     ADOPTED    killed, same boot: the bits in shared memory are the truth, unless somebody has changed the disk since
 *                (disk_watch.c); what the newest log block names is active again
 *     REPLAYED   power loss, or the memory is gone: stored pages, and all bits of what the newest log block names, in all
 *                spans (C15)
 *     VOID       it is not known: every checkpoint is invalid, with the reason; what was in memory goes when that is stable
 *
 * Nothing is written before all that has been read, in memory alone; then one superblock with a new nonce makes it so (C11).
 * A crash before that superblock finds everything as it was, and one after it finds memory that fits it. Of a disk that has
 * grown by our doing (grow.c), it still says that it was about to.
 *
 * What a power loss may have left half written is forgiven only where the last write must have been: the superblock after
 * the newest, the log block after the newest (C17), of each page the copy after the newest. Everything else that is not
 * whole is damage. Damage to header or superblocks makes the sidecar malformed, for then it is not known what there should
 * be; damage to log or pages makes the checkpoints invalid.
 */
#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/probe.h"
#include "track/tracker_internal.h"

enum { CHUNK_PAGES = LIMIT_REQUEST_BYTES / SIDECAR_BLOCK_BYTES / 2 };

struct recovery {
    struct sidecar_block *blocks; /* CHUNK_PAGES * 2 */
    unsigned at_checkpoint;       /* whose pages are read */
    uint64_t at_page;
    unsigned loaded;         /* pages under way */
    bool making;             /* a new sidecar */
    bool memory_seen;        /* what a killed daemon left was looked at, or made anew */
    bool log_damaged, valid; /* valid: there are checkpoints that may be */
    uint32_t extents[SIDECAR_LOG_SLOTS];
    unsigned extent_count;
    char reason[SIDECAR_REASON_BYTES]; /* why everything is void; "": it is not */
};

static void recovery_end(struct tracker *tracker)
{
    free(tracker->recovering->blocks);
    free(tracker->recovering);
    tracker->recovering = NULL;
}

static void open_failed(struct tracker *tracker, int status, const char *what)
{
    recovery_end(tracker);
    tracker_op_fail(tracker, -status, "%s: %s", what, error_name(status));
}

/* Malformed: op->error says how. */
static void open_malformed(struct tracker *tracker)
{
    struct error said = tracker->op->error;
    recovery_end(tracker);
    tracker_op_fail(tracker, said.code, "its sidecar is %.350s: 'fleece checkpoint reset' begins anew", said.text);
}

static void void_because(struct tracker *tracker, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void void_because(struct tracker *tracker, const char *format, ...)
{
    struct recovery *recovery = tracker->recovering;
    if (recovery->reason[0])
        return;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(recovery->reason, sizeof recovery->reason, format, arguments);
    va_end(arguments);
}

/* ---- the end of all ways */

static void open_recorded(struct tracker *tracker, int status);

/* Stored, or void. */
static void open_grown(struct tracker *tracker, int status)
{
    (void)status;
    tracker_op_finish(tracker, 0);
}

static void open_done(struct tracker *tracker)
{
    if (tracker->memory.open)
        span_memory_settle(&tracker->memory);
    else if (tracker->recovering->reason[0] && tracker->recovering->memory_seen) /* not before: it may be why */
        io_shm_remove(tracker->disk->node.io, &tracker->memory.name);
    recovery_end(tracker);
    tracker->opened = true;
    tracker_watch(tracker);
    tracker_reap(tracker);
    tracker_update(tracker);
    if (tracker->noted_bytes != tracker->disk_bytes)
        tracker_store_growth(tracker, open_grown);
    else
        tracker_op_finish(tracker, 0);
}

static void log_made(struct sidecar_io *io, int status)
{
    struct tracker *tracker = container_of(io, struct tracker, op_io);
    if (status < 0)
        open_failed(tracker, status, "its sidecar cannot be written (activity log)");
    else if (tracker->recovering->making)
        superblock_write(tracker, open_recorded);
    else
        open_done(tracker);
}

/* A ring of blocks that name nothing. */
static void make_log(struct tracker *tracker)
{
    struct sidecar_block *blocks = tracker->recovering->blocks;
    memset(blocks, 0, SIDECAR_LOGS * SIDECAR_BLOCK_BYTES);
    for (uint32_t number = 1; number <= SIDECAR_LOGS; number++) {
        unsigned at = number % SIDECAR_LOGS;
        sidecar_seal(&tracker->sidecar, &blocks[at], 1, SIDECAR_LOG_AT + at, SIDECAR_LOG, number,
                     sidecar_next_sequence(&tracker->sidecar));
    }
    tracker->writer.number = SIDECAR_LOGS;
    tracker->op_io.done = log_made;
    sidecar_write(&tracker->sidecar, &tracker->op_io, SIDECAR_LOG_AT, SIDECAR_LOGS, blocks, true);
}

static void open_recorded(struct tracker *tracker, int status)
{
    if (status < 0)
        open_failed(tracker, status, "its sidecar cannot be written (superblock)");
    else if (tracker->recovering->making && tracker->super.number == 1)
        superblock_write(tracker, open_recorded);
    else if (tracker->recovering->log_damaged)
        make_log(tracker);
    else
        open_done(tracker);
}

static void open_void(struct tracker *tracker)
{
    memcpy(tracker->reason, tracker->recovering->reason, sizeof tracker->reason);
    tracker->recovery = TRACKER_VOID;
    tracker->sampler.kept_count = 0;
    for (unsigned i = 0; i < tracker->count; i++) {
        tracker->checkpoints[i]->state = CHECKPOINT_INVALID;
        span_destroy(&tracker->checkpoints[i]->span);
    }
    activity_log_reset(&tracker->log);
    span_memory_close(&tracker->memory, false);
}

static void open_record(struct tracker *tracker)
{
    tracker->identity = tracker->options.identity;
    tracker->identity.mtime_ns = tracker->identity.ctime_ns = 0; /* they will be others */
    if (tracker->recovering->reason[0]) {
        open_void(tracker);
    } else if (tracker->memory.open) {
        if (tracker->recovery != TRACKER_ADOPTED)
            disk_note_begin(span_memory_note(&tracker->memory), tracker->disk->node.io, &tracker->options.identity);
        span_memory_announce(&tracker->memory, tracker->super.past.nonce, tracker->nonce);
    }
    if (tracker->disk_bytes == tracker->noted_bytes)
        tracker->next_bytes = 0; /* it did not grow */
    if (tracker->disk_bytes != tracker->disk->leaf->size_bytes) {
        tracker->disk_bytes = tracker->noted_bytes = tracker->disk->leaf->size_bytes;
        tracker->memory.bit_count = (tracker->disk_bytes + tracker_granularity(tracker) - 1) >> tracker->shift;
        int status = activity_log_resize(&tracker->log, tracker_extents(tracker->memory.bit_count));
        if (status < 0) {
            open_failed(tracker, status, "no memory for its activity log");
            return;
        }
    }
    superblock_write(tracker, open_recorded);
}

static void open_sampled(struct tracker *tracker, bool differs)
{
    if (differs)
        PROBE(track_samples_differ);
    if (differs)
        void_because(tracker, "the disk is not what it was: a block that was not written since has changed");
    open_record(tracker);
}

static int64_t count_work(void *argument)
{
    struct tracker *tracker = argument;
    spans_count(tracker->spans, tracker->span_count);
    if (!tracker->super.past.clean || tracker->noted_bytes != tracker->disk_bytes)
        return 0;
    for (unsigned i = 0; i < tracker->count; i++) {
        struct tracker_checkpoint *checkpoint = tracker->checkpoints[i];
        if (checkpoint->state != CHECKPOINT_INVALID &&
            span_count(&checkpoint->span) != tracker->super.past.bit_counts[i])
            return (int64_t)i + 1;
    }
    return 0;
}

static void open_counted(struct io_op *op, int64_t result)
{
    struct tracker *tracker = container_of(op, struct tracker, work);
    if (result > 0)
        void_because(tracker, "the sidecar has lost bits of checkpoint '%s'",
                     tracker->checkpoints[result - 1]->id.name);
    if (tracker->recovering->reason[0])
        open_record(tracker);
    else
        sampler_check(tracker, tracker->super.past.clean, open_sampled);
}

/* Whether the disk has the size that it was to get when it was tracked last: that was our doing. */
static bool has_grown(const struct tracker *tracker)
{
    return tracker->next_bytes && tracker->disk->leaf->size_bytes == tracker->next_bytes;
}

static void open_count(struct tracker *tracker)
{
    if (!tracker->recovering->reason[0]) {
        tracker_update(tracker);
        int status = has_grown(tracker) ? tracker_take_growth(tracker) : 0;
        if (status < 0)
            void_because(tracker, "no memory for the bitmap of a larger disk: %s", error_name(status));
    }
    if (tracker->recovering->reason[0]) {
        open_record(tracker);
        return;
    }
    tracker->work.done = open_counted;
    io_work(tracker->disk->node.io, &tracker->work, count_work, tracker);
}

/* ---- pages */

/* The stamps of a page's copy; what is older than its span is nothing. */
static int page_stamps(struct tracker *tracker, const struct span *span, uint64_t page, unsigned copy,
                       const struct sidecar_block *block, struct sidecar_stamp stamps[SIDECAR_SECTORS])
{
    uint64_t bad, at = sidecar_page_block(&tracker->sidecar, span->area, page, copy);
    if (sidecar_check(&tracker->sidecar, block, 1, at, SIDECAR_PAGE, stamps, &bad) < 0) {
        void_because(tracker, "bytes %llu-%llu of the sidecar, of a bitmap, are damaged",
                     (unsigned long long)bad * SIDECAR_SECTOR_BYTES,
                     (unsigned long long)(bad + 1) * SIDECAR_SECTOR_BYTES - 1);
        return -EBADMSG;
    }
    for (unsigned i = 0; i < SIDECAR_SECTORS; i++)
        if (stamps[i].sequence < span->first_sequence)
            stamps[i] = (struct sidecar_stamp){0};
    return 0;
}

static bool is_whole(const struct sidecar_stamp stamps[SIDECAR_SECTORS], unsigned copy)
{
    for (unsigned i = 1; i < SIDECAR_SECTORS; i++)
        if ((stamps[i].sequence != stamps[0].sequence || stamps[i].number != stamps[0].number) &&
            !MUTANT(track_torn_page_is_taken)) {
            PROBE(track_torn_page);
            return false;
        }
    return stamps[0].number == 0 || stamps[0].number % 2 == (copy == 0 ? 1 : 0);
}

/* Whether the other copy holds what came before the newest one, or a part of what came next. */
static bool page_fits(struct sidecar_stamp newest, const struct sidecar_stamp other[SIDECAR_SECTORS])
{
    uint32_t next = newest.number == SIDECAR_NUMBER_MASK ? 2 : newest.number + 1;
    for (unsigned i = 0; i < SIDECAR_SECTORS; i++) {
        bool before = other[i].sequence < newest.sequence &&
                      (other[i].number == newest.number - 1 ||
                       (newest.number == 2 && other[i].number == SIDECAR_NUMBER_MASK));
        bool after = other[i].sequence > newest.sequence && other[i].number == next;
        bool never = newest.number == 0 && other[i].number == 0;
        if (!before && !after && !never)
            return false;
    }
    return true;
}

static int load_page(struct tracker *tracker, struct span *span, uint64_t page, const struct sidecar_block copies[2])
{
    struct sidecar_stamp stamps[2][SIDECAR_SECTORS];
    uint8_t payload[SIDECAR_PAYLOAD];
    for (unsigned copy = 0; copy < 2; copy++)
        if (page_stamps(tracker, span, page, copy, &copies[copy], stamps[copy]) < 0)
            return -EBADMSG;
    bool whole[2] = {is_whole(stamps[0], 0), is_whole(stamps[1], 1)};
    unsigned newest = whole[0] && (!whole[1] || stamps[0][0].sequence > stamps[1][0].sequence) ? 0 : 1;
    const struct sidecar_stamp stamp = stamps[newest][0];
    bool first = stamp.number == 0 && newest == 0; /* copy 0 is written first of all */
    if (!whole[newest] || first || !page_fits(stamp, stamps[!newest])) {
        uint64_t at = sidecar_page_block(&tracker->sidecar, span->area, page, 0) * SIDECAR_BLOCK_BYTES;
        void_because(tracker, "bytes %llu-%llu of the sidecar, a bitmap, do not belong together",
                     (unsigned long long)at, (unsigned long long)at + 2 * SIDECAR_BLOCK_BYTES - 1);
        return -EBADMSG;
    }
    span->written[page] = stamp.number;
    if (stamp.number == 0)
        return 0;
    sidecar_get_payload(&copies[newest], 1, payload);
    int status = span_load_page(span, page, payload);
    if (status < 0)
        void_because(tracker, "no memory for its bitmaps in '%s': %s", tracker->memory.name.folder, error_name(status));
    return status;
}

static void load_next(struct tracker *tracker);

static void pages_read(struct sidecar_io *io, int status)
{
    struct tracker *tracker = container_of(io, struct tracker, op_io);
    struct recovery *recovery = tracker->recovering;
    struct span *span = &tracker->checkpoints[recovery->at_checkpoint]->span;
    if (status < 0)
        void_because(tracker, "its sidecar cannot be read: %s", error_name(status));
    for (unsigned i = 0; i < recovery->loaded && status == 0; i++)
        status = load_page(tracker, span, recovery->at_page + i, &recovery->blocks[2 * i]);
    recovery->at_page += recovery->loaded;
    if (status < 0)
        open_count(tracker);
    else
        load_next(tracker);
}

/* All bits of what was active, in all spans. */
static void replay(struct tracker *tracker)
{
    struct recovery *recovery = tracker->recovering;
    for (unsigned i = 0; i < recovery->extent_count && !MUTANT(track_log_not_replayed); i++) {
        PROBE(track_extent_replayed);
        struct block_range bits = extent_bits(tracker, recovery->extents[i]);
        for (unsigned s = 0; s < tracker->count; s++) {
            struct span *span = &tracker->checkpoints[s]->span;
            if (!span->memory)
                continue;
            int status = span_grow(span, bits.first, bits.count);
            if (status < 0) {
                void_because(tracker, "no memory for its bitmaps in '%s': %s", tracker->memory.name.folder,
                             error_name(status));
                break;
            }
            span_set(span, bits.first, bits.count);
        }
    }
    open_count(tracker);
}

static void load_next(struct tracker *tracker)
{
    struct recovery *recovery = tracker->recovering;
    const uint64_t pages = sidecar_pages(tracker->disk_bytes, tracker->shift);
    if (recovery->at_page == pages) {
        recovery->at_page = 0;
        recovery->at_checkpoint++;
    }
    while (recovery->at_checkpoint < tracker->count &&
           tracker->checkpoints[recovery->at_checkpoint]->state == CHECKPOINT_INVALID)
        recovery->at_checkpoint++;
    if (recovery->at_checkpoint == tracker->count) {
        replay(tracker);
        return;
    }
    uint64_t left = pages - recovery->at_page;
    recovery->loaded = left < CHUNK_PAGES ? (unsigned)left : CHUNK_PAGES;
    tracker->op_io.done = pages_read;
    uint64_t first = sidecar_page_block(&tracker->sidecar, tracker->checkpoints[recovery->at_checkpoint]->span.area,
                                        recovery->at_page, 0);
    sidecar_read(&tracker->sidecar, &tracker->op_io, first, recovery->loaded * 2, recovery->blocks);
}

static void load_begin(struct tracker *tracker)
{
    for (unsigned i = 0; i < tracker->count; i++) {
        struct tracker_checkpoint *checkpoint = tracker->checkpoints[i];
        if (checkpoint->state == CHECKPOINT_INVALID)
            continue;
        int status = span_create(&checkpoint->span, &tracker->memory, checkpoint->span.area,
                                 checkpoint->span.first_sequence);
        if (status < 0) {
            void_because(tracker, "no memory for its bitmaps in '%s': %s", tracker->memory.name.folder,
                         error_name(status));
            open_count(tracker);
            return;
        }
        span_publish(&checkpoint->span);
    }
    load_next(tracker);
}

/* ---- memory */

/* The bits are there, exactly; what the log names is active, and may differ from what is stored (C16). */
static int adopt(struct tracker *tracker)
{
    struct recovery *recovery = tracker->recovering;
    bool used[SIDECAR_AREAS] = {false};
    for (unsigned i = 0; i < tracker->count; i++) {
        struct tracker_checkpoint *checkpoint = tracker->checkpoints[i];
        if (checkpoint->state == CHECKPOINT_INVALID)
            continue;
        int status = span_adopt(&checkpoint->span, &tracker->memory, checkpoint->span.area,
                                checkpoint->span.first_sequence);
        if (status < 0)
            return status;
        used[checkpoint->span.area] = true;
        if (span_is_unstored(&checkpoint->span)) {
            PROBE(track_adopted_amid_a_merge);
            span_change_all(&checkpoint->span);
        }
        for (unsigned e = 0; e < recovery->extent_count && !MUTANT(track_adopted_counts_as_stored); e++)
            checkpoint->span.changed[recovery->extents[e] / SIDECAR_PAGE_EXTENTS] = 1;
    }
    span_memory_drop_others(&tracker->memory, used);
    tracker_update(tracker);
    return tracker_grow_active(tracker, tracker->spans[tracker->span_count - 1]);
}

/* What a killed daemon left, if it fits. It may still be on its way out. */
static int adopt_memory(struct tracker *tracker, struct error *err)
{
    struct io *io = tracker->disk->node.io;
    const struct span_key past = tracker_key(tracker, tracker->super.past.nonce);
    int status = span_memory_adopt(&tracker->memory, &past, err);
    for (uint64_t waited = 0; status == -EAGAIN && waited < LOCK_WAIT_DEFAULT_NS; waited += LOCK_POLL_NS) {
        io_sleep(io, LOCK_POLL_NS);
        status = span_memory_adopt(&tracker->memory, &past, err);
    }
    return status;
}

/* 1: adopted; 0: new, and empty; -errno. */
static int64_t memory_work(void *argument)
{
    struct tracker *tracker = argument;
    struct error *err = &tracker->op->error;
    const struct span_key now = tracker_key(tracker, tracker->nonce);
    int status = adopt_memory(tracker, err);
    if (status == 0 && !tracker->super.past.clean)
        status = disk_note_check(span_memory_note(&tracker->memory), tracker->memory.io, &tracker->options.identity,
                                 err);
    if (status == 0 && !tracker->super.past.clean)
        return 1;
    span_memory_close(&tracker->memory, false); /* after a close in good order the sidecar has it all */
    if (status == -ESTALE || status == -EAGAIN)
        return status;
    return span_memory_create(&tracker->memory, &now, err);
}

static void memory_opened(struct io_op *op, int64_t result)
{
    struct tracker *tracker = container_of(op, struct tracker, work);
    tracker->recovering->memory_seen = true;
    if (result == -EAGAIN) {
        open_failed(tracker, -EAGAIN, tracker->op->error.text);
    } else if (result < 0) {
        void_because(tracker, "%.400s", tracker->op->error.text);
        open_count(tracker);
    } else if (result == 0) {
        tracker->recovery = tracker->super.past.clean ? TRACKER_CLEAN : TRACKER_REPLAYED;
        load_begin(tracker);
    } else {
        PROBE(track_memory_adopted);
        tracker->recovery = TRACKER_ADOPTED;
        int status = adopt(tracker);
        if (MUTANT(track_adopted_is_idle))
            activity_log_reset(&tracker->log);
        if (status < 0)
            void_because(tracker, "the bitmaps that a killed daemon left cannot be adopted: %s", error_name(status));
        open_count(tracker);
    }
}

/* ---- the log */

static void log_damaged(struct tracker *tracker, uint64_t first, uint64_t end)
{
    void_because(tracker, "bytes %llu-%llu of the sidecar, of the activity log, are damaged", (unsigned long long)first,
                 (unsigned long long)end - 1);
}

/* The newest block is whole, the one after it may be torn, and all others are those before it (C17). */
static int find_newest(struct tracker *tracker, const struct sidecar_block *blocks, unsigned *newest)
{
    struct sidecar_stamp stamps[SIDECAR_LOGS][SIDECAR_SECTORS];
    bool found = false;
    for (unsigned i = 0; i < SIDECAR_LOGS; i++) {
        uint64_t bad;
        bool whole = true;
        if (sidecar_check(&tracker->sidecar, &blocks[i], 1, SIDECAR_LOG_AT + i, SIDECAR_LOG, stamps[i], &bad) < 0) {
            log_damaged(tracker, bad * SIDECAR_SECTOR_BYTES, (bad + 1) * SIDECAR_SECTOR_BYTES);
            return -EBADMSG;
        }
        for (unsigned s = 1; s < SIDECAR_SECTORS; s++)
            whole = whole && stamps[i][s].sequence == stamps[i][0].sequence;
        if (!whole)
            PROBE(track_torn_log_block);
        if (whole && (!found || stamps[i][0].sequence > stamps[*newest][0].sequence))
            *newest = i;
        found = found || whole;
    }
    for (unsigned i = 0; i < SIDECAR_LOGS * SIDECAR_SECTORS && found; i++) {
        const struct sidecar_stamp at = stamps[*newest][0], stamp = stamps[i / SIDECAR_SECTORS][i % SIDECAR_SECTORS];
        uint32_t age = (*newest - i / SIDECAR_SECTORS) % SIDECAR_LOGS;
        bool before = stamp.number == ((at.number - age) & SIDECAR_NUMBER_MASK) && stamp.sequence <= at.sequence;
        bool next = age == SIDECAR_LOGS - 1 && stamp.number == ((at.number + 1) & SIDECAR_NUMBER_MASK) &&
                    stamp.sequence > at.sequence;
        found = stamp.sequence > 0 && at.number % SIDECAR_LOGS == *newest && (before || next);
    }
    if (found)
        return 0;
    log_damaged(tracker, SIDECAR_LOG_AT * SIDECAR_BLOCK_BYTES, SIDECAR_AREAS_AT * SIDECAR_BLOCK_BYTES);
    return -EBADMSG;
}

static int read_log(struct tracker *tracker, const struct sidecar_block *blocks)
{
    struct recovery *recovery = tracker->recovering;
    struct sidecar_log log;
    unsigned newest = 0;
    if (find_newest(tracker, blocks, &newest) < 0)
        return -EBADMSG;
    sidecar_get_payload(&blocks[newest], 1, &log);
    struct sidecar_stamp stamps[SIDECAR_SECTORS];
    uint64_t bad;
    sidecar_check(&tracker->sidecar, &blocks[newest], 1, SIDECAR_LOG_AT + newest, SIDECAR_LOG, stamps, &bad);
    tracker->writer.number = stamps[0].number;
    recovery->extent_count = le32toh(log.extent_count);
    int status = recovery->extent_count <= SIDECAR_LOG_SLOTS ? 0 : -EBADMSG;
    for (unsigned i = 0; status == 0 && i < recovery->extent_count; i++) {
        recovery->extents[i] = le32toh(log.extents[i]);
        status = activity_log_adopt(&tracker->log, recovery->extents[i]);
    }
    if (status < 0 || (tracker->super.past.clean && recovery->extent_count > 0)) {
        uint64_t at = (SIDECAR_LOG_AT + newest) * SIDECAR_BLOCK_BYTES;
        log_damaged(tracker, at, at + SIDECAR_BLOCK_BYTES);
        return -EBADMSG;
    }
    return 0;
}

/* ---- the beginning */

static bool differs(uint64_t a, uint64_t b)
{
    return a != 0 && b != 0 && a != b;
}

/*
 * Times prove nothing after a crash, and the number of a device nothing after a boot (C19). Backups know a disk by its name:
 * under another one its checkpoints would pass for those of the disk that was called so when they were made.
 */
static void check_identity(struct tracker *tracker)
{
    const struct super_past *past = &tracker->super.past;
    const struct disk_identity *was = &past->identity, *is = &tracker->options.identity;
    uint8_t boot_id[BOOT_ID_BYTES];
    io_boot_id(tracker->disk->node.io, boot_id);
    bool same_boot = memcmp(boot_id, past->boot_id, sizeof boot_id) == 0;
    if (tracker->disk_bytes != tracker->disk->leaf->size_bytes && !has_grown(tracker) &&
        !MUTANT(track_size_not_compared))
        void_because(tracker, "the disk has %llu bytes, it had %llu when it was tracked last",
                     (unsigned long long)tracker->disk->leaf->size_bytes, (unsigned long long)tracker->disk_bytes);
    if (past->disk_name[0] && strcmp(past->disk_name, tracker->disk->name) != 0)
        void_because(tracker, "the disk is called %s, it was %s when it was tracked last", tracker->disk->name,
                     past->disk_name);
    if (is->size_bytes == 0 || was->size_bytes == 0 || MUTANT(track_identity_not_compared))
        return;
    if (differs(was->inode, is->inode) || (same_boot && differs(was->device, is->device)))
        void_because(tracker, "the disk's file is another one than it was when it was tracked last");
    if (past->clean && (differs(was->mtime_ns, is->mtime_ns) || differs(was->ctime_ns, is->ctime_ns)))
        void_because(tracker, "somebody has changed the disk's file since it was closed in good order");
}

/* Where things are in memory. */
static int prepare_memory(struct tracker *tracker)
{
    struct io_shm_name name = {tracker->memory_folder, tracker->memory_file};
    span_memory_init(&tracker->memory, tracker->disk->node.io, &name, tracker->sidecar.area_blocks / 2);
    tracker->memory.bit_count = (tracker->disk_bytes + tracker_granularity(tracker) - 1) >> tracker->shift;
    unsigned slots = tracker->options.slots ? tracker->options.slots : SIDECAR_LOG_SLOTS;
    if (slots < LIMIT_TRACK_SLOTS_MIN)
        slots = LIMIT_TRACK_SLOTS_MIN;
    return activity_log_init(&tracker->log, tracker_extents(tracker->memory.bit_count), slots);
}

/* What is valid is loaded or adopted. */
static void open_known(struct tracker *tracker, const struct sidecar_block *logs)
{
    struct recovery *recovery = tracker->recovering;
    for (unsigned i = 0; i < tracker->count; i++)
        recovery->valid = recovery->valid || tracker->checkpoints[i]->state != CHECKPOINT_INVALID;
    tracker->recovery = tracker->count > 0 && !recovery->valid ? TRACKER_VOID
                        : tracker->super.past.clean            ? TRACKER_CLEAN
                                                               : TRACKER_REPLAYED;
    int status = prepare_memory(tracker);
    if (status < 0) {
        open_failed(tracker, status, "no memory for its activity log");
        return;
    }
    recovery->log_damaged = read_log(tracker, logs) < 0;
    check_identity(tracker);
    if (!recovery->valid)
        recovery->reason[0] = '\0'; /* nothing depends on it */
    if (!recovery->valid || recovery->reason[0]) {
        activity_log_reset(&tracker->log);
        open_record(tracker);
        return;
    }
    tracker->work.done = memory_opened;
    io_work(tracker->disk->node.io, &tracker->work, memory_work, tracker);
}

static void header_written(struct sidecar_io *io, int status)
{
    struct tracker *tracker = container_of(io, struct tracker, op_io);
    if (status < 0)
        open_failed(tracker, status, "its sidecar cannot be written (header)");
    else
        make_log(tracker);
}

static void make_new(struct tracker *tracker)
{
    struct recovery *recovery = tracker->recovering;
    struct io *io = tracker->disk->node.io;
    tracker->recovery = TRACKER_NEW;
    tracker->disk_bytes = tracker->noted_bytes = tracker->disk->leaf->size_bytes;
    tracker->sidecar.sequence = UINT64_C(1) << SIDECAR_OPEN_SHIFT;
    tracker->super.number = 0;
    recovery->making = true;
    tracker->identity = tracker->options.identity;
    tracker->identity.mtime_ns = tracker->identity.ctime_ns = 0;
    io_random(io, tracker->sidecar.uuid, SIDECAR_UUID_BYTES);
    int status = sidecar_lay_out(&tracker->sidecar, tracker->disk_bytes, &tracker->op->error);
    if (status < 0) {
        recovery_end(tracker);
        tracker_op_finish(tracker, status);
        return;
    }
    status = prepare_memory(tracker);
    if (status < 0) {
        open_failed(tracker, status, "no memory for its activity log");
        return;
    }
    sidecar_make_header(&tracker->sidecar, io_wall_ns(io), recovery->blocks);
    tracker->op_io.done = header_written;
    sidecar_write(&tracker->sidecar, &tracker->op_io, 0, 1, recovery->blocks, true);
}

static bool supers_never_written(const struct sidecar_block *blocks)
{
    const uint8_t *bytes = (const uint8_t *)blocks;
    const size_t length = SIDECAR_SUPERS * SIDECAR_SUPER_BLOCKS * SIDECAR_BLOCK_BYTES;
    return bytes[0] == 0 && memcmp(bytes, bytes + 1, length - 1) == 0;
}

/* 0: known; -ENOENT: never finished; -EBADMSG. */
static int read_head(struct tracker *tracker, const struct sidecar_block *blocks)
{
    struct error *err = &tracker->op->error;
    int status = sidecar_read_header(&tracker->sidecar, blocks, err);
    if (status == -ENOENT && !supers_never_written(blocks + SIDECAR_SUPER_AT))
        return error_set(err, EBADMSG, "malformed: bytes 0-%d, the header, are missing", SIDECAR_BLOCK_BYTES - 1);
    if (status < 0)
        return status;
    tracker->shift = tracker->sidecar.granularity_shift;
    status = superblock_read(tracker, blocks + SIDECAR_SUPER_AT, err);
    if (status < 0)
        return status;
    uint64_t now = tracker->disk->leaf->size_bytes, largest = now > tracker->disk_bytes ? now : tracker->disk_bytes;
    if (sidecar_pages(largest, tracker->shift) > tracker->sidecar.area_blocks / 2)
        return error_set(err, EBADMSG, "too small for a disk of %llu bytes", (unsigned long long)largest);
    return 0;
}

static void head_read(struct sidecar_io *io, int status)
{
    struct tracker *tracker = container_of(io, struct tracker, op_io);
    struct sidecar_block *blocks = tracker->recovering->blocks;
    if (status < 0) {
        open_failed(tracker, status, "its sidecar cannot be read");
        return;
    }
    status = read_head(tracker, blocks);
    if (status == -ENOENT) {
        make_new(tracker);
    } else if (status == -EBADMSG) {
        open_malformed(tracker);
    } else if (status < 0) {
        open_failed(tracker, status, tracker->op->error.text);
    } else {
        uint64_t opens = htole64(tracker->sidecar.sequence); /* never the same again, whatever random numbers are */
        memcpy(tracker->nonce + SPAN_NONCE_BYTES / 2, &opens, sizeof opens);
        open_known(tracker, blocks + SIDECAR_LOG_AT);
    }
}

void tracker_run_open(struct tracker_op *op)
{
    struct tracker *tracker = op->tracker;
    struct recovery *recovery = calloc(1, sizeof *recovery);
    tracker->recovering = recovery;
    if (recovery)
        recovery->blocks = aligned_alloc(SIDECAR_BLOCK_BYTES, CHUNK_PAGES * 2 * SIDECAR_BLOCK_BYTES);
    if (!recovery || !recovery->blocks) {
        free(recovery);
        tracker->recovering = NULL;
        tracker_op_fail(tracker, ENOMEM, "no memory to read its sidecar");
        return;
    }
    io_random(tracker->disk->node.io, tracker->nonce, SPAN_NONCE_BYTES / 2);
    if (tracker->options.create) {
        make_new(tracker);
    } else if (tracker->sidecar.node->size_bytes < SIDECAR_AREAS_AT * SIDECAR_BLOCK_BYTES) {
        error_set(&op->error, EBADMSG, "malformed: it has only %llu bytes",
                  (unsigned long long)tracker->sidecar.node->size_bytes);
        open_malformed(tracker);
    } else {
        tracker->op_io.done = head_read;
        sidecar_read(&tracker->sidecar, &tracker->op_io, 0, SIDECAR_AREAS_AT, recovery->blocks);
    }
}
