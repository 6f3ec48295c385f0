/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the daemon consists of; daemon.c and vm_hooks.c alone know it whole. On the control thread. */
#ifndef FLEECE_DAEMON_DAEMON_INTERNAL_H
#define FLEECE_DAEMON_DAEMON_INTERNAL_H

#include <limits.h>
#include <sys/signalfd.h>

#include "control/server.h"
#include "daemon/caches.h"
#include "daemon/disks.h"
#include "daemon/exports.h"
#include "daemon/guest.h"
#include "daemon/runtime.h"
#include "daemon/sidecars.h"
#include "daemon/vhost_exports.h"

enum daemon_state {
    DAEMON_CLAIM, /* the head of daemon.c says what they are */
    DAEMON_AWAIT,
    DAEMON_OPEN,
    DAEMON_RECOVER,
    DAEMON_EXPORT,
    DAEMON_SERVE,
    DAEMON_THAW,
    DAEMON_END_JOBS,
    DAEMON_UNEXPORT,
    DAEMON_CLOSE,
    DAEMON_HANG_UP,
    DAEMON_ENDED
};

struct daemon {
    const struct options *options;
    enum daemon_state state;
    int exit_code;
    bool awaiting;   /* a VMM: nothing of ours is under way */
    bool wanted;     /* by a VMM that came before that */
    bool end_wanted; /* asked for while a step of the start was under way */
    bool hand_over;  /* it ends for the next daemon, which takes over all that a killed one would leave */
    struct runtime runtime;
    struct io *control_io;
    struct io *reactors[LIMIT_REACTORS];
    const char *features[LIMIT_REACTORS];
    unsigned reactor_count;
    struct disks disks;
    struct caches caches;
    struct sidecars sidecars;
    struct guest guest;
    char memory_folder[PATH_MAX];
    struct io_op open;
    struct vm *vm;
    struct job_table jobs;
    struct exports *exports;
    struct vhost_exports vhost_exports;
    struct control_server *control;
    int signal_fd;
    struct io_op signal_op;
    bool signal_waiting; /* signal_op is under way */
    struct signalfd_siginfo signal;
    char control_path[RUNTIME_PATH_BYTES];
    char nbd_default[RUNTIME_PATH_BYTES];
    const char *nbd[LIMIT_NBD_ADDRESSES];
    unsigned nbd_count;
    const char *disk_files[LIMIT_DISKS];
};

/* vm_hooks.c: what its VM calls. */
struct vm_hooks daemon_vm_hooks(struct daemon *daemon);

#endif
