/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the VM asks of the daemon, and what it tells: each hook hands on to whoever does it. On the control thread.
 */
#include <string.h>

#include "base/log.h"
#include "base/name.h"
#include "daemon/daemon_internal.h"

static void vm_publish(void *context, const char *export_name, struct node *node,
                       void (*done)(void *argument, int status), void *argument)
{
    struct daemon *daemon = context;
    exports_publish(daemon->exports, export_name, node, done, argument);
}

static void vm_unpublish(void *context, const char *export_name, void (*done)(void *argument, int status),
                         void *argument)
{
    struct daemon *daemon = context;
    exports_unpublish(daemon->exports, export_name, done, argument);
}

static void vm_cache_open(void *context, const struct disk *disk, uint64_t block_bytes,
                          void (*done)(void *argument, struct node *file, const struct error *err), void *argument)
{
    struct daemon *daemon = context;
    caches_open(&daemon->caches, disk, block_bytes, done, argument);
}

static void vm_cache_close(void *context, const struct disk *disk, struct node *file, void (*done)(void *argument),
                           void *argument)
{
    struct daemon *daemon = context;
    caches_close(&daemon->caches, disk, file, done, argument);
}

static struct disk_identity vm_disk_identity(void *context, const struct disk *disk)
{
    const struct daemon *daemon = context;
    for (unsigned i = 0; i < daemon->disks.opened; i++)
        if (strcmp(daemon->options->disks[i].name, disk->name) == 0)
            return disks_identify(&daemon->disks, i);
    return (struct disk_identity){0};
}

static void vm_cache_describe(void *context, const struct node *file, struct cache_file_id *id)
{
    const struct daemon *daemon = context;
    caches_describe(&daemon->caches, file, id);
}

static void vm_cache_adopt(void *context, const struct disk *disk, uint64_t block_bytes, const struct cache_file_id *id,
                           void (*done)(void *argument, struct node *file, const struct error *err), void *argument)
{
    struct daemon *daemon = context;
    caches_adopt(&daemon->caches, disk, block_bytes, id, done, argument);
}

static void vm_cache_threshold(void *context, unsigned percent, const struct vm_cache_fill *fill)
{
    struct daemon *daemon = context;
    char used[16], max[16];
    if (percent > 50) /* half full is nothing to worry about */
        log_warning("the fleecing cache is %u %% full: %s of %s are used", percent, size_format(used, fill->bytes),
                    size_format(max, fill->bytes_max));
    control_event_cache_threshold(daemon->control, percent, fill);
}

static uint64_t vm_cache_space(void *context)
{
    struct daemon *daemon = context;
    return caches_space(&daemon->caches);
}

static void vm_cache_resized(void *context, uint64_t disk_bytes)
{
    struct daemon *daemon = context;
    caches_resize(&daemon->caches, disk_bytes);
}

static void vm_sidecar_open(void *context, const struct disk *disk, bool create,
                            void (*done)(void *argument, const struct vm_sidecar *sidecar, const struct error *err),
                            void *argument)
{
    struct daemon *daemon = context;
    sidecars_open(&daemon->sidecars, disk, create, done, argument);
}

static void vm_sidecar_keep(void *context, const struct disk *disk,
                            void (*done)(void *argument, const struct error *err), void *argument)
{
    struct daemon *daemon = context;
    sidecars_keep(&daemon->sidecars, disk, done, argument);
}

static void vm_sidecar_remove(void *context, const struct disk *disk,
                              void (*done)(void *argument, const struct error *err), void *argument)
{
    struct daemon *daemon = context;
    sidecars_remove(&daemon->sidecars, disk, done, argument);
}

static void vm_checkpoint_event(void *context, enum vm_checkpoint_event event, const struct checkpoint_id *id,
                                const char *disk, const char *reason)
{
    struct daemon *daemon = context;
    if (event == VM_CHECKPOINT_INVALID)
        log_warning("the checkpoints of disk %s are invalid: %s", disk, reason);
    if (daemon->control)
        control_event_checkpoint(daemon->control, event, id, disk, reason);
}

static void vm_freeze(void *context, const char *snapshot, void (*frozen)(void *argument, const struct error *err),
                      void *argument)
{
    struct daemon *daemon = context;
    freezer_freeze(daemon->guest.freezer, snapshot, frozen, argument);
}

static void vm_freeze_cancel(void *context)
{
    struct daemon *daemon = context;
    freezer_cancel(daemon->guest.freezer);
}

static void vm_thaw(void *context,
                    void (*settled)(void *argument, enum consistency consistency, const char *reason,
                                    uint64_t frozen_ns),
                    void *argument)
{
    struct daemon *daemon = context;
    guest_thaw(&daemon->guest, settled, argument);
}

static void vm_disks_away(void *context, bool away, void (*done)(void *argument), void *argument)
{
    struct daemon *daemon = context;
    sidecars_away(&daemon->sidecars, away, done, argument);
}

static void vm_disk_grown(void *context, const struct disk *disk, uint64_t old_bytes, uint64_t size_bytes)
{
    struct daemon *daemon = context;
    log_info("disk %s has grown from %llu to %llu bytes", disk->name, (unsigned long long)old_bytes,
             (unsigned long long)size_bytes);
    vhost_exports_resized(&daemon->vhost_exports, disk);
    control_event_disk_resized(daemon->control, disk->name, old_bytes, size_bytes);
}

static void vm_snapshot_created(void *context, const struct snapshot *snapshot)
{
    struct daemon *daemon = context;
    control_event_snapshot_created(daemon->control, snapshot);
}

static void vm_snapshot_broken(void *context, const struct snapshot *snapshot)
{
    struct daemon *daemon = context;
    struct snapshot_info info;
    snapshot_info(snapshot, &info);
    log_warning("snapshot %s is broken: %s", info.name, info.reason);
    control_event_snapshot_broken(daemon->control, snapshot);
}

static void vm_snapshot_deleted(void *context, const char *name, const char *uuid)
{
    struct daemon *daemon = context;
    control_event_snapshot_deleted(daemon->control, name, uuid);
}

struct vm_hooks daemon_vm_hooks(struct daemon *daemon)
{
    return (struct vm_hooks){
        .context = daemon,
        .publish = vm_publish,
        .unpublish = vm_unpublish,
        .cache_open = vm_cache_open,
        .cache_close = vm_cache_close,
        .disk_identity = vm_disk_identity,
        .cache_describe = vm_cache_describe,
        .cache_adopt = vm_cache_adopt,
        .cache_threshold = vm_cache_threshold,
        .cache_resized = vm_cache_resized,
        .cache_space = vm_cache_space,
        .sidecar_open = vm_sidecar_open,
        .sidecar_keep = vm_sidecar_keep,
        .sidecar_remove = vm_sidecar_remove,
        .checkpoint_event = vm_checkpoint_event,
        .freeze = guest_can_freeze(&daemon->guest) ? vm_freeze : NULL,
        .freeze_cancel = vm_freeze_cancel,
        .thaw = vm_thaw,
        .disks_away = vm_disks_away,
        .disk_grown = vm_disk_grown,
        .snapshot_created = vm_snapshot_created,
        .snapshot_broken = vm_snapshot_broken,
        .snapshot_deleted = vm_snapshot_deleted,
    };
}
