/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A cache file's life:
 *
 *   (WAITING)  the space of an earlier one is being given back: both together could exceed the limit
 *   MAKING     on a helper thread; or adopted, where a killed daemon has left it for the snapshots that survive
 *   OPEN
 *   UNLINKING  on a helper thread
 *   CLOSING    the node, on its reactor; then the VM is told
 *   FREEING    the last close, on a helper thread
 *
 * A second descriptor is kept for the end: the last close of a file without a name gives back all its space, which may take
 * many seconds (measured: 37 ms for 1 MiB on an ext4 mounted with "discard"), and must hold neither the disk's reactor nor
 * whoever deletes a snapshot.
 *
 * Nothing here blocks the control thread. A crash at any point leaves a file that the next start recognises, or none.
 */
#include "daemon/caches.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "daemon/space.h"
#include "driver/file.h"
#include "fleece/disk_tier.h"

struct cache {
    struct list_node link; /* in caches->files */
    struct caches *caches;
    struct io *io; /* the disk's */
    struct cache_file_plan plan;
    const struct cache_file_id *id; /* of one that is adopted */
    struct cache_file file;
    enum { WAITING, MAKING, OPEN, UNLINKING, CLOSING, FREEING } state;
    int spare_fd; /* the same description again */
    struct node *node;
    struct error err;
    struct io_op op;
    struct io_message message;
    void (*opened)(void *argument, struct node *file, const struct error *err);
    void (*closed)(void *argument);
    void *argument;
};

void caches_init(struct caches *caches, struct io *control, const struct options *options)
{
    *caches = (struct caches){.control = control, .options = options};
    list_init(&caches->files);
}

bool caches_are_idle(const struct caches *caches)
{
    return list_empty(&caches->files) && !caches->looking;
}

void caches_when_idle(struct caches *caches, void (*idle)(void *argument), void *argument)
{
    assert(!caches_are_idle(caches) && !caches->idle);
    caches->idle = idle;
    caches->idle_argument = argument;
}

void caches_fini(struct caches *caches)
{
    for (unsigned i = 0; i < LIMIT_DISKS; i++)
        free(caches->folders[i]);
}

/* --- places */

/* The folder of the image itself, whatever links lead there. NULL: it is no file (yet): opening it will say so. */
static char *folder_of_image(const char *path, bool *is_device)
{
    struct stat st;
    char *real = realpath(path, NULL);
    *is_device = real && stat(real, &st) == 0 && S_ISBLK(st.st_mode);
    if (real && !*is_device)
        *strrchr(real, '/') = 0;
    return real;
}

static int choose_folder(struct caches *caches, unsigned i, struct error *err)
{
    const struct options *options = caches->options;
    const struct disk_options *disk = &options->disks[i];
    const char *chosen = options->cache_dir;
    bool is_device = false;
    char *beside = disk->path ? folder_of_image(disk->path, &is_device) : NULL;
    if (!chosen && beside && !is_device)
        chosen = beside[0] ? beside : "/";
    if (!chosen && (is_device || disk->null_driver))
        chosen = options->state_dir;
    if (chosen && !(caches->folders[i] = strdup(chosen))) {
        free(beside);
        return error_set(err, ENOMEM, "no memory for the cache file of disk %s", disk->name);
    }
    free(beside);
    if (!chosen && (is_device || disk->null_driver))
        return error_set(
            err, EINVAL,
            "--fleece: disk %s is %s, which has no folder for a cache file: name one with dir=DIR, or with "
            "--state-dir",
            disk->name, is_device ? "a block device" : "a null disk");
    return 0;
}

static int check_folder(const struct caches *caches, unsigned i, struct error *err)
{
    const char *folder = caches->folders[i], *disk = caches->options->disks[i].name;
    const char *remedy = caches->options->cache_dir ? "" : "; name another one with dir=DIR";
    struct stat st;
    if (!folder)
        return 0;
    if (stat(folder, &st) < 0)
        return error_set(err, errno, "--fleece: the folder %.300s for the cache of disk %s: %s%s", folder, disk,
                         error_name(errno), remedy);
    if (!S_ISDIR(st.st_mode))
        return error_set(err, ENOTDIR, "--fleece: %.300s, for the cache of disk %s, is not a folder%s", folder, disk,
                         remedy);
    if (access(folder, W_OK | X_OK) < 0)
        return error_set(err, errno, "--fleece: the folder %.300s for the cache of disk %s can't be written: %s%s",
                         folder, disk, error_name(errno), remedy);
    return 0;
}

int caches_choose(struct caches *caches, struct error *err)
{
    int status = 0;
    if (!options_want_cache_files(caches->options))
        return 0;
    for (unsigned i = 0; i < caches->options->disk_count && status == 0; i++) {
        if (caches->options->disks[i].read_only)
            continue;
        status = choose_folder(caches, i, err);
        if (status == 0)
            status = check_folder(caches, i, err);
    }
    return status;
}

static uint64_t block_bytes_of(const struct options *options, unsigned i)
{
    return options->disks[i].block_bytes ? options->disks[i].block_bytes : BLOCK_BYTES_DEFAULT;
}

/* What one snapshot can need at most: every block of every disk, once. */
static uint64_t sum_of_disks(const struct caches *caches, struct node *const *leaves)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < caches->options->disk_count; i++) {
        uint64_t segment = cache_file_segment_bytes(block_bytes_of(caches->options, i));
        if (caches->folders[i])
            sum += disk_tier_file_bytes(segment, round_up(leaves[i]->size_bytes, segment) / segment);
    }
    return sum < FLEECE_DISK_CACHE_MIN ? FLEECE_DISK_CACHE_MIN : sum;
}

/* Each folder once: there may be something in it that has to be waited for. */
static void sweep_folder(struct caches *caches, const char *folder, const char **seen, unsigned *count)
{
    for (unsigned i = 0; i < *count; i++)
        if (strcmp(seen[i], folder) == 0)
            return;
    seen[(*count)++] = folder;
    cache_file_sweep(&caches->swept, folder);
}

/* Everywhere this start names, whether it wants cache files or not. */
void caches_sweep(struct caches *caches)
{
    const struct options *options = caches->options;
    const char *seen[LIMIT_DISKS + 2];
    char *folders[LIMIT_DISKS];
    unsigned count = 0;
    bool is_device;
    caches->swept = (struct cache_sweep){.vm = options->vm, .patience_ns = CACHE_FILE_WAIT_NS};
    list_each (link, &caches->files) {
        const struct cache_file *file = &container_of(link, struct cache, link)->file;
        caches->swept.kept[caches->swept.kept_count].device = file->device;
        caches->swept.kept[caches->swept.kept_count++].inode = file->inode;
    }
    if (options->cache_dir)
        sweep_folder(caches, options->cache_dir, seen, &count);
    if (options->state_dir)
        sweep_folder(caches, options->state_dir, seen, &count);
    for (unsigned i = 0; i < options->disk_count; i++) {
        folders[i] = options->disks[i].path ? folder_of_image(options->disks[i].path, &is_device) : NULL;
        if (folders[i] && !is_device)
            sweep_folder(caches, folders[i][0] ? folders[i] : "/", seen, &count);
    }
    for (unsigned i = 0; i < options->disk_count; i++)
        free(folders[i]);
}

int caches_prepare(struct caches *caches, struct node *const *leaves, struct error *err)
{
    const struct options *options = caches->options;
    if (!options_want_cache_files(options))
        return 0;
    caches->max_bytes = options->cache_bytes ? options->cache_bytes : sum_of_disks(caches, leaves);
    if (caches->max_bytes > FLEECE_DISK_CACHE_MAX)
        caches->max_bytes = FLEECE_DISK_CACHE_MAX;
    uint64_t least = 0;
    for (unsigned i = 0; i < options->disk_count; i++)
        if (caches->folders[i])
            least += disk_tier_file_bytes(cache_file_segment_bytes(block_bytes_of(options, i)), 1);
    if (caches->max_bytes < least)
        return error_set(err, EINVAL, "--fleece: max=%llu is not right: these disks need %llu bytes at least",
                         (unsigned long long)caches->max_bytes, (unsigned long long)least);
    caches->space = space_free(caches->folders, options->disk_count);
    return 0;
}

static int64_t look(void *argument) /* on a helper thread */
{
    struct caches *caches = argument;
    uint64_t bytes = space_free(caches->folders, caches->options->disk_count);
    return bytes < INT64_MAX ? (int64_t)bytes : INT64_MAX;
}

static void looked(struct io_op *op, int64_t result)
{
    struct caches *caches = container_of(op, struct caches, look);
    caches->looking = false;
    caches->space = (uint64_t)result;
    if (caches_are_idle(caches) && caches->idle)
        caches->idle(caches->idle_argument);
}

uint64_t caches_space(struct caches *caches)
{
    if (!caches->looking) {
        caches->looking = true;
        caches->look.done = looked;
        io_work(caches->control, &caches->look, look, caches);
    }
    return caches->space;
}

/* --- making */

static void cache_free(struct cache *cache)
{
    struct caches *caches = cache->caches;
    list_remove(&cache->link);
    free(cache);
    if (caches_are_idle(caches) && caches->idle)
        caches->idle(caches->idle_argument);
}

/* The node of a file that is open; else it is closed. */
static int open_node(struct cache *cache)
{
    struct file_options options = {
        .path = cache->file.path, .page_cache = !cache->file.direct, .adopt = true, .fd = cache->file.fd};
    int status = file_open(cache->io, &options, &cache->node, &cache->err);
    if (status == -EINVAL && cache->file.direct && fcntl(cache->file.fd, F_SETFL, 0) == 0) {
        options.page_cache = true; /* its direct I/O asks for more than we have */
        status = file_open(cache->io, &options, &cache->node, &cache->err);
    }
    if (status == 0)
        cache->spare_fd = fcntl(cache->file.fd, F_DUPFD_CLOEXEC, 0); /* without it, closing takes a little longer */
    if (status < 0)
        close(cache->file.fd);
    else
        cache->node->can_discard = cache->file.can_punch;
    return status;
}

static int64_t make(void *argument) /* on a helper thread */
{
    struct cache *cache = argument;
    int status = cache_file_make(&cache->plan, &cache->file, &cache->err);
    if (status == 0 && (status = open_node(cache)) < 0)
        cache_file_unlink(&cache->file);
    return status;
}

static int64_t adopt(void *argument) /* on a helper thread */
{
    struct cache *cache = argument;
    int status = cache_file_adopt(&cache->plan, cache->id, cache->caches->options->lock_wait_ns, &cache->file,
                                  &cache->err);
    return status < 0 ? status : open_node(cache);
}

static void made(struct io_op *op, int64_t result)
{
    struct cache *cache = container_of(op, struct cache, op);
    if (result < 0) {
        cache->opened(cache->argument, NULL, &cache->err);
        cache_free(cache);
        return;
    }
    cache->state = OPEN;
    cache->opened(cache->argument, cache->node, NULL);
}

static void begin(struct cache *cache)
{
    cache->state = MAKING;
    cache->op.done = made;
    io_work(cache->caches->control, &cache->op, make, cache);
}

/* Answers later that there is nothing. */
static void no_file(struct io_op *op, int64_t result)
{
    struct cache *cache = container_of(op, struct cache, op);
    (void)result;
    cache->opened(cache->argument, NULL, NULL);
    cache_free(cache);
}

static int64_t nothing(void *argument)
{
    (void)argument;
    return 0;
}

static unsigned index_of(const struct caches *caches, const char *name)
{
    unsigned i = 0;
    while (strcmp(caches->options->disks[i].name, name) != 0)
        i++;
    return i;
}

void caches_resize(struct caches *caches, uint64_t max_bytes)
{
    caches->max_bytes = max_bytes;
}

void caches_open(void *context, const struct disk *disk, uint64_t block_bytes,
                 void (*done)(void *argument, struct node *file, const struct error *err), void *argument)
{
    struct caches *caches = context;
    struct cache *cache = calloc(1, sizeof *cache);
    if (!cache) {
        struct error err;
        error_set(&err, ENOMEM, "no memory for the cache file of disk %s", disk->name);
        done(argument, NULL, &err);
        return;
    }
    *cache = (struct cache){
        .caches = caches, .io = disk->node.io, .opened = done, .argument = argument, .spare_fd = -1};
    cache->plan = (struct cache_file_plan){
        .folder = caches->folders[index_of(caches, disk->name)],
        .vm = caches->options->vm,
        .disk = disk->name,
        .max_bytes = caches->max_bytes,
        .block_bytes = block_bytes,
        .disk_bytes = node_size(&disk->node),
        .created_ns = io_wall_ns(caches->control),
    };
    io_random(caches->control, cache->plan.uuid, sizeof cache->plan.uuid);
    list_append(&caches->files, &cache->link);
    cache->op.done = no_file;
    if (!cache->plan.folder)
        io_work(caches->control, &cache->op, nothing, cache);
    else if (caches->freeing == 0)
        begin(cache);
}

void caches_describe(const struct caches *caches, const struct node *file, struct cache_file_id *id)
{
    *id = (struct cache_file_id){0};
    list_each (link, &caches->files) {
        const struct cache *cache = container_of(link, struct cache, link);
        if (cache->node != file)
            continue;
        memcpy(id->uuid, cache->plan.uuid, sizeof id->uuid);
        memcpy(id->path, cache->file.path, sizeof id->path);
        id->device = cache->file.device;
        id->inode = cache->file.inode;
    }
}

void caches_adopt(struct caches *caches, const struct disk *disk, uint64_t block_bytes, const struct cache_file_id *id,
                  void (*done)(void *argument, struct node *file, const struct error *err), void *argument)
{
    struct cache *cache = calloc(1, sizeof *cache);
    if (!cache)
        abort(); /* a few hundred bytes at the start: nothing could go on */
    *cache = (struct cache){
        .caches = caches, .io = disk->node.io, .opened = done, .argument = argument, .spare_fd = -1, .id = id};
    cache->plan = (struct cache_file_plan){.vm = caches->options->vm, .disk = disk->name, .block_bytes = block_bytes};
    memcpy(cache->plan.uuid, id->uuid, sizeof cache->plan.uuid);
    list_append(&caches->files, &cache->link);
    cache->state = MAKING;
    cache->op.done = made;
    io_work(caches->control, &cache->op, adopt, cache);
}

/* --- taking away */

static int64_t free_space(void *argument) /* on a helper thread */
{
    const struct cache *cache = argument;
    if (cache->spare_fd >= 0)
        close(cache->spare_fd);
    return 0;
}

static void freed(struct io_op *op, int64_t result)
{
    struct cache *cache = container_of(op, struct cache, op);
    struct caches *caches = cache->caches;
    (void)result;
    caches->freeing--;
    list_each_safe (link, &caches->files) {
        struct cache *next = container_of(link, struct cache, link);
        if (caches->freeing == 0 && next->state == WAITING && next->plan.folder)
            begin(next);
    }
    cache_free(cache);
}

static void node_closed(struct io_message *message)
{
    struct cache *cache = container_of(message, struct cache, message);
    cache->state = FREEING;
    cache->caches->freeing++;
    cache->op.done = freed;
    io_work(cache->caches->control, &cache->op, free_space, cache);
    cache->closed(cache->argument);
}

static int64_t free_left_overs(void *argument) /* on a helper thread */
{
    struct cache_sweep *swept = &((struct cache *)argument)->caches->swept;
    while (swept->removed_count > 0)
        close(swept->removed[--swept->removed_count]);
    return 0;
}

void caches_free_left_overs(struct caches *caches)
{
    struct cache *cache = caches->swept.removed_count > 0 ? calloc(1, sizeof *cache) : NULL;
    if (!cache)
        return; /* nothing to do, or no memory: the end of the process does it */
    *cache = (struct cache){.caches = caches, .state = FREEING, .spare_fd = -1};
    cache->op.done = freed;
    list_append(&caches->files, &cache->link);
    caches->freeing++;
    io_work(caches->control, &cache->op, free_left_overs, cache);
}

static void close_node(struct io_message *message) /* on the disk's reactor */
{
    struct cache *cache = container_of(message, struct cache, message);
    node_destroy(cache->node);
    message->deliver = node_closed;
    io_post(cache->caches->control, message);
}

static int64_t unlink_file(void *argument) /* on a helper thread */
{
    const struct cache *cache = argument;
    return cache_file_unlink(&cache->file);
}

static void unlinked(struct io_op *op, int64_t result)
{
    struct cache *cache = container_of(op, struct cache, op);
    if (result < 0)
        log_warning("cache file %s can't be removed: %s", cache->file.path, error_name((int)result));
    cache->state = CLOSING;
    cache->message.deliver = close_node;
    io_post(cache->io, &cache->message);
}

void caches_close(void *context, const struct disk *disk, struct node *file, void (*done)(void *argument),
                  void *argument)
{
    struct caches *caches = context;
    struct cache *cache = NULL;
    (void)disk;
    list_each (link, &caches->files)
        if (container_of(link, struct cache, link)->node == file)
            cache = container_of(link, struct cache, link);
    assert(cache && cache->state == OPEN);
    cache->state = UNLINKING;
    cache->closed = done;
    cache->argument = argument;
    cache->op.done = unlinked;
    io_work(caches->control, &cache->op, unlink_file, cache);
}

void caches_give_up(struct caches *caches)
{
    list_each (link, &caches->files) {
        const struct cache *cache = container_of(link, struct cache, link);
        if (cache->state == OPEN || cache->state == UNLINKING)
            cache_file_unlink(&cache->file);
    }
}
