/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A point that stays is made anew without the expired ones that its images lie over:
 *
 *     begin a point -> for each disk: link its files, or merge -> exchange both folders (point_replace())
 *
 * Merging is a backup whose source is the chain of images from the point down to where the next one stays: what they
 * captured together is copied to one new image, with new hashes; every line that is read was compared with its old hash
 * before (chain_view.c). If nothing that stays lies below, the new image is full. It has the name that the old one had,
 * for other images may lie over it.
 *
 * Until the exchange the set is as it was, and after it nothing refers to the merged points any more.
 */
#include "cli/prune.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "cli/chain_images.h"
#include "cli/new_image.h"

unsigned prune_links_to_merge(const struct prune *prune, const struct chain *chain)
{
    unsigned count = 1;
    while (count < chain->count) {
        unsigned point = prune_find(prune, chain->links[count].point);
        if (point == prune->points.count || prune->kept[point])
            break;
        count++;
    }
    return count;
}

/* Whether the full image at the end of the chain was compressed: it takes noticeably less space than its data. */
static bool is_compressed(const struct chain_images *images, const struct chain_link *full)
{
    struct stat stat;
    const char *path = images->layers[images->count - 1].name;
    return full->disk.format == MANIFEST_QCOW2 && lstat(path, &stat) == 0 &&
           (uint64_t)stat.st_blocks * IMAGE_SECTOR_BYTES < full->disk.data_bytes - full->disk.data_bytes / 8;
}

static int create_image(struct prune *prune, const struct chain *chain, unsigned count, const char *path, bool compress,
                        struct node **image, struct error *err)
{
    char backing[PATH_MAX];
    struct new_image options = {.path = path, .format = MANIFEST_QCOW2};
    options.qcow2.size_bytes = chain->links[0].disk.size_bytes;
    options.qcow2.compression = compress ? QCOW2_ZSTD : QCOW2_PLAIN;
    chain_backing_name(chain, count - 1, backing, sizeof backing);
    if (backing[0]) {
        options.qcow2.backing_name = backing;
        options.qcow2.backing_format = manifest_format_name(chain->links[count].disk.format);
    }
    return new_image_create(&prune->transfer, &options, image, err);
}

/* What only one image has was compared with its hash, and keeps it. */
static bool has_hash(void *view, uint64_t extent, uint8_t *hash)
{
    return chain_view_hash(view, extent, hash);
}

/* All images are open, and so is the new one: `disk` gets its numbers. */
static int copy_images(struct prune *prune, struct point *point, const char *name, struct chain_images *images,
                       struct node *target, const char *path, struct manifest_disk *disk, struct error *err)
{
    struct hashes hashes;
    int status = hashes_init(&hashes, disk->size_bytes, disk->incremental, err);
    struct copy_options options = {.source = images->view,
                                   .target = target,
                                   .source_name = images->layers[0].name,
                                   .target_name = path,
                                   .target_is_zero = !disk->incremental,
                                   .dirty = disk->incremental,
                                   .hashes = hashes.sha256,
                                   .masks = hashes.masks,
                                   .proved = has_hash,
                                   .context = images->view};
    if (status == 0)
        status = transfer_copy(&prune->transfer, name, disk->name, &options, &disk->data_bytes, err);
    if (status < 0 && chain_view_error(images->view)->code)
        *err = *chain_view_error(images->view);
    if (status == 0)
        status = point_write_hashes(point, disk, &hashes, err);
    hashes_fini(&hashes);
    return status;
}

/* A new image for all of it. */
static int copy_to_new(struct prune *prune, struct point *point, const struct chain *chain, struct chain_images *images,
                       const char *path, struct manifest_disk *disk, struct error *err)
{
    struct node *target = NULL;
    unsigned count = images->count;
    bool compress = !disk->incremental && is_compressed(images, &chain->links[count - 1]);
    int status = chain_images_show(images, disk->size_bytes, NULL, err);
    if (status == 0)
        status = create_image(prune, chain, count, path, compress, &target, err);
    if (status == 0)
        status = copy_images(prune, point, chain->links[0].point, images, target, path, disk, err);
    if (target)
        node_destroy(target);
    return status;
}

/* Merges links [0, count) of the chain into a new image of the point. */
static int merge_disk(struct prune *prune, struct point *point, const struct chain *chain, unsigned count,
                      struct manifest_disk *disk, struct error *err)
{
    struct chain_images images;
    struct stat stat;
    char path[PATH_MAX];
    const struct chain_link *newest = &chain->links[0];
    int status = point_add_disk(point, newest->disk.name, MANIFEST_QCOW2, disk, path, sizeof path, err);
    if (status < 0)
        return status;
    assert(strcmp(disk->image, newest->disk.image) == 0); /* incremental images are qcow2, and so is the new one */
    disk->size_bytes = newest->disk.size_bytes;
    disk->incremental = count < chain->count;
    if (disk->incremental) {
        strcpy(disk->parent.point, chain->links[count].point);
        strcpy(disk->parent.snapshot, chain->links[count].snapshot);
    }
    status = chain_images_open(&prune->transfer, prune->set, chain, 0, count, &images, err);
    if (status < 0)
        return status;
    status = prune_clone(prune, point, chain, &images, path, disk, err);
    bool cloned = status <= 0;
    if (!cloned)
        status = copy_to_new(prune, point, chain, &images, path, disk, err);
    chain_images_close(&images);
    if (status == 0)
        status = point_note_image(point, disk, err);
    if (status == 0 && !cloned && lstat(path, &stat) == 0)
        prune->written_bytes += (uint64_t)stat.st_blocks * IMAGE_SECTOR_BYTES;
    return status;
}

/* The users of the points below: what the disk lay over loses one, what it lies over now gets one. */
static void move_users(struct prune *prune, const struct chain *chain, unsigned count)
{
    unsigned old = prune_find(prune, chain->links[1].point);
    if (old < prune->points.count)
        prune->users[old]--;
    unsigned new = count < chain->count ? prune_find(prune, chain->links[count].point) : prune->points.count;
    if (new < prune->points.count)
        prune->users[new]++;
}

static int remake_point(struct prune *prune, const char *name, struct manifest *manifest, const struct chain *chains,
                        struct error *err)
{
    struct point *point;
    int status = point_begin(prune->set, io_wall_ns(prune->transfer.io) / NS_PER_S, &point, NULL, err);
    if (status < 0)
        return status;
    for (unsigned i = 0; i < manifest->disk_count && status == 0; i++) {
        unsigned count = prune_links_to_merge(prune, &chains[i]);
        status = count == 1 ? point_link_disk(point, name, &manifest->disks[i], err)
                            : merge_disk(prune, point, &chains[i], count, &manifest->disks[i], err);
        if (transfer_interrupted(&prune->transfer))
            status = error_set(err, ECANCELED, "interrupted");
    }
    uint64_t freed_bytes = prune_space_of_point(prune, name, manifest); /* files have the same names as before */
    if (status == 0)
        status = point_replace(point, manifest, name, err);
    if (status == 0)
        prune->freed_bytes += freed_bytes;
    else
        point_abandon(point);
    return status;
}

int prune_merge_point(struct prune *prune, const char *point, struct manifest *manifest, struct error *err)
{
    struct chain chains[LIMIT_DISKS] = {{0}};
    bool any = false;
    char reason[LIMIT_ERROR_BYTES / 2];
    int status = 0;
    for (unsigned i = 0; i < manifest->disk_count && status == 0; i++) {
        status = chain_resolve(prune->set, point, manifest->disks[i].name, &chains[i], err);
        any |= status == 0 && prune_links_to_merge(prune, &chains[i]) > 1;
    }
    if (status == 0 && any && leftover_check(prune->set, point, reason, sizeof reason) < 0)
        status = error_set(err, EEXIST, "point %s of '%s' can't be made anew: %s", point, set_path(prune->set), reason);
    if (status == 0 && any && !prune->dry_run)
        status = remake_point(prune, point, manifest, chains, err);
    for (unsigned i = 0; i < manifest->disk_count && status == 0; i++)
        if (prune_links_to_merge(prune, &chains[i]) > 1)
            move_users(prune, &chains[i], prune_links_to_merge(prune, &chains[i]));
    prune->merged_count += status == 0 && any;
    for (unsigned i = 0; i < manifest->disk_count; i++)
        chain_free(&chains[i]);
    return status;
}
