/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Names and sizes as users write them. */
#ifndef FLEECE_BASE_NAME_H
#define FLEECE_BASE_NAME_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

/* [A-Za-z0-9._-]{1,64}, and not "." or "..". `what` names the thing in the error ("disk name"). 0 or -EINVAL. */
int name_check(const char *what, const char *name, struct error *err);

/* "64M", "1.5G", "4096", "512K", "1T": bytes, powers of 1024. `what` names the thing in the error. 0 or -EINVAL. */
int size_parse(const char *what, const char *text, uint64_t *size_bytes, struct error *err);

/* "1.5 GiB" into text[at least 16]; returns text. */
char *size_format(char *text, uint64_t size_bytes);

#endif
