/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Opening the disks of the command line. */
#ifndef FLEECE_DAEMON_DISKS_H
#define FLEECE_DAEMON_DISKS_H

#include "block/node.h"
#include "daemon/options.h"
#include "track/disk_watch.h"

struct disks { /* set by the caller: options, reactors, reactor_count */
    const struct options *options;
    struct io **reactors;
    unsigned reactor_count;
    struct node *leaves[LIMIT_DISKS]; /* of those that were opened, in order */
    struct node *files[LIMIT_DISKS];  /* their files: the leaf itself, or what it owns; NULL: it has none */
    bool local[LIMIT_DISKS];          /* their files' times are of this machine's clock */
    uint64_t instances[LIMIT_DISKS];  /* of block devices, see struct disk_identity */
    unsigned opened;
    struct node
        stand_ins[LIMIT_DISKS]; /* sizes, and what they can do, of disks that another daemon has; disks_look() */
    struct error err;
};

/* Opens all, spread over the reactors in turn. Blocks while locks are held by a killed daemon: on a helper thread. 0, or
 * -errno with the sentence in disks->err; what was opened until then is in leaves[] and is the caller's. */
int64_t disks_open(void *disks);
/* Fills stand_ins without locks, claims or writes. Blocks likewise. 0, or -errno with the sentence in disks->err. */
int64_t disks_look(void *disks);
/* What the file of the disk of that number is now; zeroes: it has none, or can't be asked. Any thread; does not block. */
struct disk_identity disks_identify(const struct disks *disks, unsigned index);

#endif
