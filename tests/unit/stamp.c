// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The judge of stamped records: right images pass, and each kind of wrong one is found out. The run is made up here: times
 * count from 1, one step per event, so that a cut at time T is simply "all that was acknowledged at T".
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "check.h"
#include "sector.h"

enum { RECORD = 4096, SLOTS = 8, RECORDS = 20, IMAGE_BYTES = 2 * SLOTS * RECORD };

struct run {
    struct log_content content;
    char *images[2]; /* IMAGE_BYTES each */
    uint64_t clock;
};

static void run_write(struct run *run, uint32_t disk, uint32_t writer, uint64_t sequence)
{
    const struct log_plan *plan = &run->content.plan;
    uint64_t offset = log_plan_offset(plan, writer, sequence);
    for (uint32_t i = 0; i < plan->record_bytes / SECTOR_BYTES; i++) {
        struct sector sector = {.run = plan->run,
                                .offset_bytes = offset + i * SECTOR_BYTES,
                                .sequence = sequence,
                                .disk = disk,
                                .writer = writer};
        sector_seal(&sector);
        memcpy(run->images[disk] + offset + i * SECTOR_BYTES, &sector, sizeof(sector));
    }
}

/* Two disks, two writers each, all at the same pace, `in` records of each in the images; dependent if asked for. */
static void run_make(struct run *run, uint64_t in, bool dependent)
{
    *run = (struct run){.clock = 1};
    run->content.plan = (struct log_plan){.run = 42,
                                          .disks = 2,
                                          .writers = 2,
                                          .record_bytes = RECORD,
                                          .queue = 1,
                                          .dependent = dependent,
                                          .region_bytes = IMAGE_BYTES};
    assert_true(log_plan_finish(&run->content.plan));
    assert_int_equal(run->content.plan.slots, SLOTS);
    run->content.histories = calloc(4, sizeof(struct log_history));
    for (int i = 0; i < 2; i++)
        run->images[i] = calloc(1, IMAGE_BYTES);
    for (int i = 0; i < 4; i++) {
        struct log_history *history = &run->content.histories[i];
        history->count = history->room = RECORDS;
        history->issued_ns = calloc(RECORDS, sizeof(uint64_t));
        history->acknowledged_ns = calloc(RECORDS, sizeof(uint64_t));
    }
    for (uint64_t sequence = 1; sequence <= RECORDS; sequence++) {
        for (int i = 0; i < 4; i++) {
            run->content.histories[i].issued_ns[sequence - 1] = run->clock++;
            run->content.histories[i].acknowledged_ns[sequence - 1] = run->clock++;
            if (sequence <= in)
                run_write(run, (uint32_t)i / 2, (uint32_t)i % 2, sequence);
        }
    }
}

static void run_free(struct run *run)
{
    log_content_free(&run->content);
    free(run->images[0]);
    free(run->images[1]);
}

static int read_memory(void *context, uint32_t disk, void *buffer, uint64_t offset, uint64_t length)
{
    struct run *run = context;
    assert_true(offset + length <= IMAGE_BYTES);
    memcpy(buffer, run->images[disk] + offset, length);
    return 0;
}

/* The verdict on the images; what was told is compared with `expected` (NULL: nothing may be told). */
static bool judge(struct run *run, uint64_t before_ns, uint64_t after_ns, bool crashed, const char *expected)
{
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    struct check_options options = {.before_ns = before_ns,
                                    .after_ns = after_ns,
                                    .crashed = crashed,
                                    .out = out,
                                    .read = read_memory,
                                    .context = run};
    struct check_result result;
    bool good = check_run(&run->content, &options, &result);
    fclose(out);
    if (expected == NULL)
        assert_string_equal(text, "");
    else if (strstr(text, expected) == NULL)
        fail_msg("told \"%s\", not \"%s\"", text, expected);
    assert_int_equal(good, result.problems == 0);
    free(text);
    return good;
}

/* The time at which record n of the last lane was acknowledged: all n records of every lane are. */
static uint64_t done_at(uint64_t n)
{
    return 8 * n;
}

static void test_right_images(void **state)
{
    (void)state;
    for (uint64_t in = 0; in <= RECORDS; in++) {
        struct run run;
        run_make(&run, in, true);
        assert_true(judge(&run, done_at(in), done_at(in) + 1, false, NULL));
        run_free(&run);
    }
}

static void test_window(void **state)
{
    (void)state;
    struct run run;
    run_make(&run, 10, false);
    assert_false(judge(&run, done_at(11), UINT64_MAX, false, "record 11 of writer 0 is missing, but was acknowledged"));
    assert_false(judge(&run, 0, done_at(10) - 7, false, "record 10 of writer 0 is in, but was issued after the end"));
    run_free(&run);
}

static void test_lost_and_stale(void **state)
{
    (void)state;
    struct run run;
    run_make(&run, 12, false);
    run_write(&run, 1, 0, 4); /* the slot of record 12 goes back to what it was */
    assert_false(judge(&run, 0, UINT64_MAX, false, "not one instant: record 12 of writer 0 on disk 1"));
    run_free(&run);

    run_make(&run, 12, false);
    run_write(&run, 1, 0, 3); /* an earlier record of the same writer is lost */
    assert_false(judge(&run, 0, UINT64_MAX, false, "record 12 of writer 0 is in, but record 11 before it is not"));
    run_free(&run);

    run_make(&run, 6, false);
    memset(run.images[0] + log_plan_offset(&run.content.plan, 1, 2), 0, RECORD);
    assert_false(judge(&run, done_at(6), UINT64_MAX, false, "record 2 of writer 1 is missing"));
    run_free(&run);
}

static void test_skewed_disks(void **state)
{
    (void)state;
    struct run run;
    run_make(&run, 12, false);
    for (uint32_t writer = 0; writer < 2; writer++) /* the second disk was cut two records later */
        for (uint64_t sequence = 13; sequence <= 14; sequence++)
            run_write(&run, 1, writer, sequence);
    assert_false(judge(&run, 0, UINT64_MAX, false, "not one instant: record 13 of writer 0 on disk 0 is missing"));
    run_free(&run);

    run_make(&run, 12, true);
    run_write(&run, 1, 1, 13); /* the first disk has 12 only */
    assert_false(judge(&run, 0, UINT64_MAX, false, "dependent writes were reordered"));
    run_free(&run);
}

static void test_damage(void **state)
{
    (void)state;
    struct run run;
    run_make(&run, 12, false);
    uint64_t offset = log_plan_offset(&run.content.plan, 0, 12);
    run.images[0][offset + 512 + 100] ^= 1;
    assert_false(judge(&run, 0, UINT64_MAX, false, "the CRC of the sector is wrong"));
    run_free(&run);

    run_make(&run, 12, false);
    uint64_t other = log_plan_offset(&run.content.plan, 0, 11);
    memcpy(run.images[0] + offset, run.images[0] + other, RECORD);
    assert_false(judge(&run, 0, UINT64_MAX, false, "holds a sector of disk 0"));
    run_free(&run);

    run_make(&run, 12, false);
    memcpy(run.images[1] + offset, run.images[0] + offset, RECORD);
    assert_false(judge(&run, 0, UINT64_MAX, false, "holds a sector of disk 0"));
    run_free(&run);

    run_make(&run, 20, false);
    run_write(&run, 0, 0, 21);
    assert_false(judge(&run, 0, UINT64_MAX, false, "record 21 of writer 0 was never issued there"));
    run_free(&run);
}

static void test_torn(void **state)
{
    (void)state;
    char half[SECTOR_BYTES * 3];
    struct run run;
    run_make(&run, 19, false);
    uint64_t offset = log_plan_offset(&run.content.plan, 1, 20);
    memcpy(half, run.images[1] + offset, sizeof(half)); /* of record 12 */
    run_write(&run, 1, 1, 20);
    memcpy(run.images[1] + offset, half, sizeof(half));
    assert_false(judge(&run, 0, UINT64_MAX, false, "torn between the records 12 and 20"));
    assert_false(judge(&run, 0, UINT64_MAX, true, "torn between the records 12 and 20"));
    for (int i = 0; i < 4; i++)
        run.content.histories[i].acknowledged_ns[19] = UINT64_MAX;
    assert_true(judge(&run, UINT64_MAX - 1, UINT64_MAX, true, NULL));
    assert_false(judge(&run, 0, UINT64_MAX, false, "torn between the records 12 and 20"));
    run_free(&run);
}

/* Two records in flight may be in in any order; what was acknowledged before one was issued may not be missing. */
static void test_queue(void **state)
{
    (void)state;
    struct run run;
    run_make(&run, 0, false);
    run.content.plan.queue = 2;
    struct log_history *history = &run.content.histories[0];
    for (uint64_t i = 0; i < RECORDS; i++) {
        history->issued_ns[i] = 100 + i * 10;
        history->acknowledged_ns[i] = 100 + i * 10 + 15;
    }
    for (int i = 1; i < 4; i++)
        run.content.histories[i].count = 0;
    run_write(&run, 0, 0, 1);
    run_write(&run, 0, 0, 3); /* 2 is missing: it was in flight with 3 */
    assert_true(judge(&run, 115, UINT64_MAX, false, NULL));
    run_write(&run, 0, 0, 4); /* 2 had been acknowledged when 4 was issued */
    assert_false(judge(&run, 0, UINT64_MAX, false, "not one instant: record 2"));
    run_free(&run);
}

static void test_log_file(void **state)
{
    (void)state;
    char path[] = "/tmp/stamp-log-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    struct log_plan plan = {.run = 7,
                            .disks = 2,
                            .writers = 3,
                            .record_bytes = 512,
                            .queue = 4,
                            .region_start = 512,
                            .region_bytes = 1 << 20};
    assert_true(log_plan_finish(&plan));
    struct log *log = log_create(path, &plan);
    assert_non_null(log);
    const uint64_t many = 100000; /* more than a window of the mapping */
    for (uint64_t n = 1; n <= many; n++) {
        log_append(log, LOG_ISSUED, 1, 2, n);
        log_append(log, LOG_ACKNOWLEDGED, 1, 2, n);
    }
    log_append(log, LOG_ISSUED, 0, 0, 1);

    struct log_content content;
    char error[512];
    assert_true(log_load(path, &content, error, sizeof(error))); /* while it is written */
    assert_memory_equal(&content.plan, &plan, sizeof(plan));
    assert_int_equal(content.histories[5].count, many);
    assert_true(content.histories[5].acknowledged_ns[many - 1] >= content.histories[5].issued_ns[many - 1]);
    assert_int_equal(content.histories[0].count, 1);
    assert_true(content.histories[0].acknowledged_ns[0] == UINT64_MAX);
    log_content_free(&content);
    assert_int_equal(log_finish(log), 0);

    FILE *file = fopen(path, "r+");
    assert_non_null(file);
    assert_int_equal(fwrite("x", 1, 1, file), 1);
    fclose(file);
    assert_false(log_load(path, &content, error, sizeof(error)));
    assert_non_null(strstr(error, "is not a log of stamp"));
    log_content_free(&content);
    unlink(path);
}

/* The records of one turn around the slots go to different places, whatever their number. */
static void test_slots_are_a_permutation(void **state)
{
    (void)state;
    for (uint64_t slots = 2; slots < 300; slots++) {
        struct log_plan plan = {.writers = 1, .record_bytes = 512, .queue = 1, .region_bytes = slots * 512};
        assert_true(log_plan_finish(&plan));
        char seen[300] = {0};
        for (uint64_t n = 1; n <= slots; n++) {
            uint64_t slot = log_plan_offset(&plan, 0, n) / 512;
            assert_true(slot < slots);
            assert_int_equal(seen[slot]++, 0);
        }
    }
    struct log_plan tiny = {.writers = 4, .record_bytes = 4096, .queue = 8, .region_bytes = 64 << 10};
    assert_false(log_plan_finish(&tiny));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_right_images),
        cmocka_unit_test(test_window),
        cmocka_unit_test(test_lost_and_stale),
        cmocka_unit_test(test_skewed_disks),
        cmocka_unit_test(test_damage),
        cmocka_unit_test(test_torn),
        cmocka_unit_test(test_queue),
        cmocka_unit_test(test_log_file),
        cmocka_unit_test(test_slots_are_a_permutation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
