/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The copy engine on a real reactor, between nodes in memory that count, and fail where they are told to. */
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

struct memory_node {
    struct node node;
    char *bytes;
    uint32_t status_step; /* block status answers runs of at most this many bytes; 0: says "data" for all */
    uint64_t fail_at;     /* a request of fail_kind that covers this byte fails with fail_status */
    enum request_kind fail_kind;
    int fail_status;
    uint64_t reads, read_bytes, writes, written_bytes, zeroed_bytes, flushes;
};

static bool all_zero(const char *bytes, uint64_t length)
{
    return bytes[0] == 0 && memcmp(bytes, bytes + 1, length - 1) == 0;
}

static void memory_status(struct memory_node *memory, struct request *req)
{
    req->extent_count = 0;
    if (memory->status_step == 0) {
        req->extents[req->extent_count++] = (struct block_extent){req->range.length, 0};
        return;
    }
    for (uint64_t at = req->range.start; at < range_end(req->range) && req->extent_count < req->extent_max;) {
        uint64_t length = memory->status_step - at % memory->status_step;
        if (length > range_end(req->range) - at)
            length = range_end(req->range) - at;
        bool zero = all_zero(memory->bytes + at, length);
        req->extents[req->extent_count++] = (struct block_extent){length, zero ? EXTENT_ZERO | EXTENT_HOLE : 0};
        at += length;
    }
}

static void memory_submit(struct node *node, struct request *req)
{
    struct memory_node *memory = container_of(node, struct memory_node, node);
    char *at = memory->bytes + req->range.start;
    bool covers = memory->fail_at >= req->range.start && memory->fail_at < range_end(req->range);
    if (memory->fail_status && req->kind == memory->fail_kind && (covers || req->kind == REQUEST_FLUSH)) {
        request_complete(req, memory->fail_status);
        return;
    }
    switch (req->kind) {
    case REQUEST_READ:
        memory->reads++;
        memory->read_bytes += req->range.length;
        iov_copy_in(req->iov, req->iov_count, 0, at, req->range.length);
        break;
    case REQUEST_WRITE:
        memory->writes++;
        memory->written_bytes += req->range.length;
        iov_copy_out(req->iov, req->iov_count, 0, at, req->range.length);
        break;
    case REQUEST_WRITE_ZEROES:
    case REQUEST_DISCARD:
        memory->zeroed_bytes += req->range.length;
        memset(at, 0, req->range.length);
        break;
    case REQUEST_FLUSH:
        memory->flushes++;
        break;
    case REQUEST_BLOCK_STATUS:
        memory_status(memory, req);
        break;
    }
    request_complete(req, 0);
}

static void memory_destroy(struct node *node)
{
    (void)node;
}

static const struct node_ops memory_ops = {.driver = "memory", .submit = memory_submit, .destroy = memory_destroy};

struct fixture {
    struct io *io;
    struct memory_node source, target;
    struct copy_options options;
    int status;
    struct error err;
    bool done;
    uint64_t done_bytes, total_bytes, data_bytes, mismatches;
    uint8_t *hashes;
    struct copy *copy;
    struct io_task cancel;
    bool cancelled;
};

static void memory_init(struct memory_node *memory, struct io *io, uint64_t size, int fill)
{
    memset(memory, 0, sizeof *memory);
    memory->node = (struct node){.ops = &memory_ops, .io = io, .size_bytes = size, .alignment_bytes = 1};
    memory->bytes = malloc(size);
    memset(memory->bytes, fill, size);
}

static void fixture_init(struct fixture *f, uint64_t size)
{
    struct error err;
    memset(f, 0, sizeof *f);
    if (ring_create(&f->io, &err) < 0)
        fail_msg("%s", err.text);
    memory_init(&f->source, f->io, size, 0);
    memory_init(&f->target, f->io, size, 0);
    f->hashes = calloc(copy_extent_count(size) + 1, COPY_HASH_BYTES);
    f->options = (struct copy_options){.io = f->io,
                                       .source = &f->source.node,
                                       .target = &f->target.node,
                                       .source_name = "the source",
                                       .target_name = "the target",
                                       .target_is_zero = true,
                                       .hashes = f->hashes};
}

static void fixture_fini(struct fixture *f)
{
    free(f->source.bytes);
    free(f->target.bytes);
    free(f->hashes);
    ring_destroy(f->io);
}

static void on_done(void *context, int status, const struct error *err)
{
    struct fixture *f = context;
    assert_false(f->done);
    f->done = true;
    f->status = status;
    f->err = *err;
    ring_quit(f->io);
}

static void on_progress(void *context, uint64_t done_bytes, uint64_t total_bytes, uint64_t data_bytes)
{
    struct fixture *f = context;
    assert_true(done_bytes >= f->done_bytes);
    f->done_bytes = done_bytes;
    f->total_bytes = total_bytes;
    f->data_bytes = data_bytes;
}

static void on_mismatch(void *context, struct range extent)
{
    struct fixture *f = context;
    assert_int_equal(extent.start % COPY_EXTENT_BYTES, 0);
    f->mismatches |= UINT64_C(1) << (extent.start / COPY_EXTENT_BYTES);
}

static void run(struct fixture *f)
{
    f->done = false;
    f->done_bytes = 0;
    f->options.done = on_done;
    f->options.progress = on_progress;
    f->options.context = f;
    f->copy = copy_start(&f->options);
    assert_non_null(f->copy);
    assert_false(f->done);
    ring_run(f->io);
    assert_true(f->done);
}

static void check_hashes(const struct fixture *f)
{
    uint64_t size = f->source.node.size_bytes;
    for (uint64_t at = 0; at < size; at += COPY_EXTENT_BYTES) {
        uint8_t hash[COPY_HASH_BYTES];
        uint64_t length = size - at < COPY_EXTENT_BYTES ? size - at : COPY_EXTENT_BYTES;
        assert_int_equal(gnutls_hash_fast(GNUTLS_DIG_SHA256, f->source.bytes + at, length, hash), 0);
        assert_memory_equal(hash, f->hashes + at / COPY_EXTENT_BYTES * COPY_HASH_BYTES, COPY_HASH_BYTES);
    }
}

/* Random data in random runs of cells, so that about a third of all cells is data; seeds make it repeatable. */
static void scatter(struct memory_node *memory, unsigned seed)
{
    uint64_t size = memory->node.size_bytes;
    srand(seed);
    for (uint64_t at = 0; at < size;) {
        uint64_t run = (uint64_t)(rand() % 12 + 1) * CELL;
        if (rand() % 3 == 0)
            for (uint64_t i = at; i < at + run && i < size; i++)
                memory->bytes[i] = (char)(i * 7 + seed + i / 251);
        at += run;
        if (rand() % 64 == 0)
            at += MIB;
    }
}

static void copies_equal(void **state)
{
    (void)state;
    const uint64_t sizes[] = {1, 511, 4096, MIB - 1, MIB, MIB + 1, 4 * MIB + 5 * CELL + 100};
    const uint32_t steps[] = {0, CELL, 512, 100, 3 * MIB};
    for (unsigned i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        for (unsigned step = 0; step < sizeof steps / sizeof *steps; step++) {
            for (unsigned dirty = 0; dirty < 2; dirty++) {
                struct fixture f;
                fixture_init(&f, sizes[i]);
                scatter(&f.source, i);
                f.source.status_step = steps[step];
                f.options.target_is_zero = !dirty;
                f.options.workers = step % 2 ? 1 : 0;
                memset(f.target.bytes, dirty ? 0xa5 : 0, sizes[i]);
                run(&f);
                assert_int_equal(f.status, 0);
                assert_memory_equal(f.source.bytes, f.target.bytes, sizes[i]);
                check_hashes(&f);
                assert_int_equal(f.done_bytes, sizes[i]);
                assert_int_equal(f.total_bytes, sizes[i]);
                assert_int_equal(f.target.flushes, 1);
                fixture_fini(&f);
            }
        }
    }
}

static void holes_are_not_read_and_zeroes_not_written(void **state)
{
    (void)state;
    struct fixture f;
    fixture_init(&f, 64 * MIB);
    memset(f.source.bytes + 10 * MIB, 1, CELL);
    memset(f.source.bytes + 20 * MIB + 100 * CELL, 2, 10 * CELL);
    f.source.status_step = CELL;
    run(&f);
    assert_int_equal(f.status, 0);
    assert_int_equal(f.source.read_bytes, 11 * CELL);
    assert_int_equal(f.source.reads, 2);
    assert_int_equal(f.target.written_bytes, 11 * CELL);
    assert_int_equal(f.target.zeroed_bytes, 0);
    assert_int_equal(f.data_bytes, 11 * CELL);
    check_hashes(&f);

    /* A source that can't tell holes is read whole; still nothing but data is written. */
    f.source.status_step = 0;
    f.target.written_bytes = 0;
    run(&f);
    assert_int_equal(f.source.read_bytes, 11 * CELL + 64 * MIB);
    assert_int_equal(f.target.written_bytes, 11 * CELL);
    assert_int_equal(f.data_bytes, 11 * CELL);

    /* A target full of something else gets its zeroes without data. */
    f.options.target_is_zero = false;
    f.target.written_bytes = 0;
    memset(f.target.bytes, 0xff, 64 * MIB);
    run(&f);
    assert_int_equal(f.target.written_bytes, 11 * CELL);
    assert_int_equal(f.target.zeroed_bytes, 64 * MIB - 11 * CELL);
    assert_memory_equal(f.source.bytes, f.target.bytes, 64 * MIB);
    fixture_fini(&f);
}

/* Thousands of runs within one extent: more than are ever kept. */
static void the_finest_answers(void **state)
{
    (void)state;
    struct fixture f;
    fixture_init(&f, MIB + 50);
    for (uint64_t at = 0; at < MIB + 50; at++)
        f.source.bytes[at] = (char)(at / 7 % 2);
    f.source.status_step = 7;
    run(&f);
    assert_int_equal(f.status, 0);
    assert_memory_equal(f.source.bytes, f.target.bytes, MIB + 50);
    check_hashes(&f);
    fixture_fini(&f);
}

static void short_gaps_are_joined(void **state)
{
    (void)state;
    struct fixture f;
    fixture_init(&f, MIB);
    for (unsigned cell = 0; cell < 256; cell += 3)
        f.source.bytes[cell * CELL] = 1;
    f.source.status_step = CELL;
    run(&f);
    assert_int_equal(f.source.reads, 1);
    assert_int_equal(f.target.writes, 1);
    assert_memory_equal(f.source.bytes, f.target.bytes, MIB);
    fixture_fini(&f);
}

static void an_empty_disk_is_a_copy(void **state)
{
    (void)state;
    struct fixture f;
    fixture_init(&f, 0);
    run(&f);
    assert_int_equal(f.status, 0);
    fixture_fini(&f);
}

static void errors_name_the_place(void **state)
{
    (void)state;
    const struct {
        bool at_target;
        enum request_kind kind;
        int status;
        const char *words[3];
    } cases[] = {
        {false, REQUEST_READ, -EIO, {"reading the source failed at byte 5242880", "1048576 bytes", "Input/output"}},
        {false, REQUEST_READ, -ENOTCONN, {"reading the source", "at byte", "not connected"}},
        {false, REQUEST_BLOCK_STATUS, -EIO, {"block status of the source", "at byte 0", "Input/output"}},
        {true, REQUEST_WRITE, -ENOSPC, {"writing the target failed at byte 5242880", "bytes", "No space left"}},
        {true, REQUEST_FLUSH, -EIO, {"flushing the target", "failed", "Input/output"}},
    };
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct fixture f;
        fixture_init(&f, 16 * MIB);
        memset(f.source.bytes, 7, 16 * MIB);
        struct memory_node *at = cases[i].at_target ? &f.target : &f.source;
        at->fail_at = 5 * MIB + 17;
        at->fail_kind = cases[i].kind;
        at->fail_status = cases[i].status;
        run(&f);
        assert_int_equal(f.status, cases[i].status);
        for (unsigned word = 0; word < 3; word++)
            if (!strstr(f.err.text, cases[i].words[word]))
                fail_msg("'%s' does not say '%s'", f.err.text, cases[i].words[word]);
        assert_int_equal(f.target.flushes, 0);
        fixture_fini(&f);
    }
}

static void wrong_hashes_are_found(void **state)
{
    (void)state;
    struct fixture f;
    fixture_init(&f, 8 * MIB + 100);
    memset(f.source.bytes, 9, 6 * MIB); /* extents 6 to 8 are zero */
    f.source.status_step = CELL;
    run(&f);
    uint8_t *expected = f.hashes;
    f.options.hashes = NULL;
    f.options.expected = expected;
    run(&f);
    assert_int_equal(f.status, 0);

    /* A byte of data, a byte in a hole and one in the tail; the wrong ones are not written. */
    f.source.bytes[2 * MIB + 5] ^= 1;
    f.source.bytes[7 * MIB + 5] ^= 1;
    f.source.bytes[8 * MIB + 99] ^= 1;
    memset(f.target.bytes, 0x33, 8 * MIB + 100);
    f.options.mismatch = on_mismatch;
    f.options.target_is_zero = false;
    run(&f);
    assert_int_equal(f.status, 0);
    assert_int_equal(f.mismatches, 1 << 2 | 1 << 7 | 1 << 8);
    assert_int_equal(f.target.bytes[2 * MIB], 0x33);
    assert_int_equal(f.target.bytes[MIB], 9);
    assert_int_equal(f.target.bytes[6 * MIB], 0);
    assert_int_equal(f.target.bytes[7 * MIB], 0x33);

    f.options.mismatch = NULL;
    f.options.target = NULL;
    f.options.workers = 1;
    run(&f);
    assert_int_equal(f.status, -EBADMSG);
    assert_string_equal(f.err.text,
                        "the source is damaged: extent 2 (bytes 2097152 to 3145727) has another SHA-256 than "
                        "was recorded");
    free(expected);
    f.hashes = NULL;
    fixture_fini(&f);
}

static void cancel_now(struct io_task *task)
{
    struct fixture *f = container_of(task, struct fixture, cancel);
    copy_cancel(f->copy);
}

static void on_progress_cancel(void *context, uint64_t done_bytes, uint64_t total_bytes, uint64_t data_bytes)
{
    struct fixture *f = context;
    (void)data_bytes;
    if (done_bytes > 0 && done_bytes < total_bytes && !f->cancelled)
        io_task_queue(f->io, &f->cancel);
    f->cancelled = true;
}

static void it_can_be_cancelled(void **state)
{
    (void)state;
    for (unsigned before = 0; before < 2; before++) {
        struct fixture f;
        fixture_init(&f, 64 * MIB);
        memset(f.source.bytes, 7, 64 * MIB);
        f.options.done = on_done;
        f.options.progress = on_progress_cancel;
        f.options.context = &f;
        f.cancel.run = cancel_now;
        f.copy = copy_start(&f.options);
        if (before)
            copy_cancel(f.copy);
        else
            io_task_queue(f.io, &f.cancel);
        ring_run(f.io);
        assert_int_equal(f.status, -ECANCELED);
        assert_int_equal(f.target.flushes, 0);
        fixture_fini(&f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(copies_equal),
        cmocka_unit_test(holes_are_not_read_and_zeroes_not_written),
        cmocka_unit_test(the_finest_answers),
        cmocka_unit_test(short_gaps_are_joined),
        cmocka_unit_test(an_empty_disk_is_a_copy),
        cmocka_unit_test(errors_name_the_place),
        cmocka_unit_test(wrong_hashes_are_found),
        cmocka_unit_test(it_can_be_cancelled),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
