/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The rate is an exponentially weighted mean of the net growth: smooth over the segments of 1 MiB in which a cache grows,
 * and yet no older than some seconds, for a guest's load changes as fast. A fill that a consumer keeps level has rate 0.
 *
 * What a backup needs: it takes T seconds from one end of a disk to the other, while the guest overwrites r different
 * bytes a second, anywhere. At the time t it has overwritten r*t of them, all of the disk at most. Without releases all of
 * that stays until the end. With releases what has been copied goes, and r*t * (1 - t/T) is left, which is largest half-way:
 * r*T/4. Blocks are preserved whole, and each has its share of the map.
 */
#include "vm/cache_forecast.h"

#include <math.h>

#include "base/limits.h"

static const unsigned thresholds[] = {FORECAST_THRESHOLDS};
enum { THRESHOLDS = sizeof thresholds / sizeof *thresholds };

void cache_forecast_sample(struct cache_forecast *forecast, uint64_t now_ns, uint64_t used_bytes)
{
    if (!forecast->begun) {
        forecast->begun = true;
        forecast->rate = 0;
    } else if (now_ns > forecast->last_ns) {
        double seconds = (double)(now_ns - forecast->last_ns) / NS_PER_S;
        double grown = (double)used_bytes - (double)forecast->last_used;
        double weight = 1 - exp(-seconds * NS_PER_S / FORECAST_DECAY_NS);
        forecast->rate += weight * (grown / seconds - forecast->rate);
    } else {
        return;
    }
    forecast->last_ns = now_ns;
    forecast->last_used = used_bytes;
}

uint64_t cache_forecast_rate(const struct cache_forecast *forecast)
{
    return forecast->rate >= 1 ? (uint64_t)forecast->rate : 0;
}

uint64_t cache_forecast_seconds(const struct cache_forecast *forecast, uint64_t used_bytes, uint64_t max_bytes)
{
    if (used_bytes >= max_bytes)
        return 0;
    uint64_t rate = cache_forecast_rate(forecast);
    return rate ? (max_bytes - used_bytes) / rate : UINT64_MAX;
}

unsigned cache_forecast_crossed(struct cache_forecast *forecast, uint64_t used_bytes, uint64_t max_bytes)
{
    const double percent = max_bytes ? 100.0 * (double)used_bytes / (double)max_bytes : 0;
    unsigned reached = 0, kept = 0;
    for (unsigned i = 0; i < THRESHOLDS; i++) {
        if (percent >= thresholds[i])
            reached = thresholds[i];
        if (forecast->level >= thresholds[i] && percent >= thresholds[i] - FORECAST_HYSTERESIS)
            kept = thresholds[i];
    }
    unsigned crossed = reached > kept ? reached : 0;
    forecast->level = crossed ? crossed : kept;
    return crossed;
}

uint64_t backup_needs(const struct backup_plan *plan, double seconds, bool releases)
{
    if (!plan->written_ns)
        return 0;
    const double size = (double)plan->size_bytes,
                 rate = (double)plan->written_bytes * NS_PER_S / (double)plan->written_ns;
    double bytes = rate * seconds;
    if (releases) { /* the largest value of min(rate * t, size) * (1 - t / seconds) */
        double full_at = rate > 0 ? size / rate : seconds;
        double t = full_at < seconds / 2 ? full_at : seconds / 2;
        bytes = seconds > 0 ? rate * t * (1 - t / seconds) : 0;
    }
    if (bytes > size)
        bytes = size;
    return (uint64_t)(bytes * (1 + 2.0 * LIMIT_MAP_BYTES_PER_SLOT / (double)plan->block_bytes));
}
