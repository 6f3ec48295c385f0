/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Files of one file system share its space, which must be counted once. What it says is old when it is said: a forecast uses
 * it, and no decision. */
#include "daemon/space.h"

#include <stdbool.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "base/limits.h"

uint64_t space_free(char *const *folders, unsigned count)
{
    dev_t seen[LIMIT_DISKS];
    unsigned seen_count = 0;
    uint64_t bytes = 0;
    for (unsigned i = 0; i < count; i++) {
        struct stat st;
        struct statvfs fs;
        bool known = false;
        if (!folders[i])
            continue;
        if (stat(folders[i], &st) < 0 || statvfs(folders[i], &fs) < 0)
            return UINT64_MAX;
        for (unsigned n = 0; n < seen_count; n++)
            known = known || seen[n] == st.st_dev;
        if (known)
            continue;
        seen[seen_count++] = st.st_dev;
        bytes += (uint64_t)fs.f_bavail * fs.f_frsize;
    }
    return bytes;
}
