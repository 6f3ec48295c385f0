/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Messages of the control protocol are JSON objects, one behind the other, with or without newlines between
 * them (as QEMU takes them). The reader finds where an object ends by counting brackets outside of strings,
 * and only then gives the whole text to the JSON parser; so the parser never sees a half message, nor one
 * that is nested deeper or is longer than the limits allow.
 *
 * After bytes that can't begin or continue an object, the place is lost; it is found again behind the next
 * newline, which no JSON string may hold. A message that is too long or too deep ends the connection, as
 * there is no telling how much of it would have to be skipped.
 */
#include "control/message.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"

/* What one byte means for the message that it stands in. */
enum scan { SCAN_ON, SCAN_END, SCAN_GARBAGE, SCAN_DEEP };

_Static_assert(LIMIT_CONTROL_DEPTH <= 32, "the kinds of open brackets are kept in 32 bits");

void message_reader_init(struct message_reader *reader)
{
    *reader = (struct message_reader){0};
}

void message_reader_fini(struct message_reader *reader)
{
    free(reader->buffer);
    *reader = (struct message_reader){0};
}

size_t message_reader_room(const struct message_reader *reader)
{
    return LIMIT_CONTROL_MESSAGE_BYTES - reader->used;
}

int message_reader_add(struct message_reader *reader, const void *bytes, size_t length)
{
    assert(length <= message_reader_room(reader));
    size_t room = reader->room ? reader->room : LIMIT_CONTROL_INPUT_BYTES;
    while (room < reader->used + length)
        room *= 2;
    if (room != reader->room) {
        char *buffer = realloc(reader->buffer, room);
        if (!buffer)
            return -ENOMEM;
        reader->buffer = buffer;
        reader->room = room;
    }
    memcpy(reader->buffer + reader->used, bytes, length);
    reader->used += length;
    return 0;
}

static void drop_front(struct message_reader *reader, size_t length)
{
    assert(length <= reader->used);
    reader->used -= length;
    memmove(reader->buffer, reader->buffer + length, reader->used);
    reader->scanned = 0;
    reader->depth = 0;
    reader->in_string = reader->escaped = false;
}

static bool is_space(char byte)
{
    return byte == ' ' || byte == '\t' || byte == '\r' || byte == '\n';
}

static enum scan scan_in_string(struct message_reader *reader, char byte)
{
    if (byte == '\n')
        return SCAN_GARBAGE;
    if (reader->escaped)
        reader->escaped = false;
    else if (byte == '\\')
        reader->escaped = true;
    else if (byte == '"')
        reader->in_string = false;
    return SCAN_ON;
}

static enum scan scan_byte(struct message_reader *reader, char byte)
{
    if (reader->in_string)
        return scan_in_string(reader, byte);
    if (reader->depth == 0 && byte != '{')
        return SCAN_GARBAGE;
    uint32_t bit = UINT32_C(1) << (reader->depth & 31);
    switch (byte) {
    case '"':
        reader->in_string = true;
        return SCAN_ON;
    case '{':
    case '[':
        if (reader->depth == LIMIT_CONTROL_DEPTH)
            return SCAN_DEEP;
        reader->square = byte == '[' ? reader->square | bit : reader->square & ~bit;
        reader->depth++;
        return SCAN_ON;
    case '}':
    case ']':
        reader->depth--;
        if (((reader->square >> reader->depth) & 1) != (byte == ']'))
            return SCAN_GARBAGE;
        return reader->depth == 0 ? SCAN_END : SCAN_ON;
    default:
        return SCAN_ON;
    }
}

/* The rest of the line is dropped. False: its end has not come yet. */
static bool skip_line(struct message_reader *reader)
{
    char *newline = reader->used ? memchr(reader->buffer, '\n', reader->used) : NULL;
    drop_front(reader, newline ? (size_t)(newline - reader->buffer) + 1 : reader->used);
    reader->skipping = newline == NULL;
    return newline != NULL;
}

static enum message_result parse(struct message_reader *reader, json_t **message, struct error *err)
{
    json_error_t where;
    *message = json_loadb(reader->buffer, reader->scanned, JSON_REJECT_DUPLICATES, &where);
    drop_front(reader, reader->scanned);
    if (*message) {
        assert(json_is_object(*message));
        return MESSAGE_OBJECT;
    }
    error_set(err, EINVAL, "Invalid JSON syntax: %s", where.text);
    return MESSAGE_WRONG;
}

enum message_result message_reader_next(struct message_reader *reader, json_t **message, struct error *err)
{
    if (reader->skipping && !skip_line(reader))
        return MESSAGE_NONE;
    if (reader->depth == 0) {
        size_t blank = 0;
        while (blank < reader->used && is_space(reader->buffer[blank]))
            blank++;
        if (blank)
            drop_front(reader, blank);
    }
    while (reader->scanned < reader->used) {
        switch (scan_byte(reader, reader->buffer[reader->scanned++])) {
        case SCAN_ON:
            break;
        case SCAN_END:
            return parse(reader, message, err);
        case SCAN_GARBAGE:
            drop_front(reader, reader->scanned - 1);
            skip_line(reader);
            error_set(err, EINVAL,
                      "Invalid JSON syntax: a command is an object, such as {\"execute\":\"query-status\"}");
            return MESSAGE_WRONG;
        case SCAN_DEEP:
            error_set(err, EINVAL, "Message is nested too deeply: %d levels at most", LIMIT_CONTROL_DEPTH);
            return MESSAGE_FATAL;
        }
    }
    if (reader->used == LIMIT_CONTROL_MESSAGE_BYTES) {
        error_set(err, EMSGSIZE, "Message is too long: %d bytes at most", LIMIT_CONTROL_MESSAGE_BYTES);
        return MESSAGE_FATAL;
    }
    return MESSAGE_NONE;
}
