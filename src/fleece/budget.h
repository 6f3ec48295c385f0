/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A hard cap on memory, shared by the caches of all disks of a VM. Any thread; touched once per segment only. */
#ifndef FLEECE_FLEECE_BUDGET_H
#define FLEECE_FLEECE_BUDGET_H

#include <assert.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct budget {
    atomic_ullong max_bytes; /* may change at any time; never below what is in use when it does */
    atomic_ullong used_bytes, peak_bytes;
    atomic_bool wanted; /* somebody's writes wait for room: who gives some back tells it */
};

static inline bool budget_take(struct budget *budget, uint64_t bytes)
{
    unsigned long long used = atomic_load(&budget->used_bytes);
    do {
        if (used + bytes > atomic_load(&budget->max_bytes))
            return false;
    } while (!atomic_compare_exchange_weak(&budget->used_bytes, &used, used + bytes));
    unsigned long long peak = atomic_load(&budget->peak_bytes);
    while (used + bytes > peak && !atomic_compare_exchange_weak(&budget->peak_bytes, &peak, used + bytes))
        ;
    return true;
}

/* Takes what is used already, whatever the cap: nobody else is given any until as much has come back. */
static inline void budget_charge(struct budget *budget, uint64_t bytes)
{
    atomic_fetch_add(&budget->used_bytes, bytes);
}

/* Whether more than three quarters of it are used, once `freeing` bytes have come back. */
static inline bool budget_is_short(const struct budget *budget, uint64_t freeing)
{
    const unsigned long long max_bytes = atomic_load(&budget->max_bytes);
    return atomic_load(&budget->used_bytes) > max_bytes - max_bytes / 4 + freeing;
}

static inline void budget_give(struct budget *budget, uint64_t bytes)
{
    unsigned long long before = atomic_fetch_sub(&budget->used_bytes, bytes);
    assert(before >= bytes);
    (void)before;
}

#endif
