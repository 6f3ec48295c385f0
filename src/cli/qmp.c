/* SPDX-License-Identifier: GPL-2.0-or-later */
/* fleece qmp: one raw command of the control protocol. */
#include "cli/command.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "fleece/fleece.h"

/* Takes {"execute": NAME, "arguments": {...}} apart. Returns NULL, or what is wrong with it. */
static const char *check_message(json_t *message, const char **command, char **arguments)
{
    const char *key;
    json_t *value;
    if (!json_is_object(message))
        return "it is not a JSON object";
    json_object_foreach (message, key, value) {
        if (strcmp(key, "execute") != 0 && strcmp(key, "arguments") != 0)
            return "it may hold \"execute\" and \"arguments\" only";
    }
    *command = json_string_value(json_object_get(message, "execute"));
    if (!*command)
        return "\"execute\" must be the name of a command";
    value = json_object_get(message, "arguments");
    if (value && !json_is_object(value))
        return "\"arguments\" must be a JSON object";
    *arguments = value ? json_dumps(value, JSON_COMPACT) : NULL;
    return NULL;
}

static int qmp_run(struct cli *cli, int argc, char **argv)
{
    if (argc != 2)
        return cli_usage(cli, "qmp wants one command in JSON");
    json_error_t where;
    json_t *message = json_loads(argv[1], JSON_REJECT_DUPLICATES, &where);
    const char *command = NULL;
    char *arguments = NULL;
    const char *wrong = message ? check_message(message, &command, &arguments) : where.text;
    int code;
    struct fleece *fleece = NULL;
    if (wrong)
        code = cli_usage(cli, "'%.200s' is not a command: %s", argv[1], wrong);
    else
        code = cli_connect(cli, &fleece);
    if (code == CLI_DONE) {
        char *reply = cli_execute(fleece, command, arguments);
        code = reply ? CLI_DONE : CLI_FAILED;
        if (reply)
            puts(reply);
        free(reply);
    }
    fleece_close(fleece);
    free(arguments);
    json_decref(message);
    return code;
}

const struct cli_command cli_qmp = {
    .name = "qmp",
    .arguments = "JSON",
    .summary = "send one command of the control protocol, such as '{\"execute\":\"query-commands\"}'",
    .run = qmp_run,
};
