/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Block status of a snapshot, answered at once from memory: where blocks are, what they read as, and which had changed. */
#ifndef FLEECE_FLEECE_SNAPSHOT_STATUS_H
#define FLEECE_FLEECE_SNAPSHOT_STATUS_H

#include "fleece/snapshot_access.h"

/* Fills in the request's extents with enum residence_flags. */
void snapshot_residence(const struct point *point, struct request *req);
/* The same with enum extent_flags: what the disk says (`base`, from the start of the request's range), with every preserved
 * block as the cache has it. It ends before the first block that is not needed: 0, or -ENODATA when it begins with one. */
int snapshot_allocation(const struct point *point, struct request *req, const struct request *base);
/* The same with EXTENT_DIRTY. */
void snapshot_dirty(const struct dirty_map *map, struct request *req);

#endif
