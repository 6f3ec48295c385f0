/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One virtual disk: the root of a chain of nodes, itself a node, which the live exports are in front of. It counts the
 * writes in flight, holds new ones during a cut, and lets a filter be put between itself and the leaf while I/O goes on.
 */
#ifndef FLEECE_BLOCK_DISK_H
#define FLEECE_BLOCK_DISK_H

#include "block/node.h"

struct disk_counters { /* exact; of the guest's requests, counted when they complete without an error */
    uint64_t reads, read_bytes, writes, written_bytes, flushes, discards, zeroes, errors;
};

/*
 * Is told of every write, zeroing and discard in the very step that hands it to the leaf (C4), whatever becomes of it: so
 * what it notes is a superset of the changes (R5). Owner: the disk's reactor, where observers come and go; one may take
 * itself away while it is told.
 */
struct write_observer {
    struct list_node link; /* in disk->observers */
    void (*written)(struct write_observer *observer, struct range range);
};

/*
 * Is asked about every write, zeroing and discard in the very step that would hand it to the leaf (C4), before observers are
 * told. True: it has noted the write, which goes to the leaf now. False: it has parked the request (disk_park()), and has it
 * submitted again from the top when something durable is written that must come first.
 */
struct write_gate {
    bool (*admit)(struct write_gate *gate, struct request *req);
};

struct disk {
    struct node node; /* first: what exports submit to */
    char name[LIMIT_NAME_BYTES + 1];
    struct node *leaf;
    struct node *filter; /* copy-before-write while a snapshot lives, else NULL */
    /* A cut holds the disk: writes that are not in flight yet wait in `held`, in the order of their arrival. */
    bool holding;
    struct list held;
    uint64_t writes_in_flight;      /* submitted to the leaf and not completed by the kernel (C4) */
    void (*drained)(void *context); /* set until called: when writes_in_flight is 0 */
    void *drained_context;
    struct list resubmitted; /* parked requests that may be decided again */
    struct io_task resubmit;
    struct list observers;   /* of writes; few */
    struct write_gate *gate; /* change tracking; NULL: every write may go */
    struct disk_counters counters;
};

/* Any thread, before the owner uses it. Takes over the leaf. The disk lives on the leaf's reactor. */
struct disk *disk_create(const char *name, struct node *leaf);
/* Destroys the leaf, too. Nothing is under way. */
void disk_destroy(struct disk *disk);

/*
 * For the node above the leaf, in the very step that decides (C4): counts a write as in flight and hands the request to
 * the leaf. Internal reads of a filter go to the leaf directly.
 */
void disk_issue(struct disk *disk, struct request *req);
/* A request that came through the disk was completed by a node below. Called by request_complete() only. */
void disk_settle(struct disk *disk, struct request *req);
/* Puts a request that cannot go on into a queue of its kind, behind all that parked before it first did (C8). */
void disk_park(struct list *queue, struct request *req);
/* A parked request may be decided again, at the end of the tick, in the order of these calls. */
void disk_resubmit(struct request *req);
/* The same for all that is parked in a queue, in its order. */
void disk_resubmit_all(struct disk *disk, struct list *queue);

/*
 * Holds new writes; `drained` is called (perhaps inside this call) when none is in flight any more. Parked requests do
 * not count: they are decided again after the release, against the world as it is then (C3).
 */
void disk_hold(struct disk *disk, void (*drained)(void *context), void *context);
/* Ends a hold and lets what was held go on, in order. */
void disk_release(struct disk *disk);

/* The leaf has been extended: leaf and disk have that size from now on. The disk is held, and no write in flight. */
void disk_grow(struct disk *disk, uint64_t size_bytes);

/* Puts the filter between disk and leaf, or takes it out (NULL); what is parked in it is decided again later. */
void disk_set_filter(struct disk *disk, struct node *filter);

#endif
