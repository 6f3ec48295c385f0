/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "stage.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/limits.h"
#include "sim_leaf.h"

/* ---- the disk's operations ---- */

static bool is_held(const struct stage *stage, const struct world_io *io)
{
    return stage->holding && io->kind == stage->hold_kind && io->file == stage->files[stage->hold_disk];
}

static bool gate(void *context, const struct world_io *io)
{
    struct stage *stage = context;
    if (!is_held(stage, io) || stage->fail_with != 0)
        return false;
    assert_true(stage->held_count < STAGE_HELD);
    stage->held[stage->held_count++] = io->number;
    return true;
}

static int fault(void *context, const struct world_io *io)
{
    struct stage *stage = context;
    return is_held(stage, io) ? stage->fail_with : 0;
}

static void landed(void *context, const struct world_io *io, int64_t result)
{
    struct stage *stage = context;
    if (io->kind == WORLD_WRITE && result > 0 && stage->landed_count < 64)
        stage->landed[stage->landed_count++] = io->range.start / STAGE_BLOCK;
}

static uint64_t delay(void *context, struct io *from, struct io *to)
{
    struct stage *stage = context;
    return from != NULL && from == stage->slow_from && to == stage->slow_to ? NS_PER_S : 0;
}

void stage_hold(struct stage *stage, enum world_kind kind, unsigned disk)
{
    stage->holding = true;
    stage->hold_kind = kind;
    stage->hold_disk = disk;
}

void stage_hold_no_more(struct stage *stage)
{
    stage->holding = false;
    stage->fail_with = 0;
}

void stage_let_go(struct stage *stage)
{
    stage_hold_no_more(stage);
    stage->held_count = 0;
    world_let_go_all(stage->world);
}

void stage_settle(struct stage *stage)
{
    world_run_for(stage->world, 60 * NS_PER_MS);
}

/* ---- exports ---- */

static void answer_send(struct io_message *message)
{
    struct stage_answer *answer = container_of(message, struct stage_answer, message);
    answer->done(answer->argument, 0);
}

static void answer_later(struct stage *stage, void (*done)(void *argument, int status), void *argument, bool keep)
{
    assert_true(stage->answer_count < 64);
    struct stage_answer *answer = &stage->answers[stage->answer_count++];
    *answer = (struct stage_answer){{answer_send, NULL}, done, argument};
    if (keep)
        stage->kept++;
    else
        io_post(stage->control, &answer->message);
}

static struct stage_snapshot *find_snapshot(struct stage *stage, const char *name)
{
    for (unsigned i = 0; i < stage->snapshot_count; i++)
        if (strcmp(stage->snapshots[i].name, name) == 0)
            return &stage->snapshots[i];
    fail_msg("no snapshot %s", name);
    abort();
}

static void publish(void *context, const char *export_name, struct node *node, void (*done)(void *argument, int status),
                    void *argument)
{
    struct stage *stage = context;
    find_snapshot(stage, export_name + 4)->views[export_name[2] - 'a'] = node; /* "vdX@NAME" */
    answer_later(stage, done, argument, false);
}

static void unpublish(void *context, const char *export_name, void (*done)(void *argument, int status), void *argument)
{
    (void)export_name;
    struct stage *stage = context;
    answer_later(stage, done, argument, stage->keep_exports);
}

static void withdraw(void *argument)
{
    struct stage *stage = argument;
    for (unsigned i = stage->answer_count - stage->kept; i < stage->answer_count; i++)
        io_post(stage->control, &stage->answers[i].message);
    stage->kept = 0;
    stage->keep_exports = false;
}

void stage_withdraw(struct stage *stage)
{
    world_call(stage->control, withdraw, stage);
}

static void snapshot_created(void *context, const struct snapshot *snapshot)
{
    (void)context;
    (void)snapshot;
}

static void snapshot_broken(void *context, const struct snapshot *snapshot)
{
    struct snapshot_info info;
    snapshot_info(snapshot, &info);
    find_snapshot(context, info.name)->broken = true;
}

static void snapshot_deleted(void *context, const char *name, const char *uuid)
{
    (void)uuid;
    find_snapshot(context, name)->deleted = true;
}

/* ---- life ---- */

uint8_t stage_first_value(unsigned disk, uint64_t block)
{
    return (uint8_t)(1 + 100 * disk + block % 97);
}

static void open_disk(struct stage *stage, unsigned index)
{
    char name[8];
    struct node *leaf;
    struct error err;
    uint8_t block[STAGE_BLOCK];
    snprintf(name, sizeof(name), "vd%c", 'a' + index);
    stage->io[index] = world_reactor(stage->world, name, 0);
    stage->files[index] = world_file_create(stage->world, name, STAGE_DISK_BYTES, 512, false);
    for (uint64_t i = 0; i < STAGE_DISK_BYTES / STAGE_BLOCK; i++) {
        memset(block, stage_first_value(index, i), sizeof(block));
        world_file_fill(stage->files[index], i * STAGE_BLOCK, block, sizeof(block));
    }
    world_act_as(stage->world, stage->io[index]);
    assert_int_equal(sim_leaf_open(stage->io[index], name, &leaf), 0);
    world_act_as(stage->world, stage->control);
    assert_int_equal(vm_add_disk(stage->vm, name, leaf, 0, &err), 0);
    stage->disks[index] = vm_disk(stage->vm, index);
}

static void stage_begin(struct stage *stage, const struct stage_options *options)
{
    memset(stage, 0, sizeof(*stage));
    struct world_options world = {.seed = 1,
                                  .context = stage,
                                  .gate = gate,
                                  .fault = fault,
                                  .landed = landed,
                                  .delay = delay,
                                  .shm_max_bytes = options->tmpfs_bytes};
    stage->world = world_create(&world);
    stage->control = world_reactor(stage->world, "control", 0);
    stage->disk_count = options->disk_count;
    uint64_t segment_bytes = 64 * STAGE_BLOCK;
    struct vm_options vm = {.name = "stage",
                            .ram_bytes = (options->segments ? options->segments : 64) *
                                         (segment_bytes + 64 * LIMIT_MAP_BYTES_PER_SLOT),
                            .block_bytes = STAGE_BLOCK,
                            .segment_bytes = segment_bytes,
                            .hooks = {.context = stage,
                                      .publish = publish,
                                      .unpublish = unpublish,
                                      .snapshot_created = snapshot_created,
                                      .snapshot_broken = snapshot_broken,
                                      .snapshot_deleted = snapshot_deleted}};
    struct error err;
    world_act_as(stage->world, stage->control);
    stage->vm = vm_create(stage->control, &vm);
    for (unsigned i = 0; i < stage->disk_count; i++)
        open_disk(stage, i);
    assert_int_equal(vm_start(stage->vm, &err), 0);
    world_act_as(stage->world, NULL);
}

static void vm_gone(void *argument)
{
    struct stage *stage = argument;
    stage->gone = true;
}

static void end_vm(void *argument)
{
    struct stage *stage = argument;
    vm_destroy(stage->vm, vm_gone, stage);
}

void stage_destroy_vm(struct stage *stage)
{
    world_call(stage->control, end_vm, stage);
}

int stage_set_up(void **state)
{
    struct stage *stage = malloc(sizeof(*stage));
    if (stage == NULL)
        return -1;
    stage_begin(stage, *state);
    *state = stage;
    return 0;
}

int stage_tear_down(void **state)
{
    struct stage *stage = *state;
    assert_int_equal(world_held(stage->world), 0);
    if (!stage->gone)
        stage_destroy_vm(stage);
    stage_settle(stage);
    assert_true(stage->gone);
    assert_int_equal(world_destroy(stage->world, stderr), 0);
    free(stage);
    return 0;
}

/* ---- requests ---- */

static void request_done(struct request *req, int status)
{
    struct stage_request *request = container_of(req, struct stage_request, req);
    assert_false(request->done);
    request->done = true;
    request->status = status;
}

static void submit(void *argument)
{
    struct stage_request *request = argument;
    node_submit(request->node, &request->req);
    assert_false(request->done);
}

static void start(struct stage_request *request, struct node *node, enum request_kind kind, uint64_t block,
                  uint64_t count)
{
    request->node = node;
    request->done = false;
    request->iov = (struct iovec){request->buffer, count * STAGE_BLOCK};
    request->req = (struct request){.kind = kind,
                                    .range = {block * STAGE_BLOCK, count * STAGE_BLOCK},
                                    .iov = &request->iov,
                                    .iov_count = 1,
                                    .extents = request->extents,
                                    .extent_max = 4,
                                    .done = request_done};
    world_call(node->io, submit, request);
}

void stage_write(struct stage *stage, struct stage_request *request, unsigned disk, uint64_t block, uint64_t count,
                 uint8_t value)
{
    memset(request->buffer, value, count * STAGE_BLOCK);
    start(request, &stage->disks[disk]->node, REQUEST_WRITE, block, count);
}

void stage_discard(struct stage *stage, struct stage_request *request, unsigned disk, uint64_t block, uint64_t count)
{
    start(request, &stage->disks[disk]->node, REQUEST_DISCARD, block, count);
}

void stage_read(struct stage *stage, struct stage_request *request, struct node *node, uint64_t block, uint64_t count)
{
    (void)stage;
    start(request, node, REQUEST_READ, block, count);
}

void stage_status(struct stage *stage, struct stage_request *request, struct node *node, uint64_t block, uint64_t count)
{
    (void)stage;
    start(request, node, REQUEST_BLOCK_STATUS, block, count);
}

void stage_write_held(struct stage *stage, enum world_kind kind, struct stage_request *request, unsigned disk,
                      uint64_t block, uint64_t count, uint8_t value)
{
    stage_hold(stage, kind, disk);
    stage_write(stage, request, disk, block, count, value);
    stage_hold_no_more(stage);
}

void stage_read_held(struct stage *stage, struct stage_request *request, struct node *node, uint64_t block,
                     uint64_t count)
{
    stage_hold(stage, WORLD_READ, 0);
    stage_read(stage, request, node, block, count);
    stage_hold_no_more(stage);
}

bool stage_succeeded(const struct stage_request *request)
{
    return request->done && request->status == 0;
}

void stage_overwrite(struct stage *stage, unsigned disk, uint64_t block, uint8_t value)
{
    struct stage_request write = {0};
    stage_write(stage, &write, disk, block, 1, value);
    stage_settle(stage);
    assert_true(stage_succeeded(&write));
}

int stage_value(struct stage *stage, struct stage_snapshot *snapshot, unsigned disk, uint64_t block)
{
    struct stage_request read = {0};
    stage_read(stage, &read, snapshot->views[disk], block, 1);
    stage_settle(stage);
    assert_true(read.done);
    for (unsigned i = 1; read.status == 0 && i < STAGE_BLOCK; i++)
        assert_int_equal(read.buffer[i], read.buffer[0]);
    return read.status < 0 ? read.status : read.buffer[0];
}

/* ---- snapshots ---- */

static void create_done(void *argument, struct snapshot *snapshot, const struct error *err)
{
    struct stage_snapshot *mine = argument;
    assert_false(mine->answered);
    mine->answered = true;
    mine->created = snapshot != NULL;
    if (snapshot == NULL) {
        mine->code = err->code;
        snprintf(mine->text, sizeof(mine->text), "%s", err->text);
    }
}

struct stage_snapshot *stage_create(struct stage *stage, const char *name, uint64_t drain_ns)
{
    assert_true(stage->snapshot_count < STAGE_SNAPSHOTS);
    struct stage_snapshot *snapshot = &stage->snapshots[stage->snapshot_count++];
    struct snapshot_options options = {.name = name, .drain_ns = drain_ns, .total_ns = drain_ns};
    snprintf(snapshot->name, sizeof(snapshot->name), "%s", name);
    snapshot->stage = stage;
    world_act_as(stage->world, stage->control);
    vm_snapshot_create(stage->vm, &options, create_done, snapshot);
    world_act_as(stage->world, NULL);
    return snapshot;
}

struct stage_snapshot *stage_snapshot(struct stage *stage, const char *name)
{
    struct stage_snapshot *snapshot = stage_create(stage, name, 0);
    stage_settle(stage);
    assert_true(snapshot->created);
    return snapshot;
}

static void delete_done(void *argument, const struct error *err)
{
    (void)argument;
    assert_null(err);
}

void stage_delete(struct stage *stage, struct stage_snapshot *snapshot)
{
    world_act_as(stage->world, stage->control);
    vm_snapshot_delete(stage->vm, snapshot->name, delete_done, stage);
    world_act_as(stage->world, NULL);
}
