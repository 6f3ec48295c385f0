/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The null driver: reads zeroes, forgets writes; to measure everything but the disk. */
#ifndef FLEECE_DRIVER_NULL_H
#define FLEECE_DRIVER_NULL_H

#include "block/node.h"

/* Any thread, before the owner uses it. NULL: no memory. */
struct node *null_create(struct io *io, uint64_t size_bytes);

#endif
