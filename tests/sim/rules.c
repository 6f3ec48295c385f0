/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The crash and concurrency rules, each with a script that drives exactly the interleaving that it is about. The rules'
 * names are those of docs/ARCHITECTURE.md: C2 half a VM, C3 the hold, C4 the bit belongs to the leaf, C5 several points,
 * C6 optimistic reads, C8 first come first served, C10 the fence after kill -9, C13 tmpfs. (C14 is in nbd_server_test.c.)
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/limits.h"
#include "driver/file.h"
#include "stage.h"

static const struct stage_options one_disk = {.disk_count = 1}, two_disks = {.disk_count = 2};

static bool is_done(const struct stage_request *request)
{
    return request->done && request->status == 0;
}

static void write_and_wait(struct stage *stage, unsigned disk, uint64_t block, uint8_t value)
{
    struct stage_request write = {0};
    stage_write(stage, &write, disk, block, 1, value);
    stage_settle(stage);
    assert_true(is_done(&write));
}

/* Steps until the condition holds; a second of virtual time at most. */
#define STEP_UNTIL(stage, condition)                                   \
    do {                                                               \
        uint64_t give_up_ns = world_now((stage)->world) + NS_PER_S;    \
        while (!(condition) && world_now((stage)->world) < give_up_ns) \
            assert_true(world_step((stage)->world));                   \
        assert_true(condition);                                        \
    } while (0)

/* ---- C2 ---- */

/* One disk does not drain: no disk is cut, and none keeps a filter. */
static void c2_no_disk_is_cut_unless_all_drain(void **state)
{
    (void)state;
    struct stage stage;
    struct stage_request stuck = {0}, held = {0};
    stage_begin(&stage, &two_disks);
    stage_hold(&stage, WORLD_WRITE, 1);
    stage_write(&stage, &stuck, 1, 3, 1, 200);
    stage_hold_no_more(&stage);
    struct stage_snapshot *snapshot = stage_create(&stage, "s", 5 * NS_PER_MS);
    STEP_UNTIL(&stage, stage.disks[0]->holding && stage.disks[1]->holding);
    stage_write(&stage, &held, 0, 5, 1, 201);
    world_run_for(stage.world, 3 * NS_PER_MS);
    assert_false(held.done); /* the disk that has drained waits for the other one */
    assert_null(stage.disks[0]->filter);
    stage_settle(&stage);
    assert_true(snapshot->answered && !snapshot->created);
    assert_int_equal(snapshot->code, ETIMEDOUT);
    assert_non_null(strstr(snapshot->text, "vdb"));
    assert_true(is_done(&held));
    assert_null(stage.disks[0]->filter);
    assert_null(stage.disks[1]->filter);
    stage_let_go(&stage);
    stage_settle(&stage);
    assert_true(is_done(&stuck));
    struct stage_snapshot *next = stage_snapshot(&stage, "t");
    assert_int_equal(stage_value(&stage, next, 1, 3), 200);
    stage_end(&stage);
}

/* vda is cut and goes on; vdb, whose thread hangs, is still held: a write that depends on vda's is in neither. */
static void c2_a_slow_disk_is_cut_at_the_same_instant(void **state)
{
    (void)state;
    struct stage stage;
    struct stage_request last = {0}, first = {0}, second = {0};
    stage_begin(&stage, &two_disks);
    stage_hold(&stage, WORLD_WRITE, 0);
    stage_write(&stage, &last, 0, 1, 1, 200);
    stage_hold_no_more(&stage);
    struct stage_snapshot *snapshot = stage_create(&stage, "s", 0);
    STEP_UNTIL(&stage, stage.disks[0]->holding && stage.disks[1]->holding);
    world_run_for(stage.world, NS_PER_MS);
    world_stall(stage.io[1], world_now(stage.world) + 500 * NS_PER_MS);
    stage_let_go(&stage); /* vda drains last and moves the word */
    STEP_UNTIL(&stage, !stage.disks[0]->holding);
    assert_true(stage.disks[1]->holding);
    stage_write(&stage, &first, 0, 2, 1, 201);
    STEP_UNTIL(&stage, first.done);
    stage_write(&stage, &second, 1, 2, 1, 202);
    assert_true(stage.disks[1]->holding);
    world_run_for(stage.world, 600 * NS_PER_MS);
    assert_true(is_done(&last) && is_done(&first) && is_done(&second) && snapshot->created);
    assert_int_equal(stage_value(&stage, snapshot, 0, 1), 200);
    assert_int_equal(stage_value(&stage, snapshot, 0, 2), stage_first_value(0, 2));
    assert_int_equal(stage_value(&stage, snapshot, 1, 2), stage_first_value(1, 2));
    stage_end(&stage);
}

/* A disk that broke breaks the snapshot on every disk. */
static void c2_a_snapshot_breaks_on_all_disks(void **state)
{
    (void)state;
    struct stage stage;
    stage_begin(&stage, &two_disks);
    struct stage_snapshot *snapshot = stage_snapshot(&stage, "s");
    stage.fail_with = -EIO;
    stage_hold(&stage, WORLD_READ, 0); /* the copy's read */
    write_and_wait(&stage, 0, 7, 200);
    stage_hold_no_more(&stage);
    assert_true(snapshot->broken);
    assert_int_equal(stage_value(&stage, snapshot, 0, 9), -EIO);
    assert_int_equal(stage_value(&stage, snapshot, 1, 9), -EIO);
    stage_end(&stage);
}

/* ---- C3 ---- */

/* The control thread hangs in the middle of the hold: the reactors give it up by themselves at the deadline. */
static void c3_reactors_abort_without_the_control_thread(void **state)
{
    (void)state;
    struct stage stage;
    struct stage_request stuck = {0}, held = {0};
    stage_begin(&stage, &two_disks);
    stage_hold(&stage, WORLD_WRITE, 1);
    stage_write(&stage, &stuck, 1, 3, 1, 200);
    stage_hold_no_more(&stage);
    struct stage_snapshot *snapshot = stage_create(&stage, "s", 5 * NS_PER_MS);
    STEP_UNTIL(&stage, stage.disks[0]->holding && stage.disks[1]->holding);
    world_stall(stage.control, world_now(stage.world) + 10 * NS_PER_S);
    stage_write(&stage, &held, 0, 5, 1, 201);
    world_run_for(stage.world, 20 * NS_PER_MS);
    assert_false(stage.disks[0]->holding || stage.disks[1]->holding);
    assert_true(is_done(&held));
    assert_false(snapshot->answered);
    stage_let_go(&stage);
    world_run_for(stage.world, 11 * NS_PER_S);
    assert_int_equal(snapshot->code, ETIMEDOUT);
    stage_end(&stage);
}

/* A thread hangs before the hold reaches it, at each possible step: a hold that comes after the deadline holds nothing. */
static void c3_a_late_hold_holds_nothing(void **state)
{
    (void)state;
    unsigned refused = 0;
    for (unsigned steps = 0; steps < 12; steps++) {
        struct stage stage;
        struct stage_request writes[2] = {0};
        stage_begin(&stage, &two_disks);
        struct stage_snapshot *snapshot = stage_create(&stage, "s", 5 * NS_PER_MS);
        for (unsigned i = 0; i < steps; i++)
            world_step(stage.world);
        world_stall(stage.io[1], world_now(stage.world) + 30 * NS_PER_MS);
        world_run_for(stage.world, 20 * NS_PER_MS);
        assert_false(stage.disks[0]->holding); /* nobody waits for the one that hangs */
        stage_settle(&stage);
        assert_false(stage.disks[1]->holding);
        for (unsigned i = 0; i < 2; i++)
            stage_write(&stage, &writes[i], i, 1, 1, 200);
        stage_settle(&stage);
        assert_true(is_done(&writes[0]) && is_done(&writes[1]) && snapshot->answered);
        assert_true(snapshot->created || snapshot->code == ETIMEDOUT);
        refused += !snapshot->created;
        stage_end(&stage);
    }
    assert_true(refused > 0);
}

/* A write that waits for a copy is not in flight: the cut goes on, and the write is decided again after it. */
static void c3_a_parked_write_does_not_delay_the_cut(void **state)
{
    (void)state;
    struct stage stage;
    struct stage_request write = {0};
    stage_begin(&stage, &one_disk);
    struct stage_snapshot *first = stage_snapshot(&stage, "s1");
    stage_hold(&stage, WORLD_READ, 0);
    stage_write(&stage, &write, 0, 4, 1, 200);
    stage_hold_no_more(&stage);
    assert_int_equal(stage.held_count, 1); /* the copy */
    struct stage_snapshot *second = stage_snapshot(&stage, "s2");
    assert_false(write.done);
    stage_let_go(&stage);
    stage_settle(&stage);
    assert_true(is_done(&write));
    assert_int_equal(stage_value(&stage, first, 0, 4), stage_first_value(0, 4));
    assert_int_equal(stage_value(&stage, second, 0, 4), stage_first_value(0, 4));
    assert_int_equal(world_file_bytes(stage.files[0])[4 * STAGE_BLOCK], 200);
    stage_end(&stage);
}

/* ---- C4 ---- */

/* In flight lasts until the kernel's completion, though the data has landed long before. */
static void c4_in_flight_lasts_until_the_completion(void **state)
{
    (void)state;
    struct stage stage;
    struct stage_request write = {0};
    stage_begin(&stage, &one_disk);
    stage_hold(&stage, WORLD_WRITE, 0);
    stage_write(&stage, &write, 0, 4, 1, 200);
    stage_hold_no_more(&stage);
    assert_true(world_land(stage.world, stage.held[0]));
    assert_int_equal(stage.disks[0]->writes_in_flight, 1);
    struct stage_snapshot *snapshot = stage_create(&stage, "s", 0);
    stage_settle(&stage);
    assert_true(stage.disks[0]->holding && !snapshot->answered);
    stage_let_go(&stage);
    stage_settle(&stage);
    assert_true(is_done(&write) && snapshot->created);
    assert_int_equal(stage_value(&stage, snapshot, 0, 4), 200);
    stage_end(&stage);
}

/* A parked write counts when it is handed to the leaf, in the step that decides, and not before. */
static void c4_a_parked_write_is_not_in_flight(void **state)
{
    (void)state;
    struct stage stage;
    struct stage_request write = {0};
    stage_begin(&stage, &one_disk);
    stage_snapshot(&stage, "s");
    stage_hold(&stage, WORLD_READ, 0);
    stage_write(&stage, &write, 0, 4, 1, 200);
    stage_hold(&stage, WORLD_WRITE, 0);
    stage_settle(&stage);
    assert_int_equal(stage.disks[0]->writes_in_flight, 0);
    world_let_go_all(stage.world);
    stage_settle(&stage);
    assert_int_equal(stage.disks[0]->writes_in_flight, 1);
    assert_false(write.done);
    stage_let_go(&stage);
    stage_settle(&stage);
    assert_int_equal(stage.disks[0]->writes_in_flight, 0);
    assert_true(is_done(&write));
    stage_end(&stage);
}

/* ---- C5 ---- */

/* The copy was made for the newer point and serves the older one, too: deleting the newer one must not take it. */
static void c5_deleting_a_newer_point_keeps_what_an_older_one_needs(void **state)
{
    (void)state;
    struct stage stage;
    stage_begin(&stage, &one_disk);
    struct stage_snapshot *older = stage_snapshot(&stage, "s1"), *newer = stage_snapshot(&stage, "s2");
    write_and_wait(&stage, 0, 4, 200);
    stage_delete(&stage, newer);
    stage_settle(&stage);
    assert_true(newer->deleted);
    write_and_wait(&stage, 0, 4, 201);
    assert_int_equal(stage_value(&stage, older, 0, 4), stage_first_value(0, 4));
    stage_end(&stage);
}

/* Each point sees its own time; deleting the oldest frees only what it alone needed. */
static void c5_each_point_keeps_its_own(void **state)
{
    (void)state;
    struct stage stage;
    stage_begin(&stage, &one_disk);
    struct stage_snapshot *s1 = stage_snapshot(&stage, "s1");
    write_and_wait(&stage, 0, 4, 200);
    struct stage_snapshot *s2 = stage_snapshot(&stage, "s2");
    write_and_wait(&stage, 0, 4, 201);
    struct stage_snapshot *s3 = stage_snapshot(&stage, "s3");
    write_and_wait(&stage, 0, 4, 202);
    assert_int_equal(stage_value(&stage, s1, 0, 4), stage_first_value(0, 4));
    assert_int_equal(stage_value(&stage, s2, 0, 4), 200);
    assert_int_equal(stage_value(&stage, s3, 0, 4), 201);
    stage_delete(&stage, s1);
    stage_settle(&stage);
    assert_int_equal(stage_value(&stage, s2, 0, 4), 200);
    stage_delete(&stage, s3);
    stage_settle(&stage);
    assert_int_equal(stage_value(&stage, s2, 0, 4), 200);
    stage_end(&stage);
}

/* All points that needed a block die while it is copied; a write passes the copy; a new point is cut: the copy, which may
 * hold the newer data, must not become the new point's. */
static void c5_a_copy_that_was_passed_serves_nobody(void **state)
{
    (void)state;
    struct stage stage;
    struct stage_request write = {0};
    stage_begin(&stage, &one_disk);
    struct stage_snapshot *s1 = stage_snapshot(&stage, "s1");
    stage_hold(&stage, WORLD_READ, 0);
    stage_write(&stage, &write, 0, 4, 1, 200);
    stage_hold_no_more(&stage);
    assert_true(world_land(stage.world, stage.held[0])); /* it has read the first value, and is not back yet */
    stage_delete(&stage, s1);
    stage_settle(&stage);
    struct stage_request passing = {0};
    stage_write(&stage, &passing, 0, 4, 1, 201);
    stage_settle(&stage);
    assert_true(is_done(&passing));
    struct stage_snapshot *s2 = stage_create(&stage, "s2", 0);
    stage_settle(&stage);
    stage_let_go(&stage);
    stage_settle(&stage);
    assert_true(s2->created && is_done(&write));
    int value = stage_value(&stage, s2, 0, 4); /* the parked write is decided after the cut, or before it */
    assert_int_equal(value, 201);
    stage_end(&stage);
}

/* ---- C6 ---- */

/* The block is overwritten, and preserved, while a reader's base read is under way: it lands late and brings new data. */
static void c6_a_block_preserved_during_the_read_comes_from_the_cache(void **state)
{
    (void)state;
    struct stage stage;
    struct stage_request read = {0};
    stage_begin(&stage, &one_disk);
    struct stage_snapshot *snapshot = stage_snapshot(&stage, "s");
    stage_hold(&stage, WORLD_READ, 0);
    stage_read(&stage, &read, snapshot->views[0], 3, 3);
    stage_hold_no_more(&stage);
    write_and_wait(&stage, 0, 4, 200); /* a reader never delays a writer */
    assert_false(read.done);
    stage_let_go(&stage);
    stage_settle(&stage);
    assert_true(is_done(&read));
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(read.buffer[i * STAGE_BLOCK], stage_first_value(0, 3 + i));
    stage_end(&stage);
}

/* The point breaks while the base read is under way. */
static void c6_a_point_that_breaks_during_the_read_fails_it(void **state)
{
    (void)state;
    struct stage stage;
    struct stage_request read = {0};
    stage_begin(&stage, &one_disk);
    struct stage_snapshot *snapshot = stage_snapshot(&stage, "s");
    stage_hold(&stage, WORLD_READ, 0);
    stage_read(&stage, &read, snapshot->views[0], 4, 1);
    stage.fail_with = -EIO; /* the copy's read */
    write_and_wait(&stage, 0, 4, 200);
    assert_true(snapshot->broken);
    stage_let_go(&stage);
    stage_settle(&stage);
    assert_true(read.done);
    assert_int_equal(read.status, -EIO);
    stage_end(&stage);
}

/* The point is deleted while the base read is under way, and its blocks are overwritten: the read fails, and the view
 * waits for it. */
static void c6_a_point_deleted_during_the_read_fails_it(void **state)
{
    (void)state;
    struct stage stage;
    struct stage_request read = {0};
    stage_begin(&stage, &one_disk);
    struct stage_snapshot *snapshot = stage_snapshot(&stage, "s");
    stage_hold(&stage, WORLD_READ, 0);
    stage_read(&stage, &read, snapshot->views[0], 4, 1);
    stage_hold_no_more(&stage);
    stage.keep_exports = true; /* an export ends when its requests have */
    stage_delete(&stage, snapshot);
    stage_settle(&stage);
    write_and_wait(&stage, 0, 4, 200);
    assert_false(snapshot->deleted);
    stage_let_go(&stage);
    stage_settle(&stage);
    assert_true(read.done);
    assert_int_equal(read.status, -ESHUTDOWN);
    stage_withdraw(&stage);
    stage_settle(&stage);
    assert_true(snapshot->deleted);
    stage_end(&stage);
}

/* The same for block status: a block that became a hole meanwhile was data at the cut. */
static void c6_block_status_looks_again(void **state)
{
    (void)state;
    struct stage stage;
    struct stage_request status = {0}, discard = {0};
    stage_begin(&stage, &one_disk);
    struct stage_snapshot *snapshot = stage_snapshot(&stage, "s");
    stage_hold(&stage, WORLD_EXTENT, 0);
    stage_status(&stage, &status, snapshot->views[0], 4, 2);
    stage_hold_no_more(&stage);
    stage_discard(&stage, &discard, 0, 4, 1);
    stage_settle(&stage);
    assert_true(is_done(&discard));
    stage_let_go(&stage);
    stage_settle(&stage);
    assert_true(is_done(&status));
    uint64_t at = 0;
    for (unsigned i = 0; i < status.req.extent_count; at += status.extents[i++].length)
        assert_int_equal(status.extents[i].flags & EXTENT_ZERO, 0);
    assert_true(at >= STAGE_BLOCK);
    assert_int_equal(stage_value(&stage, snapshot, 0, 4), stage_first_value(0, 4));
    stage_end(&stage);
}

/* ---- C8 ---- */

/* A write that has waited for a copy is held by a cut: it stands before one that came later and was held first, and the
 * time since when it waits is that of its first park. */
static void c8_first_parked_first_served(void **state)
{
    (void)state;
    struct stage stage;
    struct stage_request stuck = {0}, first = {0}, second = {0};
    stage_begin(&stage, &one_disk);
    stage_snapshot(&stage, "s1");
    write_and_wait(&stage, 0, 9, 199); /* preserved: the next write of it goes straight to the disk */
    stage_hold(&stage, WORLD_WRITE, 0);
    stage_write(&stage, &stuck, 0, 9, 1, 200);
    stage_hold(&stage, WORLD_READ, 0);
    stage_write(&stage, &first, 0, 4, 1, 201); /* parks on its copy */
    stage_hold_no_more(&stage);
    assert_int_equal(stage.held_count, 2);
    uint64_t parked_since_ns = first.req.parked_since_ns;
    assert_true(parked_since_ns != 0);
    world_run_for(stage.world, NS_PER_MS);
    struct stage_snapshot *snapshot = stage_create(&stage, "s2", 0);
    STEP_UNTIL(&stage, stage.disks[0]->holding);
    stage_write(&stage, &second, 0, 20, 1, 202); /* parks in the hold */
    world_run_for(stage.world, NS_PER_MS);
    assert_true(world_let_go(stage.world, stage.held[1])); /* the copy is done: `first` is decided, and held */
    stage_settle(&stage);
    assert_true(stage.disks[0]->holding);
    struct list *held = &stage.disks[0]->held;
    assert_ptr_equal(list_first(held, struct request, link), &first.req);
    assert_ptr_equal(list_last(held, struct request, link), &second.req);
    assert_int_equal(first.req.parked_since_ns, parked_since_ns);
    stage_let_go(&stage);
    stage_settle(&stage);
    assert_true(is_done(&stuck) && is_done(&first) && is_done(&second) && snapshot->created);
    assert_int_equal(stage_value(&stage, snapshot, 0, 4), stage_first_value(0, 4));
    stage_end(&stage);
}

/* A full cache: those who wait for room get it in the order in which they came. */
static void c8_room_is_given_in_order(void **state)
{
    (void)state;
    struct stage stage;
    struct stage_request writes[4] = {0};
    stage_begin(&stage, &(struct stage_options){.disk_count = 2, .segments = 2});
    stage_snapshot(&stage, "s1");
    struct stage_request fill[32] = {0};
    for (unsigned i = 0; i < 32; i++) /* 128 blocks: all slots that there are */
        stage_write(&stage, &fill[i], 1, 4 * i, 4, 200);
    stage_settle(&stage);
    world_stall(stage.io[0], world_now(stage.world) + 20 * NS_PER_MS); /* the room's reactor */
    unsigned before = stage.landed_count;
    for (unsigned i = 0; i < 4; i++)
        stage_write(&stage, &writes[i], 1, 200 + i, 1, 201);
    world_run_for(stage.world, 10 * NS_PER_MS);
    assert_int_equal(stage.landed_count, before); /* they wait */
    for (unsigned i = 1; i < 4; i++)
        assert_ptr_equal(writes[i - 1].req.link.next, &writes[i].req.link);
    stage_settle(&stage);
    for (unsigned i = 0; i < 4; i++)
        assert_true(is_done(&writes[i]));
    assert_true(stage.snapshots[0].broken);
    stage_end(&stage);
}

/* ---- C10 ---- */

struct fence {
    struct io *io;
    struct node *node;
    struct file_options options;
    int status;
    struct error err;
    unsigned waits;
};

static void fence_waiting(void *context, const char *path)
{
    struct fence *fence = context;
    assert_string_equal(path, "disk");
    fence->waits++;
}

static void fence_open(void *argument)
{
    struct fence *fence = argument;
    fence->options.path = "disk";
    fence->options.waiting = fence_waiting;
    fence->options.waiting_context = fence;
    fence->status = file_open(fence->io, &fence->options, &fence->node, &fence->err);
}

static void fence_close(void *argument)
{
    struct fence *fence = argument;
    node_destroy(fence->node);
}

static void ignore(struct request *req, int status)
{
    (void)req;
    (void)status;
}

static void submit_fenced(void *argument)
{
    struct request *req = argument;
    node_submit((struct node *)req->leaf_scratch[0], req);
}

/* What a killed process leaves in this one's memory: nobody may free it, and it is no leak. */
static void *graveyard[16];

/* A killed daemon's write lands seconds later: the next daemon has the disk only after that. */
static void c10_a_killed_daemons_writes_land_before_the_next_one_starts(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 16; seed++) {
        struct world *world = world_create(&(struct world_options){.seed = seed});
        struct fence victim = {.io = world_reactor(world, "victim", 1)}, heir = {.io = world_reactor(world, "heir", 2)};
        struct world_file *file = world_file_create(world, "disk", 64 * KIB, 512, false);
        world_call(victim.io, fence_open, &victim);
        assert_int_equal(victim.status, 0);
        world_call(heir.io, fence_open, &heir);
        assert_int_equal(heir.status, -EAGAIN); /* it lives: refused at once, with a sentence */
        assert_non_null(strstr(heir.err.text, "locked"));

        uint8_t *bytes = aligned_alloc(4096, 4096);
        struct iovec iov = {bytes, 4096};
        struct request req = {
            .kind = REQUEST_WRITE, .range = {8192, 4096}, .iov = &iov, .iov_count = 1, .done = ignore};
        memset(bytes, 77, 4096);
        req.leaf_scratch[0] = (uintptr_t)victim.node;
        world_call(victim.io, submit_fenced, &req);
        world_kill(world, 1);
        free(bytes);
        graveyard[seed - 1] = victim.node;
        assert_int_equal(world_file_bytes(file)[8192], 0);

        heir.options.lock_wait_ns = 30 * NS_PER_S;
        world_call(heir.io, fence_open, &heir);
        assert_int_equal(heir.status, 0);
        assert_int_equal(world_file_bytes(file)[8192], 77);
        assert_int_equal(heir.waits, 1);
        world_call(heir.io, fence_close, &heir);
        assert_int_equal(world_destroy(world, stderr), 0);
    }
}

/* ---- C13 ---- */

/* tmpfs is full: the snapshot breaks, the guest goes on, nothing touches memory that is not there. */
static void c13_a_full_tmpfs_breaks_the_snapshot(void **state)
{
    (void)state;
    struct stage stage;
    stage_begin(&stage, &(struct stage_options){.disk_count = 1, .tmpfs_bytes = 64 * STAGE_BLOCK});
    struct stage_snapshot *snapshot = stage_snapshot(&stage, "s");
    for (uint64_t block = 0; block < 64; block++)
        write_and_wait(&stage, 0, block, 200);
    assert_false(snapshot->broken);
    write_and_wait(&stage, 0, 64, 200);
    assert_true(snapshot->broken);
    assert_int_equal(stage_value(&stage, snapshot, 0, 3), -EIO);
    stage_end(&stage);
}

/* The last point goes while a copy is being read into a segment: the segment stays until the read is over. */
static void c13_a_segment_in_use_is_not_punched(void **state)
{
    (void)state;
    struct stage stage;
    struct stage_request write = {0};
    stage_begin(&stage, &one_disk);
    struct stage_snapshot *snapshot = stage_snapshot(&stage, "s");
    stage_hold(&stage, WORLD_READ, 0);
    stage_write(&stage, &write, 0, 4, 2, 200);
    stage_hold_no_more(&stage);
    stage_delete(&stage, snapshot);
    stage_settle(&stage);
    assert_int_equal(stage.held_count, 1);
    stage_let_go(&stage); /* lands in the slot: a fault, were it punched */
    stage_settle(&stage);
    assert_true(is_done(&write) && snapshot->deleted);
    assert_null(stage.disks[0]->filter);
    stage_end(&stage);
}

/* ---- R7 ---- */

/* A disk has lost data and told the room; the news is slower than the end of the last snapshot: the VM waits for it. */
static void r7_the_vm_waits_for_what_was_asked(void **state)
{
    (void)state;
    struct stage stage;
    stage_begin(&stage, &two_disks);
    struct stage_snapshot *snapshot = stage_snapshot(&stage, "s");
    stage.slow_from = stage.io[1];
    stage.slow_to = stage.io[0];
    stage.fail_with = -EIO;
    stage_hold(&stage, WORLD_READ, 1);
    write_and_wait(&stage, 1, 7, 200);
    stage_hold_no_more(&stage);
    stage_delete(&stage, snapshot);
    stage_settle(&stage);
    assert_true(snapshot->deleted);
    stage_destroy_vm(&stage);
    stage_settle(&stage);
    assert_false(stage.gone);
    stage.slow_from = NULL;
    world_run_for(stage.world, 2 * NS_PER_S);
    assert_true(stage.gone);
    stage_end(&stage);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(c2_no_disk_is_cut_unless_all_drain),
        cmocka_unit_test(c2_a_slow_disk_is_cut_at_the_same_instant),
        cmocka_unit_test(c2_a_snapshot_breaks_on_all_disks),
        cmocka_unit_test(c3_reactors_abort_without_the_control_thread),
        cmocka_unit_test(c3_a_late_hold_holds_nothing),
        cmocka_unit_test(c3_a_parked_write_does_not_delay_the_cut),
        cmocka_unit_test(c4_in_flight_lasts_until_the_completion),
        cmocka_unit_test(c4_a_parked_write_is_not_in_flight),
        cmocka_unit_test(c5_deleting_a_newer_point_keeps_what_an_older_one_needs),
        cmocka_unit_test(c5_each_point_keeps_its_own),
        cmocka_unit_test(c5_a_copy_that_was_passed_serves_nobody),
        cmocka_unit_test(c6_a_block_preserved_during_the_read_comes_from_the_cache),
        cmocka_unit_test(c6_a_point_that_breaks_during_the_read_fails_it),
        cmocka_unit_test(c6_a_point_deleted_during_the_read_fails_it),
        cmocka_unit_test(c6_block_status_looks_again),
        cmocka_unit_test(c8_first_parked_first_served),
        cmocka_unit_test(c8_room_is_given_in_order),
        cmocka_unit_test(c10_a_killed_daemons_writes_land_before_the_next_one_starts),
        cmocka_unit_test(c13_a_full_tmpfs_breaks_the_snapshot),
        cmocka_unit_test(c13_a_segment_in_use_is_not_punched),
        cmocka_unit_test(r7_the_vm_waits_for_what_was_asked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
