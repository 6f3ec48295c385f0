/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One operation at most is under way on the descriptor. Whoever replaces the descriptor meanwhile cancels that and
 * leaves the new one in `next_fd`; the completion swaps them. A descriptor that fails (it was no eventfd, or its other
 * end is gone) is not used again: the front-end gets what it has deserved, a disk that does not hear its kicks.
 */
#include "export/vhost_user/event.h"

#include <assert.h>
#include <errno.h>

#include "base/probe.h"

static void swap(struct vhost_event *event)
{
    if (event->fd >= 0)
        io_close(event->io, event->fd);
    event->fd = event->next_fd;
    event->next_fd = -1;
    event->replaced = event->dead = false;
}

static void start(struct vhost_event *event)
{
    if (event->busy || event->fd < 0 || event->dead)
        return;
    if (event->again) {
        event->again = false;
        event->busy = true;
        io_event_signal(event->io, &event->op, event->fd);
    } else if (event->waiting) {
        event->busy = true;
        io_event_wait(event->io, &event->op, event->fd);
    }
}

static void ended(struct io_op *op, int64_t result)
{
    struct vhost_event *event = container_of(op, struct vhost_event, op);
    event->busy = false;
    bool came = event->waiting && !event->replaced && result == 0;
    if (event->replaced)
        swap(event);
    else if (result < 0 && result != -ECANCELED)
        event->dead = true;
    if (!came || !MUTANT(vhost_kick_is_heard_once))
        start(event);
    if (came)
        event->came(event);
    if (!event->busy)
        event->idle(event);
}

void vhost_event_init(struct vhost_event *event, struct io *io, void (*came)(struct vhost_event *),
                      void (*idle)(struct vhost_event *))
{
    *event = (struct vhost_event){.io = io, .came = came, .idle = idle, .op = {.done = ended}, .fd = -1, .next_fd = -1};
}

void vhost_event_set(struct vhost_event *event, int fd)
{
    if (event->next_fd >= 0)
        io_close(event->io, event->next_fd);
    event->next_fd = fd;
    event->again = false;
    if (!event->busy) {
        swap(event);
        start(event);
        return;
    }
    PROBE(vhost_event_replaced_while_busy);
    event->replaced = true;
    io_cancel(event->io, &event->op);
}

bool vhost_event_is_set(const struct vhost_event *event)
{
    return event->replaced ? event->next_fd >= 0 : event->fd >= 0 && !event->dead;
}

void vhost_event_wait(struct vhost_event *event)
{
    assert(event->came);
    event->waiting = true;
    start(event);
}

void vhost_event_stop(struct vhost_event *event)
{
    event->waiting = false;
    if (event->busy)
        io_cancel(event->io, &event->op);
}

void vhost_event_signal(struct vhost_event *event)
{
    assert(!event->came);
    event->again = true;
    start(event);
}
