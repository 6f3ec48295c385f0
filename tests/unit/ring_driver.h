/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The driver's side of a virtqueue, split and packed, as small as the specification allows: what a guest does. For tests of
 * the device's side; nothing of that is in here. Guest addresses are offsets into `memory`. Numbers are the machine's, which
 * must be little-endian.
 */
#ifndef FLEECE_TESTS_RING_DRIVER_H
#define FLEECE_TESTS_RING_DRIVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    DRIVER_SIZE_MAX = 32768,
    DESC_NEXT = 1,
    DESC_WRITE = 2,
    DESC_INDIRECT = 4,
    DESC_AVAIL = 0x80,
    DESC_USED = 0x8000
};

struct desc { /* split: flags, next; packed: id, flags */
    uint64_t address;
    uint32_t length;
    uint16_t a, b;
};

struct part {
    uint64_t address;
    uint32_t length;
    bool write;
};

struct driver_place { /* guest addresses */
    uint64_t descriptors, available, used;
};

struct driver {
    char *memory;
    bool packed, event_idx;
    uint16_t size;
    struct driver_place place;
    uint16_t free_count;                /* descriptors */
    uint16_t next, shown, kicked, used; /* split: free-running indexes; packed: slots */
    bool wrap, used_wrap;
    uint16_t packed_added;            /* slots since the driver last thought of a kick */
    uint16_t free_head;               /* of descriptors; packed: of ids */
    uint16_t link[DRIVER_SIZE_MAX];   /* the next free one, or (split) the next of the chain */
    uint16_t length[DRIVER_SIZE_MAX]; /* descriptors of the chain with that id */
    uint32_t cookie[DRIVER_SIZE_MAX]; /* of that id */
};

uint64_t driver_descriptors_bytes(uint16_t size);
uint64_t driver_available_bytes(uint16_t size);
uint64_t driver_used_bytes(uint16_t size);

/* The rings are zeroed there. */
void driver_init(struct driver *driver, char *memory, const struct driver_place *place, uint16_t size, bool packed,
                 bool event_idx);
/* Makes a chain; in a table at that address unless it is 0. False: there is no room. Split: driver_show() makes all of them
 * available; packed: it is available. */
bool driver_add(struct driver *driver, const struct part *parts, uint16_t count, uint64_t table, uint32_t cookie);
void driver_show(struct driver *driver);
/* Whether the device wants to be kicked for what was made available since the last call. */
bool driver_must_kick(struct driver *driver);
/* The next used chain. */
bool driver_get(struct driver *driver, uint32_t *cookie, uint32_t *written);
/* Asks to be called when the device is `ahead` chains (packed: slots) beyond the next one; true: one is there already. */
bool driver_want_calls(struct driver *driver, uint16_t ahead);
void driver_want_no_calls(struct driver *driver);

struct desc *driver_descriptor(const struct driver *driver, unsigned index);

#endif
