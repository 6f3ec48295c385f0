/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The qcow2 driver on the reactor and a real kernel: what qemu-img can't be asked about, and headers. Its data and its crash
 * behaviour are tested by e2e/qcow2.py and sim/qcow2_sim.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "driver/file.h"
#include "driver/qcow2/header.h"
#include "io/ring.h"

struct bench {
    char path[64];
    struct io *io;
    struct node *image;
    struct error err;
    int status;
    struct request req;
    struct iovec iov;
    struct block_extent extents[8];
};

static int bench_begin(void **state)
{
    struct bench *bench = calloc(1, sizeof *bench);
    strcpy(bench->path, "/var/tmp/fleece-qcow2-XXXXXX");
    int fd = mkstemp(bench->path);
    if (fd < 0 || ring_create(&bench->io, &bench->err) < 0)
        return -1;
    close(fd);
    unlink(bench->path);
    *state = bench;
    return 0;
}

static int bench_end(void **state)
{
    struct bench *bench = *state;
    if (bench->image)
        node_destroy(bench->image);
    ring_destroy(bench->io);
    unlink(bench->path);
    free(bench);
    return 0;
}

static void created(void *argument, int status, const struct error *err)
{
    struct bench *bench = argument;
    bench->status = status;
    bench->err = *err;
    ring_quit(bench->io);
}

static void opened(void *argument, struct node *image, const struct error *err)
{
    struct bench *bench = argument;
    bench->image = image;
    bench->err = *err;
    ring_quit(bench->io);
}

static struct node *open_file(struct bench *bench, bool create, bool growable)
{
    struct node *file;
    struct file_options options = {.path = bench->path, .create = create, .growable = growable};
    assert_int_equal(file_open(bench->io, &options, &file, &bench->err), 0);
    return file;
}

static int create(struct bench *bench, const struct qcow2_create_options *options)
{
    struct node *file = open_file(bench, true, true);
    assert_int_equal(qcow2_create(file, options, created, bench), 0);
    ring_run(bench->io);
    node_destroy(file);
    return bench->status;
}

static void open_image(struct bench *bench)
{
    assert_int_equal(qcow2_open(open_file(bench, false, true), false, opened, bench), 0);
    ring_run(bench->io);
    if (!bench->image)
        fail_msg("%s", bench->err.text);
}

static void request_done(struct request *req, int status)
{
    struct bench *bench = container_of(req, struct bench, req);
    bench->status = status;
    ring_quit(bench->io);
}

static int run(struct bench *bench, enum request_kind kind, uint32_t flags, struct range range, void *memory)
{
    bench->iov = (struct iovec){memory, range.length};
    bench->req = (struct request){.kind = kind,
                                  .flags = flags,
                                  .range = range,
                                  .iov = &bench->iov,
                                  .iov_count = 1,
                                  .extents = bench->extents,
                                  .extent_max = 8,
                                  .done = request_done};
    node_submit(bench->image, &bench->req);
    ring_run(bench->io);
    return bench->status;
}

static uint32_t cluster_bits_of(struct bench *bench)
{
    uint8_t bytes[24] = {0};
    FILE *file = fopen(bench->path, "rb");
    assert_non_null(file);
    assert_int_equal(fread(bytes, 1, sizeof bytes, file), sizeof bytes);
    fclose(file);
    return load_be32(bytes + 20);
}

/* The largest disk, full and as an overlay: a block at its end is there again after a flush and another opening. */
static void test_largest_disks(void **state)
{
    struct bench *bench = *state;
    static char block[4096] __attribute__((aligned(4096))), got[4096] __attribute__((aligned(4096)));
    static const struct {
        uint64_t size_bytes;
        const char *backing;
        uint32_t cluster_bits;
    } disks[] = {{LIMIT_DISK_BYTES, NULL, 16},
                 {LIMIT_DISK_BYTES, "below", 17},
                 {4 * TIB, "below", 12},
                 {4 * TIB + 512, "below", 17}};
    memset(block, 7, sizeof block);
    for (unsigned i = 0; i < sizeof disks / sizeof disks[0]; i++) {
        struct qcow2_create_options options = {.size_bytes = disks[i].size_bytes,
                                               .backing_name = disks[i].backing,
                                               .backing_format = disks[i].backing ? "raw" : NULL};
        struct range end = {round_down(disks[i].size_bytes - 1, 4096), 0};
        end.length = disks[i].size_bytes - end.start;
        assert_int_equal(create(bench, &options), 0);
        assert_int_equal(cluster_bits_of(bench), disks[i].cluster_bits);
        open_image(bench);
        assert_int_equal(run(bench, REQUEST_WRITE, 0, end, block), 0); /* whole: nothing behind it is asked */
        assert_int_equal(run(bench, REQUEST_FLUSH, REQUEST_LAST, (struct range){0, 0}, NULL), 0);
        node_destroy(bench->image);
        open_image(bench);
        assert_int_equal(run(bench, REQUEST_READ, 0, end, got), 0);
        assert_memory_equal(got, block, end.length);
        node_destroy(bench->image);
        bench->image = NULL;
        unlink(bench->path);
    }
}

/* An overlay that was given nothing behind it answers for itself only. */
static void test_alone(void **state)
{
    struct bench *bench = *state;
    static char memory[8192];
    struct qcow2_create_options options = {.size_bytes = 3 * MIB, .backing_name = "below", .backing_format = "qcow2"};
    struct qcow2_info info;
    assert_int_equal(create(bench, &options), 0);
    open_image(bench);
    qcow2_info(bench->image, &info);
    assert_string_equal(info.backing_name, "below");
    assert_string_equal(info.backing_format, "qcow2");
    assert_int_equal(info.size_bytes, 3 * MIB);
    assert_int_equal(run(bench, REQUEST_WRITE, 0, (struct range){4096, 4096}, memory), 0);
    assert_int_equal(run(bench, REQUEST_WRITE_ZEROES, 0, (struct range){8192, 4096}, NULL), 0);
    assert_int_equal(run(bench, REQUEST_READ, 0, (struct range){4096, 8192}, memory), 0);
    assert_int_equal(run(bench, REQUEST_READ, 0, (struct range){0, 8192}, memory), -ENODATA);
    assert_int_equal(run(bench, REQUEST_WRITE, 0, (struct range){512, 512}, memory), -ENODATA);
    assert_int_equal(run(bench, REQUEST_BLOCK_STATUS, 0, (struct range){0, 4096}, NULL), -ENODATA);
    assert_int_equal(run(bench, REQUEST_BLOCK_STATUS, REQUEST_TOP, (struct range){0, 3 * MIB}, NULL), 0);
    assert_int_equal(bench->req.extent_count, 4);
    assert_int_equal(bench->extents[0].flags, EXTENT_BACKING);
    assert_int_equal(bench->extents[1].flags, 0);
    assert_int_equal(bench->extents[2].flags, EXTENT_HOLE | EXTENT_ZERO);
    assert_int_equal(bench->extents[3].flags, EXTENT_BACKING);
    assert_int_equal(bench->extents[3].length, 3 * MIB - 12288);
    assert_int_equal(run(bench, REQUEST_BLOCK_STATUS, REQUEST_TOP | REQUEST_ONE, (struct range){0, 3 * MIB}, NULL), 0);
    assert_int_equal(bench->req.extent_count, 1);
}

static void test_fast_zeroes(void **state)
{
    struct bench *bench = *state;
    static char memory[65536];
    memset(memory, 1, sizeof memory);
    assert_int_equal(create(bench, &(struct qcow2_create_options){.size_bytes = MIB + 512}), 0);
    open_image(bench);
    assert_int_equal(run(bench, REQUEST_WRITE, REQUEST_FUA, (struct range){0, 65536}, memory), 0);
    assert_int_equal(run(bench, REQUEST_WRITE_ZEROES, REQUEST_FAST_ZERO, (struct range){512, 512}, NULL), -EOPNOTSUPP);
    assert_int_equal(
        run(bench, REQUEST_WRITE_ZEROES, REQUEST_FAST_ZERO | REQUEST_NO_HOLE, (struct range){0, 65536}, NULL),
        -EOPNOTSUPP);
    assert_int_equal(run(bench, REQUEST_READ, 0, (struct range){0, 65536}, memory), 0);
    assert_int_equal(memory[512], 1);
    assert_int_equal(run(bench, REQUEST_WRITE_ZEROES, REQUEST_FAST_ZERO, (struct range){0, MIB + 512}, NULL), 0);
    assert_int_equal(run(bench, REQUEST_READ, 0, (struct range){0, 65536}, memory), 0);
    assert_int_equal(memory[512], 0);
    assert_int_equal(run(bench, REQUEST_WRITE_ZEROES, REQUEST_NO_HOLE, (struct range){0, 65536}, NULL), 0);
    assert_int_equal(run(bench, REQUEST_BLOCK_STATUS, 0, (struct range){0, 65536}, NULL), 0);
    assert_int_equal(bench->extents[0].flags, 0);
}

static void test_refusals(void **state)
{
    struct bench *bench = *state;
    char name[1200];
    memset(name, 'n', sizeof name);
    name[1100] = '\0';
    assert_int_equal(create(bench, &(struct qcow2_create_options){0}), -EINVAL);
    unlink(bench->path);
    struct qcow2_create_options options = {.size_bytes = MIB, .backing_name = name, .backing_format = "raw"};
    assert_int_equal(create(bench, &options), -ENAMETOOLONG);
    unlink(bench->path);
    assert_int_equal(create(bench, &(struct qcow2_create_options){.size_bytes = MIB}), 0);
    struct node *file = open_file(bench, false, false); /* it can't grow */
    assert_int_equal(qcow2_open(file, false, opened, bench), 0);
    ring_run(bench->io);
    assert_null(bench->image);
    assert_int_equal(bench->err.code, EROFS);
    assert_int_equal(qcow2_open(file, true, opened, bench), 0);
    ring_run(bench->io);
    assert_non_null(bench->image);
}

/* Every header that is cut off, or that has a byte changed, is refused or read; nothing else happens. */
static void test_headers(void **state)
{
    (void)state;
    struct qcow2_header header = {.version = 3,
                                  .cluster_bits = 16,
                                  .refcount_order = 4,
                                  .size_bytes = GIB,
                                  .l1_offset = 131072,
                                  .l1_entries = 2,
                                  .reftable_offset = 65536,
                                  .reftable_clusters = 1,
                                  .has_backing = true,
                                  .info = {.backing_name = "../below/vda.qcow2", .backing_format = "qcow2"}};
    struct qcow2_header again;
    uint8_t bytes[4096], changed[4096];
    struct error err;
    assert_int_equal(qcow2_header_build(&header, bytes, sizeof bytes, &err), 0);
    assert_int_equal(qcow2_header_parse(bytes, sizeof bytes, MIB, &again, &err), 0);
    assert_string_equal(again.info.backing_name, header.info.backing_name);
    assert_string_equal(again.info.backing_format, "qcow2");
    assert_int_equal(again.l1_offset, header.l1_offset);
    assert_int_equal(qcow2_header_parse(bytes, sizeof bytes, 131072, &again, &err),
                     -EINVAL); /* the L1 table is not there */
    for (size_t length = 0; length < 200; length++)
        if (qcow2_header_parse(bytes, length, MIB, &again, &err) < 0)
            assert_true(err.text[0] != '\0');
    for (unsigned at = 0; at < 200; at++) {
        for (unsigned value = 0; value < 256; value++) {
            memcpy(changed, bytes, sizeof bytes);
            changed[at] = (uint8_t)value;
            if (qcow2_header_parse(changed, sizeof changed, MIB, &again, &err) == 0)
                assert_true(again.l1_offset + again.l1_entries * 8 <= MIB && again.reftable_offset < MIB);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_largest_disks, bench_begin, bench_end),
        cmocka_unit_test_setup_teardown(test_alone, bench_begin, bench_end),
        cmocka_unit_test_setup_teardown(test_fast_zeroes, bench_begin, bench_end),
        cmocka_unit_test_setup_teardown(test_refusals, bench_begin, bench_end),
        cmocka_unit_test(test_headers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
