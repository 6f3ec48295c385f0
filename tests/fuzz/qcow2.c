/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A stranger's qcow2 image: the input is the file, behind two bytes that choose what is done with it. It is opened, read,
 * asked for its block status, and written when that is allowed. Whatever the image says, each request ends, with data or
 * an error, and the file grows by no more than what was written.
 */
#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "driver/file.h"
#include "driver/qcow2/qcow2.h"
#include "world.h"

enum { REQUESTS = 24, REQUEST_BYTES = 128 * 1024, EXTENTS = 64, INPUT_MAX = 256 * 1024 };
#define READ_ONLY 1u

struct play {
    struct node *image;
    bool answered;
    unsigned pending;
    struct request requests[REQUESTS];
    struct iovec iov[REQUESTS];
    struct block_extent extents[REQUESTS][EXTENTS];
};

static void opened(void *argument, struct node *image, const struct error *err)
{
    struct play *play = argument;
    assert(image || (err->code != 0 && err->text[0]));
    play->image = image;
    play->answered = true;
}

static struct play *playing;

static void request_done(struct request *req, int status)
{
    assert(status <= 0);
    if (status == 0 && req->kind == REQUEST_BLOCK_STATUS) {
        uint64_t covered = 0;
        assert(req->extent_count > 0 && req->extent_count <= EXTENTS);
        for (unsigned i = 0; i < req->extent_count; i++)
            covered += req->extents[i].length;
        assert(covered > 0 && covered <= req->range.length);
    }
    playing->pending--;
}

static bool is_answered(void *argument)
{
    return ((struct play *)argument)->answered;
}

static bool is_over(void *argument)
{
    return ((struct play *)argument)->pending == 0;
}

static void submit(struct play *play, struct world *world, unsigned number, bool read_only)
{
    static const enum request_kind kinds[] = {REQUEST_READ,  REQUEST_BLOCK_STATUS, REQUEST_READ,    REQUEST_WRITE,
                                              REQUEST_WRITE, REQUEST_WRITE_ZEROES, REQUEST_DISCARD, REQUEST_FLUSH};
    struct request *req = &play->requests[number];
    uint64_t size = play->image->size_bytes, start = world_below(world, 2) ? world_below(world, size) : 0;
    uint64_t length = 1 + world_below(world, REQUEST_BYTES);
    if (world_below(world, 3) == 0) /* its end */
        start = size - 1 - world_below(world, size < 70000 ? size : 70000);
    *req = (struct request){.kind = kinds[world_below(world, read_only ? 3 : 8)],
                            .iov = &play->iov[number],
                            .iov_count = 1,
                            .extents = play->extents[number],
                            .extent_max = EXTENTS,
                            .done = request_done};
    if (req->kind == REQUEST_BLOCK_STATUS && world_below(world, 2))
        req->flags = REQUEST_TOP;
    if (req->kind == REQUEST_BLOCK_STATUS)
        length = size;
    if (req->kind != REQUEST_FLUSH)
        req->range = (struct range){start, length < size - start ? length : size - start};
    play->iov[number].iov_len = req->range.length;
    play->pending++;
    node_submit(play->image, req);
}

static void play_requests(struct play *play, struct world *world, struct io *io, bool read_only)
{
    for (unsigned round = 0; round < 2; round++) {
        world_act_as(world, io);
        for (unsigned i = 0; i < REQUESTS; i++)
            submit(play, world, i, read_only);
        world_act_as(world, NULL);
        bool over = world_run_until(world, is_over, play, 600 * NS_PER_S);
        assert(over);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length)
{
    if (length < 3 || length > INPUT_MAX)
        return 0;
    bool read_only = data[0] & READ_ONLY;
    struct world *world = world_create(&(struct world_options){.seed = data[1] + 1u});
    struct io *io = world_reactor(world, "disk", 1);
    struct world_file *image = world_file_create(world, "image", length - 2, 512, false);
    struct play *play = playing = calloc(1, sizeof *play);
    for (unsigned i = 0; i < REQUESTS; i++)
        play->iov[i].iov_base = calloc(1, REQUEST_BYTES);
    world_file_fill(image, 0, data + 2, length - 2);
    world_act_as(world, io);
    struct node *file;
    struct error err;
    int status = file_open(
        io, &(struct file_options){.path = "image", .read_only = read_only, .growable = true, .page_cache = true},
        &file, &err);
    assert(status == 0);
    status = qcow2_open(file, read_only, opened, play);
    assert(status == 0);
    world_act_as(world, NULL);
    bool answered = world_run_until(world, is_answered, play, 600 * NS_PER_S);
    assert(answered);
    if (play->image)
        play_requests(play, world, io, read_only);
    assert(world_file_size(image) < 64 * MIB);
    world_act_as(world, io);
    node_destroy(play->image ? play->image : file);
    world_act_as(world, NULL);
    world_run_for(world, NS_PER_S); /* what a commit has under way */
    unsigned left = world_destroy(world, NULL);
    assert(left == 0);
    for (unsigned i = 0; i < REQUESTS; i++)
        free(play->iov[i].iov_base);
    free(play);
    return 0;
}
