/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Freezes the guest for a cut, and thaws it whatever happens: by hooks, by the guest agent, or both. One for a VM; all
 * functions on its one thread, none blocks, no callback comes inside a call.
 */
#ifndef FLEECE_GUEST_FREEZER_H
#define FLEECE_GUEST_FREEZER_H

#include "io/io.h"

struct freezer;

struct freezer_options {     /* the texts must stay */
    const char *vm;          /* its name */
    const char *agent;       /* address of the guest agent's socket; NULL: none */
    const char *hook_folder; /* absolute; NULL: none */
    const char *record_path; /* where a freeze is noted for the next daemon */
    uint64_t timeout_ns;     /* from the first hook to the thaw */
};

/* NULL: no memory. Neither agent nor hooks: it only thaws what a killed daemon has left. */
struct freezer *freezer_create(struct io *io, const struct freezer_options *options);
/* After freezer_stop(). */
void freezer_destroy(struct freezer *freezer);

/* Begins to thaw what the record of a killed daemon names, if there is one; goes on until it is done. */
void freezer_recover(struct freezer *freezer);

struct freeze_outcome {
    bool held;          /* the guest was frozen from before freezer_thaw() was called until then */
    const char *reason; /* why not */
    uint64_t frozen_ns; /* how long it was frozen */
};

/*
 * Freezes. frozen(argument, NULL) comes when the guest is still; then freezer_thaw() must follow. With err: it could not be,
 * within the timeout, and is being thawed. Before it has come, freezer_cancel() takes the wish back: it does not come then.
 * One wish at a time; it may come while the last freeze is still being thawed.
 */
void freezer_freeze(struct freezer *freezer, const char *snapshot,
                    void (*frozen)(void *argument, const struct error *err), void *argument);
void freezer_cancel(struct freezer *freezer);
/* Thaws what frozen() has told of. settled(argument, outcome) comes when it is known whether the guest was still until now:
 * when it has thawed, or did not say so in time. */
void freezer_thaw(struct freezer *freezer, void (*settled)(void *argument, const struct freeze_outcome *outcome),
                  void *argument);

/* Freezes nothing any more and thaws; done(argument, true) when all is thawed; (argument, false), with the record kept, when
 * that has not happened within the timeout. */
void freezer_stop(struct freezer *freezer, void (*done)(void *argument, bool thawed), void *argument);

struct freezer_status {
    const char *state; /* "idle", "freezing", "frozen", "thawing" */
    const char *agent, *hook_folder;
    uint64_t timeout_ns;
    const char *trouble; /* why the last thaw did not succeed, while it is tried again; else NULL */
};
void freezer_status(const struct freezer *freezer, struct freezer_status *status);

#endif
