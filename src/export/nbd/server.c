/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The server: listeners, the table of exports, and the two ways in which things end.
 *
 * Removing an export: it leaves the table at once; a message tells its home, on the reactor of the node, which shuts its
 * sessions down and answers when none is left. When that was the last export on that reactor, a second message makes the
 * reactor give back its memory and timer; only then is `done` called, since the caller may end the reactor next.
 *
 * Destroying the server: listeners close, handshakes end, all exports are removed; when all three are through, the server
 * is freed in a task of its own.
 */
#include "export/nbd/server.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "export/nbd/handshake.h"
#include "export/nbd/wire.h"
#include "io/address.h"

struct nbd_server {
    struct io *io;
    struct nbd_budget budget;
    struct nbd_read_once_totals read_once;
    struct nbd_table table;
    struct nbd_lobby lobby;
    struct list listeners, reactors, removing;
    bool closing;
    struct io_task finish;
    void (*destroyed)(void *argument);
    void *destroyed_argument;
};

struct listener {
    struct list_node link;
    struct nbd_server *server;
    int fd;
    bool accepting, warned;
    struct io_op accept;
    struct io_timer pause;
};

static void finish_check(struct nbd_server *server)
{
    if (server->closing)
        io_task_queue(server->io, &server->finish);
}

static void lobby_emptied(struct nbd_lobby *lobby)
{
    finish_check(container_of(lobby, struct nbd_server, lobby));
}

static void server_finish(struct io_task *task)
{
    struct nbd_server *server = container_of(task, struct nbd_server, finish);
    if (!list_empty(&server->listeners) || !list_empty(&server->lobby.handshakes) ||
        !list_empty(&server->table.entries) || !list_empty(&server->removing))
        return;
    assert(atomic_load(&server->lobby.connections) == 0 && list_empty(&server->reactors));
    assert(atomic_load(&server->budget.lent_bytes) == 0 && atomic_load(&server->budget.memory_bytes) == 0);
    void (*destroyed)(void *argument) = server->destroyed;
    void *argument = server->destroyed_argument;
    free(server);
    destroyed(argument);
}

struct nbd_server *nbd_server_create(struct io *io)
{
    struct nbd_server *server = calloc(1, sizeof *server);
    if (!server)
        return NULL;
    server->io = io;
    nbd_table_init(&server->table);
    server->lobby.io = io;
    server->lobby.table = &server->table;
    server->lobby.emptied = lobby_emptied;
    list_init(&server->lobby.handshakes);
    list_init(&server->listeners);
    list_init(&server->reactors);
    list_init(&server->removing);
    server->finish.run = server_finish;
    return server;
}

/* Listeners. */

static void listener_free(struct listener *listener)
{
    struct nbd_server *server = listener->server;
    io_timer_cancel(server->io, &listener->pause);
    io_close(server->io, listener->fd);
    list_remove(&listener->link);
    free(listener);
    finish_check(server);
}

static void listener_accept(struct listener *listener)
{
    listener->accepting = true;
    io_accept(listener->server->io, &listener->accept, listener->fd);
}

static void pause_over(struct io_timer *timer)
{
    listener_accept(container_of(timer, struct listener, pause));
}

static bool out_of_descriptors(int64_t result)
{
    return result == -EMFILE || result == -ENFILE || result == -ENOBUFS || result == -ENOMEM;
}

static void accept_done(struct io_op *op, int64_t result)
{
    struct listener *listener = container_of(op, struct listener, accept);
    struct nbd_server *server = listener->server;
    listener->accepting = false;
    if (server->closing) {
        if (result >= 0)
            io_close(server->io, (int)result);
        listener_free(listener);
        return;
    }
    if (result >= 0) {
        nbd_handshake_start(&server->lobby, (int)result);
        listener_accept(listener);
        return;
    }
    if (out_of_descriptors(result) && !listener->warned) {
        log_warning("NBD: cannot accept connections: %s; raise the limit of open files (ulimit -n)",
                    error_name((int)result));
        listener->warned = true;
    }
    io_timer_set(server->io, &listener->pause, io_now_ns(server->io) + ACCEPT_PAUSE_NS);
}

int nbd_server_listen(struct nbd_server *server, const char *address, struct error *err)
{
    assert(io_on_owner(server->io) && !server->closing);
    int result = address_check_loopback(address, err);
    if (result == -EACCES)
        return error_set(
            err, EPERM,
            "NBD address \"%s\" can be reached from other machines: without TLS, which does not exist yet, "
            "only loopback addresses (tcp:127.0.0.1:PORT, tcp:[::1]:PORT) and unix:PATH are served",
            address);
    if (result < 0)
        return result;
    struct listener *listener = calloc(1, sizeof *listener);
    if (!listener)
        return error_set(err, ENOMEM, "no memory to listen on \"%s\"", address);
    listener->server = server;
    listener->fd = io_listen(server->io, address, err);
    if (listener->fd < 0) {
        result = listener->fd;
        free(listener);
        return result;
    }
    listener->accept.done = accept_done;
    listener->pause.fire = pause_over;
    list_append(&server->listeners, &listener->link);
    listener_accept(listener);
    return 0;
}

void nbd_server_adopt(struct nbd_server *server, int fd)
{
    assert(io_on_owner(server->io));
    nbd_handshake_start(&server->lobby, fd);
}

/* Exports. */

static struct nbd_reactor *reactor_for(struct nbd_server *server, struct io *io)
{
    list_each (node, &server->reactors) {
        struct nbd_reactor *reactor = container_of(node, struct nbd_reactor, link);
        if (reactor->io == io && reactor->home_count > 0) /* else it is being put to rest */
            return reactor;
    }
    struct nbd_reactor *reactor = nbd_reactor_create(io, &server->budget);
    if (reactor) {
        reactor->server_io = server->io;
        list_append(&server->reactors, &reactor->link);
    }
    return reactor;
}

static void entry_finish(struct nbd_entry *entry)
{
    struct nbd_server *server = entry->server;
    list_remove(&entry->link);
    if (entry->removed)
        entry->removed(entry->removed_argument);
    free(entry);
    finish_check(server);
}

static void reactor_rested(struct io_message *message)
{
    struct nbd_reactor *reactor = container_of(message, struct nbd_reactor, rested);
    struct nbd_entry *last = container_of(reactor->last_home, struct nbd_entry, home);
    list_remove(&reactor->link);
    nbd_reactor_destroy(reactor);
    entry_finish(last);
}

static void home_gone(struct io_message *message)
{
    struct nbd_entry *entry = container_of(message, struct nbd_entry, home.gone);
    struct nbd_reactor *reactor = entry->home.reactor;
    if (--reactor->home_count > 0) {
        entry_finish(entry);
        return;
    }
    reactor->last_home = &entry->home;
    reactor->rested.deliver = reactor_rested;
    io_post(reactor->io, &reactor->rest);
}

static void home_remove(struct io_message *message)
{
    nbd_home_remove(container_of(message, struct nbd_home, remove));
}

int nbd_server_export_add(struct nbd_server *server, const struct nbd_export *export, struct error *err)
{
    assert(io_on_owner(server->io) && !server->closing);
    struct nbd_entry *entry;
    int result = nbd_entry_create(&server->table, export, &entry, err);
    if (result < 0)
        return result;
    struct nbd_reactor *reactor = reactor_for(server, export->node->io);
    if (!reactor) {
        free(entry);
        return error_set(err, ENOMEM, "no memory for export \"%s\"", export->name);
    }
    reactor->home_count++;
    entry->server = server;
    entry->home.reactor = reactor;
    entry->home.server_io = server->io;
    entry->home.all_connections = &server->lobby.connections;
    entry->home.read_once_totals = &server->read_once;
    entry->home.remove.deliver = home_remove;
    entry->home.gone.deliver = home_gone;
    nbd_table_append(&server->table, entry);
    return 0;
}

static void entry_remove(struct nbd_server *server, struct nbd_entry *entry, void (*done)(void *argument),
                         void *argument)
{
    nbd_table_remove(&server->table, entry);
    list_append(&server->removing, &entry->link);
    entry->removed = done;
    entry->removed_argument = argument;
    io_post(entry->home.reactor->io, &entry->home.remove);
}

void nbd_server_export_remove(struct nbd_server *server, const char *name, void (*done)(void *argument), void *argument)
{
    assert(io_on_owner(server->io) && name[0]);
    struct nbd_entry *entry = nbd_table_find(&server->table, (struct nbd_text){(const uint8_t *)name, strlen(name)});
    assert(entry); /* the caller knows what it added */
    entry_remove(server, entry, done, argument);
}

void nbd_server_destroy(struct nbd_server *server, void (*done)(void *argument), void *argument)
{
    assert(io_on_owner(server->io) && !server->closing);
    server->closing = true;
    server->destroyed = done;
    server->destroyed_argument = argument;
    list_each_safe (node, &server->listeners) {
        struct listener *listener = container_of(node, struct listener, link);
        if (listener->accepting) {
            io_shutdown(server->io, listener->fd);
            io_cancel(server->io, &listener->accept);
        } else {
            listener_free(listener);
        }
    }
    nbd_lobby_clear(&server->lobby);
    list_each_safe (node, &server->table.entries)
        entry_remove(server, container_of(node, struct nbd_entry, link), NULL, NULL);
    finish_check(server);
}

struct nbd_server_status *nbd_server_status(struct nbd_server *server)
{
    assert(io_on_owner(server->io));
    struct nbd_server_status *status = calloc(1, sizeof *status + server->table.count * sizeof status->exports[0]);
    if (!status)
        return NULL;
    status->connections = atomic_load(&server->lobby.connections);
    status->buffer_bytes_now = atomic_load(&server->budget.memory_bytes);
    status->buffer_bytes_peak = atomic_load(&server->budget.memory_peak_bytes);
    status->read_once_sent_bytes = atomic_load(&server->read_once.sent_bytes);
    status->read_once_released_bytes = atomic_load(&server->read_once.released_bytes);
    status->read_once_forgotten_bytes = atomic_load(&server->read_once.forgotten_bytes);
    status->read_once_memory_bytes = atomic_load(&server->read_once.memory_bytes);
    list_each (node, &server->table.entries) {
        struct nbd_entry *entry = container_of(node, struct nbd_entry, link);
        struct nbd_export_status *export = &status->exports[status->export_count++];
        strcpy(export->name, entry->name);
        export->size_bytes = node_size(entry->home.node);
        export->read_only = (entry->flags & NBD_FLAG_READ_ONLY) || entry->releases;
        export->connections = atomic_load(&entry->home.connections);
    }
    return status;
}
