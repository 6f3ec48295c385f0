/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The vhost-user sockets of the daemon, one for each --vhost-user, and what their front-ends say of where the VM is. On the
 * control thread; every `done` is called there.
 */
#ifndef FLEECE_DAEMON_VHOST_EXPORTS_H
#define FLEECE_DAEMON_VHOST_EXPORTS_H

#include "daemon/options.h"
#include "export/vhost_user/server.h"
#include "vm/vm.h"

struct vhost_exports {
    struct vhost_export *exports[LIMIT_DISKS]; /* in the order of options->vhost_users */
    unsigned count;
    bool away; /* the guest has stopped to go on elsewhere, and has not come back */
    /* Private: */
    const struct options *options;
    struct vm *vm;                  /* NULL: the disks are still another daemon's */
    void (*wanted)(void *argument); /* they are not any more; called once */
    bool asked[LIMIT_DISKS];        /* the export waits for an answer: to its guest's parting, or to its arrival */
    bool leaving;                   /* vm_leave() is under way */
    bool parted_again;              /* since it has begun the guest was back, and has stopped once more */
    bool migrates[LIMIT_DISKS];     /* its guest had a migration's log on when it was heard of last */
    bool waits[LIMIT_DISKS];        /* the export waits for vm_migrates() */
    bool noting;                    /* which is under way */
    unsigned pending;
    struct error err; /* the first one */
    void (*started)(void *argument, const struct error *err);
    void (*stopped)(void *argument);
    void *argument, *wanted_argument, *stopped_argument;
};

/* A disk has another size: those who have it on a socket are told. */
void vhost_exports_resized(const struct vhost_exports *exports, const struct disk *disk);
/* Makes and starts them all; `done` may be called inside this call. After an error only vhost_exports_stop() is allowed.
 * With `vm` the disks are here. Without, `stand_ins` (one for each disk, see disks.h) show what they are, and
 * wanted(argument) tells when a VMM wants to use one: vhost_exports_open() answers that. */
void vhost_exports_start(struct vhost_exports *exports, struct io *control, struct vm *vm, struct node *stand_ins,
                         const struct options *options, void (*wanted)(void *argument),
                         void (*done)(void *argument, const struct error *err), void *argument);
/* The disks are open. */
void vhost_exports_open(struct vhost_exports *exports, struct vm *vm);
/* Ends them all, in good order; `done` may be called inside this call. */
void vhost_exports_stop(struct vhost_exports *exports, void (*done)(void *argument), void *argument);

#endif
