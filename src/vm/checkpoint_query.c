/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What there is of checkpoints and tracking: every disk's reactor is asked, so the figures are exact and nobody locks. */
#include "vm/checkpoints.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "vm/checkpoint_table.h"
#include "vm/vm_private.h"

struct query {
    void (*done)(void *argument, const struct vm_checkpoints *checkpoints);
    void *argument;
    struct vm_checkpoints answer;
    char reasons[LIMIT_DISKS][LIMIT_ERROR_BYTES];
    char lacking[LIMIT_DISKS][LIMIT_ERROR_BYTES];
    char lost[LIMIT_DISKS][LIMIT_ERROR_BYTES]; /* why parts are invalid */
};

static void part_look(struct tracking_part *part)
{
    struct query *query = part->work->argument;
    const unsigned index = (unsigned)(part->vd - part->work->vm->disks);
    struct vm_tracking_disk *disk = &query->answer.disks[index];
    const struct tracker *tracker = part->vd->tracking.tracker;
    const char *reason = tracker_invalid_reason(tracker);
    disk->tracked = !reason;
    disk->recovery = tracker_recovery(tracker);
    disk->granularity_bytes = tracker_granularity(tracker);
    tracker_counters(tracker, &disk->counters);
    memccpy(query->lost[index], tracker_lost_reason(tracker), 0, LIMIT_ERROR_BYTES - 1);
    if (reason) {
        memccpy(query->reasons[index], reason, 0, LIMIT_ERROR_BYTES - 1);
        disk->reason = query->reasons[index];
    }
    checkpoint_part_ask(part);
}

static void query_fill(struct query *query, const struct tracking_work *work, struct vm_checkpoint *to,
                       const struct checkpoint *from)
{
    bool valid = false;
    to->id = from->id;
    for (unsigned i = 0; i < work->vm->disk_count; i++) {
        const struct tracking_part *part = &work->parts[i];
        struct vm_checkpoint_disk *disk = &to->disks[i];
        *disk = (struct vm_checkpoint_disk){
            .disk = work->vm->disks[i].disk->name, .state = CHECKPOINT_INVALID, .reason = query->lacking[i]};
        for (unsigned j = 0; part->infos && j < part->info_count; j++) {
            const struct checkpoint_info *info = &part->infos[j];
            if (strcmp(info->id.uuid, from->id.uuid) != 0)
                continue;
            disk->present = true;
            disk->state = info->state;
            disk->reason = info->state == CHECKPOINT_INVALID ? query->lost[i] : NULL;
            disk->changed_bytes = info->changed_bytes;
            disk->memory_bytes = info->memory_bytes;
            disk->file_bytes = info->file_bytes;
            valid = valid || info->state != CHECKPOINT_INVALID;
        }
    }
    to->state = !valid ? CHECKPOINT_INVALID : from->committed ? CHECKPOINT_COMMITTED : CHECKPOINT_PENDING;
}

/* Why a disk may have no part of a checkpoint. */
static void query_lacking(struct query *query, const struct vm *vm)
{
    for (unsigned i = 0; i < vm->disk_count; i++) {
        const struct tracking *tracking = &vm->disks[i].tracking;
        struct vm_tracking_disk *disk = &query->answer.disks[i];
        disk->disk = vm->disks[i].disk->name;
        const bool refused = tracking->state == TRACKING_REFUSED || tracking->state == TRACKING_RESETTING;
        if (refused) {
            memcpy(query->reasons[i], tracking->error.text, LIMIT_ERROR_BYTES);
            disk->reason = query->reasons[i];
        }
        struct error lacking;
        error_set(&lacking, ENOENT, "%s%s%s", refused ? query->reasons[i] : "disk ", refused ? "" : disk->disk,
                  refused ? "" : " was not tracked then");
        memcpy(query->lacking[i], lacking.text, LIMIT_ERROR_BYTES);
    }
}

static void query_answered(struct tracking_work *work)
{
    struct query *query = work->argument;
    const struct vm *vm = work->vm;
    struct vm_checkpoint *all = calloc(vm->checkpoint_count + 1, sizeof *all);
    query->answer.checkpoints = all;
    list_each (link, &vm->checkpoints)
        if (all)
            query_fill(query, work, &all[query->answer.count++], container_of(link, struct checkpoint, link));
    for (unsigned i = 0; i < vm->disk_count; i++)
        free(work->parts[i].infos);
    query->done(query->argument, all && !tracking_work_error(work) ? &query->answer : NULL);
    free(all);
    free(query);
}

void vm_checkpoints_query(struct vm *vm, void (*done)(void *argument, const struct vm_checkpoints *checkpoints),
                          void *argument)
{
    struct query *query = calloc(1, sizeof *query);
    struct tracking_work *work = query ? tracking_work_new(vm) : NULL;
    if (!work) {
        free(query);
        done(argument, NULL);
        return;
    }
    query->done = done;
    query->argument = argument;
    query->answer.disk_count = vm->disk_count;
    query_lacking(query, vm);
    work->start = part_look;
    work->done = query_answered;
    work->argument = query;
    tracking_work_start(work);
}
