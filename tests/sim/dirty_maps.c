/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What had changed at a snapshot's cut, as its view tells it: equal to the bitmaps for any question, in bounded answers,
 * whatever becomes of the blocks later, and for as long as the snapshot lives.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "fleece/snapshot_status.h"
#include "stage.h"

/* Compares an answer with the bitmap bit by bit; returns the bytes that it tells of. */
static uint64_t check_answer(const struct dirty_map *map, const struct request *req)
{
    uint64_t at = req->range.start;
    assert_in_range(req->extent_count, 1, req->extent_max);
    for (unsigned i = 0; i < req->extent_count; i++) {
        uint64_t end = at + req->extents[i].length;
        assert_true(end > at && end <= range_end(req->range));
        assert_true(i == 0 || req->extents[i].flags != req->extents[i - 1].flags);
        struct block_range bits = range_to_blocks((struct range){at, end - at}, map->shift);
        for (uint64_t bit = bits.first; bit < block_range_end(bits); bit++)
            assert_int_equal(req->extents[i].flags, bitmap_get(&map->changed, bit) ? EXTENT_DIRTY : 0);
        at = end;
    }
    return at - req->range.start;
}

static void any_question_gets_the_bitmap(void **state)
{
    (void)state;
    struct block_extent extents[8];
    srand(1);
    for (unsigned round = 0; round < 60; round++) {
        struct dirty_map map = {.shift = 9 + round % 5};
        const uint64_t bits = 20000 + (uint64_t)rand() % 80000, size = (bits << map.shift) - (unsigned)rand() % 512;
        assert_int_equal(bitmap_init(&map.changed, bits, round % 7 == 0), 0);
        for (unsigned i = 0; i < 200; i++) {
            uint64_t first = (uint64_t)rand() % bits, count = 1 + (uint64_t)rand() % 50;
            assert_int_equal(bitmap_assign(&map.changed, first, first + count > bits ? bits - first : count, i % 3), 0);
        }
        for (unsigned i = 0; i < 100; i++) {
            struct request req = {
                .kind = REQUEST_BLOCK_STATUS, .extents = extents, .extent_max = 1 + (unsigned)rand() % 8};
            req.range.start = (uint64_t)rand() % size;
            req.range.length = 1 + (uint64_t)rand() % (size - req.range.start);
            req.flags = REQUEST_DIRTY | (i % 5 == 0 ? REQUEST_ONE : 0);
            snapshot_dirty(&map, &req);
            uint64_t told = check_answer(&map, &req);
            if (req.extent_count < req.extent_max && !(req.flags & REQUEST_ONE))
                assert_int_equal(told, req.range.length);
            assert_true(!(req.flags & REQUEST_ONE) || req.extent_count == 1);
        }
        bitmap_fini(&map.changed);
    }
}

/* A disk of 4 TiB in which nothing is equal for long: one answer looks at a part of it; asking on leads to the end. */
static void an_answer_looks_at_a_part(void **state)
{
    (void)state;
    const uint64_t chunks = 3 * LIMIT_BITMAP_STEP_CHUNKS + 1, step = LIMIT_BITMAP_STEP_CHUNKS * BITMAP_CHUNK_BITS;
    struct block_extent extents[8];
    struct dirty_map map = {.shift = 12};
    assert_int_equal(bitmap_init(&map.changed, chunks * BITMAP_CHUNK_BITS, false), 0);
    struct request req = {.kind = REQUEST_BLOCK_STATUS, .flags = REQUEST_DIRTY, .extents = extents, .extent_max = 8};
    uint64_t at = 0, answers = 0, size = map.changed.bit_count << map.shift;
    for (; at < size; answers++) {
        req.range = (struct range){at, size - at};
        snapshot_dirty(&map, &req);
        assert_int_equal(req.extent_count, 1);
        assert_true(extents[0].length <= step << map.shift);
        at += extents[0].length;
    }
    assert_int_equal(answers, 4);
    bitmap_fini(&map.changed);
}

static void make_maps(struct dirty_map *maps, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        maps[i].shift = 12 + i % 3;
        snprintf(maps[i].name, sizeof maps[i].name, "night-%u", i);
        assert_int_equal(bitmap_init(&maps[i].changed, STAGE_DISK_BYTES >> maps[i].shift, false), 0);
        assert_int_equal(bitmap_assign(&maps[i].changed, 4 + i, 2, true), 0);
    }
}

/* Answer of a view about the whole disk: the first bytes that are dirty in its map; or -errno. */
static int ask(struct stage *stage, struct node *view, unsigned map, struct range *dirty)
{
    struct stage_request request = {.flags = REQUEST_DIRTY, .dirty_map = map};
    stage_status(stage, &request, view, 0, STAGE_DISK_BYTES / STAGE_BLOCK);
    stage_settle(stage);
    assert_true(request.done);
    if (request.status == 0) {
        assert_int_equal(request.req.extent_count, 3);
        assert_int_equal(request.extents[1].flags, EXTENT_DIRTY);
        *dirty = (struct range){request.extents[0].length, request.extents[1].length};
    }
    return request.status;
}

static void views_tell_it_as_long_as_they_live(void **state)
{
    struct stage *stage = *state;
    struct stage_snapshot *snapshot = stage_snapshot(stage, "s1");
    struct node *view = snapshot->views[0];
    struct dirty_map maps[LIMIT_DIRTY_MAPS] = {0};
    struct range dirty;
    assert_int_equal(view->dirty_map_count, 0);
    make_maps(maps, LIMIT_DIRTY_MAPS);
    snapshot_access_set_maps(view, maps, LIMIT_DIRTY_MAPS);
    assert_null(maps[0].changed.chunks); /* taken over */
    assert_int_equal(view->dirty_map_count, LIMIT_DIRTY_MAPS);
    assert_string_equal(view->dirty_maps[2], "night-2");
    for (unsigned round = 0; round < 3; round++) {
        for (unsigned i = 0; i < 3; i++) {
            assert_int_equal(ask(stage, view, i, &dirty), 0);
            assert_int_equal(dirty.start, (4 + i) << (12 + i));
            assert_int_equal(dirty.length, 2 << (12 + i));
        }
        if (round == 0) /* the guest goes on, and a consumer is done with it: dirty is dirty */
            stage_overwrite(stage, 0, 4, 200);
        else
            assert_int_equal(stage_release(stage, snapshot, 0, 0, STAGE_DISK_BYTES / STAGE_BLOCK), 0);
    }
    struct stage_snapshot *broken = stage_snapshot(stage, "s2");
    make_maps(maps, 1);
    snapshot_access_set_maps(broken->views[0], maps, 1);
    stage_lose(stage, 0, 9);
    assert_true(broken->broken);
    assert_int_equal(ask(stage, broken->views[0], 0, &dirty), -EIO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_question_gets_the_bitmap),
        cmocka_unit_test(an_answer_looks_at_a_part),
        STAGE_TEST(views_tell_it_as_long_as_they_live, .disk_count = 1),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
