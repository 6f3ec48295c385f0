/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Views of snapshots at the NBD server: TRIM that releases, read-once (C9), metadata contexts. In the simulated world, over
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

/* ---- metadata contexts */

static uint8_t *put_option(uint8_t *at, uint32_t option, uint32_t length)
{
    at = wire_put64(at, NBD_OPTION_MAGIC);
    return wire_put32(wire_put32(at, option), length);
}

static uint8_t *put_text(uint8_t *at, const char *text)
{
    return wire_put_bytes(wire_put32(at, (uint32_t)strlen(text)), text, strlen(text));
}

/* Instead of the plain handshake: structured replies, these contexts (or none: NULL), GO. */
static void say_structured_handshake(struct client *client, const char *first, const char *second)
{
    uint8_t bytes[256], *at = bytes;
    uint32_t names = (first ? 4 + (uint32_t)strlen(first) : 0) + (second ? 4 + (uint32_t)strlen(second) : 0);
    at = wire_put32(at, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    at = put_option(at, NBD_OPT_STRUCTURED_REPLY, 0);
    at = put_option(at, NBD_OPT_SET_META_CONTEXT, 11 + names);
    at = wire_put32(put_text(at, "vda"), (first != NULL) + (second != NULL));
    at = first ? put_text(at, first) : at;
    at = second ? put_text(at, second) : at;
    at = put_option(at, NBD_OPT_GO, 9);
    at = wire_put16(put_text(at, "vda"), 0);
    client->out_end = 0;
    say(client, bytes, (size_t)(at - bytes));
}

struct told { /* by one reply to BLOCK_STATUS */
    unsigned ends;
    uint32_t error;
    unsigned extents[3];               /* by context number */
    uint32_t flags[3][3], accepted[3]; /* of the first extents; ids that SET_META_CONTEXT gave, in order */
    unsigned accepted_count;
};

static size_t take_option_replies(const struct client *client, struct told *told)
{
    size_t at = NBD_GREETING_BYTES;
    uint32_t option, type;
    do {
        const uint8_t *reply = client->in + at;
        option = wire_get32(reply + 8);
        type = wire_get32(reply + 12);
        if (type == NBD_REP_META_CONTEXT)
            told->accepted[told->accepted_count++] = wire_get32(reply + NBD_OPTION_REPLY_BYTES);
        at += NBD_OPTION_REPLY_BYTES + wire_get32(reply + 16);
        assert_true(at <= client->in_end);
    } while (option != NBD_OPT_GO || type != NBD_REP_ACK);
    return at;
}

static struct told told_of(const struct client *client)
{
    struct told told = {0};
    size_t at = take_option_replies(client, &told);
    while (at < client->in_end) {
        const uint8_t *chunk = client->in + at, *body = chunk + NBD_CHUNK_BYTES;
        uint32_t length = wire_get32(chunk + 16), id = wire_get32(body);
        assert_int_equal(wire_get32(chunk), NBD_CHUNK_MAGIC);
        assert_int_equal(told.ends, 0);
        told.ends += wire_get16(chunk + 4) & NBD_CHUNK_DONE;
        if (wire_get16(chunk + 6) == NBD_CHUNK_ERROR) {
            told.error = id;
            assert_true(wire_get16(body + 4) > 10 && wire_get16(body + 4) == length - 6);
        } else {
            assert_in_range(id, 1, 2);
            told.extents[id] = (length - 4) / 8;
            for (unsigned i = 0; i < told.extents[id]; i++)
                told.flags[id][i] = wire_get32(body + 4 + 8 * i + 4);
        }
        at += NBD_CHUNK_BYTES + length;
    }
    assert_int_equal(at, client->in_end);
    return told;
}

/* Each context that was selected gets a chunk of its own; an error of either ends the reply, once. */
static void test_contexts(void **state)
{
    struct scene *scene = *state;
    static const struct {
        const char *first, *second;
        uint16_t flags;
        uint64_t offset;
        unsigned base, residence; /* extents told of each */
        uint32_t error;
    } cases[] = {
        {"base:allocation", NULL, 0, 0, 2, 0, 0},
        {"fleece:residence", NULL, 0, 0, 0, 3, 0},
        {"base:allocation", "fleece:residence", 0, 0, 2, 3, 0},
        {"fleece:residence", "base:allocation", NBD_CMD_FLAG_REQ_ONE, 0, 1, 1, 0},
        {"base:allocation", "fleece:residence", 0, 2 * BLOCK, 0, 0, NBD_EIO},
        {"base:allocation", "fleece:residence", 0, 3 * BLOCK, 0, 0, NBD_EIO},
        {"fleece:nothing", NULL, 0, 0, 0, 0, NBD_EINVAL},
    };
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        scene_begin_view(scene, i + 1, true, READ_MANY);
        struct client *client = &scene->clients[0];
        scene->disk.holding = i % 2;
        say_structured_handshake(client, cases[i].first, cases[i].second);
        say_command(client, NBD_CMD_BLOCK_STATUS, cases[i].offset, 4 * BLOCK, 1, 0);
        wire_put16(client->out + client->out_end - NBD_REQUEST_BYTES + 4, cases[i].flags);
        connect_client(scene, client);
        world_run_for(scene->world, 20 * NS_PER_MS);
        world_call(scene->disk_io, disk_let_go, &scene->disk);
        world_run_for(scene->world, 20 * NS_PER_MS);
        struct told told = told_of(client);
        assert_int_equal(told.ends, 1);
        assert_int_equal(told.error, cases[i].error);
        assert_int_equal(told.extents[1], cases[i].base);
        assert_int_equal(told.extents[2], cases[i].residence);
        if (told.extents[2] == 3)
            assert_true(told.flags[2][0] == 0 && told.flags[2][1] == 5 && told.flags[2][2] == 10);
        if (told.extents[1] == 2)
            assert_int_equal(told.flags[1][1], EXTENT_ZERO);
        assert_int_equal(told.accepted_count, (cases[i].first[7] != 'n') + (cases[i].second != NULL));
        scene_end(scene);
    }
}

/* A live disk has no residence to tell. */
static void test_residence_is_of_snapshots_only(void **state)
{
    struct scene *scene = *state;
    scene_begin(scene, 1);
    struct client *client = &scene->clients[0];
    say_structured_handshake(client, "fleece:residence", "base:allocation");
    say_command(client, NBD_CMD_BLOCK_STATUS, 0, 4 * BLOCK, 1, 0);
    connect_client(scene, client);
    world_run_for(scene->world, 20 * NS_PER_MS);
    struct told told = told_of(client);
    assert_true(told.accepted_count == 1 && told.accepted[0] == 1);
    assert_true(told.ends == 1 && told.extents[1] == 2 && told.extents[2] == 0);
    scene_end(scene);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_trim_releases),
        cmocka_unit_test(test_contexts),
        cmocka_unit_test(test_residence_is_of_snapshots_only),
        cmocka_unit_test(test_c9_an_orderly_end_releases_what_was_read),
        cmocka_unit_test(test_c9_a_pipelined_request_proves_nothing),
        cmocka_unit_test(test_c9_a_lost_reply_loses_nothing),
        cmocka_unit_test(test_c9_eager_releases_what_has_left),
        cmocka_unit_test(test_removal_waits_for_the_release),
    };
    return cmocka_run_group_tests(tests, scene_set_up, scene_tear_down);
}
