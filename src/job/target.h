/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Where a copy goes that the daemon makes: a raw file or block device, by its absolute path, or somebody's NBD export, by
 * its URI. All functions block: for a helper thread.
 */
#ifndef FLEECE_JOB_TARGET_H
#define FLEECE_JOB_TARGET_H

#include "block/node.h"
#include "job/target_note.h"

struct target_options {
    const char *where;
    uint64_t size_bytes;      /* of the source */
    bool existing;            /* it must be there, for what it holds is kept where nothing is written */
    bool force;               /* a file that is there may be overwritten */
    const atomic_bool *stop;  /* true: nobody wants it any more */
    struct target_note *note; /* must stay until target_fini() */
    /* target_open_again(): */
    const struct target_written *written; /* when a killed daemon did; NULL: not known */
    bool released;                        /* the source has no more of something that the target had got */
};

struct target {
    char *where;
    struct node *node; /* NULL: not open */
    bool is_nbd;
    bool is_zero;             /* what was not written by the copy reads as zeroes */
    bool is_watched;          /* a file whose times tell of a write by anybody; when the node is open */
    bool may_hang;            /* a file on a file system that is not this machine's alone; likewise */
    struct target_note *note; /* NULL: there is no such target */
};

/* EINVAL for a place that names nothing, before anything is tried. */
int target_check(const char *where, struct error *err);
/* `io` is the node's thread from then on. A new file is sparse. 0, or -errno with a sentence; in both cases target_fini(),
 * and before it whoever owns the node closes it if there is one. */
int target_open(struct io *io, const struct target_options *options, struct target *target, struct error *err);
/* A target of a killed daemon, not open yet, for target_open_again() or target_remove(). 0 or -ENOMEM. */
int target_take_over(const char *where, struct target_note *note, struct target *target);
/*
 * Opens what was taken over, if it is the very same; waits for the dead daemon's lock, LOCK_WAIT_DEFAULT_NS at most.
 * 0, or -errno with a sentence: -ESTALE: it is another file or device, or somebody has changed it since, or nobody can tell
 * and it alone has what was released.
 */
int target_open_again(struct io *io, const struct target_options *options, struct target *target, struct error *err);
/* The copy is whole: its name still leads to what was written (-ESTALE: it does not), and that of a new file is made
 * durable, too. */
int target_keep(const struct target *target, struct error *err);
/* The copy failed: removes the file if we made it and it is still the same one. The node is closed. */
void target_remove(struct target *target);
void target_fini(struct target *target); /* the node is closed, by its owner */

#endif
