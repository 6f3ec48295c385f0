/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The checkpoints of a VM: named instants since which the changes of its disks are known, whatever crashes. Lives on the
 * control thread; nothing here blocks. `done` is called once, later, or at once when the call is refused.
 *
 * A checkpoint is made on all disks that are tracked, at the instant of a snapshot (struct snapshot_options) or alone, and
 * is pending until a client says that its backup is safe. A disk that lacks a checkpoint, or whose part of it is invalid,
 * is backed up in full, alone, and says why.
 */
#ifndef FLEECE_VM_CHECKPOINTS_H
#define FLEECE_VM_CHECKPOINTS_H

#include "track/tracker.h"
#include "vm/vm.h"

/* At an instant of its own, and committed at once. EEXIST, EINVAL (name), ENOSPC, ETIMEDOUT (not drained), ENOTSUP (no disk
 * can be tracked; says why). */
void vm_checkpoint_create(struct vm *vm, const char *name,
                          void (*done)(void *argument, const struct checkpoint_id *id, const struct error *err),
                          void *argument);
/* The backup that it was made for is safe. Again is no error. ENOENT: it never was, or it was given up. */
void vm_checkpoint_commit(struct vm *vm, const char *uuid, void (*done)(void *argument, const struct error *err),
                          void *argument);
/* By name or UUID, pending ones too. Changes since the one before go on to be known. ENOENT, EBUSY (being made). */
void vm_checkpoint_delete(struct vm *vm, const char *which, void (*done)(void *argument, const struct error *err),
                          void *argument);
/* Throws away all that is known about the changes of a disk, whatever state its sidecar is in. ENODEV. */
void vm_checkpoint_reset(struct vm *vm, const char *disk, void (*done)(void *argument, const struct error *err),
                         void *argument);

struct vm_checkpoint_disk {
    const char *disk;
    bool present;                /* else: it was not tracked then, or has been reset; `reason` says it */
    enum checkpoint_state state; /* of its part */
    const char *reason;          /* why it is not present or invalid; NULL: it is valid */
    uint64_t changed_bytes, memory_bytes, file_bytes;
};

struct vm_checkpoint {
    struct checkpoint_id id;
    enum checkpoint_state state; /* INVALID: on all disks */
    struct vm_checkpoint_disk disks[LIMIT_DISKS];
};

struct vm_tracking_disk {
    const char *disk;
    bool tracked;       /* it has a sidecar that is right */
    const char *reason; /* why it is not tracked, or void; NULL: it is tracked, or nobody has asked for it yet */
    enum tracker_recovery recovery;
    uint64_t granularity_bytes;
    struct tracker_counters counters;
};

struct vm_checkpoints {
    unsigned count, disk_count;
    struct vm_tracking_disk disks[LIMIT_DISKS];
    struct vm_checkpoint *checkpoints; /* oldest first */
};

/* Asks every reactor; NULL: no memory. Everything is freed after `done` has returned. */
void vm_checkpoints_query(struct vm *vm, void (*done)(void *argument, const struct vm_checkpoints *checkpoints),
                          void *argument);

#endif
