/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Metadata contexts at the NBD server in the simulated world: which are offered, and what BLOCK_STATUS tells of several. */
#include "nbd_scene.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "export/nbd/contexts.h"

static uint8_t *put_option(uint8_t *at, uint32_t option, uint32_t length)
{
    at = wire_put64(at, NBD_OPTION_MAGIC);
    return wire_put32(wire_put32(at, option), length);
}

static uint8_t *put_text(uint8_t *at, const char *text)
{
    return wire_put_bytes(wire_put32(at, (uint32_t)strlen(text)), text, strlen(text));
}

static uint8_t *put_meta_option(uint8_t *at, uint32_t option, const char *const *queries, unsigned count)
{
    uint32_t length = 11;
    for (unsigned i = 0; i < count; i++)
        length += 4 + (uint32_t)strlen(queries[i]);
    at = wire_put32(put_text(put_option(at, option, length), "vda"), count);
    for (unsigned i = 0; i < count; i++)
        at = put_text(at, queries[i]);
    return at;
}

/* Instead of the plain handshake: structured replies, these contexts listed or set, GO. */
static void say_structured_handshake(struct client *client, uint32_t option, const char *const *queries, unsigned count)
{
    uint8_t bytes[2048], *at = bytes;
    at = wire_put32(at, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    at = put_option(at, NBD_OPT_STRUCTURED_REPLY, 0);
    at = put_meta_option(at, option, queries, count);
    at = put_option(at, NBD_OPT_GO, 9);
    at = wire_put16(put_text(at, "vda"), 0);
    client->out_end = 0;
    say(client, bytes, (size_t)(at - bytes));
}

enum { IDS = NBD_CONTEXT_COUNT + 1 };

struct told { /* by one reply to BLOCK_STATUS */
    unsigned ends;
    uint32_t error;
    unsigned extents[IDS];                       /* by context number */
    uint32_t lengths[IDS][3], flags[IDS][3];     /* of the first extents */
    uint32_t accepted[IDS];                      /* ids that SET_META_CONTEXT gave, in order */
    char names[IDS][NBD_CONTEXT_NAME_BYTES + 1]; /* ... and the names */
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
        if (type == NBD_REP_META_CONTEXT) {
            uint32_t length = wire_get32(reply + 16) - 4;
            assert_true(told->accepted_count < IDS && length <= NBD_CONTEXT_NAME_BYTES);
            memcpy(told->names[told->accepted_count], reply + NBD_OPTION_REPLY_BYTES + 4, length);
            told->accepted[told->accepted_count++] = wire_get32(reply + NBD_OPTION_REPLY_BYTES);
        }
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
            assert_in_range(id, 1, NBD_CONTEXT_COUNT);
            assert_int_equal(told.extents[id], 0);
            told.extents[id] = (length - 4) / 8;
            for (unsigned i = 0; i < told.extents[id] && i < 3; i++) {
                told.lengths[id][i] = wire_get32(body + 4 + 8 * i);
                told.flags[id][i] = wire_get32(body + 4 + 8 * i + 4);
            }
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
        const char *const names[] = {cases[i].first, cases[i].second};
        say_structured_handshake(client, NBD_OPT_SET_META_CONTEXT, names, names[1] ? 2 : 1);
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
    static const char *const names[] = {"fleece:residence", "base:allocation"};
    say_structured_handshake(client, NBD_OPT_SET_META_CONTEXT, names, 2);
    say_command(client, NBD_CMD_BLOCK_STATUS, 0, 4 * BLOCK, 1, 0);
    connect_client(scene, client);
    world_run_for(scene->world, 20 * NS_PER_MS);
    struct told told = told_of(client);
    assert_true(told.accepted_count == 1 && told.accepted[0] == 1);
    assert_true(told.ends == 1 && told.extents[1] == 2 && told.extents[2] == 0);
    scene_end(scene);
}

/* ---- dirty maps */

static const char *const two_maps[] = {"monday", "monday.2"};

static void scene_begin_maps(struct scene *scene, uint64_t seed, const char *const *maps, unsigned count)
{
    scene_begin_view(scene, seed, true, READ_MANY);
    /* The export is there already, but nobody has asked for its contexts. */
    scene->disk.node.dirty_maps = maps;
    scene->disk.node.dirty_map_count = count;
}

/* What a view with two maps lists for a query: so many contexts, the last of them this one. */
static void test_lists_as_qemu_does(void **state)
{
    struct scene *scene = *state;
    static const struct {
        const char *query; /* NULL: none */
        unsigned listed, set;
        const char *last;
    } cases[] = {
        {NULL, 4, 0, "qemu:dirty-bitmap:monday.2"},
        {"base:", 1, 0, "base:allocation"},
        {"fleece:", 1, 0, "fleece:residence"},
        {"qemu:", 2, 0, "qemu:dirty-bitmap:monday.2"},
        {"qemu:dirty-bitmap:", 2, 0, "qemu:dirty-bitmap:monday.2"},
        {"qemu:dirty-bitmap:monday", 1, 1, "qemu:dirty-bitmap:monday"},
        {"qemu:dirty-bitmap:monday.2", 1, 1, "qemu:dirty-bitmap:monday.2"},
        {"qemu:dirty-bitmap:monday.", 0, 0, ""},
        {"qemu:dirty-bitmap:monday.22", 0, 0, ""},
        {"qemu:dirty-bitmap", 0, 0, ""},
        {"qemu", 0, 0, ""},
        {":", 0, 0, ""},
        {"", 0, 0, ""},
    };
    for (unsigned i = 0; i < 2 * sizeof cases / sizeof cases[0]; i++) {
        bool list = i % 2;
        const char *query = cases[i / 2].query;
        unsigned count = list ? cases[i / 2].listed : cases[i / 2].set;
        scene_begin_maps(scene, i + 1, two_maps, 2);
        struct client *client = &scene->clients[0];
        say_structured_handshake(client, list ? NBD_OPT_LIST_META_CONTEXT : NBD_OPT_SET_META_CONTEXT, &query,
                                 query != NULL);
        connect_client(scene, client);
        world_run_for(scene->world, 20 * NS_PER_MS);
        struct told told = told_of(client);
        assert_int_equal(told.accepted_count, count);
        if (count > 0)
            assert_string_equal(told.names[count - 1], cases[i / 2].last);
        for (unsigned n = 0; n < count; n++)
            assert_true(list ? told.accepted[n] == 0 : told.accepted[n] > 0);
        scene_end(scene);
    }
}

/* As many contexts as there can be, with the longest names, all at once: each is told, and from its own map. */
static void test_all_at_once(void **state)
{
    struct scene *scene = *state;
    char maps[LIMIT_DIRTY_MAPS][LIMIT_NAME_BYTES + 1], queries[NBD_CONTEXT_COUNT][NBD_CONTEXT_NAME_BYTES + 1];
    const char *map_names[LIMIT_DIRTY_MAPS], *query_names[NBD_CONTEXT_COUNT];
    for (unsigned i = 0; i < LIMIT_DIRTY_MAPS; i++) {
        memset(maps[i], 'a' + (int)i, LIMIT_NAME_BYTES);
        maps[i][LIMIT_NAME_BYTES] = 0;
        map_names[i] = maps[i];
    }
    for (uint64_t seed = 1; seed <= SEEDS / 10; seed++) {
        scene_begin_maps(scene, seed, map_names, LIMIT_DIRTY_MAPS);
        struct client *client = &scene->clients[0];
        const bool one = seed % 2, failing = seed % 5 == 0;
        for (unsigned i = 0; i < NBD_CONTEXT_COUNT; i++) {
            nbd_context_name(&scene->disk.node, i, queries[i]);
            query_names[i] = queries[i];
        }
        scene->disk.holding = seed % 3 == 0;
        say_structured_handshake(client, NBD_OPT_SET_META_CONTEXT, query_names, NBD_CONTEXT_COUNT);
        say_command(client, NBD_CMD_BLOCK_STATUS, failing ? 5 * BLOCK : 0, 64 * BLOCK, 1, 0);
        wire_put16(client->out + client->out_end - NBD_REQUEST_BYTES + 4, one ? NBD_CMD_FLAG_REQ_ONE : 0);
        connect_client(scene, client);
        world_run_for(scene->world, 20 * NS_PER_MS);
        world_call(scene->disk_io, disk_let_go, &scene->disk);
        world_run_for(scene->world, 20 * NS_PER_MS);
        struct told told = told_of(client);
        assert_int_equal(told.accepted_count, NBD_CONTEXT_COUNT);
        assert_int_equal(told.ends, 1);
        assert_int_equal(told.error, failing ? NBD_EIO : 0); /* one of them failed, after others were told */
        for (unsigned i = 0; i < LIMIT_DIRTY_MAPS; i++) {
            const unsigned id = NBD_CONTEXT_ID(NBD_CONTEXT_DIRTY + i);
            assert_int_equal(told.extents[id], failing ? 0 : one ? 1 : 2);
            assert_int_equal(told.lengths[id][0], failing ? 0 : (1 + i) * BLOCK);
            assert_true(failing || (told.flags[id][0] == EXTENT_DIRTY && told.flags[id][1] == 0));
        }
        scene_end(scene);
    }
}

/* The client hangs up between two contexts: nothing is left, and nothing more is asked. */
static void test_hang_up_in_the_middle(void **state)
{
    struct scene *scene = *state;
    static const char *const names[] = {"base:allocation", "qemu:dirty-bitmap:monday", "qemu:dirty-bitmap:monday.2"};
    for (uint64_t seed = 1; seed <= SEEDS / 3; seed++) {
        scene_begin_maps(scene, seed, two_maps, 2);
        struct client *client = &scene->clients[0];
        scene->disk.holding = true;
        say_structured_handshake(client, NBD_OPT_SET_META_CONTEXT, names, 3);
        say_command(client, NBD_CMD_BLOCK_STATUS, 0, 64 * BLOCK, 1, 0);
        connect_client(scene, client);
        world_run_for(scene->world, 20 * NS_PER_MS);
        assert_int_equal(scene->disk.submitted, 1);
        hang_up(scene, client);
        world_run_for(scene->world, 12 * NS_PER_S); /* replies that nobody takes are given up */
        world_call(scene->disk_io, disk_let_go, &scene->disk);
        world_run_for(scene->world, 20 * NS_PER_MS);
        assert_int_equal(scene->disk.submitted, 1);
        scene_end(scene);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_contexts),
        cmocka_unit_test(test_residence_is_of_snapshots_only),
        cmocka_unit_test(test_lists_as_qemu_does),
        cmocka_unit_test(test_all_at_once),
        cmocka_unit_test(test_hang_up_in_the_middle),
    };
    return cmocka_run_group_tests(tests, scene_set_up, scene_tear_down);
}
