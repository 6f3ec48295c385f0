/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fleece restore: one disk of a point, to a new file, or over an existing file or block device with --force.
 *
 * Each extent is compared with its SHA-256 before it is written. A new file that could not be completed is removed. An
 * existing one is opened, and so locked, before anything is done to it: a disk that a VM is using is refused. Its content
 * is then dropped at once, so that the result is as sparse as a new file; a block device is written over, zeroes included.
 */
#include "cli/command.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <jansson.h>

#include "base/name.h"
#include "job/image.h"
#include "cli/set_argument.h"
#include "cli/transfer.h"

struct restore {
    struct cli *cli;
    const char *disk, *target_path;
    bool force;
    struct set *set;
    char point[POINT_NAME_BYTES];
    char image[PATH_MAX];
    struct transfer transfer;
    struct node *target;
    bool made_file, target_is_zero;
    uint64_t data_bytes;
};

/* An existing file gets the size of the disk, and no content. It is open, so nobody else has it. */
static int empty_file(struct restore *restore, uint64_t size_bytes, struct error *err)
{
    if (truncate(restore->target_path, 0) < 0 || truncate(restore->target_path, (off_t)size_bytes) < 0)
        return error_set(err, errno, "can't give '%s' a size of %llu bytes: %s", restore->target_path,
                         (unsigned long long)size_bytes, error_name(errno));
    node_destroy(restore->target); /* it has measured the file as it was */
    restore->target = NULL;
    restore->target_is_zero = true;
    return image_open(restore->transfer.io, restore->target_path, false, &restore->target, err);
}

/* Any file of the set: another disk's image, or another point's, must not be lost to a slip of the fingers. */
static bool lies_in_set(const struct restore *restore)
{
    char set[PATH_MAX], target[PATH_MAX];
    if (!realpath(set_path(restore->set), set) || !realpath(restore->target_path, target))
        return false;
    size_t length = strlen(set);
    return strncmp(target, set, length) == 0 && target[length] == '/';
}

static int open_existing(struct restore *restore, const struct stat *stat, uint64_t size_bytes, struct error *err)
{
    struct stat image;
    const char *path = restore->target_path;
    if (!S_ISREG(stat->st_mode) && !S_ISBLK(stat->st_mode))
        return error_set(err, EINVAL, "'%s' is neither a file nor a block device", path);
    if (!restore->force)
        return error_set(err, EEXIST, "'%s' exists; it is overwritten only with --force", path);
    if (lstat(restore->image, &image) == 0 && image.st_dev == stat->st_dev && image.st_ino == stat->st_ino)
        return error_set(err, EINVAL, "'%s' is the image in the backup set itself", path);
    if (lies_in_set(restore))
        return error_set(err, EINVAL, "'%s' is a file of the backup set itself", path);
    if (S_ISREG(stat->st_mode) && stat->st_size == 0 && truncate(path, (off_t)size_bytes) < 0) /* nothing to lose */
        return error_set(err, errno, "can't give '%s' a size of %llu bytes: %s", path, (unsigned long long)size_bytes,
                         error_name(errno));
    int status = image_open(restore->transfer.io, path, false, &restore->target, err);
    if (status < 0)
        return status;
    if (S_ISREG(stat->st_mode))
        return empty_file(restore, size_bytes, err);
    if (restore->target->size_bytes < size_bytes)
        return error_set(err, ENOSPC, "the block device '%s' has %llu bytes; disk %s needs %llu", path,
                         (unsigned long long)restore->target->size_bytes, restore->disk,
                         (unsigned long long)size_bytes);
    return 0;
}

static int open_target(struct restore *restore, uint64_t size_bytes, struct error *err)
{
    struct stat found;
    if (stat(restore->target_path, &found) == 0)
        return open_existing(restore, &found, size_bytes, err);
    if (errno != ENOENT)
        return error_set(err, errno, "'%s' can't be written: %s", restore->target_path, error_name(errno));
    int status = image_create(restore->transfer.io, restore->target_path, size_bytes, &restore->target, err);
    restore->made_file = status == 0;
    restore->target_is_zero = true;
    return status;
}

/* The name of a new file is durable only when its folder is. */
static int sync_folder(const struct restore *restore, struct error *err)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s", restore->target_path);
    int fd = open(dirname(path), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int code = fd < 0 || fsync(fd) < 0 ? errno : 0;
    if (fd >= 0)
        close(fd);
    return code ? error_set(err, code, "can't make '%s' durable: %s", restore->target_path, error_name(code)) : 0;
}

static int restore_image(struct restore *restore, const struct manifest_disk *disk, const uint8_t *hashes,
                         struct error *err)
{
    struct node *source = NULL;
    int status = image_open(restore->transfer.io, restore->image, true, &source, err);
    if (status < 0)
        return status;
    status = open_target(restore, disk->size_bytes, err);
    if (status == 0) {
        struct copy_options options = {.source = source,
                                       .target = restore->target,
                                       .source_name = restore->image,
                                       .target_name = restore->target_path,
                                       .expected = hashes,
                                       .target_is_zero = restore->target_is_zero};
        status = transfer_copy(&restore->transfer, restore->point, disk->name, &options, &restore->data_bytes, err);
    }
    if (restore->target)
        node_destroy(restore->target);
    node_destroy(source);
    if (status == 0 && restore->made_file)
        status = sync_folder(restore, err);
    if (status < 0 && restore->made_file)
        unlink(restore->target_path);
    return status;
}

static int no_such_disk(const struct restore *restore, const struct manifest *manifest, struct error *err)
{
    char names[LIMIT_ERROR_BYTES / 2] = "";
    for (unsigned i = 0; i < manifest->disk_count; i++) {
        size_t used = strlen(names);
        snprintf(names + used, sizeof names - used, "%s%s", i ? ", " : "", manifest->disks[i].name);
    }
    return error_set(err, ENOENT, "point %s of '%s' has no disk '%.64s'; it has %s", restore->point,
                     set_path(restore->set), restore->disk, names);
}

static int restore_disk(struct restore *restore, const char *wanted, struct manifest *manifest, struct error *err)
{
    struct hashes hashes = {0};
    int status = set_point_find(restore->set, wanted, restore->point, err);
    if (status == 0)
        status = set_manifest_load(restore->set, restore->point, manifest, err);
    if (status < 0)
        return status;
    const struct manifest_disk *disk = manifest_disk_find(manifest, restore->disk);
    if (!disk)
        return no_such_disk(restore, manifest, err);
    status = set_hashes_load(restore->set, restore->point, disk, &hashes, err);
    if (status == 0)
        status = set_image_find(restore->set, restore->point, disk, restore->image, sizeof restore->image, err);
    if (status == 0)
        status = restore_image(restore, disk, hashes.sha256, err);
    hashes_fini(&hashes);
    return status;
}

static void print_result(const struct restore *restore, uint64_t size_bytes)
{
    char text[2][16];
    if (!restore->cli->json) {
        printf("restored disk %s of point %s to %s: %s with %s of data\n", restore->disk, restore->point,
               restore->target_path, size_format(text[0], size_bytes), size_format(text[1], restore->data_bytes));
        return;
    }
    json_t *line = json_pack("{s:s, s:s, s:s, s:I, s:I}", "event", "done", "point", restore->point, "disk",
                             restore->disk, "size", (json_int_t)size_bytes, "data", (json_int_t)restore->data_bytes);
    json_dumpf(line, stdout, JSON_COMPACT);
    putchar('\n');
    json_decref(line);
}

static int restore_all(struct restore *restore, const char *wanted)
{
    struct error err;
    struct manifest *manifest = calloc(1, sizeof *manifest);
    if (!manifest)
        return cli_fail("no memory for a manifest");
    int status = restore_disk(restore, wanted, manifest, &err), code = CLI_DONE;
    if (status == 0)
        print_result(restore, manifest_disk_find(manifest, restore->disk)->size_bytes);
    else if (transfer_interrupted(&restore->transfer)) {
        code = CLI_INTERRUPTED;
        cli_fail("interrupted: '%s' was not restored%s", restore->target_path,
                 restore->made_file ? "" : "; what it held may be lost");
    } else
        code = cli_fail("%s", err.text);
    free(manifest);
    return code;
}

static int parse(struct restore *restore, int argc, char **argv)
{
    static const struct option options[] = {
        {"disk", required_argument, NULL, 'd'},
        {"to", required_argument, NULL, 't'},
        {"force", no_argument, NULL, 'f'},
        {NULL, 0, NULL, 0},
    };
    int option;
    while ((option = getopt_long(argc, argv, ":", options, NULL)) != -1) {
        switch (option) {
        case 'd':
            restore->disk = optarg;
            break;
        case 't':
            restore->target_path = optarg;
            break;
        case 'f':
            restore->force = true;
            break;
        default:
            return cli_usage_option(restore->cli, option, argv);
        }
    }
    if (argc - optind != 1)
        return cli_usage(restore->cli, "restore wants one backup set, or one point of it: DIR or DIR@POINT");
    if (!restore->disk)
        return cli_usage(restore->cli, "say which disk: --disk NAME");
    if (!restore->target_path || !restore->target_path[0])
        return cli_usage(restore->cli, "say where to: --to FILE");
    return CLI_DONE;
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
    if (transfer_open(&restore.transfer, cli->json, &err) < 0) {
        code = cli_fail("%s", err.text);
    } else {
        code = restore_all(&restore, wanted);
        transfer_close(&restore.transfer);
    }
    set_close(restore.set);
    return code;
}

const struct cli_command cli_restore = {
    .name = "restore",
    .arguments = "DIR[@POINT] --disk NAME --to FILE [--force]",
    .summary = "write a disk of a backup point (the latest by default) to a file or block device",
    .run = restore_run,
};
