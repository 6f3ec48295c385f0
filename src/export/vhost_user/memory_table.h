/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a table of guest memory is made of, for memory.c and for the look-up in the virtqueues' innermost loop. */
#ifndef FLEECE_EXPORT_VHOST_USER_MEMORY_TABLE_H
#define FLEECE_EXPORT_VHOST_USER_MEMORY_TABLE_H

#include <stddef.h>

#include "export/vhost_user/memory.h"
#include "export/vhost_user/shared_map.h"

struct guest_memory_entry {
    uint64_t guest_address, size_bytes, user_address;
    char *host; /* = map->base */
    struct shared_map *map;
};

struct guest_memory {
    unsigned references, count;
    struct guest_memory_entry entries[]; /* by guest address */
};

/* The region with that address; NULL: none has. */
const struct guest_memory_entry *guest_memory_find(const struct guest_memory *memory, uint64_t guest_address);

/* Where all of [guest_address, guest_address + length) is, if it is in that region; else NULL. */
static inline char *guest_memory_entry_at(const struct guest_memory_entry *entry, uint64_t guest_address,
                                          uint64_t length)
{
    const uint64_t at = guest_address - entry->guest_address;
    return at < entry->size_bytes && length <= entry->size_bytes - at ? entry->host + at : NULL;
}

#endif
