/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Copy-before-write: the filter of one disk that preserves old blocks for its points before the guest overwrites them,
 * and the list of those points. Owner: the disk's reactor. It stands in the graph only while a point is live.
 */
#ifndef FLEECE_FLEECE_COPY_BEFORE_WRITE_H
#define FLEECE_FLEECE_COPY_BEFORE_WRITE_H

#include "block/disk.h"
#include "fleece/budget.h"
#include "fleece/read_gate.h"

struct copy_before_write;

enum point_state {
    POINT_PREPARED, /* made before the cut; its view answers nothing yet */
    POINT_LIVE,     /* its view is whole */
    POINT_BROKEN,   /* a block that it needed was lost: reads fail */
    POINT_DELETED,  /* reads fail; waits to be freed */
};

struct point { /* one disk's part of a snapshot */
    struct list_node link;
    struct copy_before_write *cbw;
    uint32_t epoch; /* of the snapshot: the same on all disks of the VM */
    enum point_state state;
    bool broken_early; /* another disk, cut earlier, lost a block of it before this disk heard of the cut */
};

struct cbw_hooks { /* on the disk's reactor; they must not call back into the filter */
    void *context;
    /* No room to preserve, and writes wait for it. Asked once; call cbw_retry() when something may have changed. */
    void (*full)(void *context, uint32_t oldest_live_epoch);
    /* Old data could not be read: these points have been broken here; the other disks must follow. */
    void (*lost)(void *context, uint32_t first_epoch, uint32_t last_epoch, int status);
};

struct cbw_waiter {
    struct list_node link;
    void (*quiet)(struct cbw_waiter *waiter);
};

struct cbw_options {
    struct disk *disk;
    struct budget *budget;
    uint64_t block_bytes, segment_bytes;
    struct cbw_hooks hooks;
};

/* Takes addresses and pools, no cache memory yet. 0 or -errno with a sentence. */
int cbw_create(const struct cbw_options *options, struct copy_before_write **cbw, struct error *err);
/* No point is left, and it is quiet. */
void cbw_destroy(struct copy_before_write *cbw);

struct point *point_create(struct copy_before_write *cbw, uint32_t epoch); /* NULL: no memory */
/* At the cut: no write is in flight. From now on the point's blocks are preserved. Cannot fail. */
void point_go_live(struct point *point);
/* At once: reads fail, writes preserve nothing more for it. What served it alone is freed in the background. */
void point_end(struct point *point);
/* After point_end(), or never live; no read of it is under way. */
void point_free(struct point *point);

/* Breaks the live points with first <= epoch <= last; prepared ones will go live broken. */
void cbw_break(struct copy_before_write *cbw, uint32_t first_epoch, uint32_t last_epoch);
/* Room may be there: writes that wait for it are decided again. */
void cbw_retry(struct copy_before_write *cbw);
/* Calls back later, once nothing is left to free in the background, and nothing is under way if there are no points. */
void cbw_when_quiet(struct copy_before_write *cbw, struct cbw_waiter *waiter);
bool cbw_has_points(const struct copy_before_write *cbw);

/* For the point's view (snapshot_access): where a block of it is now. NULL: on the disk, unchanged since the cut. */
const char *point_preserved(const struct point *point, uint64_t block);
/* Whether anything at all has been preserved. */
bool cbw_is_empty(const struct copy_before_write *cbw);
struct disk *cbw_disk(const struct copy_before_write *cbw);
unsigned cbw_block_shift(const struct copy_before_write *cbw);
/* What views go through before they read the disk. */
struct read_gate *cbw_read_gate(struct copy_before_write *cbw);

struct cbw_status {
    uint64_t blocks_preserved; /* since it was created */
    uint32_t slots_used, copies_in_flight, writes_parked;
};
void cbw_status(const struct copy_before_write *cbw, struct cbw_status *status);

#endif
