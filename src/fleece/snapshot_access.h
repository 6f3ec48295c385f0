/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The read-only view of one disk at one point: a node that exports and copy jobs read. Owner: the disk's reactor. */
#ifndef FLEECE_FLEECE_SNAPSHOT_ACCESS_H
#define FLEECE_FLEECE_SNAPSHOT_ACCESS_H

#include "fleece/copy_before_write.h"

/* What had changed, at the instant of the snapshot, since a checkpoint. */
struct dirty_map {
    char name[LIMIT_NAME_BYTES + 1]; /* of the checkpoint */
    unsigned shift;                  /* a bit stands for 1 << shift bytes */
    struct bitmap changed;           /* the whole disk */
};

/*
 * NULL: no memory. Reads succeed once the point is live; of what was released, or is not in its needed set, they fail with
 * -ENODATA; later with -EIO (broken) or -ESHUTDOWN (deleted). Discards release. Block status can tell the residence, and
 * what had changed (dirty_maps), of released blocks, too.
 */
struct node *snapshot_access_create(struct point *point);
/* LIMIT_DIRTY_MAPS at most; takes over their bitmaps, and leaves none in `maps`. Once, after the cut, and before the first
 * request. */
void snapshot_access_set_maps(struct node *view, struct dirty_map *maps, unsigned count);

#endif
