/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Snapshots that outlive kill -9: C2 half a VM, C5 several points, C10 the fence, C12 release before record, C13 tmpfs, each
 * with a script that kills the daemon in exactly the moment that it is about; and a story in which it is killed in every
 * single moment, and again while it starts.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/limits.h"
#include "stage.h"

enum { BLOCKS = STAGE_DISK_BYTES / STAGE_BLOCK };

static void restart(struct stage *stage)
{
    stage_kill(stage);
    stage_restart(stage);
}

static void delete (struct stage *stage, struct stage_snapshot *snapshot)
{
    stage_delete(stage, snapshot);
    stage_settle(stage);
    assert_true(snapshot->deleted);
}

/* Two snapshots on two disks, in RAM: everything is there again, under the same names, and goes on. */
static void snapshots_survive(void **state)
{
    struct stage *stage = *state;
    struct stage_snapshot *older = stage_snapshot(stage, "s1");
    stage_overwrite_all(stage, 0, 0, 20, 200);
    struct stage_snapshot *newer = stage_snapshot(stage, "s2");
    stage_overwrite_all(stage, 0, 10, 20, 0); /* that was no zeroes, */
    stage_overwrite(stage, 1, 3, 202);
    restart(stage);
    for (unsigned round = 0; round < 2; round++) {
        for (uint64_t block = 0; block < 40; block++) {
            assert_int_equal(stage_value(stage, older, 0, block), stage_first_value(0, block));
            assert_int_equal(stage_value(stage, newer, 0, block), block < 20 ? 200 : stage_first_value(0, block));
            assert_int_equal(stage_value(stage, newer, 1, block), stage_first_value(1, block));
        }
        stage_overwrite_all(stage, 0, 0, 40, 203);
        stage_overwrite_all(stage, 1, 0, 40, 204);
        if (round == 0)
            restart(stage);
    }
    struct stage_snapshot *third = stage_snapshot(stage, "s3"); /* its epoch is newer than all */
    stage_overwrite_all(stage, 0, 0, 40, 205);
    assert_int_equal(stage_value(stage, third, 0, 3), 203);
    assert_int_equal(stage_value(stage, newer, 0, 3), 200);
    delete (stage, older);
    delete (stage, third);
    restart(stage);
    assert_int_equal(stage_value(stage, newer, 0, 25), stage_first_value(0, 25));
    delete (stage, newer);
    restart(stage);
    stage_snapshot(stage, "s1b");
}

/* A snapshot that was leased waits for its client, as long after each death, and then goes. */
static void a_leased_snapshot_waits_for_its_grace_time(void **state)
{
    struct stage *stage = *state;
    struct stage_snapshot *kept = stage_snapshot(stage, "kept");
    stage->leases = true;
    struct stage_snapshot *leased = stage_snapshot(stage, "leased");
    for (unsigned round = 0; round < 2; round++) {
        restart(stage);
        world_run_for(stage->world, LEASE_GRACE_DEFAULT_NS - NS_PER_S);
        assert_false(leased->deleted);
        assert_int_equal(stage_value(stage, leased, 0, 3), stage_first_value(0, 3));
    }
    world_run_for(stage->world, 2 * NS_PER_S);
    assert_true(leased->deleted);
    assert_false(kept->deleted);
    restart(stage);
    assert_null(leased->views[0]);
    assert_int_equal(stage_value(stage, kept, 0, 3), stage_first_value(0, 3));
}

/* Blocks of zeroes, and what has gone to the cache file, and what is on the way there, are there again. */
static void both_tiers_survive(void **state)
{
    struct stage *stage = *state;
    stage_overwrite_all(stage, 0, 0, 30, 0);
    struct stage_snapshot *snapshot = stage_snapshot(stage, "s");
    stage_overwrite_all(stage, 0, 0, 190, 200);
    assert_true(stage_status_of_vm(stage).disks[0].file_blocks > 0);
    assert_true(stage_status_of_vm(stage).disks[0].zero_blocks > 0);
    stage_hold_cache(stage, WORLD_WRITE, 0);
    stage_overwrite_all(stage, 0, 190, 50, 201);
    assert_true(stage->held_count > 0);
    for (unsigned round = 0; round < 3; round++) {
        restart(stage);
        assert_int_equal(stage->caches_open, 1);
        for (uint64_t block = 0; block < BLOCKS; block++)
            assert_int_equal(stage_value(stage, snapshot, 0, block), block < 30 ? 0 : stage_first_value(0, block));
        stage_overwrite_all(stage, 0, round * 10, 256 - round * 10, (uint8_t)(202 + round));
    }
    assert_int_equal(stage_release(stage, snapshot, 0, 0, BLOCKS), 0);
    stage_settle(stage);
    assert_int_equal(stage_status_of_vm(stage).disks[0].cache_blocks_now, 0);
    assert_int_equal(stage_status_of_vm(stage).file_bytes_now, 0); /* punched */
    restart(stage);
    assert_true(world_shm_bytes(stage->world) < 64 * STAGE_BLOCK); /* not even a segment that was kept ready is left */
}

/* One disk's cache file has been as large as it may, then the other's: what is left of the first is no reason to bury both,
 * and is given back before anything more is taken. */
static void space_that_was_freed_counts_once(void **state)
{
    struct stage *stage = *state;
    struct stage_snapshot *snapshot = stage_snapshot(stage, "s");
    stage_overwrite_all(stage, 0, 0, 240, 200);
    assert_int_equal(stage_release(stage, snapshot, 0, 0, BLOCKS), 0);
    stage_settle(stage);
    stage_overwrite_all(stage, 1, 0, 240, 201);
    restart(stage);
    assert_true(stage_status_of_vm(stage).file_bytes_now <= stage->cache_bytes);
    for (uint64_t block = 0; block < BLOCKS; block++)
        assert_int_equal(stage_value(stage, snapshot, 1, block), stage_first_value(1, block));
    assert_int_equal(stage_value(stage, snapshot, 0, 3), -ENODATA);
}

/* ---- C5 ---- */

/* One copy serves two points, over a restart as well; each loses only what its own consumer has released. */
static void c5_points_share_copies_after_a_restart(void **state)
{
    struct stage *stage = *state;
    struct stage_snapshot *older = stage_snapshot(stage, "s1"), *newer = stage_snapshot(stage, "s2");
    stage_overwrite_all(stage, 0, 4, 4, 200);
    assert_int_equal(stage_release(stage, newer, 0, 4, 1), 0);
    assert_int_equal(stage_release(stage, older, 0, 5, 1), 0);
    restart(stage);
    assert_int_equal(stage_value(stage, newer, 0, 4), -ENODATA);
    assert_int_equal(stage_value(stage, older, 0, 4), stage_first_value(0, 4));
    assert_int_equal(stage_value(stage, newer, 0, 5), stage_first_value(0, 5));
    assert_int_equal(stage_value(stage, older, 0, 5), -ENODATA);
    assert_int_equal(stage_release(stage, newer, 0, 6, 1), 0);
    delete (stage, newer);
    restart(stage);
    assert_int_equal(stage_value(stage, older, 0, 6), stage_first_value(0, 6));
    assert_int_equal(stage_status_of_vm(stage).disks[0].ram_blocks, 3);
}

/* ---- C10 ---- */

/* The copy's read is in flight when the daemon dies: it lands in its slot seconds later, and the next daemon, which uses
 * all slots again, waits for that. */
static void c10_a_read_of_the_dead_lands_in_no_slot_of_the_next(void **state)
{
    struct stage *stage = *state;
    struct stage_request writes[8] = {{.done = false}};
    struct stage_snapshot *snapshot = stage_snapshot(stage, "s");
    stage_overwrite_all(stage, 0, 100, 20, 200);
    stage_hold(stage, WORLD_READ, 0);
    for (unsigned i = 0; i < 8; i++)
        stage_write(stage, &writes[i], 0, 4 * i, 4, 201);
    stage_settle(stage);
    assert_true(stage->held_count > 0);
    restart(stage);
    stage_overwrite_all(stage, 0, 40, 60, 202);
    world_run_for(stage->world, 5 * NS_PER_S);
    for (uint64_t block = 0; block < 130; block++)
        assert_int_equal(stage_value(stage, snapshot, 0, block), stage_first_value(0, block));
}

/* ---- C12 ---- */

/* What was released, and overwritten without being preserved, is not there again. */
static void c12_a_release_is_stored_before_the_overwrite(void **state)
{
    struct stage *stage = *state;
    struct stage_snapshot *snapshot = stage_snapshot(stage, "s");
    stage_overwrite(stage, 0, 9, 199);
    assert_int_equal(stage_release(stage, snapshot, 0, 3, 10), 0);
    stage_overwrite_all(stage, 0, 0, 20, 200);
    restart(stage);
    for (uint64_t block = 0; block < 20; block++)
        assert_int_equal(stage_value(stage, snapshot, 0, block),
                         block >= 3 && block < 13 ? -ENODATA : stage_first_value(0, block));
    assert_int_equal(stage_release(stage, snapshot, 0, 0, BLOCKS), 0); /* the whole set at once */
    stage_overwrite_all(stage, 0, 0, BLOCKS, 201);
    restart(stage);
    assert_int_equal(stage_value(stage, snapshot, 0, 200), -ENODATA);
}

/* A snapshot that broke is broken, with its reason; the other one is not. */
static void c12_a_break_is_stored_before_the_overwrite(void **state)
{
    struct stage *stage = *state;
    struct stage_snapshot *older = stage_snapshot(stage, "s1");
    stage_overwrite(stage, 0, 7, 199);
    struct stage_snapshot *newer = stage_snapshot(stage, "s2");
    stage_lose(stage, 0, 7);
    assert_true(newer->broken && !older->broken);
    restart(stage);
    assert_int_equal(stage_value(stage, newer, 0, 7), -EIO);
    assert_int_equal(stage_value(stage, newer, 1, 7), -EIO);
    assert_int_equal(stage_value(stage, older, 0, 7), stage_first_value(0, 7));
    delete (stage, newer);
    delete (stage, older);
}

/* The break is known on the disk that lost the block, and the control thread has not heard of it. */
static void c12_a_break_counts_before_anybody_hears_of_it(void **state)
{
    struct stage *stage = *state;
    struct stage_request write = {.done = false};
    struct stage_snapshot *snapshot = stage_snapshot(stage, "s");
    stage->slow_from = stage->io[0];
    stage->slow_to = stage->control;
    stage->fail_with = -EIO;
    stage_hold(stage, WORLD_READ, 0);
    stage_write(stage, &write, 0, 3, 1, 200);
    STAGE_STEP_UNTIL(stage, write.done);
    assert_int_equal(write.status, 0); /* the guest does not pay */
    assert_false(snapshot->broken);
    stage->slow_from = NULL;
    stage_hold_no_more(stage);
    restart(stage);
    assert_int_equal(stage_value(stage, snapshot, 0, 3), -EIO);
    assert_int_equal(stage_value(stage, snapshot, 1, 3), -EIO);
}

/* The daemon dies while a snapshot that had released something ends: the next one to have its number needs everything. */
static void c12_nothing_of_an_ended_snapshot_is_believed(void **state)
{
    for (unsigned moment = 1; moment <= 16; moment++) {
        struct stage *stage = *state;
        const struct stage_options options = {.disk_count = 1, .restartable = true};
        void *another = (void *)(uintptr_t)&options;
        if (moment > 1) {
            assert_int_equal(stage_set_up(&another), 0);
            stage = another;
        }
        struct stage_snapshot *first = stage_snapshot(stage, "s1");
        stage_snapshot(stage, "s2");
        assert_int_equal(stage_release(stage, first, 0, 3, 30), 0);
        stage->moments = 0;
        stage->die_at = moment;
        stage_delete(stage, first);
        stage_settle(stage);
        restart(stage);
        struct stage_snapshot *next = stage_snapshot(stage, "s3");
        stage_overwrite_all(stage, 0, 0, 40, 200);
        restart(stage);
        for (uint64_t block = 0; block < 40; block++)
            assert_int_equal(stage_value(stage, next, 0, block), stage_first_value(0, block));
        if (moment > 1)
            stage_tear_down(&another);
    }
}

/* ---- C13 ---- */

/* tmpfs has room for less and less: whatever is refused is refused with a sentence, and nobody touches what is not there. */
static void c13_a_full_tmpfs_is_no_fault(void **state)
{
    struct stage *stage = *state;
    char name[16];
    for (unsigned pages = 0; pages < 120; pages += 6) {
        world_limit_shm(stage->world, 1 + pages * 4096);
        snprintf(name, sizeof(name), "s");
        stage->snapshot_count = 0;
        memset(stage->snapshots, 0, sizeof(stage->snapshots));
        struct stage_snapshot *snapshot = stage_create(stage, name, 0);
        stage_settle(stage);
        assert_true(snapshot->answered);
        if (!snapshot->created)
            continue;
        int status = stage_release(stage, snapshot, 0, 30, 4);
        assert_true(status == 0 || status == -ENOSPC);
        for (uint64_t block = 0; block < 20; block++) {
            struct stage_request write = {.done = false};
            stage_write(stage, &write, 0, block, 1, (uint8_t)(200 + block));
            stage_settle(stage);
            world_run_for(stage->world, 40 * NS_PER_S); /* time-outs */
            assert_true(stage_succeeded(&write));
        }
        restart(stage);
        if (snapshot->views[0] != NULL) /* else it had no room for its record, and ended with the daemon */
            delete (stage, snapshot);
        for (uint64_t block = 0; block < 20; block++)
            stage_overwrite(stage, 0, block, stage_first_value(0, block));
    }
}

/* ---- what does not fit ---- */

/* Less RAM is allowed than the snapshots hold: nothing of them is left. */
static void a_smaller_budget_buries_them(void **state)
{
    struct stage *stage = *state;
    struct stage_snapshot *snapshot = stage_snapshot(stage, "s");
    stage_overwrite_all(stage, 0, 0, 200, 200);
    stage->options.ram_bytes /= 32;
    restart(stage);
    assert_null(snapshot->views[0]);
    assert_null(stage->disks[0]->filter);
    assert_int_equal(stage_value(stage, stage_snapshot(stage, "t"), 0, 0), 200);
}

/* Blocks of another size are to be preserved. */
static void another_block_size_buries_them(void **state)
{
    struct stage *stage = *state;
    struct stage_snapshot *snapshot = stage_snapshot(stage, "s");
    stage_overwrite_all(stage, 0, 0, 20, 200);
    stage->options.block_bytes = 2 * STAGE_BLOCK;
    restart(stage);
    assert_null(snapshot->views[0]);
    assert_null(stage->disks[0]->filter);
}

/* Somebody else has written to a disk while no daemon ran: what lies there is not what it was at the cut (R1, R4). */
static void c19_a_disk_that_somebody_wrote_buries_them(void **state)
{
    struct stage *stage = *state;
    for (unsigned quiet = 0; quiet < 2; quiet++) {
        struct stage_snapshot *snapshot = stage_snapshot(stage, quiet ? "s2" : "s");
        stage_overwrite_all(stage, 0, 0, 20, (uint8_t)(200 + quiet));
        if (quiet)
            world_run_for(stage->world, 3 * WATCH_PERIOD_NS);
        restart(stage); /* nobody was here */
        assert_int_equal(stage_value(stage, snapshot, 1, 5), quiet ? 7 : stage_first_value(1, 5));
        if (quiet)
            world_run_for(stage->world, 3 * WATCH_PERIOD_NS);
        stage_kill(stage);
        world_run_for(stage->world, quiet ? NS_PER_S : WATCH_LANDING_NS + NS_PER_S);
        stage_write_behind(stage, 1, 5, 7);
        stage_restart(stage);
        assert_null(snapshot->views[0]);
        assert_null(snapshot->views[1]);
        assert_null(stage->disks[0]->filter);
        assert_int_equal(world_named_memory(stage->world), 0);
    }
}

/* The machine was started anew: its memory is gone, so are they, and the cache file of then is not taken for anything. */
static void snapshots_end_with_an_orderly_end(void **state)
{
    struct stage *stage = *state;
    stage_snapshot(stage, "s");
    stage_overwrite_all(stage, 0, 0, 20, 200);
    stage_destroy_vm(stage);
    stage_settle(stage);
    assert_true(stage->gone);
    assert_int_equal(world_named_memory(stage->world), 0);
}

/* ---- every moment ---- */

struct story {
    struct stage *stage;
    uint8_t disk[BLOCKS]; /* what the guest has written */
    struct {
        struct stage_snapshot *snapshot;
        bool asked, gone_asked;
        uint8_t content[BLOCKS];
        bool released[BLOCKS];
    } snapshots[3];
};

static void story_write(struct story *story, uint64_t first, uint64_t count, uint8_t value)
{
    struct stage_request write = {.done = false};
    for (uint64_t at = first; at < first + count && !story->stage->dead; at += 4) {
        stage_write(story->stage, &write, 0, at, 4, value);
        stage_settle(story->stage);
        assert_true(story->stage->dead || stage_succeeded(&write));
        if (write.done)
            memset(story->disk + at, value, 4);
        else /* it may have happened, or not: so may the snapshots that are not there yet see it */
            for (unsigned i = 0; i < 4; i++)
                story->disk[at + i] = 0;
    }
}

static void story_create(struct story *story, unsigned i)
{
    char name[16];
    snprintf(name, sizeof(name), "s%u", i);
    if (story->stage->dead)
        return;
    story->snapshots[i].asked = true;
    memcpy(story->snapshots[i].content, story->disk, BLOCKS);
    story->snapshots[i].snapshot = stage_create(story->stage, name, 0);
    stage_settle(story->stage);
}

static void story_release(struct story *story, unsigned i, uint64_t first, uint64_t count)
{
    if (story->stage->dead)
        return;
    memset(story->snapshots[i].released + first, true, count);
    struct stage_request release = {.node = story->snapshots[i].snapshot->views[0]};
    stage_release_soon(story->stage, &release, first, count);
    stage_settle(story->stage);
}

static void story_delete(struct story *story, unsigned i)
{
    if (story->stage->dead)
        return;
    story->snapshots[i].gone_asked = true;
    stage_delete(story->stage, story->snapshots[i].snapshot);
    stage_settle(story->stage);
}

static void story_tell(struct story *story)
{
    story_write(story, 0, 8, 180);
    story_create(story, 0);
    story_write(story, 4, 140, 190);
    story_create(story, 1);
    story_release(story, 0, 2, 30);
    story_write(story, 0, 60, 200);
    story_create(story, 2);
    story_write(story, 40, 120, 210);
    story_delete(story, 0);
    story_write(story, 150, 40, 220);
    story_release(story, 1, 0, BLOCKS);
    story_write(story, 0, 40, 230);
    story_delete(story, 2);
}

static void story_check(struct story *story)
{
    struct stage *stage = story->stage;
    struct stage_request read = {.done = false};
    for (unsigned i = 0; i < 3; i++) {
        const struct stage_snapshot *snapshot = story->snapshots[i].snapshot;
        if (!snapshot || snapshot->deleted || snapshot->views[0] == NULL) {
            assert_false(snapshot && snapshot->created && !story->snapshots[i].gone_asked);
            continue;
        }
        assert_false(snapshot->broken);
        for (uint64_t block = 0; block < BLOCKS; block++) {
            stage_read(stage, &read, snapshot->views[0], block, 1);
            STAGE_STEP_UNTIL(stage, read.done);
            if (read.status == -ENODATA)
                assert_true(story->snapshots[i].released[block]);
            else if (story->snapshots[i].content[block] != 0)
                assert_int_equal(read.buffer[STAGE_BLOCK - 1], story->snapshots[i].content[block]);
        }
    }
}

/* The daemon dies in moment `die_at` of the story, and the next one in moment `again` of its start. False: it did not. */
static bool story_of_a_death(uint64_t die_at, uint64_t again)
{
    const struct stage_options options = {.disk_count = 1, .restartable = true, .segments = 2, .cache_segments = 6};
    void *state = (void *)(uintptr_t)&options;
    assert_int_equal(stage_set_up(&state), 0);
    struct story story = {.stage = state};
    for (uint64_t block = 0; block < BLOCKS; block++)
        story.disk[block] = stage_first_value(0, block);
    story.stage->die_at = die_at;
    story_tell(&story);
    const bool died = story.stage->dead;
    for (unsigned deaths = 0; story.stage->dead; deaths++) {
        stage_kill(story.stage);
        story.stage->moments = 0;
        story.stage->die_at = deaths == 0 ? again : 0;
        stage_restart(story.stage);
    }
    story.stage->die_at = 0;
    story_check(&story);
    story_write(&story, 0, BLOCKS, 240);
    story_check(&story);
    stage_destroy_vm(story.stage);
    stage_settle(story.stage);
    assert_int_equal(world_named_memory(story.stage->world), 0);
    stage_tear_down(&state);
    return died;
}

static void killed_in_every_moment(void **state)
{
    (void)state;
    uint64_t moment = 1, step = 1;
    for (; story_of_a_death(moment, 1 + moment % 71); moment += step)
        step = 1 + moment % 5; /* all remainders come up, and it takes a fifth of the time */
    assert_true(moment > 500);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        STAGE_TEST(snapshots_survive, .disk_count = 2, .restartable = true),
        STAGE_TEST(a_leased_snapshot_waits_for_its_grace_time, .disk_count = 1, .restartable = true),
        STAGE_TEST(both_tiers_survive, .disk_count = 1, .restartable = true, .segments = 2, .cache_segments = 8),
        STAGE_TEST(space_that_was_freed_counts_once, .disk_count = 2, .restartable = true, .segments = 2,
                   .cache_segments = 4),
        STAGE_TEST(c5_points_share_copies_after_a_restart, .disk_count = 2, .restartable = true),
        STAGE_TEST(c10_a_read_of_the_dead_lands_in_no_slot_of_the_next, .disk_count = 1, .restartable = true),
        STAGE_TEST(c12_a_release_is_stored_before_the_overwrite, .disk_count = 2, .restartable = true),
        STAGE_TEST(c12_a_break_is_stored_before_the_overwrite, .disk_count = 2, .restartable = true),
        STAGE_TEST(c12_a_break_counts_before_anybody_hears_of_it, .disk_count = 2, .restartable = true),
        STAGE_TEST(c12_nothing_of_an_ended_snapshot_is_believed, .disk_count = 1, .restartable = true),
        STAGE_TEST(c13_a_full_tmpfs_is_no_fault, .disk_count = 1, .restartable = true, .tmpfs_bytes = 4096),
        STAGE_TEST(a_smaller_budget_buries_them, .disk_count = 2, .restartable = true),
        STAGE_TEST(another_block_size_buries_them, .disk_count = 1, .restartable = true),
        STAGE_TEST(c19_a_disk_that_somebody_wrote_buries_them, .disk_count = 2, .restartable = true),
        STAGE_TEST(snapshots_end_with_an_orderly_end, .disk_count = 2, .restartable = true),
        cmocka_unit_test(killed_in_every_moment),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
