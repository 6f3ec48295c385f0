/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sidecar_kit.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

#include "base/limits.h"
#include "driver/file.h"

struct later { /* an answer of a hook */
    struct io_message message;
    struct vm_sidecar sidecar;
    bool found;
    struct error err;
    void (*opened)(void *argument, const struct vm_sidecar *sidecar, const struct error *err);
    void (*ended)(void *argument, const struct error *err);
    void *argument;
};

static void later_run(struct io_message *message)
{
    struct later *later = container_of(message, struct later, message);
    if (later->ended)
        later->ended(later->argument, NULL);
    else if (later->err.code)
        later->opened(later->argument, NULL, &later->err);
    else
        later->opened(later->argument, later->found ? &later->sidecar : NULL, NULL);
    free(later);
}

static struct later *later_new(const struct sidecar_kit *kit, void *argument)
{
    struct later *later = calloc(1, sizeof *later);
    assert_non_null(later);
    *later = (struct later){.message = {later_run, NULL}, .argument = argument};
    io_post(kit->control, &later->message);
    return later;
}

static unsigned disk_number(const struct disk *disk)
{
    return (unsigned)(disk->name[2] - 'a');
}

/* A new one has another name each time: that of a killed daemon's may still be open. */
static void name_of(const struct sidecar_kit *kit, unsigned disk, char name[32])
{
    snprintf(name, 32, "vd%c.fleece.%u", 'a' + disk, kit->made[disk]);
}

static struct disk_identity identify(void *context)
{
    struct io_stat stat;
    assert_int_equal(file_stat(context, &stat), 0);
    return (struct disk_identity){stat.size_bytes, stat.device, stat.inode, stat.mtime_ns, stat.ctime_ns, true, 0};
}

static int condemn(void *context, const char *reason)
{
    (void)context;
    (void)reason;
    return 0;
}

static void sidecar_open(void *context, const struct disk *disk, bool create,
                         void (*done)(void *argument, const struct vm_sidecar *sidecar, const struct error *err),
                         void *argument)
{
    struct sidecar_kit *kit = context;
    struct later *later = later_new(kit, argument);
    const unsigned i = disk_number(disk);
    char name[32];
    later->opened = done;
    if (kit->untracked >> i & 1) {
        error_set(&later->err, ENOTSUP, "disk %s can't be tracked here", disk->name);
        return;
    }
    if (!kit->kept[i] && !create)
        return;
    kit->made[i] += !kit->kept[i];
    name_of(kit, i, name);
    if (!kit->kept[i])
        world_file_create(kit->world, name, tracker_sidecar_bytes(disk->node.size_bytes, 0), 512, false);
    const struct file_options options = {.path = name, .lock_wait_ns = LOCK_WAIT_DEFAULT_NS};
    assert_int_equal(file_open(disk->node.io, &options, &later->sidecar.node, &later->err), 0);
    later->found = true;
    later->sidecar.created = !kit->kept[i];
    later->sidecar.identity = identify(kit->leaves[i]);
    later->sidecar.identify = identify;
    later->sidecar.condemn = condemn;
    later->sidecar.context = kit->leaves[i];
}

static void sidecar_keep(void *context, const struct disk *disk, void (*done)(void *argument, const struct error *err),
                         void *argument)
{
    struct sidecar_kit *kit = context;
    later_new(kit, argument)->ended = done;
    kit->kept[disk_number(disk)] = true;
}

static void sidecar_remove(void *context, const struct disk *disk,
                           void (*done)(void *argument, const struct error *err), void *argument)
{
    struct sidecar_kit *kit = context;
    char name[32];
    later_new(kit, argument)->ended = done;
    name_of(kit, disk_number(disk), name);
    world_file_remove(kit->world, name);
    kit->kept[disk_number(disk)] = false;
}

void sidecar_kit_hooks(struct vm_hooks *hooks)
{
    hooks->sidecar_open = sidecar_open;
    hooks->sidecar_keep = sidecar_keep;
    hooks->sidecar_remove = sidecar_remove;
}
