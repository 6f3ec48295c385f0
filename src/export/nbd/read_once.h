/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What one connection has been sent of a snapshot whose blocks are read once, and its release. On the reactor of the
 * export's node; see read_once.c.
 */
#ifndef FLEECE_EXPORT_NBD_READ_ONCE_H
#define FLEECE_EXPORT_NBD_READ_ONCE_H

#include <stdatomic.h>

#include "base/range.h"

struct nbd_home;
struct nbd_read_once;

struct nbd_read_once_totals {      /* of a server; any thread */
    atomic_ullong sent_bytes;      /* of whole replies that have left */
    atomic_ullong released_bytes;  /* of these, in blocks that were released for it */
    atomic_ullong forgotten_bytes; /* not remembered, for want of memory: they stay until the snapshot ends */
    atomic_ullong memory_bytes;    /* that remembering takes now */
};

/*
 * The whole reply to a READ of that range has left. `once` is the connection's, NULL before its first: so one that reads
 * nothing costs nothing. It stays NULL when the export is no such snapshot, or when there is no memory.
 */
void nbd_read_once_note(struct nbd_home *home, struct nbd_read_once **once, struct range range);
/* The connection is over; goodbye: in good order, its client has all that it was sent. Frees itself when it is through. */
void nbd_read_once_end(struct nbd_read_once *once, bool goodbye);
/* The export goes: nothing more is released. */
void nbd_read_once_stop(struct nbd_home *home);

#endif
