/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The snapshots that a killed daemon has left, taken over before anything is served:
 *
 *     the table                  which snapshots there are: those that have their commit word (C2)
 *     the memory of each disk    it must be of the same session, boot, layout and disk
 *     the cache file of each     opened by whoever knows files, under its lock (C10)
 *     parts                      filter, records, points, views: copy-before-write is in place; when all are, what the dead
 *                                daemon had begun to free is freed
 *
 * All snapshots are adopted on all disks, or none is: then everything that is left of them is taken away, by the same steps
 * as when snapshots end, and the log says why. The locks of the disks are held before this begins, so whatever the killed
 * daemon had under way has landed: writes before what is read now, reads in slots that no record names.
 *
 * A snapshot of a VM that migrated when its daemon ended is adopted as a broken one (away.c). One that was leased has lost
 * its client: it waits its grace time. A crash in here changes nothing, but that what
 * had been given up may be gone already: the same is adopted, or buried, again.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/probe.h"
#include "vm/snapshot_internal.h"

struct adoption {
    struct vm *vm;
    struct io_message message;
    struct snapshot *first; /* its parts do the work for all */
    struct error error;     /* why none is adopted; code 0: they are */
    unsigned out;           /* files being opened; snapshots being buried */
    void (*done)(void *argument);
    void *argument;
};

static void adoption_over(struct io_message *message)
{
    struct adoption *adoption = container_of(message, struct adoption, message);
    adoption->done(adoption->argument);
    free(adoption);
}

static void adoption_end(struct adoption *adoption)
{
    adoption->message.deliver = adoption_over;
    io_post(adoption->vm->io, &adoption->message);
}

/* ---- burying ---- */

static void snapshot_buried(void *argument, struct snapshot *snapshot, const struct error *err)
{
    struct adoption *adoption = argument;
    (void)snapshot;
    (void)err;
    if (--adoption->out == 0)
        adoption_end(adoption);
}

static void adoption_bury(struct adoption *adoption)
{
    struct vm *vm = adoption->vm;
    log_warning("the snapshots of the daemon that was killed are lost: %s", adoption->error.text);
    list_each (link, &vm->snapshots)
        adoption->out++;
    list_each_safe (link, &vm->snapshots) {
        struct snapshot *snapshot = container_of(link, struct snapshot, link);
        snapshot->created = snapshot_buried;
        snapshot->created_argument = adoption;
        snapshot->failure = adoption->error;
        snapshot_bury(snapshot);
    }
}

/* ---- the parts ---- */

/* What had changed at the cut of an incremental one: its view shows it again, in units of the cache's blocks. */
static int part_adopt_changed(struct part *part)
{
    const struct snapshot *snapshot = part->snapshot;
    struct dirty_map map = {.shift = cbw_block_shift(part->vd->cbw)};
    int status = point_adopt_changed(part->point, snapshot->number, &map.changed);
    if (status < 0)
        return status;
    memccpy(map.name, snapshot->since.name, 0, sizeof map.name - 1);
    part->dirty_bytes = map.changed.set_count << map.shift;
    snapshot_access_set_maps(part->view, &map, 1);
    return 0;
}

/* On the disk's reactor, for all snapshots; the control thread waits. */
static void part_adopt(struct part *part)
{
    struct vm_disk *vd = part->vd;
    const struct vm *vm = vd->vm;
    const size_t index = (size_t)(vd - vm->disks);
    part->status = 0;
    part_make_filter(part);
    list_each (link, &vm->snapshots) {
        struct snapshot *snapshot = container_of(link, struct snapshot, link);
        struct part *other = &snapshot->parts[index];
        if (part->status < 0)
            break;
        other->point = point_adopt(vd->cbw, snapshot->epoch, snapshot->number, &snapshot->record->broken);
        if (part_make_view(other) < 0 || (other->incremental && part_adopt_changed(other) < 0))
            part->status = error_set(&part->error, ENOMEM, "no memory for snapshot '%s'", snapshot->name);
    }
    for (unsigned i = 0; part->status == 0 && i < LIMIT_SNAPSHOTS && !MUTANT(restart_old_needed_set_believed); i++)
        if (atomic_load(&vm->table.records[i].state) != RECORD_LIVE) {
            needed_memory_clear(&vd->memory, i);
            needed_memory_clear(&vd->memory, NEEDED_AT_CUT(i));
        }
    if (part->status == 0 && MUTANT(restart_freed_space_charged_first))
        cbw_adopted(vd->cbw);
    part_back(part);
}

/* All disks have what they need: now what is not needed may take of the budgets, too, until it has been given back. */
static void part_settle(struct part *part)
{
    cbw_adopted(part->vd->cbw);
    part_back(part);
}

static void parts_settled(struct snapshot *first)
{
    adoption_end(first->vm->adoption);
}

static void parts_adopted(struct snapshot *first)
{
    struct adoption *adoption = first->vm->adoption;
    struct vm *vm = adoption->vm;
    for (unsigned i = 0; i < vm->disk_count && !adoption->error.code; i++)
        if (first->parts[i].status < 0) {
            adoption->error = first->parts[i].error;
            error_prefix(&adoption->error, "disk %s", vm->disks[i].disk->name);
        }
    if (adoption->error.code) {
        adoption_bury(adoption);
        return;
    }
    for (unsigned i = 0; i < LIMIT_SNAPSHOTS; i++)
        if (atomic_load(&vm->table.records[i].state) != RECORD_LIVE)
            atomic_store(&vm->table.records[i].state, RECORD_FREE);
    list_each (link, &vm->snapshots) {
        const struct snapshot *snapshot = container_of(link, struct snapshot, link);
        log_info("snapshot %s has survived%s", snapshot->name, snapshot->broken ? ", though broken" : "");
    }
    parts_send(first, part_settle, parts_settled);
}

static void adoption_parts(struct adoption *adoption)
{
    if (adoption->error.code)
        adoption_bury(adoption);
    else
        parts_send(adoption->first, part_adopt, parts_adopted);
}

/* ---- files ---- */

static void file_adopted(void *argument, struct node *file, const struct error *err)
{
    struct part *part = argument;
    struct adoption *adoption = part->vd->vm->adoption;
    part->vd->file = file;
    if (err && !adoption->error.code)
        adoption->error = *err;
    if (--adoption->out == 0)
        adoption_parts(adoption);
}

static void adoption_files(struct adoption *adoption)
{
    struct vm *vm = adoption->vm;
    const struct vm_hooks *hooks = &vm->options.hooks;
    adoption->out = 1; /* our own, so that it does not reach 0 within the loop */
    for (unsigned i = 0; i < vm->disk_count && !adoption->error.code; i++) {
        struct vm_disk *vd = &vm->disks[i];
        const struct cache_file_id *id = cache_memory_file(&vd->memory);
        if (!id)
            continue;
        if (!hooks->cache_adopt) {
            error_set(&adoption->error, ENOTSUP, "disk %s has a cache file", vd->disk->name);
            break;
        }
        vd->file_id = *id;
        adoption->out++;
        hooks->cache_adopt(hooks->context, vd->disk, vd->block_bytes, id, file_adopted, &adoption->first->parts[i]);
    }
    if (--adoption->out == 0)
        adoption_parts(adoption);
}

/* ---- the table and the memories ---- */

static void memories_adopt(struct adoption *adoption)
{
    struct vm *vm = adoption->vm;
    for (unsigned i = 0; i < vm->disk_count && !adoption->error.code; i++) {
        struct vm_disk *vd = &vm->disks[i];
        cache_memory_init(&vd->memory, vd->disk->node.io, vm->memory_folder, vd->disk->name,
                          snapshot_table_session(&vm->table));
        if (cache_memory_adopt(&vd->memory, &adoption->error) < 0)
            error_prefix(&adoption->error, "disk %s", vd->disk->name);
    }
}

/* The next snapshot of the table after the epoch; -1: there is none. */
static int record_after(const struct snapshot_table *table, uint32_t epoch)
{
    int next = -1;
    for (int i = 0; i < LIMIT_SNAPSHOTS; i++)
        if (atomic_load(&table->records[i].state) == RECORD_LIVE && table->records[i].epoch > epoch &&
            (next < 0 || table->records[i].epoch < table->records[next].epoch))
            next = i;
    return next;
}

static void snapshots_make(struct adoption *adoption)
{
    struct vm *vm = adoption->vm;
    int number;
    for (uint32_t epoch = 0; (number = record_after(&vm->table, epoch)) >= 0;) {
        struct snapshot *snapshot = snapshot_adopt(vm, (unsigned)number);
        if (!snapshot) {
            error_set(&adoption->error, ENOMEM, "no memory for a snapshot");
            break;
        }
        adoption->first = adoption->first ? adoption->first : snapshot;
        epoch = snapshot->epoch;
    }
    if (!MUTANT(restart_epoch_forgotten))
        vm->last_epoch = snapshot_table_epoch(&vm->table);
}

/* 0: there may be something to adopt. */
static int table_adopt(struct vm *vm)
{
    struct snapshot_table_disk disks[LIMIT_DISKS];
    struct error err;
    snapshot_table_disks(vm, disks);
    int status = snapshot_table_adopt(&vm->table, vm->io, vm->memory_folder, disks, vm->disk_count, &err);
    const bool lost = status < 0 && (!vm->table.layout || record_after(&vm->table, 0) >= 0);
    if (status == -EAGAIN) {
        log_warning("snapshots will end with the daemon: %s", err.text);
        vm->memory_folder[0] = 0;
    } else if (status < 0 && status != -ENOENT) {
        if (lost)
            log_warning("the snapshots of the daemon that was killed are lost: %s", err.text);
        for (unsigned i = 0; i < vm->disk_count; i++)
            cache_memory_remove(vm->io, vm->memory_folder, disks[i].name);
    }
    if (status < 0 || record_after(&vm->table, 0) < 0) {
        snapshot_table_destroy(&vm->table);
        return -ENOENT;
    }
    snapshot_table_heed_migration(&vm->table);
    return 0;
}

void vm_adopt(struct vm *vm, void (*done)(void *argument), void *argument)
{
    struct adoption *adoption = calloc(1, sizeof *adoption);
    if (!adoption)
        abort(); /* a few hundred bytes at the start: nothing could go on */
    *adoption = (struct adoption){.vm = vm, .done = done, .argument = argument};
    vm->adoption = adoption;
    if (!vm->memory_folder[0] || table_adopt(vm) < 0) {
        adoption_end(adoption);
        return;
    }
    vm->filters = FILTERS_MADE;
    cache_watch_begin(vm);
    snapshots_make(adoption);
    memories_adopt(adoption);
    if (adoption->first)
        adoption_files(adoption);
    else
        adoption_end(adoption);
}

void adopted_published(struct vm *vm)
{
    if (--vm->publishing == 0)
        vm->published(vm->published_argument);
}

void vm_publish_adopted(struct vm *vm, void (*done)(void *argument), void *argument)
{
    vm->publishing = 1; /* our own, so that it does not reach 0 within the loop */
    vm->published = done;
    vm->published_argument = argument;
    list_each_safe (link, &vm->snapshots) {
        vm->publishing++;
        snapshot_adopted(container_of(link, struct snapshot, link));
    }
    adopted_published(vm);
}

void vm_forget(struct vm *vm)
{
    snapshot_table_forget(&vm->table);
}
