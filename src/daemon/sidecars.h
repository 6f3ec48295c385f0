/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The sidecar files of a daemon's disks, in which their changes are tracked: where they lie, and the hooks by which the
 * VM has them opened, made and taken away. Control thread, where nothing else is said.
 */
#ifndef FLEECE_DAEMON_SIDECARS_H
#define FLEECE_DAEMON_SIDECARS_H

#include <limits.h>
#include <stdatomic.h>

#include "daemon/disks.h"
#include "daemon/options.h"
#include "vm/vm.h"

struct sidecar { /* of one disk */
    const struct disk_options *disk;
    unsigned index; /* of the disk */
    struct io *reactor;
    char beside[PATH_MAX], in_state[PATH_MAX]; /* where it may lie; "": nowhere there */
    char path[PATH_MAX];                       /* where it lies, or will */
    int fd;                                    /* of a new one without a name, the node's own; -1: it has its name */
    atomic_bool condemned; /* a tombstone tells of more than that the VM is away: it stays when the VM comes back */
    /* One operation at a time, on a helper thread: */
    struct io_op op;
    struct sidecars *sidecars;
    bool create;
    struct vm_sidecar result;
    bool found;
    struct error err;
    void (*opened)(void *argument, const struct vm_sidecar *sidecar, const struct error *err);
    void (*ended)(void *argument, const struct error *err);
    void *argument;
};

struct sidecars {
    struct io *control;
    const struct options *options;
    char state_dir[PATH_MAX];
    struct sidecar all[LIMIT_DISKS];
    const struct disks *disks;
    atomic_bool away;     /* as it was said last by sidecars_away() */
    struct io_op telling; /* that, on a helper thread */
    void (*told)(void *argument);
    void *told_argument;
};

/* After the disks were opened. */
void sidecars_init(struct sidecars *sidecars, struct io *control, const struct options *options,
                   const struct disks *disks);

/* For struct vm_hooks; the context is the struct sidecars. */
void sidecars_open(void *context, const struct disk *disk, bool create,
                   void (*done)(void *argument, const struct vm_sidecar *sidecar, const struct error *err),
                   void *argument);
void sidecars_keep(void *context, const struct disk *disk, void (*done)(void *argument, const struct error *err),
                   void *argument);
void sidecars_remove(void *context, const struct disk *disk, void (*done)(void *argument, const struct error *err),
                     void *argument);
/* The same. What lies in the state directory does not go where the disks go: a tombstone says that it is void, until the VM
 * is known to stay, or until it is removed in good order. */
void sidecars_away(void *context, bool away, void (*done)(void *argument), void *argument);
/* The disks are another machine's from now on, and what lies in the state directory does not go there: sidecars in it lose
 * their names, since on the VM's return they would know nothing of what was written elsewhere. No-op before
 * sidecars_init(). */
void sidecars_leave(struct sidecars *sidecars);
/* The path of a disk's sidecar, whether it is there or not; "": it can have none. */
const char *sidecars_path(const struct sidecars *sidecars, unsigned disk_index);

#endif
