/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Random requests in random layouts, and a model of the disk in memory that says what each read must find. */
#ifndef TESTS_VHOST_MODEL_H
#define TESTS_VHOST_MODEL_H

#include "blk.h"

struct model_options {
    uint64_t requests, size, seed; /* size: bytes of the disk to use; 0: 16 MiB, or all of a smaller one */
    unsigned depth;                /* requests in flight, over all queues */
    bool reconnect;
    bool migrate; /* the VM does, again and again, and goes on where it was */
    bool part;    /* ... when a line of the standard input says so, and waits there for the next one, or its end */
    bool across;  /* also fragments that begin in one region of memory and end in the next */
    bool mixed;   /* also tables behind direct descriptors, which VIRTIO allows and not every device knows */
    struct front_options front;
};

/* Prints one line of JSON, or what was wrong. The program's exit status. */
int model_run(const char *path, const struct model_options *options);

#endif
