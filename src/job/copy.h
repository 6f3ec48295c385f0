/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The copy engine: reads a source node, writes a target node, several pieces at once, skipping what reads as zeroes, and
 * takes a SHA-256 of every extent of COPY_EXTENT_BYTES as it was read. Both nodes live on the engine's reactor.
 */
#ifndef FLEECE_JOB_COPY_H
#define FLEECE_JOB_COPY_H

#include "block/node.h"

#define COPY_EXTENT_BYTES (1 * MIB)
#define COPY_HASH_BYTES 32

struct copy_options {
    struct io *io;
    /* target may be NULL: read and hash only (verify). A larger target keeps what is behind the size of the source. */
    struct node *source, *target;
    const char *source_name, *target_name; /* for sentences; must stay until `done` */
    bool target_is_zero;     /* the target reads as zeroes already (a new sparse file): zeroes are skipped */
    unsigned workers;        /* pieces under way at once, LIMIT_COPY_WORKERS at most; 0: default */
    uint8_t *hashes;         /* room for one per extent, or NULL; an extent of zeroes has the hash of zeroes */
    const uint8_t *expected; /* if not NULL: an extent with another hash is never written, and see `mismatch` */
    /* Called for each extent that differs from `expected`; the copy goes on. NULL: the first one fails it (EBADMSG). */
    void (*mismatch)(void *context, struct range extent);
    /* Progress, at most ten times a second and once at the end; may be NULL. data_bytes: those that were not zero. */
    void (*progress)(void *context, uint64_t done_bytes, uint64_t total_bytes, uint64_t data_bytes);
    /* At the end, after a flush of the target: 0, or -errno with the sentence. The engine is freed afterwards. */
    void (*done)(void *context, int status, const struct error *err);
    void *context;
};

struct copy;
/* Owner thread. Calls nothing back itself; `done` always comes, later. NULL: no memory. */
struct copy *copy_start(const struct copy_options *options);
/* `done` is called soon, with -ECANCELED: when what is under way has come back. Not after `done`. */
void copy_cancel(struct copy *copy);

/* How many hashes a disk has. */
static inline uint64_t copy_extent_count(uint64_t size_bytes)
{
    return size_bytes / COPY_EXTENT_BYTES + (size_bytes % COPY_EXTENT_BYTES != 0);
}

#endif
