/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What sessions of the NBD server may hold, and the pool that they hold it from. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "export/nbd/buffers.h"

enum { CROWD = 2000 };

/* Takes pieces of 4 KiB as long as there is room. */
static uint64_t fill(struct nbd_window *window)
{
    while (nbd_window_take(window, 4096))
        ;
    return window->held_bytes;
}

static void test_everybody_has_a_window(void **state)
{
    (void)state;
    struct nbd_budget budget = {0};
    static struct nbd_window crowd[CROWD];
    uint64_t sum = 0;
    for (unsigned i = 0; i < CROWD; i++) {
        crowd[i] = (struct nbd_window){.budget = &budget};
        uint64_t held = fill(&crowd[i]);
        assert_true(held >= 16 * KIB);
        sum += held;
    }
    /* those who have shown nothing get the first half of the budget at most */
    assert_true(sum <= CROWD * LIMIT_NBD_WINDOW_BYTES + LIMIT_NBD_SHARED_BYTES / 2);
    assert_true(budget.lent_bytes <= LIMIT_NBD_SHARED_BYTES / 2);
    /* one who has moved data finds room beside them */
    struct nbd_window live = {.budget = &budget, .proven_bytes = LIMIT_NBD_UNPROVEN_BYTES + 4 * MIB};
    assert_true(fill(&live) >= 256 * KIB);
    nbd_window_give(&live, live.held_bytes);
    for (unsigned i = 0; i < CROWD; i++)
        nbd_window_give(&crowd[i], crowd[i].held_bytes);
    assert_int_equal(budget.lent_bytes, 0);
}

static void test_nobody_takes_it_all(void **state)
{
    (void)state;
    struct nbd_budget budget = {0};
    struct nbd_window quick[8];
    for (unsigned i = 0; i < 8; i++) {
        quick[i] = (struct nbd_window){.budget = &budget, .proven_bytes = GIB};
        fill(&quick[i]);
    }
    struct nbd_window guest = {.budget = &budget, .proven_bytes = GIB};
    assert_true(fill(&guest) >= 256 * KIB);
    assert_true(budget.lent_bytes <= LIMIT_NBD_SHARED_BYTES);
}

static void test_room_is_what_can_be_taken(void **state)
{
    (void)state;
    struct nbd_budget budget = {.lent_bytes = 5 * MIB};
    struct nbd_window window = {.budget = &budget};
    while (nbd_window_room(&window) > 0) {
        uint64_t room = nbd_window_room(&window);
        assert_false(nbd_window_take(&window, room + 1));
        assert_true(nbd_window_take(&window, (room + 1) / 2));
    }
    assert_int_equal(window.held_bytes, nbd_window_whole(&window));
}

static void test_pool(void **state)
{
    (void)state;
    enum { COUNT = 500 };
    struct nbd_budget budget = {0};
    struct nbd_pool pool;
    static struct nbd_buffer buffers[COUNT];
    static const uint64_t sizes[] = {1, 4096, 4097, 60000, 65536, 100000, 262144, 512};
    nbd_pool_init(&pool, &budget);
    for (unsigned round = 0; round < 3; round++) {
        for (unsigned i = 0; i < COUNT; i++) {
            uint64_t bytes = sizes[(i * 7 + round) % 8];
            assert_true(nbd_pool_get(&pool, bytes, &buffers[i]));
            assert_true(buffers[i].size >= bytes && buffers[i].size == nbd_buffer_size(bytes));
            assert_int_equal((uintptr_t)buffers[i].bytes % 4096, 0);
            memset(buffers[i].bytes, (int)i, buffers[i].size);
        }
        for (unsigned i = 0; i < COUNT; i++) { /* nobody has written into somebody else's */
            assert_int_equal((uint8_t)buffers[i].bytes[0], (uint8_t)i);
            assert_int_equal((uint8_t)buffers[i].bytes[buffers[i].size - 1], (uint8_t)i);
        }
        for (unsigned i = 0; i < COUNT; i++)
            nbd_pool_put(&pool, &buffers[(i * 31) % COUNT]);
    }
    assert_true(budget.memory_bytes > 0);
    nbd_pool_trim(&pool); /* needed just now */
    nbd_pool_trim(&pool);
    assert_int_equal(budget.memory_bytes, 0);
    assert_true(budget.memory_peak_bytes >= COUNT * UINT64_C(4096));
    nbd_pool_fini(&pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_everybody_has_a_window),
        cmocka_unit_test(test_nobody_takes_it_all),
        cmocka_unit_test(test_room_is_what_can_be_taken),
        cmocka_unit_test(test_pool),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
