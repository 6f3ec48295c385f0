/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The cut over all disks of a VM.
 *
 * States of the one word: HOLD -> DONE, moved by the reactor whose disk is the last to drain; HOLD -> ABORTED, moved by
 * whichever reactor sees the deadline first. Either move happens once, by compare-and-swap, and is final.
 *
 *     post "hold" to every disk                                   caller's thread
 *     hold; arm the deadline; wait for writes in flight           each reactor
 *     last one drained: HOLD -> DONE; post "finish" to the rest   that reactor
 *     at_cut(); release                                           each reactor, by itself
 *
 * Between DONE and a disk's own at_cut() that disk is still held with nothing in flight, so no write can fall between.
 * A disk that has resumed may acknowledge a write, and its writer may go on to another disk, which is either cut already
 * or still held: dependent writes are never reordered.
 *
 * After an abort nobody sends messages: each reactor's own deadline ends its hold, and a hold that arrives late finds the
 * word moved. So a control thread that is stuck cannot keep the guest held (C3). A crash loses the word and with it the
 * cut, which nobody has been told of (C2).
 */
#include "block/cut.h"

#include <assert.h>
#include <errno.h>

#include "base/probe.h"

static void cut_finished(struct io_message *message)
{
    struct cut *cut = container_of(message, struct cut, finished);
    cut->hold_ns = atomic_load(&cut->hold_max_ns);
    struct cut_disk *slowest = atomic_load(&cut->slowest);
    cut->slowest_disk = slowest ? slowest->disk->name : NULL;
    cut->done(cut, atomic_load(&cut->state) == CUT_DONE ? 0 : -ETIMEDOUT);
}

/* This disk's part, once the word has moved. */
static void cut_disk_finish(struct cut_disk *d)
{
    struct cut *cut = d->cut;
    struct io *io = d->disk->node.io;
    unsigned state = atomic_load(&cut->state);
    assert(state != CUT_HOLD);
    io_timer_cancel(io, &d->deadline);
    if (state == CUT_DONE || (d->drained && MUTANT(cut_half_a_vm))) {
        assert(d->drained && d->holding);
        cut->at_cut(d);
    } else if (!d->drained) {
        PROBE(cut_aborted_undrained);
        atomic_store(&cut->slowest, d);
    }
    if (d->holding) {
        d->holding = false;
        disk_release(d->disk);
        unsigned long long held_ns = io_now_ns(io) - d->held_at_ns, max = atomic_load(&cut->hold_max_ns);
        while (held_ns > max && !atomic_compare_exchange_weak(&cut->hold_max_ns, &max, held_ns))
            ;
    }
    if (atomic_fetch_sub(&cut->unfinished, 1) == 1)
        io_post(cut->io, &cut->finished);
}

static void cut_disk_finish_message(struct io_message *message)
{
    cut_disk_finish(container_of(message, struct cut_disk, message));
}

static void cut_disk_drained(void *context)
{
    struct cut_disk *d = context;
    struct cut *cut = d->cut;
    d->drained = true;
    atomic_store(&cut->slowest, d);
    if (atomic_fetch_sub(&cut->undrained, 1) != 1 && !MUTANT(cut_does_not_wait_for_all))
        return;
    unsigned hold = CUT_HOLD;
    if (atomic_compare_exchange_strong(&cut->state, &hold, CUT_DONE)) {
        for (unsigned i = 0; i < cut->disk_count; i++) {
            struct cut_disk *other = &cut->disks[i];
            if (other == d)
                continue;
            other->message.deliver = cut_disk_finish_message;
            io_post(other->disk->node.io, &other->message);
        }
    } else {
        PROBE(cut_drained_too_late);
    }
    cut_disk_finish(d);
}

static void cut_disk_deadline(struct io_timer *timer)
{
    struct cut_disk *d = container_of(timer, struct cut_disk, deadline);
    unsigned state = CUT_HOLD;
    if (atomic_compare_exchange_strong(&d->cut->state, &state, CUT_ABORTED))
        PROBE(cut_aborted_by_deadline);
    else if (state == CUT_DONE) {
        PROBE(cut_deadline_after_done); /* the message to finish is on its way */
        return;
    }
    cut_disk_finish(d);
}

static void cut_disk_hold(struct io_message *message)
{
    struct cut_disk *d = container_of(message, struct cut_disk, message);
    struct cut *cut = d->cut;
    struct io *io = d->disk->node.io;
    unsigned state = CUT_HOLD;
    if (io_now_ns(io) >= cut->deadline_ns)
        atomic_compare_exchange_strong(&cut->state, &state, CUT_ABORTED);
    if (atomic_load(&cut->state) != CUT_HOLD) {
        PROBE(cut_hold_came_late);
        cut_disk_finish(d);
        return;
    }
    d->holding = true;
    d->held_at_ns = io_now_ns(io);
    d->deadline.fire = cut_disk_deadline;
    if (!MUTANT(cut_has_no_deadline))
        io_timer_set(io, &d->deadline, cut->deadline_ns);
    disk_hold(d->disk, cut_disk_drained, d);
}

void cut_start(struct cut *cut)
{
    assert(cut->disk_count > 0);
    atomic_store(&cut->state, CUT_HOLD);
    atomic_store(&cut->undrained, cut->disk_count);
    atomic_store(&cut->unfinished, cut->disk_count);
    atomic_store(&cut->hold_max_ns, 0);
    atomic_store(&cut->slowest, NULL);
    cut->finished.deliver = cut_finished;
    for (unsigned i = 0; i < cut->disk_count; i++) {
        struct cut_disk *d = &cut->disks[i];
        d->cut = cut;
        d->holding = d->drained = false;
        d->message.deliver = cut_disk_hold;
        io_post(d->disk->node.io, &d->message);
    }
}
