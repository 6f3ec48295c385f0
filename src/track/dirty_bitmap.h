/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Dirty bitmaps of one disk, by name, in memory: which parts of it have been written, zeroed or discarded since the bitmap
 * was made or cleared, while it was enabled. Owner of everything here: the disk's reactor.
 */
#ifndef FLEECE_TRACK_DIRTY_BITMAP_H
#define FLEECE_TRACK_DIRTY_BITMAP_H

#include "base/bitmap.h"
#include "block/disk.h"

struct dirty_bitmap {
    struct list_node link;
    struct write_observer observer; /* of the disk, while enabled */
    char name[LIMIT_NAME_BYTES + 1];
    uint64_t size_bytes; /* of the disk */
    unsigned granularity_shift;
    bool enabled;
    bool inconsistent; /* changes were missed: it can't be trusted, holds nothing, and can only be removed */
    unsigned copies;   /* that are being made of it: until they are done it can't be changed */
    struct bitmap bits;
};

struct dirty_bitmaps { /* of one disk */
    struct disk *disk;
    struct list all; /* in the order in which they were added */
    unsigned count;
};

void dirty_bitmaps_init(struct dirty_bitmaps *bitmaps, struct disk *disk);
/* Removes all. No copy is being made. */
void dirty_bitmaps_fini(struct dirty_bitmaps *bitmaps);

/* Whether copies of some are being made. Then the disk must not grow. */
bool dirty_bitmaps_in_use(const struct dirty_bitmaps *bitmaps);
/* The disk has its new size: what was added is dirty in all of them. One that finds no memory for that is inconsistent. */
void dirty_bitmaps_grow(struct dirty_bitmaps *bitmaps);

/* 0, or -EINVAL with a sentence: a power of two from BITMAP_GRANULARITY_MIN to _MAX. Any thread. */
int dirty_bitmap_check_granularity(uint64_t granularity_bytes, struct error *err);

/* All of these: 0 or -errno with a sentence. -ENOENT: there is none of this name; -EBUSY: a copy is being made of it;
 * -ESTALE: it is inconsistent. */

/* Empty. -EEXIST, -ENOSPC (too many), -ENOMEM. The name and the granularity have been checked. */
int dirty_bitmap_add(struct dirty_bitmaps *bitmaps, const char *name, uint64_t granularity_bytes, bool enabled,
                     struct error *err);
int dirty_bitmap_remove(struct dirty_bitmaps *bitmaps, const char *name, struct error *err);
int dirty_bitmap_clear(struct dirty_bitmaps *bitmaps, const char *name, struct error *err);
/* Notes writes from now on, or no more. */
int dirty_bitmap_enable(struct dirty_bitmaps *bitmaps, const char *name, bool enabled, struct error *err);
/* Adds what is set in granules [first, first + count) of `bits`, within the bounds of bitmap_merge_range(), so that it can
 * be done in steps. -EINVAL: `bits` has not as many as the bitmap; -ENOMEM: a part may have been added. */
int dirty_bitmap_merge(struct dirty_bitmaps *bitmaps, const char *name, const struct bitmap *bits, uint64_t first,
                       uint64_t count, struct error *err);
/* One that can be trusted, to be read; *bitmap is NULL on failure. */
int dirty_bitmap_find(const struct dirty_bitmaps *bitmaps, const char *name, struct dirty_bitmap **bitmap,
                      struct error *err);

/* For bitmap_copy: one copy of it less is being made. */
void dirty_bitmap_copied(struct dirty_bitmap *bitmap);

/* Up to `max` dirty ranges at or after the byte `from`, in order; returns how many. *next: where to go on; the size of the
 * disk: there are no more. Looks at LIMIT_BITMAP_STEP_CHUNKS chunks at most, so it may find none yet. */
unsigned dirty_bitmap_ranges(const struct dirty_bitmap *bitmap, uint64_t from, struct range *ranges, unsigned max,
                             uint64_t *next);

struct dirty_bitmap_status {
    char name[LIMIT_NAME_BYTES + 1];
    uint64_t granularity_bytes;
    uint64_t dirty_bytes;  /* at most the size of the disk */
    uint64_t memory_bytes; /* that it takes */
    bool recording, busy, inconsistent;
};
void dirty_bitmap_status(const struct dirty_bitmap *bitmap, struct dirty_bitmap_status *status);

#endif
