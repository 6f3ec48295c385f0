/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Data goes between the guest's memory and the disk without a copy: what the node is given to read into and to write from
 * is the guest's memory, at the very addresses of the driver's descriptors. The kernel says what is mapped where: each byte
 * of a buffer must lie in a mapping of the guest's memory file, at the offset that is its guest address.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "vhost_scene.h"

enum { STATUS_AT = DATA_AT - 1, ROOM_AT = 0x50000, PENDING = 77, SECTOR = 7, MAX_FRAGMENTS = VIRTIO_BLK_SEGMENTS };

/* Data in `count` fragments of `length` bytes, the first at `at` and each `step` behind the one before. */
struct shape {
    uint64_t at, step;
    uint32_t length;
    unsigned count;
    bool joined; /* the first fragment of a write begins in the header's descriptor; `at` is behind that */
};

static const struct shape shapes[] = {
    {ROOM_AT, 0, 4096, 1, false},                    /* a page */
    {ROOM_AT + 0x200, 0, 512, 1, false},             /* a sector */
    {ROOM_AT + 1, 0, 512, 1, false},                 /* ... at an odd address */
    {ROOM_AT + 4095, 0, 65536, 1, false},            /* many pages, cut at both ends */
    {ROOM_AT + 3, 13, 8, 64, false},                 /* crumbs */
    {ROOM_AT, 8192, 4096, MAX_FRAGMENTS / 2, false}, /* pages with gaps */
    {ROOM_AT + 5, 4608, 512, MAX_FRAGMENTS, false},  /* as many as the device says that it takes */
    {ROOM_AT, 0, LIMIT_REQUEST_BYTES / 2, 2, false}, /* the longest single request of the block layer */
    {ROOM_AT + 1, 7, 512000, 13, false},             /* far longer: pieces that begin within fragments */
    {DATA_AT + sizeof(struct virtio_blk_header), 0, 4096, 1, true},
};

/* The mapping of the guest's memory that an address lies in: the guest's address, and how many bytes are left of it. */
static uint64_t guest_address(const void *host, uint64_t *left)
{
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[512];
    uint64_t start, end, offset;
    const uint64_t at = (uintptr_t)host;
    assert_non_null(maps);
    while (fgets(line, sizeof line, maps)) {
        if (!strstr(line, "/memfd:guest") ||
            sscanf(line, "%" SCNx64 "-%" SCNx64 " %*s %" SCNx64, &start, &end, &offset) != 3 || at < start || at >= end)
            continue;
        fclose(maps);
        *left = end - at;
        return offset + (at - start);
    }
    fail_msg("the node is given %p, which is not the guest's memory", host);
    return 0;
}

/* The buffers of a request for [offset, ...) of the data. */
static void check_buffers(const struct request *req, uint64_t offset, const struct shape *shape)
{
    uint64_t bytes = 0;
    for (unsigned i = 0; i < req->iov_count; i++) {
        char *host = req->iov[i].iov_base;
        uint64_t rest = req->iov[i].iov_len, left = 0;
        assert_true(rest > 0);
        bytes += rest;
        while (rest > 0) {
            const uint64_t in_fragment = offset % shape->length;
            assert_true(offset < (uint64_t)shape->length * shape->count);
            assert_int_equal(guest_address(host, &left),
                             shape->at + shape->step * (offset / shape->length) + in_fragment);
            left = left < rest ? left : rest;
            left = left < shape->length - in_fragment ? left : shape->length - in_fragment;
            host += left;
            offset += left;
            rest -= left;
        }
    }
    assert_int_equal(bytes, req->range.length);
}

static bool comes_or_ends(struct scene *scene)
{
    return scene->held_count > 0 || scene->memory[STATUS_AT] != PENDING;
}

static unsigned make_parts(struct scene *scene, const struct shape *shape, bool reads, struct part *parts)
{
    struct virtio_blk_header *header = (void *)(scene->memory + DATA_AT);
    unsigned count = 0;
    *header = (struct virtio_blk_header){.type = reads ? VIRTIO_BLK_T_IN : VIRTIO_BLK_T_OUT, .sector = SECTOR};
    scene->memory[STATUS_AT] = PENDING;
    parts[count++] = (struct part){DATA_AT, sizeof *header, false};
    for (unsigned i = 0; i < shape->count; i++)
        parts[count++] = (struct part){shape->at + shape->step * i, shape->length, reads};
    parts[count++] = (struct part){STATUS_AT, 1, true};
    if (!shape->joined || reads)
        return count;
    parts[0].length += shape->length;
    parts[1] = parts[2];
    return count - 1;
}

static void check_shape(struct scene *scene, const struct shape *shape, bool reads)
{
    struct part parts[MAX_FRAGMENTS + 2];
    const uint64_t bytes = (uint64_t)shape->length * shape->count, start = SECTOR * UINT64_C(512);
    uint64_t seen = 0;
    uint32_t cookie, written;
    const unsigned count = make_parts(scene, shape, reads, parts);
    assert_true(driver_add(&scene->driver, parts, (uint16_t)count, 0, 9));
    driver_show(&scene->driver);
    if (driver_must_kick(&scene->driver))
        assert_int_equal(eventfd_write(scene->kick, 1), 0);
    while (scene->memory[STATUS_AT] == PENDING) {
        scene_run_until(scene, comes_or_ends);
        for (struct list_node *link = scene->held.head.next; link != &scene->held.head; link = link->next) {
            const struct request *req = container_of(link, struct request, link);
            assert_int_equal(req->kind, reads ? REQUEST_READ : REQUEST_WRITE);
            check_buffers(req, req->range.start - start, shape);
            seen += req->range.length;
        }
        scene_let_go(scene);
    }
    assert_int_equal(scene->memory[STATUS_AT], VIRTIO_BLK_S_OK);
    assert_int_equal(seen, bytes);
    while (!driver_get(&scene->driver, &cookie, &written))
        scene_run_on(scene);
    assert_int_equal(written, 1 + (reads ? bytes : 0));
}

static void check_all(struct scene *scene)
{
    scene->node.size_bytes = 16 * MIB;
    for (unsigned i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        check_shape(scene, &shapes[i], false);
        check_shape(scene, &shapes[i], true);
    }
}

static void a_split_ring_copies_nothing(void **state)
{
    check_all(*state);
}

static void a_packed_ring_copies_nothing(void **state)
{
    struct scene *scene = *state;
    close(scene->fd);
    scene_connect(scene);
    driver_init(&scene->driver, scene->memory, &scene_ring_place, QUEUE_SIZE, true, false);
    scene_start_ring(scene);
    check_all(scene);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_split_ring_copies_nothing, scene_begin, scene_end),
        cmocka_unit_test_setup_teardown(a_packed_ring_copies_nothing, scene_begin, scene_end),
    };
    return cmocka_run_group_tests_name("vhost_data", tests, NULL, NULL);
}
