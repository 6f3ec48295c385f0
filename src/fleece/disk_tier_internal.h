/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What disk_tier.c (places in the file) and spill.c (the way there) share. */
#ifndef FLEECE_FLEECE_DISK_TIER_INTERNAL_H
#define FLEECE_FLEECE_DISK_TIER_INTERNAL_H

#include "fleece/cache_format.h"
#include "fleece/disk_tier.h"

/* Takes all slots of a segment that holds nothing: one that the budget has been charged for already, or a new one. */
bool disk_tier_claim(struct disk_tier *tier, uint32_t *segment);
/* Where the segment's header is. */
uint64_t disk_tier_segment_offset(const struct disk_tier *tier, uint32_t segment);
/* A spill has ended: punches may begin, and quiet may have come. */
void disk_tier_settle(struct disk_tier *tier);

#endif
