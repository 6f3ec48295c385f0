/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 *   CREATED -> LISTENING <-> SERVING -> ENDING -> freed
 *
 * While a session lives nothing is accepted. The end shuts the listener, and the session in good order; when both are
 * gone the caller is told, and the export freed there.
 *
 * One question may be with the caller's thread: a guest that migrates has stopped, or one wants to start, or to migrate.
 * The end answers it itself.
 */
#include "export/vhost_user/server.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

#include "base/log.h"
#include "export/vhost_user/session.h"

enum state { EXPORT_CREATED, EXPORT_LISTENING, EXPORT_SERVING, EXPORT_ENDING };

struct vhost_export {
    struct io *caller, *io;
    struct node *node;
    char disk[LIMIT_NAME_BYTES + 1];
    char address[sizeof "unix:" + sizeof(((struct sockaddr_un *)0)->sun_path)];
    struct vhost_counters counters;
    struct vhost_export_hooks hooks;
    struct io_message message;  /* to the reactor and back */
    struct io_message resized;  /* to the reactor */
    struct io_message question; /* to the caller and back */
    bool questioned, ending;    /* the caller's: it has not answered yet; the end has begun */
    enum vhost_place wanted;    /* with the question */
    struct {
        bool given;
        enum vhost_place place;
        struct node *node;
    } answer; /* with the answer */
    struct error err;
    union {
        void (*started)(void *argument, const struct error *err);
        void (*ended)(void *argument);
    } done;
    void *argument;
    /* The reactor's: */
    enum state state;
    int listener;
    bool accepting, warned;
    struct io_op accept;
    struct io_timer pause;
    struct vhost_session *session;
    struct vhost_home home;
};

/* --- the end */

static void export_freed(struct io_message *message)
{
    struct vhost_export *export = container_of(message, struct vhost_export, message);
    void (*ended)(void *) = export->done.ended;
    void *argument = export->argument;
    free(export);
    ended(argument);
}

static void end_if_idle(struct vhost_export *export)
{
    if (export->state != EXPORT_ENDING || export->accepting || export->session || export->home.asked)
        return;
    io_timer_cancel(export->io, &export->pause);
    if (export->listener >= 0)
        io_close(export->io, export->listener);
    export->message.deliver = export_freed;
    io_post(export->caller, &export->message);
}

static void export_end(struct io_message *message)
{
    struct vhost_export *export = container_of(message, struct vhost_export, message);
    export->state = EXPORT_ENDING;
    if (export->accepting) {
        io_shutdown(export->io, export->listener);
        io_cancel(export->io, &export->accept);
    }
    if (export->session)
        vhost_session_leave(export->session);
    end_if_idle(export);
}

static void export_resized(struct io_message *message)
{
    struct vhost_export *export = container_of(message, struct vhost_export, resized);
    if (export->session)
        vhost_session_resized(export->session);
}

void vhost_export_resized(struct vhost_export *export)
{
    export->resized.deliver = export_resized;
    io_post(export->io, &export->resized);
}

/* --- questions */

static void question_answered(struct io_message *message)
{
    struct vhost_export *export = container_of(message, struct vhost_export, question);
    export->home.asked = false;
    if (export->answer.given) {
        export->home.place = export->answer.place;
        export->node = export->answer.node ? export->answer.node : export->node;
    }
    if (export->session) {
        export->session->node = export->node;
        vhost_session_wake(export->session);
    }
    end_if_idle(export);
}

static void answer(struct vhost_export *export)
{
    assert(export->questioned);
    export->questioned = false;
    export->question.deliver = question_answered;
    io_post(export->io, &export->question);
}

void vhost_export_answer(struct vhost_export *export, enum vhost_place place, struct node *node)
{
    assert(!export->ending);
    export->answer.given = true;
    export->answer.place = place;
    export->answer.node = node;
    answer(export);
}

static void questioned(struct io_message *message)
{
    struct vhost_export *export = container_of(message, struct vhost_export, question);
    export->questioned = true;
    export->answer.given = false;
    if (export->ending)
        answer(export);
    else if (export->wanted == VHOST_ELSEWHERE)
        export->hooks.parting(export->hooks.context, export);
    else
        export->hooks.staying(export->hooks.context, export, export->wanted == VHOST_MIGRATING);
}

static void ask(struct vhost_home *home)
{
    struct vhost_export *export = container_of(home, struct vhost_export, home);
    export->wanted = home->wanted;
    export->question.deliver = questioned;
    io_post(export->caller, &export->question);
}

void vhost_export_end(struct vhost_export *export, void (*done)(void *argument), void *argument)
{
    export->ending = true;
    if (export->questioned)
        answer(export);
    export->done.ended = done;
    export->argument = argument;
    export->message.deliver = export_end;
    io_post(export->io, &export->message);
}

/* --- connections */

static void accept_next(struct vhost_export *export)
{
    export->state = EXPORT_LISTENING;
    export->accepting = true;
    io_accept(export->io, &export->accept, export->listener);
}

static void pause_over(struct io_timer *timer)
{
    struct vhost_export *export = container_of(timer, struct vhost_export, pause);
    if (export->state != EXPORT_ENDING)
        accept_next(export);
}

static void accept_later(struct vhost_export *export, const char *why)
{
    if (!export->warned)
        log_warning("vhost-user disk %s: cannot accept a connection: %s", export->disk, why);
    export->warned = true;
    io_timer_set(export->io, &export->pause, io_now_ns(export->io) + ACCEPT_PAUSE_NS);
}

static void session_gone(void *argument)
{
    struct vhost_export *export = argument;
    export->session = NULL;
    if (export->state == EXPORT_ENDING)
        end_if_idle(export);
    else
        accept_next(export);
}

static void accepted(struct io_op *op, int64_t result)
{
    struct vhost_export *export = container_of(op, struct vhost_export, accept);
    export->accepting = false;
    if (export->state == EXPORT_ENDING) {
        if (result >= 0)
            io_close(export->io, (int)result);
        end_if_idle(export);
        return;
    }
    if (result < 0) {
        accept_later(export, error_name((int)result));
        return;
    }
    export->session = vhost_session_create(export->io, export->node, export->disk, &export->counters);
    if (!export->session) {
        io_close(export->io, (int)result);
        accept_later(export, "no memory");
        return;
    }
    export->session->home = &export->home;
    export->warned = false;
    export->state = EXPORT_SERVING;
    vhost_session_start(export->session, (int)result, session_gone, export);
}

/* --- the start */

static void export_started(struct io_message *message)
{
    struct vhost_export *export = container_of(message, struct vhost_export, message);
    export->done.started(export->argument, export->err.code ? &export->err : NULL);
}

static void export_start(struct io_message *message)
{
    struct vhost_export *export = container_of(message, struct vhost_export, message);
    export->listener = io_listen(export->io, export->address, &export->err);
    if (export->listener >= 0)
        accept_next(export);
    export->message.deliver = export_started;
    io_post(export->caller, &export->message);
}

void vhost_export_start(struct vhost_export *export, void (*done)(void *argument, const struct error *err),
                        void *argument)
{
    export->done.started = done;
    export->argument = argument;
    export->message.deliver = export_start;
    io_post(export->io, &export->message);
}

struct vhost_export *vhost_export_create(struct io *caller, struct node *node, bool here, const char *disk,
                                         const char *socket, const struct vhost_export_hooks *hooks)
{
    struct vhost_export *export = calloc(1, sizeof *export);
    if (!export)
        return NULL;
    export->caller = caller;
    export->io = node->io;
    export->node = node;
    export->home = (struct vhost_home){.place = here ? VHOST_HERE : VHOST_ELSEWHERE, .ask = ask};
    export->hooks = *hooks;
    export->listener = -1;
    export->accept.done = accepted;
    export->pause.fire = pause_over;
    snprintf(export->disk, sizeof export->disk, "%s", disk);
    int length = snprintf(export->address, sizeof export->address, "unix:%s", socket);
    assert(length < (int)sizeof export->address); /* options have been checked */
    return export;
}

void vhost_export_status(const struct vhost_export *export, struct vhost_export_status *status)
{
    const struct vhost_counters *counters = &export->counters;
    *status = (struct vhost_export_status){
        .disk = export->disk,
        .socket = export->address + strlen("unix:"),
        .connected = atomic_load_explicit(&counters->connected, memory_order_relaxed),
        .queues = atomic_load_explicit(&counters->queues, memory_order_relaxed),
        .connections = atomic_load_explicit(&counters->connections, memory_order_relaxed),
        .requests = atomic_load_explicit(&counters->requests, memory_order_relaxed),
        .kicks = atomic_load_explicit(&counters->kicks, memory_order_relaxed),
        .calls = atomic_load_explicit(&counters->calls, memory_order_relaxed),
        .polled = atomic_load_explicit(&counters->polled, memory_order_relaxed),
    };
}
