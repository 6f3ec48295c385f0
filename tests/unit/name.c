/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Names and sizes as users write them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <string.h>

#include "base/name.h"

static void names(void **state)
{
    (void)state;
    struct error err;
    assert_int_equal(name_check("disk name", "vda", &err), 0);
    assert_int_equal(name_check("disk name", "a.b_c-9", &err), 0);
    const char *wrong[] = {
        "",    ".",   "..",       "a/b",
        "a b", "a@b", "\xc3\xa4", "12345678901234567890123456789012345678901234567890123456789012345"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        assert_int_equal(name_check("disk name", wrong[i], &err), -EINVAL);
        assert_non_null(strstr(err.text, "disk name"));
    }
}

static void sizes(void **state)
{
    (void)state;
    struct error err;
    const struct {
        const char *text;
        uint64_t bytes;
    } right[] = {{"0", 0},      {"4096", 4096},          {"4k", 4096},     {"1M", MIB},
                 {"1MiB", MIB}, {"1.5G", GIB + GIB / 2}, {"64T", 64 * TIB}};
    for (size_t i = 0; i < sizeof right / sizeof *right; i++) {
        uint64_t bytes = 1;
        assert_int_equal(size_parse("size", right[i].text, &bytes, &err), 0);
        assert_int_equal(bytes, right[i].bytes);
    }
    const char *wrong[] = {"", "-1", "1X", "M", "0x10", "1e30", "1.5", "1MM", "inf", "nan", " 1"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        uint64_t bytes;
        assert_int_equal(size_parse("size", wrong[i], &bytes, &err), -EINVAL);
    }
    char text[16];
    assert_string_equal(size_format(text, GIB + GIB / 2), "1.5 GiB");
    assert_string_equal(size_format(text, 17), "17 B");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(names), cmocka_unit_test(sizes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
