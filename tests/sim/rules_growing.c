/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * C22 in the VM: a hold that does not drain changes nothing, a disk never becomes smaller, and the last block of a disk of
 * odd size is what it was to those who knew it so, and all of a block to those who come later.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/limits.h"
#include "faults.h"
#include "stage.h"
#include "vm/bitmaps.h"

enum { ODD = 1000, OLD_BYTES = STAGE_DISK_BYTES + ODD, NEW_BYTES = 2 * STAGE_DISK_BYTES };

struct growth {
    struct stage *stage;
    uint64_t size_bytes, got_bytes;
    bool answered;
    int code; /* 0: it has grown */
    char text[LIMIT_ERROR_BYTES];
};

static void answered(void *argument, uint64_t size_bytes, const struct error *err)
{
    struct growth *growth = argument;
    assert_false(growth->answered);
    growth->answered = true;
    growth->got_bytes = size_bytes;
    growth->code = err ? err->code : 0;
    snprintf(growth->text, sizeof growth->text, "%s", err ? err->text : "");
}

static void ask(void *argument)
{
    struct growth *growth = argument;
    vm_disk_grow(growth->stage->vm, "vda", growth->size_bytes, answered, growth);
}

static struct growth *grow(struct stage *stage, struct growth *growth, uint64_t size_bytes)
{
    *growth = (struct growth){.stage = stage, .size_bytes = size_bytes};
    world_call(stage->control, ask, growth);
    return growth;
}

static void assert_size(const struct stage *stage, uint64_t size_bytes)
{
    assert_int_equal(stage->disks[0]->node.size_bytes, size_bytes);
    assert_int_equal(stage->disks[0]->leaf->size_bytes, size_bytes);
    assert_int_equal(world_file_size(stage->files[0]), size_bytes);
}

/* ---- the hold ---- */

/* A write that the disk keeps for ever: the growth ends with that reason, the guest's other writes were held for a second at
 * a time at most, and neither disk nor image has changed. Later the disk grows. */
static void c22_a_hold_that_does_not_drain_changes_nothing(void **state)
{
    struct stage *stage = *state;
    struct stage_request stuck = {0}, other = {0};
    struct growth growth;
    struct stage_snapshot *snapshot = stage_snapshot(stage, "s");
    stage_overwrite(stage, 0, 3, 100); /* its old data is preserved */
    stage_write_held(stage, WORLD_WRITE, &stuck, 0, 3, 1, 200);
    grow(stage, &growth, NEW_BYTES);
    STAGE_STEP_UNTIL(stage, stage->disks[0]->holding);
    stage_write(stage, &other, 0, 5, 1, 201);
    world_run_for(stage->world, CUT_ATTEMPT_NS - 20 * NS_PER_MS);
    assert_false(other.done || growth.answered);
    world_run_for(stage->world, 100 * NS_PER_MS);
    assert_true(stage_succeeded(&other));
    assert_false(growth.answered);
    world_run_for(stage->world, CUT_TOTAL_MAX_NS + CUT_ATTEMPT_NS);
    assert_true(growth.answered);
    assert_int_equal(growth.code, ETIMEDOUT);
    assert_string_equal(growth.text, "disk vda does not grow: its writes in flight did not finish");
    assert_size(stage, STAGE_DISK_BYTES);
    assert_false(stage->disks[0]->holding);
    stage_overwrite(stage, 0, 6, 202);
    assert_int_equal(stage_value(stage, snapshot, 0, 6), stage_first_value(0, 6));
    stage_let_go(stage);
    stage_settle(stage);
    assert_true(stage_succeeded(&stuck));
    grow(stage, &growth, NEW_BYTES);
    stage_settle(stage);
    assert_true(growth.answered && growth.code == 0 && growth.got_bytes == NEW_BYTES);
    assert_size(stage, NEW_BYTES);
    assert_int_equal(stage_value(stage, snapshot, 0, 3), stage_first_value(0, 3));
}

static void c22_a_disk_never_becomes_smaller(void **state)
{
    struct stage *stage = *state;
    struct growth growth;
    char text[LIMIT_ERROR_BYTES];
    grow(stage, &growth, STAGE_DISK_BYTES - 512);
    stage_settle(stage);
    snprintf(text, sizeof text, "disk vda has %d bytes: a disk that is served can't be made smaller, to %d",
             STAGE_DISK_BYTES, STAGE_DISK_BYTES - 512);
    assert_true(growth.answered);
    assert_int_equal(growth.code, ENOTSUP);
    assert_string_equal(growth.text, text);
    assert_size(stage, STAGE_DISK_BYTES);
}

/* ---- the last block ---- */

struct bytes { /* a request for some of them */
    struct request req;
    struct iovec iov;
    struct node *node;
    uint8_t data[2 * STAGE_BLOCK];
    bool done;
    int status;
};

static void bytes_done(struct request *req, int status)
{
    struct bytes *bytes = container_of(req, struct bytes, req);
    bytes->done = true;
    bytes->status = status;
}

static void submit(void *argument)
{
    struct bytes *bytes = argument;
    node_submit(bytes->node, &bytes->req);
}

static void start(struct stage *stage, struct bytes *bytes, struct node *node, enum request_kind kind, uint64_t at,
                  uint64_t length, uint8_t value)
{
    assert_true(length <= sizeof bytes->data);
    memset(bytes, 0, sizeof *bytes);
    memset(bytes->data, value, length);
    bytes->node = node;
    bytes->iov = (struct iovec){bytes->data, length};
    bytes->req = (struct request){
        .kind = kind, .range = {at, length}, .iov = &bytes->iov, .iov_count = 1, .done = bytes_done};
    world_call(node->io, submit, bytes);
    (void)stage;
}

static void write_bytes(struct stage *stage, uint64_t at, uint64_t length, uint8_t value)
{
    struct bytes bytes;
    start(stage, &bytes, &stage->disks[0]->node, REQUEST_WRITE, at, length, value);
    STAGE_STEP_UNTIL(stage, bytes.done);
    assert_int_equal(bytes.status, 0);
}

static void assert_bytes(struct stage *stage, struct node *node, uint64_t at, uint64_t length, uint8_t value)
{
    struct bytes bytes;
    start(stage, &bytes, node, REQUEST_READ, at, length, 0xee);
    STAGE_STEP_UNTIL(stage, bytes.done);
    assert_int_equal(bytes.status, 0);
    for (uint64_t i = 0; i < length; i++)
        assert_int_equal(bytes.data[i], value);
}

static void grow_now(struct stage *stage)
{
    struct growth growth;
    grow(stage, &growth, NEW_BYTES);
    stage_settle(stage);
    assert_true(growth.answered);
    assert_string_equal(growth.text, "");
    assert_size(stage, NEW_BYTES);
}

/* The snapshot has what was there at its cut, to its own end. The next one has all of the block. */
static void check_last_block(struct stage *stage, bool preserved)
{
    write_bytes(stage, OLD_BYTES - ODD, ODD, 7);
    struct stage_snapshot *old = stage_snapshot(stage, "old");
    assert_int_equal(old->views[0]->size_bytes, OLD_BYTES);
    if (preserved)
        write_bytes(stage, OLD_BYTES - 10, 10, 8);
    else
        assert_bytes(stage, old->views[0], OLD_BYTES - ODD, ODD, 7); /* which may be kept */
    grow_now(stage);
    assert_int_equal(old->views[0]->size_bytes, OLD_BYTES);
    write_bytes(stage, OLD_BYTES, 2000, 9);
    struct stage_snapshot *next = stage_snapshot(stage, "next");
    assert_int_equal(next->views[0]->size_bytes, NEW_BYTES);
    write_bytes(stage, OLD_BYTES - 100, 3000, 10);
    assert_bytes(stage, old->views[0], OLD_BYTES - ODD, ODD, 7);
    assert_bytes(stage, next->views[0], OLD_BYTES, 2000, 9);
    assert_bytes(stage, next->views[0], OLD_BYTES + 2000, 2000, 0);
    assert_bytes(stage, next->views[0], OLD_BYTES - 10, 10, preserved ? 8 : 7);
    assert_bytes(stage, &stage->disks[0]->node, OLD_BYTES - 100, 3000, 10);
}

static void c22_a_last_block_that_was_preserved(void **state)
{
    check_last_block(*state, true);
}

static void c22_a_last_block_that_was_read(void **state)
{
    check_last_block(*state, false);
}

/* What is being read of the last block while the disk grows is not all of it: a snapshot that is made meanwhile has the
 * block read anew. In the cache's memory is what others have left there, and in what the disk has gained, too: somebody has
 * made it larger, as one does with volumes. */
static void c22_a_last_block_that_is_being_copied(void **state)
{
    struct stage *stage = *state;
    struct bytes first;
    write_bytes(stage, OLD_BYTES - ODD, ODD, 7);
    struct stage_snapshot *old = stage_snapshot(stage, "old");
    stage_overwrite_all(stage, 0, 0, 32, 77);
    assert_int_equal(stage_release(stage, old, 0, 0, 31), 0); /* their slots are used again */
    stage_settle(stage);
    stage_hold(stage, WORLD_READ, 0);
    start(stage, &first, &stage->disks[0]->node, REQUEST_WRITE, OLD_BYTES - 10, 10, 8);
    STAGE_STEP_UNTIL(stage, stage->held_count == 1);
    stage_hold_no_more(stage);
    stage_write_behind(stage, 0, OLD_BYTES / STAGE_BLOCK, 7);
    grow_now(stage); /* a write that is parked is not in flight */
    struct stage_snapshot *next = stage_snapshot(stage, "next");
    assert_false(first.done);
    stage_let_go(stage);
    stage_settle(stage);
    assert_true(first.done && first.status == 0);
    write_bytes(stage, OLD_BYTES, 2000, 10);
    assert_bytes(stage, old->views[0], OLD_BYTES - ODD, ODD, 7);
    assert_bytes(stage, next->views[0], OLD_BYTES - ODD, ODD + 2000, 7);
    assert_bytes(stage, &stage->disks[0]->node, OLD_BYTES - 10, 10, 8);
    assert_bytes(stage, &stage->disks[0]->node, OLD_BYTES, 2000, 10);
}

/* ---- dirty bitmaps ---- */

struct dirty {
    struct stage *stage;
    const char *name;
    uint64_t granularity;
    struct range ranges[4];
    unsigned count;
    bool done;
};

static void added(void *argument, const struct error *err)
{
    struct dirty *dirty = argument;
    assert_null(err);
    dirty->done = true;
}

static void add(void *argument)
{
    struct dirty *dirty = argument;
    vm_bitmap_add(dirty->stage->vm, (struct vm_bitmap){"vda", dirty->name}, dirty->granularity, true, added, dirty);
}

static void told(void *argument, const struct range *ranges, unsigned count, uint64_t next, const struct error *err)
{
    struct dirty *dirty = argument;
    assert_null(err);
    assert_int_equal(next, NEW_BYTES);
    assert_in_range(count, 1, 4);
    memcpy(dirty->ranges, ranges, count * sizeof *ranges);
    dirty->count = count;
    dirty->done = true;
}

static void tell(void *argument)
{
    struct dirty *dirty = argument;
    vm_bitmap_ranges(dirty->stage->vm, (struct vm_bitmap){"vda", dirty->name}, 0, told, dirty);
}

/* Whatever the granularity: what was added is dirty, with the granule that the old end was in, and nothing else. */
static void c22_what_was_added_is_dirty_in_every_granularity(void **state)
{
    struct stage *stage = *state;
    static const char *const names[] = {"b512", "b4k", "b64k", "b2m"};
    static const uint64_t granularities[] = {512, 4096, 65536, 2 * MIB};
    struct dirty dirty[4];
    for (unsigned i = 0; i < 4; i++) {
        dirty[i] = (struct dirty){.stage = stage, .name = names[i], .granularity = granularities[i]};
        world_call(stage->control, add, &dirty[i]);
        STAGE_STEP_UNTIL(stage, dirty[i].done);
    }
    grow_now(stage);
    for (unsigned i = 0; i < 4; i++) {
        dirty[i].done = false;
        world_call(stage->control, tell, &dirty[i]);
        STAGE_STEP_UNTIL(stage, dirty[i].done);
        const uint64_t first = (OLD_BYTES - 1) / granularities[i] * granularities[i];
        assert_int_equal(dirty[i].count, 1);
        assert_int_equal(dirty[i].ranges[0].start, first);
        assert_int_equal(range_end(dirty[i].ranges[0]), NEW_BYTES);
    }
}

static int run_all(void)
{
    const struct CMUnitTest tests[] = {
        STAGE_TEST(c22_a_hold_that_does_not_drain_changes_nothing, .disk_count = 1),
        STAGE_TEST(c22_a_disk_never_becomes_smaller, .disk_count = 1),
        STAGE_TEST(c22_a_last_block_that_was_preserved, .disk_count = 1, .disk_bytes = OLD_BYTES),
        STAGE_TEST(c22_a_last_block_that_was_read, .disk_count = 1, .disk_bytes = OLD_BYTES),
        STAGE_TEST(c22_a_last_block_that_was_read, .disk_count = 1, .disk_bytes = OLD_BYTES, .copy_on_read = true),
        STAGE_TEST(c22_a_last_block_that_is_being_copied, .disk_count = 1, .disk_bytes = OLD_BYTES),
        STAGE_TEST(c22_what_was_added_is_dirty_in_every_granularity, .disk_count = 1, .disk_bytes = OLD_BYTES),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

int main(void)
{
    struct mutant *copied = fault_find("growth_copy_goes_on");
    return run_all() == 0 && copied && fault_is_caught(copied, run_all, 60) ? 0 : 1;
}
