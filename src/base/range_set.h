/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A bounded set of bytes: disjoint ranges in their order, neighbours merged. No memory of its own. */
#ifndef FLEECE_BASE_RANGE_SET_H
#define FLEECE_BASE_RANGE_SET_H

#include "base/range.h"

struct range_set {
    struct range *ranges; /* by the owner: room for `max` */
    uint32_t count, max;
};

/* Adds all bytes of the range, or (false) nothing: it would be one range too many. */
bool range_set_add(struct range_set *set, struct range range);
/* Takes the bytes of the range out. When that would split a range and there is no room for another one, the shorter of the
 * two parts goes as well. */
void range_set_remove(struct range_set *set, struct range range);
/* The first bytes of the set within the range; length 0: there are none. */
struct range range_set_first_in(const struct range_set *set, struct range range);

#endif
