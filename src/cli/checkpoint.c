/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fleece checkpoint: instants since which the changes of a VM's disks are known. Those that belong to a backup are made with
 * its snapshot and committed by whoever has its data safe; the ones made here are alone, and committed at once.
 */
#include "cli/reply.h"

#include <stdio.h>
#include <string.h>

#include "base/name.h"
#include "cli/table.h"

static const char *size_text(char *text, const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    return value ? size_format(text, (uint64_t)json_integer_value(value)) : "-";
}

static void add_checkpoint(struct table *table, const json_t *checkpoint)
{
    size_t i;
    json_t *disk;
    char text[3][16];
    json_array_foreach (json_object_get(checkpoint, "disks"), i, disk)
        table_add(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s", cli_text(checkpoint, "name"),
                  cli_text(checkpoint, "uuid"), cli_text(checkpoint, "created"), cli_text(disk, "disk"),
                  cli_text(disk, "state"), size_text(text[0], disk, "changed"),
                  size_text(text[1], disk, "memory-bytes"), size_text(text[2], disk, "file-bytes"),
                  cli_text(disk, "reason"));
}

static int checkpoint_list(struct cli *cli, int argc, char **argv)
{
    json_t *checkpoints = NULL, *checkpoint;
    struct table table;
    size_t i;
    if (argc != 1)
        return cli_usage(cli, "checkpoint list takes no argument: '%s'", argv[1]);
    int code = cli_execute_once(cli, "fleece-query-checkpoints", NULL, &checkpoints);
    if (code != CLI_DONE)
        return code;
    table_init(&table, "CHECKPOINT\tUUID\tCREATED\tDISK\tSTATE\t>CHANGED\t>MEMORY\t>FILE\tREASON");
    json_array_foreach (checkpoints, i, checkpoint) {
        if (cli->json)
            cli_print_json(checkpoint);
        else
            add_checkpoint(&table, checkpoint);
    }
    if (!cli->json && json_array_size(checkpoints) == 0)
        printf("no checkpoints\n");
    table_end(&table, !cli->json && json_array_size(checkpoints) > 0);
    json_decref(checkpoints);
    return CLI_DONE;
}

static int checkpoint_create(struct cli *cli, int argc, char **argv)
{
    struct error err;
    json_t *result;
    if (argc != 2)
        return cli_usage(cli, "checkpoint create wants the name of one checkpoint");
    if (name_check("checkpoint name", argv[1], &err) < 0)
        return cli_usage(cli, "%s", err.text);
    json_t *arguments = json_pack("{s:s}", "name", argv[1]);
    int code = cli_execute_once(cli, "fleece-checkpoint-create", arguments, &result);
    if (code == CLI_DONE && cli->json)
        cli_print_json(result);
    else if (code == CLI_DONE)
        printf("checkpoint %s created: %s\n", argv[1], cli_text(result, "uuid"));
    json_decref(arguments);
    json_decref(result);
    return code;
}

/* As the daemon makes them: 8-4-4-4-12 digits. */
static bool is_uuid(const char *text)
{
    return strlen(text) == 36 && strspn(text, "0123456789abcdef-") == 36 && text[8] == '-' && text[23] == '-';
}

/* Actions on the one thing that is named. */
static const struct one {
    const char *action, *command, *argument, *wants, *done;
} ones[] = {
    {"commit", "fleece-checkpoint-commit", "uuid", "the UUID of one checkpoint", "checkpoint %s committed\n"},
    {"delete", "fleece-checkpoint-delete", "name", "the name or UUID of one checkpoint", "checkpoint %s deleted\n"},
    {"reset", "fleece-checkpoint-reset", "disk", "the name of one disk", "the tracking of disk %s starts afresh\n"},
};

static int checkpoint_do(struct cli *cli, const struct one *one, int argc, char **argv)
{
    json_t *result;
    if (argc != 2)
        return cli_usage(cli, "checkpoint %s wants %s", one->action, one->wants);
    if (strcmp(one->argument, "uuid") == 0 && !is_uuid(argv[1]))
        return cli_usage(cli, "checkpoint %s wants %s, as 'checkpoint list' shows it: '%s' is none", one->action,
                         one->wants, argv[1]);
    const bool uuid = strcmp(one->argument, "name") == 0 && is_uuid(argv[1]);
    json_t *arguments = json_pack("{s:s}", uuid ? "uuid" : one->argument, argv[1]);
    if (!arguments)
        return cli_usage(cli, "checkpoint %s: the name is not UTF-8", one->action);
    int code = cli_execute_once(cli, one->command, arguments, &result);
    if (code == CLI_DONE && cli->json)
        cli_print_json(result);
    else if (code == CLI_DONE)
        printf(one->done, argv[1]);
    json_decref(arguments);
    json_decref(result);
    return code;
}

static int checkpoint_run(struct cli *cli, int argc, char **argv)
{
    static const char known[] = "list, create, commit, delete or reset";
    if (argc < 2)
        return cli_usage(cli, "say what to do: %s", known);
    if (strcmp(argv[1], "list") == 0)
        return checkpoint_list(cli, argc - 1, argv + 1);
    if (strcmp(argv[1], "create") == 0)
        return checkpoint_create(cli, argc - 1, argv + 1);
    for (size_t i = 0; i < sizeof ones / sizeof *ones; i++)
        if (strcmp(argv[1], ones[i].action) == 0)
            return checkpoint_do(cli, &ones[i], argc - 1, argv + 1);
    return cli_usage(cli, "unknown action '%s': %s", argv[1], known);
}

const struct cli_command cli_checkpoint = {
    .name = "checkpoint",
    .arguments = "list | create NAME | commit UUID | delete NAME|UUID | reset DISK",
    .summary = "the instants since which changes are known",
    .run = checkpoint_run,
};
