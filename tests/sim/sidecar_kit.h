/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The sidecars of a VM on a simulated machine: what the daemon does for struct vm_hooks, in files of the world. */
#ifndef TESTS_SIM_SIDECAR_KIT_H
#define TESTS_SIM_SIDECAR_KIT_H

#include "vm/vm.h"
#include "world.h"

enum { SIDECAR_KIT_DISKS = 4 };

struct sidecar_kit { /* begins what hooks.context points at */
    struct world *world;
    struct io *control;                     /* of the daemon that lives */
    struct node *leaves[SIDECAR_KIT_DISKS]; /* of disks vda, vdb, ... */
    bool kept[SIDECAR_KIT_DISKS];           /* the sidecar has its name */
    unsigned made[SIDECAR_KIT_DISKS];       /* how many there ever were */
    unsigned untracked;                     /* disks that can't be: by bit */
};

void sidecar_kit_hooks(struct vm_hooks *hooks);

#endif
