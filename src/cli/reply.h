/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What commands do that ask the daemon one thing and print what it says. */
#ifndef FLEECE_CLI_REPLY_H
#define FLEECE_CLI_REPLY_H

#include <jansson.h>

#include "cli/command.h"

/* Connects, executes one command (`arguments` stays the caller's; NULL: none) and hands out what it returned; says the error
 * itself. Returns an enum cli_exit; *result is NULL unless it is CLI_DONE. */
int cli_execute_once(const struct cli *cli, const char *command, json_t *arguments, json_t **result);
/* One line on stdout. Returns CLI_DONE. */
int cli_print_json(const json_t *json);
/* "auto", "crash" or "required": how consistent a snapshot is to be. */
bool cli_is_consistency(const char *text);
/* The text of a member, "-" if there is none. */
const char *cli_text(const json_t *object, const char *key);

#endif
