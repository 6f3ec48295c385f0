/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the files of the file driver share. file.c says how they work together. */
#ifndef FLEECE_DRIVER_FILE_INTERNAL_H
#define FLEECE_DRIVER_FILE_INTERNAL_H

#include "driver/bounce.h"
#include "driver/file.h"

struct file_node {
    struct node node; /* first */
    int fd;
    int tail_fd;              /* buffered, for the bytes from tail_start on; -1: there are none */
    uint64_t tail_start;      /* a multiple of the alignment; the size when there is no tail; see file_grow.c */
    uint64_t cached_start;    /* from here on I/O goes through the page cache; the size when none does */
    uint32_t alignment_bytes; /* of I/O through fd; 1 with the page cache */
    uint32_t space_bytes;     /* unit of punching and zeroing; 1 with the page cache */
    uint64_t extended_bytes;  /* so long we have made it; 0: not since the node last grew (file_grow.c) */
    bool is_block_device;
    bool apart;                   /* writes never run on the reactor's thread */
    bool no_punch, no_zero_range; /* the kernel said so */
    bool sync_failed;             /* for ever: what was lost is not known */
    /* Writes under way and waiting, in the order of their arrival (file_order.c). */
    struct list writes;
    unsigned writes_exclusive, writes_waiting;
    bool starting_writes; /* those that waited: file_order_leave() is at it */
    struct bounce_pool bounce;
    char *zeroes; /* FILE_ZERO_BYTES of them */
    struct iovec zero_iov[FILE_ZERO_FRAGMENTS];
};

enum file_phase {
    FILE_BEGIN,
    FILE_STRAIGHT,  /* the request's own memory goes to the kernel */
    FILE_READ,      /* into a bounce buffer */
    FILE_READ_HEAD, /* read-modify-write: the first block, the last block, then all of it */
    FILE_READ_TAIL, /* "tail" of the range, not of the disk */
    FILE_WRITE,     /* from a bounce buffer */
    FILE_PUNCH,
    FILE_ZERO_RANGE,
    FILE_ZERO_DATA, /* zeroes written as data */
    FILE_DISCARD,
    FILE_SYNC,
    FILE_STATUS,
    FILE_END,
};

/* The driver's part of a request, in its leaf_scratch. */
struct file_op {
    struct file_node *file;
    struct list_node bounce_wait;
    char *bounce;
    struct range span; /* what is transferred through the bounce buffer: the request's range, or an edge of zeroes */
    uint64_t at, end;  /* of the transfer under way: what is left of it */
    union {
        struct iovec flat;
        struct io_extent extent;
    };
    uint16_t retries;
    uint8_t phase;
    bool exclusive, started; /* file_order.c */
    uint8_t edges;           /* of zeroes: how many are begun */
};
_Static_assert(sizeof(struct file_op) <= sizeof(((struct request *)0)->leaf_scratch), "fits into the request");

static inline struct file_op *file_op_of(struct request *req)
{
    return (struct file_op *)(void *)req->leaf_scratch;
}

static inline struct request *file_op_request(struct file_op *op)
{
    return (struct request *)(void *)((char *)op - offsetof(struct request, leaf_scratch));
}

/* file.c */
void file_move(struct file_op *op, enum file_phase phase);
/* Ends the request: gives back what it holds, and lets those go on who waited for that. */
void file_finish(struct request *req, int status);
/* Ends it with a sync before when it asks for one (FUA of what is not a data write). */
void file_finish_synced(struct request *req);
/* Whether a result means "ask again"; counts. */
bool file_retry(struct file_op *op, int64_t result);

/* file_order.c */
void file_order_enter(struct request *req, bool exclusive); /* calls file_start_write() now or later */
void file_order_leave(struct request *req);
void file_start_write(struct request *req); /* in file.c */

/* file_transfer.c: reads and writes of data */
bool file_has_edges(const struct file_node *file, struct range range);
struct range file_touched(const struct file_node *file, struct range range);
void file_start_transfer(struct request *req);
/* op->span through a bounce buffer; for writes: of the request's data or, for write zeroes, of zeroes. */
void file_start_bounced(struct request *req);
/* Gives the buffer of op back, or to the next one who waits for it. */
void file_bounce_release(struct file_op *op);

/* file_zero.c: write zeroes and discard */
void file_start_zeroes(struct request *req);
void file_continue_zeroes(struct request *req); /* an edge is written */
void file_start_discard(struct request *req);

/* file_status.c */
void file_start_status(struct request *req);

/* file_grow.c: node_ops */
void file_extend(struct node *node, struct node_extension *extension);
void file_grow(struct node *node, uint64_t size_bytes);

/* file_lock.c: the locks of a description that is to carry I/O; may wait. `place` tells descriptions of one file apart. */
int file_lock(struct io *io, int fd, const struct file_options *options, unsigned place, struct error *err);
/* Waits until nobody holds our lock on the file any more, without taking it. */
int file_lock_await(struct io *io, int fd, const struct file_options *options, struct error *err);

#endif
