// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Order, in both kinds: what a buffer consists of is written first, then, with a release store, the one word that makes it
 * available (the split ring's avail index; the flags of a packed buffer's first descriptor); then a full barrier; then the
 * device's wish to be told is read. In the other direction the used index or the used flags are loaded with acquire.
 *
 * The split ring's descriptors are kept in a list, last freed first taken, so that chains soon jump all over the table.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "ring.h"

struct split_avail {
    uint16_t flags, idx, ring[]; /* and used_event */
};

struct split_used {
    uint16_t flags, idx;
    struct split_used_element ring[]; /* and avail_event */
};

static struct split_avail *avail_of(const struct ring *ring)
{
    return guest_at(ring->memory, ring->driver_area);
}

static struct split_used *used_of(const struct ring *ring)
{
    return guest_at(ring->memory, ring->device_area);
}

static uint16_t *used_event_of(const struct ring *ring)
{
    return &avail_of(ring)->ring[ring->size];
}

static uint16_t *avail_event_of(const struct ring *ring)
{
    return (uint16_t *)(void *)&used_of(ring)->ring[ring->size];
}

static struct packed_event *driver_event_of(const struct ring *ring)
{
    return guest_at(ring->memory, ring->driver_area);
}

static struct packed_event *device_event_of(const struct ring *ring)
{
    return guest_at(ring->memory, ring->device_area);
}

struct split_desc *ring_split_desc(const struct ring *ring, unsigned i)
{
    return (struct split_desc *)guest_at(ring->memory, ring->descriptors) + i;
}

struct packed_desc *ring_packed_desc(const struct ring *ring, unsigned i)
{
    return (struct packed_desc *)guest_at(ring->memory, ring->descriptors) + i;
}

int ring_init(struct ring *ring, struct guest_memory *memory, unsigned region, unsigned index, unsigned size,
              bool packed, bool event_idx)
{
    assert(size >= 1 && size <= RING_SIZE_MAX && (packed || (size & (size - 1)) == 0));
    *ring = (struct ring){.memory = memory, .index = index, .size = size, .packed = packed, .event_idx = event_idx};
    ring->descriptors = guest_take(memory, region, 16 * size, 16);
    ring->driver_area = guest_take(memory, region, packed ? 4 : 6 + 2 * size, packed ? 4 : 2);
    ring->device_area = guest_take(memory, region, packed ? 4 : 6 + 8 * size, 4);
    ring->free = size;
    ring->avail_wrap = ring->used_wrap = true;
    ring->next = calloc(size, sizeof(ring->next[0]));
    ring->token = calloc(size, sizeof(ring->token[0]));
    ring->length = calloc(size, sizeof(ring->length[0]));
    for (unsigned i = 0; ring->next && i < size; i++)
        ring->next[i] = (uint16_t)(i + 1);
    ring->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    ring->call_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    ring->err_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (!ring->next || !ring->token || !ring->length)
        return -ENOMEM;
    return ring->kick_fd < 0 || ring->call_fd < 0 || ring->err_fd < 0 ? -errno : 0;
}

void ring_fini(struct ring *ring)
{
    if (!ring->memory)
        return;
    close(ring->kick_fd);
    close(ring->call_fd);
    close(ring->err_fd);
    free(ring->next);
    free(ring->token);
    free(ring->length);
    ring->memory = NULL;
}

void ring_publish(struct ring *ring, uint16_t head)
{
    struct split_avail *avail = avail_of(ring);
    avail->ring[ring->avail_at % ring->size] = head;
    ring->avail_at++;
    ring->unkicked++;
    __atomic_store_n(&avail->idx, ring->avail_at, __ATOMIC_RELEASE);
}

uint16_t *ring_avail_idx(const struct ring *ring)
{
    return &avail_of(ring)->idx;
}

uint16_t ring_used_idx(const struct ring *ring)
{
    return __atomic_load_n(&used_of(ring)->idx, __ATOMIC_ACQUIRE);
}

static uint16_t take_free(struct ring *ring)
{
    uint16_t taken = ring->free_head;
    assert(taken < ring->size);
    ring->free_head = ring->next[taken];
    return taken;
}

static void split_table(struct ring *ring, const struct fragment *fragments, unsigned count, uint64_t table)
{
    struct split_desc *desc = guest_at(ring->memory, table);
    for (unsigned i = 0; i < count; i++) {
        unsigned more = i + 1 < count ? DESC_NEXT : 0;
        desc[i] = (struct split_desc){fragments[i].address, fragments[i].length,
                                      (uint16_t)(more | (fragments[i].writable ? DESC_WRITE : 0)),
                                      (uint16_t)(more ? i + 1 : 0)};
    }
}

static void split_add(struct ring *ring, const struct fragment *fragments, unsigned count, uint64_t table,
                      unsigned direct, void *token)
{
    if (table)
        split_table(ring, fragments + direct, count - direct, table);
    unsigned used = table ? direct + 1 : count;
    uint16_t head = 0, last = 0;
    for (unsigned i = 0; i < used; i++) {
        uint16_t at = take_free(ring);
        struct split_desc *desc = ring_split_desc(ring, at);
        *desc = (struct split_desc){fragments[i].address, fragments[i].length, fragments[i].writable ? DESC_WRITE : 0,
                                    0};
        if (table && i == direct)
            *desc = (struct split_desc){table, 16 * (count - direct), DESC_INDIRECT, 0};
        if (i == 0) {
            head = at;
        } else {
            ring_split_desc(ring, last)->next = at;
            ring_split_desc(ring, last)->flags |= DESC_NEXT;
            ring->next[last] = at;
        }
        last = at;
    }
    ring->free -= used;
    ring->length[head] = (uint16_t)used;
    ring->token[head] = token;
    ring->pending++;
    ring_publish(ring, head);
}

static void packed_table(struct ring *ring, const struct fragment *fragments, unsigned count, uint64_t table)
{
    struct packed_desc *desc = guest_at(ring->memory, table);
    for (unsigned i = 0; i < count; i++)
        desc[i] = (struct packed_desc){fragments[i].address, fragments[i].length, 0,
                                       fragments[i].writable ? DESC_WRITE : 0};
}

static void packed_add(struct ring *ring, const struct fragment *fragments, unsigned count, uint64_t table, void *token)
{
    if (table)
        packed_table(ring, fragments, count, table);
    unsigned used = table ? 1 : count;
    uint16_t id = take_free(ring), first_at = ring->avail_at, first_flags = 0;
    for (unsigned i = 0; i < used; i++) {
        struct packed_desc *desc = ring_packed_desc(ring, ring->avail_at);
        unsigned flags = (ring->avail_wrap ? DESC_AVAIL : DESC_USED) | (i + 1 < used ? DESC_NEXT : 0);
        if (table)
            flags |= DESC_INDIRECT;
        else if (fragments[i].writable)
            flags |= DESC_WRITE;
        desc->addr = table ? table : fragments[i].address;
        desc->len = table ? 16 * count : fragments[i].length;
        desc->id = id;
        if (i == 0)
            first_flags = (uint16_t)flags;
        else
            desc->flags = (uint16_t)flags;
        if (++ring->avail_at == ring->size) {
            ring->avail_at = 0;
            ring->avail_wrap = !ring->avail_wrap;
        }
    }
    ring->free -= used;
    ring->length[id] = (uint16_t)used;
    ring->token[id] = token;
    ring->pending++;
    ring->unkicked = (uint16_t)(ring->unkicked + used);
    __atomic_store_n(&ring_packed_desc(ring, first_at)->flags, first_flags, __ATOMIC_RELEASE);
}

int ring_add(struct ring *ring, const struct fragment *fragments, unsigned count, uint64_t table, unsigned direct,
             void *token)
{
    assert(count >= 1 && token && direct < count && (direct == 0 || (table && !ring->packed)));
    if (ring->free < (table ? direct + 1 : count))
        return -ENOSPC;
    if (ring->packed)
        packed_add(ring, fragments, count, table, token);
    else
        split_add(ring, fragments, count, table, direct, token);
    return 0;
}

/* Has the other side's event been passed by the step from `old` to `new`? */
static bool event_passed(uint16_t event, uint16_t new, uint16_t old)
{
    return (uint16_t)(new - event - 1) < (uint16_t)(new - old);
}

static bool kick_wanted(const struct ring *ring)
{
    if (!ring->packed) {
        if (!ring->event_idx)
            return !(__atomic_load_n(&used_of(ring)->flags, __ATOMIC_RELAXED) & 1);
        return event_passed(__atomic_load_n(avail_event_of(ring), __ATOMIC_RELAXED), ring->avail_at,
                            (uint16_t)(ring->avail_at - ring->unkicked));
    }
    struct packed_event event;
    uint32_t word = __atomic_load_n((uint32_t *)(void *)device_event_of(ring), __ATOMIC_RELAXED);
    memcpy(&event, &word, sizeof(event));
    if ((event.flags & 3) != EVENTS_DESC)
        return (event.flags & 3) != EVENTS_DISABLE;
    /* Positions of this round; those of the round before are negative. */
    int at = event.desc & 0x7fff;
    if ((event.desc >> 15) != ring->avail_wrap)
        at -= (int)ring->size;
    return event_passed((uint16_t)at, ring->avail_at, (uint16_t)(ring->avail_at - ring->unkicked));
}

void ring_kick_always(struct ring *ring)
{
    uint64_t one = 1;
    ring->unkicked = 0;
    ring->kicks++;
    if (write(ring->kick_fd, &one, sizeof(one)) != sizeof(one))
        assert(errno == EAGAIN);
}

void ring_kick(struct ring *ring)
{
    if (ring->unkicked == 0)
        return;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (kick_wanted(ring))
        ring_kick_always(ring);
    ring->unkicked = 0;
}

bool ring_has_used(const struct ring *ring)
{
    if (!ring->packed)
        return ring_used_idx(ring) != ring->used_at;
    uint16_t flags = __atomic_load_n(&ring_packed_desc(ring, ring->used_at)->flags, __ATOMIC_ACQUIRE);
    return !!(flags & DESC_AVAIL) == ring->used_wrap && !!(flags & DESC_USED) == ring->used_wrap;
}

static int split_take(struct ring *ring, void **token, uint32_t *written)
{
    struct split_used_element *element = &used_of(ring)->ring[ring->used_at % ring->size];
    uint32_t head = element->id;
    if (head >= ring->size || !ring->token[head])
        return -EPROTO;
    *token = ring->token[head];
    *written = element->len;
    ring->used_at++;
    uint16_t last = (uint16_t)head;
    for (unsigned i = 1; i < ring->length[head]; i++)
        last = ring->next[last];
    ring->next[last] = ring->free_head;
    ring->free_head = (uint16_t)head;
    ring->free += ring->length[head];
    ring->token[head] = NULL;
    return 1;
}

static int packed_take(struct ring *ring, void **token, uint32_t *written)
{
    struct packed_desc *desc = ring_packed_desc(ring, ring->used_at);
    uint16_t id = desc->id;
    if (id >= ring->size || !ring->token[id])
        return -EPROTO;
    *token = ring->token[id];
    *written = desc->flags & DESC_WRITE ? desc->len : 0;
    unsigned at = ring->used_at + ring->length[id];
    if (at >= ring->size) {
        at -= ring->size;
        ring->used_wrap = !ring->used_wrap;
    }
    ring->used_at = (uint16_t)at;
    ring->free += ring->length[id];
    ring->next[id] = ring->free_head;
    ring->free_head = id;
    ring->token[id] = NULL;
    return 1;
}

int ring_take(struct ring *ring, void **token, uint32_t *written)
{
    if (!ring_has_used(ring))
        return 0;
    int status = ring->packed ? packed_take(ring, token, written) : split_take(ring, token, written);
    if (status == 1)
        ring->pending--;
    return status;
}

bool ring_arm(struct ring *ring)
{
    if (!ring->packed) {
        if (ring->event_idx)
            __atomic_store_n(used_event_of(ring), ring->used_at, __ATOMIC_RELAXED);
        else
            __atomic_store_n(&avail_of(ring)->flags, 0, __ATOMIC_RELAXED);
    } else {
        struct packed_event event = {0, EVENTS_ENABLE};
        if (ring->event_idx)
            event = (struct packed_event){(uint16_t)(ring->used_at | (ring->used_wrap ? 0x8000 : 0)), EVENTS_DESC};
        uint32_t word;
        memcpy(&word, &event, sizeof(word));
        __atomic_store_n((uint32_t *)(void *)driver_event_of(ring), word, __ATOMIC_RELAXED);
    }
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return ring_has_used(ring);
}

void ring_disarm(struct ring *ring)
{
    if (ring->packed)
        __atomic_store_n(&driver_event_of(ring)->flags, EVENTS_DISABLE, __ATOMIC_RELAXED);
    else if (ring->event_idx) /* as far away as can be */
        __atomic_store_n(used_event_of(ring), (uint16_t)(ring->used_at - 1), __ATOMIC_RELAXED);
    else
        __atomic_store_n(&avail_of(ring)->flags, 1, __ATOMIC_RELAXED);
}

void ring_drain_call(struct ring *ring)
{
    uint64_t count;
    while (read(ring->call_fd, &count, sizeof(count)) == (ssize_t)sizeof(count))
        ;
}

uint32_t ring_base(const struct ring *ring)
{
    if (!ring->packed)
        return ring->used_at;
    uint32_t at = ring->used_at | (ring->used_wrap ? 0x8000 : 0);
    return at | at << 16;
}
