/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Connections that have not chosen an export yet, on the server's thread. */
#ifndef FLEECE_EXPORT_NBD_HANDSHAKE_H
#define FLEECE_EXPORT_NBD_HANDSHAKE_H

#include "export/nbd/table.h"

struct nbd_lobby {
    struct io *io;
    struct nbd_table *table;
    atomic_ullong connections; /* all of the server, sessions included */
    struct list handshakes;
    void (*emptied)(struct nbd_lobby *lobby); /* the last handshake is over; never inside nbd_lobby_clear() */
};

/* Takes over the descriptor. Too many connections: closes it. */
void nbd_handshake_start(struct nbd_lobby *lobby, int fd);
/* Ends all handshakes, soon. */
void nbd_lobby_clear(struct nbd_lobby *lobby);

#endif
