/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Where a disk is restored to: a raw or qcow2 file, a block device, or somebody's NBD export. */
#ifndef FLEECE_CLI_RESTORE_TARGET_H
#define FLEECE_CLI_RESTORE_TARGET_H

#include "cli/transfer.h"
#include "set/set.h"

struct restore_target {
    /* Set by the caller: */
    struct transfer *transfer;
    const struct set *set; /* whose files are safe from --force */
    const char *where;     /* a path, or an NBD URI */
    const char *disk;      /* its name, for sentences */
    bool qcow2, force;
    /* The rest is private, but for `node` and is_zero while it is open, and overwrites: */
    struct node *node;
    bool is_zero;    /* a new file: what is zero need not be written */
    bool made_file;  /* by us: it is removed when it can't be completed */
    bool overwrites; /* what was there is lost */
};

/* Opens or makes it. Nothing is changed before it is certain that it may be. -EEXIST: only with `force`... with a
 * sentence. */
int restore_target_open(struct restore_target *target, uint64_t size_bytes, struct error *err);
/* `status`: how the copy ended. Keeps a complete file durably, removes an incomplete one that was made here. Returns
 * `status`, or what went wrong at the end. Also after a failed restore_target_open(). */
int restore_target_close(struct restore_target *target, int status, struct error *err);

#endif
