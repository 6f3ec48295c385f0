/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Opens an image, looks what is behind it, opens that, and so on; steps on nodes are made on their thread. What is open
 * is attached at once, so a failure anywhere takes all of it down with the first image.
 *
 * Names come out of files that somebody else may have written: they are resolved to a path without links, and that must
 * begin with the folder's. Who may exchange files in that folder while they are opened can give us any image that he can
 * read, and nothing else: what is opened is a regular file in any case.
 */
#include "job/image_chain.h"

#include <errno.h>
#include <limits.h>
#include <semaphore.h>
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
    /* What the thread of the nodes does, and its answer: */
    struct io_message message;
    void (*step)(struct chain_opening *opening);
    struct node *file, *behind;
    bool read_only;
    int status;
    struct node *image;
    bool answered;
    sem_t wait; /* with `elsewhere` */
};

/* ---- on the thread of the nodes, which may be ours ---- */

static void step_done(struct chain_opening *opening)
{
    if (opening->options->elsewhere) {
        sem_post(&opening->wait);
        return;
    }
    opening->answered = true;
    ring_quit(opening->options->io);
}

static void step_run(struct io_message *message)
{
    struct chain_opening *opening = container_of(message, struct chain_opening, message);
    opening->step(opening);
}

static void step_wait(struct chain_opening *opening, void (*step)(struct chain_opening *opening))
{
    opening->step = step;
    opening->answered = false;
    opening->message.deliver = step_run;
    io_post(opening->options->io, &opening->message);
    while (!opening->options->elsewhere && !opening->answered)
        ring_run(opening->options->io);
    while (opening->options->elsewhere && sem_wait(&opening->wait) < 0)
        ;
}

static void image_opened(void *argument, struct node *image, const struct error *err)
{
    struct chain_opening *opening = argument;
    opening->image = image;
    if (!image && opening->err)
        *opening->err = *err;
    step_done(opening);
}

static void step_open(struct chain_opening *opening)
{
    opening->image = NULL;
    opening->status = qcow2_open(opening->file, opening->read_only, image_opened, opening);
    if (opening->status == 0)
        return;
    error_set(opening->err, -opening->status, "no memory for an image");
    step_done(opening);
}

static void step_attach(struct chain_opening *opening)
{
    qcow2_backing_set(opening->image, opening->behind);
    step_done(opening);
}

static void step_destroy(struct chain_opening *opening)
{
    node_destroy(opening->file);
    step_done(opening);
}

/* ---- on the caller's ---- */

/* Not on every file system there is direct I/O. */
static int open_file(const struct chain_opening *opening, bool read_only, bool growable, struct node **node)
{
    const struct image_chain_options *chain = opening->options;
    struct file_options options = {.path = opening->path, .read_only = read_only, .growable = growable};
    if (opening->depth == 1) {
        options.page_cache = chain->page_cache;
        options.lock_wait_ns = chain->lock_wait_ns;
        options.waiting = chain->waiting;
        options.waiting_context = chain->waiting_context;
    }
    int status = file_open(chain->io, &options, node, opening->err);
    if ((status != -EINVAL && status != -EOPNOTSUPP) || options.page_cache)
        return status;
    options.page_cache = true;
    return file_open(chain->io, &options, node, opening->err);
}

static int open_qcow2(struct chain_opening *opening, bool read_only, struct node **node)
{
    int status = open_file(opening, read_only, true, &opening->file);
    if (status < 0)
        return status;
    if (opening->depth == 1 && opening->options->file)
        *opening->options->file = opening->file;
    opening->read_only = read_only;
    step_wait(opening, step_open);
    if (!opening->image) {
        step_wait(opening, step_destroy);
        error_prefix(opening->err, "image \"%s\"", opening->path);
        return opening->status < 0 ? opening->status : -EINVAL;
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
    const bool anywhere = !opening->options->folder, absolute = name[0] == '/';
    if ((absolute && !anywhere) || (colon && (!strchr(name, '/') || colon < strchr(name, '/'))))
        return error_set(err, EINVAL, "image \"%s\": its backing file \"%s\" is not %s", opening->path, name,
                         anywhere ? "a file" : "named relative to it");
    if (strcmp(info->backing_format, "qcow2") != 0 && strcmp(info->backing_format, "raw") != 0)
        return error_set(err, EINVAL, "image \"%s\": the format of its backing file is \"%s\"; qcow2 and raw are right",
                         opening->path, info->backing_format);
    snprintf(joined, sizeof joined, "%.*s%s", slash && !absolute ? (int)(slash - opening->path) + 1 : 0, opening->path,
             name);
    if (!anywhere && !realpath(opening->options->folder, folder))
        return error_set(err, errno, "folder \"%s\": %s", opening->options->folder, error_name(errno));
    if (!realpath(joined, path))
        return error_set(err, errno, "image \"%s\": its backing file \"%s\": %s", opening->path, name,
                         error_name(errno));
    if (!anywhere && !lies_in(path, folder))
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
            status = open_file(opening, true, false, &behind);
        else if (status == 0)
            status = open_qcow2(opening, true, &behind);
        if (status < 0)
            return status;
        opening->image = image;
        opening->behind = behind;
        step_wait(opening, step_attach);
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
    sem_init(&opening->wait, 0, 0);
    int status = 0;
    if ((size_t)snprintf(opening->path, sizeof opening->path, "%s", options->path) >= sizeof opening->path)
        status = error_set(err, ENAMETOOLONG, "the name of an image has %zu bytes", strlen(options->path));
    if (status == 0)
        status = check_file(opening);
    if (status == 0)
        status = open_qcow2(opening, options->read_only, &image);
    if (status == 0)
        status = open_behind(opening, image);
    if (status < 0 && image) {
        opening->file = image;
        step_wait(opening, step_destroy);
    } else {
        *node = image;
    }
    sem_destroy(&opening->wait);
    free(opening);
    return status;
}
