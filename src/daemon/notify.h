/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The service manager's notification socket, sd_notify(3). */
#ifndef FLEECE_DAEMON_NOTIFY_H
#define FLEECE_DAEMON_NOTIFY_H

#include "daemon/options.h"

/* Sends "READY=1" or "STOPPING=1" to $NOTIFY_SOCKET, if there is one. */
void notify_send(const char *state);

/* Says in the log what is served, and where, and READY=1. */
void notify_ready(const struct options *options, const char *const *nbd, unsigned nbd_count, const char *control_path);

#endif
