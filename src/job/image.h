/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Raw images as nodes: what a copy reads or writes. All functions block for a moment. */
#ifndef FLEECE_JOB_IMAGE_H
#define FLEECE_JOB_IMAGE_H

#include "block/node.h"

/* A new file of that size, all zero. Past the page cache where the file system can. -EEXIST... with a sentence. */
int image_create(struct io *io, const char *path, uint64_t size_bytes, struct node **node, struct error *err);
/* A file or block device that is there. */
int image_open(struct io *io, const char *path, bool read_only, struct node **node, struct error *err);

#endif
