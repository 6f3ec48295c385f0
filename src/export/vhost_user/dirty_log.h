/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The log of a migration: shared memory of the front-end's with a bit for each page of guest addresses, which we set when
 * we have written there, so that the page is copied to the destination once more. Owner: the session's reactor; the
 * front-end reads and clears it at any moment.
 */
#ifndef FLEECE_EXPORT_VHOST_USER_DIRTY_LOG_H
#define FLEECE_EXPORT_VHOST_USER_DIRTY_LOG_H

#include "export/vhost_user/memory.h"
#include "export/vhost_user/shared_map.h"
#include "export/vhost_user/wire.h"

struct dirty_log {
    struct shared_map *map; /* NULL: there is none */
};

/* Maps it, in the place of the one before; the descriptor may be closed afterwards. 0, or -errno with a sentence, and
 * nothing has changed: empty, above LIMIT_DIRTY_LOG_BYTES, or the file is too short or no memory. */
int dirty_log_set(struct dirty_log *log, const struct vhost_log *what, int fd, struct error *err);
void dirty_log_drop(struct dirty_log *log);
/* Whether it has bits for all guest addresses below `end`. */
bool dirty_log_covers(const struct dirty_log *log, uint64_t end);
bool dirty_log_is_torn(const struct dirty_log *log);

/* After the writing, never before: else the front-end might copy the page in between, and clear the bit. What lies behind
 * the log is left out: the front-end gets what it has deserved. */
void dirty_log_mark(const struct dirty_log *log, uint64_t guest_address, uint64_t length);
/* The same for a piece of a region of that memory. */
void dirty_log_mark_memory(const struct dirty_log *log, const struct guest_memory *memory, const void *host,
                           uint64_t length);

#endif
