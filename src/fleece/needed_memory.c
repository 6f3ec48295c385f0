/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A chunk is 32768 bits, as in base/bitmap.c, and so a page. Its state is a byte:
 *
 *     ALL (0) -> MIXED: its page holds the bits -> NONE
 *
 * So a snapshot that needs everything has no pages, a release of whole chunks takes none, and a fresh page of states says
 * what is right. A page is grown and filled before its state says that it counts, and given back after the state says that
 * it does not. A crash between finds a page that nobody looks at; it goes with the snapshot.
 *
 * Bits only ever fall, and they fall here first (C12): what the next daemon believes to be needed is needed, since nothing
 * was overwritten without preserving it that was needed here.
 */
#include "fleece/needed_memory.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/probe.h"
_Static_assert(BITMAP_CHUNK_BITS == 8 * SHM_PAGE_BYTES, "a chunk is a page");

enum { CHUNK_WORDS = BITMAP_CHUNK_BITS / 64 };
enum chunk_state { CHUNK_ALL, CHUNK_MIXED, CHUNK_NONE };

static uint64_t chunk_count(const struct needed_memory *needed)
{
    return (needed->bit_count + BITMAP_CHUNK_BITS - 1) / BITMAP_CHUNK_BITS;
}

static uint8_t *state_of(const struct needed_memory *needed, uint64_t chunk)
{
    return (uint8_t *)needed->memory->shm.base + needed->states_at + chunk;
}

static void set_state(const struct needed_memory *needed, uint64_t chunk, enum chunk_state state)
{
    __atomic_store_n(state_of(needed, chunk), (uint8_t)state, __ATOMIC_RELEASE);
}

static struct range page_of(const struct needed_memory *needed, uint64_t chunk)
{
    return (struct range){needed->words_at + chunk * SHM_PAGE_BYTES, SHM_PAGE_BYTES};
}

static uint64_t *words_of(const struct needed_memory *needed, uint64_t chunk)
{
    return (uint64_t *)(void *)(needed->memory->shm.base + page_of(needed, chunk).start);
}

static struct range states_range(const struct cache_memory *memory, unsigned number)
{
    return (struct range){memory->needed_at + number * memory->needed_stride, memory->states_bytes};
}

static void attach(struct needed_memory *needed, struct cache_memory *memory, unsigned number, uint64_t bit_count)
{
    const struct range states = states_range(memory, number);
    *needed = (struct needed_memory){
        .memory = memory, .bit_count = bit_count, .states_at = states.start, .words_at = range_end(states)};
    assert(chunk_count(needed) <= memory->states_bytes);
}

void needed_memory_clear(struct cache_memory *memory, unsigned number)
{
    const struct range states = states_range(memory, number);
    io_shm_punch(memory->io, &memory->shm, (struct range){states.start, memory->needed_stride});
}

int needed_memory_begin(struct needed_memory *needed, struct cache_memory *memory, unsigned number, uint64_t bit_count)
{
    int status = io_shm_grow(memory->io, &memory->shm, states_range(memory, number)); /* all zero: ALL */
    if (status == 0)
        attach(needed, memory, number, bit_count);
    return status;
}

void needed_memory_end(struct needed_memory *needed)
{
    if (needed->memory)
        io_shm_punch(needed->memory->io, &needed->memory->shm,
                     (struct range){needed->states_at, needed->memory->needed_stride});
    *needed = (struct needed_memory){0};
}

/* ---- storing ---- */

/* Bits [first, end) of a page fall. */
static void words_clear(uint64_t *words, uint64_t first, uint64_t end)
{
    while (first < end) {
        uint64_t in_word = first % 64, count = 64 - in_word < end - first ? 64 - in_word : end - first;
        uint64_t mask = ~UINT64_C(0) >> (64 - count) << in_word;
        __atomic_store_n(&words[first / 64], words[first / 64] & ~mask, __ATOMIC_RELEASE);
        first += count;
    }
}

static void release_chunk(struct needed_memory *needed, uint64_t chunk)
{
    const uint8_t before = *state_of(needed, chunk);
    set_state(needed, chunk, CHUNK_NONE);
    if (before == CHUNK_MIXED)
        io_shm_punch(needed->memory->io, &needed->memory->shm, page_of(needed, chunk));
}

static int release_part(struct needed_memory *needed, uint64_t chunk, uint64_t first, uint64_t end)
{
    uint64_t *words = words_of(needed, chunk);
    if (*state_of(needed, chunk) == CHUNK_ALL) {
        if (MUTANT(restart_page_counts_before_growth))
            set_state(needed, chunk, CHUNK_MIXED);
        int status = io_shm_grow(needed->memory->io, &needed->memory->shm, page_of(needed, chunk));
        if (status < 0)
            return status;
        memset(words, 0xff, SHM_PAGE_BYTES);
        words_clear(words, first, end);
        set_state(needed, chunk, CHUNK_MIXED);
    } else if (*state_of(needed, chunk) == CHUNK_MIXED) {
        words_clear(words, first, end);
    }
    return 0;
}

int needed_memory_release(struct needed_memory *needed, uint64_t first, uint64_t count)
{
    const uint64_t end = first + count;
    int status = 0;
    while (needed->memory && first < end && status == 0) {
        const uint64_t chunk = first / BITMAP_CHUNK_BITS, start = chunk * BITMAP_CHUNK_BITS;
        uint64_t stop = start + BITMAP_CHUNK_BITS < needed->bit_count ? start + BITMAP_CHUNK_BITS : needed->bit_count;
        const bool whole = first == start && end >= stop;
        stop = stop < end ? stop : end;
        if (whole)
            release_chunk(needed, chunk);
        else
            status = release_part(needed, chunk, first - start, stop - start);
        first = stop;
    }
    return status;
}

int needed_memory_store(struct needed_memory *needed, const struct bitmap *bits, uint64_t *chunk)
{
    const uint64_t chunks = needed->memory ? chunk_count(needed) : 0;
    for (unsigned stored = 0; *chunk < chunks && stored < NEEDED_STORE_STEP; (*chunk)++) {
        bool value;
        const uint64_t *words = bitmap_chunk_words(bits, *chunk, &value);
        if (!words && !value)
            release_chunk(needed, *chunk);
        if (!words)
            continue;
        int status = io_shm_grow(needed->memory->io, &needed->memory->shm, page_of(needed, *chunk));
        if (status < 0)
            return status;
        memcpy(words_of(needed, *chunk), words, SHM_PAGE_BYTES);
        set_state(needed, *chunk, CHUNK_MIXED);
        stored++;
    }
    if (*chunk >= chunks)
        *chunk = 0;
    return 0;
}

/* ---- adoption ---- */

/* Clears in `bits` what is clear in the page. */
static int load_page(const uint64_t *words, struct bitmap *bits, uint64_t first, uint64_t count)
{
    int status = 0;
    for (uint64_t at = 0; at < count && status == 0;) {
        uint64_t end = at;
        while (end < count && !(words[end / 64] >> end % 64 & 1))
            end++;
        if (end > at)
            status = bitmap_assign(bits, first + at, end - at, false);
        at = end;
        while (at < count && words[at / 64] >> at % 64 & 1)
            at += at % 64 == 0 && words[at / 64] == UINT64_MAX ? 64 : 1;
    }
    return status;
}

int needed_memory_adopt(struct needed_memory *needed, struct cache_memory *memory, unsigned number, struct bitmap *bits)
{
    const uint64_t bit_count = bits->bit_count;
    int status = 0;
    attach(needed, memory, number, bit_count);
    for (uint64_t chunk = 0; chunk < chunk_count(needed) && status == 0; chunk++) {
        const uint64_t first = chunk * BITMAP_CHUNK_BITS;
        const uint64_t count = first + BITMAP_CHUNK_BITS < bit_count ? BITMAP_CHUNK_BITS : bit_count - first;
        const uint8_t state = *state_of(needed, chunk);
        if (state == CHUNK_NONE)
            status = bitmap_assign(bits, first, count, false);
        else if (state == CHUNK_MIXED)
            status = load_page(words_of(needed, chunk), bits, first, count);
        else if (state != CHUNK_ALL)
            status = -EINVAL;
    }
    return status;
}
