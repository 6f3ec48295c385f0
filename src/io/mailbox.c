/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Senders push onto a stack with one compare-and-swap; the receiver takes the whole stack with one exchange
 * and turns it round. What one sender pushed earlier lies deeper, so the order of each sender is kept.
 *
 * The same word says whether the receiver sleeps: it swaps an empty stack for the mark `asleep` before it
 * goes to sleep, and the sender that replaces the mark is the one that wakes it. So there is exactly one
 * wake-up for each sleep, none can be lost, and a busy receiver costs its senders no system call. Only the
 * receiver takes messages out, so a message cannot come back under a sender's hands (no ABA).
 */
#include "io/mailbox.h"

#include <assert.h>

static struct io_message *const asleep = (struct io_message *)(uintptr_t)1;

void mailbox_init(struct mailbox *mailbox)
{
    atomic_init(&mailbox->newest, NULL);
}

bool mailbox_put(struct mailbox *mailbox, struct io_message *message)
{
    assert(message->deliver);
    struct io_message *newest = atomic_load_explicit(&mailbox->newest, memory_order_relaxed);
    do {
        message->next = newest == asleep ? NULL : newest;
    } while (!atomic_compare_exchange_weak_explicit(&mailbox->newest, &newest, message, memory_order_release,
                                                    memory_order_relaxed));
    return newest == asleep;
}

bool mailbox_may_sleep(struct mailbox *mailbox)
{
    struct io_message *none = NULL;
    return atomic_compare_exchange_strong_explicit(&mailbox->newest, &none, asleep, memory_order_acq_rel,
                                                   memory_order_relaxed) ||
           none == asleep;
}

struct io_message *mailbox_take(struct mailbox *mailbox)
{
    if (!atomic_load_explicit(&mailbox->newest, memory_order_relaxed))
        return NULL;
    struct io_message *newest = atomic_exchange_explicit(&mailbox->newest, NULL, memory_order_acquire);
    struct io_message *oldest = NULL;
    while (newest && newest != asleep) {
        struct io_message *next = newest->next;
        newest->next = oldest;
        oldest = newest;
        newest = next;
    }
    return oldest;
}
