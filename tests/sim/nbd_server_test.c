/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The NBD server in the simulated world, where the disk answers when the test says so: what order and time decide.
 * Each test runs over many seeds; the seed orders hang-ups, messages and connections.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "export/nbd/server.h"
#include "export/nbd/wire.h"
#include "world.h"

enum { DISK_BYTES = 1 << 20, BLOCK = 4096, SEEDS = 300 };

struct disk { /* keeps requests until it is told to let them go */
    struct node node;
    struct list held;
    bool holding;
    unsigned submitted, held_count;
    bool released[DISK_BYTES / BLOCK]; /* of a view: by discards, as a snapshot's */
    unsigned releases;
    uint8_t bytes[DISK_BYTES];
};

struct client {
    struct io *io;
    int fd;
    bool connected, sending, receiving, over;
    uint8_t out[64 << 10], in[64 << 10];
    size_t out_start, out_end, in_end;
    struct iovec iov;
    struct io_op send, receive;
};

struct scene {
    struct world *world;
    struct io *server_io, *disk_io;
    struct nbd_server *server;
    struct disk disk;
    struct client clients[3];
};

/* Blocks that lie whole in the range are gone. */
static void disk_release_blocks(struct disk *disk, struct range range)
{
    disk->releases++;
    for (uint64_t i = 0; i < DISK_BYTES / BLOCK; i++)
        disk->released[i] |= range.start <= i * BLOCK && (i + 1) * BLOCK <= range_end(range);
}

static bool disk_has_released(const struct disk *disk, struct range range)
{
    for (uint64_t i = range.start / BLOCK; i * BLOCK < range_end(range); i++)
        if (disk->released[i])
            return true;
    return false;
}

static void disk_finish(struct disk *disk, struct request *req)
{
    uint8_t *bytes = disk->bytes + req->range.start;
    if (req->kind == REQUEST_DISCARD && disk->node.can_release)
        disk_release_blocks(disk, req->range);
    if (req->kind == REQUEST_READ && disk_has_released(disk, req->range)) {
        request_complete(req, -ENODATA);
        return;
    }
    if (req->kind == REQUEST_READ)
        iov_copy_in(req->iov, req->iov_count, 0, bytes, req->range.length);
    else if (req->kind == REQUEST_WRITE)
        iov_copy_out(req->iov, req->iov_count, 0, bytes, req->range.length);
    request_complete(req, 0);
}

static void disk_submit(struct node *node, struct request *req)
{
    struct disk *disk = container_of(node, struct disk, node);
    disk->submitted++;
    if (disk->holding) {
        list_append(&disk->held, &req->link);
        disk->held_count++;
    } else {
        disk_finish(disk, req);
    }
}

/* The newest first: whoever did not wait is overtaken. */
static void disk_let_go(void *argument)
{
    struct disk *disk = argument;
    disk->holding = false;
    while (!list_empty(&disk->held)) {
        struct request *req = list_last(&disk->held, struct request, link);
        list_remove(&req->link);
        disk_finish(disk, req);
    }
}

static const struct node_ops disk_ops = {"held", disk_submit, NULL};

static void client_receive(struct client *client)
{
    client->receiving = true;
    io_recv(client->io, &client->receive, client->fd, client->in + client->in_end, sizeof client->in - client->in_end);
}

static void client_received(struct io_op *op, int64_t result)
{
    struct client *client = container_of(op, struct client, receive);
    client->receiving = false;
    if (result <= 0) {
        client->over = true;
        return;
    }
    client->in_end += (size_t)result;
    if (client->in_end < sizeof client->in)
        client_receive(client);
}

static void client_send(struct client *client)
{
    client->iov = (struct iovec){client->out + client->out_start, client->out_end - client->out_start};
    client->sending = true;
    io_sendv(client->io, &client->send, client->fd, &client->iov, 1);
}

static void client_sent(struct io_op *op, int64_t result)
{
    struct client *client = container_of(op, struct client, send);
    client->sending = false;
    if (result <= 0)
        return;
    client->out_start += (size_t)result;
    if (client->out_start < client->out_end)
        client_send(client);
}

static void say(struct client *client, const void *bytes, size_t length)
{
    assert_true(client->out_end + length <= sizeof client->out);
    memcpy(client->out + client->out_end, bytes, length);
    client->out_end += length;
}

static void say_command(struct client *client, enum nbd_command_type type, uint64_t offset, uint32_t length,
                        uint64_t cookie, int fill)
{
    uint8_t bytes[NBD_REQUEST_BYTES + BLOCK], *at = bytes;
    at = wire_put32(at, NBD_REQUEST_MAGIC);
    at = wire_put16(at, 0);
    at = wire_put16(at, (uint16_t)type);
    at = wire_put64(at, cookie);
    at = wire_put64(at, offset);
    at = wire_put32(at, length);
    if (type == NBD_CMD_WRITE) {
        memset(at, fill, length);
        at += length;
    }
    say(client, bytes, (size_t)(at - bytes));
}

/* Connects and says the whole handshake; what was said already follows it. */
static void connect_client(struct scene *scene, struct client *client)
{
    int ends[2];
    world_act_as(scene->world, client->io);
    world_pair(scene->world, ends);
    client->fd = ends[0];
    client->connected = true;
    client_receive(client);
    client_send(client);
    world_act_as(scene->world, scene->server_io);
    nbd_server_adopt(scene->server, ends[1]);
    world_act_as(scene->world, NULL);
}

static void say_handshake(struct client *client)
{
    uint8_t bytes[NBD_OPTION_BYTES + 4 + 3], *at = bytes;
    at = wire_put32(at, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    at = wire_put64(at, NBD_OPTION_MAGIC);
    at = wire_put32(at, NBD_OPT_EXPORT_NAME);
    at = wire_put32(at, 3);
    wire_put_bytes(at, "vda", 3);
    say(client, bytes, sizeof bytes);
}

static bool client_has_sent(void *argument)
{
    struct client *client = argument;
    return !client->sending;
}

static bool client_idle(void *argument)
{
    struct client *client = argument;
    return !client->sending && !client->receiving;
}

static void hang_up(struct scene *scene, struct client *client)
{
    if (!client->connected)
        return;
    world_act_as(scene->world, client->io);
    io_shutdown(client->io, client->fd);
    world_act_as(scene->world, NULL);
    assert_true(world_run_until(scene->world, client_idle, client, NS_PER_S));
    world_act_as(scene->world, client->io);
    io_close(client->io, client->fd);
    world_act_as(scene->world, NULL);
    client->connected = false;
    /* This world tells of a hang-up later than a kernel, which does it in the very call that closes. */
    world_run_for(scene->world, 5 * NS_PER_MS);
}

/* How many simple replies have come, with their data when they are reads of a block. */
static unsigned replies(const struct client *client, bool reads, uint32_t *last_error)
{
    size_t at = NBD_GREETING_BYTES + 10;
    unsigned count = 0;
    while (at + NBD_SIMPLE_REPLY_BYTES <= client->in_end) {
        assert_int_equal(wire_get32(client->in + at), NBD_SIMPLE_REPLY_MAGIC);
        *last_error = wire_get32(client->in + at + 4);
        at += NBD_SIMPLE_REPLY_BYTES + (reads && *last_error == 0 ? BLOCK : 0);
        count += at <= client->in_end;
    }
    return count;
}

static void set_flag(void *argument)
{
    *(bool *)argument = true;
}

static bool flag_is_set(void *argument)
{
    return *(bool *)argument;
}

static void scene_begin_view(struct scene *scene, uint64_t seed, bool view, enum read_once read_once)
{
    memset(scene, 0, sizeof *scene);
    struct world_options options = {.seed = seed, .stall_per_1024 = seed % 2 ? 50 : 0, .message_ns = 1000 * (seed % 5)};
    scene->world = world_create(&options);
    scene->server_io = world_reactor(scene->world, "server", 1);
    scene->disk_io = world_reactor(scene->world, "disk", 1);
    list_init(&scene->disk.held);
    scene->disk.node = (struct node){
        .ops = &disk_ops, .io = scene->disk_io, .size_bytes = DISK_BYTES, .alignment_bytes = 1};
    if (view) {
        scene->disk.node.read_only = scene->disk.node.can_release = true;
        scene->disk.node.block_bytes = BLOCK;
        scene->disk.node.read_once = read_once;
    }
    struct io *io = world_reactor(scene->world, "clients", 2);
    for (unsigned i = 0; i < 3; i++) {
        scene->clients[i].io = io;
        scene->clients[i].send.done = client_sent;
        scene->clients[i].receive.done = client_received;
        say_handshake(&scene->clients[i]);
    }
    world_act_as(scene->world, scene->server_io);
    scene->server = nbd_server_create(scene->server_io);
    struct nbd_export export = {.name = "vda", .node = &scene->disk.node};
    assert_int_equal(nbd_server_export_add(scene->server, &export, NULL), 0);
    world_act_as(scene->world, NULL);
}

static void scene_begin(struct scene *scene, uint64_t seed)
{
    scene_begin_view(scene, seed, false, READ_MANY);
}

static void scene_end(struct scene *scene)
{
    for (unsigned i = 0; i < 3; i++)
        hang_up(scene, &scene->clients[i]);
    bool destroyed = false;
    world_act_as(scene->world, scene->server_io);
    nbd_server_destroy(scene->server, set_flag, &destroyed);
    world_act_as(scene->world, NULL);
    assert_true(world_run_until(scene->world, flag_is_set, &destroyed, 30 * NS_PER_S));
    assert_int_equal(world_destroy(scene->world, NULL), 0);
}

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
        world_act_as(scene->world, other->io);
        client_send(other);
        world_act_as(scene->world, NULL);
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
        world_act_as(scene->world, client->io);
        client_send(client);
        world_act_as(scene->world, NULL);
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

/* ---- read-once (C9) */

/* Says what has been added to its output since. */
static void send_on(struct scene *scene, struct client *client)
{
    world_act_as(scene->world, client->io);
    client_send(client);
    world_act_as(scene->world, NULL);
}

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
        struct client *client = &scene->clients[0];
        size_t bytes = say_pieces(client);
        connect_client(scene, client);
        world_run_for(scene->world, 100 * NS_PER_MS);
        assert_true(has_replies(client, PIECES, bytes));
        assert_int_equal(released_count(scene), 0);
        say_command(client, NBD_CMD_DISC, 0, 0, 0, 0);
        send_on(scene, client);
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
        send_on(scene, client);
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
        send_on(scene, client);
        world_run_for(scene->world, 20 * NS_PER_MS);
        assert_int_equal(replies(client, false, &error), 2 + i);
        assert_int_equal(error, refused[i].error);
    }
    scene_end(scene);
}

static int set_up(void **state)
{
    *state = malloc(sizeof(struct scene));
    return *state ? 0 : -1;
}

static int tear_down(void **state)
{
    free(*state);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_new_client_waits_for_what_is_under_way),
        cmocka_unit_test(test_new_client_is_never_overtaken),
        cmocka_unit_test(test_others_go_on),
        cmocka_unit_test(test_removal),
        cmocka_unit_test(test_requests_under_way_are_bounded),
        cmocka_unit_test(test_trim_releases),
        cmocka_unit_test(test_c9_an_orderly_end_releases_what_was_read),
        cmocka_unit_test(test_c9_a_pipelined_request_proves_nothing),
        cmocka_unit_test(test_c9_a_lost_reply_loses_nothing),
        cmocka_unit_test(test_c9_eager_releases_what_has_left),
        cmocka_unit_test(test_removal_waits_for_the_release),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
