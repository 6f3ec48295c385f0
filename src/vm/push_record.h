/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What of a push outlives its daemon: shared memory beside the table of snapshots, "push.N" for each job. What is asked for
 * is sealed with a sum when it is made; what changes is right at every moment, and each word of it says itself whether it
 * is what was stored (base/sealed.h). Control thread, but for the notes of targets, which are the helper's that opens them,
 * and `released`, which a helper of the copy sets, and `written`, which is the reactor's that writes the target.
 */
#ifndef FLEECE_VM_PUSH_RECORD_H
#define FLEECE_VM_PUSH_RECORD_H

#include "base/sealed.h"
#include "job/target.h"
#include "vm/push.h"
#include "vm/snapshot_table.h"

enum push_record_state {
    PUSH_RECORD_OPENING,   /* nobody has been told of the job: nothing of it stays */
    PUSH_RECORD_COPYING,   /* its snapshot is there */
    PUSH_RECORD_COPIED,    /* the targets have all of it, for good */
    PUSH_RECORD_FAILED,    /* `status`, `reason`: what was made has to be removed */
    PUSH_RECORD_CONCLUDED, /* `status`, and if it failed `reason`: nothing has to be done any more */
};

enum push_record_flag {
    PUSH_RECORD_NO_ADVICE = 1,
    PUSH_RECORD_NO_RELEASE = 2,
    PUSH_RECORD_KEEP_CONCLUDED = 4,
    PUSH_RECORD_WAIT_TO_FINALIZE = 8,
    PUSH_RECORD_FLAGS = 15,
};

struct push_record_disk {
    char name[LIMIT_NAME_BYTES + 1];
    uint64_t size_bytes;
    uint32_t where_at; /* of its target, in `texts` */
};

struct push_record_sealed {
    uint8_t boot[BOOT_ID_BYTES];
    uint64_t speed; /* at first */
    uint32_t disk_count, mode, flags, text_bytes;
    char job[LIMIT_NAME_BYTES + 1], bitmap[LIMIT_NAME_BYTES + 1]; /* bitmap "": all blocks */
    uint64_t devices[LIMIT_DISKS], inodes[LIMIT_DISKS];           /* of the files of the disks */
    struct push_record_disk disks[LIMIT_DISKS];
};

struct push_record_progress { /* of one of the disks, in their order */
    struct target_note note;
    struct target_written written;
    struct sealed_count done_bytes, data_bytes; /* for those who look */
    struct sealed_word released;                /* 1: something of it may have been: the target alone has that */
};

struct push_record_cut {
    uint32_t consistency; /* enum consistency */
    uint64_t hold_ns, frozen_ns;
    char snapshot[UUID_TEXT_BYTES];
    char reason[LIMIT_ERROR_BYTES]; /* "": there is none */
};

struct push_record_end {
    int32_t status;
    char reason[LIMIT_ERROR_BYTES];
};

struct push_record_layout {
    char magic[8]; /* last: without it nothing else counts */
    uint32_t version, sum;
    struct push_record_sealed sealed;
    struct sealed_word
        state; /* enum push_record_state, and in bit 8 which of `ends` counts; it vouches for what follows: */
    struct push_record_cut cut;     /* from COPYING on */
    struct push_record_end ends[2]; /* from FAILED on */
    struct sealed_word paused, cancelled;
    struct sealed_count speed;
    struct push_record_progress progress[LIMIT_DISKS];
    char texts[LIMIT_PUSH_TEXT_BYTES];
};

struct push_record {
    struct io *io;
    const char *folder;
    char file[16];
    struct io_shm shm;
    struct push_record_layout *layout; /* NULL: there is none, the job ends with the daemon */
};

struct push_record_target {
    const char *disk, *where;
    uint64_t size_bytes;
    struct disk_identity identity; /* of the disk */
};

/* Of a job that is about to begin: OPENING. `number`: below LIMIT_JOBS, of no other job. 0, or -errno with a sentence. */
int push_record_create(struct push_record *record, struct io *io, const char *folder, unsigned number,
                       const struct push_options *options, const char *job, const struct push_record_target *targets,
                       unsigned target_count, struct error *err);
/* What a killed daemon has left under that number. -ENOENT: nothing. -EAGAIN: another process has it. -EINVAL with a
 * sentence: it is not right, and has been removed. -EBADMSG with a sentence: what was asked for is known, but not how far it
 * is: its state is FAILED now, for that reason, and files that it has made are not known any more. */
int push_record_adopt(struct push_record *record, struct io *io, const char *folder, unsigned number,
                      struct error *err);
/* Any bytes: whether they are a record of this boot, in all its parts. 0; -EINVAL or -EBADMSG with a sentence, as above. */
int push_record_check(const void *bytes, uint64_t length, const uint8_t boot[BOOT_ID_BYTES], struct error *err);
/* The disks, LIMIT_DISKS at most, of the record that these bytes, which must stay, begin with. How many; -EINVAL: none. */
int push_record_owners(const void *bytes, uint64_t length, struct snapshot_table_disk *disks);
/* Where a disk of it goes. */
const char *push_record_where(const struct push_record *record, unsigned disk);
/* Of one that was made or adopted. */
enum push_record_state push_record_state(const struct push_record *record);
const struct push_record_end *push_record_end(const struct push_record *record); /* from FAILED on */
bool push_record_is_paused(const struct push_record *record);
bool push_record_is_cancelled(const struct push_record *record);
uint64_t push_record_speed(const struct push_record *record);
bool push_record_has_released(const struct push_record_progress *progress);
/* How far those who look were told that it is; 0: not known. */
uint64_t push_record_done(const struct push_record_progress *progress);
uint64_t push_record_data(const struct push_record_progress *progress);
/* No-ops when there is none. */
void push_record_note_paused(struct push_record *record, bool paused);
void push_record_note_cancelled(struct push_record *record, bool cancelled);
void push_record_note_speed(struct push_record *record, uint64_t speed);
void push_record_note_released(struct push_record_progress *progress);
void push_record_note_done(struct push_record_progress *progress, uint64_t done_bytes, uint64_t data_bytes);
/* COPYING: its snapshot is there. COPIED. And how it ended, before anything is done about it. No-ops when there is none. */
void push_record_begin(struct push_record *record, const char *snapshot_uuid, const struct push_cut *cut);
void push_record_copied(struct push_record *record);
void push_record_fail(struct push_record *record, int status, const char *reason);
void push_record_conclude(struct push_record *record, int status, const char *reason);
/* The salt of `state` with that value, for tests that make records. */
uint32_t push_record_state_salt(const struct push_record_layout *layout, uint32_t value);
/* All that is left of it goes. No-op when there is none. */
void push_record_destroy(struct push_record *record);

#endif
