/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Whether memory is all zeroes. Anything else is mostly found out at its first bytes. */
#ifndef FLEECE_BASE_ZERO_H
#define FLEECE_BASE_ZERO_H

#include <stdbool.h>
#include <string.h>

static inline bool memory_is_zero(const char *bytes, size_t length)
{
    return length == 0 || (bytes[0] == 0 && memcmp(bytes, bytes + 1, length - 1) == 0);
}

#endif
