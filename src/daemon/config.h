/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Files that say what the command line can say. */
#ifndef FLEECE_DAEMON_CONFIG_H
#define FLEECE_DAEMON_CONFIG_H

#include "base/error.h"

/*
 * Reads a file of lines `WORD = VALUE` and calls apply() for each in turn, which may change the value's text. Lines that are
 * empty, or begin with # or ;, say nothing; neither does what follows a blank and a ; in a line. -errno with a sentence that
 * begins with file and line, whether the line is wrong or apply() has failed, which ends it.
 */
int config_read(const char *path, int (*apply)(void *context, const char *word, char *value, struct error *err),
                void *context, struct error *err);

#endif
