/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Snapshots that are limited to a dirty bitmap, while the guest writes without a pause: whatever is dirty at the instant of
 * the cut can be read, as it was then; whatever can't be read was clean. Above all for writes between the preparation
 * of the snapshot and its cut. And all the ways in which the needed set can't be had.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "fleece/cbw_internal.h"
#include "sim_leaf.h"
#include "vm/bitmaps.h"
#include "world.h"

enum { DISKS = 2, BLOCK = 4096, BLOCKS = 48, WRITERS = 4 };

/* Memory comes through here (--wrap): the request `fail_at` from now fails; 0: none. */
void *__real_calloc(size_t count, size_t size);
void *__wrap_calloc(size_t count, size_t size);
static unsigned long fail_at;

void *__wrap_calloc(size_t count, size_t size)
{
    return fail_at && --fail_at == 0 ? NULL : __real_calloc(count, size);
}

struct scene;

struct writer {
    struct scene *scene;
    unsigned disk;
    struct request req;
    struct iovec iov;
    struct io_timer pause;
    char bytes[BLOCK];
};

struct side { /* one disk */
    struct io *io;
    struct disk *disk;
    struct world_file *file;
    struct node *view;
    struct bitmap dirty; /* at the cut */
    char image[BLOCKS * BLOCK];
    struct writer writers[WRITERS];
};

struct scene {
    struct world *world;
    struct io *control;
    struct vm *vm;
    struct side sides[DISKS];
    bool writing, destroyed;
    unsigned busy, answers;
    unsigned sequence;
    struct snapshot *snapshot;
    struct error err;
};

static struct scene *watched;

/* The end of a successful cut: the filter is there, and nothing is in flight. */
void __real_disk_release(struct disk *disk);
void __wrap_disk_release(struct disk *disk);

void __wrap_disk_release(struct disk *disk)
{
    unsigned long fails = fail_at;
    fail_at = 0; /* not the test's own memory */
    for (unsigned i = 0; i < DISKS && disk->filter; i++) {
        struct side *side = &watched->sides[i];
        if (side->disk != disk || side->dirty.chunks)
            continue;
        memcpy(side->image, world_file_bytes(side->file), sizeof side->image);
        assert_int_equal(bitmap_init(&side->dirty, BLOCKS, false), 0);
        const struct dirty_bitmap *day = container_of(
            container_of(disk->observers.head.next->next, struct write_observer, link), struct dirty_bitmap, observer);
        for (uint64_t block = 0; block < BLOCKS; block++) {
            struct range bytes = {block * BLOCK, BLOCK};
            struct block_range granules = range_to_blocks(bytes, day->granularity_shift);
            if (bitmap_next(&day->bits, granules.first, true) < block_range_end(granules))
                assert_int_equal(bitmap_assign(&side->dirty, block, 1, true), 0);
        }
    }
    fail_at = fails;
    __real_disk_release(disk);
}

static void publish(void *context, const char *export_name, struct node *node, void (*done)(void *argument, int status),
                    void *argument)
{
    struct scene *scene = context;
    scene->sides[export_name[2] - 'a'].view = node;
    done(argument, 0);
}

static void unpublish(void *context, const char *export_name, void (*done)(void *argument, int status), void *argument)
{
    (void)context;
    (void)export_name;
    done(argument, 0);
}

static void snapshot_said(void *context, const struct snapshot *snapshot)
{
    (void)context;
    (void)snapshot;
}

static void snapshot_deleted(void *context, const char *name, const char *uuid)
{
    (void)context;
    (void)name;
    (void)uuid;
}

/* ---- a guest that never pauses for long ---- */

static void writer_go(struct writer *writer);

static void writer_done(struct request *req, int status)
{
    struct writer *writer = container_of(req, struct writer, req);
    struct scene *scene = writer->scene;
    assert_int_equal(status, 0);
    if (scene->writing) {
        struct io *io = scene->sides[writer->disk].io;
        io_timer_set(io, &writer->pause, io_now_ns(io) + world_below(scene->world, 40 * NS_PER_US));
    } else {
        scene->busy--;
    }
}

static void writer_fires(struct io_timer *timer)
{
    writer_go(container_of(timer, struct writer, pause));
}

static void writer_go(struct writer *writer)
{
    struct scene *scene = writer->scene;
    uint64_t block = world_below(scene->world, BLOCKS);
    memset(writer->bytes, (int)(++scene->sequence % 255), BLOCK);
    writer->iov = (struct iovec){writer->bytes, BLOCK};
    writer->req = (struct request){.kind = REQUEST_WRITE,
                                   .range = {block * BLOCK, BLOCK},
                                   .iov = &writer->iov,
                                   .iov_count = 1,
                                   .done = writer_done};
    node_submit(&scene->sides[writer->disk].disk->node, &writer->req);
}

static void start_writing(struct scene *scene, unsigned writers)
{
    scene->writing = true;
    for (unsigned i = 0; i < DISKS; i++) {
        world_act_as(scene->world, scene->sides[i].io);
        for (unsigned n = 0; n < writers; n++) {
            scene->sides[i].writers[n] = (struct writer){.scene = scene, .disk = i, .pause.fire = writer_fires};
            scene->busy++;
            writer_go(&scene->sides[i].writers[n]);
        }
    }
    world_act_as(scene->world, NULL);
}

static void stop_writing(struct scene *scene)
{
    scene->writing = false;
    world_run_for(scene->world, 200 * NS_PER_MS);
    assert_int_equal(scene->busy, 0);
}

/* ---- the scene ---- */

static void run(struct scene *scene)
{
    world_act_as(scene->world, NULL);
    world_run_for(scene->world, 50 * NS_PER_MS);
}

static void scene_open(struct scene *scene, uint64_t seed)
{
    const struct vm_options options = {.name = "web1",
                                       .ram_bytes = 16 * MIB,
                                       .hooks = {.context = scene,
                                                 .publish = publish,
                                                 .unpublish = unpublish,
                                                 .snapshot_created = snapshot_said,
                                                 .snapshot_broken = snapshot_said,
                                                 .snapshot_deleted = snapshot_deleted}};
    fail_at = 0;
    watched = scene;
    *scene = (struct scene){0};
    scene->world = world_create(&(struct world_options){
        .seed = seed, .context = scene, .disk_ns = 20 * NS_PER_US, .message_ns = 30 * NS_PER_US});
    scene->control = world_reactor(scene->world, "control", 0);
    world_act_as(scene->world, scene->control);
    scene->vm = vm_create(scene->control, &options);
    for (unsigned i = 0; i < DISKS; i++) {
        struct side *side = &scene->sides[i];
        const char name[] = {'v', 'd', (char)('a' + i), 0};
        struct node *leaf;
        side->io = world_reactor(scene->world, name, 0);
        side->file = world_file_create(scene->world, name, BLOCKS * BLOCK, 512, false);
        world_act_as(scene->world, side->io);
        assert_int_equal(sim_leaf_open(side->io, name, &leaf), 0);
        world_act_as(scene->world, scene->control);
        assert_int_equal(vm_add_disk(scene->vm, name, leaf, 0, &scene->err), 0);
        side->disk = vm_disk(scene->vm, i);
    }
    assert_int_equal(vm_start(scene->vm, &scene->err), 0);
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
    run(scene);
    assert_true(scene->destroyed);
    for (unsigned i = 0; i < DISKS; i++)
        bitmap_fini(&scene->sides[i].dirty);
    assert_int_equal(world_destroy(scene->world, stderr), 0);
}

static void answered(void *argument, const struct error *err)
{
    struct scene *scene = argument;
    scene->answers++;
    scene->err = err ? *err : (struct error){0};
}

static int add_bitmap(struct scene *scene, const char *disk, uint64_t granularity)
{
    world_act_as(scene->world, scene->control);
    vm_bitmap_add(scene->vm, (struct vm_bitmap){disk, "day"}, granularity, true, answered, scene);
    run(scene);
    return -scene->err.code;
}

static void created(void *argument, struct snapshot *snapshot, const struct error *err)
{
    struct scene *scene = argument;
    scene->answers++;
    scene->snapshot = snapshot;
    scene->err = err ? *err : (struct error){0};
}

static void create(struct scene *scene)
{
    scene->answers = 0;
    world_act_as(scene->world, scene->control);
    vm_snapshot_create(scene->vm, &(struct snapshot_options){.name = "one", .bitmap = "day"}, created, scene);
    world_act_as(scene->world, NULL);
}

static void refused(struct scene *scene, int code, const char *sentence)
{
    assert_int_equal(scene->answers, 1);
    assert_null(scene->snapshot);
    assert_int_equal(scene->err.code, code);
    assert_string_equal(scene->err.text, sentence);
}

/* ---- readers ---- */

static int read_status;

static void read_done(struct request *req, int status)
{
    (void)req;
    read_status = status;
}

static int read_block(struct scene *scene, const struct side *side, uint64_t block, char bytes[BLOCK])
{
    struct iovec iov = {bytes, BLOCK};
    struct request req = {
        .kind = REQUEST_READ, .range = {block * BLOCK, BLOCK}, .iov = &iov, .iov_count = 1, .done = read_done};
    read_status = 1;
    world_act_as(scene->world, side->io);
    node_submit(side->view, &req);
    world_act_as(scene->world, NULL);
    world_run_for(scene->world, 5 * NS_PER_MS);
    assert_int_not_equal(read_status, 1);
    return read_status;
}

/* How many blocks were clean, and could not be read. */
static unsigned check_views(struct scene *scene)
{
    char bytes[BLOCK];
    unsigned outside = 0;
    for (unsigned i = 0; i < DISKS; i++) {
        const struct side *side = &scene->sides[i];
        assert_non_null(side->dirty.chunks);
        for (uint64_t block = 0; block < BLOCKS; block++) {
            int status = read_block(scene, side, block, bytes);
            if (status == -ENODATA && !bitmap_get(&side->dirty, block)) {
                outside++;
                continue;
            }
            assert_int_equal(status, 0);
            assert_memory_equal(bytes, side->image + block * BLOCK, BLOCK);
        }
    }
    return outside;
}

static void while_the_guest_writes(void **state)
{
    (void)state;
    static struct scene scene;
    unsigned outside = 0;
    for (uint64_t seed = 1; seed <= 120; seed++) {
        scene_open(&scene, seed);
        const uint64_t granularity = seed % 3 == 0 ? 16384 : seed % 3 == 1 ? BLOCK : 512;
        assert_int_equal(add_bitmap(&scene, "vda", granularity), 0);
        assert_int_equal(add_bitmap(&scene, "vdb", granularity), 0);
        start_writing(&scene, 1 + (unsigned)(seed % WRITERS));
        world_run_for(scene.world, world_below(scene.world, 150 * NS_PER_US));
        create(&scene);
        world_run_for(scene.world, 30 * NS_PER_MS);
        assert_int_equal(scene.answers, 1);
        assert_non_null(scene.snapshot);
        stop_writing(&scene);
        outside += check_views(&scene);
        scene_close(&scene);
    }
    assert_in_range(outside, 500, 120 * DISKS * BLOCKS - 1500);
}

/* Until the copy of vda's bitmap, which is empty, has been read, and is an observer: the third one, behind the VM's sketch
 * of writes and the bitmap. False: the cut was faster. */
static bool until_prepared(struct scene *scene)
{
    const struct disk *disk = scene->sides[0].disk;
    while (disk->observers.head.next->next->next == &disk->observers.head)
        assert_true(world_step(scene->world));
    const struct dirty_bitmap *day = container_of(
        container_of(disk->observers.head.next->next, struct write_observer, link), struct dirty_bitmap, observer);
    while (day->copies > 0)
        assert_true(world_step(scene->world));
    return !disk->holding && !disk->filter;
}

/* The writes that only the observer of the copy can have told: blocks that were clean when the bitmap was read. */
static void between_preparation_and_cut(void **state)
{
    (void)state;
    static struct scene scene;
    unsigned late = 0;
    for (uint64_t seed = 1; seed <= 40; seed++) {
        char bytes[BLOCK];
        scene_open(&scene, seed);
        add_bitmap(&scene, "vda", 0);
        add_bitmap(&scene, "vdb", 0);
        create(&scene);
        if (until_prepared(&scene)) {
            start_writing(&scene, 1);
            scene.writing = false;
            late++;
        }
        run(&scene);
        assert_non_null(scene.snapshot);
        for (unsigned i = 0; i < DISKS; i++) {
            const struct side *side = &scene.sides[i];
            uint64_t written = bitmap_next(&side->dirty, 0, true);
            if (written < BLOCKS)
                assert_int_equal(read_block(&scene, side, written, bytes), 0);
        }
        check_views(&scene);
        scene_close(&scene);
    }
    assert_true(late > 20);
}

/* No memory to note such a write in the needed set: the guest goes on, the snapshot is refused, and nothing is left. */
static void no_memory_between_preparation_and_cut(void **state)
{
    (void)state;
    static struct scene scene;
    unsigned late = 0;
    for (uint64_t seed = 1; seed <= 40; seed++) {
        scene_open(&scene, seed);
        add_bitmap(&scene, "vda", 0);
        add_bitmap(&scene, "vdb", 0);
        create(&scene);
        if (until_prepared(&scene)) {
            fail_at = 2; /* the first request is the bitmap's */
            start_writing(&scene, 1);
            assert_int_equal(fail_at, 0);
            stop_writing(&scene);
            refused(&scene, ENOMEM, "snapshot 'one' refused: no memory to note what it needs of disk vda");
            assert_null(scene.sides[0].disk->filter);
            assert_null(scene.sides[1].disk->filter);
            assert_null(vm_snapshot_next(scene.vm, NULL));
            late++;
        }
        run(&scene);
        scene_close(&scene);
    }
    assert_true(late > 20);
}

/* Nothing outside of the needed set is preserved. */
static void nothing_else_is_preserved(void **state)
{
    (void)state;
    static struct scene scene;
    scene_open(&scene, 7);
    add_bitmap(&scene, "vda", 0);
    add_bitmap(&scene, "vdb", 0);
    start_writing(&scene, 1);
    world_run_for(scene.world, 100 * NS_PER_US);
    stop_writing(&scene);
    uint64_t dirty = 0;
    create(&scene);
    run(&scene);
    assert_non_null(scene.snapshot);
    for (unsigned i = 0; i < DISKS; i++)
        dirty += scene.sides[i].dirty.set_count;
    assert_in_range(dirty, 2, DISKS * BLOCKS / 2);
    start_writing(&scene, 4);
    world_run_for(scene.world, 30 * NS_PER_MS);
    stop_writing(&scene);
    uint64_t preserved = 0;
    struct cbw_status status;
    for (unsigned i = 0; i < DISKS; i++) {
        world_act_as(scene.world, scene.sides[i].io);
        cbw_status(container_of(scene.sides[i].disk->filter, struct copy_before_write, node), &status);
        preserved += status.blocks_preserved;
        world_act_as(scene.world, NULL);
    }
    assert_int_equal(preserved, dirty);
    assert_int_equal(check_views(&scene), DISKS * BLOCKS - dirty);
    /* The snapshot has a copy of its own. */
    world_act_as(scene.world, scene.control);
    vm_bitmap_remove(scene.vm, (struct vm_bitmap){"vda", "day"}, answered, &scene);
    vm_bitmap_clear(scene.vm, (struct vm_bitmap){"vdb", "day"}, answered, &scene);
    run(&scene);
    assert_int_equal(scene.err.code, 0);
    assert_int_equal(check_views(&scene), DISKS * BLOCKS - dirty);
    scene_close(&scene);
}

static void refusals(void **state)
{
    (void)state;
    static struct scene scene;
    scene_open(&scene, 1);
    add_bitmap(&scene, "vda", 0);
    create(&scene);
    run(&scene);
    refused(&scene, EINVAL, "snapshot 'one' can't be limited to what is dirty: disk vdb has no dirty bitmap 'day'");
    add_bitmap(&scene, "vdb", 0);
    fail_at = 1;
    start_writing(&scene, 1);
    stop_writing(&scene);
    assert_int_equal(fail_at, 0);
    create(&scene);
    run(&scene);
    refused(
        &scene, EINVAL,
        "snapshot 'one' can't be limited to what is dirty: dirty bitmap 'day' of disk vda is inconsistent, for there "
        "was no memory to note a write: it can only be removed");
    assert_null(scene.sides[0].disk->filter);
    scene_close(&scene);
}

/* Each allocation of a limited snapshot fails in its turn: the guest does not feel it, the snapshot is right or refused. */
static void without_memory(void **state)
{
    (void)state;
    static struct scene scene;
    unsigned refusals_seen = 0, successes = 0;
    for (uint64_t seed = 1; seed <= 8; seed++) {
        for (unsigned long n = 1; n <= 40; n++) {
            scene_open(&scene, seed);
            add_bitmap(&scene, "vda", 0);
            add_bitmap(&scene, "vdb", 0);
            create(&scene);
            fail_at = n;
            start_writing(&scene, 2);
            world_run_for(scene.world, 30 * NS_PER_MS);
            bool failed = fail_at == 0;
            fail_at = 0;
            stop_writing(&scene);
            assert_int_equal(scene.answers, 1);
            if (scene.snapshot) {
                successes++;
                check_views(&scene);
            } else {
                assert_true(failed);
                refusals_seen++;
            }
            scene_close(&scene);
            if (!failed)
                break;
        }
    }
    assert_true(refusals_seen > 80 && successes >= 8);
}

/* The VM ends while bitmaps are being merged and a limited snapshot is being made. */
static void the_end_in_between(void **state)
{
    (void)state;
    static struct scene scene;
    for (uint64_t seed = 1; seed <= 60; seed++) {
        scene_open(&scene, seed);
        add_bitmap(&scene, "vda", 0);
        add_bitmap(&scene, "vdb", 512);
        create(&scene);
        world_act_as(scene.world, scene.control);
        const struct vm_bitmap sources[] = {{"vdb", "day"}, {"vda", "day"}, {"vdb", "day"}};
        vm_bitmap_merge(scene.vm, (struct vm_bitmap){"vda", "day"}, sources, 3, answered, &scene);
        world_act_as(scene.world, NULL);
        world_run_for(scene.world, world_below(scene.world, 600 * NS_PER_US));
        world_act_as(scene.world, scene.control);
        vm_destroy(scene.vm, vm_gone, &scene);
        vm_bitmap_clear(scene.vm, (struct vm_bitmap){"vda", "day"}, answered, &scene);
        assert_int_equal(scene.err.code, ESHUTDOWN);
        run(&scene);
        assert_int_equal(scene.answers, 3);
        assert_true(scene.destroyed);
        for (unsigned i = 0; i < DISKS; i++)
            bitmap_fini(&scene.sides[i].dirty);
        world_act_as(scene.world, NULL);
        assert_int_equal(world_destroy(scene.world, stderr), 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(while_the_guest_writes),
        cmocka_unit_test(between_preparation_and_cut),
        cmocka_unit_test(no_memory_between_preparation_and_cut),
        cmocka_unit_test(nothing_else_is_preserved),
        cmocka_unit_test(refusals),
        cmocka_unit_test(without_memory),
        cmocka_unit_test(the_end_in_between),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
