/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Every image is opened by itself, an overlay without what lies below it: the manifests alone say what belongs together,
 * and a backing name in an image that was damaged, or forged, opens nothing. It is compared, for QEMU and its tools
 * follow it.
 */
#include "cli/chain_images.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "driver/qcow2/qcow2.h"
#include "job/image.h"

/* A long chain is as many files; the soft limit of 1024 is there for programs that use select(). */
static void allow_many_files(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

/* What the image says about itself against what the manifests say. */
static int check_qcow2(const struct node *image, const struct chain *chain, unsigned link, const char *path,
                       struct error *err)
{
    const struct manifest_disk *disk = &chain->links[link].disk;
    struct qcow2_info info;
    char backing[sizeof info.backing_name];
    const char *format = disk->incremental ? manifest_format_name(chain->links[link + 1].disk.format) : "";
    chain_backing_name(chain, link, backing, sizeof backing);
    qcow2_info(image, &info);
    if (info.size_bytes != round_up(disk->size_bytes, IMAGE_SECTOR_BYTES))
        return error_set(err, EBADMSG, "%s is damaged: it says that the disk has %llu bytes, not %llu", path,
                         (unsigned long long)info.size_bytes,
                         (unsigned long long)round_up(disk->size_bytes, IMAGE_SECTOR_BYTES));
    if (strcmp(info.backing_name, backing) != 0)
        return error_set(err, EBADMSG, "%s is damaged: its backing file is '%.120s', not '%s'", path, info.backing_name,
                         backing);
    if (strcmp(info.backing_format, format) != 0)
        return error_set(err, EBADMSG, "%s is damaged: the format of its backing file is '%s', not '%s'", path,
                         info.backing_format, format);
    return 0;
}

static int open_layer(struct chain_images *images, const struct set *set, const struct chain *chain, unsigned link,
                      struct error *err)
{
    struct hashes *hashes = &images->hashes[images->count];
    struct chain_layer *layer = &images->layers[images->count];
    const struct chain_link *at = &chain->links[link];
    char path[PATH_MAX];
    int status = set_hashes_load(set, at->point, &at->disk, hashes, err);
    if (status < 0)
        return status;
    layer->hashes = hashes;
    layer->name = images->paths[images->count] = NULL;
    images->count++; /* from here on chain_images_close() knows it */
    status = set_image_find(set, at->point, &at->disk, path, sizeof path, false, err);
    if (status == 0 && !(layer->name = images->paths[images->count - 1] = strdup(path)))
        status = error_set(err, ENOMEM, "no memory for a chain of images");
    if (status == 0 && at->disk.format == MANIFEST_RAW)
        return image_open(images->transfer->io, path, true, &layer->image, err);
    if (status == 0)
        status = transfer_open_qcow2(images->transfer, path, &layer->image, err);
    return status == 0 ? check_qcow2(layer->image, chain, link, path, err) : status;
}

int chain_images_open(struct transfer *transfer, const struct set *set, const struct chain *chain, unsigned first,
                      unsigned count, struct chain_images *images, struct error *err)
{
    *images = (struct chain_images){.transfer = transfer,
                                    .layers = calloc(count, sizeof *images->layers),
                                    .hashes = calloc(count, sizeof *images->hashes),
                                    .paths = calloc(count, sizeof *images->paths)};
    int status = images->layers && images->hashes && images->paths
                     ? 0
                     : error_set(err, ENOMEM, "no memory for a chain of %u images", count);
    allow_many_files();
    for (unsigned i = 0; i < count && status == 0; i++)
        status = open_layer(images, set, chain, first + i, err);
    if (status < 0)
        chain_images_close(images);
    return status;
}

int chain_images_show(struct chain_images *images, uint64_t size_bytes, const struct chain_view_options *options,
                      struct error *err)
{
    struct chain_view_options own = options ? *options : (struct chain_view_options){0};
    own.io = images->transfer->io;
    own.size_bytes = size_bytes;
    own.layers = images->layers;
    own.layer_count = images->count;
    return chain_view_create(&own, &images->view, err);
}

void chain_images_close(struct chain_images *images)
{
    if (images->view)
        node_destroy(images->view);
    for (unsigned i = 0; i < images->count; i++) {
        if (images->layers[i].image)
            node_destroy(images->layers[i].image);
        hashes_fini(&images->hashes[i]);
        free(images->paths[i]);
    }
    free(images->layers);
    free(images->hashes);
    free(images->paths);
    memset(images, 0, sizeof *images);
}
