/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Views of snapshots at the NBD server: TRIM that releases, read-once (C9). In the simulated world, over
 * many seeds, which order hang-ups, replies and what the disk answers.
 */
#include "nbd_scene.h"

#include <stdlib.h>
#include <string.h>

/* ---- read-once (C9) */

static unsigned released_count(const struct scene *scene)
{
    unsigned count = 0;
    for (unsigned i = 0; i < DISK_BYTES / BLOCK; i++)
        count += scene->disk.released[i];
    return count;
}

/* Bytes of all replies to reads that succeeded. */
static bool has_replies(const struct client *client, unsigned count, size_t bytes)
{
    return client->in_end == NBD_GREETING_BYTES + 10 + count * (size_t)NBD_SIMPLE_REPLY_BYTES + bytes;
}

static const struct range pieces_read[] = {
    /* blocks 0 and 1, by two reads that meet within a block; 3 whole; 5 but for a byte; 7 by three parts, not in order;
     * the last one of the disk */
    {0, BLOCK + 700},      {BLOCK + 700, BLOCK - 700},     {3 * BLOCK, BLOCK}, {5 * BLOCK, BLOCK - 1},
    {7 * BLOCK + 600, 50}, {7 * BLOCK + 650, BLOCK - 650}, {7 * BLOCK, 600},   {DISK_BYTES - BLOCK, BLOCK},
};
enum { PIECES = sizeof pieces_read / sizeof pieces_read[0] };

static size_t say_pieces(struct client *client)
{
    size_t bytes = 0;
    for (unsigned i = 0; i < PIECES; i++) {
        say_command(client, NBD_CMD_READ, pieces_read[i].start, (uint32_t)pieces_read[i].length, i, 0);
        bytes += pieces_read[i].length;
    }
    return bytes;
}

static bool read_once_is_idle(void *argument)
{
    struct scene *scene = argument;
    world_act_as(scene->world, scene->server_io);
    struct nbd_server_status *status = nbd_server_status(scene->server);
    world_act_as(scene->world, NULL);
    bool idle = status->read_once_memory_bytes == 0;
    free(status);
    return idle;
}

/* A goodbye after the last reply: what was read whole is released, and nothing else; not before. */
static void test_c9_an_orderly_end_releases_what_was_read(void **state)
{
    struct scene *scene = *state;
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        scene_begin_view(scene, seed, true, READ_ONCE);
        struct client *client = &scene->clients[0], *idle = &scene->clients[1];
        connect_client(scene, idle);
        world_run_for(scene->world, 20 * NS_PER_MS);
        assert_true(read_once_is_idle(scene)); /* nothing read, nothing remembered */
        size_t bytes = say_pieces(client);
        connect_client(scene, client);
        world_run_for(scene->world, 100 * NS_PER_MS);
        assert_true(has_replies(client, PIECES, bytes));
        assert_int_equal(released_count(scene), 0);
        assert_false(read_once_is_idle(scene));
        say_command(client, NBD_CMD_DISC, 0, 0, 0, 0);
        client_send_on(scene, client);
        if (seed % 2) { /* at once, as clients do */
            assert_true(world_run_until(scene->world, client_has_sent, client, NS_PER_S));
            hang_up(scene, client);
        }
        world_run_for(scene->world, 50 * NS_PER_MS);
        assert_true(read_once_is_idle(scene));
        assert_int_equal(released_count(scene), 5);
        for (unsigned i = 0; i < 2; i++)
            assert_true(scene->disk.released[i] && scene->disk.released[3 + 4 * i]);
        assert_true(scene->disk.released[DISK_BYTES / BLOCK - 1]);
        scene_end(scene);
    }
}

/* What is said behind a read, even goodbye, says nothing about its reply: nothing is released. */
static void test_c9_a_pipelined_request_proves_nothing(void **state)
{
    struct scene *scene = *state;
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        scene_begin_view(scene, seed, true, READ_ONCE);
        struct client *client = &scene->clients[0], *other = &scene->clients[1];
        scene->disk.holding = seed % 2;
        size_t bytes = say_pieces(client);
        say_command(client, NBD_CMD_FLUSH, 0, 0, 99, 0);
        say_command(client, NBD_CMD_DISC, 0, 0, 0, 0);
        connect_client(scene, client);
        world_run_for(scene->world, 20 * NS_PER_MS);
        world_call(scene->disk_io, disk_let_go, &scene->disk);
        world_run_for(scene->world, 100 * NS_PER_MS);
        assert_true(has_replies(client, PIECES + 1, bytes));
        assert_int_equal(scene->disk.releases, 0);
        uint32_t error;
        say_command(other, NBD_CMD_READ, 0, BLOCK, 1, 0);
        connect_client(scene, other);
        world_run_for(scene->world, 50 * NS_PER_MS);
        assert_int_equal(replies(other, true, &error), 1);
        assert_int_equal(error, 0);
        scene_end(scene);
    }
}

/* Replies get lost with their connection, after some later ones were even taken: all stays readable. */
static void test_c9_a_lost_reply_loses_nothing(void **state)
{
    struct scene *scene = *state;
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        scene_begin_view(scene, seed, true, READ_ONCE);
        struct client *client = &scene->clients[0];
        say_pieces(client);
        connect_client(scene, client);
        world_run_for(scene->world, (seed % 100) * 20 * NS_PER_US);
        if (seed % 3 == 0)
            world_reset(scene->world, client->fd);
        hang_up(scene, client);
        world_run_for(scene->world, 50 * NS_PER_MS);
        assert_int_equal(scene->disk.releases, 0);
        assert_true(read_once_is_idle(scene));
        scene_end(scene);
    }
}

/* Eager: released when the reply has left, without any goodbye; and not while a part of it has not. */
static void test_c9_eager_releases_what_has_left(void **state)
{
    struct scene *scene = *state;
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        scene_begin_view(scene, seed, true, READ_ONCE_EAGER);
        struct client *client = &scene->clients[0], *slow = &scene->clients[1];
        size_t bytes = say_pieces(client);
        connect_client(scene, client);
        world_run_for(scene->world, 100 * NS_PER_MS);
        assert_true(has_replies(client, PIECES, bytes));
        assert_int_equal(released_count(scene), 5);
        for (unsigned i = 0; i < 20; i++) /* 60 KiB of input: more than socket buffers hold is never taken */
            say_command(slow, NBD_CMD_READ, (100 + i) * BLOCK, BLOCK, i, 0);
        slow->in_end = sizeof slow->in - NBD_GREETING_BYTES - 10 - 100;
        connect_client(scene, slow);
        world_run_for(scene->world, 100 * NS_PER_MS);
        unsigned left = released_count(scene) - 5;
        assert_in_range(left, 0, 19);
        for (unsigned i = 0; i < 20; i++)
            assert_int_equal(scene->disk.released[100 + i], i < left);
        slow->in_end = 0;
        scene_end(scene);
    }
}

static bool release_is_held(void *argument)
{
    return ((struct disk *)argument)->held_count > 0;
}

/* The export goes while blocks of a past connection are being released: it waits for the piece that is under way. */
static void test_removal_waits_for_the_release(void **state)
{
    struct scene *scene = *state;
    for (uint64_t seed = 1; seed <= SEEDS / 3; seed++) {
        bool removed = false;
        scene_begin_view(scene, seed, true, READ_ONCE);
        struct client *client = &scene->clients[0];
        say_pieces(client);
        connect_client(scene, client);
        world_run_for(scene->world, 100 * NS_PER_MS);
        scene->disk.holding = true;
        say_command(client, NBD_CMD_DISC, 0, 0, 0, 0);
        client_send_on(scene, client);
        assert_true(world_run_until(scene->world, release_is_held, &scene->disk, NS_PER_S));
        world_act_as(scene->world, scene->server_io);
        nbd_server_export_remove(scene->server, "vda", set_flag, &removed);
        world_act_as(scene->world, NULL);
        world_run_for(scene->world, 3 * NS_PER_S);
        assert_false(removed);
        world_call(scene->disk_io, disk_let_go, &scene->disk);
        assert_true(world_run_until(scene->world, flag_is_set, &removed, NS_PER_S));
        assert_int_equal(scene->disk.releases, 1);
        scene_end(scene);
    }
}

/* A snapshot's view takes TRIM, in pieces that cut no block, and no other write; reads of what is released fail. */
static void test_trim_releases(void **state)
{
    struct scene *scene = *state;
    uint32_t error;
    scene_begin_view(scene, 1, true, READ_MANY);
    struct client *client = &scene->clients[0];
    say_command(client, NBD_CMD_TRIM, 2 * BLOCK + 1, 3 * BLOCK, 1, 0);
    connect_client(scene, client);
    world_run_for(scene->world, 20 * NS_PER_MS);
    assert_int_equal(replies(client, false, &error), 1);
    assert_int_equal(error, 0);
    assert_int_equal(released_count(scene), 2);
    const struct {
        enum nbd_command_type type;
        uint32_t error;
    } refused[] = {{NBD_CMD_READ, NBD_EINVAL}, {NBD_CMD_WRITE, NBD_EPERM}, {NBD_CMD_WRITE_ZEROES, NBD_EPERM}};
    for (unsigned i = 0; i < 3; i++) {
        say_command(client, refused[i].type, 3 * BLOCK, BLOCK, 2, 0xaa);
        client_send_on(scene, client);
        world_run_for(scene->world, 20 * NS_PER_MS);
        assert_int_equal(replies(client, false, &error), 2 + i);
        assert_int_equal(error, refused[i].error);
    }
    scene_end(scene);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_trim_releases),
        cmocka_unit_test(test_c9_an_orderly_end_releases_what_was_read),
        cmocka_unit_test(test_c9_a_pipelined_request_proves_nothing),
        cmocka_unit_test(test_c9_a_lost_reply_loses_nothing),
        cmocka_unit_test(test_c9_eager_releases_what_has_left),
        cmocka_unit_test(test_removal_waits_for_the_release),
    };
    return cmocka_run_group_tests(tests, scene_set_up, scene_tear_down);
}
