/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The in-flight region, as the vhost-user specification lays it out ("Inflight I/O tracking"). The front-end keeps it while
 * we are away, so a kill -9 between any two of our stores must leave what recovery makes good: each chain that the driver
 * has not got back is submitted again, once, and no other, in the order in which they were taken (C10, C14). All stores here
 * are releases: none is seen, or left behind by a death, before those that come before it.
 *
 * The next chain to take is not stored: all chains that were ever taken are either used or in flight, so it follows from
 * both. A death before an entry is marked in flight leaves the chain to be taken again; nothing of it was submitted.
 *
 * Split. An entry for each head. Taken: its counter, then the mark. Published: the heads are linked into the list of
 * the last batch; the used index; the marks go; the used index is copied here. Recovery: the copy differs from the used
 * ring's index by as many chains as are at the head of that list with marks that may be too much. (The list is never
 * cut: what was returned and not published before a death is in front of the old list, and in front of nothing that
 * counts.)
 *
 * Packed. Entries with a free list, as many as the ring has slots; a chain's descriptors are copied there, because used
 * slots overwrite them. Taken: the entries at the head of the free list are filled and marked, and come off it with one
 * store of both its heads. Published, each chain on its own: its entries go back to the free list's new head; the new
 * used index and wrap counter, the old ones beside them; the slot in the ring; the mark goes; the old head; the old
 * index. Recovery looks at the slot at the old index: if the driver can see it used the step is finished, else taken
 * back; marks on the free list mean nothing. Index and wrap counter, old and new, are stored as one word: with the one
 * of one round and the other of the next, a slot that the driver has left as it was in the round before would look as
 * if it were still ours. One chain at a time, because with several one slot would not tell how many of them the driver
 * has seen.
 *
 * What the front-end hands over may be damaged or of malice: how it hangs together is checked as a whole when it is set, and
 * not read again; descriptors are checked when they are submitted again, like all others.
 */
#include "export/vhost_user/inflight.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/probe.h"
#include "base/range.h"
#include "export/vhost_user/virtqueue_internal.h"

enum { REGION_VERSION = 1, REGION_ALIGNMENT = 64 };

struct split_entry {
    uint8_t inflight, padding[5];
    uint16_t next;
    uint64_t counter;
};

struct split_region {
    uint64_t features;
    uint16_t version, size, batch_head, used;
    struct split_entry entries[];
};

struct packed_entry {
    uint8_t inflight, padding;
    uint16_t next, last, count;
    uint64_t counter;
    uint16_t id, flags;
    uint32_t length;
    uint64_t address;
};

struct packed_used { /* one word */
    uint16_t index, old_index;
    uint8_t wrap, old_wrap, padding[2];
};

struct packed_heads { /* one word, of the free list */
    uint16_t head, old_head;
};

struct packed_region {
    uint64_t features;
    uint16_t version, size;
    struct packed_heads heads;
    struct packed_used used;
    uint64_t padding;
    struct packed_entry entries[];
};

_Static_assert(sizeof(struct split_entry) == 16 && offsetof(struct split_region, entries) == 16, "as specified");
_Static_assert(sizeof(struct packed_entry) == 32 && offsetof(struct packed_region, entries) == 32, "as specified");
_Static_assert(offsetof(struct packed_region, heads) == 12 && offsetof(struct packed_region, used) == 16,
               "as specified");
_Static_assert(sizeof(struct packed_used) == 8 && sizeof(struct packed_heads) == 4, "words");

#define STORE(place, value) __atomic_store_n(&(place), (value), __ATOMIC_RELEASE)
#define LOAD(place) __atomic_load_n(&(place), __ATOMIC_RELAXED)

static void store_heads(struct packed_region *region, struct packed_heads heads)
{
    __atomic_store(&region->heads, &heads, __ATOMIC_RELEASE);
}

static void store_used(struct packed_region *region, struct packed_used used)
{
    __atomic_store(&region->used, &used, __ATOMIC_RELEASE);
}

size_t virtqueue_inflight_bytes(const struct virtqueue_features *features, uint32_t size)
{
    const size_t bytes = features->packed ? sizeof(struct packed_region) + size * sizeof(struct packed_entry)
                                          : sizeof(struct split_region) + size * sizeof(struct split_entry);
    return round_up(bytes, REGION_ALIGNMENT);
}

void inflight_fini(struct inflight *inflight)
{
    free(inflight->left);
    free(inflight->next);
    free(inflight->last);
}

static int older(const void *a, const void *b)
{
    const struct inflight_left *left = a, *right = b;
    return (left->counter > right->counter) - (left->counter < right->counter);
}

static void leave(struct inflight *inflight, uint16_t entry, uint64_t counter)
{
    inflight->left[inflight->left_count++] = (struct inflight_left){counter, entry};
}

static void sort_left(struct inflight *inflight)
{
    qsort(inflight->left, inflight->left_count, sizeof inflight->left[0], older);
    if (inflight->left_count > 0)
        inflight->counter = inflight->left[inflight->left_count - 1].counter + 1;
}

static int damaged(struct error *err, const char *what, unsigned value)
{
    return error_set(err, EINVAL, "the in-flight region is damaged: %s %u", what, value);
}

static void split_begin(struct virtqueue *queue, struct split_region *region)
{
    memset(region->entries, 0, queue->size * sizeof region->entries[0]);
    region->features = 0;
    region->size = (uint16_t)queue->size;
    region->batch_head = 0;
    region->used = queue->split.used_shown;
    STORE(region->version, REGION_VERSION);
}

static int split_recover(struct virtqueue *queue, struct split_region *region, struct error *err)
{
    struct split_ring *split = &queue->split;
    const uint16_t batch = (uint16_t)(split->used_shown - LOAD(region->used));
    uint32_t head = LOAD(region->batch_head);
    if (batch > queue->size)
        return damaged(err, "of the used ring, the last batch would be", batch);
    for (uint16_t i = 0; i < batch; i++) {
        if (head >= queue->size)
            return damaged(err, "the last batch has entry", head);
        STORE(region->entries[head].inflight, 0);
        head = LOAD(region->entries[head].next);
    }
    STORE(region->used, split->used_shown);
    queue->inflight.batch_head = LOAD(region->batch_head);
    for (uint32_t i = 0; i < queue->size; i++) {
        if (LOAD(region->entries[i].inflight)) {
            split->busy[i] = 1;
            leave(&queue->inflight, (uint16_t)i, LOAD(region->entries[i].counter));
        }
    }
    if (queue->inflight.left_count > 0)
        PROBE(vhost_split_chains_were_left);
    split->next = split->seen = (uint16_t)(split->used_shown + queue->inflight.left_count);
    return 0;
}

static void packed_begin(struct virtqueue *queue, struct packed_region *region)
{
    const struct packed_ring *ring = &queue->ring;
    memset(region->entries, 0, queue->size * sizeof region->entries[0]);
    for (uint32_t i = 0; i < queue->size; i++)
        queue->inflight.next[i] = region->entries[i].next = (uint16_t)(i + 1); /* the last: none */
    region->features = 0;
    region->size = (uint16_t)queue->size;
    store_heads(region, (struct packed_heads){0, 0});
    store_used(region, (struct packed_used){.index = ring->used_next,
                                            .old_index = ring->used_next,
                                            .wrap = ring->used_wrap,
                                            .old_wrap = ring->used_wrap});
    STORE(region->version, REGION_VERSION);
}

/* Finishes the step that the predecessor died in, or takes it back. */
static int packed_settle(struct virtqueue *queue, struct packed_region *region, struct error *err)
{
    struct packed_ring *ring = &queue->ring;
    struct packed_heads heads;
    struct packed_used used;
    __atomic_load(&region->heads, &heads, __ATOMIC_RELAXED);
    __atomic_load(&region->used, &used, __ATOMIC_RELAXED);
    if (used.index >= queue->size || used.old_index >= queue->size || used.wrap > 1 || used.old_wrap > 1)
        return damaged(err, "the used index is", used.index >= queue->size ? used.index : used.old_index);
    const uint64_t rest = ring_load64(&ring->descriptors[used.old_index].rest, __ATOMIC_ACQUIRE);
    if ((used.index != used.old_index || used.wrap != used.old_wrap) &&
        !packed_is_available((uint16_t)(rest >> 48), used.old_wrap)) {
        heads.old_head = heads.head;
        used.old_index = used.index;
        used.old_wrap = used.wrap;
    } else {
        heads.head = heads.old_head;
        used.index = used.old_index;
        used.wrap = used.old_wrap;
    }
    store_heads(region, heads);
    store_used(region, used);
    queue->inflight.free_head = heads.head;
    ring->used_next = used.index;
    ring->used_wrap = used.wrap;
    return 0;
}

/* The chain with that first entry; its length, or -EINVAL. `seen` has a byte for each entry. */
static int recover_chain(struct virtqueue *queue, const struct packed_region *region, uint32_t head, uint8_t *seen,
                         struct error *err)
{
    struct inflight *inflight = &queue->inflight;
    const uint32_t count = LOAD(region->entries[head].count);
    if (count == 0 || count > queue->chain_max)
        return damaged(err, "the number of descriptors of a chain is", count);
    for (uint32_t i = 0, at = head; i < count; i++, at = inflight->next[at]) {
        if (at >= queue->size || seen[at])
            return damaged(err, "a chain goes on at entry", at);
        seen[at] = 1;
        inflight->last[head] = (uint16_t)at;
    }
    leave(inflight, (uint16_t)head, LOAD(region->entries[head].counter));
    return (int)count;
}

/* Every entry must be on the free list or in one chain. */
static int packed_recover(struct virtqueue *queue, struct packed_region *region, uint8_t *seen, struct error *err)
{
    struct inflight *inflight = &queue->inflight;
    struct packed_ring *ring = &queue->ring;
    uint32_t spare = 0, out = 0;
    for (uint32_t i = 0; i < queue->size; i++)
        inflight->next[i] = LOAD(region->entries[i].next);
    for (uint32_t at = inflight->free_head; at != queue->size; at = inflight->next[at], spare++) {
        if (at > queue->size || seen[at])
            return damaged(err, "the free list goes on at entry", at);
        seen[at] = 1;
        STORE(region->entries[at].inflight, 0);
    }
    for (uint32_t head = 0; head < queue->size; head++) {
        const bool marked = !seen[head] && LOAD(region->entries[head].inflight);
        const int count = marked ? recover_chain(queue, region, head, seen, err) : 0;
        if (count < 0)
            return count;
        out += (uint32_t)count;
    }
    if (spare + out != queue->size)
        return damaged(err, "entries that are neither free nor in flight:", queue->size - spare - out);
    const uint32_t next = ring->used_next + out;
    if (out > 0)
        PROBE(vhost_packed_chains_were_left);
    ring->out = out;
    ring->next = (uint16_t)(next < queue->size ? next : next - queue->size);
    ring->wrap = next < queue->size ? ring->used_wrap : !ring->used_wrap;
    return 0;
}

static int recover(struct virtqueue *queue, void *region, struct error *err)
{
    if (!queue->packed)
        return split_recover(queue, region, err);
    if (packed_settle(queue, region, err) < 0)
        return -EINVAL;
    uint8_t *seen = calloc(queue->size, 1);
    const int status = seen ? packed_recover(queue, region, seen, err) : error_set(err, ENOMEM, "no memory");
    free(seen);
    return status;
}

static int allocate(struct virtqueue *queue, struct error *err)
{
    struct inflight *inflight = &queue->inflight;
    const uint32_t size = queue->size;
    inflight->left = calloc(size, sizeof inflight->left[0]);
    inflight->next = queue->packed ? calloc(size, sizeof inflight->next[0]) : NULL;
    inflight->last = queue->packed ? calloc(size, sizeof inflight->last[0]) : NULL;
    if (inflight->left && (!queue->packed || (inflight->next && inflight->last)))
        return 0;
    return error_set(err, ENOMEM, "no memory for what is in flight");
}

int virtqueue_set_inflight(struct virtqueue *queue, void *region, size_t bytes, struct error *err)
{
    const struct virtqueue_features features = {.packed = queue->packed};
    const size_t needed = virtqueue_inflight_bytes(&features, queue->size);
    const struct split_region *head = region; /* both begin alike */
    assert(!queue->inflight.region && !queue->inflight.left);
    if (bytes < needed || ((uintptr_t)region & 7) != 0)
        return error_set(err, EINVAL,
                         "the in-flight region of a virtqueue of %u descriptors has %zu bytes at %p, not %zu at a "
                         "multiple of 8",
                         queue->size, bytes, region, needed);
    const uint16_t version = __atomic_load_n(&head->version, __ATOMIC_ACQUIRE), size = LOAD(head->size);
    const uint64_t region_features = LOAD(head->features);
    if (version > REGION_VERSION)
        return error_set(err, EINVAL, "the in-flight region is of version %u, not %d", version, REGION_VERSION);
    if (version > 0 && (size != queue->size || region_features != 0))
        return error_set(err, EINVAL,
                         "the in-flight region is for %u descriptors and features 0x%llx, not for %u and none", size,
                         (unsigned long long)region_features, queue->size);
    if (allocate(queue, err) < 0)
        return -ENOMEM;
    if (version == 0 && queue->packed)
        packed_begin(queue, region);
    else if (version == 0)
        split_begin(queue, region);
    else if (recover(queue, region, err) < 0)
        return -EINVAL;
    sort_left(&queue->inflight);
    queue->inflight.region = region;
    return 0;
}

void virtqueue_forget_inflight(void *region)
{
    struct split_region *head = region; /* both begin alike */
    STORE(head->version, 0);
}

static bool next_left(struct inflight *inflight, uint16_t *entry)
{
    if (inflight->left_next == inflight->left_count)
        return false;
    *entry = inflight->left[inflight->left_next++].entry;
    return true;
}

bool inflight_split_next(struct virtqueue *queue, uint16_t *head)
{
    return next_left(&queue->inflight, head);
}

bool inflight_packed_next(struct virtqueue *queue, uint16_t *entry, uint32_t *count)
{
    struct inflight *inflight = &queue->inflight;
    const struct packed_region *region = inflight->region;
    if (!next_left(inflight, entry))
        return false;
    *count = 0;
    for (uint16_t at = *entry;; at = inflight->next[at]) {
        const struct packed_entry *from = &region->entries[at];
        queue->ring.chain[(*count)++] = (struct descriptor){LOAD(from->address), LOAD(from->length), LOAD(from->flags),
                                                            LOAD(from->id)};
        if (at == inflight->last[*entry])
            return true;
    }
}

void inflight_split_take(struct inflight *inflight, uint16_t head)
{
    struct split_entry *entry = &((struct split_region *)inflight->region)->entries[head];
    STORE(entry->counter, inflight->counter++);
    if (!MUTANT(vhost_split_mark_is_missing))
        STORE(entry->inflight, 1);
}

void inflight_split_publish(struct virtqueue *queue)
{
    struct inflight *inflight = &queue->inflight;
    struct split_region *region = inflight->region;
    for (uint32_t i = 0; i < queue->returned_count; i++) {
        const uint16_t head = queue->returned[i].head;
        STORE(region->entries[head].next, inflight->batch_head);
        STORE(region->batch_head, head);
        inflight->batch_head = head;
    }
    split_ring_show(queue);
    for (uint32_t i = 0; i < queue->returned_count; i++) {
        const uint16_t head = queue->returned[i].head;
        if (!MUTANT(vhost_split_mark_stays))
            STORE(region->entries[head].inflight, 0);
        queue->split.busy[head] = 0;
    }
    if (!MUTANT(vhost_split_used_is_not_copied))
        STORE(region->used, queue->split.used_shown);
    queue->returned_count = 0;
}

uint16_t inflight_packed_take(struct inflight *inflight, const struct descriptor *chain, uint32_t count)
{
    struct packed_region *region = inflight->region;
    const uint16_t head = inflight->free_head;
    uint16_t at = head;
    for (uint32_t i = 0; i < count; i++) {
        struct packed_entry *entry = &region->entries[at];
        STORE(entry->address, chain[i].address);
        STORE(entry->length, chain[i].length);
        STORE(entry->flags, chain[i].flags);
        STORE(entry->id, chain[i].id);
        inflight->last[head] = at;
        at = inflight->next[at];
    }
    STORE(region->entries[head].last, inflight->last[head]);
    STORE(region->entries[head].count, (uint16_t)count);
    STORE(region->entries[head].counter, inflight->counter++);
    if (!MUTANT(vhost_packed_mark_is_missing))
        STORE(region->entries[head].inflight, 1);
    store_heads(region, (struct packed_heads){at, at});
    inflight->free_head = at;
    return head;
}

/* `order`: of the store that the driver looks for. */
static void publish_one(struct virtqueue *queue, const struct returned_chain *one, int order)
{
    struct inflight *inflight = &queue->inflight;
    struct packed_region *region = inflight->region;
    struct packed_ring *ring = &queue->ring;
    const uint16_t slot = ring->used_next, last = inflight->last[one->entry];
    const uint16_t flags = packed_ring_fill(queue, one->head, one->written);
    struct packed_used used = {.old_index = slot, .old_wrap = ring->used_wrap};
    STORE(region->entries[last].next, inflight->free_head);
    inflight->next[last] = inflight->free_head;
    store_heads(region, (struct packed_heads){one->entry, inflight->free_head});
    inflight->free_head = one->entry;
    packed_ring_advance(queue, one->count);
    used.index = ring->used_next;
    used.wrap = ring->used_wrap;
    store_used(region, used);
    packed_ring_show(queue, slot, flags, order);
    STORE(region->entries[one->entry].inflight, 0);
    if (!MUTANT(vhost_packed_step_is_not_ended))
        store_heads(region, (struct packed_heads){one->entry, one->entry});
    used.old_index = used.index;
    used.old_wrap = used.wrap;
    store_used(region, used);
}

void inflight_packed_publish(struct virtqueue *queue)
{
    for (uint32_t i = 0; i < queue->returned_count; i++)
        publish_one(queue, &queue->returned[i], i + 1 == queue->returned_count ? __ATOMIC_SEQ_CST : __ATOMIC_RELEASE);
    queue->returned_count = 0;
}
