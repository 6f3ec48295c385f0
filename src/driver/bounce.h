/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Aligned buffers for requests that direct I/O does not take as they are. A pool of two sizes, on one thread. */
#ifndef FLEECE_DRIVER_BOUNCE_H
#define FLEECE_DRIVER_BOUNCE_H

#include "base/limits.h"
#include "base/list.h"

struct bounce_size {
    char *memory; /* of all buffers of this size; pages appear when they are touched first */
    size_t buffer_bytes;
    unsigned count, free_count;
    unsigned char free[LIMIT_BOUNCE_SMALL]; /* places of the free buffers */
    struct list waiting;                    /* list nodes of those who wait, first come, first served */
};

struct bounce_pool {
    struct bounce_size small, large;
};

/* 0 or -ENOMEM. */
int bounce_pool_init(struct bounce_pool *pool);
/* Every buffer is back. */
void bounce_pool_fini(struct bounce_pool *pool);

/* A buffer of at least `length`; NULL: `waiter` is in the queue, and gets the next one from bounce_put(). */
char *bounce_take(struct bounce_pool *pool, size_t length, struct list_node *waiter);
/* Gives a buffer back. The waiter that gets it now is returned: the caller hands it over. NULL: nobody waits. */
struct list_node *bounce_put(struct bounce_pool *pool, char *buffer);

#endif
