/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One state an extent, and how many extents are in each.
 *
 *     (UNREAD | RAM | CACHED | ZEROES, as the advice changes) -> TAKEN -> WRITTEN -> FLUSHING -> FLUSHED -> DONE
 *
 * An extent moves freely as long as it is still to be copied, and only forward after that: what was taken is not copied
 * twice, and nothing is released that the target may still lose. A crash ends the copy and its source.
 */
#include "job/copy_order.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

int copy_order_init(struct copy_order *order, uint64_t count)
{
    *order = (struct copy_order){.count = count, .in_state[COPY_UNREAD] = count};
    order->states = calloc(count + 1, 1);
    return order->states ? 0 : -ENOMEM;
}

void copy_order_fini(struct copy_order *order)
{
    free(order->states);
    order->states = NULL;
}

static enum copy_state state_of(const struct copy_order *order, uint64_t extent)
{
    assert(extent < order->count);
    return (enum copy_state)order->states[extent];
}

void copy_order_set(struct copy_order *order, uint64_t extent, enum copy_state state)
{
    enum copy_state before = state_of(order, extent);
    /* What was taken is never to be copied again, and what the target may still lose is not released. */
    assert(copy_state_is_todo(before) || state > before);
    assert(order->in_state[before] > 0);
    order->in_state[before]--;
    order->in_state[state]++;
    order->states[extent] = (uint8_t)state;
}

void copy_order_advise(struct copy_order *order, uint64_t extent, enum copy_state state)
{
    assert(state < COPY_ZEROES);
    if (state_of(order, extent) < COPY_ZEROES && state_of(order, extent) != state)
        copy_order_set(order, extent, state);
}

void copy_order_advise_run(struct copy_order *order, uint64_t first, uint64_t end, enum copy_state state)
{
    if (state == COPY_UNREAD && order->in_state[COPY_RAM] == 0 && order->in_state[COPY_CACHED] == 0)
        return;
    for (uint64_t extent = first; extent < end; extent++)
        copy_order_advise(order, extent, state);
}

uint64_t copy_order_todo(const struct copy_order *order)
{
    return order->in_state[COPY_UNREAD] + order->in_state[COPY_RAM] + order->in_state[COPY_CACHED] +
           order->in_state[COPY_ZEROES];
}

uint64_t copy_order_find(const struct copy_order *order, enum copy_state state, uint64_t from)
{
    if (order->in_state[state] == 0 || from >= order->count)
        return order->count;
    const uint8_t *found = memchr(order->states + from, (int)state, order->count - from);
    return found ? (uint64_t)(found - order->states) : order->count;
}

uint64_t copy_order_todo_from(const struct copy_order *order, uint64_t from)
{
    while (from < order->count && !copy_state_is_todo(state_of(order, from)))
        from++;
    return from;
}

uint64_t copy_order_first(struct copy_order *order)
{
    order->low = copy_order_todo_from(order, order->low);
    return order->low;
}

enum copy_state copy_order_next(const struct copy_order *order, bool hurry)
{
    static const enum copy_state at_leisure[] = {COPY_RAM, COPY_UNREAD, COPY_CACHED, COPY_ZEROES, COPY_TAKEN};
    static const enum copy_state in_a_hurry[] = {COPY_RAM, COPY_CACHED, COPY_UNREAD, COPY_ZEROES, COPY_TAKEN};
    const enum copy_state *next = hurry ? in_a_hurry : at_leisure;
    while (*next != COPY_TAKEN && order->in_state[*next] == 0)
        next++;
    return *next;
}
