/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What an image owes whoever writes to it, moment by moment: tables, zeroes, flushes, FUA, what becomes free, bad disks. */
#include "qcow2_scenes.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

#include "qcow2_scene.h"

/* The header names a larger table of refcount blocks: that one is there then, whatever else is lost. */
static void power_lost_behind_the_header(uint64_t seed)
{
    struct scene *scene = scene_begin("power lost behind the header", THROUGH, seed, COVERED - 20);
    scene->watch = (struct pick){WORLD_WRITE, {0, CLUSTER}};
    scene_start(scene, REQUEST_WRITE, 0, TABLE_BYTES);
    if (!world_run_until(scene->world, scene_was_seen, scene, NS_PER_S))
        scene_fail(scene, "the table of refcount blocks did not grow");
    scene_lose_power(scene);
    scene_end(scene);
}

/* An L2 table that only the process knows maps nothing for a guest that outlives it. */
static void killed_with_the_l1_table_on_its_way(void)
{
    struct scene *scene = scene_begin("killed with the L1 table on its way", THROUGH, 1, FIRST_FREE);
    scene_expect(scene, scene_start(scene, REQUEST_WRITE, DISK_BYTES / 2, CLUSTER), 0); /* the pool is filled */
    scene->hold = (struct pick){WORLD_WRITE, {L1_AT, CLUSTER}};
    scene_start(scene, REQUEST_WRITE, 0, CLUSTER);
    scene_go_on(scene);
    if (world_held(scene->world) != 1)
        scene_fail(scene, "the L1 table is not written");
    scene_start(scene, REQUEST_WRITE, TABLE_BYTES, CLUSTER); /* the next entry of the table: the next write of it */
    scene_go_on(scene);
    scene_start(scene, REQUEST_WRITE, TABLE_BYTES + CLUSTER, CLUSTER);
    scene_start(scene, REQUEST_WRITE_ZEROES, TABLE_BYTES + 2 * CLUSTER, CLUSTER);
    scene_go_on(scene);
    bool answered[STEPS] = {0};
    for (unsigned i = 0; i < scene->used; i++)
        answered[i] = scene->steps[i].done && scene->steps[i].req.kind == REQUEST_WRITE;
    scene_kill(scene);
    for (unsigned i = 0; i < STEPS; i++)
        if (answered[i] && !scene_reads_as(scene, scene->steps[i].req.range, scene->steps[i].value))
            scene_fail(scene, "request %u was answered, and is lost", scene->steps[i].value);
    scene_end(scene);
}

/* Zeroes that are answered are there, as data is. */
static void killed_behind_zeroes(void)
{
    struct scene *scene = scene_begin("killed behind zeroes", THROUGH, 1, FIRST_FREE);
    scene_expect(scene, scene_start(scene, REQUEST_WRITE, 0, TABLE_BYTES), 0);
    scene_expect(scene, scene_start(scene, REQUEST_WRITE_ZEROES, 0, TABLE_BYTES), 0);
    scene_kill(scene);
    if (!scene_reads_as(scene, (struct range){0, TABLE_BYTES}, 0))
        scene_fail(scene, "the zeroes are lost");
    scene_end(scene);
}

/* A new cluster hides the base from the moment on that its mapping lands. */
static void power_lost_behind_a_mapping(uint64_t seed)
{
    struct scene *scene = scene_begin("power lost behind a mapping", OVER_BASE, seed, FIRST_FREE);
    struct range range = {TABLE_BYTES, CLUSTER};
    if (!scene_reads_as(scene, range, OF_BASE))
        scene_fail(scene, "the base is not there");
    struct step *step = scene_start(scene, REQUEST_WRITE, range.start, range.length);
    scene_run_until_done(scene, step);
    scene_lose_power(scene);
    if (!scene_reads_as(scene, range, step->value) && !scene_reads_as(scene, range, OF_BASE))
        scene_fail(scene, "neither what was written nor what was there before");
    scene_end(scene);
}

/* A request needs several pages at the same time, and there is room for few. */
static void room_for_few_pages(enum shape shape)
{
    struct scene *scene = scene_begin("room for few pages", shape, 1, PER_BLOCK);
    qcow2_of(scene->image)->page_max = 7;
    struct step *steps[TABLES - 1];
    for (unsigned i = 0; i < TABLES - 1; i++)
        steps[i] = scene_start(scene, REQUEST_WRITE, (i + 1) * TABLE_BYTES - 4 * CLUSTER, 8 * CLUSTER);
    for (unsigned i = 0; i < TABLES - 1; i++)
        scene_expect(scene, steps[i], 0);
    scene_end(scene);
}

/* New tables wait for room in memory, and commits make it: none writes where a table is before that is in the file. false:
 * the death would come after the end. */
static bool killed_while_tables_wait_for_room(uint64_t writes)
{
    struct scene *scene = scene_begin("killed while tables wait for room", WRITE_BACK, 1, FIRST_FREE);
    qcow2_of(scene->image)->page_max = 7;
    for (unsigned i = 0; i < TABLES; i++)
        scene_start(scene, REQUEST_WRITE, i * TABLE_BYTES, CLUSTER);
    scene->writes_left = writes;
    bool in_time = world_run_until(scene->world, scene_was_seen, scene, NS_PER_S);
    scene_kill(scene);
    scene_end(scene);
    return in_time;
}

static void power_lost_behind_fua(enum shape shape, uint64_t seed)
{
    struct scene *scene = scene_begin("power lost behind a FUA write", shape, seed, FIRST_FREE);
    struct range range = {TABLE_BYTES, 4 * CLUSTER};
    scene_expect(scene, scene_start(scene, REQUEST_WRITE, range.start, range.length), 0);
    scene->flags = REQUEST_FUA;
    struct step *step = scene_start(scene, REQUEST_WRITE, range.start, range.length);
    scene_expect(scene, step, 0);
    scene->flags = 0;
    scene_lose_power(scene);
    if (!scene_reads_as(scene, range, step->value))
        scene_fail(scene, "it is lost");
    scene_end(scene);
}

/* The table of refcount blocks names a new one: that one is there then. */
static void power_lost_behind_a_refcount_block(uint64_t seed)
{
    struct scene *scene = scene_begin("power lost behind a refcount block", WRITE_BACK, seed, PER_BLOCK - 20);
    scene_expect(scene, scene_start(scene, REQUEST_WRITE, 0, TABLE_BYTES), 0);
    scene->watch = (struct pick){WORLD_WRITE, {TABLE_AT, CLUSTER}};
    scene_start(scene, REQUEST_FLUSH, 0, 0);
    if (!world_run_until(scene->world, scene_was_seen, scene, NS_PER_S))
        scene_fail(scene, "the table of refcount blocks is not written");
    scene_lose_power(scene);
    scene_end(scene);
}

/* A page that changes while a commit writes it: what lands is what it held before. */
static void killed_with_a_commit_on_its_way(void)
{
    struct scene *scene = scene_begin("killed with a commit on its way", WRITE_BACK, 1, FIRST_FREE);
    scene_expect(scene, scene_start(scene, REQUEST_WRITE, 0, CLUSTER), 0);
    scene_expect(scene, scene_start(scene, REQUEST_FLUSH, 0, 0), 0);
    scene_expect(scene, scene_start(scene, REQUEST_WRITE, CLUSTER, CLUSTER), 0);
    uint64_t table = load_be64(world_file_bytes(scene->file) + L1_AT) & QCOW2_PLACE_MASK;
    scene->hold = (struct pick){WORLD_WRITE, {table, CLUSTER}};
    scene_start(scene, REQUEST_FLUSH, 0, 0);
    scene_go_on(scene);
    if (world_held(scene->world) != 1)
        scene_fail(scene, "the L2 table is not written");
    scene_expect(scene, scene_start(scene, REQUEST_WRITE, 2 * CLUSTER, CLUSTER), 0);
    scene_kill(scene);
    scene_end(scene);
}

/* A flush waits for what it makes stable, and for no reader of what became free; the reader sees nobody else's data. */
static void reader_of_freed_clusters(void)
{
    struct scene *scene = scene_begin("a reader of freed clusters", THROUGH, 1, FIRST_FREE);
    struct range range = {0, 8 * CLUSTER};
    const struct step *old = scene_start(scene, REQUEST_WRITE, range.start, range.length);
    scene_expect(scene, old, 0);
    scene_expect(scene, scene_start(scene, REQUEST_FLUSH, 0, 0), 0);
    const uint8_t *file = world_file_bytes(scene->file);
    uint64_t table = load_be64(file + L1_AT) & QCOW2_PLACE_MASK;
    scene->hold = (struct pick){WORLD_READ, {load_be64(file + table) & QCOW2_PLACE_MASK, CLUSTER}};
    const struct step *reader = scene_start(scene, REQUEST_READ, range.start, range.length);
    scene_expect(scene, scene_start(scene, REQUEST_DISCARD, range.start, range.length), 0);
    scene_expect(scene, scene_start(scene, REQUEST_FLUSH, 0, 0), 0);
    const struct step *other = scene_start(scene, REQUEST_WRITE, TABLE_BYTES / 2, TABLE_BYTES / 2);
    scene_go_on(scene);
    scene_forget_hooks(scene);
    world_let_go_all(scene->world);
    scene_expect(scene, reader, 0);
    scene_expect(scene, other, 0);
    const unsigned char *bytes = reader->iov.iov_base;
    for (uint64_t at = 0; at < range.length; at++)
        if (bytes[at] != old->value && bytes[at] != 0)
            scene_fail(scene, "byte %llu is somebody else's", (unsigned long long)at);
    scene_end(scene);
}

/* Clusters whose counts can't be read leak. No flush fails for that, then or later. */
static void unreadable_counts(void)
{
    struct scene *scene = scene_begin("unreadable counts", THROUGH, 1, FIRST_FREE);
    scene_expect(scene, scene_start(scene, REQUEST_WRITE, 0, CLUSTER), 0);
    scene_kill(scene); /* nothing is in memory */
    scene->fails = (struct pick){WORLD_READ, {BLOCK_AT, CLUSTER}};
    scene->fail_times = UINT_MAX;
    scene_expect(scene, scene_start(scene, REQUEST_DISCARD, 0, CLUSTER), 0);
    scene_expect(scene, scene_start(scene, REQUEST_FLUSH, 0, 0), 0);
    scene->flags = REQUEST_LAST; /* it waits for what is freed */
    scene_expect(scene, scene_start(scene, REQUEST_FLUSH, 0, 0), 0);
    scene->flags = 0;
    if (qcow2_of(scene->image)->freed_count > 0)
        scene_fail(scene, "what can't be counted down is kept");
    scene_kill(scene);
    scene_end(scene);
}

/* The file can't grow: what was answered becomes stable, and what the guest discards makes room. */
static void full_file_system(void)
{
    struct scene *scene = scene_begin("full file system", THROUGH, 1, PER_BLOCK - 20);
    struct range first = {0, 8 * CLUSTER}, rest = {TABLE_BYTES, TABLE_BYTES};
    struct step *step = scene_start(scene, REQUEST_WRITE, first.start, first.length);
    scene_expect(scene, step, 0);
    scene_expect(scene, scene_start(scene, REQUEST_FLUSH, 0, 0), 0);
    scene_go_on(scene);
    scene->is_full = true;
    scene_expect(scene, scene_start(scene, REQUEST_WRITE, rest.start, rest.length), -ENOSPC);
    scene_expect(scene, scene_start(scene, REQUEST_FLUSH, 0, 0), 0);
    scene_expect(scene, scene_start(scene, REQUEST_DISCARD, 0, first.length / 2), 0);
    scene_expect(scene, scene_start(scene, REQUEST_FLUSH, 0, 0), 0);
    scene_go_on(scene);
    if (qcow2_of(scene->image)->unused_count == 0)
        scene_fail(scene, "nothing became free");
    scene_lose_power(scene);
    if (!scene_reads_as(scene, (struct range){first.length / 2, first.length / 2}, step->value))
        scene_fail(scene, "what was flushed is lost");
    scene_expect(scene, scene_start(scene, REQUEST_WRITE, rest.start, rest.length), 0);
    scene_end(scene);
}

/* The file ends before the clusters that were counted ahead: none of them is used before it reaches so far. */
static void file_not_extended(void)
{
    struct scene *scene = scene_begin("the file could not be extended", THROUGH, 1, FIRST_FREE);
    scene->fails = (struct pick){WORLD_WRITE, {FIRST_FREE * CLUSTER, COVERED * CLUSTER}};
    scene->fail_times = 1;
    scene_expect(scene, scene_start(scene, REQUEST_WRITE, 0, CLUSTER), -EIO);
    scene->watch = (struct pick){WORLD_WRITE, {L1_AT, CLUSTER}};
    scene_start(scene, REQUEST_WRITE, 0, CLUSTER);
    if (!world_run_until(scene->world, scene_was_seen, scene, NS_PER_S))
        scene_fail(scene, "the L1 table is not written");
    scene_kill(scene);
    scene_end(scene);
}

/* Some requests of each kind, none over another. Whether a flush has made the first ones stable. */
static bool bad_disk_requests(struct scene *scene)
{
    for (unsigned i = 0; i < 6; i++) {
        uint64_t at = (i + 1) * TABLE_BYTES - 2 * CLUSTER, length = i < 2 ? TABLE_BYTES / 2 : 3 * CLUSTER - 100;
        scene_start(scene, i == 3 ? REQUEST_WRITE_ZEROES : REQUEST_WRITE, at, length);
        if (i % 2)
            scene_go_on(scene);
    }
    scene_start(scene, REQUEST_DISCARD, 2 * TABLE_BYTES, 4 * CLUSTER);
    const struct step *flush = scene_start(scene, REQUEST_FLUSH, 0, 0);
    scene_go_on(scene);
    scene_start(scene, REQUEST_WRITE, 0, 4 * CLUSTER);
    scene_go_on(scene);
    for (unsigned i = 0; i < scene->used; i++)
        if (!scene->steps[i].done)
            scene_fail(scene, "request %u never ended", scene->steps[i].value);
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
        scene_lose_power(scene);
    else
        scene_kill(scene);
    for (unsigned i = 0; i < STEPS; i++) {
        const struct step *step = &scene->steps[i];
        if (there[i] && !scene_reads_as(scene, step->req.range, step->req.kind == REQUEST_WRITE ? step->value : 0))
            scene_fail(scene, "request %u was answered, and is lost", step->value);
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
    qcow2_growth_scenes();
    qcow2_failure_scenes();
    qcow2_old_scenes();
    qcow2_cost_scenes();
}
