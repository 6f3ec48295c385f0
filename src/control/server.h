/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The control server: QMP on a unix socket (docs/control-protocol.md). It lives on the control thread, with
 * the VM; every function is called there.
 */
#ifndef FLEECE_CONTROL_SERVER_H
#define FLEECE_CONTROL_SERVER_H

#include "base/error.h"
#include "export/nbd/server.h"
#include "export/vhost_user/server.h"
#include "guest/freezer.h"
#include "job/job.h"
#include "vm/vm.h"

struct control_server;

/* What the daemon lends. All of it must stay until the server is destroyed. */
struct control_host {
    void *context;
    struct vm *vm;
    struct job_table *jobs;
    const char *const *nbd_addresses; /* "unix:/ABSOLUTE", "tcp:HOST:PORT" */
    unsigned nbd_address_count;
    const char *const *disk_files; /* what each disk of the VM was opened from; NULL in it: nothing */
    const char *const *reactors;   /* one line on each I/O thread */
    unsigned reactor_count;
    /* Asks the NBD server; calls done(argument, status) later, with NULL if the server is gone. Freed by the
     * host. */
    void (*exports_query)(void *context, void (*done)(void *argument, const struct nbd_server_status *status),
                          void *argument);
    /* What is known of each vhost-user socket, LIMIT_DISKS of them at most: how many. */
    unsigned (*vhost_users)(void *context, struct vhost_export_status *status);
    /* Who freezes the guest, and how that is. */
    void (*guest)(void *context, struct freezer_status *status);
    uint64_t (*rss_bytes)(void *context);
    /* A client wants the daemon to end in an orderly way; called once per `quit`. */
    void (*quit)(void *context);
};

struct control_server *control_server_create(struct io *io, const struct control_host *host);
/* `path` of a unix socket. -errno with a sentence. */
int control_server_listen(struct control_server *server, const char *path, struct error *err);
/* Serves a connection that is already there. */
void control_server_adopt(struct control_server *server, int fd);
/* Sends SHUTDOWN to everybody and refuses commands from now on. `reason`: "host-signal" or "host-qmp-quit".
 */
void control_server_stop(struct control_server *server, const char *reason);
/* After control_server_stop(), when the VM has ended (or never was): sends what is queued for a
 * moment, hangs up, stops listening; calls done(argument), after which the server is gone. */
void control_server_destroy(struct control_server *server, void (*done)(void *argument), void *argument);

/* Events of jobs, for job_table->hooks. */
struct job_hooks control_job_hooks(struct control_server *server);
/* Events, to every client that has negotiated. */
void control_event_cache_threshold(struct control_server *server, unsigned percent, const struct vm_cache_fill *fill);
void control_event_snapshot_created(struct control_server *server, const struct snapshot *snapshot);
void control_event_snapshot_broken(struct control_server *server, const struct snapshot *snapshot);
void control_event_snapshot_deleted(struct control_server *server, const char *name, const char *uuid);
void control_event_disk_resized(struct control_server *server, const char *disk, uint64_t old_bytes,
                                uint64_t size_bytes);
/* `id` is NULL for VM_CHECKPOINT_INVALID, which is of all checkpoints of `disk`, for `reason`; the others have neither. */
void control_event_checkpoint(struct control_server *server, enum vm_checkpoint_event event,
                              const struct checkpoint_id *id, const char *disk, const char *reason);

#endif
