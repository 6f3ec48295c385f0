/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What lets an interrupted backup go on: the plan is read back as it was, and of a log everything up to the first wrong
 * line. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "set/json_file.h"
#include "set/resume.h"
#include "set_folder.h"

#define NOW UINT64_C(1795327545)
#define EXTENTS 2000
#define SIZE (EXTENTS * MIB)

static struct resume_plan *make_plan(void)
{
    struct resume_plan *plan = calloc(1, sizeof *plan);
    struct manifest *manifest = &plan->manifest;
    strcpy(plan->snapshot_name, "backup-01234567");
    manifest->version = MANIFEST_VERSION;
    strcpy(manifest->vm, "web1");
    strcpy(manifest->tool, "fleece 0.1.0");
    strcpy(manifest->created, "2026-11-22T06:05:45Z");
    strcpy(manifest->snapshot, "01234567-89ab-cdef-0123-456789abcdef");
    strcpy(manifest->checkpoint.name, "fleece-x");
    strcpy(manifest->checkpoint.uuid, "11111111-89ab-cdef-0123-456789abcdef");
    manifest->disk_count = 2;
    for (unsigned i = 0; i < 2; i++) {
        struct manifest_disk *disk = &manifest->disks[i];
        snprintf(disk->name, sizeof disk->name, "vd%c", 'a' + i);
        snprintf(disk->image, sizeof disk->image, "vd%c.qcow2", 'a' + i);
        snprintf(disk->hashes, sizeof disk->hashes, "vd%c.sha256", 'a' + i);
        disk->size_bytes = SIZE;
        disk->format = MANIFEST_QCOW2;
    }
    manifest->disks[1].incremental = true;
    strcpy(manifest->disks[1].parent.point, "2026-11-21T06:05:45Z");
    strcpy(manifest->disks[1].parent.snapshot, "22222222-89ab-cdef-0123-456789abcdef");
    strcpy(manifest->disks[0].reason, "the disk is new");
    return plan;
}

/* A set that is open to add, with an unfinished point in it. */
static void begin(struct set **set, struct point **point)
{
    struct leftover_report report;
    struct error err;
    if (set_open_to_add(path, "web1", set, &err) < 0 || point_begin(*set, NOW, point, &report, &err) < 0)
        fail_msg("%s", err.text);
}

static void plans_are_found(void **state)
{
    (void)state;
    struct set *set;
    struct point *point;
    struct error err;
    struct leftover_report report;
    struct resume_plan *plan = make_plan(), *found = calloc(1, sizeof *found);
    char left[UNFINISHED_NAME_BYTES];
    begin(&set, &point);
    assert_int_equal(resume_find(set, left, found, &err), -ENOENT);
    assert_non_null(strstr(err.text, "no interrupted backup that can go on"));
    assert_int_equal(resume_plan_save(point, plan, &err), 0);
    point_leave(point);
    set_close(set); /* the set stays, without any point */

    assert_int_equal(set_open_to_add(path, "web1", &set, &err), 0);
    assert_int_equal(resume_find(set, left, found, &err), 0);
    assert_string_equal(found->snapshot_name, plan->snapshot_name);
    assert_string_equal(found->manifest.snapshot, plan->manifest.snapshot);
    assert_string_equal(found->manifest.checkpoint.uuid, plan->manifest.checkpoint.uuid);
    assert_string_equal(found->manifest.disks[1].parent.point, plan->manifest.disks[1].parent.point);
    assert_string_equal(found->manifest.disks[0].reason, plan->manifest.disks[0].reason);
    assert_int_equal(point_resume(set, left, false, NOW + 60, &point, &report, &err), 0);
    char who[256];
    leftover_describe_owner(set, who, sizeof who);
    assert_non_null(strstr(who, "since 2026-11-22T06:06:45Z")); /* it is ours now */
    point_leave(point);
    /* Whoever does not go on with it removes it as a whole. */
    assert_int_equal(point_begin(set, NOW, &point, &report, &err), 0);
    assert_int_equal(report.removed, 1);
    assert_int_equal(report.kept, 0);
    assert_int_equal(resume_find(set, left, found, &err), -ENOENT);
    point_abandon(point);
    set_close(set);
    free(plan);
    free(found);
}

static void refuse(json_t *json, const char *words)
{
    static struct resume_plan plan;
    struct error err;
    assert_true(resume_plan_from_json(json, &plan, &err) < 0);
    if (!strstr(err.text, words))
        fail_msg("'%s' does not say '%s'", err.text, words);
}

static void wrong_plans_are_refused(void **state)
{
    (void)state;
    struct resume_plan *plan = make_plan(), found;
    struct error err;
    json_t *json = resume_plan_to_json(plan), *manifest = json_object_get(json, "manifest");
    assert_int_equal(resume_plan_from_json(json, &found, &err), 0);
    json_object_set_new(json, "version", json_integer(2));
    refuse(json, "it has version 2; this fleece reads version 1");
    json_object_set_new(json, "version", json_integer(1));
    json_object_set_new(json, "snapshot-name", json_integer(1));
    refuse(json, "'snapshot-name' is not a text");
    json_object_set_new(json, "snapshot-name", json_string("x"));
    json_object_set_new(manifest, "vm", json_string("web2"));
    refuse(json, "it is damaged");
    json_object_set_new(json, "manifest", json_integer(1));
    refuse(json, "'manifest' is not an object");
    json_object_set_new(json, "format", json_string("x"));
    refuse(json, "'format' is 'x', not 'fleece-backup-resume'");
    json_decref(json);
    free(plan);
}

struct disk {
    struct manifest_disk disk;
    struct hashes hashes;
    uint32_t data[EXTENTS];
    bool already[EXTENTS];
    struct resume_log log;
    uint64_t found;
};

static struct disk *open_log(struct point *point, bool incremental)
{
    struct disk *disk = calloc(1, sizeof *disk);
    struct error err;
    strcpy(disk->disk.name, "vda");
    assert_int_equal(hashes_init(&disk->hashes, SIZE, incremental, &err), 0);
    if (resume_log_open(point, &disk->disk, &disk->hashes, disk->data, disk->already, &disk->log, &disk->found, &err) <
        0)
        fail_msg("%s", err.text);
    return disk;
}

static void close_log(struct disk *disk)
{
    resume_log_close(&disk->log);
    hashes_fini(&disk->hashes);
    free(disk);
}

/* What is noted of extent `i`. */
static void fill(struct disk *disk, uint64_t i, int kind)
{
    memset(disk->hashes.sha256 + i * COPY_HASH_BYTES, kind, COPY_HASH_BYTES);
    if (disk->hashes.masks)
        memset(disk->hashes.masks + i * COPY_MASK_BYTES, kind + 1, COPY_MASK_BYTES);
    disk->data[i] = (uint32_t)kind * 4096;
}

static void check(const struct disk *disk, uint64_t i, int kind)
{
    assert_true(disk->already[i]);
    assert_int_equal(disk->hashes.sha256[i * COPY_HASH_BYTES], kind);
    if (disk->hashes.masks)
        assert_int_equal(disk->hashes.masks[(i + 1) * COPY_MASK_BYTES - 1], kind + 1);
    assert_int_equal(disk->data[i], kind * 4096);
}

/* Adds extents [5, 1005), of which all but one are alike, and [1500, 1502). */
static void add_some(struct disk *disk)
{
    const struct copy_run runs[] = {{5, 1000}, {1500, 2}};
    for (uint64_t i = 5; i < 1005; i++)
        fill(disk, i, i == 700 ? 9 : 3);
    fill(disk, 1500, 7);
    fill(disk, 1501, 8);
    assert_int_equal(resume_log_add(&disk->log, runs, 2), 0);
}

static void check_some(const struct disk *disk)
{
    assert_int_equal(disk->found, 1002);
    check(disk, 5, 3);
    check(disk, 700, 9);
    check(disk, 1004, 3);
    check(disk, 1500, 7);
    check(disk, 1501, 8);
    assert_false(disk->already[4] || disk->already[1005] || disk->already[1499] || disk->already[1502]);
}

static void logs_go_on(void **state)
{
    (void)state;
    struct set *set;
    struct point *point;
    begin(&set, &point);
    for (int incremental = 0; incremental < 2; incremental++) {
        struct disk *disk = open_log(point, incremental);
        assert_int_equal(disk->found, 0);
        add_some(disk);
        assert_true(lseek(disk->log.file, 0, SEEK_END) < 5 * RESUME_LINE_BYTES); /* runs are one line */
        close_log(disk);
        disk = open_log(point, incremental);
        check_some(disk);
        fill(disk, 1999, 4);
        assert_int_equal(resume_log_add(&disk->log, &(struct copy_run){1999, 1}, 1), 0);
        close_log(disk);
        disk = open_log(point, incremental);
        assert_int_equal(disk->found, 1003);
        check(disk, 1999, 4);
        assert_int_equal(unlinkat(point_folder(point), "vda.resume", 0), 0);
        close_log(disk);
    }
    point_abandon(point);
    set_close(set);
}

/* Every length of the file, and every byte changed: what is taken is what was written, up to there. */
static void damage_ends_it(void **state)
{
    (void)state;
    struct set *set;
    struct point *point;
    char text[5 * RESUME_LINE_BYTES];
    begin(&set, &point);
    struct disk *disk = open_log(point, true);
    add_some(disk);
    ssize_t length = pread(disk->log.file, text, sizeof text, 0);
    close_log(disk);
    for (ssize_t i = 0; i < 2 * length; i++) {
        int file = openat(point_folder(point), "vda.resume", O_WRONLY | O_TRUNC | O_CLOEXEC);
        char changed[sizeof text];
        memcpy(changed, text, sizeof text);
        if (i >= length)
            changed[i - length] ^= 1 << i % 8;
        ssize_t part = i < length ? i : length;
        assert_int_equal(write(file, changed, (size_t)part), part);
        close(file);
        disk = open_log(point, true);
        assert_true(disk->found < 1002);
        for (uint64_t extent = 0; extent < EXTENTS; extent++)
            if (disk->already[extent])
                check(disk, extent, extent == 1500 ? 7 : extent == 1501 ? 8 : extent == 700 ? 9 : 3);
        add_some(disk); /* behind what was right */
        close_log(disk);
        disk = open_log(point, true);
        check_some(disk);
        close_log(disk);
    }
    point_abandon(point);
    set_close(set);
}

static void wrong_lines_are_refused(void **state)
{
    (void)state;
    struct resume_line line = {12, 3, 4096, {1}, {2}}, found;
    char text[RESUME_LINE_BYTES], longer[2 * RESUME_LINE_BYTES] = "0";
    size_t length = resume_line_make(text, &line);
    assert_true(resume_line_parse(text, length, &found));
    assert_true(found.first == 12 && found.count == 3 && found.data == 4096 && found.mask[0] == 1 &&
                found.sha256[0] == 2);
    assert_false(resume_line_parse(text, length - 1, &found));
    assert_false(resume_line_parse(text, 0, &found));
    memcpy(longer + 1, text, length); /* the same numbers, in another way */
    assert_false(resume_line_parse(longer, length + 1, &found));
    memset(longer, '1', sizeof longer);
    assert_false(resume_line_parse(longer, sizeof longer, &found));
    line.count = 0;
    assert_false(resume_line_parse(text, resume_line_make(text, &line), &found));
    /* Right in itself, but not about this disk. */
    struct set *set;
    struct point *point;
    const struct resume_line others[] = {
        {EXTENTS, 1, 0, {0}, {0}}, {EXTENTS - 1, 2, 0, {0}, {0}}, {0, 1, MIB + 1, {0}, {0}}};
    begin(&set, &point);
    for (unsigned i = 0; i < 3; i++) {
        int file = openat(point_folder(point), "vda.resume", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        length = resume_line_make(text, &others[i]);
        assert_int_equal(write(file, text, length), length);
        close(file);
        struct disk *disk = open_log(point, false);
        assert_int_equal(disk->found, 0);
        close_log(disk);
    }
    point_abandon(point);
    set_close(set);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(plans_are_found, make_folder, remove_folder),
        cmocka_unit_test(wrong_plans_are_refused),
        cmocka_unit_test_setup_teardown(logs_go_on, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(damage_ends_it, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(wrong_lines_are_refused, make_folder, remove_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
