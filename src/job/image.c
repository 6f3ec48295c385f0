/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Past the page cache where the file system can, through it elsewhere. A file that was made here and could not be opened is
 * taken away again; a crash leaves it to whoever named it. */
#include "job/image.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "driver/file.h"
#include "track/sidecar_format.h"

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

static bool is_sidecar(const char *path)
{
    struct sidecar_sector sector;
    int fd = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return false;
    const bool whole = read(fd, &sector, sizeof sector) == sizeof sector;
    close(fd);
    return whole && memcmp(sector.payload, SIDECAR_MAGIC, SIDECAR_MAGIC_BYTES) == 0; /* its header begins with that */
}

int image_untrack(const char *path, struct error *err)
{
    char real[PATH_MAX], sidecar[PATH_MAX + sizeof SIDECAR_SUFFIX];
    if (!realpath(path, real))
        return error_set(err, errno, "'%s' can't be looked up: %s", path, error_name(errno));
    snprintf(sidecar, sizeof sidecar, "%s" SIDECAR_SUFFIX, real);
    if (!is_sidecar(sidecar))
        return 0;
    int status = unlink(sidecar) < 0 ? -errno : 0;
    int fd = status == 0 ? open(dirname(real), O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (status == 0 && (fd < 0 || fsync(fd) < 0))
        status = -errno;
    if (fd >= 0)
        close(fd);
    if (status < 0)
        return error_set(err, -status, "the sidecar '%s' would not know what is written now, and can't be removed: %s",
                         sidecar, error_name(status));
    return 0;
}
