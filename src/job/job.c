/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The life of a job. The states and their moves are those of QEMU's jobs (docs/interop: qapi/job.json), without those that
 * only mirroring has:
 *
 *     created -> running <-> paused
 *                running -> waiting -> pending -> concluded -> null        it went well
 *     created, running, waiting, pending -> aborting -> concluded -> null  it failed, or was cancelled
 *     created -> null                                                      it was never begun
 *
 * "waiting" is for other jobs of a transaction in QEMU; a job passes through it here, so that clients see what they expect.
 * A job that is paused runs again before it ends. Its end is told (`finished`) before it is "concluded".
 *
 * A cancelling is a wish: the state changes when the work has stopped. Between the end of the work and "concluded" the
 * job may have something to put right (`settle`: files of a push that failed). Nothing here blocks or does I/O, and a
 * crash of the daemon is the end of all jobs.
 */
#include "job/job.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/name.h"

const char *job_state_name(enum job_status state)
{
    static const char *const names[] = {"undefined", "created", "running",  "paused",    "ready", "standby",
                                        "waiting",   "pending", "aborting", "concluded", "null"};
    return names[state];
}

static void job_move(struct job *job, enum job_status to)
{
    static const unsigned allowed[] = {
        [JOB_UNDEFINED] = 1 << JOB_CREATED,
        [JOB_CREATED] = 1 << JOB_RUNNING | 1 << JOB_ABORTING | 1 << JOB_NULL,
        [JOB_RUNNING] = 1 << JOB_PAUSED | 1 << JOB_READY | 1 << JOB_WAITING | 1 << JOB_ABORTING,
        [JOB_PAUSED] = 1 << JOB_RUNNING,
        [JOB_READY] = 1 << JOB_STANDBY | 1 << JOB_WAITING | 1 << JOB_ABORTING,
        [JOB_STANDBY] = 1 << JOB_READY,
        [JOB_WAITING] = 1 << JOB_PENDING | 1 << JOB_ABORTING,
        [JOB_PENDING] = 1 << JOB_ABORTING | 1 << JOB_CONCLUDED,
        [JOB_ABORTING] = 1 << JOB_CONCLUDED,
        [JOB_CONCLUDED] = 1 << JOB_NULL,
        [JOB_NULL] = 0,
    };
    assert(allowed[job->state] & 1U << to);
    job->state = to;
    if (job->table->hooks.status_changed)
        job->table->hooks.status_changed(job->table->hooks.context, job);
}

bool job_is_active(const struct job *job)
{
    return job->state == JOB_RUNNING || job->state == JOB_PAUSED;
}

/* --- the table */

void job_table_init(struct job_table *table)
{
    memset(table, 0, sizeof *table);
    list_init(&table->jobs);
}

static void table_check_ended(struct job_table *table)
{
    void (*ended)(void *) = table->ended;
    if (!ended || table->count > 0)
        return;
    table->ended = NULL;
    ended(table->ended_argument);
}

struct job *job_find(const struct job_table *table, const char *id)
{
    list_each (link, &table->jobs)
        if (strcmp(container_of(link, struct job, link)->id, id) == 0)
            return container_of(link, struct job, link);
    return NULL;
}

int job_create(struct job_table *table, struct job *job, const char *id, struct error *err)
{
    char generated[LIMIT_NAME_BYTES + 1];
    while (!id) {
        snprintf(generated, sizeof generated, "%s-%u", job->ops->type, ++table->next_number);
        id = job_find(table, generated) ? NULL : generated;
    }
    if (name_check("job id", id, err) < 0)
        return -EINVAL;
    if (table->ending)
        return error_set(err, ESHUTDOWN, "no job '%s': the daemon is shutting down", id);
    if (job_find(table, id))
        return error_set(err, EEXIST, "Job ID '%s' already in use", id);
    if (table->count == LIMIT_JOBS)
        return error_set(err, ENOSPC, "job '%s' is one too many: there are at most %d at once, dismiss one", id,
                         LIMIT_JOBS);
    memccpy(job->id, id, 0, sizeof job->id - 1);
    job->table = table;
    list_append(&table->jobs, &job->link);
    table->count++;
    job_move(job, JOB_CREATED);
    return 0;
}

static void job_dismiss(struct job *job)
{
    struct job_table *table = job->table;
    job_move(job, JOB_NULL);
    list_remove(&job->link);
    table->count--;
    job->ops->free(job);
    table_check_ended(table);
}

void job_forget(struct job *job)
{
    assert(job->state == JOB_CREATED);
    job_dismiss(job);
}

void job_table_end(struct job_table *table, void (*ended)(void *argument), void *argument)
{
    assert(!table->ended);
    table->ending = true;
    table->ended = ended;
    table->ended_argument = argument;
    list_each_safe (link, &table->jobs) {
        struct job *job = container_of(link, struct job, link);
        if (job->state == JOB_CONCLUDED)
            job_dismiss(job);
        else
            job_cancel(job, true, NULL);
    }
    table_check_ended(table);
}

/* --- the way of one job */

void job_start(struct job *job)
{
    job_move(job, JOB_RUNNING);
    job->ops->start(job);
}

void job_paused(struct job *job)
{
    if (job->state == JOB_RUNNING && job->user_paused)
        job_move(job, JOB_PAUSED);
}

static void job_run_again(struct job *job)
{
    job->user_paused = false;
    if (job->state == JOB_PAUSED)
        job_move(job, JOB_RUNNING);
}

void job_io_error(struct job *job, bool read)
{
    if (job->table->hooks.io_error)
        job->table->hooks.io_error(job->table->hooks.context, job, read);
}

void job_settled(struct job *job)
{
    struct job_table *table = job->table;
    assert((job->state == JOB_PENDING || job->state == JOB_ABORTING) && job->settling);
    if (table->hooks.finished)
        table->hooks.finished(table->hooks.context, job);
    job_move(job, JOB_CONCLUDED);
    if (job->auto_dismiss || table->ending)
        job_dismiss(job);
}

static void job_settle(struct job *job)
{
    assert(!job->settling);
    job->settling = true;
    if (job->ops->settle)
        job->ops->settle(job);
    else
        job_settled(job);
}

static void job_abort(struct job *job)
{
    job_move(job, JOB_ABORTING);
    job_settle(job);
}

void job_ended(struct job *job, int status, const struct error *err)
{
    assert(!job->ended && (status == 0 || err));
    job->ended = true;
    job_run_again(job);
    if (status == 0 && job->cancelled)
        status = error_set(&job->err, ECANCELED, "job '%s' was cancelled", job->id);
    else if (status < 0)
        job->err = *err;
    job->status = status;
    if (status < 0) {
        job_abort(job);
        return;
    }
    job_move(job, JOB_WAITING);
    job_move(job, JOB_PENDING);
    if (job->auto_finalize)
        job_settle(job);
    else if (job->table->hooks.pending)
        job->table->hooks.pending(job->table->hooks.context, job);
}

/* --- what users ask for */

static int verb_check(const struct job *job, enum job_verb verb, struct error *err)
{
    static const char *const names[] = {"cancel", "pause", "resume", "set-speed", "finalize", "dismiss"};
    static const unsigned running = 1 << JOB_CREATED | 1 << JOB_RUNNING | 1 << JOB_PAUSED | 1 << JOB_READY |
                                    1 << JOB_STANDBY;
    static const unsigned allowed[] = {
        [JOB_VERB_CANCEL] = running | 1 << JOB_WAITING | 1 << JOB_PENDING,
        [JOB_VERB_PAUSE] = running,
        [JOB_VERB_RESUME] = running,
        [JOB_VERB_SET_SPEED] = running,
        [JOB_VERB_FINALIZE] = 1 << JOB_PENDING,
        [JOB_VERB_DISMISS] = 1 << JOB_CONCLUDED,
    };
    if (allowed[verb] & 1U << job->state)
        return 0;
    return error_set(err, EPERM, "Job '%s' in state '%s' cannot accept command verb '%s'", job->id,
                     job_state_name(job->state), names[verb]);
}

int job_cancel(struct job *job, bool force, struct error *err)
{
    if (verb_check(job, JOB_VERB_CANCEL, err) < 0)
        return -EPERM;
    if (job->settling)
        return error_set(err, EPERM, "Job '%s' is being finalized", job->id);
    bool again = job->cancelled;
    job->cancelled = true;
    if (!job->ended) {
        job_run_again(job);
        if (!again || force)
            job->ops->cancel(job, force);
    } else { /* pending: it waited for the user, who decides so */
        job->status = error_set(&job->err, ECANCELED, "job '%s' was cancelled", job->id);
        job_abort(job);
    }
    return 0;
}

int job_set_speed(struct job *job, uint64_t speed, struct error *err)
{
    if (verb_check(job, JOB_VERB_SET_SPEED, err) < 0)
        return -EPERM;
    job->speed = speed;
    job->ops->set_speed(job, speed);
    return 0;
}

static int job_pause(struct job *job, struct error *err)
{
    if (job->user_paused)
        return error_set(err, EPERM, "Job is already paused");
    if (job->cancelled)
        return error_set(err, EPERM, "Job '%s' is being cancelled", job->id);
    job->user_paused = true;
    job->ops->pause(job);
    return 0;
}

static int job_resume(struct job *job, struct error *err)
{
    if (!job->user_paused)
        return error_set(err, EPERM, "Can't resume a job that was not paused");
    job_run_again(job);
    job->ops->resume(job);
    return 0;
}

int job_verb(struct job *job, enum job_verb verb, struct error *err)
{
    if (verb_check(job, verb, err) < 0)
        return -EPERM;
    switch (verb) {
    case JOB_VERB_CANCEL:
        return job_cancel(job, false, err);
    case JOB_VERB_PAUSE:
        return job_pause(job, err);
    case JOB_VERB_RESUME:
        return job_resume(job, err);
    case JOB_VERB_FINALIZE:
        if (job->settling)
            return error_set(err, EPERM, "Job '%s' is being finalized", job->id);
        job_settle(job);
        return 0;
    case JOB_VERB_DISMISS:
        job_dismiss(job);
        return 0;
    case JOB_VERB_SET_SPEED: /* takes an argument: job_set_speed() */
        break;
    }
    return error_set(err, EINVAL, "not a verb without an argument");
}
