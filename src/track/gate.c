/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What change tracking costs a write of the guest: this runs in the very step that hands it to the leaf (C4).
 *
 *     its extent is active                          set the bits, go
 *     idle or retiring, and its bits are all set    go: they are durable, in every span that recovery would follow (C15)
 *     retiring, and a bit is new                    active again (C16); set the bits, go
 *     idle, and a bit is new                        takes a slot of the activity log and parks until a block that names it
 *                                                   is durable; all that park meanwhile share that block
 *     no slot is free                               parks until retired extents have left the log
 *
 * A parked write holds nothing but the slots that it brought about, which are retired in their turn like all others: so
 * nobody waits for somebody who waits. It is submitted again from the top, in the order of arrival.
 */
#include <assert.h>

#include "base/probe.h"
#include "track/tracker_internal.h"

/* Bits that are new in the union of the spans from one on: counted before they are set. */
static void count_new(struct tracker *tracker, uint64_t word, uint64_t mask)
{
    for (unsigned i = tracker->span_count; i-- > 0 && mask;) {
        struct span *span = tracker->spans[i];
        mask &= ~span_word(span, word);
        span->since_count += (unsigned)__builtin_popcountll(mask);
    }
}

void tracker_set_bits(struct tracker *tracker, uint64_t first, uint64_t count)
{
    const uint64_t end = first + count;
    for (uint64_t word = first / 64; word <= (end - 1) / 64; word++)
        count_new(tracker, word, span_mask(first, end, word));
    for (unsigned i = 0; i < tracker->target_count; i++)
        span_set(tracker->targets[i], first, count);
}

static bool all_set(const struct tracker *tracker, uint64_t first, uint64_t count)
{
    unsigned from = tracker->checked_count > 1 && MUTANT(track_checks_only_older) ? 1 : 0;
    for (unsigned i = from; i < tracker->checked_count; i++)
        if (!span_all_set(tracker->targets[i], first, count))
            return false;
    return true;
}

/* Sets the bits of a run within extents that are active, or whose bits are set. Out of the way of the writes that find their
 * bits set: these take no stack frame. */
__attribute__((noinline)) static void mark(struct tracker *tracker, uint64_t first, uint64_t count)
{
    for (uint64_t at = first, end = first + count, next; at < end; at = next) {
        uint64_t extent = extent_of(at), limit = (extent + 1) * SIDECAR_EXTENT_BITS;
        next = limit < end ? limit : end;
        if (!activity_log_is_active(&tracker->log, extent) || all_set(tracker, at, next - at))
            continue;
        tracker_set_bits(tracker, at, next - at);
        activity_log_touch(&tracker->log, (uint32_t)extent);
        sampler_note(tracker, at);
    }
}

/* An extent gets a slot, and memory for its bits. false: there is none. */
static bool activate(struct tracker *tracker, uint64_t extent)
{
    struct block_range bits = extent_bits(tracker, extent);
    int status = 0;
    if (activity_log_free(&tracker->log) == 0) {
        PROBE(track_no_slot_is_free);
        return false;
    }
    for (unsigned i = 0; i < tracker->target_count && status == 0; i++)
        status = span_grow(tracker->targets[i], bits.first, bits.count);
    if (status == 0 && tracker->prepared && tracker->prepared->span.memory)
        status = span_grow(&tracker->prepared->span, bits.first, bits.count);
    if (status < 0)
        tracker_fail(tracker, "no memory for its bitmap in '%s': %s", tracker->memory.name.folder, error_name(status));
    return status == 0 && activity_log_add(&tracker->log, (uint32_t)extent);
}

__attribute__((noinline)) static bool admit_slowly(struct tracker *tracker, struct request *req, uint64_t first,
                                                   uint64_t count)
{
    bool admitted = true, next_block = false; /* next_block: the one under way does not name them all */
    for (uint64_t at = first, end = first + count, next; at < end; at = next) {
        uint64_t extent = extent_of(at), limit = (extent + 1) * SIDECAR_EXTENT_BITS;
        next = limit < end ? limit : end;
        enum extent_state state = activity_log_state(&tracker->log, extent);
        if (state == EXTENT_ACTIVE || all_set(tracker, at, next - at))
            continue;
        if (state == EXTENT_RETIRING) {
            PROBE(track_retirement_cancelled);
            activity_log_cancel(&tracker->log, (uint32_t)extent);
            continue;
        }
        admitted = false;
        PROBE(track_write_parks);
        if (state == EXTENT_LOGGING && activity_log_is_composed(&tracker->log, (uint32_t)extent))
            continue;
        next_block = true;
        if (state == EXTENT_IDLE && tracker->voiding.phase == VOID_NONE && !activate(tracker, extent))
            break;
    }
    if (admitted) {
        mark(tracker, first, count);
        return true;
    }
    log_writer_park(tracker, req, next_block);
    page_store_next(tracker);
    return false;
}

bool tracker_admit(struct write_gate *gate, struct request *req)
{
    struct tracker *tracker = (struct tracker *)(void *)gate; /* its first member */
    const uint64_t first = req->range.start >> tracker->shift,
                   last = (MUTANT(track_misses_the_last) ? req->range.start : range_end(req->range) - 1) >>
                          tracker->shift;
    const uint64_t *words = tracker->recording;
    if ((req->kind == REQUEST_DISCARD && MUTANT(track_misses_discards)) ||
        (req->kind == REQUEST_WRITE_ZEROES && MUTANT(track_misses_zeroes)))
        return true;
    if (extent_of(first) != extent_of(last) || !activity_log_is_active(&tracker->log, extent_of(first)))
        return admit_slowly(tracker, req, first, last - first + 1);
    if (words && first / 64 == last / 64) { /* what most writes are: bits of one word, set already */
        uint64_t mask = ~UINT64_C(0) >> (63 - (last - first)) << first % 64;
        if (!(~words[first / 64] & mask))
            return true;
    }
    mark(tracker, first, last - first + 1);
    return true;
}
