/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The level is what may be moved at once; it falls below zero with a large piece, and the next one waits until it is back.
 * Products of time and rate are bounded before they are made. No clock, no I/O; a crash leaves nothing.
 */
#include "job/throttle.h"

#include <assert.h>

#include "base/limits.h"

/* What an idle bucket saves up. */
static int64_t throttle_most(const struct throttle *throttle)
{
    uint64_t most = throttle->rate / (NS_PER_S / THROTTLE_BURST_NS);
    return most > 0 ? (int64_t)most : 1;
}

static void throttle_fill(struct throttle *throttle, uint64_t now_ns)
{
    uint64_t passed_ns = now_ns - throttle->filled_ns;
    assert(now_ns >= throttle->filled_ns);
    /* A whole byte at least, or slow rates would lose their fractions; an hour at most, or the product would overflow. */
    if (passed_ns > THROTTLE_SPAN_NS)
        passed_ns = THROTTLE_SPAN_NS;
    unsigned __int128 bytes = (unsigned __int128)passed_ns * throttle->rate / NS_PER_S;
    if (bytes == 0)
        return;
    throttle->filled_ns = now_ns;
    if (bytes > INT64_MAX / 4)
        bytes = INT64_MAX / 4;
    throttle->level += (int64_t)bytes;
    if (throttle->level > throttle_most(throttle))
        throttle->level = throttle_most(throttle);
}

void throttle_set(struct throttle *throttle, uint64_t rate, uint64_t now_ns)
{
    assert(rate <= THROTTLE_RATE_MAX);
    throttle->rate = rate;
    throttle->filled_ns = now_ns;
    if (throttle->level < 0 || rate == 0)
        throttle->level = rate ? 1 : 0;
    else if (throttle->level > throttle_most(throttle))
        throttle->level = throttle_most(throttle);
    if (rate && throttle->level == 0)
        throttle->level = 1;
}

uint64_t throttle_wait_ns(struct throttle *throttle, uint64_t now_ns)
{
    if (throttle->rate == 0)
        return 0;
    throttle_fill(throttle, now_ns);
    if (throttle->level > 0)
        return 0;
    unsigned __int128 wait_ns = (unsigned __int128)(uint64_t)(1 - throttle->level) * NS_PER_S / throttle->rate + 1;
    return wait_ns > THROTTLE_SPAN_NS ? THROTTLE_SPAN_NS : (uint64_t)wait_ns;
}

void throttle_charge(struct throttle *throttle, int64_t bytes)
{
    if (throttle->rate)
        throttle->level -= bytes;
}
