/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One control connection.
 *
 * States: greeted -> negotiated -> finishing -> hung up -> freed; a peer may jump to "hung up" from anywhere.
 * Commands of one connection are executed one after the other; the next one is looked at when the last has
 * been answered and the peer takes its answers (below LIMIT_CONTROL_PIPELINE_BYTES wait). So nobody can make the daemon
 * queue more than one answer and LIMIT_CONTROL_QUEUE_BYTES of events: a peer that lets more events pile up is
 * dropped.
 *
 * A peer that has sent its last byte loses its leased snapshots at once; what it asked before is answered
 * still. A request that is under way when its connection is gone goes on with `client` NULL.
 *
 * The client is freed when nothing that points at it is under way: receive, transmit, the task.
 */
#include "control/client.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/limits.h"
#include "base/log.h"
#include "control/describe.h"

static void client_receive(struct control_client *client);
static void client_transmit(struct control_client *client);

static size_t output_bytes(const struct control_client *client)
{
    return client->queued.used + (client->sending.used - client->sent);
}

static void client_try_free(struct control_client *client)
{
    assert(client->hung_up);
    if (client->receiving || client->transmitting || list_linked(&client->process.link))
        return;
    struct control_server *server = client->server;
    io_timer_cancel(server->io, &client->deadline);
    io_close(server->io, client->fd);
    list_remove(&client->link);
    assert(server->client_count > 0);
    server->client_count--;
    message_reader_fini(&client->reader);
    free(client->queued.bytes);
    free(client->sending.bytes);
    free(client);
    server_check_finished(server);
}

static void client_end_lease(struct control_client *client)
{
    if (!client->server->destroyed) /* then the VM has ended already */
        vm_lease_end(client->server->host.vm, client->lease);
}

/* The connection is over. The client stays until the end of the tick, at least. */
static void client_hang_up(struct control_client *client)
{
    if (client->hung_up)
        return;
    client->hung_up = client->finishing = true;
    if (client->request) {
        client->request->client = NULL;
        client->request = NULL;
    }
    client_end_lease(client);
    io_timer_cancel(client->server->io, &client->deadline);
    io_shutdown(client->server->io, client->fd);
    io_task_queue(client->server->io, &client->process); /* frees it, at the earliest */
}

void client_finish(struct control_client *client)
{
    if (client->finishing)
        return;
    client->finishing = true;
    io_timer_set(client->server->io, &client->deadline, io_now_ns(client->server->io) + CONTROL_FLUSH_NS);
    if (output_bytes(client) == 0)
        client_hang_up(client);
}

static void deadline_passed(struct io_timer *timer)
{
    client_hang_up(container_of(timer, struct control_client, deadline));
}

/* --- output */

static int output_append(struct output *output, const char *bytes, size_t length)
{
    if (output->used + length > output->room) {
        size_t room = output->room ? output->room : 1024;
        while (room < output->used + length)
            room *= 2;
        char *grown = realloc(output->bytes, room);
        if (!grown)
            return -1;
        output->bytes = grown;
        output->room = room;
    }
    memcpy(output->bytes + output->used, bytes, length);
    output->used += length;
    return 0;
}

static void transmitted(struct io_op *op, int64_t result)
{
    struct control_client *client = container_of(op, struct control_client, transmit);
    client->transmitting = false;
    if (client->hung_up) {
        client_try_free(client);
        return;
    }
    if (result <= 0) {
        client_hang_up(client);
        return;
    }
    client->sent += (size_t)result;
    assert(client->sent <= client->sending.used);
    if (client->sent == client->sending.used) {
        free(client->sending.bytes);
        client->sending = (struct output){0};
        client->sent = 0;
    }
    client_transmit(client);
    io_task_queue(client->server->io, &client->process);
}

static void client_transmit(struct control_client *client)
{
    if (client->transmitting || client->hung_up)
        return;
    if (client->sending.used == 0) {
        if (client->queued.used == 0) {
            if (client->finishing)
                client_hang_up(client);
            return;
        }
        client->sending = client->queued;
        client->queued = (struct output){0};
    }
    client->iov = (struct iovec){client->sending.bytes + client->sent, client->sending.used - client->sent};
    client->transmitting = true;
    io_sendv(client->server->io, &client->transmit, client->fd, &client->iov, 1);
}

void client_send(struct control_client *client, json_t *message, bool is_event)
{
    char *text = message ? json_dumps(message, JSON_COMPACT) : NULL;
    json_decref(message);
    if (client->hung_up) {
        free(text);
        return;
    }
    bool full = is_event && output_bytes(client) > LIMIT_CONTROL_QUEUE_BYTES;
    if (full)
        log_warning("a control client that does not read its events was dropped");
    if (full || !text || output_append(&client->queued, text, strlen(text)) < 0 ||
        output_append(&client->queued, "\r\n", 2) < 0)
        client_hang_up(client);
    else
        client_transmit(client);
    free(text);
}

void client_send_error(struct control_client *client, const char *class, const char *text)
{
    json_t *desc = json_string(text);
    if (!desc)
        desc = json_string("the message is not UTF-8");
    client_send(client, json_pack("{s:{s:s, s:o}}", "error", "class", class, "desc", desc), false);
}

/* --- input */

static void received(struct io_op *op, int64_t result)
{
    struct control_client *client = container_of(op, struct control_client, receive);
    client->receiving = false;
    if (client->hung_up) {
        client_try_free(client);
        return;
    }
    if (result == 0) {
        client->ended = true;
        client_end_lease(client);
    } else if (result < 0 || message_reader_add(&client->reader, client->input, (size_t)result) < 0) {
        client_hang_up(client);
        return;
    }
    io_task_queue(client->server->io, &client->process);
}

static void client_receive(struct control_client *client)
{
    size_t length = message_reader_room(&client->reader);
    if (length > sizeof client->input)
        length = sizeof client->input;
    if (client->receiving || client->finishing || client->ended || length == 0)
        return; /* without room it is asked again when a message has been taken out */
    client->receiving = true;
    io_recv(client->server->io, &client->receive, client->fd, client->input, length);
}

/* One message, if there is a whole one. False: there is none. */
static bool client_take_message(struct control_client *client)
{
    json_t *message = NULL;
    struct error err;
    switch (message_reader_next(&client->reader, &message, &err)) {
    case MESSAGE_NONE:
        return false;
    case MESSAGE_OBJECT:
        control_command_execute(client, message);
        return true;
    case MESSAGE_WRONG:
        client_send_error(client, "GenericError", err.text);
        return true;
    case MESSAGE_FATAL:
        client_send_error(client, "GenericError", err.text);
        client_finish(client);
        return false;
    }
    return false;
}

static void client_process(struct io_task *task)
{
    struct control_client *client = container_of(task, struct control_client, process);
    bool more = true;
    while (more && !client->request && !client->finishing && output_bytes(client) < LIMIT_CONTROL_PIPELINE_BYTES)
        more = client_take_message(client);
    if (client->hung_up) {
        client_try_free(client);
        return;
    }
    if (client->ended && !more && !client->request)
        client_finish(client);
    client_receive(client);
}

void client_answered(struct control_client *client)
{
    client->request = NULL;
    io_task_queue(client->server->io, &client->process);
}

/* --- begin */

void client_create(struct control_server *server, int fd, const char *refusal)
{
    struct control_client *client = calloc(1, sizeof *client);
    if (!client) {
        io_close(server->io, fd);
        return;
    }
    client->server = server;
    client->fd = fd;
    client->lease = (const void *)(uintptr_t)++server->next_lease;
    client->receive.done = received;
    client->transmit.done = transmitted;
    client->deadline.fire = deadline_passed;
    client->process.run = client_process;
    message_reader_init(&client->reader);
    list_append(&server->clients, &client->link);
    server->client_count++;
    io_timer_set(server->io, &client->deadline, io_now_ns(server->io) + CONTROL_NEGOTIATE_NS);
    if (refusal) {
        client_send_error(client, "GenericError", refusal);
        client_finish(client);
    } else {
        client_send(client, json_pack("{s:{s:o, s:[]}}", "QMP", "version", describe_version(), "capabilities"), false);
        client_receive(client);
    }
}
