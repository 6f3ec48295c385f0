/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The split ring: a table of descriptors, a ring of heads that the driver makes available, a ring of those that we have
 * used (VIRTIO 1.2, 2.7).
 *
 * Taking: the available index is loaded (acquire) only when all up to the last one seen are taken. A head that is out may
 * not come again: it would be entered in the in-flight region twice. That also bounds the chains that are out.
 *
 * Returning: entries of the used ring are written at once, its index by publish, with a full barrier before the driver's
 * wish is read: either we see that it wants to be called, or it sees the index. The same the other way round when kicks are
 * asked for. Sequentially consistent stores and loads are that barrier (one xchg on x86), and tools understand them.
 */
#include <errno.h>

#include "base/probe.h"
#include "export/vhost_user/virtqueue_internal.h"

enum { RING_FLAGS = 0, RING_INDEX = 1, RING_AT = 2, NO_INTERRUPT = 1, NO_NOTIFY = 1 };

static uint16_t *used_event(const struct virtqueue *queue)
{
    return &queue->split.available[RING_AT + queue->size];
}

static uint16_t *available_event(const struct virtqueue *queue)
{
    return &queue->split.used[RING_AT + 4 * queue->size];
}

int split_ring_place(struct virtqueue *queue, const struct guest_memory *memory, struct error *err)
{
    const struct virtqueue_place *place = &queue->place;
    const uint64_t size = queue->size, event = queue->event_idx ? 2 : 0;
    void *descriptors = guest_memory_at(memory, place->descriptors, 16 * size, 16);
    void *available = guest_memory_at(memory, place->available, 4 + 2 * size + event, 2);
    void *used = guest_memory_at(memory, place->used, 4 + 8 * size + event, 4);
    if (!descriptors || !available || !used)
        return error_set(
            err, EFAULT,
            "the rings of a split virtqueue of %u descriptors at 0x%llx (16), 0x%llx (2) and 0x%llx (4) are "
            "not inside of one region of the guest's memory each, or not aligned to that",
            queue->size, (unsigned long long)place->descriptors, (unsigned long long)place->available,
            (unsigned long long)place->used);
    queue->split.descriptors = descriptors;
    queue->split.available = available;
    queue->split.used = used;
    return 0;
}

int split_ring_parse(struct virtqueue *queue, uint16_t head, struct virtqueue_chain *chain)
{
    uint32_t index = head;
    chain_begin(chain, head);
    for (uint32_t count = 0; count < queue->chain_max; count++) {
        const struct ring_descriptor *at = &queue->split.descriptors[index];
        const uint64_t rest = ring_load64(&at->rest, __ATOMIC_RELAXED);
        const struct descriptor part = {ring_load64(&at->address, __ATOMIC_RELAXED), (uint32_t)rest,
                                        (uint16_t)(rest >> 32), (uint16_t)(rest >> 48)};
        if (part.flags & DESCRIPTOR_INDIRECT) {
            if (virtqueue_add_indirect(queue, chain, &part, count) < 0)
                return -EPROTO;
        } else if (virtqueue_add(queue, chain, &part) < 0) {
            return -EPROTO;
        }
        if (!(part.flags & DESCRIPTOR_NEXT))
            return virtqueue_end_chain(queue, chain);
        if (part.id >= queue->size)
            return virtqueue_break(queue, "a chain goes on at descriptor %u of %u", part.id, queue->size);
        index = part.id;
    }
    return virtqueue_break(queue, "a chain is a loop, or has more than %u descriptors", queue->chain_max);
}

/* Whether there is one to take: 1, 0, or -EPROTO. */
static int look(struct virtqueue *queue, int order)
{
    struct split_ring *split = &queue->split;
    split->seen = ring_load16(&split->available[RING_INDEX], order);
    const uint16_t count = (uint16_t)(split->seen - split->next);
    if (count > queue->size)
        return virtqueue_break(queue, "the available index jumped from %u to %u in a ring of %u", split->next,
                               split->seen, queue->size);
    return count > 0;
}

int split_ring_take(struct virtqueue *queue, struct virtqueue_chain *chain)
{
    struct split_ring *split = &queue->split;
    if (split->next == split->seen) {
        const int status = look(queue, __ATOMIC_ACQUIRE);
        if (status <= 0)
            return status;
    }
    const uint16_t mask = (uint16_t)(queue->size - 1), *ring = &split->available[RING_AT];
    const uint16_t head = ring_load16(&ring[split->next & mask], __ATOMIC_RELAXED);
    if ((uint16_t)(split->next + 1) != split->seen) { /* the next one, unchecked: for the cache only */
        const uint16_t after = ring_load16(&ring[(split->next + 1) & mask], __ATOMIC_RELAXED);
        __builtin_prefetch(&split->descriptors[after & mask]);
    }
    if (head >= queue->size)
        return virtqueue_break(queue, "descriptor %u of %u was made available", head, queue->size);
    if (split->busy[head])
        return virtqueue_break(queue, "descriptor %u was made available again before it was returned", head);
    const int status = split_ring_parse(queue, head, chain);
    if (status < 0)
        return status;
    split->busy[head] = 1;
    if (queue->inflight.region)
        inflight_split_take(&queue->inflight, head);
    split->next++;
    return 1;
}

void split_ring_return(struct virtqueue *queue, const struct virtqueue_chain *chain, uint32_t written)
{
    struct split_ring *split = &queue->split;
    const uint32_t slot = split->used_next++ & (queue->size - 1);
    uint32_t *element = (uint32_t *)(void *)&split->used[RING_AT + 4 * slot];
    __atomic_store_n(&element[0], htole32(chain->head), __ATOMIC_RELAXED);
    __atomic_store_n(&element[1], htole32(written), __ATOMIC_RELAXED);
    if (queue->inflight.region)
        queue->returned[queue->returned_count++] = (struct returned_chain){.head = chain->head};
    else
        split->busy[chain->head] = 0;
}

uint64_t split_ring_used_bytes(const struct virtqueue *queue)
{
    return 4 + 8 * (uint64_t)queue->size + (queue->event_idx ? 2 : 0);
}

/* Something of the used ring was written. */
static void mark(const struct virtqueue *queue, const uint16_t *at, uint64_t bytes)
{
    if (__builtin_expect(queue->log != NULL, 0))
        dirty_log_mark(queue->log, queue->log_used + (uint64_t)((const char *)at - (const char *)queue->split.used),
                       bytes);
}

void split_ring_mark_all(const struct virtqueue *queue)
{
    mark(queue, queue->split.used, split_ring_used_bytes(queue));
}

/* All that was shown since the used index was `from`. */
static void mark_shown(const struct virtqueue *queue, uint16_t from)
{
    const uint16_t *used = queue->split.used;
    const uint32_t slot = from & (queue->size - 1), count = (uint16_t)(queue->split.used_shown - from);
    const uint32_t first = count < queue->size - slot ? count : queue->size - slot; /* up to the end of the ring */
    mark(queue, &used[RING_AT + 4 * slot], 8 * (uint64_t)first);
    mark(queue, &used[RING_AT], 8 * (uint64_t)(count - first));
    mark(queue, &used[RING_INDEX], sizeof used[RING_INDEX]);
}

/* Whether the driver wants to hear of the entries since the last time; after the full barrier. */
static bool wants_call(struct virtqueue *queue)
{
    struct split_ring *split = &queue->split;
    const uint16_t count = (uint16_t)(split->used_shown - split->used_told - MUTANT(vhost_split_calls_too_few));
    split->used_told = split->used_shown;
    if (!queue->called) {
        queue->called = true;
        return true;
    }
    if (queue->event_idx)
        return event_passed(ring_load16(used_event(queue), __ATOMIC_SEQ_CST), split->used_shown, count);
    return !(ring_load16(&split->available[RING_FLAGS], __ATOMIC_SEQ_CST) & NO_INTERRUPT);
}

void split_ring_show(struct virtqueue *queue)
{
    ring_store16(&queue->split.used[RING_INDEX], queue->split.used_shown, __ATOMIC_SEQ_CST);
}

bool split_ring_publish(struct virtqueue *queue)
{
    struct split_ring *split = &queue->split;
    if (split->used_next == split->used_shown)
        return queue->called ? false : wants_call(queue);
    const uint16_t from = split->used_shown;
    split->used_shown = split->used_next;
    if (queue->inflight.region)
        inflight_split_publish(queue);
    else
        split_ring_show(queue);
    if (__builtin_expect(queue->log != NULL, 0) && !MUTANT(vhost_log_lacks_returns))
        mark_shown(queue, from);
    return wants_call(queue);
}

bool split_ring_want_kicks(struct virtqueue *queue)
{
    struct split_ring *split = &queue->split;
    if (queue->broken)
        return false;
    queue->no_kicks = false;
    uint16_t *wish = queue->event_idx ? available_event(queue) : &split->used[RING_FLAGS];
    ring_store16(wish, queue->event_idx ? split->next : 0, __ATOMIC_SEQ_CST);
    if (!MUTANT(vhost_log_lacks_the_wish))
        mark(queue, wish, sizeof *wish);
    return look(queue, __ATOMIC_SEQ_CST) != 0;
}

/* With EVENT_IDX the driver kicks when it passes the index that we ask for: one that it has passed already. */
void split_ring_want_no_kicks(struct virtqueue *queue)
{
    if (queue->no_kicks)
        return;
    uint16_t *wish = queue->event_idx ? available_event(queue) : &queue->split.used[RING_FLAGS];
    ring_store16(wish, queue->event_idx ? (uint16_t)(queue->split.next - 1) : NO_NOTIFY, __ATOMIC_RELAXED);
    mark(queue, wish, sizeof *wish);
    queue->no_kicks = true;
}
