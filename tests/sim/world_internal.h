/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the parts of the world share: world.c (time, reactors), world_disk.c, world_net.c, world_shm.c. */
#ifndef TESTS_SIM_WORLD_INTERNAL_H
#define TESTS_SIM_WORLD_INTERNAL_H

#include <setjmp.h>

#include "base/limits.h"
#include "world.h"

#define WORLD_SECTOR 512u
#define WORLD_EXTENT_BYTES 4096u
#define WORLD_SOCKET_BYTES 8192u

enum {
    WORLD_REACTORS = 96,
    WORLD_FILES = 64,
    WORLD_DESCRIPTORS = 1024,
    WORLD_DESCRIPTOR_FIRST = 1 << 20, /* below are the kernel's */
    WORLD_DESCRIPTOR_END = WORLD_DESCRIPTOR_FIRST + WORLD_DESCRIPTORS,
    WORLD_KERNEL_DESCRIPTORS = 64,
    WORLD_OP_MAGIC = 0x0b5e55ed,
};

struct armed {
    struct io_timer *timer;
    uint64_t order; /* equal deadlines fire in the order in which they were set */
};

struct reactor {
    struct io io; /* first */
    struct world *world;
    char name[16];
    unsigned index, process;
    bool dead;
    struct list tasks;
    struct armed *timers; /* heap, from 1 */
    size_t timer_count, timer_room;
    uint64_t stalled_until;                 /* 0: runs */
    struct event *arriving;                 /* in the tick that runs: it is told of it after its timers */
    struct event *backlog, **backlog_end;   /* arrived while it was stalled */
    uint64_t post_last[WORLD_REACTORS + 1]; /* due of the newest message from each reactor (last: from nobody) */
};

struct event {
    uint64_t due, order;
    struct reactor *reactor;
    enum world_kind kind;
    bool landed, held, in_heap, canceled;
    bool orphan;        /* of a killed process: op is nobody's any more */
    struct event *next; /* free list, backlog, list of those held, or waiters of a socket */
    struct io_op *op;
    struct io_message *message;
    int64_t result;
    uint64_t number;
    int fd;
    int forced;     /* -errno it will fail with */
    unsigned flags; /* of a write; mode of an allocation; events of a poll */
    unsigned iov_count;
    const struct iovec *iov;
    struct range range;
    uint64_t sync_before; /* datasync: unstable writes before this one become stable */
    struct io_extent *extent;
    int64_t (*work)(void *argument);
    void *argument;
    uint8_t *copy;        /* orphaned write: its data */
    struct iovec *shared; /* orphan: its memory is named shared memory, which is still there */
    uint64_t tick;        /* in which it was started */
};

struct unstable { /* a write that power loss may undo */
    struct unstable *next;
    uint64_t number;
    bool stable;
    struct range range;
    uint8_t data[];
};

struct world_file {
    char *path;
    uint64_t size, room;
    uint32_t alignment;
    bool block_device;
    uint8_t *bytes;
    uint8_t *allocated; /* a byte for each 4 KiB */
    uint8_t *stable;    /* with options.power */
    uint8_t *changed;   /* the same: whether a page may differ from what is stable */
    uint64_t stable_size;
    struct unstable *unstable, **unstable_end;
    unsigned descriptions;
    uint64_t inode, changed_ns; /* of its last write or truncation, as the kernel notes it */
};

struct lock {
    uint64_t start, length;
    bool exclusive;
};

struct parcel { /* descriptors on their way */
    struct parcel *next;
    uint64_t position; /* of the byte that they travel with, counted from the socket's beginning */
    int fds[LIMIT_PACKET_DESCRIPTORS];
    unsigned fd_count;
};

struct socket {
    struct socket *peer; /* NULL: closed or reset */
    uint8_t inbox[WORLD_SOCKET_BYTES];
    uint32_t inbox_start, inbox_used;
    uint64_t received;      /* bytes taken out so far */
    struct parcel *parcels; /* in the inbox, in order */
    bool end_of_input, no_output, reset;
    bool listening;
    char address[128];
    int backlog[64];
    unsigned backlog_count;
    struct event *waiters; /* operations that wait for data, room or a connection */
    bool is_event;         /* it is no socket: an eventfd */
    bool signalled;
    unsigned shared; /* descriptions that it has besides the first */
};

struct description { /* an open file description; its index is the descriptor */
    bool open, closing;
    unsigned process;
    int flags;
    unsigned under_way;
    struct world_file *file;
    struct socket *socket;
    struct lock *locks;
    unsigned lock_count;
    bool is_shm;
    char *shm_base; /* and what is mapped there */
    uint64_t shm_reserved;
    uint8_t *shm_grown;          /* a bit for each page */
    struct named_shm *shm_named; /* NULL: it has no name */
};

/* The wall clock at the world's beginning. */
#define WORLD_EPOCH_NS (UINT64_C(1800000000) * NS_PER_S)

enum { WORLD_SHM_NAMES = 64, WORLD_SHM_NAME_BYTES = 256 };

struct named_shm {                   /* outlives its process, not the power */
    char name[WORLD_SHM_NAME_BYTES]; /* empty: it has been removed, or there is none */
    char *base;                      /* where it is mapped, in every process: NULL: a free place */
    uint64_t reserved;
    uint8_t *grown; /* a bit for each page */
    int fd;         /* of who has it; -1: nobody */
};

struct kernel_descriptor {
    int fd;
    unsigned process;
};

struct world {
    struct world_options options;
    uint64_t random[2];
    uint64_t now, order, hash, events, disk_operations;
    uint64_t wall_ahead_ns; /* somebody has set the clock */
    struct reactor *reactors[WORLD_REACTORS];
    unsigned reactor_count;
    struct reactor *current;
    uint64_t ticks;
    jmp_buf *escape;        /* of the tick that runs: for world_die() */
    struct event *starting; /* a disk operation that is being started */
    struct event **heap;    /* from 1 */
    size_t heap_count, heap_room;
    struct event *free_events;
    struct event *held; /* by the gate */
    unsigned held_count;
    struct world_file *files[WORLD_FILES];
    struct description descriptions[WORLD_DESCRIPTORS];
    unsigned descriptor_next, descriptor_count;
    struct kernel_descriptor kernel[WORLD_KERNEL_DESCRIPTORS]; /* that a process has received */
    unsigned kernel_count;
    uint64_t unstable_number;
    uint64_t shm_bytes;
    struct named_shm named_shm[WORLD_SHM_NAMES];
    uint64_t boots, inodes;
};

static inline uint64_t world_wall(const struct world *world)
{
    return world->now + WORLD_EPOCH_NS + world->wall_ahead_ns;
}

/* The hook `moment`; `io` is what is being called. */
void world_moment(struct io *io);
/* The reactor's tick was ended by world_die(). */
void world_died(struct reactor *reactor);
/* The code under test broke a rule of io.h. */
void world_violation(struct world *world, const char *format, ...) __attribute__((format(printf, 2, 3), noreturn));
static inline struct reactor *reactor_of(struct io *io)
{
    return (struct reactor *)io;
}

struct event *event_new(struct reactor *reactor, enum world_kind kind, struct io_op *op);
void event_free(struct world *world, struct event *event);
void event_schedule(struct world *world, struct event *event, uint64_t due);
void event_unschedule(struct world *world, struct event *event);
uint64_t world_latency(struct world *world, uint64_t typical_ns);
/* Ends the operation of an event: frees the event and calls done. */
void event_finish(struct world *world, struct event *event, int64_t result);
/* Owner thread, not ended: asserted at entry of every operation. */
void world_check_owner(struct io *io, const char *what);

int description_new(struct world *world, unsigned process);
struct description *description_of(struct world *world, int fd);
static inline struct description *description_at(struct world *world, int fd)
{
    return &world->descriptions[fd - WORLD_DESCRIPTOR_FIRST];
}
void description_release(struct world *world, int fd); /* one operation on it has ended */
void description_drop(struct world *world, int fd);

/* world_disk.c */
extern const struct io_ops world_ops;
void disk_land(struct world *world, struct event *event);
void disk_orphan(struct world *world, struct event *event); /* its process was killed: keep what it needs to land */
void disk_power_loss(struct world *world, struct event **events, size_t count);
void file_free(struct world_file *file);
int disk_open(struct io *io, const char *path, int flags, mode_t mode);
int disk_stat(struct io *io, int fd, struct io_stat *stat);
int disk_truncate(struct io *io, int fd, uint64_t size_bytes);
int disk_lock(struct io *io, int fd, uint64_t start, uint64_t length, bool exclusive);
int disk_lock_test(struct io *io, int fd, uint64_t start, uint64_t length, bool exclusive);
void disk_readv(struct io *io, struct io_op *op, int fd, const struct iovec *iov, unsigned iov_count, uint64_t offset);
void disk_writev(struct io *io, struct io_op *op, int fd, const struct iovec *iov, unsigned iov_count, uint64_t offset,
                 unsigned flags);
void disk_datasync(struct io *io, struct io_op *op, int fd);
void disk_allocate(struct io *io, struct io_op *op, int fd, enum io_allocate_mode mode, struct range range);
void disk_extent(struct io *io, struct io_op *op, int fd, uint64_t offset, struct io_extent *extent);

/* world_net.c */
int net_listen(struct io *io, const char *address, struct error *err);
void net_accept(struct io *io, struct io_op *op, int fd);
int net_connect(struct io *io, const char *address, struct error *err);
void net_recv(struct io *io, struct io_op *op, int fd, void *buffer, size_t length);
void net_sendv(struct io *io, struct io_op *op, int fd, const struct iovec *iov, unsigned iov_count);
void net_shutdown(struct io *io, int fd);
void net_poll(struct io *io, struct io_op *op, int fd, short events);
void net_cancel_waiter(struct world *world, struct event *event);
void net_try(struct world *world, struct event *event); /* its time has come: finish it, or wait for the peer */
void socket_close(struct world *world, struct socket *socket);
struct socket *socket_new(void);
int socket_open(struct world *world, struct socket *socket, unsigned process);
void socket_start(struct event *event);
void socket_wait(struct socket *socket, struct event *event);
void socket_wake(struct world *world, struct socket *socket);
void try_recv(struct world *world, struct event *event, struct socket *socket);
void try_send(struct world *world, struct event *event, struct socket *socket);
void socket_drop_process(struct world *world, unsigned process);

/* world_kernel.c */
static inline bool is_kernel_descriptor(int fd)
{
    return fd >= 0 && fd < WORLD_DESCRIPTOR_FIRST;
}
int kernel_copy(struct world *world, int fd);
void kernel_give(struct world *world, int fd, unsigned process);
void kernel_close(struct world *world, int fd);
void kernel_kill(struct world *world, unsigned process);
unsigned kernel_leftovers(const struct world *world, FILE *report);

/* world_packet.c */
void net_recv_packet(struct io *io, struct io_op *op, int fd, struct io_packet *packet);
void net_send_packet(struct io *io, struct io_op *op, int fd, struct io_packet *packet);
void net_event_wait(struct io *io, struct io_op *op, int fd);
void net_event_signal(struct io *io, struct io_op *op, int fd);
void packet_try(struct world *world, struct event *event, struct socket *socket);
/* How much of the inbox one receive may take; and descriptors that a receive without room for them passes are closed. */
uint64_t packet_bound(const struct socket *socket, uint64_t length);
void packet_drop(struct world *world, struct socket *socket, uint64_t before);

/* world_shm.c */
int shm_create_(struct io *io, struct io_shm *shm, const struct io_shm_name *name, uint64_t reserve_bytes,
                struct error *err);
int shm_adopt_(struct io *io, struct io_shm *shm, const struct io_shm_name *name, struct error *err);
void shm_remove_(struct io *io, const struct io_shm_name *name);
void shm_power_loss(struct world *world);
int shm_grow_(struct io *io, struct io_shm *shm, struct range range);
void shm_populate_(struct io *io, struct io_shm *shm, struct range range);
void shm_punch_(struct io *io, struct io_shm *shm, struct range range);
void shm_destroy_(struct io *io, struct io_shm *shm);
bool shm_is_named(const struct world *world, const void *memory, size_t length);
void shm_drop(struct world *world, struct description *description);

#endif
