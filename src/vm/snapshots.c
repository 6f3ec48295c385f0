/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The snapshots of a VM: which there are, whose turn it is, and what callers ask of them. One at a time is prepared and cut,
 * in the order in which they were asked for, and none while disks grow or the filters of the last ones go.
 *
 * What breaks a snapshot is learned here, too: the disk that lost its old data and the cache that ran out of room name the
 * point; the snapshots to which it belongs are broken, with the reason, and those of other points are not touched (R4, C5).
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/name.h"
#include "base/probe.h"
#include "io/uuid.h"
#include "vm/snapshot_internal.h"

void vm_take_turns(struct vm *vm)
{
    if (vm->cutting || vm->growing || vm->filters == FILTERS_CLOSING || growth_begin(vm))
        return;
    list_each (link, &vm->snapshots) {
        struct snapshot *snapshot = container_of(link, struct snapshot, link);
        if (snapshot->step == QUEUED) {
            snapshot_begin(snapshot);
            return;
        }
    }
}

void snapshot_turn_over(struct vm *vm)
{
    vm->cutting = NULL;
    vm_take_turns(vm);
}

struct snapshot *vm_snapshot_next(const struct vm *vm, const struct snapshot *after)
{
    const struct list_node *next = after ? after->link.next : vm->snapshots.head.next;
    while (next != &vm->snapshots.head && container_of(next, struct snapshot, link)->bare)
        next = next->next;
    return next == &vm->snapshots.head ? NULL : container_of(next, struct snapshot, link);
}

struct snapshot *vm_snapshot_find(const struct vm *vm, const char *name)
{
    struct snapshot *snapshot = NULL;
    while ((snapshot = vm_snapshot_next(vm, snapshot)) && strcmp(snapshot->name, name) != 0)
        ;
    return snapshot;
}

/* ---- what callers ask for ---- */

static int snapshot_check(struct vm *vm, const struct snapshot_options *options, const char *name, struct error *err)
{
    const char *bitmap = options->bitmap;
    if (name_check("snapshot name", name, err) < 0 || (bitmap && name_check("name of a dirty bitmap", bitmap, err) < 0))
        return -EINVAL;
    if (vm->closing)
        return error_set(err, ESHUTDOWN, "no snapshot '%s': the daemon is shutting down", name);
    if (options->consistency == CONSISTENCY_REQUIRED && !vm->options.hooks.freeze)
        return error_set(err, EINVAL,
                         "snapshot '%s' refused: this daemon can't freeze the guest; fleeced has the options "
                         "--guest-agent and --hook-dir for that",
                         name);
    if (vm->away)
        return error_set(err, EBUSY, "no snapshot '%s': %s", name, vm->away);
    if (vm_snapshot_find(vm, name))
        return error_set(err, EEXIST, "there is a snapshot '%s' already: choose another name, or delete it", name);
    if (vm->snapshot_count == LIMIT_SNAPSHOTS)
        return error_set(err, ENOSPC, "snapshot '%s' is one too many: a VM has at most %d at once, delete one", name,
                         LIMIT_SNAPSHOTS);
    if (vm->last_epoch >= LIMIT_EPOCH - LIMIT_SNAPSHOTS)
        return error_set(err, ENOSPC,
                         "snapshot '%s' refused: this daemon has made %u, as many as it can count; restart it", name,
                         vm->last_epoch);
    return 0;
}

static struct snapshot *snapshot_make(struct vm *vm, const struct snapshot_options *options, const char *name)
{
    struct snapshot *snapshot = calloc(1, sizeof *snapshot + vm->disk_count * sizeof snapshot->parts[0]);
    if (!snapshot)
        return NULL;
    snapshot->vm = vm;
    snapshot->lease = options->lease;
    snapshot->read_once = options->read_once;
    snapshot->through_mode = options->through_always ? THROUGH_ALWAYS : THROUGH_WHEN_FULL;
    if (options->bitmap)
        memccpy(snapshot->bitmap, options->bitmap, 0, sizeof snapshot->bitmap - 1);
    snapshot->no_export = options->no_export;
    snapshot->consistency_wish = options->consistency;
    snapshot->ephemeral = options->ephemeral || options->through;
    snapshot->grace_ns = options->grace_ns;
    snapshot->grace.fire = snapshot_grace_over;
    snapshot->drain_ns = options->drain_ns ? options->drain_ns : CUT_ATTEMPT_NS;
    uint64_t total_ns = options->total_ns ? options->total_ns : CUT_TOTAL_MAX_NS;
    snapshot->give_up_ns = total_ns < CUT_TOTAL_MAX_NS ? total_ns : CUT_TOTAL_MAX_NS; /* from its beginning */
    memccpy(snapshot->name, name, 0, sizeof snapshot->name - 1);
    uuid_make(vm->io, snapshot->uuid);
    for (unsigned i = 0; i < vm->disk_count; i++) {
        struct part *part = &snapshot->parts[i];
        part->snapshot = snapshot;
        part->vd = &vm->disks[i];
        part->through = options->through ? options->through[i] : NULL;
        snprintf(part->export_name, sizeof part->export_name, "%s@%s", part->vd->disk->name, snapshot->name);
        snapshot->cut_disks[i].disk = part->vd->disk;
        snapshot->cut_disks[i].context = part;
    }
    return snapshot;
}

static void snapshot_not_adopted(void *argument, struct snapshot *snapshot, const struct error *err)
{
    (void)snapshot;
    log_warning("a snapshot of the daemon that was killed is lost: %s", err->text);
    adopted_published(argument);
}

struct snapshot *snapshot_adopt(struct vm *vm, unsigned number)
{
    struct snapshot_record *record = &vm->table.records[number];
    const struct snapshot_options options = {
        .bitmap = record->bitmap, .read_once = (enum read_once)record->read_once, .no_export = record->no_export};
    struct snapshot *snapshot = snapshot_make(vm, &options, record->name);
    if (!snapshot)
        return NULL;
    snapshot->number = number;
    snapshot->record = record;
    snapshot->adopted = true;
    snapshot->step = ADOPTED;
    snapshot->epoch = record->epoch;
    snapshot->attempts = record->cut_attempts;
    snapshot->created_wall_ns = record->created_wall_ns;
    snapshot->hold_ns = record->hold_ns;
    snapshot->consistency = (enum consistency)record->consistency;
    snapshot->frozen_ns = record->frozen_ns;
    snprintf(snapshot->consistency_reason, sizeof snapshot->consistency_reason, "%.*s",
             (int)sizeof record->consistency_reason - 1, record->consistency_reason);
    snapshot->grace_ns = record->grace_ns ? record->grace_ns : LEASE_GRACE_DEFAULT_NS;
    snapshot->since = record->since;
    snapshot->checkpoint = record->checkpoint;
    memcpy(snapshot->uuid, record->uuid, sizeof snapshot->uuid);
    snapshot->broken = atomic_load(&record->broken);
    snprintf(snapshot->reason, sizeof snapshot->reason, "%.*s", (int)sizeof record->reason - 1,
             record->reason[0] ? record->reason : "it broke in the moment in which the daemon was killed");
    for (unsigned i = 0; i < vm->disk_count; i++)
        snapshot->parts[i].incremental = record->incremental >>
                                             snapshot_table_disk(&vm->table, vm->disks[i].disk->name) &
                                         1;
    snapshot->created = snapshot_not_adopted;
    snapshot->created_argument = vm;
    list_append(&vm->snapshots, &snapshot->link);
    vm->snapshot_count++;
    return snapshot;
}

void snapshot_bury(struct snapshot *snapshot)
{
    snapshot_end(snapshot);
}

/* It waits for its turn, or begins. */
static void snapshot_start(struct snapshot *snapshot,
                           void (*done)(void *argument, struct snapshot *snapshot, const struct error *err),
                           void *argument)
{
    struct vm *vm = snapshot->vm;
    snapshot->created = done;
    snapshot->created_argument = argument;
    list_append(&vm->snapshots, &snapshot->link);
    vm->snapshot_count++;
    if (!vm->cutting && !vm->growing && vm->filters != FILTERS_CLOSING)
        snapshot_begin(snapshot);
    else
        PROBE(snapshot_queued);
}

void vm_snapshot_create(struct vm *vm, const struct snapshot_options *options,
                        void (*done)(void *argument, struct snapshot *snapshot, const struct error *err),
                        void *argument)
{
    struct error err = {0};
    char generated[LIMIT_NAME_BYTES + 1];
    const char *name = options->name;
    if (!name) {
        do
            snprintf(generated, sizeof generated, "snap-%u", ++vm->next_number);
        while (vm_snapshot_find(vm, generated));
        name = generated;
    }
    struct snapshot *snapshot = NULL;
    if (snapshot_check(vm, options, name, &err) == 0 && !(snapshot = snapshot_make(vm, options, name)))
        error_set(&err, ENOMEM, "no memory for snapshot '%s'", name);
    if (snapshot && snapshot_checkpoints_choose(snapshot, options, &err) < 0) {
        free(snapshot);
        snapshot = NULL;
    }
    if (snapshot)
        snapshot_start(snapshot, done, argument);
    else
        done(argument, NULL, &err);
}

struct snapshot *snapshot_create_bare(struct vm *vm, const char *checkpoint,
                                      void (*done)(void *argument, struct snapshot *snapshot, const struct error *err),
                                      void *argument, struct error *err)
{
    const struct snapshot_options options = {.checkpoint = checkpoint};
    struct snapshot *snapshot = NULL;
    if (vm->closing)
        error_set(err, ESHUTDOWN, "no checkpoint '%.80s': the daemon is shutting down", checkpoint);
    else if (vm->away)
        error_set(err, EBUSY, "no checkpoint '%.80s': %s", checkpoint, vm->away);
    else if (vm->snapshot_count == LIMIT_SNAPSHOTS)
        error_set(err, ENOSPC, "checkpoint '%.80s' must wait: there are %d snapshots, as many as a VM can have",
                  checkpoint, LIMIT_SNAPSHOTS);
    else if (!(snapshot = snapshot_make(vm, &options, "")))
        error_set(err, ENOMEM, "no memory for checkpoint '%.80s'", checkpoint);
    if (snapshot && snapshot_checkpoints_choose(snapshot, &options, err) < 0) {
        free(snapshot);
        snapshot = NULL;
    }
    if (!snapshot)
        return NULL;
    snapshot->bare = snapshot->no_export = true;
    snapshot_start(snapshot, done, argument);
    return snapshot;
}

void vm_snapshot_delete(struct vm *vm, const char *name, void (*done)(void *argument, const struct error *err),
                        void *argument)
{
    struct error err = {0};
    struct snapshot *snapshot = vm_snapshot_find(vm, name);
    if (!snapshot)
        error_set(&err, ENOENT, "there is no snapshot '%.80s'", name);
    else if (snapshot->step != LIVE)
        error_set(&err, EBUSY, "snapshot '%s' is being %s", name, snapshot->step < LIVE ? "created" : "deleted");
    if (err.code) {
        done(argument, &err);
        return;
    }
    snapshot->deleted = done;
    snapshot->deleted_argument = argument;
    snapshot_end(snapshot);
}

void snapshots_end_all(struct vm *vm)
{
    list_each_safe (link, &vm->snapshots)
        snapshot_doom(container_of(link, struct snapshot, link));
    vm_check_closed(vm);
}

void snapshot_broke(struct snapshot *snapshot)
{
    const struct vm_hooks *hooks = &snapshot->vm->options.hooks;
    snapshot->broken = true;
    snapshot_record_broke(snapshot);
    if (snapshot->step == LIVE)
        hooks->snapshot_broken(hooks->context, snapshot);
}

void snapshots_ran_out(struct vm *vm, struct room_shortage shortage)
{
    list_each (link, &vm->snapshots) {
        struct snapshot *snapshot = container_of(link, struct snapshot, link);
        if (!snapshot->epoch || snapshot->epoch > shortage.through_epoch || snapshot->broken)
            continue;
        vm_describe_shortage(vm, &shortage, snapshot->reason, sizeof snapshot->reason);
        snapshot_broke(snapshot);
    }
}

void snapshots_lost(struct vm *vm, struct loss loss, const struct vm_disk *vd)
{
    const char *sentences[] = {
        [LOST_OLD_DATA] = "old data of disk %s could not be read before a guest write: %s",
        [LOST_CACHED] = "old data of disk %s could not be read from its cache file: %s",
        [LOST_TARGET] = "old data of disk %s could not be written to the backup's target: %s",
    };
    list_each (link, &vm->snapshots) {
        struct snapshot *snapshot = container_of(link, struct snapshot, link);
        if (snapshot->epoch != loss.epoch || snapshot->broken)
            continue;
        snprintf(snapshot->reason, sizeof snapshot->reason, sentences[loss.how], vd->disk->name,
                 error_name(loss.status));
        snapshot_broke(snapshot);
    }
}
