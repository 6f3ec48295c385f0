/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The guest, as the VM wants it frozen for its cuts: by what the options name. Control thread. */
#ifndef FLEECE_DAEMON_GUEST_H
#define FLEECE_DAEMON_GUEST_H

#include "daemon/options.h"
#include "daemon/runtime.h"
#include "guest/arrival.h"
#include "guest/freezer.h"
#include "vm/vm.h"

struct guest {
    struct freezer *freezer; /* NULL: there is none */
    struct arrival *arrival; /* NULL: the guest has not come from another host, or no agent is named */
    enum consistency consistency;
    char record_path[RUNTIME_PATH_BYTES];
    void (*settled)(void *argument, enum consistency consistency, const char *reason, uint64_t frozen_ns);
    void *settled_argument;
    void (*stopped)(void *argument);
    void *stopped_argument;
};

/* When the run-time folder is claimed, and before anything that takes time: a guest that a killed daemon has left frozen is
 * thawed from now on. -ENOMEM. */
int guest_start(struct guest *guest, struct io *io, const struct options *options, const struct runtime *runtime,
                struct error *err);
/* The guest has come from another host, where it may have been frozen in the moment in which it stopped. */
void guest_arrived(struct guest *guest, struct io *io, const struct options *options);
/* Whether the options name an agent or hooks. */
bool guest_can_freeze(const struct guest *guest);
/* As vm_hooks.thaw. */
void guest_thaw(struct guest *guest,
                void (*settled)(void *argument, enum consistency consistency, const char *reason, uint64_t frozen_ns),
                void *argument);
/* Thaws, and freezes nothing any more: while its disks are still served. Calls stopped(argument) later, or at once. */
void guest_stop(struct guest *guest, void (*stopped)(void *argument), void *argument);
void guest_fini(struct guest *guest);

/* fleeced --thaw: thaws what a killed daemon has left frozen, and nothing else. An exit code. */
int guest_thaw_only(const struct options *options);

#endif
