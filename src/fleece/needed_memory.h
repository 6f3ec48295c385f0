/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What one point of one disk needs, in the memory that outlives the daemon. The private set (struct bitmap) is what is
 * asked; here is the copy that the next daemon begins with, never more than what the private one has. Owner: the disk's
 * reactor.
 */
#ifndef FLEECE_FLEECE_NEEDED_MEMORY_H
#define FLEECE_FLEECE_NEEDED_MEMORY_H

#include "base/bitmap.h"
#include "fleece/cache_memory.h"

#define NEEDED_AT_CUT(number) (LIMIT_SNAPSHOTS + (number))

struct needed_memory {
    struct cache_memory *memory; /* NULL: nothing is stored */
    uint64_t bit_count;
    uint64_t states_at, words_at; /* in the shared memory */
};

/* For the snapshot with this number (below LIMIT_SNAPSHOTS) in the table, or for what had changed at its cut
 * (NEEDED_AT_CUT(number)): all blocks are needed. 0, or -ENOSPC. */
int needed_memory_begin(struct needed_memory *needed, struct cache_memory *memory, unsigned number, uint64_t bit_count);
/* The same of a snapshot that is adopted: *bits is what it needs. 0, -ENOMEM, or -EINVAL: it is not right. */
int needed_memory_adopt(struct needed_memory *needed, struct cache_memory *memory, unsigned number,
                        struct bitmap *bits);
/* Gives back what is stored under this number, whatever it is. */
void needed_memory_clear(struct cache_memory *memory, unsigned number);
void needed_memory_end(struct needed_memory *needed);
/* Bits [first, first + count) are needed no more: before anything relies on it (C12). 0, or -ENOSPC: some may be so. */
int needed_memory_release(struct needed_memory *needed, uint64_t first, uint64_t count);
/* Stores the set as it is, in steps: from chunk *chunk on. 0: *chunk is the next, or 0 at the end; -ENOSPC. */
int needed_memory_store(struct needed_memory *needed, const struct bitmap *bits, uint64_t *chunk);

#endif
