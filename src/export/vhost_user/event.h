/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * An eventfd of a front-end's, waited for or signalled, which may be replaced or taken away at any time: its descriptor is
 * closed when the operation on it has ended. Owner: the session's reactor.
 */
#ifndef FLEECE_EXPORT_VHOST_USER_EVENT_H
#define FLEECE_EXPORT_VHOST_USER_EVENT_H

#include "io/io.h"

struct vhost_event {
    struct io *io;
    /* Told when it has come, in the completion: not after it was replaced. NULL: one that is only signalled. */
    void (*came)(struct vhost_event *event);
    /* Told when an operation has ended and none is under way. */
    void (*idle)(struct vhost_event *event);
    /* Private: */
    struct io_op op;
    int fd, next_fd; /* -1: none */
    bool busy, waiting, replaced, again, dead;
};

void vhost_event_init(struct vhost_event *event, struct io *io, void (*came)(struct vhost_event *),
                      void (*idle)(struct vhost_event *));
/* Takes over the descriptor; -1: there is none any more. */
void vhost_event_set(struct vhost_event *event, int fd);
bool vhost_event_is_set(const struct vhost_event *event);
/* Waits from now on, again after each time, until it is replaced or stopped. */
void vhost_event_wait(struct vhost_event *event);
/* Ends the waiting; `came` is not called any more. */
void vhost_event_stop(struct vhost_event *event);
/* Signals it, if there is one; what is signalled again while that is under way goes with the next one. */
void vhost_event_signal(struct vhost_event *event);
static inline bool vhost_event_is_busy(const struct vhost_event *event)
{
    return event->busy;
}

#endif
