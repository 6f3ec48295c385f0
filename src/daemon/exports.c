/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A call goes: control thread -> message -> `serve` on the server's thread -> message -> `answer` on the control thread,
 * in the order in which calls were made, except that the removal of an export answers when its last connection is gone.
 *
 * The end waits for calls under way, so that no removal is caught by the destruction of the server. A removal that is asked
 * for while the server is being destroyed is answered after that, not before: only then does nobody use the node any more.
 * A call that needs no server goes through a message to the own thread all the same, since an answer must never come
 * inside of the call.
 */
#include "daemon/exports.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct exports {
    struct io *control, *server_io;
    struct nbd_server *server; /* touched on its thread only */
    enum { EXPORTS_DOWN, EXPORTS_UP, EXPORTS_ENDING } state;
    unsigned calls;      /* under way on the server */
    struct list waiting; /* struct call, for the end of the server */
    void (*stopped)(void *argument);
    void *stopped_argument;
};

struct call {
    struct io_message message;
    struct list_node link; /* exports->waiting */
    struct exports *exports;
    void (*serve)(struct call *call); /* ends with call_answer(), now or later */
    void (*answer)(struct call *call);
    /* What it is about: */
    char name[2 * LIMIT_NAME_BYTES + 2];
    struct node *node;
    struct vm *vm;
    const char *const *addresses;
    unsigned address_count;
    /* What came out: */
    int status;
    struct error err;
    struct nbd_server_status *server_status;
    /* Whom to tell: */
    union {
        void (*status)(void *argument, int status);
        void (*error)(void *argument, const struct error *err);
        void (*server)(void *argument, const struct nbd_server_status *status);
    } done;
    void *argument;
};

static void exports_end_if_idle(struct exports *exports);

static void call_answered(struct io_message *message)
{
    struct call *call = container_of(message, struct call, message);
    struct exports *exports = call->exports;
    call->answer(call);
    free(call);
    assert(exports->calls > 0);
    exports->calls--;
    exports_end_if_idle(exports);
}

static void call_answer(struct call *call)
{
    call->message.deliver = call_answered;
    io_post(call->exports->control, &call->message);
}

static void call_arrived(struct io_message *message)
{
    struct call *call = container_of(message, struct call, message);
    call->serve(call);
}

static struct call *call_create(struct exports *exports, void (*serve)(struct call *), void (*answer)(struct call *))
{
    struct call *call = calloc(1, sizeof *call);
    if (!call)
        abort(); /* a few hundred bytes on the control path: nothing could go on */
    call->exports = exports;
    call->serve = serve;
    call->answer = answer;
    return call;
}

/* To the server; or, when it is down, back with `status`; when it is ending, the same after its end. */
static void call_send(struct call *call, int status_without_server)
{
    struct exports *exports = call->exports;
    call->status = exports->state == EXPORTS_UP ? 0 : status_without_server;
    exports->calls++;
    switch (exports->state) {
    case EXPORTS_UP:
        call->message.deliver = call_arrived;
        io_post(exports->server_io, &call->message);
        break;
    case EXPORTS_DOWN:
        call_answer(call);
        break;
    case EXPORTS_ENDING:
        list_append(&exports->waiting, &call->link);
        break;
    }
}

struct exports *exports_create(struct io *control, struct io *server_io)
{
    struct exports *exports = calloc(1, sizeof *exports);
    if (!exports)
        return NULL;
    exports->control = control;
    exports->server_io = server_io;
    list_init(&exports->waiting);
    return exports;
}

void exports_destroy(struct exports *exports)
{
    assert(exports->calls == 0 && exports->state == EXPORTS_DOWN);
    free(exports);
}

/* --- start */

static int add_disks(struct nbd_server *server, const struct vm *vm, struct error *err)
{
    for (unsigned i = 0; i < vm_disk_count(vm); i++) {
        struct disk *disk = vm_disk(vm, i);
        struct nbd_export export = {.name = disk->name, .node = &disk->node, .read_only = disk->node.read_only};
        int status = nbd_server_export_add(server, &export, err);
        if (status < 0)
            return status;
    }
    return 0;
}

static void start_serve(struct call *call)
{
    struct exports *exports = call->exports;
    exports->server = nbd_server_create(exports->server_io);
    if (!exports->server)
        call->status = error_set(&call->err, ENOMEM, "no memory for the NBD server");
    else
        call->status = add_disks(exports->server, call->vm, &call->err);
    for (unsigned i = 0; i < call->address_count && call->status == 0; i++) {
        call->status = nbd_server_listen(exports->server, call->addresses[i], &call->err);
        if (call->status < 0)
            error_prefix(&call->err, "--nbd");
    }
    call_answer(call);
}

static void start_answer(struct call *call)
{
    call->done.error(call->argument, call->status < 0 ? &call->err : NULL);
}

void exports_start(struct exports *exports, struct vm *vm, const char *const *addresses, unsigned address_count,
                   void (*done)(void *argument, const struct error *err), void *argument)
{
    assert(exports->state == EXPORTS_DOWN);
    exports->state = EXPORTS_UP;
    struct call *call = call_create(exports, start_serve, start_answer);
    call->vm = vm;
    call->addresses = addresses;
    call->address_count = address_count;
    call->done.error = done;
    call->argument = argument;
    call_send(call, 0);
}

/* --- snapshots come and go */

static void status_answer(struct call *call)
{
    call->done.status(call->argument, call->status);
}

static void publish_serve(struct call *call)
{
    struct nbd_export export = {.name = call->name, .node = call->node}; /* read-only by itself */
    call->status = nbd_server_export_add(call->exports->server, &export, &call->err);
    call_answer(call);
}

void exports_publish(void *context, const char *export_name, struct node *node,
                     void (*done)(void *argument, int status), void *argument)
{
    struct call *call = call_create(context, publish_serve, status_answer);
    snprintf(call->name, sizeof call->name, "%s", export_name);
    call->node = node;
    call->done.status = done;
    call->argument = argument;
    call_send(call, -ESHUTDOWN);
}

static void removed(void *argument)
{
    call_answer(argument);
}

static void unpublish_serve(struct call *call)
{
    nbd_server_export_remove(call->exports->server, call->name, removed, call);
}

void exports_unpublish(void *context, const char *export_name, void (*done)(void *argument, int status), void *argument)
{
    struct call *call = call_create(context, unpublish_serve, status_answer);
    snprintf(call->name, sizeof call->name, "%s", export_name);
    call->done.status = done;
    call->argument = argument;
    call_send(call, 0);
}

/* --- status */

static void query_serve(struct call *call)
{
    call->server_status = nbd_server_status(call->exports->server);
    call_answer(call);
}

static void query_answer(struct call *call)
{
    call->done.server(call->argument, call->server_status);
    free(call->server_status);
}

void exports_query(struct exports *exports, void (*done)(void *argument, const struct nbd_server_status *status),
                   void *argument)
{
    struct call *call = call_create(exports, query_serve, query_answer);
    call->done.server = done;
    call->argument = argument;
    call_send(call, 0);
}

/* --- the end */

static void server_destroyed(void *argument)
{
    struct call *call = argument;
    call->exports->server = NULL;
    call_answer(call);
}

static void stop_serve(struct call *call)
{
    if (call->exports->server)
        nbd_server_destroy(call->exports->server, server_destroyed, call);
    else
        call_answer(call);
}

static void stop_answer(struct call *call)
{
    struct exports *exports = call->exports;
    exports->state = EXPORTS_DOWN;
    while (!list_empty(&exports->waiting))
        call_answer(container_of(list_take_first(&exports->waiting), struct call, link));
    void (*stopped)(void *) = exports->stopped;
    exports->stopped = NULL;
    stopped(exports->stopped_argument);
}

static void exports_end_if_idle(struct exports *exports)
{
    if (!exports->stopped || exports->calls > 0)
        return;
    struct call *call = call_create(exports, stop_serve, stop_answer);
    exports->state = EXPORTS_UP;
    call_send(call, 0);
    exports->state = EXPORTS_ENDING;
}

void exports_stop(struct exports *exports, void (*done)(void *argument), void *argument)
{
    assert(!exports->stopped);
    exports->stopped = done;
    exports->stopped_argument = argument;
    exports_end_if_idle(exports);
}
