/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A target is checked by its words, opened on a helper thread, written by the copy engine, and kept or removed:
 *
 *     checked -> open (a new file remembers its device and inode) -> kept (its name is made durable) | removed
 *
 * Only a file that this target has made is ever removed, and only while the name still leads to it. A crash of the daemon
 * leaves the partial file under its name: the job that could say so is gone with it.
 */
#include "job/target.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "driver/nbd.h"
#include "job/image.h"

static bool is_uri(const char *where)
{
    return where[0] != '/' && strstr(where, "://");
}

int target_check(const char *where, struct error *err)
{
    if (is_uri(where) && strncmp(where, "nbd", 3) != 0)
        return error_set(err, EINVAL, "target '%.200s' is neither a file nor an NBD URI (nbd://…, nbd+unix://…)",
                         where);
    if (!is_uri(where) && where[0] != '/')
        return error_set(err, EINVAL, "target '%.200s' must be an absolute path, or an NBD URI", where);
    return 0;
}

static int open_file(struct io *io, const struct target_options *options, struct target *target, struct error *err)
{
    struct stat st;
    bool there = stat(target->where, &st) == 0;
    if (!there && errno != ENOENT)
        return error_set(err, errno, "target '%.300s': %s", target->where, error_name(errno));
    if (!there && options->existing)
        return error_set(err, ENOENT, "target '%.300s' does not exist: only the blocks that changed would be in it",
                         target->where);
    if (there && !options->existing && !options->force)
        return error_set(err, EEXIST, "target '%.300s' exists already: it is overwritten with 'force' only",
                         target->where);
    if (there)
        return image_open(io, target->where, false, &target->node, err);
    int status = image_create(io, target->where, options->size_bytes, &target->node, err);
    if (status < 0)
        return status;
    target->created = target->is_zero = true;
    if (stat(target->where, &st) == 0) {
        target->device = st.st_dev;
        target->inode = st.st_ino;
    }
    return 0;
}

int target_open(struct io *io, const struct target_options *options, struct target *target, struct error *err)
{
    memset(target, 0, sizeof *target);
    target->where = strdup(options->where);
    if (!target->where)
        return error_set(err, ENOMEM, "no memory for a target");
    target->is_nbd = is_uri(options->where);
    int status = target->is_nbd ? nbd_node_open_until(io, target->where, false, options->stop, &target->node, err)
                                : open_file(io, options, target, err);
    if (status == 0 && target->node->size_bytes < options->size_bytes)
        status = error_set(err, ENOSPC, "target '%.300s' has %llu bytes, but the disk has %llu", target->where,
                           (unsigned long long)target->node->size_bytes, (unsigned long long)options->size_bytes);
    return status;
}

int target_keep(const struct target *target, struct error *err)
{
    char folder[PATH_MAX];
    if (!target->created || strlen(target->where) >= sizeof folder)
        return 0;
    strcpy(folder, target->where);
    char *slash = strrchr(folder, '/');
    slash[slash == folder] = '\0';
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int status = fd < 0 || fsync(fd) < 0 ? -errno : 0;
    if (fd >= 0)
        close(fd);
    if (status < 0)
        return error_set(err, -status, "the name of target '%.300s' can't be made durable: %s", target->where,
                         error_name(status));
    return 0;
}

void target_remove(struct target *target)
{
    struct stat st;
    if (target->created && stat(target->where, &st) == 0 && st.st_dev == target->device && st.st_ino == target->inode)
        unlink(target->where);
    target->created = false;
}

void target_fini(struct target *target)
{
    free(target->where);
    target->where = NULL;
}
