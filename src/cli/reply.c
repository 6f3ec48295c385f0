/* SPDX-License-Identifier: GPL-2.0-or-later */
/* One connection, one command, one reply: an error of the daemon's has been said when these return. */
#include "cli/reply.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fleece/fleece.h"

int cli_execute_once(const struct cli *cli, const char *command, json_t *arguments, json_t **result)
{
    struct fleece *fleece = NULL;
    *result = NULL;
    int code = cli_connect(cli, &fleece);
    if (code != CLI_DONE)
        return code;
    char *wanted = arguments ? json_dumps(arguments, JSON_COMPACT) : NULL;
    char *reply = cli_execute(fleece, command, wanted);
    *result = reply ? json_loads(reply, JSON_DECODE_ANY, NULL) : NULL;
    free(wanted);
    free(reply);
    fleece_close(fleece);
    return *result ? CLI_DONE : CLI_FAILED;
}

int cli_print_json(const json_t *json)
{
    json_dumpf(json, stdout, JSON_COMPACT);
    putchar('\n');
    return CLI_DONE;
}

bool cli_is_consistency(const char *text)
{
    return strcmp(text, "auto") == 0 || strcmp(text, "crash") == 0 || strcmp(text, "required") == 0;
}

const char *cli_text(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "-";
}
