/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The vhost-user sockets of the daemon, one for each --vhost-user. On the control thread; every `done` is called there. */
#ifndef FLEECE_DAEMON_VHOST_EXPORTS_H
#define FLEECE_DAEMON_VHOST_EXPORTS_H

#include "daemon/options.h"
#include "export/vhost_user/server.h"
#include "vm/vm.h"

struct vhost_exports {
    struct vhost_export *exports[LIMIT_DISKS];
    unsigned count;
    /* Private: */
    unsigned pending;
    struct error err; /* the first one */
    void (*started)(void *argument, const struct error *err);
    void (*stopped)(void *argument);
    void *argument;
};

/* A disk has another size: those who have it on a socket are told. */
void vhost_exports_resized(const struct vhost_exports *exports, const struct disk *disk);
/* Makes and starts them all; `done` may be called inside this call. After an error only vhost_exports_stop() is allowed. */
void vhost_exports_start(struct vhost_exports *exports, struct io *control, struct vm *vm,
                         const struct options *options, void (*done)(void *argument, const struct error *err),
                         void *argument);
/* Ends them all, in good order; `done` may be called inside this call. */
void vhost_exports_stop(struct vhost_exports *exports, void (*done)(void *argument), void *argument);

#endif
