/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What snapshot.c and snapshot_part.c share: a snapshot, and its part on each disk. */
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
    CUTTING,
    PUBLISHING,
    LIVE,
    ENDING,
    WITHDRAWING,
    FREEING,
    CLOSING
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
    struct bitmap_copy needed; /* of the dirty bitmap that the snapshot is limited to, until the cut */
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
    const void *lease;
    uint64_t grace_ns, grace_until_ns;
    struct io_timer grace; /* its client is gone */
    bool ephemeral, adopted;
    unsigned number;                /* in the table that outlives the daemon */
    struct snapshot_record *record; /* NULL: the snapshot does not */
    enum read_once read_once;
    enum through_mode through_mode;
    char bitmap[LIMIT_NAME_BYTES + 1]; /* that it is limited to; "": it is not */
    uint32_t epoch;
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
/* The work is done. */
void part_back(struct part *part);
/* CUTTING: at the instant itself. */
void part_cut(struct cut_disk *cut_disk);
/* PUBLISHING: what it needs is stored for the next daemon. */
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
/* With its epoch: a record, if it is to have one. Not there yet for the next daemon. */
void snapshot_record_make(struct snapshot *snapshot);
/* It is whole on all disks: from now on it is there. */
void snapshot_record_commit(struct snapshot *snapshot);
void snapshot_record_broke(struct snapshot *snapshot);
/* Before it ends on any disk; and when nothing of it is left there. */
void snapshot_record_end(struct snapshot *snapshot);
void snapshot_record_free(struct snapshot *snapshot);

/* snapshot.c: one of the snapshots that a killed daemon has left, NULL: no memory; when exports can be made; and when it
 * can't be had after all, with snapshot->failure. */
struct snapshot *snapshot_adopt(struct vm *vm, unsigned number);
void snapshot_adopted(struct snapshot *snapshot);
void snapshot_bury(struct snapshot *snapshot);

#endif
