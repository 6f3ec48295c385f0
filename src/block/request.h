/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A request to a node: read, write, write zeroes, discard, flush or block status.
 *
 * The submitter owns the memory of the request and of its buffers, fills in the first part, and submits it with
 * node_submit() on the node's thread. From then on the request belongs to the node until `done` is called, exactly
 * once, on the same thread, never inside node_submit(). A node that cannot go on parks the request and submits it again
 * from the top (`origin`) when it can: it then decides afresh.
 */
#ifndef FLEECE_BLOCK_REQUEST_H
#define FLEECE_BLOCK_REQUEST_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/list.h"
#include "base/range.h"
#include "io/io.h"

struct node;
struct disk;

enum request_kind {
    REQUEST_READ,
    REQUEST_WRITE,
    REQUEST_WRITE_ZEROES,
    REQUEST_DISCARD,
    REQUEST_FLUSH,
    REQUEST_BLOCK_STATUS,
};

enum request_flags {
    REQUEST_FUA = 1,        /* write, write zeroes, discard: stable when it completes */
    REQUEST_NO_HOLE = 2,    /* write zeroes: keep the space allocated */
    REQUEST_FAST_ZERO = 4,  /* write zeroes: fail at once with -EOPNOTSUPP rather than write zeroes as data */
    REQUEST_ONE = 8,        /* block status: one extent, not beyond the range */
    REQUEST_RESIDENCE = 16, /* block status of a snapshot's view: extents carry enum residence_flags instead */
    REQUEST_OWN = 32,       /* made by a filter, through the disk: not counted as the guest's */
    REQUEST_DIRTY = 128,  /* block status of a snapshot's view: extents carry EXTENT_DIRTY of req->dirty_map instead */
    REQUEST_TOP = 256,    /* block status: what this image holds itself; EXTENT_BACKING where it holds nothing */
    REQUEST_LAST = 512,   /* flush: nothing will be written any more; what was kept for that is given back */
    REQUEST_NO_HINT = 64, /* discard: -EOPNOTSUPP where space can't be given back, else that is no error */
};

/* The same bits as NBD's base:allocation. */
enum extent_flags {
    EXTENT_HOLE = 1, /* not allocated */
    EXTENT_ZERO = 2, /* reads as zeroes */
    /* Ours, with REQUEST_TOP only, and alone: this image holds nothing here, its backing file shows through (and zeroes
     * behind its end). Images that say they have no backing file never answer it. */
    EXTENT_BACKING = 256,
};

/* The same bit as NBD's qemu:dirty-bitmap:NAME. */
enum dirty_flags {
    EXTENT_DIRTY = 1, /* changed between the checkpoint and the snapshot */
};

/*
 * Where a block of a snapshot is, as NBD's fleece:residence says it. 0: needed, and unchanged on the disk itself.
 * It costs no look at the disk. A node that is not a snapshot's view answers 0 for everything.
 */
enum residence_flags {
    RESIDENCE_CHANGED = 1,   /* preserved: the guest has overwritten it, or is about to */
    RESIDENCE_RAM = 2,       /* a read takes it from memory */
    RESIDENCE_CACHE = 4,     /* a read takes it from the cache file */
    RESIDENCE_ZERO = 8,      /* preserved as zeroes, without data */
    RESIDENCE_RELEASED = 16, /* not needed: released, or outside the needed set; reads fail with -ENODATA */
    RESIDENCE_ALL = 31,
};

struct block_extent {
    uint64_t length; /* bytes */
    uint32_t flags;
};

struct request {
    /* Set by the submitter (zero the whole struct first, or once and reuse it after `done`): */
    enum request_kind kind;
    uint32_t flags;
    struct range range; /* bytes, within the node; at most LIMIT_REQUEST_BYTES for reads and writes; empty: flush */
    const struct iovec *iov; /* read, write: range.length bytes in all, LIMIT_REQUEST_FRAGMENTS at most */
    unsigned iov_count;
    struct block_extent *extents; /* block status: room for extent_max; neighbours are merged as far as seen */
    unsigned extent_max;
    unsigned dirty_map;                            /* REQUEST_DIRTY: which of the node's dirty maps */
    unsigned extent_count;                         /* result: at least 1 on success; they start at range.start and cover
                                                       at least one byte and at most the range */
    void (*done)(struct request *req, int status); /* 0 or -errno */

    /* Belongs to the block layer and the nodes below while the request is under way: */
    struct io *io;
    struct disk *disk;        /* the disk that it came through and where it is decided again; NULL: internal requests */
    bool in_flight;           /* counted by that disk as a write in flight */
    uint64_t parked_since_ns; /* its first park (C8); 0: never parked */
    struct list_node link;    /* in a queue of parked requests, or in the leaf's list of what is under way */
    struct io_task completion;
    int status;
    struct io_op op; /* for the leaf */
    /* For the leaf. Above it, only fleece/deferred_discards uses leaf_scratch[0]: a guest's discard that is done in parts
     * goes to no leaf itself, and counts there the parts that are still out. */
    uint64_t leaf_scratch[12];
};

/*
 * Discards of a snapshot's view (read-only as it is) release blocks: those that lie whole in the range are gone, the cache
 * is freed, reads of them fail with -ENODATA; partly covered ones are counted and stay. Everybody else's is a hint.
 */

/* Whether the request changes the disk. */
static inline bool request_is_write(const struct request *req)
{
    return req->kind == REQUEST_WRITE || req->kind == REQUEST_WRITE_ZEROES || req->kind == REQUEST_DISCARD;
}

/* By the node that finished it: settles the in-flight count at once and queues `done` to the end of the tick. */
void request_complete(struct request *req, int status);

/* Block status: the next extent of the answer; one that is like the last makes that longer. False: there is no room, or
 * REQUEST_ONE has its one; nothing has changed then. */
bool request_add_extent(struct request *req, uint64_t length, uint32_t flags);

/* Bytes between flat memory and a request's fragments; `at` counts from the start of the fragments. */
void iov_copy_out(const struct iovec *iov, unsigned iov_count, size_t at, void *to, size_t length);
void iov_copy_in(const struct iovec *iov, unsigned iov_count, size_t at, const void *from, size_t length);
void iov_zero(const struct iovec *iov, unsigned iov_count, size_t at, size_t length);
/* The fragments of [at, at+length) into slice[iov_count at most]; returns how many. */
unsigned iov_slice(const struct iovec *iov, unsigned iov_count, size_t at, size_t length, struct iovec *slice);

#endif
