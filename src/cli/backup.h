/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Inside of `fleece backup`: backup.c (the whole), backup_control.c (the daemon), backup_base.c (what an incremental is
 * based on, and the set's checkpoints), backup_resume.c (going on) and backup_disk.c (one disk). */
#ifndef FLEECE_CLI_BACKUP_H
#define FLEECE_CLI_BACKUP_H

#include <jansson.h>

#include "cli/command.h"
#include "cli/transfer.h"
#include "set/resume.h"

struct backup_options {
    const char *path;
    bool full;
    const char *since;           /* a checkpoint that the user names; NULL: that of the latest point */
    enum manifest_format format; /* of full images */
    bool format_given;
    bool compress;
    bool resume;             /* go on with an interrupted backup, if there is one */
    const char *consistency; /* auto, crash or required; NULL: not said */
    unsigned grace_s;        /* how long the snapshot outlives a lost connection */
};

/* What the incremental images of this backup are based on. */
struct backup_base {
    struct manifest *latest; /* the latest point, whose images they lie over; NULL: there is none that can be read */
    char point[POINT_NAME_BYTES];    /* its name */
    char since[UUID_TEXT_BYTES];     /* the checkpoint since which changes are wanted; empty: everything goes full */
    char reason[LIMIT_REASON_BYTES]; /* then: why; empty: because it was asked for, or is the first one */
};

struct backup {
    struct cli *cli;
    struct backup_options options;
    struct fleece *fleece;
    struct set *set;
    struct point *point;
    struct transfer transfer;
    struct manifest *manifest;
    struct backup_base base;
    char vm[LIMIT_NAME_BYTES + 1];
    char snapshot[LIMIT_NAME_BYTES + 1];   /* empty: none is there (any more) */
    char since_name[LIMIT_NAME_BYTES + 1]; /* of base.since, as the snapshot's dirty map is called */
    bool resumed;                          /* this is the rest of an interrupted backup */
    bool finished;                         /* of which everything was copied already */
    bool lost;                             /* the daemon has gone: what was copied may be gone on with */
    char cause[LIMIT_ERROR_BYTES];         /* why the snapshot can't be read any more; empty: it can */
    uint64_t started_ns;
    bool warned;
};

/* --- backup_control.c */

/* The text of a field; "" if there is none. */
const char *backup_text(const json_t *object, const char *key);
/* A reason as a manifest takes it: cut off at the end of a character. */
void backup_reason(char *reason, const char *text);
/* Executes and parses; an interruption ends the connection. Takes over `arguments`. -EIO with the daemon's sentence. A
 * new reference. */
int backup_execute(struct backup *backup, const char *command, json_t *arguments, json_t **result, struct error *err);
/* The daemon says something, or has gone. False: the snapshot can't be read any more (backup->cause). For a transfer.
 * */
bool backup_control_readable(void *context);
/* After an error of a copy: asks the daemon about the snapshot, in case its event is still on its way. */
void backup_find_cause(struct backup *backup);

/* --- backup_base.c */

/* Decides since when changes are wanted, and commits the latest point's checkpoint if its backup could not say so any
 * more. Nothing to base on is no error, but a checkpoint of the user's that can't be one is. */
int backup_base_find(struct backup *backup, struct error *err);
/* The name of a new checkpoint of this set: none has it. name[LIMIT_NAME_BYTES + 1]. */
int backup_checkpoint_name(struct backup *backup, char *name, struct error *err);
/* The point is safe: commits its checkpoint, and deletes the set's older ones. Warns when it can't. */
void backup_checkpoint_commit(struct backup *backup);
/* The backup failed: its checkpoint goes, and what it noted stays with the one before (C21). */
void backup_checkpoint_drop(struct backup *backup);

/* What backups of this set that were killed have left in the daemon: their snapshots, in their grace time. */
void backup_snapshots_sweep(struct backup *backup);

/* --- backup_resume.c */

/* Takes over the point and the snapshot of an interrupted backup. *snapshot describes the latter, as it was when it was
 * made. -ENOENT...: that can't be, and nothing has changed. */
int backup_resume(struct backup *backup, json_t **snapshot, struct error *err);
/* Notes what is copied, so that it can be gone on with. */
int backup_resume_save(struct backup *backup, struct error *err);

/* --- backup_disk.c */

/* Adds the disk of one export of the snapshot to the manifest, with all that is known before it is copied. */
int backup_plan_disk(struct backup *backup, const json_t *export, struct error *err);
/* Copies it, or what is left of it to copy. */
int backup_copy_disk(struct backup *backup, struct manifest_disk *disk, const json_t *export, struct error *err);

#endif
