/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The fleecing cache as the operator sees it: fill, forecast, budgets, and an estimate before a backup. Control thread. */
#ifndef FLEECE_VM_CACHE_WATCH_H
#define FLEECE_VM_CACHE_WATCH_H

#include "vm/vm.h"

/* How full the cache is now, both tiers together, and how the last seconds went on. */
void vm_cache_fill(const struct vm *vm, struct vm_cache_fill *fill);

/*
 * Changes the budgets of the cache, both or none; 0: stays as it is. Writes that wait for room go on when they find some.
 * `done` is called later, or at once when it is refused: EINVAL (out of bounds, or more than what has been reserved while
 * snapshots live), EBUSY (less than what is in use), ESHUTDOWN, ENOMEM.
 */
void vm_cache_resize(struct vm *vm, uint64_t ram_bytes, uint64_t file_bytes,
                     void (*done)(void *argument, const struct error *err), void *argument);

struct vm_backup_estimate {
    uint64_t size_bytes, speed, seconds; /* of the backup: all disks, at `speed` bytes a second */
    uint64_t write_rate;                 /* of the guest: different bytes a second, of the last minutes */
    uint64_t observed_ns;                /* how long those were; little says little */
    uint64_t bytes;            /* of cache that it may need at most at one time, when it releases what it has copied */
    uint64_t bytes_unreleased; /* ... when it does not */
    uint64_t bytes_free;       /* of the cache now: of its budgets, and of the space for files */
};
/* What a backup of all disks would need that began now. */
void vm_estimate_backup(const struct vm *vm, const struct vm_status *status, uint64_t speed,
                        struct vm_backup_estimate *estimate);

#endif
