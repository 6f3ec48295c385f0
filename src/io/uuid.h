/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Names that nobody gives twice. */
#ifndef FLEECE_IO_UUID_H
#define FLEECE_IO_UUID_H

#include "io/io.h"

/* A random UUID (RFC 4122, version 4) as text. Any thread. */
void uuid_make(struct io *io, char uuid[37]);

#endif
