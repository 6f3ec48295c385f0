/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The beginning of a connection to an NBD server: for nbd.c. */
#ifndef FLEECE_DRIVER_NBD_CONNECT_H
#define FLEECE_DRIVER_NBD_CONNECT_H

#include <stdatomic.h>

#include <libnbd.h>

#include "base/error.h"
#include "io/io.h"

#define NBD_ALLOCATION_CONTEXT "base:allocation"
/* Fleece's own: where a snapshot's blocks are, with the bits of enum residence_flags. */
#define NBD_RESIDENCE_CONTEXT "fleece:residence"
/* QEMU's, with a name behind it: what has changed, with the bit of enum dirty_flags. */
#define NBD_DIRTY_PREFIX "qemu:dirty-bitmap:"

struct nbd_dirty_maps { /* that an export has */
    unsigned count;
    const char *names[LIMIT_DIRTY_MAPS];                                         /* behind the prefix in: */
    char contexts[LIMIT_DIRTY_MAPS][sizeof NBD_DIRTY_PREFIX + LIMIT_NAME_BYTES]; /* as the server calls them */
};

/*
 * Connects `handle`, which is new, and selects all contexts above that the export has, NBD_ALLOCATION_CONTEXT only with
 * `allocation`: of the dirty maps, the first
 * LIMIT_DIRTY_MAPS that the server lists whose names have at most LIMIT_NAME_BYTES. Blocks for NBD_CONNECT_NS at most, and
 * gives up soon after *stop has become true (NULL: nobody can stop it). `maps` is used for as long as the handle.
 */
int nbd_connect(struct io *io, struct nbd_handle *handle, const char *uri, bool allocation, const atomic_bool *stop,
                struct nbd_dirty_maps *maps, struct error *err);

#endif
