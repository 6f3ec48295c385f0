/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The crash simulation of change tracking: one disk of a guest, its sidecar and its shared memory, over many lives of the
 * daemon. Each life ends with kill -9 (also in the middle of a tick), a power loss or a close in good order, at a moment
 * that the seed chooses, recovery included; between two lives somebody may change the files behind our back.
 *
 * How the oracle knows:
 *  - every sector that the guest writes says which write it was, so a sector's first eight bytes stand for all of it. Two
 *    numbers are kept of each: the newest write that must be there whoever is killed (it was acknowledged, and nothing
 *    overlapped it), and the newest that must be there even after a power loss (a flush succeeded since).
 *  - the image of a checkpoint is what lay on the disk in the step of its cut. A sector that differs from it now must be
 *    reported as changed (R5), whatever has crashed since, as long as the checkpoint is said to be valid.
 *  - a granule may be reported only if a request of the guest has touched it since the cut; after a power loss also
 *    what lies in as many extents as the activity log has slots, which counts as touched from then on.
 *  - what a disk has gained since a checkpoint must be reported, with the granule that its old end lay in.
 *  - what was said to be recorded, committed or removed is so after every crash; what was asked for and not answered
 *    may have happened or not; nothing else happens. A checkpoint is invalid only with a reason, and only if something has
 *    failed or was changed behind our back (`excuse`).
 *  - a request of the guest never fails but by a fault of the disk itself, and never takes longer than PATIENCE_NS.
 */
#ifndef TESTS_SIM_CRASH_H
#define TESTS_SIM_CRASH_H

#include <string.h>

#include "base/limits.h"
#include "block/disk.h"
#include "track/tracker.h"
#include "world.h"

enum {
    CRASH_SECTOR = 512,
    CRASH_GUESTS = 12,      /* requests of the guest under way at once */
    CRASH_CHECKPOINTS = 10, /* known to the model at once */
    CRASH_OPS = 4,          /* requests to the tracker under way at once */
    CRASH_SPOTS = 64,       /* where the guest likes to write */
    CRASH_STUCK = 16,
    CRASH_EXTENTS_MAX = 96,
    CRASH_ADDED_EXTENTS = 8, /* by growing, at most */
    CRASH_TAMPERS = 10,      /* of one seed, at most */
};

#define CRASH_DISK "vda.img"
#define CRASH_SIDECAR "vda.img.fleece"
/* The wait for the sidecar is bounded to ten seconds; the rest is the disk's time, and that of the one who invalidates. */
#define CRASH_PATIENCE_NS (13 * NS_PER_S)

struct crash_sim;
struct crash_life;

struct sector { /* of the disk; numbers of writes, 0: none */
    uint32_t acknowledged, durable;
    uint32_t zeroed; /* newest request that may have made it zero */
    uint32_t wild;   /* ... or anything */
    uint32_t last;   /* newest that touches it */
    uint32_t racy;   /* up to this one, requests have overlapped: they prove nothing */
    uint16_t flying;
    uint32_t index; /* in `touched`, from 1 */
};

struct crash_guest { /* one request at a time */
    struct request req;
    struct crash_life *life;
    struct iovec iov;
    uint8_t *buffer;
    uint32_t number;
    uint64_t issued_ns;
    uint64_t log_end; /* flush: writes acknowledged before it */
    bool busy;
};

struct crash_checkpoint {
    struct crash_checkpoint *next; /* oldest first */
    struct checkpoint_id id;
    uint64_t size;      /* of the disk at the cut; what was added since must be reported */
    uint32_t cut_stamp; /* granules with a newer one may be reported */
    uint64_t *image;    /* by index of touched sectors; those touched later were zero, or `base` */
    uint32_t image_count;
    bool cut, record_asked, recorded, commit_asked, committed, remove_asked;
    bool invalid; /* was seen so */
};

enum crash_act { ACT_PREPARE, ACT_RECORD, ACT_COMMIT, ACT_REMOVE, ACT_CLOSE, ACT_OPEN, ACT_ANNOUNCE, ACT_GROWN };

struct crash_op { /* a request to the tracker */
    struct tracker_op op;
    struct crash_life *life;
    struct crash_checkpoint *checkpoint;
    enum crash_act act;
    bool busy;
};

struct crash_life { /* a process; stays in memory when it was killed */
    struct crash_life *next;
    struct crash_sim *sim;
    unsigned process;
    struct io *io;
    struct node *leaf, *sidecar;
    struct disk *disk;
    struct tracker *tracker;
    bool created; /* its sidecar is new */
    bool dead, open, open_failed, invalidated, holding, drained, closed;
    int open_status;
    int stat_fd;
    struct error err;
    struct io_task cut;
    struct node_extension extension;
    struct crash_checkpoint *making; /* prepared or about to be; cut or not */
    bool prepared;
    struct crash_guest guests[CRASH_GUESTS];
    unsigned guests_busy;
    bool growing;
    struct crash_op ops[CRASH_OPS + 1]; /* the last one is for growing */
    unsigned ops_busy;
};

enum crash_io { CRASH_SUPER, CRASH_LOG, CRASH_PAGE, CRASH_SYNC, CRASH_IOS }; /* what goes to a sidecar */

enum crash_death { DEATH_NONE, DEATH_KILL, DEATH_IN_TICK, DEATH_POWER };

/* What may have been done between two lives. */
enum crash_tamper {
    TAMPER_NONE,
    TAMPER_WRITE,       /* somebody else writes to the disk */
    TAMPER_ROLLBACK,    /* the disk is as it was earlier */
    TAMPER_OTHER_DISK,  /* another file with other content */
    TAMPER_SIZE,        /* it has grown or shrunk */
    TAMPER_OLD_SIDECAR, /* the sidecar is as it was earlier */
    TAMPER_BITS,        /* the sidecar is damaged */
    TAMPER_CUT_SIDECAR, /* ... or cut off */
    TAMPER_COUNT,
};

struct crash_options {
    uint64_t seed;
    bool trace;
};

struct crash_result {
    uint64_t states, recovered[TRACKER_VOID + 1], lives, writes, checks, tampers, hash;
};

struct crash_copy { /* of a file, as it once was; of the disk: of the sectors that were touched then */
    uint8_t *bytes; /* NULL: none */
    uint64_t size;
    uint32_t number; /* newest request of the guest then */
    bool closed;     /* the sidecar's daemon had ended in good order */
    unsigned life;   /* of whose it is: its process */
};

struct crash_sim {
    struct crash_options options;
    struct crash_result result;
    struct world *world;
    /* the character of this seed */
    uint64_t size, granularity;
    uint64_t max_size, grow_to; /* grow_to: announced, perhaps, and not done; 0: nothing is */
    unsigned slots;
    uint32_t alignment;
    bool block_device, sidecar_faults, sidecar_stalls, disk_faults, memory_faults, tampers, large;
    unsigned guests_max;
    uint64_t spots[CRASH_SPOTS];
    unsigned spot_count;
    uint64_t sequential;
    /* the disk, as the guest knows it */
    struct sector *sectors;
    uint32_t *touched; /* numbers of sectors */
    uint32_t touched_count;
    uint32_t *stamps; /* by granule: of the last request that touched it */
    uint32_t stamp, number;
    struct range *log; /* of acknowledged writes, for flushes; with their numbers */
    uint32_t *log_numbers;
    uint64_t log_count, log_room, log_flushed;
    uint32_t newest_acknowledged; /* number */
    bool newest_undone;           /* by somebody */
    /* checkpoints */
    struct crash_checkpoint *checkpoints;
    unsigned names;
    bool condemned, excuse; /* excuse: something has gone wrong that may make checkpoints invalid */
    bool born;              /* the sidecar has been opened once */
    bool damaged;           /* ... and may be malformed */
    enum crash_tamper tamper;
    bool must_be_invalid; /* after what was done behind our back */
    bool crashed;         /* since the last successful open */
    bool was_clean;       /* the last life ended in good order */
    bool was_killed;      /* the last life that was open was killed, and its memory is still there */
    uint64_t busy_ns;     /* when the disk was last written, or the daemon was asked for something */
    uint64_t death_ns;    /* when it was killed last */
    unsigned last_open;   /* process of the last life that was open */
    bool power_lost;      /* since the last successful open */
    bool memory_lost;     /* with the power, and nobody has made it anew since */
    struct crash_copy old_disk, old_sidecar;
    /* this life */
    struct crash_life *life;
    enum crash_death death;
    uint64_t moves;    /* of the guest and of the one who makes checkpoints, at most */
    uint64_t death_in; /* steps or moments */
    bool dying_in_tick;
    unsigned under_way[CRASH_IOS];
    uint64_t stuck[CRASH_STUCK], stuck_until[CRASH_STUCK];
    unsigned stuck_count;
    uint64_t stalled_until; /* operations of the sidecar that begin before it get stuck */
    uint64_t failing_until; /* ... or fail, all of them */
};

/* The run failed: says why and how to repeat it, and ends the process. */
void crash_fail(const struct crash_sim *sim, const char *format, ...) __attribute__((format(printf, 2, 3), noreturn));
void crash_trace(const struct crash_sim *sim, const char *format, ...) __attribute__((format(printf, 2, 3)));

static inline uint64_t crash_below(struct crash_sim *sim, uint64_t below)
{
    return world_below(sim->world, below);
}
static inline bool crash_chance(struct crash_sim *sim, unsigned per_1024)
{
    return world_chance(sim->world, per_1024);
}

/* Runs a seed to its end. */
struct crash_result crash_run(const struct crash_options *options);

/* crash_guest.c */
void guest_act(struct crash_life *life); /* starts a request of the guest, if one is free; on the reactor */
void guests_forget(struct crash_life *life,
                   bool power_lost);          /* the life has ended; what was under way may have happened */
void guests_restamp(struct crash_life *life); /* at a cut: what is parked is of the time after it */
void guest_check_disk(struct crash_sim *sim); /* everything that must be there is there (R6) */
void sector_touch(struct crash_sim *sim, uint64_t sector);
const uint8_t *crash_disk_bytes(const struct crash_sim *sim);
/* What stands for the content of a sector, in the bytes of the disk. */
static inline uint64_t sector_print(const uint8_t *bytes, uint64_t sector)
{
    uint64_t print;
    memcpy(&print, bytes + sector * CRASH_SECTOR, sizeof print);
    return print;
}

/* Somebody else writes a sector of the disk: what is there then, and the guest's knowledge of it. */
void guest_sector_replaced(struct crash_sim *sim, uint64_t sector, uint8_t bytes[CRASH_SECTOR]);

/* crash_life.c */
bool life_step(struct crash_sim *sim); /* one step of the world; false: this life has ended */
bool life_wait(struct crash_sim *sim, bool (*condition)(struct crash_life *life), uint64_t timeout_ns);
bool life_begin(struct crash_sim *sim); /* opens everything; false: it has ended already, or could not be opened */
void life_main(struct crash_sim *sim);
void life_close(struct crash_sim *sim); /* also of one that could not be opened */
void life_end_by_death(struct crash_sim *sim);
int crash_fault(void *context, const struct world_io *io);
bool crash_gate(void *context, const struct world_io *io);
void crash_moment(void *context);
void crash_landed(void *context, const struct world_io *io, int64_t result);

/* crash_death.c */
void death_note(const struct crash_sim *sim); /* in the middle of what: there is a probe for each */

uint64_t crash_sidecar_bytes(const struct crash_sim *sim);
/* A killed daemon has left bitmaps that the next one must adopt. */
bool crash_has_memory(const struct crash_sim *sim);

/* crash_checkpoint.c: the life of checkpoints, and the model of them */
void checkpoint_act(struct crash_life *life);
void checkpoint_abandon(struct crash_life *life);
void checkpoints_after_restart(struct crash_sim *sim);
void checkpoints_forget_all(struct crash_sim *sim);
void checkpoints_invalidated(struct crash_sim *sim);
void life_op(struct crash_life *life, enum crash_act act, struct crash_checkpoint *checkpoint);

/* crash_growth.c */
void growth_act(struct crash_life *life);
void growth_answered(struct crash_op *op);
/* Of the disk as the daemon serves it: its file may be larger already. */
uint64_t life_disk_size(const struct crash_life *life);

/* crash_oracle.c */
void oracle_image(struct crash_sim *sim, struct crash_checkpoint *checkpoint);
/* fresh: right after a restart; the superset that a power loss may cost is allowed for once. */
void oracle_check(struct crash_sim *sim, bool fresh);

/* crash_tamper.c */
void tamper_copy(struct crash_sim *sim);    /* now and then: keeps the files as they are now */
void tamper_between(struct crash_sim *sim); /* no daemon runs */
void tamper_clock(struct crash_sim *sim);   /* likewise: sets it forward or back */
void tamper_reset(struct crash_sim *sim); /* no daemon runs: throws the sidecar away, and makes the disk's size right */

#endif
