/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A guest that has come from another host may have been frozen there for a cut, and is thawed here. On one reactor. */
#ifndef FLEECE_GUEST_ARRIVAL_H
#define FLEECE_GUEST_ARRIVAL_H

#include "io/io.h"

struct arrival;

/* Begins to ask the guest agent at that address (which must stay) whether the guest is frozen, and thaws it. NULL: no
 * memory. */
struct arrival *arrival_create(struct io *io, const char *agent);
/* Asks no more and frees it; ended(argument) comes later, or at once. */
void arrival_end(struct arrival *arrival, void (*ended)(void *argument), void *argument);

#endif
