/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A guest is frozen for some milliseconds when a snapshot is cut, and just then it may stop to go on elsewhere: the thaw of
 * the old host's daemon no longer reaches it, and the new host's daemon has no record of it. So that one asks:
 *
 *     ASKING   is the guest frozen?
 *     THAWING  it is, so it thaws
 *     PAUSING  there was no answer: again, on a new connection. A guest that is known to be frozen is asked to thaw until it
 *              has; one that never says how it is (its agent does not run) is given up after ARRIVAL_ASK_NS
 *     OVER
 *
 * Somebody else's freeze is thawed as well, who notices that by the count of file systems that he thaws: nobody can tell the
 * two apart, and a guest that stays frozen for ever is worse.
 */
#include "guest/arrival.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "guest/agent_line.h"

struct arrival {
    struct io *io;
    const char *agent;
    enum { ASKING, THAWING, PAUSING, OVER } step;
    struct agent_line *line; /* NULL: none */
    unsigned closing;        /* lines that were hung up and are not gone */
    struct io_timer pause;
    uint64_t give_up_ns;
    bool frozen; /* it has said so */
    void (*ended)(void *argument);
    void *argument;
};

static void free_if_ended(struct arrival *arrival)
{
    if (!arrival->ended || arrival->closing > 0)
        return;
    void (*ended)(void *) = arrival->ended;
    void *argument = arrival->argument;
    free(arrival);
    ended(argument);
}

static void line_closed(void *argument)
{
    struct arrival *arrival = argument;
    arrival->closing--;
    free_if_ended(arrival);
}

static void hang_up(struct arrival *arrival)
{
    if (!arrival->line)
        return;
    arrival->closing++;
    agent_line_close(arrival->line, line_closed, arrival);
    arrival->line = NULL;
}

static void is_over(struct arrival *arrival)
{
    arrival->step = OVER;
    hang_up(arrival);
}

static void try_again(struct arrival *arrival, const struct error *err)
{
    hang_up(arrival);
    if (!arrival->frozen && io_now_ns(arrival->io) >= arrival->give_up_ns) {
        log_warning("whether the guest has arrived frozen is not known: %s", err->text);
        is_over(arrival);
        return;
    }
    arrival->step = PAUSING;
    io_timer_set(arrival->io, &arrival->pause, io_now_ns(arrival->io) + THAW_PAUSE_NS);
}

static void thaw_answered(void *argument, const struct agent_reply *reply, const struct error *err)
{
    struct arrival *arrival = argument;
    struct error wrong;
    if (agent_reply_is_wrong(reply, AGENT_NUMBER, "asked to thaw", &wrong))
        err = &wrong;
    if (err) {
        try_again(arrival, err);
        return;
    }
    log_info("the guest has thawed");
    is_over(arrival);
}

static void ask(struct arrival *arrival, enum agent_question question,
                void (*answered)(void *argument, const struct agent_reply *reply, const struct error *err))
{
    struct error err;
    if (!arrival->line)
        arrival->line = agent_line_open(arrival->io, arrival->agent, &err);
    if (arrival->line)
        agent_line_ask(arrival->line, question, io_now_ns(arrival->io) + THAW_ANSWER_NS, answered, arrival);
    else
        try_again(arrival, &err);
}

static void status_answered(void *argument, const struct agent_reply *reply, const struct error *err)
{
    struct arrival *arrival = argument;
    struct error wrong;
    if (agent_reply_is_wrong(reply, AGENT_TEXT, "asked whether the guest is frozen", &wrong))
        err = &wrong;
    if (err) {
        try_again(arrival, err);
    } else if (strcmp(reply->text, "frozen") != 0) {
        is_over(arrival);
    } else {
        log_warning("the guest has arrived frozen: it is thawed");
        arrival->frozen = true;
        arrival->step = THAWING;
        ask(arrival, AGENT_THAW, thaw_answered);
    }
}

static void pause_over(struct io_timer *timer)
{
    struct arrival *arrival = container_of(timer, struct arrival, pause);
    arrival->step = arrival->frozen ? THAWING : ASKING;
    if (arrival->frozen)
        ask(arrival, AGENT_THAW, thaw_answered);
    else
        ask(arrival, AGENT_STATUS, status_answered);
}

struct arrival *arrival_create(struct io *io, const char *agent)
{
    struct arrival *arrival = calloc(1, sizeof *arrival);
    if (!arrival)
        return NULL;
    arrival->io = io;
    arrival->agent = agent;
    arrival->pause.fire = pause_over;
    arrival->give_up_ns = io_now_ns(io) + ARRIVAL_ASK_NS;
    ask(arrival, AGENT_STATUS, status_answered);
    return arrival;
}

void arrival_end(struct arrival *arrival, void (*ended)(void *argument), void *argument)
{
    assert(io_on_owner(arrival->io) && !arrival->ended);
    if (arrival->step == THAWING || (arrival->step == PAUSING && arrival->frozen))
        log_warning("the guest may still be frozen");
    io_timer_cancel(arrival->io, &arrival->pause);
    is_over(arrival);
    arrival->ended = ended;
    arrival->argument = argument;
    free_if_ended(arrival);
}
