/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A VM: its disks and its snapshots. Lives on the control thread; every function here is called on it and none blocks.
 */
#ifndef FLEECE_VM_VM_H
#define FLEECE_VM_VM_H

#include "base/error.h"
#include "block/disk.h"
#include "fleece/cache_memory.h"
#include "track/dirty_bitmap.h"
#include "track/tracker.h"
#include "track/write_sketch.h"

struct vm;
struct snapshot;

enum snapshot_state {
    SNAPSHOT_CREATING, /* cutting or publishing */
    SNAPSHOT_LIVE,
    SNAPSHOT_BROKEN, /* reads fail; stays listed, with its reason, until it is deleted */
    SNAPSHOT_DELETING,
};

/* What a snapshot holds, from the guest's side: what a loss of power would leave; or what hooks, or the guest agent, have
 * made whole before the cut. */
enum consistency { CONSISTENT_CRASH, CONSISTENT_HOOKS, CONSISTENT_AGENT };
enum consistency_wish {
    CONSISTENCY_AUTO,     /* frozen, if somebody can; else crash-consistent */
    CONSISTENCY_CRASH,    /* not frozen */
    CONSISTENCY_REQUIRED, /* frozen, or refused */
};

/* How snapshots become visible (exports), and who is told. Set by the daemon; the simulation has its own. */
struct vm_cache_fill {         /* of the fleecing cache, both tiers together */
    uint64_t bytes, bytes_max; /* what the budgets allow, and the space that is free for cache files */
    uint64_t rate;             /* net growth in bytes a second, of the last seconds */
    uint64_t seconds;          /* until it is full at this rate; UINT64_MAX: it does not grow */
};

enum vm_checkpoint_event {
    VM_CHECKPOINT_CREATED,
    VM_CHECKPOINT_COMMITTED,
    VM_CHECKPOINT_DELETED,
    VM_CHECKPOINT_INVALID
};

struct vm_sidecar {    /* what the daemon knows of it */
    struct node *node; /* on the disk's reactor */
    bool created;
    bool forbidden; /* track=off: it is opened only to be made void, since the disk is written without it (C11) */
    uint64_t granularity_bytes; /* for a new one; 0: the default */
    struct disk_identity identity;
    struct disk_identity (*identify)(void *context);
    int (*condemn)(void *context, const char *reason);
    void *context; /* of the two */
};

struct vm_hooks {
    void *context;
    /* Makes a snapshot's node of one disk readable under "DISK@SNAPSHOT". Calls done(argument, status) later. */
    void (*publish)(void *context, const char *export_name, struct node *node, void (*done)(void *argument, int status),
                    void *argument);
    /* Ends the export and its connections; calls done(argument, 0) when nobody uses the node any more. */
    void (*unpublish)(void *context, const char *export_name, void (*done)(void *argument, int status), void *argument);
    /*
     * Makes the cache file of a disk's disk tier, with its header, and takes it away again: both tell it later, by `done`.
     * Called on the control thread; the node lives on the disk's reactor. Neither file nor error: this disk needs none.
     * NULL: there is no disk tier.
     */
    void (*cache_open)(void *context, const struct disk *disk, uint64_t block_bytes,
                       void (*done)(void *argument, struct node *file, const struct error *err), void *argument);
    void (*cache_close)(void *context, const struct disk *disk, struct node *file, void (*done)(void *argument),
                        void *argument);
    /*
     * What the next daemon needs to find the file again. And that: opens the file of a killed daemon, under its lock (C10);
     * `done` comes later, with file or error. Both NULL: snapshots with a disk tier end with the daemon.
     */
    void (*cache_describe)(void *context, const struct node *file, struct cache_file_id *id);
    void (*cache_adopt)(void *context, const struct disk *disk, uint64_t block_bytes, const struct cache_file_id *id,
                        void (*done)(void *argument, struct node *file, const struct error *err), void *argument);
    /* Which file a disk is, and how it was changed last, so that another one is not taken for it after a restart; zeroes: it
     * has none. Here, and on the disk's reactor while the VM lives; must not block. May be NULL. */
    struct disk_identity (*disk_identity)(void *context, const struct disk *disk);
    /* The fill has reached a threshold: 50, 75 or 90 per cent. May be NULL. */
    void (*cache_threshold)(void *context, unsigned percent, const struct vm_cache_fill *fill);
    /* The budget of cache files made from now on. May be NULL. */
    void (*cache_resized)(void *context, uint64_t disk_bytes);
    /* Bytes that the file systems of the cache files have left; a moment ago is good enough. NULL: more than the budget. */
    uint64_t (*cache_space)(void *context);
    /*
     * The sidecar of a disk, opened and locked; with `create` made if it is not there, without a name until sidecar_keep().
     * None is no error: neither node nor err. `err` alone: it can't be had (ENOTSUP: the disk can't be tracked). On the
     * control thread; `done` comes later. NULL: nothing is tracked.
     */
    void (*sidecar_open)(void *context, const struct disk *disk, bool create,
                         void (*done)(void *argument, const struct vm_sidecar *sidecar, const struct error *err),
                         void *argument);
    void (*sidecar_keep)(void *context, const struct disk *disk, void (*done)(void *argument, const struct error *err),
                         void *argument);
    /* Takes its name away; the node has been destroyed, or is there still. */
    void (*sidecar_remove)(void *context, const struct disk *disk,
                           void (*done)(void *argument, const struct error *err), void *argument);
    /* Checkpoints come and go, `uuid` and all; invalid: of one disk, with the reason. May be NULL. */
    void (*checkpoint_event)(void *context, enum vm_checkpoint_event event, const struct checkpoint_id *id,
                             const char *disk, const char *reason);
    /*
     * Freezes the guest for a cut. frozen(argument, NULL) comes later; then thaw() follows. With err: it could not be
     * frozen. freeze_cancel() takes the wish back before that. settled(argument, …) comes when it is known whether the guest
     * was still until thaw() was called; CONSISTENT_CRASH with the reason: it was not. All bounded in time, never inside a
     * call. NULL: nobody can.
     */
    void (*freeze)(void *context, const char *snapshot, void (*frozen)(void *argument, const struct error *err),
                   void *argument);
    void (*freeze_cancel)(void *context);
    void (*thaw)(void *context,
                 void (*settled)(void *argument, enum consistency consistency, const char *reason, uint64_t frozen_ns),
                 void *argument);
    /*
     * Somebody else may write the disks, now or when we are dead (`away`), or does not after all: what would not know of
     * that must not be believed by a next daemon here, durably, when done(argument) is called, later. One at a time. May be
     * NULL.
     */
    void (*disks_away)(void *context, bool away, void (*done)(void *argument), void *argument);
    /* A disk has grown: on the control thread. May be NULL. */
    void (*disk_grown)(void *context, const struct disk *disk, uint64_t old_bytes, uint64_t size_bytes);
    void (*snapshot_created)(void *context, const struct snapshot *snapshot);
    void (*snapshot_broken)(void *context, const struct snapshot *snapshot);
    void (*snapshot_deleted)(void *context, const char *name, const char *uuid);
};

struct vm_options {
    const char *name;
    uint64_t ram_bytes;        /* hard cap of the RAM tier and of the map, over all disks */
    uint64_t disk_bytes;       /* hard cap of all cache files; 0: no disk tier */
    uint64_t cbw_timeout_ns;   /* how long a guest's write may wait for room; 0: default */
    const char *memory_folder; /* of memory that outlives the daemon, on tmpfs; NULL: nothing does */
    bool copy_on_read;         /* what is read is kept in spare RAM */
    uint64_t block_bytes;      /* of disks that do not say; 0: default */
    uint64_t segment_bytes;    /* 0: default; the simulation uses tiny ones */
    struct vm_hooks hooks;
};

struct vm *vm_create(struct io *control, const struct vm_options *options);
/* Takes over the leaf, also on failure. Before anything is served. block_bytes: the unit of preservation, a power of two;
 * 0: that of the VM. -EEXIST, -EINVAL, -ENOSPC with a sentence. */
int vm_add_disk(struct vm *vm, const char *name, struct node *leaf, uint64_t block_bytes, struct error *err);
/* After the last disk, before the first snapshot. -ENOMEM, or -EINVAL (ram_bytes is too little), with a sentence. */
int vm_start(struct vm *vm, struct error *err);
/*
 * After vm_start(), before anything is served: opens the sidecars that are there, recovers what they know, and brings
 * checkpoints of all disks in step (C2). A sidecar that is malformed does not fail it: its disk is not tracked, and says
 * why. `done` with an error: no memory.
 */
void vm_recover(struct vm *vm, void (*done)(void *argument, const struct error *err), void *argument);
/*
 * After vm_start(), before anything is served, when the locks of all disks are held: takes over the snapshots that a killed
 * daemon of the same boot has left, with copy-before-write in place, or buries all that is left of them and says why in the
 * log. done(argument) comes later. The snapshots that are there then are not readable yet: vm_publish_adopted() makes them.
 */
void vm_adopt(struct vm *vm, void (*done)(void *argument), void *argument);
/* When exports can be made: those of the snapshots that were adopted. done(argument) comes when they are there. */
void vm_publish_adopted(struct vm *vm, void (*done)(void *argument), void *argument);
/*
 * The VM migrates: it goes on here, but should we die, or end, it may go on elsewhere without the next daemon's knowing. So
 * that one adopts no snapshot as a live one, until vm_stays(). done(argument) comes when that is noted, perhaps inside this
 * call; until then vm_migrates() must not be called again, nor vm_destroy().
 */
void vm_migrates(struct vm *vm, void (*done)(void *argument), void *argument);
void vm_stays(struct vm *vm);
/*
 * The guest has stopped, and somebody else may write its disks from now on: breaks all live snapshots for `reason` (a
 * sentence; it must stay), takes none until vm_come_back(). done(argument) comes later, when no disk serves old data any
 * more; until then neither vm_leave() again nor vm_destroy() is allowed.
 */
void vm_leave(struct vm *vm, const char *reason, void (*done)(void *argument), void *argument);
void vm_come_back(struct vm *vm);
/* The process ends at once: takes away the names of what outlives it. */
void vm_forget(struct vm *vm);
/* Deletes all snapshots, then closes all disks; calls done(argument) at the end, after which the vm is gone. Exports of
 * live disks must have ended. The reactors must still be running. */
void vm_destroy(struct vm *vm, void (*done)(void *argument), void *argument);

const char *vm_name(const struct vm *vm);
unsigned vm_disk_count(const struct vm *vm);
struct disk *vm_disk(const struct vm *vm, unsigned index); /* in the order in which they were added */

struct snapshot_options {
    const char *name;   /* NULL: "snap-N" */
    uint64_t drain_ns;  /* 0: CUT_ATTEMPT_NS; how long one attempt may hold the guest */
    uint64_t total_ns;  /* 0: CUT_TOTAL_MAX_NS; all attempts; at most CUT_TOTAL_MAX_NS */
    const void *lease;  /* whose end ends the snapshot (vm_lease_end); NULL: nobody's */
    const char *bitmap; /* only blocks that are set in this dirty bitmap of each disk are needed; NULL: all are */
    /* Only what changed since this checkpoint (name or UUID) is needed; a disk that does not know goes full alone, and
     * says why (snapshot_disk_info()). ENOENT when there is no such checkpoint at all. NULL: all is needed. */
    const char *since;
    const char *checkpoint; /* name of one that is made at the same instant, pending; NULL: none */
    /* Names or UUIDs of checkpoints: what changed since is shown by the views (node->dirty_maps). `since` is
     * always shown. */
    const char *const *maps;
    unsigned map_count; /* LIMIT_SNAPSHOT_MAPS at most */
    uint64_t grace_ns;  /* how long snapshot and pending checkpoint outlive their lease; 0: the snapshot ends with it */
    enum read_once read_once;
    /* By disk: where old data goes instead of into the cache (point_write_through()); NULL: nowhere. */
    struct node *const *through;
    bool through_always; /* else only when the cache has no room */
    bool no_export;      /* its views are its maker's alone */
    enum consistency_wish consistency;
    bool ephemeral; /* it ends with the daemon, however that ends; so do those with `through` */
};

/*
 * Cuts all disks and publishes the views. `done` is called later, with a snapshot, or with NULL and the reason:
 * EEXIST (name taken), EINVAL (name), ENOSPC (too many, or no memory), ETIMEDOUT (not drained; names the disk), EAGAIN
 * (CONSISTENCY_REQUIRED, and the guest could not be frozen).
 */
void vm_snapshot_create(struct vm *vm, const struct snapshot_options *options,
                        void (*done)(void *argument, struct snapshot *snapshot, const struct error *err),
                        void *argument);
/* Marks it dead at once; `done` is called when its exports have ended and its memory is given back. ENOENT, EBUSY. */
void vm_snapshot_delete(struct vm *vm, const char *name, void (*done)(void *argument, const struct error *err),
                        void *argument);
/* The client that held `lease` is gone: its snapshots end, at once or after their grace time, those being created
     * as well. */
void vm_lease_end(struct vm *vm, const void *lease);
/* A client that has come back, or another one, holds the snapshot from now on. ENOENT; EBUSY: somebody else holds it. */
int vm_snapshot_lease(struct vm *vm, const char *uuid, const void *lease, struct error *err);

struct snapshot *vm_snapshot_find(const struct vm *vm, const char *name); /* NULL: none */
/* In the order of their cuts. Start with NULL; returns NULL after the last. */
struct snapshot *vm_snapshot_next(const struct vm *vm, const struct snapshot *after);

struct snapshot_info {
    const char *name, *uuid, *reason; /* reason: why it is broken, else NULL. Valid until the snapshot ends. */
    enum snapshot_state state;
    bool leased;
    bool restartable;                              /* it outlives kill -9 of the daemon */
    const char *bitmap;                            /* that it was limited to; NULL: all blocks are needed */
    const char *since_name, *since_uuid;           /* of the checkpoint that it was limited to; NULL: of none */
    const char *checkpoint_name, *checkpoint_uuid; /* that was made with it; NULL: none */
    uint64_t grace_left_ns; /* its client is gone: until it ends; 0: it has its client, or none */
    enum read_once read_once;
    uint64_t created_wall_ns;
    enum consistency consistency;
    const char
        *consistency_reason; /* why it is crash-consistent though the guest should have been frozen; NULL: no reason */
    uint64_t frozen_ns;      /* how long the guest was */
    uint64_t hold_ns;        /* how long the guest's writes were held, at most, by the cut that succeeded */
    unsigned cut_attempts;
};
void snapshot_info(const struct snapshot *snapshot, struct snapshot_info *info);

struct snapshot_disk_info {
    bool incremental;              /* limited to what changed since the checkpoint that was asked for */
    uint64_t dirty_bytes;          /* with `incremental` */
    const char *reason;            /* `since` was asked for: why this disk went full; NULL: it did not */
    bool checkpoint;               /* its part of the checkpoint was made */
    const char *checkpoint_reason; /* one was asked for: why this disk has none; NULL: it has */
};
void snapshot_disk_info(const struct snapshot *snapshot, unsigned disk_index, struct snapshot_disk_info *info);

/*
 * Where the blocks of a range of one disk are: `done` is called later with extents of enum residence_flags, one after the
 * other from range.start on. They cover the range, or less of it when it has more than LIMIT_STATUS_EXTENTS or takes very
 * long; then the caller asks on. -EBUSY: the snapshot is not live; -ENOMEM: in both cases `done` is not called.
 */
int vm_residence_query(struct vm *vm, struct snapshot *snapshot, unsigned disk_index, struct range range,
                       void (*done)(void *argument, int status, const struct block_extent *extents, unsigned count),
                       void *argument);

/* Of one disk at the cut: it may have grown since. */
uint64_t snapshot_size(const struct snapshot *snapshot, unsigned disk_index);
/* The view of one disk, to be used on its reactor while the snapshot is live and nobody ends it. */
struct node *snapshot_view(const struct snapshot *snapshot, unsigned disk_index);

/*
 * The disk grows while it is served, to that size; or (0) takes over the size that what it lies on has got by others. Waits
 * for its turn behind snapshots that are being made. `done` is called later with its size, or the reason: ENODEV, EINVAL,
 * ENOTSUP (its driver can't; it would get smaller), EFBIG (there is no room for that in its sidecar, or while snapshots
 * live), EBUSY, ETIMEDOUT (its writes did not drain).
 */
void vm_disk_grow(struct vm *vm, const char *disk, uint64_t size_bytes,
                  void (*done)(void *argument, uint64_t size_bytes, const struct error *err), void *argument);

struct vm_disk_status {
    const char *name;
    uint64_t size_bytes;
    struct disk_counters counters;
    uint64_t writes_in_flight, writes_held;
    bool filtered;             /* copy-before-write is in the graph */
    uint64_t blocks_preserved; /* ever */
    uint64_t copies_in_flight, writes_parked;
    uint64_t cache_blocks_now; /* all that follow */
    uint64_t ram_blocks, file_blocks, zero_blocks;
    uint64_t blocks_released; /* asked for by consumers; ever */
    uint64_t blocks_cut;      /* that they asked for only in part, so that they stayed; ever */
    uint64_t file_bytes;      /* of its cache file, now in use */
    uint64_t spilled_bytes;   /* ever */
    uint64_t block_bytes;
    struct write_sketch_answer recent; /* what the guest has written in the last minutes */
    unsigned bitmap_count;
    struct dirty_bitmap_status bitmaps[LIMIT_BITMAPS];
};

struct vm_status {
    unsigned disk_count;
    struct vm_disk_status disks[LIMIT_DISKS];
    uint64_t cache_bytes_now, cache_bytes_peak, cache_bytes_max; /* RAM of all disks, map included */
    uint64_t file_bytes_now, file_bytes_peak, file_bytes_max;    /* cache files of all disks */
};

/* Asks every reactor; `done` is called later, or at once with NULL: no memory. The status is freed after it returns. */
void vm_status_query(struct vm *vm, void (*done)(void *argument, const struct vm_status *status), void *argument);

#endif
