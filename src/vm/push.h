/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A push: a backup that the daemon makes itself, as a job. Snapshot, copy, release in one, of one or several disks of the VM
 * at one instant. Control thread.
 */
#ifndef FLEECE_VM_PUSH_H
#define FLEECE_VM_PUSH_H

#include "job/job.h"
#include "vm/vm.h"

enum push_mode {             /* where the guest's first writes put old data */
                 PUSH_BOTH,  /* into the fleecing cache, both tiers of it; the guest never waits for the target */
                 PUSH_RAM,   /* into RAM; when that is full, straight to the target, and the guest waits for it */
                 PUSH_PLAIN, /* straight to the target, for contrast: there is no cache */
};

struct push_target {
    const char *disk;  /* its name */
    const char *where; /* absolute path or NBD URI, see job/target.h */
};

struct push_options {
    const char *job_id; /* NULL: "backup-N"; also the name of the snapshot */
    const struct push_target *targets;
    unsigned target_count;
    enum push_mode mode;
    const char *bitmap;                    /* only the blocks that are set in this bitmap of each disk; NULL: all */
    uint64_t speed;                        /* bytes a second, of all disks together; 0: no limit */
    bool force;                            /* files that exist may be overwritten */
    bool no_advice;                        /* in the order of the disk, whatever the cache holds */
    bool no_release;                       /* what the target has stays in the cache until the end */
    enum consistency_wish consistency;     /* of its snapshot */
    bool keep_concluded, wait_to_finalize; /* QEMU's auto-dismiss and auto-finalize, each turned off */
};

/*
 * `begun` is called when the snapshot has been taken, with the job, which runs; or, perhaps inside this call, with NULL and
 * the reason, and then there is no such job. Disks that are not pushed lose nothing by it: their snapshot is released.
 */
void push_start(struct vm *vm, struct job_table *jobs, const struct push_options *options,
                void (*begun)(void *argument, const struct job *job, const struct error *err), void *argument);

/*
 * Before jobs are made, when the snapshots of a killed daemon can be used (vm_publish_adopted()): takes over its pushes,
 * which go on or end with the reason, and ends snapshots that were its pushes'. May block for files that are removed.
 */
void pushes_take_over(struct vm *vm, struct job_table *jobs);

struct push_disk_info {
    const char *disk, *target;
    uint64_t done_bytes, total_bytes, data_bytes;
};
/* The pushed disks of a job of type "backup"; false: `index` is behind the last one. */
bool push_disk_info(const struct job *job, unsigned index, struct push_disk_info *info);
struct push_cut {
    uint64_t hold_ns; /* how long the guest's writes were held */
    enum consistency consistency;
    const char *consistency_reason; /* why it is crash-consistent though the guest should have been frozen; or NULL */
    uint64_t frozen_ns;
};
/* The cut of a job of type "backup"; false: it has not been made. */
bool push_cut(const struct job *job, struct push_cut *cut);

#endif
