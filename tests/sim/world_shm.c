/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Shared memory: an address range without access, in which growing opens pages and punching closes them again. To touch
 * what was not grown, or was punched, is a fault on the spot (C13), which on a real tmpfs would be luck. Memory with a name
 * stays where it is mapped when its process is killed, and is lost with the power.
 */
#include <assert.h>
#include <errno.h>
#include <sys/mman.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "world_internal.h"

void world_limit_shm(struct world *world, uint64_t max_bytes)
{
    world->options.shm_max_bytes = max_bytes;
}

uint64_t world_shm_bytes(const struct world *world)
{
    return world->shm_bytes;
}

unsigned world_named_memory(const struct world *world)
{
    unsigned count = 0;
    for (unsigned i = 0; i < WORLD_SHM_NAMES; i++)
        count += world->named_shm[i].base != NULL && world->named_shm[i].name[0] != '\0';
    return count;
}

static char *shm_reserve(uint64_t bytes)
{
    char *base = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED)
        abort();
    return base;
}

/* Not by calloc(), which some tests let fail. */
static uint8_t *pages_new(uint64_t bytes)
{
    void *pages = mmap(NULL, bytes / WORLD_EXTENT_BYTES / 8 + 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                       -1, 0);
    if (pages == MAP_FAILED)
        abort();
    return pages;
}

static void pages_free(uint8_t *pages, uint64_t bytes)
{
    munmap(pages, bytes / WORLD_EXTENT_BYTES / 8 + 1);
}

/* From now on the pages of the range are there, or are not; returns how many bytes that changes. */
static uint64_t pages_set(uint8_t *pages, struct range range, bool there)
{
    uint64_t changed = 0, end = range_end(range) / WORLD_EXTENT_BYTES;
    for (uint64_t page = range.start / WORLD_EXTENT_BYTES; page < end;) {
        if (page % 8 == 0 && end - page >= 8 && pages[page / 8] == (there ? 0xff : 0)) {
            page += 8;
            continue;
        }
        if ((pages[page / 8] >> page % 8 & 1) != there) {
            pages[page / 8] ^= (uint8_t)(1u << page % 8);
            changed += WORLD_EXTENT_BYTES;
        }
        page++;
    }
    return changed;
}

static uint64_t pages_missing(const uint8_t *pages, struct range range)
{
    uint64_t missing = 0;
    for (uint64_t page = range.start / WORLD_EXTENT_BYTES; page < range_end(range) / WORLD_EXTENT_BYTES; page++)
        missing += (pages[page / 8] >> page % 8 & 1) ? 0 : WORLD_EXTENT_BYTES;
    return missing;
}

static struct named_shm *named_find(struct world *world, const struct io_shm_name *name)
{
    char whole[WORLD_SHM_NAME_BYTES];
    snprintf(whole, sizeof whole, "%s/%s", name->folder, name->file);
    for (unsigned i = 0; i < WORLD_SHM_NAMES; i++)
        if (world->named_shm[i].base && strcmp(world->named_shm[i].name, whole) == 0)
            return &world->named_shm[i];
    return NULL;
}

static struct named_shm *named_new(struct world *world, const struct io_shm_name *name, uint64_t bytes)
{
    for (unsigned i = 0; i < WORLD_SHM_NAMES; i++) {
        struct named_shm *named = &world->named_shm[i];
        if (named->base)
            continue;
        snprintf(named->name, sizeof named->name, "%s/%s", name->folder, name->file);
        named->base = shm_reserve(bytes);
        named->reserved = bytes;
        named->grown = pages_new(bytes);
        return named;
    }
    world_violation(world, "more than %d named pieces of shared memory", WORLD_SHM_NAMES);
}

static void named_free(struct world *world, struct named_shm *named)
{
    munmap(named->base, named->reserved);
    world->shm_bytes -= pages_set(named->grown, (struct range){0, round_up(named->reserved, WORLD_EXTENT_BYTES)},
                                  false);
    pages_free(named->grown, named->reserved);
    *named = (struct named_shm){.fd = -1};
}

bool shm_is_named(const struct world *world, const void *memory, size_t length)
{
    const char *start = memory;
    for (unsigned i = 0; i < WORLD_SHM_NAMES; i++) {
        const struct named_shm *named = &world->named_shm[i];
        if (named->base != NULL && start >= named->base && start + length <= named->base + named->reserved)
            return true;
    }
    return false;
}

/* The memory of the machine is gone: nobody has any of it any more. */
void shm_power_loss(struct world *world)
{
    for (unsigned i = 0; i < WORLD_SHM_NAMES; i++)
        if (world->named_shm[i].base)
            named_free(world, &world->named_shm[i]);
}

void shm_remove_(struct io *io, const struct io_shm_name *name)
{
    struct world *world = reactor_of(io)->world;
    struct named_shm *named = named_find(world, name);
    if (!named)
        return;
    if (named->fd >= 0)
        named->name[0] = '\0'; /* it goes with who has it */
    else
        named_free(world, named);
}

static int shm_open_(struct io *io, struct io_shm *shm, struct named_shm *named, uint64_t reserve_bytes,
                     struct error *err)
{
    struct world *world = reactor_of(io)->world;
    int fd = description_new(world, reactor_of(io)->process);
    if (fd < 0)
        return error_set(err, -fd, "shared memory: no descriptor is free");
    struct description *description = description_at(world, fd);
    description->is_shm = true;
    description->shm_named = named;
    description->shm_base = named ? named->base : shm_reserve(reserve_bytes);
    description->shm_reserved = reserve_bytes;
    description->shm_grown = named ? named->grown : pages_new(reserve_bytes);
    if (named)
        named->fd = fd;
    *shm = (struct io_shm){.base = description->shm_base, .reserved_bytes = reserve_bytes, .fd = fd};
    return 0;
}

int shm_create_(struct io *io, struct io_shm *shm, const struct io_shm_name *name, uint64_t reserve_bytes,
                struct error *err)
{
    struct world *world = reactor_of(io)->world;
    world_moment(io);
    if (name)
        shm_remove_(io, name);
    return shm_open_(io, shm, name ? named_new(world, name, reserve_bytes) : NULL, reserve_bytes, err);
}

int shm_adopt_(struct io *io, struct io_shm *shm, const struct io_shm_name *name, struct error *err)
{
    world_moment(io);
    struct named_shm *named = named_find(reactor_of(io)->world, name);
    if (!named)
        return error_set(err, ENOENT, "there is no shared memory '%s'", name->file);
    if (named->fd >= 0)
        return error_set(err, EAGAIN, "shared memory '%s' is in use by another process", name->file);
    return shm_open_(io, shm, named, named->reserved, err);
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
    world_moment(io);
    const uint64_t most = world->options.shm_max_bytes;
    if (most != 0 && world->shm_bytes + range.length > most) { /* perhaps: a part of it may be there already */
        uint64_t missing = pages_missing(description->shm_grown, range);
        if (missing > 0 && world->shm_bytes + missing > most)
            return -ENOSPC; /* and all is as it was */
    }
    const uint64_t bytes = pages_set(description->shm_grown, range, true);
    if (mprotect(shm->base + range.start, range.length, PROT_READ | PROT_WRITE) != 0)
        abort();
    world->shm_bytes += bytes;
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
    world->shm_bytes -= pages_set(description->shm_grown, range, false);
}

/* Who had it lets it go: a kill, or shm_destroy(). What has a name stays, and so does what is read into it later. */
void shm_drop(struct world *world, struct description *description)
{
    struct named_shm *named = description->shm_named;
    if (named) {
        named->fd = -1;
        if (!named->name[0])
            named_free(world, named);
        return;
    }
    munmap(description->shm_base, description->shm_reserved);
    world->shm_bytes -= pages_set(description->shm_grown,
                                  (struct range){0, round_up(description->shm_reserved, WORLD_EXTENT_BYTES)}, false);
    pages_free(description->shm_grown, description->shm_reserved);
    description->shm_grown = NULL;
}

void shm_destroy_(struct io *io, struct io_shm *shm)
{
    struct world *world = reactor_of(io)->world;
    struct description *description = shm_of(world, shm, (struct range){0, 0}, "shm_destroy");
    shm_drop(world, description);
    description_drop(world, shm->fd);
    *shm = (struct io_shm){.fd = -1};
}
