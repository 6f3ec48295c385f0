/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How fast the fleecing cache fills, when it will be full, and how much of it a backup will need. Policy: no I/O, no clock
 * of its own; whoever has one asks.
 */
#ifndef FLEECE_VM_CACHE_FORECAST_H
#define FLEECE_VM_CACHE_FORECAST_H

#include <stdbool.h>
#include <stdint.h>

struct cache_forecast { /* zero it first, and whenever the cache begins anew */
    bool begun;
    uint64_t last_ns, last_used;
    double rate;    /* bytes a second, weighted: what is FORECAST_DECAY_NS old counts 1/e */
    unsigned level; /* the highest threshold that has been told; 0: none */
};

/* The cache holds so much now. Any interval, at best well below FORECAST_DECAY_NS. */
void cache_forecast_sample(struct cache_forecast *forecast, uint64_t now_ns, uint64_t used_bytes);
/* Net growth; 0 when it shrinks. */
uint64_t cache_forecast_rate(const struct cache_forecast *forecast);
/* Seconds until `used_bytes` have grown to `max_bytes` at this rate; UINT64_MAX: it does not grow. */
uint64_t cache_forecast_seconds(const struct cache_forecast *forecast, uint64_t used_bytes, uint64_t max_bytes);
/*
 * A threshold in per cent (50, 75, 90) that the fill has reached since it was last asked; 0: none. When it has passed
 * several at once, the highest. One that was told is told again only after the fill has been 10 points below it.
 */
unsigned cache_forecast_crossed(struct cache_forecast *forecast, uint64_t used_bytes, uint64_t max_bytes);

struct backup_plan { /* of one disk */
    uint64_t size_bytes;
    uint64_t written_bytes, written_ns; /* different bytes that were written within that time */
    uint64_t block_bytes;
};

/*
 * How much cache a backup may need for the disk, at most at one time. `seconds` is how long the backup of all disks
 * takes. With a consumer that releases what it has copied, and with one that does not.
 */
uint64_t backup_needs(const struct backup_plan *plan, double seconds, bool releases);

#endif
