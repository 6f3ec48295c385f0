/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The packed ring: one ring of descriptors, which the driver writes to make them available and we overwrite to use them
 * (VIRTIO 1.2, 2.8). Two flag bits against a wrap counter, which changes with each round, tell which of the two a slot is.
 *
 * Taking: the flags of the first slot tell whether the chain is there (acquire); all else was written before them. Then each
 * slot is loaded, its length, id and flags as one word: what the flags of the first say by then of its being there is
 * nothing to us any more.
 *
 * Returning: nothing is written before publish, for a connection may end before that. Then the slots of the batch, but for
 * the flags of the first, which are last: the driver looks at that slot first, and finds the whole batch behind it. With an
 * in-flight region one chain after the other: recovery looks at one slot only (inflight.c).
 *
 * The full barrier between our store and the look at the driver's wish, and the other way round: see split_ring.c.
 */
#include <errno.h>

#include "base/probe.h"
#include "export/vhost_user/virtqueue_internal.h"

enum { EVENT_ENABLE = 0, EVENT_DISABLE = 1, EVENT_DESCRIPTOR = 2, ID = 2, FLAGS = 3 };

int packed_ring_place(struct virtqueue *queue, const struct guest_memory *memory, struct error *err)
{
    const struct virtqueue_place *place = &queue->place;
    void *descriptors = guest_memory_at(memory, place->descriptors, 16 * (uint64_t)queue->size, 16);
    void *driver_event = guest_memory_at(memory, place->available, 4, 4);
    void *device_event = guest_memory_at(memory, place->used, 4, 4);
    if (!descriptors || !driver_event || !device_event)
        return error_set(
            err, EFAULT,
            "the ring of a packed virtqueue of %u descriptors at 0x%llx (16) and its event areas at 0x%llx (4) "
            "and 0x%llx (4) are not inside of one region of the guest's memory each, or not aligned to that",
            queue->size, (unsigned long long)place->descriptors, (unsigned long long)place->available,
            (unsigned long long)place->used);
    queue->ring.descriptors = descriptors;
    queue->ring.driver_event = driver_event;
    queue->ring.device_event = device_event;
    return 0;
}

/* The chain that is in ring.chain. */
int packed_ring_parse(struct virtqueue *queue, uint32_t count, struct virtqueue_chain *chain)
{
    const struct descriptor *parts = queue->ring.chain;
    chain_begin(chain, parts[count - 1].id);
    chain->count = (uint16_t)count;
    for (uint32_t i = 0; i < count; i++) {
        if (!(parts[i].flags & DESCRIPTOR_INDIRECT)) {
            if (virtqueue_add(queue, chain, &parts[i]) < 0)
                return -EPROTO;
        } else if (count > 1) {
            return virtqueue_break(queue, "a chain of %u descriptors has one of an indirect table", count);
        } else if (virtqueue_add_indirect(queue, chain, &parts[i], 0) < 0) {
            return -EPROTO;
        }
    }
    return virtqueue_end_chain(queue, chain);
}

/* One of the four quarters of a slot's second word. */
static uint16_t *quarter(const struct packed_ring *ring, uint32_t slot, unsigned which)
{
    return (uint16_t *)(void *)&ring->descriptors[slot].rest + which;
}

static void load(const struct packed_ring *ring, uint32_t slot, struct descriptor *part)
{
    const uint64_t rest = ring_load64(&ring->descriptors[slot].rest, __ATOMIC_RELAXED);
    *part = (struct descriptor){ring_load64(&ring->descriptors[slot].address, __ATOMIC_RELAXED), (uint32_t)rest,
                                (uint16_t)(rest >> 48), (uint16_t)(rest >> 32)};
}

static bool is_there(const struct packed_ring *ring, int order)
{
    return packed_is_available(ring_load16(quarter(ring, ring->next, FLAGS), order), ring->wrap);
}

int packed_ring_take(struct virtqueue *queue, struct virtqueue_chain *chain)
{
    struct packed_ring *ring = &queue->ring;
    uint32_t slot = ring->next, count = 1;
    bool wrap = ring->wrap;
    if (!is_there(ring, __ATOMIC_ACQUIRE))
        return 0;
    load(ring, slot, &ring->chain[0]);
    for (;;) {
        if (++slot == queue->size) {
            slot = 0;
            wrap = !wrap;
        }
        if (!(ring->chain[count - 1].flags & DESCRIPTOR_NEXT))
            break;
        if (count == queue->chain_max)
            return virtqueue_break(queue, "a chain has more than %u descriptors", queue->chain_max);
        load(ring, slot, &ring->chain[count++]);
    }
    __builtin_prefetch(&ring->descriptors[slot]);
    if (ring->out + count > queue->size)
        return virtqueue_break(queue, "descriptor %u was made available again before it was returned", ring->next);
    const int status = packed_ring_parse(queue, count, chain);
    if (status < 0)
        return status;
    if (queue->inflight.region)
        chain->entry = inflight_packed_take(&queue->inflight, ring->chain, count);
    ring->next = (uint16_t)slot;
    ring->wrap = wrap;
    ring->out += count;
    return 1;
}

uint16_t packed_ring_fill(struct virtqueue *queue, uint16_t id, uint32_t written)
{
    const struct packed_ring *ring = &queue->ring;
    __atomic_store_n((uint32_t *)(void *)quarter(ring, ring->used_next, 0), htole32(written), __ATOMIC_RELAXED);
    ring_store16(quarter(ring, ring->used_next, ID), id, __ATOMIC_RELAXED);
    return (uint16_t)((ring->used_wrap ? DESCRIPTOR_AVAILABLE | DESCRIPTOR_USED : 0) |
                      (written > 0 ? DESCRIPTOR_WRITE : 0));
}

void packed_ring_show(struct virtqueue *queue, uint32_t slot, uint16_t flags, int order)
{
    ring_store16(quarter(&queue->ring, slot, FLAGS), flags, order);
}

void packed_ring_advance(struct virtqueue *queue, uint32_t count)
{
    struct packed_ring *ring = &queue->ring;
    uint32_t slot = ring->used_next + count;
    if (slot >= queue->size) {
        slot -= queue->size;
        ring->used_wrap = !ring->used_wrap;
    }
    ring->used_next = (uint16_t)slot;
    ring->out -= count;
    ring->shown += count;
}

void packed_ring_return(struct virtqueue *queue, const struct virtqueue_chain *chain, uint32_t written)
{
    queue->returned[queue->returned_count++] = (struct returned_chain){
        .head = chain->head, .entry = chain->entry, .count = chain->count, .written = written};
}

/* All flags but the first slot's; then those. */
static void show_batch(struct virtqueue *queue)
{
    const uint16_t slot = queue->ring.used_next;
    uint16_t first = 0;
    for (uint32_t i = 0; i < queue->returned_count; i++) {
        const struct returned_chain *one = &queue->returned[i];
        const uint16_t flags = packed_ring_fill(queue, one->head, one->written);
        if (i == 0)
            first = flags;
        else
            packed_ring_show(queue, queue->ring.used_next, flags, __ATOMIC_RELAXED);
        packed_ring_advance(queue, one->count);
    }
    packed_ring_show(queue, slot, first, __ATOMIC_SEQ_CST);
    queue->returned_count = 0;
}

/* `count` slots from that one on were written, or some of them. */
static void mark_slots(const struct virtqueue *queue, uint32_t slot, uint32_t count)
{
    const struct ring_descriptor *slots = queue->ring.descriptors;
    const uint32_t first = count < queue->size - slot ? count : queue->size - slot; /* up to the end of the ring */
    dirty_log_mark_memory(queue->log, queue->memory, &slots[slot], first * sizeof slots[0]);
    dirty_log_mark_memory(queue->log, queue->memory, slots, (count - first) * sizeof slots[0]);
}

void packed_ring_mark_all(const struct virtqueue *queue)
{
    mark_slots(queue, 0, queue->size);
    dirty_log_mark_memory(queue->log, queue->memory, queue->ring.device_event, sizeof(uint32_t));
}

static void set_device_event(struct virtqueue *queue, uint32_t event, int order)
{
    __atomic_store_n(queue->ring.device_event, htole32(event), order);
    if (__builtin_expect(queue->log != NULL, 0) && !MUTANT(vhost_log_lacks_the_event))
        dirty_log_mark_memory(queue->log, queue->memory, queue->ring.device_event, sizeof event);
}

/* Whether the driver wants to hear of the slots since the last time; after the full barrier. */
static bool wants_call(struct virtqueue *queue)
{
    struct packed_ring *ring = &queue->ring;
    const uint16_t count = (uint16_t)(ring->shown - MUTANT(vhost_packed_calls_too_few));
    ring->shown = 0;
    if (!queue->called) {
        queue->called = true;
        return true;
    }
    const uint32_t event = le32toh(__atomic_load_n(ring->driver_event, __ATOMIC_SEQ_CST));
    const uint32_t flags = event >> 16 & 3;
    if (flags != EVENT_DESCRIPTOR || !queue->event_idx)
        return flags != EVENT_DISABLE;
    const uint16_t slot = event & 0x7fff;
    const bool wrap = event >> 15 & 1;
    return event_passed((uint16_t)(wrap == ring->used_wrap ? slot : slot - queue->size), ring->used_next, count);
}

bool packed_ring_publish(struct virtqueue *queue)
{
    if (queue->returned_count == 0)
        return queue->called ? false : wants_call(queue);
    const uint32_t from = queue->ring.used_next, shown = queue->ring.shown;
    if (queue->inflight.region)
        inflight_packed_publish(queue);
    else
        show_batch(queue);
    if (__builtin_expect(queue->log != NULL, 0) && !MUTANT(vhost_log_lacks_returns_packed))
        mark_slots(queue, from, queue->ring.shown - shown);
    return wants_call(queue);
}

bool packed_ring_want_kicks(struct virtqueue *queue)
{
    struct packed_ring *ring = &queue->ring;
    if (queue->broken)
        return false;
    const uint32_t event = queue->event_idx ? ring->next | (uint32_t)ring->wrap << 15 | EVENT_DESCRIPTOR << 16
                                            : EVENT_ENABLE << 16;
    queue->no_kicks = false;
    set_device_event(queue, event, __ATOMIC_SEQ_CST);
    return is_there(ring, __ATOMIC_SEQ_CST);
}

void packed_ring_want_no_kicks(struct virtqueue *queue)
{
    if (!queue->no_kicks)
        set_device_event(queue, EVENT_DISABLE << 16, __ATOMIC_RELAXED);
    queue->no_kicks = true;
}
