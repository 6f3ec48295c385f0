/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the files of the tracker share. tracker.c says how they work together. Owner: the disk's reactor. */
#ifndef FLEECE_TRACK_TRACKER_INTERNAL_H
#define FLEECE_TRACK_TRACKER_INTERNAL_H

#include "track/activity_log.h"
#include "track/sidecar.h"
#include "track/span.h"
#include "track/tracker.h"

struct tracker_checkpoint {
    struct checkpoint_id id;
    enum checkpoint_state state;
    bool named;    /* superblocks that are composed from now on have it */
    bool recorded; /* ... and a durable one has it: recovery follows it */
    bool merging;  /* it is being removed: what is written is set in the span before, too */
    struct span span;
};

enum void_phase { VOID_NONE, VOID_NOTING, VOID_NOTED };

struct tracker_void { /* tracker_void.c */
    enum void_phase phase;
    bool super_tried, condemning, condemned;
    struct io_timer timer;
    struct io_op condemn;
    bool give_up; /* the timer's second round */
    char reason[SIDECAR_REASON_BYTES];
};

struct page_write {
    struct sidecar_io io;
    struct tracker *tracker;
    struct span *span;
    uint64_t page;
    uint32_t number;
};

/* Writes pages of bitmaps, one batch at a time: to retire extents, or for an operation (store.c). */
struct page_store {
    enum { STORE_IDLE, STORE_WRITING, STORE_SYNCING, STORE_STORED } phase; /* stored: the next log block lets go */
    struct page_write writes[LIMIT_TRACK_PAGES];
    struct sidecar_block *blocks;
    unsigned count, out;
    int status;
    struct sidecar_io sync;
    /* What an operation wants stored: all changed pages of one span, or of all. */
    void (*wanted)(struct tracker *tracker); /* called when it is done; NULL: nothing is wanted */
    bool was_wanted;                         /* the last batch was for it */
    struct span *only;
    unsigned at_span;
    uint64_t at_page;
};

struct log_writer {
    struct sidecar_io io;
    struct sidecar_block *block;
    uint32_t number; /* of the last one written */
    bool busy, wanted;
    struct io_task task;
    /* Requests that wait for the next block to be composed, and for the one under way to be durable. */
    struct list waiting, composed;
    struct io_timer stalled;
    void (*idle)(struct tracker *tracker); /* an operation waits until nothing is to be written; NULL: none does */
};

/* What the newest superblock said about the end of the last open. */
struct super_past {
    bool clean;
    uint8_t nonce[SPAN_NONCE_BYTES], boot_id[BOOT_ID_BYTES];
    struct disk_identity identity;
    char disk_name[LIMIT_NAME_BYTES + 1]; /* "": not known */
    uint64_t bit_counts[LIMIT_CHECKPOINTS];
};

struct super_writer {
    struct sidecar_io io;
    struct sidecar_block *blocks;
    struct sidecar_super payload;
    struct super_past past;
    uint32_t number; /* of the last whole one */
    bool busy;
    void (*done)(struct tracker *tracker, int status);
};

struct disk_sample {
    uint64_t start;
    uint32_t length, crc;
};

struct sampler {                          /* samples.c */
    uint64_t recent[LIMIT_TRACK_SAMPLES]; /* starts of blocks that got their bits last; a ring */
    unsigned recent_at, recent_count;
    struct disk_sample kept[LIMIT_TRACK_SAMPLES];
    unsigned kept_count;
    /* While they are read: */
    struct request read;
    struct iovec iov;
    uint8_t *buffer;
    unsigned at;
    struct disk_sample list[LIMIT_TRACK_SAMPLES];
    unsigned count;
    bool checking, differs;
    void (*done)(struct tracker *tracker, bool differs);
};

struct tracker {
    struct write_gate gate; /* these first: what a write looks at */
    unsigned shift;         /* of the granularity */
    uint64_t *recording;    /* words of the only target; NULL: there are several, or none */
    struct activity_log log;

    struct disk *disk;
    struct tracker_options options;
    char *memory_folder, *memory_file;
    struct sidecar sidecar;
    struct span_memory memory;
    struct tracker_counters counters;
    enum tracker_recovery recovery;
    bool opened, closing, closed, broken; /* broken: the sidecar takes no more writes */
    uint8_t nonce[SPAN_NONCE_BYTES];
    struct disk_identity identity; /* for the superblock; times: only after a close in good order */
    uint64_t disk_bytes;
    /* What superblocks say: the disk had noted_bytes, and may have next_bytes by now, for we were about to make it grow; 0:
     * we were not. */
    uint64_t noted_bytes, next_bytes;
    void (*growth_stored)(struct tracker *tracker, int status);

    struct tracker_checkpoint *checkpoints[LIMIT_CHECKPOINTS]; /* oldest first; invalid ones before all others */
    unsigned count;
    struct tracker_checkpoint *prepared;
    struct span *spans[LIMIT_CHECKPOINTS]; /* of the valid ones, oldest first */
    unsigned span_count;
    /* Spans in which a write sets its bits. Those that are `checked`, the first ones, are what recovery would follow. */
    struct span *targets[3];
    unsigned target_count, checked_count;

    struct log_writer writer;
    struct page_store store;
    struct super_writer super;
    struct sampler sampler;
    struct disk_watch watch;
    struct tracker_void voiding;
    char reason[SIDECAR_REASON_BYTES]; /* why there are invalid checkpoints */
    bool drop_pending;                 /* spans of invalid checkpoints are to be given back */
    bool dropping;                     /* ... and are, in steps; then all of the memory goes */
    struct io_timer reap;              /* the next step of giving back memory of spans */

    /* Operations, one at a time. */
    struct list ops;
    struct tracker_op *op;
    struct io_task op_task;
    bool op_awaits_drop;                /* the one under way looks at no span, and waits until they are gone */
    struct tracker_checkpoint *subject; /* of the one under way */
    struct sidecar_io op_io;
    struct request flush;
    struct io_op work;
    uint64_t progress; /* of the step under way: blocks, or pages */
    unsigned at_span;
    bool growing;                /* announced: no other operation runs before it is recorded or given up */
    struct io_timer pause;       /* between its steps */
    struct recovery *recovering; /* recovery.c */
};

static inline uint64_t extent_of(uint64_t bit)
{
    return bit / SIDECAR_EXTENT_BITS;
}
static inline uint32_t tracker_extents(uint64_t bits)
{
    return (uint32_t)((bits + SIDECAR_EXTENT_BITS - 1) / SIDECAR_EXTENT_BITS);
}
/* The bits of an extent. */
static inline struct block_range extent_bits(const struct tracker *tracker, uint64_t extent)
{
    uint64_t first = extent * SIDECAR_EXTENT_BITS, left = tracker->memory.bit_count - first;
    return (struct block_range){first, left < SIDECAR_EXTENT_BITS ? left : SIDECAR_EXTENT_BITS};
}

/* tracker.c */
void tracker_op_finish(struct tracker *tracker, int status);
/* Fails the operation with a sentence: "change tracking of disk vda: ...". */
void tracker_op_fail(struct tracker *tracker, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));
void tracker_ops_next(struct tracker *tracker);
/* Whether the operation under way must end, for everything became void; it has been failed then. */
bool tracker_op_voided(struct tracker *tracker);
struct tracker_checkpoint *tracker_find(const struct tracker *tracker, const char *uuid); /* recorded; NULL: none */
/* Out of the list, with its span. */
void tracker_forget(struct tracker *tracker, struct tracker_checkpoint *checkpoint);
/* After any change of checkpoints: spans, targets and the gate. */
void tracker_update(struct tracker *tracker);
/* Extents that have a slot may be written: their pages are grown in this span. 0 or -ENOSPC. */
int tracker_grow_active(struct tracker *tracker, struct span *span);
/* An area that no checkpoint has, and whose memory has been given back; -1: none. */
int tracker_free_area(const struct tracker *tracker);
/* The shared memory, if there is any, knows from now on whether somebody else can have changed the disk's file. */
void tracker_watch(struct tracker *tracker);
void tracker_flush_disk(struct tracker *tracker, void (*done)(struct request *req, int status));
/* For the shared memory: what it must have in common with the sidecar, with that nonce. */
struct span_key tracker_key(const struct tracker *tracker, const uint8_t nonce[SPAN_NONCE_BYTES]);

/* gate.c: bits, whose pages are grown, in all spans that a write sets them in. */
void tracker_set_bits(struct tracker *tracker, uint64_t first, uint64_t count);
bool tracker_admit(struct write_gate *gate, struct request *req);

/* log_writer.c */
void log_writer_init(struct tracker *tracker);
/* A write waits for the block that is composed next, or for the one under way; bounded. */
void log_writer_park(struct tracker *tracker, struct request *req, bool next_block);
/* A block is written at the end of the tick, or when the one under way is. */
void log_writer_request(struct tracker *tracker);
/* Calls idle() later, when no block is being written or wanted. */
void log_writer_when_idle(struct tracker *tracker, void (*idle)(struct tracker *tracker));
void log_writer_release(struct tracker *tracker); /* what waits is submitted again */

/* store.c */
/* Starts the next batch, when one is due. */
void page_store_next(struct tracker *tracker);
/* All changed pages of one span (NULL: of all) are stored, durably, when done() is called. */
void page_store_want(struct tracker *tracker, struct span *only, void (*done)(struct tracker *tracker));
/* The span goes. Its pages under way land in its area; they are older than whatever the area will hold. */
void page_store_forget(struct tracker *tracker, const struct span *span);

/* superblock.c */
void superblock_write(struct tracker *tracker, void (*done)(struct tracker *tracker, int status));
/* The newest whole one of both, of `slots` as they were read; decoded into the tracker, spans are still missing.
 * 0; -ENOENT: the sidecar was never finished; -EBADMSG. */
int superblock_read(struct tracker *tracker, const struct sidecar_block *slots, struct error *err);

/* tracker_void.c */
void tracker_fail(struct tracker *tracker, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* An attempt to write a superblock has ended. */
void tracker_void_continue(struct tracker *tracker);
/* Whether, of one that is void, something is still under way to the sidecar. */
bool tracker_is_busy(const struct tracker *tracker);
/* Gives back the spans of invalid checkpoints, if nobody looks at them; in steps. */
void tracker_drop_spans(struct tracker *tracker);
/* Spans have been destroyed: their memory is given back, in steps. */
void tracker_reap(struct tracker *tracker);

/* samples.c */
/* It got its bit: it is one of the blocks that were written last. */
void sampler_note(struct tracker *tracker, uint64_t bit);
/* Reads and sums what was written last, and what is kept and has not been written since; `done` with differs = false. */
void sampler_take(struct tracker *tracker, void (*done)(struct tracker *tracker, bool differs));
/* Reads what is kept: `all` of it, or what has not been written since; the rest is kept no longer. */
void sampler_check(struct tracker *tracker, bool all, void (*done)(struct tracker *tracker, bool differs));

/* checkpoint.c: what operations run */
void tracker_run_prepare(struct tracker_op *op);
void tracker_run_record(struct tracker_op *op);
void tracker_run_commit(struct tracker_op *op);
void tracker_run_remove(struct tracker_op *op);

/* recovery.c, close.c */
void tracker_run_open(struct tracker_op *op);
void tracker_run_close(struct tracker_op *op);

/* grow.c */
void tracker_run_announce(struct tracker_op *op);
void tracker_run_grown(struct tracker_op *op);
/* The disk has the size that was announced before a crash: what was added is dirty. 0, -ENOMEM, -ENOSPC. */
int tracker_take_growth(struct tracker *tracker);
/* What was added is stored, then its size is named; then done(). */
void tracker_store_growth(struct tracker *tracker, void (*done)(struct tracker *tracker, int status));

#endif
