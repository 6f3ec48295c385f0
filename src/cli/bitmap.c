/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fleece bitmap: dirty bitmaps of the disks of a VM. A name without disks means the bitmaps of that name on all disks, for a
 * snapshot is of all disks, too; should one disk refuse, those before it have been done, and the error names it.
 */
#include "cli/reply.h"

#include <getopt.h>
#include <stdio.h>
#include <string.h>

#include "base/name.h"
#include "cli/table.h"
#include "fleece/fleece.h"

/* Executes the command for each of the disks. */
static int bitmap_execute(const struct cli *cli, const char *command, json_t *arguments, const json_t *disks)
{
    size_t i;
    json_t *disk, *result;
    int code = CLI_DONE;
    json_array_foreach (disks, i, disk) {
        if (code != CLI_DONE)
            break;
        json_object_set(arguments, "node", disk);
        code = cli_execute_once(cli, command, arguments, &result);
        json_decref(result);
        if (code == CLI_DONE && cli->json)
            cli_print_json(arguments);
    }
    return code;
}

/* The status of all disks: an array, NULL with the error said. */
static json_t *disks_status(const struct cli *cli, int *code)
{
    json_t *status, *disks = NULL;
    *code = cli_execute_once(cli, "fleece-query-status", NULL, &status);
    if (*code == CLI_DONE)
        disks = json_incref(json_object_get(status, "disks"));
    json_decref(status);
    return disks;
}

/* The names on the command line, or all disks of the VM. */
static json_t *disks_meant(const struct cli *cli, int argc, char **argv, int *code)
{
    json_t *names = json_array();
    *code = CLI_DONE;
    for (int i = 0; i < argc; i++) {
        json_t *name = json_string(argv[i]);
        if (!name)
            *code = cli_usage(cli, "the name of a disk is not UTF-8");
        json_array_append_new(names, name);
    }
    if (argc > 0)
        return names;
    size_t i;
    json_t *disks = disks_status(cli, code), *disk;
    json_array_foreach (disks, i, disk)
        json_array_append(names, json_object_get(disk, "name"));
    json_decref(disks);
    return names;
}

/* NAME [DISK...] behind the options: `command` with `arguments` for each disk. */
static int bitmap_do(struct cli *cli, const char *command, json_t *arguments, const char *done, int argc, char **argv)
{
    struct error err;
    int code;
    if (argc < 1)
        code = cli_usage(cli, "say the name of the bitmap");
    else if (name_check("name of a dirty bitmap", argv[0], &err) < 0)
        code = cli_usage(cli, "%s", err.text);
    else {
        json_t *disks = disks_meant(cli, argc - 1, argv + 1, &code);
        json_object_set_new(arguments, "name", json_string(argv[0]));
        if (code == CLI_DONE)
            code = bitmap_execute(cli, command, arguments, disks);
        if (code == CLI_DONE && !cli->json)
            printf("dirty bitmap %s %s on %zu %s\n", argv[0], done, json_array_size(disks),
                   json_array_size(disks) == 1 ? "disk" : "disks");
        json_decref(disks);
    }
    json_decref(arguments);
    return code;
}

static int bitmap_add(struct cli *cli, int argc, char **argv)
{
    static const struct option options[] = {
        {"granularity", required_argument, NULL, 'g'}, {"disabled", no_argument, NULL, 'd'}, {NULL, 0, NULL, 0}};
    struct error err;
    uint64_t granularity;
    int option;
    json_t *arguments = json_object();
    optind = 0;
    while ((option = getopt_long(argc, argv, ":", options, NULL)) != -1) {
        int code = CLI_DONE;
        if (option == 'd')
            json_object_set_new(arguments, "disabled", json_true());
        else if (option != 'g')
            code = cli_usage_option(cli, option, argv);
        else if (size_parse("--granularity", optarg, &granularity, &err) < 0)
            code = cli_usage(cli, "%s", err.text);
        else if (granularity < BITMAP_GRANULARITY_MIN || granularity > BITMAP_GRANULARITY_MAX ||
                 (granularity & (granularity - 1)) != 0)
            code = cli_usage(cli, "--granularity '%s' is not right: a power of 2 from 512 to 2G", optarg);
        else
            json_object_set_new(arguments, "granularity", json_integer((json_int_t)granularity));
        if (code != CLI_DONE) {
            json_decref(arguments);
            return code;
        }
    }
    return bitmap_do(cli, "block-dirty-bitmap-add", arguments, "added", argc - optind, argv + optind);
}

static int bitmap_list(struct cli *cli, int argc, char **argv)
{
    size_t i, n;
    json_t *disk, *bitmap;
    char dirty[16], granularity[16];
    struct table table;
    int code;
    if (argc != 1)
        return cli_usage(cli, "bitmap list takes no argument: '%s'", argv[1]);
    json_t *disks = disks_status(cli, &code);
    table_init(&table, "BITMAP\tDISK\t>DIRTY\t>GRANULARITY\tSTATE");
    json_array_foreach (disks, i, disk) {
        json_array_foreach (json_object_get(disk, "dirty-bitmaps"), n, bitmap) {
            const char *state = json_is_true(json_object_get(bitmap, "recording")) ? "recording" : "disabled";
            if (json_is_true(json_object_get(bitmap, "inconsistent")))
                state = "inconsistent";
            if (cli->json) {
                json_object_set(bitmap, "node", json_object_get(disk, "name"));
                cli_print_json(bitmap);
            } else
                table_add(
                    &table, "%s\t%s\t%s\t%s\t%s", cli_text(bitmap, "name"), cli_text(disk, "name"),
                    size_format(dirty, (uint64_t)json_integer_value(json_object_get(bitmap, "count"))),
                    size_format(granularity, (uint64_t)json_integer_value(json_object_get(bitmap, "granularity"))),
                    state);
        }
    }
    table_end(&table, disks && !cli->json);
    json_decref(disks);
    return code;
}

/* bitmap merge TARGET SOURCE... on every disk: the usual union of two periods. */
static int bitmap_merge(struct cli *cli, int argc, char **argv)
{
    struct error err;
    int code;
    if (argc < 3)
        return cli_usage(cli, "bitmap merge wants a target and at least one source");
    json_t *arguments = json_object(), *sources = json_array();
    json_object_set_new(arguments, "bitmaps", sources);
    for (int i = 1; i < argc; i++) {
        if (name_check("name of a dirty bitmap", argv[i], &err) < 0) {
            json_decref(arguments);
            return cli_usage(cli, "%s", err.text);
        }
        if (i > 1)
            json_array_append_new(sources, json_string(argv[i]));
    }
    json_object_set_new(arguments, "target", json_string(argv[1]));
    json_t *disks = disks_meant(cli, 0, NULL, &code);
    if (code == CLI_DONE)
        code = bitmap_execute(cli, "block-dirty-bitmap-merge", arguments, disks);
    if (code == CLI_DONE && !cli->json)
        printf("%d dirty %s merged into %s on %zu %s\n", argc - 2, argc == 3 ? "bitmap" : "bitmaps", argv[1],
               json_array_size(disks), json_array_size(disks) == 1 ? "disk" : "disks");
    json_decref(arguments);
    json_decref(disks);
    return code;
}

static int bitmap_run(struct cli *cli, int argc, char **argv)
{
    static const struct {
        const char *action, *command, *done;
    } simple[] = {
        {"remove", "block-dirty-bitmap-remove", "removed"},
        {"clear", "block-dirty-bitmap-clear", "cleared"},
        {"enable", "block-dirty-bitmap-enable", "enabled"},
        {"disable", "block-dirty-bitmap-disable", "disabled"},
    };
    static const char known[] = "add, remove, clear, enable, disable, merge or list";
    if (argc < 2)
        return cli_usage(cli, "say what to do: %s", known);
    if (strcmp(argv[1], "add") == 0)
        return bitmap_add(cli, argc - 1, argv + 1);
    if (strcmp(argv[1], "merge") == 0)
        return bitmap_merge(cli, argc - 1, argv + 1);
    if (strcmp(argv[1], "list") == 0)
        return bitmap_list(cli, argc - 1, argv + 1);
    for (size_t i = 0; i < sizeof simple / sizeof *simple; i++)
        if (strcmp(argv[1], simple[i].action) == 0)
            return bitmap_do(cli, simple[i].command, json_object(), simple[i].done, argc - 2, argv + 2);
    return cli_usage(cli, "unknown action '%s': %s", argv[1], known);
}

const struct cli_command cli_bitmap = {
    .name = "bitmap",
    .arguments = "add [--granularity SIZE] [--disabled] NAME [DISK…] | remove|clear|enable|disable NAME [DISK…] | "
                 "merge TARGET SOURCE… | list",
    .summary = "note which parts of disks are written from now on",
    .run = bitmap_run,
};
