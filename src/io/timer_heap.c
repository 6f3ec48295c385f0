/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A binary heap in an array, its root at index 1 so that index 0 can mean "not armed". Every timer knows its
 * place, so that it can be moved or cancelled without a search. The array doubles when it is full and never
 * shrinks: after the first seconds of a run nothing is allocated any more. Setting a timer has no way to
 * fail, so a process without memory for 32 bytes ends here.
 */
#include "io/timer_heap.h"

#include <assert.h>
#include <stdlib.h>

#include "base/log.h"

struct timer_place {
    uint64_t deadline_ns, sequence;
    struct io_timer *timer;
};

void timer_heap_init(struct timer_heap *heap)
{
    *heap = (struct timer_heap){0};
}

void timer_heap_fini(struct timer_heap *heap)
{
    assert(heap->count == 0);
    free(heap->places);
    *heap = (struct timer_heap){0};
}

static bool place_before(const struct timer_place *a, const struct timer_place *b)
{
    return a->deadline_ns != b->deadline_ns ? a->deadline_ns < b->deadline_ns : a->sequence < b->sequence;
}

static void heap_put(struct timer_heap *heap, size_t at, struct timer_place place)
{
    heap->places[at] = place;
    place.timer->heap_place = at;
}

/* Puts `place` where it belongs, starting from the free index `at`. */
static void heap_settle(struct timer_heap *heap, size_t at, struct timer_place place)
{
    while (at > 1 && place_before(&place, &heap->places[at / 2])) {
        heap_put(heap, at, heap->places[at / 2]);
        at /= 2;
    }
    for (;;) {
        size_t child = 2 * at;
        if (child > heap->count)
            break;
        if (child < heap->count && place_before(&heap->places[child + 1], &heap->places[child]))
            child++;
        if (!place_before(&heap->places[child], &place))
            break;
        heap_put(heap, at, heap->places[child]);
        at = child;
    }
    heap_put(heap, at, place);
}

static void heap_make_room(struct timer_heap *heap)
{
    if (heap->count + 1 < heap->room)
        return;
    heap->room = heap->room ? 2 * heap->room : 64;
    struct timer_place *places = realloc(heap->places, heap->room * sizeof *places);
    if (!places) {
        log_error("no memory for %zu timers", heap->room);
        abort();
    }
    heap->places = places;
}

void timer_heap_set(struct timer_heap *heap, struct io_timer *timer, uint64_t deadline_ns)
{
    assert(timer->fire);
    timer_heap_cancel(heap, timer);
    heap_make_room(heap);
    timer->deadline_ns = deadline_ns;
    heap->count++;
    heap_settle(heap, heap->count, (struct timer_place){deadline_ns, heap->sequence++, timer});
}

void timer_heap_cancel(struct timer_heap *heap, struct io_timer *timer)
{
    size_t at = timer->heap_place;
    if (at == 0)
        return;
    assert(at <= heap->count && heap->places[at].timer == timer);
    timer->heap_place = 0;
    struct timer_place last = heap->places[heap->count--];
    if (last.timer != timer)
        heap_settle(heap, at, last);
}

uint64_t timer_heap_deadline(const struct timer_heap *heap)
{
    return heap->count ? heap->places[1].deadline_ns : UINT64_MAX;
}

struct io_timer *timer_heap_take_due(struct timer_heap *heap, uint64_t now_ns)
{
    if (heap->count == 0 || heap->places[1].deadline_ns > now_ns)
        return NULL;
    struct io_timer *timer = heap->places[1].timer;
    timer_heap_cancel(heap, timer);
    return timer;
}
