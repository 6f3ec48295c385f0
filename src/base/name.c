/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Strangers' text is judged whole, before anything of it is used: what is not understood to its last byte is refused. */
#include "base/name.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int name_check(const char *what, const char *name, struct error *err)
{
    size_t length = strlen(name);
    static const char allowed[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
    bool right = length >= 1 && length <= LIMIT_NAME_BYTES && strspn(name, allowed) == length &&
                 strcmp(name, ".") != 0 && strcmp(name, "..") != 0;
    if (right)
        return 0;
    return error_set(err, EINVAL, "%s '%.80s' is not valid: 1 to %d of the characters A-Z a-z 0-9 . _ -", what, name,
                     LIMIT_NAME_BYTES);
}

int size_parse(const char *what, const char *text, uint64_t *size_bytes, struct error *err)
{
    static const char units[] = "KMGT";
    char *end = NULL;
    bool starts_right = text[0] >= '0' && text[0] <= '9' && text[1] != 'x' && text[1] != 'X';
    errno = 0;
    double value = starts_right ? strtod(text, &end) : -1;
    double factor = 1;
    if (end && *end) {
        const char *unit = strchr(units, *end >= 'a' ? *end - 32 : *end);
        if (unit) {
            factor = pow(1024, (double)(unit - units) + 1);
            end++;
            if (strcmp(end, "iB") == 0)
                end += 2;
        }
    }
    double bytes = value * factor;
    if (!end || *end || errno || bytes >= 9.2e18 || bytes != floor(bytes))
        return error_set(err, EINVAL, "%s '%.80s' is not a size: a number with K, M, G or T, such as 256M", what, text);
    *size_bytes = (uint64_t)bytes;
    return 0;
}

char *size_format(char *text, uint64_t size_bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    unsigned unit = 0;
    double value = (double)size_bytes;
    while (value >= 1024 && unit < 5) {
        value /= 1024;
        unit++;
    }
    snprintf(text, 16, value == floor(value) || unit == 0 ? "%.0f %s" : "%.1f %s", value, units[unit]);
    return text;
}
