/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What change tracking costs (B12), on the simulated machine; bench/rows_cost.py runs this.
 *
 *     track_cost write on|off COUNT      writes blocks of one extent, again and again: to be run under callgrind, twice,
 *     with
 *                                        two counts; what differs is the cost of a write
 *     track_cost scatter DEPTH COUNT MIB writes blocks anywhere on a disk of so many MiB, DEPTH at once; prints as JSON what
 *                                        went to the sidecar beside them
 */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "driver/file.h"
#include "driver/null.h"
#include "track/tracker.h"
#include "world.h"

enum { BLOCK = 4096, EXTENT_BLOCKS = 1024, DEPTH_MAX = 1024 };

struct cost {
    struct world *world;
    struct io *io;
    struct disk *disk;
    struct tracker *tracker;
    struct tracker_op op;
    bool done;
    uint64_t left, busy, blocks;
    char *buffer;
};

struct writer {
    struct request req; /* first */
    struct cost *cost;
    struct iovec iov;
};

static void op_done(struct tracker_op *op)
{
    struct cost *cost = container_of(op, struct cost, op);
    assert(op->status == 0);
    cost->done = true;
}

static bool is_done(void *argument)
{
    return ((struct cost *)argument)->done;
}

static struct tracker_op *op_new(struct cost *cost)
{
    cost->op = (struct tracker_op){.done = op_done};
    cost->done = false;
    return &cost->op;
}

static void wait_for_op(struct cost *cost)
{
    if (!world_run_until(cost->world, is_done, cost, 3600 * NS_PER_S))
        abort();
    world_act_as(cost->world, cost->io);
}

static struct node *file(struct cost *cost, const char *path, uint64_t size_bytes)
{
    struct node *node;
    world_file_create(cost->world, path, size_bytes, 512, false);
    if (file_open(cost->io, &(struct file_options){.path = path}, &node, NULL) < 0)
        abort();
    return node;
}

static void cost_open(struct cost *cost, struct node *leaf, bool tracked)
{
    struct checkpoint_id id = {.name = "a", .uuid = "00000000-0000-4000-8000-000000000000"};
    struct tracker_options options = {.create = true, .memory = {"/dev/shm/cost", "vda"}};
    cost->disk = disk_create("vda", leaf);
    options.sidecar = file(cost, "sidecar", tracker_sidecar_bytes(leaf->size_bytes, 0));
    cost->tracker = tracker_create(cost->disk, &options);
    tracker_open(cost->tracker, op_new(cost));
    wait_for_op(cost);
    if (!tracked)
        return;
    tracker_prepare(cost->tracker, &id, op_new(cost));
    wait_for_op(cost);
    tracker_cut(cost->tracker);
    tracker_record(cost->tracker, op_new(cost));
    wait_for_op(cost);
}

static void cost_close(struct cost *cost)
{
    tracker_close(cost->tracker, op_new(cost));
    wait_for_op(cost);
    tracker_destroy(cost->tracker);
    disk_destroy(cost->disk);
    world_act_as(cost->world, NULL);
    world_destroy(cost->world, stderr);
    free(cost->buffer);
}

static void write_next(struct writer *writer);

static void write_done(struct request *req, int status)
{
    struct writer *writer = (struct writer *)(void *)req;
    assert(status == 0);
    writer->cost->busy--;
    if (writer->cost->left > 0)
        write_next(writer);
}

static void write_next(struct writer *writer)
{
    struct cost *cost = writer->cost;
    cost->left--;
    cost->busy++;
    writer->iov = (struct iovec){cost->buffer, BLOCK};
    writer->req = (struct request){
        .kind = REQUEST_WRITE,
        .range = {world_below(cost->world, cost->blocks) * BLOCK, BLOCK},
        .iov = &writer->iov,
        .iov_count = 1,
        .done = write_done,
    };
    node_submit(&cost->disk->node, &writer->req);
}

static bool is_written(void *argument)
{
    const struct cost *cost = argument;
    return cost->left == 0 && cost->busy == 0;
}

static void write_all(struct cost *cost, uint64_t depth, uint64_t count)
{
    static struct writer writers[DEPTH_MAX];
    cost->left = count;
    for (uint64_t i = 0; i < depth && i < DEPTH_MAX && cost->left > 0; i++) {
        writers[i].cost = cost;
        write_next(&writers[i]);
    }
    if (!world_run_until(cost->world, is_written, cost, 3600 * NS_PER_S))
        abort();
    world_act_as(cost->world, cost->io);
}

static void scatter(struct cost *cost, uint64_t depth, uint64_t count, uint64_t size_bytes)
{
    struct tracker_counters from, to;
    cost_open(cost, null_create(cost->io, size_bytes), true);
    cost->blocks = size_bytes / BLOCK;
    tracker_counters(cost->tracker, &from);
    write_all(cost, depth, count);
    tracker_counters(cost->tracker, &to);
    printf("{\"activations\": %llu, \"log_writes\": %llu, \"page_writes\": %llu, \"syncs\": %llu}\n",
           (unsigned long long)(to.activations - from.activations),
           (unsigned long long)(to.log_writes - from.log_writes),
           (unsigned long long)(to.page_writes - from.page_writes), (unsigned long long)(to.syncs - from.syncs));
}

int main(int argc, char **argv)
{
    struct cost cost = {.world = world_create(&(struct world_options){.seed = 1})};
    cost.io = world_reactor(cost.world, "vda", 1);
    cost.buffer = aligned_alloc(BLOCK, BLOCK);
    memset(cost.buffer, 1, BLOCK);
    world_act_as(cost.world, cost.io);
    if (argc == 4 && strcmp(argv[1], "write") == 0) {
        cost_open(&cost, file(&cost, "disk", 64 * MIB), strcmp(argv[2], "on") == 0);
        cost.blocks = EXTENT_BLOCKS;
        write_all(&cost, 1, strtoull(argv[3], NULL, 0));
    } else if (argc == 5 && strcmp(argv[1], "scatter") == 0) {
        scatter(&cost, strtoull(argv[2], NULL, 0), strtoull(argv[3], NULL, 0), strtoull(argv[4], NULL, 0) * MIB);
    } else {
        fprintf(stderr, "usage: track_cost write on|off COUNT | track_cost scatter DEPTH COUNT MIB\n");
        return 2;
    }
    cost_close(&cost);
    return 0;
}
