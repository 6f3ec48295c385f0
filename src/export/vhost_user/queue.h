/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A virtqueue of a session: what the front-end has said of it so far, its eventfds, and, while it runs, the ring itself.
 * Owner: the session's reactor.
 */
#ifndef FLEECE_EXPORT_VHOST_USER_QUEUE_H
#define FLEECE_EXPORT_VHOST_USER_QUEUE_H

#include "export/vhost_user/event.h"
#include "export/vhost_user/virtqueue.h"

struct vhost_session;

struct vhost_queue {
    struct vhost_session *session;
    unsigned index;
    /* As said by the front-end: */
    uint32_t size, base;
    uint32_t ended_at; /* where a ring that ran was stopped; outlives a reset by status, see set_status() */
    struct virtqueue_place place;
    bool logged; /* what is written to the used ring counts in a migration's log, at log_used */
    uint64_t log_used;
    bool placed, kicked,
        enabled; /* kicked: SET_VRING_KICK has come; with an eventfd, or to be looked at by the clock */
    struct vhost_event kick, call, error;
    /* While it runs: */
    struct virtqueue *ring; /* NULL: stopped */
    bool resubmitting;      /* what a predecessor had taken comes first */
    bool taking;            /* the front-end wants it to be served */
    bool broken;            /* and that has been said */
    bool deaf;              /* to kicks, which came too often in vain, until the slow clock has looked */
    unsigned vain_kicks;    /* since something was taken last */
    bool starved;           /* chains wait for request objects, or for the data of others */
    unsigned in_flight;     /* chains that are out */
    unsigned batch;         /* as many were taken the last time, and there may be more; 0: that was all */
    struct io_task look, publish;
};

void vhost_queue_init(struct vhost_queue *queue, struct vhost_session *session, unsigned index);
/* What was said may be enough now: makes the ring, and serves it if it is enabled. 0, or -errno with a sentence. */
int vhost_queue_update(struct vhost_queue *queue, struct error *err);
/* The log, or where the ring is in it, has changed. 0, or -errno with a sentence. */
int vhost_queue_update_log(struct vhost_queue *queue, struct error *err);
/* Takes nothing more. What is out completes; when queue->in_flight is 0 and it has been shown, vhost_queue_is_still(). */
void vhost_queue_halt(struct vhost_queue *queue);
bool vhost_queue_is_still(const struct vhost_queue *queue);
/* A halted queue that is still: forgets the ring, and how it was started. Its base is where to go on. */
void vhost_queue_stop(struct vhost_queue *queue);
/* To the initial state, but for ended_at. Still as above. `forgets`: that goes, too, and what the in-flight region holds for
 * it, such as chains of a predecessor that were not resubmitted yet, or that broke the ring and would break the next one. */
void vhost_queue_reset(struct vhost_queue *queue, bool forgets);
/* Looks at the ring at the end of the tick. */
void vhost_queue_look(struct vhost_queue *queue);
/* Takes what is there, at most LIMIT_VHOST_BATCH. True: there was something, or there may be in the next tick. May close the
 * session. */
bool vhost_queue_serve(struct vhost_queue *queue);
/* Hears kicks again, if it does not. */
void vhost_queue_listen(struct vhost_queue *queue);
/* Asks for kicks. True: there is something to look at already. The other: none are wanted. */
bool vhost_queue_sleep(struct vhost_queue *queue);
void vhost_queue_wake(struct vhost_queue *queue);
/* The session is closed: eventfds are given back, the ring is not touched any more. */
void vhost_queue_abandon(struct vhost_queue *queue);
bool vhost_queue_is_busy(const struct vhost_queue *queue); /* an operation, a task or a chain is out */
void vhost_queue_fini(struct vhost_queue *queue);

#endif
