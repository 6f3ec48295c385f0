/* SPDX-License-Identifier: GPL-2.0-or-later */
/* 122 random bits and their text. */
#include "io/uuid.h"

#include <stdio.h>

void uuid_make(struct io *io, char uuid[UUID_TEXT_BYTES])
{
    unsigned char b[16];
    io_random(io, b, sizeof b);
    b[6] = (unsigned char)((b[6] & 0x0f) | 0x40); /* RFC 4122: version 4, variant 1 */
    b[8] = (unsigned char)((b[8] & 0x3f) | 0x80);
    snprintf(uuid, UUID_TEXT_BYTES, "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", b[0], b[1],
             b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]);
}
