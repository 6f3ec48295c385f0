/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What of a snapshot outlives the daemon: its record in the table (snapshot_table.h), kept in step with its life. A snapshot
 * whose old data goes straight to a target ends with the daemon: it has none.
 *
 * The table comes with the filters and goes with them; meanwhile it knows whether somebody else can have changed a disk
 * (track/disk_watch.h). Where none can be made, snapshots end with the daemon, and say so.
 */
#include <string.h>

#include "base/log.h"
#include "base/probe.h"
#include "vm/snapshot_internal.h"

void snapshot_table_disks(const struct vm *vm, struct snapshot_table_disk disks[LIMIT_DISKS])
{
    const struct vm_hooks *hooks = &vm->options.hooks;
    for (unsigned i = 0; i < vm->disk_count; i++) {
        disks[i] = (struct snapshot_table_disk){.name = vm->disks[i].disk->name};
        if (hooks->disk_identity)
            disks[i].identity = hooks->disk_identity(hooks->context, vm->disks[i].disk);
    }
}

void snapshot_table_begin(struct vm *vm)
{
    struct snapshot_table_disk disks[LIMIT_DISKS];
    struct error err;
    const bool files_go = vm->options.disk_bytes && vm->options.hooks.cache_open && !vm->options.hooks.cache_adopt;
    if (!vm->memory_folder[0] || files_go || vm->table.layout)
        return;
    snapshot_table_disks(vm, disks);
    if (snapshot_table_create(&vm->table, vm->io, vm->memory_folder, disks, vm->disk_count, &err) < 0)
        log_warning("snapshots will end with the daemon: %s", err.text);
    snapshot_table_note_migration(&vm->table, vm->migrates);
}

static struct disk_identity identify(void *context)
{
    const struct vm_disk *vd = context;
    return vd->vm->options.hooks.disk_identity(vd->vm->options.hooks.context, vd->disk);
}

void snapshot_watch_begin(struct vm_disk *vd)
{
    const struct snapshot_table *table = &vd->vm->table;
    if (table->layout && vd->vm->options.hooks.disk_identity)
        disk_watch_start(&vd->watch, vd->disk, snapshot_table_note(table, snapshot_table_disk(table, vd->disk->name)),
                         identify, vd);
}

void snapshot_record_make(struct snapshot *snapshot)
{
    struct snapshot_table *table = &snapshot->vm->table;
    if (!table->layout)
        return;
    snapshot_table_note_epoch(table, snapshot->epoch); /* records of the caches have it as well */
    if (snapshot->ephemeral)
        return;
    snapshot->number = snapshot_table_take(table);
    snapshot->record = &table->records[snapshot->number];
}

void snapshot_record_commit(struct snapshot *snapshot)
{
    struct snapshot_record *record = snapshot->record;
    if (!record)
        return;
    record->epoch = snapshot->epoch;
    record->cut_attempts = snapshot->attempts;
    record->leased = snapshot->lease != NULL;
    record->read_once = snapshot->read_once;
    record->no_export = snapshot->no_export;
    record->created_wall_ns = snapshot->created_wall_ns;
    record->hold_ns = snapshot->hold_ns;
    record->consistency = snapshot->consistency;
    record->frozen_ns = snapshot->frozen_ns;
    memcpy(record->consistency_reason, snapshot->consistency_reason, sizeof record->consistency_reason);
    record->grace_ns = snapshot->grace_ns;
    record->since = snapshot->since;
    record->checkpoint = snapshot->checkpoint;
    for (unsigned i = 0; i < snapshot->vm->disk_count; i++)
        record->incremental |= (uint64_t)snapshot->parts[i].incremental
                               << snapshot_table_disk(&snapshot->vm->table, snapshot->vm->disks[i].disk->name);
    memcpy(record->name, snapshot->name, sizeof record->name);
    memcpy(record->uuid, snapshot->uuid, sizeof record->uuid);
    memcpy(record->bitmap, snapshot->bitmap, sizeof record->bitmap);
    atomic_store(&record->state, RECORD_LIVE);
}

void snapshot_record_broke(struct snapshot *snapshot)
{
    if (!snapshot->record || MUTANT(restart_break_not_stored))
        return;
    memcpy(snapshot->record->reason, snapshot->reason, sizeof snapshot->record->reason);
    atomic_store(&snapshot->record->broken, 1);
}

void snapshot_record_end(struct snapshot *snapshot)
{
    if (snapshot->record)
        atomic_store(&snapshot->record->state, RECORD_ENDED);
}

void snapshot_record_free(struct snapshot *snapshot)
{
    if (snapshot->record)
        atomic_store(&snapshot->record->state, RECORD_FREE);
    snapshot->record = NULL;
}
