/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Any bytes as an NBD client: the real server in the simulated world, with its handshake on one reactor and its session
 * on another, in front of a small disk in memory.
 *
 * The first two bytes of an input choose how the client behaves (how many bytes at a time, whether it reads replies at once,
 * whether the export is removed meanwhile) and the world's seed; the rest is what it sends. Then it hangs up. The
 * server must end without anything left: its own assertions, the world's and a sanitizer judge.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "export/nbd/server.h"
#include "world.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length);

enum { DISK_BYTES = 300000, CHUNK_MAX = 1 << 12 };

enum behaviour { NEVER_READS = 16, REMOVES_EXPORT = 32, TWO_EXPORTS = 64, SLOW_DISK = 128 };

struct memory_disk {
    struct node node;
    struct node view; /* of the same bytes, as a snapshot's */
    bool slow;
    uint8_t bytes[DISK_BYTES];
};

struct client {
    struct io *io;
    int fd;
    const uint8_t *data;
    size_t left;
    unsigned chunk;
    bool reads, sending, receiving, over;
    struct iovec iov;
    struct io_op send, receive;
    uint8_t replies[4096];
};

struct late { /* a request that the slow disk keeps for a while */
    struct io_timer timer;
    struct request *req;
    int status;
};

static void late_fire(struct io_timer *timer)
{
    struct late *late = container_of(timer, struct late, timer);
    request_complete(late->req, late->status);
    free(late);
}

static void status_extents(struct request *req)
{
    uint64_t at = req->range.start;
    unsigned max = req->flags & REQUEST_ONE ? 1 : req->extent_max;
    for (req->extent_count = 0; at < range_end(req->range) && req->extent_count < max; req->extent_count++) {
        uint64_t end = round_down(at, 8192) + 8192;
        end = end < range_end(req->range) ? end : range_end(req->range);
        req->extents[req->extent_count] = (struct block_extent){end - at, (at >> 13) & 1 ? EXTENT_ZERO : 0};
        at = end;
    }
}

static void memory_answer(struct memory_disk *disk, struct request *req)
{
    uint8_t *bytes = disk->bytes + req->range.start;
    int status = req->range.start % 64 == 13 ? -EIO : 0;
    if (req->kind == REQUEST_READ)
        iov_copy_in(req->iov, req->iov_count, 0, bytes, req->range.length);
    else if (req->kind == REQUEST_WRITE)
        iov_copy_out(req->iov, req->iov_count, 0, bytes, req->range.length);
    else if (req->kind == REQUEST_WRITE_ZEROES && (req->flags & REQUEST_FAST_ZERO))
        status = -EOPNOTSUPP;
    else if (req->kind == REQUEST_WRITE_ZEROES || req->kind == REQUEST_DISCARD)
        memset(bytes, 0, req->range.length);
    else if (req->kind == REQUEST_BLOCK_STATUS)
        status_extents(req);
    if (!disk->slow) {
        request_complete(req, status);
        return;
    }
    struct late *late = calloc(1, sizeof *late);
    late->req = req;
    late->status = status;
    late->timer.fire = late_fire;
    io_timer_set(req->io, &late->timer, io_now_ns(req->io) + 1000 * (1 + req->range.start % 97));
}

static void memory_submit(struct node *node, struct request *req)
{
    memory_answer(container_of(node, struct memory_disk, node), req);
}

static void view_submit(struct node *node, struct request *req)
{
    memory_answer(container_of(node, struct memory_disk, view), req);
}

static void memory_destroy(struct node *node)
{
    (void)node;
}

static const char *const maps[] = {"a", "monday", "monday.2"};

static const struct node_ops memory_ops = {.driver = "memory", .submit = memory_submit, .destroy = memory_destroy};
static const struct node_ops view_ops = {.driver = "view", .submit = view_submit, .destroy = memory_destroy};

static void client_send(struct client *client);

static void client_end(struct client *client)
{
    if (!client->over)
        io_shutdown(client->io, client->fd);
    client->over = true;
}

static void client_receive(struct client *client)
{
    client->receiving = true;
    io_recv(client->io, &client->receive, client->fd, client->replies, sizeof client->replies);
}

static void client_received(struct io_op *op, int64_t result)
{
    struct client *client = container_of(op, struct client, receive);
    client->receiving = false;
    if (result > 0 && !client->over)
        client_receive(client);
    else
        client_end(client);
}

static void client_sent(struct io_op *op, int64_t result)
{
    struct client *client = container_of(op, struct client, send);
    client->sending = false;
    if (result <= 0 || client->over) {
        client_end(client);
        return;
    }
    client->data += result;
    client->left -= (size_t)result;
    if (client->left > 0)
        client_send(client);
}

static void client_send(struct client *client)
{
    size_t length = client->left < client->chunk ? client->left : client->chunk;
    client->iov = (struct iovec){(void *)(uintptr_t)client->data, length};
    client->sending = true;
    io_sendv(client->io, &client->send, client->fd, &client->iov, 1);
}

static bool client_done(void *argument)
{
    struct client *client = argument;
    return client->over || (!client->sending && client->left == 0);
}

static bool client_quiet(void *argument)
{
    struct client *client = argument;
    return !client->sending && !client->receiving;
}

static void set_flag(void *argument)
{
    *(bool *)argument = true;
}

static bool flag_is_set(void *argument)
{
    return *(bool *)argument;
}

/* A client that comes, speaks and goes. */
static void play_client(struct world *world, struct client *client, struct io *server_io, struct nbd_server *server,
                        bool remove)
{
    int ends[2];
    bool removed = !remove;
    world_act_as(world, client->io);
    world_pair(world, ends);
    client->fd = ends[0];
    world_act_as(world, server_io);
    nbd_server_adopt(server, ends[1]);
    world_act_as(world, client->io);
    if (client->reads)
        client_receive(client);
    if (client->left > 0)
        client_send(client);
    world_act_as(world, NULL);
    world_run_until(world, client_done, client, NS_PER_S);
    if (remove) {
        world_act_as(world, server_io);
        nbd_server_export_remove(server, "vda", set_flag, &removed);
        world_act_as(world, NULL);
    }
    world_run_for(world, 10 * NS_PER_MS);
    if (!client->reads && !client->over) { /* for longer than the server keeps data for it; then it does */
        world_run_for(world, 3 * NS_PER_S);
        world_act_as(world, client->io);
        client_receive(client);
        world_act_as(world, NULL);
        world_run_for(world, 10 * NS_PER_MS);
    }
    world_act_as(world, client->io);
    client_end(client);
    world_act_as(world, NULL);
    bool quiet = world_run_until(world, client_quiet, client, NS_PER_S);
    assert(quiet);
    world_act_as(world, client->io);
    io_close(client->io, client->fd);
    world_act_as(world, NULL);
    bool gone = world_run_until(world, flag_is_set, &removed, 60 * NS_PER_S);
    assert(gone);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length)
{
    if (length < 2)
        return 0;
    unsigned behaviour = data[0];
    struct world_options options = {.seed = data[1] + 1u, .short_per_1024 = data[1] & 1 ? 256 : 0};
    struct world *world = world_create(&options);
    struct io *server_io = world_reactor(world, "server", 1), *disk_io = world_reactor(world, "disk", 1);
    struct memory_disk *disk = calloc(1, sizeof *disk);
    disk->node = (struct node){
        .ops = &memory_ops, .io = disk_io, .size_bytes = DISK_BYTES, .alignment_bytes = 1, .can_discard = true};
    disk->slow = behaviour & SLOW_DISK;
    struct client client = {.io = world_reactor(world, "client", 2),
                            .data = data + 2,
                            .left = length - 2,
                            .chunk = 1u << (behaviour & 15) > CHUNK_MAX ? CHUNK_MAX : 1u << (behaviour & 15),
                            .reads = !(behaviour & NEVER_READS),
                            .send = {.done = client_sent},
                            .receive = {.done = client_received}};
    world_act_as(world, server_io);
    struct nbd_server *server = nbd_server_create(server_io);
    struct nbd_export export = {.name = "vda", .description = "the disk", .node = &disk->node};
    struct error err;
    int result = nbd_server_export_add(server, &export, &err);
    assert(result == 0);
    if (behaviour & TWO_EXPORTS) {
        disk->view = disk->node;
        disk->view.ops = &view_ops;
        disk->view.read_only = disk->view.can_release = true;
        disk->view.block_bytes = 4096;
        disk->view.dirty_maps = maps;
        disk->view.dirty_map_count = sizeof maps / sizeof maps[0];
        disk->view.read_once = (enum read_once)(data[1] % 3);
        export = (struct nbd_export){.name = "vda@snap", .node = &disk->view};
        result = nbd_server_export_add(server, &export, &err);
        assert(result == 0);
    }
    world_act_as(world, NULL);
    play_client(world, &client, server_io, server, behaviour & REMOVES_EXPORT);
    bool destroyed = false;
    world_act_as(world, server_io);
    nbd_server_destroy(server, set_flag, &destroyed);
    world_act_as(world, NULL);
    bool through = world_run_until(world, flag_is_set, &destroyed, 60 * NS_PER_S);
    assert(through);
    unsigned left = world_destroy(world, NULL);
    assert(left == 0);
    free(disk);
    return 0;
}
