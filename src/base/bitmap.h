/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A large set of bits that costs memory only where it is mixed: it is kept in chunks of 32768 bits, and a chunk whose bits
 * are all equal has no memory of its own. One owner, no locks.
 */
#ifndef FLEECE_BASE_BITMAP_H
#define FLEECE_BASE_BITMAP_H

#include <stdbool.h>
#include <stdint.h>

#define BITMAP_CHUNK_BITS UINT64_C(32768)

struct bitmap_chunk;

struct bitmap {
    uint64_t bit_count, set_count;
    struct bitmap_chunk **chunks; /* see bitmap.c */
    uint64_t chunk_bytes;         /* of memory that mixed chunks hold */
};

/* All bits are `value`. 0 or -ENOMEM. */
int bitmap_init(struct bitmap *bitmap, uint64_t bit_count, bool value);
/* Of a bitmap that was zeroed or initialised. */
void bitmap_fini(struct bitmap *bitmap);
/* It gets more bits, which are set. 0, or -ENOMEM: it can only be finished. */
int bitmap_grow(struct bitmap *bitmap, uint64_t bit_count);
bool bitmap_get(const struct bitmap *bitmap, uint64_t bit);
/* Sets or clears bits [first, first + count). 0, or -ENOMEM: then some of them may have been changed, the rest not. */
int bitmap_assign(struct bitmap *bitmap, uint64_t first, uint64_t count, bool value);
/* The first bit at or after `from` that is `value`; bit_count: there is none. Skips equal chunks at once. */
uint64_t bitmap_next(const struct bitmap *bitmap, uint64_t from, bool value);
/* The same, but looks no further than `end`, which is the answer when there is none before it. */
uint64_t bitmap_next_before(const struct bitmap *bitmap, uint64_t from, uint64_t end, bool value);
/* The words of a chunk that is mixed; NULL: all of its bits are *value. Bits beyond bit_count are zero. */
const uint64_t *bitmap_chunk_words(const struct bitmap *bitmap, uint64_t chunk, bool *value);
/* into |= from; of the same bit_count. 0 or -ENOMEM: partly done. */
int bitmap_merge(struct bitmap *into, const struct bitmap *from);
/* The same for bits [first, first + count): `first` is a multiple of BITMAP_CHUNK_BITS, and so is count, but for the end. */
int bitmap_merge_range(struct bitmap *into, const struct bitmap *from, uint64_t first, uint64_t count);
/* Memory that it holds: list of chunks and mixed chunks. */
uint64_t bitmap_bytes(const struct bitmap *bitmap);

#endif
