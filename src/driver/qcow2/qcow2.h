/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The qcow2 driver: a node over a node with the image's file, and perhaps one with the image that it is an overlay of.
 * Whoever opens images resolves names: the driver opens no files itself. Lives on the reactor of the file's node.
 */
#ifndef FLEECE_DRIVER_QCOW2_QCOW2_H
#define FLEECE_DRIVER_QCOW2_QCOW2_H

#include "block/node.h"

enum qcow2_compression { QCOW2_PLAIN, QCOW2_ZSTD };

struct qcow2_create_options {
    uint64_t size_bytes;                /* of the virtual disk */
    const char *backing_name;           /* stored in the header as it is (relative); NULL: none */
    const char *backing_format;         /* "raw" or "qcow2"; with backing_name */
    enum qcow2_compression compression; /* what qcow2_compress_set() may ask for later */
};

/* What an image says about itself, before anything else is opened. */
struct qcow2_info {
    uint64_t size_bytes;
    char backing_name[1024]; /* empty: it has none */
    char backing_format[16]; /* empty: the image does not say */
};

/*
 * Both: done() is called later, once, on the thread of `file`, unless the result is -ENOMEM. Sentences do not name the file;
 * the caller puts its name before them.
 */

/* Writes an empty image into `file`, which is empty and growable, and flushes it. Then open it. */
int qcow2_create(struct node *file, const struct qcow2_create_options *options,
                 void (*done)(void *argument, int status, const struct error *err), void *argument);
/* Reads and checks the header. Unknown incompatible features, dirty or corrupt bits, encryption, data elsewhere:
 * refused, each by its name; for writing also snapshots inside, and a file that is not growable. On success the image
 * has taken `file` over, else `image` is NULL. Then qcow2_backing_set() if it has a backing file. */
int qcow2_open(struct node *file, bool read_only,
               void (*done)(void *argument, struct node *image, const struct error *err), void *argument);
void qcow2_info(const struct node *image, struct qcow2_info *info);
/* Takes over `backing`: where the image has nothing, it reads from there, and zeroes behind its end. Before the first
 * request. An image that says that it has one, and was given none, answers requests that need it with -ENODATA;
 * REQUEST_TOP never does. */
void qcow2_backing_set(struct node *image, struct node *backing);
/* Before the first request: a write may be over before its mapping has left this process, until the next flush. For images
 * that are of no use before a last flush; else a write is over when the kernel has all of it. */
void qcow2_write_back_set(struct node *image);
/* From now on clusters that are written whole are compressed, on helper threads. It was created with QCOW2_ZSTD, and is
 * written back. */
void qcow2_compress_set(struct node *image);

#endif
