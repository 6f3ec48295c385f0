/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The memory of a guest, as its VMM shares it: regions of file descriptors, mapped here. Requests read and write it
 * without a copy. Everything about it is the guest's or the VMM's to choose, so every address and length is checked, and a
 * region whose file has been cut short costs its own disk, not the daemon (shared_map_guard()).
 *
 * A table of regions does not change once it is made: hotplug makes the next one. A region lives until the last table
 * with it is gone, and a table until its last user is, such as a request that points into it, whatever the VMM has said
 * since.
 *
 * One thread at a time has a table and all those made from it; it may hand them all over to another.
 */
#ifndef FLEECE_EXPORT_VHOST_USER_MEMORY_H
#define FLEECE_EXPORT_VHOST_USER_MEMORY_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/error.h"

struct guest_memory;

struct guest_region {
    uint64_t guest_address; /* where the guest's drivers see it: in descriptors */
    uint64_t user_address;  /* where the VMM's own process sees it: in SET_VRING_ADDR */
    uint64_t size_bytes;
    uint64_t file_offset; /* of a page, or anywhere in one */
};

/* A table with the regions of `from` (NULL: none) and one more, which is mapped; `from` stays the caller's, the descriptor
 * may be closed. Regions that are empty, overflow or overlap another one's guest addresses, more than LIMIT_GUEST_REGIONS, a
 * file that is too short: NULL, with a sentence. User addresses may overlap: then two guest addresses are one memory. */
struct guest_memory *guest_memory_with(struct guest_memory *from, const struct guest_region *region, int fd,
                                       struct error *err);
/* A table without that region (guest address, user address and size as it was added). NULL, with a sentence: there is
 * none. */
struct guest_memory *guest_memory_without(struct guest_memory *from, const struct guest_region *region,
                                          struct error *err);
struct guest_memory *guest_memory_ref(struct guest_memory *memory);
void guest_memory_unref(struct guest_memory *memory); /* NULL is allowed */
unsigned guest_memory_region_count(const struct guest_memory *memory);
/* Behind the last guest address of any region; 0: there is none, `memory` may be NULL. */
uint64_t guest_memory_end(const struct guest_memory *memory);

/* [guest_address, guest_address + length) as fragments, several where regions adjoin: how many. 0 for length 0; -EFAULT:
 * some of it is outside of all regions; -E2BIG: `max` are not enough. */
int guest_memory_fragments(const struct guest_memory *memory, uint64_t guest_address, uint64_t length,
                           struct iovec *iov, unsigned max);
/* Copies what is there at this moment, each byte once. 0 or -EFAULT. */
int guest_memory_read(const struct guest_memory *memory, uint64_t guest_address, void *to, uint64_t length);
/* One piece of memory at an address of the VMM's process, for rings; NULL: not whole in one region, or not aligned. */
void *guest_memory_at(const struct guest_memory *memory, uint64_t user_address, uint64_t length, uint64_t alignment);

/* The guest address of a place in one of the regions, such as a fragment begins at. */
uint64_t guest_memory_address(const struct guest_memory *memory, const void *host);

/* Whether a load or store of ours has hit a page that is not there any more: zeroes stand there instead, and nothing
 * that was read since may be believed. Look after each batch of takes, before anything of it is submitted, and give
 * the connection up: a write whose data lay in that page would put the zeroes on the disk. */
bool guest_memory_is_torn(const struct guest_memory *memory);

#endif
