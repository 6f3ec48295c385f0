/* SPDX-License-Identifier: GPL-2.0-or-later */
/* fleece snapshot: create, list and delete snapshots of a VM. */
#include "cli/reply.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "base/error.h"
#include "base/name.h"
#include "cli/table.h"
#include "fleece/fleece.h"

static double hold_us(const json_t *snapshot)
{
    return (double)json_integer_value(json_object_get(snapshot, "hold-ns")) / 1000.0;
}

/* "1.5" seconds to milliseconds; 0: it is not one. */
static json_int_t milliseconds(const char *text)
{
    char *end;
    double seconds = strtod(text, &end);
    if (end == text || *end || !(seconds >= 0.001) || seconds > 30)
        return 0;
    return (json_int_t)(seconds * 1000);
}

/* --checkpoint NAME, --since CHECKPOINT, --map CHECKPOINT (several times). */
static int create_checkpoint_option(struct cli *cli, int option, const char *name, json_t *arguments)
{
    const char *key = option == 'c' ? "checkpoint" : option == 's' ? "since" : "map";
    struct error err;
    if (name_check("checkpoint name", name, &err) < 0) /* UUIDs are right names */
        return cli_usage(cli, "--%s: %s", key, err.text);
    if (option == 'm' && !json_object_get(arguments, "maps"))
        json_object_set_new(arguments, "maps", json_array());
    if (option == 'm')
        json_array_append_new(json_object_get(arguments, "maps"), json_string(name));
    else
        json_object_set_new(arguments, key, json_string(name));
    return CLI_DONE;
}

/* Into the command's arguments. */
static int create_options(struct cli *cli, int argc, char **argv, json_t *arguments)
{
    static const struct option options[] = {{"drain-timeout", required_argument, NULL, 'd'},
                                            {"read-once", optional_argument, NULL, 'o'},
                                            {"bitmap", required_argument, NULL, 'b'},
                                            {"checkpoint", required_argument, NULL, 'c'},
                                            {"since", required_argument, NULL, 's'},
                                            {"map", required_argument, NULL, 'm'},
                                            {"ephemeral", no_argument, NULL, 'e'},
                                            {"consistency", required_argument, NULL, 'C'},
                                            {NULL, 0, NULL, 0}};
    int option;
    struct error err;
    optind = 0;
    while ((option = getopt_long(argc, argv, ":", options, NULL)) != -1) {
        if (option == 'o') {
            const char *read_once = optarg ? optarg : "disconnect";
            if (strcmp(read_once, "disconnect") != 0 && strcmp(read_once, "eager") != 0)
                return cli_usage(cli, "--read-once '%s' is not right: disconnect or eager", read_once);
            json_object_set_new(arguments, "read-once", json_string(read_once));
        } else if (option == 'd') {
            json_int_t drain_ms = milliseconds(optarg);
            if (drain_ms == 0)
                return cli_usage(cli, "--drain-timeout '%s' is not right: seconds, from 0.001 to 30", optarg);
            json_object_set_new(arguments, "drain-timeout-ms", json_integer(drain_ms));
        } else if (option == 'b') {
            if (name_check("name of a dirty bitmap", optarg, &err) < 0)
                return cli_usage(cli, "--bitmap: %s", err.text);
            json_object_set_new(arguments, "bitmap", json_string(optarg));
        } else if (option == 'c' || option == 's' || option == 'm') {
            int code = create_checkpoint_option(cli, option, optarg, arguments);
            if (code != CLI_DONE)
                return code;
        } else if (option == 'C') {
            if (!cli_is_consistency(optarg))
                return cli_usage(cli, "--consistency '%s' is not right: auto, crash or required", optarg);
            json_object_set_new(arguments, "consistency", json_string(optarg));
        } else if (option == 'e') {
            json_object_set_new(arguments, "durability", json_string("ephemeral"));
        } else {
            return cli_usage_option(cli, option, argv);
        }
    }
    if (json_object_get(arguments, "since") && json_object_get(arguments, "bitmap"))
        return cli_usage(cli, "--since and --bitmap both say what the snapshot needs; give one of them");
    if (argc - optind > 1)
        return cli_usage(cli, "snapshot create takes one name, not %d", argc - optind);
    if (optind < argc && name_check("snapshot name", argv[optind], &err) < 0)
        return cli_usage(cli, "%s", err.text);
    if (optind < argc)
        json_object_set_new(arguments, "name", json_string(argv[optind]));
    return CLI_DONE;
}

static void print_created(const json_t *snapshot)
{
    const json_t *since = json_object_get(snapshot, "since"), *checkpoint = json_object_get(snapshot, "checkpoint");
    size_t i;
    json_t *view;
    char changed[16];
    printf("snapshot %s created; the guest's writes were held for %.0f us\n", cli_text(snapshot, "name"),
           hold_us(snapshot));
    if (json_object_get(snapshot, "frozen-us"))
        printf("its guest was frozen for %.0f ms (consistent: %s)\n",
               (double)json_integer_value(json_object_get(snapshot, "frozen-us")) / 1000,
               cli_text(snapshot, "consistent"));
    if (json_object_get(snapshot, "consistent-reason"))
        printf("it is crash-consistent: %s\n", cli_text(snapshot, "consistent-reason"));
    json_array_foreach (json_object_get(snapshot, "exports"), i, view) {
        const char *disk = cli_text(view, "disk");
        if (json_is_true(json_object_get(view, "incremental")))
            printf("disk %s: %s changed since %s\n", disk,
                   size_format(changed, (uint64_t)json_integer_value(json_object_get(view, "dirty"))),
                   cli_text(since, "name"));
        else if (since)
            printf("disk %s: in full, since %s\n", disk, cli_text(view, "reason"));
        if (json_object_get(view, "checkpoint-reason"))
            printf("disk %s: no checkpoint, since %s\n", disk, cli_text(view, "checkpoint-reason"));
    }
    if (checkpoint)
        printf("checkpoint %s is %s: %s\n", cli_text(checkpoint, "name"), cli_text(checkpoint, "state"),
               cli_text(checkpoint, "uuid"));
}

static int snapshot_create(struct cli *cli, int argc, char **argv)
{
    json_t *arguments = json_object(), *result = NULL;
    int code = create_options(cli, argc, argv, arguments);
    if (code == CLI_DONE)
        code = cli_execute_once(cli, "fleece-snapshot-create", arguments, &result);
    if (code == CLI_DONE && cli->json)
        cli_print_json(result);
    else if (code == CLI_DONE)
        print_created(result);
    json_decref(arguments);
    json_decref(result);
    return code;
}

static int snapshot_list(struct cli *cli, int argc, char **argv)
{
    json_t *snapshots = NULL, *snapshot;
    struct table table;
    size_t i;
    if (argc != 1)
        return cli_usage(cli, "snapshot list takes no argument: '%s'", argv[1]);
    int code = cli_execute_once(cli, "fleece-query-snapshots", NULL, &snapshots);
    if (code != CLI_DONE)
        return code;
    table_init(&table, "SNAPSHOT\tSTATE\tCREATED\t>HELD (us)\tCONSISTENT\tREASON");
    json_array_foreach (snapshots, i, snapshot) {
        if (cli->json)
            cli_print_json(snapshot);
        else
            table_add(&table, "%s\t%s\t%s\t%.0f\t%s\t%s", cli_text(snapshot, "name"), cli_text(snapshot, "state"),
                      cli_text(snapshot, "created"), hold_us(snapshot), cli_text(snapshot, "consistent"),
                      cli_text(snapshot, json_object_get(snapshot, "reason") ? "reason" : "consistent-reason"));
    }
    if (!cli->json && json_array_size(snapshots) == 0)
        printf("no snapshots\n");
    table_end(&table, !cli->json && json_array_size(snapshots) > 0);
    json_decref(snapshots);
    return CLI_DONE;
}

static int snapshot_delete(struct cli *cli, int argc, char **argv)
{
    if (argc != 2)
        return cli_usage(cli, "snapshot delete wants the name of one snapshot");
    json_t *arguments = json_pack("{s:s}", "name", argv[1]), *result = NULL;
    if (!arguments)
        return cli_usage(cli, "the name of the snapshot is not UTF-8");
    int code = cli_execute_once(cli, "fleece-snapshot-delete", arguments, &result);
    json_decref(arguments);
    if (code == CLI_DONE && cli->json)
        cli_print_json(result);
    else if (code == CLI_DONE)
        printf("snapshot %s deleted\n", argv[1]);
    json_decref(result);
    return code;
}

/* ---- where the blocks of a snapshot are */

enum place { PLACE_RAM, PLACE_CACHE, PLACE_ZERO, PLACE_DISK, PLACE_RELEASED, PLACE_COUNT };

static const struct {
    const char *key, *text;
} places[] = {
    [PLACE_RAM] = {"ram", "in memory"},
    [PLACE_CACHE] = {"cache", "in the cache file"},
    [PLACE_ZERO] = {"zero", "preserved as zeroes"},
    [PLACE_DISK] = {"unchanged", "unchanged on the disk"},
    [PLACE_RELEASED] = {"released", "released, or not needed"},
};

static enum place place_of(const json_t *extent)
{
    enum place place = PLACE_DISK;
    json_t *name;
    size_t i;
    json_array_foreach (json_object_get(extent, "residence"), i, name)
        for (int p = 0; p < PLACE_COUNT; p++)
            if (strcmp(json_string_value(name), places[p].key) == 0)
                place = (enum place)p;
    return place;
}

/* Asks on until the whole disk has been told; the daemon answers in portions. */
static int residence_sum(struct fleece *fleece, const char *snapshot, const char *disk, json_int_t sums[PLACE_COUNT])
{
    json_int_t offset = 0;
    do {
        json_t *arguments = json_pack("{s:s, s:s, s:I}", "snapshot", snapshot, "disk", disk, "offset", offset), *extent;
        char *wanted = arguments ? json_dumps(arguments, JSON_COMPACT) : NULL;
        json_decref(arguments);
        char *reply = wanted ? cli_execute(fleece, "fleece-query-residence", wanted) : NULL;
        json_t *portion = reply ? json_loads(reply, 0, NULL) : NULL;
        free(wanted);
        free(reply);
        if (!portion)
            return CLI_FAILED;
        size_t i;
        json_array_foreach (json_object_get(portion, "extents"), i, extent)
            sums[place_of(extent)] += json_integer_value(json_object_get(extent, "length"));
        offset = json_integer_value(json_object_get(portion, "next"));
        json_decref(portion);
    } while (offset > 0);
    return CLI_DONE;
}

static int snapshot_residence(struct cli *cli, int argc, char **argv)
{
    struct error err;
    if (argc != 3)
        return cli_usage(cli, "snapshot residence wants the name of a snapshot and the name of a disk");
    if (name_check("snapshot name", argv[1], &err) < 0 || name_check("disk name", argv[2], &err) < 0)
        return cli_usage(cli, "%s", err.text);
    struct fleece *fleece = NULL;
    int code = cli_connect(cli, &fleece);
    if (code != CLI_DONE)
        return code;
    json_int_t sums[PLACE_COUNT] = {0};
    code = residence_sum(fleece, argv[1], argv[2], sums);
    fleece_close(fleece);
    if (code != CLI_DONE)
        return code;
    json_t *json = json_pack("{s:s, s:s}", "snapshot", argv[1], "disk", argv[2]);
    char text[16];
    for (int p = 0; p < PLACE_COUNT; p++) {
        json_object_set_new(json, places[p].key, json_integer(sums[p]));
        if (!cli->json)
            printf("%-24s %10s  %lld bytes\n", places[p].text, size_format(text, (uint64_t)sums[p]), sums[p]);
    }
    if (cli->json)
        cli_print_json(json);
    json_decref(json);
    return CLI_DONE;
}

static int snapshot_run(struct cli *cli, int argc, char **argv)
{
    if (argc < 2)
        return cli_usage(cli, "say what to do: create, list, residence or delete");
    if (strcmp(argv[1], "create") == 0)
        return snapshot_create(cli, argc - 1, argv + 1);
    if (strcmp(argv[1], "list") == 0)
        return snapshot_list(cli, argc - 1, argv + 1);
    if (strcmp(argv[1], "residence") == 0)
        return snapshot_residence(cli, argc - 1, argv + 1);
    if (strcmp(argv[1], "delete") == 0)
        return snapshot_delete(cli, argc - 1, argv + 1);
    return cli_usage(cli, "unknown action '%s': create, list, residence or delete", argv[1]);
}

const struct cli_command cli_snapshot = {
    .name = "snapshot",
    .arguments = "create [NAME] [--drain-timeout SECONDS] [--read-once[=eager]] [--bitmap BITMAP] [--checkpoint NAME] "
                 "[--since CHECKPOINT] [--map CHECKPOINT…] [--ephemeral] [--consistency auto|crash|required] | list | "
                 "residence NAME DISK | delete NAME",
    .summary = "take, show and end snapshots of all disks of the VM at one instant",
    .run = snapshot_run,
};
