/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Dirty bitmaps on a disk of the simulated machine: what they note of which requests, their commands against a model, copies
 * that are made while the guest writes, and memory that runs out.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "driver/null.h"
#include "track/bitmap_copy.h"
#include "track/write_sketch.h"
#include "world.h"

enum { GRANULE = 4096 };

/* Memory of bitmaps comes through here (--wrap): the request `fail_at` from now fails; 0: none. */
void *__real_calloc(size_t count, size_t size);
void *__wrap_calloc(size_t count, size_t size);
static unsigned long fail_at;

void *__wrap_calloc(size_t count, size_t size)
{
    return fail_at && --fail_at == 0 ? NULL : __real_calloc(count, size);
}

struct scene {
    struct world *world;
    struct io *io;
    struct disk *disk;
    struct dirty_bitmaps bitmaps;
    struct error err;
};

static void scene_open(struct scene *scene, uint64_t seed, uint64_t size_bytes)
{
    fail_at = 0;
    *scene = (struct scene){.world = world_create(&(struct world_options){.seed = seed})};
    scene->io = world_reactor(scene->world, "vda", 0);
    world_act_as(scene->world, scene->io);
    scene->disk = disk_create("vda", null_create(scene->io, size_bytes));
    dirty_bitmaps_init(&scene->bitmaps, scene->disk);
}

static void scene_close(struct scene *scene)
{
    dirty_bitmaps_fini(&scene->bitmaps);
    disk_destroy(scene->disk);
    world_act_as(scene->world, NULL);
    assert_int_equal(world_destroy(scene->world, stderr), 0);
}

static void add(struct scene *scene, const char *name, uint64_t granularity)
{
    assert_int_equal(dirty_bitmap_add(&scene->bitmaps, name, granularity, true, &scene->err), 0);
}

static struct dirty_bitmap *bitmap(struct scene *scene, const char *name)
{
    struct dirty_bitmap *found;
    assert_int_equal(dirty_bitmap_find(&scene->bitmaps, name, &found, &scene->err), 0);
    return found;
}

static int merge(struct scene *scene, const char *target, const char *source)
{
    const struct bitmap *bits = &bitmap(scene, source)->bits;
    return dirty_bitmap_merge(&scene->bitmaps, target, bits, 0, bits->bit_count, &scene->err);
}

static struct dirty_bitmap_status status_of(struct scene *scene, const char *name)
{
    struct dirty_bitmap_status status;
    list_each (link, &scene->bitmaps.all) {
        dirty_bitmap_status(container_of(link, struct dirty_bitmap, link), &status);
        if (strcmp(status.name, name) == 0)
            return status;
    }
    fail_msg("no bitmap %s", name);
    return status;
}

static void request_done(struct request *req, int status)
{
    assert_int_equal(status, 0);
    req->range.length = 0; /* done */
}

static void submit(struct scene *scene, enum request_kind kind, uint64_t start, uint64_t length)
{
    char bytes[4096];
    assert_true(length <= sizeof bytes || kind != REQUEST_WRITE);
    struct iovec iov = {bytes, length};
    struct request req = {
        .kind = kind, .range = {start, length}, .iov = &iov, .iov_count = kind <= REQUEST_WRITE, .done = request_done};
    struct block_extent extent;
    if (kind == REQUEST_BLOCK_STATUS) {
        req.extents = &extent;
        req.extent_max = 1;
    }
    node_submit(&scene->disk->node, &req);
    world_act_as(scene->world, NULL);
    world_run_for(scene->world, NS_PER_MS);
    world_act_as(scene->world, scene->io);
    assert_int_equal(req.range.length, 0);
}

static void notes_changes_only(void **state)
{
    (void)state;
    struct scene scene;
    const uint64_t size = 100 * GRANULE + 512;
    scene_open(&scene, 1, size);
    add(&scene, "a", GRANULE);
    add(&scene, "coarse", 16 * GRANULE);
    assert_int_equal(dirty_bitmap_add(&scene.bitmaps, "off", GRANULE, false, &scene.err), 0);
    submit(&scene, REQUEST_READ, 0, 512);
    submit(&scene, REQUEST_BLOCK_STATUS, 0, size);
    assert_int_equal(status_of(&scene, "a").dirty_bytes, 0);
    submit(&scene, REQUEST_WRITE, GRANULE - 1, 2); /* one byte in each of two granules */
    submit(&scene, REQUEST_WRITE_ZEROES, 10 * GRANULE, 3 * GRANULE);
    submit(&scene, REQUEST_DISCARD, 40 * GRANULE + 5, 1);
    submit(&scene, REQUEST_WRITE, size - 1, 1); /* the last granule is 512 bytes */
    assert_int_equal(status_of(&scene, "a").dirty_bytes, 6 * GRANULE + 512);
    assert_int_equal(status_of(&scene, "coarse").dirty_bytes, 2 * 16 * GRANULE + 4 * GRANULE + 512);
    assert_int_equal(status_of(&scene, "off").dirty_bytes, 0);
    assert_true(status_of(&scene, "a").recording && !status_of(&scene, "off").recording);
    const uint64_t expected[] = {0, 1, 10, 11, 12, 40, 100};
    for (uint64_t i = 0, at = 0; i < 7; i++, at++)
        assert_int_equal(at = bitmap_next(&bitmap(&scene, "a")->bits, at, true), expected[i]);
    scene_close(&scene);
}

static void commands(void **state)
{
    (void)state;
    struct scene scene;
    struct dirty_bitmap *found;
    char name[16];
    scene_open(&scene, 1, 64 * GRANULE);
    add(&scene, "a", GRANULE);
    assert_int_equal(dirty_bitmap_add(&scene.bitmaps, "a", GRANULE, true, &scene.err), -EEXIST);
    assert_string_equal(scene.err.text, "disk vda has a dirty bitmap 'a' already: choose another name, or remove it");
    assert_int_equal(dirty_bitmap_find(&scene.bitmaps, "b", &found, &scene.err), -ENOENT);
    assert_string_equal(scene.err.text, "disk vda has no dirty bitmap 'b'");
    assert_null(found);
    assert_int_equal(dirty_bitmap_remove(&scene.bitmaps, "b", &scene.err), -ENOENT);
    assert_int_equal(dirty_bitmap_clear(&scene.bitmaps, "b", &scene.err), -ENOENT);
    assert_int_equal(dirty_bitmap_enable(&scene.bitmaps, "b", true, &scene.err), -ENOENT);
    for (unsigned i = 1; i < LIMIT_BITMAPS; i++) {
        snprintf(name, sizeof name, "n%u", i);
        add(&scene, name, i % 2 ? 512 : BITMAP_GRANULARITY_MAX);
    }
    assert_int_equal(dirty_bitmap_add(&scene.bitmaps, "more", GRANULE, true, &scene.err), -ENOSPC);
    assert_int_equal(dirty_bitmap_remove(&scene.bitmaps, "n7", &scene.err), 0);
    add(&scene, "more", GRANULE);

    submit(&scene, REQUEST_WRITE, 5 * GRANULE, 512);
    assert_int_equal(dirty_bitmap_enable(&scene.bitmaps, "a", false, &scene.err), 0);
    assert_int_equal(dirty_bitmap_enable(&scene.bitmaps, "a", false, &scene.err), 0);
    submit(&scene, REQUEST_WRITE, 6 * GRANULE, 512);
    assert_int_equal(dirty_bitmap_enable(&scene.bitmaps, "a", true, &scene.err), 0);
    submit(&scene, REQUEST_WRITE, 7 * GRANULE, 512);
    assert_int_equal(status_of(&scene, "a").dirty_bytes, 2 * GRANULE);
    assert_false(bitmap_get(&bitmap(&scene, "a")->bits, 6));
    assert_int_equal(status_of(&scene, "more").dirty_bytes, 3 * GRANULE);
    assert_int_equal(status_of(&scene, "n1").dirty_bytes, 3 * 512);
    assert_int_equal(status_of(&scene, "n2").dirty_bytes, 64 * GRANULE);
    assert_int_equal(dirty_bitmap_clear(&scene.bitmaps, "a", &scene.err), 0);
    assert_int_equal(status_of(&scene, "a").dirty_bytes, 0);
    assert_int_equal(merge(&scene, "a", "more"), 0);
    assert_int_equal(status_of(&scene, "a").dirty_bytes, 3 * GRANULE);
    assert_int_equal(merge(&scene, "a", "n1"), -EINVAL);
    scene_close(&scene);
}

static void ranges(void **state)
{
    (void)state;
    struct scene scene;
    struct range found[3];
    uint64_t next;
    const uint64_t size = 100 * GRANULE + 512;
    scene_open(&scene, 1, size);
    add(&scene, "a", GRANULE);
    struct dirty_bitmap *a = bitmap(&scene, "a");
    assert_int_equal(dirty_bitmap_ranges(a, 0, found, 3, &next), 0);
    assert_int_equal(next, size);
    for (uint64_t bit = 2; bit < 10; bit += 2)
        assert_int_equal(bitmap_assign(&a->bits, bit, 1, true), 0);
    assert_int_equal(bitmap_assign(&a->bits, 98, 3, true), 0);
    assert_int_equal(dirty_bitmap_ranges(a, 0, found, 3, &next), 3);
    assert_true(found[0].start == 2 * GRANULE && found[0].length == GRANULE && found[2].start == 6 * GRANULE);
    assert_true(next > 6 * GRANULE && next <= 8 * GRANULE);
    assert_int_equal(dirty_bitmap_ranges(a, next, found, 3, &next), 2);
    assert_true(found[1].start == 98 * GRANULE && range_end(found[1]) == size && next == size);
    assert_int_equal(dirty_bitmap_ranges(a, size, found, 3, &next), 1); /* from the granule that holds it */
    assert_int_equal(dirty_bitmap_ranges(a, UINT64_MAX, found, 3, &next), 0);
    scene_close(&scene);
}

static void granularities(void **state)
{
    (void)state;
    struct error err;
    assert_int_equal(dirty_bitmap_check_granularity(512, &err), 0);
    assert_int_equal(dirty_bitmap_check_granularity(2 * GIB, &err), 0);
    const uint64_t wrong[] = {0, 1, 256, 513, 4097, 3 * MIB, 4 * GIB, UINT64_MAX};
    for (unsigned i = 0; i < sizeof wrong / sizeof *wrong; i++)
        assert_int_equal(dirty_bitmap_check_granularity(wrong[i], &err), -EINVAL);
    assert_string_equal(err.text, "the granularity of a bitmap is a power of 2 from 512 to 2147483648 bytes, not "
                                  "18446744073709551615");
}

/* No memory to note a write: the guest does not feel it, and the bitmap says that it can't be trusted (R5). */
static void out_of_memory(void **state)
{
    (void)state;
    struct scene scene;
    struct dirty_bitmap *found;
    scene_open(&scene, 1, 64 * MIB);
    fail_at = 1;
    assert_int_equal(dirty_bitmap_add(&scene.bitmaps, "a", GRANULE, true, &scene.err), -ENOMEM);
    fail_at = 2;
    assert_int_equal(dirty_bitmap_add(&scene.bitmaps, "a", GRANULE, true, &scene.err), -ENOMEM);
    add(&scene, "a", GRANULE);
    add(&scene, "b", GRANULE);
    fail_at = 2; /* the first one to be told is "a" */
    submit(&scene, REQUEST_WRITE, 5 * GRANULE, 512);
    submit(&scene, REQUEST_WRITE, 6 * GRANULE, 512);
    struct dirty_bitmap_status status = status_of(&scene, "b");
    assert_true(status.inconsistent && !status.recording && status.dirty_bytes == 0 && status.memory_bytes == 0);
    assert_int_equal(status_of(&scene, "a").dirty_bytes, 2 * GRANULE);
    assert_int_equal(dirty_bitmap_find(&scene.bitmaps, "b", &found, &scene.err), -ESTALE);
    assert_string_equal(scene.err.text, "dirty bitmap 'b' of disk vda is inconsistent, for there was no memory to note "
                                        "a write: it can only be removed");
    assert_int_equal(dirty_bitmap_clear(&scene.bitmaps, "b", &scene.err), -ESTALE);
    assert_int_equal(dirty_bitmap_enable(&scene.bitmaps, "b", false, &scene.err), -ESTALE);
    assert_int_equal(merge(&scene, "b", "a"), -ESTALE);
    assert_int_equal(dirty_bitmap_remove(&scene.bitmaps, "b", &scene.err), 0);
    add(&scene, "c", GRANULE);
    fail_at = 1;
    assert_int_equal(merge(&scene, "c", "a"), -ENOMEM);
    assert_false(status_of(&scene, "c").inconsistent);
    scene_close(&scene);
}

/* ---- copies ---- */

static unsigned copies_done;

static void copy_done(struct bitmap_copy *copy)
{
    (void)copy;
    copies_done++;
}

/* Every byte that is dirty in the source lies in a block of the copy; no block is there for nothing but `written`. */
static void check_copy(const struct dirty_bitmap *source, const struct bitmap_copy *copy, bool exactly)
{
    uint64_t touched = 0;
    for (uint64_t block = 0; block < copy->blocks.bit_count; block++) {
        struct range bytes = blocks_to_range((struct block_range){block, 1}, copy->block_shift, source->size_bytes);
        struct block_range granules = range_to_blocks(bytes, source->granularity_shift);
        bool dirty = bitmap_next(&source->bits, granules.first, true) < block_range_end(granules);
        if (dirty && !bitmap_get(&copy->blocks, block))
            fail_msg("block %lu is dirty, and not in the copy", (unsigned long)block);
        touched += dirty;
    }
    if (exactly)
        assert_int_equal(copy->blocks.set_count, touched);
}

static void copied_at_any_granularity(void **state)
{
    (void)state;
    static const uint64_t sizes[] = {3 * GRANULE, 40 * MIB + 512, 256 * MIB};
    for (unsigned i = 0; i < 3; i++)
        for (uint64_t source = 512; source <= MIB; source *= 8)
            for (unsigned shift = 12; shift <= 22; shift += 2) {
                struct scene scene;
                struct bitmap_copy copy = {0};
                scene_open(&scene, 1, sizes[i]);
                add(&scene, "a", source);
                copies_done = 0;
                for (unsigned n = 0; n < 200; n++) {
                    uint64_t start = world_below(scene.world, sizes[i]), most = world_below(scene.world, 2) ? MIB : 512;
                    uint64_t length = 1 + world_below(scene.world, sizes[i] - start < most ? sizes[i] - start : most);
                    struct block_range bits = range_to_blocks((struct range){start, length},
                                                              bitmap(&scene, "a")->granularity_shift);
                    assert_int_equal(bitmap_assign(&bitmap(&scene, "a")->bits, bits.first, bits.count, n % 4 > 0), 0);
                }
                bitmap_copy_start(&copy, scene.disk, bitmap(&scene, "a"), shift, copy_done);
                assert_int_equal(copies_done, 0);
                world_act_as(scene.world, NULL);
                world_run_for(scene.world, 100 * NS_PER_MS);
                world_act_as(scene.world, scene.io);
                assert_int_equal(copies_done, 1);
                assert_int_equal(copy.status, 0);
                check_copy(bitmap(&scene, "a"), &copy, true);
                bitmap_copy_end(&copy);
                bitmap_fini(&copy.blocks);
                scene_close(&scene);
            }
}

/* Writes before, during and after the reading of the source: the copy has them all until its end, and none later. */
static void copied_while_written(void **state)
{
    (void)state;
    const uint64_t size = 512 * GIB;
    for (uint64_t seed = 1; seed <= 6; seed++) {
        struct scene scene;
        struct bitmap_copy copy = {0};
        scene_open(&scene, seed, size);
        add(&scene, "a", seed % 3 == 0 ? 64 * KIB : GRANULE);
        struct dirty_bitmap *source = bitmap(&scene, "a");
        copies_done = 0;
        for (unsigned n = 0; n < 3000; n++)
            bitmap_assign(&source->bits, world_below(scene.world, source->bits.bit_count), 1, true);
        bitmap_copy_start(&copy, scene.disk, source, 12, copy_done);
        assert_true(status_of(&scene, "a").busy);
        assert_int_equal(dirty_bitmap_remove(&scene.bitmaps, "a", &scene.err), -EBUSY);
        assert_int_equal(dirty_bitmap_clear(&scene.bitmaps, "a", &scene.err), -EBUSY);
        assert_int_equal(dirty_bitmap_enable(&scene.bitmaps, "a", false, &scene.err), -EBUSY);
        unsigned steps = 0, after = 0;
        while (after < 20) { /* a write between any two ticks */
            struct request req = {
                .kind = REQUEST_DISCARD,
                .range = {world_below(scene.world, size - GRANULE), 1 + world_below(scene.world, 9000)},
                .done = request_done};
            req.range.length = range_end(req.range) > size ? 1 : req.range.length;
            struct range written = req.range;
            node_submit(&scene.disk->node, &req);
            struct block_range blocks = range_to_blocks(written, 12);
            assert_int_equal(bitmap_next(&copy.blocks, blocks.first, false) < block_range_end(blocks), 0);
            world_act_as(scene.world, NULL);
            for (unsigned n = 0; n < 3; n++)
                world_step(scene.world);
            while (req.range.length)
                world_step(scene.world);
            world_act_as(scene.world, scene.io);
            steps++;
            after += copies_done;
        }
        assert_int_equal(copies_done, 1);
        assert_true(steps > 30 || source->granularity_shift != 12); /* it was no single step */
        assert_false(status_of(&scene, "a").busy);
        for (uint64_t bit = 0; (bit = bitmap_next(&source->bits, bit, true)) < source->bits.bit_count; bit++) {
            uint64_t block = bit << source->granularity_shift >> 12;
            if (source->granularity_shift == 12)
                assert_true(bitmap_get(&copy.blocks, block));
        }
        bitmap_copy_end(&copy);
        uint64_t before = copy.blocks.set_count;
        submit(&scene, REQUEST_DISCARD, 0, 64 * MIB);
        assert_int_equal(copy.blocks.set_count, before);
        bitmap_fini(&copy.blocks);
        scene_close(&scene);
    }
}

/* Whichever allocation fails, of the source, of the copy, before or in between: the copy says so. */
static void copied_without_memory(void **state)
{
    (void)state;
    for (unsigned long n = 1; n <= 12; n++) {
        struct scene scene;
        struct bitmap_copy copy = {0};
        scene_open(&scene, n, 2 * GIB);
        add(&scene, "a", GRANULE);
        for (uint64_t bit = 100; bit < 2 * GIB / GRANULE; bit += 2 * BITMAP_CHUNK_BITS)
            assert_int_equal(bitmap_assign(&bitmap(&scene, "a")->bits, bit, 1, true), 0);
        struct dirty_bitmap *source = bitmap(&scene, "a");
        copies_done = 0;
        fail_at = n; /* 1: list; 2-9: chunks; or of the source, whose chunks the guest mixes in the end */
        bitmap_copy_start(&copy, scene.disk, source, 12, copy_done);
        bool wanted = n <= 9;
        submit(&scene, REQUEST_WRITE, (BITMAP_CHUNK_BITS + 5) * GRANULE, 512);
        world_act_as(scene.world, NULL);
        world_run_for(scene.world, 10 * NS_PER_MS);
        world_act_as(scene.world, scene.io);
        bool failed = fail_at == 0;
        fail_at = 0;
        assert_int_equal(copies_done, 1);
        assert_true(failed || !wanted);
        if (failed)
            assert_true(copy.status == -ENOMEM || source->inconsistent);
        if (copy.status == 0) { /* also when the source has missed the write */
            assert_true(bitmap_get(&copy.blocks, BITMAP_CHUNK_BITS + 5));
            for (uint64_t bit = 100; bit < 2 * GIB / GRANULE; bit += 2 * BITMAP_CHUNK_BITS)
                assert_true(bitmap_get(&copy.blocks, bit));
            assert_int_equal(copy.blocks.set_count, 9);
        }
        if (source->inconsistent)
            assert_int_equal(status_of(&scene, "a").memory_bytes, 0);
        bitmap_copy_end(&copy);
        bitmap_fini(&copy.blocks);
        scene_close(&scene);
    }
}

/* ---- the sketch of writes ---- */

static void wait(struct scene *scene, uint64_t ns)
{
    world_act_as(scene->world, NULL);
    world_run_for(scene->world, ns);
    world_act_as(scene->world, scene->io);
}

/* Different blocks, whatever their number, to 10 % (three times the standard error). */
static void sketch_counts_different_blocks(void **state)
{
    (void)state;
    static struct write_sketch sketch;
    for (uint64_t blocks = 1; blocks <= 300000; blocks = blocks * 3 + 1) {
        struct scene scene;
        scene_open(&scene, 1, 64 * GIB);
        write_sketch_begin(&sketch, scene.disk, 12);
        for (unsigned again = 0; again < 2; again++)
            for (uint64_t block = 0; block < blocks; block++)
                sketch.observer.written(&sketch.observer, (struct range){block * 40503 % (1 << 24) * 4096 + 100, 10});
        wait(&scene, NS_PER_S);
        struct write_sketch_answer answer = write_sketch_ask(&sketch);
        assert_in_range(answer.distinct_bytes, blocks * 4096 * 9 / 10, blocks * 4096 * 11 / 10);
        assert_in_range(answer.duration_ns, NS_PER_S, NS_PER_S + NS_PER_MS);
        write_sketch_end(&sketch);
        scene_close(&scene);
    }
}

/* What was written more than five minutes ago is forgotten; the answer is never more than the disk. */
static void sketch_forgets(void **state)
{
    (void)state;
    static struct write_sketch sketch;
    struct scene scene;
    struct write_sketch_answer answer;
    scene_open(&scene, 1, 2 * GIB);
    write_sketch_begin(&sketch, scene.disk, 12);
    submit(&scene, REQUEST_DISCARD, 0, GIB);
    assert_in_range(write_sketch_ask(&sketch).distinct_bytes, GIB / 10 * 9, GIB / 10 * 11);
    for (unsigned minute = 1; minute <= 4; minute++) {
        wait(&scene, 61 * NS_PER_S);
        submit(&scene, REQUEST_DISCARD, GIB, 64 * MIB);
        submit(&scene, REQUEST_READ, 0, 512);
        answer = write_sketch_ask(&sketch);
        assert_in_range(answer.distinct_bytes, GIB / 10 * 9, GIB / 10 * 12);
        assert_in_range(answer.duration_ns, minute * 61 * NS_PER_S, minute * 61 * NS_PER_S + NS_PER_S);
    }
    wait(&scene, 61 * NS_PER_S);
    answer = write_sketch_ask(&sketch);
    assert_in_range(answer.distinct_bytes, 57 * MIB, 71 * MIB);
    assert_in_range(answer.duration_ns, 240 * NS_PER_S, 300 * NS_PER_S);
    submit(&scene, REQUEST_DISCARD, 0, 2 * GIB);
    assert_in_range(write_sketch_ask(&sketch).distinct_bytes, 2 * GIB / 10 * 9, 2 * GIB);
    write_sketch_end(&sketch);
    scene_close(&scene);
}

/* Also when nobody asks for long, of a disk that is busy, and of one that sleeps and then wakes. */
static void sketch_unasked(void **state)
{
    (void)state;
    static struct write_sketch sketch;
    struct scene scene;
    struct write_sketch_answer answer;
    scene_open(&scene, 1, 64 * GIB);
    write_sketch_begin(&sketch, scene.disk, 12);
    for (uint64_t i = 0; i < 120; i++) { /* 20 minutes at 32 MiB in 10 s */
        submit(&scene, REQUEST_DISCARD, i * 32 * MIB, 32 * MIB);
        wait(&scene, 10 * NS_PER_S);
    }
    answer = write_sketch_ask(&sketch);
    assert_in_range(answer.duration_ns, 240 * NS_PER_S, 300 * NS_PER_S);
    double rate = (double)answer.distinct_bytes / ((double)answer.duration_ns / NS_PER_S);
    assert_true(rate > 2.9 * MIB && rate < 3.7 * MIB);
    for (unsigned hour = 0; hour < 5; hour++) {
        wait(&scene, 3600 * NS_PER_S);
        submit(&scene, REQUEST_WRITE, 0, 4096);
    }
    answer = write_sketch_ask(&sketch);
    assert_in_range(answer.duration_ns, 240 * NS_PER_S, 300 * NS_PER_S);
    assert_true(answer.distinct_bytes < MIB);
    submit(&scene, REQUEST_DISCARD, GIB, 512 * MIB);
    answer = write_sketch_ask(&sketch);
    assert_in_range(answer.duration_ns, 240 * NS_PER_S, 300 * NS_PER_S);
    assert_in_range(answer.distinct_bytes, 450 * MIB, 570 * MIB);
    write_sketch_end(&sketch);
    scene_close(&scene);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(notes_changes_only),
        cmocka_unit_test(commands),
        cmocka_unit_test(ranges),
        cmocka_unit_test(granularities),
        cmocka_unit_test(out_of_memory),
        cmocka_unit_test(copied_at_any_granularity),
        cmocka_unit_test(copied_while_written),
        cmocka_unit_test(copied_without_memory),
        cmocka_unit_test(sketch_counts_different_blocks),
        cmocka_unit_test(sketch_forgets),
        cmocka_unit_test(sketch_unasked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
