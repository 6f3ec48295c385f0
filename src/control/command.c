/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * From a message to a command and back.
 *
 * A message is checked from the outside in: its members, the negotiation, the name of the command, then each
 * argument against the command's table; the first thing that is wrong is answered by name. Only then does the
 * command see it. Its answer may come at once or much later; it is sent to the connection that asked, if that
 * is still there.
 */
#include "control/command.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "control/client.h"

static const struct control_command *const tables[] = {
    control_commands_vm,    control_commands_snapshot,   control_commands_export, control_commands_bitmap,
    control_commands_cache, control_commands_checkpoint, control_commands_job,    control_commands_disk};
enum { TABLE_COUNT = sizeof tables / sizeof *tables };

static const struct control_command *find_command(const char *name)
{
    for (size_t i = 0; i < TABLE_COUNT; i++)
        for (const struct control_command *command = tables[i]; command->name; command++)
            if (strcmp(command->name, name) == 0)
                return command;
    return NULL;
}

json_t *control_command_list(void)
{
    json_t *list = json_array();
    json_array_append_new(list, json_pack("{s:s}", "name", "qmp_capabilities"));
    for (size_t i = 0; i < TABLE_COUNT; i++)
        for (const struct control_command *command = tables[i]; command->name; command++)
            json_array_append_new(list, json_pack("{s:s}", "name", command->name));
    return list;
}

/* --- answers */

static void request_end(struct control_request *request, json_t *answer)
{
    struct control_server *server = request->server;
    struct control_client *client = request->client;
    if (answer && request->id)
        json_object_set(answer, "id", request->id);
    if (client) {
        assert(client->request == request);
        client_answered(client);
        client_send(client, answer, false);
    } else
        json_decref(answer);
    list_remove(&request->link);
    json_decref(request->id);
    json_decref(request->arguments);
    json_decref(request->partial);
    free(request);
    server_check_finished(server);
}

void control_return(struct control_request *request, json_t *value)
{
    if (value)
        request_end(request, json_pack("{s:o}", "return", value));
    else
        control_fail(request, "GenericError", "no memory for the reply");
}

static json_t *error_answer(const char *class, const char *text)
{
    json_t *desc = json_string(text);
    if (!desc)
        desc = json_string("the reason holds a name that is not UTF-8");
    return json_pack("{s:{s:s, s:o}}", "error", "class", class, "desc", desc);
}

void control_fail(struct control_request *request, const char *class, const char *format, ...)
{
    char text[LIMIT_ERROR_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    request_end(request, error_answer(class, text));
}

void control_fail_with(struct control_request *request, const struct error *err)
{
    control_fail(request, err->code == ENOENT ? "DeviceNotFound" : "GenericError", "%s", err->text);
}

const char *control_argument_text(const struct control_request *request, const char *name)
{
    return json_string_value(json_object_get(request->arguments, name));
}

/* --- checks. Each returns 0, or an error with a sentence. */

static const char *kind_name(enum control_argument_kind kind)
{
    switch (kind) {
    case CONTROL_STRING:
        return "string";
    case CONTROL_BOOLEAN:
        return "boolean";
    case CONTROL_INTEGER:
        return "integer";
    case CONTROL_ARRAY:
        return "array";
    }
    return "?";
}

static bool kind_fits(enum control_argument_kind kind, const json_t *value)
{
    switch (kind) {
    case CONTROL_STRING:
        return json_is_string(value);
    case CONTROL_BOOLEAN:
        return json_is_boolean(value);
    case CONTROL_INTEGER:
        return json_is_integer(value);
    case CONTROL_ARRAY:
        return json_is_array(value);
    }
    return false;
}

static int check_argument(const struct control_argument *argument, const json_t *value, struct error *err)
{
    if (!value && argument->required)
        return error_set(err, EINVAL, "Parameter '%s' is missing", argument->name);
    if (!value)
        return 0;
    if (!kind_fits(argument->kind, value))
        return error_set(err, EINVAL, "Invalid parameter type for '%s', expected: %s", argument->name,
                         kind_name(argument->kind));
    json_int_t number = json_integer_value(value);
    if (argument->kind == CONTROL_INTEGER && (number < argument->min || number > argument->max))
        return error_set(err, EINVAL, "Parameter '%s' is %lld, but must be from %lld to %lld", argument->name,
                         (long long)number, (long long)argument->min, (long long)argument->max);
    return 0;
}

/* "name, lease" into text. */
static void list_arguments(const struct control_command *command, char *text, size_t size)
{
    size_t used = 0;
    snprintf(text, size, "no arguments");
    for (const struct control_argument *a = command->arguments; a && a->name && used < size; a++)
        used += (size_t)snprintf(text + used, size - used, "%s%s", used ? ", " : "", a->name);
}

static int check_arguments(const struct control_command *command, json_t *arguments, struct error *err)
{
    const char *key;
    json_t *value;
    for (const struct control_argument *a = command->arguments; a && a->name; a++) {
        int status = check_argument(a, json_object_get(arguments, a->name), err);
        if (status < 0)
            return status;
    }
    json_object_foreach (arguments, key, value) {
        const struct control_argument *a = command->arguments;
        char known[256];
        while (a && a->name && strcmp(a->name, key) != 0)
            a++;
        list_arguments(command, known, sizeof known);
        if (!a || !a->name)
            return error_set(err, EINVAL, "Parameter '%.100s' is unexpected: %s takes %s", key, command->name, known);
    }
    return 0;
}

static int check_members(json_t *message, struct error *err)
{
    const char *key;
    json_t *value;
    json_object_foreach (message, key, value) {
        if (strcmp(key, "execute") != 0 && strcmp(key, "arguments") != 0 && strcmp(key, "id") != 0)
            return error_set(err, EINVAL, "QMP input member '%.100s' is unexpected", key);
    }
    value = json_object_get(message, "execute");
    if (!value)
        return error_set(err, EINVAL, "QMP input lacks member 'execute'");
    if (!json_is_string(value))
        return error_set(err, EINVAL, "QMP input member 'execute' must be a string");
    value = json_object_get(message, "arguments");
    if (value && !json_is_object(value))
        return error_set(err, EINVAL, "QMP input member 'arguments' must be an object");
    return 0;
}

/* --- from the message to the command */

static void answer_error(struct control_client *client, const json_t *message, const char *class, const char *text)
{
    json_t *answer = error_answer(class, text), *id = json_object_get(message, "id");
    if (answer && id)
        json_object_set(answer, "id", id);
    client_send(client, answer, false);
}

static void negotiate(struct control_client *client, const json_t *message)
{
    const json_t *arguments = json_object_get(message, "arguments"), *enable = json_object_get(arguments, "enable");
    if (client->negotiated)
        answer_error(client, message, "CommandNotFound",
                     "Capabilities negotiation is already complete, command ignored");
    else if (json_object_size(arguments) > (enable ? 1 : 0))
        answer_error(client, message, "GenericError", "qmp_capabilities takes the parameter 'enable' only");
    else if (enable && (!json_is_array(enable) || json_array_size(enable) > 0))
        answer_error(client, message, "GenericError",
                     "Parameter 'enable' must be an empty list: no capability is offered");
    else {
        client->negotiated = true;
        io_timer_cancel(client->server->io, &client->deadline);
        json_t *answer = json_pack("{s:{}}", "return"), *id = json_object_get(message, "id");
        if (answer && id)
            json_object_set(answer, "id", id);
        client_send(client, answer, false);
    }
}

static void run_command(struct control_client *client, const struct control_command *command, const json_t *message)
{
    struct control_request *request = calloc(1, sizeof *request);
    if (!request) {
        answer_error(client, message, "GenericError", "no memory for the command");
        return;
    }
    json_t *arguments = json_object_get(message, "arguments");
    request->server = client->server;
    request->client = client;
    request->command = command;
    request->id = json_incref(json_object_get(message, "id"));
    request->arguments = arguments ? json_incref(arguments) : json_object();
    list_append(&client->server->requests, &request->link);
    client->request = request;
    command->run(request);
}

void control_command_execute(struct control_client *client, json_t *message)
{
    struct error err;
    char text[LIMIT_ERROR_BYTES];
    const char *name = json_string_value(json_object_get(message, "execute"));
    const struct control_command *command = name ? find_command(name) : NULL;
    if (check_members(message, &err) < 0)
        answer_error(client, message, "GenericError", err.text);
    else if (strcmp(name, "qmp_capabilities") == 0)
        negotiate(client, message);
    else if (!client->negotiated)
        answer_error(client, message, "CommandNotFound", "Expecting capabilities negotiation with 'qmp_capabilities'");
    else if (!command) {
        snprintf(text, sizeof text, "The command %.100s has not been found", name);
        answer_error(client, message, "CommandNotFound", text);
    } else if (check_arguments(command, json_object_get(message, "arguments"), &err) < 0)
        answer_error(client, message, "GenericError", err.text);
    else if (client->server->stopping)
        answer_error(client, message, "GenericError", "the daemon is shutting down");
    else
        run_command(client, command, message);
    json_decref(message);
}
