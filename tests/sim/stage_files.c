/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The files of a stage: how they are opened, what is known of its disks, and its cache files. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/limits.h"
#include "driver/file.h"
#include "sim_leaf.h"
#include "stage.h"

int stage_leaf_open(struct stage *stage, struct io *io, const char *path, struct node **node)
{
    if (!stage->restartable)
        return sim_leaf_open(io, path, node);
    struct error err;
    const struct file_options options = {.path = path, .lock_wait_ns = 10 * NS_PER_S};
    return file_open(io, &options, node, &err);
}

struct cache_answer {
    struct io_message message;
    struct stage *stage;
    struct node *file;
    char name[LIMIT_NAME_BYTES + 8];
    void (*opened)(void *argument, struct node *file, const struct error *err);
    void (*closed)(void *argument);
    void *argument;
};

static void cache_opened(struct io_message *message)
{
    struct cache_answer *answer = container_of(message, struct cache_answer, message);
    answer->opened(answer->argument, answer->file, NULL);
    free(answer);
}

static struct cache_answer *cache_answer_new(struct stage *stage, const struct disk *disk)
{
    struct cache_answer *answer = calloc(1, sizeof(*answer));
    assert_non_null(answer);
    answer->stage = stage;
    snprintf(answer->name, sizeof(answer->name), "%s.cache", disk->name);
    return answer;
}

static void cache_open(void *context, const struct disk *disk, uint64_t block_bytes,
                       void (*done)(void *argument, struct node *file, const struct error *err), void *argument)
{
    struct stage *stage = context;
    struct cache_answer *answer = cache_answer_new(stage, disk);
    assert_int_equal(block_bytes, STAGE_BLOCK);
    world_file_create(stage->world, answer->name, stage->cache_bytes, 512, false);
    assert_int_equal(stage_leaf_open(stage, disk->node.io, answer->name, &answer->file), 0);
    stage->caches_open++;
    answer->opened = done;
    answer->argument = argument;
    answer->message.deliver = cache_opened;
    io_post(stage->control, &answer->message);
}

static void cache_closed(struct io_message *message)
{
    struct cache_answer *answer = container_of(message, struct cache_answer, message);
    world_file_remove(answer->stage->world, answer->name);
    answer->stage->caches_open--;
    answer->closed(answer->argument);
    free(answer);
}

static void cache_close_file(struct io_message *message)
{
    struct cache_answer *answer = container_of(message, struct cache_answer, message);
    node_destroy(answer->file);
    answer->message.deliver = cache_closed;
    io_post(answer->stage->control, &answer->message);
}

static void cache_close(void *context, const struct disk *disk, struct node *file, void (*done)(void *argument),
                        void *argument)
{
    struct cache_answer *answer = cache_answer_new(context, disk);
    answer->file = file;
    answer->closed = done;
    answer->argument = argument;
    answer->message.deliver = cache_close_file;
    io_post(disk->node.io, &answer->message);
}

static void cache_describe(void *context, const struct node *file, struct cache_file_id *id)
{
    (void)context;
    memset(id, 0, sizeof(*id));
    snprintf(id->path, sizeof(id->path), "%llu bytes", (unsigned long long)file->size_bytes);
}

static struct disk_identity disk_identity(void *context, const struct disk *disk)
{
    struct io_stat stat;
    (void)context;
    assert_int_equal(file_stat(disk->leaf, &stat), 0);
    return (struct disk_identity){stat.size_bytes, stat.device, stat.inode, stat.mtime_ns, stat.ctime_ns, true, 0};
}

static void cache_adopt(void *context, const struct disk *disk, uint64_t block_bytes, const struct cache_file_id *id,
                        void (*done)(void *argument, struct node *file, const struct error *err), void *argument)
{
    struct stage *stage = context;
    struct cache_answer *answer = cache_answer_new(stage, disk);
    char described[32];
    assert_int_equal(block_bytes, STAGE_BLOCK);
    assert_int_equal(stage_leaf_open(stage, disk->node.io, answer->name, &answer->file), 0);
    snprintf(described, sizeof(described), "%llu bytes", (unsigned long long)answer->file->size_bytes);
    assert_string_equal(id->path, described);
    stage->caches_open++;
    answer->opened = done;
    answer->argument = argument;
    answer->message.deliver = cache_opened;
    io_post(stage->control, &answer->message);
}

void stage_file_hooks(struct vm_hooks *hooks, bool restartable)
{
    hooks->disk_identity = restartable ? disk_identity : NULL;
    hooks->cache_open = cache_open;
    hooks->cache_close = cache_close;
    hooks->cache_describe = restartable ? cache_describe : NULL;
    hooks->cache_adopt = restartable ? cache_adopt : NULL;
}
