/* SPDX-License-Identifier: GPL-2.0-or-later */
/* fleece list: the points of a backup set; with --json their manifests. */
#include "cli/command.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>

#include <jansson.h>

#include "base/name.h"
#include "cli/set_argument.h"

static void print_damaged(const struct cli *cli, const char *point, const struct error *err)
{
    const char *what = err->code == ENOTSUP ? "newer" : "damaged";
    cli_fail("%s", err->text);
    if (!cli->json) {
        printf("%-24s %s\n", point, what);
        return;
    }
    json_t *line = json_pack("{s:s, s:b, s:s}", "point", point, what, 1, "reason", err->text);
    if (!line)
        line = json_pack("{s:s, s:b}", "point", point, what, 1); /* a path that is not UTF-8 */
    json_dumpf(line, stdout, JSON_COMPACT);
    putchar('\n');
    json_decref(line);
}

static void print_point(const struct cli *cli, const char *point, const struct manifest *manifest)
{
    uint64_t size_bytes = 0, captured_bytes = 0;
    unsigned incremental = 0;
    const char *parent = "-";
    char text[2][16];
    if (cli->json) {
        json_t *line = manifest_to_json(manifest);
        json_object_set_new(line, "point", json_string(point));
        json_dumpf(line, stdout, JSON_COMPACT);
        putchar('\n');
        json_decref(line);
        return;
    }
    for (unsigned i = 0; i < manifest->disk_count; i++) {
        const struct manifest_disk *disk = &manifest->disks[i];
        size_bytes += disk->size_bytes;
        captured_bytes += disk->captured_bytes;
        incremental += disk->incremental;
        parent = disk->incremental ? disk->parent.point : parent;
    }
    printf("%-24s %-11s %10s %10s  %-24s ", point,
           incremental == 0                      ? "full"
           : incremental == manifest->disk_count ? "incremental"
                                                 : "mixed",
           size_format(text[0], size_bytes), size_format(text[1], captured_bytes), parent);
    for (unsigned i = 0; i < manifest->disk_count; i++)
        printf("%s%s", i ? " " : "", manifest->disks[i].name);
    if (manifest->consistency > MANIFEST_CRASH)
        printf("  (%s)", manifest_consistency_name(manifest->consistency));
    putchar('\n');
    for (unsigned i = 0; i < manifest->disk_count; i++)
        if (manifest->disks[i].reason[0])
            printf("    %s is full: %s\n", manifest->disks[i].name, manifest->disks[i].reason);
}

static int list_points(const struct cli *cli, const struct set *set, const struct set_points *points, const char *only)
{
    struct error err;
    int code = CLI_DONE;
    struct manifest *manifest = malloc(sizeof *manifest);
    if (!manifest)
        return cli_fail("no memory for a manifest");
    if (!cli->json && points->count == 0)
        printf("backup set of VM %s: no points\n", set_vm(set));
    else if (!cli->json)
        printf("backup set of VM %s\n%-24s %-11s %10s %10s  %-24s %s\n", set_vm(set), "POINT", "KIND", "SIZE",
               "CAPTURED", "PARENT", "DISKS");
    for (unsigned i = 0; i < points->count; i++) {
        if (only && point_name_compare(only, points->names[i]) != 0)
            continue;
        if (set_manifest_load(set, points->names[i], manifest, &err) == 0) {
            print_point(cli, points->names[i], manifest);
        } else {
            print_damaged(cli, points->names[i], &err);
            code = CLI_FAILED;
        }
    }
    free(manifest);
    return code;
}

static int list_run(struct cli *cli, int argc, char **argv)
{
    struct set *set = NULL;
    struct set_points points;
    struct error err;
    const char *wanted;
    char name[POINT_NAME_BYTES];
    static const struct option options[] = {{NULL, 0, NULL, 0}};
    int option = getopt_long(argc, argv, ":", options, NULL);
    if (option != -1)
        return cli_usage_option(cli, option, argv);
    if (argc - optind != 1)
        return cli_usage(cli, "list wants one backup set, or one point of it: DIR or DIR@POINT");
    if (set_argument_open(argv[optind], &set, &wanted, &err) < 0)
        return cli_fail("%s", err.text);
    int code;
    if ((wanted && set_point_find(set, wanted, name, &err) < 0) || set_points_list(set, &points, &err) < 0) {
        code = cli_fail("%s", err.text);
    } else {
        code = list_points(cli, set, &points, wanted ? name : NULL);
        set_points_free(&points);
    }
    set_close(set);
    return code;
}

const struct cli_command cli_list = {
    .name = "list",
    .arguments = "DIR[@POINT]",
    .summary = "show the points of a backup set",
    .run = list_run,
};
