/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Inside of the copy engine: copy.c (the whole), copy_worker.c, copy_scan.c, copy_advice.c and copy_release.c. */
#ifndef FLEECE_JOB_COPY_INTERNAL_H
#define FLEECE_JOB_COPY_INTERNAL_H

#include <errno.h>

#include "job/copy.h"
#include "job/copy_order.h"
#include "job/throttle.h"

#define CELL_BYTES ((uint64_t)4096)
#define EXTENT_CELLS (COPY_EXTENT_BYTES / CELL_BYTES)

struct cells { /* a bit for each cell of one extent */
    uint64_t bits[EXTENT_CELLS / 64];
};

struct scan_run {
    uint64_t length; /* bytes */
    bool zero;
};

struct worker {
    struct copy *copy;
    struct list_node link; /* in copy->idle */
    struct range extent;
    struct cells data;    /* cells that may hold data, then those that do */
    struct cells skipped; /* cells that are not to be touched (needed_only) */
    bool data_known;      /* from the scan; else the worker asks */
    uint64_t charged;     /* to the speed limit */
    uint64_t asked;       /* the answers about this extent have come so far */
    unsigned next_cell;   /* reading or writing has come so far */
    char *buffer;
    uint8_t hash[COPY_HASH_BYTES];
    struct block_extent answer[EXTENT_CELLS];
    struct iovec iov;
    struct request req;
    struct io_op op;
};

struct copy {
    struct copy_options options;
    struct worker *workers;
    unsigned worker_count;
    char *buffers;
    struct list idle;
    unsigned busy;
    struct io_task task;
    struct copy_order order;
    uint64_t next; /* extent from which the next one on the disk is looked for */
    struct throttle throttle;
    struct io_timer throttle_timer;
    bool hurried, paused, paused_told;
    /* copy_scan.c: runs[first_run..run_end) cover [runs_start, runs_end); the next question begins at `scanned`. */
    struct scan_run *runs;
    struct block_extent *answer;
    unsigned first_run, run_end;
    uint64_t runs_start, runs_end, scanned;
    struct request scan;
    bool scanning;
    /* copy_advice.c: */
    struct block_extent *residence;
    struct request advice;
    struct io_timer advice_timer;
    bool advising;
    uint64_t advised;       /* this round has come so far, in bytes */
    uint64_t advised_first; /* the first round; what lies behind it is not taken yet */
    uint32_t advice_any;    /* flags of the extent that `advised` is in, seen in this round: of some block */
    uint32_t advice_all;    /* ... of all its blocks */
    /* copy_release.c, and the last flush: */
    struct request flush, discard;
    struct io_timer flush_timer;
    bool flushing, flushed, discarding, release_off, release_look;
    uint64_t unflushed_bytes, flush_due_ns, release_group; /* extents that are released together */
    int status;
    struct error err;
    uint64_t done_bytes, data_bytes, reported_ns;
    uint8_t zero_hash[COPY_HASH_BYTES], zero_tail_hash[COPY_HASH_BYTES];
};

static inline bool cell_get(const struct cells *cells, unsigned cell)
{
    return cells->bits[cell / 64] >> (cell % 64) & 1;
}

static inline bool cells_empty(const struct cells *cells)
{
    uint64_t any = 0;
    for (unsigned i = 0; i < EXTENT_CELLS / 64; i++)
        any |= cells->bits[i];
    return any == 0;
}

/* Sets the cells that [start, end), within the extent, touches. */
static inline void cells_set(struct cells *cells, uint64_t start, uint64_t end)
{
    for (uint64_t cell = start / CELL_BYTES; cell < (end + CELL_BYTES - 1) / CELL_BYTES; cell++)
        cells->bits[cell / 64] |= UINT64_C(1) << (cell % 64);
}

static inline struct range copy_extent_range(const struct copy *copy, uint64_t extent)
{
    uint64_t start = extent * COPY_EXTENT_BYTES, left = copy->options.source->size_bytes - start;
    return (struct range){start, left < COPY_EXTENT_BYTES ? left : COPY_EXTENT_BYTES};
}

static inline uint64_t copy_extent_of(uint64_t byte)
{
    return byte / COPY_EXTENT_BYTES;
}

/* Whether an answer to a question about the source may only mean that its first block has been released meanwhile. */
static inline bool copy_may_be_released(const struct copy *copy, int status)
{
    bool unneeded = copy->options.needed_only || !copy->release_off;
    return unneeded && (status == -ENODATA || status == -EINVAL /* how NBD says it */);
}

/* copy.c */
void copy_wake(struct copy *copy);
/* Keeps the first error; new work stops. */
void copy_fail(struct copy *copy, int status, const char *what, const char *name, struct range range);
void copy_flush_failed(struct copy *copy, int status);
/* Notes the hash of an extent. false: it is not the one that was expected. */
bool copy_hashed(struct copy *copy, struct range extent, const uint8_t *hash);
int copy_hash_bytes(const void *bytes, size_t length, uint8_t *hash);
static inline bool copy_wants_hashes(const struct copy *copy)
{
    return copy->options.hashes || copy->options.expected;
}
static inline const uint8_t *copy_zero_hash(const struct copy *copy, struct range extent)
{
    return extent.length == COPY_EXTENT_BYTES ? copy->zero_hash : copy->zero_tail_hash;
}
/* The target has all of the extent. */
void copy_extent_done(struct copy *copy, struct range extent);

/* copy_worker.c: takes the extent through; copy_extent_done() and copy_wake() at the end. `data`: cells that may hold data;
 * NULL: not known. */
void worker_start(struct worker *worker, struct range extent, const struct cells *data);

/* copy_scan.c */
int scan_init(struct copy *copy);
void scan_fini(struct copy *copy);
/* Nothing before this byte is asked for any more. */
void scan_skip_to(struct copy *copy, uint64_t byte);
/* Keeps the scan ahead of the workers. */
void scan_go_on(struct copy *copy);
/* Which cells of the extent may hold data. It lies in what was scanned. */
struct cells scan_cells(const struct copy *copy, struct range extent);

/* copy_advice.c */
int advice_init(struct copy *copy);
void advice_fini(struct copy *copy);
void advice_go_on(struct copy *copy);

/* copy_release.c */
void release_init(struct copy *copy);
void release_fini(struct copy *copy);
void release_go_on(struct copy *copy);

#endif
