/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The life of jobs: which states follow which, what may be asked for in each, and the order of the events. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "job/job.h"

struct fixture {
    struct job_table table;
    char story[1024]; /* events and calls */
    bool ended;
};

struct work {
    struct job job;
    struct fixture *f;
    bool settle_later;
};

static void tell(struct fixture *f, const char *word)
{
    size_t used = strlen(f->story);
    assert_true(used + strlen(word) + 2 < sizeof f->story);
    snprintf(f->story + used, sizeof f->story - used, "%s%s", used ? " " : "", word);
}

static struct work *work_of(struct job *job)
{
    return container_of(job, struct work, job);
}

static void on_status(void *context, const struct job *job)
{
    tell(context, job_state_name(job->state));
}

static void on_pending(void *context, const struct job *job)
{
    (void)job;
    tell(context, "PENDING");
}

static void on_finished(void *context, const struct job *job)
{
    tell(context, job->cancelled ? "CANCELLED" : job->status < 0 ? "FAILED" : "COMPLETED");
}

static void work_start(struct job *job)
{
    tell(work_of(job)->f, "(start)");
}

static void work_cancel(struct job *job, bool force)
{
    tell(work_of(job)->f, force ? "(cancel!)" : "(cancel)");
}

static void work_pause(struct job *job)
{
    tell(work_of(job)->f, "(pause)");
}

static void work_resume(struct job *job)
{
    tell(work_of(job)->f, "(resume)");
}

static void work_speed(struct job *job, uint64_t speed)
{
    assert_int_equal(job->speed, speed);
    tell(work_of(job)->f, "(speed)");
}

static void work_settle(struct job *job)
{
    tell(work_of(job)->f, job->status < 0 ? "(undo)" : "(keep)");
    if (!work_of(job)->settle_later)
        job_settled(job);
}

static void work_free(struct job *job)
{
    tell(work_of(job)->f, "(free)");
    free(work_of(job));
}

static const struct job_ops ops = {.type = "backup",
                                   .start = work_start,
                                   .cancel = work_cancel,
                                   .pause = work_pause,
                                   .resume = work_resume,
                                   .set_speed = work_speed,
                                   .settle = work_settle,
                                   .free = work_free};

static void fixture_init(struct fixture *f)
{
    memset(f, 0, sizeof *f);
    job_table_init(&f->table);
    f->table.hooks = (struct job_hooks){
        .context = f, .status_changed = on_status, .pending = on_pending, .finished = on_finished};
}

static struct job *make(struct fixture *f, const char *id, bool finalize, bool dismiss)
{
    struct error err;
    struct work *work = calloc(1, sizeof *work);
    work->f = f;
    work->job.ops = &ops;
    work->job.auto_finalize = finalize;
    work->job.auto_dismiss = dismiss;
    assert_int_equal(job_create(&f->table, &work->job, id, &err), 0);
    return &work->job;
}

static struct job *running(struct fixture *f, bool finalize, bool dismiss)
{
    struct job *job = make(f, NULL, finalize, dismiss);
    job_start(job);
    f->story[0] = '\0';
    return job;
}

static void the_good_end(void **state)
{
    (void)state;
    struct fixture f;
    fixture_init(&f);
    struct job *job = make(&f, "a", true, true);
    job_start(job);
    job_ended(job, 0, NULL);
    assert_string_equal(f.story, "created running (start) waiting pending (keep) COMPLETED concluded null (free)");
    assert_int_equal(f.table.count, 0);
}

static void the_bad_end(void **state)
{
    (void)state;
    struct fixture f;
    struct error err;
    fixture_init(&f);
    struct job *job = running(&f, true, true);
    job_ended(job, error_set(&err, EIO, "it broke"), &err);
    assert_string_equal(f.story, "aborting (undo) FAILED concluded null (free)");
}

static void the_user_finalizes_and_dismisses(void **state)
{
    (void)state;
    struct fixture f;
    struct error err;
    fixture_init(&f);
    struct job *job = running(&f, false, false);
    assert_int_equal(job_verb(job, JOB_VERB_FINALIZE, &err), -EPERM);
    assert_string_equal(err.text, "Job 'backup-1' in state 'running' cannot accept command verb 'finalize'");
    assert_int_equal(job_verb(job, JOB_VERB_DISMISS, &err), -EPERM);
    job_ended(job, 0, NULL);
    assert_string_equal(f.story, "waiting pending PENDING");
    assert_int_equal(job_verb(job, JOB_VERB_PAUSE, &err), -EPERM);
    work_of(job)->settle_later = true;
    assert_int_equal(job_verb(job, JOB_VERB_FINALIZE, &err), 0);
    assert_int_equal(job_verb(job, JOB_VERB_FINALIZE, &err), -EPERM); /* once */
    assert_int_equal(job_cancel(job, true, &err), -EPERM);            /* too late */
    job_settled(job);
    assert_string_equal(f.story, "waiting pending PENDING (keep) COMPLETED concluded");
    assert_int_equal(job_cancel(job, false, &err), -EPERM);
    assert_ptr_equal(job_find(&f.table, "backup-1"), job);
    assert_int_equal(job_verb(job, JOB_VERB_DISMISS, &err), 0);
    assert_string_equal(f.story, "waiting pending PENDING (keep) COMPLETED concluded null (free)");
    assert_null(job_find(&f.table, "backup-1"));

    job = running(&f, false, true);
    job_ended(job, 0, NULL);
    assert_int_equal(job_cancel(job, false, &err), 0);
    assert_string_equal(f.story, "waiting pending PENDING aborting (undo) CANCELLED concluded null (free)");
}

static void cancelled(void **state)
{
    (void)state;
    struct fixture f;
    struct error err;
    fixture_init(&f);
    struct job *job = running(&f, true, true);
    assert_int_equal(job_verb(job, JOB_VERB_CANCEL, &err), 0);
    assert_int_equal(job_verb(job, JOB_VERB_CANCEL, &err), 0); /* again: no second word to the work, but by force */
    assert_int_equal(job_cancel(job, true, &err), 0);
    job_ended(job, 0, NULL); /* it was done before it heard of it: cancelled all the same */
    assert_string_equal(f.story, "(cancel) (cancel!) aborting (undo) CANCELLED concluded null (free)");

    job = make(&f, "b", true, true); /* before its start */
    f.story[0] = '\0';
    assert_int_equal(job_cancel(job, false, &err), 0);
    job_ended(job, -ECANCELED, &err);
    assert_string_equal(f.story, "(cancel) aborting (undo) CANCELLED concluded null (free)");

    job = make(&f, "c", true, true); /* it never could begin */
    f.story[0] = '\0';
    job_forget(job);
    assert_string_equal(f.story, "null (free)");
}

static void paused(void **state)
{
    (void)state;
    struct fixture f;
    struct error err;
    fixture_init(&f);
    struct job *job = running(&f, true, true);
    assert_int_equal(job_verb(job, JOB_VERB_RESUME, &err), -EPERM);
    assert_string_equal(err.text, "Can't resume a job that was not paused");
    assert_int_equal(job_verb(job, JOB_VERB_PAUSE, &err), 0);
    assert_int_equal(job_verb(job, JOB_VERB_PAUSE, &err), -EPERM);
    assert_string_equal(err.text, "Job is already paused");
    job_paused(job);
    job_paused(job);
    assert_int_equal(job_set_speed(job, 7, &err), 0);
    assert_int_equal(job_verb(job, JOB_VERB_RESUME, &err), 0);
    job_paused(job); /* comes too late: it runs again */
    assert_string_equal(f.story, "(pause) paused (speed) running (resume)");

    f.story[0] = '\0';
    job_verb(job, JOB_VERB_PAUSE, &err);
    job_paused(job);
    job_cancel(job, false, &err);
    job_ended(job, -ECANCELED, &err);
    assert_string_equal(f.story, "(pause) paused running (cancel) aborting (undo) CANCELLED concluded null (free)");

    job = running(&f, true, true); /* the last piece came in before the pause took effect */
    job_verb(job, JOB_VERB_PAUSE, &err);
    job_ended(job, 0, NULL);
    assert_string_equal(f.story, "(pause) waiting pending (keep) COMPLETED concluded null (free)");
}

static void on_ended(void *argument)
{
    struct fixture *f = argument;
    assert_false(f->ended);
    f->ended = true;
}

static void names_and_bounds(void **state)
{
    (void)state;
    struct fixture f;
    struct error err;
    fixture_init(&f);
    struct work refused = {.job = {.ops = &ops}, .f = &f};
    struct job *jobs[LIMIT_JOBS];
    assert_int_equal(job_create(&f.table, &refused.job, "../x", &err), -EINVAL);
    for (unsigned i = 0; i < LIMIT_JOBS; i++)
        jobs[i] = make(&f, i ? NULL : "backup-2", true, true); /* a generated name takes the next one */
    assert_int_equal(job_create(&f.table, &refused.job, "backup-3", &err), -EEXIST);
    assert_string_equal(err.text, "Job ID 'backup-3' already in use");
    assert_int_equal(job_create(&f.table, &refused.job, "x", &err), -ENOSPC);
    job_forget(jobs[0]);
    assert_int_equal(f.table.count, LIMIT_JOBS - 1);
    for (unsigned i = 1; i < LIMIT_JOBS; i++)
        job_forget(jobs[i]);
}

static void the_end_of_all(void **state)
{
    (void)state;
    struct fixture f;
    struct error err;
    fixture_init(&f);
    job_table_end(&f.table, on_ended, &f);
    assert_true(f.ended);

    fixture_init(&f);
    struct job *done = running(&f, true, false), *waits = running(&f, false, false), *works = running(&f, true, false);
    job_ended(done, 0, NULL);
    job_ended(waits, 0, NULL);
    f.story[0] = '\0';
    job_table_end(&f.table, on_ended, &f);
    assert_string_equal(f.story, "null (free) aborting (undo) CANCELLED concluded null (free) (cancel!)");
    assert_false(f.ended);
    struct work late = {.job = {.ops = &ops}, .f = &f};
    assert_int_equal(job_create(&f.table, &late.job, "late", &err), -ESHUTDOWN);
    job_ended(works, -ECANCELED, &err);
    assert_true(f.ended);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_good_end),
        cmocka_unit_test(the_bad_end),
        cmocka_unit_test(the_user_finalizes_and_dismisses),
        cmocka_unit_test(cancelled),
        cmocka_unit_test(paused),
        cmocka_unit_test(names_and_bounds),
        cmocka_unit_test(the_end_of_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
