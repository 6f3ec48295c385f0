/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The service manager's notification socket, sd_notify(3). */
#ifndef FLEECE_DAEMON_NOTIFY_H
#define FLEECE_DAEMON_NOTIFY_H

/* Sends "READY=1" or "STOPPING=1" to $NOTIFY_SOCKET, if there is one. */
void notify_send(const char *state);

#endif
