/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "stage.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/limits.h"
#include "driver/file.h"
#include "vm/vm_private.h"

/* ---- the disk's operations ---- */

static struct world_file *cache_file(const struct stage *stage, unsigned disk)
{
    char name[16];
    snprintf(name, sizeof(name), "vd%c.cache", 'a' + disk);
    return world_file_find(stage->world, name);
}

static bool is_of_cache(const struct stage *stage, const struct world_io *io)
{
    for (unsigned i = 0; i < stage->disk_count; i++)
        if (io->file == cache_file(stage, i))
            return true;
    return false;
}

static bool is_held(const struct stage *stage, const struct world_io *io)
{
    if (!stage->holding || io->kind != stage->hold_kind)
        return false;
    return io->file == (stage->hold_cache ? cache_file(stage, stage->hold_disk) : stage->files[stage->hold_disk]);
}

static bool gate(void *context, const struct world_io *io)
{
    struct stage *stage = context;
    bool faulty = is_of_cache(stage, io) && stage->cache_operations == stage->cache_fault_at;
    bool stuck = is_of_cache(stage, io) && stage->cache_fail_with == 0 && stage->held_count < STAGE_HELD &&
                 stage->cache_faults_per_1024 > 0 && world_chance(stage->world, stage->cache_faults_per_1024);
    if ((!is_held(stage, io) || stage->fail_with != 0) && (!faulty || stage->cache_fail_with != 0) && !stuck)
        return false;
    assert_true(stage->held_count < STAGE_HELD);
    stage->held[stage->held_count++] = io->number;
    return true;
}

static int fault(void *context, const struct world_io *io)
{
    struct stage *stage = context;
    if (is_of_cache(stage, io) && ++stage->cache_operations == stage->cache_fault_at && stage->cache_fail_with != 0)
        return io->kind == WORLD_READ ? -EIO : stage->cache_fail_with;
    if (is_of_cache(stage, io) && stage->cache_fail_with != 0 && stage->cache_faults_per_1024 > 0 &&
        world_chance(stage->world, stage->cache_faults_per_1024))
        return io->kind == WORLD_READ ? -EIO : stage->cache_fail_with;
    return is_held(stage, io) ? stage->fail_with : 0;
}

static void landed(void *context, const struct world_io *io, int64_t result)
{
    struct stage *stage = context;
    if (io->kind == WORLD_WRITE && result > 0 && stage->landed_count < 64)
        stage->landed[stage->landed_count++] = io->range.start / STAGE_BLOCK;
}

static void moment(void *context)
{
    struct stage *stage = context;
    if (world_process(stage->world) != stage->process)
        return;
    if (++stage->moments == stage->die_at) {
        stage->dead = true;
        world_die(stage->world);
    }
}

static bool outlives(void *context, const void *memory, size_t length)
{
    const struct stage *stage = context;
    return stage->outlives && stage->outlives(stage, memory, length);
}

static uint64_t delay(void *context, struct io *from, struct io *to)
{
    struct stage *stage = context;
    return from != NULL && from == stage->slow_from && to == stage->slow_to ? NS_PER_S : 0;
}

void stage_hold(struct stage *stage, enum world_kind kind, unsigned disk)
{
    stage->holding = true;
    stage->hold_cache = false;
    stage->hold_kind = kind;
    stage->hold_disk = disk;
}

void stage_hold_cache(struct stage *stage, enum world_kind kind, unsigned disk)
{
    stage_hold(stage, kind, disk);
    stage->hold_cache = true;
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
    assert_true(stage->answer_count < sizeof(stage->answers) / sizeof(stage->answers[0]));
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
    struct stage *stage = context;
    struct stage_snapshot *mine = find_snapshot(stage, info.name);
    mine->broken = true;
    mine->broken_ns = world_now(stage->world);
    snprintf(mine->reason, sizeof(mine->reason), "%s", info.reason != NULL ? info.reason : "");
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
    stage->io[index] = world_reactor(stage->world, name, stage->process);
    for (uint64_t i = 0; !stage->files[index] && i < STAGE_DISK_BYTES / STAGE_BLOCK; i++) {
        struct world_file *file = world_file_find(stage->world, name);
        if (!file)
            file = world_file_create(stage->world, name, stage->disk_bytes, 512, false);
        memset(block, stage_first_value(index, i), sizeof(block));
        world_file_fill(file, i * STAGE_BLOCK, block, sizeof(block));
    }
    stage->files[index] = world_file_find(stage->world, name);
    world_act_as(stage->world, stage->io[index]);
    assert_int_equal(stage_leaf_open(stage, stage->io[index], name, &leaf), 0);
    stage->sidecars.leaves[index] = leaf;
    world_act_as(stage->world, stage->control);
    assert_int_equal(vm_add_disk(stage->vm, name, leaf, 0, &err), 0);
    stage->disks[index] = vm_disk(stage->vm, index);
}

static void daemon_begin(struct stage *stage)
{
    struct error err;
    stage->sidecars.control = stage->control = world_reactor(stage->world, "control", stage->process);
    world_act_as(stage->world, stage->control);
    stage->vm = vm_create(stage->control, &stage->options);
    for (unsigned i = 0; i < stage->disk_count; i++)
        open_disk(stage, i);
    assert_int_equal(vm_start(stage->vm, &err), 0);
    world_act_as(stage->world, NULL);
}

/* What killed daemons leave in this process's memory: nobody may free it, and it is no leak. */
static struct vm *graveyard[4096];
static unsigned graves;

static void daemon_is_dead(struct stage *stage)
{
    stage->die_at = 0;
    stage->dead = true;
    stage->holding = false;
    stage->held_count = 0;
    stage->caches_open = 0;
    stage->answer_count = stage->kept = 0;
    assert_true(graves < sizeof(graveyard) / sizeof(graveyard[0]));
    graveyard[graves++] = stage->vm;
    for (unsigned i = 0; i < stage->snapshot_count; i++)
        memset(stage->snapshots[i].views, 0, sizeof(stage->snapshots[i].views));
}

void stage_kill(struct stage *stage)
{
    if (!stage->dead)
        world_kill(stage->world, stage->process);
    daemon_is_dead(stage);
}

void stage_lose_power(struct stage *stage)
{
    world_power_loss(stage->world);
    daemon_is_dead(stage);
}

static void recovered(void *argument, const struct error *err)
{
    struct stage *stage = argument;
    stage->trouble = err ? "recovery failed" : NULL;
    stage->adopted = true;
}

static void recover(void *argument)
{
    struct stage *stage = argument;
    vm_recover(stage->vm, recovered, stage);
}

static void adopted(void *argument)
{
    struct stage *stage = argument;
    stage->adopted = true;
}

static void adopt(void *argument)
{
    struct stage *stage = argument;
    vm_adopt(stage->vm, adopted, stage);
}

static void publish_adopted(void *argument)
{
    struct stage *stage = argument;
    vm_publish_adopted(stage->vm, adopted, stage);
}

struct stranger {
    struct io_op op;
    bool done;
};

static void stranger_done(struct io_op *op, int64_t result)
{
    assert_int_equal(result, STAGE_BLOCK);
    container_of(op, struct stranger, op)->done = true;
}

static bool stranger_is_done(void *argument)
{
    return ((struct stranger *)argument)->done;
}

void stage_write_behind(struct stage *stage, unsigned disk, uint64_t block, uint8_t value)
{
    const char name[] = {'v', 'd', (char)('a' + disk), 0};
    struct stranger stranger = {.op.done = stranger_done};
    uint8_t bytes[STAGE_BLOCK];
    struct iovec iov = {bytes, sizeof(bytes)};
    memset(bytes, value, sizeof(bytes));
    struct io *io = world_reactor(stage->world, "stranger", 1000);
    world_act_as(stage->world, io);
    int fd = io_open(io, name, O_RDWR, 0);
    io_writev(io, &stranger.op, fd, &iov, 1, block * STAGE_BLOCK, IO_WRITE_DSYNC);
    world_act_as(stage->world, NULL);
    assert_true(world_run_until(stage->world, stranger_is_done, &stranger, 10 * NS_PER_S));
    world_act_as(stage->world, io);
    io_close(io, fd);
    world_act_as(stage->world, NULL);
    world_kill(stage->world, 1000);
}

static bool has_adopted(void *argument)
{
    const struct stage *stage = argument;
    return stage->adopted || stage->dead;
}

/* One step of the start; false: the daemon has died meanwhile. */
static bool start_step(struct stage *stage, void (*step)(void *argument))
{
    stage->adopted = false;
    world_call(stage->control, step, stage);
    assert_true(world_run_until(stage->world, has_adopted, stage, 30 * NS_PER_S));
    if (!stage->dead)
        stage_settle(stage);
    return !stage->dead;
}

void stage_restart(struct stage *stage)
{
    assert_true(stage->dead);
    stage->dead = false;
    stage->process++;
    daemon_begin(stage);
    if ((stage->tracked && !start_step(stage, recover)) || !start_step(stage, adopt))
        return;
    assert_null(stage->trouble);
    for (unsigned i = 0; i < stage->disk_count; i++) {
        char name[16];
        snprintf(name, sizeof(name), "vd%c.cache", 'a' + i);
        if (stage->caches_open == 0 && world_file_find(stage->world, name) != NULL) {
            world_run_for(stage->world, 5 * NS_PER_S); /* until what the dead one wrote has landed */
            world_file_remove(stage->world, name);
        }
    }
    start_step(stage, publish_adopted);
}

static void stage_begin(struct stage *stage, const struct stage_options *options)
{
    memset(stage, 0, sizeof(*stage));
    struct world_options world = {.seed = options->seed != 0 ? options->seed : 1,
                                  .context = stage,
                                  .gate = gate,
                                  .fault = fault,
                                  .landed = landed,
                                  .delay = delay,
                                  .outlives = outlives,
                                  .short_per_1024 = options->short_per_1024,
                                  .moment = options->restartable ? moment : NULL,
                                  .power = options->tracked,
                                  .shm_max_bytes = options->tmpfs_bytes};
    stage->sidecars.world = stage->world = world_create(&world);
    stage->restartable = options->restartable;
    stage->tracked = options->tracked;
    stage->disk_bytes = options->disk_bytes ? options->disk_bytes : STAGE_DISK_BYTES;
    stage->disk_count = options->disk_count;
    uint64_t segment_bytes = 64 * STAGE_BLOCK;
    uint64_t map_bytes = 64 * LIMIT_MAP_BYTES_PER_SLOT, charge = segment_bytes + map_bytes;
    if (options->cache_segments > 0) { /* with its share of the map of the file */
        charge += map_bytes;
        stage->cache_bytes = 4096 + options->cache_segments * (segment_bytes + 4096);
    }
    stage->options = (struct vm_options){.name = "stage",
                                         .ram_bytes = (options->segments ? options->segments : 64) * charge +
                                                      options->cache_segments * map_bytes,
                                         .disk_bytes = stage->cache_bytes,
                                         .cbw_timeout_ns = options->cbw_timeout_ns,
                                         .copy_on_read = options->copy_on_read,
                                         .block_bytes = STAGE_BLOCK,
                                         .segment_bytes = segment_bytes,
                                         .hooks = {.context = stage,
                                                   .publish = publish,
                                                   .unpublish = unpublish,
                                                   .snapshot_created = snapshot_created,
                                                   .snapshot_broken = snapshot_broken,
                                                   .snapshot_deleted = snapshot_deleted}};
    stage_file_hooks(&stage->options.hooks, options->restartable);
    if (options->restartable)
        stage->options.memory_folder = "/dev/shm/fleece-0/stage";
    if (options->tracked)
        sidecar_kit_hooks(&stage->options.hooks);
    daemon_begin(stage);
    if (options->tracked)
        start_step(stage, recover);
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
    assert_int_equal(stage->caches_open, 0);
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
                                    .flags = request->flags,
                                    .range = {block * STAGE_BLOCK, count * STAGE_BLOCK},
                                    .iov = &request->iov,
                                    .iov_count = 1,
                                    .extents = request->extents,
                                    .extent_max = 4,
                                    .dirty_map = request->dirty_map,
                                    .done = request_done};
    world_call(node->io, submit, request);
}

void stage_write(struct stage *stage, struct stage_request *request, unsigned disk, uint64_t block, uint64_t count,
                 uint8_t value)
{
    memset(request->buffer, value, count * STAGE_BLOCK);
    start(request, &stage->disks[disk]->node, REQUEST_WRITE, block, count);
}

void stage_write_buffer(struct stage *stage, struct stage_request *request, unsigned disk, uint64_t block,
                        uint64_t count)
{
    start(request, &stage->disks[disk]->node, REQUEST_WRITE, block, count);
}

void stage_discard(struct stage *stage, struct stage_request *request, unsigned disk, uint64_t block, uint64_t count)
{
    start(request, &stage->disks[disk]->node, REQUEST_DISCARD, block, count);
}

void stage_write_zeroes(struct stage *stage, struct stage_request *request, unsigned disk, uint64_t block,
                        uint64_t count)
{
    start(request, &stage->disks[disk]->node, REQUEST_WRITE_ZEROES, block, count);
}

void stage_flush(struct stage *stage, struct stage_request *request, unsigned disk)
{
    start(request, &stage->disks[disk]->node, REQUEST_FLUSH, 0, 0);
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

void stage_lose(struct stage *stage, unsigned disk, uint64_t block)
{
    stage->fail_with = -EIO;
    stage_hold(stage, WORLD_READ, disk); /* the copy's read */
    stage_overwrite(stage, disk, block, 200);
    stage_hold_no_more(stage);
}

void stage_overwrite_all(struct stage *stage, unsigned disk, uint64_t first, uint64_t count, uint8_t value)
{
    struct stage_request *writes = calloc((count + 3) / 4, sizeof(*writes));
    assert_non_null(writes);
    for (uint64_t i = 0; i < count; i += 4)
        stage_write(stage, &writes[i / 4], disk, first + i, count - i < 4 ? count - i : 4, value);
    stage_settle(stage);
    for (uint64_t i = 0; i < count; i += 4)
        assert_true(stage_succeeded(&writes[i / 4]));
    free(writes);
}

int stage_release(struct stage *stage, struct stage_snapshot *snapshot, unsigned disk, uint64_t block, uint64_t count)
{
    struct stage_request release = {0};
    (void)stage;
    start(&release, snapshot->views[disk], REQUEST_DISCARD, block, count);
    world_run_for(stage->world, NS_PER_US);
    assert_true(release.done);
    return release.status;
}

void stage_release_soon(struct stage *stage, struct stage_request *request, uint64_t block, uint64_t count)
{
    (void)stage;
    start(request, request->node, REQUEST_DISCARD, block, count);
}

uint32_t stage_residence(struct stage *stage, struct stage_snapshot *snapshot, unsigned disk, uint64_t block)
{
    struct stage_request status = {.flags = REQUEST_RESIDENCE};
    start(&status, snapshot->views[disk], REQUEST_BLOCK_STATUS, block, 1);
    world_run_for(stage->world, NS_PER_US);
    assert_true(stage_succeeded(&status));
    assert_int_equal(status.extents[0].length, STAGE_BLOCK);
    return status.extents[0].flags;
}

struct status_answer {
    struct stage *stage;
    struct vm_status status;
    bool known;
};

static void status_known(void *argument, const struct vm_status *status)
{
    struct status_answer *answer = argument;
    answer->status = *status;
    answer->known = true;
}

static void ask_status(void *argument)
{
    struct status_answer *answer = argument;
    vm_status_query(answer->stage->vm, status_known, answer);
}

struct vm_status stage_status_of_vm(struct stage *stage)
{
    struct status_answer answer = {.stage = stage};
    world_call(stage->control, ask_status, &answer);
    stage_settle(stage);
    assert_true(answer.known);
    return answer.status;
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

struct stage_snapshot *stage_create_with(struct stage *stage, const char *name, const struct snapshot_options *with)
{
    assert_true(stage->snapshot_count < STAGE_SNAPSHOTS);
    struct stage_snapshot *snapshot = &stage->snapshots[stage->snapshot_count++];
    struct snapshot_options options = *with;
    snprintf(snapshot->name, sizeof(snapshot->name), "%s", name);
    options.name = snapshot->name;
    snapshot->stage = stage;
    world_act_as(stage->world, stage->control);
    vm_snapshot_create(stage->vm, &options, create_done, snapshot);
    world_act_as(stage->world, NULL);
    return snapshot;
}

struct stage_snapshot *stage_create(struct stage *stage, const char *name, uint64_t drain_ns)
{
    const struct snapshot_options options = {
        .drain_ns = drain_ns, .total_ns = drain_ns, .lease = stage->leases ? stage : NULL};
    return stage_create_with(stage, name, &options);
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

static void disks_away(void *context, bool away, void (*done)(void *argument), void *argument)
{
    struct stage *stage = context;
    assert_null(stage->away.done); /* one at a time */
    if (away)
        stage->away.away++;
    else
        stage->away.back++;
    stage->away.noted = away;
    stage->away.done = done;
    stage->away.argument = argument;
}

void stage_note_away(struct stage *stage)
{
    stage->vm->options.hooks.disks_away = disks_away;
}

void stage_noted(void *argument)
{
    struct stage *stage = argument;
    void (*done)(void *) = stage->away.done;
    assert_non_null(done);
    stage->away.done = NULL;
    done(stage->away.argument);
}
