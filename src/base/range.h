/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Ranges of bytes and of blocks. They are two types, so that one is never taken for the other. */
#ifndef FLEECE_BASE_RANGE_H
#define FLEECE_BASE_RANGE_H

#include <stdbool.h>
#include <stdint.h>

struct range { /* bytes */
    uint64_t start, length;
};

struct block_range { /* blocks */
    uint64_t first, count;
};

static inline uint64_t range_end(struct range r)
{
    return r.start + r.length;
}

static inline uint64_t block_range_end(struct block_range r)
{
    return r.first + r.count;
}

static inline bool range_overlaps(struct range a, struct range b)
{
    return a.start < range_end(b) && b.start < range_end(a);
}

static inline bool block_range_overlaps(struct block_range a, struct block_range b)
{
    return a.first < block_range_end(b) && b.first < block_range_end(a);
}

/* Whether r lies in [0, size), with any values a stranger may have sent. */
static inline bool range_within(struct range r, uint64_t size)
{
    return r.start <= size && r.length <= size - r.start;
}

/* `unit` is a power of two. */
static inline uint64_t round_down(uint64_t value, uint64_t unit)
{
    return value & ~(unit - 1);
}

static inline uint64_t round_up(uint64_t value, uint64_t unit)
{
    return round_down(value + unit - 1, unit);
}

static inline bool range_aligned(struct range r, uint64_t unit)
{
    return ((r.start | r.length) & (unit - 1)) == 0;
}

/* The smallest aligned range around r. */
static inline struct range range_align_out(struct range r, uint64_t unit)
{
    uint64_t start = round_down(r.start, unit);
    return (struct range){start, round_up(range_end(r), unit) - start};
}

/* The blocks that r touches, even partly. */
static inline struct block_range range_to_blocks(struct range r, unsigned block_shift)
{
    if (r.length == 0)
        return (struct block_range){r.start >> block_shift, 0};
    uint64_t first = r.start >> block_shift;
    return (struct block_range){first, ((range_end(r) - 1) >> block_shift) - first + 1};
}

/* The bytes of blocks, ending at the size of the disk. */
static inline struct range blocks_to_range(struct block_range b, unsigned block_shift, uint64_t size_bytes)
{
    uint64_t start = b.first << block_shift, end = block_range_end(b) << block_shift;
    return (struct range){start, (end < size_bytes ? end : size_bytes) - start};
}

#endif
