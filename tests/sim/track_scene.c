/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A tracked disk on a stage. See track_scene.h. */
#include "track_scene.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "driver/file.h"
#include "track/sidecar_format.h"

static bool is_sidecar(const struct scene *scene, const struct world_io *io)
{
    return io->file == world_file_find(scene->world, SCENE_SIDECAR);
}

static int scene_fault(void *context, const struct world_io *io)
{
    struct scene *scene = context;
    return scene->fails ? scene->fails(scene, io, is_sidecar(scene, io)) : 0;
}

static bool scene_gate(void *context, const struct world_io *io)
{
    struct scene *scene = context;
    if (!scene->hold || !scene->hold(scene, io, is_sidecar(scene, io)))
        return false;
    assert_true(scene->held_count < SCENE_HELD);
    scene->held[scene->held_count++] = io->number;
    return true;
}

static void scene_landed(void *context, const struct world_io *io, int64_t result)
{
    struct scene *scene = context;
    (void)result;
    if (scene->landed)
        scene->landed(scene, io, is_sidecar(scene, io));
}

void scene_let_go(struct scene *scene)
{
    scene->hold = NULL;
    for (unsigned i = 0; i < scene->held_count; i++)
        world_let_go(scene->world, scene->held[i]);
    scene->held_count = 0;
}

uint64_t scene_sidecar_bytes(uint64_t disk_bytes)
{
    uint64_t pages = (disk_bytes / SCENE_BLOCK + SIDECAR_PAGE_BITS - 1) / SIDECAR_PAGE_BITS;
    return (SIDECAR_AREAS_AT + SIDECAR_AREAS * 2 * (pages + 1)) * SIDECAR_BLOCK_BYTES;
}

void scene_create(struct scene *scene, uint64_t seed)
{
    *scene = (struct scene){.slots = SCENE_SLOTS};
    scene->world = world_create(&(struct world_options){.seed = seed,
                                                        .power = true,
                                                        .context = scene,
                                                        .fault = scene_fault,
                                                        .gate = scene_gate,
                                                        .landed = scene_landed});
    world_file_create(scene->world, SCENE_DISK, (uint64_t)SCENE_BLOCKS * SCENE_BLOCK, 512, false);
}

/* Hooks of the tracker. */

static struct disk_identity identify(void *context)
{
    struct scene *scene = context;
    struct io_stat stat;
    assert_int_equal(io_stat(scene->io, scene->stat_fd, &stat), 0);
    struct disk_identity identity = {
        .size_bytes = stat.size_bytes, .device = stat.device, .inode = stat.inode, .local = !scene->block_device};
    if (!scene->block_device) {
        identity.mtime_ns = stat.mtime_ns;
        identity.ctime_ns = stat.ctime_ns;
    }
    return identity;
}

static int condemn(void *context, const char *reason)
{
    struct scene *scene = context;
    assert_true(reason[0] != '\0');
    scene->condemned++;
    return scene->condemn_status;
}

static void invalidated(void *context, const char *reason)
{
    struct scene *scene = context;
    assert_true(reason[0] != '\0');
    scene->invalidated++;
}

/* Operations of the tracker. */

static void op_done(struct tracker_op *op)
{
    struct scene *scene = container_of(op, struct scene, op);
    assert_true(scene->op_busy);
    scene->op_busy = false;
}

static struct tracker_op *op_begin(struct scene *scene)
{
    assert_false(scene->op_busy);
    scene->op = (struct tracker_op){.done = op_done};
    scene->op_busy = true;
    world_act_as(scene->world, scene->io);
    return &scene->op;
}

/* In small steps: what happens after the timeout has not happened. */
static bool run_until(struct scene *scene, bool (*condition)(void *argument), void *argument, uint64_t timeout_ns)
{
    for (uint64_t end = world_now(scene->world) + timeout_ns; !condition(argument);) {
        if (world_now(scene->world) >= end)
            return false;
        world_run_for(scene->world, NS_PER_MS);
    }
    return true;
}

static bool op_is_done(void *argument)
{
    return !((struct scene *)argument)->op_busy;
}

bool scene_op_ends(struct scene *scene, uint64_t timeout_ns)
{
    world_act_as(scene->world, NULL);
    return run_until(scene, op_is_done, scene, timeout_ns);
}

int scene_end_op(struct scene *scene)
{
    assert_true(scene_op_ends(scene, 120 * NS_PER_S));
    if (scene->op.status < 0)
        print_message("  %s\n", scene->op.error.text);
    return scene->op.status;
}

/* Lives. */

int scene_start(struct scene *scene)
{
    struct error err;
    struct node *sidecar;
    scene->io = world_reactor(scene->world, "fleeced", ++scene->process);
    world_act_as(scene->world, scene->io);
    struct file_options options = {.path = SCENE_DISK, .lock_wait_ns = 30 * NS_PER_S};
    assert_int_equal(file_open(scene->io, &options, &scene->leaf, &err), 0);
    scene->disk = disk_create("vda", scene->leaf);
    scene->stat_fd = io_open(scene->io, SCENE_DISK, O_RDONLY, 0);
    bool create = !world_file_find(scene->world, SCENE_SIDECAR);
    options = (struct file_options){.path = SCENE_SIDECAR,
                                    .lock_wait_ns = 30 * NS_PER_S,
                                    .create = create,
                                    .size_bytes = scene_sidecar_bytes((uint64_t)SCENE_BLOCKS * SCENE_BLOCK)};
    assert_int_equal(file_open(scene->io, &options, &sidecar, &err), 0);
    struct tracker_options tracker = {.sidecar = sidecar,
                                      .create = create,
                                      .slots = scene->slots,
                                      .memory = {"/dev/shm/fleece-scene", "vda"},
                                      .identity = identify(scene),
                                      .identify = identify,
                                      .identify_context = scene,
                                      .condemn = condemn,
                                      .condemn_context = scene,
                                      .invalidated = invalidated,
                                      .invalidated_context = scene};
    scene->tracker = tracker_create(scene->disk, &tracker);
    assert_non_null(scene->tracker);
    tracker_open(scene->tracker, op_begin(scene));
    return scene_end_op(scene);
}

/* What belonged to a killed daemon stays: nobody may free it. */
static void scene_bury(struct scene *scene)
{
    assert_true(scene->memory_count + 2 < sizeof scene->memory / sizeof scene->memory[0]);
    scene->memory[scene->memory_count++] = scene->tracker;
    scene->memory[scene->memory_count++] = scene->disk;
    for (unsigned i = 0; i < SCENE_WRITES; i++) {
        free(scene->writes[i].buffer);
        scene->writes[i] = (struct scene_write){.busy = false};
    }
    scene->op_busy = false;
    scene->held_count = 0;
    scene->hold = NULL;
    scene->fails = NULL;
    scene->landed = NULL;
    scene->tracker = NULL;
}

void scene_kill(struct scene *scene)
{
    world_act_as(scene->world, NULL);
    world_kill(scene->world, scene->process);
    scene_bury(scene);
}

void scene_power_loss(struct scene *scene)
{
    world_act_as(scene->world, NULL);
    world_power_loss(scene->world);
    scene_bury(scene);
}

void scene_close(struct scene *scene)
{
    tracker_close(scene->tracker, op_begin(scene));
    assert_int_equal(scene_end_op(scene), 0);
    world_act_as(scene->world, scene->io);
    tracker_destroy(scene->tracker);
    disk_destroy(scene->disk);
    io_close(scene->io, scene->stat_fd);
    world_act_as(scene->world, NULL);
    scene->tracker = NULL;
    for (unsigned i = 0; i < SCENE_WRITES; i++) {
        free(scene->writes[i].buffer);
        scene->writes[i] = (struct scene_write){.busy = false};
    }
}

/* So that the memory of killed daemons is no leak. */
static void *graveyard[4096];
static unsigned graves;

void scene_destroy(struct scene *scene)
{
    if (scene->tracker)
        scene_close(scene);
    world_run_for(scene->world, 5 * NS_PER_S);
    assert_int_equal(world_destroy(scene->world, NULL), 0);
    for (unsigned i = 0; i < scene->memory_count && graves < sizeof graveyard / sizeof graveyard[0]; i++)
        graveyard[graves++] = scene->memory[i];
}

struct stranger {
    struct io_op op;
    bool done;
};

static void stranger_done(struct io_op *op, int64_t result)
{
    assert_true(result > 0);
    ((struct stranger *)(void *)op)->done = true;
}

static bool stranger_is_done(void *argument)
{
    return ((struct stranger *)argument)->done;
}

void scene_behind(struct scene *scene, const char *path, uint64_t at, const void *bytes, uint64_t length)
{
    struct stranger stranger = {.op.done = stranger_done};
    struct iovec iov = {(void *)(uintptr_t)bytes, length};
    world_run_for(scene->world, 5 * NS_PER_S);
    struct io *io = world_reactor(scene->world, "stranger", 1000);
    world_act_as(scene->world, io);
    int fd = io_open(io, path, O_RDWR, 0);
    io_writev(io, &stranger.op, fd, &iov, 1, at, IO_WRITE_DSYNC);
    world_act_as(scene->world, NULL);
    assert_true(world_run_until(scene->world, stranger_is_done, &stranger, 10 * NS_PER_S));
    world_act_as(scene->world, io);
    io_close(io, fd);
    world_act_as(scene->world, NULL);
    world_kill(scene->world, 1000);
}

/* The guest. */

static void write_done(struct request *req, int status)
{
    struct scene_write *write = container_of(req, struct scene_write, req);
    write->status = status;
    write->done = true;
    write->took_ns = io_now_ns(req->io) - write->issued_ns;
}

static struct scene_write *submit(struct scene *scene, struct scene_write template)
{
    unsigned i = 0;
    while (scene->writes[i].busy && !scene->writes[i].done)
        i++;
    assert_true(i < SCENE_WRITES);
    struct scene_write *write = &scene->writes[i];
    free(write->buffer);
    *write = template;
    write->iov = (struct iovec){write->buffer, write->req.range.length};
    write->req.iov = write->buffer ? &write->iov : NULL;
    write->req.iov_count = write->buffer ? 1 : 0;
    write->req.done = write_done;
    write->busy = true;
    write->issued_ns = world_now(scene->world);
    world_act_as(scene->world, scene->io);
    node_submit(&scene->disk->node, &write->req);
    world_act_as(scene->world, NULL);
    return write;
}

struct scene_write *scene_submit(struct scene *scene, uint64_t block, uint64_t count, uint8_t value)
{
    struct scene_write write = {.req.kind = REQUEST_WRITE, .req.range = {block * SCENE_BLOCK, count * SCENE_BLOCK}};
    write.buffer = aligned_alloc(4096, count * SCENE_BLOCK);
    assert_non_null(write.buffer);
    memset(write.buffer, value, count * SCENE_BLOCK);
    return submit(scene, write);
}

static bool write_is_done(void *argument)
{
    return ((struct scene_write *)argument)->done;
}

bool scene_await(struct scene *scene, struct scene_write *write, uint64_t timeout_ns)
{
    return run_until(scene, write_is_done, write, timeout_ns);
}

void scene_write(struct scene *scene, uint64_t block, uint8_t value)
{
    struct scene_write *write = scene_submit(scene, block, 1, value);
    assert_true(scene_await(scene, write, 60 * NS_PER_S));
    assert_int_equal(write->status, 0);
}

void scene_flush(struct scene *scene)
{
    struct scene_write *write = submit(scene, (struct scene_write){.req.kind = REQUEST_FLUSH});
    assert_true(scene_await(scene, write, 60 * NS_PER_S));
    assert_int_equal(write->status, 0);
}

void scene_run(struct scene *scene, uint64_t duration_ns)
{
    world_act_as(scene->world, NULL);
    world_run_for(scene->world, duration_ns);
}

/* Checkpoints. */

const char *scene_uuid(unsigned name)
{
    static char text[UUID_TEXT_BYTES + 8];
    snprintf(text, sizeof text, "00000000-0000-4000-8000-%012u", name);
    return text;
}

int scene_prepare(struct scene *scene, unsigned name)
{
    struct checkpoint_id id = {.created_wall_ns = name};
    snprintf(id.name, sizeof id.name, "c%u", name);
    memcpy(id.uuid, scene_uuid(name), UUID_TEXT_BYTES);
    tracker_prepare(scene->tracker, &id, op_begin(scene));
    return scene_end_op(scene);
}

static void cut_run(struct io_task *task)
{
    struct scene *scene = container_of(task, struct scene, cut);
    tracker_cut(scene->tracker);
    disk_release(scene->disk);
    scene->drained = true;
}

static void drained(void *context)
{
    struct scene *scene = context;
    scene->cut.run = cut_run;
    io_task_queue(scene->io, &scene->cut);
}

static bool is_drained(void *argument)
{
    return ((struct scene *)argument)->drained;
}

void scene_cut(struct scene *scene)
{
    scene->drained = false;
    world_act_as(scene->world, scene->io);
    disk_hold(scene->disk, drained, scene);
    world_act_as(scene->world, NULL);
    assert_true(run_until(scene, is_drained, scene, 60 * NS_PER_S));
}

void scene_start_record(struct scene *scene)
{
    tracker_record(scene->tracker, op_begin(scene));
    world_act_as(scene->world, NULL);
}

void scene_checkpoint(struct scene *scene, unsigned name)
{
    assert_int_equal(scene_prepare(scene, name), 0);
    scene_cut(scene);
    scene_start_record(scene);
    assert_int_equal(scene_end_op(scene), 0);
}

int scene_remove(struct scene *scene, unsigned name)
{
    tracker_remove(scene->tracker, scene_uuid(name), op_begin(scene));
    return scene_end_op(scene);
}

/* Questions. */

bool scene_has(struct scene *scene, unsigned name, enum checkpoint_state *state)
{
    struct checkpoint_info infos[LIMIT_CHECKPOINTS];
    unsigned count = tracker_checkpoints(scene->tracker, infos, LIMIT_CHECKPOINTS);
    for (unsigned i = 0; i < count; i++)
        if (strcmp(infos[i].id.uuid, scene_uuid(name)) == 0) {
            *state = infos[i].state;
            return true;
        }
    return false;
}

static uint64_t count_changed(struct scene *scene, unsigned name, uint64_t from, uint64_t end)
{
    uint64_t at = from * SCENE_BLOCK, count = 0;
    while (at < end * SCENE_BLOCK) {
        struct range run = {0, 0};
        uint64_t next = at;
        assert_int_equal(tracker_changed(scene->tracker, scene_uuid(name), at, &run, &next), 0);
        if (run.length > 0 && run.start < end * SCENE_BLOCK) {
            uint64_t to = range_end(run) < end * SCENE_BLOCK ? range_end(run) : end * SCENE_BLOCK;
            count += (to - run.start) / SCENE_BLOCK;
        }
        assert_true(next > at);
        at = next;
    }
    return count;
}

bool scene_changed(struct scene *scene, unsigned name, uint64_t block)
{
    return count_changed(scene, name, block, block + 1) == 1;
}

uint64_t scene_changed_blocks(struct scene *scene, unsigned name)
{
    return count_changed(scene, name, 0, SCENE_BLOCKS);
}

uint8_t scene_byte(struct scene *scene, uint64_t block)
{
    return world_file_bytes(world_file_find(scene->world, SCENE_DISK))[block * SCENE_BLOCK];
}
