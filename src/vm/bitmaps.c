/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * An operation on bitmaps is one message that goes to the reactor of a disk, works there, and comes back to the control
 * thread, where its next step is decided:
 *
 *     add, remove, clear, enable, ranges:  one step
 *     merge:  the target is looked at; then each source is copied at the target's granularity, on its own disk's reactor and
 *             in small steps (track/bitmap_copy); the copies are united here, on the control thread; and the union goes into
 *             the target, some chunks at a time, so that no guest waits for megabytes of bits.
 *
 * So a failure before the last step leaves the target as it was, and one in it (no memory, or the target was removed) leaves
 * a superset. The VM does not close its disks before every operation has ended (vm->operations).
 */
#include "vm/bitmaps.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/name.h"
#include "track/bitmap_copy.h"
#include "vm/vm_private.h"

struct merge_source {
    struct vm_disk *vd;
    char name[LIMIT_NAME_BYTES + 1];
};

struct bitmap_operation {
    struct io_message message;
    struct vm *vm;
    struct vm_disk *vd;                          /* where it works */
    void (*work)(struct bitmap_operation *op);   /* on the reactor; calls operation_back() then or later */
    void (*worked)(struct bitmap_operation *op); /* on the control thread */
    struct error error;                          /* code 0: none */
    char name[LIMIT_NAME_BYTES + 1];
    uint64_t granularity_bytes;
    bool enabled;
    void (*done)(void *argument, const struct error *err);
    void *argument;
    /* ranges: */
    void (*ranges_done)(void *argument, const struct range *ranges, unsigned count, uint64_t next,
                        const struct error *err);
    uint64_t from, next;
    unsigned range_count;
    struct range ranges[LIMIT_BITMAP_RANGES];
    /* merge: */
    struct vm_disk *target;
    struct bitmap_copy copy;
    struct bitmap gathered; /* what has been copied so far */
    uint64_t merged;        /* granules of it that are in the target */
    unsigned source, source_count;
    struct merge_source sources[LIMIT_BITMAP_SOURCES];
};

/* ---- there and back ---- */

static void operation_returned(struct io_message *message)
{
    struct bitmap_operation *op = container_of(message, struct bitmap_operation, message);
    op->worked(op);
}

static void operation_back(struct bitmap_operation *op)
{
    op->message.deliver = operation_returned;
    io_post(op->vm->io, &op->message);
}

static void operation_run(struct io_message *message)
{
    struct bitmap_operation *op = container_of(message, struct bitmap_operation, message);
    op->work(op);
}

static void operation_send(struct bitmap_operation *op, struct vm_disk *vd, void (*work)(struct bitmap_operation *op),
                           void (*worked)(struct bitmap_operation *op))
{
    op->vd = vd;
    op->work = work;
    op->worked = worked;
    op->message.deliver = operation_run;
    io_post(vd->disk->node.io, &op->message);
}

static void operation_end(struct bitmap_operation *op)
{
    struct vm *vm = op->vm;
    const struct error *err = op->error.code ? &op->error : NULL;
    if (op->ranges_done)
        op->ranges_done(op->argument, op->ranges, err ? 0 : op->range_count, op->next, err);
    else
        op->done(op->argument, err);
    bitmap_fini(&op->copy.blocks);
    bitmap_fini(&op->gathered);
    free(op);
    vm->operations--;
    vm_check_closed(vm);
}

static struct vm_disk *disk_named(struct vm *vm, const char *name, struct error *err)
{
    for (unsigned i = 0; i < vm->disk_count; i++)
        if (strcmp(vm->disks[i].disk->name, name) == 0)
            return &vm->disks[i];
    error_set(err, ENODEV, "VM %s has no disk '%.80s'", vm->name, name);
    return NULL;
}

/* A new operation on a bitmap, or NULL with the reason. */
static struct bitmap_operation *operation_new(struct vm *vm, struct vm_bitmap bitmap, struct error *err)
{
    *err = (struct error){0};
    struct vm_disk *vd = disk_named(vm, bitmap.disk, err);
    if (!vd || name_check("name of a dirty bitmap", bitmap.name, err) < 0)
        return NULL;
    if (vm->closing) {
        error_set(err, ESHUTDOWN, "nothing is done with dirty bitmap '%s': the daemon is shutting down", bitmap.name);
        return NULL;
    }
    struct bitmap_operation *op = calloc(1, sizeof *op);
    if (!op) {
        error_set(err, ENOMEM, "no memory for what is to be done with dirty bitmap '%s'", bitmap.name);
        return NULL;
    }
    op->vm = vm;
    op->target = vd;
    memccpy(op->name, bitmap.name, 0, sizeof op->name - 1);
    vm->operations++;
    return op;
}

/* ---- of one step ---- */

static void work_add(struct bitmap_operation *op)
{
    dirty_bitmap_add(&op->vd->bitmaps, op->name, op->granularity_bytes, op->enabled, &op->error);
    operation_back(op);
}

static void work_remove(struct bitmap_operation *op)
{
    dirty_bitmap_remove(&op->vd->bitmaps, op->name, &op->error);
    operation_back(op);
}

static void work_clear(struct bitmap_operation *op)
{
    dirty_bitmap_clear(&op->vd->bitmaps, op->name, &op->error);
    operation_back(op);
}

static void work_enable(struct bitmap_operation *op)
{
    dirty_bitmap_enable(&op->vd->bitmaps, op->name, op->enabled, &op->error);
    operation_back(op);
}

static void work_ranges(struct bitmap_operation *op)
{
    struct dirty_bitmap *bitmap;
    if (dirty_bitmap_find(&op->vd->bitmaps, op->name, &bitmap, &op->error) == 0)
        op->range_count = dirty_bitmap_ranges(bitmap, op->from, op->ranges, LIMIT_BITMAP_RANGES, &op->next);
    operation_back(op);
}

static void operation_start(struct vm *vm, struct vm_bitmap bitmap, void (*work)(struct bitmap_operation *op),
                            bool enabled, void (*done)(void *argument, const struct error *err), void *argument)
{
    struct error err;
    struct bitmap_operation *op = operation_new(vm, bitmap, &err);
    if (!op) {
        done(argument, &err);
        return;
    }
    op->enabled = enabled;
    op->done = done;
    op->argument = argument;
    operation_send(op, op->target, work, operation_end);
}

void vm_bitmap_add(struct vm *vm, struct vm_bitmap bitmap, uint64_t granularity_bytes, bool enabled,
                   void (*done)(void *argument, const struct error *err), void *argument)
{
    struct error err = {0};
    struct bitmap_operation *op = NULL;
    if (!granularity_bytes || dirty_bitmap_check_granularity(granularity_bytes, &err) == 0)
        op = operation_new(vm, bitmap, &err);
    if (!op) {
        done(argument, &err);
        return;
    }
    op->granularity_bytes = granularity_bytes ? granularity_bytes : op->target->block_bytes;
    op->enabled = enabled;
    op->done = done;
    op->argument = argument;
    operation_send(op, op->target, work_add, operation_end);
}

void vm_bitmap_remove(struct vm *vm, struct vm_bitmap bitmap, void (*done)(void *argument, const struct error *err),
                      void *argument)
{
    operation_start(vm, bitmap, work_remove, false, done, argument);
}

void vm_bitmap_clear(struct vm *vm, struct vm_bitmap bitmap, void (*done)(void *argument, const struct error *err),
                     void *argument)
{
    operation_start(vm, bitmap, work_clear, false, done, argument);
}

void vm_bitmap_enable(struct vm *vm, struct vm_bitmap bitmap, bool enabled,
                      void (*done)(void *argument, const struct error *err), void *argument)
{
    operation_start(vm, bitmap, work_enable, enabled, done, argument);
}

void vm_bitmap_ranges(struct vm *vm, struct vm_bitmap bitmap, uint64_t from,
                      void (*done)(void *argument, const struct range *ranges, unsigned count, uint64_t next,
                                   const struct error *err),
                      void *argument)
{
    struct error err;
    struct bitmap_operation *op = operation_new(vm, bitmap, &err);
    if (!op) {
        done(argument, NULL, 0, 0, &err);
        return;
    }
    op->from = from;
    op->ranges_done = done;
    op->argument = argument;
    operation_send(op, op->target, work_ranges, operation_end);
}

/* ---- merge ---- */

static void merge_some(struct bitmap_operation *op)
{
    uint64_t most = LIMIT_BITMAP_STEP_CHUNKS * BITMAP_CHUNK_BITS, left = op->gathered.bit_count - op->merged;
    uint64_t count = left < most ? left : most;
    dirty_bitmap_merge(&op->vd->bitmaps, op->name, &op->gathered, op->merged, count, &op->error);
    op->merged += count;
    operation_back(op);
}

static void merged_some(struct bitmap_operation *op)
{
    if (op->error.code || op->merged == op->gathered.bit_count)
        operation_end(op);
    else
        operation_send(op, op->target, merge_some, merged_some);
}

static void source_copied(struct bitmap_copy *copy)
{
    struct bitmap_operation *op = container_of(copy, struct bitmap_operation, copy);
    bitmap_copy_end(copy);
    if (copy->status < 0)
        error_set(&op->error, ENOMEM, "no memory for a copy of dirty bitmap '%s'", op->sources[op->source].name);
    operation_back(op);
}

static void work_copy_source(struct bitmap_operation *op)
{
    struct dirty_bitmap *bitmap;
    const struct merge_source *source = &op->sources[op->source];
    if (dirty_bitmap_find(&op->vd->bitmaps, source->name, &bitmap, &op->error) < 0)
        operation_back(op);
    else
        bitmap_copy_start(&op->copy, op->vd->disk, bitmap, (unsigned)__builtin_ctzll(op->granularity_bytes),
                          source_copied);
}

static void source_gathered(struct bitmap_operation *op)
{
    if (!op->error.code && op->source == 0) {
        op->gathered = op->copy.blocks;
        op->copy.blocks = (struct bitmap){0};
    } else if (!op->error.code && op->gathered.bit_count != op->copy.blocks.bit_count) {
        error_set(&op->error, EINVAL, "a disk has grown during the merge of its dirty bitmaps: merge them again");
    } else if (!op->error.code && bitmap_merge(&op->gathered, &op->copy.blocks) < 0) {
        error_set(&op->error, ENOMEM, "no memory to merge %u dirty bitmaps", op->source_count);
    }
    bitmap_fini(&op->copy.blocks);
    if (op->error.code)
        operation_end(op);
    else if (++op->source < op->source_count)
        operation_send(op, op->sources[op->source].vd, work_copy_source, source_gathered);
    else
        operation_send(op, op->target, merge_some, merged_some);
}

static void work_look_at_target(struct bitmap_operation *op)
{
    struct dirty_bitmap *bitmap;
    if (dirty_bitmap_find(&op->vd->bitmaps, op->name, &bitmap, &op->error) == 0)
        op->granularity_bytes = UINT64_C(1) << bitmap->granularity_shift;
    operation_back(op);
}

static void target_looked_at(struct bitmap_operation *op)
{
    if (op->error.code || op->source_count == 0)
        operation_end(op);
    else
        operation_send(op, op->sources[0].vd, work_copy_source, source_gathered);
}

/* Fills in the sources. 0 or -errno with a sentence. */
static int merge_check_sources(struct bitmap_operation *op, const struct vm_bitmap *sources, unsigned count,
                               struct error *err)
{
    if (count > LIMIT_BITMAP_SOURCES)
        return error_set(err, EINVAL, "%u bitmaps are too many to merge at once: %d at most", count,
                         LIMIT_BITMAP_SOURCES);
    for (unsigned i = 0; i < count; i++) {
        struct vm_disk *vd = disk_named(op->vm, sources[i].disk, err);
        if (!vd)
            return -ENODEV;
        if (name_check("name of a dirty bitmap", sources[i].name, err) < 0)
            return -EINVAL;
        const uint64_t has = node_size(&vd->disk->node), wanted = node_size(&op->target->disk->node);
        if (has != wanted)
            return error_set(
                err, EINVAL,
                "dirty bitmaps of disks %s and %s can't be merged: %llu and %llu bytes are different sizes",
                vd->disk->name, op->target->disk->name, (unsigned long long)has, (unsigned long long)wanted);
        op->sources[i].vd = vd;
        memccpy(op->sources[i].name, sources[i].name, 0, sizeof op->sources[i].name - 1);
    }
    op->source_count = count;
    return 0;
}

void vm_bitmap_merge(struct vm *vm, struct vm_bitmap target, const struct vm_bitmap *sources, unsigned source_count,
                     void (*done)(void *argument, const struct error *err), void *argument)
{
    struct error err;
    struct bitmap_operation *op = operation_new(vm, target, &err);
    if (!op) {
        done(argument, &err);
        return;
    }
    op->done = done;
    op->argument = argument;
    if (merge_check_sources(op, sources, source_count, &op->error) < 0)
        operation_end(op);
    else
        operation_send(op, op->target, work_look_at_target, target_looked_at);
}
