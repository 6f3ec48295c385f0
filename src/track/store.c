/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Pages of bitmaps on their way to the sidecar, in batches, one at a time:
 *
 *     IDLE -> WRITING -> SYNCING -> IDLE      for an operation
 *                                -> STORED    to retire extents: the next log block leaves them out -> IDLE
 *
 * A page is written from a copy that was made when the batch began (C16), to the one of its two places that does not hold
 * what is valid (C17): a torn page harms nothing but itself. What changes in memory meanwhile changes no copy; a write that
 * sets a new bit in a retiring extent makes it active again, and it stays in the log.
 *
 * Retiring an extent stores its page of every span in which that page has changed (C15); the pages hold other extents, too,
 * whose bits are then on stable storage earlier than they need be.
 *
 * Extents are retired ahead, when fewer than a quarter of the slots are free, those first that have had no new bits for
 * longest (C18): a write that needs a slot finds one. One sync serves a whole batch.
 */
#include <assert.h>
#include <string.h>

#include "base/probe.h"
#include "track/tracker_internal.h"

void page_store_forget(struct tracker *tracker, const struct span *span)
{
    for (unsigned i = 0; i < tracker->store.count; i++)
        if (tracker->store.writes[i].span == span)
            tracker->store.writes[i].span = NULL;
}

/* Two copies: an odd number goes to the first one, an even one to the second. 1 is the first write of all. */
static uint32_t number_after(uint32_t number)
{
    return number == SIDECAR_NUMBER_MASK ? 2 : number + 1;
}

static void batch_add(struct tracker *tracker, struct span *span, uint64_t page)
{
    struct page_store *store = &tracker->store;
    uint8_t payload[SIDECAR_PAYLOAD];
    assert(store->count < LIMIT_TRACK_PAGES);
    struct page_write *write = &store->writes[store->count];
    span->changed[page] = 0;
    write->span = span;
    write->page = page;
    write->number = number_after(span->written[page]);
    span_save_page(span, page, payload);
    sidecar_put_payload(&store->blocks[store->count++], 1, payload);
}

static void batch_done(struct tracker *tracker)
{
    struct page_store *store = &tracker->store;
    store->phase = STORE_IDLE;
    if (store->status < 0) {
        tracker_fail(tracker, "its sidecar cannot be written (bitmap pages): %s", error_name(store->status));
    } else {
        for (unsigned i = 0; i < store->count; i++) {
            if (!store->writes[i].span)
                continue;
            store->writes[i].span->written[store->writes[i].page] = store->writes[i].number;
            if (MUTANT(track_forgets_changes_meanwhile))
                store->writes[i].span->changed[store->writes[i].page] = 0;
        }
        if (tracker->log.retiring_count > 0) {
            store->phase = STORE_STORED;
            log_writer_request(tracker);
        }
    }
    tracker_drop_spans(tracker);
    page_store_next(tracker);
}

static void batch_synced(struct sidecar_io *io, int status)
{
    struct tracker *tracker = container_of(io, struct tracker, store.sync);
    tracker->store.status = status;
    batch_done(tracker);
}

static void batch_sync(struct tracker *tracker)
{
    struct page_store *store = &tracker->store;
    if (store->status < 0 || MUTANT(track_pages_not_synced)) {
        batch_done(tracker);
        return;
    }
    store->phase = STORE_SYNCING;
    store->sync.done = batch_synced;
    tracker->counters.syncs++;
    sidecar_flush(&tracker->sidecar, &store->sync);
}

static void page_written(struct sidecar_io *io, int status)
{
    struct page_write *write = container_of(io, struct page_write, io);
    struct page_store *store = &write->tracker->store;
    if (status < 0 && store->status == 0)
        store->status = status;
    if (--store->out == 0)
        batch_sync(write->tracker);
}

static void batch_start(struct tracker *tracker)
{
    struct page_store *store = &tracker->store;
    store->phase = STORE_WRITING;
    store->status = 0;
    store->out = store->count;
    for (unsigned i = 0; i < store->count; i++) {
        struct page_write *write = &store->writes[i];
        uint64_t block = sidecar_page_block(&tracker->sidecar, write->span->area, write->page,
                                            write->number % 2 == 1 || MUTANT(track_pages_in_one_place) ? 0 : 1);
        sidecar_seal(&tracker->sidecar, &store->blocks[i], 1, block, SIDECAR_PAGE, write->number,
                     sidecar_next_sequence(&tracker->sidecar));
        write->tracker = tracker;
        write->io.done = page_written;
        tracker->counters.page_writes++;
        sidecar_write(&tracker->sidecar, &write->io, block, 1, &store->blocks[i], false);
    }
    if (store->count == 0)
        batch_done(tracker); /* nothing differs from what is stored */
}

/* The next pages of what an operation wants; false: there are none, it has what it wanted. */
static bool fill_wanted(struct tracker *tracker)
{
    struct page_store *store = &tracker->store;
    const uint64_t pages = tracker->memory.sidecar_pages;
    store->count = 0;
    for (; store->at_span < tracker->span_count; store->at_span++, store->at_page = 0) {
        struct span *span = tracker->spans[store->at_span];
        if (store->only && store->only != span)
            continue;
        while (store->at_page < pages && store->count < LIMIT_TRACK_PAGES) {
            const uint8_t *found = memchr(span->changed + store->at_page, 1, pages - store->at_page);
            store->at_page = found ? (uint64_t)(found - span->changed) : pages;
            if (found)
                batch_add(tracker, span, store->at_page);
        }
        if (store->count == LIMIT_TRACK_PAGES)
            return true;
    }
    return store->count > 0;
}

/* An extent, and the others of its page that are as idle: the page is written for all of them. false: no room. */
static bool retire(struct tracker *tracker, const struct activity_slot *slot)
{
    struct activity_log *log = &tracker->log;
    const uint32_t page = slot->extent / SIDECAR_PAGE_EXTENTS, first = page * SIDECAR_PAGE_EXTENTS;
    unsigned needed = 0;
    for (unsigned i = 0; i < tracker->span_count; i++)
        needed += tracker->spans[i]->changed[page];
    if (tracker->store.count + needed > LIMIT_TRACK_PAGES)
        return false;
    for (unsigned i = MUTANT(track_retires_the_newest_only) ? tracker->span_count - 1 : 0; i < tracker->span_count; i++)
        if (tracker->spans[i]->changed[page])
            batch_add(tracker, tracker->spans[i], page);
    activity_log_retire(log, slot->extent);
    for (uint32_t extent = first; extent < first + SIDECAR_PAGE_EXTENTS && extent < log->extent_count; extent++)
        if (activity_log_is_active(log, extent) && !activity_log_is_touched(log, extent))
            activity_log_retire(log, extent);
    return true;
}

/* Those that were touched since they were looked at last go to the back once. */
static void fill_retiring(struct tracker *tracker)
{
    struct activity_log *log = &tracker->log;
    tracker->store.count = 0;
    for (unsigned round = 0; round < 2 && !activity_log_has_ahead(log); round++) {
        unsigned left = log->used_count;
        for (struct list_node *link = log->order.head.next, *next; left > 0; link = next, left--) {
            struct activity_slot *slot = container_of(link, struct activity_slot, link);
            next = link->next;
            if (!activity_log_is_active(log, slot->extent))
                continue;
            if (slot->touched && round == 0) {
                slot->touched = false;
                list_remove(link);
                list_append(&log->order, link);
            } else if (!retire(tracker, slot) || activity_log_has_ahead(log)) {
                return;
            }
        }
    }
}

static bool start_retiring(struct tracker *tracker)
{
    if (!activity_log_is_low(&tracker->log) || tracker->span_count == 0)
        return false;
    fill_retiring(tracker);
    if (tracker->log.retiring_count > 0)
        batch_start(tracker);
    return tracker->log.retiring_count > 0;
}

void page_store_next(struct tracker *tracker)
{
    struct page_store *store = &tracker->store;
    if (store->phase != STORE_IDLE || tracker->voiding.phase == VOID_NOTING)
        return;
    /* Operations and retirement take turns: the guest may wait for slots. */
    bool operations_turn = store->wanted && !store->was_wanted;
    store->was_wanted = false;
    if (!operations_turn && start_retiring(tracker))
        return;
    if (!store->wanted)
        return;
    if (fill_wanted(tracker)) {
        store->was_wanted = true;
        batch_start(tracker);
        return;
    }
    void (*wanted)(struct tracker *) = store->wanted;
    store->wanted = NULL;
    wanted(tracker);
    page_store_next(tracker);
}

void page_store_want(struct tracker *tracker, struct span *only, void (*done)(struct tracker *tracker))
{
    struct page_store *store = &tracker->store;
    assert(!store->wanted);
    store->wanted = done;
    store->only = only;
    store->at_span = 0;
    store->at_page = 0;
    page_store_next(tracker);
}
