/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A disk as a vhost-user-blk device on a unix socket. It serves one front-end at a time, as the protocol has it: the
 * next one waits in the socket's queue until the connection before it has ended and all its requests have completed
 * (C14).
 *
 * Socket and session live on the reactor of the disk's node; the functions are called on the thread of `caller`, unless they
 * say otherwise.
 */
#ifndef FLEECE_EXPORT_VHOST_USER_SERVER_H
#define FLEECE_EXPORT_VHOST_USER_SERVER_H

#include "base/error.h"
#include "block/node.h"

struct vhost_export;

/* Where the disk is in use. */
enum vhost_place {
    VHOST_ELSEWHERE, /* or it may be */
    VHOST_HERE,
    VHOST_MIGRATING, /* here, with a migration's log on: how that ends nobody tells the next daemon, should we be killed */
};

struct vhost_export_hooks { /* on the caller's thread; both are answered, now or later, by vhost_export_answer() */
    void *context;
    /* The guest has stopped with a migration's log on, and may go on elsewhere when this was answered. */
    void (*parting)(void *context, struct vhost_export *export);
    /* A guest uses the disk here and migrates, or does not, and it was not so before: it has parted, or was never here, or a
     * log came or went. When this was answered the guest may go on elsewhere without us, if it migrates and we are dead. */
    void (*staying)(void *context, struct vhost_export *export, bool migrates);
};

/* Any thread. The node must stay until vhost_export_end() says done, or another one has come with an answer; one that is not
 * `here` need only have a size, an alignment, and what it can do. `socket` is the path of a unix socket. NULL: no memory. */
struct vhost_export *vhost_export_create(struct io *caller, struct node *node, bool here, const char *disk,
                                         const char *socket, const struct vhost_export_hooks *hooks);
/* Where the disk is from now on, and by which node (NULL: as before). Not after vhost_export_end(), which gives its own
 * answer. */
void vhost_export_answer(struct vhost_export *export, enum vhost_place place, struct node *node);
/* Listens; shared_map_guard() has been called. The answer comes later, on the caller's thread. After an error only
 * vhost_export_end() is allowed. */
void vhost_export_start(struct vhost_export *export, void (*done)(void *argument, const struct error *err),
                        void *argument);
/* Stops listening, ends the connection in good order, frees the export. */
void vhost_export_end(struct vhost_export *export, void (*done)(void *argument), void *argument);

/* The node has another size: the front-end is told, if it wants to be. Between the start and the end, and not again before
 * something that was sent to the node's reactor later has come back. */
void vhost_export_resized(struct vhost_export *export);

struct vhost_export_status {
    const char *disk, *socket; /* stay as long as the export */
    bool connected;
    unsigned queues;               /* that run */
    uint64_t connections;          /* so far */
    uint64_t requests;             /* taken from rings, so far, as all below */
    uint64_t kicks, calls, polled; /* polled: looks at the rings that found something without a kick */
};
/* Any thread. */
void vhost_export_status(const struct vhost_export *export, struct vhost_export_status *status);

#endif
