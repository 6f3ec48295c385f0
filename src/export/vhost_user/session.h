/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A connection of a front-end, on the reactor of its disk. For server.c, and what the files of a session share:
 * session.c its life and its socket, device.c what messages mean, queue.c the rings, request.c what is in them, transfer.c
 * long ones of these, poll.c when to look.
 */
#ifndef FLEECE_EXPORT_VHOST_USER_SESSION_H
#define FLEECE_EXPORT_VHOST_USER_SESSION_H

#include <stdatomic.h>

#include "block/node.h"
#include "export/vhost_user/back_channel.h"
#include "export/vhost_user/dirty_log.h"
#include "export/vhost_user/inflight_region.h"
#include "export/vhost_user/memory.h"
#include "export/vhost_user/message.h"
#include "export/vhost_user/queue.h"
#include "export/vhost_user/request.h"
#include "export/vhost_user/server.h"
#include "export/vhost_user/transfer.h"

struct vhost_counters { /* of an export, over all its sessions; written by its reactor, read by any thread */
    atomic_ullong connections, requests, kicks, calls, polled;
    atomic_uint connected, queues;
    struct { /* lines in the log; the reactor's own */
        uint64_t since_ns;
        unsigned said, unsaid;
    } complaints;
};

/*
 * Whose the disk is. It is not ours while it is still with another daemon, or after a guest has stopped in order to go on
 * elsewhere: then no ring is started before `ask` was answered. Nor does a ring run with a migration's log before that, and
 * a guest that stops with one is not told that it has. For the session's reactor; the answer wakes the session.
 */
struct vhost_home {
    enum vhost_place place, wanted;
    bool asked; /* for `wanted`, and not yet answered */
    void (*ask)(struct vhost_home *home);
};

enum vhost_session_state {
    VHOST_SESSION_SERVING,
    VHOST_SESSION_LEAVING, /* our end: what was taken is returned, then closed */
    VHOST_SESSION_CLOSED,  /* freed when nothing is under way */
};

struct vhost_session {
    struct io *io;
    struct node *node;
    const char *name; /* of the disk */
    struct vhost_counters *counters;
    struct vhost_home *home; /* NULL: the disk is ours for good */
    int fd;
    enum vhost_session_state state;
    void (*gone)(void *argument); /* the session has been freed */
    void *argument;
    struct io_task work; /* whatever may have become possible */

    /* Messages, one at a time: received, done (which may wait), answered. */
    struct io_op receive, send;
    bool receiving, sending, waiting, refused;
    struct vhost_header header;
    struct vhost_message message;
    uint32_t received; /* bytes, header included */
    struct io_packet packet, reply;
    int fds[LIMIT_PACKET_DESCRIPTORS]; /* of the message; -1: taken */
    unsigned fd_count;
    struct {
        struct vhost_header header;
        uint8_t payload[sizeof(struct vhost_config) + LIMIT_VHOST_CONFIG_BYTES];
    } answer;

    /* The device. */
    uint64_t features, protocol_features, status;
    struct guest_memory *memory;
    /* Requests in flight that hold it, and those before it; they are numbered modulo LIMIT_GUEST_TABLES. */
    unsigned table, table_users[LIMIT_GUEST_TABLES];
    struct inflight_region inflight;
    struct dirty_log log;
    struct vhost_event logged; /* signalled when there may be something new in the log */
    bool logging;              /* the front-end wants to know where we write, and there is a log */
    struct back_channel back;
    struct vhost_queue queues[LIMIT_VHOST_QUEUES];
    unsigned queue_end; /* queues from here on were never spoken of */

    /* Requests. */
    struct list spare;
    unsigned request_count, in_flight;
    uint64_t charged_bytes; /* of data, of requests in flight */
    struct vhost_transfers transfers;
    unsigned taken;         /* in this tick; LIMIT_VHOST_REQUESTS when it has had its time, too */
    uint64_t turn_began_ns; /* in this tick, when a batch had been taken; 0: none was */
    unsigned turn;          /* the queue that comes first: the one behind that which took something last */
    struct io_timer poll, no_kick;
    uint64_t poll_until_ns, poll_window_ns, slept_ns, contended_until_ns;
    unsigned short_sleeps; /* in a row, ended by a request's end */
    bool asleep;
};

struct vhost_session *vhost_session_create(struct io *io, struct node *node, const char *name,
                                           struct vhost_counters *counters);
/* Takes over the connection. `gone` is called later, once. */
void vhost_session_start(struct vhost_session *session, int fd, void (*gone)(void *argument), void *argument);
/* The disk has another size: the front-end is told, if it wants to be. */
void vhost_session_resized(struct vhost_session *session);
/* In good order: requests that were taken are answered first. */
void vhost_session_leave(struct vhost_session *session);

/* For the files of a session: */

/* A line in the log about what a guest or its VMM does wrong: few of many, for both may go on for ever. */
void vhost_session_complain(struct vhost_session *session, const char *format, ...)
    __attribute__((format(printf, 2, 3), cold));
/* Ends the connection; `err` (NULL: nothing to say) is logged. */
void vhost_session_close(struct vhost_session *session, const struct error *err);
void vhost_session_wake(struct vhost_session *session);
/* The queues in turn: one that could use all requests alone leaves some to the others. `index` below queue_end. */
static inline struct vhost_queue *vhost_session_queue(struct vhost_session *session, unsigned index)
{
    return &session->queues[(session->turn + index) % session->queue_end];
}
/* Notes how much data the request has under way at most; not what it was before. */
void vhost_session_charge(struct vhost_request *request, uint64_t bytes);
/* NULL: there are as many as may be, or with as much data. */
struct vhost_request *vhost_session_take_request(struct vhost_session *session);
void vhost_session_put_request(struct vhost_session *session, struct vhost_request *request);
/* The request is done; `written` bytes of its chain. */
void vhost_session_finish(struct vhost_request *request, uint32_t written);

/* Fragments of the guest's memory, as the request has it, were written. */
void vhost_session_log(const struct vhost_request *request, const struct iovec *iov, unsigned count);
static inline void vhost_session_wrote(const struct vhost_session *session, const struct vhost_request *request,
                                       const struct iovec *iov, unsigned count)
{
    if (__builtin_expect(session->logging, 0))
        vhost_session_log(request, iov, count);
}
/* Memory of the VMM's that we touch has been taken away: nothing that we read there may be believed, and nothing that we
 * wrote or marked there has arrived. */
bool vhost_session_is_torn(const struct vhost_session *session);

/* device.c. What the message in session->message asks for; the answer's payload goes into session->answer. */
enum vhost_done {
    VHOST_DONE,
    VHOST_WAITS, /* for requests under way; vhost_device_do() again when a queue is still */
    VHOST_WRONG, /* the sentence is set, the connection ends */
};
enum vhost_done vhost_device_do(struct vhost_session *session, struct error *err);

/* poll.c. Work has come, or has been answered, which brings the next: rings are looked at for a while. */
void vhost_poll_init(struct vhost_session *session);
void vhost_poll_extend(struct vhost_session *session, bool by_kick);
/* Rings are looked at in the next tick. */
void vhost_poll_soon(struct vhost_session *session);
void vhost_poll_fini(struct vhost_session *session);

#endif
