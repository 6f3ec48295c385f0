/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The NBD server in the simulated world, where the disk answers when the test says so: what order and time decide.
 * Each test runs over many seeds; the seed orders hang-ups, messages and connections.
 */
#include "nbd_scene.h"

static bool three_are_held(void *argument)
{
    return ((struct disk *)argument)->held_count == 3;
}

/* C14: writes of a client that is gone are at the disk; the next client's first command waits for them. */
static void test_new_client_waits_for_what_is_under_way(void **state)
{
    struct scene *scene = *state;
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        uint32_t error;
        scene_begin(scene, seed);
        struct client *old = &scene->clients[0], *new = &scene->clients[1];
        scene->disk.holding = true;
        for (unsigned i = 0; i < 3; i++)
            say_command(old, NBD_CMD_WRITE, i * BLOCK, BLOCK, i, 0xaa);
        connect_client(scene, old);
        assert_true(world_run_until(scene->world, three_are_held, &scene->disk, NS_PER_S));
        hang_up(scene, old);
        say_command(new, NBD_CMD_WRITE, BLOCK, BLOCK, 7, 0xbb);
        connect_client(scene, new);
        world_run_for(scene->world, 50 * NS_PER_MS);
        assert_int_equal(scene->disk.submitted, 3);
        assert_int_equal(replies(new, false, &error), 0);
        world_call(scene->disk_io, disk_let_go, &scene->disk);
        world_run_for(scene->world, 50 * NS_PER_MS);
        assert_int_equal(replies(new, false, &error), 1);
        assert_int_equal(error, 0);
        assert_int_equal(scene->disk.bytes[0], 0xaa);
        assert_int_equal(scene->disk.bytes[BLOCK], 0xbb);
        scene_end(scene);
    }
}

/* The same, with commands that nobody may have read yet when the client hangs up. */
static void test_new_client_is_never_overtaken(void **state)
{
    struct scene *scene = *state;
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        scene_begin(scene, seed);
        struct client *old = &scene->clients[0], *new = &scene->clients[1];
        for (unsigned i = 0; i < 8; i++)
            say_command(old, NBD_CMD_WRITE, 0, BLOCK, i, 0xaa);
        connect_client(scene, old);
        world_run_for(scene->world, (seed % 40) * 5 * NS_PER_US);
        scene->disk.holding = true;
        hang_up(scene, old);
        say_command(new, NBD_CMD_WRITE, 0, BLOCK, 7, 0xbb);
        connect_client(scene, new);
        world_run_for(scene->world, NS_PER_MS);
        world_call(scene->disk_io, disk_let_go, &scene->disk);
        world_run_for(scene->world, 100 * NS_PER_MS);
        uint32_t error;
        assert_int_equal(replies(new, false, &error), 1);
        assert_int_equal(scene->disk.bytes[0], 0xbb);
        scene_end(scene);
    }
}

/* A client that is there already does not wait for others that leave. */
static void test_others_go_on(void **state)
{
    struct scene *scene = *state;
    for (uint64_t seed = 1; seed <= SEEDS / 10; seed++) {
        uint32_t error;
        scene_begin(scene, seed);
        struct client *leaver = &scene->clients[0], *other = &scene->clients[1];
        connect_client(scene, other);
        world_run_for(scene->world, 20 * NS_PER_MS);
        scene->disk.holding = true;
        for (unsigned i = 0; i < 3; i++)
            say_command(leaver, NBD_CMD_WRITE, i * BLOCK, BLOCK, i, 0xaa);
        connect_client(scene, leaver);
        assert_true(world_run_until(scene->world, three_are_held, &scene->disk, NS_PER_S));
        hang_up(scene, leaver);
        scene->disk.holding = false;
        say_command(other, NBD_CMD_READ, 0, BLOCK, 1, 0);
        client_send_on(scene, other);
        world_run_for(scene->world, 20 * NS_PER_MS);
        assert_int_equal(replies(other, true, &error), 1);
        world_call(scene->disk_io, disk_let_go, &scene->disk);
        scene_end(scene);
    }
}

/* Removing an export: what is under way is answered, what comes later gets ESHUTDOWN; done comes after the last. */
static void test_removal(void **state)
{
    struct scene *scene = *state;
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        uint32_t error;
        bool removed = false;
        scene_begin(scene, seed);
        struct client *client = &scene->clients[0];
        scene->disk.holding = true;
        for (unsigned i = 0; i < 3; i++)
            say_command(client, NBD_CMD_WRITE, i * BLOCK, BLOCK, i, 0xaa);
        connect_client(scene, client);
        assert_true(world_run_until(scene->world, three_are_held, &scene->disk, NS_PER_S));
        world_act_as(scene->world, scene->server_io);
        nbd_server_export_remove(scene->server, "vda", set_flag, &removed);
        world_act_as(scene->world, NULL);
        world_run_for(scene->world, 20 * NS_PER_MS);
        say_command(client, NBD_CMD_READ, 0, BLOCK, 9, 0);
        client_send_on(scene, client);
        /* beyond the time for orderly answers every other time: the connection goes, the requests stay */
        world_run_for(scene->world, seed % 2 ? 100 * NS_PER_MS : 2 * NS_PER_S);
        assert_false(removed);
        assert_int_equal(scene->disk.submitted, 3);
        if (seed % 2) {
            assert_int_equal(replies(client, false, &error), 1);
            assert_int_equal(error, NBD_ESHUTDOWN);
        }
        world_call(scene->disk_io, disk_let_go, &scene->disk);
        assert_true(world_run_until(scene->world, flag_is_set, &removed, NS_PER_S));
        world_run_for(scene->world, 20 * NS_PER_MS);
        if (seed % 2)
            assert_int_equal(replies(client, false, &error), 4);
        assert_true(client->over);
        scene_end(scene);
    }
}

/* A client may have 128 requests under way; the next one is read when one is answered. */
static void test_requests_under_way_are_bounded(void **state)
{
    struct scene *scene = *state;
    uint32_t error;
    scene_begin(scene, 1);
    struct client *client = &scene->clients[0];
    scene->disk.holding = true;
    for (unsigned i = 0; i < 300; i++)
        say_command(client, NBD_CMD_FLUSH, 0, 0, i, 0);
    connect_client(scene, client);
    world_run_for(scene->world, 100 * NS_PER_MS);
    assert_int_equal(scene->disk.submitted, LIMIT_NBD_REQUESTS);
    world_call(scene->disk_io, disk_let_go, &scene->disk);
    world_run_for(scene->world, 100 * NS_PER_MS);
    assert_int_equal(replies(client, false, &error), 300);
    scene_end(scene);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_new_client_waits_for_what_is_under_way),
        cmocka_unit_test(test_new_client_is_never_overtaken),
        cmocka_unit_test(test_others_go_on),
        cmocka_unit_test(test_removal),
        cmocka_unit_test(test_requests_under_way_are_bounded),
    };
    return cmocka_run_group_tests(tests, scene_set_up, scene_tear_down);
}
