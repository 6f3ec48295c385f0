/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The bridge between the control thread and the NBD server, which lives on a reactor: every call becomes a message there
 * and its answer a message back. All functions are called on the control thread; every `done` is called there, later.
 */
#ifndef FLEECE_DAEMON_EXPORTS_H
#define FLEECE_DAEMON_EXPORTS_H

#include "export/nbd/server.h"
#include "vm/vm.h"

struct exports;

struct exports *exports_create(struct io *control, struct io *server_io);
/* Starts the server with an export for each disk of the VM. `addresses` must stay until done. After an error only
 * exports_stop() is allowed. */
void exports_start(struct exports *exports, struct vm *vm, const char *const *addresses, unsigned address_count,
                   void (*done)(void *argument, const struct error *err), void *argument);
/* For struct vm_hooks; the context is the struct exports. After exports_stop(), nothing is published any more. */
void exports_publish(void *context, const char *export_name, struct node *node,
                     void (*done)(void *argument, int status), void *argument);
void exports_unpublish(void *context, const char *export_name, void (*done)(void *argument, int status),
                       void *argument);
/* For struct control_host: NULL when the server does not run. */
void exports_query(struct exports *exports, void (*done)(void *argument, const struct nbd_server_status *status),
                   void *argument);
/* Ends the server, its connections and exports, after what is under way. */
void exports_stop(struct exports *exports, void (*done)(void *argument), void *argument);
/* Nothing is under way. */
void exports_destroy(struct exports *exports);

#endif
