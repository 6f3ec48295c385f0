/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The table of a VM's snapshots that outlives the daemon: shared memory beside that of the disks' caches. It says which
 * snapshots there are; the memory of the disks says what is in them. Control thread, but for the word `broken`, which any
 * disk's reactor sets.
 */
#ifndef FLEECE_VM_SNAPSHOT_TABLE_H
#define FLEECE_VM_SNAPSHOT_TABLE_H

#include <stdatomic.h>

#include "fleece/cache_memory.h"
#include "io/uuid.h"
#include "track/tracker.h"

enum record_state {
    RECORD_FREE,
    RECORD_MAKING, /* a restart finds nothing of it */
    RECORD_LIVE,   /* the one word that makes the snapshot, on all disks (C2) */
    RECORD_ENDED,  /* the same as before it was made; its memory is still being given back */
};

struct snapshot_record {
    atomic_uint state;  /* enum record_state */
    atomic_uint broken; /* a block of it was lost, or it ran out of room; set before a write relies on it (C12) */
    uint32_t epoch, cut_attempts;
    uint32_t leased, no_export, read_once, consistency; /* enum read_once, enum consistency */
    uint64_t created_wall_ns, hold_ns, frozen_ns, grace_ns;
    uint64_t incremental; /* a bit for each disk, in the order of the table: limited to what changed since `since` */
    struct checkpoint_id since, checkpoint; /* that it is limited to, that was made with it; names "": none */
    char name[LIMIT_NAME_BYTES + 1], uuid[UUID_TEXT_BYTES];
    char bitmap[LIMIT_NAME_BYTES + 1]; /* that it is limited to; "": it is not */
    char reason[LIMIT_ERROR_BYTES];    /* of `broken`; "" until it is known */
    char consistency_reason[LIMIT_ERROR_BYTES];
};

struct snapshot_table_layout;

struct snapshot_table {
    struct io *io;
    const char *folder;
    struct io_shm shm;
    struct snapshot_table_layout *layout; /* NULL: there is none */
    struct snapshot_record *records;      /* LIMIT_SNAPSHOTS */
};

struct snapshot_table_disk {
    const char *name;
    struct disk_identity identity; /* of its file; zeroes: it has none */
};

/* An empty table for these disks. 0, or -errno with a sentence: no snapshot outlives the daemon then. */
int snapshot_table_create(struct snapshot_table *table, struct io *io, const char *folder,
                          const struct snapshot_table_disk *disks, unsigned disk_count, struct error *err);
/* The table that a killed daemon has left. -ENOENT: there is none. -EAGAIN (another process has it), -EINVAL with a
 * sentence: it is for other disks, or one of them was changed by somebody else since (then it is there, to be destroyed),
 * or is not right. */
int snapshot_table_adopt(struct snapshot_table *table, struct io *io, const char *folder,
                         const struct snapshot_table_disk *disks, unsigned disk_count, struct error *err);
/* The disks, LIMIT_DISKS at most, of the table that these bytes, which must stay, begin with. How many; -EINVAL: none. */
int snapshot_table_owners(const void *bytes, uint64_t length, struct snapshot_table_disk *disks);
/* When no snapshot is left: with what there may still be of the disks that it names. */
void snapshot_table_destroy(struct snapshot_table *table);
/* The process ends at once: only the names go. */
void snapshot_table_forget(const struct snapshot_table *table);

const uint8_t *snapshot_table_session(const struct snapshot_table *table);
/* What is known of the file of a disk of that number, for whoever adopts it. The disk's reactor's. */
struct disk_note *snapshot_table_note(const struct snapshot_table *table, unsigned disk);
/* The number of a disk in it. */
unsigned snapshot_table_disk(const struct snapshot_table *table, const char *name);
/* A free record; there are as many as there can be snapshots. */
unsigned snapshot_table_take(struct snapshot_table *table);
/* The newest epoch that was ever used: noted before it is. */
void snapshot_table_note_epoch(struct snapshot_table *table, uint32_t epoch);
uint32_t snapshot_table_epoch(const struct snapshot_table *table);
/* Whether the VM migrates: then nobody knows what becomes of its disks after the daemon. No-op when there is no table. */
void snapshot_table_note_migration(struct snapshot_table *table, bool migrates);
/* In a table that was adopted: breaks its snapshots for that reason if they don't say another one. */
void snapshot_table_heed_migration(struct snapshot_table *table);

#endif
