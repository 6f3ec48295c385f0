/* SPDX-License-Identifier: GPL-2.0-or-later */
/* An image to judge: a raw file or block device, or an NBD export (a URI with "://"). */
#ifndef STAMP_IMAGE_H
#define STAMP_IMAGE_H

#include <stdint.h>

struct nbd_handle;

struct image {
    const char *name; /* the caller's */
    int fd;
    struct nbd_handle *nbd;
};

/* 0, or -1 with a sentence on stderr; so do the others. */
int image_open(struct image *image, const char *name);
int image_read(struct image *image, void *buffer, uint64_t offset, uint64_t length);
void image_close(struct image *image);

#endif
