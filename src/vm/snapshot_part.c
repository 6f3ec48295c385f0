/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The parts of a snapshot: what its steps do on the reactor of each disk. A step goes out as one message per disk and comes
 * back when its work is done, then or later; snapshot.c goes on when all are back. Here are also the ears of the
 * filter: what a disk has to say about room and losses goes to the room, and to the control thread, which finds the words.
 */
#include <assert.h>
#include <errno.h>

#include "base/probe.h"
#include "vm/snapshot_internal.h"

static void part_returned(struct io_message *message)
{
    struct snapshot *snapshot = container_of(message, struct part, message)->snapshot;
    assert(snapshot->parts_out > 0);
    if (--snapshot->parts_out == 0)
        snapshot->parts_done(snapshot);
}

void part_back(struct part *part)
{
    part->message.deliver = part_returned;
    io_post(part->snapshot->vm->io, &part->message);
}

static void part_run(struct io_message *message)
{
    struct part *part = container_of(message, struct part, message);
    part->work(part);
}

void parts_send(struct snapshot *snapshot, void (*work)(struct part *part), void (*done)(struct snapshot *snapshot))
{
    assert(snapshot->parts_out == 0);
    snapshot->parts_out = snapshot->vm->disk_count;
    snapshot->parts_done = done;
    for (unsigned i = 0; i < snapshot->vm->disk_count; i++) {
        struct part *part = &snapshot->parts[i];
        part->work = work;
        part->message.deliver = part_run;
        io_post(part->vd->disk->node.io, &part->message);
    }
}

static void disk_is_full(void *context, uint32_t oldest_live_epoch, bool overdue, int failure)
{
    struct vm_disk *vd = context;
    room_full(&vd->room, oldest_live_epoch, overdue, failure);
}

static void disk_has_freed(void *context)
{
    struct vm_disk *vd = context;
    room_freed(&vd->room);
}

static void disk_lost_data(void *context, uint32_t epoch, enum cbw_loss how, int status)
{
    struct vm_disk *vd = context;
    const struct loss loss = {epoch, how, status};
    room_lost(&vd->room, loss);
    losses_note(&vd->losses, loss);
    nudge_send(&vd->lost, vd->vm->io);
}

void part_prepared(struct part *part)
{
    assert(part->preparing > 0);
    if (--part->preparing == 0)
        part_back(part);
}

static void part_needed_found(struct bitmap_copy *needed)
{
    struct part *part = container_of(needed, struct part, needed);
    if (needed->status < 0)
        part->status = error_set(&part->error, ENOMEM, "no memory for the blocks that snapshot '%s' needs of disk %s",
                                 part->snapshot->name, part->vd->disk->name);
    part_prepared(part);
}

/* The needed set is copied from the dirty bitmap, in steps. */
static void part_find_needed(struct part *part)
{
    struct vm_disk *vd = part->vd;
    struct dirty_bitmap *bitmap;
    part->status = dirty_bitmap_find(&vd->bitmaps, part->snapshot->bitmap, &bitmap, &part->error);
    if (part->status == 0) {
        part->preparing++;
        bitmap_copy_start(&part->needed, vd->disk, bitmap, cbw_block_shift(vd->cbw), part_needed_found);
        return;
    }
    error_prefix(&part->error, "snapshot '%s' can't be limited to what is dirty", part->snapshot->name);
    part->error.code = EINVAL; /* it is the bitmap that was not found, no snapshot or disk */
}

void part_make_filter(struct part *part)
{
    struct vm_disk *vd = part->vd;
    const struct vm_options *options = &vd->vm->options;
    const struct cbw_options cbw = {.disk = vd->disk,
                                    .ram_budget = &vd->vm->ram_budget,
                                    .block_bytes = vd->block_bytes,
                                    .segment_bytes = options->segment_bytes,
                                    .file = vd->file,
                                    .file_budget = &vd->vm->file_budget,
                                    .memory = vd->vm->table.layout ? &vd->memory : NULL,
                                    .file_id = &vd->file_id,
                                    .timeout_ns = options->cbw_timeout_ns,
                                    .copy_on_read = options->copy_on_read,
                                    .hooks = {vd, disk_is_full, disk_has_freed, disk_lost_data}};
    part->status = cbw_create(&cbw, &vd->cbw, &part->error);
    snapshot_watch_begin(vd);
}

int part_make_view(struct part *part)
{
    part->view = part->point ? snapshot_access_create(part->point) : NULL;
    if (part->view)
        part->view->read_once = part->snapshot->read_once;
    return part->view ? 0 : -ENOMEM;
}

static void part_make_point(struct part *part)
{
    struct vm_disk *vd = part->vd;
    struct snapshot *snapshot = part->snapshot;
    if (!vd->cbw) {
        if (vd->vm->table.layout)
            cache_memory_init(&vd->memory, vd->disk->node.io, vd->vm->memory_folder, vd->disk->name,
                              snapshot_table_session(&vd->vm->table));
        part_make_filter(part);
    }
    if (part->status < 0)
        return;
    if (part->through && part->through->size_bytes < vd->disk->node.size_bytes) {
        part->status = error_set(&part->error, EAGAIN, "disk %s has grown while the job began: start it again",
                                 vd->disk->name);
        return;
    }
    part->point = point_create(vd->cbw, snapshot->epoch, NULL);
    if (part_make_view(part) < 0 ||
        (part->through && point_write_through(part->point, part->through, snapshot->through_mode) < 0))
        part->status = error_set(&part->error, ENOMEM, "no memory for a snapshot of disk %s", vd->disk->name);
    else if (snapshot->record && point_keep(part->point, snapshot->number, &snapshot->record->broken) < 0)
        part->status = error_set(&part->error, ENOSPC, "no shared memory for a snapshot of disk %s", vd->disk->name);
    if (part->status == 0 && snapshot->bitmap[0])
        part_find_needed(part);
    if (part->status == 0)
        part_prepare_changes(part);
    if (part->status == 0 && part->incremental && snapshot->record &&
        point_keep_changed(part->point, snapshot->number) < 0)
        part->status = error_set(&part->error, ENOSPC, "no shared memory for a snapshot of disk %s", vd->disk->name);
}

void part_prepare(struct part *part)
{
    part->status = 0;
    part->preparing = 1; /* our own, so that it comes back once */
    if (!part->snapshot->bare)
        part_make_point(part);
    if (part->status == 0)
        part_prepare_checkpoint(part);
    part_prepared(part);
}

void part_cut(struct cut_disk *cut_disk)
{
    struct part *part = cut_disk->context;
    if (part->snapshot->bitmap[0] || part->incremental) {
        bitmap_copy_end(&part->needed);
        if (part->needed.status == 0 && !MUTANT(snapshot_not_limited)) {
            part->dirty_bytes = part->needed.blocks.set_count << part->needed.block_shift;
            point_limit(part->point, &part->needed.blocks);
        }
    }
    if (!MUTANT(restart_checkpoint_after_the_cut))
        part_cut_checkpoint(part);
    if (part->point)
        point_go_live(part->point);
}

static void part_store_on(struct io_timer *timer)
{
    part_store(container_of(timer, struct part, store_on));
}

void part_store(struct part *part)
{
    int status = MUTANT(restart_needed_set_not_stored) ? 0 : point_store_needed(part->point, &part->store_at);
    if (status < 0)
        part->status = error_set(&part->error, -status, "no shared memory to note what snapshot '%s' needs of disk %s",
                                 part->snapshot->name, part->vd->disk->name);
    if (status < 0 || part->store_at == 0) {
        part_back(part);
        return;
    }
    part->store_on.fire = part_store_on;
    io_timer_set(part->vd->disk->node.io, &part->store_on, io_now_ns(part->vd->disk->node.io));
}

void part_end(struct part *part)
{
    if (part->point)
        point_end(part->point);
    part_back(part);
}

static void part_quiet(struct cbw_waiter *waiter)
{
    part_back(container_of(waiter, struct part, quiet));
}

/* The last snapshot is gone: so is the filter. */
void part_close(struct part *part)
{
    struct vm_disk *vd = part->vd;
    if (vd->cbw && !MUTANT(cache_left_behind)) {
        struct cbw_status status;
        cbw_status(vd->cbw, &status);
        vd->preserved_before += status.blocks_preserved;
        vd->released_before += status.blocks_released;
        vd->cut_before += status.blocks_cut;
        vd->spilled_before += status.cache.spilled_bytes;
        cbw_destroy(vd->cbw);
        vd->cbw = NULL;
    }
    disk_watch_stop(&vd->watch);
    cache_memory_destroy(&vd->memory);
    part_back(part);
}

void part_free(struct part *part)
{
    if (part->view)
        node_destroy(part->view);
    if (part->point)
        point_free(part->point);
    part->view = NULL;
    part->point = NULL;
    part_free_checkpoint(part);
    bitmap_copy_end(&part->needed);
    bitmap_fini(&part->needed.blocks);
    if (!part->vd->cbw || part->snapshot->bare) {
        part_back(part);
        return;
    }
    part->quiet.quiet = part_quiet;
    cbw_when_quiet(part->vd->cbw, &part->quiet);
}
