/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What push.c and push_restart.c share: a push. */
#ifndef FLEECE_VM_PUSH_INTERNAL_H
#define FLEECE_VM_PUSH_INTERNAL_H

#include "io/uuid.h"
#include "vm/push_disk.h"
#include "vm/push_record.h"
#include "vm/vm_private.h"

enum push_step {
    PUSH_OPENING,
    PUSH_CUTTING,
    PUSH_TAKEN_OVER,
    PUSH_OPENING_AGAIN,
    PUSH_COPYING,
    PUSH_VERDICT,
    PUSH_ENDING,
    PUSH_CLOSING,
    PUSH_KEEPING,
    PUSH_OVER
};

struct push {
    struct job job; /* first: what the table knows */
    struct vm *vm;
    struct push_options options; /* without targets and texts */
    char *bitmap;
    enum push_step step;
    bool started;    /* the job is running, and whoever asked knows */
    bool taken_over; /* from a killed daemon */
    void (*begun)(void *argument, const struct job *job, const struct error *err);
    void *argument;
    struct snapshot *snapshot; /* held */
    struct push_cut cut;       /* of it, also when it has gone */
    char consistency_reason[LIMIT_ERROR_BYTES];
    int status; /* the first failure */
    struct error err;
    struct io_op work; /* on a helper thread */
    atomic_bool stop;  /* tells it */
    struct io_timer timer, retry;
    bool removed; /* what the targets got is gone */
    bool forced;  /* nobody waits for a target any more */
    unsigned out; /* disks whose answer is awaited */
    struct node *through[LIMIT_DISKS];
    char snapshot_uuid[UUID_TEXT_BYTES];
    unsigned number; /* of the record; of no other push */
    struct push_record record;
    unsigned disk_count;
    struct push_disk disks[];
};

/* push.c */
/* Without targets and not in the table; NULL: no memory. */
struct push *push_make(struct vm *vm, const struct push_options *options);
/* With all that belongs to it; not in the table, or no more. */
void push_free(struct job *job);
void push_move(struct push *push, enum push_step to);
/* Keeps the first failure. */
void push_fail(struct push *push, const struct error *err);
void push_fail_cancelled(struct push *push);
/* The snapshot is there and lives, and is the job's: from now on it is held. */
void push_hold_snapshot(struct push *push, struct snapshot *snapshot);
/* Opens the targets, or opens those of a killed daemon again, on a helper thread; then opened(&push->work). And in there:
 * whether all are open; else it fails with the reason. */
void push_open_targets(struct push *push, void (*opened)(struct io_op *op, int64_t result));
bool push_targets_are_open(struct push *push);
/* COPYING: the targets are open. And: the copy is over, or nothing is left of it but its end. */
void push_copy(struct push *push);
void push_end(struct push *push);

/* push_restart.c: TAKEN_OVER: the job has started again. */
void push_go_on(struct push *push);

#endif
