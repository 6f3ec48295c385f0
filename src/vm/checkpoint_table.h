/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The table of a VM's checkpoints, on the control thread: what the files of checkpoints and the snapshots share. */
#ifndef FLEECE_VM_CHECKPOINT_TABLE_H
#define FLEECE_VM_CHECKPOINT_TABLE_H

#include "vm/checkpoints.h"
#include "vm/tracking.h"

struct checkpoint {
    struct list_node link; /* in vm->checkpoints, oldest first */
    struct vm *vm;
    struct checkpoint_id id;
    uint64_t disks;   /* that have a part of it, by their index */
    uint64_t pending; /* of them, those that say so; during recovery */
    bool committed;
    bool busy;         /* an operation on it is under way */
    const void *lease; /* of the client that it was made for; NULL: nobody's */
    uint64_t grace_ns; /* how long it waits for that client; 0: default */
    struct io_timer grace;
};
_Static_assert(LIMIT_DISKS <= 64, "a set of disks fits into a word");

/* By name or UUID; NULL: none. */
struct checkpoint *checkpoint_find(const struct vm *vm, const char *which);
/* Whether one of this name may be made: -EINVAL, -EEXIST, -ENOSPC with a sentence. */
int checkpoint_check_new(const struct vm *vm, const char *name, struct error *err);
/* Enters one that the disks have recorded; NULL: no memory. */
struct checkpoint *checkpoint_add(struct vm *vm, const struct checkpoint_id *id, uint64_t disks);
/* It has a client again, or for the first time. */
void checkpoint_hold(struct checkpoint *checkpoint, const void *lease, uint64_t grace_ns);
/* It can be asked for from now on. */
void checkpoint_made(struct checkpoint *checkpoint);
/* The client is gone: what is pending waits its grace time. */
void checkpoints_lease_end(struct vm *vm, const void *lease);
/* A pending one waits from now on for the word of whoever it was made for. */
void checkpoint_wait(struct checkpoint *checkpoint);
/* It is out of the table, and freed. */
void checkpoint_forget(struct checkpoint *checkpoint);
void checkpoint_tell(struct vm *vm, enum vm_checkpoint_event event, const struct checkpoint_id *id);
/* For operations that nobody waits for: what fails is still listed, and can be deleted by hand. */
void checkpoint_dropped(void *argument, const struct error *err);
/* On a disk's reactor: part->infos gets what its tracker knows; whoever gets the part back frees it. */
void checkpoint_part_ask(struct tracking_part *part);
/* At the end of the VM. */
void checkpoints_fini(struct vm *vm);

#endif
