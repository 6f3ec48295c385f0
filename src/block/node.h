/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A node of the block graph: a driver (leaf) or a filter. One owner thread (`io`) for its whole life; everything here is
 * called on it, except node_create-like functions of the drivers, which say otherwise.
 */
#ifndef FLEECE_BLOCK_NODE_H
#define FLEECE_BLOCK_NODE_H

#include "base/error.h"
#include "block/request.h"

struct node;

/* Belongs to the caller; the node's until done(), which is called later, once. */
struct node_extension {
    uint64_t size_bytes; /* wanted; 0: as it is. When it is done: how long what the node lies on is */
    void (*done)(struct node_extension *extension, int status); /* 0 or -errno */
    struct error error;                                         /* its sentence goes on after "disk NAME" */
    /* the node's: */
    struct node *node;
    struct io_op work;
};

/* What holds for the sizes of all leaves; `unit_bytes`: of which it must be a multiple. 0, -EFBIG or -EINVAL with a sentence
 * as of an extension. */
int node_check_size(uint64_t size_bytes, uint64_t unit_bytes, struct error *err);

struct node_ops {
    const char *driver; /* "file", "null", "nbd", "copy-before-write", "snapshot-access", "disk" */
    /* Takes over the request; see block/request.h. The range has been checked against the size. */
    void (*submit)(struct node *node, struct request *req);
    /* Frees the node. Nothing is under way on it. Owner thread, or any thread once the owner's loop has ended. */
    void (*destroy)(struct node *node);
    /*
     * Of a leaf that may grow while it is used, both; else NULL. extend: makes what it lies on so long, or finds out how
     * long it is; stable with the node's next flush. The node has its old size still, before and after. With just that
     * size: takes back what was added and not used. Owner thread; one at a time; the request goes on as any other does.
     */
    void (*extend)(struct node *node, struct node_extension *extension);
    /* Owner thread: the node has that size from now on. No write is in flight; reads may be. */
    void (*grow)(struct node *node, uint64_t size_bytes);
};

/* Of a snapshot's view: what an export does with blocks that a client has read. */
enum read_once {
    READ_MANY,
    READ_ONCE,       /* released when the connection that read them ends in good order (C9) */
    READ_ONCE_EAGER, /* released when the reply has left; for clients that start over on any error */
};

struct node {
    const struct node_ops *ops;
    struct io *io;
    uint64_t size_bytes; /* a disk's may grow: other threads ask node_size() */
    /* Of a file that grows: size_bytes is but a bound. Nothing was ever written from end_bytes on; it reads as zeroes. */
    bool growable;
    uint64_t end_bytes;
    uint32_t alignment_bytes; /* requests aligned to it need no bounce; others are right, only slower */
    bool read_only;
    bool can_release; /* a snapshot's view: read-only, but for discards, which release */
    enum read_once read_once;
    uint32_t block_bytes; /* of a snapshot's view: the unit of release; 0: has none */
    /* Of a snapshot's view: names of the checkpoints for which it can say what had changed at its cut (REQUEST_DIRTY), each
     * at most LIMIT_NAME_BYTES long, LIMIT_DIRTY_MAPS of them at most. They stay as they are as long as the node. */
    const char *const *dirty_maps;
    unsigned dirty_map_count;
    bool
        gives_back; /* its last flush before it is destroyed should say so (REQUEST_LAST), or space leaks in the image */
    bool can_discard;
    bool can_fast_zero; /* write zeroes never falls back to writing data */
};

/* Checks kind, range and read-only with assertions: exports refuse bad input before they submit. */
void node_submit(struct node *node, struct request *req);
void node_destroy(struct node *node);

/* Its size, on any thread. */
static inline uint64_t node_size(const struct node *node)
{
    return __atomic_load_n(&node->size_bytes, __ATOMIC_RELAXED);
}
/* For those who implement grow(). */
static inline void node_set_size(struct node *node, uint64_t size_bytes)
{
    __atomic_store_n(&node->size_bytes, size_bytes, __ATOMIC_RELAXED);
}

#endif
