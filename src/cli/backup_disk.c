/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One disk of a backup: the view of the snapshot is read as an NBD client and written to an image of the new point.
 *
 *     full          a raw file or a qcow2 image of its own
 *     incremental   a qcow2 overlay of the latest point's image of the disk: exactly the blocks that had changed at the
 *     cut, as
 *                   the snapshot's dirty map says, zeroes among them too (C25)
 *
 * Whether a disk goes incremental is the daemon's word, disk by disk; one that goes full though the others do not says
 * why. A disk of another size than before goes on as it is: what it gained or lost counts as changed, and an overlay
 * may be longer or shorter than what it lies over.
 */
#include "cli/backup.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/name.h"
#include "cli/new_image.h"
#include "driver/nbd.h"

/* The number of the dirty map of the base; -1: the view has none. */
static int find_map(const struct backup *backup, const struct node *records)
{
    for (unsigned i = 0; records && i < records->dirty_map_count; i++)
        if (strcmp(records->dirty_maps[i], backup->since_name) == 0)
            return (int)i;
    return -1;
}

struct disk_copy { /* the view, and what is known of one disk's extents */
    struct node *source, *records;
    struct hashes hashes;
    uint32_t *data;
    bool *already;
    struct resume_log log;
    uint64_t found; /* extents that are safe already */
};

static int disk_copy_init(struct disk_copy *copy, const struct manifest_disk *disk, struct error *err)
{
    uint64_t count = copy_extent_count(disk->size_bytes) + 1;
    memset(copy, 0, sizeof *copy);
    copy->data = calloc(count, sizeof *copy->data);
    copy->already = calloc(count, sizeof *copy->already);
    if (!copy->data || !copy->already)
        return error_set(err, ENOMEM, "no memory for the extents of disk %s", disk->name);
    return hashes_init(&copy->hashes, disk->size_bytes, disk->incremental, err);
}

static void disk_copy_fini(struct disk_copy *copy)
{
    hashes_fini(&copy->hashes);
    free(copy->data);
    free(copy->already);
}

/* On a helper thread: the image is safe so far. */
static int note_extents(void *context, const struct copy_run *runs, uint64_t count)
{
    struct disk_copy *copy = context;
    return resume_log_add(&copy->log, runs, count);
}

/* The nodes are open; fills in the rest of the disk's entry. */
static int copy_nodes(struct backup *backup, struct manifest_disk *disk, struct disk_copy *copy, struct node *target,
                      const char *path, struct error *err)
{
    char source_name[2 * LIMIT_NAME_BYTES + 2];
    snprintf(source_name, sizeof source_name, "%s@%s", disk->name, backup->snapshot);
    struct copy_options options = {.source = copy->source,
                                   .records = copy->records,
                                   .target = target,
                                   .source_name = source_name,
                                   .target_name = path,
                                   .target_is_zero = !disk->incremental,
                                   .advice = true,
                                   .release = true,
                                   .workers = disk->incremental ? COPY_WORKERS_INCREMENTAL : 0,
                                   .dirty = disk->incremental,
                                   .hashes = copy->hashes.sha256,
                                   .masks = copy->hashes.masks,
                                   .data = copy->data,
                                   .already = copy->already,
                                   .record = note_extents,
                                   .context = copy};
    int map = disk->incremental ? find_map(backup, copy->records) : 0;
    if (map < 0)
        return error_set(err, EPROTO, "the daemon shows no changes of disk %s since checkpoint '%s'", disk->name,
                         backup->since_name);
    options.dirty_map = (unsigned)map;
    int status = transfer_copy(&backup->transfer, NULL, disk->name, &options, &disk->data_bytes, err);
    return status == 0 ? point_write_hashes(backup->point, disk, &copy->hashes, err) : status;
}

/* The image, open to be written: a new one, or that of the backup that this one goes on with. */
static int open_image(struct backup *backup, const struct manifest_disk *disk, bool again, const char *path,
                      struct node **target, struct error *err)
{
    char backing[POINT_NAME_BYTES + LIMIT_IMAGE_NAME_BYTES + 8];
    struct new_image image = {.path = path, .format = disk->format, .qcow2.size_bytes = disk->size_bytes};
    if (again)
        return new_image_open(&backup->transfer, &image, target, err);
    unlink(path); /* nothing in it is known to be right */
    if (disk->incremental) {
        const struct manifest_disk *parent = manifest_disk_find(backup->base.latest, disk->name);
        snprintf(backing, sizeof backing, "../%s/%s", disk->parent.point, parent->image);
        image.qcow2.backing_name = backing;
        image.qcow2.backing_format = manifest_format_name(parent->format);
    } else if (backup->options.compress) {
        image.qcow2.compression = QCOW2_ZSTD;
    }
    return new_image_create(&backup->transfer, &image, target, err);
}

/* What kind of image the disk gets, and why. */
static void decide_kind(struct backup *backup, const json_t *export, struct manifest_disk *disk)
{
    const struct manifest *latest = backup->base.latest;
    disk->incremental = json_is_true(json_object_get(export, "incremental"));
    if (disk->incremental) {
        strcpy(disk->parent.point, backup->base.point);
        strcpy(disk->parent.snapshot, latest->snapshot);
        return;
    }
    if (backup->options.full || (!latest && !backup->base.reason[0]))
        return; /* full is what was wanted, or there is no point yet */
    bool is_new = latest && !manifest_disk_find(latest, disk->name);
    const char *why = is_new ? "the latest point has no such disk" : backup->base.reason;
    if (!is_new && !why[0])
        why = backup_text(export, "reason");
    backup_reason(disk->reason, why[0] ? why : "the daemon does not know what has changed");
    if (is_new)
        return;
    backup->warned = true;
    cli_warn("disk %s is backed up in full: %s", disk->name, disk->reason);
}

int backup_plan_disk(struct backup *backup, const json_t *export, struct error *err)
{
    struct manifest_disk *disk = &backup->manifest->disks[backup->manifest->disk_count];
    const char *name = backup_text(export, "disk");
    bool incremental = json_is_true(json_object_get(export, "incremental"));
    json_int_t size = json_integer_value(json_object_get(export, "size"));
    char path[PATH_MAX];
    int status = name_check("the daemon's disk name", name, err);
    if (status == 0 && (size <= 0 || (uint64_t)size > LIMIT_DISK_BYTES))
        status = error_set(err, EPROTO, "the daemon gave no size of disk %s that can be right", name);
    if (status == 0)
        status = point_add_disk(backup->point, name, incremental ? MANIFEST_QCOW2 : backup->options.format, disk, path,
                                sizeof path, err);
    if (status < 0)
        return status;
    disk->size_bytes = (uint64_t)size;
    decide_kind(backup, export, disk);
    backup->manifest->disk_count++;
    return 0;
}

static int open_view(struct backup *backup, const struct manifest_disk *disk, const char *uri, struct disk_copy *copy,
                     struct error *err)
{
    int status = nbd_node_open(backup->transfer.io, uri, true, &copy->source, err);
    if (status == 0)
        status = nbd_node_open_records(backup->transfer.io, uri, &copy->records, err);
    uint64_t size_bytes = status == 0 ? copy->source->size_bytes : 0;
    if (status == 0 && copy->records && copy->records->size_bytes != size_bytes)
        size_bytes = copy->records->size_bytes;
    if (status == 0 && size_bytes != disk->size_bytes)
        status = error_set(err, EPROTO, "disk %s of the snapshot has %llu bytes, not %llu", disk->name,
                           (unsigned long long)size_bytes, (unsigned long long)disk->size_bytes);
    return status;
}

static int copy_export(struct backup *backup, struct manifest_disk *disk, const char *uri, struct error *err)
{
    struct node *target = NULL;
    struct disk_copy copy;
    char path[PATH_MAX];
    point_file_path(backup->point, disk->image, path, sizeof path);
    int status = disk_copy_init(&copy, disk, err);
    if (status == 0)
        status = resume_log_open(backup->point, disk, &copy.hashes, copy.data, copy.already, &copy.log, &copy.found,
                                 err);
    if (status < 0) {
        disk_copy_fini(&copy);
        return status;
    }
    status = open_view(backup, disk, uri, &copy, err);
    if (status == 0)
        status = open_image(backup, disk, copy.found > 0, path, &target, err);
    if (status == 0)
        status = copy_nodes(backup, disk, &copy, target, path, err);
    if (target)
        node_destroy(target);
    if (copy.records)
        node_destroy(copy.records);
    if (copy.source)
        node_destroy(copy.source);
    if (status == 0)
        status = point_note_image(backup->point, disk, err);
    resume_log_close(&copy.log);
    disk_copy_fini(&copy);
    return status;
}

int backup_copy_disk(struct backup *backup, struct manifest_disk *disk, const json_t *export, struct error *err)
{
    const char *uri = backup_text(export, "uri");
    if (transfer_interrupted(&backup->transfer)) /* before the one step that a signal can't cut short */
        return error_set(err, ECANCELED, "the backup was cancelled");
    if (!uri[0])
        return error_set(err, EADDRNOTAVAIL, "the daemon gave no address where disk %s of the snapshot can be read",
                         disk->name);
    return copy_export(backup, disk, uri, err);
}
