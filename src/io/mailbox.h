/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Messages to one reactor from any thread, without locks, in order between any two threads. */
#ifndef FLEECE_IO_MAILBOX_H
#define FLEECE_IO_MAILBOX_H

#include <stdatomic.h>

#include "io/io.h"

struct mailbox {
    _Atomic(struct io_message *) newest; /* a stack; or the mark of a sleeping receiver */
};

void mailbox_init(struct mailbox *mailbox);
/* Any thread. Returns whether the receiver must be woken. */
bool mailbox_put(struct mailbox *mailbox, struct io_message *message);
/* Receiver. Whether it may sleep: the mailbox is empty, and the next sender will be told to wake it. */
bool mailbox_may_sleep(struct mailbox *mailbox);
/* Receiver, at any time: all messages, oldest first, chained by `next`. Ends the sleep. */
struct io_message *mailbox_take(struct mailbox *mailbox);

#endif
