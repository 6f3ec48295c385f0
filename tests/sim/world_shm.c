/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Shared memory: an address range without access, in which growing opens pages and punching closes them again. To touch
 * what was not grown, or was punched, is a fault on the spot (C13), which on a real tmpfs would be luck.
 */
#include <assert.h>
#include <errno.h>
#include <sys/mman.h>
#include <stdlib.h>
#include <string.h>

#include "world_internal.h"

void world_limit_shm(struct world *world, uint64_t max_bytes)
{
    world->options.shm_max_bytes = max_bytes;
}

int shm_create_(struct io *io, struct io_shm *shm, uint64_t reserve_bytes, struct error *err)
{
    struct world *world = reactor_of(io)->world;
    int fd = description_new(world, reactor_of(io)->process);
    if (fd < 0)
        return error_set(err, -fd, "shared memory: no descriptor is free");
    char *base = mmap(NULL, reserve_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED)
        abort();
    world->descriptions[fd].is_shm = true;
    world->descriptions[fd].shm_base = base;
    world->descriptions[fd].shm_reserved = reserve_bytes;
    *shm = (struct io_shm){.base = base, .reserved_bytes = reserve_bytes, .fd = fd};
    return 0;
}

static struct description *shm_of(struct world *world, struct io_shm *shm, struct range range, const char *what)
{
    struct description *description = description_of(world, shm->fd);
    if (!description->is_shm || description->shm_base != shm->base)
        world_violation(world, "%s of something that is not shared memory", what);
    if (!range_aligned(range, WORLD_EXTENT_BYTES) || !range_within(range, description->shm_reserved))
        world_violation(world, "%s of [%llu +%llu]: not pages, or outside of the range", what,
                        (unsigned long long)range.start, (unsigned long long)range.length);
    return description;
}

int shm_grow_(struct io *io, struct io_shm *shm, struct range range)
{
    struct world *world = reactor_of(io)->world;
    struct description *description = shm_of(world, shm, range, "shm_grow");
    if (world->options.shm_max_bytes != 0 && world->shm_bytes + range.length > world->options.shm_max_bytes)
        return -ENOSPC;
    if (mprotect(shm->base + range.start, range.length, PROT_READ | PROT_WRITE) != 0)
        abort();
    world->shm_bytes += range.length;
    description->shm_grown += range.length;
    return 0;
}

/* To touch what was not grown is a fault here as well. */
void shm_populate_(struct io *io, struct io_shm *shm, struct range range)
{
    shm_of(reactor_of(io)->world, shm, range, "shm_populate");
    for (uint64_t at = range.start; at < range_end(range); at += WORLD_EXTENT_BYTES) {
        volatile char *byte = shm->base + at;
        *byte = *byte;
    }
}

void shm_punch_(struct io *io, struct io_shm *shm, struct range range)
{
    struct world *world = reactor_of(io)->world;
    struct description *description = shm_of(world, shm, range, "shm_punch");
    if (mmap(shm->base + range.start, range.length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED,
             -1, 0) == MAP_FAILED)
        abort();
    if (range.length > description->shm_grown)
        world_violation(world, "shm_punch of more than was grown");
    world->shm_bytes -= range.length;
    description->shm_grown -= range.length;
}

void shm_drop(struct world *world, struct description *description)
{
    munmap(description->shm_base, description->shm_reserved);
    world->shm_bytes -= description->shm_grown;
    description->shm_grown = 0;
}

void shm_destroy_(struct io *io, struct io_shm *shm)
{
    struct world *world = reactor_of(io)->world;
    struct description *description = shm_of(world, shm, (struct range){0, 0}, "shm_destroy");
    shm_drop(world, description);
    description_drop(world, shm->fd);
    *shm = (struct io_shm){.fd = -1};
}
