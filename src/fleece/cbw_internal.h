/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What copy_before_write.c, point.c and preserve.c share: the filter of one disk. */
#ifndef FLEECE_FLEECE_CBW_INTERNAL_H
#define FLEECE_FLEECE_CBW_INTERNAL_H

#include "base/range_set.h"
#include "fleece/copy_before_write.h"

struct copy {              /* of neighbouring old blocks, on their way into the cache */
    struct list_node link; /* in `copies` (under way) or `idle_copies` */
    struct copy_before_write *cbw;
    struct block_range blocks;
    struct range range;    /* the same in bytes, ending with the disk */
    uint64_t filled_bytes; /* of the range: a large block is read in several requests */
    struct request read;
    struct list parked;     /* writes that wait for it */
    uint32_t through_epoch; /* of the point whose target takes the data; 0: it goes into the cache */
    char *buffer;           /* of such a copy, in place of slots */
    uint64_t torn;          /* its blocks that were stale when they had been read */
    uint64_t written_bytes; /* of the range, or passed over */
    uint64_t begun_ns;      /* when the target was first asked; 0: not yet */
    uint64_t stale;         /* by block: a write may have passed while it was read, so its data belongs to no point */
    uint32_t slots[LIMIT_COPY_BLOCKS];
    struct iovec iov[LIMIT_COPY_BLOCKS];
};

struct discard_run { /* a deferred discard that is under way */
    struct copy_before_write *cbw;
    struct request req;
    struct request *whole; /* the guest's, of which this is the part that nobody needs; NULL: it was put off */
    bool busy;
    struct list parked; /* the guest's writes to the same range */
};

struct through_copies { /* that go straight to a target */
    char *buffers;      /* LIMIT_THROUGH_COPIES of buffer_bytes; NULL: no point wants any */
    size_t buffer_bytes;
    uint32_t busy; /* a bit for each */
    unsigned under_way;
    struct io_timer overdue;
    uint64_t blocks; /* that went there; ever */
};

struct deferred_discards {
    struct range ranges[LIMIT_DEFERRED_DISCARDS];
    struct range_set waiting; /* in `ranges` */
    struct discard_run runs[LIMIT_DISCARDS_RUNNING];
    unsigned running;
    struct range look; /* where nobody may need the blocks any more */
    struct io_task task;
    struct io_timer again;
    uint64_t dropped; /* requests that found no room in the set */
};

struct kept_read {         /* of the guest, whose data is to be kept */
    struct list_node link; /* in `idle_reads` */
    struct copy_before_write *cbw;
    struct request *guest;
    struct request req;
    uint32_t epoch;
};

struct copy_before_write {
    struct node node; /* the filter */
    struct disk *disk;
    struct cbw_hooks hooks;
    unsigned block_shift;
    uint64_t room_bytes;  /* the largest disk that it can be of */
    struct list points;   /* oldest first; every point that went live and is not freed */
    struct list prepared; /* points that did not go live yet */
    uint32_t newest_live;
    struct budget *ram_budget;
    struct fleecing_cache cache;
    struct read_gate gate;

    struct copy pool[LIMIT_COPIES];
    struct list copies, idle_copies;
    uint32_t copies_in_flight;
    struct list for_copy, for_room;
    bool full_reported;
    uint64_t timeout_ns;
    struct io_timer room_timer; /* armed while writes wait for room */

    struct deferred_discards discards;
    struct through_copies through;

    bool copy_on_read;
    struct kept_read reads[LIMIT_KEPT_READS];
    struct list idle_reads;
    unsigned reads_kept; /* under way */

    struct io_task sweep;
    struct io_timer sweep_again;
    bool sweeping;
    uint32_t sweep_at; /* place */
    struct list waiters;
    bool quiet_awaited; /* the cache's */
    uint64_t blocks_preserved, blocks_released, blocks_cut;
};

/* Whether the point needs the block: none that was added after its cut. */
static inline bool point_needs(const struct point *point, uint64_t block)
{
    return block < point->needed.bit_count && bitmap_get(&point->needed, block);
}

/* point.c: whether a live point with after < epoch <= last needs the block. */
bool cbw_needed_between(const struct copy_before_write *cbw, uint64_t block, uint32_t after, uint32_t last);
/* The block is lost: marks the live points with after < epoch <= last that need it. */
void cbw_mark_losers(const struct copy_before_write *cbw, uint64_t block, uint32_t after, uint32_t last);
/* Breaks those that are marked, and no others; the other disks are told. false: there were none. */
bool cbw_break_losers(struct copy_before_write *cbw, enum cbw_loss loss, int status);
/* Whether a live point needs the block as it is on the disk now. */
bool cbw_block_needed(const struct copy_before_write *cbw, uint64_t block);
void cbw_sweep_init(struct copy_before_write *cbw);
void cbw_sweep_fini(struct copy_before_write *cbw);
/* Something that a waiter may wait for is over. */
void cbw_look_quiet(struct copy_before_write *cbw);

/* preserve.c: what is being read of the block belongs to no point. */
void cbw_abandon_copy(struct copy_before_write *cbw, uint64_t block);
/* preserve.c: starts to preserve the blocks; fewer when there is not room for all; NULL and in which queue to wait when
 * there is none. A copy must be idle. */
struct copy *cbw_copy_start(struct copy_before_write *cbw, struct block_range blocks, struct list **queue);
/* The copy has ended, with this status of its read, or of its write. */
void cbw_copy_finish(struct copy *copy, int status);
/* The copy under way that covers the block, or NULL and where the next one begins (at most *end). */
struct copy *cbw_copy_at(const struct copy_before_write *cbw, uint64_t block, uint64_t *end);
/* After points died or blocks were released: what is read of those that nobody needs any more is no point's data. */
void cbw_abandon_unneeded_copies(struct copy_before_write *cbw);

/* write_through.c: the point whose target takes the block's old data, because nobody else needs it; NULL: the cache does. */
const struct point *cbw_through_point(const struct copy_before_write *cbw, uint64_t block, bool full);
/* Gives the copy a buffer for a run of blocks that the point alone needs; returns how many, 0: no buffer is free. */
uint32_t cbw_through_prepare(struct copy *copy, const struct point *point, struct block_range blocks);
/* Where its point ends: the disk may have grown since, the target has not. */
uint64_t cbw_through_end(const struct copy *copy);
/* Whether the point of such a copy still lives. */
bool cbw_through_wanted(const struct copy *copy);
/* The data of such a copy is here: on to the target, or nobody needs it any more. */
void cbw_through_write(struct copy *copy);
void cbw_through_done(struct copy *copy);
void cbw_through_init(struct copy_before_write *cbw);
void cbw_through_fini(struct copy_before_write *cbw);

/* deferred_discards.c: puts a discard of the guest off, which completes it. */
void cbw_defer_discard(struct copy_before_write *cbw, struct request *req);
/* The guest writes here: what was put off is not done any more. */
void cbw_cancel_discards(struct copy_before_write *cbw, struct range range);
/* What overlaps the range and is under way; NULL: nothing. */
struct discard_run *cbw_discard_running(struct copy_before_write *cbw, struct range range);
/* Somebody needs less here than before: what nobody needs is discarded now, in the background. */
void cbw_look_at_discards(struct copy_before_write *cbw, struct range range);
/* Whether some wait or run: then the filter stays. */
bool cbw_has_discards(const struct copy_before_write *cbw);
void cbw_discards_init(struct copy_before_write *cbw);
void cbw_discards_fini(struct copy_before_write *cbw);

/* copy_on_read.c: a read of the guest: answered from RAM, or on its way to the disk and to be kept. false: neither. */
bool cbw_read(struct copy_before_write *cbw, struct request *req);
/* The range is about to be overwritten: what was kept of it is dated, or dropped where nobody needs it. */
void cbw_date_kept(struct copy_before_write *cbw, struct range range);
void cbw_reads_init(struct copy_before_write *cbw, bool copy_on_read);

/* point.c: puts the filter into the graph, or takes it out, as it is needed. */
void cbw_update_filter(struct copy_before_write *cbw);

/* copy_before_write.c: whether a live point lacks some block of the range. */
bool cbw_range_needed(const struct copy_before_write *cbw, struct range range);
/* copy_before_write.c: there may be room: in the cache of this disk, and of others when they share the budget. */
void cbw_room_came(struct copy_before_write *cbw);

#endif
