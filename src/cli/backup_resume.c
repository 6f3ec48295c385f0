/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Going on with an interrupted backup.
 *
 * The folder of the unfinished point says from which snapshot it was copied, and how far (set/resume.c). The snapshot
 * may still be there: the daemon keeps it for its grace time after its client has gone, and a restarted daemon takes it
 * over. It is known by its UUID alone, since another one may have the name by now (C24); its lease goes to this
 * connection. From there on the backup is as any other: the same point, the same checkpoint, only without the extents
 * that the image has for good.
 *
 * If the snapshot is gone, what was copied is of no use, and is removed as without --resume. But when everything had been
 * copied, it has done its service: the point only has to become visible, and its checkpoint to be committed.
 */
#include "cli/backup.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

int backup_resume_save(struct backup *backup, struct error *err)
{
    struct resume_plan *plan = calloc(1, sizeof *plan);
    if (!plan)
        return error_set(err, ENOMEM, "no memory to note what is copied");
    plan->manifest = *backup->manifest;
    plan->manifest.version = MANIFEST_VERSION;
    strcpy(plan->manifest.vm, backup->vm);
    strcpy(plan->manifest.tool, "fleece " FLEECE_VERSION);
    strcpy(plan->snapshot_name, backup->snapshot);
    int status = resume_plan_save(backup->point, plan, err);
    free(plan);
    return status;
}

/* The point that the images of the interrupted one lie over is there, and is the one that it was. */
static int find_parent(struct backup *backup, const struct manifest *manifest, struct error *err)
{
    struct backup_base *base = &backup->base;
    const struct manifest_parent *parent = NULL;
    for (unsigned i = 0; i < manifest->disk_count; i++)
        if (manifest->disks[i].incremental)
            parent = &manifest->disks[i].parent;
    if (!parent)
        return 0;
    base->latest = malloc(sizeof *base->latest);
    if (!base->latest)
        return error_set(err, ENOMEM, "no memory for a manifest");
    strcpy(base->point, parent->point);
    int status = set_manifest_load(backup->set, parent->point, base->latest, err);
    if (status == 0 && strcmp(base->latest->snapshot, parent->snapshot) != 0)
        status = error_set(err, ESTALE, "the point %s is not the one that it was", parent->point);
    for (unsigned i = 0; i < manifest->disk_count && status == 0; i++)
        if (manifest->disks[i].incremental && !manifest_disk_find(base->latest, manifest->disks[i].name))
            status = error_set(err, ENOENT, "the point %s has no disk %s", parent->point, manifest->disks[i].name);
    return status;
}

/* The snapshot, with its exports, from now on leased to this connection. */
static int take_lease(struct backup *backup, const struct manifest *manifest, json_t **snapshot, struct error *err)
{
    int status = backup_execute(backup, "fleece-snapshot-lease", json_pack("{s:s}", "uuid", manifest->snapshot),
                                snapshot, err);
    if (status == 0 && strcmp(backup_text(*snapshot, "state"), "broken") == 0)
        status = error_set(err, EIO, "the snapshot is broken: %s", backup_text(*snapshot, "reason"));
    if (status == 0 && strcmp(backup_text(*snapshot, "uuid"), manifest->snapshot) != 0)
        status = error_set(err, EPROTO, "the daemon has leased another snapshot");
    if (status < 0) {
        json_decref(*snapshot);
        *snapshot = NULL;
    }
    return status;
}

static void say_left(struct backup *backup, const struct leftover_report *report)
{
    if (report->kept == 0)
        return;
    backup->warned = true;
    cli_warn("%s/%s looks like an interrupted backup and was kept: %s", backup->options.path, report->kept_name,
             report->kept_reason);
}

int backup_resume(struct backup *backup, json_t **snapshot, struct error *err)
{
    struct resume_plan *plan = calloc(1, sizeof *plan);
    char folder[UNFINISHED_NAME_BYTES];
    struct leftover_report report;
    struct timespec now;
    if (!plan)
        return error_set(err, ENOMEM, "no memory for a manifest");
    clock_gettime(CLOCK_REALTIME, &now);
    int status = resume_find(backup->set, folder, plan, err);
    if (status == 0)
        status = find_parent(backup, &plan->manifest, err);
    if (status == 0) {
        struct error gone;
        status = take_lease(backup, &plan->manifest, snapshot, plan->finished ? &gone : err);
        status = plan->finished ? 0 : status;
    }
    if (status == 0)
        status = point_resume(backup->set, folder, plan->finished, (uint64_t)now.tv_sec, &backup->point, &report, err);
    if (status == 0) {
        say_left(backup, &report);
        *backup->manifest = plan->manifest;
        backup->resumed = true;
        backup->finished = plan->finished;
        snprintf(backup->snapshot, sizeof backup->snapshot, "%s", backup_text(*snapshot, "name"));
        snprintf(backup->since_name, sizeof backup->since_name, "%s",
                 backup_text(json_object_get(*snapshot, "since"), "name"));
    } else {
        json_decref(*snapshot);
        *snapshot = NULL;
        free(backup->base.latest);
        backup->base = (struct backup_base){0};
    }
    free(plan);
    return status;
}
