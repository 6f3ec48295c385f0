/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the files of the io_uring reactor share. */
#ifndef FLEECE_IO_RING_INTERNAL_H
#define FLEECE_IO_RING_INTERNAL_H

#include <liburing.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>

#include "io/helpers.h"
#include "io/mailbox.h"
#include "io/timer_heap.h"

struct ring {
    struct io io; /* first */
    struct io_uring uring;
    bool masked; /* FLEECE_RING_FEATURES=none */
    char features[96];
    pthread_t owner;
    bool has_thread;   /* made by ring_start() */
    struct list ready; /* of io_op: completed, done() not called yet */
    bool skipped;      /* the last tick did not enter the kernel */
    struct list tasks; /* of io_task */
    struct timer_heap timers;
    struct mailbox mailbox;
    int wake_fd;       /* eventfd, written by the sender that finds us asleep */
    struct io_op wake; /* the read on it that is always under way */
    uint64_t wake_count;
    bool ending, wake_idle; /* ring_end() waits until that read is over */
    atomic_bool quit;
    struct helpers helpers;
    struct list burials; /* of io_op: packets with strange descriptors; the first is on a helper */
    pthread_mutex_t listeners_mutex;
    struct list listeners; /* unix sockets whose files are ours to remove */
};

/* The reactor's part of an io_op, in its scratch. */
struct ring_op {
    int64_t result;
    /* What remains to be done on the owner thread before done(): may change the result. NULL: nothing. False: done() is
     * not due yet, and called by whom this has handed the operation to. */
    bool (*finish)(struct ring *ring, struct ring_op *op);
    bool on_helper, cancelled;
    union {
        struct msghdr message; /* sendv, packets */
        struct {
            struct helper_job job;
            struct io_message finished;
            struct ring *ring;
            int64_t (*work)(void *argument);
            void *argument;
            int fd; /* from here on: parameters of the disk operations that run on a helper */
            struct range range;
            struct io_extent *extent;
        };
    };
};
_Static_assert(sizeof(struct ring_op) <= sizeof(((struct io_op *)0)->scratch), "io_op has no room for the ring's part");

static inline struct ring *ring_of(struct io *io)
{
    return (struct ring *)(void *)io; /* io is its first member */
}

static inline struct ring_op *ring_op_of(struct io_op *op)
{
    return (struct ring_op *)(void *)op->scratch;
}

static inline struct io_op *ring_op_back(struct ring_op *op)
{
    return (struct io_op *)(void *)((char *)op - offsetof(struct io_op, scratch));
}

/* Begins an operation of the kernel: a submission entry, whose user data says `op` already; the caller fills
 * it in with one of the io_uring_prep functions (they leave user data alone). Never fails: a full queue is
 * submitted and reused. */
struct io_uring_sqe *ring_begin(struct ring *ring, struct io_op *op);
/* Begins and starts work on a helper thread. */
void ring_work(struct ring *ring, struct io_op *op, int64_t (*work)(void *argument), void *argument);
/* Completes an operation that never went anywhere, at the end of the tick. */
void ring_complete(struct ring *ring, struct io_op *op, int64_t result);

/* ring_setup.c: makes ring->uring and sets `masked` and `features`. */
int ring_setup(struct ring *ring, struct error *err);

/* ring_disk.c */
int ring_open(struct io *io, const char *path, int flags, mode_t mode);
int ring_stat(struct io *io, int fd, struct io_stat *stat);
int ring_truncate(struct io *io, int fd, uint64_t size_bytes);
int ring_lock(struct io *io, int fd, uint64_t start, uint64_t length, bool exclusive);
int ring_lock_test(struct io *io, int fd, uint64_t start, uint64_t length, bool exclusive);
void ring_readv(struct io *io, struct io_op *op, int fd, const struct iovec *iov, unsigned iov_count, uint64_t offset);
void ring_writev(struct io *io, struct io_op *op, int fd, const struct iovec *iov, unsigned iov_count, uint64_t offset,
                 unsigned flags);
void ring_datasync(struct io *io, struct io_op *op, int fd);
void ring_allocate(struct io *io, struct io_op *op, int fd, enum io_allocate_mode mode, struct range range);
void ring_extent(struct io *io, struct io_op *op, int fd, uint64_t offset, struct io_extent *extent);

/* ring_socket.c */
int ring_listen(struct io *io, const char *address, struct error *err);
void ring_close(struct io *io, int fd);
void ring_accept(struct io *io, struct io_op *op, int fd);
int ring_connect(struct io *io, const char *address, struct error *err);
void ring_recv(struct io *io, struct io_op *op, int fd, void *buffer, size_t length);
void ring_sendv(struct io *io, struct io_op *op, int fd, const struct iovec *iov, unsigned iov_count);
void ring_shutdown(struct io *io, int fd);
void ring_poll(struct io *io, struct io_op *op, int fd, short events);

/* ring_packet.c */
void ring_recv_packet(struct io *io, struct io_op *op, int fd, struct io_packet *packet);
void ring_send_packet(struct io *io, struct io_op *op, int fd, struct io_packet *packet);
void ring_event_wait(struct io *io, struct io_op *op, int fd);
void ring_event_signal(struct io *io, struct io_op *op, int fd);

#endif
