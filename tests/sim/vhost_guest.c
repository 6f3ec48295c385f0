/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The guest of vhost_sim: its requests, and the memory that they lie in. A request has a slot of memory of its own. What the
 * device reads of it and what it writes are two streams of bytes, each cut into fragments at any place, with gaps between.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/probe.h"
#include "vhost_sim.h"

enum { TABLE_AT = 0, FRAGMENTS_AT = 0x410, GAP_BYTES = 48, STREAM_PARTS = 4, UNKNOWN_TYPE = 77 };

static const char disk_name[VIRTIO_BLK_ID_BYTES] = "vda";

/* ---- memory ---- */

static uint64_t slot_at(unsigned slot)
{
    return slot < SIM_LOW_SLOTS ? SIM_DATA_AT + slot * (uint64_t)SIM_SLOT_BYTES
                                : SIM_PLUGGED_AT + (slot - SIM_LOW_SLOTS) * (uint64_t)SIM_SLOT_BYTES;
}

/* What is there now is right. */
static void accept_bytes(struct sim *sim, uint64_t at, uint64_t length)
{
    for (unsigned i = 0; i < SIM_REGIONS; i++) {
        struct sim_region *region = &sim->front.regions[i];
        uint64_t start = at > region->guest ? at : region->guest, end = at + length;
        if (end > region->guest + region->size)
            end = region->guest + region->size;
        if (start < end)
            memcpy(region->shadow + SIM_PAGE + (start - region->guest), sim->front.base + start, end - start);
    }
}

static void accept_written(struct sim *sim, const struct sim_slot *slot)
{
    for (unsigned i = slot->read_parts; i < slot->part_count; i++)
        accept_bytes(sim, slot->parts[i].address, slot->parts[i].length);
}

static void check_bytes(const struct sim *sim, const char *file, const uint8_t *copy, uint64_t from, uint64_t bytes,
                        const char *what)
{
    if (memcmp(file + from, copy + from, bytes - from) == 0)
        return;
    for (uint64_t i = from; i < bytes; i++)
        if ((uint8_t)file[i] != copy[i])
            sim_fail(sim, "%s was changed at 0x%llx", what, (unsigned long long)i);
}

void guest_check_memory(struct sim *sim)
{
    for (unsigned i = 0; i < SIM_SLOTS; i++)
        if (sim->slots[i].busy)
            accept_written(sim, &sim->slots[i]);
    for (unsigned i = 0; i < SIM_REGIONS; i++) {
        const struct sim_region *region = &sim->front.regions[i];
        if (!region->there)
            continue;
        check_bytes(sim, region->file, region->shadow, 0, SIM_PAGE, "what lies before a region");
        check_bytes(sim, region->file, region->shadow, SIM_PAGE + (i == 0 ? SIM_DATA_AT : 0),
                    region->size + UINT64_C(2) * SIM_PAGE, "memory that no request gave to the device");
    }
    for (unsigned i = 0; i < sim->retired_count; i++)
        if (sim->retired[i].copy)
            check_bytes(sim, sim->retired[i].file, sim->retired[i].copy, 0, sim->retired[i].bytes,
                        "memory of a connection that is over (C14)");
}

static void settle_one(struct sim_retired *retired)
{
    if (retired->copy)
        return;
    retired->copy = malloc(retired->bytes);
    assert_non_null(retired->copy);
    memcpy(retired->copy, retired->file, retired->bytes);
}

void guest_retire(struct sim *sim, const struct sim_region *region, bool at_rest)
{
    assert_true(sim->retired_count < SIM_RETIRED);
    struct sim_retired *retired = &sim->retired[sim->retired_count++];
    *retired = (struct sim_retired){.file = region->file, .bytes = region->size + UINT64_C(2) * SIM_PAGE};
    if (at_rest)
        settle_one(retired);
}

void guest_settle_retired(struct sim *sim)
{
    for (unsigned i = 0; i < sim->retired_count; i++)
        settle_one(&sim->retired[i]);
}

/* ---- making requests ---- */

/* [0, length) of `bytes` as a stream of the slot; NULL: one that the device writes. Returns where the next may be. */
static uint64_t add_stream(struct sim *sim, struct sim_slot *slot, uint64_t at, const uint8_t *bytes, uint32_t length)
{
    unsigned parts = 1 + (unsigned)sim_below(sim, STREAM_PARTS);
    for (uint32_t done = 0; done < length; parts--) {
        uint32_t left = length - done, part = parts > 1 && left > 1 ? 1 + (uint32_t)sim_below(sim, left) : left;
        if (sim_chance(sim, 300))
            at = (at + 511) / 512 * 512;
        slot->parts[slot->part_count++] = (struct part){at, part, bytes == NULL};
        if (bytes)
            memcpy(sim->front.base + at, bytes + done, part);
        else
            memset(sim->front.base + at, SIM_STATUS_UNSET, part);
        accept_bytes(sim, at, part);
        migration_wrote(sim, at, part);
        at += part + (sim_chance(sim, 512) ? sim_below(sim, GAP_BYTES) : 0);
        done += part;
    }
    return at;
}

static bool choose_spans(struct sim *sim, struct sim_slot *slot, bool writes, unsigned spans)
{
    slot->span_count = 0;
    for (unsigned i = 0; i < spans; i++) {
        struct sim_span span = {.count = 1 + (uint32_t)sim_below(sim, SIM_REQUEST_SECTORS)};
        if (sim_chance(sim, 300))
            span.count = 8;
        span.sector = (uint32_t)sim_below(sim, SIM_SECTORS - span.count + 1);
        if (span.count == 8)
            span.sector = span.sector / 8 * 8;
        if (!model_is_free(sim, &span, writes))
            return false;
        for (unsigned k = 0; k < i; k++)
            if (span.sector < slot->spans[k].sector + slot->spans[k].count &&
                slot->spans[k].sector < span.sector + span.count)
                return false;
        slot->spans[slot->span_count++] = span;
    }
    return true;
}

static const struct {
    uint32_t type;
    unsigned weight;
} kinds[] = {{VIRTIO_BLK_T_IN, 34},     {VIRTIO_BLK_T_OUT, 38}, {VIRTIO_BLK_T_FLUSH, 6},       {VIRTIO_BLK_T_GET_ID, 4},
             {VIRTIO_BLK_T_DISCARD, 6}, {UNKNOWN_TYPE, 3},      {VIRTIO_BLK_T_WRITE_ZEROES, 9}};

static uint32_t choose_kind(struct sim *sim)
{
    uint64_t what = sim_below(sim, 100);
    unsigned i = 0;
    while (what >= kinds[i].weight)
        what -= kinds[i++].weight;
    return kinds[i].type;
}

/* What the device reads behind the header; its length. */
static uint32_t make_payload(struct sim *sim, struct sim_slot *slot, uint8_t *payload)
{
    struct virtio_blk_range ranges[SIM_SPANS] = {{0}};
    if (slot->type == VIRTIO_BLK_T_OUT) {
        for (uint32_t i = 0; i < slot->spans[0].count; i++)
            model_fill(payload + i * UINT64_C(512), slot->spans[0].sector + i, slot->number);
        return slot->spans[0].count * 512;
    }
    if (slot->type != VIRTIO_BLK_T_DISCARD && slot->type != VIRTIO_BLK_T_WRITE_ZEROES)
        return 0;
    for (unsigned i = 0; i < slot->span_count; i++)
        ranges[i] = (struct virtio_blk_range){slot->spans[i].sector, slot->spans[i].count,
                                              slot->type == VIRTIO_BLK_T_WRITE_ZEROES && sim_chance(sim, 512)};
    memcpy(payload, ranges, slot->span_count * sizeof ranges[0]);
    return slot->span_count * (uint32_t)sizeof ranges[0];
}

/* Something is wrong with it, and the device says so. */
static void spoil(struct sim *sim, struct sim_slot *slot, struct virtio_blk_header *header, uint32_t *payload_bytes)
{
    slot->expected = VIRTIO_BLK_S_IOERR;
    slot->span_count = 0;
    if (slot->type == VIRTIO_BLK_T_IN) { /* beyond the end */
        header->sector = SIM_SECTORS - sim_below(sim, 2);
        slot->write_bytes += 512;
    } else { /* not whole */
        *payload_bytes -= 1;
    }
}

static bool may_be_spoilt(uint32_t type)
{
    return type == VIRTIO_BLK_T_IN || type == VIRTIO_BLK_T_OUT || type == VIRTIO_BLK_T_DISCARD ||
           type == VIRTIO_BLK_T_WRITE_ZEROES;
}

/* Fills a slot; false: its place on the disk is taken. */
static bool make_request(struct sim *sim, struct sim_slot *slot, unsigned index)
{
    static uint8_t stream[sizeof(struct virtio_blk_header) + SIM_REQUEST_SECTORS * 512];
    struct virtio_blk_header header = {.type = choose_kind(sim)};
    *slot = (struct sim_slot){.type = header.type, .expected = VIRTIO_BLK_S_OK, .may_fail = sim->failing};
    bool moves = slot->type == VIRTIO_BLK_T_IN || slot->type == VIRTIO_BLK_T_OUT;
    bool clears = slot->type == VIRTIO_BLK_T_DISCARD || slot->type == VIRTIO_BLK_T_WRITE_ZEROES;
    unsigned spans = moves ? 1 : clears ? 1 + (unsigned)sim_below(sim, SIM_SPANS) : 0;
    if (!choose_spans(sim, slot, slot->type != VIRTIO_BLK_T_IN, spans))
        return false;
    if (moves)
        header.sector = slot->spans[0].sector;
    if (slot->type == VIRTIO_BLK_T_OUT)
        slot->number = ++sim->numbers;
    if (slot->type == VIRTIO_BLK_T_IN)
        slot->write_bytes = slot->spans[0].count * 512;
    else if (slot->type == VIRTIO_BLK_T_GET_ID)
        slot->write_bytes = VIRTIO_BLK_ID_BYTES;
    if (slot->type == UNKNOWN_TYPE ||
        (slot->type == VIRTIO_BLK_T_DISCARD && !(sim->front.features & VHOST_BIT(VIRTIO_BLK_F_DISCARD))))
        slot->expected = VIRTIO_BLK_S_UNSUPP;
    uint32_t payload = make_payload(sim, slot, stream + sizeof header);
    if (slot->expected == VIRTIO_BLK_S_UNSUPP)
        slot->span_count = 0;
    else if (may_be_spoilt(slot->type) && sim_chance(sim, 40))
        spoil(sim, slot, &header, &payload);
    memcpy(stream, &header, sizeof header);
    slot->read_bytes = (uint32_t)sizeof header + payload;
    slot->write_bytes++;
    uint64_t at = add_stream(sim, slot, slot_at(index) + FRAGMENTS_AT, stream, slot->read_bytes);
    slot->read_parts = slot->part_count;
    at = add_stream(sim, slot, at, NULL, slot->write_bytes);
    assert_true(at <= slot_at(index) + SIM_SLOT_BYTES && slot->part_count <= SIM_PARTS);
    return true;
}

/* ---- the rings ---- */

static bool writes(const struct sim_slot *slot)
{
    return slot->type != VIRTIO_BLK_T_IN;
}

static void begin(struct sim *sim, struct sim_slot *slot, unsigned queue)
{
    slot->busy = true;
    slot->queue = queue;
    sim_trace(sim, "request %u of type %u in queue %u, number %u", (unsigned)(slot - sim->slots), slot->type, queue,
              slot->number);
    for (unsigned i = 0; i < slot->span_count; i++)
        sim_trace(sim, "... at sector %u +%u", slot->spans[i].sector, slot->spans[i].count);
    for (unsigned i = 0; i < slot->span_count; i++) {
        if (writes(slot))
            model_write_begin(sim, &slot->spans[i], slot->number);
        else
            model_read_begin(sim, &slot->spans[i]);
    }
    sim->result.requests++;
}

/* The driver did, where only it writes; with `descriptors`, which in a packed ring the device writes as well. */
static void wrote_ring(struct sim *sim, unsigned queue, bool descriptors)
{
    const struct driver *driver = &sim->front.queues[queue].driver;
    if (descriptors)
        migration_wrote(sim, driver->place.descriptors, driver_descriptors_bytes(driver->size));
    migration_wrote(sim, driver->place.available, driver_available_bytes(driver->size));
}

static bool add_to_ring(struct sim *sim, struct sim_slot *slot, unsigned index, unsigned queue)
{
    uint64_t table = 0;
    if (sim->indirect && sim_chance(sim, 600))
        table = slot_at(index) + TABLE_AT + (sim_chance(sim, 200) ? 8 : 0);
    if (!driver_add(&sim->front.queues[queue].driver, slot->parts, (uint16_t)slot->part_count, table, index))
        return false;
    wrote_ring(sim, queue, true);
    if (table) {
        accept_bytes(sim, table, slot->part_count * sizeof(struct desc));
        migration_wrote(sim, table, slot->part_count * sizeof(struct desc));
    }
    return true;
}

static bool slot_is_there(const struct sim *sim, unsigned slot)
{
    return slot < SIM_LOW_SLOTS || sim->front.regions[SIM_PLUGGED].told;
}

void guest_add_requests(struct sim *sim, unsigned most)
{
    struct sim_front *front = &sim->front;
    if (front->guest_stopped || front->queue_count == 0)
        return;
    unsigned queue = (unsigned)sim_below(sim, front->queue_count);
    for (unsigned i = 0; i < most; i++) {
        unsigned index = (unsigned)sim_below(sim, SIM_SLOTS);
        struct sim_slot *slot = &sim->slots[index];
        if (slot->busy || !slot_is_there(sim, index) || !make_request(sim, slot, index) ||
            !add_to_ring(sim, slot, index, queue))
            continue;
        begin(sim, slot, queue);
    }
    struct driver *driver = &front->queues[queue].driver;
    driver_show(driver);
    wrote_ring(sim, queue, false);
    if (driver_must_kick(driver))
        front_kick(sim, queue);
}

static void read_stream(const struct sim *sim, const struct sim_slot *slot, uint8_t *bytes)
{
    for (unsigned i = slot->read_parts; i < slot->part_count; i++) {
        memcpy(bytes, sim->front.base + slot->parts[i].address, slot->parts[i].length);
        bytes += slot->parts[i].length;
    }
}

/* Ends what it has of the model. */
static void end(struct sim *sim, struct sim_slot *slot, const uint8_t *bytes, enum model_end how)
{
    if (slot->type == VIRTIO_BLK_T_DISCARD && how == MODEL_UNKNOWN)
        how = MODEL_DISCARDED; /* it may come late */
    for (unsigned i = 0; i < slot->span_count; i++) {
        if (writes(slot))
            model_write_end(sim, &slot->spans[i], slot->number, how);
        else
            model_read_end(sim, &slot->spans[i], bytes);
    }
    accept_written(sim, slot);
    slot->busy = false;
}

static void check_result(const struct sim *sim, const struct sim_slot *slot, const uint8_t *bytes, uint32_t written)
{
    unsigned status = bytes[slot->write_bytes - 1];
    bool failed = (slot->may_fail || (sim->sync_failed && slot->type == VIRTIO_BLK_T_FLUSH)) &&
                  status == VIRTIO_BLK_S_IOERR;
    if (status != slot->expected && !failed)
        sim_fail(sim, "a request of type %u has status %u, not %u", slot->type, status, slot->expected);
    bool all = status == VIRTIO_BLK_S_OK && (slot->type == VIRTIO_BLK_T_IN || slot->type == VIRTIO_BLK_T_GET_ID);
    if ((all || slot->type != VIRTIO_BLK_T_IN) && slot->type != VIRTIO_BLK_T_GET_ID &&
        written != (all ? slot->write_bytes : 1))
        sim_fail(sim, "a request of type %u with %u bytes to write has %u written", slot->type, slot->write_bytes,
                 written);
    if (slot->type == VIRTIO_BLK_T_GET_ID && memcmp(bytes, disk_name, sizeof disk_name) != 0)
        sim_fail(sim, "the disk has another name");
}

static void came_back(struct sim *sim, uint32_t index, unsigned queue, uint32_t written)
{
    static uint8_t bytes[(SIM_REQUEST_SECTORS + 1) * 512 + 1];
    struct sim_slot *slot = &sim->slots[index];
    if (index >= SIM_SLOTS || !slot->busy || slot->queue != queue)
        sim_fail(sim, "queue %u has returned request %u, which is not under way there", queue, index);
    read_stream(sim, slot, bytes);
    check_result(sim, slot, bytes, written);
    bool done = bytes[slot->write_bytes - 1] == VIRTIO_BLK_S_OK;
    sim_trace(sim, "request %u has come back%s", index, done ? "" : " with an error");
    if (!done && slot->may_fail)
        PROBE(vhost_sim_disk_failed);
    end(sim, slot, done ? bytes : NULL,
        !done                                ? MODEL_UNKNOWN
        : slot->type == VIRTIO_BLK_T_DISCARD ? MODEL_DISCARDED
                                             : MODEL_DONE);
}

void guest_reap(struct sim *sim, unsigned queue)
{
    struct driver *driver = &sim->front.queues[queue].driver;
    uint32_t cookie, written;
    driver_want_no_calls(driver);
    do {
        while (driver_get(driver, &cookie, &written))
            came_back(sim, cookie, queue, written);
    } while (driver_want_calls(driver, 0));
    wrote_ring(sim, queue, false);
}

unsigned guest_busy(const struct sim *sim)
{
    unsigned count = 0;
    for (unsigned i = 0; i < SIM_SLOTS; i++)
        count += sim->slots[i].busy;
    return count;
}

bool guest_uses_plugged(const struct sim *sim)
{
    for (unsigned i = SIM_LOW_SLOTS; i < SIM_SLOTS; i++)
        if (sim->slots[i].busy)
            return true;
    return false;
}

/* Nobody marks what a connection that was lost has written: without an in-flight region a VMM can't have it marked again. */
void guest_forget(struct sim *sim, enum model_end how)
{
    for (unsigned i = 0; i < SIM_SLOTS; i++) {
        const struct sim_slot *slot = &sim->slots[i];
        for (unsigned k = slot->read_parts; slot->busy && k < slot->part_count; k++)
            migration_wrote(sim, slot->parts[k].address, slot->parts[k].length);
        if (slot->busy)
            end(sim, &sim->slots[i], NULL, how);
    }
}

/* A chain that makes no sense: the ring takes nothing more. */
void guest_break_ring(struct sim *sim, unsigned queue)
{
    struct driver *driver = &sim->front.queues[queue].driver;
    const struct part part = {UINT64_C(1) << 40, 512, false};
    if (!driver_add(driver, &part, 1, 0, SIM_SLOTS))
        return;
    sim->ring_is_broken = true;
    driver_show(driver);
    wrote_ring(sim, queue, true);
    if (driver_must_kick(driver))
        front_kick(sim, queue);
}

void guest_end(struct sim *sim)
{
    for (unsigned i = 0; i < sim->retired_count; i++)
        free(sim->retired[i].copy);
}
