/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What has become of each extent of a copy, and which one is next. One byte an extent (a MiB of them for 1 TiB), looked
 * through with memchr(). One owner.
 */
#ifndef FLEECE_JOB_COPY_ORDER_H
#define FLEECE_JOB_COPY_ORDER_H

#include <stdbool.h>
#include <stdint.h>

enum copy_state {
    /* Still to be copied: */
    COPY_UNREAD, /* on the disk, for all that is known */
    COPY_RAM,    /* blocks of it take RAM of the cache until they are copied */
    COPY_CACHED, /* ... or room in the cache file */
    COPY_ZEROES, /* reads as zeroes; the target has to be told */
    /* Taken: */
    COPY_TAKEN,    /* a worker has it */
    COPY_WRITTEN,  /* the target has it, but may lose it */
    COPY_FLUSHING, /* a flush that began later is under way */
    COPY_FLUSHED,  /* the source may release it */
    COPY_DONE,
    COPY_STATES,
};

struct copy_order {
    uint8_t *states; /* enum copy_state of each extent */
    uint64_t count;
    uint64_t in_state[COPY_STATES];
    uint64_t low; /* no extent below is still to be copied */
};

/* All are COPY_UNREAD. 0 or -ENOMEM. */
int copy_order_init(struct copy_order *order, uint64_t count);
void copy_order_fini(struct copy_order *order); /* of one that was zeroed or initialised */

static inline bool copy_state_is_todo(enum copy_state state)
{
    return state <= COPY_ZEROES;
}

void copy_order_set(struct copy_order *order, uint64_t extent, enum copy_state state);
/* What a look at the residence found: moves an extent that is still to be copied between UNREAD, RAM and CACHED. */
void copy_order_advise(struct copy_order *order, uint64_t extent, enum copy_state state);
/* The same for [first, end), of which most need no change. */
void copy_order_advise_run(struct copy_order *order, uint64_t first, uint64_t end, enum copy_state state);
/* How many are still to be copied. */
uint64_t copy_order_todo(const struct copy_order *order);
/* The first one at or behind `from` in that state; `count`: there is none. */
uint64_t copy_order_find(const struct copy_order *order, enum copy_state state, uint64_t from);
/* The first one that is still to be copied; `count`: none. */
uint64_t copy_order_first(struct copy_order *order);
/* The first one at or behind `from` that is still to be copied. */
uint64_t copy_order_todo_from(const struct copy_order *order, uint64_t from);
/* From where the next one comes: RAM before all, then the disk, then the cache file, or (hurry) it before the disk; zeroes
 * last. COPY_TAKEN: nothing is left. */
enum copy_state copy_order_next(const struct copy_order *order, bool hurry);

#endif
