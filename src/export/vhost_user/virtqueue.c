/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What split and packed queues have in common: life, memory, the chain of fragments, indirect tables.
 *
 * A chain of descriptors becomes fragments in our address space. The common case is inline (virtqueue_internal.h): one
 * subtraction and two comparisons with the region where the last look-up was right. An indirect table is walked where
 * it lies when it is in one piece and aligned, else from a copy; either way each of its words is loaded once.
 */
#include "export/vhost_user/virtqueue.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/probe.h"
#include "export/vhost_user/virtqueue_internal.h"

int virtqueue_break(struct virtqueue *queue, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(queue->why, sizeof queue->why, format, arguments);
    va_end(arguments);
    queue->broken = true;
    return -EPROTO;
}

int virtqueue_add_slowly(struct virtqueue *queue, struct virtqueue_chain *chain, const struct descriptor *descriptor)
{
    const bool write = descriptor->flags & DESCRIPTOR_WRITE;
    struct iovec parts[LIMIT_VIRTQUEUE_FRAGMENTS];
    const int count = guest_memory_fragments(queue->memory, descriptor->address, descriptor->length, parts,
                                             LIMIT_VIRTQUEUE_FRAGMENTS);
    if (count == -EFAULT)
        return virtqueue_break(queue, "a descriptor of %u bytes at 0x%llx is outside of the guest's memory",
                               descriptor->length, (unsigned long long)descriptor->address);
    if (!write && chain->write_count > 0)
        return virtqueue_break(queue, "a chain has a descriptor that the device reads behind one that it writes");
    if (count > 1)
        PROBE(vhost_descriptor_over_regions);
    bool fits = count >= 0;
    for (int i = 0; i < count && fits; i++)
        fits = chain_append(chain, parts[i].iov_base, parts[i].iov_len, write);
    if (!fits)
        return virtqueue_break(queue, "a chain has more than %d fragments", LIMIT_VIRTQUEUE_FRAGMENTS);
    queue->hint = guest_memory_find(queue->memory, descriptor->address);
    return 0;
}

/* The table in one piece of memory that is ours to load from: where it is, or the copy. NULL: it is outside of memory. */
static const struct ring_descriptor *find_table(const struct virtqueue *queue, const struct descriptor *descriptor,
                                                struct ring_descriptor *copy)
{
    const char *base = guest_memory_entry_at(queue->hint, descriptor->address, descriptor->length);
    if (base && ((uintptr_t)base & (_Alignof(struct ring_descriptor) - 1)) == 0)
        return (const struct ring_descriptor *)(const void *)base;
    PROBE(vhost_table_is_copied);
    if (guest_memory_read(queue->memory, descriptor->address, copy, descriptor->length) < 0)
        return NULL;
    return copy;
}

/* In a packed queue the entries are one behind the other, and all flags but one mean nothing. */
static int add_sequence(struct virtqueue *queue, struct virtqueue_chain *chain, const struct ring_descriptor *table,
                        uint32_t entries)
{
    for (uint32_t i = 0; i < entries; i++) {
        const uint64_t rest = ring_load64(&table[i].rest, __ATOMIC_RELAXED);
        const struct descriptor part = {ring_load64(&table[i].address, __ATOMIC_RELAXED), (uint32_t)rest,
                                        (uint16_t)(rest >> 48), 0};
        if (virtqueue_add(queue, chain, &part) < 0)
            return -EPROTO;
    }
    return 0;
}

static int add_linked(struct virtqueue *queue, struct virtqueue_chain *chain, const struct ring_descriptor *table,
                      uint32_t entries)
{
    uint32_t index = 0;
    for (uint32_t count = 0; count < entries; count++) {
        const uint64_t rest = ring_load64(&table[index].rest, __ATOMIC_RELAXED);
        const struct descriptor part = {ring_load64(&table[index].address, __ATOMIC_RELAXED), (uint32_t)rest,
                                        (uint16_t)(rest >> 32), (uint16_t)(rest >> 48)};
        if (part.flags & DESCRIPTOR_INDIRECT)
            return virtqueue_break(queue, "an indirect table has a descriptor of another one");
        if (virtqueue_add(queue, chain, &part) < 0)
            return -EPROTO;
        if (!(part.flags & DESCRIPTOR_NEXT))
            return 0;
        if (part.id >= entries)
            return virtqueue_break(queue, "an indirect table of %u descriptors goes on at number %u", entries, part.id);
        index = part.id;
    }
    return virtqueue_break(queue, "the chain in an indirect table of %u descriptors is a loop", entries);
}

int virtqueue_add_indirect(struct virtqueue *queue, struct virtqueue_chain *chain, const struct descriptor *descriptor,
                           uint32_t count)
{
    struct ring_descriptor copy[LIMIT_VIRTQUEUE_FRAGMENTS];
    const uint32_t entries = descriptor->length / (uint32_t)sizeof(struct ring_descriptor);
    if (!queue->indirect)
        return virtqueue_break(queue, "a descriptor is of an indirect table, a feature that was not negotiated");
    if (descriptor->flags & DESCRIPTOR_NEXT)
        return virtqueue_break(queue, "a descriptor of an indirect table is not the last of its chain");
    if (entries == 0 || descriptor->length % sizeof(struct ring_descriptor) != 0)
        return virtqueue_break(queue, "an indirect table has %u bytes, not a multiple of %zu", descriptor->length,
                               sizeof(struct ring_descriptor));
    if (entries + count > LIMIT_VIRTQUEUE_FRAGMENTS)
        return virtqueue_break(queue, "a chain with an indirect table has %u descriptors, more than %d",
                               entries + count, LIMIT_VIRTQUEUE_FRAGMENTS);
    const struct ring_descriptor *table = find_table(queue, descriptor, copy);
    if (!table)
        return virtqueue_break(queue, "an indirect table of %u bytes at 0x%llx is outside of the guest's memory",
                               descriptor->length, (unsigned long long)descriptor->address);
    return queue->packed ? add_sequence(queue, chain, table, entries) : add_linked(queue, chain, table, entries);
}

static int place_rings(struct virtqueue *queue, struct guest_memory *memory, struct error *err)
{
    if (guest_memory_region_count(memory) == 0)
        return error_set(err, EFAULT, "the guest has no memory");
    const int status = queue->packed ? packed_ring_place(queue, memory, err) : split_ring_place(queue, memory, err);
    if (status == 0) {
        struct guest_memory *old = queue->memory;
        queue->memory = guest_memory_ref(memory);
        queue->hint = &memory->entries[0];
        guest_memory_unref(old);
    }
    return status;
}

static int check_size(const struct virtqueue_features *features, uint32_t size, struct error *err)
{
    if (size == 0 || size > LIMIT_VIRTQUEUE_SIZE)
        return error_set(err, EINVAL, "a virtqueue of %u descriptors, not 1 to %d", size, LIMIT_VIRTQUEUE_SIZE);
    if (!features->packed && (size & (size - 1)) != 0)
        return error_set(err, EINVAL, "a split virtqueue of %u descriptors, which is no power of two", size);
    return 0;
}

/* A half that is 0 above another is of a front-end that knows of one index only: both are the same in a queue at rest. */
static int set_packed_base(struct packed_ring *ring, uint32_t size, uint32_t base, struct error *err)
{
    const uint32_t next = base & 0xffff, used = base >> 16 ? base >> 16 : next;
    ring->next = next & 0x7fff;
    ring->wrap = next >> 15;
    ring->used_next = used & 0x7fff;
    ring->used_wrap = used >> 15;
    if (ring->next < size && ring->used_next < size)
        return 0;
    return error_set(err, EINVAL, "a packed virtqueue of %u descriptors cannot begin at 0x%x", size, base);
}

struct virtqueue *virtqueue_create(const struct virtqueue_features *features, struct guest_memory *memory,
                                   const struct virtqueue_place *place, uint32_t size, uint32_t base, struct error *err)
{
    if (check_size(features, size, err) < 0)
        return NULL;
    struct virtqueue *queue = calloc(1, sizeof *queue);
    if (queue) {
        queue->split.busy = calloc(size, sizeof queue->split.busy[0]);
        queue->returned = calloc(size, sizeof queue->returned[0]);
    }
    if (!queue || !queue->split.busy || !queue->returned) {
        error_set(err, ENOMEM, "no memory for a virtqueue");
        virtqueue_destroy(queue);
        return NULL;
    }
    queue->packed = features->packed;
    queue->event_idx = features->event_idx;
    queue->indirect = features->indirect;
    queue->size = size;
    queue->chain_max = size < LIMIT_VIRTQUEUE_FRAGMENTS ? size : LIMIT_VIRTQUEUE_FRAGMENTS;
    queue->place = *place;
    int status = place_rings(queue, memory, err);
    if (status == 0 && queue->packed)
        status = set_packed_base(&queue->ring, size, base, err);
    if (status < 0) {
        virtqueue_destroy(queue);
        return NULL;
    }
    if (!queue->packed) {
        struct split_ring *split = &queue->split;
        split->next = split->seen = (uint16_t)base;
        split->used_next = split->used_shown = split->used_told = ring_load16(&split->used[1], __ATOMIC_RELAXED);
    }
    return queue;
}

void virtqueue_destroy(struct virtqueue *queue)
{
    if (!queue)
        return;
    inflight_fini(&queue->inflight);
    guest_memory_unref(queue->memory);
    free(queue->split.busy);
    free(queue->returned);
    free(queue);
}

int virtqueue_set_memory(struct virtqueue *queue, struct guest_memory *memory, struct error *err)
{
    return place_rings(queue, memory, err);
}

int virtqueue_set_log(struct virtqueue *queue, const struct dirty_log *log, uint64_t used, struct error *err)
{
    const uint64_t bytes = queue->packed ? 0 : split_ring_used_bytes(queue);
    if (log && (used > UINT64_MAX - bytes || !dirty_log_covers(log, used + bytes)))
        return error_set(err, EINVAL, "its used ring counts at 0x%llx, which is behind the end of the log",
                         (unsigned long long)used);
    queue->log = log;
    queue->log_used = used;
    if (log && !MUTANT(vhost_log_lacks_what_was_left)) {
        if (queue->packed)
            packed_ring_mark_all(queue);
        else
            split_ring_mark_all(queue);
    }
    return 0;
}

uint32_t virtqueue_base(const struct virtqueue *queue)
{
    const struct packed_ring *ring = &queue->ring;
    if (!queue->packed)
        return queue->split.next;
    return ring->next | (uint32_t)ring->wrap << 15 | (uint32_t)ring->used_next << 16 | (uint32_t)ring->used_wrap << 31;
}

const char *virtqueue_broken(const struct virtqueue *queue)
{
    return queue->broken ? queue->why : NULL;
}

/* Of a chain that was parsed without an error. */
static int finish(struct virtqueue *queue, struct virtqueue_chain *chain, int status)
{
    if (status == 1)
        chain->memory = guest_memory_ref(queue->memory);
    return status;
}

int virtqueue_resubmit(struct virtqueue *queue, struct virtqueue_chain *chain)
{
    uint16_t entry = 0;
    uint32_t count = 0;
    if (queue->broken)
        return -EPROTO;
    int status;
    if (!queue->packed) {
        if (!inflight_split_next(queue, &entry))
            return 0;
        status = split_ring_parse(queue, entry, chain);
    } else {
        if (!inflight_packed_next(queue, &entry, &count))
            return 0;
        status = packed_ring_parse(queue, count, chain);
        chain->entry = entry;
    }
    return finish(queue, chain, status < 0 ? status : 1);
}

bool virtqueue_is_resubmitting(const struct virtqueue *queue)
{
    return queue->inflight.left_next < queue->inflight.left_count;
}

int virtqueue_take(struct virtqueue *queue, struct virtqueue_chain *chain)
{
    if (__builtin_expect(queue->broken, 0))
        return -EPROTO;
    return finish(queue, chain, queue->packed ? packed_ring_take(queue, chain) : split_ring_take(queue, chain));
}

void virtqueue_return(struct virtqueue *queue, struct virtqueue_chain *chain, uint32_t written)
{
    if (queue->packed)
        packed_ring_return(queue, chain, written);
    else
        split_ring_return(queue, chain, written);
    virtqueue_drop(chain);
}

void virtqueue_drop(struct virtqueue_chain *chain)
{
    assert(chain->memory);
    guest_memory_unref(chain->memory);
    chain->memory = NULL;
}

bool virtqueue_publish(struct virtqueue *queue)
{
    return queue->packed ? packed_ring_publish(queue) : split_ring_publish(queue);
}

bool virtqueue_want_kicks(struct virtqueue *queue)
{
    return queue->packed ? packed_ring_want_kicks(queue) : split_ring_want_kicks(queue);
}

void virtqueue_want_no_kicks(struct virtqueue *queue)
{
    if (queue->packed)
        packed_ring_want_no_kicks(queue);
    else
        split_ring_want_no_kicks(queue);
}
