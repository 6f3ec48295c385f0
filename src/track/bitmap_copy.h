/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A copy of a dirty bitmap, or of what has changed since a checkpoint, at any granularity, made in small steps while
 * the guest goes on writing: the set of blocks that a snapshot needs, or what is to be merged into another bitmap.
 * Owner: the disk's reactor.
 */
#ifndef FLEECE_TRACK_BITMAP_COPY_H
#define FLEECE_TRACK_BITMAP_COPY_H

#include "track/dirty_bitmap.h"
#include "track/tracker.h"

struct bitmap_copy { /* zero it first */
    /*
     * Blocks of 1 << block_shift that overlap what is set in the source, or was written since the copy was started. Until
     * bitmap_copy_end() a superset of the source as it is then, unless `status` is negative.
     */
    struct bitmap blocks;
    /* 0 or -ENOMEM: bits are missing, it can't be trusted. Of a checkpoint also -ENOENT, -ESTALE: it is not known
     * any more. */
    int status;
    unsigned block_shift;
    /* Private: */
    struct disk *disk;
    struct dirty_bitmap *source; /* while it is read */
    struct tracker *tracker;     /* the same, of a checkpoint */
    char checkpoint[UUID_TEXT_BYTES];
    unsigned source_shift; /* its granularity: what is written is rounded to it here, too */
    uint64_t at;           /* the next bit of it */
    struct write_observer observer;
    struct io_task step;
    struct io_timer next;
    void (*done)(struct bitmap_copy *copy);
};

/* The source cannot be changed or removed until it has been read; then done(copy) is called, never inside the call. The
 * copy goes on noting writes until its end. */
void bitmap_copy_start(struct bitmap_copy *copy, struct disk *disk, struct dirty_bitmap *source, unsigned block_shift,
                       void (*done)(struct bitmap_copy *copy));
/* The same of what has changed since a checkpoint. The tracker stays until done(). */
void bitmap_copy_start_since(struct bitmap_copy *copy, struct disk *disk, struct tracker *tracker,
                             const char *checkpoint_uuid, unsigned block_shift, void (*done)(struct bitmap_copy *copy));
/* After done(): notes no more. `blocks` stays, and is the caller's to free. No-op for one that was not started. */
void bitmap_copy_end(struct bitmap_copy *copy);

#endif
