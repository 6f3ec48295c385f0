/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The in-flight region of one virtqueue: memory that the front-end keeps while the daemon is away, laid out as the
 * vhost-user specification has it. It says which chains were taken and not returned, and in which order.
 */
#ifndef FLEECE_EXPORT_VHOST_USER_INFLIGHT_H
#define FLEECE_EXPORT_VHOST_USER_INFLIGHT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

struct virtqueue;
struct virtqueue_chain;

struct descriptor { /* checked or not, but ours: a copy */
    uint64_t address;
    uint32_t length;
    uint16_t flags;
    uint16_t id; /* split: next */
};

struct inflight_left { /* by a predecessor */
    uint64_t counter;
    uint16_t entry;
};

struct inflight {
    void *region;               /* NULL: there is none */
    uint64_t counter;           /* of the next chain */
    struct inflight_left *left; /* oldest first */
    uint32_t left_count, left_next;
    uint16_t batch_head; /* split */
    /* Packed: what the region says of its entries, so that it need not be read again. */
    uint16_t *next, *last;
    uint16_t free_head;
};

void inflight_fini(struct inflight *inflight);
/* The next that is left; false: there is none. Split: its head. Packed: its first entry; the descriptors are copied to the
 * queue's ring.chain, `*count` of them, unchecked. */
bool inflight_split_next(struct virtqueue *queue, uint16_t *head);
bool inflight_packed_next(struct virtqueue *queue, uint16_t *entry, uint32_t *count);

/* A chain is taken. Packed: `count` descriptors of ring.chain; returns its first entry. */
void inflight_split_take(struct inflight *inflight, uint16_t head);
uint16_t inflight_packed_take(struct inflight *inflight, const struct descriptor *chain, uint32_t count);

/* All that was returned is shown to the driver, and struck off. */
void inflight_split_publish(struct virtqueue *queue);
void inflight_packed_publish(struct virtqueue *queue);

#endif
