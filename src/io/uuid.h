/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Names that nobody gives twice. */
#ifndef FLEECE_IO_UUID_H
#define FLEECE_IO_UUID_H

#include "io/io.h"

/* Its text: 32 digits, four hyphens and the end. */
#define UUID_TEXT_BYTES 37

/* A random UUID (RFC 4122, version 4) as text. Any thread. */
void uuid_make(struct io *io, char uuid[UUID_TEXT_BYTES]);

#endif
