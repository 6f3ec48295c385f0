/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The memory of a guest: memfds, each a region of guest-physical addresses, which begin at 0. One stretch of our own
 * addresses covers them all with their gaps, so that guest_at() is an addition; a gap is not accessible.
 */
#ifndef TESTS_VHOST_GUEST_MEMORY_H
#define TESTS_VHOST_GUEST_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "wire.h"

enum { GUEST_REGIONS = 8 };

struct guest_region {
    uint64_t guest, size, offset; /* offset: where it begins in its file */
    int fd;
    uint64_t taken, limit; /* bytes given out from its beginning, and how far that may go */
};

struct guest_memory {
    struct guest_region regions[GUEST_REGIONS];
    unsigned count;
    char *base;
    uint64_t span;
};

/* `count` regions of `region_bytes` each (a multiple of the page size), `gap` bytes between them. Each has a file of its
 * own, or a place in one that holds them all; they can be sealed. 0 or -errno. */
int guest_memory_init(struct guest_memory *memory, unsigned count, uint64_t region_bytes, uint64_t gap, bool one_file);
void guest_memory_fini(struct guest_memory *memory);

static inline void *guest_at(const struct guest_memory *memory, uint64_t address)
{
    return memory->base + address;
}

static inline uint64_t guest_user(const struct guest_memory *memory, uint64_t address)
{
    return (uint64_t)(uintptr_t)memory->base + address;
}

/* Bytes of a region, zeroed, never given back. A region that is too small ends the program: the caller sized it. */
uint64_t guest_take(struct guest_memory *memory, unsigned region, uint64_t size, uint64_t alignment);
/* Bytes of which the first half lies at the very end of `region` and the other at the beginning of the next, of which
 * nothing was taken yet. Only of regions without a gap. */
uint64_t guest_take_across(struct guest_memory *memory, unsigned region, uint64_t size);
/* Region as messages describe it. */
struct wire_region guest_region_wire(const struct guest_memory *memory, unsigned region);

#endif
