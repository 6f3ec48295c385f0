/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Room in the fleecing cache, over all disks of a VM: what happens when a disk has none left, or has lost old data.
 * Lives on one reactor, so that the guest's progress never depends on the control thread.
 */
#ifndef FLEECE_VM_ROOM_H
#define FLEECE_VM_ROOM_H

#include <stdatomic.h>

#include "fleece/copy_before_write.h"

struct room;
struct vm_disk;

/* A message that carries no more than "look": sent again while it is on its way, it arrives once. */
struct nudge {
    struct io_message message;
    atomic_bool on_its_way;
};
void nudge_send(struct nudge *nudge, struct io *to);
/* At the beginning of deliver(): from here on it can be sent again. */
void nudge_received(struct nudge *nudge);

struct loss { /* of a point: by its epoch */
    uint32_t epoch;
    unsigned how; /* enum cbw_loss */
    int status;
};

/* Points that lost a block and have not been asked about yet, each once, with its first loss. As many as there can be: no
 * snapshot comes or goes past a thread that does not ask. From any thread, and any thread asks. */
struct losses {
    atomic_ullong places[2 * LIMIT_SNAPSHOTS]; /* 0: free */
};
void losses_note(struct losses *losses, struct loss loss);
/* One of them, and forgets it. False: there is none. */
bool losses_take(struct losses *losses, struct loss *loss);

struct room_disk { /* one disk's dealings with the room; part of struct vm_disk */
    struct room *room;
    struct disk *disk;
    struct copy_before_write **cbw; /* the disk's filter, if any; its reactor's */
    /* Disk's reactor -> room: */
    struct nudge ask, freed;
    atomic_uint full_epoch; /* the oldest point that would have to go; 0: none */
    atomic_bool overdue;    /* its writes have waited as long as they may */
    atomic_int failure;     /* of its cache file */
    /* Other disks' reactors -> this one's: points that lost a block there. */
    struct nudge breaks;
    struct losses losses;
    /* Room -> disk's reactor and back: */
    struct io_message order;
    struct cbw_waiter swept;
    struct io_task retried;
    bool hopeful; /* room may come of itself: of a spill, or of a consumer that releases */
};

struct room_shortage { /* why the oldest points had to go */
    uint32_t through_epoch;
    bool overdue; /* writes had waited for their time-out */
    int failure;  /* -errno of a cache file; 0: the budgets were spent */
};

struct room_hooks { /* on the control thread */
    void *context;
    /* All points up to this epoch are broken for want of room. Idempotent. */
    void (*ran_out)(void *context, struct room_shortage shortage);
};

struct room *room_create(struct io *io, struct io *control, struct budget *ram_budget, struct room_disk **disks,
                         unsigned disk_count, const struct room_hooks *hooks);
/* Control thread: calls back there when no round is under way. No point is left. Then the room may be freed. */
void room_when_idle(struct room *room, void (*idle)(void *argument), void *argument);
void room_destroy(struct room *room);

/* On the disk's reactor: the hooks of its copy-before-write. */
void room_full(struct room_disk *disk, uint32_t oldest_live_epoch, bool overdue, int failure);
void room_freed(struct room_disk *disk);
void room_lost(struct room_disk *disk, struct loss loss);

#endif
