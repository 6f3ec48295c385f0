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
    bool releases; /* a snapshot's view: TRIM releases, other writes are refused */
    uint32_t contexts;
};

/* Why a command was not done, for the client: a number and a sentence. All zeroes: it was. */
struct nbd_refusal {
    enum nbd_error error;
    const char *text; /* lives for ever; NULL: none */
};

/* bytes: NBD_REQUEST_BYTES. False: not a command (bad magic). */
bool nbd_command_parse(const uint8_t *bytes, struct nbd_command *command);
/* Does not look at DISC. */
struct nbd_refusal nbd_command_check(const struct nbd_command *command, const struct nbd_terms *terms);
/* A command that the node answered with `status`, 0 or -errno. */
struct nbd_refusal nbd_refusal_of(int status, const struct nbd_terms *terms);

#endif
