/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The tracker's own promises, each with its interleaving: what a checkpoint reports while all goes well, after a kill, a
 * power loss and a close.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tracker_kit.h"

static void a_checkpoint_reports_what_was_written_since(void **state)
{
    (void)state;
    struct kit kit;
    kit_init(&kit, &(struct world_options){.seed = 1, .power = true});
    assert_int_equal(kit_start(&kit), 0);
    assert_int_equal(tracker_recovery(kit.tracker), TRACKER_NEW);
    kit_write_now(&kit, 7, 1);
    assert_int_equal(kit_checkpoint(&kit, "a"), 0);
    assert_int_equal(kit_judge(&kit), 0);
    kit_write_now(&kit, 100, 3);
    kit_write(&kit, REQUEST_DISCARD, 1020, 2060); /* three extents */
    kit_write(&kit, REQUEST_WRITE_ZEROES, 9000, 1);
    kit_settle(&kit);
    assert_int_equal(kit_judge(&kit), 0);
    assert_int_equal(kit_checkpoint(&kit, "b"), 0);
    kit_write_now(&kit, 100, 1);
    kit_write_now(&kit, 101, 1);
    kit_write_now(&kit, 15000, 1);
    assert_int_equal(kit_judge(&kit), 0);
    assert_int_equal(kit_checkpoint(&kit, "c"), 0);
    kit_write_now(&kit, 1, 1);
    assert_int_equal(kit_remove(&kit, "b"), 0);
    assert_int_equal(kit_judge(&kit), 0);
    kit_write_now(&kit, 2, 1);
    assert_int_equal(kit_remove(&kit, "c"), 0);
    kit_write_now(&kit, 3, 1);
    assert_int_equal(kit_judge(&kit), 0);
    kit_stop(&kit);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(kit_start(&kit), 0);
        assert_int_equal(tracker_recovery(kit.tracker), TRACKER_CLEAN);
        assert_int_equal(kit_state(&kit, "a"), CHECKPOINT_COMMITTED);
        assert_int_equal(kit_judge(&kit), 0);
        kit_write_now(&kit, 20 + (uint64_t)i * 2000, 1);
        if (i == 1)
            assert_int_equal(kit_checkpoint(&kit, "d"), 0);
        assert_int_equal(kit_judge(&kit), 0);
        kit_stop(&kit);
    }
    kit_fini(&kit);
}

/* A seed's life: writes, checkpoints, and ends of all kinds, crashes in the middle of everything. */
static void lead_a_life(uint64_t seed)
{
    struct kit kit;
    kit_init(&kit, &(struct world_options){.seed = seed, .power = true, .short_per_1024 = seed % 3 ? 0 : 20});
    kit.options.slots = seed % 2 ? 12 : 0;
    bool exact = true;
    unsigned made = 0;
    assert_int_equal(kit_start(&kit), 0);
    for (unsigned step = 0; step < 60; step++) {
        uint64_t dice = world_below(kit.world, 100);
        if (dice < 60) {
            static const enum request_kind kinds[] = {REQUEST_WRITE, REQUEST_WRITE, REQUEST_DISCARD};
            enum request_kind kind = kinds[world_below(kit.world, 3)];
            uint64_t first = world_below(kit.world, KIT_BLOCKS), most = kind == REQUEST_WRITE ? 16 : 8000;
            uint64_t count = 1 + world_below(kit.world, most < KIT_BLOCKS - first ? most : KIT_BLOCKS - first);
            unsigned busy = 0;
            for (unsigned i = 0; i < KIT_WRITES; i++)
                busy += kit.writes[i].busy;
            if (busy < KIT_WRITES)
                kit_write(&kit, kind, first, count);
            if (world_chance(kit.world, 500))
                world_run_for(kit.world, world_below(kit.world, 300) * NS_PER_US);
            world_act_as(kit.world, kit.io);
        } else if (dice < 68 && kit.checkpoint_count < 6) {
            char name[8];
            snprintf(name, sizeof name, "c%u", made++);
            assert_int_equal(kit_checkpoint(&kit, name), 0);
        } else if (dice < 76 && kit.checkpoint_count > 0) {
            unsigned at = (unsigned)world_below(kit.world, kit.checkpoint_count);
            assert_int_equal(kit_remove(&kit, kit.checkpoints[at]->id.name), 0);
        } else if (dice < 80) {
            kit_stop(&kit);
            assert_int_equal(kit_start(&kit), 0);
        } else if (dice < 90) {
            kit_kill(&kit);
            assert_int_equal(kit_start(&kit), 0);
            if (kit.checkpoint_count > 0)
                assert_int_equal(tracker_recovery(kit.tracker), TRACKER_ADOPTED);
        } else if (dice < 95) {
            kit_power_loss(&kit);
            exact = false;
            assert_int_equal(kit_start(&kit), 0);
            if (kit.checkpoint_count > 0)
                assert_int_equal(tracker_recovery(kit.tracker), TRACKER_REPLAYED);
        } else {
            kit_settle(&kit);
        }
        if (tracker_invalid_reason(kit.tracker))
            fail_msg("seed %llu: %s", (unsigned long long)seed, tracker_invalid_reason(kit.tracker));
        uint64_t beyond = kit_judge(&kit);
        if (exact && beyond > 0)
            fail_msg("seed %llu: %llu blocks too many", (unsigned long long)seed, (unsigned long long)beyond);
    }
    kit_stop(&kit);
    kit_fini(&kit);
}

static void lives_of_all_kinds(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 24; seed++)
        lead_a_life(seed);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_checkpoint_reports_what_was_written_since),
        cmocka_unit_test(lives_of_all_kinds),
    };
    if (argc == 3)
        for (uint64_t seed = strtoull(argv[1], NULL, 0); seed <= strtoull(argv[2], NULL, 0); seed++)
            lead_a_life(seed);
    return argc == 3 ? 0 : cmocka_run_group_tests(tests, NULL, NULL);
}
