/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The file of hashes beside an image: one line of 64 hexadecimal digits for each extent of 1 MiB, in order. */
#ifndef FLEECE_SET_HASHES_H
#define FLEECE_SET_HASHES_H

#include "base/error.h"
#include "set/manifest.h"

/* Writes a new file and makes it durable; sha256[SHA256_TEXT_BYTES] is the hash of the file itself. */
int hashes_write(int directory, const char *name, const char *shown, const uint8_t *hashes, uint64_t count,
                 char *sha256, struct error *err);
/* Reads `count` hashes, free() them. `sha256` is what the file itself must have. -EBADMSG: it is not what was written. */
int hashes_read(int directory, const char *name, const char *shown, const char *sha256, uint64_t count,
                uint8_t **hashes, struct error *err);

#endif
