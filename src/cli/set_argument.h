/* SPDX-License-Identifier: GPL-2.0-or-later */
/* DIR[@POINT] on the command line. */
#ifndef FLEECE_CLI_SET_ARGUMENT_H
#define FLEECE_CLI_SET_ARGUMENT_H

#include "set/set.h"

/* The point in DIR@POINT: a part of `text`, or NULL when there is none. */
const char *set_argument_point(const char *text);

/*
 * Opens the set. What is behind the last '@' is a point if it looks like the name of one or is "latest"; a folder may have
 * an '@' in its name. *wanted: that part of `text`, or NULL. Errors as of set_open(); a word that is neither: -EINVAL.
 */
int set_argument_open(const char *text, struct set **set, const char **wanted, struct error *err);

#endif
