/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Two levels: a list of chunks, and the words of those that are mixed. A chunk is in one of three states:
 *
 *     all zero: NULL     all one: the address of `all_one`     mixed: 512 words of its own and the count of their ones
 *
 * The count tells when a mixed chunk has become equal: its memory is freed in that very step. So a disk that is written
 * once from end to end costs the list (8 bytes for 128 MiB of 4 KiB blocks), and a random writer 4 KiB for 128 MiB.
 *
 * Only a change of a part of an equal chunk takes memory; making a whole chunk equal never does, and cannot fail. When
 * there is no memory the chunks before that one are changed already, and every count is right: the caller may try again,
 * or give up the bitmap. Bits beyond bit_count in the last chunk's words are always zero.
 */
#include "base/bitmap.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

enum { WORD_BITS = 64, CHUNK_WORDS = BITMAP_CHUNK_BITS / WORD_BITS };

struct bitmap_chunk {
    uint64_t set_count;
    uint64_t words[CHUNK_WORDS];
};

static struct bitmap_chunk *all_one(void)
{
    static const char mark = 0; /* an address that no chunk has; never looked into */
    return (struct bitmap_chunk *)(uintptr_t)&mark;
}

static bool chunk_mixed(const struct bitmap_chunk *chunk)
{
    return chunk && chunk != all_one();
}

static uint64_t chunk_count(const struct bitmap *bitmap)
{
    return (bitmap->bit_count + BITMAP_CHUNK_BITS - 1) / BITMAP_CHUNK_BITS;
}

static uint64_t chunk_bits(const struct bitmap *bitmap, uint64_t index)
{
    uint64_t left = bitmap->bit_count - index * BITMAP_CHUNK_BITS;
    return left < BITMAP_CHUNK_BITS ? left : BITMAP_CHUNK_BITS;
}

/* Bits [first, end) of a word; end > first. */
static uint64_t word_mask(uint64_t first, uint64_t end)
{
    return ~UINT64_C(0) >> (WORD_BITS - (end - first)) << first;
}

/* Changes bits [first, end) of the words; returns how many of them are different now. */
static uint64_t words_assign(uint64_t *words, uint64_t first, uint64_t end, bool value)
{
    uint64_t changed = 0;
    for (uint64_t at = first; at < end;) {
        uint64_t *word = &words[at / WORD_BITS];
        uint64_t word_start = at - at % WORD_BITS, stop = word_start + WORD_BITS < end ? word_start + WORD_BITS : end;
        uint64_t mask = word_mask(at - word_start, stop - word_start);
        uint64_t different = (value ? ~*word : *word) & mask;
        *word ^= different;
        changed += (uint64_t)__builtin_popcountll(different);
        at = stop;
    }
    return changed;
}

int bitmap_init(struct bitmap *bitmap, uint64_t bit_count, bool value)
{
    *bitmap = (struct bitmap){.bit_count = bit_count};
    uint64_t chunks = chunk_count(bitmap);
    bitmap->chunks = calloc(chunks ? chunks : 1, sizeof(struct bitmap_chunk *));
    if (!bitmap->chunks) {
        *bitmap = (struct bitmap){0};
        return -ENOMEM;
    }
    if (value) {
        for (uint64_t i = 0; i < chunks; i++)
            bitmap->chunks[i] = all_one();
        bitmap->set_count = bit_count;
    }
    return 0;
}

void bitmap_fini(struct bitmap *bitmap)
{
    if (bitmap->chunks)
        for (uint64_t i = 0; i < chunk_count(bitmap); i++)
            if (chunk_mixed(bitmap->chunks[i]))
                free(bitmap->chunks[i]);
    free(bitmap->chunks);
    *bitmap = (struct bitmap){0};
}

int bitmap_grow(struct bitmap *bitmap, uint64_t bit_count)
{
    const uint64_t before = bitmap->bit_count, had = chunk_count(bitmap);
    assert(bit_count >= before);
    const struct bitmap larger = {.bit_count = bit_count};
    struct bitmap_chunk **chunks = realloc(bitmap->chunks, chunk_count(&larger) * sizeof *chunks);
    if (!chunks)
        return -ENOMEM;
    bitmap->chunks = chunks;
    bitmap->bit_count = bit_count;
    for (uint64_t i = had; i < chunk_count(bitmap); i++)
        chunks[i] = NULL;
    if (had > 0 && chunks[had - 1] == all_one()) /* the rest of it is set, too */
        bitmap->set_count += chunk_bits(bitmap, had - 1) - (before - (had - 1) * BITMAP_CHUNK_BITS);
    return bitmap_assign(bitmap, before, bit_count - before, true);
}

bool bitmap_get(const struct bitmap *bitmap, uint64_t bit)
{
    assert(bit < bitmap->bit_count);
    const struct bitmap_chunk *chunk = bitmap->chunks[bit / BITMAP_CHUNK_BITS];
    uint64_t in_chunk = bit % BITMAP_CHUNK_BITS;
    return chunk_mixed(chunk) ? chunk->words[in_chunk / WORD_BITS] >> (in_chunk % WORD_BITS) & 1 : chunk != NULL;
}

/* The chunk becomes equal: no memory is needed. */
static void chunk_fill(struct bitmap *bitmap, uint64_t index, bool value)
{
    struct bitmap_chunk **chunk = &bitmap->chunks[index];
    uint64_t bits = chunk_bits(bitmap, index), before = *chunk ? bits : 0;
    if (chunk_mixed(*chunk)) {
        before = (*chunk)->set_count;
        free(*chunk);
        bitmap->chunk_bytes -= sizeof **chunk;
    }
    *chunk = value ? all_one() : NULL;
    bitmap->set_count = bitmap->set_count - before + (value ? bits : 0);
}

/* Gives an equal chunk words of its own. 0 or -ENOMEM. */
static int chunk_mix(struct bitmap *bitmap, uint64_t index)
{
    struct bitmap_chunk **chunk = &bitmap->chunks[index];
    if (chunk_mixed(*chunk))
        return 0;
    struct bitmap_chunk *mixed = calloc(1, sizeof *mixed);
    if (!mixed)
        return -ENOMEM;
    if (*chunk)
        mixed->set_count = words_assign(mixed->words, 0, chunk_bits(bitmap, index), true);
    *chunk = mixed;
    bitmap->chunk_bytes += sizeof *mixed;
    return 0;
}

/* The mixed chunk had `before` ones. */
static void chunk_recounted(struct bitmap *bitmap, uint64_t index, uint64_t before)
{
    uint64_t now = bitmap->chunks[index]->set_count;
    bitmap->set_count = bitmap->set_count - before + now;
    if (now == 0 || now == chunk_bits(bitmap, index))
        chunk_fill(bitmap, index, now > 0);
}

static int chunk_assign(struct bitmap *bitmap, uint64_t index, uint64_t first, uint64_t end, bool value)
{
    struct bitmap_chunk *chunk = bitmap->chunks[index];
    if (!chunk_mixed(chunk) && value == (chunk != NULL))
        return 0;
    if (end - first == chunk_bits(bitmap, index)) {
        chunk_fill(bitmap, index, value);
        return 0;
    }
    int status = chunk_mix(bitmap, index);
    if (status < 0)
        return status;
    chunk = bitmap->chunks[index];
    uint64_t before = chunk->set_count, changed = words_assign(chunk->words, first, end, value);
    chunk->set_count = value ? before + changed : before - changed;
    chunk_recounted(bitmap, index, before);
    return 0;
}

int bitmap_assign(struct bitmap *bitmap, uint64_t first, uint64_t count, bool value)
{
    assert(first <= bitmap->bit_count && count <= bitmap->bit_count - first);
    uint64_t end = first + count;
    for (uint64_t at = first; at < end;) {
        uint64_t index = at / BITMAP_CHUNK_BITS, start = index * BITMAP_CHUNK_BITS;
        uint64_t stop = start + chunk_bits(bitmap, index) < end ? start + chunk_bits(bitmap, index) : end;
        int status = chunk_assign(bitmap, index, at - start, stop - start, value);
        if (status < 0)
            return status;
        at = stop;
    }
    return 0;
}

/* The first bit at or after `from` in the mixed chunk that is `value`; BITMAP_CHUNK_BITS: none. */
static uint64_t chunk_next(const struct bitmap_chunk *chunk, uint64_t from, bool value)
{
    const uint64_t flip = value ? 0 : ~UINT64_C(0);
    uint64_t index = from / WORD_BITS, word = (chunk->words[index] ^ flip) & (~UINT64_C(0) << (from % WORD_BITS));
    while (!word) {
        if (++index == CHUNK_WORDS)
            return BITMAP_CHUNK_BITS;
        word = chunk->words[index] ^ flip;
    }
    return index * WORD_BITS + (uint64_t)__builtin_ctzll(word);
}

uint64_t bitmap_next_before(const struct bitmap *bitmap, uint64_t from, uint64_t end, bool value)
{
    if (end > bitmap->bit_count)
        end = bitmap->bit_count;
    while (from < end) {
        uint64_t index = from / BITMAP_CHUNK_BITS, start = index * BITMAP_CHUNK_BITS;
        const struct bitmap_chunk *chunk = bitmap->chunks[index];
        if (!chunk_mixed(chunk) && value == (chunk != NULL))
            return from;
        uint64_t next = chunk_mixed(chunk) ? chunk_next(chunk, from - start, value) : BITMAP_CHUNK_BITS;
        from = start + next;
        if (next < BITMAP_CHUNK_BITS)
            return from < end ? from : end; /* of the bits beyond bit_count, all zero, the first may be found */
    }
    return end;
}

uint64_t bitmap_next(const struct bitmap *bitmap, uint64_t from, bool value)
{
    return bitmap_next_before(bitmap, from, bitmap->bit_count, value);
}

const uint64_t *bitmap_chunk_words(const struct bitmap *bitmap, uint64_t chunk, bool *value)
{
    assert(chunk < chunk_count(bitmap));
    *value = bitmap->chunks[chunk] != NULL;
    return chunk_mixed(bitmap->chunks[chunk]) ? bitmap->chunks[chunk]->words : NULL;
}

static int chunk_merge(struct bitmap *into, uint64_t index, const struct bitmap_chunk *from)
{
    if (!from || into->chunks[index] == all_one())
        return 0;
    if (from == all_one()) {
        chunk_fill(into, index, true);
        return 0;
    }
    int status = chunk_mix(into, index);
    if (status < 0)
        return status;
    struct bitmap_chunk *chunk = into->chunks[index];
    uint64_t before = chunk->set_count;
    for (unsigned i = 0; i < CHUNK_WORDS; i++) {
        uint64_t added = from->words[i] & ~chunk->words[i];
        chunk->words[i] |= added;
        chunk->set_count += (uint64_t)__builtin_popcountll(added);
    }
    chunk_recounted(into, index, before);
    return 0;
}

int bitmap_merge_range(struct bitmap *into, const struct bitmap *from, uint64_t first, uint64_t count)
{
    assert(into->bit_count == from->bit_count);
    assert(first <= into->bit_count && count <= into->bit_count - first);
    assert(first % BITMAP_CHUNK_BITS == 0 && (count % BITMAP_CHUNK_BITS == 0 || first + count == into->bit_count));
    for (uint64_t bit = first; bit < first + count; bit += BITMAP_CHUNK_BITS) {
        int status = chunk_merge(into, bit / BITMAP_CHUNK_BITS, from->chunks[bit / BITMAP_CHUNK_BITS]);
        if (status < 0)
            return status;
    }
    return 0;
}

int bitmap_merge(struct bitmap *into, const struct bitmap *from)
{
    return bitmap_merge_range(into, from, 0, into->bit_count);
}

uint64_t bitmap_bytes(const struct bitmap *bitmap)
{
    return chunk_count(bitmap) * sizeof(struct bitmap_chunk *) + bitmap->chunk_bytes;
}
