/* SPDX-License-Identifier: GPL-2.0-or-later */
/* One random life of images, as qcow2_sim.c tells it. */
#ifndef TESTS_SIM_QCOW2_SIM_H
#define TESTS_SIM_QCOW2_SIM_H

#include "driver/qcow2/internal.h"
#include "world.h"

enum { JOBS = 80, LIVES = 8, BATCHES = 1, EXTENTS = 16 };
enum { STORIES = 4, STORY_JOBS = 14, STORY_OPERATIONS = 400, STORY_STEP = 13 };
enum death { DIES_OF_POWER, DIES_OF_KILL, DEATHS };
/* What a byte may be now: of a batch that was answered, or in part; of any time since the last flush. */
enum time { OF_BATCH, SINCE_FLUSH };

struct job {
    struct request req; /* first */
    struct run *run;
    struct iovec iov[24];
    unsigned char *memory;
    struct block_extent extents[EXTENTS];
    unsigned char value;
    int status;
    bool done;
};

/* Of the virtual disk, by the driver's node_ops. */
struct growth {
    struct node_extension extension;
    bool busy;      /* it has not been answered */
    int status;     /* when it has */
    uint64_t other; /* the image may have that size instead; 0: it may not */
    bool is_other;  /* it has */
};

struct run {
    uint64_t seed;
    struct world *world;
    struct io *io;
    struct world_file *file;
    struct node *image;
    unsigned process, pending, values, jobs_used, error_per_1024, leaks_told;
    uint64_t size, max_size, base_size;
    struct qcow2_header header;
    uint64_t stop_at, operations; /* of the disk */
    bool few_pages, grows, compress, write_back, answered, crashed, killed, failed, may_leak;
    struct growth growth;
    /* The model: what the image held at the last flush and holds now, and per byte which values it may have instead. */
    unsigned char *flushed, *now;
    unsigned char (*may)[32]; /* a bit for each value */
    struct job jobs[JOBS];
};

void run_fail(const struct run *run, const char *format, ...) __attribute__((format(printf, 2, 3), noreturn));

static inline uint64_t below(struct run *run, uint64_t limit)
{
    return world_below(run->world, limit);
}

/* qcow2_growth.c: the disk grows, beside whatever else goes on; then, with nothing else under way, it is settled. */
void run_growth(struct run *run);
void run_growth_settle(struct run *run);
/* The image was opened: its size is one that it may have. */
void run_growth_opened(struct run *run);

#endif
