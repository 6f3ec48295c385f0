/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The qcow2 driver never blocks, and needs a reactor that runs: so what it does is waited for here, on the transfer's
 * reactor, which does nothing else meanwhile.
 */
#include "cli/new_image.h"

#include <errno.h>
#include <unistd.h>

#include "base/range.h"
#include "driver/null.h"
#include "io/ring.h"
#include "job/image.h"

struct wait {
    struct transfer *transfer;
    int status;
    struct node *image;
    struct error err;
};

static void wait_over(struct wait *wait, int status, const struct error *err)
{
    wait->status = status;
    if (status < 0)
        wait->err = *err;
    ring_quit(wait->transfer->io);
}

static void image_created(void *argument, int status, const struct error *err)
{
    wait_over(argument, status, err);
}

static void image_opened(void *argument, struct node *image, const struct error *err)
{
    struct wait *wait = argument;
    wait->image = image;
    wait_over(wait, image ? 0 : -err->code, err);
}

/* What of the last block lies behind the end of the disk is zero, and not what the image below holds there. */
static int lay_over_nothing(struct transfer *transfer, struct node *image, struct error *err)
{
    struct qcow2_info info;
    qcow2_info(image, &info);
    if (!info.backing_name[0])
        return 0;
    struct node *nothing = null_create(transfer->io, info.size_bytes);
    if (!nothing) {
        node_destroy(image);
        return error_set(err, ENOMEM, "no memory to open an image");
    }
    qcow2_backing_set(image, nothing);
    return 0;
}

/* Takes over `file`, also on failure. */
static int open_qcow2(struct transfer *transfer, struct node *file, struct node **node, struct error *err)
{
    struct wait wait = {.transfer = transfer};
    if (qcow2_open(file, false, image_opened, &wait) < 0)
        wait.status = error_set(&wait.err, ENOMEM, "no memory for an image");
    else
        ring_run(transfer->io);
    if (wait.status < 0) {
        node_destroy(file);
        *err = wait.err;
        return wait.status;
    }
    *node = wait.image;
    qcow2_write_back_set(wait.image);
    return lay_over_nothing(transfer, wait.image, err);
}

static int create_qcow2(struct transfer *transfer, const struct new_image *image, struct node **node, struct error *err)
{
    struct wait wait = {.transfer = transfer};
    struct qcow2_create_options options = image->qcow2;
    struct node *file;
    int status = image_create_growable(transfer->io, image->path, &file, err);
    if (status < 0)
        return status;
    options.size_bytes = round_up(options.size_bytes, IMAGE_SECTOR_BYTES);
    if (qcow2_create(file, &options, image_created, &wait) < 0)
        wait.status = error_set(&wait.err, ENOMEM, "no memory for an image");
    else
        ring_run(transfer->io);
    if (wait.status < 0) {
        node_destroy(file);
        *err = wait.err;
        status = wait.status;
    } else {
        status = open_qcow2(transfer, file, node, err);
    }
    if (status < 0)
        unlink(image->path);
    return status;
}

int new_image_create(struct transfer *transfer, const struct new_image *image, struct node **node, struct error *err)
{
    if (image->format == MANIFEST_RAW)
        return image_create(transfer->io, image->path, image->qcow2.size_bytes, node, err);
    int status = create_qcow2(transfer, image, node, err);
    if (status == 0 && image->qcow2.compression != QCOW2_PLAIN)
        qcow2_compress_set(*node);
    return status < 0 ? error_prefix(err, "%s", image->path) : 0;
}

int new_image_open(struct transfer *transfer, const struct new_image *image, struct node **node, struct error *err)
{
    struct node *file;
    if (image->format == MANIFEST_RAW)
        return image_open(transfer->io, image->path, false, node, err);
    int status = image_open_growable(transfer->io, image->path, &file, err);
    if (status == 0)
        status = open_qcow2(transfer, file, node, err);
    return status < 0 ? error_prefix(err, "%s", image->path) : 0;
}
