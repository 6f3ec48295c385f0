/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The reactor on io_uring: the implementation of struct io_ops that talks to a kernel. */
#ifndef FLEECE_IO_RING_H
#define FLEECE_IO_RING_H

#include "io/io.h"

/*
 * Starts a thread `name` (15 characters at most) with its own ring and returns its reactor. The ring's features are
 * probed: SINGLE_ISSUER and DEFER_TASKRUN where the kernel has them. The environment variable FLEECE_RING_FEATURES=none
 * masks every feature beyond the oldest supported kernel's (5.10), for tests.
 * -ENOSYS/-EPERM/...: with a sentence that says that io_uring is missing or forbidden and where to look.
 */
int ring_start(const char *name, struct io **io, struct error *err);

/* Same, for the calling thread, which then runs ring_run(). */
int ring_create(struct io **io, struct error *err);
/* Runs the loop until ring_quit(). On the owner thread. */
void ring_run(struct io *io);
/* Ends the loop after the current tick. Any thread. */
void ring_quit(struct io *io);
/* Frees a reactor made by ring_create() (owner thread, after ring_run() returned), or ends, joins and frees one made by
 * ring_start() (any other thread). Nothing may be under way on it any more, except the operations it owns itself. */
void ring_destroy(struct io *io);

/* One line for logs and status: "io_uring, single issuer, deferred task work". */
const char *ring_features(const struct io *io);

#endif
