/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The life of a backup set in a real folder: making it, adding points, who may, what a killed process leaves. The last is
 * driven through every moment: a child that adds a point is traced, and killed before and after each of its system calls.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "job/copy.h"
#include "kill_steps.h"
#include "set/leftover.h"
#include "set/point.h"
#include "set_folder.h"

#define NOW UINT64_C(1795327545) /* 2026-11-22T06:05:45Z */

static void write_file(const char *name, const char *text)
{
    char full[PATH_MAX];
    snprintf(full, sizeof full, "%s/%s", path, name);
    FILE *file = fopen(full, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static bool exists(const char *name)
{
    char full[PATH_MAX];
    snprintf(full, sizeof full, "%s/%s", path, name);
    return access(full, F_OK) == 0;
}

static unsigned count_entries(const char *prefix)
{
    DIR *entries = opendir(path);
    const struct dirent *entry;
    unsigned count = 0;
    while (entries && (entry = readdir(entries)) != NULL)
        count += strncmp(entry->d_name, prefix, strlen(prefix)) == 0 && strcmp(entry->d_name, ".") != 0 &&
                 strcmp(entry->d_name, "..") != 0;
    if (entries)
        closedir(entries);
    return count;
}

/* Adds a point with one disk, as a backup does; any error ends it with that. */
static int add_point(const char *vm, char *name, struct leftover_report *report, struct error *err)
{
    struct set *set;
    struct point *point = NULL;
    static struct manifest manifest;
    char image[PATH_MAX];
    struct hashes hashes;
    int status = set_open_to_add(path, vm, &set, err);
    if (status < 0)
        return status;
    memset(&manifest, 0, sizeof manifest);
    status = point_begin(set, NOW, &point, report, err);
    if (status == 0)
        status = point_add_disk(point, "vda", MANIFEST_RAW, &manifest.disks[0], image, sizeof image, err);
    if (status == 0) {
        int fd = open(image, O_WRONLY | O_CREAT | O_EXCL, 0600);
        manifest.disks[0].size_bytes = 2 * MIB + 5;
        if (fd < 0 || ftruncate(fd, 2 * MIB + 5) < 0 || close(fd) < 0)
            status = error_set(err, errno, "image");
    }
    if (status == 0 && (status = hashes_init(&hashes, 2 * MIB + 5, false, err)) == 0) {
        memcpy(hashes.sha256, (uint8_t[]){1, 2, 3}, 3);
        status = point_write_hashes(point, &manifest.disks[0], &hashes, err);
        hashes_fini(&hashes);
    }
    if (status == 0) {
        manifest.disk_count = 1;
        point_time_format(manifest.created, NOW);
        strcpy(manifest.snapshot, "01234567-89ab-cdef-0123-456789abcdef");
        status = point_publish(point, &manifest, name, err);
    }
    if (status < 0 && point)
        point_abandon(point);
    set_close(set);
    return status;
}

/* All points of the set are whole. Returns how many there are. */
static unsigned check_points(void)
{
    struct set *set;
    struct set_points points;
    static struct manifest manifest;
    struct error err;
    char image[PATH_MAX];
    struct hashes hashes;
    if (set_open(path, &set, &err) < 0)
        return 0;
    assert_int_equal(set_points_list(set, &points, &err), 0);
    unsigned count = points.count;
    for (unsigned i = 0; i < count; i++) {
        if (set_manifest_load(set, points.names[i], &manifest, &err) < 0 ||
            set_hashes_load(set, points.names[i], &manifest.disks[0], &hashes, &err) < 0)
            fail_msg("%s", err.text);
        assert_int_equal(hashes.sha256[2], 3);
        hashes_fini(&hashes);
        if (set_image_find(set, points.names[i], &manifest.disks[0], image, sizeof image, true, &err) < 0)
            fail_msg("%s", err.text);
    }
    set_points_free(&points);
    set_close(set);
    return count;
}

static void points_are_added(void **state)
{
    (void)state;
    struct error err;
    struct leftover_report report;
    char name[POINT_NAME_BYTES];
    assert_int_equal(add_point("web1", name, &report, &err), 0);
    assert_string_equal(name, "2026-11-22T06:05:45Z");
    assert_int_equal(add_point("web1", name, &report, &err), 0);
    assert_string_equal(name, "2026-11-22T06:05:45Z-2");
    assert_int_equal(check_points(), 2);
    assert_int_equal(count_entries(""), 3); /* with fleece.json: nothing else is there */

    struct set *set;
    assert_int_equal(set_open(path, &set, &err), 0);
    assert_string_equal(set_vm(set), "web1");
    assert_int_equal(strlen(set_id(set)), UUID_TEXT_BYTES - 1);
    assert_int_equal(set_point_find(set, "latest", name, &err), 0);
    assert_string_equal(name, "2026-11-22T06:05:45Z-2");
    assert_int_equal(set_point_find(set, "2026-11-22T06:05:45Z", name, &err), 0);
    assert_string_equal(name, "2026-11-22T06:05:45Z");
    assert_int_equal(set_point_find(set, "2026-11-22T06:05:46Z", name, &err), -ENOENT);
    assert_non_null(strstr(err.text, "has no point '2026-11-22T06:05:46Z'"));
    set_close(set);
}

static void refused(const char *vm, int status, const char *words)
{
    struct error err = {0};
    struct leftover_report report;
    char name[POINT_NAME_BYTES];
    assert_int_equal(add_point(vm, name, &report, &err), status);
    if (!strstr(err.text, words))
        fail_msg("'%s' does not say '%s'", err.text, words);
}

static void strange_folders_are_refused(void **state)
{
    (void)state;
    struct error err;
    struct set *set;
    assert_int_equal(set_open(path, &set, &err), -ENOENT);
    assert_non_null(strstr(err.text, "no such folder"));
    mkdir(path, 0700);
    assert_int_equal(set_open(path, &set, &err), -ENOENT);
    assert_non_null(strstr(err.text, "it has no fleece.json"));
    write_file("notes.txt", "mine");
    refused("web1", -ENOTEMPTY, "neither a backup set nor empty: it has no fleece.json, but 'notes.txt'");
    assert_int_equal(count_entries(""), 1);
    write_file("fleece.json", "");
    refused("web1", -ENOTEMPTY, "notes.txt");
    write_file("fleece.json", "{\"format\":\"fleece-backup-set\",\"version\":9,\"vm\":\"web1\"}");
    refused("web1", -ENOTSUP, "fleece.json: it has version 9; this fleece reads versions 1 to 2");
    write_file("fleece.json", "{\"format\":\"fleece-backup-set\",\"version\":1,\"vm\":\"web2\"}");
    refused("web1", -EEXIST, "is of VM 'web2', not of 'web1'");
    write_file("fleece.json", "{\"format\":\"x\"}");
    refused("web1", -EINVAL, "fleece.json: the field 'format' is 'x'");
    write_file("fleece.json", "\xff\xfe");
    refused("web1", -EINVAL, "fleece.json: it is not JSON");
    assert_int_equal(count_entries(""), 2);
    strcat(path, "/notes.txt");
    refused("web1", -ENOTDIR, "it is not a folder");
    strcat(path, "/x");
    refused("web1", -ENOTDIR, "can't make the folder");
}

static void the_first_version_grows_up(void **state)
{
    (void)state;
    struct error err;
    struct set *set;
    char id[UUID_TEXT_BYTES], name[POINT_NAME_BYTES];
    struct leftover_report report;
    mkdir(path, 0700);
    write_file("fleece.json", "{\"format\":\"fleece-backup-set\",\"version\":1,\"vm\":\"web1\"}");
    assert_int_equal(set_open(path, &set, &err), 0);
    assert_string_equal(set_id(set), ""); /* reading changes nothing */
    set_close(set);
    assert_int_equal(set_open_to_add(path, "web1", &set, &err), 0);
    strcpy(id, set_id(set));
    assert_int_equal(strlen(id), UUID_TEXT_BYTES - 1);
    refused("web1", -EBUSY, "another backup into"); /* the file that is there now is locked, too */
    set_close(set);
    assert_true(exists("fleece.json")); /* whose set it is stays, also without a new point */
    assert_int_equal(count_entries(""), 1);
    write_file("fleece.json.new", "what a crash left");
    assert_int_equal(add_point("web1", name, &report, &err), 0);
    assert_int_equal(set_open(path, &set, &err), 0);
    assert_string_equal(set_id(set), id);
    set_close(set);
    write_file("fleece.json", "{\"format\":\"fleece-backup-set\",\"version\":2,\"vm\":\"web1\",\"id\":\"x\"}");
    refused("web1", -EINVAL, "fleece.json: the field 'id' is 'x', not a UUID");
}

static void one_at_a_time(void **state)
{
    (void)state;
    struct error err;
    struct leftover_report report;
    struct set *set;
    struct point *point;
    char words[64];
    assert_int_equal(set_open_to_add(path, "web1", &set, &err), 0);
    refused("web1", -EBUSY, "another backup into");
    assert_int_equal(point_begin(set, NOW, &point, &report, &err), 0);
    snprintf(words, sizeof words, "(process %d on host ", getpid());
    refused("web1", -EBUSY, words);
    refused("web1", -EBUSY, "since 2026-11-22T06:05:45Z)");
    assert_int_equal(count_entries(UNFINISHED_PREFIX), 1);
    point_abandon(point);
    assert_int_equal(count_entries(UNFINISHED_PREFIX), 0);
    set_close(set);
    assert_false(exists("")); /* it was made for this backup and got no point */
    char name[POINT_NAME_BYTES];
    assert_int_equal(add_point("web1", name, &report, &err), 0);
}

static void make_leftover(const char *name, const char *manifest, const char *file)
{
    char full[PATH_MAX];
    snprintf(full, sizeof full, "%s/%s", path, name);
    assert_int_equal(mkdir(full, 0700), 0);
    if (manifest) {
        snprintf(full, sizeof full, "%s/manifest.json", name);
        write_file(full, manifest);
    }
    if (file) {
        snprintf(full, sizeof full, "%s/%s", name, file);
        write_file(full, "x");
    }
}

static void strangers_are_kept(void **state)
{
    (void)state;
    const char *mark = "{\"format\":\"fleece-backup-point\",\"state\":\"unfinished\"}";
    struct error err;
    struct leftover_report report;
    char name[POINT_NAME_BYTES];
    assert_int_equal(add_point("web1", name, &report, &err), 0);
    make_leftover(".tmp-0123456789abcd01", mark, "vda.raw"); /* ours */
    make_leftover(".tmp-0123456789abcd02", NULL, NULL);      /* killed after mkdir */
    make_leftover(".tmp-0123456789abcd03", "", NULL);        /* and after the file came into being */
    make_leftover(".tmp-0123456789abcd04", mark, "vda.qcow2");
    write_file(".tmp-0123456789abcd04/vda.resume", "x");
    write_file(".tmp-0123456789abcd04/resume.json", "x");
    make_leftover(".tmp-0123456789abcd05", NULL, "vda.raw"); /* not ours by any sign */
    make_leftover(".tmp-0123456789abcd06", "{\"x\":1}", NULL);
    make_leftover(".tmp-0123456789abcd07", mark, "notes.txt"); /* ours, with a stranger's file */
    make_leftover(".tmp-0123456789ABCD08", mark, NULL);        /* names that we do not make */
    make_leftover(".tmp-x", mark, NULL);
    make_leftover("tmp", NULL, "vda.raw");
    write_file(".tmp-0123456789abcd09", "a file");
    write_file("notes.txt", "a file");
    assert_int_equal(add_point("web1", name, &report, &err), 0);
    assert_int_equal(report.removed, 4);
    assert_int_equal(report.kept, 4);
    for (unsigned i = 1; i <= 4; i++) {
        char gone[32];
        snprintf(gone, sizeof gone, ".tmp-0123456789abcd%02u", i);
        assert_false(exists(gone));
    }
    assert_true(exists(".tmp-0123456789abcd05/vda.raw"));
    assert_true(exists(".tmp-0123456789abcd06/manifest.json"));
    assert_true(exists(".tmp-0123456789abcd07/notes.txt"));
    assert_true(exists(".tmp-0123456789abcd07/manifest.json"));
    assert_true(exists(".tmp-0123456789ABCD08/manifest.json"));
    assert_true(exists(".tmp-x/manifest.json"));
    assert_true(exists("tmp/vda.raw"));
    assert_true(exists(".tmp-0123456789abcd09"));
    assert_true(exists("notes.txt"));
    assert_int_equal(check_points(), 2);
}

static int add_one(struct error *err)
{
    struct leftover_report report;
    char name[POINT_NAME_BYTES];
    return add_point("web1", name, &report, err);
}

static void killed_at_every_step(void **state)
{
    struct error err;
    struct leftover_report report;
    char name[POINT_NAME_BYTES];
    if (!kill_steps_allowed())
        skip();
    for (unsigned with_set = 0; with_set < 3; with_set++) { /* no set, one, one of version 1 */
        unsigned stop = 1;
        bool left_something = false;
        for (;; stop++) {
            unsigned before = with_set > 0;
            if (with_set)
                assert_int_equal(add_point("web1", name, &report, &err), 0);
            if (with_set == 2)
                write_file("fleece.json", "{\"format\":\"fleece-backup-set\",\"version\":1,\"vm\":\"web1\"}");
            bool killed = kill_steps_run(add_one, stop);
            unsigned after = check_points(); /* every visible one is whole */
            if (after != before && after != before + 1)
                fail_msg("killed at stop %u: %u points of %u", stop, after, before);
            left_something |= count_entries(UNFINISHED_PREFIX) > 0;
            if (add_point("web1", name, &report, &err) < 0)
                fail_msg("killed at stop %u, and then: %s", stop, err.text);
            assert_int_equal(report.kept, 0);
            assert_int_equal(check_points(), after + 1);
            assert_int_equal(count_entries(UNFINISHED_PREFIX), 0);
            assert_int_equal(count_entries(""), after + 2);
            remove_folder(state);
            make_folder(state);
            if (!killed)
                break;
        }
        assert_true(left_something && stop > 50);
    }
}

static void damage_is_said(void **state)
{
    (void)state;
    struct error err;
    struct leftover_report report;
    struct set *set;
    static struct manifest manifest;
    char name[POINT_NAME_BYTES], file[256], image[PATH_MAX];
    struct hashes hashes;
    assert_int_equal(add_point("web1", name, &report, &err), 0);
    assert_int_equal(set_open(path, &set, &err), 0);
    assert_int_equal(set_manifest_load(set, name, &manifest, &err), 0);

    snprintf(file, sizeof file, "%s/%s/vda.sha256", path, name);
    FILE *stream = fopen(file, "r+");
    fputc('f', stream);
    fclose(stream);
    assert_int_equal(set_hashes_load(set, name, &manifest.disks[0], &hashes, &err), -EBADMSG);
    assert_non_null(strstr(err.text, "vda.sha256: it is damaged"));
    stream = fopen(file, "r+");
    fputc('x', stream);
    fclose(stream);
    assert_int_equal(set_hashes_load(set, name, &manifest.disks[0], &hashes, &err), -EBADMSG);
    assert_non_null(strstr(err.text, "line 1 is not a SHA-256"));
    assert_int_equal(truncate(file, 64), 0);
    assert_int_equal(set_hashes_load(set, name, &manifest.disks[0], &hashes, &err), -EBADMSG);
    assert_non_null(strstr(err.text, "it has not the 195 bytes"));
    unlink(file);
    assert_int_equal(set_hashes_load(set, name, &manifest.disks[0], &hashes, &err), -ENOENT);

    snprintf(file, sizeof file, "%s/%s/vda.raw", path, name);
    assert_int_equal(truncate(file, 5), 0);
    assert_int_equal(set_image_find(set, name, &manifest.disks[0], image, sizeof image, true, &err), -EBADMSG);
    assert_non_null(strstr(err.text, "it has 5 bytes, not 2097157"));
    unlink(file);
    assert_int_equal(set_image_find(set, name, &manifest.disks[0], image, sizeof image, true, &err), -ENOENT);
    assert_int_equal(symlink("/dev/zero", file), 0);
    assert_int_equal(set_image_find(set, name, &manifest.disks[0], image, sizeof image, true, &err), -EBADMSG);
    assert_non_null(strstr(err.text, "not a regular file"));

    snprintf(file, sizeof file, "%s/%s/manifest.json", path, name);
    unlink(file);
    assert_int_equal(set_manifest_load(set, name, &manifest, &err), -ENOENT);
    assert_non_null(strstr(err.text, "manifest.json: it can't be opened: No such file"));
    assert_int_equal(mkfifo(file, 0600), 0);
    assert_int_equal(set_manifest_load(set, name, &manifest, &err), -EINVAL);
    assert_non_null(strstr(err.text, "not a regular file"));
    unlink(file);
    stream = fopen(file, "w");
    assert_int_equal(ftruncate(fileno(stream), LIMIT_SET_JSON_BYTES + 1), 0);
    fclose(stream);
    assert_int_equal(set_manifest_load(set, name, &manifest, &err), -EFBIG);
    set_close(set);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(points_are_added, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(strange_folders_are_refused, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(the_first_version_grows_up, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(one_at_a_time, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(strangers_are_kept, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(killed_at_every_step, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(damage_is_said, make_folder, remove_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
