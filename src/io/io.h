/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * All I/O of Fleece: disks, sockets, timers, messages between threads, helper threads and shared memory, behind one
 * table of operations. io/ring implements it on io_uring; the simulation implements it in memory with virtual time.
 *
 * A `struct io` is one reactor: one thread, one loop. It runs in ticks: completions, messages and timers call
 * upwards; what they queue as tasks runs next, in order, until no task is left (or LIMIT_TICK_ROUNDS generations of tasks
 * have run: the rest stays for the next tick); then everything started in the tick is submitted at once.
 *
 * Rules for all operations that take a struct io_op:
 *  - called on the owner thread only (io_on_owner() asserts), never parks, never fails itself: errors are results;
 *  - `op` and the buffers and iovecs belong to the operation until op->done has been called, exactly once, on the owner
 *    thread, never inside the call that started it;
 *  - the result is a count of bytes (or a descriptor, for accept), or -errno. Reads and writes may be short.
 * Descriptors are the kernel's in the real implementation and the simulation's own in the other.
 */
#ifndef FLEECE_IO_IO_H
#define FLEECE_IO_IO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "base/error.h"
#include "base/limits.h"
#include "base/list.h"
#include "base/range.h"

struct io;

struct io_op {
    void (*done)(struct io_op *op, int64_t result);
    /* Private to the implementation while the operation is under way: */
    struct list_node link;
    uint64_t scratch[16];
};

struct io_task { /* runs once, at the end of the tick, on the owner thread; `queued` guards against queueing twice */
    void (*run)(struct io_task *task);
    struct list_node link;
};

struct io_timer { /* fires once, never early, on the owner thread */
    void (*fire)(struct io_timer *timer);
    uint64_t deadline_ns;
    size_t heap_place; /* private; 0: not armed */
};

struct io_message { /* to another thread; belongs to the receiver from io_post() until deliver() is called */
    void (*deliver)(struct io_message *message);
    struct io_message *next; /* private */
};

struct io_stat {
    uint64_t size_bytes;
    /* Of offset, length and memory, for direct I/O on this descriptor; 1 without direct I/O. */
    uint32_t alignment_bytes;
    bool is_block_device, is_regular, is_directory;
    /* Who it is, and when it was changed: what a reader compares to see that nobody else was here. Times since 1970. */
    uint64_t device, inode, mtime_ns, ctime_ns;
};

#define BOOT_ID_BYTES 16

struct io_extent { /* what SEEK_DATA/SEEK_HOLE say at an offset; at or beyond the size of the file it fails: -ENXIO */
    uint64_t end;  /* of the run that begins at or before the offset, beyond the offset, at most the size of the file */
    bool hole;
};

struct io_shm { /* a growing piece of shared memory (tmpfs), its address range reserved at creation */
    char *base;
    uint64_t reserved_bytes;
    int fd;
};

/* Where named shared memory is kept: a folder of ours (0700) on tmpfs, one for each VM. It outlives the process. */
struct io_shm_name {
    const char *folder; /* absolute */
    const char *file;   /* without '/' */
};

/* Bytes of a unix socket and the descriptors that travel with the first of them. */
struct io_packet {
    void *bytes;
    size_t length;
    /* Sent: they stay the sender's. Received: they are the receiver's, close-on-exec. */
    int fds[LIMIT_PACKET_DESCRIPTORS];
    unsigned fd_count;
    bool fds_lost; /* received: there were more, and they are closed */
    /* Received: there were some by which their maker could keep us waiting (stranger.h). They are not among these, and
     * closed, which may take as long as he likes: the operation ends after that, cancelled or not. */
    bool fds_strange;
    /* Private: */
    int strange[LIMIT_PACKET_DESCRIPTORS + 1]; /* what the padding of `control` leaves room for, too */
    unsigned strange_count;
    struct iovec iov;
    uint64_t control[2 + LIMIT_PACKET_DESCRIPTORS / 2];
};

/* How to change the allocation of a file, in io_allocate(). All keep the size. */
enum io_allocate_mode {
    IO_PUNCH_HOLE, /* reads back as zeroes, space given back */
    IO_ZERO_RANGE, /* reads back as zeroes, space kept */
    IO_DISCARD,    /* block devices: content is undefined afterwards */
};

enum io_write_flags {
    IO_WRITE_DSYNC = 1, /* stable when it completes */
    IO_WRITE_APART = 2, /* never on the reactor's own thread: some file systems make even a write wait that must not */
};

struct io_ops {
    /* Clock and random numbers. Any thread. */
    uint64_t (*now_ns)(struct io *io);  /* monotonic */
    uint64_t (*wall_ns)(struct io *io); /* since 1970, UTC */
    void (*random)(struct io *io, void *bytes, size_t length);
    bool (*on_owner)(const struct io *io);
    void (*boot_id)(struct io *io, uint8_t id[BOOT_ID_BYTES]); /* the same until the machine loses its memory */

    void (*timer_set)(struct io *io, struct io_timer *timer, uint64_t deadline_ns); /* moves it when armed */
    void (*timer_cancel)(struct io *io, struct io_timer *timer);                    /* no-op when not armed */
    void (*task_queue)(struct io *io, struct io_task *task);
    void (*post)(struct io *to, struct io_message *message); /* any thread; in order between any two threads */
    /* Runs work(argument) on a helper thread; its return value is the result. In the simulation: inline, later. */
    void (*work)(struct io *io, struct io_op *op, int64_t (*work)(void *argument), void *argument);
    /* Others who wait for this processor have it first: for a tick that found nothing while it watches memory. */
    void (*yield)(struct io *io);
    /* Blocks the calling thread, whichever it is: for the control path, as in file_open(). */
    void (*sleep)(struct io *io, uint64_t duration_ns);

    /* Files: these may block and return at once; for the control path and for set-up. */
    int (*open)(struct io *io, const char *path, int flags, mode_t mode); /* O_CLOEXEC implied; fd or -errno */
    int (*stat)(struct io *io, int fd, struct io_stat *stat);
    int (*truncate)(struct io *io, int fd, uint64_t size_bytes);
    /* One byte range lock of the open file description (OFD). 0, -EAGAIN when another description holds it. */
    int (*lock)(struct io *io, int fd, uint64_t start, uint64_t length, bool exclusive);
    /* Whether another description holds a lock that forbids ours: 0 free, -EAGAIN held. */
    int (*lock_test)(struct io *io, int fd, uint64_t start, uint64_t length, bool exclusive);
    void (*close)(struct io *io, int fd); /* no operation on it may be under way */

    /* Disk operations. */
    void (*readv)(struct io *io, struct io_op *op, int fd, const struct iovec *iov, unsigned iov_count,
                  uint64_t offset);
    void (*writev)(struct io *io, struct io_op *op, int fd, const struct iovec *iov, unsigned iov_count,
                   uint64_t offset, unsigned flags);
    void (*datasync)(struct io *io, struct io_op *op, int fd);
    void (*allocate)(struct io *io, struct io_op *op, int fd, enum io_allocate_mode mode, struct range range);
    void (*extent)(struct io *io, struct io_op *op, int fd, uint64_t offset, struct io_extent *extent);

    /* Sockets. Addresses are "unix:PATH" or "tcp:HOST:PORT". */
    int (*listen)(struct io *io, const char *address, struct error *err); /* fd or -errno; 0600 for unix sockets */
    void (*accept)(struct io *io, struct io_op *op, int fd);
    /* To a unix socket: at once, or not at all. fd or -errno; -EAGAIN: its server is behind with taking connections. */
    int (*connect)(struct io *io, const char *address, struct error *err);
    void (*recv)(struct io *io, struct io_op *op, int fd, void *buffer, size_t length);
    void (*sendv)(struct io *io, struct io_op *op, int fd, const struct iovec *iov, unsigned iov_count);
    /* Packet: see there. A receive ends before the next packet that has descriptors begins; io_recv() drops them. */
    void (*recv_packet)(struct io *io, struct io_op *op, int fd, struct io_packet *packet);
    void (*send_packet)(struct io *io, struct io_op *op, int fd, struct io_packet *packet);
    void (*shutdown)(struct io *io, int fd); /* both ways; operations under way complete soon with 0 or an error */
    void (*poll)(struct io *io, struct io_op *op, int fd, short events); /* one shot; result: revents */
    /* Eventfds, blocking or not. wait: until it has been signalled, once or more often, and takes that: 0. signal: goes with
     * what else was started in the tick. */
    void (*event_wait)(struct io *io, struct io_op *op, int fd);
    void (*event_signal)(struct io *io, struct io_op *op, int fd);
    void (*cancel)(struct io *io, struct io_op *op); /* a hint: op completes soon, with -ECANCELED if it was in time */

    /* Shared memory. grow: the bytes may be touched only after it returned 0; -ENOSPC when tmpfs is full (C13). populate:
     * what was grown is cleared and mapped now, not when it is touched first; a hint. Both on any thread, and they take
     * their time (0.1 and 0.3 ms a MiB), so rather by io_work(). create: `name` NULL: it has no name and ends with the
     * process; else a new file, whatever had that name before (-ENOTSUP: the folder is not on tmpfs, or not ours alone).
     * adopt: maps what a process of the same boot has left under that name, reserved_bytes as it was created; all that was
     * grown may be touched. -ENOENT: there is nothing. An exclusive lock on the file keeps two from having it: -EAGAIN.
     * remove: takes the name away; what is mapped stays. These three may block: on the control path. */
    int (*shm_create)(struct io *io, struct io_shm *shm, const struct io_shm_name *name, uint64_t reserve_bytes,
                      struct error *err);
    int (*shm_adopt)(struct io *io, struct io_shm *shm, const struct io_shm_name *name, struct error *err);
    void (*shm_remove)(struct io *io, const struct io_shm_name *name);
    int (*shm_grow)(struct io *io, struct io_shm *shm, struct range range);
    void (*shm_populate)(struct io *io, struct io_shm *shm, struct range range);
    void (*shm_punch)(struct io *io, struct io_shm *shm, struct range range);
    void (*shm_destroy)(struct io *io, struct io_shm *shm);
};

struct io {
    const struct io_ops *ops;
};

static inline uint64_t io_now_ns(struct io *io)
{
    return io->ops->now_ns(io);
}
static inline uint64_t io_wall_ns(struct io *io)
{
    return io->ops->wall_ns(io);
}
static inline void io_random(struct io *io, void *bytes, size_t length)
{
    io->ops->random(io, bytes, length);
}
static inline void io_boot_id(struct io *io, uint8_t id[BOOT_ID_BYTES])
{
    io->ops->boot_id(io, id);
}
static inline bool io_on_owner(const struct io *io)
{
    return io->ops->on_owner(io);
}
static inline void io_timer_set(struct io *io, struct io_timer *timer, uint64_t deadline_ns)
{
    io->ops->timer_set(io, timer, deadline_ns);
}
static inline void io_timer_cancel(struct io *io, struct io_timer *timer)
{
    io->ops->timer_cancel(io, timer);
}
static inline bool io_timer_armed(const struct io_timer *timer)
{
    return timer->heap_place != 0;
}
static inline void io_task_queue(struct io *io, struct io_task *task)
{
    if (!list_linked(&task->link))
        io->ops->task_queue(io, task);
}
static inline void io_post(struct io *to, struct io_message *message)
{
    to->ops->post(to, message);
}
static inline void io_work(struct io *io, struct io_op *op, int64_t (*work)(void *), void *argument)
{
    io->ops->work(io, op, work, argument);
}
static inline void io_yield(struct io *io)
{
    io->ops->yield(io);
}
static inline void io_sleep(struct io *io, uint64_t duration_ns)
{
    io->ops->sleep(io, duration_ns);
}
static inline int io_open(struct io *io, const char *path, int flags, mode_t mode)
{
    return io->ops->open(io, path, flags, mode);
}
static inline int io_stat(struct io *io, int fd, struct io_stat *stat)
{
    return io->ops->stat(io, fd, stat);
}
static inline int io_truncate(struct io *io, int fd, uint64_t size_bytes)
{
    return io->ops->truncate(io, fd, size_bytes);
}
static inline int io_lock(struct io *io, int fd, uint64_t start, uint64_t length, bool exclusive)
{
    return io->ops->lock(io, fd, start, length, exclusive);
}
static inline int io_lock_test(struct io *io, int fd, uint64_t start, uint64_t length, bool exclusive)
{
    return io->ops->lock_test(io, fd, start, length, exclusive);
}
static inline void io_close(struct io *io, int fd)
{
    io->ops->close(io, fd);
}
static inline void io_readv(struct io *io, struct io_op *op, int fd, const struct iovec *iov, unsigned iov_count,
                            uint64_t offset)
{
    io->ops->readv(io, op, fd, iov, iov_count, offset);
}
static inline void io_writev(struct io *io, struct io_op *op, int fd, const struct iovec *iov, unsigned iov_count,
                             uint64_t offset, unsigned flags)
{
    io->ops->writev(io, op, fd, iov, iov_count, offset, flags);
}
static inline void io_datasync(struct io *io, struct io_op *op, int fd)
{
    io->ops->datasync(io, op, fd);
}
static inline void io_allocate(struct io *io, struct io_op *op, int fd, enum io_allocate_mode mode, struct range range)
{
    io->ops->allocate(io, op, fd, mode, range);
}
static inline void io_extent(struct io *io, struct io_op *op, int fd, uint64_t offset, struct io_extent *extent)
{
    io->ops->extent(io, op, fd, offset, extent);
}
static inline int io_listen(struct io *io, const char *address, struct error *err)
{
    return io->ops->listen(io, address, err);
}
static inline void io_accept(struct io *io, struct io_op *op, int fd)
{
    io->ops->accept(io, op, fd);
}
static inline int io_connect(struct io *io, const char *address, struct error *err)
{
    return io->ops->connect(io, address, err);
}
static inline void io_recv(struct io *io, struct io_op *op, int fd, void *buffer, size_t length)
{
    io->ops->recv(io, op, fd, buffer, length);
}
static inline void io_sendv(struct io *io, struct io_op *op, int fd, const struct iovec *iov, unsigned iov_count)
{
    io->ops->sendv(io, op, fd, iov, iov_count);
}
static inline void io_recv_packet(struct io *io, struct io_op *op, int fd, struct io_packet *packet)
{
    io->ops->recv_packet(io, op, fd, packet);
}
static inline void io_send_packet(struct io *io, struct io_op *op, int fd, struct io_packet *packet)
{
    io->ops->send_packet(io, op, fd, packet);
}
static inline void io_shutdown(struct io *io, int fd)
{
    io->ops->shutdown(io, fd);
}
static inline void io_poll(struct io *io, struct io_op *op, int fd, short events)
{
    io->ops->poll(io, op, fd, events);
}
static inline void io_event_wait(struct io *io, struct io_op *op, int fd)
{
    io->ops->event_wait(io, op, fd);
}
static inline void io_event_signal(struct io *io, struct io_op *op, int fd)
{
    io->ops->event_signal(io, op, fd);
}
static inline void io_cancel(struct io *io, struct io_op *op)
{
    io->ops->cancel(io, op);
}
static inline int io_shm_create(struct io *io, struct io_shm *shm, const struct io_shm_name *name,
                                uint64_t reserve_bytes, struct error *err)
{
    return io->ops->shm_create(io, shm, name, reserve_bytes, err);
}
static inline int io_shm_adopt(struct io *io, struct io_shm *shm, const struct io_shm_name *name, struct error *err)
{
    return io->ops->shm_adopt(io, shm, name, err);
}
static inline void io_shm_remove(struct io *io, const struct io_shm_name *name)
{
    io->ops->shm_remove(io, name);
}
static inline int io_shm_grow(struct io *io, struct io_shm *shm, struct range range)
{
    return io->ops->shm_grow(io, shm, range);
}
static inline void io_shm_populate(struct io *io, struct io_shm *shm, struct range range)
{
    io->ops->shm_populate(io, shm, range);
}
static inline void io_shm_punch(struct io *io, struct io_shm *shm, struct range range)
{
    io->ops->shm_punch(io, shm, range);
}
static inline void io_shm_destroy(struct io *io, struct io_shm *shm)
{
    io->ops->shm_destroy(io, shm);
}

#endif
