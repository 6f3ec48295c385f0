/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The copy engine with a source that says where its blocks are and lets them be released: order, release, needed sets,
 * speed and pause. The source is a model of a snapshot's view: it fails reads of what was released, and complains when
 * something is released that the target could still lose.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "io/ring.h"
#include "job/copy.h"

#define CELL ((uint64_t)4096)
#define EXTENTS 48
#define SIZE (EXTENTS * COPY_EXTENT_BYTES)
#define CELLS (SIZE / CELL)

enum safety { UNWRITTEN, WRITTEN, FLUSHING, SAFE };

struct view {
    struct node node;
    char *bytes;
    uint8_t residence[CELLS];
    bool zero[EXTENTS];
    unsigned read_order[4 * EXTENTS], reads; /* extents */
    unsigned discards, discarded_bytes, queries;
    int discard_status;
    void (*at_read)(struct view *view);
    struct fixture *fixture;
};

struct target {
    struct node node;
    char *bytes;
    uint8_t safety[CELLS];
    unsigned flushes, write_order[4 * EXTENTS], writes; /* extents; of zeroes, too */
    int flush_status;
    struct request *flush; /* takes a while */
    struct io_timer flush_timer;
};

struct fixture {
    struct io *io;
    struct view view;
    struct target target;
    struct copy_options options;
    struct copy *copy;
    int status;
    struct error err;
    bool done, paused;
    struct io_timer timer;
    unsigned reads_when_paused, looks;
    uint64_t began_ns;
};

/* Block status ends before what is not needed; residence tells that, too. */
static int view_status(struct view *view, struct request *req)
{
    bool residence = req->flags & REQUEST_RESIDENCE;
    uint64_t most = req->range.length < 16 * MIB ? req->range.length : 16 * MIB; /* as a real one clips it */
    req->extent_count = 0;
    for (uint64_t at = req->range.start; at < req->range.start + most; at += CELL - at % CELL) {
        if (!residence && (view->residence[at / CELL] & RESIDENCE_RELEASED))
            break;
        uint64_t cell = at / CELL,
                 end = (cell + 1) * CELL < req->range.start + most ? (cell + 1) * CELL : req->range.start + most;
        uint32_t flags = req->flags & REQUEST_RESIDENCE       ? view->residence[cell]
                         : view->zero[at / COPY_EXTENT_BYTES] ? EXTENT_ZERO | EXTENT_HOLE
                                                              : 0;
        struct block_extent *last = req->extent_count ? &req->extents[req->extent_count - 1] : NULL;
        if (last && last->flags == flags)
            last->length += end - at;
        else if (req->extent_count == req->extent_max)
            break;
        else
            req->extents[req->extent_count++] = (struct block_extent){end - at, flags};
    }
    return req->extent_count > 0 ? 0 : -ENODATA;
}

static int view_discard(struct view *view, const struct request *req)
{
    assert_true(req->range.length <= LIMIT_NBD_RANGE_BYTES);
    const struct target *target = &view->fixture->target;
    if (view->node.block_bytes) {
        assert_int_equal(req->range.start % view->node.block_bytes, 0);
        assert_true(req->range.length % view->node.block_bytes == 0 || range_end(req->range) == SIZE);
    }
    for (uint64_t at = req->range.start; at < range_end(req->range); at += CELL) {
        assert_true(view->zero[at / COPY_EXTENT_BYTES] || (view->residence[at / CELL] & RESIDENCE_RELEASED) ||
                    target->safety[at / CELL] == SAFE);
        view->residence[at / CELL] = RESIDENCE_RELEASED;
    }
    view->discards++;
    view->discarded_bytes += (unsigned)req->range.length;
    return view->discard_status;
}

static void view_submit(struct node *node, struct request *req)
{
    struct view *view = container_of(node, struct view, node);
    int status = 0;
    if (req->kind == REQUEST_READ) {
        if (view->at_read)
            view->at_read(view);
        view->read_order[view->reads++ % (4 * EXTENTS)] = (unsigned)(req->range.start / COPY_EXTENT_BYTES);
        for (uint64_t at = req->range.start; at < range_end(req->range); at += CELL)
            if (view->residence[at / CELL] & RESIDENCE_RELEASED)
                status = -ENODATA;
        iov_copy_in(req->iov, req->iov_count, 0, view->bytes + req->range.start, req->range.length);
    } else if (req->kind == REQUEST_DISCARD) {
        status = view_discard(view, req);
    } else {
        view->queries++;
        status = view_status(view, req);
    }
    request_complete(req, status);
}

static void safety_moves(struct target *target, enum safety from, enum safety to)
{
    for (unsigned i = 0; i < CELLS; i++)
        if (target->safety[i] == from)
            target->safety[i] = (uint8_t)to;
}

static void target_flushed(struct io_timer *timer)
{
    struct target *target = container_of(timer, struct target, flush_timer);
    safety_moves(target, FLUSHING, SAFE);
    request_complete(target->flush, target->flush_status);
}

static void target_submit(struct node *node, struct request *req)
{
    struct target *target = container_of(node, struct target, node);
    if (req->kind == REQUEST_FLUSH) {
        target->flushes++;
        safety_moves(target, WRITTEN, FLUSHING);
        target->flush = req;
        target->flush_timer.fire = target_flushed;
        io_timer_set(node->io, &target->flush_timer, io_now_ns(node->io) + 50 * NS_PER_MS);
        return;
    }
    if (req->kind == REQUEST_WRITE)
        iov_copy_out(req->iov, req->iov_count, 0, target->bytes + req->range.start, req->range.length);
    else
        memset(target->bytes + req->range.start, 0, req->range.length);
    target->write_order[target->writes++ % (4 * EXTENTS)] = (unsigned)(req->range.start / COPY_EXTENT_BYTES);
    for (uint64_t at = req->range.start; at < range_end(req->range); at += CELL)
        target->safety[at / CELL] = WRITTEN;
    request_complete(req, 0);
}

static void no_destroy(struct node *node)
{
    (void)node;
}

static const struct node_ops view_ops = {.driver = "view", .submit = view_submit, .destroy = no_destroy};
static const struct node_ops target_ops = {.driver = "target", .submit = target_submit, .destroy = no_destroy};

static void fixture_init(struct fixture *f)
{
    struct error err;
    memset(f, 0, sizeof *f);
    if (ring_create(&f->io, &err) < 0)
        fail_msg("%s", err.text);
    f->view.node = (struct node){.ops = &view_ops,
                                 .io = f->io,
                                 .size_bytes = SIZE,
                                 .alignment_bytes = 1,
                                 .read_only = true,
                                 .can_release = true};
    f->view.fixture = f;
    f->target.node = (struct node){.ops = &target_ops, .io = f->io, .size_bytes = SIZE, .alignment_bytes = 1};
    f->view.bytes = malloc(SIZE);
    f->target.bytes = malloc(SIZE);
    for (uint64_t i = 0; i < SIZE; i++)
        f->view.bytes[i] = (char)(i / CELL + i % 251 + 1);
    memset(f->target.bytes, 0x55, SIZE);
    f->options = (struct copy_options){.io = f->io,
                                       .source = &f->view.node,
                                       .target = &f->target.node,
                                       .source_name = "the view",
                                       .target_name = "the target",
                                       .workers = 1,
                                       .advice = true};
}

static void fixture_fini(struct fixture *f)
{
    free(f->view.bytes);
    free(f->target.bytes);
    ring_destroy(f->io);
}

static void on_done(void *context, int status, const struct error *err)
{
    struct fixture *f = context;
    f->done = true;
    f->status = status;
    f->err = *err;
    ring_quit(f->io);
}

static void on_paused(void *context)
{
    struct fixture *f = context;
    f->paused = true;
    f->reads_when_paused = f->view.reads;
}

static void start(struct fixture *f)
{
    f->options.done = on_done;
    f->options.paused = on_paused;
    f->options.context = f;
    f->copy = copy_start(&f->options);
    assert_non_null(f->copy);
}

static void run(struct fixture *f)
{
    start(f);
    ring_run(f->io);
    assert_true(f->done);
}

static void reside(struct fixture *f, unsigned extent, unsigned cell, uint8_t flags)
{
    f->view.residence[extent * (COPY_EXTENT_BYTES / CELL) + cell] = flags;
}

static void zero_extent(struct fixture *f, unsigned extent)
{
    f->view.zero[extent] = true;
    memset(f->view.bytes + extent * COPY_EXTENT_BYTES, 0, COPY_EXTENT_BYTES);
}

static void check_equal(const struct fixture *f)
{
    assert_int_equal(f->status, 0);
    assert_memory_equal(f->view.bytes, f->target.bytes, SIZE);
}

/* One block of extents 20 and 40 is in RAM, of 2 and 3 in the cache file; 5 and 6 are zeroes. */
static void advise(struct fixture *f)
{
    reside(f, 40, 255, RESIDENCE_CHANGED | RESIDENCE_RAM);
    reside(f, 20, 7, RESIDENCE_CHANGED | RESIDENCE_RAM);
    reside(f, 20, 8, RESIDENCE_CHANGED | RESIDENCE_CACHE);
    reside(f, 2, 0, RESIDENCE_CHANGED | RESIDENCE_CACHE);
    reside(f, 3, 1, RESIDENCE_CHANGED | RESIDENCE_CACHE);
    zero_extent(f, 5);
    zero_extent(f, 6);
}

static void ram_first_cache_late_zeroes_last(void **state)
{
    (void)state;
    struct fixture f;
    fixture_init(&f);
    advise(&f);
    run(&f);
    check_equal(&f);
    assert_int_equal(f.target.writes, EXTENTS);
    /* The first answers cover 16 extents, so something from the disk may go before RAM is known; not after it. */
    unsigned at = 0, ram = 0;
    for (; at < EXTENTS && ram < 2; at++)
        ram += f.target.write_order[at] == 20 || f.target.write_order[at] == 40;
    assert_in_range(at, 2, 17);
    const unsigned end[] = {2, 3, 5, 6};
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(f.target.write_order[EXTENTS - 4 + i], end[i]);
    fixture_fini(&f);

    /* Without advice: in the order of the disk. */
    fixture_init(&f);
    advise(&f);
    f.options.advice = false;
    run(&f);
    check_equal(&f);
    for (unsigned i = 0; i < EXTENTS; i++)
        assert_int_equal(f.target.write_order[i], i);
    fixture_fini(&f);
}

static void in_a_hurry_the_cache_is_second(void **state)
{
    (void)state;
    struct fixture f;
    fixture_init(&f);
    advise(&f);
    f.options.speed = 1; /* is lifted, too */
    start(&f);
    copy_hurry(f.copy, true);
    ring_run(f.io);
    check_equal(&f);
    unsigned at = 0, held = 0;
    for (; at < EXTENTS && held < 4; at++)
        held += f.target.write_order[at] == 20 || f.target.write_order[at] == 40 || f.target.write_order[at] == 2 ||
                f.target.write_order[at] == 3;
    assert_in_range(at, 4, 19);
    assert_int_equal(f.target.write_order[EXTENTS - 1], 6);
    fixture_fini(&f);
}

/* The guest writes into the last extent while the copy is at its beginning. */
static void guest_writes_late(struct view *view)
{
    if (view->reads == 0)
        reside(view->fixture, EXTENTS - 1, 3, RESIDENCE_CHANGED | RESIDENCE_RAM);
}

static void it_asks_again(void **state)
{
    (void)state;
    struct fixture f;
    fixture_init(&f);
    f.view.at_read = guest_writes_late;
    f.options.speed = 48 * MIB; /* one second: five rounds */
    run(&f);
    check_equal(&f);
    unsigned at = 0;
    while (f.view.read_order[at] != EXTENTS - 1)
        at++;
    assert_in_range(at, 1, EXTENTS / 2);
    fixture_fini(&f);
}

/* True when enough was released before the end of a copy at that speed. */
static bool releases(uint32_t block_bytes, uint64_t speed)
{
    struct fixture f;
    fixture_init(&f);
    advise(&f);
    f.view.node.block_bytes = block_bytes;
    f.options.release = true;
    f.options.speed = speed;
    f.options.workers = 4;
    run(&f);
    check_equal(&f);
    assert_true(f.view.discards < EXTENTS); /* in long runs */
    const bool enough = f.view.discards >= 1 && f.view.discarded_bytes >= 16 * MIB && f.target.flushes >= 2;
    fixture_fini(&f);
    return enough;
}

static void what_is_safe_is_released(void **state)
{
    (void)state;
    const uint32_t block_bytes[] = {0, 4096, 4 * MIB};
    for (unsigned i = 0; i < 3; i++) {
        uint64_t speed = 64 * MIB; /* less on a machine that was away when there was something to release */
        while (!releases(block_bytes[i], speed))
            assert_true((speed /= 2) >= 4 * MIB);
    }
}

static void failures_of_releasing(void **state)
{
    (void)state;
    struct fixture f;
    fixture_init(&f);
    f.options.release = true;
    f.options.speed = 32 * MIB;
    f.view.discard_status = -EIO; /* costs room, not the copy */
    f.view.node.block_bytes = 4096;
    run(&f);
    assert_int_equal(f.status, 0);
    assert_int_equal(f.view.discards, 1);
    fixture_fini(&f);

    fixture_init(&f);
    f.options.release = true;
    f.options.speed = 32 * MIB;
    f.target.flush_status = -EIO; /* what was written may be lost: never flushed again, nothing released */
    run(&f);
    assert_int_equal(f.status, -EIO);
    assert_string_equal(f.err.text, "flushing the target failed: Input/output error");
    assert_int_equal(f.target.flushes, 1);
    assert_int_equal(f.view.discards, 0);
    fixture_fini(&f);

    fixture_init(&f);
    f.options.release = true;
    f.view.node.can_release = false;
    f.options.speed = 96 * MIB;
    run(&f);
    check_equal(&f);
    assert_int_equal(f.target.flushes, 1);
    fixture_fini(&f);
}

/* Every third cell is not needed, and extents 8 to 15 not at all: the target keeps what it has there. */
static void only_what_is_needed(void **state)
{
    (void)state;
    for (unsigned advice = 0; advice < 2; advice++) {
        struct fixture f;
        fixture_init(&f);
        zero_extent(&f, 30);
        for (uint64_t cell = 0; cell < CELLS; cell++)
            if (cell % 3 == 0 || (cell >= 8 * 256 && cell < 16 * 256))
                f.view.residence[cell] = RESIDENCE_RELEASED;
        f.options.needed_only = true;
        f.options.advice = advice;
        f.options.workers = 0;
        f.options.release = advice;
        f.options.speed = advice ? 64 * MIB : 0;
        char *right = malloc(SIZE);
        memcpy(right, f.view.bytes, SIZE);
        for (uint64_t cell = 0; cell < CELLS; cell++)
            if (f.view.residence[cell] & RESIDENCE_RELEASED)
                memset(right + cell * CELL, 0x55, CELL);
        run(&f);
        assert_int_equal(f.status, 0);
        assert_memory_equal(right, f.target.bytes, SIZE);
        free(right);
        fixture_fini(&f);
    }
}

/* A write of the guest brings old data straight to the target, and the blocks are needed no more, while they are read. */
static void written_through(struct view *view)
{
    struct target *target = &view->fixture->target;
    for (uint64_t cell = view->reads * 256 + 5; view->reads < EXTENTS && cell < view->reads * 256 + 90; cell++) {
        memcpy(target->bytes + cell * CELL, view->bytes + cell * CELL, CELL);
        view->residence[cell] = RESIDENCE_RELEASED;
    }
}

static void what_the_target_has_already_is_left_alone(void **state)
{
    (void)state;
    struct fixture f;
    fixture_init(&f);
    f.options.needed_only = true;
    f.view.at_read = written_through;
    run(&f);
    check_equal(&f);
    assert_true(f.view.reads > EXTENTS);
    fixture_fini(&f);
}

static void lift_the_limit(struct io_timer *timer)
{
    struct fixture *f = container_of(timer, struct fixture, timer);
    /* A read of a MiB each second, and what may come at once. */
    assert_in_range(f->view.reads, 1, 4 + (io_now_ns(f->io) - f->began_ns) / NS_PER_S);
    copy_set_speed(f->copy, 0);
}

static void the_speed_is_kept_and_can_be_changed(void **state)
{
    (void)state;
    struct fixture f;
    fixture_init(&f);
    f.options.speed = 128 * MIB;
    uint64_t began_ns = io_now_ns(f.io);
    run(&f);
    assert_true(io_now_ns(f.io) - began_ns >= 400 * NS_PER_MS);
    check_equal(&f);
    fixture_fini(&f);

    fixture_init(&f);
    f.options.speed = MIB;
    f.timer.fire = lift_the_limit;
    f.began_ns = io_now_ns(f.io);
    start(&f);
    io_timer_set(f.io, &f.timer, f.began_ns + 300 * NS_PER_MS);
    ring_run(f.io);
    check_equal(&f);
    assert_true(io_now_ns(f.io) - f.began_ns < EXTENTS / 2 * NS_PER_S);
    fixture_fini(&f);
}

static void pause_early(struct view *view)
{
    if (view->reads == 10)
        copy_pause(view->fixture->copy);
}

/* True for a while, until the pause has lasted from one look to the next. */
static bool comes_again(struct fixture *f)
{
    const bool again = !f->paused || f->looks++ == 0;
    if (again)
        io_timer_set(f->io, &f->timer, io_now_ns(f->io) + 300 * NS_PER_MS);
    return again;
}

static void go_on(struct io_timer *timer)
{
    struct fixture *f = container_of(timer, struct fixture, timer);
    if (comes_again(f))
        return;
    assert_int_equal(f->view.reads, f->reads_when_paused);
    copy_resume(f->copy);
}

static void end_it(struct io_timer *timer)
{
    struct fixture *f = container_of(timer, struct fixture, timer);
    if (comes_again(f))
        return;
    assert_false(f->done);
    copy_cancel(f->copy);
}

static void it_pauses(void **state)
{
    (void)state;
    for (unsigned cancel = 0; cancel < 2; cancel++) {
        struct fixture f;
        fixture_init(&f);
        f.options.workers = 4;
        f.view.at_read = pause_early;
        f.timer.fire = cancel ? end_it : go_on;
        start(&f);
        io_timer_set(f.io, &f.timer, io_now_ns(f.io) + 300 * NS_PER_MS);
        ring_run(f.io);
        assert_in_range(f.reads_when_paused, 10, 18);
        if (cancel)
            assert_int_equal(f.status, -ECANCELED);
        else
            check_equal(&f);
        fixture_fini(&f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ram_first_cache_late_zeroes_last),
        cmocka_unit_test(in_a_hurry_the_cache_is_second),
        cmocka_unit_test(it_asks_again),
        cmocka_unit_test(what_is_safe_is_released),
        cmocka_unit_test(failures_of_releasing),
        cmocka_unit_test(only_what_is_needed),
        cmocka_unit_test(what_the_target_has_already_is_left_alone),
        cmocka_unit_test(the_speed_is_kept_and_can_be_changed),
        cmocka_unit_test(it_pauses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
