/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fleece verify: all points of a set, each image once; or one point, with all images that it lies over. Manifests are
 * read and checked first, then the chain, then the image (verify_image.c). Whatever is found damaged, the rest is looked
 * at, too.
 *
 * With --sample only a part of the extents is read, chosen at random; tables, manifests and files of hashes are always
 * checked as a whole. Nothing is written.
 */
#include "cli/command.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "base/name.h"
#include "cli/set_argument.h"
#include "cli/verify_image.h"

struct verify {
    struct cli *cli;
    struct set *set;
    struct transfer transfer;
    struct sample sample;
    unsigned damaged; /* images and manifests, in all */
    uint64_t extents, looked_at;
};

static void print_json(json_t *line)
{
    json_dumpf(line, stdout, JSON_COMPACT);
    putchar('\n');
    fflush(stdout);
    json_decref(line);
}

static void image_damaged(void *context, const struct chain_link *link, const char *path, struct range range,
                          const char *what)
{
    struct verify *verify = context;
    cli_fail("point %s, disk %s%s: %s", link->point, link->disk.name, range.length ? " is damaged" : "", what);
    if (!verify->cli->json)
        return;
    json_t *line = json_pack("{s:s, s:s, s:s, s:s, s:s}", "event", "damage", "point", link->point, "disk",
                             link->disk.name, "what", what, "file", path);
    if (!line) /* a path that is not UTF-8 */
        line = json_pack("{s:s, s:s, s:s}", "event", "damage", "point", link->point, "disk", link->disk.name);
    if (range.length) {
        json_object_set_new(line, "start", json_integer((json_int_t)range.start));
        json_object_set_new(line, "length", json_integer((json_int_t)range.length));
    }
    print_json(line);
}

/* Or of a version that can't be read: not proved either. */
static void point_damaged(struct verify *verify, const char *point, const char *disk, const struct error *err)
{
    const char *verdict = err->code == ENOTSUP ? "can't be verified" : "is damaged";
    verify->damaged++;
    if (disk)
        cli_fail("point %s, disk %s %s: %s", point, disk, verdict, err->text);
    else
        cli_fail("point %s %s: %s", point, verdict, err->text);
    if (!verify->cli->json)
        return;
    json_t *line = json_pack("{s:s, s:s, s:s}", "event", "damage", "point", point, "what", err->text);
    if (!line)
        line = json_pack("{s:s, s:s}", "event", "damage", "point", point);
    if (disk)
        json_object_set_new(line, "disk", json_string(disk));
    print_json(line);
}

static void print_image(const struct verify *verify, const struct chain_link *link, const struct verify_result *result)
{
    char text[16], sampled[64] = "";
    const struct manifest_disk *disk = &link->disk;
    if (verify->cli->json) {
        print_json(json_pack("{s:s, s:s, s:s, s:s, s:b, s:I, s:I, s:I}", "event", "disk", "point", link->point, "disk",
                             disk->name, "kind", disk->incremental ? "incremental" : "full", "ok", result->places == 0,
                             "extents", (json_int_t)result->extents, "verified", (json_int_t)result->looked_at,
                             "damaged", (json_int_t)result->damaged_extents));
        return;
    }
    if (verify->sample.percent < 100)
        snprintf(sampled, sizeof sampled, ", %llu of %llu MiB looked at", (unsigned long long)result->looked_at,
                 (unsigned long long)result->extents);
    printf("%s %s: %s%s%s, %s\n", link->point, disk->name, disk->incremental ? "incremental, " : "",
           size_format(text, disk->captured_bytes), sampled, result->places == 0 ? "intact" : "DAMAGED");
    fflush(stdout);
}

static void verify_link(struct verify *verify, const struct chain *chain, unsigned link)
{
    struct verify_options options = {.transfer = &verify->transfer,
                                     .set = verify->set,
                                     .sample = &verify->sample,
                                     .damage = image_damaged,
                                     .context = verify};
    struct verify_result result;
    struct error err;
    int status = verify_image(&options, chain, link, &result, &err);
    if (transfer_interrupted(&verify->transfer))
        return;
    if (status < 0) {
        point_damaged(verify, chain->links[link].point, chain->links[link].disk.name, &err);
        return;
    }
    if (result.places > LIMIT_VERIFY_RANGES)
        cli_fail("point %s, disk %s: %llu more places are damaged", chain->links[link].point,
                 chain->links[link].disk.name, (unsigned long long)result.places - LIMIT_VERIFY_RANGES);
    verify->damaged += result.places > 0;
    verify->extents += result.extents;
    verify->looked_at += result.looked_at;
    print_image(verify, &chain->links[link], &result);
}

/*
 * A disk of a point, and with `whole` what it lies over. Otherwise those images are verified with their own points, and
 * the one below is only looked for: a chain that leads back must somewhere lead to a point with a later name, and is
 * walked there.
 */
static void verify_disk(struct verify *verify, const char *point, const struct manifest_disk *disk, bool whole)
{
    struct chain chain;
    struct error err;
    bool backwards = disk->incremental && point_name_compare(disk->parent.point, point) >= 0;
    int status = whole || backwards ? chain_resolve(verify->set, point, disk->name, &chain, &err)
                                    : chain_resolve_step(verify->set, point, disk->name, &chain, &err);
    if (status < 0) {
        point_damaged(verify, point, disk->name, &err);
        return;
    }
    for (unsigned i = 0; i < (whole ? chain.count : 1) && !transfer_interrupted(&verify->transfer); i++)
        verify_link(verify, &chain, i);
    chain_free(&chain);
}

static void verify_point(struct verify *verify, const char *point, bool whole)
{
    struct error err;
    struct manifest *manifest = malloc(sizeof *manifest);
    int status = manifest ? set_manifest_load(verify->set, point, manifest, &err)
                          : error_set(&err, ENOMEM, "no memory for its manifest");
    if (status < 0)
        point_damaged(verify, point, NULL, &err);
    else
        for (unsigned i = 0; i < manifest->disk_count && !transfer_interrupted(&verify->transfer); i++)
            verify_disk(verify, point, &manifest->disks[i], whole);
    free(manifest);
}

static int verify_end(const struct verify *verify)
{
    if (verify->sample.percent < 100 && verify->cli->json)
        print_json(json_pack("{s:s, s:f, s:I, s:I, s:I}", "event", "sample", "percent", verify->sample.percent, "seed",
                             (json_int_t)verify->sample.seed, "extents", (json_int_t)verify->extents, "verified",
                             (json_int_t)verify->looked_at));
    else if (verify->sample.percent < 100)
        printf("a sample: %" PRIu64 " of %" PRIu64 " MiB were looked at (--seed %" PRIu64 ")\n", verify->looked_at,
               verify->extents, verify->sample.seed);
    return verify->damaged == 0 ? CLI_DONE : CLI_FAILED;
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
        verify_point(verify, name, true);
    for (unsigned i = 0; i < points.count && !wanted && !transfer_interrupted(&verify->transfer); i++)
        verify_point(verify, points.names[i], false);
    set_points_free(&points);
    if (!transfer_interrupted(&verify->transfer))
        return verify_end(verify);
    cli_fail("interrupted: not everything was verified");
    return CLI_INTERRUPTED;
}

static int parse(struct verify *verify, int argc, char **argv)
{
    int code = sample_parse_options(verify->cli, &verify->sample, argc, argv);
    if (code != CLI_DONE)
        return code;
    if (argc - optind != 1)
        return cli_usage(verify->cli, "verify wants one backup set, or one point of it: DIR or DIR@POINT");
    return CLI_DONE;
}

static int verify_run(struct cli *cli, int argc, char **argv)
{
    struct verify verify = {.cli = cli};
    struct error err;
    const char *wanted;
    sample_init(&verify.sample, 100);
    int code = parse(&verify, argc, argv);
    if (code != CLI_DONE)
        return code;
    if (set_argument_open(argv[optind], &verify.set, &wanted, &err) < 0)
        return cli_fail("%s", err.text);
    if (set_begin_reading(verify.set, &err) < 0 || transfer_open(&verify.transfer, cli->json, &err) < 0) {
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
    .arguments = "DIR[@POINT] [--sample PERCENT [--seed NUMBER]]",
    .summary = "read the images of a backup set and compare them with the hashes of the time of the backup",
    .run = verify_run,
};
