/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A backup that is killed before and after each of its system calls, as far as its set is concerned; the snapshot is a
 * file. Whatever the moment: as soon as there is a plan, what was copied can be gone on with, even when the snapshot is
 * gone, and also when prune was run in between; at the end there is one point, and nothing else.
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
#include <unistd.h>

#include "kill_steps.h"
#include "set/resume.h"
#include "set_folder.h"

#define NOW UINT64_C(1795327545) /* 2026-11-22T06:05:45Z */
#define UUID "01234567-89ab-cdef-0123-456789abcdef"
#define SIZE MANIFEST_EXTENT_BYTES
#define CONTENT 7

static char snapshot[128], was_taken[128]; /* the last: there is or was a snapshot */
static struct resume_plan plan;            /* too large for the stack */

static int make_places(void **state)
{
    if (make_folder(state) < 0)
        return -1;
    snprintf(snapshot, sizeof snapshot, "%s/snapshot", folder);
    snprintf(was_taken, sizeof was_taken, "%s/was-taken", folder);
    return 0;
}

static bool exists(const char *file)
{
    return access(file, F_OK) == 0;
}

static void make_file(const char *file)
{
    close(open(file, O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
}

static int begin_anew(struct set *set, struct point **point, struct error *err)
{
    struct leftover_report report;
    char image[PATH_MAX];
    int status = point_begin(set, NOW, point, &report, err);
    make_file(snapshot);
    make_file(was_taken);
    memset(&plan, 0, sizeof plan);
    if (status == 0)
        status = point_add_disk(*point, "vda", MANIFEST_RAW, &plan.manifest.disks[0], image, sizeof image, err);
    plan.manifest.disks[0].size_bytes = SIZE;
    plan.manifest.disk_count = 1;
    plan.manifest.version = MANIFEST_VERSION;
    strcpy(plan.manifest.vm, "web1");
    strcpy(plan.snapshot_name, "backup-1");
    strcpy(plan.manifest.tool, "fleece 0.1.0");
    strcpy(plan.manifest.snapshot, UUID);
    point_time_format(plan.manifest.created, NOW);
    return status == 0 ? resume_plan_save(*point, &plan, err) : status;
}

/* The image, its log and its hashes. */
static int copy(struct point *point, struct error *err)
{
    struct manifest_disk *disk = &plan.manifest.disks[0];
    struct resume_log log;
    struct hashes hashes;
    uint32_t data = 0;
    bool already = false;
    uint64_t found = 0;
    char file[PATH_MAX];
    int status = hashes_init(&hashes, SIZE, false, err);
    if (status == 0)
        status = resume_log_open(point, disk, &hashes, &data, &already, &log, &found, err);
    point_file_path(point, disk->image, file, sizeof file);
    if (status == 0 && found == 0) {
        int fd = open(file, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        if (fd < 0 || pwrite(fd, (uint8_t[]){CONTENT}, 1, 0) != 1 || ftruncate(fd, SIZE) < 0 || fsync(fd) < 0)
            status = error_set(err, errno, "image");
        close(fd);
        hashes.sha256[0] = CONTENT;
        data = 4096;
        if (status == 0)
            status = resume_log_add(&log, &(struct copy_run){0, 1}, 1);
    }
    if (status == 0)
        status = point_note_image(point, disk, err);
    disk->data_bytes = data;
    unlinkat(point_folder(point), disk->hashes, 0);
    if (status == 0)
        status = point_write_hashes(point, disk, &hashes, err);
    resume_log_close(&log);
    hashes_fini(&hashes);
    return status;
}

/* What `fleece backup --resume` does. */
static int backup(struct error *err)
{
    struct leftover_report report;
    struct set *set;
    struct point *point = NULL;
    char left[UNFINISHED_NAME_BYTES], name[POINT_NAME_BYTES];
    int status = set_open_to_add(path, "web1", &set, err);
    if (status < 0)
        return status;
    if (resume_find(set, left, &plan, err) == 0)
        status = point_resume(set, left, plan.finished, NOW, &point, &report, err);
    else
        status = begin_anew(set, &point, err);
    if (status == 0 && !plan.finished) {
        if (!exists(snapshot)) /* nothing can be copied any more */
            status = error_set(err, ENOENT, "the snapshot is gone");
        if (status == 0)
            status = copy(point, err);
        if (status == 0)
            status = point_finish(point, &plan.manifest, err);
    }
    unlink(snapshot);
    if (status == 0)
        status = point_publish(point, &plan.manifest, name, err);
    set_close(set);
    return status;
}

/* What prune does before anything else. Returns how many unfinished points there still are. */
static unsigned sweep(void)
{
    struct set *set;
    struct error err;
    struct leftover_report report;
    if (set_open_to_prune(path, &set, &err) < 0)
        return 0; /* there is no set yet */
    leftover_sweep(set, "", true, &report);
    assert_int_equal(report.kept, 0);
    set_close(set);
    return report.resumable;
}

/* How many points are there; they are whole. */
static unsigned check(void)
{
    static struct manifest manifest;
    struct set *set;
    struct set_points points;
    struct error err;
    char image[PATH_MAX];
    if (set_open(path, &set, &err) < 0)
        return 0;
    assert_int_equal(set_points_list(set, &points, &err), 0);
    for (unsigned i = 0; i < points.count; i++) {
        struct hashes hashes;
        if (set_manifest_load(set, points.names[i], &manifest, &err) < 0 ||
            set_hashes_load(set, points.names[i], &manifest.disks[0], &hashes, &err) < 0 ||
            set_image_find(set, points.names[i], &manifest.disks[0], image, sizeof image, true, &err) < 0)
            fail_msg("%s", err.text);
        FILE *file = fopen(image, "r");
        assert_int_equal(fgetc(file), CONTENT);
        fclose(file);
        assert_int_equal(hashes.sha256[0], CONTENT);
        assert_int_equal(manifest.disks[0].data_bytes, 4096);
        hashes_fini(&hashes);
    }
    unsigned count = points.count;
    set_points_free(&points);
    set_close(set);
    return count;
}

static unsigned count_entries(const char *name)
{
    char full[PATH_MAX];
    snprintf(full, sizeof full, "%s/%s", path, name);
    DIR *entries = opendir(full);
    unsigned count = 0;
    while (entries && readdir(entries))
        count++;
    if (entries)
        closedir(entries);
    return count - 2;
}

static void killed_at_every_step(void **state)
{
    struct error err;
    unsigned stop = 1, finished = 0, unfinished = 0, tidied = 0;
    bool killed = true;
    if (!kill_steps_allowed())
        skip();
    for (; killed; stop++) {
        char file[PATH_MAX];
        killed = kill_steps_run(backup, stop);
        unsigned visible = check();
        snprintf(file, sizeof file, "%s/2026-11-22T06:05:45Z/" RESUME_FILE, path);
        tidied += exists(file);
        unsigned resumable = sweep();
        assert_false(exists(file));
        assert_true(visible + resumable <= 1);
        if (exists(was_taken) && !exists(snapshot)) /* only one of these has the data now */
            assert_int_equal(visible + resumable, 1);
        if (resumable) {
            finished += !exists(snapshot);
            unfinished += exists(snapshot);
        }
        if (!visible && backup(&err) < 0)
            fail_msg("killed at stop %u, and then: %s", stop, err.text);
        assert_int_equal(check(), 1);
        assert_int_equal(sweep(), 0);
        assert_int_equal(count_entries(""), 2); /* with fleece.json */
        assert_int_equal(count_entries("2026-11-22T06:05:45Z"), 3);
        remove_folder(state);
        make_places(state);
    }
    assert_true(finished > 2 && unfinished > 40 && tidied > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(killed_at_every_step, make_places, remove_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
