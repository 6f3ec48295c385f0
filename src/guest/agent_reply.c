/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A line is kept until it is whole, LIMIT_AGENT_REPLY_BYTES of it; nothing of it is trusted, nor shown as it is. */
#include "guest/agent_reply.h"

#include <errno.h>
#include <string.h>

#include <jansson.h>

enum { DELIMITER = 0xff };

static void set_text(struct agent_reply *reply, const char *text)
{
    size_t used = 0;
    for (; *text && used < sizeof reply->text - 1; text++)
        reply->text[used++] = *text;
    reply->text[used] = 0;
    for (size_t i = 0; i < used; i++)
        if (reply->text[i] < ' ' || reply->text[i] > '~')
            reply->text[i] = '?';
}

static void noise(struct agent_reply *reply, const char *what)
{
    reply->kind = AGENT_NOISE;
    set_text(reply, what);
}

static void read_return(const json_t *value, struct agent_reply *reply)
{
    if (json_is_integer(value)) {
        reply->kind = AGENT_NUMBER;
        reply->number = json_integer_value(value);
    } else if (json_is_string(value)) {
        reply->kind = AGENT_TEXT;
        set_text(reply, json_string_value(value));
    } else {
        noise(reply, "its reply is neither a number nor a text");
    }
}

static void read_line(const char *line, size_t length, struct agent_reply *reply)
{
    json_t *json = json_loadb(line, length, JSON_REJECT_DUPLICATES, NULL);
    const json_t *error = json_object_get(json, "error"), *value = json_object_get(json, "return");
    const char *sentence = json_string_value(json_object_get(error, "desc"));
    if (!json_is_object(json)) {
        noise(reply, "what it says is no JSON object");
    } else if (error) {
        reply->kind = AGENT_ERROR;
        set_text(reply, sentence ? sentence : "an error without a description");
    } else if (value) {
        read_return(value, reply);
    } else {
        noise(reply, "what it says is no reply");
    }
    json_decref(json);
}

static void line_begin(struct agent_reader *reader)
{
    reader->used = 0;
    reader->too_long = false;
}

bool agent_reader_take(struct agent_reader *reader, const char **bytes, size_t *length, struct agent_reply *reply)
{
    while (*length > 0) {
        const unsigned char byte = (unsigned char)**bytes;
        ++*bytes;
        --*length;
        if (byte == DELIMITER) {
            line_begin(reader);
        } else if (byte != '\n') {
            if (reader->used == sizeof reader->line)
                reader->too_long = true;
            else
                reader->line[reader->used++] = (char)byte;
        } else if (reader->used > 0) {
            *reply = (struct agent_reply){0};
            if (reader->too_long)
                noise(reply, "its reply is too long");
            else
                read_line(reader->line, reader->used, reply);
            line_begin(reader);
            return true;
        }
    }
    return false;
}

bool agent_reply_is_wrong(const struct agent_reply *reply, enum agent_reply_kind wanted, const char *doing,
                          struct error *err)
{
    if (reply && reply->kind != wanted && reply->kind == AGENT_ERROR)
        error_set(err, EPROTO, "%s, the guest agent says: %s", doing, reply->text);
    else if (reply && reply->kind != wanted)
        error_set(err, EPROTO, "%s, the guest agent talks nonsense: %s", doing,
                  reply->kind == AGENT_NOISE ? reply->text : "another kind of reply was asked for");
    return reply && reply->kind != wanted;
}
