/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A chain of images as one node, on a real reactor, over images in memory: random chains against what they must read as. */
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
#include "set/chain_view.h"

#define LAYERS 4
#define BLOCK HASHES_BLOCK_BYTES
#define EXTENT MANIFEST_EXTENT_BYTES
#define SIZE (3 * EXTENT + 3 * BLOCK + 100)
#define SMALL (2 * EXTENT + 7 * BLOCK + 1000) /* of some images: the disk has grown, or shrunk and grown */

struct memory_node {
    struct node node;
    char *bytes;
    uint64_t read_bytes;
    int fail_status;
};

struct fixture {
    struct io *io;
    struct memory_node images[LAYERS];
    struct hashes hashes[LAYERS];
    struct chain_layer layers[LAYERS];
    struct node *view;
    char *model;
    bool done;
    int status;
    unsigned damaged[LAYERS];
    struct range damaged_extent;
};

static void memory_submit(struct node *node, struct request *req)
{
    struct memory_node *memory = container_of(node, struct memory_node, node);
    if (memory->fail_status) {
        request_complete(req, memory->fail_status);
        return;
    }
    if (req->kind == REQUEST_READ) {
        memory->read_bytes += req->range.length;
        iov_copy_in(req->iov, req->iov_count, 0, memory->bytes + req->range.start, req->range.length);
    } else {
        assert_int_equal(req->kind, REQUEST_BLOCK_STATUS);
        const char *at = memory->bytes + req->range.start;
        bool zero = at[0] == 0 && memcmp(at, at + 1, BLOCK - 1) == 0;
        uint64_t length = BLOCK;
        while (length < req->range.length && (at[length] == 0) == zero)
            length++;
        req->extents[0] = (struct block_extent){length < req->range.length ? length : req->range.length,
                                                zero ? EXTENT_ZERO : 0};
        req->extent_count = 1;
    }
    request_complete(req, 0);
}

static void memory_destroy(struct node *node)
{
    (void)node;
}

static const struct node_ops memory_ops = {.driver = "memory", .submit = memory_submit, .destroy = memory_destroy};

static void hash_line(struct hashes *hashes, uint64_t extent, const char *bytes)
{
    gnutls_hash_hd_t state;
    assert_int_equal(gnutls_hash_init(&state, GNUTLS_DIG_SHA256), 0);
    for (uint64_t block = extent * 256; block < (extent + 1) * 256 && block * BLOCK < hashes->size_bytes; block++) {
        uint64_t left = hashes->size_bytes - block * BLOCK;
        if (hashes_has_block(hashes, block))
            gnutls_hash(state, bytes + block * BLOCK, left < BLOCK ? left : BLOCK);
    }
    gnutls_hash_deinit(state, hashes->sha256 + extent * COPY_HASH_BYTES);
}

/* What the layer captures: nothing of most extents, then runs of blocks. */
static void choose_blocks(struct hashes *hashes)
{
    for (uint64_t extent = 0; extent < hashes->count; extent++)
        for (unsigned run = (unsigned)rand() % 3; run > 0; run--) {
            uint64_t first = extent * 256 + (unsigned)rand() % 256, end = first + 1 + (unsigned)rand() % 40;
            for (; first < end && first < (extent + 1) * 256 && first * BLOCK < hashes->size_bytes; first++)
                hashes->masks[first / 8] |= (uint8_t)(1u << first % 8);
        }
}

static void make_layer(struct fixture *f, unsigned index, bool shrunk)
{
    bool full = index == LAYERS - 1;
    uint64_t size = index == (shrunk ? 1 : LAYERS - 1) ? SMALL : SIZE;
    struct memory_node *image = &f->images[index];
    struct hashes *hashes = &f->hashes[index];
    assert_int_equal(hashes_init(hashes, size, !full, NULL), 0);
    image->node = (struct node){.ops = &memory_ops, .io = f->io, .size_bytes = size, .alignment_bytes = 1};
    image->bytes = malloc(size);
    uint64_t garbage = (unsigned)rand();
    for (uint64_t i = 0; i < size; i++) { /* where nothing is captured: it must never be seen */
        garbage = garbage * UINT64_C(6364136223846793005) + 1442695040888963407;
        image->bytes[i] = (char)(1 + (garbage >> 33) % 255);
    }
    if (full)
        memset(image->bytes, 0, EXTENT);
    else
        choose_blocks(hashes);
    for (uint64_t block = 0; block * BLOCK < size; block++) {
        uint64_t left = size - block * BLOCK;
        if (hashes_has_block(hashes, block))
            memcpy(f->model + block * BLOCK, image->bytes + block * BLOCK, left < BLOCK ? left : BLOCK);
    }
    memset(f->model + size, 0, SIZE - size);
    for (uint64_t extent = 0; extent < hashes->count; extent++)
        hash_line(hashes, extent, image->bytes);
    f->layers[index] = (struct chain_layer){&image->node, hashes, "an image"};
}

static void show(struct fixture *f, struct chain_view_options options)
{
    struct error err;
    if (f->view)
        node_destroy(f->view);
    options.io = f->io;
    options.size_bytes = SIZE;
    options.layers = f->layers;
    options.layer_count = LAYERS;
    if (chain_view_create(&options, &f->view, &err) < 0)
        fail_msg("%s", err.text);
}

static void fixture_init(struct fixture *f, unsigned seed)
{
    struct error err;
    memset(f, 0, sizeof *f);
    srand(seed);
    if (ring_create(&f->io, &err) < 0)
        fail_msg("%s", err.text);
    f->model = calloc(SIZE, 1);
    for (unsigned i = LAYERS; i-- > 0;)
        make_layer(f, i, seed % 2);
    show(f, (struct chain_view_options){0});
}

static void fixture_fini(struct fixture *f)
{
    node_destroy(f->view);
    for (unsigned i = 0; i < LAYERS; i++) {
        free(f->images[i].bytes);
        hashes_fini(&f->hashes[i]);
    }
    free(f->model);
    ring_destroy(f->io);
}

struct read {
    struct request req;
    struct iovec iov;
    struct fixture *f;
    unsigned *left;
};

static void read_done(struct request *req, int status)
{
    struct read *read = container_of(req, struct read, req);
    if (status < 0)
        read->f->status = status;
    if (--*read->left == 0)
        ring_quit(read->f->io);
}

/* Several reads at once; 0 when all were right, or the error of one. */
static int read_ranges(struct fixture *f, const struct range *ranges, unsigned count)
{
    struct read *reads = calloc(count, sizeof *reads);
    unsigned left = count;
    f->status = 0;
    for (unsigned i = 0; i < count; i++) {
        reads[i] = (struct read){.f = f, .left = &left, .iov = {malloc(ranges[i].length), ranges[i].length}};
        reads[i].req = (struct request){
            .kind = REQUEST_READ, .range = ranges[i], .iov = &reads[i].iov, .iov_count = 1, .done = read_done};
        node_submit(f->view, &reads[i].req);
    }
    ring_run(f->io);
    for (unsigned i = 0; i < count; i++) {
        if (f->status == 0)
            assert_memory_equal(reads[i].iov.iov_base, f->model + ranges[i].start, ranges[i].length);
        free(reads[i].iov.iov_base);
    }
    free(reads);
    return f->status;
}

static int read_all(struct fixture *f)
{
    const struct range all[] = {{0, EXTENT}, {EXTENT, EXTENT}, {2 * EXTENT, EXTENT}, {3 * EXTENT, SIZE - 3 * EXTENT}};
    return read_ranges(f, all, 4);
}

static void status_done(struct request *req, int status)
{
    (void)req;
    assert_int_equal(status, 0);
}

static struct io *quit_io;

static void quit_later(struct io_task *task)
{
    (void)task;
    ring_quit(quit_io);
}

static unsigned ask(struct fixture *f, struct range range, uint32_t flags, struct block_extent *extents, unsigned max)
{
    struct request req = {.kind = REQUEST_BLOCK_STATUS,
                          .flags = flags,
                          .range = range,
                          .extents = extents,
                          .extent_max = max,
                          .done = status_done};
    struct io_task quit = {.run = quit_later};
    quit_io = f->io;
    node_submit(f->view, &req);
    while (req.extent_count == 0 || list_linked(&req.completion.link)) {
        io_task_queue(f->io, &quit);
        ring_run(f->io);
    }
    return req.extent_count;
}

static void test_random_chains(void **state)
{
    (void)state;
    for (unsigned seed = 1; seed <= 8; seed++) {
        struct fixture f;
        struct range ranges[40];
        fixture_init(&f, seed);
        for (unsigned i = 0; i < 40; i++) { /* more than there are slots, across extents, over and over the same */
            uint64_t start = (unsigned)rand() % SIZE, length = 1 + (unsigned)rand() % EXTENT;
            ranges[i] = (struct range){start, length < SIZE - start ? length : SIZE - start};
        }
        assert_int_equal(read_ranges(&f, ranges, 40), 0);
        assert_int_equal(read_all(&f), 0);
        fixture_fini(&f);
    }
}

/* The first block that layer 1 captured in an extent and no newer one shows, and one that is hidden. */
static uint64_t find_block(const struct fixture *f, bool hidden)
{
    for (uint64_t block = 0; block * BLOCK < SIZE; block++)
        if (hashes_has_block(&f->hashes[1], block) && hashes_has_block(&f->hashes[0], block) == hidden)
            return block;
    fail_msg("no such block");
    return 0;
}

static void test_damage_fails_a_read(void **state)
{
    (void)state;
    struct fixture f;
    char words[64];
    fixture_init(&f, 3);
    uint64_t block = find_block(&f, false), extent = block / 256;
    struct range there = {block * BLOCK, 1};
    f.images[1].bytes[block * BLOCK + 17] ^= 1;
    assert_int_equal(read_ranges(&f, &there, 1), -EBADMSG);
    snprintf(words, sizeof words, "an image is damaged: extent %llu ", (unsigned long long)extent);
    assert_non_null(strstr(chain_view_error(f.view)->text, words));
    f.images[1].bytes[block * BLOCK + 17] ^= 1;
    assert_int_equal(read_all(&f), 0); /* what failed is not kept */
    f.images[1].fail_status = -EIO;
    show(&f, (struct chain_view_options){0});
    assert_int_equal(read_ranges(&f, &there, 1), -EIO);
    assert_non_null(strstr(chain_view_error(f.view)->text, "reading an image failed at byte"));
    fixture_fini(&f);
}

/* What a layer did not capture may be anything. */
static void test_garbage_is_not_looked_at(void **state)
{
    (void)state;
    struct fixture f;
    fixture_init(&f, 4);
    for (uint64_t block = 0; block * BLOCK < SIZE; block++)
        for (unsigned layer = 0; layer < LAYERS - 1; layer++)
            if (!hashes_has_block(&f.hashes[layer], block))
                f.images[layer].bytes[block * BLOCK] ^= 0x55;
    assert_int_equal(read_all(&f), 0);
    fixture_fini(&f);
}

static void note_damage(void *context, unsigned layer, struct range extent, int status)
{
    struct fixture *f = context;
    assert_true(status == -EBADMSG || status == -EIO);
    f->damaged[layer]++;
    f->damaged_extent = extent;
}

static void test_damage_is_told(void **state)
{
    (void)state;
    struct fixture f;
    struct block_extent answer;
    fixture_init(&f, 5);
    uint64_t extent = find_block(&f, false) / 256;
    f.images[1].bytes[find_block(&f, false) * BLOCK] ^= 1;
    show(&f, (struct chain_view_options){.damaged = note_damage, .context = &f});
    struct range there = {extent * EXTENT, 1};
    f.model[there.start] = 0; /* it is the damaged one, or not: only that the read goes on matters */
    struct iovec iov = {malloc(1), 1};
    unsigned left = 1;
    struct read read = {.f = &f, .left = &left};
    read.req = (struct request){.kind = REQUEST_READ, .range = there, .iov = &iov, .iov_count = 1, .done = read_done};
    f.status = 0;
    node_submit(f.view, &read.req);
    ring_run(f.io);
    free(iov.iov_base);
    assert_int_equal(f.status, 0);
    assert_int_equal(f.damaged[1], 1);
    assert_int_equal(f.damaged[0] + f.damaged[2] + f.damaged[3], 0);
    assert_int_equal(f.damaged_extent.start, extent * EXTENT);
    /* Extent 0 of the full image is recorded as zeroes; when it is not, it has to be read. */
    for (unsigned i = 0; i < LAYERS - 1; i++)
        memset(f.hashes[i].masks, 0, COPY_MASK_BYTES);
    assert_int_equal(ask(&f, (struct range){0, EXTENT}, 0, &answer, 1), 1);
    assert_int_equal(answer.flags, EXTENT_ZERO);
    f.images[LAYERS - 1].bytes[EXTENT - 1] = 1;
    ask(&f, (struct range){0, EXTENT}, 0, &answer, 1);
    assert_int_equal(answer.flags, 0);
    show(&f, (struct chain_view_options){0}); /* a restore knows better than the image */
    ask(&f, (struct range){0, EXTENT}, 0, &answer, 1);
    assert_int_equal(answer.flags, EXTENT_ZERO);
    assert_int_equal(answer.length, EXTENT);
    fixture_fini(&f);
}

static void test_dirty_map(void **state)
{
    (void)state;
    struct fixture f;
    struct block_extent answer[7];
    fixture_init(&f, 9);
    f.layers[LAYERS - 1] = f.layers[LAYERS - 2]; /* without the full one, which has everything */
    assert_int_equal(f.view->dirty_map_count, 1);
    for (uint64_t at = 0; at < SIZE;) {
        unsigned count = ask(&f, (struct range){at, SIZE - at}, REQUEST_DIRTY, answer, 7);
        assert_in_range(count, 1, 7);
        for (unsigned i = 0; i < count; i++)
            for (uint64_t end = at + answer[i].length; at < end; at += BLOCK < end - at ? BLOCK : end - at) {
                bool captured = false;
                for (unsigned layer = 0; layer < LAYERS - 1; layer++)
                    captured |= at >= round_down(f.hashes[layer].size_bytes, BLOCK) || /* behind its end: zero */
                                hashes_has_block(&f.hashes[layer], at / BLOCK);
                assert_int_equal(answer[i].flags, captured ? EXTENT_DIRTY : 0);
            }
    }
    fixture_fini(&f);
}

static void test_only_some_extents(void **state)
{
    (void)state;
    struct fixture f;
    struct bitmap only;
    struct block_extent answer;
    fixture_init(&f, 7);
    assert_int_equal(bitmap_init(&only, 4, false), 0);
    assert_int_equal(bitmap_assign(&only, 1, 1, true), 0);
    show(&f, (struct chain_view_options){.only = &only});
    ask(&f, (struct range){0, SIZE}, 0, &answer, 1);
    assert_int_equal(answer.flags, EXTENT_ZERO);
    assert_int_equal(answer.length, EXTENT);
    ask(&f, (struct range){EXTENT, SIZE - EXTENT}, 0, &answer, 1);
    assert_int_equal(answer.flags, 0);
    bitmap_fini(&only);
    fixture_fini(&f);
}

/* What was read is kept for the next read: a second one of the same extent costs nothing. */
static void test_cost(void **state)
{
    (void)state;
    struct fixture f;
    fixture_init(&f, 8);
    struct range there = {find_block(&f, false) * BLOCK, BLOCK};
    assert_int_equal(read_ranges(&f, &there, 1), 0);
    uint64_t first = 0, second = 0;
    for (unsigned i = 0; i < LAYERS; i++)
        first += f.images[i].read_bytes;
    assert_int_equal(read_ranges(&f, &there, 1), 0);
    for (unsigned i = 0; i < LAYERS; i++)
        second += f.images[i].read_bytes;
    assert_int_equal(first, second); /* the second one was in its slot */
    fixture_fini(&f);
}

/* A hash is taken over where one line is all that there is, and never where an end of an image may cut it. */
static void test_hash_of_one_line(void **state)
{
    (void)state;
    unsigned taken = 0, refused = 0;
    for (unsigned seed = 1; seed <= 8; seed++) {
        struct fixture f;
        struct error err;
        uint8_t hash[COPY_HASH_BYTES];
        fixture_init(&f, seed);
        const struct chain_layer two[] = {f.layers[0], f.layers[2]};
        struct chain_view_options options = {.io = f.io, .size_bytes = SIZE, .layers = two, .layer_count = 2};
        for (uint64_t extent = 0; extent < f.hashes[0].count; extent++)
            assert_false(chain_view_hash(f.view, extent, hash));
        node_destroy(f.view);
        assert_int_equal(chain_view_create(&options, &f.view, &err), 0);
        for (uint64_t extent = 0; extent < f.hashes[0].count; extent++) {
            bool any[2] = {false, false};
            for (uint64_t block = extent * 256; block < (extent + 1) * 256; block++)
                for (unsigned i = 0; i < 2; i++)
                    any[i] |= hashes_has_block(two[i].hashes, block);
            assert_int_equal(chain_view_hash(f.view, extent, hash), any[0] != any[1]);
            taken += any[0] != any[1];
            refused += any[0] && any[1];
            if (any[0] != any[1])
                assert_memory_equal(hash, two[any[1]].hashes->sha256 + extent * COPY_HASH_BYTES, COPY_HASH_BYTES);
        }
        fixture_fini(&f);
    }
    assert_true(taken > 0 && refused > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_chains),
        cmocka_unit_test(test_damage_fails_a_read),
        cmocka_unit_test(test_garbage_is_not_looked_at),
        cmocka_unit_test(test_damage_is_told),
        cmocka_unit_test(test_dirty_map),
        cmocka_unit_test(test_only_some_extents),
        cmocka_unit_test(test_cost),
        cmocka_unit_test(test_hash_of_one_line),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
