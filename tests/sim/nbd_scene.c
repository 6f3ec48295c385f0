/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "nbd_scene.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

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
    if (req->kind == REQUEST_BLOCK_STATUS &&
        (req->flags & REQUEST_DIRTY)) { /* as many blocks as the map's number says */
        unsigned count = req->flags & REQUEST_ONE ? 1 : 2;
        assert_true(req->extent_max >= count);
        req->extents[0] = (struct block_extent){(1 + req->dirty_map) * BLOCK, EXTENT_DIRTY};
        if (count == 2)
            req->extents[1] = (struct block_extent){BLOCK, 0};
        req->extent_count = count;
        request_complete(req, req->range.start == 5 * BLOCK && req->dirty_map == 4 ? -EIO : 0);
        return;
    }
    if (req->kind == REQUEST_BLOCK_STATUS) { /* two extents for allocation, one more for residence */
        bool residence = req->flags & REQUEST_RESIDENCE;
        unsigned count = req->flags & REQUEST_ONE ? 1 : 2 + residence;
        for (unsigned i = 0; i < count; i++)
            req->extents[i] = (struct block_extent){BLOCK, residence ? i * 5 : i * EXTENT_ZERO};
        req->extent_count = count;
        request_complete(req, req->range.start == (residence ? 2 * BLOCK : 3 * BLOCK) ? -EIO : 0);
        return;
    }
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
void disk_let_go(void *argument)
{
    struct disk *disk = argument;
    disk->holding = false;
    while (!list_empty(&disk->held)) {
        struct request *req = list_last(&disk->held, struct request, link);
        list_remove(&req->link);
        disk_finish(disk, req);
    }
}

static const struct node_ops disk_ops = {.driver = "held", .submit = disk_submit};

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

void client_send(struct client *client)
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

void client_send_on(struct scene *scene, struct client *client)
{
    world_act_as(scene->world, client->io);
    client_send(client);
    world_act_as(scene->world, NULL);
}

void say(struct client *client, const void *bytes, size_t length)
{
    assert_true(client->out_end + length <= sizeof client->out);
    memcpy(client->out + client->out_end, bytes, length);
    client->out_end += length;
}

void say_command(struct client *client, enum nbd_command_type type, uint64_t offset, uint32_t length, uint64_t cookie,
                 int fill)
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
void connect_client(struct scene *scene, struct client *client)
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

bool client_has_sent(void *argument)
{
    struct client *client = argument;
    return !client->sending;
}

static bool client_idle(void *argument)
{
    struct client *client = argument;
    return !client->sending && !client->receiving;
}

void hang_up(struct scene *scene, struct client *client)
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

unsigned replies(const struct client *client, bool reads, uint32_t *last_error)
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

void set_flag(void *argument)
{
    *(bool *)argument = true;
}

bool flag_is_set(void *argument)
{
    return *(bool *)argument;
}

int scene_set_up(void **state)
{
    *state = malloc(sizeof(struct scene));
    return *state ? 0 : -1;
}

int scene_tear_down(void **state)
{
    free(*state);
    return 0;
}

void scene_begin_view(struct scene *scene, uint64_t seed, bool view, enum read_once read_once)
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

void scene_begin(struct scene *scene, uint64_t seed)
{
    scene_begin_view(scene, seed, false, READ_MANY);
}

void scene_end(struct scene *scene)
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
