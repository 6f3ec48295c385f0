/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a virtqueue is made of, and the innermost loop: from descriptors to fragments of the guest's memory. For virtqueue.c,
 * split_ring.c, packed_ring.c and inflight.c.
 *
 * The rings are little-endian and shared with a guest that may write them at any moment: each word is loaded once, with one
 * atomic load, into a local, which is checked and then used. The in-flight region is in the machine's byte order and is read
 * when it is set, never again: what is needed of it later is kept here.
 */
#ifndef FLEECE_EXPORT_VHOST_USER_VIRTQUEUE_INTERNAL_H
#define FLEECE_EXPORT_VHOST_USER_VIRTQUEUE_INTERNAL_H

#include <endian.h>

#include "export/vhost_user/inflight.h"
#include "export/vhost_user/memory_table.h"
#include "export/vhost_user/virtqueue.h"

enum descriptor_flags {
    DESCRIPTOR_NEXT = 1,
    DESCRIPTOR_WRITE = 2, /* by the device */
    DESCRIPTOR_INDIRECT = 4,
    DESCRIPTOR_AVAILABLE = 1 << 7, /* packed */
    DESCRIPTOR_USED = 1 << 15,     /* packed */
};

struct ring_descriptor { /* as it is shared: two words, of which each is loaded and stored as a whole */
    uint64_t address;
    uint64_t rest; /* length 32; split: flags 16, next 16; packed: buffer id 16, flags 16 */
};

struct split_ring {
    struct ring_descriptor *descriptors;
    uint16_t *available; /* flags, index, the ring, used_event */
    uint16_t *used;      /* flags, index, the ring (pairs of 32 bits), avail_event */
    uint16_t next;       /* the next of the available ring that is taken */
    uint16_t seen;       /* the available index when it was looked at last: up to there no look is needed */
    uint16_t used_next;  /* the next of the used ring that is written */
    uint16_t used_shown; /* the used index that the driver sees */
    uint16_t used_told;  /* ... and when it was last decided whether to call */
    uint8_t *busy;       /* for each head: it is out */
};

struct returned_chain { /* since the last publish */
    uint16_t head, entry, count;
    uint32_t written;
};

struct packed_ring {
    struct ring_descriptor *descriptors;
    uint32_t *driver_event, *device_event;              /* offset and wrap bit 16, flags 16 */
    uint16_t next, used_next;                           /* slots: the next that is taken, the next that is written */
    bool wrap, used_wrap;                               /* the wrap counters there */
    uint32_t out;                                       /* slots of chains that are out */
    uint32_t shown;                                     /* slots since it was last decided whether to call */
    struct descriptor chain[LIMIT_VIRTQUEUE_FRAGMENTS]; /* the one that is being taken */
};

struct virtqueue {
    struct guest_memory *memory;
    const struct guest_memory_entry *hint; /* where the last look-up was right; never NULL */
    bool packed, event_idx, indirect;
    bool broken;
    bool called; /* the first publish is over */
    bool no_kicks;
    uint32_t size, chain_max; /* descriptors: of the ring, of one chain in it */
    struct split_ring split;
    struct packed_ring ring;
    struct returned_chain *returned; /* packed, or with an in-flight region; `size` of them at most */
    uint32_t returned_count;
    struct inflight inflight;
    const struct dirty_log *log; /* NULL: nobody wants to know what we write to the rings */
    uint64_t log_used;           /* the guest address that stands for the used ring */
    struct virtqueue_place place;
    char why[160]; /* it is broken */
};

/* Returns -EPROTO. */
int virtqueue_break(struct virtqueue *queue, const char *format, ...) __attribute__((format(printf, 2, 3), cold));
/* What the inlines do not do: a look-up in other regions, or across several. 0 or -EPROTO. */
int virtqueue_add_slowly(struct virtqueue *queue, struct virtqueue_chain *chain, const struct descriptor *descriptor);
/* The chain in the indirect table that `descriptor` names, behind `count` other descriptors. 0 or -EPROTO. */
int virtqueue_add_indirect(struct virtqueue *queue, struct virtqueue_chain *chain, const struct descriptor *descriptor,
                           uint32_t count);

int split_ring_place(struct virtqueue *queue, const struct guest_memory *memory, struct error *err);
int split_ring_parse(struct virtqueue *queue, uint16_t head, struct virtqueue_chain *chain);
int split_ring_take(struct virtqueue *queue, struct virtqueue_chain *chain);
void split_ring_return(struct virtqueue *queue, const struct virtqueue_chain *chain, uint32_t written);
bool split_ring_publish(struct virtqueue *queue);
bool split_ring_want_kicks(struct virtqueue *queue);
void split_ring_want_no_kicks(struct virtqueue *queue);
uint64_t split_ring_used_bytes(const struct virtqueue *queue);
void split_ring_mark_all(const struct virtqueue *queue); /* in the log, which is there: all that we may write */

/* Stores the used index, with the full barrier behind it. */
void split_ring_show(struct virtqueue *queue);

int packed_ring_place(struct virtqueue *queue, const struct guest_memory *memory, struct error *err);
int packed_ring_parse(struct virtqueue *queue, uint32_t count, struct virtqueue_chain *chain);
int packed_ring_take(struct virtqueue *queue, struct virtqueue_chain *chain);
void packed_ring_return(struct virtqueue *queue, const struct virtqueue_chain *chain, uint32_t written);
bool packed_ring_publish(struct virtqueue *queue);
void packed_ring_mark_all(const struct virtqueue *queue);
bool packed_ring_want_kicks(struct virtqueue *queue);
void packed_ring_want_no_kicks(struct virtqueue *queue);
/* A used chain, into the next slot but for its flags, which are returned; the flags, with which the driver sees it; and the
 * step behind it. */
uint16_t packed_ring_fill(struct virtqueue *queue, uint16_t id, uint32_t written);
void packed_ring_show(struct virtqueue *queue, uint32_t slot, uint16_t flags, int order);
void packed_ring_advance(struct virtqueue *queue, uint32_t count);
/* Whether the flags of a slot say that the driver has made it available, in the round of that wrap counter. */
static inline bool packed_is_available(uint16_t flags, bool wrap)
{
    return !(flags & DESCRIPTOR_AVAILABLE) != wrap && !(flags & DESCRIPTOR_USED) == wrap;
}

static inline uint16_t ring_load16(const uint16_t *at, int order)
{
    return le16toh(__atomic_load_n(at, order));
}
static inline void ring_store16(uint16_t *at, uint16_t value, int order)
{
    __atomic_store_n(at, htole16(value), order);
}
static inline uint64_t ring_load64(const uint64_t *at, int order)
{
    return le64toh(__atomic_load_n(at, order));
}

/* Orders the chain for one more fragment. False: it reads behind what it writes, or has too many. */
static inline bool chain_append(struct virtqueue_chain *chain, void *base, uint64_t length, bool write)
{
    const unsigned count = (unsigned)chain->read_count + chain->write_count;
    if (count == LIMIT_VIRTQUEUE_FRAGMENTS || (!write && chain->write_count > 0))
        return false;
    chain->iov[count] = (struct iovec){base, length};
    if (write) {
        chain->write_count++;
        chain->write_bytes += length;
    } else {
        chain->read_count++;
        chain->read_bytes += length;
    }
    return true;
}

/* One more descriptor of the chain; one of length 0 adds nothing. 0 or -EPROTO. */
static inline int virtqueue_add(struct virtqueue *queue, struct virtqueue_chain *chain,
                                const struct descriptor *descriptor)
{
    if (descriptor->length == 0)
        return 0;
    char *base = guest_memory_entry_at(queue->hint, descriptor->address, descriptor->length);
    if (__builtin_expect(base && chain_append(chain, base, descriptor->length, descriptor->flags & DESCRIPTOR_WRITE),
                         1))
        return 0;
    return virtqueue_add_slowly(queue, chain, descriptor);
}

/* The chain has all its descriptors. 0, or -EPROTO. */
static inline int virtqueue_end_chain(struct virtqueue *queue, const struct virtqueue_chain *chain)
{
    if (chain->read_bytes + chain->write_bytes > LIMIT_VIRTQUEUE_BYTES)
        return virtqueue_break(queue, "a chain has %llu bytes, more than 4 GiB",
                               (unsigned long long)(chain->read_bytes + chain->write_bytes));
    return 0;
}

static inline void chain_begin(struct virtqueue_chain *chain, uint16_t head)
{
    chain->head = head;
    chain->count = 1;
    chain->entry = 0;
    chain->read_count = chain->write_count = 0;
    chain->read_bytes = chain->write_bytes = 0;
}

/* The driver's event index, against those that went by. */
static inline bool event_passed(uint16_t event, uint16_t now, uint16_t count)
{
    return (uint16_t)(now - event - 1) < count;
}

#endif
