/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Copies of only some blocks, on a real reactor: a view in memory that refuses to read what is not dirty, as a snapshot does
 * that is limited to its changes, and a target whose old content shows what was left out. Also the record that comes before
 * a release, and going on after it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <gnutls/crypto.h>

#include "io/ring.h"
#include "job/copy.h"

#define CELL 4096
#define EXTENT_CELLS 256
#define SIZE (9 * MIB + 5 * CELL + 700) /* ten extents, the last with six cells and a short one */
#define CELLS (9 * EXTENT_CELLS + 6)
#define EXTENTS 10
#define BACKING 0x5a /* what the target holds before */

enum safety { NOTHING, WRITTEN, FLUSHED, RECORDED, RELEASED };

struct fixture {
    struct io *io;
    struct node source, target;
    char *source_bytes, *target_bytes;
    bool dirty[CELLS];
    unsigned answer_step; /* the dirty map answers runs of so many bytes, at odd places; 0: as long as they are */
    bool refuse_clean;
    uint64_t read_bytes;
    enum safety safety[EXTENTS];
    uint64_t recorded;
    int record_status;
    struct copy_options options;
    uint8_t hashes[EXTENTS * COPY_HASH_BYTES], masks[EXTENTS * COPY_MASK_BYTES];
    uint32_t data[EXTENTS];
    uint64_t data_bytes;
    int status;
    struct error err;
    bool done;
};

static const char *const map_names[] = {"other", "since"};

static bool is_dirty(const struct fixture *f, uint64_t byte)
{
    return f->dirty[byte / CELL];
}

static void answer_dirty(const struct fixture *f, struct request *req)
{
    assert_int_equal(req->dirty_map, 1);
    req->extent_count = 0;
    for (uint64_t at = req->range.start; at < range_end(req->range) && req->extent_count < req->extent_max;) {
        uint64_t end = at + 1;
        while (end < range_end(req->range) && is_dirty(f, end) == is_dirty(f, at) &&
               (!f->answer_step || end % f->answer_step))
            end++;
        req->extents[req->extent_count++] = (struct block_extent){end - at, is_dirty(f, at) ? EXTENT_DIRTY : 0};
        at = end;
    }
}

/* Clean blocks are not needed; the extents 3 and 7 have something in RAM. */
static void answer_residence(const struct fixture *f, struct request *req)
{
    req->extent_count = 0;
    for (uint64_t at = req->range.start; at < range_end(req->range) && req->extent_count < req->extent_max;) {
        uint64_t end = round_down(at, CELL) + CELL, extent = at / MIB;
        end = end < range_end(req->range) ? end : range_end(req->range);
        uint32_t flags = !is_dirty(f, at) ? RESIDENCE_RELEASED : extent == 3 || extent == 7 ? RESIDENCE_RAM : 0;
        req->extents[req->extent_count++] = (struct block_extent){end - at, flags};
        at = end;
    }
}

static void discard(struct fixture *f, struct range range)
{
    for (uint64_t extent = range.start / MIB; extent * MIB < range_end(range); extent++) {
        if (f->safety[extent] != NOTHING && f->safety[extent] != RELEASED) /* clean, or gone between others */
            assert_int_equal(f->safety[extent], f->options.record ? RECORDED : FLUSHED);
        f->safety[extent] = RELEASED;
    }
}

static void source_submit(struct node *node, struct request *req)
{
    struct fixture *f = container_of(node, struct fixture, source);
    int status = 0;
    if (req->kind == REQUEST_BLOCK_STATUS && (req->flags & REQUEST_DIRTY)) {
        answer_dirty(f, req);
    } else if (req->kind == REQUEST_BLOCK_STATUS && (req->flags & REQUEST_RESIDENCE)) {
        answer_residence(f, req);
    } else if (req->kind == REQUEST_BLOCK_STATUS) {
        req->extents[0] = (struct block_extent){req->range.length, 0};
        req->extent_count = 1;
    } else if (req->kind == REQUEST_DISCARD) {
        discard(f, req->range);
    } else {
        assert_int_equal(req->kind, REQUEST_READ);
        f->read_bytes += req->range.length;
        iov_copy_in(req->iov, req->iov_count, 0, f->source_bytes + req->range.start, req->range.length);
    }
    for (uint64_t at = req->range.start; at < range_end(req->range) && f->refuse_clean; at++)
        if (!is_dirty(f, at) && (req->kind == REQUEST_READ || (req->kind == REQUEST_BLOCK_STATUS && !req->flags)))
            status = -ENODATA;
    request_complete(req, status);
}

static void move_safety(struct fixture *f, enum safety from, enum safety to)
{
    for (unsigned i = 0; i < EXTENTS; i++)
        if (f->safety[i] == from)
            f->safety[i] = to;
}

static void target_submit(struct node *node, struct request *req)
{
    struct fixture *f = container_of(node, struct fixture, target);
    char *at = f->target_bytes + req->range.start;
    if (req->kind == REQUEST_WRITE)
        iov_copy_out(req->iov, req->iov_count, 0, at, req->range.length);
    else if (req->kind == REQUEST_WRITE_ZEROES)
        memset(at, 0, req->range.length);
    else
        assert_int_equal(req->kind, REQUEST_FLUSH);
    if (req->kind == REQUEST_FLUSH)
        move_safety(f, WRITTEN, FLUSHED);
    else
        f->safety[req->range.start / MIB] = WRITTEN;
    request_complete(req, 0);
}

static void no_destroy(struct node *node)
{
    (void)node;
}

static const struct node_ops source_ops = {.driver = "view", .submit = source_submit, .destroy = no_destroy};
static const struct node_ops target_ops = {.driver = "target", .submit = target_submit, .destroy = no_destroy};

static void on_done(void *context, int status, const struct error *err)
{
    struct fixture *f = context;
    f->status = status;
    f->err = *err;
    f->done = true;
    ring_quit(f->io);
}

static void on_progress(void *context, uint64_t done_bytes, uint64_t total_bytes, uint64_t data_bytes)
{
    struct fixture *f = context;
    assert_true(done_bytes <= total_bytes);
    f->data_bytes = data_bytes;
}

static int on_record(void *context, const struct copy_run *runs, uint64_t count)
{
    struct fixture *f = context;
    assert_true(count > 0);
    for (uint64_t i = 0; i < count && f->record_status == 0; i++)
        for (uint64_t extent = runs[i].first; extent < runs[i].first + runs[i].count; extent++) {
            assert_int_equal(f->safety[extent], FLUSHED);
            f->safety[extent] = RECORDED;
            f->recorded++;
        }
    return f->record_status;
}

static int begin(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    struct error err;
    if (!f || ring_create(&f->io, &err) < 0)
        return -1;
    f->source = (struct node){.ops = &source_ops,
                              .io = f->io,
                              .size_bytes = SIZE,
                              .alignment_bytes = 1,
                              .dirty_maps = map_names,
                              .dirty_map_count = 2};
    f->target = (struct node){.ops = &target_ops, .io = f->io, .size_bytes = SIZE + 100, .alignment_bytes = 1};
    f->source_bytes = malloc(SIZE);
    f->target_bytes = malloc(SIZE + 100);
    memset(f->target_bytes, BACKING, SIZE + 100);
    for (uint64_t i = 0; i < SIZE; i++)
        f->source_bytes[i] = (char)(i * 2654435761u >> 13 | 1);
    /* Extent 0: odd runs, with zeroes. 1: nothing. 2: all of it. 3: its ends. 4: one zero cell. 5: all zero. 7, 8: runs
     * that cross. 9: the short tail. */
    for (unsigned cell = 0; cell < CELLS; cell++) {
        unsigned extent = cell / EXTENT_CELLS, in = cell % EXTENT_CELLS;
        f->dirty[cell] = (extent == 0 && (in % 7 == 3 || (in > 40 && in < 60))) || extent == 2 ||
                         (extent == 3 && (in == 0 || in == 255)) || (extent == 4 && in == 17) || extent == 5 ||
                         (extent == 7 && in > 250) || (extent == 8 && in < 9) || cell == CELLS - 1;
        if ((extent == 0 && in % 3 == 0) || (extent == 4 && in == 17) || extent == 5)
            memset(f->source_bytes + cell * CELL, 0, CELL);
    }
    f->refuse_clean = true;
    f->options = (struct copy_options){.io = f->io,
                                       .source = &f->source,
                                       .target = &f->target,
                                       .source_name = "the source",
                                       .target_name = "the target",
                                       .dirty = true,
                                       .dirty_map = 1,
                                       .hashes = f->hashes,
                                       .masks = f->masks,
                                       .data = f->data,
                                       .progress = on_progress,
                                       .done = on_done,
                                       .context = f};
    *state = f;
    return 0;
}

static int end(void **state)
{
    struct fixture *f = *state;
    free(f->source_bytes);
    free(f->target_bytes);
    ring_destroy(f->io);
    free(f);
    return 0;
}

static void run(struct fixture *f)
{
    f->done = false;
    assert_non_null(copy_start(&f->options));
    ring_run(f->io);
    assert_true(f->done);
}

static uint64_t cell_bytes(unsigned cell)
{
    return cell == CELLS - 1 ? SIZE % CELL : CELL;
}

/* What must have come of it, from the model alone. */
static void check(const struct fixture *f)
{
    uint64_t data_bytes = 0;
    static const char zeroes[CELL];
    for (unsigned extent = 0; extent < EXTENTS; extent++) {
        gnutls_hash_hd_t state;
        uint8_t hash[COPY_HASH_BYTES], mask[COPY_MASK_BYTES] = {0};
        uint32_t data = 0;
        bool any = false;
        gnutls_hash_init(&state, GNUTLS_DIG_SHA256);
        for (unsigned in = 0; in < EXTENT_CELLS && extent * EXTENT_CELLS + in < CELLS; in++) {
            unsigned cell = extent * EXTENT_CELLS + in;
            const char *now = f->source_bytes + cell * CELL, *found = f->target_bytes + cell * CELL;
            for (uint64_t i = 0; i < cell_bytes(cell); i++)
                if (found[i] != (f->dirty[cell] ? now[i] : BACKING))
                    fail_msg("cell %u, byte %llu: %02x", cell, (unsigned long long)i, (unsigned char)found[i]);
            if (!f->dirty[cell])
                continue;
            any = true;
            gnutls_hash(state, now, cell_bytes(cell));
            mask[in / 8] |= (uint8_t)(1u << in % 8);
            if (memcmp(now, zeroes, cell_bytes(cell)) != 0)
                data += (uint32_t)cell_bytes(cell);
        }
        gnutls_hash_deinit(state, hash);
        assert_memory_equal(mask, f->masks + extent * COPY_MASK_BYTES, sizeof mask);
        assert_int_equal(data, f->data[extent]);
        if (any)
            assert_memory_equal(hash, f->hashes + extent * COPY_HASH_BYTES, sizeof hash);
        data_bytes += data;
    }
    for (unsigned i = 0; i < 100; i++)
        assert_int_equal(f->target_bytes[SIZE + i], BACKING);
    assert_int_equal(data_bytes, f->data_bytes);
}

static void only_what_is_dirty(void **state)
{
    struct fixture *f = *state;
    run(f);
    assert_int_equal(f->status, 0);
    check(f);
    uint64_t dirty_bytes = 0;
    for (unsigned cell = 0; cell < CELLS; cell++)
        dirty_bytes += f->dirty[cell] ? cell_bytes(cell) : 0;
    assert_int_equal(f->read_bytes, dirty_bytes); /* the rest never travelled */
}

static void answers_in_odd_pieces(void **state)
{
    struct fixture *f = *state;
    f->answer_step = 1000;
    run(f);
    assert_int_equal(f->status, 0);
    check(f);
}

static void nothing_is_dirty(void **state)
{
    struct fixture *f = *state;
    memset(f->dirty, 0, sizeof f->dirty);
    run(f);
    assert_int_equal(f->status, 0);
    assert_int_equal(f->read_bytes, 0);
    check(f);
}

/* Extents that are taken out of turn ask for themselves; what is flushed and noted is released, and nothing else. */
static void advice_and_releases(void **state)
{
    struct fixture *f = *state;
    f->source.read_only = true;
    f->source.can_release = true;
    f->options.advice = true;
    f->options.release = true;
    for (int with_record = 0; with_record < 2; with_record++) {
        f->options.record = with_record ? on_record : NULL;
        memset(f->safety, 0, sizeof f->safety);
        memset(f->target_bytes, BACKING, SIZE);
        memset(f->masks, 0, sizeof f->masks);
        memset(f->data, 0, sizeof f->data);
        run(f);
        assert_int_equal(f->status, 0);
        check(f);
        if (with_record)
            for (unsigned i = 0; i < EXTENTS; i++)
                assert_true(f->safety[i] == NOTHING || f->safety[i] == RECORDED || f->safety[i] == RELEASED);
    }
    assert_int_equal(f->recorded, 8);
}

static void a_record_that_fails(void **state)
{
    struct fixture *f = *state;
    f->source.read_only = true;
    f->source.can_release = true;
    f->options.release = true;
    f->options.record = on_record;
    f->record_status = -ENOSPC;
    run(f);
    assert_int_equal(f->status, -ENOSPC);
    assert_non_null(strstr(f->err.text, "noting what the target holds already failed: No space left"));
    for (unsigned i = 0; i < EXTENTS; i++)
        assert_int_not_equal(f->safety[i], RELEASED);
}

/* What the target has for good is not looked at again, and what was noted about it stays. */
static void going_on(void **state)
{
    struct fixture *f = *state;
    bool already[EXTENTS] = {true, false, true};
    run(f);
    uint64_t all = f->read_bytes;
    memset(f->masks + 3 * COPY_MASK_BYTES, 0, 7 * COPY_MASK_BYTES);
    memset(f->target_bytes + 3 * MIB, BACKING, SIZE - 3 * MIB);
    f->read_bytes = 0;
    f->options.already = already;
    run(f);
    assert_int_equal(f->status, 0);
    check(f);
    assert_true(f->read_bytes < all - MIB);
}

static unsigned mismatches, mismatch_extent;

static void on_mismatch(void *context, struct range extent)
{
    (void)context;
    mismatches++;
    mismatch_extent = (unsigned)(extent.start / MIB);
}

/* As verify and restore do it: the blocks that the masks name, compared with their hashes, and written or not. */
static void only_what_is_wanted(void **state)
{
    struct fixture *f = *state;
    struct copy_options first = f->options;
    run(f);
    f->refuse_clean = false;
    f->options = (struct copy_options){.io = f->io,
                                       .source = &f->source,
                                       .source_name = "the source",
                                       .wanted = f->masks,
                                       .expected = f->hashes,
                                       .mismatch = on_mismatch,
                                       .done = on_done,
                                       .context = f};
    run(f);
    assert_int_equal(f->status, 0);
    assert_int_equal(mismatches, 0);
    f->source_bytes[8 * MIB + 9 * CELL] ^= 1; /* clean: nothing of ours */
    run(f);
    assert_int_equal(mismatches, 0);
    f->source_bytes[8 * MIB + 9 * CELL - 1] ^= 1; /* the last byte of the run before */
    run(f);
    assert_int_equal(mismatches, 1);
    assert_int_equal(mismatch_extent, 8);
    f->source_bytes[8 * MIB + 9 * CELL - 1] ^= 1;
    memset(f->target_bytes, BACKING, SIZE);
    f->options.target = &f->target;
    f->options.target_name = first.target_name;
    f->options.progress = on_progress;
    run(f);
    assert_int_equal(f->status, 0);
    check(f);
}

/* An image of whole sectors behind a disk of any size: the rest is not the disk's. */
static void a_shorter_disk(void **state)
{
    struct fixture *f = *state;
    uint8_t expected[COPY_HASH_BYTES];
    f->refuse_clean = false;
    f->options.dirty = false;
    f->options.masks = NULL;
    f->options.data = NULL;
    f->options.size_bytes = MIB + 5;
    run(f);
    assert_int_equal(f->status, 0);
    gnutls_hash_fast(GNUTLS_DIG_SHA256, f->source_bytes + MIB, 5, expected);
    assert_memory_equal(f->hashes + COPY_HASH_BYTES, expected, sizeof expected);
    assert_memory_equal(f->target_bytes, f->source_bytes, MIB + 5);
    assert_int_equal(f->target_bytes[MIB + 5], BACKING);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(only_what_is_dirty, begin, end),
        cmocka_unit_test_setup_teardown(answers_in_odd_pieces, begin, end),
        cmocka_unit_test_setup_teardown(nothing_is_dirty, begin, end),
        cmocka_unit_test_setup_teardown(advice_and_releases, begin, end),
        cmocka_unit_test_setup_teardown(a_record_that_fails, begin, end),
        cmocka_unit_test_setup_teardown(going_on, begin, end),
        cmocka_unit_test_setup_teardown(only_what_is_wanted, begin, end),
        cmocka_unit_test_setup_teardown(a_shorter_disk, begin, end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
