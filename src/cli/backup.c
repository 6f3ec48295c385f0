/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fleece backup: one more point of a backup set.
 *
 *   lock the set, begin a point -> leased snapshot -> copy each disk of it -> delete the snapshot -> publish the point
 *
 * Whatever goes wrong before the last step, the point is abandoned and the set is as it was. The snapshot is leased to the
 * control connection: it ends with this process, however that ends. Meanwhile the connection is watched: an event that the
 * snapshot broke, or the end of the daemon, ends the copy at once, and gives the reason that the user is told; errors of
 * reads alone would only say that reading failed.
 */
#include "cli/command.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include <jansson.h>

#include "base/name.h"
#include "job/image.h"
#include "cli/transfer.h"
#include "driver/nbd.h"
#include "fleece/fleece.h"
#include "set/point.h"

struct backup {
    struct cli *cli;
    struct fleece *fleece;
    struct set *set;
    struct point *point;
    struct transfer transfer;
    struct manifest *manifest;
    char vm[LIMIT_NAME_BYTES + 1];
    char snapshot[LIMIT_NAME_BYTES + 1]; /* empty: none is there (any more) */
    char cause[LIMIT_ERROR_BYTES];       /* why the snapshot can't be read any more; empty: it can */
    uint64_t started_ns;
    bool warned;
};

static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

struct execution { /* one command, on a helper thread */
    struct fleece *fleece;
    const char *command;
    char *arguments, *reply;
    char error[FLEECE_ERROR_BYTES];
};

static int64_t execute_blocking(void *argument)
{
    struct execution *execution = argument;
    execution->reply = fleece_execute(execution->fleece, execution->command, execution->arguments, execution->error);
    return 0;
}

/* Executes and parses; an interruption ends the connection. -EIO with the daemon's sentence. A new reference. */
static int execute(struct backup *backup, const char *command, json_t *arguments, json_t **result, struct error *err)
{
    struct execution execution = {.fleece = backup->fleece, .command = command};
    execution.arguments = arguments ? json_dumps(arguments, JSON_COMPACT) : NULL;
    json_decref(arguments);
    transfer_block(&backup->transfer, execute_blocking, &execution, fleece_descriptor(backup->fleece));
    free(execution.arguments);
    if (!execution.reply)
        return error_set(err, EIO, "%s", execution.error);
    *result = json_loads(execution.reply, JSON_DECODE_ANY, NULL);
    free(execution.reply);
    return *result ? 0 : error_set(err, EIO, "the daemon's answer to %s is not JSON", command);
}

static void print_json(json_t *line)
{
    json_dumpf(line, stdout, JSON_COMPACT);
    putchar('\n');
    fflush(stdout);
    json_decref(line);
}

/* --- why a copy ended */

static void note_broken(struct backup *backup, const char *reason)
{
    snprintf(backup->cause, sizeof backup->cause, "the snapshot broke in mid-backup: %s",
             reason[0] ? reason : "no reason given");
}

/* The daemon says something, or has gone. False: the snapshot can't be read any more. */
static bool control_readable(void *context)
{
    struct backup *backup = context;
    char error[FLEECE_ERROR_BYTES] = "";
    char *text;
    while ((text = fleece_event(backup->fleece, 0, error)) != NULL) {
        json_t *event = json_loads(text, 0, NULL), *data = json_object_get(event, "data");
        if (strcmp(text_of(event, "event"), "FLEECE_SNAPSHOT_BROKEN") == 0 &&
            strcmp(text_of(data, "name"), backup->snapshot) == 0)
            note_broken(backup, text_of(data, "reason"));
        else if (strcmp(text_of(event, "event"), "FLEECE_SNAPSHOT_DELETED") == 0 &&
                 strcmp(text_of(data, "name"), backup->snapshot) == 0)
            snprintf(backup->cause, sizeof backup->cause, "the snapshot %s was deleted in mid-backup",
                     backup->snapshot);
        json_decref(event);
        free(text);
    }
    if (error[0] && !backup->cause[0])
        snprintf(backup->cause, sizeof backup->cause, "%s", error);
    return backup->cause[0] == '\0';
}

/* After an error of a copy: asks the daemon about the snapshot, in case the event is still on its way. */
static void find_cause(struct backup *backup)
{
    struct error err;
    json_t *snapshots = NULL, *snapshot;
    size_t i;
    if (!control_readable(backup) || !backup->snapshot[0])
        return;
    if (execute(backup, "fleece-query-snapshots", NULL, &snapshots, &err) < 0) {
        snprintf(backup->cause, sizeof backup->cause, "%s", err.text);
        return;
    }
    bool found = false;
    json_array_foreach (snapshots, i, snapshot) {
        if (strcmp(text_of(snapshot, "name"), backup->snapshot) != 0)
            continue;
        found = true;
        if (strcmp(text_of(snapshot, "state"), "broken") == 0)
            note_broken(backup, text_of(snapshot, "reason"));
    }
    if (!found)
        snprintf(backup->cause, sizeof backup->cause, "the snapshot %s was deleted in mid-backup", backup->snapshot);
    json_decref(snapshots);
}

/* --- the steps */

static int find_vm(struct backup *backup, struct error *err)
{
    json_t *status = NULL;
    int result = execute(backup, "fleece-query-status", NULL, &status, err);
    if (result == 0 && (result = name_check("the daemon's VM name", text_of(status, "name"), err)) == 0)
        strcpy(backup->vm, text_of(status, "name"));
    json_decref(status);
    return result;
}

static int begin_point(struct backup *backup, const char *path, struct error *err)
{
    struct leftover_report report;
    struct timespec now;
    int status = set_open_to_add(path, backup->vm, &backup->set, err);
    if (status < 0)
        return status;
    clock_gettime(CLOCK_REALTIME, &now);
    status = point_begin(backup->set, (uint64_t)now.tv_sec, &backup->point, &report, err);
    if (status == 0 && report.kept > 0) {
        backup->warned = true;
        cli_warn("%s/%s looks like an interrupted backup and was kept: %s", path, report.kept_name, report.kept_reason);
    }
    return status;
}

static int take_snapshot(struct backup *backup, json_t **snapshot, struct error *err)
{
    uint32_t number = 0;
    char name[LIMIT_NAME_BYTES + 1];
    if (getrandom(&number, sizeof number, 0) != sizeof number)
        return error_set(err, EIO, "no random number for the name of the snapshot");
    snprintf(name, sizeof name, "backup-%08" PRIx32, number);
    int status = execute(backup, "fleece-snapshot-create", json_pack("{s:s, s:b}", "name", name, "lease", 1), snapshot,
                         err);
    if (status < 0)
        return status;
    strcpy(backup->snapshot, name);
    json_int_t created_s = json_integer_value(json_object_get(*snapshot, "created-ns")) / (json_int_t)NS_PER_S;
    size_t disks = json_array_size(json_object_get(*snapshot, "exports"));
    if (created_s <= 0 || created_s >= INT64_C(253402300800) || disks < 1 || disks > LIMIT_DISKS)
        return error_set(err, EPROTO,
                         "the daemon's answer to fleece-snapshot-create has no 'created-ns' or no 'exports'");
    point_time_format(backup->manifest->created, (uint64_t)created_s);
    snprintf(backup->manifest->snapshot, sizeof backup->manifest->snapshot, "%s", text_of(*snapshot, "uuid"));
    if (backup->cli->json)
        print_json(json_pack("{s:s, s:s, s:s, s:s, s:I}", "event", "snapshot", "name", name, "uuid",
                             backup->manifest->snapshot, "created", backup->manifest->created, "hold-ns",
                             json_integer_value(json_object_get(*snapshot, "hold-ns"))));
    return 0;
}

/* Both nodes are open; fills in the rest of the disk's entry. */
static int copy_disk(struct backup *backup, struct manifest_disk *disk, struct node *source, struct node *target,
                     const char *path, struct error *err)
{
    char source_name[2 * LIMIT_NAME_BYTES + 2];
    struct hashes hashes;
    if (hashes_init(&hashes, disk->size_bytes, false, err) < 0) {
        hashes_fini(&hashes);
        return -ENOMEM;
    }
    snprintf(source_name, sizeof source_name, "%s@%s", disk->name, backup->snapshot);
    struct copy_options options = {.source = source,
                                   .target = target,
                                   .source_name = source_name,
                                   .target_name = path,
                                   .target_is_zero = true,
                                   .advice = true,
                                   .release = true,
                                   .hashes = hashes.sha256};
    int status = transfer_copy(&backup->transfer, NULL, disk->name, &options, &disk->data_bytes, err);
    if (status == 0)
        status = point_write_hashes(backup->point, disk, &hashes, err);
    hashes_fini(&hashes);
    return status;
}

static int backup_disk(struct backup *backup, const json_t *export, struct error *err)
{
    struct manifest_disk *disk = &backup->manifest->disks[backup->manifest->disk_count];
    struct node *source = NULL, *target = NULL;
    char path[PATH_MAX];
    const char *name = text_of(export, "disk"), *uri = text_of(export, "uri");
    int status = name_check("the daemon's disk name", name, err);
    if (status < 0)
        return status;
    if (transfer_interrupted(&backup->transfer)) /* before the one step that a signal can't cut short */
        return error_set(err, ECANCELED, "the backup was cancelled");
    if (!uri[0])
        return error_set(err, EADDRNOTAVAIL, "the daemon gave no address where disk %s of the snapshot can be read",
                         name);
    status = point_add_disk(backup->point, name, MANIFEST_RAW, disk, path, sizeof path, err);
    if (status == 0)
        status = nbd_node_open(backup->transfer.io, uri, true, &source, err);
    if (status == 0) {
        disk->size_bytes = source->size_bytes;
        status = image_create(backup->transfer.io, path, disk->size_bytes, &target, err);
    }
    if (status == 0)
        status = copy_disk(backup, disk, source, target, path, err);
    if (target)
        node_destroy(target);
    if (source)
        node_destroy(source);
    if (status == 0)
        backup->manifest->disk_count++;
    return status;
}

static int backup_disks(struct backup *backup, const json_t *exports, struct error *err)
{
    backup->transfer.watch_fd = fleece_descriptor(backup->fleece);
    backup->transfer.watched = control_readable;
    backup->transfer.watch_context = backup;
    int status = 0;
    for (size_t i = 0; i < json_array_size(exports) && status == 0; i++) {
        status = backup_disk(backup, json_array_get(exports, i), err);
        if (status == 0 && (transfer_interrupted(&backup->transfer) || !control_readable(backup)))
            status = error_set(err, ECANCELED, "the backup was cancelled");
    }
    if (status < 0 && !transfer_interrupted(&backup->transfer))
        find_cause(backup);
    return status;
}

/* Everything was read: whatever happens to the snapshot now, the point is right. */
static void end_snapshot(struct backup *backup, bool well)
{
    struct error err;
    json_t *result = NULL;
    if (!backup->snapshot[0] || (!well && backup->cause[0]))
        return;
    int status = execute(backup, "fleece-snapshot-delete", json_pack("{s:s}", "name", backup->snapshot), &result, &err);
    json_decref(result);
    backup->snapshot[0] = '\0';
    if (status < 0 && well) {
        backup->warned = true;
        cli_warn("the backup is complete, but its snapshot could not be deleted: %s", err.text);
    }
}

static void print_result(struct backup *backup, const char *name, const char *path)
{
    const struct manifest *manifest = backup->manifest;
    double seconds = (double)(io_now_ns(backup->transfer.io) - backup->started_ns) / (double)NS_PER_S;
    uint64_t size_bytes = 0, data_bytes = 0;
    char text[2][16];
    json_t *disks = json_array();
    for (unsigned i = 0; i < manifest->disk_count; i++) {
        const struct manifest_disk *disk = &manifest->disks[i];
        size_bytes += disk->size_bytes;
        data_bytes += disk->data_bytes;
        json_array_append_new(disks, json_pack("{s:s, s:I, s:I}", "name", disk->name, "size",
                                               (json_int_t)disk->size_bytes, "data", (json_int_t)disk->data_bytes));
    }
    if (backup->cli->json)
        print_json(json_pack("{s:s, s:s, s:s, s:f, s:O}", "event", "done", "point", name, "vm", backup->vm, "seconds",
                             seconds, "disks", disks));
    else
        printf("backup %s@%s: %u disk%s of VM %s, %s with %s of data, in %.1f s\n", path, name, manifest->disk_count,
               manifest->disk_count == 1 ? "" : "s", backup->vm, size_format(text[0], size_bytes),
               size_format(text[1], data_bytes), seconds);
    json_decref(disks);
}

/* All steps; 0 and the name of the point, or -errno with the sentence. */
static int make_backup(struct backup *backup, const char *path, char *name, struct error *err)
{
    json_t *snapshot = NULL;
    int status = find_vm(backup, err);
    if (status == 0)
        status = begin_point(backup, path, err);
    if (status == 0 && transfer_interrupted(&backup->transfer))
        status = error_set(err, ECANCELED, "the backup was cancelled");
    if (status == 0)
        status = take_snapshot(backup, &snapshot, err);
    if (status == 0)
        status = backup_disks(backup, json_object_get(snapshot, "exports"), err);
    json_decref(snapshot);
    end_snapshot(backup, status == 0);
    if (status == 0 && transfer_interrupted(&backup->transfer))
        status = error_set(err, ECANCELED, "the backup was cancelled");
    if (status == 0)
        status = point_publish(backup->point, backup->manifest, name, err);
    if (status == 0)
        backup->point = NULL;
    return status;
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

static int backup_end(struct backup *backup, const char *path, const char *name, int status, const struct error *err)
{
    int code = CLI_DONE;
    if (backup->point)
        point_abandon(backup->point);
    if (status == 0) {
        check_latest(backup, name);
        print_result(backup, name, path);
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
        code = cli_fail("%s", backup->cause[0] ? backup->cause : err->text);
    return code;
}

static int backup_run(struct cli *cli, int argc, char **argv)
{
    struct backup backup = {.cli = cli};
    struct error err;
    char name[POINT_NAME_BYTES];
    if (argc != 2)
        return cli_usage(cli, "backup wants the folder of one backup set");
    int code = cli_connect(cli, &backup.fleece);
    if (code != CLI_DONE)
        return code;
    backup.manifest = calloc(1, sizeof *backup.manifest);
    if (!backup.manifest) {
        code = cli_fail("no memory for a manifest");
    } else if (transfer_open(&backup.transfer, cli->json, &err) < 0) {
        code = cli_fail("%s", err.text);
    } else {
        backup.started_ns = io_now_ns(backup.transfer.io);
        int status = make_backup(&backup, argv[1], name, &err);
        code = backup_end(&backup, argv[1], name, status, &err);
        transfer_close(&backup.transfer);
    }
    free(backup.manifest);
    fleece_close(backup.fleece);
    return code;
}

const struct cli_command cli_backup = {
    .name = "backup",
    .arguments = "DIR",
    .summary = "add a full backup of all disks, as they are at one instant, to the backup set DIR",
    .run = backup_run,
};
