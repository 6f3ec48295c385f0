/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * libfleece: the client of a daemon's control socket. Blocking, one thread at a time per connection.
 * The protocol has the framing of QMP (QEMU Machine Protocol, docs/interop/qmp-spec in QEMU); docs/control-protocol.md
 * lists the commands.
 */
#ifndef FLEECE_FLEECE_H
#define FLEECE_FLEECE_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

#define FLEECE_ERROR_BYTES 512

struct fleece; /* one connection */

/* Connects to the control socket at `path` and negotiates. Returns NULL and the reason in error[FLEECE_ERROR_BYTES]:
 * no such socket, refused, not a Fleece daemon. Free with fleece_close(). */
struct fleece *fleece_open(const char *path, char *error);
void fleece_close(struct fleece *fleece);

/* Executes `command` with `arguments` (a JSON object, or NULL). On success returns the JSON text of "return"; on failure
 * NULL and the daemon's sentence in error[FLEECE_ERROR_BYTES]. Free the text with free(). Events that arrive meanwhile
 * are kept for fleece_event(). */
char *fleece_execute(struct fleece *fleece, const char *command, const char *arguments, char *error);

/* The next event as JSON text, waiting at most timeout_ms (-1: for ever, 0: not at all). NULL: none came, or the
 * connection is lost (then error[0] is not 0). Free the text with free(). */
char *fleece_event(struct fleece *fleece, int timeout_ms, char *error);

/* For poll(): readable when an event may be there. */
int fleece_descriptor(const struct fleece *fleece);

/* Where the control socket of a VM lies by default: $XDG_RUNTIME_DIR/fleece/VM/control.sock, or for root
 * /run/fleece/VM/control.sock. Writes at most size bytes; returns 0, or -1 if it does not fit. */
int fleece_default_socket(const char *vm, char *path, size_t size);

#ifdef __cplusplus
}
#endif
#endif
