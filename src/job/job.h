/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Jobs: the life cycle of background work, with the states, the verbs and the events of QEMU's jobs. All of it lives on the
 * control thread; what a job does elsewhere is its own business (struct job_ops).
 */
#ifndef FLEECE_JOB_JOB_H
#define FLEECE_JOB_JOB_H

#include "base/error.h"
#include "base/list.h"

enum job_status {
    JOB_UNDEFINED,
    JOB_CREATED,
    JOB_RUNNING,
    JOB_PAUSED,
    JOB_READY,   /* of mirror jobs: no job of ours gets there */
    JOB_STANDBY, /* ... paused */
    JOB_WAITING,
    JOB_PENDING, /* for job-finalize, unless that is automatic */
    JOB_ABORTING,
    JOB_CONCLUDED, /* waits for job-dismiss, unless that is automatic */
    JOB_NULL,
};

enum job_verb {
    JOB_VERB_CANCEL,
    JOB_VERB_PAUSE,
    JOB_VERB_RESUME,
    JOB_VERB_SET_SPEED,
    JOB_VERB_FINALIZE,
    JOB_VERB_DISMISS
};

struct job;
struct job_table;

struct job_ops {
    const char *type; /* "backup" */
    /* Begin, once. Ends with job_ended(), later. */
    void (*start)(struct job *job);
    /* Ends the work soon, with job_ended(-ECANCELED): `force` without waiting for anybody else. May come twice, the second
     * time with force, and also while the job is paused. */
    void (*cancel)(struct job *job, bool force);
    /* Ends with job_paused() unless the work ends before. */
    void (*pause)(struct job *job);
    void (*resume)(struct job *job);
    void (*set_speed)(struct job *job, uint64_t speed);
    /* After job_ended(): it is certain how it ended (job->status). Ends with job_settled(), now or later. May be NULL. */
    void (*settle)(struct job *job);
    void (*free)(struct job *job); /* in the table no more */
};

struct job {
    struct list_node link; /* in table->jobs */
    struct job_table *table;
    const struct job_ops *ops;
    char id[LIMIT_NAME_BYTES + 1];
    enum job_status state;
    bool auto_finalize, auto_dismiss;
    bool cancelled, ended;
    bool user_paused; /* what the user wants; the state follows when the work has stopped */
    bool settling;    /* finalized: there is no way back */
    int status;       /* of the work: 0 or -errno, valid from job_ended() on */
    struct error err;
    uint64_t speed, done_bytes, total_bytes;
};

struct job_hooks { /* events; NULL: nobody listens */
    void *context;
    void (*status_changed)(void *context, const struct job *job);
    void (*pending)(void *context, const struct job *job);  /* waits for job-finalize */
    void (*finished)(void *context, const struct job *job); /* done, failed or (job->cancelled) cancelled */
    void (*io_error)(void *context, const struct job *job, bool read);
};

struct job_table {
    struct list jobs; /* in the order of creation */
    unsigned count, next_number;
    bool ending;
    struct job_hooks hooks;
    void (*ended)(void *argument); /* job_table_end() */
    void *ended_argument;
};

void job_table_init(struct job_table *table);
/* No new job is taken; all that run are cancelled by force, all that wait are dismissed. Calls ended(argument) when there
 * is none any more: perhaps inside the call. */
void job_table_end(struct job_table *table, void (*ended)(void *argument), void *argument);
struct job *job_find(const struct job_table *table, const char *id); /* NULL: none */

/*
 * Enters a job: `job` is zeroed but for ops, auto_finalize, auto_dismiss and speed. id NULL: "TYPE-N". EEXIST, EINVAL (not a
 * name), ENOSPC (LIMIT_JOBS), ESHUTDOWN, with a sentence; then the job is still the caller's.
 */
int job_create(struct job_table *table, struct job *job, const char *id, struct error *err);
/* CREATED -> RUNNING. */
void job_start(struct job *job);
/* It was created and never started: gone, with no more event than that. Freed. */
void job_forget(struct job *job);

/* From the work: */
void job_paused(struct job *job);
void job_io_error(struct job *job, bool read);
/* The work is over: 0 or -errno with the sentence. The job may be freed inside. Also of a job that was not started. */
void job_ended(struct job *job, int status, const struct error *err);
/* From settle(). The job may be freed inside. */
void job_settled(struct job *job);

/* From the user. EPERM with QEMU's sentence when the state does not allow it. The job may be freed inside. */
int job_verb(struct job *job, enum job_verb verb, struct error *err);
int job_cancel(struct job *job, bool force, struct error *err);
int job_set_speed(struct job *job, uint64_t speed, struct error *err);

const char *job_state_name(enum job_status state); /* QEMU's word */
bool job_is_active(const struct job *job);         /* running or paused */

#endif
