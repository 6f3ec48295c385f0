/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A new image, made and opened to be written: raw, or qcow2, the latter perhaps as an overlay. */
#ifndef FLEECE_CLI_NEW_IMAGE_H
#define FLEECE_CLI_NEW_IMAGE_H

#include "cli/transfer.h"
#include "driver/qcow2/qcow2.h"
#include "set/manifest.h"

struct new_image {
    const char *path; /* of a file that is not there */
    enum manifest_format format;
    struct qcow2_create_options qcow2; /* of both formats, size_bytes: that of the disk; rounded up as qcow2 wants it */
};

/* The node writes to the image alone: what lies under an overlay is not looked at. On failure no file is left. */
int new_image_create(struct transfer *transfer, const struct new_image *image, struct node **node, struct error *err);
/* One that was made so before, and is to be written on. It may have been left by a crash. */
int new_image_open(struct transfer *transfer, const struct new_image *image, struct node **node, struct error *err);

#endif
