/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The bitmap against a naive model of one byte a bit: random operations, odd sizes, and no memory at the n-th request. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bitmap.h"
#include "base/range.h"

/* The bitmap's memory comes through here (--wrap): the request `fail_at` fails, counted from 1. */
void *__real_calloc(size_t count, size_t size);
void *__wrap_calloc(size_t count, size_t size);
static unsigned long requests, fail_at;

void *__wrap_calloc(size_t count, size_t size)
{
    return ++requests == fail_at ? NULL : __real_calloc(count, size);
}

static uint64_t random_below(uint64_t bound)
{
    uint64_t value = (uint64_t)rand() << 31 | (uint64_t)rand();
    return bound ? value % bound : 0;
}

static uint64_t model_next(const uint8_t *model, uint64_t size, uint64_t from, bool value)
{
    while (from < size && model[from] != value)
        from++;
    return from;
}

/* Every bit, every edge, and that equal chunks hold no memory. */
static void check(const struct bitmap *bitmap, const uint8_t *model)
{
    uint64_t set = 0, mixed = 0, one_chunk = bitmap->chunk_bytes;
    for (uint64_t start = 0; start < bitmap->bit_count; start += BITMAP_CHUNK_BITS) {
        uint64_t end = start + BITMAP_CHUNK_BITS < bitmap->bit_count ? start + BITMAP_CHUNK_BITS : bitmap->bit_count;
        uint64_t ones = 0;
        for (uint64_t bit = start; bit < end; bit++) {
            ones += model[bit];
            if (bitmap_get(bitmap, bit) != model[bit])
                fail_msg("bit %lu is wrong", (unsigned long)bit);
        }
        set += ones;
        mixed += ones > 0 && ones < end - start;
    }
    assert_int_equal(bitmap->set_count, set);
    assert_true(mixed ? one_chunk % mixed == 0 && one_chunk / mixed >= BITMAP_CHUNK_BITS / 8 : one_chunk == 0);
    for (unsigned value = 0; value < 2; value++)
        for (uint64_t from = 0; from < bitmap->bit_count;) { /* edge by edge */
            uint64_t next = bitmap_next(bitmap, from, value);
            assert_int_equal(next, model_next(model, bitmap->bit_count, from, value));
            from = next == bitmap->bit_count ? next : bitmap_next(bitmap, next, !value);
        }
    assert_int_equal(bitmap_next(bitmap, bitmap->bit_count, true), bitmap->bit_count);
    assert_int_equal(bitmap_next(bitmap, UINT64_MAX, false), bitmap->bit_count);
}

static struct block_range random_span(uint64_t size)
{
    uint64_t first = random_below(size + 1), longest = size - first;
    switch (rand() % 5) {
    case 0:
        longest = longest < 3 ? longest : 3;
        break;
    case 1:
        longest = longest < 200 ? longest : 200;
        break;
    case 2: /* whole chunks */
        first = first / BITMAP_CHUNK_BITS * BITMAP_CHUNK_BITS;
        return (struct block_range){first, size - first < BITMAP_CHUNK_BITS ? size - first : BITMAP_CHUNK_BITS};
    default:
        break;
    }
    return (struct block_range){first, random_below(longest + 1)};
}

static void random_steps(struct bitmap *bitmap, uint8_t *model, unsigned steps)
{
    const uint64_t size = bitmap->bit_count;
    while (steps-- > 0) {
        struct block_range span = random_span(size);
        bool value = rand() % 2;
        assert_int_equal(bitmap_assign(bitmap, span.first, span.count, value), 0);
        memset(model + span.first, value, span.count);
    }
}

static void against_model(void **state)
{
    (void)state;
    const uint64_t sizes[] = {0,
                              1,
                              63,
                              64,
                              65,
                              1000,
                              BITMAP_CHUNK_BITS - 1,
                              BITMAP_CHUNK_BITS,
                              BITMAP_CHUNK_BITS + 1,
                              3 * BITMAP_CHUNK_BITS,
                              4 * BITMAP_CHUNK_BITS + 77};
    fail_at = 0;
    srand(1);
    for (unsigned i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        struct bitmap bitmap;
        uint8_t *model = malloc(sizes[i] + 1);
        bool value = i % 2;
        assert_int_equal(bitmap_init(&bitmap, sizes[i], value), 0);
        memset(model, value, sizes[i]);
        check(&bitmap, model);
        for (unsigned round = 0; round < 60; round++) {
            random_steps(&bitmap, model, 1 + (unsigned)rand() % 4);
            check(&bitmap, model);
        }
        bitmap_fini(&bitmap);
        free(model);
    }
}

static void merged(void **state)
{
    (void)state;
    const uint64_t size = 5 * BITMAP_CHUNK_BITS + 4321;
    uint8_t *into_model = malloc(size), *from_model = malloc(size);
    fail_at = 0;
    srand(2);
    for (unsigned round = 0; round < 80; round++) {
        struct bitmap into, from;
        bool value = rand() % 4 == 0;
        assert_int_equal(bitmap_init(&into, size, value), 0);
        memset(into_model, value, size);
        assert_int_equal(bitmap_init(&from, size, false), 0);
        memset(from_model, 0, size);
        random_steps(&into, into_model, (unsigned)rand() % 6);
        random_steps(&from, from_model, (unsigned)rand() % 6);
        assert_int_equal(bitmap_merge(&into, &from), 0);
        for (uint64_t bit = 0; bit < size; bit++)
            into_model[bit] |= from_model[bit];
        check(&into, into_model);
        check(&from, from_model);
        bitmap_fini(&into);
        bitmap_fini(&from);
    }
    free(into_model);
    free(from_model);
}

/* Filled bit by bit, a bitmap gives its memory back; what it says of its memory is what it asked for. */
static void equal_chunks_cost_nothing(void **state)
{
    (void)state;
    struct bitmap bitmap;
    fail_at = 0;
    assert_int_equal(bitmap_init(&bitmap, 2 * BITMAP_CHUNK_BITS, false), 0);
    const uint64_t list_bytes = bitmap_bytes(&bitmap);
    assert_int_equal(list_bytes, 2 * sizeof(void *));
    for (uint64_t bit = 0; bit < 2 * BITMAP_CHUNK_BITS; bit++)
        assert_int_equal(bitmap_assign(&bitmap, bit * 7 % (2 * BITMAP_CHUNK_BITS), 1, true), 0);
    assert_int_equal(bitmap.set_count, 2 * BITMAP_CHUNK_BITS);
    assert_int_equal(bitmap_bytes(&bitmap), list_bytes);
    assert_int_equal(bitmap_assign(&bitmap, 5, 1, false), 0);
    assert_in_range(bitmap_bytes(&bitmap), list_bytes + 4096, list_bytes + 4200);
    assert_int_equal(bitmap_assign(&bitmap, 5, 1, true), 0);
    assert_int_equal(bitmap_bytes(&bitmap), list_bytes);
    bitmap_fini(&bitmap);
    bitmap_fini(&bitmap); /* of a zeroed one */
}

/* The largest disk: a search over nothing but equal chunks looks at each of them once. */
static void large_and_empty(void **state)
{
    (void)state;
    struct bitmap bitmap;
    const uint64_t size = (UINT64_C(1) << 36) - 5;
    fail_at = 0;
    assert_int_equal(bitmap_init(&bitmap, size, false), 0);
    assert_int_equal(bitmap_next(&bitmap, 0, true), size);
    assert_int_equal(bitmap_assign(&bitmap, 1, size - 1, true), 0);
    assert_int_equal(bitmap.set_count, size - 1);
    assert_int_equal(bitmap_next(&bitmap, 1, false), size);
    assert_int_equal(bitmap_assign(&bitmap, size - 1, 1, false), 0);
    assert_int_equal(bitmap_next(&bitmap, 1, false), size - 1);
    assert_int_equal(bitmap_next_before(&bitmap, 1, size, false), size - 1);
    assert_int_equal(bitmap_next_before(&bitmap, 1, size - 1, false), size - 1);
    assert_int_equal(bitmap_next_before(&bitmap, 1, 5 * BITMAP_CHUNK_BITS, false), 5 * BITMAP_CHUNK_BITS);
    assert_int_equal(bitmap_next_before(&bitmap, 0, 1, true), 1);
    assert_int_equal(bitmap_next_before(&bitmap, 0, 2, true), 1);
    bitmap_fini(&bitmap);
}

/* A change that runs out of memory has changed whole chunks from its beginning on, or nothing, and can be tried again. */
static void no_memory(void **state)
{
    (void)state;
    const uint64_t size = 4 * BITMAP_CHUNK_BITS, first = 100, count = 3 * BITMAP_CHUNK_BITS;
    struct bitmap bitmap, other;
    uint8_t *model = calloc(1, size);
    requests = 0;
    fail_at = 1;
    assert_int_equal(bitmap_init(&bitmap, size, true), -ENOMEM);
    bitmap_fini(&bitmap);
    for (unsigned long n = 1;; n++) {
        fail_at = 0;
        assert_int_equal(bitmap_init(&bitmap, size, false), 0);
        requests = 0;
        fail_at = n;
        int status = bitmap_assign(&bitmap, first, count, true);
        fail_at = 0;
        uint64_t done = status == 0 ? count : bitmap_next(&bitmap, first, false) - first;
        assert_true(done == 0 || done == count || (first + done) % BITMAP_CHUNK_BITS == 0);
        memset(model, 0, size);
        memset(model + first, 1, done);
        check(&bitmap, model);
        assert_int_equal(bitmap_assign(&bitmap, first, count, true), 0);
        memset(model + first, 1, count);
        check(&bitmap, model);
        bitmap_fini(&bitmap);
        if (status == 0)
            break;
        assert_int_equal(status, -ENOMEM);
        assert_true(n <= 2);
    }
    assert_int_equal(bitmap_init(&bitmap, size, false), 0);
    assert_int_equal(bitmap_init(&other, size, false), 0);
    assert_int_equal(bitmap_assign(&other, 7, 2, true), 0);
    requests = 0;
    fail_at = 1;
    assert_int_equal(bitmap_merge(&bitmap, &other), -ENOMEM);
    assert_int_equal(bitmap.set_count, 0);
    assert_int_equal(bitmap_assign(&bitmap, 0, BITMAP_CHUNK_BITS, true), 0); /* needs no memory */
    fail_at = 0;
    bitmap_fini(&bitmap);
    bitmap_fini(&other);
    free(model);
}

/* What is added is set, whatever the last chunk was like. */
static void grown(void **state)
{
    static const uint64_t sizes[] = {1,     70,     BITMAP_CHUNK_BITS - 1, BITMAP_CHUNK_BITS, BITMAP_CHUNK_BITS + 1,
                                     80000, 100000, 4 * BITMAP_CHUNK_BITS};
    enum { SIZES = sizeof sizes / sizeof sizes[0] };
    (void)state;
    uint8_t *model = malloc(sizes[SIZES - 1]);
    for (unsigned from = 0; from < SIZES; from++)
        for (unsigned to = from; to < SIZES; to++)
            for (unsigned fill = 0; fill < 3; fill++) { /* zeroes, ones, mixed */
                struct bitmap bitmap;
                assert_int_equal(bitmap_init(&bitmap, sizes[from], fill == 1), 0);
                memset(model, fill == 1, sizes[from]);
                if (fill == 2) {
                    assert_int_equal(bitmap_assign(&bitmap, sizes[from] / 2, 1, true), 0);
                    model[sizes[from] / 2] = 1;
                }
                memset(model + sizes[from], 1, sizes[to] - sizes[from]);
                assert_int_equal(bitmap_grow(&bitmap, sizes[to]), 0);
                assert_int_equal(bitmap.bit_count, sizes[to]);
                check(&bitmap, model);
                bitmap_fini(&bitmap);
            }
    free(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(against_model),   cmocka_unit_test(merged),    cmocka_unit_test(equal_chunks_cost_nothing),
        cmocka_unit_test(large_and_empty), cmocka_unit_test(no_memory), cmocka_unit_test(grown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
