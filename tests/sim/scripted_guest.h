/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A guest and its agent, which serves one connection after the other and does one thing after the other, by a script. */
#ifndef TESTS_SIM_SCRIPTED_GUEST_H
#define TESTS_SIM_SCRIPTED_GUEST_H

#include "io/io.h"

enum { FILE_SYSTEMS = 3 };

#define GUEST_ADDRESS "unix:/agent.sock"

enum fault {
    NO_FAULT,
    LOST,      /* not heard */
    UNHEARD,   /* done, but nothing is said */
    LATE,      /* the agent takes 15 s for it */
    LATE_DONE, /* it does it at once, and says so 15 s later */
    GARBAGE,   /* done, and nonsense is said */
    HALF,      /* done, and half of the reply is said */
    ENDLESS,   /* done, and a reply that does not end is said */
    STALE,     /* others' replies, half of one last, are said before */
    WRONG,     /* a reply of another kind */
    NONE,      /* nothing is done, and 0 is said to be */
    PARTLY,    /* it freezes one file system, and says that it failed */
    REFUSED,   /* nothing is done: an error */
    CLOSED,    /* the connection is closed instead */
    DONE_CLOSED,
    FAULTS,
};

struct guest {
    struct io *io;
    const char *address; /* of its agent; NULL: GUEST_ADDRESS */
    int listener, fd;    /* -1: nobody is connected */
    struct io_op accept, receive, send;
    struct iovec iov;
    struct io_timer busy;
    bool sending, receiving, hanging_up;
    char in[512], line[512], out[9000];
    size_t line_used, out_used;
    /* What it is told, counted, and what goes wrong with which of it: */
    unsigned heard, fault_at;
    enum fault fault;
    bool deaf; /* for ever */
    char late[200];
    unsigned frozen; /* file systems */
    uint64_t frozen_since, frozen_longest;
    bool thawed_by_itself;
    unsigned freezes, thaws;
};

/* On its reactor (guest->io): listens; the argument is the guest. */
void guest_start(void *argument);
/* All that is frozen thaws: how many file systems. */
unsigned guest_thaw(struct guest *guest);

#endif
