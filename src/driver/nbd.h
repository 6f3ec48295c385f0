/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The NBD client driver (libnbd): a node that is somebody's export. Its thread also runs libnbd's socket calls, driven by
 * io_poll(). A lost connection fails everything under way and everything after it with -ENOTCONN. The export of a snapshot
 * of ours (it has the meta context fleece:residence) answers REQUEST_RESIDENCE, and releases what is discarded if it can.
 * Contexts qemu:dirty-bitmap:NAME of any export are the node's dirty maps.
 */
#ifndef FLEECE_DRIVER_NBD_H
#define FLEECE_DRIVER_NBD_H

#include <stdatomic.h>

#include "block/node.h"

/* Connects and negotiates; blocks, for NBD_CONNECT_NS at most. uri: "nbd+unix:///vda@snap?socket=/path",
 * "nbd://127.0.0.1:10809/vda". */
int nbd_node_open(struct io *io, const char *uri, bool read_only, struct node **node, struct error *err);
/* The same, given up soon after *stop has become true, with -ECANCELED. */
int nbd_node_open_until(struct io *io, const char *uri, bool read_only, const atomic_bool *stop, struct node **node,
                        struct error *err);

/*
 * Another connection to an export of a snapshot, for REQUEST_RESIDENCE and dirty maps: an NBD server answers about all that
 * a connection has selected, and to say where a disk has holes is work for it, which these questions don't need. *node is
 * NULL if the export has nothing of the kind.
 */
int nbd_node_open_records(struct io *io, const char *uri, struct node **node, struct error *err);

/* Hangs up without waiting for a server that may not answer any more: what is under way fails soon with -ENOTCONN, and
 * so does everything after it. Owner thread; the node stays until it is destroyed. */
void nbd_node_hang_up(struct node *node);

#endif
