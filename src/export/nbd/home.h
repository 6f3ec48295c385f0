/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * An export on the reactor of its node: its sessions, and the order between those that leave and those that come (C14).
 * Made and freed on the server's thread; everything else happens on the node's.
 */
#ifndef FLEECE_EXPORT_NBD_HOME_H
#define FLEECE_EXPORT_NBD_HOME_H

#include "block/node.h"
#include "export/nbd/buffers.h"
#include "export/nbd/read_once.h"

struct nbd_session;

struct nbd_reactor { /* what the exports of one reactor share; made and freed on the server's thread */
    struct list_node link;
    struct io *io;
    struct nbd_pool pool;
    struct list sessions; /* all on this reactor */
    struct list spare;    /* request objects */
    unsigned spare_count;
    struct io_timer sweep; /* armed while there are sessions */
    /* The server's thread: */
    unsigned home_count;
    struct io *server_io;
    struct nbd_home *last_home;
    struct io_message rest, rested; /* when the last home is gone: gives the memory back, stops the timer */
};

struct nbd_home {
    struct nbd_reactor *reactor;
    struct io *server_io; /* where `gone` is posted */
    struct node *node;
    atomic_ullong connections;                     /* now; any thread */
    atomic_ullong *all_connections;                /* the server's count */
    struct nbd_read_once_totals *read_once_totals; /* the server's */
    struct list sessions;
    struct list waiting;   /* sessions that may not begin yet (C14) */
    struct list leaving;   /* sessions that hung up and are not settled, by departure */
    uint64_t departures;   /* so far */
    struct list read_once; /* of sessions, and of those that ended and release what they read */
    bool removed;
    struct io_message remove, gone; /* server to reactor, and back when no session is left */
};

struct nbd_reactor *nbd_reactor_create(struct io *io, struct nbd_budget *budget);
void nbd_reactor_destroy(struct nbd_reactor *reactor);

/* The session is here: counts, joins, and begins when it may. */
void nbd_home_join(struct nbd_home *home, struct nbd_session *session);
/* The client is gone, or going: those who come from now on wait for what it left behind. */
void nbd_home_depart(struct nbd_session *session);
/* Nothing of a departed session will reach the node any more, and nothing is under way. */
void nbd_home_settle(struct nbd_session *session);
/* The last call about a session, which is freed next. */
void nbd_home_part(struct nbd_session *session);
/* The session (joined, barrier passed) may begin now, or is begun later. */
void nbd_home_admit(struct nbd_session *session);
/* Shuts all sessions down; posts `gone` when none is left. */
void nbd_home_remove(struct nbd_home *home);
/* Something on the home's lists is gone: it may have been the last. */
void nbd_home_check(struct nbd_home *home);

#endif
