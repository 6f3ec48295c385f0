/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A new file that could not be completed is removed. An existing one is opened, and so locked, before anything is done to
 * it: a disk that a VM is using is refused. Its content is then dropped at once, so that the result is as sparse as a new
 * file; a block device or an NBD export is written over, zeroes included, and keeps what it has behind the size of the
 * disk.
 */
#include "cli/restore_target.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/command.h"
#include "cli/new_image.h"
#include "driver/nbd.h"
#include "job/image.h"

static bool is_uri(const char *where)
{
    return strncmp(where, "nbd", 3) == 0 && strstr(where, "://");
}

/* A new qcow2 image in place of `path`, which does not exist or is ours to replace. */
static int make_qcow2(struct restore_target *target, uint64_t size_bytes, struct error *err)
{
    struct new_image image = {.path = target->where, .format = MANIFEST_QCOW2, .qcow2 = {.size_bytes = size_bytes}};
    return new_image_create(target->transfer, &image, &target->node, err);
}

/* Any file of the set, and any new one in it: another disk's image, or another point's, must not be lost to a slip of the
 * fingers, and a point with strange files in it can't be pruned. */
static bool lies_in_set(const struct restore_target *target)
{
    char set[PATH_MAX], where[PATH_MAX], path[PATH_MAX];
    snprintf(path, sizeof path, "%s", target->where);
    if (!realpath(set_path(target->set), set) || (!realpath(path, where) && !realpath(dirname(path), where)))
        return false;
    size_t length = strlen(set);
    return strncmp(where, set, length) == 0 && (where[length] == '/' || where[length] == '\0');
}

/* The name of a new file is durable only when its folder is. */
static int sync_folder(const struct restore_target *target, struct error *err)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s", target->where);
    int fd = open(dirname(path), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int code = fd < 0 || fsync(fd) < 0 ? errno : 0;
    if (fd >= 0)
        close(fd);
    return code ? error_set(err, code, "can't make '%s' durable: %s", target->where, error_name(code)) : 0;
}

/* An existing file gets the size of the disk, and no content. It is open, so nobody else has it. */
static int empty_file(struct restore_target *target, uint64_t size_bytes, struct error *err)
{
    const char *path = target->where;
    if (truncate(path, 0) < 0 || truncate(path, (off_t)size_bytes) < 0)
        return error_set(err, errno, "can't give '%s' a size of %llu bytes: %s", path, (unsigned long long)size_bytes,
                         error_name(errno));
    node_destroy(target->node); /* it has measured the file as it was */
    target->node = NULL;
    target->is_zero = true;
    return image_open(target->transfer->io, path, false, &target->node, err);
}

/* The file is replaced by a new one of the same name: nobody has the old one, for we have had its lock. */
static int replace_by_qcow2(struct restore_target *target, uint64_t size_bytes, struct error *err)
{
    if (unlink(target->where) < 0)
        return error_set(err, errno, "can't replace '%s': %s", target->where, error_name(errno));
    node_destroy(target->node);
    target->node = NULL;
    target->is_zero = target->made_file = true;
    return make_qcow2(target, size_bytes, err);
}

static int check_size(const struct restore_target *target, const char *kind, uint64_t size_bytes, struct error *err)
{
    if (target->node->size_bytes >= size_bytes)
        return 0;
    return error_set(err, ENOSPC, "the %s '%s' has %llu bytes; disk %s needs %llu", kind, target->where,
                     (unsigned long long)target->node->size_bytes, target->disk, (unsigned long long)size_bytes);
}

static int open_existing(struct restore_target *target, const struct stat *stat, uint64_t size_bytes, struct error *err)
{
    const char *path = target->where;
    bool file = S_ISREG(stat->st_mode);
    if (!file && !S_ISBLK(stat->st_mode))
        return error_set(err, EINVAL, "'%s' is neither a file nor a block device", path);
    if (!file && target->qcow2)
        return error_set(err, EINVAL, "'%s' is a block device; --format qcow2 is for files", path);
    if (!target->force)
        return error_set(err, EEXIST, "'%s' exists; it is overwritten only with --force", path);
    if (lies_in_set(target))
        return error_set(err, EINVAL, "'%s' is a file of the backup set itself", path);
    if (file && stat->st_size == 0 && truncate(path, (off_t)size_bytes) < 0) /* nothing to lose */
        return error_set(err, errno, "can't give '%s' a size of %llu bytes: %s", path, (unsigned long long)size_bytes,
                         error_name(errno));
    int status = image_open(target->transfer->io, path, false, &target->node, err);
    if (status < 0)
        return status;
    if (file && (status = image_untrack(path, err)) < 0)
        return status;
    if (!file)
        (void)cli_warn("'%s': if its changes are tracked, say so: fleece checkpoint reset %s", path, target->disk);
    target->overwrites = true;
    if (file)
        return target->qcow2 ? replace_by_qcow2(target, size_bytes, err) : empty_file(target, size_bytes, err);
    return check_size(target, "block device", size_bytes, err);
}

static int open_nbd(struct restore_target *target, uint64_t size_bytes, struct error *err)
{
    if (target->qcow2)
        return error_set(err, EINVAL, "'%s' is an NBD export; --format qcow2 is for files", target->where);
    if (!target->force)
        return error_set(err, EEXIST, "'%s' is somebody's disk; it is overwritten only with --force", target->where);
    int status = nbd_node_open(target->transfer->io, target->where, false, &target->node, err);
    if (status == 0)
        status = check_size(target, "NBD export", size_bytes, err);
    target->overwrites = status == 0;
    return status;
}

int restore_target_open(struct restore_target *target, uint64_t size_bytes, struct error *err)
{
    struct stat found;
    if (is_uri(target->where))
        return open_nbd(target, size_bytes, err);
    if (stat(target->where, &found) == 0)
        return open_existing(target, &found, size_bytes, err);
    if (errno != ENOENT)
        return error_set(err, errno, "'%s' can't be written: %s", target->where, error_name(errno));
    if (lies_in_set(target))
        return error_set(err, EINVAL, "'%s' would lie in the backup set itself", target->where);
    int status = target->qcow2 ? make_qcow2(target, size_bytes, err)
                               : image_create(target->transfer->io, target->where, size_bytes, &target->node, err);
    target->made_file = status == 0;
    target->is_zero = true;
    return status;
}

int restore_target_close(struct restore_target *target, int status, struct error *err)
{
    if (target->node)
        node_destroy(target->node);
    target->node = NULL;
    if (status == 0 && target->made_file)
        status = sync_folder(target, err);
    if (status < 0 && target->made_file)
        unlink(target->where);
    return status;
}
