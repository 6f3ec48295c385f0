/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The many lives of a daemon: two disks, a guest that writes, discards and flushes, snapshots of all kinds, readers that
 * release, a cache with two tiers and faults, and a client that makes incremental backups. The daemon is killed in any
 * moment, also while the next one starts; or the power goes.
 *
 * How the oracle knows:
 *  - each write of the guest has a number, which every sector of it carries. One write of a block is under way at a time.
 *    Of each block is known which numbers may be there as it is, and which ones after a power loss: what has not been
 *    flushed since may be gone, sector by sector. A discard may be done at once, later or never (lives_guest.c).
 *  - the image of a snapshot is what lay on the disks in the step that ended the hold of the cut (disk_release() between the
 *    objects is wrapped). What is read from it equals the image, whatever has died since; and what was released is not there
 *    any more (lives_snapshots.c).
 *  - the chain of a backup and of those that it lies over equals the image of its snapshot, always. An incremental one
 *    copies no block that nobody has touched since its base, but for what a power loss costs. Checkpoints that the client
 *    was told of are there as it knows them, whatever has died since (lives_backup.c).
 *  - a disk grows in the step of disk_grow() (wrapped, too), or the daemon has died meanwhile, and it has either size. What
 *    was added is zero, and is in the next incremental backup; a snapshot has the size that its disks had at its cut.
 *  - no request of the guest fails, and every one ends in time.
 */
#ifndef TESTS_SIM_LIVES_H
#define TESTS_SIM_LIVES_H

#include "block/cut.h"
#include "job/copy.h"
#include "stage.h"

enum {
    LIVES_SECTORS = STAGE_BLOCK / 512, /* of a block */
    LIVES_WRITERS = 8,
    LIVES_ALIVE = 5, /* snapshots at once */
    LIVES_MAY = 12,  /* writes of a block that a power loss may undo */
    LIVES_POINTS = 24,
    LIVES_REGION = 1024, /* blocks: an extent of the activity log */
    LIVES_ADDED = 48,    /* blocks that a disk may gain */
    LIVES_CHECKPOINTS = 16,
    LIVES_ZERO = 0,  /* numbers: a sector of zeroes */
    LIVES_FIRST = 1, /* what the stage has put there */
};

struct lives_write { /* of one block */
    uint32_t number;
    bool loose;            /* a discard: the zeroes may come later, or never */
    uint64_t acknowledged; /* when, of `stamps`; 0: not yet, or never */
};

struct lives_block {
    struct lives_write writes[LIVES_MAY]; /* since what is certainly stable */
    uint8_t write_count, from;            /* from: those that count as long as the power stays */
    bool busy, touched, seen, stable;     /* seen, stable: so do what was seen there last, and what was stable once */
    bool recorded;                        /* a write was acknowledged while the dirty bitmap recorded */
    uint64_t stamp;                       /* of the last request that touches it; a cut makes parked ones newer */
};

struct lives_disk {
    struct lives_block *blocks;
    uint32_t *seen, *stable; /* by sector: numbers */
    struct lives *lives;
    uint64_t size;    /* blocks */
    uint64_t grow_to; /* a growth to that size was asked for and is not answered; 0: none was */
};

struct lives_image { /* of all disks, at a cut */
    uint32_t *sectors[STAGE_DISKS];
    bool *recorded[STAGE_DISKS]; /* by block: a snapshot that is limited to the dirty bitmap needs it for certain */
    uint64_t stamp[STAGE_DISKS], size[STAGE_DISKS]; /* size: blocks */
};

enum lives_release { NOT_RELEASED, RELEASE_ASKED, RELEASED };

struct lives_taken { /* a snapshot */
    struct stage_snapshot *snapshot;
    struct lives_image image;
    bool there, ending, limited, broke[STAGE_DISKS];
    uint8_t *released[STAGE_DISKS]; /* by block: enum lives_release */
};

struct lives_writer {
    struct stage_request request;
    enum request_kind kind;
    unsigned disk;
    uint64_t block, count; /* count 0: it is free */
    uint32_t number;
    uint64_t issued, issued_ns; /* issued: of `stamps` */
    bool recorded;              /* the dirty bitmap was there before */
};

struct lives_point {            /* of a backup set */
    char uuid[UUID_TEXT_BYTES]; /* of its checkpoint */
    uint64_t stamp[STAGE_DISKS];
    unsigned power_losses; /* before its cut */
    uint32_t *content[STAGE_DISKS];
};

struct lives_target { /* of a backup, of one disk: a node whose content is known by its numbers */
    struct node node;
    struct lives *lives;
    unsigned disk;
    struct copy *copy; /* under way */
    bool incremental, over;
    int status;
    bool *already;  /* by extent: recorded, for good */
    uint8_t *masks; /* which blocks were copied */
};

enum lives_client_step {
    CLIENT_IDLE,
    CLIENT_SNAPSHOT, /* asked for, with its checkpoint */
    CLIENT_COPY,
    CLIENT_COMMIT, /* its point is visible */
    CLIENT_FORGET, /* older checkpoints are deleted */
    CLIENT_GIVE_UP,
};

struct lives_checkpoint { /* that the client was told of */
    char uuid[UUID_TEXT_BYTES];
    bool committed, commit_asked, delete_asked;
};

struct lives_client {
    enum lives_client_step step;
    struct stage_snapshot *snapshot;
    struct lives_image image;
    char uuid[UUID_TEXT_BYTES]; /* of the snapshot */
    char checkpoint[UUID_TEXT_BYTES];
    int base; /* number of the point; -1: none */
    bool asked, answered;
    int code;      /* of the answer */
    bool copied;   /* the copies have been started in this life */
    bool forgiven; /* its grace time may be over: what is pending may be gone */
    struct lives_target targets[STAGE_DISKS];
    struct lives_point points[LIVES_POINTS];
    unsigned point_count, names;
    struct lives_checkpoint checkpoints[LIVES_CHECKPOINTS];
    unsigned checkpoint_count;
    uint64_t grace_ns;
};

struct lives_options {
    uint64_t seed;
    bool trace;
    unsigned steps; /* of one life; 0: 400 */
};

struct lives_result {
    uint64_t hash, deaths, power_losses, checks, backups, incrementals;
};

struct lives {
    struct lives_options options;
    struct lives_result result;
    struct stage *stage;
    uint64_t blocks; /* that a disk has in the end, at most */
    /* the character of the seed */
    bool tracked, discards, faults, tight, copy_on_read, bitmaps, releases;
    unsigned regions; /* places where the guest writes, 4 MiB apart */
    struct lives_disk disks[STAGE_DISKS];
    struct lives_writer writers[LIVES_WRITERS];
    uint32_t numbers;
    uint64_t stamps;
    struct lives_taken *taken[STAGE_SNAPSHOTS];
    unsigned taken_count;
    /* the cut that is under way, of which one is at a time */
    bool creating;
    const struct cut *cut;
    struct lives_image captured;
    unsigned captured_disks;
    bool bitmap_there; /* on all disks */
    unsigned bitmap_names, bitmaps_out;
    struct lives_client client;
};

void lives_fail(const struct lives *lives, const char *format, ...) __attribute__((format(printf, 2, 3), noreturn));
void lives_trace(const struct lives *lives, const char *format, ...) __attribute__((format(printf, 2, 3)));
struct lives_result lives_run(const struct lives_options *options);

static inline uint64_t lives_below(struct lives *lives, uint64_t below)
{
    return world_below(lives->stage->world, below);
}
static inline bool lives_chance(struct lives *lives, unsigned per_1024)
{
    return world_chance(lives->stage->world, per_1024);
}
/* Steps until the request is done, or the daemon is dead. */
void lives_wait(struct lives *lives, const bool *done);

/* lives_guest.c */
void guest_begin(struct lives *lives);
void guest_end(struct lives *lives);
void guest_act(struct lives *lives);
void guest_wait(struct lives *lives); /* for all that it has under way */
/* The daemon is dead: what it had not acknowledged may have happened. The disks say it, and what must be there is there. */
void guest_after_death(struct lives *lives, bool power_lost);
/* The number that a sector of a disk carries. */
uint32_t guest_number(const struct lives *lives, unsigned disk, uint64_t sector, const uint8_t *bytes);
/* What lies on a disk now, into room for all its sectors. */
void guest_look(const struct lives *lives, unsigned disk, uint32_t *sectors);
/* A cut of this disk: what is under way is of the time after it. */
void guest_cut(struct lives *lives, unsigned disk);
uint64_t guest_place(struct lives *lives, uint64_t count);

/* lives_growth.c: now and then a disk grows. */
void growth_act(struct lives *lives);
void growths_died(struct lives *lives);
/* Blocks that were added since the beginning; 0: there are fewer than `count`. */
uint64_t growth_place(struct lives *lives, uint64_t size, uint64_t count);

/* lives_snapshots.c */
void snapshots_act(struct lives *lives);
void snapshots_end_some(struct lives *lives);
void snapshots_settle(struct lives *lives); /* sees what has been answered */
void snapshots_died(struct lives *lives, bool power_lost);
void snapshots_check_all(struct lives *lives);
void snapshots_end(struct lives *lives);
/* Of the creation that has been answered: what lay on the disks at its cut. */
void image_take(struct lives *lives, struct lives_image *image);
void image_free(struct lives_image *image);

/* lives_backup.c */
void backup_act(struct lives *lives);
void backup_died(struct lives *lives);
void backup_check_checkpoints(struct lives *lives); /* after a restart */
void backup_finish(struct lives *lives);            /* the client comes to its end */
void backup_end(struct lives *lives);

#endif
