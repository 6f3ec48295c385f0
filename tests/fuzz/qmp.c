/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Bytes of a stranger into the reader of control messages. The first byte says how large the pieces are that they come in;
 * what comes out must not depend on that.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "control/message.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length);

/* What came out of the reader, in short: a hash over results and messages. */
static uint64_t outcome(const uint8_t *bytes, size_t length, size_t step)
{
    struct message_reader reader;
    uint64_t hash = 5381;
    message_reader_init(&reader);
    for (size_t at = 0;;) {
        json_t *message = NULL;
        struct error err = {0};
        enum message_result result = message_reader_next(&reader, &message, &err);
        if (result != MESSAGE_NONE)
            hash = hash * 33 + result;
        if (result == MESSAGE_OBJECT) {
            char *text = json_dumps(message, JSON_COMPACT);
            assert(text);
            for (const char *byte = text; *byte; byte++)
                hash = hash * 33 + (uint8_t)*byte;
            free(text);
            json_decref(message);
        } else if (result == MESSAGE_FATAL) {
            break;
        } else if (result == MESSAGE_NONE) {
            size_t room = message_reader_room(&reader), piece = length - at < step ? length - at : step;
            if (piece == 0)
                break;
            assert(room > 0);
            if (piece > room)
                piece = room;
            int status = message_reader_add(&reader, bytes + at, piece);
            assert(status == 0);
            at += piece;
        }
    }
    message_reader_fini(&reader);
    return hash;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length)
{
    if (length > 1)
        assert(outcome(bytes + 1, length - 1, 1 + (size_t)bytes[0] * 4) == outcome(bytes + 1, length - 1, length));
    return 0;
}
