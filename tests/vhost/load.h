/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The load generator: a thread for each queue, a fixed number of requests in flight in each. */
#ifndef TESTS_VHOST_LOAD_H
#define TESTS_VHOST_LOAD_H

#include "blk.h"

struct load_options {
    const char *rw; /* randread, randwrite, randrw, read, write; id: the disk's name, which costs no disk anything */
    uint32_t block_bytes, depth, buffers;
    double seconds, ramp;
    uint64_t size; /* bytes of the disk to use; 0: all */
    uint64_t seed;
    bool poll, verify, direct;
    struct front_options front;
};

/* Prints one line of JSON. The program's exit status. */
int load_run(const char *path, const struct load_options *options);

#endif
