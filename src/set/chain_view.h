/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the images of a chain hold together, as a node that can be read: no byte of it is given out before the SHA-256 of
 * the line that it belongs to was compared. Unlike the rest of set/ it lives on a reactor, that of its images.
 */
#ifndef FLEECE_SET_CHAIN_VIEW_H
#define FLEECE_SET_CHAIN_VIEW_H

#include "base/bitmap.h"
#include "block/node.h"
#include "set/hashes.h"

struct chain_layer {
    struct node *image;          /* what this image alone holds: it is opened without its backing file */
    const struct hashes *hashes; /* of it */
    const char *name;            /* its path, for sentences */
};

struct chain_view_options {
    struct io *io;
    uint64_t size_bytes;              /* of the disk; where no layer has anything it is zero */
    const struct chain_layer *layers; /* the newest first; all of it stays the caller's, and must outlive the node */
    unsigned layer_count;
    const struct bitmap *only; /* extents that are looked at; the others count as zero. NULL: all */
    /*
     * For verifying: called once or more often for each extent of a layer that can't be read (status) or has another hash
     * (-EBADMSG); the read then goes on. What is recorded as zeroes is looked at, too. NULL: the read fails with that
     * status.
     */
    void (*damaged)(void *context, unsigned layer, struct range extent, int status);
    void *context;
};

/*
 * A read-only node. Its block status is in whole extents of 1 MiB: reading a part of one costs reading all of it. It has one
 * dirty map, "captured": the blocks that any of the layers holds, or that lie behind the end of one, and so are zero.
 * -ENOMEM with a sentence.
 */
int chain_view_create(const struct chain_view_options *options, struct node **node, struct error *err);
/*
 * Whether all that the chain has of the extent is one line of one layer: then what was read of it has been compared with
 * that line's hash, which is copied to hash[COPY_HASH_BYTES]: of the captured blocks, and of the whole extent where a layer
 * is a full image. For copy_options.proved.
 */
bool chain_view_hash(const struct node *node, uint64_t extent, uint8_t *hash);
/* The first thing that failed a read, with file and place; code 0: nothing did. */
const struct error *chain_view_error(const struct node *node);

#endif
