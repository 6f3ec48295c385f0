/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Cuts a stream of bytes from a stranger into JSON objects, with bounds on length and nesting. Any thread,
 * one at a time.
 */
#ifndef FLEECE_CONTROL_MESSAGE_H
#define FLEECE_CONTROL_MESSAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include "base/error.h"

struct message_reader {
    char *buffer; /* [0, used) is received and not taken yet; NULL at first */
    size_t used, room;
    size_t scanned;  /* bytes of the message at the start of the buffer that have been looked at */
    unsigned depth;  /* open brackets */
    uint32_t square; /* bit n: bracket n is a '[' */
    bool in_string, escaped;
    bool skipping; /* garbage, up to the end of its line */
};

enum message_result {
    MESSAGE_NONE,   /* more bytes are needed */
    MESSAGE_OBJECT, /* an object: *message, a new reference */
    MESSAGE_WRONG,  /* not an object of JSON: `err` says why; go on, the reader has found its place again */
    MESSAGE_FATAL,  /* too long or too deep: `err` says why; the connection must end */
};

void message_reader_init(struct message_reader *reader);
void message_reader_fini(struct message_reader *reader);

/* How many more bytes it takes now; 0: take messages out first. */
size_t message_reader_room(const struct message_reader *reader);
/* Adds bytes, at most as many as there is room for; they are copied. 0 or -ENOMEM. */
int message_reader_add(struct message_reader *reader, const void *bytes, size_t length);
/* The next message. */
enum message_result message_reader_next(struct message_reader *reader, json_t **message, struct error *err);

#endif
