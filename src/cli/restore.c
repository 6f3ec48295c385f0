/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fleece restore: one disk of a point, or all of them, from all images that they lie over.
 *
 * The chain is read as one disk, by its newest image that holds a block, and what an image holds is compared with its
 * SHA-256 before anything of it is written (set/chain_view.c). So a damaged set restores either the right bytes or
 * nothing.
 */
#include "cli/command.h"

#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <jansson.h>

#include "base/name.h"
#include "cli/chain_images.h"
#include "cli/restore_target.h"
#include "cli/set_argument.h"

struct restore {
    struct cli *cli;
    const char *disk, *to, *to_folder;
    bool all, force, qcow2;
    struct set *set;
    char point[POINT_NAME_BYTES];
    struct transfer transfer;
};

static void print_result(const struct restore *restore, const struct manifest_disk *disk, const char *where,
                         uint64_t data_bytes)
{
    char text[2][16];
    if (!restore->cli->json) {
        printf("restored disk %s of point %s to %s: %s with %s of data\n", disk->name, restore->point, where,
               size_format(text[0], disk->size_bytes), size_format(text[1], data_bytes));
        return;
    }
    json_t *line = json_pack("{s:s, s:s, s:s, s:I, s:I}", "event", "done", "point", restore->point, "disk", disk->name,
                             "size", (json_int_t)disk->size_bytes, "data", (json_int_t)data_bytes);
    json_dumpf(line, stdout, JSON_COMPACT);
    putchar('\n');
    json_decref(line);
}

/* The images are open. *touched: something may have been written over. */
static int copy_images(struct restore *restore, struct chain_images *images, const struct manifest_disk *disk,
                       const char *where, bool *touched, struct error *err)
{
    struct restore_target target = {.transfer = &restore->transfer,
                                    .set = restore->set,
                                    .where = where,
                                    .disk = disk->name,
                                    .qcow2 = restore->qcow2,
                                    .force = restore->force};
    uint64_t data_bytes = 0;
    int status = restore_target_open(&target, disk->size_bytes, err);
    if (status == 0) {
        struct copy_options options = {.source = images->view,
                                       .target = target.node,
                                       .source_name = images->layers[0].name,
                                       .target_name = where,
                                       .target_is_zero = target.is_zero};
        status = transfer_copy(&restore->transfer, restore->point, disk->name, &options, &data_bytes, err);
        if (status < 0 && chain_view_error(images->view)->code)
            *err = *chain_view_error(images->view);
    }
    *touched = target.overwrites;
    status = restore_target_close(&target, status, err);
    if (status == 0)
        print_result(restore, disk, where, data_bytes);
    return status;
}

static int restore_disk(struct restore *restore, const char *name, const char *where, bool *touched, struct error *err)
{
    struct chain chain;
    struct chain_images images;
    int status = chain_resolve(restore->set, restore->point, name, &chain, err);
    if (status < 0)
        return status;
    status = chain_images_open(&restore->transfer, restore->set, &chain, 0, chain.count, &images, err);
    if (status == 0) {
        status = chain_images_show(&images, chain.links[0].disk.size_bytes, NULL, err);
        if (status == 0)
            status = copy_images(restore, &images, &chain.links[0].disk, where, touched, err);
        chain_images_close(&images);
    }
    chain_free(&chain);
    return status;
}

static int restore_one(struct restore *restore, const char *name, const char *where)
{
    struct error err;
    bool touched = false;
    int status = restore_disk(restore, name, where, &touched, &err);
    if (status == 0)
        return CLI_DONE;
    if (!transfer_interrupted(&restore->transfer))
        return cli_fail("%s", err.text);
    cli_fail("interrupted: '%s' was not restored%s", where, touched ? "; what it held may be lost" : "");
    return CLI_INTERRUPTED;
}

/* All disks of the point into a folder, which may be there. The first that fails ends it. */
static int restore_all(struct restore *restore)
{
    struct error err;
    struct manifest *manifest = malloc(sizeof *manifest);
    int code = CLI_DONE;
    bool made = false;
    if (!manifest)
        code = cli_fail("no memory for a manifest");
    else if (set_manifest_load(restore->set, restore->point, manifest, &err) < 0)
        code = cli_fail("%s", err.text);
    else if (!(made = mkdir(restore->to_folder, 0700) == 0) && errno != EEXIST)
        code = cli_fail("can't make the folder '%s': %s", restore->to_folder, error_name(errno));
    for (unsigned i = 0; code == CLI_DONE && i < manifest->disk_count; i++) {
        char where[PATH_MAX];
        const char *name = manifest->disks[i].name;
        int length = snprintf(where, sizeof where, "%s/%s.%s", restore->to_folder, name,
                              restore->qcow2 ? "qcow2" : "raw");
        code = (size_t)length < sizeof where
                   ? restore_one(restore, name, where)
                   : cli_fail("the path of the folder '%.80s' is too long", restore->to_folder);
    }
    if (made && code != CLI_DONE)
        rmdir(restore->to_folder); /* only if nothing is in it */
    free(manifest);
    return code;
}

static int parse_format(struct restore *restore, const char *text)
{
    restore->qcow2 = strcmp(text, "qcow2") == 0;
    if (restore->qcow2 || strcmp(text, "raw") == 0)
        return CLI_DONE;
    return cli_usage(restore->cli, "--format '%s' is neither 'raw' nor 'qcow2'", text);
}

static int check_arguments(const struct restore *restore, int count)
{
    if (count != 1)
        return cli_usage(restore->cli, "restore wants one backup set, or one point of it: DIR or DIR@POINT");
    if (restore->all && (restore->disk || restore->to))
        return cli_usage(restore->cli, "--all goes with --to-dir FOLDER, not with --disk or --to");
    if (restore->all && !restore->to_folder)
        return cli_usage(restore->cli, "say where to: --to-dir FOLDER");
    if (!restore->all && restore->to_folder)
        return cli_usage(restore->cli, "--to-dir goes with --all");
    if (!restore->all && !restore->disk)
        return cli_usage(restore->cli, "say which disk: --disk NAME, or --all");
    if (!restore->all && (!restore->to || !restore->to[0]))
        return cli_usage(restore->cli, "say where to: --to FILE");
    return CLI_DONE;
}

static int parse(struct restore *restore, int argc, char **argv)
{
    static const struct option options[] = {
        {"disk", required_argument, NULL, 'd'},
        {"to", required_argument, NULL, 't'},
        {"to-dir", required_argument, NULL, 'D'},
        {"format", required_argument, NULL, 'F'},
        {"all", no_argument, NULL, 'a'},
        {"force", no_argument, NULL, 'f'},
        {NULL, 0, NULL, 0},
    };
    int option, code = CLI_DONE;
    while (code == CLI_DONE && (option = getopt_long(argc, argv, ":", options, NULL)) != -1) {
        switch (option) {
        case 'd':
            restore->disk = optarg;
            break;
        case 't':
            restore->to = optarg;
            break;
        case 'D':
            restore->to_folder = optarg;
            break;
        case 'F':
            code = parse_format(restore, optarg);
            break;
        case 'a':
            restore->all = true;
            break;
        case 'f':
            restore->force = true;
            break;
        default:
            return cli_usage_option(restore->cli, option, argv);
        }
    }
    return code == CLI_DONE ? check_arguments(restore, argc - optind) : code;
}

static int restore_run(struct cli *cli, int argc, char **argv)
{
    struct restore restore = {.cli = cli};
    struct error err;
    const char *wanted;
    int code = parse(&restore, argc, argv);
    if (code != CLI_DONE)
        return code;
    if (set_argument_open(argv[optind], &restore.set, &wanted, &err) < 0)
        return cli_fail("%s", err.text);
    if (set_begin_reading(restore.set, &err) < 0 || set_point_find(restore.set, wanted, restore.point, &err) < 0 ||
        transfer_open(&restore.transfer, cli->json, &err) < 0) {
        code = cli_fail("%s", err.text);
    } else {
        code = restore.all ? restore_all(&restore) : restore_one(&restore, restore.disk, restore.to);
        transfer_close(&restore.transfer);
    }
    set_close(restore.set);
    return code;
}

const struct cli_command cli_restore = {
    .name = "restore",
    .arguments = "DIR[@POINT] (--disk NAME --to FILE | --all --to-dir FOLDER) [--format raw|qcow2] [--force]",
    .summary = "write a disk of a backup point (the latest by default) to a file, block device or NBD URI",
    .run = restore_run,
};
