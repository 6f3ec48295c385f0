/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A VM on a stage: nothing happens by chance but what does not matter. A script issues requests one by one, decides which
 * operations of the disk are held, lets their data land, lets them complete, and looks.
 */
#ifndef TESTS_SIM_STAGE_H
#define TESTS_SIM_STAGE_H

#include "block/cut.h"
#include "block/disk.h"
#include "sidecar_kit.h"
#include "vm/vm.h"
#include "world.h"

enum { STAGE_DISKS = 2, STAGE_SNAPSHOTS = 64, STAGE_BLOCK = 4096, STAGE_DISK_BYTES = 1024 * 1024, STAGE_HELD = 32 };

struct stage_snapshot {
    char name[16];
    struct stage *stage;
    struct node *views[STAGE_DISKS];
    bool answered, created, broken, deleted;
    int code; /* why it was not created */
    char text[LIMIT_ERROR_BYTES];
    char reason[LIMIT_ERROR_BYTES]; /* why it is broken */
    uint64_t broken_ns;
};

struct stage_answer { /* of a hook, later */
    struct io_message message;
    void (*done)(void *argument, int status);
    void *argument;
};

struct stage {
    struct sidecar_kit sidecars; /* first */
    struct world *world;
    struct io *control, *io[STAGE_DISKS];
    unsigned disk_count;
    struct vm *vm;
    struct disk *disks[STAGE_DISKS];
    struct world_file *files[STAGE_DISKS];
    struct stage_snapshot snapshots[STAGE_SNAPSHOTS];
    unsigned snapshot_count;
    /* The next operations of this kind on this disk are held, until it is switched off. */
    bool holding;
    enum world_kind hold_kind;
    unsigned hold_disk;
    bool hold_cache; /* of its cache file instead */
    uint64_t held[STAGE_HELD];
    unsigned held_count;
    int fail_with;       /* the operations that would be held fail with this instead */
    uint64_t landed[64]; /* offsets of the guest's writes, in the order in which they landed */
    unsigned landed_count;
    struct io *slow_from, *slow_to; /* messages between these take a second longer */
    bool keep_exports;              /* unpublish waits for stage_withdraw() */
    /* The cache files: operations so far; the one with this number fails, or (0) is held. */
    uint64_t cache_operations, cache_fault_at;
    int cache_fail_with;
    unsigned caches_open;
    uint64_t cache_bytes;
    unsigned cache_faults_per_1024; /* and so many others fail by chance, or (0) are held */
    struct stage_answer answers[STAGE_SNAPSHOTS * STAGE_DISKS * 2];
    unsigned answer_count, kept;
    bool gone;
    struct { /* what was to be noted for the next daemon, from stage_note_away() on */
        unsigned away, back;
        bool noted; /* what was said last */
        void (*done)(void *argument);
        void *argument;
    } away;
    struct vm_options options;
    uint64_t disk_bytes;
    bool restartable, tracked, adopted, dead;
    const char *trouble; /* what went wrong in vm_recover(); NULL: nothing */
    void *owner;         /* whose stage it is */
    /* Of the world, if the owner wants to say so. */
    bool (*outlives)(const struct stage *stage, const void *memory, size_t length);
    bool leases;              /* snapshots are leased to the stage */
    unsigned process;         /* of the daemon; the next one has the next number */
    uint64_t moments, die_at; /* the daemon dies in this one; 0: never */
};

struct stage_request {
    struct request req;
    struct iovec iov;
    struct block_extent extents[4];
    uint8_t buffer[4 * STAGE_BLOCK];
    uint32_t flags;
    unsigned dirty_map;
    bool done;
    int status;
    struct node *node;
};

struct stage_options {
    unsigned disk_count;
    unsigned segments;       /* of 64 blocks, that the cache may take; 0: many */
    uint64_t tmpfs_bytes;    /* 0: no limit */
    unsigned cache_segments; /* of the cache files; 0: there are none */
    uint64_t cbw_timeout_ns; /* 0: default */
    bool copy_on_read;
    uint64_t seed;           /* of the world; 0: 1 */
    bool restartable;        /* what can outlives the daemon; its disks are the file driver's, with locks */
    bool tracked;            /* disks may have sidecars, and the power may go */
    uint64_t disk_bytes;     /* 0: STAGE_DISK_BYTES; what is behind that is a hole at first */
    unsigned short_per_1024; /* of the world */
};

/* A test of cmocka's on a stage of its own, which is its state; the VM ends after it, and nothing may be left. */
#define STAGE_TEST(function, ...)                                                     \
    cmocka_unit_test_prestate_setup_teardown(function, stage_set_up, stage_tear_down, \
                                             (&(struct stage_options){__VA_ARGS__}))
int stage_set_up(void **state);
int stage_tear_down(void **state);

/* kill -9, or it has happened already (die_at), or the power goes; then another daemon for the same disks, which adopts
 * what is left. */
void stage_kill(struct stage *stage);
void stage_lose_power(struct stage *stage);
void stage_restart(struct stage *stage);
/* While no daemon runs: somebody else writes to a block of a disk. */
void stage_write_behind(struct stage *stage, unsigned disk, uint64_t block, uint8_t value);

void stage_destroy_vm(struct stage *stage); /* asks for the end of the VM, which sets `gone` */

/* stage_files.c: opens a file of the world, as the stage's disks are; and what it does with files for its VM. */
int stage_leaf_open(struct stage *stage, struct io *io, const char *path, struct node **node);
void stage_file_hooks(struct vm_hooks *hooks, bool restartable);

/* Each block of each disk is filled with its own value at the beginning. */
uint8_t stage_first_value(unsigned disk, uint64_t block);

void stage_hold(struct stage *stage, enum world_kind kind, unsigned disk);
void stage_hold_cache(struct stage *stage, enum world_kind kind, unsigned disk); /* the same of its cache file */
void stage_hold_no_more(struct stage *stage);
void stage_let_go(struct stage *stage); /* all that is held */
/* Long enough for everything that is not held and waits for no deadline. */
void stage_settle(struct stage *stage);

void stage_write(struct stage *stage, struct stage_request *request, unsigned disk, uint64_t block, uint64_t count,
                 uint8_t value);
/* The same with what is in the request's buffer. */
void stage_write_buffer(struct stage *stage, struct stage_request *request, unsigned disk, uint64_t block,
                        uint64_t count);
void stage_discard(struct stage *stage, struct stage_request *request, unsigned disk, uint64_t block, uint64_t count);
void stage_write_zeroes(struct stage *stage, struct stage_request *request, unsigned disk, uint64_t block,
                        uint64_t count);
void stage_flush(struct stage *stage, struct stage_request *request, unsigned disk);
void stage_read(struct stage *stage, struct stage_request *request, struct node *node, uint64_t block, uint64_t count);
void stage_status(struct stage *stage, struct stage_request *request, struct node *node, uint64_t block,
                  uint64_t count);
/* The same, with the operations of `kind` held that it starts on the disk at once. */
void stage_write_held(struct stage *stage, enum world_kind kind, struct stage_request *request, unsigned disk,
                      uint64_t block, uint64_t count, uint8_t value);
void stage_read_held(struct stage *stage, struct stage_request *request, struct node *node, uint64_t block,
                     uint64_t count);
bool stage_succeeded(const struct stage_request *request); /* it is done */
/* Writes one block, and waits until that is done. */
void stage_overwrite(struct stage *stage, unsigned disk, uint64_t block, uint8_t value);
/* Overwrites one block that a snapshot needs; reading its old content fails, so whoever needs it breaks. */
void stage_lose(struct stage *stage, unsigned disk, uint64_t block);
/* Writes blocks [first, first + count) four at a time, and waits until that is done. */
void stage_overwrite_all(struct stage *stage, unsigned disk, uint64_t first, uint64_t count, uint8_t value);
/* The snapshot's consumer releases blocks; 0 or -errno, at once. */
int stage_release(struct stage *stage, struct stage_snapshot *snapshot, unsigned disk, uint64_t block, uint64_t count);
/* The same, answered later; request->node is its view. */
void stage_release_soon(struct stage *stage, struct stage_request *request, uint64_t block, uint64_t count);
/* Where one block of a snapshot is: enum residence_flags, at once. */
uint32_t stage_residence(struct stage *stage, struct stage_snapshot *snapshot, unsigned disk, uint64_t block);
/* What the VM says of itself, at once. */
struct vm_status stage_status_of_vm(struct stage *stage);
/* Reads one block of a snapshot, at once: its value, or -errno. */
int stage_value(struct stage *stage, struct stage_snapshot *snapshot, unsigned disk, uint64_t block);

/* Asks for a snapshot; answered later. drain_ns is also the limit of all attempts; 0: the defaults. */
struct stage_snapshot *stage_create(struct stage *stage, const char *name, uint64_t drain_ns);
/* The same with options of all kinds, but for its name. */
struct stage_snapshot *stage_create_with(struct stage *stage, const char *name, const struct snapshot_options *options);
/* The same, and waits until it is there. */
struct stage_snapshot *stage_snapshot(struct stage *stage, const char *name);
void stage_delete(struct stage *stage, struct stage_snapshot *snapshot); /* asks; settle, then look at `deleted` */
void stage_withdraw(struct stage *stage);

/* That the VM is away, or back, is noted from now on; and what was said last is durable now (for world_call()). */
void stage_note_away(struct stage *stage);
void stage_noted(void *stage);

/* Steps until the condition holds; a second of virtual time at most. */
#define STAGE_STEP_UNTIL(stage, condition)                             \
    do {                                                               \
        uint64_t give_up_ns = world_now((stage)->world) + NS_PER_S;    \
        while (!(condition) && world_now((stage)->world) < give_up_ns) \
            assert_true(world_step((stage)->world));                   \
        assert_true(condition);                                        \
    } while (0)

#endif
