/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Spills: what a RAM segment holds goes into the cache file.
 *
 *   FREE -> SUMMING          a helper thread takes the CRC of each slot (1 MiB: 120 us by the processor's instruction,
 *                            5 ms without it: too long for the reactor)
 *   SUMMING -> WRITING       the header and the slots, a few requests at once
 *   SUMMING -> READING       of a spill into gaps: the header of the segment that the next group of slots goes into
 *   READING -> WRITING       ... with its new entries, and without those of slots given back since
 *   WRITING -> READING       the next group
 *   FREE -> FAILING          there is no place
 *   … -> FREE                `done`
 *
 * The place is chosen when the spill begins. Slots with a key go there without the free ones between them, so that a
 * fresh segment is one run from its header on. When the file system turns out to be full, what was to have a segment of
 * its own goes into gaps after all, if they suffice.
 *
 * Segments whose gaps are being filled are closed: one spill at a time has the header. No order is needed between a header
 * and its data: a reader of the file takes a slot only when its sum is right, and this process reads only what it has been
 * told is written.
 *
 * Failure: everything is given back, and the caller still has the data in RAM. A segment whose header may be torn stays
 * closed until it is empty: what its other slots hold is right, but there is no header to add to.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/probe.h"
#include "fleece/disk_tier_internal.h"

#define TO(step) (1u << (step))
static const uint32_t allowed_moves[] = {
    [SPILL_FREE] = TO(SPILL_SUMMING) | TO(SPILL_FAILING),    [SPILL_FAILING] = TO(SPILL_FREE),
    [SPILL_SUMMING] = TO(SPILL_WRITING) | TO(SPILL_READING), [SPILL_READING] = TO(SPILL_WRITING) | TO(SPILL_FREE),
    [SPILL_WRITING] = TO(SPILL_READING) | TO(SPILL_FREE),
};

static void spill_move(struct spill *spill, enum spill_step step)
{
    assert(allowed_moves[spill->step] & TO(step));
    spill->step = step;
}

int spill_init(struct spill *spill, struct disk_tier *tier)
{
    memset(spill, 0, sizeof *spill);
    spill->tier = tier;
    spill->header = aligned_alloc(CACHE_HEADER_BYTES, sizeof *spill->header);
    return spill->header ? 0 : -ENOMEM;
}

void spill_fini(struct spill *spill)
{
    assert(spill->step == SPILL_FREE);
    free(spill->header);
    spill->header = NULL;
}

/* Where the slot number `i` of the spill has its place in the file. */
static uint32_t place_of(const struct spill *spill, uint32_t i)
{
    return spill->slots[spill->from[i]];
}

static uint32_t segment_of(const struct spill *spill, uint32_t i)
{
    return place_of(spill, i) / spill->tier->pool.slots_per_segment;
}

/* The end of those that go into the same segment as slot `i`. */
static uint32_t group_after(const struct spill *spill, uint32_t i)
{
    uint32_t segment = segment_of(spill, i);
    do {
        i++;
    } while (i < spill->count && segment_of(spill, i) == segment);
    return i;
}

/* Places. */

static bool place_fresh(struct spill *spill)
{
    uint32_t segment;
    if (!disk_tier_claim(spill->tier, &segment))
        return false;
    for (uint32_t i = 0; i < spill->count; i++)
        spill->slots[spill->from[i]] = segment * spill->tier->pool.slots_per_segment + i;
    spill->fresh = true;
    return true;
}

static bool place_in_gaps(struct spill *spill)
{
    struct slot_pool *pool = &spill->tier->pool;
    uint32_t placed = 0, first = 0, run;
    while (placed < spill->count && (run = slot_pool_take(pool, spill->count - placed, &first)) > 0)
        for (uint32_t i = 0; i < run; i++)
            spill->slots[spill->from[placed++]] = first + i;
    if (placed < spill->count) {
        while (placed > 0)
            slot_pool_give(pool, place_of(spill, --placed));
        return false;
    }
    for (uint32_t i = 0; i < spill->count; i = group_after(spill, i))
        slot_pool_close(pool, segment_of(spill, i));
    spill->fresh = false;
    PROBE(spill_into_gaps);
    return true;
}

/* Ends the use of the places: for good (status < 0), or by handing them over. */
static void leave_places(struct spill *spill)
{
    struct disk_tier *tier = spill->tier;
    uint32_t slots = tier->pool.slots_per_segment;
    if (spill->fresh) {
        uint32_t base = segment_of(spill, 0) * slots;
        for (uint32_t i = spill->status == 0 ? spill->count : 0; i < slots; i++)
            disk_tier_give(tier, base + i);
    } else {
        uint32_t lost = spill->header_lost ? segment_of(spill, spill->group_end - 1) : SLOT_NONE;
        for (uint32_t i = 0; i < spill->count; i = group_after(spill, i))
            if (segment_of(spill, i) != lost)
                slot_pool_open(&tier->pool, segment_of(spill, i));
        for (uint32_t i = 0; spill->status < 0 && i < spill->count; i++)
            disk_tier_give(tier, place_of(spill, i));
    }
}

/* The end. */

static void group_begin(struct spill *spill);

static void spill_end(struct spill *spill)
{
    struct disk_tier *tier = spill->tier;
    leave_places(spill);
    if (spill->status == -ENOSPC && spill->fresh && place_in_gaps(spill)) {
        PROBE(spill_into_gaps_after_all);
        spill->status = 0;
        spill->group_end = 0;
        group_begin(spill);
        return;
    }
    if (spill->status < 0)
        for (uint32_t i = 0; i < tier->pool.slots_per_segment; i++)
            spill->slots[i] = SLOT_NONE;
    else if (spill->count > 0)
        tier->spilled_segments++;
    tier->failure = spill->status;
    tier->writes--;
    spill_move(spill, SPILL_FREE);
    disk_tier_settle(tier);
    spill->done(spill, spill->status);
}

static void end_without_io(struct io_task *task)
{
    struct spill *spill = container_of(task, struct spill, task);
    struct disk_tier *tier = spill->tier;
    if (spill->status < 0) {
        tier->failure = spill->status;
        for (uint32_t i = 0; i < tier->pool.slots_per_segment; i++)
            spill->slots[i] = SLOT_NONE;
    }
    tier->writes--;
    spill_move(spill, SPILL_FREE);
    disk_tier_settle(tier);
    spill->done(spill, spill->status);
}

/* Writing. */

static void pump(struct spill *spill);

static void write_done(struct request *req, int status)
{
    struct spill_write *write = container_of(req, struct spill_write, request);
    struct spill *spill = write->spill;
    write->under_way = false;
    spill->in_flight--;
    if (status < 0 && spill->status == 0 && !MUTANT(failed_spill_taken))
        spill->status = status;
    if (status < 0 && write->is_header) {
        PROBE(spill_header_lost);
        spill->header_lost = true;
    }
    pump(spill);
}

static void submit(struct spill_write *write, enum request_kind kind, struct range range, unsigned iov_count,
                   void (*done)(struct request *req, int status))
{
    write->request = (struct request){.kind = kind,
                                      .flags = kind == REQUEST_WRITE ? write->spill->tier->write_flags : 0,
                                      .range = range,
                                      .iov = write->iov,
                                      .iov_count = iov_count,
                                      .done = done};
    write->under_way = true;
    write->spill->in_flight++;
    node_submit(write->spill->tier->file, &write->request);
}

static struct spill_write *write_take(struct spill *spill)
{
    for (unsigned i = 0; i < LIMIT_SPILL_WRITES; i++)
        if (!spill->writes[i].under_way) {
            spill->writes[i].spill = spill;
            spill->writes[i].is_header = false;
            return &spill->writes[i];
        }
    return NULL;
}

static void header_transfer(struct spill *spill, enum request_kind kind, void (*done)(struct request *req, int status))
{
    struct spill_write *write = write_take(spill);
    uint64_t offset = disk_tier_segment_offset(spill->tier, segment_of(spill, spill->at));
    write->is_header = true;
    write->iov[0] = (struct iovec){spill->header, CACHE_HEADER_BYTES};
    submit(write, kind, (struct range){offset, CACHE_HEADER_BYTES}, 1, done);
}

/* Gathers what comes next into one request: neighbours in the file, wherever they are in memory. */
static void data_write(struct spill *spill, struct spill_write *write)
{
    const uint64_t block = UINT64_C(1) << spill->tier->block_shift;
    struct range range = {disk_tier_offset(spill->tier, place_of(spill, spill->at)) + spill->at_bytes, 0};
    unsigned iov_count = 0;
    while (spill->at < spill->group_end && range.length < LIMIT_REQUEST_BYTES) {
        if (disk_tier_offset(spill->tier, place_of(spill, spill->at)) + spill->at_bytes != range_end(range))
            break;
        uint64_t length = block - spill->at_bytes;
        if (length > LIMIT_REQUEST_BYTES - range.length)
            length = LIMIT_REQUEST_BYTES - range.length;
        char *memory = spill->memory + spill->from[spill->at] * block + spill->at_bytes;
        struct iovec *last = iov_count > 0 ? &write->iov[iov_count - 1] : NULL;
        if (last && (char *)last->iov_base + last->iov_len == memory)
            last->iov_len += length;
        else
            write->iov[iov_count++] = (struct iovec){memory, length};
        range.length += length;
        spill->at_bytes += length;
        if (spill->at_bytes == block) {
            spill->at++;
            spill->at_bytes = 0;
        }
    }
    submit(write, REQUEST_WRITE, range, iov_count, write_done);
}

static void pump(struct spill *spill)
{
    struct spill_write *write;
    while (spill->status == 0 && spill->at < spill->group_end && (write = write_take(spill)))
        data_write(spill, write);
    if (spill->in_flight > 0)
        return;
    if (spill->status == 0 && spill->at < spill->count)
        group_begin(spill);
    else
        spill_end(spill);
}

/* Headers. */

/* The group's entries go into the header, and those of slots that have been given back leave it. */
static void header_compose(struct spill *spill)
{
    struct disk_tier *tier = spill->tier;
    uint32_t slots = tier->pool.slots_per_segment, segment = segment_of(spill, spill->at);
    struct cache_segment_header *header = spill->header;
    for (uint32_t i = 0; i < slots; i++)
        if (!slot_pool_taken(&tier->pool, segment * slots + i))
            header->keys[i] = header->crcs[i] = 0;
    for (uint32_t i = spill->at; i < spill->group_end; i++) {
        header->keys[place_of(spill, i) % slots] = htole64(spill->from_keys[i]);
        header->crcs[place_of(spill, i) % slots] = htole32(spill->crcs[i]);
    }
    header->sequence = htole64(++tier->sequence);
    cache_memory_note_sequence(tier->memory, tier->sequence);
    header->crc = htole32(cache_header_crc(header));
}

static void group_write(struct spill *spill)
{
    spill_move(spill, SPILL_WRITING);
    header_compose(spill);
    spill->header_lost = false;
    header_transfer(spill, REQUEST_WRITE, write_done);
    pump(spill);
}

static bool header_is_right(const struct spill *spill)
{
    const struct cache_segment_header *header = spill->header;
    return memcmp(header->magic, CACHE_SEGMENT_MAGIC, CACHE_MAGIC_BYTES) == 0 &&
           header->crc == htole32(cache_header_crc(header)) && header->segment == htole32(segment_of(spill, spill->at));
}

static void header_read(struct request *req, int status)
{
    struct spill_write *write = container_of(req, struct spill_write, request);
    struct spill *spill = write->spill;
    write->under_way = false;
    spill->in_flight--;
    if (status == 0 && header_is_right(spill)) {
        group_write(spill);
        return;
    }
    PROBE(spill_header_unreadable);
    spill->status = status < 0 ? status : -EIO;
    spill->header_lost = true;
    spill_end(spill);
}

static void group_begin(struct spill *spill)
{
    const struct disk_tier *tier = spill->tier;
    spill->at = spill->group_end;
    spill->at_bytes = 0;
    spill->group_end = group_after(spill, spill->at);
    if (!spill->fresh) {
        spill_move(spill, SPILL_READING);
        header_transfer(spill, REQUEST_READ, header_read);
        return;
    }
    *spill->header = (struct cache_segment_header){
        .magic = CACHE_SEGMENT_MAGIC,
        .version = htole32(CACHE_VERSION),
        .segment = htole32(segment_of(spill, 0)),
        .block_bytes = htole32(UINT32_C(1) << tier->block_shift),
        .slots_per_segment = htole32(tier->pool.slots_per_segment),
    };
    group_write(spill);
}

/* The beginning. */

static int64_t sum_slots(void *argument) /* on a helper thread */
{
    struct spill *spill = argument;
    const size_t block = (size_t)1 << spill->tier->block_shift;
    for (uint32_t i = 0; i < spill->count; i++)
        spill->crcs[i] = crc32c(0, spill->memory + spill->from[i] * block, block);
    return 0;
}

static void summed(struct io_op *op, int64_t result)
{
    struct spill *spill = container_of(op, struct spill, summing);
    if (result < 0)
        sum_slots(spill); /* no helper thread can be had */
    spill->group_end = 0;
    group_begin(spill);
}

void disk_tier_spill(struct disk_tier *tier, struct spill *spill)
{
    assert(io_on_owner(tier->io) && spill->tier == tier);
    spill->count = 0;
    spill->status = 0;
    spill->fresh = spill->header_lost = false;
    for (uint32_t i = 0; i < tier->pool.slots_per_segment; i++) {
        spill->slots[i] = SLOT_NONE;
        if (spill->keys[i]) {
            spill->from_keys[spill->count] = spill->keys[i];
            spill->from[spill->count++] = i;
        }
    }
    tier->writes++;
    if (spill->count > 0 && (place_fresh(spill) || place_in_gaps(spill))) {
        spill_move(spill, SPILL_SUMMING);
        spill->summing.done = summed;
        io_work(tier->io, &spill->summing, sum_slots, spill);
        return;
    }
    PROBE(spill_without_place);
    spill->status = spill->count > 0 ? -ENOSPC : 0;
    spill_move(spill, SPILL_FAILING);
    spill->task.run = end_without_io;
    io_task_queue(tier->io, &spill->task);
}
