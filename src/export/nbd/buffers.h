/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Memory of the NBD server: payload buffers of one reactor, and how much of them a session may hold.
 *
 * Every session may hold a small window of bytes always. Beyond it, sessions borrow from a budget that all sessions of
 * the server share. What a session may borrow grows with the bytes that its client has taken or given for real; half
 * of the budget is lent to anybody as long as it lasts, the other half only to clients that have earned it. So clients
 * that never take their replies stay small together, and never starve one that does.
 */
#ifndef FLEECE_EXPORT_NBD_BUFFERS_H
#define FLEECE_EXPORT_NBD_BUFFERS_H

#include <stdatomic.h>
#include <stdbool.h>

#include "base/limits.h"
#include "base/list.h"

struct nbd_budget { /* of a server; any thread */
    atomic_ullong lent_bytes;
    atomic_ullong memory_bytes, memory_peak_bytes; /* of the pools, as mapped */
};

/* Borrows for other things than windows, of the budget's first half; false: it is lent. */
bool nbd_budget_take(struct nbd_budget *budget, uint64_t bytes);
void nbd_budget_give(struct nbd_budget *budget, uint64_t bytes);

struct nbd_window { /* of a session, on its thread */
    struct nbd_budget *budget;
    uint64_t held_bytes;
    uint64_t proven_bytes; /* moved for this client so far */
};

/* Bytes that the window could take now. */
uint64_t nbd_window_room(const struct nbd_window *window);
/* Bytes that it could take now if it held nothing. */
uint64_t nbd_window_whole(const struct nbd_window *window);
/* False: no room, nothing changed. Cannot fail for up to LIMIT_NBD_WINDOW_BYTES when nothing is held. */
bool nbd_window_take(struct nbd_window *window, uint64_t bytes);
void nbd_window_give(struct nbd_window *window, uint64_t bytes);

enum { NBD_BUFFER_CLASSES = 7 }; /* 4 KiB, 8 KiB, ... 256 KiB: LIMIT_NBD_PIECE_BYTES */

struct nbd_buffer { /* 4096-aligned; bytes == NULL: none */
    char *bytes;
    uint32_t size; /* that it occupies: a power of two */
    struct nbd_slab *slab;
};

struct nbd_pool { /* of a reactor */
    struct nbd_budget *budget;
    struct list usable[NBD_BUFFER_CLASSES]; /* slabs with a free buffer and a used one */
    struct list empty;                      /* slabs without a used one */
    unsigned empty_count, empty_least;      /* now; since the last trim */
};

/* What a buffer for `bytes` (1 ... LIMIT_NBD_PIECE_BYTES) occupies. */
uint32_t nbd_buffer_size(uint64_t bytes);

void nbd_pool_init(struct nbd_pool *pool, struct nbd_budget *budget);
/* Nothing is in use. */
void nbd_pool_fini(struct nbd_pool *pool);
/* Gives back what was not needed since the last call. */
void nbd_pool_trim(struct nbd_pool *pool);
/* False: the kernel has no memory. */
bool nbd_pool_get(struct nbd_pool *pool, uint64_t bytes, struct nbd_buffer *buffer);
void nbd_pool_put(struct nbd_pool *pool, struct nbd_buffer *buffer);

#endif
