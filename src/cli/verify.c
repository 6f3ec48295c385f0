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
#include "job/image.h"
#include "cli/set_argument.h"
#include "cli/transfer.h"

struct verify {
    struct cli *cli;
    struct set *set;
    struct transfer transfer;
    unsigned damaged;                 /* disks and manifests, in all */
    uint64_t extent_count, bad_count; /* of this disk */
    uint8_t *bad;                     /* one bit for each of its extents */
};

static void extent_differs(void *context, struct range extent)
{
    struct verify *verify = context;
    uint64_t number = extent.start / COPY_EXTENT_BYTES;
    verify->bad[number / 8] |= (uint8_t)(1u << number % 8);
    verify->bad_count++;
}

static bool is_bad(const struct verify *verify, uint64_t number)
{
    return number < verify->extent_count && (verify->bad[number / 8] >> number % 8 & 1);
}

/* Extents [first, end), all of them damaged. */
static void say_range(const char *point, const struct manifest_disk *disk, const char *path, uint64_t first,
                      uint64_t end)
{
    uint64_t start = first * COPY_EXTENT_BYTES, stop = end * COPY_EXTENT_BYTES;
    char extents[64];
    if (stop > disk->size_bytes)
        stop = disk->size_bytes;
    if (end == first + 1)
        snprintf(extents, sizeof extents, "extent %llu", (unsigned long long)first);
    else
        snprintf(extents, sizeof extents, "extents %llu to %llu", (unsigned long long)first,
                 (unsigned long long)end - 1);
    cli_fail("point %s, disk %s is damaged: %s (bytes %llu to %llu) of %s: not the SHA-256 of the time of the backup",
             point, disk->name, extents, (unsigned long long)start, (unsigned long long)stop - 1, path);
}

static void say_damage(const struct verify *verify, const char *point, const struct manifest_disk *disk,
                       const char *path)
{
    unsigned said = 0, unsaid = 0;
    for (uint64_t first = 0, end; verify->bad_count > 0 && first < verify->extent_count; first = end) {
        end = first + 1;
        if (!is_bad(verify, first))
            continue;
        while (is_bad(verify, end))
            end++;
        if (said < LIMIT_VERIFY_RANGES) {
            say_range(point, disk, path, first, end);
            said++;
        } else {
            unsaid++;
        }
    }
    if (unsaid > 0)
        cli_fail("point %s, disk %s: %u more places are damaged", point, disk->name, unsaid);
}

static int verify_image(struct verify *verify, const char *point, const struct manifest_disk *disk, char *path,
                        struct error *err)
{
    struct hashes hashes = {0};
    struct node *source = NULL;
    uint64_t data_bytes;
    int status = set_hashes_load(verify->set, point, disk, &hashes, err);
    if (status == 0)
        status = set_image_find(verify->set, point, disk, path, PATH_MAX, err);
    if (status == 0)
        status = image_open(verify->transfer.io, path, true, &source, err);
    if (status == 0) {
        struct copy_options options = {.source = source,
                                       .source_name = path,
                                       .expected = hashes.sha256,
                                       .mismatch = extent_differs,
                                       .context = verify};
        status = transfer_copy(&verify->transfer, point, disk->name, &options, &data_bytes, err);
        node_destroy(source);
    }
    hashes_fini(&hashes);
    return status;
}

static void print_disk(const struct verify *verify, const char *point, const struct manifest_disk *disk, bool well)
{
    char text[16];
    if (verify->cli->json) {
        json_t *line = json_pack("{s:s, s:s, s:s, s:b, s:I, s:I}", "event", "disk", "point", point, "disk", disk->name,
                                 "ok", well, "extents", (json_int_t)verify->extent_count, "damaged",
                                 (json_int_t)verify->bad_count);
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
    verify->bad_count = 0;
    verify->extent_count = copy_extent_count(disk->size_bytes);
    verify->bad = calloc(verify->extent_count / 8 + 1, 1);
    int status = verify->bad ? verify_image(verify, point, disk, path, &err)
                             : error_set(&err, ENOMEM, "no memory to note what is damaged");
    bool interrupted = transfer_interrupted(&verify->transfer);
    if (status < 0 && !interrupted)
        cli_fail("point %s, disk %s: %s", point, disk->name, err.text);
    else if (!interrupted)
        say_damage(verify, point, disk, path);
    free(verify->bad);
    if (interrupted)
        return;
    bool well = status == 0 && verify->bad_count == 0;
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
