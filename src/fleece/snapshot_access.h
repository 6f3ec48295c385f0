/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The read-only view of one disk at one point: a node that exports and copy jobs read. Owner: the disk's reactor. */
#ifndef FLEECE_FLEECE_SNAPSHOT_ACCESS_H
#define FLEECE_FLEECE_SNAPSHOT_ACCESS_H

#include "fleece/copy_before_write.h"

/*
 * NULL: no memory. Reads succeed once the point is live; of what was released, or is not in its needed set, they fail with
 * -ENODATA; later with -EIO (broken) or -ESHUTDOWN (deleted). Discards release. Block status can tell the residence.
 */
struct node *snapshot_access_create(struct point *point);

#endif
