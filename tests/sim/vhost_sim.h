/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A disk over vhost-user in the simulation: the real export with its sessions, rings and in-flight regions, over the VM of
 * the stage. A VMM connects, negotiates, starts and stops rings, plugs memory, resets, hangs up and dies; its guest has
 * requests of all kinds and layouts under way; the daemon is killed in any moment, ends in good order, or its disk fails;
 * snapshots are taken meanwhile. Guest memory is real memory of real memfds, which both sides map; order and time are the
 * world's.
 *
 * How the oracle knows:
 *  - each sector carries the number of its write. Of each sector is known which values it may have: one, unless a write of
 *    it is under way, failed, or was lost with its VMM. What was acknowledged is on the disk in that very step
 *    (vhost_model.c), whatever a dead daemon had under way (C10).
 *  - each request comes back once, with the status and the length that are right, in the end (vhost_guest.c).
 *  - a copy is kept of all memory that the guest writes: what the device may not write never changes. That is all but what
 *    is under way; the pages around what was handed over; and, once the next connection had its first answer, or the
 *    removal of a region was acknowledged, the memory of before (C14).
 *  - a ring that stops is at rest: its base is behind what was returned. After a reset what was not returned was never
 *    taken, and is not on the disk. After an orderly end nothing is in flight.
 *  - while the VM migrates, the pages that guest and device have marked make a copy of its memory, which is whole when the
 *    rings have stopped. All snapshots have ended by then, and none is taken before a ring starts (vhost_migration.c).
 *  - a snapshot equals what lay on the disk in the step that ended the hold of its cut. One that its maker was told of
 *    outlives the daemon (C2, C11), one that was not told of or was to end is not there (C12), and a full tmpfs costs
 *    snapshots and no request (C13; vhost_shots.c).
 */
#ifndef TESTS_SIM_VHOST_SIM_H
#define TESTS_SIM_VHOST_SIM_H

#include "../unit/ring_driver.h"
#include "daemon/vhost_exports.h"
#include "export/vhost_user/wire.h"
#include "stage.h"

enum {
    SIM_QUEUES = 4,
    SIM_SECTORS = STAGE_DISK_BYTES / 512,
    SIM_VALUES = 6, /* that a sector may have */
    SIM_SPANS = 4,  /* ranges of a request */
    SIM_REGIONS = 3,
    SIM_PLUGGED = 2, /* the region that comes and goes */
    SIM_PAGE = 4096,
    SIM_RING_BYTES = 0x4000, /* of one queue */
    SIM_REGION_BYTES = 0x40000,
    SIM_PLUGGED_BYTES = 0x20000,
    SIM_PLUGGED_AT = 0x100000,
    SIM_MEMORY_BYTES = 0x140000, /* the guest's addresses */
    SIM_LOG_BYTES = SIM_MEMORY_BYTES / SIM_PAGE / 8,
    SIM_DATA_AT = 0x11800, /* one slot lies over the border of two regions */
    SIM_SLOT_BYTES = 0x3000,
    SIM_LOW_SLOTS = 36,
    SIM_SLOTS = 46, /* the last ones lie in the region that comes and goes */
    SIM_PARTS = 32,
    SIM_REQUEST_SECTORS = 12,
    SIM_RETIRED = 64,
    SIM_SHOTS = 14, /* in all */
    SIM_SHOTS_ALIVE = 3,
    SIM_STATUS_UNSET = 0xee,
};

struct sim_sector {
    uint32_t values[SIM_VALUES];
    uint8_t count, readers;
    bool writing;
    bool loose; /* a discard may come late */
};

struct sim_span {
    uint32_t sector, count;
};

struct sim_slot {
    bool busy, may_fail;
    unsigned queue;
    uint32_t type;
    enum virtio_blk_status expected;
    struct sim_span spans[SIM_SPANS];
    unsigned span_count;
    uint32_t number; /* of what it writes */
    struct part parts[SIM_PARTS];
    unsigned read_parts, part_count; /* those that the device reads come first */
    uint32_t read_bytes, write_bytes;
};

struct sim_region {
    uint64_t guest, size;
    int fd;
    char *file; /* all of it, with a page before and one behind */
    uint8_t *shadow;
    bool there, told; /* told: the device knows of it */
};

struct sim_retired { /* memory of before */
    char *file;
    uint8_t *copy; /* NULL: not at rest yet */
    uint64_t bytes;
};

struct sim_event { /* an eventfd of a queue's; it goes when it is dropped and no operation is under way */
    struct io_op op;
    struct sim *sim;
    unsigned queue;
    int fd;
    bool is_call, busy, again, dropped;
};

struct sim_queue {
    struct driver driver;
    uint16_t size;
    uint32_t base;
    bool running, must_kick;
    struct sim_event *kick, *call; /* kick: NULL: the device looks by itself */
};

struct sim_front { /* the VMM */
    unsigned process;
    struct io *io;
    int fd; /* -1: it is not connected */
    uint64_t features, protocol;
    char *base; /* where the guest's address 0 is */
    struct sim_region regions[SIM_REGIONS];
    unsigned queue_count;
    struct sim_queue *queues;
    int inflight_fd; /* -1: there is none */
    struct vhost_inflight inflight;
    char *inflight_map;
    bool guest_stopped;  /* it makes no requests */
    bool stays_disabled; /* its rings, until it resets the device */
};

struct sim_shot {
    struct stage_snapshot *snapshot;
    uint8_t *image;
    bool there, ending, over;
    bool left; /* it ended when the VM left */
};

struct sim_migration {
    bool on;
    bool marked, unmarked; /* the daemon is known to know it, or to know that it is over; neither: it may be either */
    bool sticks;           /* it may not hear that it is over */
    int fd;                /* of the log; -1: there was none yet */
    uint8_t *file;         /* the log lies at `offset` */
    uint64_t offset;
    uint8_t dirty[SIM_LOG_BYTES]; /* by the guest */
    uint8_t *copy;                /* what the destination has got */
};

struct sim_options {
    uint64_t seed;
    bool trace;
    unsigned steps; /* 0: the simulation's own number */
};

struct sim_result {
    uint64_t hash, requests, deaths, connections, resets, shots, checks, migrations;
};

struct sim {
    struct sim_options options;
    struct sim_result result;
    struct stage *stage;
    struct options daemon;
    struct vhost_exports *exports;
    bool started, ended;
    struct sim_front front;
    struct sim_migration migration;
    unsigned vmms;
    /* the character of the seed */
    bool packed, event_idx, indirect, inflight, reply_ack, slots_of_memory, reset_device, status, tight, migrates;
    struct sim_sector *sectors;
    uint32_t numbers;
    struct sim_slot slots[SIM_SLOTS];
    struct sim_retired retired[SIM_RETIRED];
    unsigned retired_count;
    bool failing;                /* the disk does */
    bool failed;                 /* and did at some time, or memory was short */
    bool sync_failed, forgetful; /* a failed flush is for ever; without memory snapshots end with the daemon */
    bool in_device;              /* the guest acts in the midst of the device's step */
    bool ring_is_broken;         /* until the guest resets it */
    unsigned steps;
    struct sim_shot shots[SIM_SHOTS];
    unsigned shot_count;
    bool creating;
    const struct cut *cut;
    uint8_t *captured;
    bool is_captured;
};

void sim_fail(const struct sim *sim, const char *format, ...) __attribute__((format(printf, 2, 3), noreturn));
void sim_trace(const struct sim *sim, const char *format, ...) __attribute__((format(printf, 2, 3)));
struct sim_result sim_run(const struct sim_options *options);

static inline uint64_t sim_below(struct sim *sim, uint64_t below)
{
    return world_below(sim->stage->world, below);
}
static inline bool sim_chance(struct sim *sim, unsigned per_1024)
{
    return world_chance(sim->stage->world, per_1024);
}
/* One step of the world, with a look at the memory now and then. False: nothing will ever happen again. */
bool sim_step(struct sim *sim);
void sim_run_for(struct sim *sim, uint64_t duration_ns);
/* vhost_run.c: the daemon is killed, or ends its exports in good order and is killed then; then there is another one, and
 * the VMM has connected. */
void run_die(struct sim *sim);
void run_end(struct sim *sim);

/* vhost_model.c. What the disk holds. */
void model_begin(struct sim *sim);
void model_fill(uint8_t *bytes, uint32_t sector, uint32_t number);
/* Whether a request of that kind may be made now: no write beside others. */
bool model_is_free(const struct sim *sim, const struct sim_span *span, bool writes);
void model_read_begin(struct sim *sim, const struct sim_span *span);
void model_read_end(struct sim *sim, const struct sim_span *span, const uint8_t *bytes); /* NULL: nothing was read */
void model_write_begin(struct sim *sim, const struct sim_span *span, uint32_t number);
enum model_end { MODEL_DONE, MODEL_DISCARDED, MODEL_UNKNOWN, MODEL_NEVER };
void model_write_end(struct sim *sim, const struct sim_span *span, uint32_t number, enum model_end end);
void model_check_all(struct sim *sim);

/* vhost_guest.c. Requests, and the memory that they lie in. */
void guest_add_requests(struct sim *sim, unsigned most);
void guest_reap(struct sim *sim, unsigned queue); /* all that was returned */
unsigned guest_busy(const struct sim *sim);
bool guest_uses_plugged(const struct sim *sim);
/* What is under way will not come back: it may have happened (the connection was lost), or has not (it was never taken). */
void guest_forget(struct sim *sim, enum model_end end);
void guest_break_ring(struct sim *sim, unsigned queue);
void guest_check_memory(struct sim *sim);
void guest_retire(struct sim *sim, const struct sim_region *region, bool at_rest);
void guest_settle_retired(struct sim *sim);
void guest_end(struct sim *sim);

/* vhost_front.c. The VMM. What returns a bool: false when the connection has ended, which is a failure while the daemon
 * lives. */
void front_create(struct sim *sim);
bool front_connect(struct sim *sim); /* and all up to rings that run */
void front_disconnect(struct sim *sim);
void front_kill(struct sim *sim);
void front_end(struct sim *sim);
bool front_stop_ring(struct sim *sim, unsigned queue);
bool front_start_ring(struct sim *sim, unsigned queue);
bool front_reset(struct sim *sim, enum model_end end); /* what becomes of requests that were not returned */
bool front_stop_all(struct sim *sim);                  /* and starts them again */
bool front_act(struct sim *sim);                       /* some other message */
bool front_tell_log(struct sim *sim);                  /* what is in sim->migration */
/* A guest that stops to go on elsewhere, rings and all, and does not look at what was returned; and that goes on here. */
bool front_halt(struct sim *sim);
bool front_start_all(struct sim *sim);
bool front_inflight_is_empty(const struct sim *sim);
void front_kick(struct sim *sim, unsigned queue);

/* vhost_shots.c. Snapshots. */
void shots_act(struct sim *sim);
void shots_take(struct sim *sim); /* asks for one, if there may be more */
void shots_settle(struct sim *sim);
/* The daemon has died, and the next one is there; what is known of what the dead one knew of a migration. */
void shots_died(struct sim *sim, bool migrated, bool stayed);
void shots_check_all(struct sim *sim);
void shots_end(struct sim *sim);
/* The guest of a VM that migrates has stopped: they have all ended, and say why; nor is a new one taken. */
void shots_left(struct sim *sim);
void shots_check_none_is_taken(struct sim *sim);

/* vhost_migration.c. The VM migrates. */
void migration_init(struct sim *sim);
void migration_fini(struct sim *sim);
void migration_act(struct sim *sim);
void migration_wrote(struct sim *sim, uint64_t at, uint64_t length); /* the guest did */
void migration_over(struct sim *sim);                                /* its VMM is gone */

#endif
