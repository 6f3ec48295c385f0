/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A sorted array. The ranges never touch, so the first one that ends behind a byte is found by halving, and each change
 * replaces one run of the array by what is left or merged of it. No states, no I/O; a crash leaves nothing.
 */
#include "base/range_set.h"

#include <string.h>

/* The first range that ends behind `at`. */
static uint32_t find(const struct range_set *set, uint64_t at)
{
    uint32_t low = 0, high = set->count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (range_end(set->ranges[middle]) > at)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

/* Puts `with` in the place of the ranges [first, end). */
static void replace(struct range_set *set, uint32_t first, uint32_t end, const struct range *with, uint32_t count)
{
    memmove(set->ranges + first + count, set->ranges + end, (set->count - end) * sizeof *set->ranges);
    if (count > 0)
        memcpy(set->ranges + first, with, count * sizeof *with);
    set->count = set->count - (end - first) + count;
}

bool range_set_add(struct range_set *set, struct range range)
{
    uint32_t first = range.start > 0 ? find(set, range.start - 1) : 0,
             end = first; /* one that ends here is a neighbour */
    uint64_t start = range.start, stop = range_end(range);
    for (; end < set->count && set->ranges[end].start <= stop; end++) {
        start = set->ranges[end].start < start ? set->ranges[end].start : start;
        stop = range_end(set->ranges[end]) > stop ? range_end(set->ranges[end]) : stop;
    }
    if (first == end && set->count == set->max)
        return false;
    replace(set, first, end, &(struct range){start, stop - start}, 1);
    return true;
}

void range_set_remove(struct range_set *set, struct range range)
{
    uint32_t first = find(set, range.start), end = first, count = 0;
    struct range left[2];
    for (; end < set->count && set->ranges[end].start < range_end(range); end++) {
        struct range old = set->ranges[end];
        if (old.start < range.start)
            left[count++] = (struct range){old.start, range.start - old.start};
        if (range_end(old) > range_end(range))
            left[count++] = (struct range){range_end(range), range_end(old) - range_end(range)};
    }
    if (count > end - first && set->count == set->max) {
        left[0] = left[0].length > left[1].length ? left[0] : left[1];
        count = 1;
    }
    replace(set, first, end, left, count);
}

struct range range_set_first_in(const struct range_set *set, struct range range)
{
    uint32_t at = find(set, range.start);
    if (at == set->count || set->ranges[at].start >= range_end(range))
        return (struct range){range.start, 0};
    struct range found = set->ranges[at];
    uint64_t start = found.start > range.start ? found.start : range.start;
    uint64_t end = range_end(found) < range_end(range) ? range_end(found) : range_end(range);
    return (struct range){start, end - start};
}
