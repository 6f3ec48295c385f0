/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A set of numbers below a fixed bound that tells its lowest member at once: one bit a number, and above each 64 bits
 * one that says whether any of them is set. The memory is the caller's, zeroed, and touched as far as members reach.
 */
#ifndef FLEECE_BASE_INDEX_SET_H
#define FLEECE_BASE_INDEX_SET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { INDEX_SET_LEVELS = 6 }; /* 64^6 is more than 32 bits count */

struct index_set {
    uint64_t
        *levels[INDEX_SET_LEVELS]; /* the members; then, whether 64 of the level below have any; one word at last */
    unsigned level_count;
};

/* Bytes that a set of numbers below `bound` takes; a multiple of 8. */
size_t index_set_bytes(uint32_t bound);
/* `memory` is zeroed and aligned to 8. */
void index_set_init(struct index_set *set, uint32_t bound, void *memory);

void index_set_add(struct index_set *set, uint32_t number);    /* may be there already */
void index_set_remove(struct index_set *set, uint32_t number); /* may be absent */
bool index_set_has(const struct index_set *set, uint32_t number);
/* false: the set is empty. */
bool index_set_lowest(const struct index_set *set, uint32_t *number);

#endif
