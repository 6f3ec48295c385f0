/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Points of a set that are made anew, and that go: in a real folder, killed before and after each system call. Whatever the
 * moment, each point that is there is whole, and the next run completes the work.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kill_steps.h"
#include "set/point.h"
#include "set_folder.h"

#define NOW UINT64_C(1795327545) /* 2026-11-22T06:05:45Z */
#define OLD "2026-11-22T06:05:45Z"
#define NEW "2026-11-22T07:05:45Z"
#define SIZE MANIFEST_EXTENT_BYTES

static struct manifest manifest; /* too large for the stack */

static int add_disk(struct point *point, const char *name, uint8_t content, struct error *err)
{
    struct manifest_disk *disk = &manifest.disks[manifest.disk_count++];
    struct hashes hashes = {0};
    char image[PATH_MAX];
    int status = point_add_disk(point, name, MANIFEST_QCOW2, disk, image, sizeof image, err);
    disk->size_bytes = SIZE;
    if (status == 0)
        status = hashes_init(&hashes, SIZE, false, err);
    FILE *file = status == 0 ? fopen(image, "w") : NULL;
    if (status == 0 && (!file || fputc(content, file) == EOF || fclose(file) != 0))
        status = error_set(err, EIO, "image");
    if (status == 0) {
        hashes.sha256[0] = content;
        status = point_write_hashes(point, disk, &hashes, err);
    }
    hashes_fini(&hashes);
    return status;
}

static void add_point(uint64_t time, uint8_t content)
{
    struct set *set;
    struct point *point;
    struct leftover_report report;
    struct error err;
    char name[POINT_NAME_BYTES];
    assert_int_equal(set_open_to_add(path, "web1", &set, &err), 0);
    assert_int_equal(point_begin(set, NOW, &point, &report, &err), 0);
    memset(&manifest, 0, sizeof manifest);
    assert_int_equal(add_disk(point, "vda", content, &err), 0);
    assert_int_equal(add_disk(point, "vdb", content, &err), 0);
    point_time_format(manifest.created, time);
    strcpy(manifest.snapshot, "01234567-89ab-cdef-0123-456789abcdef");
    if (point_publish(point, &manifest, name, &err) < 0)
        fail_msg("%s", err.text);
    set_close(set);
}

/* Makes NEW anew, with another vda and the same vdb; then removes OLD. */
static int prune(struct error *err)
{
    struct set *set;
    struct point *point = NULL;
    struct leftover_report report;
    char name[POINT_NAME_BYTES];
    int status = set_open_to_prune(path, &set, err);
    if (status < 0)
        return status;
    status = set_manifest_load(set, NEW, &manifest, err);
    if (status == 0)
        status = point_begin(set, NOW, &point, &report, err);
    if (status == 0) {
        struct manifest_disk other = manifest.disks[1];
        manifest.disk_count = 0;
        status = add_disk(point, "vda", 9, err);
        manifest.disks[manifest.disk_count++] = other;
    }
    if (status == 0)
        status = point_link_disk(point, NEW, &manifest.disks[1], err);
    if (status == 0)
        status = point_replace(point, &manifest, NEW, err);
    if (status == 0 && set_point_find(set, OLD, name, err) == 0)
        status = point_remove(set, OLD, err);
    set_close(set);
    return status;
}

static uint8_t content_of(const struct set *set, const char *point, const struct manifest_disk *disk)
{
    struct error err;
    struct hashes hashes;
    char image[PATH_MAX];
    if (set_hashes_load(set, point, disk, &hashes, &err) < 0 ||
        set_image_find(set, point, disk, image, sizeof image, true, &err) < 0)
        fail_msg("%s", err.text);
    uint8_t hash = hashes.sha256[0];
    hashes_fini(&hashes);
    FILE *file = fopen(image, "r");
    assert_int_equal(fgetc(file), hash); /* image and hashes belong together */
    fclose(file);
    return hash;
}

/* Every point is whole. Returns the content of vda of the new one; *count: of points. */
static uint8_t check(unsigned *count)
{
    struct set *set;
    struct set_points points;
    struct error err;
    uint8_t content = 0;
    assert_int_equal(set_open(path, &set, &err), 0);
    assert_int_equal(set_points_list(set, &points, &err), 0);
    for (unsigned i = 0; i < points.count; i++) {
        if (set_manifest_load(set, points.names[i], &manifest, &err) < 0)
            fail_msg("%s", err.text);
        assert_int_equal(manifest.disk_count, 2);
        content = content_of(set, points.names[i], &manifest.disks[0]);
        assert_int_equal(content_of(set, points.names[i], &manifest.disks[1]), i == points.count - 1 ? 2 : 1);
    }
    assert_string_equal(points.names[points.count - 1], NEW);
    *count = points.count;
    set_points_free(&points);
    set_close(set);
    return content;
}

static unsigned count_entries(void)
{
    DIR *entries = opendir(path);
    unsigned count = 0;
    while (readdir(entries))
        count++;
    closedir(entries);
    return count - 2;
}

static void a_point_is_made_anew(void **state)
{
    (void)state;
    struct error err;
    unsigned count;
    add_point(NOW, 1);
    add_point(NOW + 3600, 2);
    assert_int_equal(check(&count), 2);
    if (prune(&err) < 0)
        fail_msg("%s", err.text);
    assert_int_equal(check(&count), 9);
    assert_int_equal(count, 1);
    assert_int_equal(count_entries(), 2); /* with fleece.json */
}

static void killed_at_every_step(void **state)
{
    struct error err;
    unsigned stop = 1, count, olds = 0, news = 0;
    bool killed = true;
    if (!kill_steps_allowed())
        skip();
    for (; killed; stop++) {
        add_point(NOW, 1);
        add_point(NOW + 3600, 2);
        killed = kill_steps_run(prune, stop);
        uint8_t content = check(&count);
        assert_true(content == 2 || content == 9);
        assert_true(count == 2 || content == 9); /* the old one goes last */
        olds += content == 2;
        news += content == 9;
        if (prune(&err) < 0)
            fail_msg("killed at stop %u, and then: %s", stop, err.text);
        assert_int_equal(check(&count), 9);
        assert_int_equal(count, 1);
        assert_int_equal(count_entries(), 2);
        remove_folder(state);
        make_folder(state);
    }
    assert_true(stop > 100 && olds > 20 && news > 20);
}

/* Whoever reads is not surprised, and what is not ours stays. */
static void others_are_in_the_way(void **state)
{
    (void)state;
    struct error err;
    struct set *reader, *second;
    char name[PATH_MAX];
    unsigned count;
    add_point(NOW, 1);
    add_point(NOW + 3600, 2);
    assert_int_equal(set_open(path, &reader, &err), 0);
    assert_int_equal(set_begin_reading(reader, &err), 0);
    assert_int_equal(prune(&err), -EBUSY);
    assert_non_null(strstr(err.text, "is being read"));
    set_close(reader);
    assert_int_equal(set_open_to_prune(path, &second, &err), 0);
    assert_int_equal(set_open(path, &reader, &err), 0);
    assert_int_equal(set_begin_reading(reader, &err), -EBUSY);
    assert_non_null(strstr(err.text, "is being pruned"));
    set_close(reader);
    assert_int_equal(prune(&err), -EBUSY);
    assert_non_null(strstr(err.text, "is running"));
    assert_int_equal(set_open_to_add(path, "web1", &reader, &err), -EBUSY);
    set_close(second);
    snprintf(name, sizeof name, "%s/%s/notes.txt", path, OLD);
    fclose(fopen(name, "w"));
    assert_int_equal(prune(&err), -EEXIST);
    assert_non_null(strstr(err.text, "point " OLD " of '"));
    assert_non_null(strstr(err.text, "it holds 'notes.txt', which no backup makes"));
    assert_int_equal(check(&count), 9);
    assert_int_equal(count, 2);
    assert_int_equal(access(name, F_OK), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_point_is_made_anew, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(killed_at_every_step, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(others_are_in_the_way, make_folder, remove_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
