/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A command of the transmission phase, taken apart and judged: pure functions over bytes of a stranger. */
#ifndef FLEECE_EXPORT_NBD_COMMAND_H
#define FLEECE_EXPORT_NBD_COMMAND_H

#include <stdbool.h>
#include <stdint.h>

#include "export/nbd/wire.h"

struct nbd_command {
    uint16_t flags, type;
    uint64_t cookie, offset;
    uint32_t length;
};

struct nbd_terms { /* what was agreed with the client */
    uint64_t size_bytes;
    uint16_t flags; /* transmission flags */
    bool structured;
    uint32_t contexts;
};

/* bytes: NBD_REQUEST_BYTES. False: not a command (bad magic). */
bool nbd_command_parse(const uint8_t *bytes, struct nbd_command *command);
/* NBD_SUCCESS, or the error to answer. Does not look at DISC. */
enum nbd_error nbd_command_check(const struct nbd_command *command, const struct nbd_terms *terms);
/* An errno (positive or negative) as the protocol's. */
enum nbd_error nbd_error_of(int code);

#endif
