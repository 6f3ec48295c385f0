/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which extents of a disk are active: named in the log block that is on stable storage, so that a power loss sets all their
 * bits. This is the bookkeeping; who writes log blocks and pages is retire.c. Owner: the disk's reactor.
 */
#ifndef FLEECE_TRACK_ACTIVITY_LOG_H
#define FLEECE_TRACK_ACTIVITY_LOG_H

#include <stdbool.h>

#include "base/list.h"
#include "track/sidecar_format.h"

enum extent_state {
    EXTENT_IDLE,     /* its bits in memory are exactly those in the sidecar, of every span */
    EXTENT_LOGGING,  /* has a slot, and is or will be in a log block that is not durable yet */
    EXTENT_ACTIVE,   /* named durably: bits may be set */
    EXTENT_RETIRING, /* its pages are being stored; bits that are set now need it active again */
};

#define EXTENT_STATE_SHIFT 14

struct activity_slot {
    uint32_t extent;
    bool composed;         /* of a LOGGING one: in the block that is being written */
    bool touched;          /* got new bits since it was last looked at */
    struct list_node link; /* in `free`, or in `order` */
};

struct activity_log {
    uint32_t extent_count;
    uint16_t *extents; /* state << EXTENT_STATE_SHIFT | slot */
    unsigned limit;    /* of slots in use; after a restart there may be more */
    unsigned used_count, active_count, logging_count, retiring_count;
    unsigned fresh_count;    /* LOGGING, and in no block yet */
    struct list free, order; /* order: in use, those first that were activated or touched longest ago */
    struct activity_slot slots[SIDECAR_LOG_SLOTS];
};
_Static_assert(SIDECAR_LOG_SLOTS <= 1 << EXTENT_STATE_SHIFT, "a slot fits below the state");

/* 0 or -ENOMEM; all extents are idle. */
int activity_log_init(struct activity_log *log, uint32_t extent_count, unsigned limit);
void activity_log_fini(struct activity_log *log); /* of one that was initialised or zeroed */
/* Another number of extents: new ones are idle, those that are gone lose their slots. 0, or -ENOMEM: as it was. */
int activity_log_resize(struct activity_log *log, uint32_t extent_count);
/* Everything is idle. */
void activity_log_reset(struct activity_log *log);

static inline enum extent_state activity_log_state(const struct activity_log *log, uint64_t extent)
{
    return (enum extent_state)(log->extents[extent] >> EXTENT_STATE_SHIFT);
}

static inline bool activity_log_is_active(const struct activity_log *log, uint64_t extent)
{
    return activity_log_state(log, extent) == EXTENT_ACTIVE;
}

static inline unsigned activity_log_free(const struct activity_log *log)
{
    return log->used_count < log->limit ? log->limit - log->used_count : 0;
}
/* Whether it is time to retire extents (C18): a quarter of the slots is to be free, and a batch more when it is not. */
static inline bool activity_log_is_low(const struct activity_log *log)
{
    return activity_log_free(log) < log->limit / 4;
}
static inline bool activity_log_has_ahead(const struct activity_log *log)
{
    unsigned batch = log->limit / 16 > TRACK_BATCH_MIN ? log->limit / 16 : TRACK_BATCH_MIN;
    return log->used_count - log->retiring_count + log->limit / 4 + batch <= log->limit;
}

/* An idle extent takes a slot and is LOGGING. false: no slot is free. */
bool activity_log_add(struct activity_log *log, uint32_t extent);
/* It got new bits: others are retired before it. */
void activity_log_touch(struct activity_log *log, uint32_t extent);
/* A LOGGING one is named by the block that is being written. */
bool activity_log_is_composed(const struct activity_log *log, uint32_t extent);
bool activity_log_is_touched(const struct activity_log *log, uint32_t extent);
/* ACTIVE -> RETIRING -> ACTIVE. */
void activity_log_retire(struct activity_log *log, uint32_t extent);
void activity_log_cancel(struct activity_log *log, uint32_t extent);
/* The block to be written next: retiring extents whose pages are `stored` are left out and idle from now on. */
void activity_log_compose(struct activity_log *log, bool stored, struct sidecar_log *block);
/* That block is durable: what was LOGGING in it is ACTIVE. Returns how many. */
unsigned activity_log_composed(struct activity_log *log);
/* After a restart: an extent that the newest block names is ACTIVE. -EBADMSG: twice, or beyond the end. */
int activity_log_adopt(struct activity_log *log, uint32_t extent);

#endif
