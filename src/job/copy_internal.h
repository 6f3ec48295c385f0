/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Inside of the copy engine: copy.c (the whole), copy_worker.c, copy_scan.c, copy_select.c, copy_advice.c and
 * copy_release.c. */
#ifndef FLEECE_JOB_COPY_INTERNAL_H
#define FLEECE_JOB_COPY_INTERNAL_H

#include <errno.h>

#include "job/copy.h"
#include "job/copy_order.h"
#include "job/throttle.h"

#define CELL_BYTES ((uint64_t)4096)
#define EXTENT_CELLS (COPY_EXTENT_BYTES / CELL_BYTES)

/* Every cell of an extent is one bit of a mask. */
_Static_assert(COPY_MASK_BYTES * 8 == EXTENT_CELLS, "one bit for each cell");

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
    struct cells skipped; /* cells that are not to be touched (needed_only, dirty, wanted) */
    bool data_known;      /* from the scan; else the worker asks */
    bool proved;          /* the hash is the source's */
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
    uint64_t size_bytes; /* that are copied */
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
    struct io_op record;
    struct copy_run *record_runs;
    uint64_t record_count;
    bool flushing, flushed, discarding, release_off, release_look;
    uint64_t unflushed_bytes, flush_due_ns;
    uint64_t release_group; /* extents that are released together */
    uint64_t release_next;  /* this look for what may be released has come so far */
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
    uint64_t start = extent * COPY_EXTENT_BYTES, left = copy->size_bytes - start;
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

/* Who answers a question with these flags. */
static inline struct node *copy_answering(const struct copy *copy, uint32_t flags)
{
    bool recorded = flags & (REQUEST_DIRTY | REQUEST_RESIDENCE);
    return recorded && copy->options.records ? copy->options.records : copy->options.source;
}

/* copy.c */
void copy_wake(struct copy *copy);
/* Keeps the first error; new work stops. */
void copy_fail(struct copy *copy, int status, const char *what, const char *name, struct range range);
void copy_flush_failed(struct copy *copy, int status);
void copy_record_failed(struct copy *copy, int status);
/* Notes the hash of an extent. false: it is not the one that was expected. */
bool copy_hashed(struct copy *copy, struct range extent, const uint8_t *hash);
int copy_hash_bytes(const void *bytes, size_t length, uint8_t *hash);
/* Whether only some blocks are copied, whatever else there is. */
static inline bool copy_selects(const struct copy_options *options)
{
    return options->dirty || options->wanted;
}
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
/* Nothing of the extent is copied. */
void copy_extent_passed(struct copy *copy, struct range extent);

/* copy_worker.c: takes the extent through; copy_extent_done() and copy_wake() at the end. `data`: cells that may hold data,
 * or those that are selected; NULL: not known. */
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

/* copy_select.c: when only some blocks are copied. */
/* Passes over what the target has already, and over what `wanted` has nothing of. */
void select_init(struct copy *copy);
/* The cells of an extent that `wanted` names. */
struct cells select_wanted(const struct copy *copy, uint64_t extent);
/* All but these cells are skipped from now on. */
void select_cells(struct worker *worker, const struct cells *cells);
/* Notes which cells were copied. */
void select_note(struct worker *worker);
/* The hash of the extent's bytes that were copied. On a helper thread. */
int select_hash(struct worker *worker);
/* Cells of the extent; the bytes of cells [first, end) within it: the last cell of a disk may be short. */
unsigned worker_cell_count(const struct worker *worker);
struct range worker_cells_range(const struct worker *worker, unsigned first, unsigned end);

/* copy_advice.c */
int advice_init(struct copy *copy);
void advice_fini(struct copy *copy);
void advice_go_on(struct copy *copy);

/* copy_release.c */
void release_init(struct copy *copy);
void release_fini(struct copy *copy);
void release_go_on(struct copy *copy);
/* Flushes what was written so far, and then records it. None is under way. */
void release_flush(struct copy *copy);
/* Whether it matters what has been flushed. */
static inline bool copy_notes_flushes(const struct copy *copy)
{
    return !copy->release_off || (copy->options.record && copy->options.target);
}

#endif
