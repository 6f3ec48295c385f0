/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a guest says instead of its agent. The first byte says how large the pieces are that it comes in; what comes out must
 * not depend on that, and its text is printable.
 */
#include <assert.h>

#include "guest/agent_reply.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length);

/* A hash over the replies. */
static uint64_t outcome(const uint8_t *bytes, size_t length, size_t step)
{
    struct agent_reader reader = {.used = 0};
    struct agent_reply reply;
    uint64_t hash = 5381;
    for (size_t at = 0; at < length; at += step) {
        const char *piece = (const char *)bytes + at;
        size_t left = length - at < step ? length - at : step;
        while (agent_reader_take(&reader, &piece, &left, &reply)) {
            hash = hash * 33 + reply.kind;
            hash = hash * 33 + (uint64_t)reply.number;
            for (const char *byte = reply.text; *byte; byte++) {
                assert(*byte >= ' ' && *byte <= '~' && byte < reply.text + sizeof reply.text);
                hash = hash * 33 + (uint8_t)*byte;
            }
        }
        assert(left == 0);
    }
    return hash;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length)
{
    if (length > 1)
        assert(outcome(bytes + 1, length - 1, 1 + bytes[0]) == outcome(bytes + 1, length - 1, length));
    return 0;
}
