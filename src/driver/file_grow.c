/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A file that grows while it is used. An image file is made longer here; a block device has been made larger by whoever
 * manages it, and is only looked at. Then, when no write is in flight, the node gets its new size.
 *
 * What is added to an image file is a hole: it reads as zeroes and takes no space. The new size is stable with the next
 * sync. A crash before leaves the old size or the new one.
 *
 * New sizes are multiples of the alignment, so that nothing is added that direct I/O can't reach. A disk whose old size was
 * not has a tail that goes through the page cache. Reads of it may be under way, in several steps; so the tail stays where
 * it begins, and all that is added is part of it, until the file is opened again.
 */
#include <errno.h>

#include "driver/file_internal.h"

static int check_size(const struct file_node *file, uint64_t size_bytes, struct error *err)
{
    const uint64_t unit = file->alignment_bytes > IMAGE_SECTOR_BYTES ? file->alignment_bytes : IMAGE_SECTOR_BYTES;
    if (size_bytes > LIMIT_DISK_BYTES)
        return error_set(err, EFBIG, "can't have %llu bytes, the limit is %llu", (unsigned long long)size_bytes,
                         (unsigned long long)LIMIT_DISK_BYTES);
    if (size_bytes % unit != 0)
        return error_set(err, EINVAL, "can't get %llu bytes: the size must be a multiple of %llu",
                         (unsigned long long)size_bytes, (unsigned long long)unit);
    return 0;
}

int file_extend(const struct node *node, uint64_t *size_bytes, struct error *err)
{
    const struct file_node *file = container_of(node, struct file_node, node);
    const uint64_t wanted = *size_bytes;
    struct io_stat stat;
    int status = wanted ? check_size(file, wanted, err) : 0;
    if (status < 0)
        return status;
    status = io_stat(node->io, file->fd, &stat);
    if (status == 0 && wanted > stat.size_bytes && stat.is_regular) {
        status = io_truncate(node->io, file->fd, wanted);
        if (status == 0)
            stat.size_bytes = wanted;
    }
    if (status < 0)
        return error_set(err, -status, "can't be made larger: %s", error_name(status));
    if (wanted && stat.size_bytes != wanted)
        return error_set(err, EINVAL, "is %s of %llu bytes, not %llu: %s",
                         stat.is_block_device ? "a block device" : "a file", (unsigned long long)stat.size_bytes,
                         (unsigned long long)wanted,
                         stat.is_block_device ? "make the device larger first" : "somebody has made it longer");
    *size_bytes = stat.size_bytes;
    return wanted ? 0 : check_size(file, stat.size_bytes, err);
}

void file_grow(struct node *node, uint64_t size_bytes)
{
    struct file_node *file = (struct file_node *)(void *)node; /* node is its first member */
    if (file->tail_start == node->size_bytes)
        file->tail_start = size_bytes;
    if (file->cached_start == node->size_bytes)
        file->cached_start = size_bytes;
    node_set_size(node, size_bytes);
}
