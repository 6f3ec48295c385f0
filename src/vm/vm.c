/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The VM: its disks and the wiring between them, the snapshots and the room in the cache.
 *
 * Life: created -> disks added -> started -> (snapshots come and go) -> closing: no new snapshot or operation on bitmaps,
 * all end, then the room falls idle, then every disk closes on its own reactor -> gone. A crash leaves nothing of a VM but
 * its disks: snapshots are ephemeral and the cache has no name.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/name.h"
#include "vm/checkpoint_table.h"
#include "vm/vm_private.h"

struct vm *vm_create(struct io *control, const struct vm_options *options)
{
    struct vm *vm = calloc(1, sizeof *vm);
    if (!vm)
        return NULL;
    vm->io = control;
    vm->options = *options;
    if (!vm->options.block_bytes)
        vm->options.block_bytes = BLOCK_BYTES_DEFAULT;
    if (!vm->options.segment_bytes)
        vm->options.segment_bytes = SEGMENT_BYTES_DEFAULT;
    memccpy(vm->name, options->name, 0, sizeof vm->name - 1);
    vm->options.name = vm->name;
    if (!vm->options.cbw_timeout_ns)
        vm->options.cbw_timeout_ns = CBW_TIMEOUT_DEFAULT_NS;
    vm->ram_budget.max_bytes = options->ram_bytes;
    vm->file_budget.max_bytes = options->disk_bytes;
    list_init(&vm->snapshots);
    list_init(&vm->checkpoints);
    list_init(&vm->growths);
    if (options->memory_folder)
        memccpy(vm->memory_folder, options->memory_folder, 0, sizeof vm->memory_folder - 1);
    return vm;
}

static void vm_disk_lost(struct io_message *message)
{
    struct vm_disk *vd = container_of(message, struct vm_disk, lost.message);
    nudge_received(&vd->lost);
    struct loss loss;
    while (losses_take(&vd->losses, &loss))
        snapshots_lost(vd->vm, loss, vd);
}

int vm_add_disk(struct vm *vm, const char *name, struct node *leaf, uint64_t block_bytes, struct error *err)
{
    int status = name_check("disk name", name, err);
    for (unsigned i = 0; status == 0 && i < vm->disk_count; i++)
        if (strcmp(vm->disks[i].disk->name, name) == 0)
            status = error_set(err, EEXIST, "disk '%s' is named twice: give every disk a name of its own", name);
    if (status == 0 && vm->disk_count == LIMIT_DISKS)
        status = error_set(err, ENOSPC, "disk '%s' is one too many: a VM has at most %d", name, LIMIT_DISKS);
    struct disk *disk = status == 0 ? disk_create(name, leaf) : NULL;
    if (!disk) {
        node_destroy(leaf);
        return status < 0 ? status : error_set(err, ENOMEM, "no memory for disk '%s'", name);
    }
    struct vm_disk *vd = &vm->disks[vm->disk_count];
    vd->vm = vm;
    vd->disk = disk;
    snprintf(vd->memory_file, sizeof vd->memory_file, "%s.track", name);
    vd->block_bytes = block_bytes ? block_bytes : vm->options.block_bytes;
    vd->room.disk = disk;
    dirty_bitmaps_init(&vd->bitmaps, disk);
    write_sketch_begin(&vd->recent, disk,
                       (unsigned)__builtin_ctzll(block_bytes ? block_bytes : vm->options.block_bytes));
    vd->room.cbw = &vd->cbw;
    vd->lost.message.deliver = vm_disk_lost;
    vm->room_disks[vm->disk_count++] = &vd->room;
    return 0;
}

static void vm_ran_out(void *context, struct room_shortage shortage)
{
    snapshots_ran_out(context, shortage);
}

/* One segment for each disk, its share of the map included, or nothing could ever be preserved. */
uint64_t vm_least_ram(const struct vm *vm)
{
    uint64_t least = 0;
    for (unsigned i = 0; i < vm->disk_count; i++) {
        const uint64_t block = vm->disks[i].block_bytes, segment = vm->options.segment_bytes;
        const uint64_t bytes = segment > block ? segment : block;
        least += bytes + (vm->options.disk_bytes ? 2 : 1) * (bytes / block) * LIMIT_MAP_BYTES_PER_SLOT;
    }
    return least;
}

int vm_start(struct vm *vm, struct error *err)
{
    assert(vm->disk_count > 0);
    char has[16], needs[16];
    const uint64_t least = vm_least_ram(vm);
    if (vm->ram_budget.max_bytes < least)
        return error_set(err, EINVAL, "%s of RAM for the fleecing cache is too little: %u disks need %s at least",
                         size_format(has, vm->ram_budget.max_bytes), vm->disk_count, size_format(needs, least));
    const struct room_hooks hooks = {.context = vm, .ran_out = vm_ran_out};
    vm->room = room_create(vm->disks[0].disk->node.io, vm->io, &vm->ram_budget, vm->room_disks, vm->disk_count, &hooks);
    return vm->room ? 0 : error_set(err, ENOMEM, "no memory for VM '%s'", vm->name);
}

void vm_describe_shortage(const struct vm *vm, const struct room_shortage *shortage, char *text, size_t size)
{
    char ram[16], file[16];
    int length = snprintf(text, size, "the fleecing cache is full (at most %s of RAM",
                          size_format(ram, vm->ram_budget.max_bytes));
    if (vm->file_budget.max_bytes)
        length += snprintf(text + length, size - (size_t)length, " and %s of cache files",
                           size_format(file, vm->file_budget.max_bytes));
    if (shortage->failure)
        length += snprintf(text + length, size - (size_t)length, "; a cache file takes no more: %s",
                           error_name(shortage->failure));
    if (shortage->overdue)
        length += snprintf(text + length, size - (size_t)length, "; writes waited %llu s for room",
                           (unsigned long long)(vm->options.cbw_timeout_ns / NS_PER_S));
    snprintf(text + length, size - (size_t)length, "): this was the oldest snapshot");
}

/* ---- the end ---- */

static void disk_closed(struct io_message *message)
{
    struct vm *vm = container_of(message, struct vm_disk, closing)->vm;
    if (--vm->disks_open > 0)
        return;
    if (vm->room)
        room_destroy(vm->room);
    checkpoints_fini(vm);
    void (*destroyed)(void *) = vm->destroyed;
    void *argument = vm->destroyed_argument;
    free(vm);
    destroyed(argument);
}

static void disk_free(struct vm_disk *vd)
{
    disk_destroy(vd->disk);
    vd->closing.deliver = disk_closed;
    io_post(vd->vm->io, &vd->closing);
}

/* In good order, or as well as the sidecar lets it: then the next start recovers. */
static void tracker_closed(struct tracker_op *op)
{
    struct vm_disk *vd = container_of(op, struct vm_disk, tracking.op);
    tracker_destroy(vd->tracking.tracker);
    disk_free(vd);
}

/* Nothing writes to the leaf after this: the tracker notes what its file looks like. */
static void leaf_given_back(struct request *req, int status)
{
    struct vm_disk *vd = container_of(req, struct vm_disk, last_flush);
    if (status < 0)
        log_warning("disk %s: space may leak in its image, for it can't be flushed: %s", vd->disk->name,
                    error_name(status));
    if (!vd->tracking.tracker) {
        disk_free(vd);
        return;
    }
    vd->tracking.op = (struct tracker_op){.done = tracker_closed};
    tracker_close(vd->tracking.tracker, &vd->tracking.op);
}

static void disk_close(struct io_message *message)
{
    struct vm_disk *vd = container_of(message, struct vm_disk, closing);
    struct node *leaf = vd->disk->leaf;
    assert(!vd->cbw);
    dirty_bitmaps_fini(&vd->bitmaps);
    write_sketch_end(&vd->recent);
    vd->last_flush = (struct request){.kind = REQUEST_FLUSH, .flags = REQUEST_LAST, .done = leaf_given_back};
    if (leaf->gives_back) {
        node_submit(leaf, &vd->last_flush);
    } else {
        leaf_given_back(&vd->last_flush, 0);
    }
}

static void room_fell_idle(void *argument)
{
    struct vm *vm = argument;
    vm->disks_open = vm->disk_count;
    for (unsigned i = 0; i < vm->disk_count; i++) {
        vm->disks[i].closing.deliver = disk_close;
        io_post(vm->disks[i].disk->node.io, &vm->disks[i].closing);
    }
}

static void vm_close_disks(struct vm *vm)
{
    cache_watch_end(vm);
    if (vm->room) {
        room_when_idle(vm->room, room_fell_idle, vm);
    } else if (vm->disk_count > 0) {
        room_fell_idle(vm);
    } else {
        checkpoints_fini(vm);
        vm->destroyed(vm->destroyed_argument);
        free(vm);
    }
}

void vm_check_closed(struct vm *vm)
{
    if (vm->closing && list_empty(&vm->snapshots) && vm->operations == 0)
        vm_close_disks(vm);
}

void vm_destroy(struct vm *vm, void (*done)(void *argument), void *argument)
{
    assert(!vm->closing);
    vm->closing = true;
    vm->destroyed = done;
    vm->destroyed_argument = argument;
    growths_refuse(vm);
    snapshots_end_all(vm);
}

/* ---- what it has ---- */

const char *vm_name(const struct vm *vm)
{
    return vm->name;
}

unsigned vm_disk_count(const struct vm *vm)
{
    return vm->disk_count;
}

struct disk *vm_disk(const struct vm *vm, unsigned index)
{
    assert(index < vm->disk_count);
    return vm->disks[index].disk;
}
