/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A status of the VM: every reactor is asked for its own disks' figures, so that they are exact and nobody locks. */
#include <stdlib.h>

#include "vm/vm_private.h"

struct status_part {
    struct io_message message;
    struct status_query *query;
    struct vm_disk *vd;
    struct vm_disk_status *status;
};

struct status_query {
    struct vm *vm;
    void (*done)(void *argument, const struct vm_status *status);
    void *argument;
    unsigned unanswered;
    struct vm_status status;
    struct status_part parts[LIMIT_DISKS];
};

static void status_answered(struct io_message *message)
{
    struct status_query *query = container_of(message, struct status_part, message)->query;
    if (--query->unanswered > 0)
        return;
    const struct budget *ram = &query->vm->ram_budget, *file = &query->vm->file_budget;
    query->status.cache_bytes_now = atomic_load(&ram->used_bytes);
    query->status.cache_bytes_peak = atomic_load(&ram->peak_bytes);
    query->status.cache_bytes_max = ram->max_bytes;
    query->status.file_bytes_now = atomic_load(&file->used_bytes);
    query->status.file_bytes_peak = atomic_load(&file->peak_bytes);
    query->status.file_bytes_max = file->max_bytes;
    query->done(query->argument, &query->status);
    free(query);
}

static void status_ask(struct io_message *message)
{
    struct status_part *part = container_of(message, struct status_part, message);
    struct vm_disk *vd = part->vd;
    struct vm_disk_status *status = part->status;
    struct cbw_status cbw = {0};
    if (vd->cbw)
        cbw_status(vd->cbw, &cbw);
    *status = (struct vm_disk_status){
        .name = vd->disk->name,
        .size_bytes = vd->disk->node.size_bytes,
        .counters = vd->disk->counters,
        .writes_in_flight = vd->disk->writes_in_flight,
        .filtered = vd->disk->filter != NULL,
        .blocks_preserved = vd->preserved_before + cbw.blocks_preserved,
        .copies_in_flight = cbw.copies_in_flight,
        .writes_parked = cbw.writes_parked,
        .cache_blocks_now = cbw.cache.ram_blocks + cbw.cache.file_blocks + cbw.cache.zero_blocks,
        .ram_blocks = cbw.cache.ram_blocks,
        .file_blocks = cbw.cache.file_blocks,
        .zero_blocks = cbw.cache.zero_blocks,
        .blocks_released = vd->released_before + cbw.blocks_released,
        .blocks_cut = vd->cut_before + cbw.blocks_cut,
        .file_bytes = cbw.cache.file_bytes,
        .spilled_bytes = vd->spilled_before + cbw.cache.spilled_bytes,
        .block_bytes = vd->block_bytes,
        .recent = write_sketch_ask(&vd->recent),
    };
    list_each (link, &vd->disk->held)
        status->writes_held++;
    list_each (link, &vd->bitmaps.all)
        dirty_bitmap_status(container_of(link, struct dirty_bitmap, link), &status->bitmaps[status->bitmap_count++]);
    message->deliver = status_answered;
    io_post(vd->vm->io, message);
}

void vm_status_query(struct vm *vm, void (*done)(void *argument, const struct vm_status *status), void *argument)
{
    struct status_query *query = calloc(1, sizeof *query);
    if (!query) {
        done(argument, NULL);
        return;
    }
    query->vm = vm;
    query->done = done;
    query->argument = argument;
    query->unanswered = query->status.disk_count = vm->disk_count;
    for (unsigned i = 0; i < vm->disk_count; i++) {
        struct status_part *part = &query->parts[i];
        *part = (struct status_part){{status_ask, NULL}, query, &vm->disks[i], &query->status.disks[i]};
        io_post(vm->disks[i].disk->node.io, &part->message);
    }
}
