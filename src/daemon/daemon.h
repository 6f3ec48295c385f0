/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The daemon: start, service and end. */
#ifndef FLEECE_DAEMON_DAEMON_H
#define FLEECE_DAEMON_DAEMON_H

#include "daemon/options.h"

/* How fleeced ends, see its manual page. */
enum { EXIT_DONE = 0, EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_HANDED_OVER = 4, EXIT_INTERRUPTED = 130 };

/* Serves until a signal or a client ends it; says on stderr what went wrong. Returns the exit code, never EXIT_USAGE.
 * SIGINT, SIGTERM and SIGHUP must be blocked in the calling thread, which becomes the control thread. */
int daemon_run(const struct options *options);

#endif
