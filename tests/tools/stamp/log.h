/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The log of a run: what was issued and acknowledged, and when (CLOCK_MONOTONIC, nanoseconds).
 *
 * A record's issue is noted before it is issued and its acknowledgement after it has come, so the times enclose the truth:
 * "acknowledged before T" and "issued after T" by the log are so in fact. The file is a shared mapping: it is right up to
 * the last entry even when the writer is killed, and may be read while it grows.
 */
#ifndef STAMP_LOG_H
#define STAMP_LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    LOG_DISKS_MAX = 64,    /* as many as a VM has */
    LOG_WRITERS_MAX = 256, /* per disk: each is a connection */
    LOG_QUEUE_MAX = 64,    /* records in flight per writer: buffers */
    LOG_RECORD_BYTES_MAX = 4096,
};

/* How the run was laid out. Each writer has the same slots on each disk, its region of the disk cut into records. */
struct log_plan {
    uint64_t run;
    uint32_t disks, writers;
    uint32_t record_bytes; /* 512 or 4096 */
    uint32_t queue;        /* records in flight per writer; 1: each record waits for the one before */
    uint32_t dependent;    /* 1: record n goes to the first disk, then, when acknowledged, to the next one... */
    uint32_t reserved;
    uint64_t region_start, region_bytes; /* on each disk; cut evenly among the writers */
    uint64_t slots;                      /* records that fit into a writer's part */
    uint64_t stride;                     /* coprime to slots: record n goes to slot (n - 1) * stride % slots */
};

enum log_kind { LOG_END = 0, LOG_ISSUED = 1, LOG_ACKNOWLEDGED = 2, LOG_FAILED = 3 };

struct log_entry {
    uint64_t sequence;
    uint64_t time_ns;
    uint16_t disk;
    uint16_t writer;
    uint32_t kind; /* enum log_kind; stored last */
};

uint64_t log_now_ns(void);

/* Fills in slots and stride. false: the region is too small for the writers' queues. */
bool log_plan_finish(struct log_plan *plan);
/* Where record `sequence` of a writer lies, in bytes. */
uint64_t log_plan_offset(const struct log_plan *plan, uint32_t writer, uint64_t sequence);

/* Writing. */
struct log;
struct log *log_create(const char *path, const struct log_plan *plan); /* NULL: errno */
void log_append(struct log *log, enum log_kind kind, uint32_t disk, uint32_t writer, uint64_t sequence);
int log_finish(struct log *log); /* frees it; 0 or -1 and errno */

/* Reading. Times of writer w on disk d: history[d * writers + w]. */
struct log_history {
    uint64_t count;            /* records issued; they are numbered from 1 */
    uint64_t room;             /* of the two arrays */
    uint64_t *issued_ns;       /* [sequence - 1] */
    uint64_t *acknowledged_ns; /* [sequence - 1]; UINT64_MAX: never, or failed */
    uint64_t failed;
};
struct log_content {
    struct log_plan plan;
    struct log_history *histories; /* disks * writers */
};
/* false: the sentence in error[size]. */
bool log_load(const char *path, struct log_content *content, char *error, size_t size);
void log_content_free(struct log_content *content);

#endif
