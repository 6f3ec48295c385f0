/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Opens an image, looks what is behind it, opens that, and so on. What is open is attached at once, so a failure anywhere
 * takes all of it down with the first image.
 *
 * Names come out of files that somebody else may have written: they are resolved to a path without links, and that must
 * begin with the folder's. Who may exchange files in that folder while they are opened can give us any image that he can
 * read, and nothing else: what is opened is a regular file in any case.
 */
#include "job/image_chain.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "driver/file.h"
#include "driver/qcow2/qcow2.h"
#include "io/ring.h"

struct file_id {
    dev_t device;
    ino_t inode;
};

struct chain_opening {
    const struct image_chain_options *options;
    char path[PATH_MAX]; /* of the image that is being opened */
    bool is_raw;
    struct file_id opened[LIMIT_BACKING_DEPTH];
    unsigned depth;
    struct error *err;
    /* The answer of qcow2_open(): */
    bool answered;
    struct node *image;
};

/* Not on every file system there is direct I/O. */
static int open_file(struct io *io, const char *path, bool read_only, bool growable, struct node **node,
                     struct error *err)
{
    struct file_options options = {.path = path, .read_only = read_only, .growable = growable};
    int status = file_open(io, &options, node, err);
    if (status != -EINVAL && status != -EOPNOTSUPP)
        return status;
    options.page_cache = true;
    return file_open(io, &options, node, err);
}

static void image_opened(void *argument, struct node *image, const struct error *err)
{
    struct chain_opening *opening = argument;
    opening->answered = true;
    opening->image = image;
    if (!image && opening->err)
        *opening->err = *err;
    ring_quit(opening->options->io);
}

static int open_qcow2(struct chain_opening *opening, bool read_only, struct node **node)
{
    struct io *io = opening->options->io;
    struct node *file;
    int status = open_file(io, opening->path, read_only, true, &file, opening->err);
    if (status < 0)
        return status;
    opening->answered = false;
    opening->image = NULL;
    status = qcow2_open(file, read_only, image_opened, opening);
    if (status < 0)
        error_set(opening->err, -status, "no memory for an image");
    while (status == 0 && !opening->answered)
        ring_run(io);
    if (!opening->image) {
        node_destroy(file);
        error_prefix(opening->err, "image \"%s\"", opening->path);
        return status < 0 ? status : -EINVAL;
    }
    *node = opening->image;
    return 0;
}

/* A regular file that is not open yet. */
static int check_file(struct chain_opening *opening)
{
    struct stat stat_now;
    const char *path = opening->path;
    if (stat(path, &stat_now) < 0)
        return error_set(opening->err, errno, "image \"%s\": %s", path, error_name(errno));
    if (opening->depth > 0 && !S_ISREG(stat_now.st_mode))
        return error_set(opening->err, EINVAL, "image \"%s\" is not a regular file", path);
    for (unsigned i = 0; i < opening->depth; i++)
        if (opening->opened[i].device == stat_now.st_dev && opening->opened[i].inode == stat_now.st_ino)
            return error_set(opening->err, ELOOP, "image \"%s\" is behind itself in its chain of images", path);
    if (opening->depth == LIMIT_BACKING_DEPTH)
        return error_set(opening->err, ELOOP, "image \"%s\" is number %u of a chain, the limit is %u", path,
                         opening->depth + 1, LIMIT_BACKING_DEPTH);
    opening->opened[opening->depth++] = (struct file_id){stat_now.st_dev, stat_now.st_ino};
    return 0;
}

static bool lies_in(const char *path, const char *folder)
{
    size_t length = strlen(folder);
    return strncmp(path, folder, length) == 0 && (path[length] == '/' || strcmp(folder, "/") == 0);
}

/* opening->path becomes that of what the image names. */
static int resolve(struct chain_opening *opening, const struct qcow2_info *info)
{
    char joined[2 * PATH_MAX], folder[PATH_MAX], path[PATH_MAX];
    const char *name = info->backing_name, *slash = strrchr(opening->path, '/'), *colon = strchr(name, ':');
    struct error *err = opening->err;
    if (name[0] == '/' || (colon && (!strchr(name, '/') || colon < strchr(name, '/'))))
        return error_set(err, EINVAL, "image \"%s\": its backing file \"%s\" is not named relative to it",
                         opening->path, name);
    if (strcmp(info->backing_format, "qcow2") != 0 && strcmp(info->backing_format, "raw") != 0)
        return error_set(err, EINVAL, "image \"%s\": the format of its backing file is \"%s\"; qcow2 and raw are right",
                         opening->path, info->backing_format);
    snprintf(joined, sizeof joined, "%.*s%s", slash ? (int)(slash - opening->path) + 1 : 0, opening->path, name);
    if (!realpath(opening->options->folder, folder))
        return error_set(err, errno, "folder \"%s\": %s", opening->options->folder, error_name(errno));
    if (!realpath(joined, path))
        return error_set(err, errno, "image \"%s\": its backing file \"%s\": %s", opening->path, name,
                         error_name(errno));
    if (!lies_in(path, folder))
        return error_set(err, EACCES, "image \"%s\": its backing file \"%s\" lies outside of the folder \"%s\"",
                         opening->path, name, folder);
    opening->is_raw = strcmp(info->backing_format, "raw") == 0;
    strcpy(opening->path, path);
    return 0;
}

static int open_behind(struct chain_opening *opening, struct node *image)
{
    for (;;) {
        struct qcow2_info info;
        struct node *behind = NULL;
        qcow2_info(image, &info);
        if (info.backing_name[0] == '\0')
            return 0;
        int status = resolve(opening, &info);
        if (status == 0)
            status = check_file(opening);
        if (status == 0 && opening->is_raw)
            status = open_file(opening->options->io, opening->path, true, false, &behind, opening->err);
        else if (status == 0)
            status = open_qcow2(opening, true, &behind);
        if (status < 0)
            return status;
        qcow2_backing_set(image, behind);
        if (opening->is_raw)
            return 0;
        image = behind;
    }
}

int image_chain_open(const struct image_chain_options *options, struct node **node, struct error *err)
{
    struct chain_opening *opening = calloc(1, sizeof *opening);
    struct node *image = NULL;
    if (!opening)
        return error_set(err, ENOMEM, "no memory to open \"%s\"", options->path);
    opening->options = options;
    opening->err = err;
    int status = 0;
    if ((size_t)snprintf(opening->path, sizeof opening->path, "%s", options->path) >= sizeof opening->path)
        status = error_set(err, ENAMETOOLONG, "the name of an image has %zu bytes", strlen(options->path));
    if (status == 0)
        status = check_file(opening);
    if (status == 0)
        status = open_qcow2(opening, options->read_only, &image);
    if (status == 0)
        status = open_behind(opening, image);
    if (status < 0 && image)
        node_destroy(image);
    else
        *node = image;
    free(opening);
    return status;
}
