/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The socket to a back-end: messages with their descriptors, right or wrong. */
#ifndef TESTS_VHOST_CHANNEL_H
#define TESTS_VHOST_CHANNEL_H

#include <stddef.h>

#include "wire.h"

enum { CHANNEL_FDS = 253 }; /* what the kernel takes with one message */

struct channel_reply {
    struct wire_header header;
    union {
        uint8_t bytes[WIRE_PAYLOAD_MAX];
        uint64_t u64;
        struct wire_state state;
        struct wire_config config;
        struct wire_inflight inflight;
    } payload;
    int fd; /* that came with it, or -1; the caller's */
};

/* A connected socket, or -errno. Tries for so long while nobody listens. */
int channel_connect(const char *path, int timeout_ms);

/* Any bytes, with any descriptors beside the first of them. 0 or -errno (-EPIPE: the other side has hung up). */
int channel_send_raw(int socket, const void *bytes, size_t size, const int *fds, unsigned fd_count);
/* A message. */
int channel_send(int socket, uint32_t request, uint32_t flags, const void *payload, uint32_t size, const int *fds,
                 unsigned fd_count);

/* The next message. 0; -ECONNRESET: hung up; -ETIMEDOUT; -EBADMSG: it is longer than any message may be. */
int channel_receive(int socket, struct channel_reply *reply, int timeout_ms);

/* Has the other side hung up? Waits for so long. */
int channel_hung_up(int socket, int timeout_ms);

#endif
