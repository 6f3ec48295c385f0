/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The memory is the front-end's to keep: it outlives this process, and a kill between any two stores leaves in it what
 * inflight.c recovers. Here nothing of its content is read or believed, only its place and its length.
 */
#include "export/vhost_user/inflight_region.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "export/vhost_user/virtqueue.h"

static uint64_t bytes_of_queue(uint32_t size)
{
    struct virtqueue_features split = {.packed = false}, packed = {.packed = true};
    uint64_t a = virtqueue_inflight_bytes(&split, size), b = virtqueue_inflight_bytes(&packed, size);
    return a > b ? a : b;
}

static int check(const struct vhost_inflight *wanted, struct error *err)
{
    if (wanted->queues == 0 || wanted->queues > LIMIT_VHOST_QUEUES)
        return error_set(err, EPROTO, "an in-flight region for %u queues; there are 1 to %u", wanted->queues,
                         LIMIT_VHOST_QUEUES);
    if (wanted->queue_size == 0 || wanted->queue_size > LIMIT_VIRTQUEUE_SIZE)
        return error_set(err, EPROTO, "an in-flight region for queues of %u; they have 1 to %u descriptors",
                         wanted->queue_size, LIMIT_VIRTQUEUE_SIZE);
    return 0;
}

static void take(struct inflight_region *region, struct shared_map *map, const struct vhost_inflight *what)
{
    inflight_region_drop(region);
    *region = (struct inflight_region){map, what->queues, what->queue_size, bytes_of_queue(what->queue_size)};
}

/* Sealed, so that nobody can cut it short. */
static int make_file(uint64_t bytes, struct error *err)
{
    int fd = memfd_create("fleece-inflight", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd >= 0 && ftruncate(fd, (off_t)bytes) == 0 && fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_SEAL) == 0)
        return fd;
    int error = errno;
    if (fd >= 0)
        close(fd);
    return error_set(err, error, "no memory for an in-flight region of %llu bytes: %s", (unsigned long long)bytes,
                     error_name(error));
}

int inflight_region_make(struct inflight_region *region, const struct vhost_inflight *wanted,
                         struct vhost_inflight *answer, int *fd, struct error *err)
{
    int result = check(wanted, err);
    if (result < 0)
        return result;
    uint64_t bytes = wanted->queues * bytes_of_queue(wanted->queue_size);
    int file = make_file(bytes, err);
    if (file < 0)
        return file;
    struct shared_map *map = shared_map_create(file, 0, bytes, err);
    if (!map) {
        close(file);
        return -err->code;
    }
    take(region, map, wanted);
    *answer = (struct vhost_inflight){.size = bytes, .queues = wanted->queues, .queue_size = wanted->queue_size};
    *fd = file;
    return 0;
}

int inflight_region_adopt(struct inflight_region *region, const struct vhost_inflight *given, int fd, struct error *err)
{
    int result = check(given, err);
    if (result < 0)
        return result;
    uint64_t bytes = given->queues * bytes_of_queue(given->queue_size);
    if (given->size < bytes)
        return error_set(err, EPROTO, "an in-flight region of %llu bytes for %u queues of %u; they need %llu",
                         (unsigned long long)given->size, given->queues, given->queue_size, (unsigned long long)bytes);
    struct shared_map *map = shared_map_create(fd, given->offset, bytes, err);
    if (!map)
        return error_prefix(err, "the in-flight region");
    take(region, map, given);
    return 0;
}

void inflight_region_drop(struct inflight_region *region)
{
    shared_map_unref(region->map);
    *region = (struct inflight_region){0};
}

void *inflight_region_of(const struct inflight_region *region, unsigned index, uint32_t size, size_t bytes,
                         struct error *err)
{
    if (!region->map)
        return NULL;
    if (index >= region->queues || size > region->queue_size || bytes > region->queue_bytes) {
        error_set(err, EPROTO, "size %u does not fit the in-flight region of %u queues of %u", size, region->queues,
                  region->queue_size);
        return NULL;
    }
    return region->map->base + index * region->queue_bytes;
}

void inflight_region_clear(struct inflight_region *region, unsigned index)
{
    if (region->map && index < region->queues)
        virtqueue_forget_inflight(region->map->base + index * region->queue_bytes);
}

bool inflight_region_is_torn(const struct inflight_region *region)
{
    return region->map && shared_map_is_torn(region->map);
}
