/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The speed limit, with a clock of the test's own. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdbool.h>

#include "base/limits.h"
#include "job/throttle.h"

/* How many bytes go in a time, taken in pieces as fast as the limit lets them. */
static uint64_t bytes_in(struct throttle *throttle, uint64_t piece, uint64_t *now_ns, uint64_t duration_ns)
{
    uint64_t end_ns = *now_ns + duration_ns, bytes = 0;
    while (*now_ns < end_ns) {
        uint64_t wait_ns = throttle_wait_ns(throttle, *now_ns);
        *now_ns += wait_ns;
        if (wait_ns > 0)
            continue;
        if (*now_ns < end_ns) {
            throttle_charge(throttle, (int64_t)piece);
            bytes += piece;
        }
    }
    return bytes;
}

static void the_average_is_the_rate(void **state)
{
    (void)state;
    const uint64_t rates[] = {1000, 64 * KIB, 10 * MIB + 1, 3 * GIB}, pieces[] = {1, 4096, MIB};
    for (unsigned i = 0; i < sizeof rates / sizeof *rates; i++) {
        for (unsigned k = 0; k < sizeof pieces / sizeof *pieces; k++) {
            if (rates[i] / pieces[k] > 1000000)
                continue;
            struct throttle throttle = {0};
            uint64_t now_ns = 12345, duration_ns = 20 * NS_PER_S;
            if (rates[i] < pieces[k])
                duration_ns = pieces[k] / rates[i] * 20 * NS_PER_S;
            throttle_set(&throttle, rates[i], now_ns);
            uint64_t bytes = bytes_in(&throttle, pieces[k], &now_ns, duration_ns);
            uint64_t right = rates[i] * (duration_ns / NS_PER_S), slack = pieces[k] + rates[i] / 5 + right / 100;
            assert_in_range(bytes, right - (slack < right ? slack : right), right + slack);
        }
    }
}

static void a_rest_saves_up_little(void **state)
{
    (void)state;
    struct throttle throttle = {0};
    uint64_t now_ns = NS_PER_S, bytes = 0;
    throttle_set(&throttle, 10 * MIB, now_ns);
    now_ns += 3600 * NS_PER_S;
    for (; throttle_wait_ns(&throttle, now_ns) == 0; bytes += 4096)
        throttle_charge(&throttle, 4096);
    assert_in_range(bytes, MIB - 4096, MIB + 4096); /* a tenth of a second */
}

static void a_debt_is_paid_before_more(void **state)
{
    (void)state;
    struct throttle throttle = {0};
    throttle_set(&throttle, MIB, 0);
    throttle_charge(&throttle, 4 * MIB);
    assert_in_range(throttle_wait_ns(&throttle, 0), 3900 * NS_PER_MS, 4100 * NS_PER_MS);
    throttle_charge(&throttle, -3 * (int64_t)MIB); /* most of it turned out to be zeroes */
    assert_in_range(throttle_wait_ns(&throttle, 0), 900 * NS_PER_MS, 1100 * NS_PER_MS);
    assert_int_equal(throttle_wait_ns(&throttle, 1200 * NS_PER_MS), 0);
}

static void the_rate_can_change(void **state)
{
    (void)state;
    struct throttle throttle = {0};
    throttle_set(&throttle, 1000, 0);
    throttle_charge(&throttle, 16 * (int64_t)MIB);
    assert_true(throttle_wait_ns(&throttle, 0) > 3000 * NS_PER_S);
    throttle_set(&throttle, GIB, 0); /* nobody waits an hour for what an old limit said */
    assert_int_equal(throttle_wait_ns(&throttle, 0), 0);
    throttle_charge(&throttle, (int64_t)GIB);
    throttle_set(&throttle, 0, 0);
    assert_int_equal(throttle_wait_ns(&throttle, 0), 0);
    throttle_charge(&throttle, INT64_MAX);
    assert_int_equal(throttle_wait_ns(&throttle, 0), 0);
    throttle_set(&throttle, THROTTLE_RATE_MAX, 0);
    assert_int_equal(throttle_wait_ns(&throttle, UINT64_MAX / 2), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_average_is_the_rate),
        cmocka_unit_test(a_rest_saves_up_little),
        cmocka_unit_test(a_debt_is_paid_before_more),
        cmocka_unit_test(the_rate_can_change),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
