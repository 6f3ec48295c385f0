/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Images as nodes: what a copy reads or writes, and the files that the qcow2 driver works on. All functions block for a
 * moment. */
#ifndef FLEECE_JOB_IMAGE_H
#define FLEECE_JOB_IMAGE_H

#include "block/node.h"

/* A new file of that size, all zero. Past the page cache where the file system can. -EEXIST... with a sentence. */
int image_create(struct io *io, const char *path, uint64_t size_bytes, struct node **node, struct error *err);
/* A file or block device that is there. */
int image_open(struct io *io, const char *path, bool read_only, struct node **node, struct error *err);
/* A new file of no bytes, and one that is there: what is written extends it. */
int image_create_growable(struct io *io, const char *path, struct node **node, struct error *err);
int image_open_growable(struct io *io, const char *path, struct node **node, struct error *err);

#endif
