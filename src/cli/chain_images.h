/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The images of a chain, open, with their hashes, and the view of what they hold together. */
#ifndef FLEECE_CLI_CHAIN_IMAGES_H
#define FLEECE_CLI_CHAIN_IMAGES_H

#include "cli/transfer.h"
#include "set/chain.h"
#include "set/chain_view.h"

struct chain_images {
    unsigned count;
    struct chain_layer *layers; /* the newest first */
    struct hashes *hashes;
    char **paths;
    struct node *view; /* NULL until chain_images_show() */
    struct transfer *transfer;
};

/*
 * Opens links [first, first + count) of a chain to be read, each alone: its file is there, what it says about itself
 * (size, the name of the file below it) is what the manifests say, and its hashes are right. -EBADMSG... with a sentence
 * that names the file. chain_images_close() on success.
 */
int chain_images_open(struct transfer *transfer, const struct set *set, const struct chain *chain, unsigned first,
                      unsigned count, struct chain_images *images, struct error *err);
/* Makes the view. The options but for io, size and layers, which are filled in; NULL: none. */
int chain_images_show(struct chain_images *images, uint64_t size_bytes, const struct chain_view_options *options,
                      struct error *err);
void chain_images_close(struct chain_images *images);

#endif
