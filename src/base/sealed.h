/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Words in shared memory that outlives a process: whoever finds them sees whether they are what somebody stored. A word and
 * its sum are one store, so a kill leaves the old one or the new one; what anything else has written over it is noticed. A
 * word also vouches for other bytes by its `salt`: their sum, and something that says which word it is. One writer.
 */
#ifndef FLEECE_BASE_SEALED_H
#define FLEECE_BASE_SEALED_H

#include <stdatomic.h>
#include <stdbool.h>

#include "base/crc32c.h"

struct sealed_word { /* 32 bits and their sum */
    atomic_ullong word;
};

static inline uint32_t sealed_sum(uint32_t salt, uint64_t value)
{
    return crc32c(salt, &value, sizeof value);
}

static inline void sealed_store(struct sealed_word *to, uint32_t salt, uint32_t value)
{
    atomic_store(&to->word, (uint64_t)sealed_sum(salt, value) << 32 | value);
}

/* False: nobody stored that with this salt. */
static inline bool sealed_load(const struct sealed_word *from, uint32_t salt, uint32_t *value)
{
    const uint64_t word = atomic_load(&from->word);
    *value = (uint32_t)word;
    return word >> 32 == sealed_sum(salt, *value);
}

struct sealed_count { /* 64 bits, for those who look: in the moment of a store it may not be known */
    atomic_ullong value, sum;
};

static inline void sealed_count_store(struct sealed_count *to, uint32_t salt, uint64_t value)
{
    atomic_store(&to->value, value);
    atomic_store(&to->sum, sealed_sum(salt, value));
}

/* `otherwise`: when it is not known. */
static inline uint64_t sealed_count_load(const struct sealed_count *from, uint32_t salt, uint64_t otherwise)
{
    const uint64_t value = atomic_load(&from->value);
    return atomic_load(&from->sum) == sealed_sum(salt, value) ? value : otherwise;
}

#endif
