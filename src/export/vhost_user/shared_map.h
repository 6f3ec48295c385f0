/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A mapping of a file that a stranger has handed over and may cut short at any time: a guest's memory, the in-flight region.
 * Loads and stores where the file has no page any more would end the process (SIGBUS); under shared_map_guard() they find
 * zeroes, and the mapping is *torn*: nothing that was read since may be believed, its owner gives the connection up.
 *
 * Made, counted and let go by one thread at a time; the guard itself works on any.
 */
#ifndef FLEECE_EXPORT_VHOST_USER_SHARED_MAP_H
#define FLEECE_EXPORT_VHOST_USER_SHARED_MAP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

struct shared_map {
    char *base; /* the byte at the offset that was asked for */
    uint64_t size_bytes;
    /* Private: */
    char *mapped; /* whole pages */
    uint64_t mapped_bytes, page_bytes;
    unsigned references, slot;
    atomic_bool torn;
    struct shared_map *next; /* that is unmapped */
};

/* Maps [offset, offset + size_bytes) of a regular file, to read and to write; the descriptor may be closed afterwards. The
 * offset need not be that of a page. NULL, with a sentence: empty, beyond the end of the file, no file of that kind, a
 * file of FUSE or of a network, no address space, or LIMIT_SHARED_MAPS are there. */
struct shared_map *shared_map_create(int fd, uint64_t offset, uint64_t size_bytes, struct error *err);
struct shared_map *shared_map_ref(struct shared_map *map);
void shared_map_unref(struct shared_map *map); /* NULL is allowed; the last one unmaps, soon */

/* Whether a page was missing. Any thread; costs a load while nothing in the process was ever torn. */
bool shared_map_is_torn(const struct shared_map *map);
bool shared_map_any_torn(void);

/* Once, before the first access: the handler of SIGBUS. What is not ours goes to who handled it before. */
int shared_map_guard(struct error *err);

#endif
