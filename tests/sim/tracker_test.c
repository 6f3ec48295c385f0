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

#include "base/limits.h"
#include "track/sidecar.h"
#include "track/span.h"
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

/* Of writes to one extent, those that come while the block that names it is composed, or under way, or just after. */
static void writes_wait_for_one_block(void **state)
{
    (void)state;
    struct kit kit;
    struct tracker_counters counters;
    kit_init(&kit, &(struct world_options){.seed = 4});
    assert_int_equal(kit_start(&kit), 0);
    assert_int_equal(kit_checkpoint(&kit, "a"), 0);
    for (uint64_t extent = 0; extent < 4; extent++) {
        struct kit_write *writes[20];
        for (unsigned i = 0; i < 20; i++) {
            writes[i] = kit_write(&kit, REQUEST_WRITE, extent * 1024 + i, 1);
            world_run_for(kit.world, i * NS_PER_US);
        }
        kit_settle(&kit);
        for (unsigned i = 0; i < 20; i++)
            assert_true(writes[i]->took_ns < 100 * NS_PER_MS);
    }
    tracker_counters(kit.tracker, &counters);
    assert_int_equal(counters.log_writes, 4);
    assert_int_equal(counters.activations, 4);
    assert_int_equal(kit_judge(&kit), 0);
    kit_stop(&kit);
    kit_fini(&kit);
}

/* Daemons that die while they recover, again and again: the last one knows as much as the first. */
static void die_again_and_again(unsigned ending, uint64_t delay_us)
{
    struct kit kit;
    kit_init(&kit, &(struct world_options){.seed = 100 + delay_us, .power = true});
    assert_int_equal(kit_start(&kit), 0);
    assert_int_equal(kit_checkpoint(&kit, "a"), 0);
    kit_write_now(&kit, 10, 3);
    assert_int_equal(kit_checkpoint(&kit, "b"), 0);
    kit_write_now(&kit, 5000, 3);
    if (ending == 0)
        kit_stop(&kit);
    else if (ending == 1)
        kit_kill(&kit);
    else
        kit_power_loss(&kit);
    for (unsigned deaths = 0; deaths < 3; deaths++)
        kit_start_and_die(&kit, delay_us * NS_PER_US);
    assert_int_equal(kit_start(&kit), 0);
    if (tracker_invalid_reason(kit.tracker))
        fail_msg("ending %u, after %u us: %s", ending, (unsigned)delay_us, tracker_invalid_reason(kit.tracker));
    uint64_t beyond = kit_judge(&kit);
    if (ending < 2)
        assert_int_equal(beyond, 0);
    kit_write_now(&kit, 9000, 1);
    kit_judge(&kit);
    kit_stop(&kit);
    kit_fini(&kit);
}

static void deaths_during_recovery(void **state)
{
    (void)state;
    for (unsigned ending = 0; ending < 3; ending++)
        for (uint64_t delay_us = 0; delay_us < 1000; delay_us += 50)
            die_again_and_again(ending, delay_us);
}

static void memory_is_bounded_and_reported(void **state)
{
    (void)state;
    struct kit kit;
    struct checkpoint_info info;
    kit_init(&kit, &(struct world_options){.seed = 3});
    assert_int_equal(kit_start(&kit), 0);
    assert_int_equal(kit_checkpoint(&kit, "a"), 0);
    assert_int_equal(tracker_checkpoints(kit.tracker, &info, 1), 1);
    assert_int_equal(info.memory_bytes, 4096); /* a head, and no page: nothing has changed */
    assert_int_equal(info.file_bytes, 2 * 4096);
    assert_int_equal(info.changed_bytes, 0);
    kit_write(&kit, REQUEST_DISCARD, 0, KIT_BLOCKS / 2);
    kit_write(&kit, REQUEST_DISCARD, KIT_BLOCKS / 2, KIT_BLOCKS / 2);
    kit_settle(&kit);
    assert_int_equal(tracker_checkpoints(kit.tracker, &info, 1), 1);
    assert_int_equal(info.memory_bytes, 2 * 4096); /* one bit a block, all in one page */
    assert_int_equal(info.changed_bytes, KIT_DISK_BYTES);
    kit_stop(&kit);
    kit_fini(&kit);
}

/* ---- damage */

enum ending { CLOSED, MEMORY_LOST, ENDINGS };

static void forget_memory(struct kit *kit)
{
    struct io *io = world_reactor(kit->world, "eraser", 900);
    world_act_as(kit->world, io);
    io_shm_remove(io, &kit->options.memory);
    world_act_as(kit->world, NULL);
}

/* A sidecar with three checkpoints, pages in both copies, and a log that has gone round. */
static void make_sidecar(struct kit *kit, enum ending ending)
{
    kit_init(kit, &(struct world_options){.seed = 5});
    assert_int_equal(kit_start(kit), 0);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(kit_checkpoint(kit, (const char *[]){"a", "b", "c"}[i]), 0);
        for (unsigned round = 0; round < 3; round++) {
            for (unsigned e = 0; e < 4; e++)
                kit_write_now(kit, (i * 5 + round + e) % KIT_EXTENTS * 1024 + 10 * i + round, 2);
            kit_stop(kit);
            assert_int_equal(kit_start(kit), 0);
        }
    }
    kit_write_now(kit, 19 * 1024 + 1, 1);
    if (ending == CLOSED) {
        kit_stop(kit);
    } else {
        kit_kill(kit);
        world_run_for(kit->world, 5 * NS_PER_S);
        forget_memory(kit);
    }
}

/* A start on a damaged sidecar: refused, or every checkpoint is invalid, and both name the bytes. */
static void expect_noticed(struct kit *kit, uint64_t offset)
{
    int status = kit_start(kit);
    const char *said = status < 0 ? kit->err.text : tracker_invalid_reason(kit->tracker);
    unsigned long long first = 0, last = 0;
    if (status != -EBADMSG && status != 0)
        fail_msg("byte %llu: status %d", (unsigned long long)offset, status);
    if (!said)
        fail_msg("byte %llu: nothing is noticed", (unsigned long long)offset);
    const char *bytes = strstr(said, "bytes ");
    if (!bytes || sscanf(bytes, "bytes %llu-%llu", &first, &last) != 2 || offset < first || offset > last)
        fail_msg("byte %llu: '%s'", (unsigned long long)offset, said);
    for (unsigned i = 0; i < kit->checkpoint_count && status == 0; i++)
        assert_int_equal(kit_state(kit, kit->checkpoints[i]->id.name), CHECKPOINT_INVALID);
    if (status < 0)
        assert_non_null(strstr(said, "fleece checkpoint reset"));
    kit_leave(kit);
}

/* Blocks in which something is: header, superblocks, log, and the pages of three areas. */
static unsigned used_blocks(const uint8_t *bytes, uint64_t size, uint64_t *blocks)
{
    unsigned count = 0;
    for (uint64_t at = 0; at < size; at += KIT_BLOCK)
        if (bytes[at] || memcmp(bytes + at, bytes + at + 1, KIT_BLOCK - 1))
            blocks[count++] = at;
    return count;
}

static void every_byte_class_of_the_sidecar(void **state)
{
    (void)state;
    static const uint64_t places[] = {0,  5,   7,  12,
                                      16, 300, 511}; /* of a sector: sum, number, kind, sequence, payload */
    for (enum ending ending = CLOSED; ending < ENDINGS; ending++) {
        struct kit kit;
        uint64_t blocks[64];
        make_sidecar(&kit, ending);
        struct world_file *file = kit_sidecar(&kit);
        uint64_t size = world_file_size(file);
        uint8_t *whole = malloc(size);
        memcpy(whole, world_file_bytes(file), size);
        unsigned count = used_blocks(whole, size, blocks);
        assert_int_equal(count, 17 + 6);
        for (unsigned i = 0; i < count * 8; i++) {
            uint64_t offset = blocks[i / 8] + i % 8 * 512 + places[i % 7];
            uint8_t flipped = (uint8_t)(whole[offset] ^ (1 << i % 8));
            world_file_fill(file, offset, &flipped, 1);
            expect_noticed(&kit, offset);
            world_file_fill(file, 0, whole, size);
        }
        free(whole);
        kit_fini(&kit);
    }
}

/* ---- for the reader of docs/formats/sidecar.md */

static FILE *open_new(const char *folder, unsigned number, const char *ending)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%u.%s", folder, number, ending);
    FILE *file = fopen(path, "w");
    if (!file)
        fail_msg("cannot write '%s'", path);
    return file;
}

/* The sidecar as it is, then what the tracker makes of it. */
static void write_case(struct kit *kit, const char *folder, unsigned number)
{
    FILE *file = open_new(folder, number, "fleece");
    fwrite(world_file_bytes(kit_sidecar(kit)), 1, world_file_size(kit_sidecar(kit)), file);
    fclose(file);
    assert_int_equal(kit_start(kit), 0);
    assert_null(tracker_invalid_reason(kit->tracker));
    kit_judge(kit);
    for (unsigned i = 0; i < kit->checkpoint_count; i++) {
        const char *uuid = kit->checkpoints[i]->id.uuid;
        file = open_new(folder, number, uuid);
        for (uint64_t at = 0, next; at < KIT_DISK_BYTES; at = next) {
            struct range run;
            assert_int_equal(tracker_changed(kit->tracker, uuid, at, &run, &next), 0);
            for (uint64_t start = run.start; start < range_end(run); start += KIT_BLOCK)
                fprintf(file, "%llu %d\n", (unsigned long long)start, KIT_BLOCK);
        }
        fclose(file);
    }
}

static void write_sidecars(const char *folder)
{
    for (unsigned number = 0; number < 8; number++) {
        struct kit kit;
        kit_init(&kit, &(struct world_options){.seed = 70 + number, .power = true});
        kit.options.slots = LIMIT_TRACK_SLOTS_MIN;
        assert_int_equal(kit_start(&kit), 0);
        for (unsigned i = 0; i < 3; i++) {
            assert_int_equal(kit_checkpoint(&kit, (const char *[]){"a", "b", "c"}[i]), 0);
            for (unsigned w = 0; w < 60; w++)
                kit_write_now(&kit, world_below(kit.world, KIT_BLOCKS - 2), 2);
        }
        for (unsigned w = 0; w < KIT_WRITES; w++)
            kit_write(&kit, REQUEST_WRITE, world_below(kit.world, KIT_BLOCKS), 1);
        if (number < 2) {
            kit_stop(&kit);
        } else {
            world_run_for(kit.world, number * 30 * NS_PER_US);
            kit_power_loss(&kit);
        }
        write_case(&kit, folder, number);
        kit_stop(&kit);
        kit_fini(&kit);
    }
}

/* The bitmap of 64 GiB goes in steps, none of which holds up the reactor; also when the daemon is killed in the middle. */
static void a_span_goes_in_steps(void **state)
{
    (void)state;
    const uint64_t most = (uint64_t)LIMIT_BITMAP_STEP_CHUNKS * SPAN_PAGE_BYTES, bits = 64 * GIB / KIT_BLOCK;
    struct world *world = world_create(&(struct world_options){.seed = 1});
    struct io *io = world_reactor(world, "vda", 1);
    const struct io_shm_name name = {"/dev/shm/fleece-sim", "vda.track"};
    struct span_key key = {.disk_bytes = 64 * GIB, .granularity_shift = 12};
    struct span_memory memory;
    struct span span, other;
    struct error err;
    world_act_as(world, io);
    io_boot_id(io, key.boot_id);
    span_memory_init(&memory, io, &name, sidecar_pages(64 * GIB, 12));
    assert_int_equal(span_memory_create(&memory, &key, &err), 0);
    span_memory_settle(&memory);
    const uint64_t nothing = world_shm_bytes(world);
    assert_int_equal(span_create(&span, &memory, 3, 1), 0);
    assert_int_equal(span_grow(&span, 0, bits), 0);
    span_publish(&span);
    span_destroy(&span);
    assert_true(span_area_is_doomed(&memory, 3));
    unsigned steps = 0;
    for (uint64_t before = world_shm_bytes(world), now; span_memory_reap(&memory); before = now) {
        now = world_shm_bytes(world);
        assert_true(before - now <= most);
        if (++steps != 4)
            continue;
        span_memory_close(&memory, false); /* a kill: the next process goes on */
        assert_int_equal(span_memory_adopt(&memory, &key, &err), 0);
        assert_int_equal(span_adopt(&other, &memory, 3, 1), -ENOENT);
        span_memory_drop_others(&memory, (bool[SIDECAR_AREAS]){false});
        assert_true(span_area_is_doomed(&memory, 3));
    }
    assert_true(steps >= 8);
    assert_int_equal(world_shm_bytes(world), nothing);
    assert_int_equal(span_create(&span, &memory, 3, 2), 0);
    span_destroy(&span);
    span_memory_close(&memory, true);
    world_act_as(world, NULL);
    assert_int_equal(world_destroy(world, stderr), 0);
}

/* C19: a block device of the same number and size after a kill, which is another one, or has another medium. */
static void a_device_that_was_made_anew_is_noticed(void **state)
{
    (void)state;
    for (unsigned anew = 0; anew < 2; anew++) {
        struct kit kit;
        kit_init(&kit, &(struct world_options){.seed = 7});
        kit.instance = 7;
        assert_int_equal(kit_start(&kit), 0);
        assert_int_equal(kit_checkpoint(&kit, "a"), 0);
        kit_write_now(&kit, 5, 3);
        kit_kill(&kit);
        kit.instance += anew;
        assert_int_equal(kit_start(&kit), 0);
        assert_int_equal(kit_state(&kit, "a"), anew ? CHECKPOINT_INVALID : CHECKPOINT_COMMITTED);
        kit_stop(&kit);
        kit.instance++; /* in good order: the samples tell */
        assert_int_equal(kit_start(&kit), 0);
        assert_int_equal(kit_state(&kit, "a"), anew ? CHECKPOINT_INVALID : CHECKPOINT_COMMITTED);
        kit_stop(&kit);
        kit_fini(&kit);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_checkpoint_reports_what_was_written_since),
        cmocka_unit_test(writes_wait_for_one_block),
        cmocka_unit_test(deaths_during_recovery),
        cmocka_unit_test(memory_is_bounded_and_reported),
        cmocka_unit_test(every_byte_class_of_the_sidecar),
        cmocka_unit_test(a_span_goes_in_steps),
        cmocka_unit_test(a_device_that_was_made_anew_is_noticed),
        cmocka_unit_test(lives_of_all_kinds),
    };
    if (argc == 3 && strcmp(argv[1], "--write") == 0)
        write_sidecars(argv[2]);
    else if (argc == 3)
        for (uint64_t seed = strtoull(argv[1], NULL, 0); seed <= strtoull(argv[2], NULL, 0); seed++)
            lead_a_life(seed);
    return argc == 3 ? 0 : cmocka_run_group_tests(tests, NULL, NULL);
}
