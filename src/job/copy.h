/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The copy engine: reads a source node, writes a target node, several pieces at once, skipping what reads as zeroes, and
 * takes a SHA-256 of every extent of COPY_EXTENT_BYTES as it was read. Both nodes live on the engine's reactor. A source
 * that is a snapshot's view, or an NBD export of one, tells it what to copy first, and may release what is safe.
 *
 * With `dirty` or `wanted` only some blocks are copied, in units of 4 KiB: exactly these are written, as data or as zeroes,
 * never left out (C25), and the hash of an extent is that of their bytes in order.
 */
#ifndef FLEECE_JOB_COPY_H
#define FLEECE_JOB_COPY_H

#include "block/node.h"

#define COPY_EXTENT_BYTES (1 * MIB)
#define COPY_HASH_BYTES 32
/* Blocks of 4 KiB of one extent: bit b % 8 of byte b / 8 is block b. */
#define COPY_MASK_BYTES 32

struct copy_run { /* extents [first, first + count) */
    uint64_t first, count;
};

struct copy_options {
    struct io *io;
    /* target may be NULL: read and hash only (verify). A larger target keeps what is behind the size of the source. */
    struct node *source, *target;
    /* Answers for the source where its blocks are and what has changed (see nbd_node_open_records()); NULL: itself. */
    struct node *records;
    const char *source_name, *target_name; /* for sentences; must stay until `done` */
    uint64_t size_bytes;                   /* of the source, from its beginning; 0: all */
    bool target_is_zero;     /* the target reads as zeroes already (a new sparse file): zeroes are skipped */
    unsigned workers;        /* pieces under way at once, LIMIT_COPY_WORKERS at most; 0: default */
    uint8_t *hashes;         /* room for one per extent, or NULL; an extent of zeroes has the hash of zeroes */
    const uint8_t *expected; /* if not NULL: an extent with another hash is never written, and see `mismatch` */
    bool advice;           /* ask where the source's blocks are: what takes RAM first, the cache file and zeroes last */
    bool release;          /* what the target has flushed is released at the source, if it can (node->can_release) */
    bool dirty;            /* only the blocks that this map of the source calls dirty */
    unsigned dirty_map;    /* ... its number in records->dirty_maps */
    const uint8_t *wanted; /* or: only the blocks that are set here, COPY_MASK_BYTES for each extent */
    uint8_t *masks;        /* room for COPY_MASK_BYTES of each extent, zeroed, or NULL: which blocks were copied */
    uint32_t *data;        /* room for one of each extent, zeroed, or NULL: how many bytes were not zero */
    const bool
        *already;     /* one for each extent, or NULL: the target has it for good; hashes and so on are the caller's */
    bool needed_only; /* the target keeps what it has where the source needs nothing; not with hashes */
    uint64_t speed;   /* bytes a second of data, THROTTLE_RATE_MAX at most; 0: no limit */
    /* Whether the source has compared what was read of an extent with a hash, and which: it is not hashed again. May be
     * NULL. */
    bool (*proved)(void *context, uint64_t extent, uint8_t *hash);
    /* Called for each extent that differs from `expected`; the copy goes on. NULL: the first one fails it (EBADMSG). */
    void (*mismatch)(void *context, struct range extent);
    /* Progress, at most ten times a second and once at the end; may be NULL. data_bytes: those that were not zero. */
    void (*progress)(void *context, uint64_t done_bytes, uint64_t total_bytes, uint64_t data_bytes);
    /* After copy_pause(), when no data is under way any more; what was written is still flushed and released. Or NULL. */
    void (*paused)(void *context);
    /* The target has flushed these extents: before they are released. On a helper thread; blocks. May be NULL. */
    int (*record)(void *context, const struct copy_run *runs, uint64_t count);
    void (*writing)(void *context); /* before each write of the target; may be NULL */
    /* When an I/O fails it, once, before `done`: at the source (reading) or at the target. May be NULL. */
    void (*io_error)(void *context, bool reading);
    /* At the end, after a flush of the target: 0, or -errno with the sentence. The engine is freed afterwards. */
    void (*done)(void *context, int status, const struct error *err);
    void *context;
};

struct copy;
/* Owner thread. Calls nothing back itself; `done` always comes, later. NULL: no memory. */
struct copy *copy_start(const struct copy_options *options);
/* `done` is called soon, with -ECANCELED: when what is under way has come back. Not after `done`. */
void copy_cancel(struct copy *copy);
/* Nothing new is begun until copy_resume(); a pause can be cancelled. Not after `done`. */
void copy_pause(struct copy *copy);
void copy_resume(struct copy *copy);
void copy_set_speed(struct copy *copy, uint64_t speed);
/* Room in the cache is short: no speed limit, and the cache file's blocks before those on the disk. Or no more. */
void copy_hurry(struct copy *copy, bool hurry);

/* How many hashes a disk has. */
static inline uint64_t copy_extent_count(uint64_t size_bytes)
{
    return size_bytes / COPY_EXTENT_BYTES + (size_bytes % COPY_EXTENT_BYTES != 0);
}

#endif
