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
    uint64_t size_bytes;                /* of the virtual disk; a multiple of 512 */
    const char *backing_name;           /* stored in the header as it is (relative); NULL: none */
    const char *backing_format;         /* "raw" or "qcow2"; with backing_name */
    enum qcow2_compression compression; /* of clusters that are written whole, by this process, one after the other */
};

/* What an image says about itself, before anything else is opened. */
struct qcow2_info {
    uint64_t size_bytes;
    char backing_name[1024]; /* empty: it has none */
    char backing_format[16]; /* empty: the image does not say */
};

/* Nothing here blocks: done() is called later, once, on the thread of `file`. On success the image has taken `file` over. */

/* Writes an empty image into `file`, which is empty (size 0 or all zeroes) and can grow. Then open it. */
void qcow2_create(struct node *file, const struct qcow2_create_options *options,
                  void (*done)(void *argument, int status, const struct error *err), void *argument);
/* Reads and checks header and tables' bounds. Unknown incompatible features, dirty or corrupt bits, encryption: refused,
 * each by its name. Then qcow2_backing_set() if it has a backing file. */
void qcow2_open(struct node *file, bool read_only,
                void (*done)(void *argument, struct node *image, const struct error *err), void *argument);
void qcow2_info(const struct node *image, struct qcow2_info *info);
/* Takes over `backing`: where the image has nothing, it reads from there, and zeroes behind its end. Before the first
 * request. */
void qcow2_backing_set(struct node *image, struct node *backing);

#endif
