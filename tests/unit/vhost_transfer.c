/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Long transfers over a node that answers when the test says so; what the driver is told of them ends here, too. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>

#include "export/vhost_user/session.h"

enum { PART_BYTES = 512000, PARTS = 13, PIECES = 7, START = 51200, TRANSFERS = 8 };
_Static_assert(TRANSFERS *LIMIT_VHOST_TRANSFER_PIECES == 2 * LIMIT_VHOST_PIECES, "half of them must wait");

struct scene {
    struct io io;
    struct node node;
    struct vhost_session session;
    struct vhost_queue queue;
    struct vhost_request requests[TRANSFERS];
    struct list held; /* requests that the node keeps, in the order of submission */
    unsigned held_count, finished;
    enum virtio_blk_status last;
    char memory[PART_BYTES]; /* the data of all: these bytes again and again */
};

void __wrap_vhost_request_finish(struct vhost_request *request, enum virtio_blk_status status);

void __wrap_vhost_request_finish(struct vhost_request *request, enum virtio_blk_status status)
{
    struct scene *scene = container_of(request->queue, struct scene, queue);
    assert_int_equal(request->pieces, 0);
    assert_false(list_linked(&request->link));
    scene->finished++;
    scene->last = status;
}

static void hold(struct node *node, struct request *req)
{
    struct scene *scene = container_of(node, struct scene, node);
    list_append(&scene->held, &req->link);
    scene->held_count++;
}

static bool is_owner(const struct io *io)
{
    (void)io;
    return true;
}

static const struct io_ops scene_ops = {.on_owner = is_owner};
static const struct node_ops holding_ops = {.driver = "holding", .submit = hold};

static void complete(struct scene *scene, struct request *req, int status)
{
    list_remove(&req->link);
    scene->held_count--;
    req->done(req, status);
}

static void complete_first(struct scene *scene)
{
    complete(scene, container_of(scene->held.head.next, struct request, link), 0);
}

/* The one that begins so many pieces behind the beginning; of the first transfer. */
static struct request *held_piece(struct scene *scene, uint64_t index)
{
    for (struct list_node *node = scene->held.head.next; node != &scene->held.head; node = node->next) {
        struct request *req = container_of(node, struct request, link);
        if (req->range.start == START + index * LIMIT_REQUEST_BYTES)
            return req;
    }
    return NULL;
}

static void begin_transfer(struct scene *scene, unsigned index, bool reads)
{
    struct vhost_request *request = &scene->requests[index];
    request->queue = &scene->queue;
    request->reads = reads;
    request->block.kind = reads ? REQUEST_READ : REQUEST_WRITE;
    request->block.flags = reads ? 0 : REQUEST_FUA;
    request->offset = START;
    request->left_bytes = (uint64_t)PART_BYTES * PARTS;
    request->data = request->chain.iov;
    request->data_count = PARTS;
    for (unsigned i = 0; i < PARTS; i++)
        request->chain.iov[i] = (struct iovec){scene->memory, PART_BYTES};
    vhost_transfer_begin(request);
}

static int begin(void **state)
{
    struct scene *scene = calloc(1, sizeof *scene);
    assert_non_null(scene);
    scene->io.ops = &scene_ops;
    scene->node = (struct node){.ops = &holding_ops, .io = &scene->io, .size_bytes = 16 * MIB, .alignment_bytes = 512};
    scene->session.node = &scene->node;
    scene->queue.session = &scene->session;
    list_init(&scene->held);
    assert_true(vhost_transfers_init(&scene->session.transfers));
    *state = scene;
    return 0;
}

static int end(void **state)
{
    struct scene *scene = *state;
    vhost_transfers_fini(&scene->session.transfers);
    free(scene);
    return 0;
}

/* The right bytes of memory, in order. */
static void check_piece(const struct scene *scene, const struct request *req)
{
    uint64_t at = req->range.start - START;
    assert_true(req->kind == REQUEST_WRITE && req->flags == REQUEST_FUA);
    for (unsigned i = 0; i < req->iov_count; i++) {
        assert_ptr_equal(req->iov[i].iov_base, scene->memory + at % PART_BYTES);
        assert_true(req->iov[i].iov_len > 0 && at % PART_BYTES + req->iov[i].iov_len <= PART_BYTES);
        at += req->iov[i].iov_len;
    }
    assert_true(at == range_end(req->range) - START);
}

/* Some at once, the next as soon as any of them is done, and each byte once. */
static void pieces_go_at_once(void **state)
{
    struct scene *scene = *state;
    static const uint64_t order[PIECES] = {2, 4, 0, 1, 6, 5, 3};
    uint64_t bytes = 0;
    begin_transfer(scene, 0, false);
    for (unsigned i = 0; i < PIECES; i++) {
        const unsigned left = PIECES - i;
        assert_int_equal(scene->held_count, left < LIMIT_VHOST_TRANSFER_PIECES ? left : LIMIT_VHOST_TRANSFER_PIECES);
        struct request *req = held_piece(scene, order[i]);
        assert_non_null(req);
        check_piece(scene, req);
        bytes += req->range.length;
        assert_int_equal(scene->finished, 0);
        complete(scene, req, 0);
    }
    assert_true(bytes == (uint64_t)PART_BYTES * PARTS);
    assert_int_equal(scene->finished, 1);
    assert_int_equal(scene->last, VIRTIO_BLK_S_OK);
}

/* Nothing more is submitted, what was is waited for, and the driver is told what has surely been read. */
static void a_piece_that_fails_ends_it(void **state)
{
    struct scene *scene = *state;
    begin_transfer(scene, 0, true);
    complete(scene, held_piece(scene, 3), -EIO);
    complete(scene, held_piece(scene, 1), -EIO);
    assert_int_equal(scene->held_count, LIMIT_VHOST_TRANSFER_PIECES - 2);
    complete_first(scene);
    assert_int_equal(scene->finished, 0);
    complete_first(scene);
    assert_int_equal(scene->held_count, 0);
    assert_int_equal(scene->finished, 1);
    assert_int_equal(scene->last, VIRTIO_BLK_S_IOERR);
    assert_int_equal(scene->requests[0].moved_bytes, LIMIT_REQUEST_BYTES);
}

static void all_is_read(void **state)
{
    struct scene *scene = *state;
    begin_transfer(scene, 0, true);
    while (scene->held_count > 0)
        complete_first(scene);
    assert_int_equal(scene->last, VIRTIO_BLK_S_OK);
    assert_int_equal(scene->requests[0].moved_bytes, (uint64_t)PART_BYTES * PARTS);
}

/* Pieces are bounded over all transfers, and those that wait for one get it in turn. */
static void transfers_wait_for_pieces(void **state)
{
    struct scene *scene = *state;
    for (unsigned i = 0; i < TRANSFERS; i++)
        begin_transfer(scene, i, false);
    assert_int_equal(scene->held_count, LIMIT_VHOST_PIECES);
    assert_int_equal(scene->requests[TRANSFERS - 1].pieces, 0);
    for (unsigned i = 0; i < LIMIT_VHOST_PIECES; i++)
        complete_first(scene);
    assert_true(scene->requests[TRANSFERS - 1].pieces > 0);
    while (scene->held_count > 0) {
        assert_true(scene->held_count <= LIMIT_VHOST_PIECES);
        complete_first(scene);
    }
    assert_int_equal(scene->finished, TRANSFERS);
    assert_int_equal(scene->last, VIRTIO_BLK_S_OK);
}

/* Of transfers under way and of those that wait nothing more is submitted (C14). */
static void a_closed_session_submits_nothing_more(void **state)
{
    struct scene *scene = *state;
    for (unsigned i = 0; i < TRANSFERS; i++)
        begin_transfer(scene, i, false);
    scene->session.state = VHOST_SESSION_CLOSED;
    for (unsigned i = LIMIT_VHOST_PIECES; i > 0; i--) {
        assert_int_equal(scene->held_count, i);
        complete_first(scene);
    }
    assert_int_equal(scene->finished, TRANSFERS);
    assert_int_equal(scene->last, VIRTIO_BLK_S_IOERR);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(pieces_go_at_once, begin, end),
        cmocka_unit_test_setup_teardown(a_piece_that_fails_ends_it, begin, end),
        cmocka_unit_test_setup_teardown(all_is_read, begin, end),
        cmocka_unit_test_setup_teardown(transfers_wait_for_pieces, begin, end),
        cmocka_unit_test_setup_teardown(a_closed_session_submits_nothing_more, begin, end),
    };
    return cmocka_run_group_tests_name("vhost transfer", tests, NULL, NULL);
}
