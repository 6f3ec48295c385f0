/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One run of the seeded simulation: a VM with its disks on several reactors, guests that read and write, snapshots that
 * come and go, readers of the snapshots; and the oracle that knows what all of them must see.
 *
 * How the oracle knows:
 *  - `model` of a disk is what its guest may rely on. A write that no other one overlapped while it was under way must be
 *    on the disk, byte by byte, when it is acknowledged; an overlapped one may have mixed: the model takes what is there.
 *    A read that no write overlapped must see the model; at the end the disk must equal the model.
 *  - the image of a snapshot is what lay on the disk in the step that ended the hold of the successful cut (the calls of
 *    disk_hold(), disk_release() and cut_start() between objects are wrapped by the linker). That this is one instant of
 *    all disks is proved by chains: n to one disk, wait for the reply, n to another disk.
 *  - what a snapshot needs is kept by block: what its readers release is gone for them, exactly when the whole block was
 *    covered and not before they asked, and is gone for nobody else; what nobody needs must not be preserved.
 *  - a discard of the guest may be done at once, later, or never: until it writes there again its bytes are `loose`, old
 *    or zero, and what it writes then stays.
 *  - a disk grows in the step in which disk_grow() is called (wrapped, too): from then on what was added is zero, and dirty.
 *    Snapshots keep the size of their cut. A growth that fails leaves the disk, and what it lies on, as they were.
 *  - the cache files are files of the world with faults of their own: none of them may reach the guest.
 */
#ifndef TESTS_SIM_SIM_H
#define TESTS_SIM_SIM_H

#include "base/limits.h"
#include "block/cut.h"
#include "block/disk.h"
#include "vm/vm.h"
#include "world.h"

enum {
    SIM_DISKS = 3,
    SIM_REACTORS = 3,
    SIM_CHAINS = 2,
    SIM_GUESTS = 64,     /* requests of the guest under way on one disk */
    SIM_READERS = 48,    /* of one view */
    SIM_ALIVE = 5,       /* snapshots at once */
    SIM_RESERVED = 4096, /* bytes at the start of each disk: the chains' */
    SIM_EXTENTS = 32,
    SIM_BITMAPS = 3,
    SIM_STUCK = 16, /* operations of cache files that are held at once */
};

struct sim;

struct guest { /* one request at a time */
    struct sim_disk *disk;
    struct request req;
    struct iovec iov[3];
    struct block_extent extents[SIM_EXTENTS];
    uint8_t *buffer;
    void *memory;
    bool busy, submitting, raced; /* raced: another request touched the range meanwhile */
    bool raced_discard;           /* ... which was a discard */
    bool faulted;                 /* the disk below was made to fail it */
    uint64_t read_faults;         /* of the disk, when it began */
    uint64_t issued_at;
    struct io_timer pause;
};

struct sim_bitmap { /* a dirty bitmap of one disk, as the model has it; see bitmaps.c */
    struct sim_disk *disk;
    unsigned index;
    bool exists, enabled, may_record;
    uint64_t granularity;
    uint64_t records_since_ns; /* for certain; 0: it does not, or may not */
    uint8_t *must, *may;       /* by block */
    unsigned growths;          /* of the disk, when the operation that is under way began */
    uint8_t *fresh;            /* `may` after the clear that is under way */
    uint8_t *pending, *merged; /* of the operation that is under way */
};

enum sim_bitmap_act { BITMAP_ADD, BITMAP_REMOVE, BITMAP_CLEAR, BITMAP_ENABLE, BITMAP_MERGE, BITMAP_RANGES };

/* What a snapshot needs of a block, by the dirty bitmap that it is limited to. */
enum sim_need { SIM_OUTSIDE, SIM_MAY_BE_NEEDED, SIM_NEEDED };

struct sim_disk {
    struct sim *sim;
    unsigned index;
    char name[8];
    struct io *io;
    struct world_file *file;
    struct node *leaf;
    struct disk *disk;
    uint64_t size, max_size;
    unsigned growths;
    uint64_t grow_to; /* a growth to that size was asked for and is not answered; 0: none was */
    bool block_device;
    uint8_t *model;
    uint8_t *loose; /* by byte: discarded, perhaps later */
    struct guest guests[SIM_GUESTS];
    unsigned guest_count, guests_busy; /* busy: under way or pausing */
    uint64_t read_faults;              /* injected so far */
    /* the oracle's view of the cut */
    uint64_t captured_size;
    uint8_t *captured;   /* content at the last successful cut; taken by the snapshot that is published */
    uint32_t cuts;       /* successful ones */
    uint32_t *touched;   /* by block: 1 + number of cuts before its last guest write; deferred discards count */
    uint32_t *preserved; /* the same, of writes that found somebody who needed the block: for R3 */
    uint64_t preserved_max;
    struct disk_counters counters;
    struct sim_bitmap bitmaps[SIM_BITMAPS];
    uint8_t *captured_needs[SIM_BITMAPS]; /* at the last successful cut, of snapshots limited to each */
};

struct sim_part { /* of a snapshot, on one disk */
    uint8_t *image;
    uint64_t size; /* of the disk at the cut */
    uint32_t cut;  /* the disk's number of cuts, its own included */
    /* By block, 0: never. From the moment when its release is asked for it may be gone; when that is done it is gone. */
    uint64_t *asked_ns, *released_ns;
    struct sim_target *target; /* that takes old data; NULL: the cache does */
    uint8_t *needs;            /* by block: enum sim_need */
};

struct sim_snapshot {
    struct list_node link;
    struct sim *sim;
    char name[LIMIT_NAME_BYTES + 1];
    struct sim_part parts[SIM_DISKS];
    bool answered, live, broken, ending, ended; /* ending: somebody asked for its end */
    bool leased, may_time_out, publish_failed, duplicate;
    bool no_bitmap;                /* limited to one that is not there */
    unsigned limit;                /* 1 + number of the dirty bitmap that it is limited to; 0: none */
    uint64_t limit_acts;           /* operations on that when its creation was asked for */
    uint64_t broken_at, failed_at; /* said to be broken; a read failed first, though the disk did not */
    uint64_t first[SIM_CHAINS][2], last[SIM_CHAINS][2]; /* acknowledged before the call; issued before its return */
    unsigned views;
    bool images_taken;
};

struct chain { /* n to one disk, wait, n to the other */
    struct sim *sim;
    struct sim_disk *disks[2];
    unsigned side;
    uint64_t number, issued[2], acknowledged[2], issued_ns;
    uint64_t offset;
    bool busy;
    uint8_t sector[512];
    struct iovec iov;
    struct request req;
    struct io_message cross;
};

/* How the devices of the cache files behave; see cache.c. */
struct sim_cache {
    uint64_t max_bytes; /* of all files; 0: RAM only */
    bool plenty;        /* for all that can be preserved */
    unsigned fail_per_1024, sticks_per_1024;
    uint64_t fail_from, fail_until; /* all operations between these numbers fail; 0: none */
    uint64_t operations, faults;
    bool no_punch;      /* its file system can't */
    bool refuses;       /* to make files, now and then */
    bool stuck_forever; /* some of what gets stuck does not come back before the guests have come to their end */
    bool let_go;        /* nothing gets stuck any more */
    uint64_t stuck[SIM_STUCK], stuck_until[SIM_STUCK];
    unsigned stuck_count, open, refused;
};

struct sim_options {
    uint64_t seed;
    bool trace;
    unsigned requests; /* 0: 2000 */
};

struct sim {
    struct sim_options options;
    struct world *world;
    struct io *control, *reactors[SIM_REACTORS];
    unsigned reactor_count;
    struct vm *vm;
    struct sim_disk disks[SIM_DISKS];
    unsigned disk_count;
    struct chain chains[SIM_CHAINS];
    unsigned chain_count;
    uint64_t block_bytes;
    /* the character of this run */
    bool plenty_of_ram, faults, sticks, stalls, impatient, large, huge, coarse, many, tight, file_driver;
    bool releases, residence; /* readers release what they have read; they ask where blocks are */
    bool copy_on_read, waits_for_targets;
    struct sim_cache cache;
    uint64_t ram_bytes, segment_bytes, cbw_timeout_ns;
    unsigned guests_max;
    uint64_t message_ns;
    unsigned readers_max;
    uint64_t longest;     /* guest request */
    uint64_t patience_ns; /* a guest request that takes longer was forgotten */
    /* progress */
    uint64_t requests_left, requests_done, reads_done, broken_count;
    bool stopping, destroyed, may_break;
    struct list snapshots, views;
    unsigned alive, creating, created, attempts, names, refused;
    struct cut *cut;
    struct io_timer director;
    uint64_t slow_until;         /* the guests take their time: a cut is tried again after a pause */
    uint64_t stuck, stuck_until; /* operation that the gate holds */
    const struct world_file *stuck_file;
    struct range stuck_range;
    bool stick_next;
    enum world_kind stick_kind;
    bool last_created; /* tight: the snapshot in whose first moments the guests come to their end */
    /* The operation on dirty bitmaps that is under way. */
    enum sim_bitmap_act bitmap_act;
    unsigned bitmaps_out, bitmap_of_act, bitmap_source; /* disks on which it is under way */
    uint64_t bitmap_granularity;
    bool bitmap_enable, limited_meanwhile; /* a snapshot that is limited to it was being made meanwhile */
    uint64_t bitmap_acts[SIM_BITMAPS];
    unsigned limiting[SIM_BITMAPS]; /* snapshots in the making that are limited to it */
    bool status_known;
    struct vm_status status;
};

/* The run failed: says why and how to repeat it, and ends the process. */
void sim_fail(const struct sim *sim, const char *format, ...) __attribute__((format(printf, 2, 3), noreturn));
void sim_trace(const struct sim *sim, const char *format, ...) __attribute__((format(printf, 2, 3)));

static inline uint64_t sim_below(struct sim *sim, uint64_t below)
{
    return world_below(sim->world, below);
}
static inline bool sim_chance(struct sim *sim, unsigned per_1024)
{
    return world_chance(sim->world, per_1024);
}

/* A tight run keeps its last requests for the moment after a cut: the VM ends while its disks ask for room. */
static inline bool sim_waits_for_last(const struct sim *sim)
{
    return sim->tight && sim->requests_left < 60 && !sim->last_created;
}

static inline bool sim_slow(const struct sim *sim)
{
    return world_now(sim->world) < sim->slow_until;
}

/* Runs a seed to its end; returns the hash of the run. */
uint64_t sim_run(const struct sim_options *options);

/* guest.c */
void guests_create(struct sim_disk *disk);
void guests_start(struct sim_disk *disk); /* on the disk's reactor */
void guests_destroy(struct sim_disk *disk);
/* Of requests to the disk; now and then the place of what is stuck there. */
struct range sim_random_place(struct sim *sim, const struct sim_disk *disk, uint64_t size, uint64_t longest);
struct range sim_random_range(struct sim *sim, uint64_t size, uint64_t longest);
void sim_slice(struct sim *sim, struct iovec *iov, unsigned *iov_count, uint8_t *buffer, uint64_t length);
/* Memory whose alignment is the seed's choice: what direct I/O does depends on it. Frees with free(*memory). */
uint8_t *sim_buffer(struct sim *sim, uint64_t length, void **memory);
/* Whether extents may describe these bytes, the whole of the disk's. */
void sim_check_extents(const struct sim *sim, const struct request *req, const uint8_t *bytes, const char *whose);
/* The guest whose request it is; NULL: it is not a guest's. */
struct guest *sim_guest_of(struct sim *sim, const struct request *req);

/* chain.c */
void chains_create(struct sim *sim);
void chain_start(struct chain *chain); /* on the reactor of its first disk */
void chains_note_first(struct sim *sim, struct sim_snapshot *snapshot);
void chains_note_last(struct sim *sim, struct sim_snapshot *snapshot);
void chains_check(struct sim *sim, const struct sim_snapshot *snapshot);

/* view.c */
extern const struct vm_hooks sim_hooks;

/* reader.c */
struct readers *readers_create(struct sim *sim, struct sim_snapshot *snapshot, struct sim_disk *disk,
                               struct node *node);
void readers_start(struct readers *readers, void (*stopped)(void *argument),
                   void *argument);         /* on the disk's reactor */
void readers_stop(struct readers *readers); /* each when it comes back; then stopped(argument) */
void readers_free(struct readers *readers);

/* cache.c */
void cache_choose(struct sim *sim, uint64_t total_bytes); /* the character of this run's cache files */
void cache_open(void *context, const struct disk *disk, uint64_t block_bytes,
                void (*done)(void *argument, struct node *file, const struct error *err), void *argument);
void cache_close(void *context, const struct disk *disk, struct node *file, void (*done)(void *argument),
                 void *argument);
bool cache_is_sound(const struct sim *sim); /* no device fails or gets stuck */
bool cache_is_file(const struct sim *sim, const struct world_file *file);
int cache_fault(struct sim *sim, const struct world_io *io);
bool cache_gate(struct sim *sim, const struct world_io *io);
/* What has been stuck for long enough comes back; all: everything does, and nothing gets stuck any more. */
void cache_let_go(struct sim *sim, bool all);
void cache_check(struct sim *sim); /* after a write to one of them */

/* bitmaps.c */
void bitmaps_create(struct sim_disk *disk);
void bitmaps_destroy(struct sim_disk *disk);
void bitmaps_act(struct sim *sim);
void bitmaps_issued(struct sim_disk *disk, struct range range);
void bitmaps_written(struct sim_disk *disk, struct range range, uint64_t issued_ns); /* done, without an error */
/* The name of a dirty bitmap that the snapshot is to be limited to, or NULL; its creation has been answered. */
const char *bitmaps_limit(struct sim *sim, struct sim_snapshot *snapshot);
void bitmaps_limited(struct sim *sim, struct sim_snapshot *snapshot);
void bitmaps_at_cut(struct sim_disk *disk);
void bitmaps_grown(struct sim_disk *disk, uint64_t old_size);
void bitmaps_take_needs(struct sim_snapshot *snapshot, struct sim_disk *disk);

/* director.c */
void director_start(struct sim *sim); /* on the control reactor, as all of these */
void director_stop(struct sim *sim);
void director_stick_no_more(struct sim *sim); /* what is stuck in a disk comes back */
void director_delete_all(struct sim *sim);
struct sim_snapshot *sim_snapshot_find(struct sim *sim, const char *name);
void sim_snapshot_ended(struct sim_snapshot *snapshot);

/* growths.c: on the control reactor */
void growth_act(struct sim *sim);

/* target.c */
struct node *target_create(struct sim_snapshot *snapshot, struct sim_disk *disk);
void target_destroy(struct sim_target *target);
/* Whether the block may be there instead of in the view. */
bool target_has(const struct sim_target *target, uint64_t block);

/* oracle.c */
void oracle_touch(struct sim_disk *disk, struct range range);
void oracle_take_images(struct sim *sim, struct sim_snapshot *snapshot);
void oracle_free_images(struct sim_snapshot *snapshot);
/* Whether the guest may find this byte there. */
bool oracle_may_be(const struct sim_disk *disk, uint64_t at, uint8_t byte);
void oracle_check_model(struct sim *sim);
void oracle_check_status(struct sim *sim);
/* What cannot be read any more has been said to be broken (R4). */
void oracle_check_broken(struct sim *sim, uint64_t failed_before_ns);

#endif
