/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The trackers of a VM's disks: opened at start where there is a sidecar, or when the first checkpoint is made; closed
 * with the disk. And work on several of them at once. Control thread, where nothing else is said.
 */
#ifndef FLEECE_VM_TRACKING_H
#define FLEECE_VM_TRACKING_H

#include <stdatomic.h>

#include "vm/checkpoints.h"

struct vm_disk;

enum tracking_state {
    TRACKING_NONE, /* nobody has asked for it: there is no sidecar */
    TRACKING_OPENING,
    TRACKING_ON,
    TRACKING_REFUSED,   /* it can't be had: `error` says why */
    TRACKING_RESETTING, /* nothing else may ask the tracker for anything: `error` says so */
};

struct tracking { /* of one disk */
    enum tracking_state state;
    bool created; /* its sidecar has no name yet, which it gets with its first checkpoint */
    struct error error;
    struct tracker *tracker; /* used on the disk's reactor; NULL unless it is ON */
    /* While it is opened: */
    struct io_message message;
    struct tracker_op op;
    struct tracker_options options;
    struct io_op condemn;
    bool forbidden;
    void (*opened)(struct vm_disk *vd);
    void *opened_context;
    /* From the reactor: it has ended by itself. */
    struct io_message invalid;
    atomic_bool telling; /* it is under way: what happens meanwhile is told by it */
    char reason[LIMIT_ERROR_BYTES];
};

/* Opens the disk's sidecar (with `create`: makes one if there is none), unless that has been tried; then opened(vd). */
void tracking_open(struct vm_disk *vd, bool create, void (*opened)(struct vm_disk *vd), void *context);
/* One operation on the trackers of several disks. */
struct tracking_work;

struct tracking_part {
    struct io_message message;
    struct tracking_work *work;
    struct vm_disk *vd;
    bool wanted; /* set by the maker; false: skipped */
    struct tracker_op op;
    struct checkpoint_info *infos; /* for questions */
    unsigned info_count;
};

struct tracking_work {
    struct vm *vm;
    struct checkpoint_id id;
    /* On the disk's reactor: starts part->op, whose done() is tracking_part_done(), or calls tracking_part_back(). */
    void (*start)(struct tracking_part *part);
    void (*done)(struct tracking_work *work); /* on the control thread; then the work is freed */
    void *context, *argument;
    unsigned unanswered;
    struct tracking_part parts[]; /* one for each disk */
};

/* All disks that are tracked are wanted. Counts as an operation of the VM until it is done. NULL: no memory. */
struct tracking_work *tracking_work_new(struct vm *vm);
void tracking_work_start(struct tracking_work *work);
void tracking_part_done(struct tracker_op *op);
void tracking_part_back(struct tracking_part *part);
/* The first error of its parts; code 0: none. */
const struct error *tracking_work_error(const struct tracking_work *work);

#endif
