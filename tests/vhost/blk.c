// SPDX-License-Identifier: GPL-2.0-or-later
#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "blk.h"

enum { PAD_MAX = 64, SPLIT_PIECES_MAX = 64 };

uint64_t rng_next(struct rng *rng)
{
    uint64_t z = rng->state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

void rng_fill(struct rng *rng, void *to, size_t size)
{
    for (size_t done = 0; done < size;) {
        uint64_t word = rng_next(rng);
        size_t part = size - done < sizeof(word) ? size - done : sizeof(word);
        memcpy((char *)to + done, &word, part);
        done += part;
    }
}

void blk_request_init(struct blk_request *request, struct guest_memory *memory, unsigned region, uint32_t bytes,
                      bool across)
{
    *request = (struct blk_request){.memory = memory};
    request->arena_bytes = bytes + 4096 + BLK_FRAGMENTS * (PAD_MAX + 1);
    request->arena_bytes = (request->arena_bytes + 1) & ~1u;
    request->table = guest_take(memory, region, 16 * BLK_FRAGMENTS, 16);
    request->arena = across ? guest_take_across(memory, region, request->arena_bytes)
                            : guest_take(memory, region, request->arena_bytes, 4096);
}

static void place(struct blk_request *request, uint64_t *at, uint32_t length, bool writable)
{
    assert(request->count < BLK_FRAGMENTS && *at + length <= request->arena + request->arena_bytes);
    request->fragments[request->count++] = (struct fragment){*at, length, writable};
    *at += length;
    if (writable)
        request->writable_bytes += length;
    else
        request->readable = request->count;
}

/* Header and data into the readable pieces; the status byte's place gets what is no status. */
static void fill(struct blk_request *request, const struct blk_command *command)
{
    struct blk_header header = {command->type, 0, command->sector};
    size_t at = 0;
    for (unsigned i = 0; i < request->readable; i++) {
        const struct fragment *piece = &request->fragments[i];
        char *to = guest_at(request->memory, piece->address);
        for (uint32_t done = 0; done < piece->length;) {
            bool head = at < sizeof(header);
            const char *from = head ? (const char *)&header + at : (const char *)command->out + (at - sizeof(header));
            size_t part = head ? sizeof(header) - at : piece->length - done;
            part = part < piece->length - done ? part : piece->length - done;
            memcpy(to + done, from, part);
            done += (uint32_t)part;
            at += part;
        }
    }
    const struct fragment *last = &request->fragments[request->count - 1];
    *(uint8_t *)guest_at(request->memory, last->address + last->length - 1) = BLK_NO_STATUS;
}

static void begin(struct blk_request *request)
{
    assert(!request->ring);
    request->count = request->readable = request->direct = 0;
    request->writable_bytes = 0;
    request->indirect = false;
}

void blk_lay_out(struct blk_request *request, const struct blk_command *command)
{
    uint64_t at = request->arena, data = request->arena + 4096;
    begin(request);
    place(request, &at, BLK_HEADER_BYTES, false);
    if (command->out_bytes)
        place(request, &data, command->out_bytes, false);
    if (command->in_bytes)
        place(request, &data, command->in_bytes, true);
    place(request, &at, 1, true);
    fill(request, command);
}

/* A stream of `bytes`, in up to `pieces`: often few and large, sometimes many, sometimes single bytes. */
static void cut(struct blk_request *request, uint64_t *at, uint32_t bytes, bool writable, struct rng *rng,
                unsigned pieces)
{
    unsigned wanted = rng_below(rng, 4) ? 1 + (unsigned)rng_below(rng, 4)
                                        : 1 + (unsigned)rng_below(rng, SPLIT_PIECES_MAX);
    if (wanted > pieces)
        wanted = pieces;
    bool sectors = rng_below(rng, 2); /* cut where sectors end, or anywhere */
    for (unsigned left = wanted; bytes > 0; left--) {
        uint32_t length = bytes;
        if (left > 1 && bytes > 1) {
            uint32_t most = bytes / left * 2 < bytes ? bytes / left * 2 : bytes - 1;
            length = 1 + (uint32_t)rng_below(rng, most ? most : 1);
            if (sectors && length > SECTOR)
                length -= length % SECTOR;
            if (rng_below(rng, 8) == 0)
                length = 1;
        }
        if (rng_below(rng, 2))
            *at += rng_below(rng, PAD_MAX);
        place(request, at, length, writable);
        bytes -= length;
    }
}

void blk_lay_out_randomly(struct blk_request *request, const struct blk_command *command, struct rng *rng,
                          unsigned pieces, enum tables tables)
{
    begin(request);
    uint64_t at = request->arena;
    assert(pieces >= 4 && pieces < BLK_FRAGMENTS);
    cut(request, &at, BLK_HEADER_BYTES + command->out_bytes, false, rng, command->in_bytes ? pieces / 2 : pieces - 2);
    if (rng_below(rng, 3)) /* as most drivers do it: data where sectors or pages begin */
        at = (at + SECTOR - 1) / SECTOR * SECTOR;
    cut(request, &at, command->in_bytes + 1, true, rng, command->out_bytes ? 2 : pieces / 2);
    fill(request, command);
    request->indirect = tables != TABLES_NONE && rng_below(rng, 4);
    if (request->indirect && tables == TABLES_MIXED && rng_below(rng, 4) == 0)
        request->direct = (unsigned)rng_below(rng, request->count);
}

int blk_submit(struct blk_request *request, struct ring *ring)
{
    int status = ring_add(ring, request->fragments, request->count, request->indirect ? request->table : 0,
                          request->direct, request);
    if (status == 0)
        request->ring = ring;
    return status;
}

uint8_t blk_finish(struct blk_request *request, void *in, uint32_t size)
{
    uint32_t done = 0;
    for (unsigned i = request->readable; i < request->count && done < size; i++) {
        const struct fragment *piece = &request->fragments[i];
        uint32_t part = piece->length < size - done ? piece->length : size - done;
        memcpy((char *)in + done, guest_at(request->memory, piece->address), part);
        done += part;
    }
    const struct fragment *last = &request->fragments[request->count - 1];
    request->ring = NULL;
    return *(uint8_t *)guest_at(request->memory, last->address + last->length - 1);
}

static int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int blk_wait(struct front_end *front, struct ring *ring, int timeout_ms, void **token, uint32_t *written)
{
    for (int64_t end = now_ms() + timeout_ms;;) {
        if (ring_arm(ring)) {
            int status = ring_take(ring, token, written);
            return status == 1 ? 0 : status;
        }
        struct pollfd wait[2] = {{ring->call_fd, POLLIN, 0}, {front->socket, POLLIN, 0}};
        int64_t left = end - now_ms();
        if (left <= 0)
            return -ETIMEDOUT;
        poll(wait, 2, (int)left);
        if (wait[0].revents)
            ring_drain_call(ring);
        else if (wait[1].revents && !ring_has_used(ring))
            return -ECONNRESET;
    }
}

int blk_do(struct front_end *front, struct ring *ring, struct blk_request *request, const struct blk_command *command,
           void *in)
{
    blk_lay_out(request, command);
    int status = blk_submit(request, ring);
    if (status != 0)
        return front_fail(front, status, "no room in the ring");
    ring_kick(ring);
    void *token;
    status = blk_wait(front, ring, FRONT_TIMEOUT_MS, &token, &request->written);
    if (status != 0)
        return front_fail(front, status, "request %u at sector %llu: %s", command->type,
                          (unsigned long long)command->sector,
                          status == -ECONNRESET  ? "the back-end hung up"
                          : status == -ETIMEDOUT ? "no answer"
                                                 : "a buffer was used that was not given");
    if (token != request)
        return front_fail(front, -EPROTO, "another request than the only one was completed");
    if (request->written > request->writable_bytes)
        return front_fail(front, -EPROTO, "%u bytes are said to be written into %u", request->written,
                          request->writable_bytes);
    return blk_finish(request, in, command->in_bytes);
}
