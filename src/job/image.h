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

/*
 * What is known of the changes of an image is void when somebody else writes it (C11): takes its sidecar away, durably. The
 * caller has the image's lock, so no daemon uses it. A stranger's file of that name stays. 0 or -errno with a sentence.
 */
int image_untrack(const char *path, struct error *err);

#endif
