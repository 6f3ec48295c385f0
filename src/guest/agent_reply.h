/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a guest agent says: lines of JSON, from a stranger. A byte 0xFF begins anew, whatever was said before it (the
 * delimiter of guest-sync-delimited, which no JSON text has).
 */
#ifndef FLEECE_GUEST_AGENT_REPLY_H
#define FLEECE_GUEST_AGENT_REPLY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "base/limits.h"

enum agent_reply_kind {
    AGENT_NUMBER, /* {"return": 3} */
    AGENT_TEXT,   /* {"return": "thawed"} */
    AGENT_ERROR,  /* {"error": {"class": …, "desc": …}} */
    AGENT_NOISE,  /* anything else */
};

struct agent_reply {
    enum agent_reply_kind kind;
    int64_t number;
    char text
        [LIMIT_AGENT_TEXT_BYTES]; /* of AGENT_TEXT and AGENT_ERROR: printable ASCII; of AGENT_NOISE: what is wrong */
};

struct agent_reader {
    char line[LIMIT_AGENT_REPLY_BYTES];
    size_t used;
    bool too_long; /* the line that is being read: its bytes are passed over */
};

/* Takes bytes, as far as the end of a line; *bytes and *length become what is left. True: *reply is what the line says. */
bool agent_reader_take(struct agent_reader *reader, const char **bytes, size_t *length, struct agent_reply *reply);
/* Whether there is a reply (NULL: none) and it is not what was wanted when the agent was `doing` ("asked to thaw"): then
 * `err` says so. */
bool agent_reply_is_wrong(const struct agent_reply *reply, enum agent_reply_kind wanted, const char *doing,
                          struct error *err);

#endif
