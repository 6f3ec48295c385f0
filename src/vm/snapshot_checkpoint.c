/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Checkpoints that are made with a snapshot, and snapshots that need only what changed since one.
 *
 *     PREPARING  each disk: a new span for the checkpoint; copies of what changed since others (track/bitmap_copy), which go
 *                on noting writes until the cut
 *     the cut    the new span begins; the copies end: now they are exactly what changed until this instant
 *     RECORDING  the disk is flushed, then the checkpoint named durably, as pending (C1); before the snapshot is reported
 *
 * A disk that can't be tracked, or doesn't know what has changed, takes part all the same: in full, with the reason.
 * The span before goes on recording until the checkpoint is durable, so a crash in between, or a failure to record,
 * costs nothing but the checkpoint (C3).
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/probe.h"
#include "vm/checkpoint_table.h"
#include "vm/snapshot_internal.h"

/* ---- on the control thread ---- */

static int choose_one(const struct vm *vm, const char *which, struct checkpoint_id *id, struct error *err)
{
    const struct checkpoint *checkpoint = checkpoint_find(vm, which);
    if (!checkpoint)
        return error_set(err, ENOENT, "there is no checkpoint '%.80s'", which);
    *id = checkpoint->id;
    return 0;
}

/* Whether the snapshot shows this checkpoint's changes already. */
static bool is_shown(const struct snapshot *snapshot, const char *uuid)
{
    for (unsigned i = 0; i < snapshot->map_count; i++)
        if (strcmp(snapshot->maps[i].uuid, uuid) == 0)
            return true;
    return false;
}

static int choose_maps(struct snapshot *snapshot, const struct snapshot_options *options, struct error *err)
{
    if (snapshot->since.name[0])
        snapshot->maps[snapshot->map_count++] = snapshot->since;
    for (unsigned i = 0; i < options->map_count; i++) {
        struct checkpoint_id id;
        int status = choose_one(snapshot->vm, options->maps[i], &id, err);
        if (status < 0)
            return status;
        if (is_shown(snapshot, id.uuid))
            continue;
        if (snapshot->map_count == LIMIT_DIRTY_MAPS)
            return error_set(err, ENOSPC,
                             "checkpoint '%s' is one too many: a snapshot shows the changes since %d at most", id.name,
                             LIMIT_SNAPSHOT_MAPS);
        snapshot->maps[snapshot->map_count++] = id;
    }
    return 0;
}

int snapshot_checkpoints_choose(struct snapshot *snapshot, const struct snapshot_options *options, struct error *err)
{
    struct vm *vm = snapshot->vm;
    int status = 0;
    if (options->since)
        status = choose_one(vm, options->since, &snapshot->since, err);
    if (status == 0)
        status = choose_maps(snapshot, options, err);
    if (status < 0 || !options->checkpoint)
        return status;
    status = checkpoint_check_new(vm, options->checkpoint, err);
    if (status < 0)
        return status;
    list_each (link, &vm->snapshots) {
        const struct snapshot *other = container_of(link, struct snapshot, link);
        if (other->step < PUBLISHING && strcmp(other->checkpoint.name, options->checkpoint) == 0)
            return error_set(err, EEXIST, "a checkpoint '%s' is being made already: choose another name",
                             options->checkpoint);
    }
    memccpy(snapshot->checkpoint.name, options->checkpoint, 0, sizeof snapshot->checkpoint.name - 1);
    uuid_make(vm->io, snapshot->checkpoint.uuid);
    return 0;
}

void snapshot_sidecars_open(struct snapshot *snapshot, void (*opened)(struct vm_disk *vd))
{
    struct vm *vm = snapshot->vm;
    for (unsigned i = 0; i < vm->disk_count && snapshot->checkpoint.name[0]; i++) {
        struct vm_disk *vd = &vm->disks[i];
        if (vd->tracking.state != TRACKING_NONE)
            continue;
        snapshot->parts_out++; /* before: a disk that can't be tracked says so at once */
        tracking_open(vd, true, opened, snapshot);
    }
}

/* Something of this name may have been made since it was looked up. */
int snapshot_checkpoint_enter(struct snapshot *snapshot, struct error *err)
{
    struct vm *vm = snapshot->vm;
    uint64_t disks = 0;
    const char *reason = "";
    for (unsigned i = 0; i < vm->disk_count; i++) {
        const struct part *part = &snapshot->parts[i];
        if (part->recorded)
            disks |= UINT64_C(1) << i;
        else if (!reason[0])
            reason = part->checkpoint_reason;
    }
    if (!disks)
        return error_set(err, EIO, "checkpoint '%s' was not made: %s", snapshot->checkpoint.name, reason);
    struct checkpoint *checkpoint = checkpoint_add(vm, &snapshot->checkpoint, disks);
    if (!checkpoint)
        return error_set(err, ENOMEM, "no memory for checkpoint '%s'", snapshot->checkpoint.name);
    checkpoint_hold(checkpoint, snapshot->lease, snapshot->grace_ns);
    return 0;
}

void snapshot_checkpoint_tell(const struct snapshot *snapshot)
{
    struct checkpoint *checkpoint = snapshot->checkpoint.name[0]
                                        ? checkpoint_find(snapshot->vm, snapshot->checkpoint.uuid)
                                        : NULL;
    if (checkpoint)
        checkpoint_made(checkpoint);
}

void snapshot_checkpoint_adopted(const struct snapshot *snapshot)
{
    struct checkpoint *checkpoint = snapshot->checkpoint.name[0]
                                        ? checkpoint_find(snapshot->vm, snapshot->checkpoint.uuid)
                                        : NULL;
    if (!checkpoint || checkpoint->committed)
        return;
    checkpoint_hold(checkpoint, snapshot->record->leased ? snapshot : NULL, snapshot->grace_ns);
    if (snapshot->record->leased)
        checkpoints_lease_end(snapshot->vm, snapshot);
}

void snapshot_checkpoint_drop(struct snapshot *snapshot)
{
    if (snapshot->checkpoint.name[0] && checkpoint_find(snapshot->vm, snapshot->checkpoint.uuid))
        vm_checkpoint_delete(snapshot->vm, snapshot->checkpoint.uuid, checkpoint_dropped, NULL);
}

/* ---- on the disk's reactor ---- */

static void why(char *reason, const char *sentence)
{
    snprintf(reason, LIMIT_ERROR_BYTES, "%s", sentence);
}

static void span_prepared(struct tracker_op *op)
{
    struct part *part = container_of(op, struct part, tracker_op);
    if (op->status == 0)
        part->checkpoint = PREPARED;
    else
        why(part->checkpoint_reason, op->error.text);
    part_prepared(part);
}

void part_prepare_checkpoint(struct part *part)
{
    struct tracking *tracking = &part->vd->tracking;
    if (!part->snapshot->checkpoint.name[0])
        return;
    if (tracking->state != TRACKING_ON) {
        why(part->checkpoint_reason, tracking->error.text);
        return;
    }
    part->preparing++;
    part->tracker_op.done = span_prepared;
    tracker_prepare(tracking->tracker, &part->snapshot->checkpoint, &part->tracker_op);
}

/* Whether the disk knows what changed since then. */
static bool knows(const struct part *part, const struct checkpoint_id *id, char *reason)
{
    const struct tracking *tracking = &part->vd->tracking;
    const char *disk = part->vd->disk->name;
    struct range run;
    uint64_t next;
    int status = -ENOENT;
    if (tracking->state == TRACKING_ON)
        status = tracker_changed(tracking->tracker, id->uuid, 0, &run, &next);
    if (status == 0)
        return true;
    if (tracking->state == TRACKING_REFUSED || tracking->state == TRACKING_RESETTING)
        why(reason, tracking->error.text);
    else if (status == -ENOENT)
        snprintf(reason, LIMIT_ERROR_BYTES, "disk %s was not tracked at checkpoint '%s'", disk, id->name);
    else
        snprintf(reason, LIMIT_ERROR_BYTES, "checkpoint '%s' is invalid on disk %s: %.300s", id->name, disk,
                 tracker_lost_reason(tracking->tracker));
    return false;
}

static void changes_copied(struct bitmap_copy *copy)
{
    struct part *part = container_of(copy, struct part, needed);
    if (copy->status == -ENOMEM) {
        part->status = error_set(&part->error, ENOMEM, "no memory for the blocks that snapshot '%s' needs of disk %s",
                                 part->snapshot->name, part->vd->disk->name);
    } else if (copy->status < 0) {
        (void)knows(part, &part->snapshot->since, part->full_reason); /* it was lost meanwhile: now it says why */
        part->incremental = false;
        bitmap_copy_end(copy);
        bitmap_fini(&copy->blocks);
        copy->status = 0;
    }
    part_prepared(part);
}

static void map_copied(struct bitmap_copy *copy)
{
    part_prepared(container_of(copy, struct map_copy, copy)->part);
}

static void part_prepare_maps(struct part *part)
{
    const struct snapshot *snapshot = part->snapshot;
    char reason[LIMIT_ERROR_BYTES];
    if (snapshot->map_count == 0)
        return;
    part->maps = calloc(snapshot->map_count, sizeof *part->maps);
    if (!part->maps) {
        part->status = error_set(&part->error, ENOMEM, "no memory for the dirty maps of disk %s", part->vd->disk->name);
        return;
    }
    for (unsigned i = 0; i < snapshot->map_count; i++) {
        struct map_copy *map = &part->maps[part->map_count];
        if (!knows(part, &snapshot->maps[i], reason))
            continue;
        map->part = part;
        map->name = snapshot->maps[i].name;
        part->map_count++;
        part->preparing++;
        bitmap_copy_start_since(&map->copy, part->vd->disk, part->vd->tracking.tracker, snapshot->maps[i].uuid,
                                (unsigned)__builtin_ctzll(tracker_granularity(part->vd->tracking.tracker)), map_copied);
    }
}

void part_prepare_changes(struct part *part)
{
    const struct snapshot *snapshot = part->snapshot;
    part_prepare_maps(part);
    if (part->status < 0 || !snapshot->since.name[0] || !knows(part, &snapshot->since, part->full_reason))
        return;
    part->incremental = true;
    part->preparing++;
    bitmap_copy_start_since(&part->needed, part->vd->disk, part->vd->tracking.tracker, snapshot->since.uuid,
                            cbw_block_shift(part->vd->cbw), changes_copied);
}

/* What has been copied is whole now, and the view's. One that lacks memory, or was lost meanwhile, is not shown. */
static void part_show_maps(struct part *part)
{
    struct dirty_map shown[LIMIT_DIRTY_MAPS] = {0};
    unsigned count = 0;
    for (unsigned i = 0; i < part->map_count; i++) {
        struct map_copy *map = &part->maps[i];
        bitmap_copy_end(&map->copy);
        if (map->copy.status < 0)
            continue;
        memccpy(shown[count].name, map->name, 0, sizeof shown[count].name - 1);
        shown[count].shift = map->copy.block_shift;
        shown[count++].changed = map->copy.blocks;
        map->copy.blocks = (struct bitmap){0};
    }
    if (count > 0)
        snapshot_access_set_maps(part->view, shown, count);
}

void part_cut_checkpoint(struct part *part)
{
    if (part->checkpoint == PREPARED) {
        tracker_cut(part->vd->tracking.tracker);
        part->checkpoint = CUT;
    }
    part_show_maps(part);
}

static void checkpoint_recorded(struct tracker_op *op)
{
    struct part *part = container_of(op, struct part, tracker_op);
    part->recorded = op->status == 0;
    if (!part->recorded)
        why(part->checkpoint_reason, op->error.text);
    part_back(part);
}

void part_record(struct part *part)
{
    if (MUTANT(restart_checkpoint_after_the_cut))
        part_cut_checkpoint(part);
    if (part->checkpoint != CUT) {
        part_back(part);
        return;
    }
    part->tracker_op.done = checkpoint_recorded;
    tracker_record(part->vd->tracking.tracker, &part->tracker_op);
}

void part_free_checkpoint(struct part *part)
{
    if (part->checkpoint == PREPARED)
        tracker_abandon(part->vd->tracking.tracker);
    part->checkpoint = UNTRACKED; /* what was cut was recorded, or is gone */
    for (unsigned i = 0; i < part->map_count; i++) {
        bitmap_copy_end(&part->maps[i].copy);
        bitmap_fini(&part->maps[i].copy.blocks);
    }
    free(part->maps);
    part->maps = NULL;
    part->map_count = 0;
}
