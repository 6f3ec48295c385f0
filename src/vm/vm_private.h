/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What vm.c, the files of a snapshot, bitmaps.c and vm_status.c share. */
#ifndef FLEECE_VM_VM_PRIVATE_H
#define FLEECE_VM_VM_PRIVATE_H

#include <limits.h>

#include "track/dirty_bitmap.h"
#include "track/write_sketch.h"
#include "vm/cache_forecast.h"
#include "vm/room.h"
#include "vm/snapshot_table.h"
#include "vm/tracking.h"
#include "vm/vm.h"

struct vm_disk {
    struct vm *vm;
    struct disk *disk;
    uint64_t block_bytes;
    struct node *file; /* its cache file, while its filter exists; the control thread makes it and takes it away */

    struct error error;           /* why it could not be made */
    struct cache_memory memory;   /* of the filter, for the next daemon; used when there is a table of snapshots */
    struct cache_file_id file_id; /* with it, of `file` */
    struct tracking tracking;
    char memory_file[LIMIT_NAME_BYTES + 8]; /* of its named memory */
    /* The disk's reactor's: */
    struct copy_before_write *cbw;                                          /* NULL: no snapshot needs one */
    uint64_t preserved_before, released_before, cut_before, spilled_before; /* by earlier ones */
    struct dirty_bitmaps bitmaps;
    struct write_sketch recent;
    struct disk_watch watch; /* for the table of snapshots */
    struct room_disk room;
    /* Disk's reactor -> control: points that lost a block of this disk. */
    struct nudge lost;
    struct losses losses;
    struct io_message closing;
    struct request last_flush;
    struct io_message leaving; /* control -> disk's reactor and back */
};

struct vm {
    struct io *io; /* the control thread */
    struct vm_options options;
    char name[LIMIT_NAME_BYTES + 1];
    struct budget ram_budget, file_budget;
    unsigned disk_count;
    struct vm_disk disks[LIMIT_DISKS];
    struct room_disk *room_disks[LIMIT_DISKS];
    struct room *room;

    struct list snapshots;    /* in the order of creation; every one that is not freed */
    struct snapshot *cutting; /* one at a time: preparing or cutting */
    struct growth *growing;   /* a disk that grows; nothing is cut meanwhile */
    struct list growths;      /* that wait for their turn */
    enum { FILTERS_NONE, FILTERS_MADE, FILTERS_CLOSING } filters; /* and cache files: of all disks, or of none */
    struct snapshot_table table; /* as long as there are filters, if anything is to outlive the daemon */
    unsigned snapshot_count;
    unsigned next_number;
    uint32_t last_epoch;

    unsigned operations;     /* on bitmaps, checkpoints and the cache, under way */
    struct list checkpoints; /* oldest first; see vm/checkpoint_table.h */
    unsigned checkpoint_count;
    char memory_folder[PATH_MAX];
    struct adoption *adoption; /* of the snapshots of a killed daemon, at the start; restart.c */
    unsigned publishing;       /* snapshots that were adopted, whose exports are being made */
    void (*published)(void *argument);
    void *published_argument;
    struct io_timer watch;
    struct cache_forecast forecast;
    uint64_t ram_growth_max; /* of what the filters have reserved */
    const char *away;        /* why no snapshot can be taken: the guest has stopped, to go on elsewhere; else NULL */
    unsigned leaving;        /* disks that have yet to hear of it, and 1 when it has yet to be noted */
    bool noted, noting;      /* what is noted of it for the next daemon; that is under way */
    bool leave_waits;        /* vm_leave(), for that */
    bool migrates;           /* it may be away when we are dead */
    void (*migration_noted)(void *argument); /* vm_migrates(), for that, too; else NULL */
    void *migration_argument;
    void (*left)(void *argument);
    void *left_argument;
    bool closing;
    unsigned disks_open;
    void (*destroyed)(void *argument);
    void *destroyed_argument;
};

/* snapshots.c */
void snapshots_end_all(struct vm *vm);
void snapshots_ran_out(struct vm *vm, struct room_shortage shortage);
void snapshots_lost(struct vm *vm, struct loss loss, const struct vm_disk *vd);

/* snapshot_end.c: keeps the views of a live snapshot until it is let go, also when it ends meanwhile. False: it is not
 * live. */
bool snapshot_hold(struct snapshot *snapshot);
void snapshot_let_go(struct snapshot *snapshot);

/* cache_watch.c: when filters are made, if there are none; and before the VM is gone. */
void cache_watch_begin(struct vm *vm);
void cache_watch_end(struct vm *vm);

/* snapshots.c: the next snapshot or growth may begin, if nothing else is under way. */
void vm_take_turns(struct vm *vm);
/* growth.c: the first one begins, when there is one that waits. */
bool growth_begin(struct vm *vm);
/* growth.c: those that wait are refused. */
void growths_refuse(struct vm *vm);

/* vm.c: the least RAM budget with which every disk can preserve something. */
uint64_t vm_least_ram(const struct vm *vm);
/* vm.c: why a snapshot breaks when there is no room, as a sentence. */
void vm_describe_shortage(const struct vm *vm, const struct room_shortage *shortage, char *text, size_t size);
/* vm.c: something has ended. When the VM is closing and that was the last thing, its disks are closed. */
void vm_check_closed(struct vm *vm);

#endif
