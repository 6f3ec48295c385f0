/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The rules of change tracking, each with the interleaving that it is about: C1, C3, C4, C10, C11, C15-C20.
 *
 * What a power loss does to unstable writes is chance, so most of these run with a number of seeds: the
 * rule must hold in each.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "track/sidecar_format.h"
#include "track_scene.h"

enum { SEEDS = 24, A = 1, B = 2 };

static uint64_t block_of(uint64_t extent, uint64_t at)
{
    return extent * SCENE_EXTENT_BLOCKS + at;
}

/* Which operations are held or fail. */

static bool is_super(const struct world_io *io)
{
    return io->kind == WORLD_WRITE && io->range.start < SIDECAR_LOG_AT * SIDECAR_BLOCK_BYTES;
}

static bool is_log(const struct world_io *io)
{
    return io->kind == WORLD_WRITE && !is_super(io) && io->range.start < SIDECAR_AREAS_AT * SIDECAR_BLOCK_BYTES;
}

static bool is_page(const struct world_io *io)
{
    return io->kind == WORLD_WRITE && io->range.start >= SIDECAR_AREAS_AT * SIDECAR_BLOCK_BYTES;
}

static bool hold_disk_sync(struct scene *scene, const struct world_io *io, bool sidecar)
{
    (void)scene;
    return !sidecar && io->kind == WORLD_SYNC;
}

static bool hold_disk_write(struct scene *scene, const struct world_io *io, bool sidecar)
{
    (void)scene;
    return !sidecar && io->kind == WORLD_WRITE;
}

static bool hold_super(struct scene *scene, const struct world_io *io, bool sidecar)
{
    (void)scene;
    return sidecar && is_super(io);
}

static bool hold_log(struct scene *scene, const struct world_io *io, bool sidecar)
{
    (void)scene;
    return sidecar && is_log(io);
}

static bool hold_pages(struct scene *scene, const struct world_io *io, bool sidecar)
{
    (void)scene;
    return sidecar && is_page(io);
}

static bool hold_sidecar(struct scene *scene, const struct world_io *io, bool sidecar)
{
    (void)scene;
    (void)io;
    return sidecar;
}

static int fail_disk_sync(struct scene *scene, const struct world_io *io, bool sidecar)
{
    (void)scene;
    return !sidecar && io->kind == WORLD_SYNC ? -EIO : 0;
}

static int fail_sidecar(struct scene *scene, const struct world_io *io, bool sidecar)
{
    (void)scene;
    return sidecar && io->kind != WORLD_READ ? -EIO : 0;
}

static int fail_log(struct scene *scene, const struct world_io *io, bool sidecar)
{
    (void)scene;
    return sidecar && is_log(io) ? -EIO : 0;
}

static void assert_state(struct scene *scene, unsigned name, enum checkpoint_state expected)
{
    enum checkpoint_state state;
    assert_true(scene_has(scene, name, &state));
    if (state != expected && tracker_invalid_reason(scene->tracker))
        print_message("  %s\n", tracker_invalid_reason(scene->tracker));
    assert_int_equal(state, expected);
    if (expected == CHECKPOINT_INVALID)
        assert_non_null(tracker_invalid_reason(scene->tracker));
}

static bool is_there(struct scene *scene, unsigned name)
{
    enum checkpoint_state state;
    return scene_has(scene, name, &state);
}

static void begin(struct scene *scene, uint64_t seed)
{
    scene_create(scene, seed);
    assert_int_equal(scene_start(scene), 0);
    assert_int_equal(tracker_recovery(scene->tracker), TRACKER_NEW);
}

/* The power goes after the cut and before the flush that follows it: the checkpoint is not there. What the guest had written
 * before the cut may be lost; it is the older checkpoint that says so. */
static void c1_power_loss_after_the_cut(void **state)
{
    (void)state;
    unsigned lost = 0;
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        struct scene scene;
        begin(&scene, seed);
        scene_write(&scene, 5, 11);
        scene_checkpoint(&scene, A);
        scene_write(&scene, 5, 22);
        assert_int_equal(scene_prepare(&scene, B), 0);
        scene_cut(&scene);
        scene.hold = hold_disk_sync;
        scene_start_record(&scene);
        assert_false(scene_op_ends(&scene, NS_PER_S));
        assert_int_equal(scene.held_count, 1);
        scene_power_loss(&scene);
        assert_int_equal(scene_start(&scene), 0);
        assert_false(is_there(&scene, B));
        assert_state(&scene, A, CHECKPOINT_PENDING);
        lost += scene_byte(&scene, 5) == 11;
        assert_true(scene_changed(&scene, A, 5));
        scene_destroy(&scene);
    }
    assert_in_range(lost, 1, SEEDS - 1);
}

static void c1_a_failed_flush_makes_all_invalid(void **state)
{
    (void)state;
    struct scene scene;
    begin(&scene, 1);
    scene_checkpoint(&scene, A);
    scene_write(&scene, 5, 22);
    assert_int_equal(scene_prepare(&scene, B), 0);
    scene_cut(&scene);
    scene.fails = fail_disk_sync;
    scene_start_record(&scene);
    assert_true(scene_end_op(&scene) < 0);
    scene.fails = NULL;
    scene_run(&scene, 20 * NS_PER_S);
    assert_int_equal(scene.invalidated, 1);
    assert_state(&scene, A, CHECKPOINT_INVALID);
    scene_power_loss(&scene);
    assert_int_equal(scene_start(&scene), 0);
    assert_state(&scene, A, CHECKPOINT_INVALID);
    assert_false(is_there(&scene, B));
    scene_destroy(&scene);
}

/* Between the cut and the superblock that names it, recovery follows the checkpoint before: bits go to both. */
static void c3_bits_go_to_both_until_the_cut_is_durable(void **state)
{
    (void)state;
    unsigned with = 0;
    for (uint64_t seed = 1; seed <= 2 * SEEDS; seed++) {
        struct scene scene;
        begin(&scene, seed);
        scene_checkpoint(&scene, A);
        assert_int_equal(scene_prepare(&scene, B), 0);
        scene_cut(&scene);
        scene_write(&scene, 5, 22);
        scene.hold = hold_super;
        scene_start_record(&scene);
        assert_false(scene_op_ends(&scene, 500 * NS_PER_MS));
        scene_write(&scene, block_of(3, 1), 33);
        scene_flush(&scene);
        if (seed % 2)
            scene_power_loss(&scene);
        else
            scene_kill(&scene);
        assert_int_equal(scene_start(&scene), 0);
        assert_state(&scene, A, CHECKPOINT_PENDING);
        assert_true(scene_changed(&scene, A, 5));
        assert_true(scene_changed(&scene, A, block_of(3, 1)));
        if (is_there(&scene, B)) {
            with++;
            assert_true(scene_changed(&scene, B, 5));
            assert_true(scene_changed(&scene, B, block_of(3, 1)));
        }
        scene_destroy(&scene);
    }
    assert_in_range(with, 1, 2 * SEEDS - 1);
}

/* A write that waits for the log while a checkpoint is cut is a write after the cut. */
static void c4_a_parked_write_belongs_to_the_time_after_the_cut(void **state)
{
    (void)state;
    struct scene scene;
    begin(&scene, 1);
    scene_checkpoint(&scene, A);
    assert_int_equal(scene_prepare(&scene, B), 0);
    scene.hold = hold_log;
    struct scene_write *write = scene_submit(&scene, 5, 1, 22);
    assert_false(scene_await(&scene, write, 100 * NS_PER_MS));
    scene_cut(&scene);
    assert_false(write->done);
    scene_start_record(&scene);
    scene_let_go(&scene);
    assert_int_equal(scene_end_op(&scene), 0);
    assert_true(scene_await(&scene, write, NS_PER_S));
    assert_true(scene_changed(&scene, A, 5));
    assert_true(scene_changed(&scene, B, 5));
    scene_flush(&scene);
    scene_power_loss(&scene);
    assert_int_equal(scene_start(&scene), 0);
    assert_int_equal(tracker_recovery(scene.tracker), TRACKER_REPLAYED);
    assert_true(scene_changed(&scene, A, 5));
    assert_true(scene_changed(&scene, B, 5));
    scene_destroy(&scene);
}

/* Whoever adopts has the locks, so what the killed daemon had given to the kernel has landed; and the bits are exact. */
static void c10_adoption_comes_after_what_the_dead_had_under_way(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        struct scene scene;
        begin(&scene, seed);
        scene_checkpoint(&scene, A);
        scene_write(&scene, 5, 22);
        scene.hold = seed % 2 ? hold_log : NULL;
        scene_submit(&scene, block_of(2, 7), 1, 44);
        scene_submit(&scene, 6, 1, 33);
        scene_kill(&scene);
        assert_int_equal(scene_start(&scene), 0);
        assert_int_equal(tracker_recovery(scene.tracker), TRACKER_ADOPTED);
        uint8_t before[2] = {scene_byte(&scene, 6), scene_byte(&scene, block_of(2, 7))};
        scene_run(&scene, 10 * NS_PER_S);
        assert_int_equal(scene_byte(&scene, 6), before[0]);
        assert_int_equal(scene_byte(&scene, block_of(2, 7)), before[1]);
        assert_true(scene_changed(&scene, A, 5));
        assert_true(scene_changed(&scene, A, 6));
        assert_in_range(scene_changed_blocks(&scene, A), 2, 3);
        scene_destroy(&scene);
    }
}

/* Memory is adopted only together with the sidecar of the very open that it belongs to. */
static void c11_memory_of_another_open_is_not_adopted(void **state)
{
    (void)state;
    struct scene scene;
    begin(&scene, 1);
    scene_checkpoint(&scene, A);
    scene_write(&scene, 5, 22);
    scene_kill(&scene);
    scene_run(&scene, 5 * NS_PER_S);
    struct world_file *file = world_file_find(scene.world, SCENE_SIDECAR);
    uint64_t size = world_file_size(file);
    uint8_t *old = malloc(size);
    assert_non_null(old);
    memcpy(old, world_file_bytes(file), size);
    assert_int_equal(scene_start(&scene), 0);
    assert_int_equal(tracker_recovery(scene.tracker), TRACKER_ADOPTED);
    scene_write(&scene, 5, 23);
    scene_kill(&scene);
    scene_behind(&scene, SCENE_SIDECAR, 0, old, size);
    assert_int_equal(scene_start(&scene), 0);
    assert_int_not_equal(tracker_recovery(scene.tracker), TRACKER_ADOPTED);
    scene_kill(&scene);
    scene_run(&scene, 5 * NS_PER_S);
    world_file_remove(scene.world, SCENE_SIDECAR);
    assert_int_equal(scene_start(&scene), 0);
    assert_int_equal(tracker_recovery(scene.tracker), TRACKER_NEW);
    assert_false(is_there(&scene, A));
    scene_destroy(&scene);
    free(old);
}

/* Extents come and go; what was stored and what is in the log are enough for every checkpoint. */
static void c15_retiring_stores_the_pages_of_all_spans(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        struct scene scene;
        begin(&scene, seed);
        scene_checkpoint(&scene, A);
        scene_write(&scene, 5, 22);
        scene_checkpoint(&scene, B);
        scene_write(&scene, 6, 33);
        for (uint64_t extent = 1; extent < SCENE_EXTENTS; extent++)
            scene_write(&scene, block_of(extent, 9), 44);
        scene_run(&scene, NS_PER_S);
        struct tracker_counters counters;
        tracker_counters(scene.tracker, &counters);
        assert_true(counters.page_writes >= 2); /* the first extent has left the log */
        scene_flush(&scene);
        scene_power_loss(&scene);
        assert_int_equal(scene_start(&scene), 0);
        assert_true(scene_changed(&scene, A, 5) && scene_changed(&scene, A, 6));
        assert_true(scene_changed(&scene, B, 6));
        for (uint64_t extent = 1; extent < SCENE_EXTENTS; extent++)
            assert_true(scene_changed(&scene, A, block_of(extent, 9)) && scene_changed(&scene, B, block_of(extent, 9)));
        assert_true(scene_changed_blocks(&scene, B) <= SCENE_SLOTS * SCENE_EXTENT_BLOCKS + SCENE_EXTENTS);
        scene_destroy(&scene);
    }
}

/* While pages are on their way, other blocks of the same extents are written. */
static void c16_a_write_to_a_retiring_extent(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        struct scene scene;
        begin(&scene, seed);
        scene_checkpoint(&scene, A);
        scene.hold = hold_pages;
        uint64_t extent = 0;
        for (; extent < SCENE_EXTENTS && scene.held_count == 0; extent++) {
            scene_write(&scene, block_of(extent, 1), 22);
            scene_run(&scene, 10 * NS_PER_MS);
        }
        assert_true(scene.held_count > 0); /* some extent is retiring */
        for (uint64_t i = 0; i < extent; i++) {
            struct scene_write *write = scene_submit(&scene, block_of(i, 2), 1, 33);
            assert_true(scene_await(&scene, write, NS_PER_S)); /* it waits for nobody */
        }
        scene_let_go(&scene);
        scene_run(&scene, NS_PER_S);
        scene_flush(&scene);
        scene_power_loss(&scene);
        assert_int_equal(scene_start(&scene), 0);
        for (uint64_t i = 0; i < extent; i++)
            assert_true(scene_changed(&scene, A, block_of(i, 1)) && scene_changed(&scene, A, block_of(i, 2)));
        scene_destroy(&scene);
    }
}

/* Bits that were adopted are in memory only: a write that finds them set must be covered by the log all the same. */
static void c16_adopted_bits_are_not_durable(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        struct scene scene;
        begin(&scene, seed);
        scene_checkpoint(&scene, A);
        for (uint64_t extent = 0; extent < 4; extent++)
            scene_write(&scene, block_of(extent, 3), 22);
        scene_kill(&scene);
        assert_int_equal(scene_start(&scene), 0);
        assert_int_equal(tracker_recovery(scene.tracker), TRACKER_ADOPTED);
        assert_int_equal(scene_changed_blocks(&scene, A), 4);
        for (uint64_t extent = 0; extent < 4; extent++)
            scene_write(&scene, block_of(extent, 3), 33);
        scene_flush(&scene);
        scene_power_loss(&scene);
        assert_int_equal(scene_start(&scene), 0);
        for (uint64_t extent = 0; extent < 4; extent++)
            assert_true(scene_changed(&scene, A, block_of(extent, 3)));
        scene_destroy(&scene);
    }
}

/* The newest log block is torn by a power loss: it was in flight, and what it names was not written yet. */
static void c17_a_torn_log_block_is_forgiven(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 2 * SEEDS; seed++) {
        struct scene scene;
        begin(&scene, seed);
        scene_checkpoint(&scene, A);
        for (uint64_t extent = 0; extent < seed % 12; extent++)
            scene_write(&scene, block_of(extent, 3), 22);
        scene.hold = hold_log;
        struct scene_write *write = scene_submit(&scene, block_of(13, 4), 1, 44);
        assert_false(scene_await(&scene, write, 100 * NS_PER_MS));
        scene_power_loss(&scene);
        assert_int_equal(scene_start(&scene), 0);
        assert_state(&scene, A, CHECKPOINT_PENDING);
        assert_int_equal(scene_byte(&scene, block_of(13, 4)), 0);
        for (uint64_t extent = 0; extent < seed % 12; extent++)
            assert_true(scene_changed(&scene, A, block_of(extent, 3)));
        scene_destroy(&scene);
    }
}

/* A damaged sector is never taken for a torn one: nothing that was durably noted is forgotten. */
static void c17_damage_is_never_forgiven(void **state)
{
    (void)state;
    unsigned refused = 0, invalid = 0, harmless = 0;
    for (uint64_t sector = 0; sector < SIDECAR_AREAS_AT * SIDECAR_SECTORS; sector++) {
        struct scene scene;
        begin(&scene, 7);
        scene_checkpoint(&scene, A);
        for (uint64_t extent = 0; extent < SCENE_EXTENTS; extent++)
            scene_write(&scene, block_of(extent, 3), 22);
        scene_checkpoint(&scene, B);
        scene_write(&scene, 7, 33);
        scene_flush(&scene);
        scene_power_loss(&scene);
        uint8_t bytes[512];
        memcpy(bytes, world_file_bytes(world_file_find(scene.world, SCENE_SIDECAR)) + sector * 512, 512);
        bytes[sector * 7 % 512] ^= 4;
        scene_behind(&scene, SCENE_SIDECAR, sector * 512, bytes, 512);
        int status = scene_start(&scene);
        if (status < 0) {
            refused++;
            assert_int_equal(status, -EBADMSG);
            assert_non_null(strstr(scene.op.error.text, "bytes"));
            assert_non_null(strstr(scene.op.error.text, "reset"));
            scene_kill(&scene);
        } else if (tracker_invalid_reason(scene.tracker)) {
            invalid++;
        } else {
            harmless++;
            for (uint64_t extent = 0; extent < SCENE_EXTENTS; extent++)
                assert_true(scene_changed(&scene, A, block_of(extent, 3)));
            assert_true(scene_changed(&scene, A, 7) && scene_changed(&scene, B, 7));
        }
        scene_destroy(&scene);
    }
    assert_true(refused + invalid > 0);
}

/* Random writes over more extents than there are slots: pages are stored ahead of need, in batches. */
static void c18_extents_are_retired_ahead(void **state)
{
    (void)state;
    struct scene scene;
    begin(&scene, 3);
    scene_checkpoint(&scene, A);
    struct tracker_counters before, after;
    tracker_counters(scene.tracker, &before);
    const unsigned writes = 400;
    for (unsigned i = 0; i < writes; i++)
        scene_write(&scene, block_of(world_below(scene.world, SCENE_EXTENTS), world_below(scene.world, 1024)), 5);
    tracker_counters(scene.tracker, &after);
    assert_true(after.activations - before.activations > writes / 8); /* it was more than the log covers */
    assert_true(2 * (after.syncs - before.syncs) <= after.activations - before.activations);
    scene_destroy(&scene);
}

/* Retiring is not what a write waits for, as long as there are free slots. */
static void c18_a_write_does_not_wait_for_pages(void **state)
{
    (void)state;
    struct scene scene;
    begin(&scene, 3);
    scene_checkpoint(&scene, A);
    scene.hold = hold_pages;
    uint64_t extent = 0;
    for (; extent < SCENE_EXTENTS && scene.held_count == 0; extent++) {
        scene_write(&scene, block_of(extent, 1), 22);
        scene_run(&scene, 10 * NS_PER_MS);
    }
    assert_true(extent < SCENE_SLOTS); /* it began before the last slot was taken */
    struct scene_write *write = scene_submit(&scene, block_of(extent, 1), 1, 22);
    assert_true(scene_await(&scene, write, 100 * NS_PER_MS));
    scene_let_go(&scene);
    scene_destroy(&scene);
}

/* What was written last before a checkpoint has changed, though nobody has written it through us. */
static void c19_a_rollback_is_noticed_by_samples(void **state)
{
    (void)state;
    static const bool clean[] = {true, false, false}, power[] = {false, false, true};
    for (unsigned i = 0; i < 3; i++) {
        struct scene scene;
        uint8_t old[SCENE_BLOCK];
        memset(old, 11, sizeof old);
        scene_create(&scene, 1);
        scene.block_device = true; /* its times tell nothing */
        assert_int_equal(scene_start(&scene), 0);
        scene_checkpoint(&scene, A);
        scene_write(&scene, 5, 11);
        scene_write(&scene, 5, 22);
        scene_checkpoint(&scene, B);
        scene_write(&scene, 900, 33);
        scene_flush(&scene);
        if (clean[i])
            scene_close(&scene);
        else if (power[i])
            scene_power_loss(&scene);
        else
            scene_kill(&scene);
        scene_behind(&scene, SCENE_DISK, 5 * SCENE_BLOCK, old, sizeof old);
        assert_int_equal(scene_start(&scene), 0);
        if (power[i]) /* the whole extent was active, so the block counts as changed: it is reported */
            assert_true(tracker_invalid_reason(scene.tracker) || scene_changed(&scene, B, 5));
        else
            assert_state(&scene, B, CHECKPOINT_INVALID);
        scene_destroy(&scene);
    }
}

/* After a close in good order a write by somebody else shows in the file's times. */
static void c19_a_stranger_is_noticed_after_a_close(void **state)
{
    (void)state;
    struct scene scene;
    begin(&scene, 1);
    scene_checkpoint(&scene, A);
    scene_write(&scene, 5, 11);
    scene_close(&scene);
    assert_int_equal(scene_start(&scene), 0);
    assert_int_equal(tracker_recovery(scene.tracker), TRACKER_CLEAN);
    assert_state(&scene, A, CHECKPOINT_PENDING);
    scene_close(&scene);
    scene_behind(&scene, SCENE_DISK, 900 * SCENE_BLOCK, "stranger", 8);
    assert_int_equal(scene_start(&scene), 0);
    assert_state(&scene, A, CHECKPOINT_INVALID);
    scene_power_loss(&scene);
    assert_int_equal(scene_start(&scene), 0);
    assert_state(&scene, A, CHECKPOINT_INVALID); /* it stays so */
    scene_destroy(&scene);
}

/* A daemon is killed; somebody writes to the disk (or nobody does), a while later; the next one starts. */
static void killed(bool quiet, uint64_t pause_ns, int64_t clock_ns, bool stranger, enum checkpoint_state wanted)
{
    struct scene scene;
    begin(&scene, 1);
    scene_checkpoint(&scene, A);
    scene_write(&scene, 5, 11);
    for (unsigned i = 0; i < 40; i++) { /* 5 is no sample any more, and is written after the checkpoint anyway */
        scene_run(&scene, 100 * NS_PER_MS);
        scene_write(&scene, 6 + i, 11);
    }
    if (quiet)
        scene_run(&scene, 3 * WATCH_PERIOD_NS);
    scene_kill(&scene);
    scene_run(&scene, pause_ns);
    world_set_clock(scene.world, clock_ns);
    if (stranger)
        scene_behind(&scene, SCENE_DISK, 900 * SCENE_BLOCK, "stranger", 8);
    for (unsigned deaths = 0; deaths < 2; deaths++) { /* a start that ends before anything is written sees the same */
        assert_int_equal(scene_start(&scene), 0);
        assert_state(&scene, A, wanted);
        assert_true(wanted == CHECKPOINT_INVALID || tracker_recovery(scene.tracker) == TRACKER_ADOPTED);
        scene_kill(&scene);
    }
    scene_destroy(&scene);
}

/* After a kill, by the times of a file that had been quiet; or when the last writes must have landed long before. A
 * clock that was set must not hide it, nor make it up. */
static void c19_a_stranger_is_noticed_after_a_kill(void **state)
{
    (void)state;
    const uint64_t minutes_ns = 120 * NS_PER_S;
    const int64_t hour_ns = (int64_t)(3600 * NS_PER_S);
    killed(true, 0, 0, true, CHECKPOINT_INVALID);
    killed(true, 0, -(int64_t)(6 * NS_PER_S), true, CHECKPOINT_INVALID);
    killed(true, minutes_ns, -hour_ns, true, CHECKPOINT_INVALID);
    killed(true, minutes_ns, hour_ns, true, CHECKPOINT_INVALID);
    killed(true, minutes_ns, 0, false, CHECKPOINT_PENDING);
    killed(true, minutes_ns, -hour_ns, false, CHECKPOINT_PENDING);
    killed(true, minutes_ns, hour_ns, false, CHECKPOINT_PENDING);
    killed(false, minutes_ns, 0, true, CHECKPOINT_INVALID);
    killed(false, minutes_ns, -hour_ns, true, CHECKPOINT_INVALID);
    killed(false, minutes_ns, hour_ns, true, CHECKPOINT_INVALID);
    killed(false, minutes_ns, 0, false, CHECKPOINT_PENDING);
    killed(false, minutes_ns, hour_ns, false, CHECKPOINT_PENDING);
    killed(false, 0, 0, true, CHECKPOINT_PENDING); /* its own last writes could have been that late */
}

/* Writes that land after the kill are nobody else's; nor is one that the daemon had on its way for long. */
static void c19_late_writes_of_the_dead_are_no_strangers(void **state)
{
    (void)state;
    for (unsigned hangs = 0; hangs < 2; hangs++) {
        struct scene scene;
        begin(&scene, 1);
        scene_checkpoint(&scene, A);
        scene_write(&scene, 5, 11);
        scene_run(&scene, NS_PER_S);
        scene.hold = hold_disk_write;
        scene_submit(&scene, 6, 1, 22);
        scene_run(&scene, hangs ? 300 * NS_PER_S : NS_PER_MS);
        scene_kill(&scene);
        scene_run(&scene, 20 * NS_PER_S);
        scene.hold = NULL;
        scene_let_go(&scene);
        assert_int_equal(scene_start(&scene), 0);
        assert_int_equal(tracker_recovery(scene.tracker), TRACKER_ADOPTED);
        assert_state(&scene, A, CHECKPOINT_PENDING);
        assert_true(scene_changed(&scene, A, 6));
        assert_int_equal(scene_byte(&scene, 6), 22);
        scene_destroy(&scene);
    }
}

/* An untracked write may land only when it is durable somewhere that the checkpoints are void. */
static void untracked_landing(struct scene *scene, const struct world_io *io, bool sidecar)
{
    if (!sidecar && io->kind == WORLD_WRITE && io->range.start == block_of(9, 0) * SCENE_BLOCK)
        assert_true(scene->condemned > 0);
}

static void c20_a_sidecar_that_fails_or_hangs(void **state)
{
    (void)state;
    for (unsigned hangs = 0; hangs < 2; hangs++) {
        struct scene scene;
        begin(&scene, 1);
        scene_checkpoint(&scene, A);
        scene_write(&scene, 5, 11);
        scene.fails = hangs ? NULL : fail_sidecar;
        scene.hold = hangs ? hold_sidecar : NULL;
        scene.landed = untracked_landing;
        struct scene_write *write = scene_submit(&scene, block_of(9, 0), 1, 44);
        assert_true(scene_await(&scene, write, 20 * NS_PER_S));
        assert_int_equal(write->status, 0);
        assert_true(write->took_ns < 12 * NS_PER_S);
        assert_int_equal(scene.condemned, 1);
        scene.fails = NULL;
        scene_let_go(&scene);
        scene_run(&scene, 20 * NS_PER_S);
        assert_int_equal(scene.invalidated, 1);
        assert_state(&scene, A, CHECKPOINT_INVALID);
        scene_write(&scene, block_of(10, 0), 44);
        assert_int_equal(scene_prepare(&scene, B), -EIO);
        assert_non_null(strstr(scene.op.error.text, "'fleece checkpoint reset vda' begins anew"));
        assert_int_equal(scene_remove(&scene, A), 0); /* nobody will read that sidecar again */
        assert_false(scene_has(&scene, A, NULL));
        assert_int_equal(scene_remove(&scene, A), -ENOENT);
        scene_kill(&scene);
        scene_destroy(&scene);
    }
}

/* Neither the sidecar nor anything else takes it: a removed checkpoint could be back, so it is not said to be removed. */
static void c20_nothing_takes_it(void **state)
{
    (void)state;
    struct scene scene;
    begin(&scene, 1);
    scene_checkpoint(&scene, A);
    scene.fails = fail_sidecar;
    scene.condemn_status = -EROFS;
    scene_write(&scene, block_of(9, 0), 44);
    scene_run(&scene, 20 * NS_PER_S);
    assert_state(&scene, A, CHECKPOINT_INVALID);
    assert_int_equal(scene_remove(&scene, A), -EIO);
    assert_non_null(strstr(scene.op.error.text, "'fleece checkpoint reset vda' removes all checkpoints of the disk"));
    assert_state(&scene, A, CHECKPOINT_INVALID);
    scene_kill(&scene);
    scene_destroy(&scene);
}

/* The log cannot be written, the superblock can: it says so before the write goes untracked, whenever the power goes. */
static void void_before_landing(struct scene *scene, const struct world_io *io, bool sidecar)
{
    if (!sidecar && io->kind == WORLD_WRITE && io->range.start == block_of(9, 0) * SCENE_BLOCK)
        scene->drained = true; /* now */
}

static bool has_landed(void *argument)
{
    return ((struct scene *)argument)->drained;
}

static void c20_the_superblock_says_it_before_the_write(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        struct scene scene;
        begin(&scene, seed);
        scene_checkpoint(&scene, A);
        scene.fails = fail_log;
        scene.landed = void_before_landing;
        scene.drained = false;
        scene_submit(&scene, block_of(9, 0), 1, 44);
        assert_true(world_run_until(scene.world, has_landed, &scene, 20 * NS_PER_S));
        assert_int_equal(scene.condemned, 0);
        scene_power_loss(&scene);
        assert_int_equal(scene_start(&scene), 0);
        assert_state(&scene, A, CHECKPOINT_INVALID);
        scene_destroy(&scene);
    }
}

/* All areas are taken but one, whose memory is being given back: the new checkpoint waits for it. */
static void a_checkpoint_waits_for_an_area(void **state)
{
    (void)state;
    struct scene scene;
    begin(&scene, 1);
    for (unsigned name = 1; name <= LIMIT_CHECKPOINTS; name++) {
        scene_write(&scene, block_of(name % 8, name), 11);
        scene_checkpoint(&scene, name);
    }
    assert_int_equal(scene_prepare(&scene, LIMIT_CHECKPOINTS + 1), -ENOSPC);
    for (unsigned name = 1; name <= 3; name++) {
        assert_int_equal(scene_remove(&scene, name), 0);
        scene_checkpoint(&scene, LIMIT_CHECKPOINTS + name);
    }
    scene_write(&scene, 5, 12);
    scene_kill(&scene);
    assert_int_equal(scene_start(&scene), 0);
    assert_true(scene_changed(&scene, LIMIT_CHECKPOINTS + 3, 5));
    scene_destroy(&scene);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(c1_power_loss_after_the_cut),
        cmocka_unit_test(c1_a_failed_flush_makes_all_invalid),
        cmocka_unit_test(c3_bits_go_to_both_until_the_cut_is_durable),
        cmocka_unit_test(c4_a_parked_write_belongs_to_the_time_after_the_cut),
        cmocka_unit_test(c10_adoption_comes_after_what_the_dead_had_under_way),
        cmocka_unit_test(c11_memory_of_another_open_is_not_adopted),
        cmocka_unit_test(c15_retiring_stores_the_pages_of_all_spans),
        cmocka_unit_test(c16_a_write_to_a_retiring_extent),
        cmocka_unit_test(c16_adopted_bits_are_not_durable),
        cmocka_unit_test(c17_a_torn_log_block_is_forgiven),
        cmocka_unit_test(c17_damage_is_never_forgiven),
        cmocka_unit_test(c18_extents_are_retired_ahead),
        cmocka_unit_test(c18_a_write_does_not_wait_for_pages),
        cmocka_unit_test(c19_a_rollback_is_noticed_by_samples),
        cmocka_unit_test(c19_a_stranger_is_noticed_after_a_close),
        cmocka_unit_test(c19_a_stranger_is_noticed_after_a_kill),
        cmocka_unit_test(c19_late_writes_of_the_dead_are_no_strangers),
        cmocka_unit_test(c20_a_sidecar_that_fails_or_hangs),
        cmocka_unit_test(c20_nothing_takes_it),
        cmocka_unit_test(c20_the_superblock_says_it_before_the_write),
        cmocka_unit_test(a_checkpoint_waits_for_an_area),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
