/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Where a copy goes that the daemon makes: a raw file or block device, by its absolute path, or somebody's NBD export, by
 * its URI. All functions block: for a helper thread.
 */
#ifndef FLEECE_JOB_TARGET_H
#define FLEECE_JOB_TARGET_H

#include <stdatomic.h>
#include <sys/types.h>

#include "block/node.h"

struct target_options {
    const char *where;
    uint64_t size_bytes;     /* of the source */
    bool existing;           /* it must be there, for what it holds is kept where nothing is written */
    bool force;              /* a file that is there may be overwritten */
    const atomic_bool *stop; /* true: nobody wants it any more */
};

struct target {
    char *where;
    struct node *node; /* NULL: not open */
    bool is_nbd;
    bool created; /* by us: the file is removed when the copy fails */
    bool is_zero; /* all of it reads as zeroes */
    dev_t device; /* of a file that we created */
    ino_t inode;
};

/* EINVAL for a place that names nothing, before anything is tried. */
int target_check(const char *where, struct error *err);
/* `io` is the node's thread from then on. A new file is sparse. 0, or -errno with a sentence; in both cases target_fini(),
 * and before it whoever owns the node closes it if there is one. */
int target_open(struct io *io, const struct target_options *options, struct target *target, struct error *err);
/* The copy is whole: the name of a new file is made durable, too. */
int target_keep(const struct target *target, struct error *err);
/* The copy failed: removes the file if we made it and it is still the same one. The node is closed. */
void target_remove(struct target *target);
void target_fini(struct target *target); /* the node is closed, by its owner */

#endif
