/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * When nothing that stays lies below, the new image is full: a large one, of which little is new. Where the file system can
 * share blocks between files (XFS, btrfs), it begins as a clone of the old full image, and only what was captured since is
 * written to it. The cost then is that of the changes:
 *
 *     clone the file (FICLONE) -> write the captured blocks -> hash anew each extent that has some; the others keep their
 * hash
 *
 * Nothing is written to the old image, so a kill leaves what it always does. Where the file system can't do that, or the
 * disk has changed its size, all is copied (prune_merge.c).
 */
#include "cli/prune.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/new_image.h"

struct clone {
    struct prune *prune;
    struct chain_images *images;
    const char *point, *path;
    struct manifest_disk *disk;
    const struct manifest_disk *old; /* the full one */
    uint8_t *captured,
        *touched; /* COPY_MASK_BYTES of each extent: blocks that are new; all blocks where there are any */
    uint32_t *old_data, *new_data; /* bytes of each touched extent that are not zero */
};

static bool sizes_are_equal(const struct chain_images *images)
{
    for (unsigned i = 1; i < images->count; i++)
        if (images->layers[i].hashes->size_bytes != images->layers[0].hashes->size_bytes)
            return false;
    return true;
}

/* 0, or -errno: this file system can't. */
static int clone_file(const char *from, const char *to)
{
    int source = open(from, O_RDONLY | O_CLOEXEC | O_NOFOLLOW), target = -1, status = 0;
    if (source >= 0)
        target = open(to, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (source < 0 || target < 0 || ioctl(target, FICLONE, source) < 0)
        status = -errno;
    if (target >= 0)
        close(target);
    if (source >= 0)
        close(source);
    if (status < 0 && target >= 0)
        unlink(to);
    return status;
}

static int find_blocks(struct clone *clone)
{
    const struct chain_layer *layers = clone->images->layers;
    uint64_t count = layers[0].hashes->count, blocks = count * 8 * COPY_MASK_BYTES;
    clone->captured = calloc(count, COPY_MASK_BYTES);
    clone->touched = calloc(count, COPY_MASK_BYTES);
    clone->old_data = calloc(count, sizeof *clone->old_data);
    clone->new_data = calloc(count, sizeof *clone->new_data);
    if (!clone->captured || !clone->touched || !clone->old_data || !clone->new_data)
        return -ENOMEM;
    for (unsigned i = 0; i + 1 < clone->images->count; i++)
        for (uint64_t byte = 0; byte < count * COPY_MASK_BYTES; byte++)
            clone->captured[byte] |= layers[i].hashes->masks[byte];
    for (uint64_t block = 0; block < blocks && block * HASHES_BLOCK_BYTES < clone->disk->size_bytes; block++) {
        const uint8_t *mask = clone->captured + block / 8 / COPY_MASK_BYTES * COPY_MASK_BYTES;
        if (mask[0] || memcmp(mask, mask + 1, COPY_MASK_BYTES - 1) != 0)
            clone->touched[block / 8] |= (uint8_t)(1u << block % 8);
    }
    return 0;
}

/* What the clone has for itself, and what it shares with the old image. */
static void count_space(const struct clone *clone, uint64_t extents)
{
    struct stat stat;
    uint64_t own_bytes = 0;
    for (uint64_t byte = 0; byte < extents * COPY_MASK_BYTES; byte++)
        own_bytes += (uint64_t)__builtin_popcount(clone->captured[byte]) * HASHES_BLOCK_BYTES;
    uint64_t bytes = lstat(clone->path, &stat) == 0 ? (uint64_t)stat.st_blocks * IMAGE_SECTOR_BYTES : 0;
    clone->prune->written_bytes += own_bytes;
    clone->prune->shared_bytes += bytes > own_bytes ? bytes - own_bytes : 0;
}

/* Copies what the layers [first, first + count) hold together. `options` but for the source. */
static int copy_layers(struct clone *clone, unsigned first, unsigned count, struct copy_options options,
                       struct error *err)
{
    struct node *view;
    uint64_t data_bytes;
    struct chain_view_options view_options = {.io = clone->prune->transfer.io,
                                              .size_bytes = clone->disk->size_bytes,
                                              .layers = clone->images->layers + first,
                                              .layer_count = count};
    int status = chain_view_create(&view_options, &view, err);
    if (status < 0)
        return status;
    options.source = view;
    options.source_name = clone->images->layers[first].name;
    status = transfer_copy(&clone->prune->transfer, clone->point, clone->disk->name, &options, &data_bytes, err);
    if (status < 0 && chain_view_error(view)->code)
        *err = *chain_view_error(view);
    node_destroy(view);
    return status;
}

static int write_blocks(struct clone *clone, struct error *err)
{
    struct new_image image = {.path = clone->path, .format = MANIFEST_QCOW2};
    struct node *target;
    int status = new_image_open(&clone->prune->transfer, &image, &target, err);
    if (status < 0)
        return status;
    struct copy_options options = {.target = target, .target_name = clone->path, .wanted = clone->captured};
    status = copy_layers(clone, 0, clone->images->count - 1, options, err);
    node_destroy(target);
    return status;
}

/* The hashes of the touched extents, and what they add to the data that is not zero. */
static int hash_extents(struct clone *clone, struct hashes *hashes, struct error *err)
{
    struct copy_options before = {.wanted = clone->touched, .data = clone->old_data};
    struct copy_options after = {.wanted = clone->touched, .data = clone->new_data, .hashes = hashes->sha256};
    int status = copy_layers(clone, clone->images->count - 1, 1, before, err);
    if (status == 0)
        status = copy_layers(clone, 0, clone->images->count, after, err);
    clone->disk->data_bytes = clone->old->data_bytes;
    for (uint64_t i = 0; i < hashes->count && status == 0; i++)
        clone->disk->data_bytes += (uint64_t)clone->new_data[i] - clone->old_data[i];
    return status;
}

static int clone_and_write(struct clone *clone, struct point *point, struct error *err)
{
    const struct hashes *old = clone->images->layers[clone->images->count - 1].hashes;
    struct hashes hashes = {0};
    int status = find_blocks(clone) < 0 ? error_set(err, ENOMEM, "no memory to merge disk %s", clone->disk->name) : 0;
    if (status == 0)
        status = hashes_init(&hashes, clone->disk->size_bytes, false, err);
    if (status == 0) {
        memcpy(hashes.sha256, old->sha256, hashes.count * COPY_HASH_BYTES);
        status = write_blocks(clone, err);
    }
    if (status == 0)
        status = hash_extents(clone, &hashes, err);
    if (status == 0)
        status = point_write_hashes(point, clone->disk, &hashes, err);
    if (status == 0)
        count_space(clone, hashes.count);
    hashes_fini(&hashes);
    free(clone->captured);
    free(clone->touched);
    free(clone->old_data);
    free(clone->new_data);
    return status;
}

int prune_clone(struct prune *prune, struct point *point, const struct chain *chain, struct chain_images *images,
                const char *path, struct manifest_disk *disk, struct error *err)
{
    const struct manifest_disk *old = &chain->links[images->count - 1].disk;
    struct clone clone = {
        .prune = prune, .images = images, .point = chain->links[0].point, .path = path, .disk = disk, .old = old};
    if (disk->incremental || old->format != MANIFEST_QCOW2 || !sizes_are_equal(images) ||
        clone_file(images->layers[images->count - 1].name, path) < 0)
        return 1;
    return clone_and_write(&clone, point, err);
}
