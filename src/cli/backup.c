/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fleece backup: one more point of a backup set.
 *
 *   lock the set, begin a point -> base and checkpoint -> leased snapshot -> copy each disk of it -> finish the point:
 *   all of it is durable -> delete the snapshot -> make the point visible -> commit its checkpoint, delete the set's older
 *   ones
 *
 * Whatever goes wrong before the point is published, it is abandoned, the set is as it was, and the new checkpoint
 * goes: what it noted stays with the one before. The order of the end is that of C24; backup_base.c says what a death
 * in the middle of it leaves. The snapshot is leased to the control connection: it ends with this process, however that
 * ends, at once or after its grace time.
 */
#include "cli/backup.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "base/name.h"
#include "cli/reply.h"
#include "cli/set_argument.h"
#include "fleece/fleece.h"

static void print_json(json_t *line)
{
    json_dumpf(line, stdout, JSON_COMPACT);
    putchar('\n');
    fflush(stdout);
    json_decref(line);
}

/* --- the steps */

static int find_vm(struct backup *backup, struct error *err)
{
    json_t *status = NULL;
    int result = backup_execute(backup, "fleece-query-status", NULL, &status, err);
    if (result == 0 && (result = name_check("the daemon's VM name", backup_text(status, "name"), err)) == 0)
        strcpy(backup->vm, backup_text(status, "name"));
    json_decref(status);
    return result;
}

static int begin_point(struct backup *backup, struct error *err)
{
    const char *path = backup->options.path;
    struct leftover_report report;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    int status = point_begin(backup->set, (uint64_t)now.tv_sec, &backup->point, &report, err);
    if (status == 0 && report.kept > 0) {
        backup->warned = true;
        cli_warn("%s/%s looks like an interrupted backup and was kept: %s", path, report.kept_name, report.kept_reason);
    }
    return status;
}

/* Asks for the snapshot: with the checkpoint and the base, if there are any. */
static int ask_for_snapshot(struct backup *backup, const char *name, const char *checkpoint, json_t **snapshot,
                            struct error *err)
{
    json_t *arguments = json_pack("{s:s, s:b, s:i}", "name", name, "lease", 1, "grace", (int)backup->options.grace_s);
    if (checkpoint[0])
        json_object_set_new(arguments, "checkpoint", json_string(checkpoint));
    if (backup->options.consistency)
        json_object_set_new(arguments, "consistency", json_string(backup->options.consistency));
    if (backup->base.since[0])
        json_object_set_new(arguments, "since", json_string(backup->base.since));
    return backup_execute(backup, "fleece-snapshot-create", arguments, snapshot, err);
}

/* An incremental image is only of use over one of the latest point. False: a disk has none there. */
static bool fits_latest(const struct backup *backup, const json_t *snapshot)
{
    const json_t *export;
    size_t i;
    json_array_foreach (json_object_get(snapshot, "exports"), i, export)
        if (json_is_true(json_object_get(export, "incremental")) &&
            !manifest_disk_find(backup->base.latest, backup_text(export, "disk")))
            return false;
    return true;
}

/*
 * What is tried when a snapshot with all that was wanted can't be had: without a checkpoint, for the base stays where it is
 * and will do again; then everything in full.
 */
static int snapshot_without(struct backup *backup, const char *name, json_t **snapshot, struct error *err)
{
    char why[LIMIT_REASON_BYTES];
    bool wanted = backup->base.since[0], incremental;
    backup_reason(why, err->text);
    incremental = wanted && ask_for_snapshot(backup, name, "", snapshot, err) == 0;
    if (!incremental) {
        backup->base.since[0] = '\0';
        int status = ask_for_snapshot(backup, name, "", snapshot, err);
        if (status < 0)
            return status;
        if (wanted)
            memcpy(backup->base.reason, why, sizeof why);
    }
    backup->warned = true;
    cli_warn("there is no checkpoint of this backup, so the next one will %s: %s",
             incremental ? "copy what this one does once more" : "be full, too", why);
    return 0;
}

static void end_snapshot(struct backup *backup, bool well);

/* Notes what was made, so that it can be ended. */
static void note_snapshot(struct backup *backup, const char *name, const json_t *snapshot)
{
    struct manifest *manifest = backup->manifest;
    const json_t *checkpoint = json_object_get(snapshot, "checkpoint");
    strcpy(backup->snapshot, name);
    snprintf(manifest->snapshot, sizeof manifest->snapshot, "%s", backup_text(snapshot, "uuid"));
    (void)manifest_consistency_parse(backup_text(snapshot, "consistent"), &manifest->consistency);
    if (json_object_get(snapshot, "consistent-reason")) {
        backup->warned = true;
        cli_warn("the backup is crash-consistent: %s", backup_text(snapshot, "consistent-reason"));
    }
    snprintf(manifest->checkpoint.name, sizeof manifest->checkpoint.name, "%s", backup_text(checkpoint, "name"));
    snprintf(manifest->checkpoint.uuid, sizeof manifest->checkpoint.uuid, "%s", backup_text(checkpoint, "uuid"));
    snprintf(backup->since_name, sizeof backup->since_name, "%s",
             backup_text(json_object_get(snapshot, "since"), "name"));
}

/* A snapshot; *snapshot describes it also when it is not what was wanted. */
static int make_snapshot(struct backup *backup, json_t **snapshot, struct error *err)
{
    uint32_t number = 0;
    char name[LIMIT_NAME_BYTES + 1], checkpoint[LIMIT_NAME_BYTES + 1];
    if (getrandom(&number, sizeof number, 0) != sizeof number)
        return error_set(err, EIO, "no random number for the name of the snapshot");
    snprintf(name, sizeof name, "backup-%08" PRIx32, number);
    int status = backup_checkpoint_name(backup, checkpoint, err);
    if (status == 0)
        status = ask_for_snapshot(backup, name, checkpoint, snapshot, err);
    bool may_do_without = !backup->options.consistency || strcmp(backup->options.consistency, "required") != 0;
    if (status < 0 && may_do_without && !transfer_interrupted(&backup->transfer))
        status = snapshot_without(backup, name, snapshot, err);
    if (status == 0)
        note_snapshot(backup, name, *snapshot);
    return status;
}

static int take_snapshot(struct backup *backup, json_t **snapshot, struct error *err)
{
    int status = make_snapshot(backup, snapshot, err);
    if (status == 0 && backup->base.since[0] && !fits_latest(backup, *snapshot)) {
        end_snapshot(backup, false);
        backup_checkpoint_drop(backup);
        json_decref(*snapshot);
        *snapshot = NULL;
        snprintf(backup->base.reason, sizeof backup->base.reason,
                 "a disk that the latest point %s has no image of has changes since its checkpoint",
                 backup->base.point);
        backup->base.since[0] = '\0';
        status = make_snapshot(backup, snapshot, err);
    }
    if (status < 0)
        return status;
    json_int_t created_s = json_integer_value(json_object_get(*snapshot, "created-ns")) / (json_int_t)NS_PER_S;
    size_t disks = json_array_size(json_object_get(*snapshot, "exports"));
    if (created_s <= 0 || created_s >= INT64_C(253402300800) || disks < 1 || disks > LIMIT_DISKS)
        return error_set(err, EPROTO,
                         "the daemon's answer to fleece-snapshot-create has no 'created-ns' or no 'exports'");
    point_time_format(backup->manifest->created, (uint64_t)created_s);
    return 0;
}

/* What is copied is decided for all disks before the first one is copied, so that it can be noted. */
static int plan_disks(struct backup *backup, const json_t *exports, struct error *err)
{
    int status = 0;
    for (size_t i = 0; i < json_array_size(exports) && status == 0; i++)
        status = backup_plan_disk(backup, json_array_get(exports, i), err);
    return status == 0 ? backup_resume_save(backup, err) : status;
}

/* A point and a snapshot: new ones. */
static int begin_anew(struct backup *backup, json_t **snapshot, struct error *err)
{
    int status = begin_point(backup, err);
    if (status < 0)
        return status;
    backup_snapshots_sweep(backup);
    status = backup_base_find(backup, err);
    if (status == 0 && transfer_interrupted(&backup->transfer))
        status = error_set(err, ECANCELED, "the backup was cancelled");
    if (status == 0)
        status = take_snapshot(backup, snapshot, err);
    return status == 0 ? plan_disks(backup, json_object_get(*snapshot, "exports"), err) : status;
}

/* New ones, or those of an interrupted backup. */
static int begin(struct backup *backup, json_t **snapshot, struct error *err)
{
    int status = set_open_to_add(backup->options.path, backup->vm, &backup->set, err);
    if (status < 0)
        return status;
    if (backup->options.resume && backup_resume(backup, snapshot, err) < 0) {
        backup->warned = true;
        cli_warn("no interrupted backup can go on, so this is a new one: %s", err->text);
    }
    if (!backup->resumed)
        status = begin_anew(backup, snapshot, err);
    if (status == 0 && backup->cli->json && *snapshot)
        print_json(json_pack("{s:s, s:s, s:s, s:s, s:I, s:b}", "event", "snapshot", "name", backup->snapshot, "uuid",
                             backup->manifest->snapshot, "created", backup->manifest->created, "hold-ns",
                             json_integer_value(json_object_get(*snapshot, "hold-ns")), "resumed", backup->resumed));
    return status;
}

static const json_t *export_of(const json_t *exports, const char *disk)
{
    const json_t *export;
    size_t i;
    json_array_foreach (exports, i, export)
        if (strcmp(backup_text(export, "disk"), disk) == 0)
            return export;
    return NULL; /* it has no address either */
}

static int backup_disks(struct backup *backup, const json_t *exports, struct error *err)
{
    backup->transfer.watch_fd = fleece_descriptor(backup->fleece);
    backup->transfer.watched = backup_control_readable;
    backup->transfer.watch_context = backup;
    int status = 0;
    for (unsigned i = 0; i < backup->manifest->disk_count && status == 0; i++) {
        struct manifest_disk *disk = &backup->manifest->disks[i];
        status = backup_copy_disk(backup, disk, export_of(exports, disk->name), err);
        if (status == 0 && (transfer_interrupted(&backup->transfer) || !backup_control_readable(backup)))
            status = error_set(err, ECANCELED, "the backup was cancelled");
    }
    if (status < 0 && !transfer_interrupted(&backup->transfer))
        backup_find_cause(backup);
    return status;
}

/* Everything was read, or nothing more will be: whatever happens to the snapshot now, the point is right. */
static void end_snapshot(struct backup *backup, bool well)
{
    struct error err;
    json_t *result = NULL;
    if (!backup->snapshot[0])
        return;
    int status = backup_execute(backup, "fleece-snapshot-delete", json_pack("{s:s}", "name", backup->snapshot), &result,
                                &err);
    json_decref(result);
    backup->snapshot[0] = '\0';
    if (status < 0 && well) {
        backup->warned = true;
        cli_warn("the backup is complete, but its snapshot could not be deleted: %s", err.text);
    }
}

static json_t *describe_disk(const struct manifest_disk *disk)
{
    json_t *json = json_pack("{s:s, s:I, s:I, s:s, s:s, s:I}", "name", disk->name, "size", (json_int_t)disk->size_bytes,
                             "data", (json_int_t)disk->data_bytes, "format", manifest_format_name(disk->format), "kind",
                             disk->incremental ? "incremental" : "full", "captured", (json_int_t)disk->captured_bytes);
    if (disk->reason[0])
        json_object_set_new(json, "reason", json_string(disk->reason));
    return json;
}

static void print_result(struct backup *backup, const char *name)
{
    const struct manifest *manifest = backup->manifest;
    double seconds = (double)(io_now_ns(backup->transfer.io) - backup->started_ns) / (double)NS_PER_S;
    uint64_t size_bytes = 0, data_bytes = 0, captured_bytes = 0;
    unsigned incremental = 0;
    char text[3][16];
    json_t *disks = json_array();
    for (unsigned i = 0; i < manifest->disk_count; i++) {
        const struct manifest_disk *disk = &manifest->disks[i];
        size_bytes += disk->size_bytes;
        data_bytes += disk->data_bytes;
        captured_bytes += disk->captured_bytes;
        incremental += disk->incremental;
        json_array_append_new(disks, describe_disk(disk));
    }
    size_format(text[0], size_bytes);
    size_format(text[1], data_bytes);
    size_format(text[2], captured_bytes);
    if (backup->cli->json)
        print_json(json_pack("{s:s, s:s, s:s, s:f, s:O}", "event", "done", "point", name, "vm", backup->vm, "seconds",
                             seconds, "disks", disks));
    else if (incremental == 0)
        printf("backup %s@%s: %u disk%s of VM %s, %s with %s of data, in %.1f s\n", backup->options.path, name,
               manifest->disk_count, manifest->disk_count == 1 ? "" : "s", backup->vm, text[0], text[1], seconds);
    else
        printf("backup %s@%s: %u disk%s of VM %s, %u incremental since %s, %s of %s with %s of data, in %.1f s\n",
               backup->options.path, name, manifest->disk_count, manifest->disk_count == 1 ? "" : "s", backup->vm,
               incremental, backup->base.point, text[2], text[0], text[1], seconds);
    json_decref(disks);
}

/* Everything but the last word: the point is complete and durable, though nobody sees it yet. */
static int copy_all(struct backup *backup, const json_t *snapshot, struct error *err)
{
    if (backup->finished)
        return 0;
    int status = backup_disks(backup, json_object_get(snapshot, "exports"), err);
    return status == 0 ? point_finish(backup->point, backup->manifest, err) : status;
}

/* All steps; 0 and the name of the point, or -errno with the sentence. */
static int make_backup(struct backup *backup, char *name, struct error *err)
{
    json_t *snapshot = NULL;
    int status = find_vm(backup, err);
    if (status == 0)
        status = begin(backup, &snapshot, err);
    if (status == 0)
        status = copy_all(backup, snapshot, err);
    json_decref(snapshot);
    if (backup->lost && !transfer_interrupted(&backup->transfer) && status < 0)
        return status; /* the daemon may come back, and with it the snapshot */
    end_snapshot(backup, status == 0);
    if (status == 0 && transfer_interrupted(&backup->transfer))
        status = error_set(err, ECANCELED, "the backup was cancelled");
    if (status == 0)
        status = point_publish(backup->point, backup->manifest, name, err);
    if (status < 0) {
        backup_checkpoint_drop(backup);
        return status;
    }
    backup->point = NULL;
    backup_checkpoint_commit(backup);
    return 0;
}

/* The clock may have been set back: then the point that was just made is not the one that `latest` means. */
static void check_latest(struct backup *backup, const char *name)
{
    struct error err;
    char latest[POINT_NAME_BYTES];
    if (set_point_find(backup->set, NULL, latest, &err) < 0 || strcmp(latest, name) == 0)
        return;
    backup->warned = true;
    cli_warn("the point %s is not the latest of '%s': %s is there already; was the clock set back?", name,
             set_path(backup->set), latest);
}

/* Options that are right, and had no effect. */
static void note_options(const struct backup *backup)
{
    const struct backup_options *options = &backup->options;
    bool any_full = false;
    for (unsigned i = 0; i < backup->manifest->disk_count; i++)
        any_full |= !backup->manifest->disks[i].incremental;
    if (backup->resumed &&
        (options->full || options->since || options->format_given || options->compress || options->consistency))
        cli_note("this backup went on as it had begun: --full, --since, --format, --compress and --consistency are for "
                 "new ones");
    else if (!any_full && options->compress)
        cli_note("--compress had no effect: it is for full images, and all of this backup are incremental");
    else if (!any_full && options->format == MANIFEST_RAW)
        cli_note("--format raw had no effect: it is for full images, and all of this backup are incremental");
}

static int backup_end(struct backup *backup, const char *name, int status, const struct error *err)
{
    const char *path = backup->options.path;
    int code = CLI_DONE;
    bool may_go_on = backup->lost && backup->point && !transfer_interrupted(&backup->transfer);
    if (may_go_on)
        point_leave(backup->point);
    else if (backup->point)
        point_abandon(backup->point);
    if (status == 0) {
        check_latest(backup, name);
        note_options(backup);
        print_result(backup, name);
        code = backup->warned ? CLI_WARNING : CLI_DONE;
    }
    if (backup->set)
        set_close(backup->set);
    if (status == 0)
        return code;
    if (transfer_interrupted(&backup->transfer)) {
        cli_fail("interrupted: the backup was abandoned; '%s' is as it was", path);
        code = CLI_INTERRUPTED;
    } else
        code = cli_fail("%s%s", backup->cause[0] ? backup->cause : err->text,
                        may_go_on ? "; the backup can go on with --resume while the snapshot lives" : "");
    return code;
}

static int parse_grace(struct backup *backup, const char *text)
{
    const unsigned most = (unsigned)(LEASE_GRACE_MAX_NS / NS_PER_S);
    char *end;
    unsigned long value = text[0] >= '0' && text[0] <= '9' ? strtoul(text, &end, 10) : ULONG_MAX;
    if (value > most || *end)
        return cli_usage(backup->cli, "--grace '%s' is not a number of seconds from 0 to %u", text, most);
    backup->options.grace_s = (unsigned)value;
    return CLI_DONE;
}

static int parse_format(struct backup *backup, const char *text)
{
    if (strcmp(text, "raw") != 0 && strcmp(text, "qcow2") != 0)
        return cli_usage(backup->cli, "--format '%s' is neither 'qcow2' nor 'raw'", text);
    backup->options.format = text[0] == 'r' ? MANIFEST_RAW : MANIFEST_QCOW2;
    backup->options.format_given = true;
    return CLI_DONE;
}

static int parse(struct backup *backup, int argc, char **argv)
{
    static const struct option options[] = {
        {"full", no_argument, NULL, 'f'},
        {"since", required_argument, NULL, 's'},
        {"format", required_argument, NULL, 'F'},
        {"compress", no_argument, NULL, 'c'},
        {"grace", required_argument, NULL, 'g'},
        {"resume", no_argument, NULL, 'r'},
        {"consistency", required_argument, NULL, 'C'},
        {NULL, 0, NULL, 0},
    };
    int option, code = CLI_DONE;
    struct error err;
    backup->options.grace_s = (unsigned)(LEASE_GRACE_DEFAULT_NS / NS_PER_S);
    backup->options.format = MANIFEST_QCOW2;
    while (code == CLI_DONE && (option = getopt_long(argc, argv, ":", options, NULL)) != -1) {
        switch (option) {
        case 'f':
            backup->options.full = true;
            break;
        case 's':
            if (name_check("checkpoint name", optarg, &err) < 0) /* UUIDs are right names */
                return cli_usage(backup->cli, "--since: %s", err.text);
            backup->options.since = optarg;
            break;
        case 'F':
            code = parse_format(backup, optarg);
            break;
        case 'c':
            backup->options.compress = true;
            break;
        case 'r':
            backup->options.resume = true;
            break;
        case 'C':
            if (!cli_is_consistency(optarg))
                return cli_usage(backup->cli, "--consistency '%s' is not right: auto, crash or required", optarg);
            backup->options.consistency = optarg;
            break;
        case 'g':
            code = parse_grace(backup, optarg);
            break;
        default:
            return cli_usage_option(backup->cli, option, argv);
        }
    }
    if (code != CLI_DONE)
        return code;
    if (argc - optind != 1)
        return cli_usage(backup->cli, "backup wants the folder of one backup set");
    if (set_argument_point(argv[optind]))
        return cli_usage(backup->cli, "'%s' is a point; backup wants the folder of a set, to which it adds one",
                         argv[optind]);
    if (backup->options.full && backup->options.since)
        return cli_usage(backup->cli, "--full and --since exclude one another");
    if (backup->options.compress && backup->options.format == MANIFEST_RAW)
        return cli_usage(backup->cli, "--compress is for qcow2 images, not for --format raw");
    backup->options.path = argv[optind];
    return CLI_DONE;
}

static int backup_run(struct cli *cli, int argc, char **argv)
{
    struct backup backup = {.cli = cli};
    struct error err;
    char name[POINT_NAME_BYTES];
    int code = parse(&backup, argc, argv);
    if (code == CLI_DONE)
        code = cli_connect(cli, &backup.fleece);
    if (code != CLI_DONE)
        return code;
    backup.manifest = calloc(1, sizeof *backup.manifest);
    if (!backup.manifest) {
        code = cli_fail("no memory for a manifest");
    } else if (transfer_open(&backup.transfer, cli->json, &err) < 0) {
        code = cli_fail("%s", err.text);
    } else {
        backup.started_ns = io_now_ns(backup.transfer.io);
        int status = make_backup(&backup, name, &err);
        code = backup_end(&backup, name, status, &err);
        transfer_close(&backup.transfer);
    }
    free(backup.base.latest);
    free(backup.manifest);
    fleece_close(backup.fleece);
    return code;
}

const struct cli_command cli_backup = {
    .name = "backup",
    .arguments = "DIR [--full | --since CHECKPOINT] [--format qcow2|raw] [--compress] [--resume] [--grace SECONDS] "
                 "[--consistency auto|crash|required]",
    .summary = "add a backup of all disks, as they are at one instant, to the backup set DIR",
    .run = backup_run,
};
