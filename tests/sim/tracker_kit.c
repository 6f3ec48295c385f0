/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The kit keeps every checkpoint's set of written blocks in memory of its own, which no death of the daemon touches. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "driver/file.h"
#include "tracker_kit.h"

void kit_init(struct kit *kit, const struct world_options *options)
{
    *kit = (struct kit){.world = world_create(options)};
    world_file_create(kit->world, "disk", KIT_DISK_BYTES, 512, false);
    kit->buffer = aligned_alloc(KIT_BLOCK, LIMIT_REQUEST_BYTES);
    memset(kit->buffer, 0x5a, LIMIT_REQUEST_BYTES);
    kit->options.memory = (struct io_shm_name){"/dev/shm/fleece-0/vm", "vda"};
}

void kit_fini(struct kit *kit)
{
    for (unsigned i = 0; i < kit->checkpoint_count; i++)
        free(kit->checkpoints[i]);
    world_act_as(kit->world, NULL);
    assert_int_equal(world_destroy(kit->world, stderr), 0);
    free(kit->buffer);
}

struct world_file *kit_sidecar(struct kit *kit)
{
    return world_file_find(kit->world, "disk.fleece");
}

static struct disk_identity identify(void *context)
{
    struct kit *kit = context;
    struct io_stat stat;
    int fd = io_open(kit->io, "disk", 0, 0);
    assert_int_equal(io_stat(kit->io, fd, &stat), 0);
    io_close(kit->io, fd);
    return (struct disk_identity){stat.size_bytes, stat.device, stat.inode,   stat.mtime_ns,
                                  stat.ctime_ns,   true,        kit->instance};
}

static int condemn(void *context, const char *reason)
{
    struct kit *kit = context;
    (void)reason;
    kit->condemned++;
    return kit->condemn_status;
}

static void invalidated(void *context, const char *reason)
{
    struct kit *kit = context;
    kit->invalidated++;
    snprintf(kit->reason, sizeof kit->reason, "%s", reason);
}

static struct node *open_file(struct kit *kit, const char *path)
{
    struct node *node = NULL;
    struct file_options options = {.path = path, .lock_wait_ns = LOCK_WAIT_DEFAULT_NS};
    struct error err = {0};
    int status = file_open(kit->io, &options, &node, &err);
    if (status < 0)
        fail_msg("%s: %s", path, err.text);
    return node;
}

static void op_done(struct tracker_op *op)
{
    struct kit *kit = container_of(op, struct kit, op);
    kit->op_done = true;
    kit->err = op->error;
}

static bool is_op_done(void *argument)
{
    return ((struct kit *)argument)->op_done;
}

int kit_wait(struct kit *kit)
{
    if (!world_run_until(kit->world, is_op_done, kit, 100 * NS_PER_S))
        fail_msg("an operation of the tracker does not end");
    world_act_as(kit->world, kit->io);
    return kit->op.status;
}

static struct tracker_op *op_new(struct kit *kit)
{
    kit->op = (struct tracker_op){.done = op_done};
    kit->op_done = false;
    return &kit->op;
}

struct kit_observer {
    struct write_observer observer; /* first */
    struct kit *kit;
};

static void observe(struct write_observer *observer, struct range range)
{
    struct kit *kit = ((struct kit_observer *)(void *)observer)->kit;
    for (unsigned i = 0; i < kit->checkpoint_count; i++)
        memset(kit->checkpoints[i]->changed + range.start / KIT_BLOCK, 1, range.length / KIT_BLOCK);
}

static void watch(struct kit *kit)
{
    struct kit_observer *observer = calloc(1, sizeof *observer);
    observer->observer.written = observe;
    observer->kit = kit;
    kit->observer = &observer->observer;
    list_append(&kit->disk->observers, &kit->observer->link);
}

static void start(struct kit *kit)
{
    char name[16];
    struct tracker_options options = kit->options;
    if (!kit->reactor_is_left) {
        kit->process++;
        snprintf(name, sizeof name, "vda %u", kit->process % 1000);
        kit->io = world_reactor(kit->world, name, kit->process);
    }
    kit->reactor_is_left = false;
    world_act_as(kit->world, kit->io);
    kit->disk = disk_create("vda", open_file(kit, "disk"));
    watch(kit);
    options.create = !kit_sidecar(kit);
    if (options.create)
        world_file_create(kit->world, "disk.fleece", tracker_sidecar_bytes(KIT_DISK_BYTES, 0), 512, false);
    options.sidecar = open_file(kit, "disk.fleece");
    options.identity = identify(kit);
    options.identify = identify;
    options.identify_context = options.condemn_context = options.invalidated_context = kit;
    options.condemn = condemn;
    options.invalidated = invalidated;
    kit->tracker = tracker_create(kit->disk, &options);
    assert_non_null(kit->tracker);
    tracker_open(kit->tracker, op_new(kit));
}

int kit_start(struct kit *kit)
{
    start(kit);
    return kit_wait(kit);
}

void kit_start_and_die(struct kit *kit, uint64_t after_ns)
{
    start(kit);
    world_run_for(kit->world, after_ns);
    kit_kill(kit);
}

void kit_leave(struct kit *kit)
{
    world_run_for(kit->world, NS_PER_MS);
    world_act_as(kit->world, kit->io);
    tracker_destroy(kit->tracker);
    list_remove(&kit->observer->link);
    free(kit->observer);
    disk_destroy(kit->disk);
    kit->tracker = NULL;
    kit->disk = NULL;
    kit->reactor_is_left = true;
    world_act_as(kit->world, NULL);
}

void kit_stop(struct kit *kit)
{
    kit_settle(kit);
    tracker_close(kit->tracker, op_new(kit));
    if (kit_wait(kit) < 0)
        fail_msg("close: %s", kit->err.text);
    kit_leave(kit);
}

/* What a killed process had in memory stays as it is; it is no leak. */
static void *graveyard[65536];
static unsigned graves;

static void bury(struct kit *kit)
{
    assert_true(graves + 3 < sizeof graveyard / sizeof graveyard[0]);
    graveyard[graves++] = kit->tracker;
    graveyard[graves++] = kit->disk;
    graveyard[graves++] = kit->observer;
    memset(kit->writes, 0, sizeof kit->writes);
    kit->tracker = NULL;
    kit->disk = NULL;
}

void kit_kill(struct kit *kit)
{
    world_act_as(kit->world, NULL);
    world_kill(kit->world, kit->process);
    bury(kit);
}

void kit_power_loss(struct kit *kit)
{
    world_act_as(kit->world, NULL);
    world_power_loss(kit->world);
    bury(kit);
}

/* Checkpoints. */

static struct checkpoint_id kit_id(struct kit *kit, const char *name)
{
    struct checkpoint_id id = {.created_wall_ns = 1000 + kit->names};
    snprintf(id.name, sizeof id.name, "%s", name);
    snprintf(id.uuid, sizeof id.uuid, "%08x-0000-4000-8000-000000000000", ++kit->names);
    return id;
}

static unsigned model_find(const struct kit *kit, const char *name)
{
    for (unsigned i = 0; i < kit->checkpoint_count; i++)
        if (strcmp(kit->checkpoints[i]->id.name, name) == 0)
            return i;
    fail_msg("no checkpoint %s", name);
    return 0;
}

int kit_prepare(struct kit *kit, const char *name)
{
    struct checkpoint_id id = kit_id(kit, name);
    tracker_prepare(kit->tracker, &id, op_new(kit));
    int status = kit_wait(kit);
    if (status < 0)
        return status;
    struct kit_checkpoint *checkpoint = calloc(1, sizeof *checkpoint);
    checkpoint->id = id;
    assert_true(kit->checkpoint_count < KIT_CHECKPOINTS);
    kit->checkpoints[kit->checkpoint_count] = checkpoint; /* counted from the cut on */
    return 0;
}

static void drained(void *context)
{
    *(bool *)context = true;
}

static bool is_true(void *argument)
{
    return *(bool *)argument;
}

void kit_cut(struct kit *kit)
{
    bool held = false;
    disk_hold(kit->disk, drained, &held);
    assert_true(world_run_until(kit->world, is_true, &held, 10 * NS_PER_S));
    world_act_as(kit->world, kit->io);
    tracker_cut(kit->tracker);
    kit->checkpoint_count++;
    disk_release(kit->disk);
}

static void model_drop(struct kit *kit, unsigned at)
{
    free(kit->checkpoints[at]);
    kit->checkpoint_count--;
    memmove(kit->checkpoints + at, kit->checkpoints + at + 1,
            (kit->checkpoint_count - at) * sizeof(struct kit_checkpoint *));
}

int kit_record(struct kit *kit)
{
    tracker_record(kit->tracker, op_new(kit));
    int status = kit_wait(kit);
    if (status < 0)
        model_drop(kit, kit->checkpoint_count - 1);
    return status;
}

int kit_commit(struct kit *kit, const char *name)
{
    tracker_commit(kit->tracker, kit->checkpoints[model_find(kit, name)]->id.uuid, op_new(kit));
    return kit_wait(kit);
}

int kit_checkpoint(struct kit *kit, const char *name)
{
    int status = kit_prepare(kit, name);
    if (status < 0)
        return status;
    kit_cut(kit);
    status = kit_record(kit);
    return status < 0 ? status : kit_commit(kit, name);
}

int kit_remove_begin(struct kit *kit, const char *name)
{
    unsigned at = model_find(kit, name);
    tracker_remove(kit->tracker, kit->checkpoints[at]->id.uuid, op_new(kit));
    return (int)at;
}

void kit_remove_end(struct kit *kit, const char *name)
{
    model_drop(kit, model_find(kit, name));
}

int kit_remove(struct kit *kit, const char *name)
{
    kit_remove_begin(kit, name);
    int status = kit_wait(kit);
    if (status == 0)
        kit_remove_end(kit, name);
    return status;
}

/* Writes. */

static void write_done(struct request *req, int status)
{
    struct kit_write *write = container_of(req, struct kit_write, req);
    write->busy = false;
    write->done = true;
    write->status = status;
    write->took_ns = world_now(write->kit->world) - write->started_ns;
    assert_int_equal(status, 0);
}

struct kit_write *kit_write(struct kit *kit, enum request_kind kind, uint64_t first_block, uint64_t count)
{
    struct kit_write *write = kit->writes;
    while (write->busy)
        write++;
    assert_true(write < kit->writes + KIT_WRITES);
    *write = (struct kit_write){.kit = kit, .busy = true, .started_ns = world_now(kit->world)};
    write->iov = (struct iovec){kit->buffer, count * KIT_BLOCK};
    write->req = (struct request){
        .kind = kind,
        .range = {first_block * KIT_BLOCK, count * KIT_BLOCK},
        .iov = kind == REQUEST_WRITE ? &write->iov : NULL,
        .iov_count = kind == REQUEST_WRITE,
        .done = write_done,
    };
    world_act_as(kit->world, kit->io);
    node_submit(&kit->disk->node, &write->req);
    return write;
}

static bool is_settled(void *argument)
{
    struct kit *kit = argument;
    for (unsigned i = 0; i < KIT_WRITES; i++)
        if (kit->writes[i].busy)
            return false;
    return true;
}

void kit_settle(struct kit *kit)
{
    if (!world_run_until(kit->world, is_settled, kit, 100 * NS_PER_S))
        fail_msg("writes do not end");
    world_act_as(kit->world, kit->io);
}

void kit_write_now(struct kit *kit, uint64_t first_block, uint64_t count)
{
    kit_write(kit, REQUEST_WRITE, first_block, count);
    kit_settle(kit);
}

/* The judge. */

static void read_map(struct kit *kit, const char *uuid, uint8_t *map)
{
    memset(map, 0, KIT_BLOCKS);
    for (uint64_t at = 0, next; at < KIT_DISK_BYTES; at = next) {
        struct range run;
        assert_int_equal(tracker_changed(kit->tracker, uuid, at, &run, &next), 0);
        assert_true(next > at);
        if (run.length > 0)
            memset(map + run.start / KIT_BLOCK, 1, (run.length + KIT_BLOCK - 1) / KIT_BLOCK);
    }
}

static const struct checkpoint_info *info_of(struct kit *kit, const char *name)
{
    static struct checkpoint_info infos[LIMIT_CHECKPOINTS];
    unsigned count = tracker_checkpoints(kit->tracker, infos, LIMIT_CHECKPOINTS);
    for (unsigned i = 0; i < count; i++)
        if (strcmp(infos[i].id.name, name) == 0)
            return &infos[i];
    return NULL;
}

enum checkpoint_state kit_state(struct kit *kit, const char *name)
{
    const struct checkpoint_info *info = info_of(kit, name);
    if (!info)
        fail_msg("the tracker has no checkpoint %s", name);
    return info->state;
}

bool kit_reports(struct kit *kit, const char *name, uint64_t block)
{
    static uint8_t map[KIT_BLOCKS];
    read_map(kit, kit->checkpoints[model_find(kit, name)]->id.uuid, map);
    return map[block];
}

uint64_t kit_judge(struct kit *kit)
{
    static uint8_t map[KIT_BLOCKS];
    uint64_t most = 0;
    for (unsigned i = 0; i < kit->checkpoint_count; i++) {
        const struct kit_checkpoint *model = kit->checkpoints[i];
        uint64_t beyond = 0, set = 0;
        const struct checkpoint_info *info = info_of(kit, model->id.name);
        if (!info)
            fail_msg("the tracker has lost checkpoint %s", model->id.name);
        if (info->state == CHECKPOINT_INVALID)
            continue;
        read_map(kit, model->id.uuid, map);
        for (uint64_t block = 0; block < KIT_BLOCKS; block++) {
            if (model->changed[block] && !map[block])
                fail_msg("block %llu was changed since %s, and that is not reported", (unsigned long long)block,
                         model->id.name);
            beyond += map[block] && !model->changed[block];
            set += map[block];
        }
        assert_int_equal(info->changed_bytes, set * KIT_BLOCK);
        most = beyond > most ? beyond : most;
    }
    return most;
}
