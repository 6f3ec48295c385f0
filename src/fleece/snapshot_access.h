/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The read-only view of one disk at one point: a node that exports and copy jobs read. Owner: the disk's reactor. */
#ifndef FLEECE_FLEECE_SNAPSHOT_ACCESS_H
#define FLEECE_FLEECE_SNAPSHOT_ACCESS_H

#include "fleece/copy_before_write.h"

/* NULL: no memory. Reads succeed once the point is live, and fail with -EIO (broken) or -ESHUTDOWN (deleted) later. */
struct node *snapshot_access_create(struct point *point);

#endif
