/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * C10: the fence after kill -9, with the file driver as it is.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/limits.h"
#include "driver/file.h"
#include "world.h"

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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(c10_a_killed_daemons_writes_land_before_the_next_one_starts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
