/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Scenes with an image that is written through: 512-byte clusters, so that an L2 table maps 32 KiB, and counts of 64 bits,
 * so that the table of refcount blocks covers 2 MiB of the file and may be made to end soon.
 *
 * Operations of the disk that a scene names are held, or fail; then the process is killed or the power lost, and what was
 * answered must be there, in an image without an error.
 */
#include "qcow2_scene.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "driver/file.h"
#include "qcow2_check.h"

void scene_fail(const struct scene *scene, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fprintf(stderr, "qcow2_sim: %s, seed %llu: ", scene->name, (unsigned long long)scene->seed);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    exit(1);
}

/* The disk. */

static bool is_picked(const struct pick *pick, const struct world_io *io)
{
    return pick->range.length > 0 && io->kind == pick->kind && range_overlaps(io->range, pick->range);
}

static int disk_fails(void *context, const struct world_io *io)
{
    struct scene *scene = context;
    scene->writes += io->kind == WORLD_WRITE;
    scene->syncs += io->kind == WORLD_SYNC;
    if (io->kind != WORLD_READ && io->kind != WORLD_EXTENT && scene->bad_status < 0) {
        uint64_t number = ++scene->changes;
        if (number == scene->bad_number || (scene->bad_for_good && number > scene->bad_number)) {
            scene->bad_for_good |= io->kind == WORLD_SYNC; /* what a failed sync has lost is never known */
            return scene->bad_status;
        }
    }
    if (scene->is_full && io->kind == WORLD_WRITE && io->range.start >= PER_BLOCK / 2 * CLUSTER &&
        qcow2_of(scene->image)->commit.step == COMMIT_REFBLOCKS)
        return -ENOSPC;
    if (scene->fail_times == 0 || !is_picked(&scene->fails, io))
        return 0;
    scene->fail_times--;
    return -EIO;
}

static bool disk_holds(void *context, const struct world_io *io)
{
    return is_picked(&((struct scene *)context)->hold, io);
}

static void disk_landed(void *context, const struct world_io *io, int64_t result)
{
    struct scene *scene = context;
    scene->seen |= result > 0 && is_picked(&scene->watch, io);
    if (io->kind == WORLD_WRITE && scene->writes_left > 0 && --scene->writes_left == 0)
        scene->seen = true;
}

bool scene_was_seen(void *argument)
{
    return ((struct scene *)argument)->seen;
}

static bool is_over_base(const struct scene *scene)
{
    return scene->shape == OVER_BASE || scene->shape == OLD_OVER_BASE;
}

static void make_base(struct scene *scene)
{
    static uint8_t bytes[BASE_BYTES];
    memset(bytes, OF_BASE, sizeof bytes);
    world_file_fill(world_file_create(scene->world, "base", BASE_BYTES, 512, false), 0, bytes, BASE_BYTES);
}

/* header | refcount table | L1 table | refcount block | nothing, up to `clusters`, all of it free */
static void make_image(struct scene *scene, uint64_t clusters)
{
    const bool is_old = scene->shape == OLD_OVER_BASE;
    const unsigned order = is_old ? 4 : 6;
    struct qcow2_header header = {.version = 3, .cluster_bits = 9, .refcount_order = order, .size_bytes = DISK_BYTES};
    uint8_t bytes[FIRST_FREE * CLUSTER] = {0};
    struct error err;
    header.l1_entries = qcow2_l1_entries(DISK_BYTES, 9, false);
    header.l1_offset = L1_AT;
    header.reftable_offset = TABLE_AT;
    header.reftable_clusters = 1;
    if (is_over_base(scene)) {
        header.has_backing = true;
        strcpy(header.info.backing_name, "base");
        strcpy(header.info.backing_format, "raw");
    }
    if (qcow2_header_build(&header, bytes, CLUSTER, &err) < 0)
        scene_fail(scene, "%s", err.text);
    store_be64(bytes + TABLE_AT, BLOCK_AT);
    for (unsigned i = 0; i < FIRST_FREE; i++)
        bytes[BLOCK_AT + ((i + 1) << order) / 8 - 1] = 1;
    if (is_old)
        qcow2_make_old(bytes, CLUSTER);
    scene->file = world_file_create(scene->world, "image", clusters * CLUSTER, 512, false);
    world_file_fill(scene->file, 0, bytes, sizeof bytes);
}

static void opened(void *argument, struct node *image, const struct error *err)
{
    struct scene *scene = argument;
    scene->seen = true;
    scene->image = image;
    if (!image)
        scene_fail(scene, "%s", err->text);
}

/* By a new process. */
static void open_image(struct scene *scene)
{
    struct error err;
    struct node *file, *base;
    scene->io = world_reactor(scene->world, "disk", ++scene->process);
    world_act_as(scene->world, scene->io);
    if (file_open(scene->io, &(struct file_options){.path = "image", .growable = true}, &file, &err) < 0)
        scene_fail(scene, "%s", err.text);
    scene->seen = false;
    qcow2_open(file, false, opened, scene);
    world_act_as(scene->world, NULL);
    if (!world_run_until(scene->world, scene_was_seen, scene, NS_PER_S))
        scene_fail(scene, "the image never opened");
    scene->seen = false;
    qcow2_of(scene->image)->pool.batch = 4;
    qcow2_of(scene->image)->pool.batch_max = 8;
    if (scene->shape == WRITE_BACK)
        qcow2_write_back_set(scene->image);
    if (!is_over_base(scene))
        return;
    world_act_as(scene->world, scene->io);
    if (file_open(scene->io, &(struct file_options){.path = "base", .read_only = true}, &base, &err) < 0)
        scene_fail(scene, "%s", err.text);
    qcow2_backing_set(scene->image, base);
    world_act_as(scene->world, NULL);
}

struct scene *scene_begin(const char *name, enum shape shape, uint64_t seed, uint64_t clusters)
{
    struct scene *scene = calloc(1, sizeof *scene);
    scene->name = name;
    scene->seed = seed;
    scene->shape = shape;
    scene->world = world_create(&(struct world_options){
        .seed = seed, .power = true, .context = scene, .fault = disk_fails, .gate = disk_holds, .landed = disk_landed});
    if (is_over_base(scene))
        make_base(scene);
    make_image(scene, clusters);
    open_image(scene);
    return scene;
}

/* Requests. */

static void step_done(struct request *req, int status)
{
    struct step *step = (struct step *)(void *)req;
    step->done = true;
    step->status = status;
}

struct step *scene_start(struct scene *scene, enum request_kind kind, uint64_t at, uint64_t length)
{
    struct step *step = &scene->steps[scene->used++];
    assert(scene->used <= STEPS && !step->iov.iov_base);
    *step = (struct step){.value = (unsigned char)scene->used,
                          .req = {.kind = kind, .flags = scene->flags, .done = step_done}};
    if (kind != REQUEST_FLUSH)
        step->req.range = (struct range){at, length};
    if (kind == REQUEST_READ || kind == REQUEST_WRITE) {
        step->iov = (struct iovec){aligned_alloc(4096, round_up(length, 4096)), length};
        memset(step->iov.iov_base, step->value, length);
        step->req.iov = &step->iov;
        step->req.iov_count = 1;
    }
    world_act_as(scene->world, scene->io);
    node_submit(scene->image, &step->req);
    world_act_as(scene->world, NULL);
    return step;
}

void scene_go_on(struct scene *scene)
{
    world_run_for(scene->world, NS_PER_S);
}

void scene_expect(struct scene *scene, const struct step *step, int status)
{
    scene_go_on(scene);
    if (!step->done)
        scene_fail(scene, "request %u never ended", step->value);
    if (step->status != status)
        scene_fail(scene, "request %u ended with %d, not with %d", step->value, step->status, status);
}

static bool is_done(void *argument)
{
    return ((struct step *)argument)->done;
}

void scene_run_until_done(struct scene *scene, struct step *step)
{
    if (!world_run_until(scene->world, is_done, step, NS_PER_S))
        scene_fail(scene, "request %u never ended", step->value);
}

static unsigned count_leaks(const struct scene *scene)
{
    struct qcow2_verdict verdict;
    qcow2_check(world_file_bytes(scene->file), world_file_size(scene->file), &verdict);
    if (verdict.error[0])
        scene_fail(scene, "%s", verdict.error);
    return verdict.leaks;
}

void scene_check(const struct scene *scene)
{
    count_leaks(scene);
}

bool scene_reads_as(struct scene *scene, struct range range, unsigned char value)
{
    unsigned used = scene->used;
    scene->used = STEPS - 1; /* keep the others */
    struct step *step = scene_start(scene, REQUEST_READ, range.start, range.length);
    scene_expect(scene, step, 0);
    const unsigned char *bytes = step->iov.iov_base;
    uint64_t same = 0;
    while (same < range.length && bytes[same] == value)
        same++;
    free(step->iov.iov_base);
    step->iov.iov_base = NULL;
    scene->used = used;
    return same == range.length;
}

void scene_forget_hooks(struct scene *scene)
{
    scene->hold = scene->fails = scene->watch = (struct pick){0};
    scene->bad_status = 0;
    scene->writes_left = 0;
    scene->is_full = false;
    scene->seen = false;
}

void scene_kill(struct scene *scene)
{
    scene_forget_hooks(scene);
    world_kill(scene->world, scene->process);
    world_run_for(scene->world, 5 * NS_PER_S); /* until what the kernel has of it has landed */
    scene_check(scene);
    open_image(scene);
}

void scene_lose_power(struct scene *scene)
{
    scene_forget_hooks(scene);
    world_power_loss(scene->world);
    scene_check(scene);
    open_image(scene);
}

static void close_image(struct scene *scene)
{
    world_act_as(scene->world, scene->io);
    node_destroy(scene->image);
    world_act_as(scene->world, NULL);
    scene_go_on(scene);
}

static void free_scene(struct scene *scene)
{
    world_destroy(scene->world, NULL);
    for (unsigned i = 0; i < STEPS; i++)
        free(scene->steps[i].iov.iov_base);
    free(scene);
}

void scene_end_exact(struct scene *scene)
{
    scene_forget_hooks(scene);
    world_let_go_all(scene->world);
    scene->used = STEPS - 1;
    scene->flags = REQUEST_LAST;
    scene_expect(scene, scene_start(scene, REQUEST_FLUSH, 0, 0), 0);
    close_image(scene);
    const unsigned leaks = count_leaks(scene);
    if (leaks > 0)
        scene_fail(scene, "%u clusters leak", leaks);
    free_scene(scene);
}

void scene_end(struct scene *scene)
{
    scene_forget_hooks(scene);
    world_let_go_all(scene->world);
    scene_go_on(scene);
    scene->used = STEPS - 2;
    scene_expect(scene, scene_start(scene, REQUEST_WRITE, DISK_BYTES - TABLE_BYTES, TABLE_BYTES), 0);
    if (!scene_reads_as(scene, (struct range){DISK_BYTES - TABLE_BYTES, TABLE_BYTES}, STEPS - 1))
        scene_fail(scene, "what was written last is not there");
    close_image(scene);
    scene_check(scene);
    free_scene(scene);
}
