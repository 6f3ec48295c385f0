/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The bitmaps of a disk's spans, flat, in one named piece of shared memory that outlives the process. Owner: the disk's
 * reactor, but for what says otherwise.
 */
#ifndef FLEECE_TRACK_SPAN_H
#define FLEECE_TRACK_SPAN_H

#include "base/range.h"
#include "io/io.h"
#include "track/disk_watch.h"
#include "track/sidecar_format.h"

#define SPAN_NONCE_BYTES 16
/* A page of memory: what is grown at once. */
#define SPAN_PAGE_BYTES SHM_PAGE_BYTES
#define SPAN_PAGE_BITS (SPAN_PAGE_BYTES * 8)
#define SPAN_PAGE_WORDS (SPAN_PAGE_BYTES / 8)

struct span_memory_header;

struct span_memory {
    struct io *io;
    struct io_shm_name name;
    struct io_shm shm;
    bool open;
    struct span_memory_header *header;
    uint64_t pages, sidecar_pages; /* of the largest disk */
    uint64_t head_bytes, area_bytes;
    uint64_t bit_count; /* of the disk as it is */
    uint64_t doomed;    /* areas whose memory is being given back, a bit each */
    uint64_t reap_page; /* of the first of them, that is next */
};

/* What shared memory must have in common with the sidecar to be adopted (C11). */
struct span_key {
    uint8_t boot_id[BOOT_ID_BYTES], uuid[SIDECAR_UUID_BYTES], nonce[SPAN_NONCE_BYTES];
    uint64_t disk_bytes;
    uint64_t next_bytes; /* to be adopted it may have this size, too; 0: it may not */
    unsigned granularity_shift;
};

struct span {
    struct span_memory *memory; /* NULL: there is no span */
    unsigned area;              /* its number, in memory and in the sidecar */
    uint64_t first_sequence;
    uint64_t *words;   /* only of pages that are grown */
    uint8_t *grown;    /* in shared memory: one byte a page of it */
    uint32_t *written; /* in shared memory: how often each page of the sidecar has been written and is durable */
    uint8_t *changed;  /* one byte a page of the sidecar: its bits are not those that are stored */
    uint64_t grown_pages;
    uint64_t since_count; /* bits set in this span or a later one */
};

/* Layout for a sidecar's pages; nothing is opened. `name` must stay. */
void span_memory_init(struct span_memory *memory, struct io *io, const struct io_shm_name *name,
                      uint64_t sidecar_pages);
/* Creates it anew, for that key; nobody adopts it before one of the two below. These two may block: on a helper. */
int span_memory_create(struct span_memory *memory, const struct span_key *key, struct error *err);
/* Adopts what a killed process has left, if it is of that key. -ENOENT: there is nothing of this sidecar and boot; -EAGAIN:
 * a process has it; -ESTALE: it is of this sidecar and boot, and says that the sidecar is not to be trusted: it was made
 * void, or the sidecar is older than the memory. */
int span_memory_adopt(struct span_memory *memory, const struct span_key *key, struct error *err);
/* What it holds is complete: the nonce of this open beside that of the last one, which the sidecar has; and alone, when
 * the sidecar has it (C11). */
void span_memory_announce(struct span_memory *memory, const uint8_t past[SPAN_NONCE_BYTES],
                          const uint8_t nonce[SPAN_NONCE_BYTES]);
void span_memory_settle(struct span_memory *memory);
void span_memory_set_size(struct span_memory *memory, uint64_t disk_bytes);
/* Whose disk's file the memory is of that begins with these bytes. 0, or -EINVAL: it is none. */
int span_memory_owner(const void *bytes, uint64_t length, uint64_t *device, uint64_t *inode);
/* What is known of the disk's file, for whoever adopts it. */
struct disk_note *span_memory_note(const struct span_memory *memory);
/* Nobody may adopt it any more. */
void span_memory_condemn(struct span_memory *memory);
/* Unmaps it; `remove`: and takes its name away. No-op when it is not open. */
void span_memory_close(struct span_memory *memory, bool remove);

/* Takes a free area. 0, -ENOMEM, -ENOSPC (tmpfs). The span is empty, and is not told to adopters before span_publish(). */
int span_create(struct span *span, struct span_memory *memory, unsigned area, uint64_t first_sequence);
void span_publish(struct span *span);
/* The span of that area and first sequence, as a killed process has left it. -ENOENT, -ENOMEM. */
int span_adopt(struct span *span, struct span_memory *memory, unsigned area, uint64_t first_sequence);
/* Its area is doomed: until span_memory_reap() is through with it, it can't be taken. At once; no-op for none. */
void span_destroy(struct span *span);
/* So are adopted areas that no span of ours has, or that a killed process was not through with. */
void span_memory_drop_others(struct span_memory *memory, const bool used[SIDECAR_AREAS]);
/* Gives back LIMIT_BITMAP_STEP_CHUNKS pages of what is doomed, or the head of an area. True: there is more. */
bool span_memory_reap(struct span_memory *memory);
static inline bool span_area_is_doomed(const struct span_memory *memory, unsigned area)
{
    return memory->doomed >> area & 1;
}

/* Its bits may differ from the stored ones everywhere, also after an adoption: before a merge, until that is stored. */
void span_set_unstored(struct span *span, bool unstored);
bool span_is_unstored(const struct span *span);

/* Bits of pages [first, first + count) may be touched. 0 or -ENOSPC. */
int span_grow(struct span *span, uint64_t first_bit, uint64_t count);
static inline bool span_has_page(const struct span *span, uint64_t page)
{
    return span->grown[page] != 0;
}
static inline uint64_t span_word(const struct span *span, uint64_t word)
{
    return span_has_page(span, word / SPAN_PAGE_WORDS) ? span->words[word] : 0;
}
bool span_all_set(const struct span *span, uint64_t first_bit, uint64_t count);
/* The payload of a page of the sidecar, from memory and into it. Loading grows; 0 or -ENOSPC. */
void span_save_page(const struct span *span, uint64_t page, uint8_t payload[SIDECAR_PAYLOAD]);
int span_load_page(struct span *span, uint64_t page, const uint8_t payload[SIDECAR_PAYLOAD]);
/* Sets bits and notes that they are not stored. They are grown. */
void span_set(struct span *span, uint64_t first_bit, uint64_t count);
/* into |= from, for one page of memory; notes what is not stored. 0 or -ENOSPC. */
int span_merge_page(struct span *into, const struct span *from, uint64_t page);
void span_change_all(struct span *span);
/* The pages of those bits are not stored, whatever is set in them. */
void span_change(struct span *span, uint64_t first_bit, uint64_t count);
uint64_t span_count(const struct span *span); /* of its own bits: a look at all of them */
uint64_t span_memory_bytes(const struct span *span);

/* since_count of `count` spans, oldest first: a look at all bits. Any thread, nobody else has them. */
void spans_count(struct span *const *spans, unsigned count);

/* The first run of bits set in any of the spans at or after `from`, looking at so many pages of memory at most. Its end is
 * where to go on; an empty one: none was found before there. */
struct block_range spans_next(struct span *const *spans, unsigned count, uint64_t from, uint64_t bit_count,
                              unsigned max_pages);

/* Of a run of bits, those in a word. */
static inline uint64_t span_mask(uint64_t first_bit, uint64_t end_bit, uint64_t word)
{
    uint64_t mask = ~UINT64_C(0);
    if (word == first_bit / 64)
        mask &= ~UINT64_C(0) << (first_bit % 64);
    if (word == (end_bit - 1) / 64)
        mask &= ~UINT64_C(0) >> (63 - (end_bit - 1) % 64);
    return mask;
}

#endif
