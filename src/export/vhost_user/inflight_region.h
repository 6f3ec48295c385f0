/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The shared memory in which the queues of a disk note what they have taken: made by us on GET_INFLIGHT_FD, kept by the
 * front-end, and handed back by SET_INFLIGHT_FD, after our death perhaps. One part for each queue, all of the same length,
 * which is that of the longer of the two layouts: the region may be asked for before split or packed rings are chosen.
 */
#ifndef FLEECE_EXPORT_VHOST_USER_INFLIGHT_REGION_H
#define FLEECE_EXPORT_VHOST_USER_INFLIGHT_REGION_H

#include <stddef.h>

#include "export/vhost_user/shared_map.h"
#include "export/vhost_user/wire.h"

struct inflight_region {
    struct shared_map *map; /* NULL: there is none */
    unsigned queues;
    uint32_t queue_size;
    uint64_t queue_bytes;
};

/* A new one, zeroed; *fd is the caller's to send and to close; *answer says what it is. 0, or -errno with a sentence. */
int inflight_region_make(struct inflight_region *region, const struct vhost_inflight *wanted,
                         struct vhost_inflight *answer, int *fd, struct error *err);
/* One that a front-end hands over; the descriptor may be closed afterwards. */
int inflight_region_adopt(struct inflight_region *region, const struct vhost_inflight *given, int fd,
                          struct error *err);
void inflight_region_drop(struct inflight_region *region);

/* A queue's part, `bytes` of it; the driver may have made the queue smaller than what the region is for. NULL: there is no
 * region, or (with a sentence) it is not for such a queue. */
void *inflight_region_of(const struct inflight_region *region, unsigned index, uint32_t size, size_t bytes,
                         struct error *err);
/* Nothing of that queue is in flight: its part is as new. */
void inflight_region_clear(struct inflight_region *region, unsigned index);
bool inflight_region_is_torn(const struct inflight_region *region);

#endif
