/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A disk whose changes are tracked, on the simulated machine: disk and sidecar are files behind the real file driver. The
 * kit knows which blocks were written since which checkpoint, and judges what the tracker says.
 */
#ifndef TESTS_SIM_TRACKER_KIT_H
#define TESTS_SIM_TRACKER_KIT_H

#include "track/tracker.h"
#include "world.h"

enum {
    KIT_BLOCK = 4096,
    KIT_EXTENT = 4096 * 1024,
    KIT_EXTENTS = 20,
    KIT_BLOCKS = KIT_EXTENTS * 1024,
    KIT_CHECKPOINTS = 16,
    KIT_WRITES = 32, /* under way at once */
};
#define KIT_DISK_BYTES ((uint64_t)KIT_EXTENTS * KIT_EXTENT)

struct kit;

struct kit_write {
    struct kit *kit;
    struct request req;
    struct iovec iov;
    bool busy, done;
    int status;
    uint64_t started_ns, took_ns;
};

struct kit_checkpoint { /* as the model knows it */
    struct checkpoint_id id;
    uint8_t changed[KIT_BLOCKS]; /* by what has gone to the leaf since then */
};

struct kit {
    struct world *world;
    struct io *io;
    struct disk *disk;
    struct write_observer *observer; /* tells the model what goes to the leaf */
    struct tracker *tracker;
    struct tracker_options options; /* of the next start */
    struct tracker_op op;
    bool op_done;
    unsigned process;
    uint64_t instance;    /* of the disk, as a block device has one */
    bool reactor_is_left; /* a daemon that ended in good order leaves it to the next one */
    struct kit_write writes[KIT_WRITES];
    uint8_t *buffer; /* what writes write */
    struct kit_checkpoint *checkpoints[KIT_CHECKPOINTS];
    unsigned checkpoint_count;
    unsigned names;
    unsigned condemned, invalidated;
    int condemn_status;
    char reason[512];
    struct error err;
};

void kit_init(struct kit *kit, const struct world_options *options);
/* Nothing is running; fails the test when something is left over. */
void kit_fini(struct kit *kit);

/* A daemon starts: the sidecar is made when there is none. Returns the status of tracker_open(). */
int kit_start(struct kit *kit);
void kit_start_and_die(struct kit *kit, uint64_t after_ns); /* while it recovers, or later */
void kit_stop(struct kit *kit);                             /* in good order */
void kit_leave(struct kit *kit); /* its objects go, without a close; after tracker_open() has failed, too */
void kit_kill(struct kit *kit);  /* -9 */
void kit_power_loss(struct kit *kit);

/* Waits for an operation. */
int kit_wait(struct kit *kit);
int kit_prepare(struct kit *kit, const char *name);
void kit_cut(struct kit *kit); /* of what was prepared: a hold, the cut, the resume */
int kit_record(struct kit *kit);
int kit_checkpoint(struct kit *kit, const char *name); /* all three, and commit */
int kit_commit(struct kit *kit, const char *name);
int kit_remove(struct kit *kit, const char *name);
int kit_remove_begin(struct kit *kit, const char *name); /* index in the model; kit_remove_end() after kit_wait() */
void kit_remove_end(struct kit *kit, const char *name);

/* Starts a write of some kind. */
struct kit_write *kit_write(struct kit *kit, enum request_kind kind, uint64_t first_block, uint64_t count);
void kit_settle(struct kit *kit); /* until no write is under way */
void kit_write_now(struct kit *kit, uint64_t first_block, uint64_t count);

/* Everything that was changed since each checkpoint is reported; returns the blocks that are reported beyond that, since the
 * checkpoint where they are most. */
uint64_t kit_judge(struct kit *kit);
/* Since one of them. */
bool kit_reports(struct kit *kit, const char *name, uint64_t block);
enum checkpoint_state kit_state(struct kit *kit, const char *name);
struct world_file *kit_sidecar(struct kit *kit);

#endif
