/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the files of a snapshot (vm/snapshot*.c) share: a snapshot, and its part on each disk. */
#ifndef FLEECE_VM_SNAPSHOT_INTERNAL_H
#define FLEECE_VM_SNAPSHOT_INTERNAL_H

#include "block/cut.h"
#include "fleece/snapshot_access.h"
#include "io/uuid.h"
#include "track/bitmap_copy.h"
#include "vm/vm_private.h"

enum snapshot_step {
    QUEUED,
    ADOPTED,
    OPENING,
    PREPARING,
    FREEZING,
    CUTTING,
    RECORDING,
    PUBLISHING,
    LIVE,
    ENDING,
    WITHDRAWING,
    FREEING,
    CLOSING
};

struct part;

struct map_copy { /* of changes since a checkpoint, until the cut; then the view shows it */
    struct bitmap_copy copy;
    struct part *part;
    const char *name; /* of the checkpoint */
};

struct part { /* of a snapshot, on one disk */
    struct io_message message;
    struct snapshot *snapshot;
    struct vm_disk *vd;
    void (*work)(struct part *part); /* on the disk's reactor; calls part_back() when it is done, then or later */
    struct point *point;
    struct node *view, *through;
    struct cbw_waiter quiet;
    uint64_t store_at; /* of the needed set, while it is stored for the next daemon */
    struct io_timer store_on;
    struct bitmap_copy needed; /* of the dirty bitmap or the changes that the snapshot is limited to, until the cut */
    struct map_copy *maps;     /* of changes since checkpoints, that the view shows: those that the disk knows */
    unsigned map_count;
    unsigned preparing; /* steps of PREPARING that are under way */
    bool incremental;   /* limited to what changed since snapshot->since */
    uint64_t dirty_bytes;
    char full_reason[LIMIT_ERROR_BYTES]; /* why it is not; empty: it is, or need not be */
    /* Its part of the checkpoint that is made with the snapshot: */
    enum { UNTRACKED, PREPARED, CUT } checkpoint;
    bool recorded; /* it was made */
    struct tracker_op tracker_op;
    char checkpoint_reason[LIMIT_ERROR_BYTES]; /* why it has none */
    bool published;
    int status;
    struct error error;
    char export_name[2 * LIMIT_NAME_BYTES + 2];
};

struct snapshot {
    struct list_node link;
    struct vm *vm;
    enum snapshot_step step;
    char name[LIMIT_NAME_BYTES + 1], uuid[UUID_TEXT_BYTES], reason[LIMIT_ERROR_BYTES];
    bool broken, doomed, no_export;
    bool bare; /* a checkpoint alone: no view, no filter */
    const void *lease;
    uint64_t grace_ns, grace_until_ns;
    struct io_timer grace; /* its client is gone */
    bool ephemeral, adopted;
    unsigned number;                             /* in the table that outlives the daemon */
    struct snapshot_record *record;              /* NULL: the snapshot does not */
    struct checkpoint_id checkpoint;             /* that is made with it; name "": none */
    struct checkpoint_id since;                  /* that it is limited to; name "": none */
    struct checkpoint_id maps[LIMIT_DIRTY_MAPS]; /* that the views show: `since` first */
    unsigned map_count;
    enum read_once read_once;
    enum through_mode through_mode;
    char bitmap[LIMIT_NAME_BYTES + 1]; /* that it is limited to; "": it is not */
    uint32_t epoch;
    enum consistency_wish consistency_wish;
    enum consistency consistency;
    char consistency_reason[LIMIT_ERROR_BYTES]; /* why it is crash-consistent; "": nobody wanted anything else */
    bool frozen, settling;                      /* the guest is, for the cut; it has been told to thaw */
    uint64_t frozen_ns, freeze_began_ns;
    void (*when_settled)(struct snapshot *snapshot);
    uint64_t created_wall_ns, hold_ns, drain_ns, give_up_ns;
    unsigned attempts;
    struct cut cut;
    struct cut_disk cut_disks[LIMIT_DISKS];
    struct io_timer pause;
    struct error failure; /* why it could not be made; code 0: none */
    void (*created)(void *argument, struct snapshot *snapshot, const struct error *err);
    void *created_argument;
    void (*deleted)(void *argument, const struct error *err);
    void *deleted_argument;
    unsigned parts_out;
    unsigned holds; /* of its views, by snapshot_hold() */
    void (*parts_done)(struct snapshot *snapshot);
    struct part parts[]; /* one for each disk of the VM */
};

/* snapshot_part.c: runs `work` for every disk on its reactor, then `done` here. */
void parts_send(struct snapshot *snapshot, void (*work)(struct part *part), void (*done)(struct snapshot *snapshot));

/* The work of the steps, on the disk's reactor. PREPARING: filter, point, view and needed set are made. */
void part_prepare(struct part *part);
/* PREPARING goes on: one step of it is done on this disk. */
void part_prepared(struct part *part);
/* The work is done. */
void part_back(struct part *part);
/* CUTTING: at the instant itself. */
void part_cut(struct cut_disk *cut_disk);
/* PUBLISHING: what it needs is stored for the next daemon, on the disk as well. */
void part_store(struct part *part);
/* ENDING: the point dies. */
void part_end(struct part *part);
/* FREEING: view and point go; it waits until what they leave has been freed. */
void part_free(struct part *part);
/* CLOSING: it was the last snapshot, the filter goes. */
void part_close(struct part *part);
/* The filter of the disk, and the view of the point; part->status. */
void part_make_filter(struct part *part);
int part_make_view(struct part *part);

/* snapshot_record.c: what of a snapshot outlives the daemon. Before the filters are made: a table. */
void snapshot_table_begin(struct vm *vm);
/* What the table says of the disks. */
void snapshot_table_disks(const struct vm *vm, struct snapshot_table_disk disks[LIMIT_DISKS]);
/* On a disk's reactor, with its filter: from now on the table knows when nobody but us has changed the disk. */
void snapshot_watch_begin(struct vm_disk *vd);
/* With its epoch: a record, if it is to have one. Not there yet for the next daemon. */
void snapshot_record_make(struct snapshot *snapshot);
/* It is whole on all disks: from now on it is there. */
void snapshot_record_commit(struct snapshot *snapshot);
void snapshot_record_broke(struct snapshot *snapshot);
/* Before it ends on any disk; and when nothing of it is left there. */
void snapshot_record_end(struct snapshot *snapshot);
void snapshot_record_free(struct snapshot *snapshot);

/* snapshot.c: it goes on to another step; its turn to be made has come (QUEUED); exports of an adopted one can be made. */
void snapshot_move(struct snapshot *snapshot, enum snapshot_step to);
void snapshot_begin(struct snapshot *snapshot);
void snapshot_adopted(struct snapshot *snapshot);
/* restart.c: the exports of one of them are there, or can't be. */
void adopted_published(struct vm *vm);

/* snapshots.c: it is made, or as good as that: the next one in the queue may be prepared and cut. */
void snapshot_turn_over(struct vm *vm);
/* One of the snapshots that a killed daemon has left, NULL: no memory; and when it can't be had after all, with
 * snapshot->failure. */
struct snapshot *snapshot_adopt(struct vm *vm, unsigned number);
void snapshot_bury(struct snapshot *snapshot);
/* It is broken from now on, for snapshot->reason, and whoever has it is told. */
void snapshot_broke(struct snapshot *snapshot);

/* snapshot_end.c: a live one ends now. And: any one ends now, or as soon as the step that it is in is over. */
void snapshot_end(struct snapshot *snapshot);
void snapshot_doom(struct snapshot *snapshot);
/* One that never went live, or nobody reads any more, ends: FREEING and what comes after that. */
void snapshot_free(struct snapshot *snapshot);
/* Nobody waits for it any more, which is its failure; `fate`: what became of it. */
void snapshot_forsaken(struct snapshot *snapshot, const char *fate);
/* snapshot_lease.c: its client is gone; its grace time is over. */
void snapshot_wait_for_lease(struct snapshot *snapshot);
void snapshot_grace_over(struct io_timer *timer);

/* snapshot_freeze.c: whether the guest is to be frozen for it; do so, and call snapshot_frozen() (snapshot.c) later, with
 * snapshot->frozen; let it thaw, if it is. */
bool snapshot_wants_freeze(const struct snapshot *snapshot);
void snapshot_freeze(struct snapshot *snapshot);
void snapshot_frozen(struct snapshot *snapshot);
void snapshot_thaw(struct snapshot *snapshot);
/* next(snapshot), now or when it is known how the guest's freeze went. */
void snapshot_when_settled(struct snapshot *snapshot, void (*next)(struct snapshot *snapshot));
/* -EAGAIN with a sentence: it had to be more than crash-consistent, and is not. */
int snapshot_check_consistency(const struct snapshot *snapshot, struct error *err);

/* snapshots.c: a checkpoint alone: cut and recorded; done() with the snapshot (then it is freed) or the reason. NULL: it is
 * refused at once. */
struct snapshot *snapshot_create_bare(struct vm *vm, const char *checkpoint,
                                      void (*done)(void *argument, struct snapshot *snapshot, const struct error *err),
                                      void *argument, struct error *err);

/* snapshot_checkpoint.c: what a snapshot has to do with checkpoints. */
/* Looks up what the options name; makes up the new checkpoint. -ENOENT, -EEXIST, -EINVAL, -ENOSPC with a sentence. */
int snapshot_checkpoints_choose(struct snapshot *snapshot, const struct snapshot_options *options, struct error *err);
/* OPENING: disks without a sidecar get one when a checkpoint is to be made; opened(vd) for each, now or later. */
void snapshot_sidecars_open(struct snapshot *snapshot, void (*opened)(struct vm_disk *vd));
/* On the disk's reactor. PREPARING: the new span, the copies of changes; counts in part->preparing. */
void part_prepare_checkpoint(struct part *part);
void part_prepare_changes(struct part *part);
/* At the cut. */
void part_cut_checkpoint(struct part *part);
/* RECORDING: the checkpoint becomes durable on this disk. */
void part_record(struct part *part);
/* FREEING: what was prepared and not cut. */
void part_free_checkpoint(struct part *part);
/* After RECORDING: the table has it. -EIO with a sentence when no disk has. */
int snapshot_checkpoint_enter(struct snapshot *snapshot, struct error *err);
/* The snapshot is there: so is its checkpoint. */
void snapshot_checkpoint_tell(const struct snapshot *snapshot);
/* It is there again after a restart: its checkpoint waits for the same client, for as long as it does. */
void snapshot_checkpoint_adopted(const struct snapshot *snapshot);
/* The snapshot could not be made: nor was its checkpoint. */
void snapshot_checkpoint_drop(struct snapshot *snapshot);

#endif
