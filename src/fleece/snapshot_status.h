/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Block status of a point, answered at once from the cache's map: where its blocks are, and what they read as. */
#ifndef FLEECE_FLEECE_SNAPSHOT_STATUS_H
#define FLEECE_FLEECE_SNAPSHOT_STATUS_H

#include "fleece/copy_before_write.h"

/* Fills in the request's extents with enum residence_flags. */
void snapshot_residence(const struct point *point, struct request *req);
/* The same with enum extent_flags: what the disk says (`base`, from the start of the request's range), with every preserved
 * block as the cache has it. It ends before the first block that is not needed: 0, or -ENODATA when it begins with one. */
int snapshot_allocation(const struct point *point, struct request *req, const struct request *base);

#endif
