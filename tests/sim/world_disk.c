/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Files on a disk with a volatile write cache.
 *
 * Data moves when an operation lands, not when it starts: until then a read's buffer holds poison, and a write's buffer
 * may not change. A write that fails may have landed in part. What is written is visible at once to everybody; with
 * options.power it is also kept in a list until a datasync that began after it has made it stable, and power loss
 * decides about each entry of that list.
 *
 * Direct I/O is checked: offset, length and memory must be aligned or the result is -EINVAL. As with a kernel, a read
 * that reaches the end of the file is short, and a write beyond it makes the file longer.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/zero.h"
#include "world_internal.h"

#define POISON 0xdb

/* Files. */

/* Large files are mostly holes: what nobody touches costs neither memory nor time. Nobody may touch the page behind. */
static uint8_t *grow_holes(uint8_t *bytes, uint64_t had, uint64_t room)
{
    uint8_t *grown = mmap(NULL, room + WORLD_EXTENT_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
                          0);
    if (grown == MAP_FAILED || mprotect(grown, room, PROT_READ | PROT_WRITE) < 0)
        abort();
    if (had > 0 && mremap(bytes, had, had, MREMAP_MAYMOVE | MREMAP_FIXED, grown) != grown)
        abort();
    if (had > 0)
        munmap(bytes + had, WORLD_EXTENT_BYTES);
    return grown;
}

static void free_holes(uint8_t *bytes, uint64_t room)
{
    if (bytes != NULL)
        munmap(bytes, room + WORLD_EXTENT_BYTES);
}

static uint8_t *grow_zeroed(uint8_t *bytes, uint64_t had, uint64_t room)
{
    uint8_t *grown = realloc(bytes, room);
    if (grown == NULL)
        abort();
    memset(grown + had, 0, room - had);
    return grown;
}

static void file_reserve(struct world *world, struct world_file *file, uint64_t size)
{
    if (size <= file->room)
        return;
    uint64_t room = file->room == 0 ? round_up(size, 64 * KIB) : round_up(size + size / 4, 64 * KIB);
    file->bytes = grow_holes(file->bytes, file->room, room);
    file->allocated = grow_zeroed(file->allocated, file->room / WORLD_EXTENT_BYTES, room / WORLD_EXTENT_BYTES);
    if (world->options.power) {
        file->stable = grow_holes(file->stable, file->room, room);
        file->changed = grow_zeroed(file->changed, file->room / WORLD_EXTENT_BYTES, room / WORLD_EXTENT_BYTES);
    }
    file->room = room;
}

struct world_file *world_file_create(struct world *world, const char *path, uint64_t size_bytes, uint32_t alignment,
                                     bool block_device)
{
    for (unsigned i = 0; i < WORLD_FILES; i++) {
        if (world->files[i] != NULL)
            continue;
        struct world_file *file = calloc(1, sizeof(*file));
        if (file == NULL || (file->path = strdup(path)) == NULL)
            abort();
        file->inode = ++world->inodes;
        file->alignment = alignment;
        file->block_device = block_device;
        file->unstable_end = &file->unstable;
        file_reserve(world, file, size_bytes > 0 ? size_bytes : 1);
        file->size = file->stable_size = size_bytes;
        return world->files[i] = file;
    }
    abort();
}

struct world_file *world_file_find(struct world *world, const char *path)
{
    for (unsigned i = 0; i < WORLD_FILES; i++)
        if (world->files[i] != NULL && strcmp(world->files[i]->path, path) == 0)
            return world->files[i];
    return NULL;
}

void file_free(struct world_file *file)
{
    for (struct unstable *entry; (entry = file->unstable) != NULL;) {
        file->unstable = entry->next;
        free(entry);
    }
    free(file->path);
    free_holes(file->bytes, file->room);
    free(file->allocated);
    free_holes(file->stable, file->room);
    free(file->changed);
    free(file);
}

void world_file_remove(struct world *world, const char *path)
{
    for (unsigned i = 0; i < WORLD_FILES; i++)
        if (world->files[i] != NULL && strcmp(world->files[i]->path, path) == 0) {
            assert(world->files[i]->descriptions == 0);
            file_free(world->files[i]);
            world->files[i] = NULL;
        }
}

uint8_t *world_file_bytes(struct world_file *file)
{
    return file->bytes;
}

uint64_t world_file_size(const struct world_file *file)
{
    return file->size;
}

uint64_t world_file_allocated(const struct world_file *file)
{
    uint64_t count = 0;
    for (uint64_t i = 0; i < (file->size + WORLD_EXTENT_BYTES - 1) / WORLD_EXTENT_BYTES; i++)
        count += file->allocated[i];
    return count * WORLD_EXTENT_BYTES;
}

int disk_open(struct io *io, const char *path, int flags, mode_t mode)
{
    (void)mode;
    world_moment(io);
    struct world *world = reactor_of(io)->world;
    struct world_file *file = world_file_find(world, path);
    if (file == NULL && (flags & O_CREAT) == 0)
        return -ENOENT;
    if (file != NULL && (flags & O_CREAT) != 0 && (flags & O_EXCL) != 0)
        return -EEXIST;
    if (file != NULL && file->block_device && (flags & O_EXCL) != 0)
        for (int fd = WORLD_DESCRIPTOR_FIRST; fd < WORLD_DESCRIPTOR_END; fd++)
            if (description_at(world, fd)->open && description_at(world, fd)->file == file &&
                (description_at(world, fd)->flags & O_EXCL) != 0)
                return -EBUSY;
    int fd = description_new(world, reactor_of(io)->process);
    if (fd < 0)
        return fd;
    if (file == NULL)
        file = world_file_create(world, path, 0, WORLD_SECTOR, false);
    file->descriptions++;
    description_at(world, fd)->file = file;
    description_at(world, fd)->flags = flags;
    return fd;
}

int disk_stat(struct io *io, int fd, struct io_stat *stat)
{
    struct description *description = description_of(reactor_of(io)->world, fd);
    struct world_file *file = description->file;
    *stat = (struct io_stat){.size_bytes = file->size,
                             .alignment_bytes = (description->flags & O_DIRECT) != 0 ? file->alignment : 1,
                             .is_block_device = file->block_device,
                             .is_regular = !file->block_device,
                             .device = 1,
                             .inode = file->inode,
                             .mtime_ns = file->changed_ns,
                             .ctime_ns = file->changed_ns};
    return 0;
}

int disk_truncate(struct io *io, int fd, uint64_t size_bytes)
{
    struct world *world = reactor_of(io)->world;
    struct world_file *file = description_of(world, fd)->file;
    world_moment(io);
    if (file->block_device)
        return -EINVAL;
    file_reserve(world, file, size_bytes);
    if (size_bytes < file->size) {
        memset(file->bytes + size_bytes, 0, file->size - size_bytes);
        if (file->stable != NULL)
            memset(file->stable + size_bytes, 0, file->size - size_bytes);
        for (uint64_t i = round_up(size_bytes, WORLD_EXTENT_BYTES); i < file->size; i += WORLD_EXTENT_BYTES)
            file->allocated[i / WORLD_EXTENT_BYTES] = 0;
    }
    file->changed_ns = world_wall(world);
    file->size = file->stable_size = size_bytes; /* sizes are stable at once: nothing here depends on less */
    return 0;
}

/* Locks. */

static bool lock_conflicts(struct world *world, int fd, uint64_t start, uint64_t length, bool exclusive)
{
    struct world_file *file = description_at(world, fd)->file;
    for (int other = WORLD_DESCRIPTOR_FIRST; other < WORLD_DESCRIPTOR_END; other++) {
        struct description *description = description_at(world, other);
        if (other == fd || !description->open || description->file != file)
            continue;
        for (unsigned i = 0; i < description->lock_count; i++) {
            struct lock *lock = &description->locks[i];
            if ((exclusive || lock->exclusive) &&
                range_overlaps((struct range){start, length}, (struct range){lock->start, lock->length}))
                return true;
        }
    }
    return false;
}

int disk_lock_test(struct io *io, int fd, uint64_t start, uint64_t length, bool exclusive)
{
    struct world *world = reactor_of(io)->world;
    description_of(world, fd);
    return lock_conflicts(world, fd, start, length, exclusive) ? -EAGAIN : 0;
}

int disk_lock(struct io *io, int fd, uint64_t start, uint64_t length, bool exclusive)
{
    struct description *description = description_of(reactor_of(io)->world, fd);
    int access = description->flags & O_ACCMODE;
    if ((exclusive && access == O_RDONLY) || (!exclusive && access == O_WRONLY))
        return -EBADF;
    int status = disk_lock_test(io, fd, start, length, exclusive);
    if (status != 0)
        return status;
    description->locks = realloc(description->locks, (description->lock_count + 1) * sizeof(struct lock));
    if (description->locks == NULL)
        abort();
    description->locks[description->lock_count++] = (struct lock){start, length, exclusive};
    return 0;
}

/* Fragments of memory. */

static uint64_t iov_total(const struct iovec *iov, unsigned count)
{
    uint64_t total = 0;
    for (unsigned i = 0; i < count; i++)
        total += iov[i].iov_len;
    return total;
}

static void iov_fill_from(const struct iovec *iov, const uint8_t *from, uint64_t length)
{
    for (; length > 0; iov++) {
        uint64_t part = iov->iov_len < length ? iov->iov_len : length;
        memcpy(iov->iov_base, from, part);
        from += part;
        length -= part;
    }
}

static void iov_drain_to(const struct iovec *iov, uint8_t *to, uint64_t length)
{
    for (; length > 0; iov++) {
        uint64_t part = iov->iov_len < length ? iov->iov_len : length;
        memcpy(to, iov->iov_base, part);
        to += part;
        length -= part;
    }
}

/* Starting. */

static void disk_start(struct event *event)
{
    struct world *world = event->reactor->world;
    struct description *description = description_of(world, event->fd);
    if (description->file == NULL)
        world_violation(world, "a disk operation on descriptor %d, which is no file", event->fd);
    world->starting = event;
    world_moment(&event->reactor->io);
    world->starting = NULL;
    description->under_way++;
    event->number = ++world->disk_operations;
    struct world_io io = {event->kind, event->number, description->file, event->range, &event->reactor->io, event->op};
    if (event->forced == 0 && world->options.fault != NULL)
        event->forced = world->options.fault(world->options.context, &io);
    if (world->options.gate != NULL && world->options.gate(world->options.context, &io)) {
        event->held = true;
        event->next = world->held;
        world->held = event;
        world->held_count++;
        return;
    }
    event_schedule(world, event, world->now + world_latency(world, world->options.disk_ns));
}

static void check_direct(struct world *world, struct event *event)
{
    const struct description *description = description_of(world, event->fd);
    if (description->file == NULL || (description->flags & O_DIRECT) == 0)
        return;
    uint64_t bits = event->range.start | event->range.length;
    for (unsigned i = 0; i < event->iov_count; i++)
        bits |= (uintptr_t)event->iov[i].iov_base | event->iov[i].iov_len;
    if ((bits & (description->file->alignment - 1)) != 0)
        event->forced = -EINVAL;
}

void disk_readv(struct io *io, struct io_op *op, int fd, const struct iovec *iov, unsigned iov_count, uint64_t offset)
{
    world_check_owner(io, "readv");
    struct event *event = event_new(reactor_of(io), WORLD_READ, op);
    event->fd = fd;
    event->iov = iov;
    event->iov_count = iov_count;
    event->range = (struct range){offset, iov_total(iov, iov_count)};
    check_direct(event->reactor->world, event);
    for (unsigned i = 0; i < iov_count; i++)
        memset(iov[i].iov_base, POISON, iov[i].iov_len);
    disk_start(event);
}

void disk_writev(struct io *io, struct io_op *op, int fd, const struct iovec *iov, unsigned iov_count, uint64_t offset,
                 unsigned flags)
{
    world_check_owner(io, "writev");
    struct event *event = event_new(reactor_of(io), WORLD_WRITE, op);
    event->fd = fd;
    event->iov = iov;
    event->iov_count = iov_count;
    event->range = (struct range){offset, iov_total(iov, iov_count)};
    event->flags = flags;
    check_direct(event->reactor->world, event);
    if ((description_of(event->reactor->world, fd)->flags & O_ACCMODE) == O_RDONLY)
        event->forced = -EBADF;
    disk_start(event);
}

void disk_datasync(struct io *io, struct io_op *op, int fd)
{
    world_check_owner(io, "datasync");
    struct event *event = event_new(reactor_of(io), WORLD_SYNC, op);
    event->fd = fd;
    event->sync_before = event->reactor->world->unstable_number;
    disk_start(event);
}

void disk_allocate(struct io *io, struct io_op *op, int fd, enum io_allocate_mode mode, struct range range)
{
    world_check_owner(io, "allocate");
    struct event *event = event_new(reactor_of(io), WORLD_ALLOCATE, op);
    struct description *description = description_of(event->reactor->world, fd);
    event->fd = fd;
    event->flags = mode;
    event->range = range;
    if ((description->flags & O_ACCMODE) == O_RDONLY)
        event->forced = -EBADF;
    else if (description->file->block_device && !range_aligned(range, WORLD_SECTOR))
        event->forced = -EINVAL;
    else if (mode == IO_DISCARD && !description->file->block_device)
        event->forced = -EOPNOTSUPP;
    disk_start(event);
}

void disk_extent(struct io *io, struct io_op *op, int fd, uint64_t offset, struct io_extent *extent)
{
    world_check_owner(io, "extent");
    struct event *event = event_new(reactor_of(io), WORLD_EXTENT, op);
    event->fd = fd;
    event->range.start = offset;
    event->extent = extent;
    disk_start(event);
}

/* Landing. */

static void mark_allocated(struct world_file *file, struct range range)
{
    if (range.length == 0)
        return;
    uint64_t first = range.start / WORLD_EXTENT_BYTES, last = (range_end(range) - 1) / WORLD_EXTENT_BYTES;
    memset(file->allocated + first, 1, last - first + 1);
}

static void mark_changed(struct world_file *file, struct range range)
{
    if (range.length == 0 || file->changed == NULL)
        return;
    uint64_t first = range.start / WORLD_EXTENT_BYTES, last = (range_end(range) - 1) / WORLD_EXTENT_BYTES;
    memset(file->changed + first, 1, last - first + 1);
}

void world_file_fill(struct world_file *file, uint64_t offset, const void *bytes, uint64_t length)
{
    assert(offset + length <= file->size && file->unstable == NULL);
    memcpy(file->bytes + offset, bytes, length);
    if (file->stable != NULL)
        memcpy(file->stable + offset, bytes, length);
    mark_changed(file, (struct range){offset, length}); /* power loss looks whether these pages are allocated */
    mark_allocated(file, (struct range){offset, length});
}

/* Notes what has just changed, for power loss; `stable` when it need not fear that. */
static void note_unstable(struct world *world, struct world_file *file, struct range range, bool stable)
{
    if (!world->options.power || range.length == 0)
        return;
    mark_changed(file, range);
    struct unstable *entry = malloc(sizeof(*entry) + range.length);
    if (entry == NULL)
        abort();
    *entry = (struct unstable){.number = world->unstable_number++, .stable = stable, .range = range};
    memcpy(entry->data, file->bytes + range.start, range.length);
    *file->unstable_end = entry;
    file->unstable_end = &entry->next;
}

static void apply_stable(struct world_file *file, const struct unstable *entry, struct range part)
{
    memcpy(file->stable + part.start, entry->data + (part.start - entry->range.start), part.length);
}

/* The head of the list, as far as it is stable, has left the cache. */
static void settle_stable(struct world_file *file)
{
    for (struct unstable *entry; (entry = file->unstable) != NULL && entry->stable;) {
        apply_stable(file, entry, entry->range);
        file->unstable = entry->next;
        free(entry);
    }
    if (file->unstable == NULL)
        file->unstable_end = &file->unstable;
}

/* Named shared memory outlives a killed process, and so do transfers from and to it. What has been punched or removed
 * since is nowhere: system calls on it fail, where our own accesses would be faults. */
static void land_in_shared(struct world *world, struct event *event, const uint8_t *from, uint64_t length)
{
    int fd = memfd_create("landing", 0);
    for (const struct iovec *iov = event->shared; length > 0; iov++) {
        uint64_t part = iov->iov_len < length ? iov->iov_len : length;
        if (fd < 0 || pwrite(fd, from, part, 0) != (ssize_t)part)
            abort();
        if (shm_is_named(world, iov->iov_base, iov->iov_len) && pread(fd, iov->iov_base, part, 0) < 0 &&
            errno != EFAULT)
            abort();
        from += part;
        length -= part;
    }
    close(fd);
}

static void take_from_shared(struct world *world, struct event *event, uint8_t *to, uint64_t length)
{
    int fd = memfd_create("landing", 0);
    for (const struct iovec *iov = event->shared; length > 0; iov++) {
        uint64_t part = iov->iov_len < length ? iov->iov_len : length;
        bool there = shm_is_named(world, iov->iov_base, iov->iov_len);
        ssize_t taken = there ? pwrite(fd, iov->iov_base, part, 0) : 0;
        if (taken > 0 && pread(fd, to, (size_t)taken, 0) != taken)
            abort();
        to += part;
        length -= part;
    }
    close(fd);
}

static int64_t land_read(struct world *world, struct event *event, struct world_file *file)
{
    if (event->forced != 0)
        return event->forced;
    if (event->range.start >= file->size)
        return 0;
    uint64_t length = event->range.length, rest = file->size - event->range.start;
    if (length > rest)
        length = rest;
    uint64_t unit = (description_at(world, event->fd)->flags & O_DIRECT) != 0 ? file->alignment : 1;
    if (length > unit && world_chance(world, world->options.short_per_1024))
        length = round_up(1 + world_below(world, length - unit), unit);
    if (!event->orphan)
        iov_fill_from(event->iov, file->bytes + event->range.start, length);
    else if (event->shared != NULL)
        land_in_shared(world, event, file->bytes + event->range.start, length);
    return (int64_t)length;
}

/* A short write ends where a sector of the file does, in the page cache too: kernels copy page by page there. So no 8-byte
 * entry of a table is ever torn, as a power loss tears none. */
static uint64_t short_length(struct world *world, struct range range, uint64_t unit)
{
    uint64_t length = round_up(1 + world_below(world, range.length - unit), unit);
    uint64_t end = round_up(range.start + length, WORLD_SECTOR);
    return end < range_end(range) ? end - range.start : range.length;
}

static int64_t land_write(struct world *world, struct event *event, struct world_file *file)
{
    uint64_t length = event->range.length;
    uint64_t unit = (description_at(world, event->fd)->flags & O_DIRECT) != 0 ? file->alignment : 1;
    if (event->forced == -EINVAL || event->forced == -EBADF)
        return event->forced;
    if (file->block_device && range_end(event->range) > file->size) {
        if (event->range.start >= file->size)
            return -ENOSPC;
        length = file->size - event->range.start;
    }
    if (event->forced != 0) /* what a failed write leaves is anybody's guess */
        length = round_down(world_below(world, length + 1), WORLD_SECTOR);
    else if (length > unit && world_chance(world, world->options.short_per_1024))
        length = short_length(world, (struct range){event->range.start, length}, unit);
    struct range range = {event->range.start, length};
    file_reserve(world, file, range_end(range));
    if (event->shared != NULL)
        take_from_shared(world, event, event->copy, length);
    if (event->copy != NULL)
        memcpy(file->bytes + range.start, event->copy, length);
    else
        iov_drain_to(event->iov, file->bytes + range.start, length);
    if (length > 0 && range_end(range) > file->size)
        file->size = file->stable_size = range_end(range);
    mark_allocated(file, range);
    file->changed_ns = world_wall(world);
    note_unstable(world, file, range, (event->flags & IO_WRITE_DSYNC) != 0 && event->forced == 0);
    return event->forced != 0 ? event->forced : (int64_t)length;
}

static int64_t land_sync(struct event *event, struct world_file *file)
{
    if (event->forced != 0)
        return event->forced;
    for (struct unstable *entry = file->unstable; entry != NULL; entry = entry->next)
        if (entry->number < event->sync_before)
            entry->stable = true;
    settle_stable(file);
    return 0;
}

static int64_t land_allocate(struct world *world, struct event *event, struct world_file *file)
{
    struct range range = event->range;
    if (event->forced != 0)
        return event->forced;
    if (range.start >= file->size)
        return 0;
    if (range_end(range) > file->size)
        range.length = file->size - range.start;
    if (event->flags == IO_DISCARD && world_chance(world, 512)) { /* undefined content: each sector as it likes */
        for (uint64_t at = range.start; at < range_end(range); at += WORLD_SECTOR)
            if (world_chance(world, 512))
                memset(file->bytes + at, (int)world_below(world, 256), WORLD_SECTOR);
    } else {
        memset(file->bytes + range.start, 0, range.length);
    }
    if (event->flags == IO_ZERO_RANGE) {
        mark_allocated(file, range);
    } else {
        uint64_t first = round_up(range.start, WORLD_EXTENT_BYTES) / WORLD_EXTENT_BYTES;
        uint64_t end = range_end(range) == file->size ? (file->size + WORLD_EXTENT_BYTES - 1) / WORLD_EXTENT_BYTES
                                                      : range_end(range) / WORLD_EXTENT_BYTES;
        if (end > first)
            memset(file->allocated + first, 0, end - first);
    }
    note_unstable(world, file, range, false);
    return 0;
}

static int64_t land_extent(struct event *event, struct world_file *file)
{
    if (event->forced != 0)
        return event->forced;
    if (event->range.start >= file->size)
        return -ENXIO;
    uint64_t end = (file->size + WORLD_EXTENT_BYTES - 1) / WORLD_EXTENT_BYTES;
    uint64_t at = event->range.start / WORLD_EXTENT_BYTES;
    uint8_t kind = file->allocated[at];
    while (at < end && file->allocated[at] == kind)
        at++;
    if (file->block_device) { /* tells nothing of holes */
        at = end;
        kind = 1;
    }
    uint64_t end_bytes = at * WORLD_EXTENT_BYTES;
    if (!event->orphan)
        *event->extent = (struct io_extent){.end = end_bytes < file->size ? end_bytes : file->size, .hole = kind == 0};
    return 0;
}

void disk_land(struct world *world, struct event *event)
{
    struct world_file *file = description_at(world, event->fd)->file;
    int64_t result = 0;
    event->landed = true;
    if (event->kind == WORLD_READ)
        result = land_read(world, event, file);
    else if (event->kind == WORLD_WRITE)
        result = land_write(world, event, file);
    else if (event->kind == WORLD_SYNC)
        result = land_sync(event, file);
    else if (event->kind == WORLD_ALLOCATE)
        result = land_allocate(world, event, file);
    else
        result = land_extent(event, file);
    event->result = result;
    if (world->options.landed != NULL) {
        struct world_io io = {event->kind, event->number, file, event->range, &event->reactor->io, event->op};
        world->options.landed(world->options.context, &io, result);
    }
}

/* Death. */

static bool is_shared(const struct world *world, const struct iovec *iov)
{
    return world->options.outlives != NULL &&
           world->options.outlives(world->options.context, iov->iov_base, iov->iov_len);
}

void disk_orphan(struct world *world, struct event *event)
{
    event->orphan = true;
    bool shared = event->iov_count > 0;
    for (unsigned i = 0; i < event->iov_count; i++)
        shared = shared && (shm_is_named(world, event->iov[i].iov_base, event->iov[i].iov_len) ||
                            is_shared(world, &event->iov[i]));
    if (shared) {
        if ((event->shared = calloc(event->iov_count, sizeof(struct iovec))) == NULL)
            abort();
        memcpy(event->shared, event->iov, event->iov_count * sizeof(struct iovec));
    }
    if (event->kind == WORLD_WRITE) {
        if ((event->copy = malloc(event->range.length + 1)) == NULL)
            abort();
        iov_drain_to(event->iov, event->copy, event->range.length);
    }
    event->iov = NULL;
    event->op = NULL;
}

/* A write that is not stable lands, vanishes, or each of its sectors does one or the other. */
static void lose_power(struct world *world, struct world_file *file, struct unstable *entry)
{
    unsigned fate = entry->stable ? 0 : (unsigned)world_below(world, 3);
    if (fate == 0)
        apply_stable(file, entry, entry->range);
    if (fate != 2)
        return;
    for (uint64_t at = entry->range.start; at < range_end(entry->range);) {
        uint64_t next = round_down(at, WORLD_SECTOR) + WORLD_SECTOR;
        if (next > range_end(entry->range))
            next = range_end(entry->range);
        if (world_chance(world, 512))
            apply_stable(file, entry, (struct range){at, next - at});
        at = next;
    }
}

void disk_power_loss(struct world *world, struct event **events, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (events[i]->kind == WORLD_WRITE || events[i]->kind == WORLD_ALLOCATE) {
            events[i]->flags &= ~(events[i]->kind == WORLD_WRITE ? (unsigned)IO_WRITE_DSYNC : 0);
            disk_land(world, events[i]); /* its entry is unstable: it may still vanish */
        }
        description_release(world, events[i]->fd);
        event_free(world, events[i]);
    }
    for (unsigned i = 0; i < WORLD_FILES; i++) {
        struct world_file *file = world->files[i];
        if (file == NULL)
            continue;
        for (struct unstable *entry; (entry = file->unstable) != NULL;) {
            lose_power(world, file, entry);
            file->unstable = entry->next;
            free(entry);
        }
        file->unstable_end = &file->unstable;
        for (uint64_t at = 0; at < file->room; at += WORLD_EXTENT_BYTES) {
            if (!file->changed[at / WORLD_EXTENT_BYTES])
                continue;
            file->changed[at / WORLD_EXTENT_BYTES] = 0;
            memcpy(file->bytes + at, file->stable + at, WORLD_EXTENT_BYTES);
            uint64_t length = file->size > at ? file->size - at : 0;
            if (length > WORLD_EXTENT_BYTES)
                length = WORLD_EXTENT_BYTES;
            if (!memory_is_zero((char *)file->bytes + at, length)) /* zeroes may be holes or not */
                file->allocated[at / WORLD_EXTENT_BYTES] = 1;
        }
    }
}
