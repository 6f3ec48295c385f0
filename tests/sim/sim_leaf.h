/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A leaf that hands each request to the world's disk as it is: buffered, any alignment, one operation for a request. It
 * takes the file driver's place where the driver itself is not what is tested.
 */
#ifndef TESTS_SIM_SIM_LEAF_H
#define TESTS_SIM_SIM_LEAF_H

#include "block/node.h"

/* Acting as `io`. 0 or -errno. */
int sim_leaf_open(struct io *io, const char *path, struct node **node);
/* Its next growth fails: -ENOSPC: at once; -EIO: when it is flushed. */
void sim_leaf_fail_growth(struct node *node, int status);
/* The request of an operation of such a leaf. */
struct request *sim_leaf_request(const struct io_op *op);

#endif
