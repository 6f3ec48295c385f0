/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What we have to say to a front-end unasked: that the configuration space has changed. On the reactor of the session. */
#ifndef FLEECE_EXPORT_VHOST_USER_BACK_CHANNEL_H
#define FLEECE_EXPORT_VHOST_USER_BACK_CHANNEL_H

#include <stdbool.h>

#include "export/vhost_user/wire.h"
#include "io/io.h"

struct back_channel {
    struct io *io;
    const char *name; /* of the disk */
    int fd;           /* -1: there is none */
    int next_fd;      /* that takes its place when nothing is under way on it any more */
    bool replaced, sending, changed;
    uint32_t sent; /* bytes of the message */
    struct vhost_header message;
    struct iovec iov;
    struct io_op op;
    void (*idle)(void *context); /* after the end of a send */
    void *context;
};

void back_channel_init(struct back_channel *channel, struct io *io, const char *name, void (*idle)(void *context),
                       void *context);
/* Takes over a socket; -1: there is none from now on. */
void back_channel_set(struct back_channel *channel, int fd);
/* Says that the configuration space is another one; once more if the message under way may have come too early. No-op
 * without a socket. */
void back_channel_config_changed(struct back_channel *channel);
/* Nothing is said any more; what is under way ends soon. */
void back_channel_shut(struct back_channel *channel);
static inline bool back_channel_is_busy(const struct back_channel *channel)
{
    return channel->sending;
}
/* It is not busy. */
void back_channel_fini(struct back_channel *channel);

#endif
