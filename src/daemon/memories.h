/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a killed daemon has left in memory under another name of its VM. */
#ifndef FLEECE_DAEMON_MEMORIES_H
#define FLEECE_DAEMON_MEMORIES_H

#include "daemon/disks.h"

/* When the disks are open and locked, before anything is recovered: gives what belongs to them the place where it is looked
 * for. `folder`: of the VM's memory. Blocks: on a helper thread. */
void memories_take_over(const struct disks *disks, const char *folder);

#endif
