/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The cache's forecast with a clock of the test's own: rate, time to full, thresholds; and the estimate before a backup. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/limits.h"
#include "vm/cache_forecast.h"

static void steady(void **state)
{
    (void)state;
    struct cache_forecast forecast = {0};
    uint64_t now = 1000, used = 0;
    assert_int_equal(cache_forecast_rate(&forecast), 0);
    assert_int_equal(cache_forecast_seconds(&forecast, 0, GIB), UINT64_MAX);
    for (unsigned i = 0; i <= 100; i++) {
        cache_forecast_sample(&forecast, now, used);
        now += NS_PER_S / 2;
        used += 5 * MIB;
    }
    assert_in_range(cache_forecast_rate(&forecast), 10 * MIB * 99 / 100, 10 * MIB);
    assert_in_range(cache_forecast_seconds(&forecast, used, used + 100 * MIB), 10, 11);
    assert_int_equal(cache_forecast_seconds(&forecast, 7, 7), 0);
    /* Level for a while: the rate falls to nearly nothing; it is not negative when the cache empties. */
    for (unsigned i = 0; i < 100; i++)
        cache_forecast_sample(&forecast, now += NS_PER_S / 2, used);
    assert_true(cache_forecast_rate(&forecast) < MIB / 10);
    cache_forecast_sample(&forecast, now += NS_PER_S, used / 2);
    assert_int_equal(cache_forecast_rate(&forecast), 0);
    assert_int_equal(cache_forecast_seconds(&forecast, used / 2, used), UINT64_MAX);
}

/* The same growth gives the same rate, however often it is looked at; a second look at the same instant changes nothing. */
static void any_interval(void **state)
{
    (void)state;
    struct cache_forecast often = {0}, seldom = {0};
    for (uint64_t ms = 0; ms <= 20000; ms += 10) {
        cache_forecast_sample(&often, ms * NS_PER_MS, ms * 1000);
        cache_forecast_sample(&often, ms * NS_PER_MS, ms * 1000 + 777777);
        if (ms % 2000 == 0)
            cache_forecast_sample(&seldom, ms * NS_PER_MS, ms * 1000);
    }
    double ratio = (double)cache_forecast_rate(&often) / (double)cache_forecast_rate(&seldom);
    assert_true(ratio > 0.95 && ratio < 1.05);
}

/* A burst shows within a second or two, and is forgotten within some. */
static void burst(void **state)
{
    (void)state;
    struct cache_forecast forecast = {0};
    uint64_t now = 0, used = 0;
    cache_forecast_sample(&forecast, now, used);
    for (unsigned i = 0; i < 4; i++)
        cache_forecast_sample(&forecast, now += NS_PER_S / 2, used += 50 * MIB);
    assert_in_range(cache_forecast_rate(&forecast), 30 * MIB, 100 * MIB);
    for (unsigned i = 0; i < 20; i++)
        cache_forecast_sample(&forecast, now += NS_PER_S / 2, used);
    assert_true(cache_forecast_rate(&forecast) < 6 * MIB);
}

static void thresholds(void **state)
{
    (void)state;
    static const struct {
        uint64_t used;
        unsigned told;
    } steps[] = {{0, 0},   {499, 0},  {500, 50}, {500, 0}, {480, 0},  {510, 0},  {399, 0}, {500, 50},
                 {749, 0}, {760, 75}, {700, 0},  {760, 0}, {900, 90}, {1000, 0}, {790, 0}, {950, 90},
                 {660, 0}, {640, 0},  {760, 75}, {0, 0},   {990, 90}, {0, 0},    {600, 50}};
    struct cache_forecast forecast = {0};
    for (unsigned i = 0; i < sizeof steps / sizeof *steps; i++)
        assert_int_equal(cache_forecast_crossed(&forecast, steps[i].used, 1000), steps[i].told);
    forecast = (struct cache_forecast){0};
    assert_int_equal(cache_forecast_crossed(&forecast, 0, 0), 0);
    /* A budget that grows is as good as a fill that falls. */
    assert_int_equal(cache_forecast_crossed(&forecast, 900, 1000), 90);
    assert_int_equal(cache_forecast_crossed(&forecast, 900, 4000), 0);
    assert_int_equal(cache_forecast_crossed(&forecast, 2100, 4000), 50);
}

static uint64_t needs(uint64_t size, uint64_t rate, double seconds, bool releases)
{
    const struct backup_plan plan = {size, rate * 60, 60 * NS_PER_S,
                                     1 << 30}; /* blocks so large that the map is nothing */
    return backup_needs(&plan, seconds, releases);
}

/* The formula against a backup that is gone through second by second. */
static void estimates(void **state)
{
    (void)state;
    const uint64_t size = 100 * GIB;
    const double seconds = 1000;
    for (uint64_t rate = MIB; rate < 2 * GIB; rate *= 3) {
        double peak = 0;
        for (double t = 0; t <= seconds; t++) {
            double written = (double)rate * t < (double)size ? (double)rate * t : (double)size;
            double left = written * (1 - t / seconds);
            peak = left > peak ? left : peak;
        }
        double estimate = (double)needs(size, rate, seconds, true);
        assert_true(estimate >= peak * 0.999 && estimate <= peak * 1.02 + 4096);
        uint64_t all = (double)rate * seconds < (double)size ? (uint64_t)((double)rate * seconds) : size;
        assert_in_range(needs(size, rate, seconds, false), all, all + all / 100);
    }
    assert_int_equal(needs(size, 0, seconds, true), 0);
    assert_int_equal(needs(size, MIB, 0, true), 0);
    assert_int_equal(needs(size, MIB, 0, false), 0);
    const struct backup_plan unseen = {size, GIB, 0, 4096}, small_blocks = {size, GIB, NS_PER_S, 4096};
    assert_int_equal(backup_needs(&unseen, seconds, true), 0);
    assert_int_equal(backup_needs(&small_blocks, 1, false), GIB + GIB * 32 / 4096);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(steady), cmocka_unit_test(any_interval),
                                       cmocka_unit_test(burst), cmocka_unit_test(thresholds),
                                       cmocka_unit_test(estimates)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
