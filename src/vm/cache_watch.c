/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The fleecing cache as the operator sees it: how full it is, how fast it fills, when it will be full; and its budgets,
 * which may be changed while snapshots live.
 *
 * What the cache may hold is bounded by its budgets, and by the space that the file systems of the cache files have left.
 *
 * While there are filters a timer on the control thread looks at the two budgets, which are shared words, twice a second;
 * no reactor is asked, and without a snapshot there is no timer. "Full" is both tiers together: RAM alone is always
 * spilled from three quarters on, which is no news.
 *
 * A budget that grows lets waiting writes go on at once: every disk is told to retry. One that shrinks never goes below what
 * is in use, so nothing has to be thrown out for it. What a filter has reserved (addresses, the map, the size of the cache
 * file) bounds the growth while it lives; the next one reserves anew.
 */
#include "vm/cache_watch.h"

#include <errno.h>
#include <stdlib.h>

#include "base/name.h"
#include "vm/vm_private.h"

void vm_cache_fill(const struct vm *vm, struct vm_cache_fill *fill)
{
    const struct vm_hooks *hooks = &vm->options.hooks;
    const uint64_t file_used = atomic_load(&vm->file_budget.used_bytes);
    uint64_t file_max = atomic_load(&vm->file_budget.max_bytes);
    if (file_max && hooks->cache_space && !vm->closing) {
        uint64_t space = hooks->cache_space(hooks->context);
        if (space < file_max && file_used + space < file_max)
            file_max = file_used + space;
    }
    fill->bytes = atomic_load(&vm->ram_budget.used_bytes) + file_used;
    fill->bytes_max = atomic_load(&vm->ram_budget.max_bytes) + file_max;
    fill->rate = cache_forecast_rate(&vm->forecast);
    fill->seconds = cache_forecast_seconds(&vm->forecast, fill->bytes, fill->bytes_max);
}

/* ---- looking at it ---- */

static void watch_fires(struct io_timer *timer)
{
    struct vm *vm = container_of(timer, struct vm, watch);
    const struct vm_hooks *hooks = &vm->options.hooks;
    struct vm_cache_fill fill;
    if (vm->filters == FILTERS_NONE) {
        vm->forecast = (struct cache_forecast){0};
        return;
    }
    vm_cache_fill(vm, &fill);
    cache_forecast_sample(&vm->forecast, io_now_ns(vm->io), fill.bytes);
    unsigned percent = cache_forecast_crossed(&vm->forecast, fill.bytes, fill.bytes_max);
    if (percent && hooks->cache_threshold) {
        vm_cache_fill(vm, &fill);
        hooks->cache_threshold(hooks->context, percent, &fill);
    }
    io_timer_set(vm->io, timer, io_now_ns(vm->io) + FORECAST_SAMPLE_NS);
}

void cache_watch_begin(struct vm *vm)
{
    if (vm->filters != FILTERS_NONE)
        return;
    vm->ram_growth_max = fleecing_cache_growth_max(vm->ram_budget.max_bytes);
    vm->forecast = (struct cache_forecast){0};
    cache_forecast_sample(&vm->forecast, io_now_ns(vm->io), atomic_load(&vm->ram_budget.used_bytes));
    vm->watch.fire = watch_fires;
    io_timer_set(vm->io, &vm->watch, io_now_ns(vm->io) + FORECAST_SAMPLE_NS);
}

void cache_watch_end(struct vm *vm)
{
    io_timer_cancel(vm->io, &vm->watch);
}

/* ---- changing it ---- */

struct resize_part {
    struct io_message message;
    struct resize *resize;
    struct vm_disk *vd;
};

struct resize {
    struct vm *vm;
    void (*done)(void *argument, const struct error *err);
    void *argument;
    unsigned unanswered;
    struct resize_part parts[LIMIT_DISKS];
};

static void resize_answered(struct io_message *message)
{
    struct resize *resize = container_of(message, struct resize_part, message)->resize;
    struct vm *vm = resize->vm;
    if (--resize->unanswered > 0)
        return;
    resize->done(resize->argument, NULL);
    free(resize);
    vm->operations--;
    vm_check_closed(vm);
}

static void resize_retry(struct io_message *message)
{
    struct resize_part *part = container_of(message, struct resize_part, message);
    if (part->vd->cbw)
        cbw_retry(part->vd->cbw);
    message->deliver = resize_answered;
    io_post(part->resize->vm->io, message);
}

static int check_ram(const struct vm *vm, uint64_t bytes, struct error *err)
{
    char wanted[16], bound[16];
    const uint64_t least = vm_least_ram(vm);
    if (bytes < least || bytes > FLEECE_RAM_MAX)
        return error_set(err, EINVAL, "%s of RAM for the fleecing cache is not right: from %s to 1 TiB",
                         size_format(wanted, bytes), size_format(bound, least));
    if (vm->filters != FILTERS_NONE && bytes > vm->ram_growth_max)
        return error_set(err, EINVAL,
                         "the fleecing cache can't grow to %s of RAM while snapshots live, but to %s: more is possible "
                         "when they have ended",
                         size_format(wanted, bytes), size_format(bound, vm->ram_growth_max));
    return 0;
}

static int check_files(const struct vm *vm, uint64_t bytes, struct error *err)
{
    char wanted[16], bound[16];
    uint64_t most = FLEECE_DISK_CACHE_MAX;
    if (!vm->options.disk_bytes)
        return error_set(
            err, EINVAL,
            "there are no cache files that could grow: the daemon was started with a fleecing cache in RAM "
            "only");
    for (unsigned i = 0; i < vm->disk_count; i++)
        if (vm->disks[i].file && vm->disks[i].file->size_bytes < most)
            most = vm->disks[i].file->size_bytes;
    if (bytes < FLEECE_DISK_CACHE_MIN || bytes > FLEECE_DISK_CACHE_MAX)
        return error_set(err, EINVAL, "%s of cache files is not right: from %s to 8 TiB", size_format(wanted, bytes),
                         size_format(bound, FLEECE_DISK_CACHE_MIN));
    if (bytes > most)
        return error_set(err, EINVAL,
                         "the cache files can't grow to %s while snapshots live, but to %s: more is possible when they "
                         "have ended",
                         size_format(wanted, bytes), size_format(bound, most));
    return 0;
}

/* 0: unchanged. Never below what is in use, also when a reactor takes some in this moment. */
static int budget_resize(struct budget *budget, const char *what, uint64_t bytes, struct error *err)
{
    char wanted[16], used[16];
    unsigned long long before = atomic_load(&budget->max_bytes);
    if (!bytes)
        return 0;
    atomic_store(&budget->max_bytes, bytes);
    unsigned long long now = atomic_load(&budget->used_bytes);
    if (now <= bytes)
        return 0;
    atomic_store(&budget->max_bytes, before);
    return error_set(err, EBUSY, "%s can't shrink to %s: %s are in use", what, size_format(wanted, bytes),
                     size_format(used, now));
}

void vm_cache_resize(struct vm *vm, uint64_t ram_bytes, uint64_t file_bytes,
                     void (*done)(void *argument, const struct error *err), void *argument)
{
    struct error err = {0};
    const uint64_t ram_before = vm->ram_budget.max_bytes;
    struct resize *resize = vm->closing ? NULL : calloc(1, sizeof *resize);
    if (vm->closing)
        error_set(&err, ESHUTDOWN, "the fleecing cache keeps its size: the daemon is shutting down");
    else if (!resize)
        error_set(&err, ENOMEM, "no memory to resize the fleecing cache");
    if (!err.code && ram_bytes)
        check_ram(vm, ram_bytes, &err);
    if (!err.code && file_bytes)
        check_files(vm, file_bytes, &err);
    if (!err.code)
        budget_resize(&vm->ram_budget, "the fleecing cache's RAM", ram_bytes, &err);
    if (!err.code && budget_resize(&vm->file_budget, "the cache files", file_bytes, &err) < 0)
        atomic_store(&vm->ram_budget.max_bytes, ram_before); /* both or none */
    if (err.code) {
        free(resize);
        done(argument, &err);
        return;
    }
    if (vm->filters != FILTERS_NONE) /* the thresholds are others now */
        io_timer_set(vm->io, &vm->watch, io_now_ns(vm->io));
    if (file_bytes && vm->options.hooks.cache_resized)
        vm->options.hooks.cache_resized(vm->options.hooks.context, file_bytes);
    *resize = (struct resize){.vm = vm, .done = done, .argument = argument, .unanswered = vm->disk_count};
    vm->operations++;
    for (unsigned i = 0; i < vm->disk_count; i++) {
        resize->parts[i] = (struct resize_part){{resize_retry, NULL}, resize, &vm->disks[i]};
        io_post(vm->disks[i].disk->node.io, &resize->parts[i].message);
    }
}

/* ---- before a backup ---- */

void vm_estimate_backup(const struct vm *vm, const struct vm_status *status, uint64_t speed,
                        struct vm_backup_estimate *estimate)
{
    struct vm_cache_fill fill;
    vm_cache_fill(vm, &fill);
    *estimate = (struct vm_backup_estimate){.speed = speed};
    for (unsigned i = 0; i < status->disk_count; i++)
        estimate->size_bytes += status->disks[i].size_bytes;
    const double seconds = (double)estimate->size_bytes / (double)speed;
    estimate->seconds = (uint64_t)seconds;
    for (unsigned i = 0; i < status->disk_count; i++) {
        const struct vm_disk_status *disk = &status->disks[i];
        const struct backup_plan plan = {disk->size_bytes, disk->recent.distinct_bytes, disk->recent.duration_ns,
                                         disk->block_bytes};
        if (plan.written_ns)
            estimate->write_rate += (uint64_t)((double)plan.written_bytes * NS_PER_S / (double)plan.written_ns);
        if (plan.written_ns > estimate->observed_ns)
            estimate->observed_ns = plan.written_ns;
        estimate->bytes += backup_needs(&plan, seconds, true);
        estimate->bytes_unreleased += backup_needs(&plan, seconds, false);
    }
    estimate->bytes_free = fill.bytes_max > fill.bytes ? fill.bytes_max - fill.bytes : 0;
}
