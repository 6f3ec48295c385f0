/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Copy-before-write: the filter of one disk that preserves old blocks for its points before the guest overwrites them,
 * and the list of those points. Owner: the disk's reactor. It stands in the graph only while a point is live.
 */
#ifndef FLEECE_FLEECE_COPY_BEFORE_WRITE_H
#define FLEECE_FLEECE_COPY_BEFORE_WRITE_H

#include "base/bitmap.h"
#include "block/disk.h"
#include "fleece/budget.h"
#include "fleece/fleecing_cache.h"
#include "fleece/needed_memory.h"
#include "fleece/read_gate.h"

struct copy_before_write;

enum point_state {
    POINT_PREPARED, /* made before the cut; its view answers nothing yet */
    POINT_LIVE,     /* its view is whole */
    POINT_BROKEN,   /* a block that it needed was lost: reads fail */
    POINT_DELETED,  /* reads fail; waits to be freed */
};

enum through_mode { THROUGH_NEVER, THROUGH_ALWAYS, THROUGH_WHEN_FULL };

struct point { /* one disk's part of a snapshot */
    struct list_node link;
    struct copy_before_write *cbw;
    uint32_t epoch; /* of the snapshot: the same on all disks of the VM */
    enum point_state state;
    uint64_t size_bytes;          /* of the disk at the cut; it may have grown since */
    bool broken_early;            /* another disk, cut earlier, lost a block of it before this disk heard of the cut */
    struct bitmap needed;         /* by block: what a reader may still ask for */
    struct needed_memory stored;  /* the same, for the next daemon; see point_keep() */
    struct needed_memory changed; /* ... and as it was at the cut; see point_keep_changed() */
    atomic_uint *broken;          /* where it is noted for the next daemon that the snapshot broke; NULL: nowhere */
    bool loses;                   /* a block that it needs; it breaks in the same step */
    uint64_t released_ns;         /* when a consumer last released something; 0: never */
    struct node *through;         /* see point_write_through() */
    enum through_mode through_mode;
};

enum cbw_loss {
    LOST_OLD_DATA, /* could not be read from the disk before a write */
    LOST_CACHED,   /* could not be read from the cache file */
    LOST_TARGET,   /* could not be written to the target that takes it instead of the cache */
};

struct cbw_hooks { /* on the disk's reactor; they must not call back into the filter */
    void *context;
    /*
     * No room to preserve, and writes wait for it. Asked once; call cbw_retry() when something may have changed.
     * overdue: they have waited as long as they may. failure: -errno of what keeps the cache file from helping, or 0.
     */
    void (*full)(void *context, uint32_t oldest_live_epoch, bool overdue, int failure);
    /* Room of the budget came back while somebody wanted it (budget->wanted). */
    void (*freed)(void *context);
    /* This point has been broken here; the other disks must follow. */
    void (*lost)(void *context, uint32_t epoch, enum cbw_loss loss, int status);
};

struct cbw_waiter {
    struct list_node link;
    bool swept_only; /* does not wait for what is under way */
    void (*quiet)(struct cbw_waiter *waiter);
};

struct cbw_options {
    struct disk *disk;
    struct budget *ram_budget;
    uint64_t block_bytes, segment_bytes;
    struct node *file; /* the cache file, for as long as the filter is; NULL: RAM only */
    struct cache_memory
        *memory; /* that outlives the daemon, as long as the filter, named or adopted; NULL: there is none */
    const struct cache_file_id *file_id; /* of `file`, for the next daemon */
    struct budget *file_budget;
    uint64_t timeout_ns; /* how long a write may wait for room */
    bool copy_on_read;   /* what is read is kept in spare RAM */
    struct cbw_hooks hooks;
};

/* Takes addresses and pools, no cache memory yet. 0 or -errno with a sentence. */
int cbw_create(const struct cbw_options *options, struct copy_before_write **cbw, struct error *err);
/* No point is left, and it is quiet. */
void cbw_destroy(struct copy_before_write *cbw);

/* How many blocks the disk has now: bits of a needed set that is made now. */
uint64_t cbw_block_count(const struct copy_before_write *cbw);
/* The largest disk that there is room for: so far it may grow while the filter is there. */
uint64_t cbw_room_bytes(const struct copy_before_write *cbw);
/* The disk will get that size, at most cbw_room_bytes(): to be told before it is extended. */
void cbw_announce_growth(struct copy_before_write *cbw, uint64_t size_bytes);
/* The disk has a new size, and no write in flight. No point is prepared; those that there are keep theirs. */
void cbw_grow(struct copy_before_write *cbw);
/* `needed`: the blocks that the point needs; taken over, also on failure. NULL: all of them. NULL: no memory. */
struct point *point_create(struct copy_before_write *cbw, uint32_t epoch, struct bitmap *needed);
/*
 * Before it goes live: it outlives the daemon, under this number of the table of snapshots. *broken is set when it breaks,
 * before any write relies on that (C12). point_store_needed() must be over before the table says that the snapshot is there.
 * 0, or -ENOSPC.
 */
int point_keep(struct point *point, unsigned number, atomic_uint *broken);
/* Stores what the point needs, in steps: from *at (0) on, until *at is 0 again. 0, or -ENOSPC. */
int point_store_needed(struct point *point, uint64_t *at);
/* It needs only what had changed: what that was at the cut is kept as well, by point_store_needed(), whatever is released
 * later. After point_keep(), before it goes live. 0, or -ENOSPC. */
int point_keep_changed(struct point *point, unsigned number);
/* Of a point that was adopted: *changed, which is not initialised, is what it needed at its cut. 0, -ENOMEM, -EINVAL. */
int point_adopt_changed(struct point *point, unsigned number, struct bitmap *changed);
/*
 * After cbw_create() with an adopted memory, before anything is served, oldest first: the point as it was, live or broken.
 * NULL: no memory, or it is not right. When all disks have come so far, cbw_adopted(), once: what serves none of the points
 * is freed, and space that nothing lies in is charged, and given back.
 */
struct point *point_adopt(struct copy_before_write *cbw, uint32_t epoch, unsigned number, atomic_uint *broken);
void cbw_adopted(struct copy_before_write *cbw);
/* Before it goes live: it needs the blocks of `needed` instead; they are exchanged, so that this takes and frees nothing. */
void point_limit(struct point *point, struct bitmap *needed);
/* At the cut: no write is in flight. From now on the point's blocks are preserved. Cannot fail. */
void point_go_live(struct point *point);
/* At once: reads fail, writes preserve nothing more for it. What served it alone is freed in the background. */
void point_end(struct point *point);
/* After point_end(), or never live; no read of it is under way. */
void point_free(struct point *point);
/*
 * The consumer has what lies in the range. Blocks that lie whole in it are needed no more: reads of them fail from now on,
 * and what served them alone is freed at once. The range is LIMIT_NBD_RANGE_BYTES at most. 0; -ENOMEM: partly done.
 */
int point_release(struct point *point, struct range range);

/*
 * Old data that only this point needs goes straight to `target` (a node of the disk's size, on its reactor) before the
 * guest's write goes on: the blocks are released for the point when they are there. THROUGH_ALWAYS: for contrast, there is
 * no cache; THROUGH_WHEN_FULL: where the cache has no room. A write waits for the target for the filter's time-out at most,
 * then the point breaks (LOST_TARGET). Before the point goes live. 0 or -ENOMEM.
 */
int point_write_through(struct point *point, struct node *target, enum through_mode mode);

/* Breaks the live points with first <= epoch <= last; prepared ones will go live broken. */
void cbw_break(struct copy_before_write *cbw, uint32_t first_epoch, uint32_t last_epoch);
/* Blocks of the point that are in the cache file could not be read: breaks all points that they served. */
void point_lost_cached(struct point *point, struct block_range blocks, int status);
/* Room may be there: writes that wait for it are decided again. */
void cbw_retry(struct copy_before_write *cbw);
/* Makes room by what costs nobody anything; whether some may come, now or soon: by that, or by a consumer's releases. */
bool cbw_squeeze(struct copy_before_write *cbw);
/* Calls back later, once nothing is left to free in the background, and nothing is under way if there are no points. */
void cbw_when_quiet(struct copy_before_write *cbw, struct cbw_waiter *waiter);
bool cbw_has_points(const struct copy_before_write *cbw);

/* For the point's view (snapshot_access): where a block of it is now. PLACE_NONE: on the disk, unchanged since the cut. */
uint32_t point_place(const struct point *point, uint64_t block);
const struct fleecing_cache *cbw_cache(const struct copy_before_write *cbw);
/* Bytes of the range were read from the disk, by a request that was begun at a time when `epoch` was the newest
 * live one: whole blocks of them that no write has passed are kept, if there is spare RAM. */
void cbw_keep_read(struct copy_before_write *cbw, struct range range, const struct iovec *iov, unsigned iov_count,
                   uint32_t epoch);
/* Of the newest live point; 0: there is none. */
uint32_t cbw_newest_live(const struct copy_before_write *cbw);
struct disk *cbw_disk(const struct copy_before_write *cbw);
unsigned cbw_block_shift(const struct copy_before_write *cbw);
/* What views go through before they read the disk. */
struct read_gate *cbw_read_gate(struct copy_before_write *cbw);

struct cbw_status {
    uint64_t blocks_preserved; /* since it was created */
    uint64_t blocks_released;  /* asked for by consumers */
    uint64_t blocks_cut;       /* that such requests covered only in part: they stay */
    struct fleecing_cache_status cache;
    uint32_t copies_in_flight, writes_parked;
};
void cbw_status(const struct copy_before_write *cbw, struct cbw_status *status);

#endif
