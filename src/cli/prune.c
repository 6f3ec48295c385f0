/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fleece prune: the points that no rule keeps go; what of them points that stay lie over is merged into those first.
 *
 *     lock the set -> rules -> remove what nothing lies over
 *                           -> for each point that stays, oldest first: merge expired ones into it (prune_merge.c), and
 *                              remove what nothing lies over any more
 *
 * Each step leaves a whole set: a merge takes the place of its point by exchanging folders, a point disappears by being
 * renamed, and only one that no image needs does. So it may be interrupted or killed at any time, and the next run goes
 * on; what it finds half made or half removed is a left-over like that of a backup. One damaged line in what is to be
 * merged ends it with the place; what was done until then stays done.
 */
#include "cli/prune.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <jansson.h>

#include "base/name.h"
#include "cli/set_argument.h"

static void print_json(json_t *line)
{
    json_dumpf(line, stdout, JSON_COMPACT);
    putchar('\n');
    fflush(stdout);
    json_decref(line);
}

static int compare_names(const void *a, const void *b)
{
    return point_name_compare(a, b);
}

unsigned prune_find(const struct prune *prune, const char *point)
{
    char(*found)[POINT_NAME_BYTES] = bsearch(point, prune->points.names, prune->points.count,
                                             sizeof *prune->points.names, compare_names);
    return found ? (unsigned)(found - prune->points.names) : prune->points.count;
}

/* --- what is there */

/* Counts, or uncounts, a point as one that lies over others. */
static void count_users(struct prune *prune, const struct manifest *manifest, int step)
{
    for (unsigned i = 0; i < manifest->disk_count; i++) {
        unsigned parent = manifest->disks[i].incremental ? prune_find(prune, manifest->disks[i].parent.point)
                                                         : prune->points.count;
        if (parent < prune->points.count)
            prune->users[parent] += (unsigned)step;
    }
}

/* All manifests must be right: what a damaged one lies over can't be known. */
static int look_at_points(struct prune *prune, struct manifest *manifest, struct error *err)
{
    int status = set_points_list(prune->set, &prune->points, err);
    unsigned count = prune->points.count;
    if (status < 0)
        return status;
    if (count == 0)
        return error_set(err, ENOENT, "the backup set '%s' has no point yet", set_path(prune->set));
    prune->kept = calloc(count, sizeof *prune->kept);
    prune->users = calloc(count, sizeof *prune->users);
    prune->removed = calloc(count, sizeof *prune->removed);
    if (!prune->kept || !prune->users || !prune->removed)
        return error_set(err, ENOMEM, "no memory for %u points", count);
    keep_choose(&prune->rules, (const char(*)[POINT_NAME_BYTES])prune->points.names, count, prune->kept);
    for (unsigned i = 0; i < count && status == 0; i++) {
        status = set_manifest_load(prune->set, prune->points.names[i], manifest, err);
        if (status == 0)
            count_users(prune, manifest, 1);
    }
    return status < 0 ? error_prefix(err, "nothing was pruned") : 0;
}

static void print_plan(const struct prune *prune)
{
    for (unsigned i = 0; i < prune->points.count; i++) {
        char text[80] = "";
        json_t *rules = json_array();
        for (enum keep_rule rule = KEEP_LAST; rule <= KEEP_MONTHLY; rule++)
            if (prune->kept[i] & 1u << rule) {
                size_t used = strlen(text);
                snprintf(text + used, sizeof text - used, "%s%s", used ? ", " : "", keep_rule_name(rule));
                json_array_append_new(rules, json_string(keep_rule_name(rule)));
            }
        if (prune->cli->json)
            print_json(json_pack("{s:s, s:s, s:b, s:O}", "event", "point", "point", prune->points.names[i], "stays",
                                 prune->kept[i] != 0, "rules", rules));
        else if (prune->kept[i])
            printf("%-24s stays: %s\n", prune->points.names[i], text);
        else
            printf("%-24s expires\n", prune->points.names[i]);
        json_decref(rules);
    }
    fflush(stdout);
}

/* --- space */

/* What would be free if the file were not there: files that another point has, too, take nothing. */
static uint64_t space_of_file(const struct prune *prune, const char *point, const char *file)
{
    char path[PATH_MAX];
    struct stat stat;
    snprintf(path, sizeof path, "%s/%s", point, file);
    if (fstatat(set_directory(prune->set), path, &stat, AT_SYMLINK_NOFOLLOW) < 0 || stat.st_nlink > 1)
        return 0;
    return (uint64_t)stat.st_blocks * IMAGE_SECTOR_BYTES;
}

uint64_t prune_space_of_point(const struct prune *prune, const char *point, const struct manifest *manifest)
{
    uint64_t bytes = space_of_file(prune, point, MANIFEST_FILE);
    for (unsigned i = 0; i < manifest->disk_count; i++)
        bytes += space_of_file(prune, point, manifest->disks[i].image) +
                 space_of_file(prune, point, manifest->disks[i].hashes);
    return bytes;
}

/* --- the steps */

static int remove_point(struct prune *prune, unsigned index, struct manifest *manifest, struct error *err)
{
    const char *point = prune->points.names[index];
    int status = set_manifest_load(prune->set, point, manifest, err);
    if (status < 0)
        return status;
    uint64_t bytes = prune_space_of_point(prune, point, manifest);
    if (!prune->dry_run)
        status = point_remove(prune->set, point, err);
    if (status < 0)
        return status;
    count_users(prune, manifest, -1);
    prune->removed[index] = true;
    prune->removed_count++;
    prune->freed_bytes += bytes;
    if (prune->cli->json && !prune->dry_run)
        print_json(json_pack("{s:s, s:s}", "event", "removed", "point", point));
    return 0;
}

/* Expired points that nothing lies over, and those that nothing lies over then: the newest first. */
static int remove_unused(struct prune *prune, struct manifest *manifest, struct error *err)
{
    int status = 0;
    bool again = true;
    while (again && status == 0) {
        again = false;
        for (unsigned i = prune->points.count; i-- > 0 && status == 0;)
            if (!prune->kept[i] && !prune->removed[i] && prune->users[i] == 0) {
                status = transfer_interrupted(&prune->transfer) ? error_set(err, ECANCELED, "interrupted")
                                                                : remove_point(prune, i, manifest, err);
                again = true;
            }
    }
    return status;
}

static int prune_points(struct prune *prune, struct manifest *manifest, struct error *err)
{
    int status = remove_unused(prune, manifest, err);
    for (unsigned i = 0; i < prune->points.count && status == 0; i++) {
        const char *point = prune->points.names[i];
        if (!prune->kept[i])
            continue;
        status = set_manifest_load(prune->set, point, manifest, err);
        if (status == 0)
            status = prune_merge_point(prune, point, manifest, err);
        if (status == 0)
            status = remove_unused(prune, manifest, err);
    }
    return status;
}

/* What a kill has left goes first: the space may be needed. But what a backup can go on with is its business: only the
 * daemon knows whether the snapshot still lives. */
static void sweep(struct prune *prune)
{
    struct leftover_report report = {0};
    if (!prune->dry_run)
        leftover_sweep(prune->set, "", true, &report);
    if (report.resumable > 0) {
        prune->warned = true;
        cli_warn("%s/%s is an interrupted backup and was kept: 'fleece backup --resume' may go on with it, the next "
                 "backup without that removes it",
                 set_path(prune->set), report.resumable_name);
    }
    if (report.kept == 0)
        return;
    prune->warned = true;
    cli_warn("%s/%s looks like an interrupted backup and was kept: %s", set_path(prune->set), report.kept_name,
             report.kept_reason);
}

static void print_result(const struct prune *prune)
{
    uint64_t freed_bytes = prune->freed_bytes > prune->shared_bytes ? prune->freed_bytes - prune->shared_bytes : 0;
    unsigned stay = 0;
    char text[2][16];
    for (unsigned i = 0; i < prune->points.count; i++)
        stay += prune->kept[i] != 0;
    if (prune->cli->json)
        print_json(json_pack("{s:s, s:b, s:i, s:i, s:i, s:I, s:I}", "event", "done", "dry-run", prune->dry_run, "stay",
                             (int)stay, "removed", (int)prune->removed_count, "merged", (int)prune->merged_count,
                             "freed", (json_int_t)freed_bytes, "written", (json_int_t)prune->written_bytes));
    else if (prune->dry_run)
        printf("%u point%s would stay, %u go, %u be merged with what they lie over\n", stay, stay == 1 ? "" : "s",
               prune->points.count - stay, prune->merged_count);
    else
        printf("%u point%s, %u went, %u %s merged with what %s lay over: %s freed, %s written\n", stay,
               stay == 1 ? " stays" : "s stay", prune->removed_count, prune->merged_count,
               prune->merged_count == 1 ? "was" : "were", prune->merged_count == 1 ? "it" : "they",
               size_format(text[0], freed_bytes), size_format(text[1], prune->written_bytes));
}

static int prune_set(struct prune *prune)
{
    struct error err;
    struct manifest *manifest = malloc(sizeof *manifest);
    int status = manifest ? 0 : error_set(&err, ENOMEM, "no memory for a manifest"), code = CLI_DONE;
    if (status == 0)
        sweep(prune);
    if (status == 0)
        status = look_at_points(prune, manifest, &err);
    if (status == 0) {
        print_plan(prune);
        status = prune_points(prune, manifest, &err);
    }
    if (status == 0) {
        print_result(prune);
        code = prune->warned ? CLI_WARNING : CLI_DONE;
    } else if (transfer_interrupted(&prune->transfer)) {
        cli_fail("interrupted: the set is whole; prune again to go on");
        code = CLI_INTERRUPTED;
    } else {
        code = cli_fail("%s", err.text);
    }
    free(manifest);
    set_points_free(&prune->points);
    free(prune->kept);
    free(prune->users);
    free(prune->removed);
    return code;
}

/* --- the command line */

static int parse_rule(struct prune *prune, enum keep_rule rule, const char *text)
{
    char *end;
    errno = 0;
    unsigned long number = strtoul(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end || errno || number > LIMIT_POINTS)
        return cli_usage(prune->cli, "--keep-%s '%s' is not a whole number of 0 to %d", keep_rule_name(rule), text,
                         LIMIT_POINTS);
    prune->rules.count[rule] = (unsigned)number;
    return CLI_DONE;
}

static int parse(struct prune *prune, int argc, char **argv)
{
    enum { DRY_RUN = KEEP_RULES };
    static const struct option options[] = {
        {"keep-last", required_argument, NULL, KEEP_LAST},
        {"keep-hourly", required_argument, NULL, KEEP_HOURLY},
        {"keep-daily", required_argument, NULL, KEEP_DAILY},
        {"keep-weekly", required_argument, NULL, KEEP_WEEKLY},
        {"keep-monthly", required_argument, NULL, KEEP_MONTHLY},
        {"dry-run", no_argument, NULL, DRY_RUN},
        {NULL, 0, NULL, 0},
    };
    int option, code = CLI_DONE;
    unsigned any = 0;
    while (code == CLI_DONE && (option = getopt_long(argc, argv, ":", options, NULL)) != -1) {
        if (option >= 0 && option < KEEP_RULES)
            code = parse_rule(prune, (enum keep_rule)option, optarg);
        else if (option == DRY_RUN)
            prune->dry_run = true;
        else
            return cli_usage_option(prune->cli, option, argv);
    }
    if (code != CLI_DONE)
        return code;
    if (argc - optind != 1)
        return cli_usage(prune->cli, "prune wants the folder of one backup set");
    if (set_argument_point(argv[optind]))
        return cli_usage(prune->cli, "'%s' is a point; prune wants the folder of a set, and rules for all its points",
                         argv[optind]);
    for (unsigned rule = 0; rule < KEEP_RULES; rule++)
        any += prune->rules.count[rule];
    if (any == 0)
        return cli_usage(prune->cli, "say what stays: --keep-last, --keep-hourly, --keep-daily, --keep-weekly or "
                                     "--keep-monthly, with a number above 0");
    return CLI_DONE;
}

static int prune_run(struct cli *cli, int argc, char **argv)
{
    struct prune prune = {.cli = cli};
    struct error err;
    int code = parse(&prune, argc, argv);
    if (code != CLI_DONE)
        return code;
    if (set_open_to_prune(argv[optind], &prune.set, &err) < 0)
        return cli_fail("%s", err.text);
    if (transfer_open(&prune.transfer, cli->json, &err) < 0) {
        code = cli_fail("%s", err.text);
    } else {
        code = prune_set(&prune);
        transfer_close(&prune.transfer);
    }
    set_close(prune.set);
    return code;
}

const struct cli_command cli_prune = {
    .name = "prune",
    .arguments =
        "DIR [--keep-last N] [--keep-hourly N] [--keep-daily N] [--keep-weekly N] [--keep-monthly N] [--dry-run]",
    .summary = "remove the points of a backup set that no rule keeps, merging what others need of them",
    .run = prune_run,
};
