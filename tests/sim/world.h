/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A machine in memory: the twin of io/ring behind struct io_ops. One OS thread plays all reactors of all processes;
 * a seed decides what a kernel, a disk, a network and a scheduler would have decided. The same seed and the same
 * calls give the same run, proved by world_hash().
 *
 * Faults of the code under test (an operation started twice, a foreign thread's call, a descriptor closed under I/O)
 * end the program with a sentence on stderr and abort().
 */
#ifndef TESTS_SIM_WORLD_H
#define TESTS_SIM_WORLD_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "io/io.h"

struct world;
struct world_file;

enum world_kind {
    WORLD_MESSAGE,
    WORLD_READ,
    WORLD_WRITE,
    WORLD_SYNC,
    WORLD_ALLOCATE,
    WORLD_EXTENT,
    WORLD_WORK,
    WORLD_ACCEPT,
    WORLD_RECV,
    WORLD_SEND,
    WORLD_POLL,
    WORLD_RECV_PACKET,
    WORLD_SEND_PACKET,
    WORLD_EVENT_WAIT,
    WORLD_EVENT_SIGNAL,
};

/* What a hook is told about a disk operation (WORLD_READ .. WORLD_EXTENT). */
struct world_io {
    enum world_kind kind;
    uint64_t number; /* counts all disk operations of the world, from 1 */
    struct world_file *file;
    struct range range;
    struct io *io;
    const struct io_op *op;
};

struct world_options {
    uint64_t seed;
    bool trace;                 /* one line per event on stderr */
    bool power;                 /* keep what is not yet stable, so that world_power_loss() can be called */
    unsigned short_per_1024;    /* reads and writes that transfer less than was asked for */
    unsigned stall_per_1024;    /* ticks before which a reactor is not scheduled for a while */
    uint64_t disk_ns;           /* typical latency of a disk operation; 0: 50 us. Some take a hundred times as long. */
    uint64_t message_ns;        /* typical delay of a message; 0: 2 us */
    uint64_t shm_max_bytes;     /* size of tmpfs; 0: no limit */
    unsigned shm_fail_per_1024; /* growths that fail though there is room */
    unsigned random_per_1024;   /* io_random() calls answered with zeroes only: nobody may rely on more than luck */
    /* Hooks of the test; may be NULL. */
    void *context;
    int (*fault)(void *context, const struct world_io *io); /* 0, or -errno: this operation fails so */
    bool (*gate)(void *context, const struct world_io *io); /* true: keep it until world_let_go() */
    void (*landed)(void *context, const struct world_io *io, int64_t result); /* it has taken effect */
    uint64_t (*delay)(void *context, struct io *from,
                      struct io *to); /* of a message, on top of its latency; from: NULL */
    /* Whether memory is shared with others, and so is still there when a killed process's reads land. */
    bool (*outlives)(void *context, const void *memory, size_t length);
    void (*moment)(void *context); /* a call of an operation inside a tick: here world_die() may be called */
};

struct world *world_create(const struct world_options *options);
/* Frees everything; returns how many things were left over, each with a line on `report` (NULL: stderr). */
unsigned world_destroy(struct world *world, FILE *report);

/* A reactor of a process; processes are numbers of the caller's. */
struct io *world_reactor(struct world *world, const char *name, unsigned process);
struct world *world_of(struct io *io);
void *world_context(const struct world *world); /* options.context */

/* Calls function(argument) on a reactor, as one tick of it. */
void world_call(struct io *io, void (*function)(void *argument), void *argument);
/* Lets the caller act as that reactor until the next call; what it queued as tasks runs then. NULL: as nobody. */
void world_act_as(struct world *world, struct io *io);

/* One tick of one reactor. false: nothing will ever happen again (or everything that could is held back). */
bool world_step(struct world *world);
/* Steps until condition(argument), or nothing happens any more, or virtual time passes the deadline. Whether it holds. */
bool world_run_until(struct world *world, bool (*condition)(void *argument), void *argument, uint64_t timeout_ns);
void world_run_for(struct world *world, uint64_t duration_ns);
/* Somebody sets the clock that shows the time of day, forward or back. */
void world_set_clock(struct world *world, int64_t by_ns);
uint64_t world_now(const struct world *world);
uint64_t world_next(struct world *world); /* when the next thing happens; UINT64_MAX: nothing will */
/* The reactor does not run before `until_ns`: its thread hangs in a system call. */
void world_stall(struct io *io, uint64_t until_ns);

/* Seeded random numbers, the only ones that tests may use. `below` > 0. */
uint64_t world_random(struct world *world);
uint64_t world_below(struct world *world, uint64_t below);
bool world_chance(struct world *world, unsigned per_1024);

/* Over everything that happened so far. */
uint64_t world_hash(const struct world *world);
uint64_t world_events(const struct world *world);
uint64_t world_disk_operations(const struct world *world);

/* Sets the size of tmpfs. */
void world_limit_shm(struct world *world, uint64_t max_bytes);
/* Pieces of shared memory that have a name; and what all of it takes. */
unsigned world_named_memory(const struct world *world);
uint64_t world_shm_bytes(const struct world *world);

/* Files. `alignment` is what direct I/O asks for: 512 or 4096. Bytes may be looked at (not changed) at any time. */
struct world_file *world_file_create(struct world *world, const char *path, uint64_t size_bytes, uint32_t alignment,
                                     bool block_device);
struct world_file *world_file_find(struct world *world, const char *path); /* NULL: none */
/* Its content before anything happens: stable data, allocated. */
void world_file_fill(struct world_file *file, uint64_t offset, const void *bytes, uint64_t length);
void world_file_remove(struct world *world, const char *path); /* no descriptor may be open */
uint8_t *world_file_bytes(struct world_file *file);
uint64_t world_file_size(const struct world_file *file);
uint64_t world_file_allocated(const struct world_file *file);

/* Operations that the gate held: let them end, in any order the test likes. world_land() lets the data take effect now,
 * while the completion stays held. false: no such operation is held. */
bool world_let_go(struct world *world, uint64_t number);
bool world_land(struct world *world, uint64_t number);
void world_let_go_all(struct world *world);
unsigned world_held(const struct world *world);

/* kill -9: no reactor of the process runs any more; its disk I/O lands later (up to 4 s), and its locks and descriptors
 * go away only then. The memory that its operations point at must stay valid until this returns. */
void world_kill(struct world *world, unsigned process);
/* kill -9 in the middle of a tick, from the hook `moment`: what the tick has started has not reached the kernel, what it
 * has stored is stored. Ends the tick. */
void world_die(struct world *world) __attribute__((noreturn));
unsigned world_process(const struct world *world); /* of the reactor that runs */
/* All processes die, each write that is not stable lands, vanishes or tears at sectors of 512 bytes; with options.power. */
void world_power_loss(struct world *world);

/* Network: a connection to a listening address, -ECONNREFUSED without one; two connected sockets; a reset of both ends. */
int world_connect(struct world *world, const char *address);
void world_pair(struct world *world, int descriptors[2]);
void world_reset(struct world *world, int descriptor);
/* An eventfd, which can travel; so can a descriptor of the kernel's own, such as of a memfd, that somebody may map. */
int world_event(struct world *world);
unsigned world_descriptors(const struct world *world); /* open now */

#endif
