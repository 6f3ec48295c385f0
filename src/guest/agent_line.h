/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A line to a guest agent (qemu-ga) through the unix socket of its VMM. One question at a time; each begins with a sync of
 * its own, so that what an earlier client has left, or an earlier question, is never taken for its answer. On one reactor.
 */
#ifndef FLEECE_GUEST_AGENT_LINE_H
#define FLEECE_GUEST_AGENT_LINE_H

#include "guest/agent_reply.h"
#include "io/io.h"

struct agent_line;

enum agent_question {
    AGENT_STATUS, /* guest-fsfreeze-status: AGENT_TEXT */
    AGENT_FREEZE, /* guest-fsfreeze-freeze: AGENT_NUMBER, of file systems */
    AGENT_THAW,   /* guest-fsfreeze-thaw: the same */
};

/* Connects. NULL, with a sentence. The line ends by agent_line_close() only, whatever becomes of it. */
struct agent_line *agent_line_open(struct io *io, const char *address, struct error *err);
/*
 * Asks. `answered` comes later, once, never inside this call: with the reply, or with err alone when the line is broken or
 * the deadline has passed; then only AGENT_THAW may be asked on it. An earlier question that was not answered is forgotten:
 * the agent works off what it is told in order, so a thaw that is asked behind a freeze comes after it.
 *
 * FREEZE and STATUS are not sent before their sync is answered: where no agent listens, a freeze must not lie in wait for
 * one. A THAW goes along with its sync, since it does no harm late.
 */
void agent_line_ask(struct agent_line *line, enum agent_question question, uint64_t deadline_ns,
                    void (*answered)(void *argument, const struct agent_reply *reply, const struct error *err),
                    void *argument);
/* Hangs up; `answered` is not called any more. closed(argument) comes when nothing of it is left. */
void agent_line_close(struct agent_line *line, void (*closed)(void *argument), void *argument);

#endif
