/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The socket that a front-end gives us for what it has not asked. One message at most is under way. When there is more to
 * say meanwhile, it is said once, afterwards: the front-end asks for the configuration space itself, and gets it as it is
 * then. Answers are not asked for, since nothing depends on them: so nothing is ever received here. A front-end that does
 * not read has the message waiting in its socket, or us waiting for room in it; either costs a few bytes and no time.
 *
 * Whoever replaces the socket cancels what is under way on the old one; the completion swaps them. A socket that
 * fails is not used again.
 */
#include "export/vhost_user/back_channel.h"

#include <assert.h>

#include "base/log.h"

static void send_on(struct back_channel *channel)
{
    channel->sending = true;
    channel->iov = (struct iovec){(char *)&channel->message + channel->sent, VHOST_HEADER_BYTES - channel->sent};
    io_sendv(channel->io, &channel->op, channel->fd, &channel->iov, 1);
}

static void swap(struct back_channel *channel)
{
    if (channel->fd >= 0)
        io_close(channel->io, channel->fd);
    channel->fd = channel->next_fd;
    channel->next_fd = -1;
    channel->replaced = false;
}

static void say(struct back_channel *channel)
{
    if (channel->sending || channel->fd < 0 || !channel->changed)
        return;
    channel->changed = false;
    channel->sent = 0;
    channel->message = (struct vhost_header){.request = VHOST_BACKEND_CONFIG_CHANGE_MSG, .flags = VHOST_VERSION};
    send_on(channel);
}

static void sent(struct io_op *op, int64_t result)
{
    struct back_channel *channel = container_of(op, struct back_channel, op);
    channel->sending = false;
    if (channel->replaced) {
        channel->changed = channel->changed || channel->sent + (result > 0 ? (uint32_t)result : 0) < VHOST_HEADER_BYTES;
        swap(channel);
    } else if (result <= 0) {
        log_warning("vhost-user disk %s: the front-end can't be told that the disk has grown: %s", channel->name,
                    error_name((int)result));
        swap(channel);
    } else {
        channel->sent += (uint32_t)result;
        if (channel->sent < VHOST_HEADER_BYTES) {
            send_on(channel);
            return;
        }
    }
    say(channel);
    channel->idle(channel->context);
}

void back_channel_init(struct back_channel *channel, struct io *io, const char *name, void (*idle)(void *context),
                       void *context)
{
    *channel = (struct back_channel){
        .io = io, .name = name, .fd = -1, .next_fd = -1, .op.done = sent, .idle = idle, .context = context};
}

void back_channel_set(struct back_channel *channel, int fd)
{
    if (channel->next_fd >= 0)
        io_close(channel->io, channel->next_fd);
    channel->next_fd = fd;
    if (!channel->sending) {
        swap(channel);
        return;
    }
    channel->replaced = true;
    io_cancel(channel->io, &channel->op);
}

void back_channel_config_changed(struct back_channel *channel)
{
    channel->changed = channel->fd >= 0 || channel->next_fd >= 0;
    say(channel);
}

void back_channel_shut(struct back_channel *channel)
{
    channel->changed = false;
    back_channel_set(channel, -1);
    channel->changed = false;
}

void back_channel_fini(struct back_channel *channel)
{
    assert(!channel->sending);
    if (channel->fd >= 0)
        io_close(channel->io, channel->fd);
    channel->fd = -1;
}
