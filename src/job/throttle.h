/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A speed limit: a bucket of bytes that fills at a rate and may be overdrawn, so that pieces of any size average to the
 * rate. No clock of its own; one owner.
 */
#ifndef FLEECE_JOB_THROTTLE_H
#define FLEECE_JOB_THROTTLE_H

#include <stdint.h>

struct throttle {
    uint64_t rate;      /* bytes a second; 0: no limit */
    uint64_t filled_ns; /* when `level` was right */
    int64_t level;      /* bytes that may go now; negative: debt */
};

/* Begins, or changes the rate: what was saved up is kept as far as the new rate saves, and debt is forgiven. */
void throttle_set(struct throttle *throttle, uint64_t rate, uint64_t now_ns);
/* 0: the next piece may go, then throttle_charge() it. Else how long to wait before asking again. */
uint64_t throttle_wait_ns(struct throttle *throttle, uint64_t now_ns);
/* bytes < 0: a part of an earlier charge turned out not to be needed. */
void throttle_charge(struct throttle *throttle, int64_t bytes);

#endif
