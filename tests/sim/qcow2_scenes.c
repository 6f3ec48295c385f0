/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Scenes with an image that is written through: 512-byte clusters, so that an L2 table maps 32 KiB, and counts of 64 bits,
 * so that the table of refcount blocks covers 2 MiB of the file and may be made to end soon.
 *
 * Operations of the disk that a scene names are held, or fail; then the process is killed or the power lost, and what was
 * answered must be there, in an image without an error.
 */
#include "qcow2_scenes.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "driver/file.h"
#include "driver/qcow2/internal.h"
#include "qcow2_check.h"
#include "world.h"

enum { CLUSTER = 512, PER_BLOCK = CLUSTER / 8, COVERED = CLUSTER / 8 * PER_BLOCK }; /* clusters */
enum { DISK_BYTES = 256 * KIB, TABLE_BYTES = 32 * KIB, BASE_BYTES = DISK_BYTES + TABLE_BYTES + 1000 };
enum { GROWN_BYTES = 3 * MIB + 512 }; /* the L1 table has two clusters then */
enum { TABLE_AT = CLUSTER, L1_AT = 2 * CLUSTER, BLOCK_AT = 3 * CLUSTER, FIRST_FREE = 4 };
enum { STEPS = 16, TABLES = DISK_BYTES / TABLE_BYTES, POWER_LOSSES = 40, OF_BASE = 0xbb };

/* Operations of one kind on a part of the image. Empty: none. */
struct pick {
    enum world_kind kind;
    struct range range;
};

struct step {
    struct request req; /* first */
    struct iovec iov;
    unsigned char value;
    int status;
    bool done;
};

enum shape { THROUGH, OVER_BASE, WRITE_BACK };

struct scene {
    const char *name;
    uint64_t seed;
    enum shape shape;
    struct world *world;
    struct io *io;
    struct world_file *file;
    struct node *image;
    unsigned process;
    struct pick hold, fails, watch;
    unsigned fail_times, flags;
    bool is_full;         /* no new page of counts can be written */
    uint64_t writes_left; /* to watch; 0: none */
    bool seen;            /* what is watched has landed */
    /* The change of the file of this number fails so; and all later ones. */
    uint64_t bad_number, changes;
    int bad_status;
    bool bad_for_good;
    struct step steps[STEPS];
    unsigned used;
    struct node_extension extension;
    int extended; /* its status; 1: it is not answered */
};

static void __attribute__((format(printf, 2, 3), noreturn)) fail(const struct scene *scene, const char *format, ...)
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

static bool was_seen(void *argument)
{
    return ((struct scene *)argument)->seen;
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
    struct qcow2_header header = {.version = 3, .cluster_bits = 9, .refcount_order = 6, .size_bytes = DISK_BYTES};
    uint8_t bytes[FIRST_FREE * CLUSTER] = {0};
    struct error err;
    header.l1_entries = qcow2_l1_entries(DISK_BYTES, 9, false);
    header.l1_offset = L1_AT;
    header.reftable_offset = TABLE_AT;
    header.reftable_clusters = 1;
    if (scene->shape == OVER_BASE) {
        header.has_backing = true;
        strcpy(header.info.backing_name, "base");
        strcpy(header.info.backing_format, "raw");
    }
    if (qcow2_header_build(&header, bytes, CLUSTER, &err) < 0)
        fail(scene, "%s", err.text);
    store_be64(bytes + TABLE_AT, BLOCK_AT);
    for (unsigned i = 0; i < FIRST_FREE; i++)
        store_be64(bytes + BLOCK_AT + i * 8, 1);
    scene->file = world_file_create(scene->world, "image", clusters * CLUSTER, 512, false);
    world_file_fill(scene->file, 0, bytes, sizeof bytes);
}

static void opened(void *argument, struct node *image, const struct error *err)
{
    struct scene *scene = argument;
    scene->seen = true;
    scene->image = image;
    if (!image)
        fail(scene, "%s", err->text);
}

/* By a new process. */
static void open_image(struct scene *scene)
{
    struct error err;
    struct node *file, *base;
    scene->io = world_reactor(scene->world, "disk", ++scene->process);
    world_act_as(scene->world, scene->io);
    if (file_open(scene->io, &(struct file_options){.path = "image", .growable = true}, &file, &err) < 0)
        fail(scene, "%s", err.text);
    scene->seen = false;
    qcow2_open(file, false, opened, scene);
    world_act_as(scene->world, NULL);
    if (!world_run_until(scene->world, was_seen, scene, NS_PER_S))
        fail(scene, "the image never opened");
    scene->seen = false;
    qcow2_of(scene->image)->pool.batch = 4;
    qcow2_of(scene->image)->pool.batch_max = 8;
    if (scene->shape == WRITE_BACK)
        qcow2_write_back_set(scene->image);
    if (scene->shape != OVER_BASE)
        return;
    world_act_as(scene->world, scene->io);
    if (file_open(scene->io, &(struct file_options){.path = "base", .read_only = true}, &base, &err) < 0)
        fail(scene, "%s", err.text);
    qcow2_backing_set(scene->image, base);
    world_act_as(scene->world, NULL);
}

static struct scene *scene_begin(const char *name, enum shape shape, uint64_t seed, uint64_t clusters)
{
    struct scene *scene = calloc(1, sizeof *scene);
    scene->name = name;
    scene->seed = seed;
    scene->shape = shape;
    scene->world = world_create(&(struct world_options){
        .seed = seed, .power = true, .context = scene, .fault = disk_fails, .gate = disk_holds, .landed = disk_landed});
    if (shape == OVER_BASE)
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

static struct step *start(struct scene *scene, enum request_kind kind, uint64_t at, uint64_t length)
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

/* As long as anything happens. */
static void go_on(struct scene *scene)
{
    world_run_for(scene->world, NS_PER_S);
}

static void expect(struct scene *scene, const struct step *step, int status)
{
    go_on(scene);
    if (!step->done)
        fail(scene, "request %u never ended", step->value);
    if (step->status != status)
        fail(scene, "request %u ended with %d, not with %d", step->value, step->status, status);
}

static bool is_done(void *argument)
{
    return ((struct step *)argument)->done;
}

/* And nothing else happens. */
static void run_until_done(struct scene *scene, struct step *step)
{
    if (!world_run_until(scene->world, is_done, step, NS_PER_S))
        fail(scene, "request %u never ended", step->value);
}

static void check_image(const struct scene *scene)
{
    struct qcow2_verdict verdict;
    qcow2_check(world_file_bytes(scene->file), world_file_size(scene->file), &verdict);
    if (verdict.error[0])
        fail(scene, "%s", verdict.error);
}

/* Whether the range reads as that value. */
static bool reads_as(struct scene *scene, struct range range, unsigned char value)
{
    unsigned used = scene->used;
    scene->used = STEPS - 1; /* keep the others */
    struct step *step = start(scene, REQUEST_READ, range.start, range.length);
    expect(scene, step, 0);
    const unsigned char *bytes = step->iov.iov_base;
    uint64_t same = 0;
    while (same < range.length && bytes[same] == value)
        same++;
    free(step->iov.iov_base);
    step->iov.iov_base = NULL;
    scene->used = used;
    return same == range.length;
}

static void forget_hooks(struct scene *scene)
{
    scene->hold = scene->fails = scene->watch = (struct pick){0};
    scene->bad_status = 0;
    scene->writes_left = 0;
    scene->is_full = false;
    scene->seen = false;
}

static void kill_process(struct scene *scene)
{
    forget_hooks(scene);
    world_kill(scene->world, scene->process);
    world_run_for(scene->world, 5 * NS_PER_S); /* until what the kernel has of it has landed */
    check_image(scene);
    open_image(scene);
}

static void lose_power(struct scene *scene)
{
    forget_hooks(scene);
    world_power_loss(scene->world);
    check_image(scene);
    open_image(scene);
}

/* Closes the image, with what it can still do. */
static void scene_end(struct scene *scene)
{
    forget_hooks(scene);
    world_let_go_all(scene->world);
    go_on(scene);
    scene->used = STEPS - 2;
    expect(scene, start(scene, REQUEST_WRITE, DISK_BYTES - TABLE_BYTES, TABLE_BYTES), 0);
    if (!reads_as(scene, (struct range){DISK_BYTES - TABLE_BYTES, TABLE_BYTES}, STEPS - 1))
        fail(scene, "what was written last is not there");
    world_act_as(scene->world, scene->io);
    node_destroy(scene->image);
    world_act_as(scene->world, NULL);
    go_on(scene);
    check_image(scene);
    world_destroy(scene->world, NULL);
    for (unsigned i = 0; i < STEPS; i++)
        free(scene->steps[i].iov.iov_base);
    free(scene);
}

/* The scenes. */

/* The header names a larger table of refcount blocks: that one is there then, whatever else is lost. */
static void power_lost_behind_the_header(uint64_t seed)
{
    struct scene *scene = scene_begin("power lost behind the header", THROUGH, seed, COVERED - 20);
    scene->watch = (struct pick){WORLD_WRITE, {0, CLUSTER}};
    start(scene, REQUEST_WRITE, 0, TABLE_BYTES);
    if (!world_run_until(scene->world, was_seen, scene, NS_PER_S))
        fail(scene, "the table of refcount blocks did not grow");
    lose_power(scene);
    scene_end(scene);
}

/* An L2 table that only the process knows maps nothing for a guest that outlives it. */
static void killed_with_the_l1_table_on_its_way(void)
{
    struct scene *scene = scene_begin("killed with the L1 table on its way", THROUGH, 1, FIRST_FREE);
    expect(scene, start(scene, REQUEST_WRITE, DISK_BYTES / 2, CLUSTER), 0); /* the pool is filled */
    scene->hold = (struct pick){WORLD_WRITE, {L1_AT, CLUSTER}};
    start(scene, REQUEST_WRITE, 0, CLUSTER);
    go_on(scene);
    if (world_held(scene->world) != 1)
        fail(scene, "the L1 table is not written");
    start(scene, REQUEST_WRITE, TABLE_BYTES, CLUSTER); /* the next entry of the table: the next write of it */
    go_on(scene);
    start(scene, REQUEST_WRITE, TABLE_BYTES + CLUSTER, CLUSTER);
    start(scene, REQUEST_WRITE_ZEROES, TABLE_BYTES + 2 * CLUSTER, CLUSTER);
    go_on(scene);
    bool answered[STEPS] = {0};
    for (unsigned i = 0; i < scene->used; i++)
        answered[i] = scene->steps[i].done && scene->steps[i].req.kind == REQUEST_WRITE;
    kill_process(scene);
    for (unsigned i = 0; i < STEPS; i++)
        if (answered[i] && !reads_as(scene, scene->steps[i].req.range, scene->steps[i].value))
            fail(scene, "request %u was answered, and is lost", scene->steps[i].value);
    scene_end(scene);
}

/* Zeroes that are answered are there, as data is. */
static void killed_behind_zeroes(void)
{
    struct scene *scene = scene_begin("killed behind zeroes", THROUGH, 1, FIRST_FREE);
    expect(scene, start(scene, REQUEST_WRITE, 0, TABLE_BYTES), 0);
    expect(scene, start(scene, REQUEST_WRITE_ZEROES, 0, TABLE_BYTES), 0);
    kill_process(scene);
    if (!reads_as(scene, (struct range){0, TABLE_BYTES}, 0))
        fail(scene, "the zeroes are lost");
    scene_end(scene);
}

/* A new cluster hides the base from the moment on that its mapping lands. */
static void power_lost_behind_a_mapping(uint64_t seed)
{
    struct scene *scene = scene_begin("power lost behind a mapping", OVER_BASE, seed, FIRST_FREE);
    struct range range = {TABLE_BYTES, CLUSTER};
    if (!reads_as(scene, range, OF_BASE))
        fail(scene, "the base is not there");
    struct step *step = start(scene, REQUEST_WRITE, range.start, range.length);
    run_until_done(scene, step);
    lose_power(scene);
    if (!reads_as(scene, range, step->value) && !reads_as(scene, range, OF_BASE))
        fail(scene, "neither what was written nor what was there before");
    scene_end(scene);
}

/* A request needs several pages at the same time, and there is room for few. */
static void room_for_few_pages(enum shape shape)
{
    struct scene *scene = scene_begin("room for few pages", shape, 1, PER_BLOCK);
    qcow2_of(scene->image)->page_max = 7;
    struct step *steps[TABLES - 1];
    for (unsigned i = 0; i < TABLES - 1; i++)
        steps[i] = start(scene, REQUEST_WRITE, (i + 1) * TABLE_BYTES - 4 * CLUSTER, 8 * CLUSTER);
    for (unsigned i = 0; i < TABLES - 1; i++)
        expect(scene, steps[i], 0);
    scene_end(scene);
}

/* New tables wait for room in memory, and commits make it: none writes where a table is before that is in the file. false:
 * the death would come after the end. */
static bool killed_while_tables_wait_for_room(uint64_t writes)
{
    struct scene *scene = scene_begin("killed while tables wait for room", WRITE_BACK, 1, FIRST_FREE);
    qcow2_of(scene->image)->page_max = 7;
    for (unsigned i = 0; i < TABLES; i++)
        start(scene, REQUEST_WRITE, i * TABLE_BYTES, CLUSTER);
    scene->writes_left = writes;
    bool in_time = world_run_until(scene->world, was_seen, scene, NS_PER_S);
    kill_process(scene);
    scene_end(scene);
    return in_time;
}

static void power_lost_behind_fua(enum shape shape, uint64_t seed)
{
    struct scene *scene = scene_begin("power lost behind a FUA write", shape, seed, FIRST_FREE);
    struct range range = {TABLE_BYTES, 4 * CLUSTER};
    expect(scene, start(scene, REQUEST_WRITE, range.start, range.length), 0);
    scene->flags = REQUEST_FUA;
    struct step *step = start(scene, REQUEST_WRITE, range.start, range.length);
    expect(scene, step, 0);
    scene->flags = 0;
    lose_power(scene);
    if (!reads_as(scene, range, step->value))
        fail(scene, "it is lost");
    scene_end(scene);
}

/* The table of refcount blocks names a new one: that one is there then. */
static void power_lost_behind_a_refcount_block(uint64_t seed)
{
    struct scene *scene = scene_begin("power lost behind a refcount block", WRITE_BACK, seed, PER_BLOCK - 20);
    expect(scene, start(scene, REQUEST_WRITE, 0, TABLE_BYTES), 0);
    scene->watch = (struct pick){WORLD_WRITE, {TABLE_AT, CLUSTER}};
    start(scene, REQUEST_FLUSH, 0, 0);
    if (!world_run_until(scene->world, was_seen, scene, NS_PER_S))
        fail(scene, "the table of refcount blocks is not written");
    lose_power(scene);
    scene_end(scene);
}

/* A page that changes while a commit writes it: what lands is what it held before. */
static void killed_with_a_commit_on_its_way(void)
{
    struct scene *scene = scene_begin("killed with a commit on its way", WRITE_BACK, 1, FIRST_FREE);
    expect(scene, start(scene, REQUEST_WRITE, 0, CLUSTER), 0);
    expect(scene, start(scene, REQUEST_FLUSH, 0, 0), 0);
    expect(scene, start(scene, REQUEST_WRITE, CLUSTER, CLUSTER), 0);
    uint64_t table = load_be64(world_file_bytes(scene->file) + L1_AT) & QCOW2_PLACE_MASK;
    scene->hold = (struct pick){WORLD_WRITE, {table, CLUSTER}};
    start(scene, REQUEST_FLUSH, 0, 0);
    go_on(scene);
    if (world_held(scene->world) != 1)
        fail(scene, "the L2 table is not written");
    expect(scene, start(scene, REQUEST_WRITE, 2 * CLUSTER, CLUSTER), 0);
    kill_process(scene);
    scene_end(scene);
}

/* A flush waits for what it makes stable, and for no reader of what became free; the reader sees nobody else's data. */
static void reader_of_freed_clusters(void)
{
    struct scene *scene = scene_begin("a reader of freed clusters", THROUGH, 1, FIRST_FREE);
    struct range range = {0, 8 * CLUSTER};
    const struct step *old = start(scene, REQUEST_WRITE, range.start, range.length);
    expect(scene, old, 0);
    expect(scene, start(scene, REQUEST_FLUSH, 0, 0), 0);
    const uint8_t *file = world_file_bytes(scene->file);
    uint64_t table = load_be64(file + L1_AT) & QCOW2_PLACE_MASK;
    scene->hold = (struct pick){WORLD_READ, {load_be64(file + table) & QCOW2_PLACE_MASK, CLUSTER}};
    const struct step *reader = start(scene, REQUEST_READ, range.start, range.length);
    expect(scene, start(scene, REQUEST_DISCARD, range.start, range.length), 0);
    expect(scene, start(scene, REQUEST_FLUSH, 0, 0), 0);
    const struct step *other = start(scene, REQUEST_WRITE, TABLE_BYTES / 2, TABLE_BYTES / 2);
    go_on(scene);
    forget_hooks(scene);
    world_let_go_all(scene->world);
    expect(scene, reader, 0);
    expect(scene, other, 0);
    const unsigned char *bytes = reader->iov.iov_base;
    for (uint64_t at = 0; at < range.length; at++)
        if (bytes[at] != old->value && bytes[at] != 0)
            fail(scene, "byte %llu is somebody else's", (unsigned long long)at);
    scene_end(scene);
}

/* Clusters whose counts can't be read leak. No flush fails for that, then or later. */
static void unreadable_counts(void)
{
    struct scene *scene = scene_begin("unreadable counts", THROUGH, 1, FIRST_FREE);
    expect(scene, start(scene, REQUEST_WRITE, 0, CLUSTER), 0);
    kill_process(scene); /* nothing is in memory */
    scene->fails = (struct pick){WORLD_READ, {BLOCK_AT, CLUSTER}};
    scene->fail_times = UINT_MAX;
    expect(scene, start(scene, REQUEST_DISCARD, 0, CLUSTER), 0);
    expect(scene, start(scene, REQUEST_FLUSH, 0, 0), 0);
    scene->flags = REQUEST_LAST; /* it waits for what is freed */
    expect(scene, start(scene, REQUEST_FLUSH, 0, 0), 0);
    scene->flags = 0;
    if (qcow2_of(scene->image)->freed_count > 0)
        fail(scene, "what can't be counted down is kept");
    kill_process(scene);
    scene_end(scene);
}

/* The file ends before the clusters that were counted ahead: none of them is used before it reaches so far. */
/* The file can't grow: what was answered becomes stable, and what the guest discards makes room. */
static void full_file_system(void)
{
    struct scene *scene = scene_begin("full file system", THROUGH, 1, PER_BLOCK - 20);
    struct range first = {0, 8 * CLUSTER}, rest = {TABLE_BYTES, TABLE_BYTES};
    struct step *step = start(scene, REQUEST_WRITE, first.start, first.length);
    expect(scene, step, 0);
    expect(scene, start(scene, REQUEST_FLUSH, 0, 0), 0);
    go_on(scene);
    scene->is_full = true;
    expect(scene, start(scene, REQUEST_WRITE, rest.start, rest.length), -ENOSPC);
    expect(scene, start(scene, REQUEST_FLUSH, 0, 0), 0);
    expect(scene, start(scene, REQUEST_DISCARD, 0, first.length / 2), 0);
    expect(scene, start(scene, REQUEST_FLUSH, 0, 0), 0);
    go_on(scene);
    if (qcow2_of(scene->image)->unused_count == 0)
        fail(scene, "nothing became free");
    lose_power(scene);
    if (!reads_as(scene, (struct range){first.length / 2, first.length / 2}, step->value))
        fail(scene, "what was flushed is lost");
    expect(scene, start(scene, REQUEST_WRITE, rest.start, rest.length), 0);
    scene_end(scene);
}

static void file_not_extended(void)
{
    struct scene *scene = scene_begin("the file could not be extended", THROUGH, 1, FIRST_FREE);
    scene->fails = (struct pick){WORLD_WRITE, {FIRST_FREE * CLUSTER, COVERED * CLUSTER}};
    scene->fail_times = 1;
    expect(scene, start(scene, REQUEST_WRITE, 0, CLUSTER), -EIO);
    scene->watch = (struct pick){WORLD_WRITE, {L1_AT, CLUSTER}};
    start(scene, REQUEST_WRITE, 0, CLUSTER);
    if (!world_run_until(scene->world, was_seen, scene, NS_PER_S))
        fail(scene, "the L1 table is not written");
    kill_process(scene);
    scene_end(scene);
}

/* Some requests of each kind, none over another. Whether a flush has made the first ones stable. */
static bool bad_disk_requests(struct scene *scene)
{
    for (unsigned i = 0; i < 6; i++) {
        uint64_t at = (i + 1) * TABLE_BYTES - 2 * CLUSTER, length = i < 2 ? TABLE_BYTES / 2 : 3 * CLUSTER - 100;
        start(scene, i == 3 ? REQUEST_WRITE_ZEROES : REQUEST_WRITE, at, length);
        if (i % 2)
            go_on(scene);
    }
    start(scene, REQUEST_DISCARD, 2 * TABLE_BYTES, 4 * CLUSTER);
    const struct step *flush = start(scene, REQUEST_FLUSH, 0, 0);
    go_on(scene);
    start(scene, REQUEST_WRITE, 0, 4 * CLUSTER);
    go_on(scene);
    for (unsigned i = 0; i < scene->used; i++)
        if (!scene->steps[i].done)
            fail(scene, "request %u never ended", scene->steps[i].value);
    return flush->status == 0;
}

/* One change of the file fails, or all from there on. What was answered is there all the same. false: there are fewer. */
static bool bad_disk(enum shape shape, uint64_t clusters, uint64_t number, bool for_good, bool power)
{
    struct scene *scene = scene_begin("a bad disk", shape, number, clusters);
    scene->bad_number = number;
    scene->bad_status = shape == OVER_BASE ? -ENOSPC : -EIO;
    scene->bad_for_good = for_good;
    bool flushed = bad_disk_requests(scene), more = scene->changes >= number, there[STEPS] = {0};
    for (unsigned i = 0; i < scene->used; i++) {
        enum request_kind kind = scene->steps[i].req.kind;
        there[i] = (kind == REQUEST_WRITE || kind == REQUEST_WRITE_ZEROES) && i != 1 && /* the discard is over it */
                   scene->steps[i].status == 0 && (!power || (flushed && i < 6));
    }
    if (power)
        lose_power(scene);
    else
        kill_process(scene);
    for (unsigned i = 0; i < STEPS; i++) {
        const struct step *step = &scene->steps[i];
        if (there[i] && !reads_as(scene, step->req.range, step->req.kind == REQUEST_WRITE ? step->value : 0))
            fail(scene, "request %u was answered, and is lost", step->value);
    }
    scene_end(scene);
    return more;
}

/* The file ends early, or shortly before another refcount block, or table of these, is needed. */
static void bad_disks(void)
{
    static const uint64_t ends[] = {FIRST_FREE, PER_BLOCK - 20, COVERED - 20};
    for (unsigned i = 0; i < 3 * 2 * 2 * 2; i++) {
        enum shape shape = i / 3 % 2 ? OVER_BASE : THROUGH;
        for (uint64_t number = 1 + i % 7; bad_disk(shape, ends[i % 3], number, i / 6 % 2, i / 12); number += 7)
            ;
    }
}

/* Growing. */

static void extended(struct node_extension *extension, int status)
{
    container_of(extension, struct scene, extension)->extended = status;
}

static void extend(struct scene *scene, uint64_t size)
{
    scene->extension = (struct node_extension){.size_bytes = size, .done = extended};
    scene->extended = 1;
    world_act_as(scene->world, scene->io);
    scene->image->ops->extend(scene->image, &scene->extension);
    world_act_as(scene->world, NULL);
}

static void take_place(struct scene *scene)
{
    go_on(scene);
    if (scene->extended != 0)
        fail(scene, "the disk does not grow: %s", scene->extension.error.text);
    world_act_as(scene->world, scene->io);
    scene->image->ops->grow(scene->image, scene->extension.size_bytes);
    world_act_as(scene->world, NULL);
}

static void check_added(struct scene *scene, uint64_t from, uint64_t size)
{
    if (scene->image->size_bytes != size)
        fail(scene, "the disk has %llu bytes", (unsigned long long)scene->image->size_bytes);
    for (uint64_t at = from; at < size; at += TABLE_BYTES) {
        const uint64_t left = size - at;
        if (!reads_as(scene, (struct range){at, left < TABLE_BYTES ? left : TABLE_BYTES}, 0))
            fail(scene, "what was added at %llu is not zero", (unsigned long long)at);
    }
}

/* One change of the file fails while the disk grows, or all from there on: it has one size or the other. false: as above. */
static bool grows_on_a_bad_disk(enum shape shape, uint64_t number, bool for_good, bool power)
{
    struct scene *scene = scene_begin("growing on a bad disk", shape, number, FIRST_FREE);
    struct step *before = start(scene, REQUEST_WRITE, DISK_BYTES - CLUSTER, CLUSTER);
    expect(scene, before, 0);
    expect(scene, start(scene, REQUEST_FLUSH, 0, 0), 0);
    scene->changes = 0;
    scene->bad_number = number;
    scene->bad_status = -EIO;
    scene->bad_for_good = for_good;
    extend(scene, GROWN_BYTES);
    struct step *meanwhile = start(scene, REQUEST_WRITE, 2 * TABLE_BYTES, CLUSTER);
    go_on(scene);
    const int status = scene->extended;
    const bool more = scene->changes >= number;
    scene->bad_number = scene->bad_for_good ? number : 0;
    if (status > 0 || !meanwhile->done)
        fail(scene, "%s never ended", status > 0 ? "growing" : "the write");
    if (status < 0 && number % 2) {
        extend(scene, DISK_BYTES);
        go_on(scene);
    }
    const bool back = status < 0 && scene->extended == 0;
    struct step *after = start(scene, REQUEST_WRITE, 3 * TABLE_BYTES, CLUSTER);
    go_on(scene);
    if (!after->done || (after->status < 0 && !scene->bad_for_good))
        fail(scene, "the write after it: %d", after->status);
    const bool there[] = {true, meanwhile->status == 0 && !power, after->status == 0 && !power};
    const struct step *steps[] = {before, meanwhile, after};
    if (power)
        lose_power(scene);
    else
        kill_process(scene);
    const uint64_t size = scene->image->size_bytes;
    if ((size != DISK_BYTES && size != GROWN_BYTES) || (status == 0 && size == DISK_BYTES) ||
        (back && size != DISK_BYTES))
        fail(scene, "the disk has %llu bytes", (unsigned long long)size);
    for (unsigned i = 0; i < 3; i++)
        if (there[i] && !reads_as(scene, steps[i]->req.range, steps[i]->value))
            fail(scene, "request %u was answered, and is lost", steps[i]->value);
    check_added(scene, DISK_BYTES, size);
    scene_end(scene);
    return more;
}

/* What a disk had behind its end before it was made smaller is gone. */
static void grows_over_old_data(enum shape shape, uint64_t lost)
{
    struct scene *scene = scene_begin("growing over old data", shape, 1, FIRST_FREE);
    const uint64_t small = DISK_BYTES - lost;
    for (unsigned i = 0; i < TABLES; i++)
        expect(scene, start(scene, REQUEST_WRITE, i * TABLE_BYTES, TABLE_BYTES), 0);
    expect(scene, start(scene, REQUEST_FLUSH, 0, 0), 0);
    uint8_t size[8];
    store_be64(size, small);
    world_file_fill(scene->file, 24, size, sizeof size);
    kill_process(scene);
    extend(scene, GROWN_BYTES);
    take_place(scene);
    check_added(scene, small, GROWN_BYTES);
    if (!reads_as(scene, (struct range){small - 200, 200}, scene->steps[TABLES - 1 - lost / TABLE_BYTES].value))
        fail(scene, "what lies before the old end is gone");
    lose_power(scene);
    check_added(scene, small, GROWN_BYTES);
    scene_end(scene);
}

/* The table of refcount blocks grows, too: one change of the header after the other. */
static void header_changes_twice(void)
{
    struct scene *scene = scene_begin("two changes of the header", THROUGH, 1, COVERED - 20);
    extend(scene, DISK_BYTES + CLUSTER);
    take_place(scene);
    scene->hold = (struct pick){WORLD_WRITE, {0, CLUSTER}};
    start(scene, REQUEST_WRITE, 0, TABLE_BYTES);
    go_on(scene);
    if (world_held(scene->world) != 1)
        fail(scene, "the table of refcount blocks does not grow");
    extend(scene, DISK_BYTES + TABLE_BYTES); /* the L1 table is long enough */
    go_on(scene);
    if (scene->extended != 1)
        fail(scene, "the header was changed twice at the same time");
    scene->hold = (struct pick){0};
    world_let_go_all(scene->world);
    take_place(scene);
    kill_process(scene);
    check_added(scene, DISK_BYTES, DISK_BYTES + TABLE_BYTES);
    scene_end(scene);
}

/* What an image can't have is refused, and nothing was changed. */
static void more_than_an_image_can_have(void)
{
    static const struct {
        uint64_t size;
        int status;
    } wrong[] = {{DISK_BYTES + 100, -EINVAL}, {LIMIT_DISK_BYTES + 512, -EFBIG}, {LIMIT_DISK_BYTES / 2, -EFBIG}};
    struct scene *scene = scene_begin("more than an image can have", THROUGH, 1, FIRST_FREE);
    scene->changes = 0;
    scene->bad_status = -EIO;
    for (unsigned i = 0; i < 3; i++) {
        extend(scene, wrong[i].size);
        go_on(scene);
        if (scene->extended != wrong[i].status || scene->extension.error.code == 0)
            fail(scene, "a size of %llu bytes: %d", (unsigned long long)wrong[i].size, scene->extended);
    }
    if (scene->changes > 0)
        fail(scene, "a size that was refused changed the image");
    scene_end(scene);
}

static void growing(void)
{
    for (unsigned i = 0; i < 2 * 2 * 2; i++)
        for (uint64_t number = 1; grows_on_a_bad_disk(i % 2 ? OVER_BASE : THROUGH, number, i / 2 % 2, i / 4);)
            number++;
    grows_over_old_data(THROUGH, 100);
    grows_over_old_data(THROUGH, TABLE_BYTES + 100);
    grows_over_old_data(OVER_BASE, 5 * CLUSTER - 100);
    grows_over_old_data(WRITE_BACK, 3 * TABLE_BYTES);
    header_changes_twice();
    more_than_an_image_can_have();
}

void qcow2_scenes(void)
{
    killed_with_the_l1_table_on_its_way();
    killed_behind_zeroes();
    killed_with_a_commit_on_its_way();
    reader_of_freed_clusters();
    unreadable_counts();
    file_not_extended();
    full_file_system();
    room_for_few_pages(THROUGH);
    room_for_few_pages(WRITE_BACK);
    for (uint64_t writes = 1; killed_while_tables_wait_for_room(writes); writes++)
        ;
    for (uint64_t seed = 1; seed <= POWER_LOSSES; seed++) {
        power_lost_behind_the_header(seed);
        power_lost_behind_a_mapping(seed);
        power_lost_behind_a_refcount_block(seed);
        power_lost_behind_fua(seed % 2 ? THROUGH : WRITE_BACK, seed);
    }
    bad_disks();
    growing();
}
