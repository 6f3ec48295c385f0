/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A qcow2 image as a node, with the images that it is an overlay of. */
#ifndef FLEECE_JOB_IMAGE_CHAIN_H
#define FLEECE_JOB_IMAGE_CHAIN_H

#include "block/node.h"

struct image_chain_options {
    struct io *io;      /* a ring of this thread whose loop does not run: it runs until the images are open */
    bool elsewhere;     /* ... or one whose loop runs on another thread, which is waited for */
    const char *path;   /* a file; it may be anywhere */
    const char *folder; /* backing files are to lie in it, or below; NULL: anywhere, and may be named absolutely */
    bool read_only;     /* the image; those behind it always are */
    /* Of the image: see driver/file.h. */
    bool page_cache;
    uint64_t lock_wait_ns;
    void (*waiting)(void *context, const char *path);
    void *waiting_context;
    struct node **file; /* if not NULL: the node of its file, which the image owns */
};

/*
 * Names of backing files are relative to the image that names them. Refused, with a folder: other names, names that
 * lead out of the folder or to anything but a regular file, images that do not say the format of what is behind them or
 * name one that is neither qcow2 nor raw, an image that is behind itself, more than LIMIT_BACKING_DEPTH images. 0, or
 * -errno with a sentence that names the file. Blocks.
 */
int image_chain_open(const struct image_chain_options *options, struct node **node, struct error *err);

#endif
