/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The armed timers of one reactor, soonest first; equal deadlines fire in the order in which they were set.
 * One thread. */
#ifndef FLEECE_IO_TIMER_HEAP_H
#define FLEECE_IO_TIMER_HEAP_H

#include "io/io.h"

struct timer_place;

struct timer_heap {
    struct timer_place *places; /* places[1..count]; a timer's heap_place is its index */
    size_t count, room;
    uint64_t sequence;
};

void timer_heap_init(struct timer_heap *heap);
void timer_heap_fini(struct timer_heap *heap);
void timer_heap_set(struct timer_heap *heap, struct io_timer *timer, uint64_t deadline_ns);
void timer_heap_cancel(struct timer_heap *heap, struct io_timer *timer);
/* The soonest deadline; UINT64_MAX when no timer is armed. */
uint64_t timer_heap_deadline(const struct timer_heap *heap);
/* Takes out the soonest timer when it is due at now_ns, else NULL. */
struct io_timer *timer_heap_take_due(struct timer_heap *heap, uint64_t now_ns);

#endif
