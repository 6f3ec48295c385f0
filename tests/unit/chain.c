/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Chains of images by their manifests, in a real folder: right ones, and each way in which one can be wrong. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "set/chain.h"
#include "set/point.h"

#define NOW UINT64_C(1795327545) /* 2026-11-22T06:05:45Z */
#define SIZE (2 * MANIFEST_EXTENT_BYTES)

static char folder[64]; /* of this test */
static char path[128];  /* folder/set */
static struct set *set;
static struct error err;

static int make_folder(void **state)
{
    (void)state;
    strcpy(folder, "/dev/shm/fleece-chain-XXXXXX");
    if (!mkdtemp(folder))
        return -1;
    snprintf(path, sizeof path, "%s/set", folder);
    return set_open_to_add(path, "web1", &set, &err);
}

static int remove_folder(void **state)
{
    (void)state;
    char command[128];
    set_close(set);
    snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

/* "00000000-0000-4000-8000-0000000000NN" */
static void make_uuid(char *uuid, unsigned number)
{
    snprintf(uuid, UUID_TEXT_BYTES, "00000000-0000-4000-8000-%012u", number);
}

static void make_time(char *time, unsigned hour)
{
    point_time_format(time, NOW + hour * UINT64_C(3600));
}

/* A point with one disk; `parent` < 0: full. Its snapshot has the number `snapshot`, and it says so of its parent. */
static void make_point(unsigned hour, unsigned snapshot, const char *disk_name, int parent, unsigned parent_snapshot)
{
    struct manifest *manifest = calloc(1, sizeof *manifest);
    struct manifest_disk *disk = &manifest->disks[0];
    struct leftover_report report;
    struct point *point;
    struct hashes hashes;
    char image[PATH_MAX], name[POINT_NAME_BYTES];
    assert_int_equal(point_begin(set, NOW, &point, &report, &err), 0);
    assert_int_equal(point_add_disk(point, disk_name, MANIFEST_QCOW2, disk, image, sizeof image, &err), 0);
    FILE *file = fopen(image, "w");
    assert_non_null(file);
    fclose(file);
    disk->size_bytes = SIZE;
    disk->incremental = parent >= 0;
    if (parent >= 0) {
        make_time(disk->parent.point, (unsigned)parent);
        make_uuid(disk->parent.snapshot, parent_snapshot);
    }
    assert_int_equal(hashes_init(&hashes, SIZE, disk->incremental, &err), 0);
    assert_int_equal(point_write_hashes(point, disk, &hashes, &err), 0);
    hashes_fini(&hashes);
    manifest->disk_count = 1;
    make_time(manifest->created, hour);
    make_uuid(manifest->snapshot, snapshot);
    if (point_publish(point, manifest, name, &err) < 0)
        fail_msg("%s", err.text);
    free(manifest);
}

static int resolve(unsigned hour, struct chain *chain)
{
    char point[POINT_NAME_BYTES];
    make_time(point, hour);
    return chain_resolve(set, point, "vda", chain, &err);
}

static void expect_error(unsigned hour, int status, const char *words)
{
    struct chain chain;
    assert_int_equal(resolve(hour, &chain), status);
    assert_null(chain.links);
    if (!strstr(err.text, words))
        fail_msg("'%s' is not in: %s", words, err.text);
}

static void test_right(void **state)
{
    (void)state;
    struct chain chain;
    char name[PATH_MAX];
    make_point(0, 100, "vda", -1, 0);
    for (unsigned i = 1; i < 40; i++)
        make_point(i, 100 + i, "vda", (int)i - 1, 99 + i);
    make_point(50, 150, "vda", 10, 110); /* a branch */
    assert_int_equal(resolve(0, &chain), 0);
    assert_int_equal(chain.count, 1);
    chain_backing_name(&chain, 0, name, sizeof name);
    assert_string_equal(name, "");
    chain_free(&chain);
    assert_int_equal(resolve(39, &chain), 0);
    assert_int_equal(chain.count, 40);
    for (unsigned i = 0; i < 40; i++) {
        char point[POINT_NAME_BYTES];
        make_time(point, 39 - i);
        assert_string_equal(chain.links[i].point, point);
        assert_int_equal(chain.links[i].disk.incremental, i < 39);
    }
    chain_backing_name(&chain, 38, name, sizeof name);
    assert_string_equal(name, "../2026-11-22T06:05:45Z/vda.qcow2");
    chain_free(&chain);
    assert_int_equal(resolve(50, &chain), 0);
    assert_int_equal(chain.count, 12);
    chain_free(&chain);
    assert_int_equal(chain_resolve_step(set, "2026-11-23T06:05:45Z", "vda", &chain, &err), 0);
    assert_int_equal(chain.count, 2);
    chain_free(&chain);
}

static void test_wrong(void **state)
{
    (void)state;
    make_point(1, 101, "vda", 0, 100);
    expect_error(1, -EBADMSG, "disk vda of point 2026-11-22T07:05:45Z needs point 2026-11-22T06:05:45Z: ");
    make_point(2, 102, "vda", 1, 999);
    expect_error(2, -EBADMSG,
                 "was made over snapshot 00000000-0000-4000-8000-000000000999, but point "
                 "2026-11-22T07:05:45Z is of snapshot 00000000-0000-4000-8000-000000000101");
    make_point(3, 103, "vdb", -1, 0);
    expect_error(3, -ENOENT, "has no disk 'vda'; it has vdb");
    make_point(4, 104, "vda", 3, 103);
    expect_error(4, -EBADMSG, "point 2026-11-22T09:05:45Z has no disk vda, which point 2026-11-22T10:05:45Z needs");
    make_point(5, 105, "vda", 7, 107);
    make_point(6, 106, "vda", 5, 105);
    make_point(7, 107, "vda", 6, 106);
    expect_error(7, -EBADMSG, "leads from point 2026-11-22T11:05:45Z back to point 2026-11-22T13:05:45Z");
    make_point(8, 108, "vda", 8, 108);
    expect_error(8, -EBADMSG, "leads from point 2026-11-22T14:05:45Z back to point 2026-11-22T14:05:45Z");
    expect_error(30, -ENOENT, "2026-11-23T12:05:45Z can't be opened");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_right, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_wrong, make_folder, remove_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
