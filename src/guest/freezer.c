/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A freeze, step by step:
 *
 *     IDLE
 *     FINDING   which hooks there are (helper thread)
 *     BEFORE    they run, "freeze", one after the other (helper thread)
 *     LOOKING   the agent is asked whether somebody else has frozen the guest: then it is his to thaw, and we don't freeze
 *     FREEZING  the agent freezes; its guest writes back what is dirty, which may take long
 *     FROZEN    the caller makes his cut
 *     THAWING   the agent thaws
 *     AFTER     the hooks that were started run, "thaw", in the opposite order, whatever the agent says: what they have
 *               frozen is not to wait for it
 *     PAUSING   the agent has not said that it has thawed, or a hook has failed: both are tried again, until they have. The
 *               agent on a new connection: where the guest was frozen, or, when nobody listens there any more, where the
 *               options say that its agent is now. Options that name no agent end that after a while (THAW_GIVE_UP_NS); the
 *               record stays
 *
 * The watchdog runs from the caller's wish to the thaw. When it fires, when anything fails, and when the caller is gone, the
 * way leads through THAWING and AFTER back to IDLE: there is no other.
 *
 * The order that must not change: a hook, and then the agent, are noted in the record before they are started. The record
 * goes when all has been thawed. So a daemon that is killed anywhere in between leaves a record that names at least what is
 * frozen, and the next one thaws that first (freezer_recover()). It need not wait for it: a file system that thaws may have
 * to write to its disk, which that daemon is about to serve. A hook that a killed daemon has left running is killed first:
 * it might freeze something after its thaw has run. Its number is noted a moment after its start; a kill -9 in that moment
 * leaves it alone.
 *
 * Whether the guest was still at the cut is known only from the thaw: the agent says how many file systems it has thawed,
 * and when these are not as many as it had frozen, somebody else was faster (VSS of Windows, an administrator).
 *
 * A daemon that ends is patient with a guest that has not answered yet, within bounds (THAW_STOP_MAX_NS), and tries all
 * else once more: a hook that fails again, and an agent whose socket has gone, is left to the next daemon, or to
 * `fleeced --thaw`. A hook that still freezes then is killed.
 *
 * The connection lasts from LOOKING to the thaw and no longer: QEMU serves one client at a time, and there are others.
 */
#include "guest/freezer.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "guest/agent_line.h"
#include "guest/freeze_record.h"

enum step { IDLE, FINDING, BEFORE, LOOKING, FREEZING, FROZEN, THAWING, PAUSING, AFTER };

struct freezer {
    struct io *io;
    struct freezer_options options;
    enum step step;
    struct freeze_record record; /* what has to be thawed still */
    struct hook_list found;
    struct hook_run run;
    struct io_op helper;
    bool helper_busy, given_up; /* given up: as soon as the helper is back, we thaw */
    struct error helper_error;
    struct hook_strays strays;
    atomic_bool cut_short; /* the hook that runs is to end */
    struct agent_line *line;
    unsigned lines_closing;
    struct io_timer watchdog, pause, stop_timer;
    struct io_task tell; /* the callbacks, and the next freeze */
    /* The wish, from freezer_freeze() until it is answered: */
    void (*frozen)(void *argument, const struct error *err);
    void *frozen_argument;
    bool begun; /* it is what the steps are about */
    struct error refusal;
    char snapshot[LIMIT_NAME_BYTES + 1];
    /* How the last one went: */
    void (*settled)(void *argument, const struct freeze_outcome *outcome);
    void *settled_argument;
    bool held, is_settled;
    unsigned after_left;        /* hooks that this round of AFTER comes to */
    uint64_t hooks_due_ns;      /* the next round of those that failed */
    uint64_t agent_give_up_ns;  /* where the options name none */
    bool agent_lost;            /* it is not tried any more: the options name none, or we are stopping */
    struct error agent_problem; /* why it is not thawed, or, of hooks, the last one that failed: */
    struct error after_error;
    struct error reason;
    int64_t file_systems;
    uint64_t frozen_at_ns, frozen_ns;
    struct error trouble;                 /* the thaw did not succeed; code 0: none */
    bool stopping, stop_over, last_round; /* last round: it began when we were stopping already */
    void (*stopped)(void *argument, bool thawed);
    void *stopped_argument;
};

static void step_move(struct freezer *freezer, enum step to)
{
    static const unsigned allowed[] = {
        [IDLE] = 1 << FINDING | 1 << LOOKING | 1 << THAWING,
        [FINDING] = 1 << BEFORE | 1 << LOOKING | 1 << FROZEN | 1 << THAWING,
        [BEFORE] = 1 << BEFORE | 1 << LOOKING | 1 << FROZEN | 1 << THAWING,
        [LOOKING] = 1 << FREEZING | 1 << THAWING,
        [FREEZING] = 1 << FROZEN | 1 << THAWING,
        [FROZEN] = 1 << THAWING,
        [THAWING] = 1 << AFTER,
        [PAUSING] = 1 << THAWING | 1 << AFTER,
        [AFTER] = 1 << IDLE | 1 << PAUSING,
    };
    assert(allowed[freezer->step] & 1U << to);
    freezer->step = to;
}

/* ---- what is told, at the end of the tick ---- */

static void check_stopped(struct freezer *freezer)
{
    const bool thawed = freezer->step == IDLE && !freezer->agent_lost;
    if (!freezer->stopped || freezer->helper_busy || freezer->lines_closing > 0 ||
        (freezer->step != IDLE && !freezer->stop_over) || list_linked(&freezer->tell.link))
        return;
    void (*stopped)(void *, bool) = freezer->stopped;
    freezer->stopped = NULL;
    io_timer_cancel(freezer->io, &freezer->stop_timer);
    const struct error *why = freezer->trouble.code ? &freezer->trouble : &freezer->agent_problem;
    if (!thawed)
        log_error("the guest may still be frozen, `fleeced --thaw --name %s` and the next start try again: %s",
                  freezer->options.vm, why->code ? why->text : "its thaw takes longer than a daemon waits that ends");
    stopped(freezer->stopped_argument, thawed);
}

/* The wish has an answer. */
static void answer(struct freezer *freezer, const struct error *err)
{
    void (*frozen)(void *, const struct error *) = freezer->frozen;
    freezer->frozen = NULL;
    freezer->refusal = (struct error){0};
    if (err)
        io_timer_cancel(freezer->io, &freezer->watchdog);
    if (frozen)
        frozen(freezer->frozen_argument, err);
}

static void refuse(struct freezer *freezer, const struct error *err)
{
    if (!freezer->frozen)
        return;
    freezer->refusal = *err;
    io_task_queue(freezer->io, &freezer->tell);
}

static void begin(struct freezer *freezer);

static void tell(struct io_task *task)
{
    struct freezer *freezer = container_of(task, struct freezer, tell);
    if (freezer->is_settled && freezer->settled) {
        const struct freeze_outcome outcome = {
            .held = freezer->held, .reason = freezer->reason.text, .frozen_ns = freezer->frozen_ns};
        void (*settled)(void *, const struct freeze_outcome *) = freezer->settled;
        freezer->settled = NULL;
        settled(freezer->settled_argument, &outcome);
    }
    if (freezer->refusal.code) {
        const struct error refusal = freezer->refusal;
        answer(freezer, &refusal);
    }
    if (freezer->step == IDLE && freezer->frozen)
        begin(freezer);
    check_stopped(freezer);
}

/* How it went is known. */
static void settle(struct freezer *freezer)
{
    freezer->is_settled = true;
    io_task_queue(freezer->io, &freezer->tell);
}

/* It was not still, or not until the end; the first reason counts. */
static void not_held(struct freezer *freezer, const struct error *err)
{
    freezer->held = false;
    if (!freezer->reason.code)
        freezer->reason = *err;
}

/* ---- thawing ---- */

static void line_closed(void *argument)
{
    struct freezer *freezer = argument;
    freezer->lines_closing--;
    check_stopped(freezer);
}

static void hang_up(struct freezer *freezer)
{
    if (!freezer->line)
        return;
    freezer->lines_closing++;
    agent_line_close(freezer->line, line_closed, freezer);
    freezer->line = NULL;
}

/* On the helper thread; nobody else touches the record before it is back. */
static void hook_started(void *argument, const struct hook_process *process)
{
    struct freezer *freezer = argument;
    struct error err;
    freezer->record.running = *process;
    if (freeze_record_store(freezer->options.record_path, &freezer->record, &err) < 0)
        log_warning("%s", err.text);
}

static void run_hook(struct freezer *freezer, unsigned index, const char *verb, uint64_t timeout_ns)
{
    freezer->run = (struct hook_run){
        .list = &freezer->record.hooks,
        .index = index,
        .verb = verb,
        .vm = freezer->options.vm,
        .snapshot = freezer->record.snapshot,
        .timeout_ns = timeout_ns,
        .cut_short = &freezer->cut_short,
        .strays = &freezer->strays,
        .started = freezer->step == BEFORE ? hook_started : NULL,
        .started_argument = freezer,
    };
    atomic_store(&freezer->cut_short, false);
    freezer->helper_busy = true;
    io_work(freezer->io, &freezer->helper, hook_run, &freezer->run);
}

/* Something is not thawed; it is tried again. */
static void note_trouble(struct freezer *freezer, const struct error *err)
{
    if (!freezer->trouble.code)
        log_warning("the guest may still be frozen, its thaw is tried again and again: %s", err->text);
    freezer->trouble = *err;
    error_prefix(&freezer->trouble, "the guest did not confirm that it has thawed");
    refuse(freezer, &freezer->trouble);
}

/* The daemon ends, whatever is frozen. */
static void end_stop(struct freezer *freezer)
{
    freezer->stop_over = true;
    settle(freezer); /* whoever waits to know must not wait for ever; it was not held since freezer_stop() */
    io_timer_cancel(freezer->io, &freezer->pause);
    hang_up(freezer);
    atomic_store(&freezer->cut_short, true);
    check_stopped(freezer);
}

static void end_trouble(struct freezer *freezer)
{
    if (freezer->trouble.code)
        log_info("the guest has thawed");
    freezer->trouble = (struct error){0};
}

static void after_next(struct freezer *freezer);

static void after_done(struct io_op *op, int64_t result)
{
    struct freezer *freezer = container_of(op, struct freezer, helper);
    struct hook_list *left = &freezer->record.hooks;
    const unsigned index = freezer->run.index;
    freezer->helper_busy = false;
    if (result < 0 && strcmp(freezer->run.error.text, freezer->after_error.text) != 0) /* once is enough */
        log_warning("%s", freezer->run.error.text);
    if (result < 0 && !freezer->run.is_gone)
        freezer->after_error = freezer->run.error;
    else
        memmove(left->names[index], left->names[index + 1], (--left->count - index) * sizeof left->names[0]);
    after_next(freezer);
    check_stopped(freezer);
}

static bool agent_is_left(const struct freezer *freezer)
{
    return freezer->record.agent[0] && !freezer->agent_lost;
}

static void after_pause(struct freezer *freezer)
{
    const uint64_t now_ns = io_now_ns(freezer->io);
    const bool agent = agent_is_left(freezer);
    step_move(freezer, PAUSING);
    if (freezer->record.hooks.count > 0 && freezer->hooks_due_ns <= now_ns) /* they have run, and failed */
        freezer->hooks_due_ns = now_ns + (freezer->stopping && !freezer->last_round ? 0 : HOOK_PAUSE_NS);
    note_trouble(freezer, agent ? &freezer->agent_problem : &freezer->after_error);
    if (freezer->stop_over)
        return;
    io_timer_set(freezer->io, &freezer->pause, agent ? now_ns + THAW_PAUSE_NS : freezer->hooks_due_ns);
    if (freezer->last_round && !agent)
        end_stop(freezer);
}

/* An agent that was given up may have frozen the guest still: that stays noted, whatever hooks freeze later. */
static void after_over(struct freezer *freezer)
{
    struct error err;
    if (!freezer->agent_lost)
        end_trouble(freezer);
    freezer->trouble = freezer->after_error = (struct error){0};
    if (!freezer->agent_lost) {
        freeze_record_remove(freezer->options.record_path);
        freezer->record = (struct freeze_record){0};
    } else if (freeze_record_store(freezer->options.record_path, &freezer->record, &err) < 0) {
        log_warning("%s", err.text);
    }
    step_move(freezer, IDLE);
    io_task_queue(freezer->io, &freezer->tell);
}

/* The hook before after_left. In the end those that failed come again: what they have frozen nobody else thaws. */
static void after_next(struct freezer *freezer)
{
    if (freezer->after_left > 0 && !freezer->stop_over) {
        freezer->helper.done = after_done;
        run_hook(freezer, --freezer->after_left, "thaw", freezer->options.timeout_ns);
    } else if (freezer->record.hooks.count > 0 || agent_is_left(freezer)) {
        after_pause(freezer);
    } else {
        after_over(freezer);
    }
}

static void after_begin(struct freezer *freezer)
{
    step_move(freezer, AFTER);
    freezer->last_round = freezer->stopping;
    freezer->after_left = freezer->hooks_due_ns <= io_now_ns(freezer->io) ? freezer->record.hooks.count : 0;
    after_next(freezer);
}

static void thawed(struct freezer *freezer)
{
    hang_up(freezer);
    end_trouble(freezer);
    if (!freezer->agent_lost)
        freezer->record.agent[0] = 0;
    settle(freezer);
    after_begin(freezer);
}

static void lose_agent(struct freezer *freezer, const struct error *err)
{
    freezer->agent_lost = true;
    if (!freezer->stopping)
        log_warning(
            "the guest may still be frozen, and it is not tried any more to thaw it: %s; when this daemon has ended, "
            "`fleeced --thaw --name %s --guest-agent SOCKET` tries again",
            err->text, freezer->options.vm);
}

/* Gone: nobody listens where the agent should be. */
static void thaw_failed(struct freezer *freezer, const struct error *err, bool gone)
{
    hang_up(freezer);
    freezer->agent_problem = *err;
    if (!freezer->trouble.code)
        note_trouble(freezer, err);
    not_held(freezer, &freezer->trouble);
    settle(freezer);
    if (freezer->stopping ? gone : !freezer->options.agent && io_now_ns(freezer->io) >= freezer->agent_give_up_ns)
        lose_agent(freezer, err);
    after_begin(freezer);
}

static void thaw_answered(void *argument, const struct agent_reply *reply, const struct error *err)
{
    struct freezer *freezer = argument;
    struct error said;
    if (reply && reply->kind == AGENT_NUMBER) {
        if (reply->number != freezer->file_systems) {
            error_set(&said, EINTR, "of %lld frozen file systems only %lld were frozen still when they were thawed",
                      (long long)freezer->file_systems, (long long)reply->number);
            not_held(freezer, &said);
        }
        thawed(freezer);
        return;
    }
    if (reply) {
        error_set(&said, EPROTO, "asked to thaw, the guest agent says: %s", reply->text);
        err = &said;
    }
    thaw_failed(freezer, err, false);
}

/* Where the guest was frozen; when nobody is there any more, where its agent is said to be now. */
static struct agent_line *open_to_thaw(struct freezer *freezer, struct error *err)
{
    const char *then = freezer->record.agent, *now = freezer->options.agent;
    struct agent_line *line = agent_line_open(freezer->io, then, err);
    if (!line && now && strcmp(now, then) != 0 && (err->code == ENOENT || err->code == ECONNREFUSED))
        line = agent_line_open(freezer->io, now, err);
    return line;
}

static void thaw_try(struct freezer *freezer)
{
    struct error err;
    if (!freezer->line)
        freezer->line = open_to_thaw(freezer, &err);
    if (!freezer->line)
        thaw_failed(freezer, &err, true);
    else
        agent_line_ask(freezer->line, AGENT_THAW, io_now_ns(freezer->io) + THAW_ANSWER_NS, thaw_answered, freezer);
}

static void thaw_again(struct freezer *freezer)
{
    if (!agent_is_left(freezer)) {
        after_begin(freezer);
        return;
    }
    step_move(freezer, THAWING);
    thaw_try(freezer);
}

static void pause_over(struct io_timer *timer)
{
    thaw_again(container_of(timer, struct freezer, pause));
}

static void thaw_begin(struct freezer *freezer)
{
    if (!freezer->given_up) /* else it is the next wish's by now, or has fired */
        io_timer_cancel(freezer->io, &freezer->watchdog);
    if (freezer->step == FROZEN)
        freezer->frozen_ns = io_now_ns(freezer->io) - freezer->frozen_at_ns;
    step_move(freezer, THAWING);
    freezer->hooks_due_ns = 0;
    if (agent_is_left(freezer))
        thaw_try(freezer);
    else
        thawed(freezer);
}

/* ---- freezing ---- */

/* The caller's wish can't be granted; what was frozen thaws. */
static void fail(struct freezer *freezer, const struct error *err)
{
    const struct error why = *err;
    not_held(freezer, &why);
    thaw_begin(freezer);
    refuse(freezer, &why);
}

static bool note(struct freezer *freezer)
{
    struct error err;
    if (freeze_record_store(freezer->options.record_path, &freezer->record, &err) == 0)
        return true;
    fail(freezer, &err);
    return false;
}

static void is_frozen(struct freezer *freezer)
{
    step_move(freezer, FROZEN);
    freezer->held = true;
    freezer->frozen_at_ns = io_now_ns(freezer->io);
    answer(freezer, NULL);
}

static void freeze_answered(void *argument, const struct agent_reply *reply, const struct error *err)
{
    struct freezer *freezer = argument;
    struct error wrong;
    if (agent_reply_is_wrong(reply, AGENT_NUMBER, "asked to freeze", &wrong))
        err = &wrong;
    else if (reply && reply->number <= 0)
        err = (error_set(&wrong, ENODEV, "the guest agent has found no file system to freeze"), &wrong);
    if (err) {
        fail(freezer, err);
        return;
    }
    freezer->file_systems = reply->number;
    is_frozen(freezer);
}

static void status_answered(void *argument, const struct agent_reply *reply, const struct error *err)
{
    struct freezer *freezer = argument;
    struct error wrong;
    if (agent_reply_is_wrong(reply, AGENT_TEXT, "asked whether the guest is frozen", &wrong))
        err = &wrong;
    else if (reply && strcmp(reply->text, "thawed") != 0)
        err = (error_set(&wrong, EBUSY, "the guest is %s already, by somebody else", reply->text), &wrong);
    if (err) {
        fail(freezer, err);
        return;
    }
    snprintf(freezer->record.agent, sizeof freezer->record.agent, "%s", freezer->options.agent);
    if (!note(freezer))
        return;
    step_move(freezer, FREEZING);
    agent_line_ask(freezer->line, AGENT_FREEZE, freezer->watchdog.deadline_ns, freeze_answered, freezer);
}

static void look(struct freezer *freezer)
{
    struct error err;
    if (!freezer->options.agent) {
        is_frozen(freezer);
        return;
    }
    freezer->line = agent_line_open(freezer->io, freezer->options.agent, &err);
    step_move(freezer, LOOKING);
    if (freezer->line)
        agent_line_ask(freezer->line, AGENT_STATUS, freezer->watchdog.deadline_ns, status_answered, freezer);
    else
        fail(freezer, &err);
}

static void before_next(struct freezer *freezer);

static void before_done(struct io_op *op, int64_t result)
{
    struct freezer *freezer = container_of(op, struct freezer, helper);
    freezer->helper_busy = false;
    freezer->record.running = (struct hook_process){0};
    if (!freezer->run.was_started) /* nor is it waited for until it can be */
        freezer->record.hooks.count--;
    if (freezer->given_up)
        thaw_begin(freezer);
    else if (result < 0)
        fail(freezer, &freezer->run.error);
    else
        before_next(freezer);
}

static void before_next(struct freezer *freezer)
{
    struct hook_list *started = &freezer->record.hooks;
    struct error err;
    const uint64_t now_ns = io_now_ns(freezer->io), until_ns = freezer->watchdog.deadline_ns;
    if (freezer->found.count == 0 && !freezer->options.agent) {
        error_set(&err, ENOENT, "nothing freezes the guest: no program in %s can be run as a hook", started->folder);
        fail(freezer, &err);
        return;
    }
    if (started->count == freezer->found.count) {
        look(freezer);
        return;
    }
    step_move(freezer, BEFORE);
    memcpy(started->names[started->count], freezer->found.names[started->count], sizeof started->names[0]);
    started->count++;
    if (!note(freezer))
        return;
    freezer->helper.done = before_done;
    run_hook(freezer, started->count - 1, "freeze", until_ns > now_ns ? until_ns - now_ns : 0);
}

static int64_t find(void *argument)
{
    struct freezer *freezer = argument;
    return hooks_find(&freezer->found, &freezer->helper_error);
}

static void hooks_found(struct io_op *op, int64_t result)
{
    struct freezer *freezer = container_of(op, struct freezer, helper);
    freezer->helper_busy = false;
    if (freezer->given_up)
        thaw_begin(freezer);
    else if (result < 0)
        fail(freezer, &freezer->helper_error);
    else
        before_next(freezer);
}

static void begin(struct freezer *freezer)
{
    freezer->begun = true;
    freezer->given_up = freezer->is_settled = freezer->held = false;
    freezer->reason = (struct error){0};
    freezer->frozen_ns = 0;
    freezer->file_systems = 0;
    freezer->found.count = 0;
    memcpy(freezer->record.snapshot, freezer->snapshot, sizeof freezer->record.snapshot);
    if (!freezer->options.hook_folder) {
        look(freezer);
        return;
    }
    step_move(freezer, FINDING);
    snprintf(freezer->found.folder, sizeof freezer->found.folder, "%s", freezer->options.hook_folder);
    memcpy(freezer->record.hooks.folder, freezer->found.folder, sizeof freezer->found.folder);
    freezer->helper.done = hooks_found;
    freezer->helper_busy = true;
    io_work(freezer->io, &freezer->helper, find, freezer);
}

/* Whatever is frozen, or about to be, thaws. */
static void release(struct freezer *freezer)
{
    switch (freezer->step) {
    case FINDING:
    case BEFORE:
        freezer->given_up = true;
        break;
    case LOOKING:
    case FREEZING:
    case FROZEN:
        thaw_begin(freezer);
        break;
    case IDLE:
    case THAWING:
    case PAUSING:
    case AFTER:
        break;
    }
}

/* While the agent is asked, the question has the same deadline, and tells more. */
static void watchdog_fired(struct io_timer *timer)
{
    struct freezer *freezer = container_of(timer, struct freezer, watchdog);
    const double seconds = (double)freezer->options.timeout_ns / (double)NS_PER_S;
    struct error err;
    if (freezer->step == FROZEN) {
        error_set(&err, ETIMEDOUT, "the guest was thawed before the cut, since it had taken %.1f s", seconds);
        log_warning("%s", err.text);
        not_held(freezer, &err);
        release(freezer);
    } else if (freezer->step != LOOKING && freezer->step != FREEZING) {
        if (freezer->begun && freezer->step == BEFORE)
            error_set(&err, ETIMEDOUT, "hook %s freeze has not ended within %.1f s",
                      freezer->record.hooks.names[freezer->run.index], seconds);
        else
            error_set(&err, ETIMEDOUT, "the guest could not be frozen within %.1f s", seconds);
        if (freezer->begun)
            release(freezer);
        refuse(freezer, &err);
    }
}

static void stop_over(struct io_timer *timer)
{
    end_stop(container_of(timer, struct freezer, stop_timer));
}

/* ---- what callers ask for ---- */

struct freezer *freezer_create(struct io *io, const struct freezer_options *options)
{
    struct freezer *freezer = calloc(1, sizeof *freezer);
    if (!freezer)
        return NULL;
    freezer->io = io;
    freezer->options = *options;
    freezer->watchdog.fire = watchdog_fired;
    freezer->pause.fire = pause_over;
    freezer->stop_timer.fire = stop_over;
    freezer->tell.run = tell;
    return freezer;
}

void freezer_destroy(struct freezer *freezer)
{
    assert(!freezer->helper_busy && freezer->lines_closing == 0 && !list_linked(&freezer->tell.link));
    free(freezer);
}

void freezer_recover(struct freezer *freezer)
{
    const struct hook_list *hooks = &freezer->record.hooks;
    struct error err;
    int status = freeze_record_load(freezer->options.record_path, &freezer->record, &err);
    assert(freezer->step == IDLE);
    if (status == -ENOENT)
        return;
    if (status < 0) {
        log_warning("%s", err.text);
        freeze_record_remove(freezer->options.record_path);
        return;
    }
    log_warning("a daemon was killed while it made snapshot '%s': the guest is thawed", freezer->record.snapshot);
    if (hooks->count > 0) /* the last one may run still, and would freeze what its thaw has thawed already */
        hook_kill(&freezer->record.running, hooks->names[hooks->count - 1], &freezer->strays);
    freezer->record.running = (struct hook_process){0};
    freezer->agent_give_up_ns = io_now_ns(freezer->io) + THAW_GIVE_UP_NS;
    thaw_begin(freezer);
}

void freezer_freeze(struct freezer *freezer, const char *snapshot,
                    void (*frozen)(void *argument, const struct error *err), void *argument)
{
    struct error err;
    assert(io_on_owner(freezer->io) && !freezer->frozen);
    freezer->frozen = frozen;
    freezer->frozen_argument = argument;
    freezer->begun = false;
    snprintf(freezer->snapshot, sizeof freezer->snapshot, "%s", snapshot);
    io_timer_set(freezer->io, &freezer->watchdog, io_now_ns(freezer->io) + freezer->options.timeout_ns);
    if (freezer->stopping)
        error_set(&err, ESHUTDOWN, "the daemon is shutting down");
    if (freezer->stopping || freezer->trouble.code)
        refuse(freezer, freezer->stopping ? &err : &freezer->trouble);
    io_task_queue(freezer->io, &freezer->tell);
}

void freezer_cancel(struct freezer *freezer)
{
    struct error err;
    assert(io_on_owner(freezer->io));
    if (!freezer->frozen)
        return;
    freezer->frozen = NULL;
    freezer->refusal = (struct error){0};
    io_timer_cancel(freezer->io, &freezer->watchdog);
    if (!freezer->begun)
        return;
    error_set(&err, ECANCELED, "the snapshot was given up");
    not_held(freezer, &err);
    release(freezer);
}

void freezer_thaw(struct freezer *freezer, void (*settled)(void *argument, const struct freeze_outcome *outcome),
                  void *argument)
{
    assert(io_on_owner(freezer->io) && !freezer->frozen && !freezer->settled);
    freezer->settled = settled;
    freezer->settled_argument = argument;
    release(freezer);
    io_task_queue(freezer->io, &freezer->tell);
}

void freezer_stop(struct freezer *freezer, void (*done)(void *argument, bool thawed), void *argument)
{
    const uint64_t timeout_ns = freezer->options.timeout_ns;
    struct error err;
    assert(io_on_owner(freezer->io) && !freezer->stopping);
    freezer->stopping = true;
    freezer->stopped = done;
    freezer->stopped_argument = argument;
    error_set(&err, ESHUTDOWN, "the daemon is shutting down");
    not_held(freezer, &err);
    release(freezer);
    refuse(freezer, &err);
    if (freezer->step == BEFORE)
        atomic_store(&freezer->cut_short, true);
    if (freezer->step == PAUSING) {
        io_timer_cancel(freezer->io, &freezer->pause);
        freezer->hooks_due_ns = 0;
        thaw_again(freezer);
    }
    io_timer_set(freezer->io, &freezer->stop_timer,
                 io_now_ns(freezer->io) + (timeout_ns < THAW_STOP_MAX_NS ? timeout_ns : THAW_STOP_MAX_NS));
    io_task_queue(freezer->io, &freezer->tell);
}

void freezer_status(const struct freezer *freezer, struct freezer_status *status)
{
    const enum step step = freezer->step;
    const bool is_freezing = step >= FINDING && step < FROZEN;
    *status = (struct freezer_status){
        .state = step == IDLE     ? "idle"
                 : step == FROZEN ? "frozen"
                 : is_freezing    ? "freezing"
                                  : "thawing",
        .agent = freezer->options.agent,
        .hook_folder = freezer->options.hook_folder,
        .timeout_ns = freezer->options.timeout_ns,
        .trouble = freezer->trouble.code ? freezer->trouble.text : NULL,
    };
}
