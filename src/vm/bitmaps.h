/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The dirty bitmaps of a VM's disks, for the control thread. Every call goes to the disk's reactor and comes back: `done`
 * is called later, or at once when the call is refused, with NULL or the reason: ENODEV (there is no such disk), ENOENT
 * (no such bitmap), EEXIST, EINVAL, EBUSY, ENOSPC, ENOMEM, ESTALE (it is inconsistent), ESHUTDOWN. A snapshot that was
 * limited to a bitmap has a copy of its own: the bitmap may be changed or removed while it lives.
 */
#ifndef FLEECE_VM_BITMAPS_H
#define FLEECE_VM_BITMAPS_H

#include "vm/vm.h"

struct vm_bitmap { /* which one is meant */
    const char *disk, *name;
};

/* granularity_bytes 0: the block size of the disk. */
void vm_bitmap_add(struct vm *vm, struct vm_bitmap bitmap, uint64_t granularity_bytes, bool enabled,
                   void (*done)(void *argument, const struct error *err), void *argument);
void vm_bitmap_remove(struct vm *vm, struct vm_bitmap bitmap, void (*done)(void *argument, const struct error *err),
                      void *argument);
void vm_bitmap_clear(struct vm *vm, struct vm_bitmap bitmap, void (*done)(void *argument, const struct error *err),
                     void *argument);
void vm_bitmap_enable(struct vm *vm, struct vm_bitmap bitmap, bool enabled,
                      void (*done)(void *argument, const struct error *err), void *argument);
/*
 * Adds to `target` what is set in the sources, which may be on other disks of the same size and have other granularities.
 * They may be written while it goes on; nothing is added before all of them have been read.
 */
void vm_bitmap_merge(struct vm *vm, struct vm_bitmap target, const struct vm_bitmap *sources, unsigned source_count,
                     void (*done)(void *argument, const struct error *err), void *argument);
/* Dirty ranges at or after `from`, in order, LIMIT_BITMAP_RANGES at most; `next` is where to go on (the size of the disk:
 * that was all). */
void vm_bitmap_ranges(struct vm *vm, struct vm_bitmap bitmap, uint64_t from,
                      void (*done)(void *argument, const struct range *ranges, unsigned count, uint64_t next,
                                   const struct error *err),
                      void *argument);

#endif
