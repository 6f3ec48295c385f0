/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The driver's side of a virtqueue, split or packed (VIRTIO 1.2, 2.7 and 2.8). One thread. Every buffer carries the
 * driver's token; one that comes back twice, or was never given, is an error of the device.
 */
#ifndef TESTS_VHOST_RING_H
#define TESTS_VHOST_RING_H

#include <stdbool.h>

#include "guest_memory.h"

enum { RING_SIZE_MAX = 32768 };

struct fragment {
    uint64_t address;
    uint32_t length;
    bool writable;
};

struct ring {
    struct guest_memory *memory;
    unsigned index, size;
    bool packed, event_idx;
    uint64_t descriptors, driver_area, device_area; /* guest addresses */
    int kick_fd, call_fd, err_fd;

    unsigned free;      /* descriptors */
    uint16_t free_head; /* split: of the descriptors; packed: of the buffer ids */
    uint16_t *next;
    void **token; /* by head (split) or id (packed) */
    uint16_t *length;
    unsigned pending; /* buffers with the device */

    uint16_t avail_at, used_at; /* split: free-running; packed: a position in the ring */
    bool avail_wrap, used_wrap; /* packed */
    uint16_t unkicked;          /* heads (split) or descriptors (packed) since the device was told last */
    uint64_t kicks;
};

/* Its memory comes from `region`. 0 or -errno. */
int ring_init(struct ring *ring, struct guest_memory *memory, unsigned region, unsigned index, unsigned size,
              bool packed, bool event_idx);
void ring_fini(struct ring *ring);

/* Gives a buffer to the device. `table`: guest memory for an indirect table, of 16 bytes a fragment; 0: none.
 * `token`: not NULL. `direct`: so many fragments go before the table (split only). -ENOSPC: not enough descriptors. */
int ring_add(struct ring *ring, const struct fragment *fragments, unsigned count, uint64_t table, unsigned direct,
             void *token);
/* Tells the device, if it wants to be told. */
void ring_kick(struct ring *ring);
void ring_kick_always(struct ring *ring);
/* The next used buffer: 1 and its token; 0: none; -EPROTO: what the device returned was not with it. */
int ring_take(struct ring *ring, void **token, uint32_t *written);
bool ring_has_used(const struct ring *ring);

/* Asks for an interrupt at the next used buffer; true: there is one already, so don't sleep. */
bool ring_arm(struct ring *ring);
void ring_disarm(struct ring *ring);
/* Reads the event descriptor empty. */
void ring_drain_call(struct ring *ring);

/* The word of SET_VRING_BASE for a device that knows of no buffer beyond those it has used; the used ring must be empty. */
uint32_t ring_base(const struct ring *ring);

/* Descriptor `i` of the table, to write nonsense into. */
struct split_desc *ring_split_desc(const struct ring *ring, unsigned i);
struct packed_desc *ring_packed_desc(const struct ring *ring, unsigned i);
/* Split: makes `head` available, whatever it is. */
void ring_publish(struct ring *ring, uint16_t head);
uint16_t *ring_avail_idx(const struct ring *ring);
uint16_t ring_used_idx(const struct ring *ring);

#endif
