/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Requests of a block device (VIRTIO 1.2, 5.2.6), in any layout: what the device reads (header, then data) and what it
 * writes (data, then the status byte) are two streams of bytes; a layout cuts each into pieces and places these in guest
 * memory.
 */
#ifndef TESTS_VHOST_BLK_H
#define TESTS_VHOST_BLK_H

#include "front_end.h"

enum { BLK_FRAGMENTS = 256 };

/* A seeded source of randomness: splitmix64. */
struct rng {
    uint64_t state;
};

uint64_t rng_next(struct rng *rng);
/* 0 .. limit - 1 */
static inline uint64_t rng_below(struct rng *rng, uint64_t limit)
{
    return rng_next(rng) % limit;
}
void rng_fill(struct rng *rng, void *to, size_t size);

/* One request at a time, with memory of its own. */
struct blk_request {
    struct guest_memory *memory;
    uint64_t arena, table; /* guest addresses */
    uint32_t arena_bytes;
    struct fragment fragments[BLK_FRAGMENTS];
    unsigned count, readable; /* fragments */
    unsigned direct;          /* of them before the indirect table */
    bool indirect;
    uint32_t writable_bytes, written; /* written: as the device says */
    struct ring *ring;                /* that it was submitted to, until it is finished */
};

/* `bytes`: of data, at most. With `across`: the arena lies across the end of `region`. */
void blk_request_init(struct blk_request *request, struct guest_memory *memory, unsigned region, uint32_t bytes,
                      bool across);

struct blk_command {
    uint32_t type;
    uint64_t sector;
    const void *out; /* data that the device reads */
    uint32_t out_bytes, in_bytes;
};

/* Header, data, status: a piece each. */
void blk_lay_out(struct blk_request *request, const struct blk_command *command);
/* How a random layout may use an indirect table: not at all; for all fragments; in split rings also for the last ones. */
enum tables { TABLES_NONE, TABLES_WHOLE, TABLES_MIXED };

/* Up to `pieces` of any size at any address. */
void blk_lay_out_randomly(struct blk_request *request, const struct blk_command *command, struct rng *rng,
                          unsigned pieces, enum tables tables);
/* -ENOSPC: no room in the ring now. */
int blk_submit(struct blk_request *request, struct ring *ring);
/* Copies the data out that the device wrote (`size` bytes of it) and returns the status. */
uint8_t blk_finish(struct blk_request *request, void *in, uint32_t size);
/* Sets the status byte to what no device writes. */
enum { BLK_NO_STATUS = 0xee };

/* Waits for the next used buffer of a ring: its token. -ETIMEDOUT, -ECONNRESET (the back-end hung up), -EPROTO. */
int blk_wait(struct front_end *front, struct ring *ring, int timeout_ms, void **token, uint32_t *written);
/* A whole request: its status, or -errno with front->error. */
int blk_do(struct front_end *front, struct ring *ring, struct blk_request *request, const struct blk_command *command,
           void *in);

#endif
