/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The cache files of the simulation, one for each disk, and the devices that they are on: large or tiny, sound, failing now
 * and then, failing for a while, or never answering. Whatever they do, the guest must not notice, and no byte of a
 * snapshot may be wrong: so nothing here is an excuse for anything but a snapshot that breaks.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sim.h"
#include "driver/file.h"
#include "sim_leaf.h"

struct cache_file { /* on its way to or from the VM */
    struct sim *sim;
    struct sim_disk *disk;
    struct io_message message;
    struct node *file;
    struct error err;
    void (*opened)(void *argument, struct node *file, const struct error *err);
    void (*closed)(void *argument);
    void *argument;
};

static void name_of(const struct sim_disk *disk, char name[16])
{
    snprintf(name, 16, "%s.cache", disk->name);
}

bool cache_is_file(const struct sim *sim, const struct world_file *file)
{
    for (unsigned i = 0; i < sim->disk_count; i++)
        if (sim->disks[i].file == file)
            return false;
    return true;
}

void cache_choose(struct sim *sim, uint64_t total_bytes)
{
    struct sim_cache *cache = &sim->cache;
    uint64_t segment = sim->segment_bytes + 8 * KIB; /* with its header */
    if (!sim_chance(sim, 560))
        return;
    cache->plenty = sim_chance(sim, 400);
    cache->max_bytes = cache->plenty ? 2 * SIM_ALIVE * total_bytes + 64 * segment
                                     : (sim->disk_count + sim_below(sim, 10)) * segment;
    cache->sticks_per_1024 = sim_chance(sim, 200) ? 1 + (unsigned)sim_below(sim, 200) : 0;
    cache->stuck_forever = cache->sticks_per_1024 > 0 && sim_chance(sim, 300);
    cache->refuses = sim_chance(sim, 128);
    cache->no_punch = sim_chance(sim, 128);
    if (sim_chance(sim, 256))
        cache->fail_per_1024 = 1 + (unsigned)sim_below(sim, 100);
    if (sim_chance(sim, 128)) {
        cache->fail_from = 1 + sim_below(sim, 60);
        cache->fail_until = sim_chance(sim, 512) ? UINT64_MAX : cache->fail_from + sim_below(sim, 30);
    }
}

bool cache_is_sound(const struct sim *sim)
{
    return sim->cache.fail_per_1024 == 0 && sim->cache.fail_from == 0 && sim->cache.sticks_per_1024 == 0;
}

/* ---- opening and closing ---- */

static void opened(struct io_message *message)
{
    struct cache_file *opening = container_of(message, struct cache_file, message);
    opening->opened(opening->argument, opening->file, opening->file != NULL ? NULL : &opening->err);
    free(opening);
}

static struct cache_file *cache_file_new(struct sim *sim, const struct disk *disk, void *argument)
{
    struct cache_file *file = calloc(1, sizeof(*file));
    if (file == NULL)
        abort();
    file->sim = sim;
    file->argument = argument;
    for (unsigned i = 0; i < sim->disk_count; i++)
        if (sim->disks[i].disk == disk)
            file->disk = &sim->disks[i];
    if (file->disk == NULL)
        sim_fail(sim, "a cache file of somebody else");
    return file;
}

void cache_open(void *context, const struct disk *disk, uint64_t block_bytes,
                void (*done)(void *argument, struct node *file, const struct error *err), void *argument)
{
    struct sim *sim = context;
    struct cache_file *opening = cache_file_new(sim, disk, argument);
    char name[16];
    name_of(opening->disk, name);
    opening->opened = done;
    opening->message.deliver = opened;
    if (block_bytes != sim->block_bytes || sim->cache.max_bytes == 0)
        sim_fail(sim, "a cache file for blocks of %llu bytes is asked for", (unsigned long long)block_bytes);
    if (world_file_find(sim->world, name) != NULL)
        sim_fail(sim, "%s is made twice", name);
    if (sim->cache.refuses && sim_chance(sim, 200)) {
        sim->cache.refused++;
        error_set(&opening->err, sim_chance(sim, 512) ? ENOSPC : EACCES, "cannot make %s", name);
    } else {
        world_file_create(sim->world, name, round_up(sim->cache.max_bytes, 4096), 512, false);
        struct file_options options = {.path = name, .page_cache = sim_chance(sim, 256)};
        int status = sim->file_driver ? file_open(opening->disk->io, &options, &opening->file, &opening->err)
                                      : sim_leaf_open(opening->disk->io, name, &opening->file);
        if (status != 0)
            sim_fail(sim, "cannot open %s", name);
        sim->cache.open++;
    }
    io_post(sim->control, &opening->message);
}

static void closed(struct io_message *message)
{
    struct cache_file *closing = container_of(message, struct cache_file, message);
    char name[16];
    name_of(closing->disk, name);
    world_file_remove(closing->sim->world, name);
    closing->sim->cache.open--;
    closing->closed(closing->argument);
    free(closing);
}

static void close_file(struct io_message *message)
{
    struct cache_file *closing = container_of(message, struct cache_file, message);
    node_destroy(closing->file);
    closing->message.deliver = closed;
    io_post(closing->sim->control, &closing->message);
}

void cache_close(void *context, const struct disk *disk, struct node *file, void (*done)(void *argument),
                 void *argument)
{
    struct sim *sim = context;
    struct cache_file *closing = cache_file_new(sim, disk, argument);
    closing->file = file;
    closing->closed = done;
    closing->message.deliver = close_file;
    io_post(closing->disk->io, &closing->message);
}

/* ---- troubles ---- */

static struct sim_disk *disk_of(struct sim *sim, const struct world_file *file)
{
    for (unsigned i = 0; i < sim->disk_count; i++) {
        char name[16];
        name_of(&sim->disks[i], name);
        if (world_file_find(sim->world, name) == file)
            return &sim->disks[i];
    }
    sim_fail(sim, "a file of nobody");
}

int cache_fault(struct sim *sim, const struct world_io *io)
{
    struct sim_cache *cache = &sim->cache;
    uint64_t number = ++cache->operations;
    if (cache->no_punch && io->kind == WORLD_ALLOCATE)
        return -EOPNOTSUPP; /* an old file system: no excuse for anything */
    bool fails = (number >= cache->fail_from && number < cache->fail_until) || sim_chance(sim, cache->fail_per_1024);
    if (!fails)
        return 0;
    cache->faults++;
    sim->may_break = true;
    if (io->kind == WORLD_READ) {
        disk_of(sim, io->file)->read_faults++;
        return -EIO;
    }
    return io->kind == WORLD_ALLOCATE ? -EOPNOTSUPP : sim_chance(sim, 512) ? -ENOSPC : -EIO;
}

bool cache_gate(struct sim *sim, const struct world_io *io)
{
    struct sim_cache *cache = &sim->cache;
    if (cache->let_go || cache->stuck_count == SIM_STUCK || !sim_chance(sim, cache->sticks_per_1024))
        return false;
    sim->may_break = true;
    cache->stuck[cache->stuck_count] = io->number;
    cache->stuck_until[cache->stuck_count++] = cache->stuck_forever && sim_chance(sim, 512)
                                                   ? UINT64_MAX
                                                   : world_now(sim->world) + sim_below(sim, 60 * NS_PER_MS);
    sim_trace(sim, "operation %llu of a cache file gets stuck", (unsigned long long)io->number);
    return true;
}

void cache_let_go(struct sim *sim, bool all)
{
    struct sim_cache *cache = &sim->cache;
    cache->let_go = cache->let_go || all;
    for (unsigned i = 0; i < cache->stuck_count;) {
        if (!all && world_now(sim->world) < cache->stuck_until[i]) {
            i++;
            continue;
        }
        world_let_go(sim->world, cache->stuck[i]);
        cache->stuck[i] = cache->stuck[--cache->stuck_count];
        cache->stuck_until[i] = cache->stuck_until[cache->stuck_count];
    }
}

/* The files never take more than they may. */
void cache_check(struct sim *sim)
{
    uint64_t bytes = 0;
    for (unsigned i = 0; i < sim->disk_count; i++) {
        char name[16];
        name_of(&sim->disks[i], name);
        struct world_file *file = world_file_find(sim->world, name);
        bytes += file != NULL ? world_file_allocated(file) : 0;
    }
    if (bytes > sim->cache.max_bytes)
        sim_fail(sim, "the cache files take %llu bytes, and %llu were allowed (R8)", (unsigned long long)bytes,
                 (unsigned long long)sim->cache.max_bytes);
}
