/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What an incremental backup is based on, and the checkpoints of a set.
 *
 * The images of a new point lie over those of the latest one. So every change since the latest point's cut must be in
 * them; changes that are older do no harm. The checkpoint that was made at that cut is the base, found by the UUID in
 * the manifest (C24): a name may have been given anew. If it is gone, that of an ancestor of the latest point will do:
 * its cut came before. The daemon lists checkpoints in the order of their cuts, so one that the user names is right if
 * it is listed no later than one of these. Nothing else proves an order: clocks can be set back.
 *
 *     snapshot + checkpoint (pending) -> data durable -> point published -> checkpoint committed -> the set's others
 *     deleted
 *
 * A client that dies before the point is published leaves a pending checkpoint: nobody's base, it goes with the next
 * backup of the set at the latest, and its changes stay with the one before. One that dies after that leaves a point
 * whose checkpoint is pending: the next backup commits it; if the daemon has dropped it meanwhile, the older one is
 * still there, since it is deleted last. At every moment the set has a base, or the next backup is full and says why.
 *
 * Checkpoints of this set begin with "fleece-" and its id; only these are ever deleted here, under the set's lock.
 */
#include "cli/backup.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Whether the checkpoint's name is of this set. */
static bool is_ours(const struct backup *backup, const json_t *checkpoint)
{
    char prefix[LIMIT_NAME_BYTES + 1];
    snprintf(prefix, sizeof prefix, "fleece-%s-", set_id(backup->set));
    return strncmp(backup_text(checkpoint, "name"), prefix, strlen(prefix)) == 0;
}

static int query_checkpoints(struct backup *backup, json_t **checkpoints, struct error *err)
{
    int status = backup_execute(backup, "fleece-query-checkpoints", NULL, checkpoints, err);
    if (status == 0 && !json_is_array(*checkpoints)) {
        json_decref(*checkpoints);
        status = error_set(err, EPROTO, "the daemon's answer to fleece-query-checkpoints is not a list");
    }
    return status;
}

/* Its place in the list, by UUID or, with `by_name`, by name; -1: it is not there. */
static int place_of(const json_t *checkpoints, const char *which, bool by_name)
{
    for (size_t i = 0; i < json_array_size(checkpoints); i++) {
        const json_t *checkpoint = json_array_get(checkpoints, i);
        if (strcmp(backup_text(checkpoint, "uuid"), which) == 0 ||
            (by_name && strcmp(backup_text(checkpoint, "name"), which) == 0))
            return (int)i;
    }
    return -1;
}

/* The point that the incremental images of this one lie over; NULL: it has none. Made at one instant, they share it. */
static const struct manifest_parent *parent_of(const struct manifest *manifest)
{
    for (unsigned i = 0; i < manifest->disk_count; i++)
        if (manifest->disks[i].incremental)
            return &manifest->disks[i].parent;
    return NULL;
}

/*
 * The latest checkpoint in the list that belongs to the latest point or to an ancestor of it; -1: none does. The latest
 * one by the chain is the latest one by the order of cuts.
 */
static int find_in_chain(struct backup *backup, const json_t *checkpoints)
{
    struct manifest *manifest = malloc(sizeof *manifest);
    struct error err;
    int place = -1;
    if (!manifest)
        return -1;
    *manifest = *backup->base.latest;
    for (unsigned length = 0; length < LIMIT_POINTS; length++) {
        const struct manifest_parent *found = parent_of(manifest);
        struct manifest_parent parent;
        if (manifest->checkpoint.uuid[0] && (place = place_of(checkpoints, manifest->checkpoint.uuid, false)) >= 0)
            break;
        if (!found)
            break;
        parent = *found;
        if (set_manifest_load(backup->set, parent.point, manifest, &err) < 0 ||
            strcmp(manifest->snapshot, parent.snapshot) != 0)
            break;
    }
    free(manifest);
    return place;
}

/* A backup that published its point died before it could say so. */
static int commit_latest(struct backup *backup, const json_t *checkpoint, struct error *err)
{
    json_t *result = NULL;
    if (strcmp(backup_text(checkpoint, "state"), "pending") != 0)
        return 0;
    int status = backup_execute(backup, "fleece-checkpoint-commit",
                                json_pack("{s:s}", "uuid", backup_text(checkpoint, "uuid")), &result, err);
    json_decref(result);
    return status;
}

/* The images that would be lain over must be there. */
static bool images_are_there(struct backup *backup)
{
    const struct manifest *latest = backup->base.latest;
    char path[PATH_MAX];
    struct error err;
    for (unsigned i = 0; i < latest->disk_count; i++)
        if (set_image_find(backup->set, backup->base.point, &latest->disks[i], path, sizeof path, true, &err) < 0) {
            backup_reason(backup->base.reason, err.text);
            return false;
        }
    return true;
}

/* Since when, from what the daemon has. */
static int choose(struct backup *backup, const json_t *checkpoints, struct error *err)
{
    struct backup_base *base = &backup->base;
    const char *wanted = backup->options.since;
    int newest = find_in_chain(backup, checkpoints), chosen = newest;
    if (newest >= 0 &&
        strcmp(backup_text(json_array_get(checkpoints, (size_t)newest), "uuid"), base->latest->checkpoint.uuid) == 0) {
        int status = commit_latest(backup, json_array_get(checkpoints, (size_t)newest), err);
        if (status < 0)
            return status;
    }
    if (wanted && (chosen = place_of(checkpoints, wanted, true)) < 0)
        return error_set(err, ENOENT, "there is no checkpoint '%.80s'", wanted);
    if (wanted && chosen > newest)
        return error_set(
            err, EINVAL,
            "checkpoint '%.80s' can't be the base: nothing proves that it is not newer than the latest point %s",
            wanted, base->point);
    if (chosen >= 0)
        strcpy(base->since, backup_text(json_array_get(checkpoints, (size_t)chosen), "uuid"));
    else if (!base->latest->checkpoint.uuid[0])
        snprintf(base->reason, sizeof base->reason, "the latest point %s has no checkpoint", base->point);
    else
        snprintf(base->reason, sizeof base->reason, "the checkpoint of the latest point %s is gone", base->point);
    return 0;
}

int backup_base_find(struct backup *backup, struct error *err)
{
    struct backup_base *base = &backup->base;
    struct error why;
    json_t *checkpoints = NULL;
    if (backup->options.full)
        return 0;
    if (set_point_find(backup->set, NULL, base->point, &why) < 0)
        return backup->options.since
                   ? error_set(err, EINVAL, "there is nothing that changes since '%.80s' could be added to: %s",
                               backup->options.since, why.text)
                   : 0;
    base->latest = malloc(sizeof *base->latest);
    if (!base->latest)
        return error_set(err, ENOMEM, "no memory for a manifest");
    if (set_manifest_load(backup->set, base->point, base->latest, &why) < 0) {
        free(base->latest);
        base->latest = NULL;
        backup_reason(base->reason, why.text);
        return 0;
    }
    if (!images_are_there(backup))
        return 0;
    int status = query_checkpoints(backup, &checkpoints, err);
    if (status == 0)
        status = choose(backup, checkpoints, err);
    json_decref(checkpoints);
    return status;
}

int backup_checkpoint_name(struct backup *backup, char *name, struct error *err)
{
    char text[32];
    struct timespec now;
    struct tm parts;
    json_t *checkpoints = NULL;
    int status = query_checkpoints(backup, &checkpoints, err);
    if (status < 0)
        return status;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &parts);
    strftime(text, sizeof text, "%Y%m%dT%H%M%SZ", &parts);
    for (unsigned number = 1; number == 1 || place_of(checkpoints, name, true) >= 0; number++) {
        snprintf(name, LIMIT_NAME_BYTES + 1, "fleece-%s-%.16s", set_id(backup->set), text);
        if (number > 1) /* 7 + 36 + 1 + 16 bytes, and there are 64 checkpoints at most */
            snprintf(name + strlen(name), LIMIT_NAME_BYTES + 1 - strlen(name), "-%u", number % 100);
    }
    json_decref(checkpoints);
    return 0;
}

/* Deletes the set's checkpoints but `kept`; the oldest first, so that the newest goes last. */
static int sweep(struct backup *backup, const char *kept, struct error *err)
{
    json_t *checkpoints = NULL, *checkpoint;
    size_t i;
    int status = query_checkpoints(backup, &checkpoints, err);
    if (status < 0)
        return status;
    json_array_foreach (checkpoints, i, checkpoint) {
        json_t *result = NULL;
        const char *uuid = backup_text(checkpoint, "uuid");
        if (status < 0 || !is_ours(backup, checkpoint) || strcmp(uuid, kept) == 0)
            continue;
        status = backup_execute(backup, "fleece-checkpoint-delete", json_pack("{s:s}", "uuid", uuid), &result, err);
        json_decref(result);
    }
    json_decref(checkpoints);
    return status;
}

void backup_snapshots_sweep(struct backup *backup)
{
    struct error err;
    json_t *snapshots = NULL, *snapshot;
    size_t i;
    if (backup_execute(backup, "fleece-query-snapshots", NULL, &snapshots, &err) < 0)
        return; /* whatever is the matter, it is said when the backup's own is made */
    json_array_foreach (snapshots, i, snapshot) {
        json_t *result = NULL;
        if (!is_ours(backup, json_object_get(snapshot, "checkpoint")) ||
            json_is_true(json_object_get(snapshot, "leased")))
            continue;
        if (backup_execute(backup, "fleece-snapshot-delete", json_pack("{s:s}", "name", backup_text(snapshot, "name")),
                           &result, &err) < 0)
            continue; /* it ends with its grace time */
        json_decref(result);
    }
    json_decref(snapshots);
}

void backup_checkpoint_commit(struct backup *backup)
{
    const char *uuid = backup->manifest->checkpoint.uuid;
    struct error err;
    json_t *result = NULL;
    if (!uuid[0])
        return;
    int status = backup_execute(backup, "fleece-checkpoint-commit", json_pack("{s:s}", "uuid", uuid), &result, &err);
    json_decref(result);
    if (status == 0)
        status = sweep(backup, uuid, &err);
    if (status == 0)
        return;
    backup->warned = true;
    cli_warn("the backup is complete, but the set's checkpoints could not be brought up to date: %s", err.text);
}

void backup_checkpoint_drop(struct backup *backup)
{
    struct error err;
    json_t *result = NULL;
    if (!backup->manifest->checkpoint.uuid[0])
        return;
    /* If the daemon has gone, its grace time does it, or the next backup of the set. */
    backup_execute(backup, "fleece-checkpoint-delete", json_pack("{s:s}", "uuid", backup->manifest->checkpoint.uuid),
                   &result, &err);
    json_decref(result);
}
