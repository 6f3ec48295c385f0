/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Change tracking of one disk that outlives the daemon: which blocks have changed since each checkpoint.
 *
 * The checkpoints of a disk are in the order of time, and between two of them lies a *span*: the bitmap of what changed
 * from one to the next; the last span is being recorded. So "changed since checkpoint k" is the union of the spans from k
 * on; a write sets bits in one bitmap only, however many checkpoints there are; a checkpoint that is removed merges its
 * span into the one before, and the first one's is dropped.
 *
 * The spans live in named shared memory (adopted after kill -9, exact) and in the sidecar file (read after a power loss,
 * together with the active extents of the activity log: a superset). docs/formats/sidecar.md has the format.
 *
 * Owner: the disk's reactor, for everything here. Nothing blocks. `struct tracker_op` is a request to the tracker: its
 * done() is called exactly once, later, on the owner thread; requests run one after the other in the order of the calls.
 */
#ifndef FLEECE_TRACK_TRACKER_H
#define FLEECE_TRACK_TRACKER_H

#include "base/error.h"
#include "block/disk.h"
#include "io/uuid.h"
#include "track/disk_watch.h"

struct tracker;

enum checkpoint_state {
    CHECKPOINT_PENDING, /* recorded, but the backup that it was made for has not said that its data is safe (C21) */
    CHECKPOINT_COMMITTED,
    CHECKPOINT_INVALID, /* changes since then may be unknown: it can only be removed; see `reason` */
};

struct checkpoint_id { /* the same on all disks of a VM */
    char name[LIMIT_NAME_BYTES + 1];
    char uuid[UUID_TEXT_BYTES];
    uint64_t created_wall_ns;
};

struct checkpoint_info { /* of one disk */
    struct checkpoint_id id;
    enum checkpoint_state state;
    uint64_t changed_bytes; /* since then; at most the size of the disk; 0 when it is invalid */
    uint64_t memory_bytes;  /* of its span, in shared memory */
    uint64_t file_bytes;    /* of its span, in the sidecar */
};

struct tracker_options {
    struct node *sidecar;          /* its file, open and locked; the tracker takes it over */
    bool create;                   /* it is new: nothing in it is looked at */
    uint64_t granularity_bytes;    /* with `create`: of the bitmaps; 0: BLOCK_BYTES_DEFAULT */
    unsigned slots;                /* extents active at once; 0: as many as a log block names (tests want few) */
    struct io_shm_name memory;     /* copied */
    struct disk_identity identity; /* of the disk, before this daemon wrote anything; size 0 for disks without */
    struct disk_identity (*identify)(void *context); /* the same later; on the owner thread, must not block */
    void *identify_context;
    /* Durable proof elsewhere that the sidecar is void, when the sidecar itself takes no writes any more (C20): removes it,
     * or leaves a tombstone. Called on a helper thread. 0 or -errno. */
    int (*condemn)(void *context, const char *reason);
    void *condemn_context;
    /* Tracking has ended by itself, with the reason: every checkpoint of the disk is invalid. Those that are made later may
     * become so in their turn. On the owner thread, also inside a call. */
    void (*invalidated)(void *context, const char *reason);
    void *invalidated_context;
};

struct tracker_op {
    void (*done)(struct tracker_op *op); /* status and error are set */
    int status;
    struct error error;
    /* Private: */
    struct list_node link;
    struct tracker *tracker;
    void (*run)(struct tracker_op *op);
    struct checkpoint_id id;
    uint64_t size_bytes;
};

/* How long the (sparse) file of a new sidecar is to be made: room for all checkpoints, and for a disk that grows. */
uint64_t tracker_sidecar_bytes(uint64_t disk_bytes, uint64_t granularity_bytes);

/* Takes over the sidecar, also on failure (NULL: no memory). Nothing is read yet; the disk must not be written before
 * tracker_open() is done. */
struct tracker *tracker_create(struct disk *disk, const struct tracker_options *options);

/*
 * Recovers, and makes the disk ask the tracker about every write from then on (disk->gate).
 * 0 also when checkpoints turned out to be invalid: they say so. -EBADMSG: the sidecar is malformed; the sentence names the
 * byte range and what to do (fleece checkpoint reset).
 */
void tracker_open(struct tracker *tracker, struct tracker_op *op);
/* Makes everything durable, notes the disk's identity and samples of it, and marks the sidecar as closed in good order.
 * No write may be in flight or come any more. */
void tracker_close(struct tracker *tracker, struct tracker_op *op);
/* After tracker_close(), or when it is not wanted. Removes the shared memory after a close in good order. */
void tracker_destroy(struct tracker *tracker);

/* --- a checkpoint's life: prepare -> cut -> record -> commit -> remove */

/* Everything that can fail or takes memory, before the guest is held: -EEXIST (name or uuid), -ENOSPC (too many), -ENOMEM.
 * Until the cut nothing is visible. One at a time. */
void tracker_prepare(struct tracker *tracker, const struct checkpoint_id *id, struct tracker_op *op);
/* It was prepared, but will not be cut. At once; takes no memory. */
void tracker_abandon(struct tracker *tracker);
/* At the instant of the cut, no write in flight: from here on writes belong to the new span, and also to the one before
 * until the checkpoint is recorded. At once; never fails. */
void tracker_cut(struct tracker *tracker);
/* After the resume: flushes the disk (C1), then names the checkpoint durably, as pending. On failure the checkpoint is gone
 * and the span before goes on as if nothing had happened; a failed flush makes all checkpoints invalid. */
void tracker_record(struct tracker *tracker, struct tracker_op *op);
/* Durably committed; again is no error. -ENOENT. */
void tracker_commit(struct tracker *tracker, const char *uuid, struct tracker_op *op);
/* Merges its span into the one before and forgets it, durably; -ENOENT. While it is under way the checkpoint is still
 * there. When the sidecar takes no writes any more it is enough that it has been condemned; else -EIO, and only a reset
 * helps. */
void tracker_remove(struct tracker *tracker, const char *uuid, struct tracker_op *op);
/* Everything is void, for this reason, durably: all checkpoints become invalid. */
void tracker_invalidate(struct tracker *tracker, const char *reason, struct tracker_op *op);

/* --- the disk grows (C22): announce -> grow -> record. No checkpoint is prepared meanwhile. */

/* Before it is extended: notes durably that it may have that size the next time, by our doing, and takes all memory and
 * room that this takes. -EFBIG (the sidecar is made for smaller disks), -ENOSPC, -EIO: then nothing else is called. */
void tracker_announce_growth(struct tracker *tracker, uint64_t size_bytes, struct tracker_op *op);
/* At once: the disk does not grow after all, though perhaps what it lies on has. */
void tracker_forgo_growth(struct tracker *tracker);
/* At once; no write is in flight, and the disk has its new size: what was added is dirty since every checkpoint. */
void tracker_grow(struct tracker *tracker);
/* The new size is stable: names it durably. A failure makes all checkpoints invalid. */
void tracker_record_growth(struct tracker *tracker, struct tracker_op *op);

/* --- questions, answered at once */

uint64_t tracker_granularity(const struct tracker *tracker);
/* Up to `max` checkpoints, oldest first; returns how many there are. */
unsigned tracker_checkpoints(const struct tracker *tracker, struct checkpoint_info *infos, unsigned max);
/* Why nothing can be trusted; NULL: all is well. */
const char *tracker_invalid_reason(const struct tracker *tracker);
/* Why those checkpoints are invalid that are, also when later ones are right; of no meaning when there is none. */
const char *tracker_lost_reason(const struct tracker *tracker);
/* How the last tracker_open() came to what it knows. */
enum tracker_recovery { TRACKER_NEW, TRACKER_CLEAN, TRACKER_ADOPTED, TRACKER_REPLAYED, TRACKER_VOID };
enum tracker_recovery tracker_recovery(const struct tracker *tracker);

struct tracker_counters {                                  /* ever, since the daemon started */
    uint64_t activations;                                  /* of extents */
    uint64_t log_writes, page_writes, super_writes, syncs; /* requests to the sidecar */
    uint64_t writes_parked;                                /* writes of the guest that waited for the log */
    uint64_t active_now, slots;
};
void tracker_counters(const struct tracker *tracker, struct tracker_counters *counters);

/* --- what changed since a checkpoint, for needed sets and block status */

/*
 * The first run of changed bytes at or after `from`, in the union of the spans since the checkpoint, looking at
 * LIMIT_BITMAP_STEP_CHUNKS pages at most; an empty range: none was found, go on at *next (the size of
 * the disk: there are no more).
 * -ENOENT, -ESTALE (invalid).
 */
int tracker_changed(const struct tracker *tracker, const char *uuid, uint64_t from, struct range *run, uint64_t *next);

#endif
