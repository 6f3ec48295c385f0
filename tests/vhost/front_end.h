/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A vhost-user front-end for one block device: connects, negotiates, shares its memory, starts rings, stops them, and
 * connects again to a back-end that was gone. The tests of bad behaviour use its parts one by one. One thread, but each
 * ring may have a thread of its own while nothing else is done.
 *
 * Functions return 0 or -errno, and then `error` is a sentence about what the back-end did.
 */
#ifndef TESTS_VHOST_FRONT_END_H
#define TESTS_VHOST_FRONT_END_H

#include "channel.h"
#include "ring.h"
#include "vmm.h"

enum { FRONT_QUEUES = 16, FRONT_TIMEOUT_MS = 60000 };

struct front_options {
    const struct vmm *vmm;                /* whose manners; NULL: QEMU's */
    unsigned queues, queue_size, regions; /* 0: as the VMM has them */
    uint64_t region_bytes, gap;           /* 0: 16 MiB, none */
    bool packed;                          /* fails when it isn't offered */
    uint64_t features_off, protocol_off;  /* bits not to negotiate */
    bool no_ack;                          /* asks for no acknowledgements, though it could */
    bool by_slots;                        /* ADD_MEM_REG rather than SET_MEM_TABLE; fails when it isn't offered */
};

struct front_log { /* of a migration */
    bool on;
    int fd;
    uint64_t bytes;
};

struct front_end {
    const char *path;
    struct front_options options;
    int socket;                            /* -1: not connected */
    int backend_socket, backend_socket_to; /* our end of the back-end's own channel, and the one it gets; or -1 */
    uint64_t offered, features, protocol_offered, protocol;
    uint64_t queues_max;
    struct blk_config config;
    struct guest_memory memory;
    struct ring rings[FRONT_QUEUES];
    unsigned ring_count;
    int inflight_fd; /* -1: none yet */
    struct wire_inflight inflight;
    struct front_log log;         /* told with everything else while it is on */
    uint64_t features_told;       /* with SET_FEATURES on this connection */
    uint64_t protocol_remembered; /* of the last connection that had come so far */
    char error[256];
};

/* All at once: connects, negotiates, makes memory and rings, starts them. front_close() also after a failure. */
int front_open(struct front_end *front, const char *path, const struct front_options *options);
void front_close(struct front_end *front);

/* Fills in what was left out. */
void front_defaults(struct front_options *options);

/* The steps of it. Memory and rings are the front-end's own and outlive a connection. */
void front_init(struct front_end *front, const char *path, const struct front_options *options);
int front_connect(struct front_end *front, int timeout_ms);
int front_negotiate(struct front_end *front);
int front_make_memory(struct front_end *front);
int front_share_memory(struct front_end *front);
int front_share_inflight(struct front_end *front);
int front_set_up_ring(struct front_end *front, struct ring *ring, uint32_t base);
/* SET_FEATURES, memory, the in-flight region, all rings: everything that comes after front_negotiate(). */
int front_start(struct front_end *front);
void front_disconnect(struct front_end *front);
/* What it does with the rings when the guest resets the device, and when the VM is paused or goes on. */
int front_reset(struct front_end *front);
int front_enable_rings(struct front_end *front, bool enable);
/* After the connection was lost: as the VMM does it, without kicks, in-flight region and all. Tries for so long. */
int front_reconnect(struct front_end *front, int timeout_ms);

/* A message without a reply of its own; waits for the acknowledgement if those were negotiated, which must be 0. */
int front_tell(struct front_end *front, uint32_t request, const void *payload, uint32_t size, const int *fds,
               unsigned fd_count);
int front_tell_u64(struct front_end *front, uint32_t request, uint64_t value);
int front_tell_state(struct front_end *front, uint32_t request, uint32_t index, uint32_t num);
/* What is in front->log, to a back-end whose rings run. */
int front_tell_log(struct front_end *front);
int front_tell_addr(struct front_end *front, const struct ring *ring);
/* A message with a reply of its own. reply->fd is the caller's. */
int front_ask(struct front_end *front, uint32_t request, const void *payload, uint32_t size,
              struct channel_reply *reply);
int front_get_config(struct front_end *front, uint32_t offset, uint32_t size, struct channel_reply *reply);
/* Stops a ring; what is used then stays in it. `base`: where the back-end stopped. */
int front_stop_ring(struct front_end *front, struct ring *ring, uint32_t *base);
bool front_has(const struct front_end *front, unsigned feature);
bool front_has_protocol(const struct front_end *front, unsigned feature);

int front_fail(struct front_end *front, int status, const char *format, ...) __attribute__((format(printf, 3, 4)));

#endif
