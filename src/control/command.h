/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Commands of the control protocol: one file of commands per noun, each a table. Everything here is called on
 * the control thread.
 */
#ifndef FLEECE_CONTROL_COMMAND_H
#define FLEECE_CONTROL_COMMAND_H

#include <jansson.h>

#include "control/server.h"

struct control_client;

enum control_argument_kind { CONTROL_STRING, CONTROL_BOOLEAN, CONTROL_INTEGER, CONTROL_ARRAY };

struct control_argument {
    const char *name; /* NULL ends a list */
    enum control_argument_kind kind;
    bool required;
    json_int_t min, max; /* of integers */
};

/* One command under way. It ends with exactly one of control_return() and control_fail(), now or later. */
struct control_request {
    struct control_server *server;
    struct control_client *client; /* NULL: it hung up; the answer goes nowhere */
    const struct control_command *command;
    json_t *id;            /* NULL: none */
    json_t *arguments;     /* checked against the table; an object */
    json_t *partial;       /* what a command in several steps has gathered */
    struct list_node link; /* server->requests */
};

struct control_command {
    const char *name;                         /* NULL ends a table */
    const struct control_argument *arguments; /* NULL: takes none */
    void (*run)(struct control_request *request);
};

extern const struct control_command control_commands_vm[], control_commands_snapshot[], control_commands_export[],
    control_commands_bitmap[], control_commands_cache[], control_commands_checkpoint[], control_commands_job[],
    control_commands_disk[];

/* Checks a message {"execute", "arguments", "id"} of a client and runs the command, or answers what is wrong
 * with it. Takes over the message. */
void control_command_execute(struct control_client *client, json_t *message);
/* The names of all commands, as query-commands returns them. */
json_t *control_command_list(void);

/* Ends the request with a result; takes over `value`. NULL: no memory for it, an error is sent. */
void control_return(struct control_request *request, json_t *value);
/* Ends it with an error of a class of QEMU's. */
void control_fail(struct control_request *request, const char *class, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* The same with the class that fits err->code. */
void control_fail_with(struct control_request *request, const struct error *err);

/* NULL: not given. */
const char *control_argument_text(const struct control_request *request, const char *name);

#endif
