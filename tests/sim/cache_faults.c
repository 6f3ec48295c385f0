/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Every operation of the cache device fails once, or never comes back: number 1, then number 2, and so on, until the story
 * ends before the fault is reached. Whatever fails, no write of the guest fails or waits beyond its time, and each snapshot
 * is right or says why it is broken.
 *
 * The story drives spills into new segments and into gaps, reads from the file, releases, punches, and snapshots that go.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/limits.h"
#include "stage.h"

enum { BLOCKS = STAGE_DISK_BYTES / STAGE_BLOCK, READS = 64 };
static const struct stage_options options = {
    .disk_count = 1, .segments = 2, .cache_segments = 6, .cbw_timeout_ns = 5 * NS_PER_MS};

struct story {
    struct stage *stage;
    uint8_t expected[STAGE_SNAPSHOTS][BLOCKS]; /* of each snapshot */
    uint8_t disk[BLOCKS];
    bool released[STAGE_SNAPSHOTS][BLOCKS];
    struct stage_request reads[4][READS];
    unsigned rounds, broken, stuck_reads;
};

static struct stage_snapshot *take(struct story *story, const char *name)
{
    struct stage_snapshot *snapshot = stage_snapshot(story->stage, name);
    memcpy(story->expected[story->stage->snapshot_count - 1], story->disk, BLOCKS);
    return snapshot;
}

static void overwrite(struct story *story, uint64_t first, uint64_t count, uint8_t value)
{
    stage_overwrite_all(story->stage, 0, first, count, value);
    memset(story->disk + first, value, count);
}

static void release(struct story *story, struct stage_snapshot *snapshot, uint64_t first, uint64_t count)
{
    int status = stage_release(story->stage, snapshot, 0, first, count);
    assert_true(status == 0 || snapshot->broken);
    for (uint64_t i = first; status == 0 && i < first + count; i++)
        story->released[snapshot - story->stage->snapshots][i] = true;
}

/* Reads all of it, four blocks at a time, and lets what is stuck be stuck. */
static void read_back(struct story *story, struct stage_snapshot *snapshot)
{
    const unsigned index = (unsigned)(snapshot - story->stage->snapshots);
    struct stage_request *reads = story->reads[story->rounds++];
    uint8_t block[STAGE_BLOCK];
    for (unsigned i = 0; i < READS; i++)
        stage_read(story->stage, &reads[i], snapshot->views[0], 4 * i, 4);
    stage_settle(story->stage);
    for (unsigned i = 0; i < READS; i++) {
        bool gone = false;
        story->stuck_reads += !reads[i].done;
        for (unsigned k = 0; k < 4; k++)
            gone = gone || story->released[index][4 * i + k];
        if (!reads[i].done)
            continue;
        if (reads[i].status < 0) {
            assert_true((gone && reads[i].status == -ENODATA) || (snapshot->broken && reads[i].status == -EIO));
            continue;
        }
        assert_false(gone);
        for (unsigned k = 0; k < 4; k++) {
            memset(block, story->expected[index][4 * i + k], sizeof(block));
            assert_memory_equal(reads[i].buffer + k * STAGE_BLOCK, block, sizeof(block));
        }
    }
}

/* An export ends when its requests have. */
static void end(struct story *story, struct stage_snapshot *snapshot)
{
    story->stage->keep_exports = story->stuck_reads > 0;
    stage_delete(story->stage, snapshot);
    stage_settle(story->stage);
}

static void tell(struct story *story)
{
    struct stage_snapshot *first = take(story, "s1");
    overwrite(story, 0, 200, 201);
    read_back(story, first);
    release(story, first, 0, 40);
    for (unsigned i = 41; i < 120; i += 2) /* gaps */
        release(story, first, i, 1);
    struct stage_snapshot *second = take(story, "s2");
    overwrite(story, 0, 250, 202);
    read_back(story, first);
    read_back(story, second);
    end(story, first);
    overwrite(story, 100, 100, 203);
    read_back(story, second);
    overwrite(story, 0, 60, 204);
    for (unsigned i = 0; i < story->stage->snapshot_count; i++) {
        const struct stage_snapshot *snapshot = &story->stage->snapshots[i];
        story->broken += snapshot->broken;
        assert_int_equal(snapshot->broken, snapshot->reason[0] != 0);
    }
    end(story, second);
}

/* Tells the story with a fault at operation `number`; whether it was reached. */
static bool reached(uint64_t number, int fail_with, unsigned *broken, unsigned *stuck_reads)
{
    void *state = (void *)(uintptr_t)&options;
    struct story *story = calloc(1, sizeof(*story));
    assert_non_null(story);
    assert_int_equal(stage_set_up(&state), 0);
    story->stage = state;
    story->stage->cache_fault_at = number;
    story->stage->cache_fail_with = fail_with;
    for (unsigned i = 0; i < BLOCKS; i++)
        story->disk[i] = stage_first_value(0, i);
    tell(story);
    bool was_reached = story->stage->cache_operations >= number;
    story->stage->cache_fault_at = 0;
    stage_let_go(story->stage);
    stage_settle(story->stage);
    stage_withdraw(story->stage);
    stage_settle(story->stage);
    for (unsigned i = 0; i < BLOCKS; i++)
        assert_int_equal(world_file_bytes(story->stage->files[0])[i * STAGE_BLOCK], story->disk[i]);
    *broken += story->broken;
    *stuck_reads += story->stuck_reads;
    stage_tear_down(&state);
    free(story);
    return was_reached;
}

static unsigned broken_by(int fail_with, unsigned *stuck_reads)
{
    unsigned broken = 0;
    uint64_t number = 1;
    while (reached(number, fail_with, &broken, stuck_reads))
        number++;
    assert_true(number > 20); /* it does use the device */
    return broken;
}

static void every_operation_fails(void **state)
{
    (void)state;
    unsigned stuck_reads = 0;
    assert_true(broken_by(-EIO, &stuck_reads) > 0);
    assert_int_equal(stuck_reads, 0);
}

static void every_operation_finds_the_device_full(void **state)
{
    (void)state;
    unsigned stuck_reads = 0;
    broken_by(-ENOSPC, &stuck_reads);
    assert_int_equal(stuck_reads, 0);
}

static void every_operation_never_comes_back(void **state)
{
    (void)state;
    unsigned stuck_reads = 0;
    assert_true(broken_by(0, &stuck_reads) > 0);
    assert_true(stuck_reads > 0);
}

/* Without a fault nothing breaks: so the faults above are what breaks snapshots. */
static void the_story_alone_breaks_nothing(void **state)
{
    (void)state;
    unsigned broken = 0, stuck_reads = 0;
    assert_false(reached(1000000, -EIO, &broken, &stuck_reads));
    assert_int_equal(broken, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_story_alone_breaks_nothing),
        cmocka_unit_test(every_operation_fails),
        cmocka_unit_test(every_operation_finds_the_device_full),
        cmocka_unit_test(every_operation_never_comes_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
