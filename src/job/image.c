/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Past the page cache where the file system can, through it elsewhere. A file that was made here and could not be opened is
 * taken away again; a crash leaves it to whoever named it. */
#include "job/image.h"

#include <errno.h>
#include <unistd.h>

#include "driver/file.h"

/* Direct I/O keeps a backup from pushing everything else out of memory; not every file system has it. */
static int open_either_way(struct io *io, struct file_options *options, struct node **node, struct error *err)
{
    int status = file_open(io, options, node, err);
    if (status != -EINVAL && status != -EOPNOTSUPP)
        return status;
    if (options->create)
        unlink(options->path); /* ours: it did not exist before */
    options->page_cache = true;
    return file_open(io, options, node, err);
}

static int create_file(struct io *io, struct file_options *options, struct node **node, struct error *err)
{
    const char *path = options->path;
    options->create = true;
    if (access(path, F_OK) == 0) /* before anything is unlinked */
        return error_set(err, EEXIST, "'%s' exists already", path);
    int status = open_either_way(io, options, node, err);
    if (status == -ENOENT)
        return error_set(err, ENOENT, "'%s' can't be made: there is no such folder", path);
    if (status < 0 && status != -EEXIST)
        unlink(path); /* a file that could not get its size */
    return status;
}

int image_create(struct io *io, const char *path, uint64_t size_bytes, struct node **node, struct error *err)
{
    struct file_options options = {.path = path, .size_bytes = size_bytes};
    return create_file(io, &options, node, err);
}

int image_create_growable(struct io *io, const char *path, struct node **node, struct error *err)
{
    struct file_options options = {.path = path, .growable = true};
    return create_file(io, &options, node, err);
}

int image_open_growable(struct io *io, const char *path, struct node **node, struct error *err)
{
    struct file_options options = {.path = path, .growable = true};
    return open_either_way(io, &options, node, err);
}

int image_open(struct io *io, const char *path, bool read_only, struct node **node, struct error *err)
{
    struct file_options options = {.path = path, .read_only = read_only};
    return open_either_way(io, &options, node, err);
}
