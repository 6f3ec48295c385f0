/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Sets of ranges against a naive model: one flag a byte. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "base/range_set.h"

enum { BYTES = 200, MAX = 12 };

static void model_of(const struct range_set *set, bool *model)
{
    memset(model, 0, BYTES);
    uint64_t end = 0;
    for (uint32_t i = 0; i < set->count; i++) {
        assert_true(set->ranges[i].length > 0);
        assert_true(i == 0 || set->ranges[i].start > end); /* in order, and merged */
        end = range_end(set->ranges[i]);
        assert_true(end <= BYTES);
        memset(model + set->ranges[i].start, 1, set->ranges[i].length);
    }
}

static struct range model_first(const bool *model, struct range range)
{
    uint64_t start = range.start, end;
    while (start < range_end(range) && !model[start])
        start++;
    for (end = start; end < range_end(range) && model[end];)
        end++;
    return start < range_end(range) ? (struct range){start, end - start} : (struct range){range.start, 0};
}

static void test_against_model(void **state)
{
    (void)state;
    struct range ranges[MAX];
    struct range_set set = {.ranges = ranges, .max = MAX};
    bool model[BYTES] = {false}, now[BYTES];
    unsigned refused = 0, shortened = 0;
    srand(7);
    for (unsigned i = 0; i < 200000; i++) {
        struct range range = {(uint64_t)rand() % BYTES, 0};
        range.length = 1 + (uint64_t)rand() % (rand() % 4 ? 6 : BYTES - range.start);
        if (range_end(range) > BYTES)
            range.length = BYTES - range.start;
        bool add = rand() % 2, added = false;
        if (add)
            added = range_set_add(&set, range);
        else
            range_set_remove(&set, range);
        assert_true(set.count <= MAX);
        model_of(&set, now);
        if (!add || added)
            memset(model + range.start, added, range.length);
        refused += add && !added;
        if (!add && memcmp(model, now, BYTES) != 0) { /* no room for two parts: less is left, never more */
            for (unsigned k = 0; k < BYTES; k++)
                assert_true(model[k] || !now[k]);
            assert_int_equal(set.count, MAX);
            memcpy(model, now, BYTES);
            shortened++;
        }
        assert_memory_equal(model, now, BYTES);
        struct range first = range_set_first_in(&set, range), expected = model_first(model, range);
        assert_int_equal(first.start, expected.start);
        assert_int_equal(first.length, expected.length);
    }
    assert_true(refused > 0 && shortened > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_against_model)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
