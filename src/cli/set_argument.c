/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Only what looks like a point is one, for folders may have an '@' in their names; what is neither is refused by name. */
#include "cli/set_argument.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

const char *set_argument_point(const char *text)
{
    const char *at = strrchr(text, '@');
    return at && at != text && (point_name_valid(at + 1) || strcmp(at + 1, "latest") == 0) ? at + 1 : NULL;
}

int set_argument_open(const char *text, struct set **set, const char **wanted, struct error *err)
{
    char path[PATH_MAX];
    const char *at = strrchr(text, '@');
    *wanted = set_argument_point(text);
    if (strlen(text) >= sizeof path)
        return error_set(err, ENAMETOOLONG, "the path of the backup set has %zu bytes; %zu are right at most",
                         strlen(text), sizeof path - 1);
    if (!at || at == text)
        return set_open(text, set, err);
    if (!*wanted) {
        if (access(text, F_OK) == 0)
            return set_open(text, set, err);
        return error_set(err, EINVAL,
                         "'%.80s' is not the name of a point: a time such as 2026-11-22T06:05:45Z, or 'latest'",
                         at + 1);
    }
    snprintf(path, sizeof path, "%.*s", (int)(at - text), text);
    return set_open(path, set, err);
}
