/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The client of the control socket.
 *
 * The daemon sends one message a line: a greeting once, then one reply for each command, in order, and events
 * between them at any time. A command is sent with an id of our own and everything is read until its reply is
 * there; events met on the way are kept, at most LIMIT_CLIENT_EVENTS of them (the oldest is dropped then: a
 * caller that never asks for events must not grow). Any broken message or lost connection is final: `broken`
 * holds the sentence that every later call repeats.
 */
#include "fleece/fleece.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <jansson.h>

#include "base/error.h"
#include "base/limits.h"
#include "base/list.h"
#include "base/place.h"

struct kept_event {
    struct list_node link;
    char *text;
};

struct fleece {
    int fd;
    char path[sizeof((struct sockaddr_un *)0)->sun_path];
    uint64_t next_id;
    char *buffer; /* received, not yet taken: [0, used) */
    size_t used, room;
    struct list events; /* struct kept_event, oldest first */
    unsigned event_count;
    char broken[FLEECE_ERROR_BYTES]; /* why the connection can't be used any more; empty: it can */
};

static void say(char *error, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void say(char *error, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(error, FLEECE_ERROR_BYTES, format, args);
    va_end(args);
}

/* The connection is over; the sentence is kept for later calls. Returns -1. */
static int break_connection(struct fleece *fleece, const char *why)
{
    if (!fleece->broken[0])
        snprintf(fleece->broken, sizeof fleece->broken, "the daemon at %s %s", fleece->path, why);
    return -1;
}

static int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Waits for input until deadline_ms (-1: for ever) and reads what is there. 1: read, 0: time is over, -1:
 * broken. */
static int receive(struct fleece *fleece, int64_t deadline_ms)
{
    if (fleece->used == fleece->room) {
        size_t room = fleece->room ? 2 * fleece->room : 4096;
        if (room > LIMIT_CLIENT_MESSAGE_BYTES)
            return break_connection(fleece, "sent a message that is too long");
        char *buffer = realloc(fleece->buffer, room);
        if (!buffer)
            return break_connection(fleece, "sent a message that does not fit into memory");
        fleece->buffer = buffer;
        fleece->room = room;
    }
    for (;;) {
        int64_t left = deadline_ms < 0 ? -1 : deadline_ms - now_ms();
        if (deadline_ms >= 0 && left < 0)
            left = 0;
        struct pollfd pollfd = {.fd = fleece->fd, .events = POLLIN};
        int ready = poll(&pollfd, 1, left > INT32_MAX ? INT32_MAX : (int)left);
        if (ready == 0)
            return 0;
        if (ready < 0 && errno != EINTR)
            return break_connection(fleece, "can't be waited for");
        if (ready < 0)
            continue;
        ssize_t got = recv(fleece->fd, fleece->buffer + fleece->used, fleece->room - fleece->used, 0);
        if (got > 0) {
            fleece->used += (size_t)got;
            return 1;
        }
        if (got == 0 || errno != EINTR)
            return break_connection(fleece, "has closed the connection");
    }
}

/* Takes one message. 1: in *message (a new reference), 0: time is over, -1: broken. */
static int take_message(struct fleece *fleece, int64_t deadline_ms, json_t **message)
{
    size_t looked = 0;
    for (;;) {
        char *newline = looked < fleece->used ? memchr(fleece->buffer + looked, '\n', fleece->used - looked) : NULL;
        if (!newline) {
            looked = fleece->used;
            int got = receive(fleece, deadline_ms);
            if (got <= 0)
                return got;
            continue;
        }
        size_t length = (size_t)(newline - fleece->buffer);
        json_t *json = json_loadb(fleece->buffer, length, 0, NULL);
        fleece->used -= length + 1;
        memmove(fleece->buffer, newline + 1, fleece->used);
        if (!json_is_object(json)) {
            json_decref(json);
            return break_connection(fleece, "sent something that is not a message of its protocol");
        }
        *message = json;
        return 1;
    }
}

static void keep_event(struct fleece *fleece, json_t *event)
{
    struct kept_event *kept = calloc(1, sizeof *kept);
    char *text = json_dumps(event, JSON_COMPACT);
    if (!kept || !text) {
        free(kept);
        free(text);
        return;
    }
    kept->text = text;
    list_append(&fleece->events, &kept->link);
    if (++fleece->event_count > LIMIT_CLIENT_EVENTS) {
        struct kept_event *oldest = container_of(list_take_first(&fleece->events), struct kept_event, link);
        fleece->event_count--;
        free(oldest->text);
        free(oldest);
    }
}

static int send_all(struct fleece *fleece, const char *text, size_t length)
{
    while (length > 0) {
        ssize_t sent = send(fleece->fd, text, length, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0)
            return break_connection(fleece, "has closed the connection");
        text += sent;
        length -= (size_t)sent;
    }
    return 0;
}

static int send_command(struct fleece *fleece, const char *command, json_t *arguments, uint64_t id)
{
    json_t *message = json_pack("{s:s, s:I}", "execute", command, "id", (json_int_t)id);
    if (message && arguments)
        json_object_set(message, "arguments", arguments);
    char *text = message ? json_dumps(message, JSON_COMPACT) : NULL;
    json_decref(message);
    if (!text)
        return break_connection(fleece, "could not be asked: no memory, or a command that is not UTF-8");
    size_t length = strlen(text);
    text[length] = '\n'; /* in place of the terminator */
    int status = send_all(fleece, text, length + 1);
    free(text);
    return status;
}

static char *take_reply(struct fleece *fleece, const char *command, uint64_t id, int64_t deadline_ms, char *error)
{
    for (;;) {
        json_t *message = NULL;
        int got = take_message(fleece, deadline_ms, &message);
        if (got == 0)
            break_connection(fleece, "does not answer");
        if (got <= 0) {
            say(error, "%s", fleece->broken);
            return NULL;
        }
        char *text = NULL;
        json_t *value = json_object_get(message, "return");
        json_t *failure = json_object_get(message, "error");
        bool ours = (json_int_t)id == json_integer_value(json_object_get(message, "id"));
        if (json_object_get(message, "event"))
            keep_event(fleece, message);
        else if (value && ours)
            text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
        else if (failure) {
            const char *sentence = json_string_value(json_object_get(failure, "desc"));
            say(error, "%s", sentence ? sentence : "the daemon gave no reason");
        }
        bool replied = (value && ours) || failure;
        json_decref(message);
        if (replied) {
            if (!text && !failure)
                say(error, "no memory for the reply to %s", command);
            return text;
        }
    }
}

char *fleece_execute(struct fleece *fleece, const char *command, const char *arguments, char *error)
{
    error[0] = 0;
    if (fleece->broken[0]) {
        say(error, "%s", fleece->broken);
        return NULL;
    }
    json_t *json = NULL;
    if (arguments) {
        json_error_t where;
        json = json_loads(arguments, JSON_REJECT_DUPLICATES, &where);
        if (!json_is_object(json)) {
            say(error, "arguments of %s are not a JSON object: %s", command, json ? arguments : where.text);
            json_decref(json);
            return NULL;
        }
    }
    uint64_t id = ++fleece->next_id;
    int status = send_command(fleece, command, json, id);
    json_decref(json);
    /* A daemon that refuses the connection says why and hangs up, perhaps before it read anything: look for
     * that. */
    char *text = take_reply(fleece, command, id, -1, error);
    assert(!(status < 0 && text) || fleece->broken[0]);
    return text;
}

char *fleece_event(struct fleece *fleece, int timeout_ms, char *error)
{
    error[0] = 0;
    int64_t deadline_ms = timeout_ms < 0 ? -1 : now_ms() + timeout_ms;
    while (list_empty(&fleece->events) && !fleece->broken[0]) {
        json_t *message = NULL;
        int got = take_message(fleece, deadline_ms, &message);
        if (got == 0)
            return NULL;
        if (got > 0 && json_object_get(message, "event"))
            keep_event(fleece, message);
        json_decref(message);
    }
    if (list_empty(&fleece->events)) {
        say(error, "%s", fleece->broken);
        return NULL;
    }
    struct kept_event *kept = container_of(list_take_first(&fleece->events), struct kept_event, link);
    fleece->event_count--;
    char *text = kept->text;
    free(kept);
    return text;
}

int fleece_descriptor(const struct fleece *fleece)
{
    return fleece->fd;
}

static int connect_to(struct fleece *fleece, const char *path, char *error)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path) {
        say(error, "control socket path '%.100s…' is too long: %zu bytes at most", path, sizeof address.sun_path - 1);
        return -1;
    }
    strcpy(address.sun_path, path);
    strcpy(fleece->path, path);
    fleece->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fleece->fd < 0) {
        say(error, "no socket to connect to %s: %s", path, error_name(errno));
        return -1;
    }
    if (connect(fleece->fd, (struct sockaddr *)&address, sizeof address) == 0)
        return 0;
    if (errno == ENOENT || errno == ECONNREFUSED)
        say(error, "no daemon takes commands at %s: %s (one that starts, or awaits its VM, does not yet)", path,
            error_name(errno));
    else
        say(error, "can't connect to the control socket %s: %s", path, error_name(errno));
    return -1;
}

static int negotiate(struct fleece *fleece, char *error)
{
    json_t *greeting = NULL;
    int64_t deadline_ms = now_ms() + CLIENT_GREETING_MS;
    int got = take_message(fleece, deadline_ms, &greeting);
    if (got == 0)
        break_connection(fleece, "does not answer");
    if (got <= 0) {
        say(error, "%s", fleece->broken);
        return -1;
    }
    const char *refusal = json_string_value(json_object_get(json_object_get(greeting, "error"), "desc"));
    bool ours = json_object_get(json_object_get(json_object_get(greeting, "QMP"), "version"), "fleece") != NULL;
    if (refusal)
        say(error, "%s", refusal);
    else if (!ours)
        say(error, "the server at %s is not a Fleece daemon", fleece->path);
    json_decref(greeting);
    if (refusal || !ours)
        return -1;
    uint64_t id = ++fleece->next_id;
    send_command(fleece, "qmp_capabilities", NULL, id);
    char *reply = take_reply(fleece, "qmp_capabilities", id, deadline_ms, error);
    free(reply);
    return reply ? 0 : -1;
}

struct fleece *fleece_open(const char *path, char *error)
{
    error[0] = 0;
    struct fleece *fleece = calloc(1, sizeof *fleece);
    if (!fleece) {
        say(error, "no memory to connect to %s", path);
        return NULL;
    }
    fleece->fd = -1;
    list_init(&fleece->events);
    if (connect_to(fleece, path, error) < 0 || negotiate(fleece, error) < 0) {
        fleece_close(fleece);
        return NULL;
    }
    return fleece;
}

void fleece_close(struct fleece *fleece)
{
    if (!fleece)
        return;
    while (!list_empty(&fleece->events)) {
        struct kept_event *kept = container_of(list_take_first(&fleece->events), struct kept_event, link);
        free(kept->text);
        free(kept);
    }
    if (fleece->fd >= 0)
        close(fleece->fd);
    free(fleece->buffer);
    free(fleece);
}

int fleece_default_socket(const char *vm, char *path, size_t size)
{
    return place_runtime(path, size, vm, "control.sock") < 0 ? -1 : 0;
}
