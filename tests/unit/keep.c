/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Which points stay, compared with what a person says who is given the rules. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "set/keep.h"

#define MONDAY UINT64_C(1795392000) /* 2026-11-23T00:00:00Z */
#define HOUR UINT64_C(3600)
#define DAY (24 * HOUR)
#define POINTS 2000

static char names[POINTS][POINT_NAME_BYTES];
static uint8_t kept[POINTS];

/* `count` points, `step` seconds apart; the newest is at `last`. */
static void make_points(unsigned count, uint64_t last, uint64_t step)
{
    for (unsigned i = 0; i < count; i++) {
        char time[POINT_TIME_BYTES];
        point_time_format(time, last - (count - 1 - i) * step);
        point_name_make(names[i], time, 1);
    }
}

static void choose(struct keep_rules rules, unsigned count)
{
    memset(kept, 0xff, sizeof kept);
    keep_choose(&rules, (const char(*)[POINT_NAME_BYTES])names, count, kept);
}

/* The points that stay, as their names up to `length` characters, oldest first. */
static void expect(unsigned count, size_t length, const char *right)
{
    char text[4096] = "";
    for (unsigned i = 0; i < count; i++)
        if (kept[i]) {
            size_t used = strlen(text);
            snprintf(text + used, sizeof text - used, "%s%.*s", used ? " " : "", (int)length, names[i]);
        }
    assert_string_equal(text, right);
}

static void test_last(void **state)
{
    (void)state;
    make_points(5, MONDAY, HOUR);
    choose((struct keep_rules){{[KEEP_LAST] = 2}}, 5);
    expect(5, 13, "2026-11-22T23 2026-11-23T00");
    choose((struct keep_rules){{[KEEP_LAST] = 9}}, 5);
    expect(5, 13, "2026-11-22T20 2026-11-22T21 2026-11-22T22 2026-11-22T23 2026-11-23T00");
    choose((struct keep_rules){{0}}, 5);
    expect(5, 13, "2026-11-23T00"); /* the newest, whatever the rules say */
    choose((struct keep_rules){{0}}, 0);
}

static void test_periods(void **state)
{
    (void)state;
    make_points(800, MONDAY + 12 * HOUR, HOUR / 2); /* 16 days and 16 hours */
    choose((struct keep_rules){{[KEEP_HOURLY] = 3}}, 800);
    expect(800, 16, "2026-11-23T10:30 2026-11-23T11:30 2026-11-23T12:00");
    choose((struct keep_rules){{[KEEP_DAILY] = 3}}, 800);
    expect(800, 16, "2026-11-21T23:30 2026-11-22T23:30 2026-11-23T12:00");
    choose((struct keep_rules){{[KEEP_WEEKLY] = 3}}, 800); /* weeks end on Sundays */
    expect(800, 16, "2026-11-15T23:30 2026-11-22T23:30 2026-11-23T12:00");
    choose((struct keep_rules){{[KEEP_WEEKLY] = 9}}, 800); /* there are only four weeks */
    expect(800, 16, "2026-11-08T23:30 2026-11-15T23:30 2026-11-22T23:30 2026-11-23T12:00");
}

static void test_months(void **state)
{
    (void)state;
    make_points(400, MONDAY, DAY);
    choose((struct keep_rules){{[KEEP_MONTHLY] = 12}}, 400);
    expect(400, 10,
           "2025-12-31 2026-01-31 2026-02-28 2026-03-31 2026-04-30 2026-05-31 2026-06-30 2026-07-31 2026-08-31 "
           "2026-09-30 2026-10-31 2026-11-23");
}

static void test_gaps_do_not_count(void **state)
{
    (void)state;
    make_points(4, MONDAY, 10 * DAY);
    choose((struct keep_rules){{[KEEP_DAILY] = 3}}, 4);
    expect(4, 10, "2026-11-03 2026-11-13 2026-11-23");
}

static void test_rules_together(void **state)
{
    (void)state;
    make_points(48, MONDAY + 12 * HOUR, HOUR);
    choose((struct keep_rules){{[KEEP_LAST] = 2, [KEEP_DAILY] = 2, [KEEP_MONTHLY] = 1}}, 48);
    expect(48, 13, "2026-11-22T23 2026-11-23T11 2026-11-23T12");
    assert_int_equal(kept[47], 1u << KEEP_LAST | 1u << KEEP_DAILY | 1u << KEEP_MONTHLY);
    assert_int_equal(kept[46], 1u << KEEP_LAST);
    assert_int_equal(kept[34], 1u << KEEP_DAILY);
}

/* Points of one second have numbers; the last one is the newest. */
static void test_same_second(void **state)
{
    (void)state;
    char time[POINT_TIME_BYTES];
    point_time_format(time, MONDAY);
    for (unsigned i = 0; i < 12; i++)
        point_name_make(names[i], time, i + 1);
    choose((struct keep_rules){{[KEEP_HOURLY] = 5}}, 12);
    expect(12, POINT_NAME_BYTES, "2026-11-23T00:00:00Z-12");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_last),           cmocka_unit_test(test_periods),
        cmocka_unit_test(test_months),         cmocka_unit_test(test_gaps_do_not_count),
        cmocka_unit_test(test_rules_together), cmocka_unit_test(test_same_second),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
