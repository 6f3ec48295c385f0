/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The NBD server of a VM: listeners, a table of exports, connections.
 *
 * It lives on one reactor (`io`), where connections are accepted and shake hands. A connection that has chosen an export
 * moves to the reactor of that export's node and stays there. All functions are called on the server's own thread.
 */
#ifndef FLEECE_EXPORT_NBD_SERVER_H
#define FLEECE_EXPORT_NBD_SERVER_H

#include "base/error.h"
#include "block/node.h"

struct nbd_server;

struct nbd_export {
    const char *name;        /* copied */
    const char *description; /* copied; may be NULL */
    struct node *node;       /* must stay until nbd_server_export_remove() says done */
    bool read_only;          /* refuse writes and releases, although the node could */
};

struct nbd_server *nbd_server_create(struct io *io);
/* "unix:PATH" or "tcp:HOST:PORT"; TCP on loopback addresses only, until there is TLS: -EPERM with a sentence. */
int nbd_server_listen(struct nbd_server *server, const char *address, struct error *err);
/* Serves one connection that is already there (tests, fuzzing). */
void nbd_server_adopt(struct nbd_server *server, int fd);
int nbd_server_export_add(struct nbd_server *server, const struct nbd_export *export, struct error *err);
/* No new connection finds it; those on it are shut down; `done` is called when none is left. */
void nbd_server_export_remove(struct nbd_server *server, const char *name, void (*done)(void *argument),
                              void *argument);
/* Stops listening, ends all connections (requests under way answer ESHUTDOWN), removes all exports, frees the server. */
void nbd_server_destroy(struct nbd_server *server, void (*done)(void *argument), void *argument);

struct nbd_export_status {
    char name[2 * LIMIT_NAME_BYTES + 2];
    uint64_t size_bytes;
    bool read_only;       /* WRITE and WRITE_ZEROES are refused; TRIM of a snapshot's view may release all the same */
    uint64_t connections; /* now */
};
struct nbd_server_status {
    unsigned export_count;
    uint64_t connections; /* all, handshakes included */
    uint64_t buffer_bytes_now, buffer_bytes_peak;
    /* Of exports that are read once: see export/nbd/read_once.h. */
    uint64_t read_once_sent_bytes, read_once_released_bytes, read_once_forgotten_bytes, read_once_memory_bytes;
    struct nbd_export_status exports[]; /* export_count */
};
/* Freed by the caller. */
struct nbd_server_status *nbd_server_status(struct nbd_server *server);

#endif
