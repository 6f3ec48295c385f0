/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A tracked disk on a stage: a test writes blocks, makes checkpoints, holds and fails single operations, kills the daemon or
 * takes the power away, and asks what has changed. Blocks are 4 KiB, extents 4 MiB.
 */
#ifndef TESTS_SIM_TRACK_SCENE_H
#define TESTS_SIM_TRACK_SCENE_H

#include "base/limits.h"
#include "block/disk.h"
#include "track/tracker.h"
#include "world.h"

enum {
    SCENE_BLOCK = 4096,
    SCENE_EXTENT_BLOCKS = 1024,
    SCENE_EXTENTS = 32,
    SCENE_BLOCKS = SCENE_EXTENTS * SCENE_EXTENT_BLOCKS,
    SCENE_SLOTS = LIMIT_TRACK_SLOTS_MIN,
    SCENE_WRITES = 256,
    SCENE_HELD = 64,
};

#define SCENE_DISK "vda.img"
#define SCENE_SIDECAR "vda.img.fleece"

struct scene;

struct scene_write {
    struct request req;
    struct iovec iov;
    uint8_t *buffer;
    uint64_t issued_ns, took_ns;
    bool busy, done;
    int status;
};

struct scene {
    struct world *world;
    unsigned process;
    struct io *io;
    struct node *leaf;
    struct disk *disk;
    struct tracker *tracker;
    int stat_fd;
    struct tracker_op op;
    bool op_busy, drained;
    struct io_task cut;
    struct scene_write writes[SCENE_WRITES];
    unsigned slots; /* 0: SCENE_SLOTS */
    bool block_device;
    /* What the test decides about operations of the disk and of the sidecar; NULL: nothing. */
    bool (*hold)(struct scene *scene, const struct world_io *io, bool sidecar);
    int (*fails)(struct scene *scene, const struct world_io *io, bool sidecar);
    void (*landed)(struct scene *scene, const struct world_io *io, bool sidecar);
    uint64_t held[SCENE_HELD];
    unsigned held_count;
    unsigned condemned, invalidated;
    int condemn_status;
    void *memory[64]; /* of killed daemons */
    unsigned memory_count;
};

void scene_create(struct scene *scene, uint64_t seed);
void scene_destroy(struct scene *scene);
/* A new daemon, when it has recovered; the status of tracker_open(). */
int scene_start(struct scene *scene);
void scene_kill(struct scene *scene);
void scene_power_loss(struct scene *scene);
void scene_close(struct scene *scene); /* in good order */
/* No daemon runs: somebody else writes to a file. */
void scene_behind(struct scene *scene, const char *path, uint64_t at, const void *bytes, uint64_t length);
uint64_t scene_sidecar_bytes(uint64_t disk_bytes);

struct scene_write *scene_submit(struct scene *scene, uint64_t block, uint64_t count, uint8_t value);
bool scene_await(struct scene *scene, struct scene_write *write, uint64_t timeout_ns);
/* Writes and waits for success. */
void scene_write(struct scene *scene, uint64_t block, uint8_t value);
void scene_flush(struct scene *scene);

/* The steps of a checkpoint; `name` is also its UUID's end. */
int scene_prepare(struct scene *scene, unsigned name);
void scene_cut(struct scene *scene);
void scene_start_record(struct scene *scene);
int scene_end_op(struct scene *scene); /* waits for it */
bool scene_op_ends(struct scene *scene, uint64_t timeout_ns);
void scene_checkpoint(struct scene *scene, unsigned name); /* all of them; must succeed */
int scene_remove(struct scene *scene, unsigned name);

const char *scene_uuid(unsigned name);
/* 0: there is none of this name. */
bool scene_has(struct scene *scene, unsigned name, enum checkpoint_state *state);
bool scene_changed(struct scene *scene, unsigned name, uint64_t block);
uint64_t scene_changed_blocks(struct scene *scene, unsigned name);
uint8_t scene_byte(struct scene *scene, uint64_t block); /* of the disk, as it is now */
void scene_let_go(struct scene *scene);
void scene_run(struct scene *scene, uint64_t duration_ns);

#endif
