/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Default places of a VM's files, for the daemon and its clients alike. */
#ifndef FLEECE_BASE_PLACE_H
#define FLEECE_BASE_PLACE_H

#include <stddef.h>

/* $XDG_RUNTIME_DIR/fleece/VM for a user, /run/fleece/VM for root or without that variable; then "/FILE"
 * unless it is NULL. 0, or -ENAMETOOLONG. */
int place_runtime(char *path, size_t size, const char *vm, const char *file);

/* /dev/shm/fleece-UID/VM: memory that outlives a killed daemon. 0, or -ENAMETOOLONG. */
int place_memory(char *path, size_t size, const char *vm);

/* Where state outlives a reboot: /var/lib/fleece/VM for root, $XDG_STATE_HOME/fleece/VM (~/.local/state without that
 * variable) for a user. 0, -ENAMETOOLONG, or -ENOENT: there is no home. */
int place_state(char *path, size_t size, const char *vm);

#endif
