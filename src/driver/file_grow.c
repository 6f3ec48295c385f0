/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A file that grows while it is used. An image file is made longer here; a block device has been made larger by whoever
 * manages it, and is only looked at. Then, when no write is in flight, the node gets its new size.
 *
 * What is added to an image file is a hole: it reads as zeroes and takes no space. The new size is stable with the next
 * sync. A crash before leaves the old size or the new one. A growth that ends before the node has the new size takes back
 * what it has added, which nobody has used; what others have added stays.
 *
 * New sizes are multiples of the alignment, so that nothing is added that direct I/O can't reach. A disk whose old size was
 * not has a tail that goes through the page cache. Reads of it may be under way, in several steps; so the tail stays where
 * it begins, and all that is added is part of it, until the file is opened again.
 */
#include <assert.h>
#include <errno.h>

#include "driver/file_internal.h"

static int check_size(const struct file_node *file, uint64_t size_bytes, struct error *err)
{
    const uint64_t unit = file->alignment_bytes > IMAGE_SECTOR_BYTES ? file->alignment_bytes : IMAGE_SECTOR_BYTES;
    return node_check_size(size_bytes, unit, err);
}

/* What we have added, unless somebody else has changed the file since: its old size is the node's. */
static int take_back(struct file_node *file, const struct io_stat *stat)
{
    if (file->extended_bytes == 0 || stat->size_bytes != file->extended_bytes)
        return 0;
    return io_truncate(file->node.io, file->fd, file->node.size_bytes);
}

static int set_size(struct file_node *file, uint64_t wanted, uint64_t *size_bytes, struct error *err)
{
    struct io *io = file->node.io;
    struct io_stat stat;
    int status = io_stat(io, file->fd, &stat);
    if (status == 0 && wanted == file->node.size_bytes) {
        status = take_back(file, &stat);
        file->extended_bytes = 0;
        return status < 0 ? error_set(err, -status, "can't get its old size again: %s", error_name(status)) : 0;
    }
    if (status == 0 && wanted > stat.size_bytes && stat.is_regular) {
        status = io_truncate(io, file->fd, wanted);
        if (status == 0)
            stat.size_bytes = file->extended_bytes = wanted;
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

static int64_t extend_work(void *argument) /* on a helper thread */
{
    struct node_extension *extension = argument;
    struct file_node *file = container_of(extension->node, struct file_node, node);
    const uint64_t wanted = extension->size_bytes;
    int status = wanted && wanted != file->node.size_bytes ? check_size(file, wanted, &extension->error) : 0;
    return status < 0 ? status : set_size(file, wanted, &extension->size_bytes, &extension->error);
}

static void extended(struct io_op *op, int64_t result)
{
    struct node_extension *extension = container_of(op, struct node_extension, work);
    extension->done(extension, (int)result);
}

void file_extend(struct node *node, struct node_extension *extension)
{
    assert(!node->read_only && (extension->size_bytes == 0 || extension->size_bytes >= node->size_bytes));
    extension->node = node;
    extension->error.code = 0;
    extension->work.done = extended;
    io_work(node->io, &extension->work, extend_work, extension);
}

void file_grow(struct node *node, uint64_t size_bytes)
{
    struct file_node *file = (struct file_node *)(void *)node; /* node is its first member */
    if (file->tail_start == node->size_bytes)
        file->tail_start = size_bytes;
    if (file->cached_start == node->size_bytes)
        file->cached_start = size_bytes;
    file->extended_bytes = 0;
    node_set_size(node, size_bytes);
}
