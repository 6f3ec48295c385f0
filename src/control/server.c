/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The control server: the listener, the list of its clients, the end.
 *
 * At most LIMIT_CONTROL_CLIENTS connections; one more is told so and closed, and LIMIT_CONTROL_REFUSALS more than
 * that are closed without a word. A failed accept (out of descriptors) is tried again after a pause, so that
 * it neither spins nor ends the service.
 *
 * The end has two steps, since commands may be under way in the VM: control_server_stop() refuses new ones
 * while the old ones are answered; control_server_destroy() then sends what is queued, hangs up and frees the
 * server when the last client, request and operation is gone.
 */
#include "control/client.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/limits.h"

static void server_accept(struct control_server *server)
{
    if (server->listener < 0 || server->accepting || server->destroyed)
        return;
    server->accepting = true;
    io_accept(server->io, &server->accept, server->listener);
}

void control_server_adopt(struct control_server *server, int fd)
{
    char refusal[128];
    snprintf(refusal, sizeof refusal, "too many control connections: %d at most", LIMIT_CONTROL_CLIENTS);
    if (server->client_count >= LIMIT_CONTROL_CLIENTS + LIMIT_CONTROL_REFUSALS || server->destroyed)
        io_close(server->io, fd);
    else
        client_create(server, fd, server->client_count >= LIMIT_CONTROL_CLIENTS ? refusal : NULL);
}

static void accepted(struct io_op *op, int64_t result)
{
    struct control_server *server = container_of(op, struct control_server, accept);
    server->accepting = false;
    if (result >= 0)
        control_server_adopt(server, (int)result);
    if (server->destroyed)
        server_check_finished(server);
    else if (result < 0 && result != -ECONNABORTED && result != -EINTR)
        io_timer_set(server->io, &server->accept_retry, io_now_ns(server->io) + ACCEPT_PAUSE_NS);
    else
        server_accept(server);
}

static void accept_again(struct io_timer *timer)
{
    server_accept(container_of(timer, struct control_server, accept_retry));
}

static void server_finish(struct io_task *task)
{
    struct control_server *server = container_of(task, struct control_server, finish);
    if (!list_empty(&server->clients) || !list_empty(&server->requests) || server->accepting)
        return;
    void (*destroyed)(void *) = server->destroyed;
    void *argument = server->destroyed_argument;
    if (server->listener >= 0)
        io_close(server->io, server->listener);
    free(server);
    destroyed(argument);
}

void server_check_finished(struct control_server *server)
{
    if (server->destroyed)
        io_task_queue(server->io, &server->finish);
}

struct control_server *control_server_create(struct io *io, const struct control_host *host)
{
    struct control_server *server = calloc(1, sizeof *server);
    if (!server)
        return NULL;
    server->io = io;
    server->host = *host;
    server->listener = -1;
    server->accept.done = accepted;
    server->accept_retry.fire = accept_again;
    server->finish.run = server_finish;
    list_init(&server->clients);
    list_init(&server->requests);
    return server;
}

int control_server_listen(struct control_server *server, const char *path, struct error *err)
{
    assert(server->listener < 0);
    char address[PATH_MAX];
    snprintf(address, sizeof address, "unix:%s", path);
    int fd = io_listen(server->io, address, err);
    if (fd < 0)
        return fd;
    server->listener = fd;
    server_accept(server);
    return 0;
}

static json_t *timestamp(struct control_server *server)
{
    uint64_t now_ns = io_wall_ns(server->io);
    return json_pack("{s:I, s:I}", "seconds", (json_int_t)(now_ns / NS_PER_S), "microseconds",
                     (json_int_t)(now_ns % NS_PER_S / NS_PER_US));
}

void server_emit(struct control_server *server, const char *event, json_t *data)
{
    json_t *message = json_pack("{s:o, s:s}", "timestamp", timestamp(server), "event", event);
    if (message && data)
        json_object_set(message, "data", data);
    json_decref(data);
    list_each_safe (position, &server->clients) {
        struct control_client *client = container_of(position, struct control_client, link);
        if (message && client->negotiated && !client->finishing)
            client_send(client, json_incref(message), true);
    }
    json_decref(message);
}

void control_server_stop(struct control_server *server, const char *reason)
{
    if (server->stopping)
        return;
    server->stopping = true;
    server_emit(server, "SHUTDOWN", json_pack("{s:b, s:s}", "guest", 0, "reason", reason));
}

void control_server_destroy(struct control_server *server, void (*done)(void *argument), void *argument)
{
    assert(server->stopping && !server->destroyed);
    server->destroyed = done;
    server->destroyed_argument = argument;
    io_timer_cancel(server->io, &server->accept_retry);
    if (server->accepting)
        io_cancel(server->io, &server->accept);
    list_each_safe (position, &server->clients)
        client_finish(container_of(position, struct control_client, link));
    server_check_finished(server);
}
