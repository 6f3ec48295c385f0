/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Level 0 has one bit for each number; a bit of a higher level says whether its 64 bits below have any. So adding, removing
 * and finding the lowest walk over six words at most. No states, no I/O; a crash leaves nothing.
 */
#include "base/index_set.h"

#include <assert.h>

static uint32_t words_for(uint32_t bits)
{
    return bits / 64 + (bits % 64 != 0);
}

size_t index_set_bytes(uint32_t bound)
{
    uint32_t words = words_for(bound ? bound : 1);
    size_t bytes = words * sizeof(uint64_t);
    while (words > 1) {
        words = words_for(words);
        bytes += words * sizeof(uint64_t);
    }
    return bytes;
}

void index_set_init(struct index_set *set, uint32_t bound, void *memory)
{
    uint32_t words = words_for(bound ? bound : 1);
    *set = (struct index_set){.levels = {memory}, .level_count = 1};
    while (words > 1) {
        assert(set->level_count < INDEX_SET_LEVELS);
        set->levels[set->level_count] = set->levels[set->level_count - 1] + words;
        set->level_count++;
        words = words_for(words);
    }
}

void index_set_add(struct index_set *set, uint32_t number)
{
    for (unsigned level = 0; level < set->level_count; level++, number /= 64) {
        uint64_t *word = &set->levels[level][number / 64], before = *word;
        *word |= UINT64_C(1) << (number % 64);
        if (before)
            return;
    }
}

void index_set_remove(struct index_set *set, uint32_t number)
{
    for (unsigned level = 0; level < set->level_count; level++, number /= 64) {
        uint64_t *word = &set->levels[level][number / 64];
        *word &= ~(UINT64_C(1) << (number % 64));
        if (*word)
            return;
    }
}

bool index_set_has(const struct index_set *set, uint32_t number)
{
    return set->levels[0][number / 64] >> (number % 64) & 1;
}

bool index_set_lowest(const struct index_set *set, uint32_t *number)
{
    unsigned level = set->level_count - 1;
    if (!set->levels[level][0])
        return false;
    uint32_t at = 0;
    for (;; level--) {
        at = at * 64 + (uint32_t)__builtin_ctzll(set->levels[level][at]);
        if (level == 0)
            break;
    }
    *number = at;
    return true;
}
