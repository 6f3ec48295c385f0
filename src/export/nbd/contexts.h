/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Metadata contexts: what BLOCK_STATUS of an export can tell. A set of them is a mask of bits. Everything here is called on
 * the server's thread and looks only at what a node never changes.
 */
#ifndef FLEECE_EXPORT_NBD_CONTEXTS_H
#define FLEECE_EXPORT_NBD_CONTEXTS_H

#include "block/node.h"
#include "export/nbd/options.h"

enum nbd_context {
    NBD_CONTEXT_BASE_ALLOCATION,
    NBD_CONTEXT_RESIDENCE,
    NBD_CONTEXT_DIRTY, /* the first dirty map of the node; the others follow */
    NBD_CONTEXT_COUNT = NBD_CONTEXT_DIRTY + LIMIT_DIRTY_MAPS
};
/* Its number on the wire; its bit in a set. */
#define NBD_CONTEXT_ID(context) ((uint32_t)(context) + 1)
#define NBD_CONTEXT_BIT(context) (UINT32_C(1) << (context))
_Static_assert(NBD_CONTEXT_COUNT <= 32, "a set is 32 bits");

/* "qemu:dirty-bitmap:" and a name. */
enum { NBD_CONTEXT_NAME_BYTES = 18 + LIMIT_NAME_BYTES };

/* All that an export of the node has. */
uint32_t nbd_contexts_of(const struct node *node);
/* Its name, terminated, for one that the node's export has; returns the length. */
size_t nbd_context_name(const struct node *node, unsigned context, char name[NBD_CONTEXT_NAME_BYTES + 1]);
/*
 * Those that the queries of a checked request ask for. SET takes exact names. For LIST, no query means all, and what ends
 * with a colon all that begin with it: "base:", "fleece:", "qemu:", "qemu:dirty-bitmap:".
 */
uint32_t nbd_contexts_asked_for(const struct node *node, const struct nbd_meta_request *request, bool list);

#endif
