/* SPDX-License-Identifier: GPL-2.0-or-later */
/* How much the folders of cache files could still take. */
#ifndef FLEECE_DAEMON_SPACE_H
#define FLEECE_DAEMON_SPACE_H

#include <stdint.h>

/* Bytes that are free in the file systems of these folders, each file system once; NULL among them: none. What can't be
 * asked counts as unbounded. May block: on a helper thread. */
uint64_t space_free(char *const *folders, unsigned count);

/* Bytes of memory that this process has; 0: not known. For struct control_host. */
uint64_t space_rss_bytes(void *context);

#endif
