/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Several losses of old data at once: a disk goes bad while two snapshots live, and the copies of two blocks fail, that of
 * the newer snapshot first. Both snapshots must be said to be broken, and must be broken on every disk (R4). And a loss
 * that one disk reports before another disk has heard of the cut. And what only a large
 * cache shows: its numbers, and a long release.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/limits.h"
#include "fleece/snapshot_access.h"
#include "sim_leaf.h"
#include "vm/vm.h"
#include "world.h"

enum { DISKS = 2, BLOCK = 4096, DISK_BYTES = 64 * BLOCK };

struct view {
    struct scene *scene;
    char name[32];
    struct node *node;
    struct request req;
    struct iovec iov;
    uint8_t bytes[BLOCK];
    int status;
    bool busy;
};

struct scene {
    struct world *world;
    struct io *control, *io[DISKS];
    struct vm *vm;
    struct disk *disks[DISKS];
    struct world_file *bad; /* reads of it fail */
    bool hold_reads;
    uint64_t held[4];
    unsigned held_count;
    struct view views[2 * DISKS];
    unsigned view_count, broken_count;
    struct request writes[2];
    struct iovec iov;
    uint8_t bytes[BLOCK];
    unsigned written, created;
    bool destroyed;
};

static int fault(void *context, const struct world_io *io)
{
    const struct scene *scene = context;
    return scene->bad == io->file && io->kind == WORLD_READ ? -EIO : 0;
}

static bool gate(void *context, const struct world_io *io)
{
    struct scene *scene = context;
    if (!scene->hold_reads || io->kind != WORLD_READ || io->file != scene->bad)
        return false;
    scene->held[scene->held_count++] = io->number;
    return true;
}

static void publish(void *context, const char *export_name, struct node *node, void (*done)(void *argument, int status),
                    void *argument)
{
    struct scene *scene = context;
    struct view *view = &scene->views[scene->view_count++];
    view->scene = scene;
    view->node = node;
    snprintf(view->name, sizeof view->name, "%s", export_name);
    done(argument, 0);
}

static void unpublish(void *context, const char *export_name, void (*done)(void *argument, int status), void *argument)
{
    (void)context;
    (void)export_name;
    done(argument, 0);
}

static void snapshot_created(void *context, const struct snapshot *snapshot)
{
    (void)snapshot;
    ((struct scene *)context)->created++;
}

static void snapshot_broken(void *context, const struct snapshot *snapshot)
{
    (void)snapshot;
    ((struct scene *)context)->broken_count++;
}

static void snapshot_deleted(void *context, const char *name, const char *uuid)
{
    (void)context;
    (void)name;
    (void)uuid;
}

static void run_dry(struct scene *scene)
{
    world_act_as(scene->world, NULL);
    world_run_for(scene->world, 50 * NS_PER_MS);
}

static void create_done(void *argument, struct snapshot *snapshot, const struct error *err)
{
    (void)argument;
    (void)err;
    assert_non_null(snapshot);
}

static void create(struct scene *scene, const char *name)
{
    world_act_as(scene->world, scene->control);
    vm_snapshot_create(scene->vm, &(struct snapshot_options){.name = name}, create_done, scene);
    run_dry(scene);
    assert_non_null(vm_snapshot_find(scene->vm, name));
}

static void write_done(struct request *req, int status)
{
    struct iovec *iov = (struct iovec *)(uintptr_t)req->iov;
    assert_int_equal(status, 0); /* whatever becomes of the snapshots (R2) */
    container_of(iov, struct scene, iov)->written++;
}

static void write_block(struct scene *scene, unsigned slot, unsigned disk, uint64_t block)
{
    struct request *req = &scene->writes[slot];
    world_act_as(scene->world, scene->io[disk]);
    *req = (struct request){
        .kind = REQUEST_WRITE, .range = {block * BLOCK, BLOCK}, .iov = &scene->iov, .iov_count = 1, .done = write_done};
    node_submit(&scene->disks[disk]->node, req);
    world_act_as(scene->world, NULL);
}

static void read_done(struct request *req, int status)
{
    struct view *view = container_of(req, struct view, req);
    view->status = status;
    view->busy = false;
}

static void read_view(struct view *view)
{
    world_act_as(view->scene->world, view->node->io);
    view->iov = (struct iovec){view->bytes, BLOCK};
    view->req = (struct request){
        .kind = REQUEST_READ, .range = {8 * BLOCK, BLOCK}, .iov = &view->iov, .iov_count = 1, .done = read_done};
    view->busy = true;
    node_submit(view->node, &view->req);
    run_dry(view->scene);
    assert_false(view->busy);
}

static void scene_open(struct scene *scene, uint64_t seed)
{
    struct vm_options options = {.name = "web1",
                                 .ram_bytes = 16 * MIB,
                                 .hooks = {.context = scene,
                                           .publish = publish,
                                           .unpublish = unpublish,
                                           .snapshot_created = snapshot_created,
                                           .snapshot_broken = snapshot_broken,
                                           .snapshot_deleted = snapshot_deleted}};
    struct error err;
    *scene = (struct scene){.iov = {scene->bytes, BLOCK}};
    scene->world = world_create(&(struct world_options){.seed = seed, .context = scene, .fault = fault, .gate = gate});
    scene->control = world_reactor(scene->world, "control", 0);
    world_act_as(scene->world, scene->control);
    scene->vm = vm_create(scene->control, &options);
    for (unsigned i = 0; i < DISKS; i++) {
        char name[8];
        struct node *leaf;
        snprintf(name, sizeof name, "vd%c", 'a' + i);
        scene->io[i] = world_reactor(scene->world, name, 0);
        world_file_create(scene->world, name, DISK_BYTES, 512, false);
        world_act_as(scene->world, scene->io[i]);
        assert_int_equal(sim_leaf_open(scene->io[i], name, &leaf), 0);
        world_act_as(scene->world, scene->control);
        assert_int_equal(vm_add_disk(scene->vm, name, leaf, 0, &err), 0);
        scene->disks[i] = vm_disk(scene->vm, i);
    }
    assert_int_equal(vm_start(scene->vm, &err), 0);
    world_act_as(scene->world, NULL);
}

static void vm_gone(void *argument)
{
    ((struct scene *)argument)->destroyed = true;
}

static void scene_close(struct scene *scene)
{
    world_act_as(scene->world, scene->control);
    vm_destroy(scene->vm, vm_gone, scene);
    run_dry(scene);
    assert_true(scene->destroyed);
    assert_int_equal(world_destroy(scene->world, stderr), 0);
}

static void let_go(struct scene *scene, unsigned index)
{
    assert_true(world_let_go(scene->world, scene->held[index]));
    world_run_for(scene->world, NS_PER_MS); /* the others are told of nothing: their threads hang */
}

static void test_newer_loss_first(void **state)
{
    (void)state;
    struct scene *scene = malloc(sizeof *scene);
    assert_non_null(scene);
    for (uint64_t seed = 1; seed <= 20; seed++) {
        scene_open(scene, seed);
        create(scene, "one");
        write_block(scene, 0, 1, 3); /* block 3 is preserved for "one", so that only "two" needs it again */
        run_dry(scene);
        create(scene, "two");
        assert_int_equal(scene->written, 1);
        scene->bad = world_file_find(scene->world, "vdb");
        scene->hold_reads = true;
        write_block(scene, 0, 1, 3);
        write_block(scene, 1, 1, 5);
        world_run_for(scene->world, NS_PER_MS);
        assert_int_equal(scene->held_count, 2);
        world_stall(scene->control, world_now(scene->world) + 20 * NS_PER_MS);
        world_stall(scene->io[0], world_now(scene->world) + 20 * NS_PER_MS);
        let_go(scene, 0);
        let_go(scene, 1);
        scene->hold_reads = false;
        run_dry(scene);
        assert_int_equal(scene->written, 3);
        assert_int_equal(scene->broken_count, 2);
        struct snapshot_info info;
        for (unsigned i = 0; i < 2; i++) {
            snapshot_info(vm_snapshot_find(scene->vm, i == 0 ? "one" : "two"), &info);
            assert_int_equal(info.state, SNAPSHOT_BROKEN);
            assert_non_null(info.reason);
        }
        assert_int_equal(scene->view_count, 4);
        for (unsigned i = 0; i < scene->view_count; i++) {
            read_view(&scene->views[i]);
            assert_int_equal(scene->views[i].status, -EIO);
        }
        scene_close(scene);
    }
    free(scene);
}

/* ---- a disk without a VM ---- */

struct lone {
    struct world *world;
    struct io *io;
    struct budget budget;
    struct disk *disk;
    struct copy_before_write *cbw;
};

/* A disk full of sevens, and its filter, of which the caller says the rest. Acts as their thread afterwards. */
static void lone_open(struct lone *lone, uint64_t disk_bytes, uint64_t ram_bytes, struct cbw_options options)
{
    struct node *leaf;
    struct error err;
    *lone = (struct lone){.world = world_create(&(struct world_options){.seed = 1}), .budget.max_bytes = ram_bytes};
    lone->io = world_reactor(lone->world, "vda", 0);
    struct world_file *file = world_file_create(lone->world, "vda", disk_bytes, 512, false);
    memset(world_file_bytes(file), 7, disk_bytes);
    world_act_as(lone->world, lone->io);
    assert_int_equal(sim_leaf_open(lone->io, "vda", &leaf), 0);
    lone->disk = disk_create("vda", leaf);
    options.disk = lone->disk;
    options.ram_budget = &lone->budget;
    options.segment_bytes = SEGMENT_BYTES_DEFAULT;
    assert_int_equal(cbw_create(&options, &lone->cbw, &err), 0);
}

/* Time goes by; acts as their thread before and afterwards. */
static void lone_run(const struct lone *lone)
{
    world_act_as(lone->world, NULL);
    world_run_for(lone->world, NS_PER_S);
    world_act_as(lone->world, lone->io);
}

static void quiet(struct cbw_waiter *waiter)
{
    (void)waiter;
}

static void lone_close(struct lone *lone)
{
    struct cbw_waiter waiter = {.quiet = quiet};
    cbw_when_quiet(lone->cbw, &waiter);
    lone_run(lone);
    assert_false(cbw_has_points(lone->cbw));
    cbw_destroy(lone->cbw);
    disk_destroy(lone->disk);
    world_act_as(lone->world, NULL);
    assert_int_equal(world_destroy(lone->world, stderr), 0);
}

static void drained(void *context)
{
    *(bool *)context = true;
}

/* The order to break overtakes the message that lets this disk do its part of the cut. */
static void test_break_overtakes_the_cut(void **state)
{
    (void)state;
    struct lone lone;
    bool is_drained = false;
    lone_open(&lone, DISK_BYTES, 16 * MIB, (struct cbw_options){.block_bytes = BLOCK_BYTES_DEFAULT});
    struct point *older = point_create(lone.cbw, 1, NULL), *point = point_create(lone.cbw, 2, NULL);
    disk_hold(lone.disk, drained, &is_drained);
    assert_true(is_drained);
    cbw_break(lone.cbw, 2, 2);
    point_go_live(point);
    disk_release(lone.disk);
    assert_int_equal(point->state, POINT_BROKEN);
    assert_int_equal(older->state, POINT_PREPARED);
    assert_null(lone.disk->filter);
    point_end(point);
    point_free(point);
    point_free(older);
    lone_close(&lone);
}

static void done(struct request *req, int status)
{
    req->status = status;
    req->done = NULL;
}

/* A release of much that is in RAM: the reactor frees a little of it at a time, and has other work between. */
static void test_long_release(void **state)
{
    enum { BLOCKS = 2048, REQUESTS = 32, EACH = BLOCKS / REQUESTS };
    (void)state;
    struct lone lone;
    struct request writes[REQUESTS], release;
    static uint8_t bytes[EACH * BLOCK];
    struct iovec iov = {bytes, sizeof bytes};
    bool is_drained = false;
    lone_open(&lone, (uint64_t)BLOCKS * BLOCK, 64 * MIB,
              (struct cbw_options){.block_bytes = BLOCK, .timeout_ns = NS_PER_S});
    const struct fleecing_cache *cache = cbw_cache(lone.cbw);
    struct point *point = point_create(lone.cbw, 1, NULL);
    struct node *view = snapshot_access_create(point);
    disk_hold(lone.disk, drained, &is_drained);
    point_go_live(point);
    disk_release(lone.disk);
    for (unsigned i = 0; i < REQUESTS; i++) {
        writes[i] = (struct request){.kind = REQUEST_WRITE,
                                     .range = {i * sizeof bytes, sizeof bytes},
                                     .iov = &iov,
                                     .iov_count = 1,
                                     .done = done};
        node_submit(&lone.disk->node, &writes[i]);
    }
    lone_run(&lone);
    assert_int_equal(cache->map.entries, BLOCKS);
    release = (struct request){.kind = REQUEST_DISCARD, .range = {0, (uint64_t)BLOCKS * BLOCK}, .done = done};
    node_submit(view, &release);
    assert_true(cache->map.entries >= BLOCKS - 2 * LIMIT_SWEEP_FREES && release.done);
    lone_run(&lone);
    assert_null(release.done);
    assert_int_equal(release.status, 0);
    assert_int_equal(cache->map.entries, 0);
    point_end(point);
    node_destroy(view);
    point_free(point);
    lone_close(&lone);
}

/* Large blocks and a large budget: places for blocks of zeroes are more than 32 bits count, and still there. */
static void test_marks_of_large_blocks(void **state)
{
    (void)state;
    struct lone lone;
    lone_open(&lone, DISK_BYTES, 8 * GIB, (struct cbw_options){.block_bytes = MIB});
    assert_true(cbw_cache(lone.cbw)->marks.segments_max > 0);
    lone_close(&lone);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_newer_loss_first), cmocka_unit_test(test_break_overtakes_the_cut),
        cmocka_unit_test(test_marks_of_large_blocks), cmocka_unit_test(test_long_release)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
