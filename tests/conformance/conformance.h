/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The conformance suite of struct io_ops: what every implementation owes its callers, tested through the operations
 * alone. An implementation runs it by filling in a fixture:
 *
 *     int main(void) { return conformance_run("ring", &ring_fixture); }
 *
 * Each test gets a reactor of its own. Reads, writes, sends and receives may be short and completions may come in any
 * order; the tests bear that, and nothing else. Faults must be off.
 */
#ifndef FLEECE_TESTS_CONFORMANCE_H
#define FLEECE_TESTS_CONFORMANCE_H

#include "io/io.h"

struct conformance_fixture {
    /* A new reactor, owned by the calling thread, with an empty folder for files; and its end: nothing is under way. */
    struct io *(*begin)(void);
    void (*end)(struct io *io);
    /* Runs the loop until reached(context), which is asked between callbacks at least every few milliseconds of the
     * reactor's time. False when 10 s of the reactor's time have passed without it. */
    bool (*run_until)(struct io *io, bool (*reached)(void *context), void *context);
    /* A path in the folder; the text is valid until the next call. Nothing is there yet, the first time. */
    const char *(*path)(struct io *io, const char *name);
    /* An address to listen on that nobody uses. `tcp`: of that kind, NULL when there are none. Text as above. */
    const char *(*address)(struct io *io, bool tcp);
    /* The client's end of a new connection to an address that is listened on; used with io_recv and so on, closed with
     * io_close. -errno when refused. */
    int (*connect)(struct io *io, const char *address);
    /* A new eventfd; `blocking`: as eventfd(2) makes it without EFD_NONBLOCK. */
    int (*event)(struct io *io, bool blocking);
    /* Runs body(argument) where a thread other than the owner would, and returns when it has ended. */
    void (*elsewhere)(struct io *io, void (*body)(void *argument), void *argument);
};

/* Runs all tests; the number of failed ones. */
int conformance_run(const char *name, const struct conformance_fixture *fixture);

#endif
