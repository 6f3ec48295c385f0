/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fleece verify: reads every image of a point, or of all points, and compares each extent with the SHA-256 that was taken
 * when it was captured. Everything is looked at, so that one damaged place does not hide the next.
 */
#include "cli/command.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

#include <jansson.h>

#include "base/name.h"
#include "cli/image.h"
#include "cli/set_argument.h"
#include "cli/transfer.h"

/* Damaged ranges that are printed for one disk; the rest is counted. */
#define VERIFY_RANGES 16

struct verify {
    struct cli *cli;
    struct set *set;
    struct transfer transfer;
    unsigned damaged;               /* disks and manifests, in all */
    uint64_t extents, bad_extents;  /* of this disk */
    struct range ranges[VERIFY_RANGES]; /* its damaged extents, neighbours joined */
    unsigned range_count, ranges_more;
};

static void extent_differs(void *context, struct range extent)
{
    struct verify *verify = context;
    verify->bad_extents++;
    for (unsigned i = 0; i < verify->range_count; i++) {
        if (range_end(verify->ranges[i]) == extent.start) {
            verify->ranges[i].length += extent.length;
            return;
        }
    }
    if (verify->range_count < VERIFY_RANGES)
        verify->ranges[verify->range_count++] = extent;
    else
        verify->ranges_more++;
}

static void say_damage(const struct verify *verify, const char *point, const struct manifest_disk *disk, const char *path)
{
    for (unsigned i = 0; i < verify->range_count; i++) {
        struct range range = verify->ranges[i];
        unsigned long long first = range.start / COPY_EXTENT_BYTES, last = (range_end(range) - 1) / COPY_EXTENT_BYTES;
        if (first == last)
            cli_fail("point %s, disk %s is damaged: extent %llu (bytes %llu to %llu) of %s has another SHA-256 than recorded",
                     point, disk->name, first, (unsigned long long)range.start, (unsigned long long)range_end(range) - 1,
                     path);
        else
            cli_fail("point %s, disk %s is damaged: extents %llu to %llu (bytes %llu to %llu) of %s have another SHA-256 than "
                     "recorded",
                     point, disk->name, first, last, (unsigned long long)range.start,
                     (unsigned long long)range_end(range) - 1, path);
    }
    if (verify->ranges_more > 0)
        cli_fail("point %s, disk %s: %u more places are damaged", point, disk->name, verify->ranges_more);
}

static int verify_image(struct verify *verify, const char *point, const struct manifest_disk *disk, char *path,
                        struct error *err)
{
    uint8_t *hashes = NULL;
    struct node *source = NULL;
    uint64_t data_bytes;
    int status = set_hashes_load(verify->set, point, disk, &hashes, err);
    if (status == 0)
        status = set_image_find(verify->set, point, disk, path, PATH_MAX, err);
    if (status == 0)
        status = image_open(verify->transfer.io, path, true, &source, err);
    if (status == 0) {
        struct copy_options options = {.source = source, .source_name = path, .expected = hashes,
                                       .mismatch = extent_differs, .context = verify};
        status = transfer_copy(&verify->transfer, point, disk->name, &options, &data_bytes, err);
        node_destroy(source);
    }
    free(hashes);
    return status;
}

static void print_disk(const struct verify *verify, const char *point, const struct manifest_disk *disk, bool well)
{
    char text[16];
    if (verify->cli->json) {
        json_t *line = json_pack("{s:s, s:s, s:s, s:b, s:I, s:I}", "event", "disk", "point", point, "disk", disk->name, "ok",
                                 well, "extents", (json_int_t)copy_extent_count(disk->size_bytes), "damaged",
                                 (json_int_t)verify->bad_extents);
        json_dumpf(line, stdout, JSON_COMPACT);
        putchar('\n');
        json_decref(line);
    } else {
        printf("%s %s: %s, %s\n", point, disk->name, size_format(text, disk->size_bytes), well ? "intact" : "DAMAGED");
    }
    fflush(stdout);
}

static void verify_disk(struct verify *verify, const char *point, const struct manifest_disk *disk)
{
    struct error err;
    char path[PATH_MAX];
    verify->bad_extents = verify->range_count = verify->ranges_more = 0;
    int status = verify_image(verify, point, disk, path, &err);
    if (transfer_interrupted(&verify->transfer))
        return;
    if (status < 0)
        cli_fail("point %s, disk %s: %s", point, disk->name, err.text);
    else
        say_damage(verify, point, disk, path);
    bool well = status == 0 && verify->bad_extents == 0;
    verify->damaged += !well;
    print_disk(verify, point, disk, well);
}

static void verify_point(struct verify *verify, const char *point)
{
    struct error err;
    struct manifest *manifest = malloc(sizeof *manifest);
    if (!manifest || set_manifest_load(verify->set, point, manifest, &err) < 0) {
        cli_fail("point %s is damaged: %s", point, manifest ? err.text : "no memory for its manifest");
        verify->damaged++;
        free(manifest);
        return;
    }
    for (unsigned i = 0; i < manifest->disk_count && !transfer_interrupted(&verify->transfer); i++)
        verify_disk(verify, point, &manifest->disks[i]);
    free(manifest);
}

static int verify_points(struct verify *verify, const char *wanted)
{
    struct set_points points;
    struct error err;
    char name[POINT_NAME_BYTES];
    if ((wanted && set_point_find(verify->set, wanted, name, &err) < 0) ||
        set_points_list(verify->set, &points, &err) < 0)
        return cli_fail("%s", err.text);
    if (points.count == 0) {
        set_points_free(&points);
        return cli_fail("the backup set '%s' has no point yet", set_path(verify->set));
    }
    if (wanted)
        verify_point(verify, name);
    for (unsigned i = 0; i < points.count && !wanted && !transfer_interrupted(&verify->transfer); i++)
        verify_point(verify, points.names[i]);
    set_points_free(&points);
    if (!transfer_interrupted(&verify->transfer))
        return verify->damaged == 0 ? CLI_DONE : CLI_FAILED;
    cli_fail("interrupted: not everything was verified");
    return CLI_INTERRUPTED;
}

static int verify_run(struct cli *cli, int argc, char **argv)
{
    struct verify verify = {.cli = cli};
    struct error err;
    const char *wanted;
    if (argc != 2)
        return cli_usage(cli, "verify wants one backup set, or one point of it: DIR or DIR@POINT");
    if (set_argument_open(argv[1], &verify.set, &wanted, &err) < 0)
        return cli_fail("%s", err.text);
    int code;
    if (transfer_open(&verify.transfer, cli->json, &err) < 0) {
        code = cli_fail("%s", err.text);
    } else {
        code = verify_points(&verify, wanted);
        transfer_close(&verify.transfer);
    }
    set_close(verify.set);
    return code;
}

const struct cli_command cli_verify = {
    .name = "verify",
    .arguments = "DIR[@POINT]",
    .summary = "read the images of a backup set and compare them with the hashes of the time of the backup",
    .run = verify_run,
};
