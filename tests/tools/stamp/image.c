// SPDX-License-Identifier: GPL-2.0-or-later
/* Images to judge; see image.h. */
#include "image.h"

#include <errno.h>
#include <fcntl.h>
#include <libnbd.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int image_open(struct image *image, const char *name)
{
    *image = (struct image){.name = name, .fd = -1};
    if (strstr(name, "://") != NULL) {
        image->nbd = nbd_create();
        if (image->nbd == NULL || nbd_connect_uri(image->nbd, name) == -1) {
            fprintf(stderr, "stamp: %s: %s\n", name, nbd_get_error());
            image_close(image);
            return -1;
        }
        return 0;
    }
    image->fd = open(name, O_RDONLY | O_CLOEXEC);
    if (image->fd < 0) {
        fprintf(stderr, "stamp: %s: %s\n", name, strerror(errno));
        return -1;
    }
    return 0;
}

int image_read(struct image *image, void *buffer, uint64_t offset, uint64_t length)
{
    if (image->nbd != NULL) {
        if (nbd_pread(image->nbd, buffer, length, offset, 0) == 0)
            return 0;
        fprintf(stderr, "stamp: %s: %s\n", image->name, nbd_get_error());
        return -1;
    }
    char *to = buffer;
    while (length > 0) {
        ssize_t got = pread(image->fd, to, length, (off_t)offset);
        if (got <= 0) {
            fprintf(stderr, "stamp: %s: byte %llu: %s\n", image->name, (unsigned long long)offset,
                    got == 0 ? "the image ends there" : strerror(errno));
            return -1;
        }
        to += got;
        offset += (uint64_t)got;
        length -= (uint64_t)got;
    }
    return 0;
}

void image_close(struct image *image)
{
    if (image->nbd != NULL) {
        if (nbd_aio_is_ready(image->nbd) == 1)
            nbd_shutdown(image->nbd, 0);
        nbd_close(image->nbd);
    }
    if (image->fd >= 0)
        close(image->fd);
    *image = (struct image){.fd = -1};
}
