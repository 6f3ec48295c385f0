/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Disk space: files of one file system share it, so it must be counted once. What it says is old when it is said: a forecast
 * uses it, and no decision. Memory: as /proc has it. */
#include "daemon/space.h"

#include <stdbool.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

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

uint64_t space_rss_bytes(void *context)
{
    (void)context;
    unsigned long pages = 0;
    FILE *file = fopen("/proc/self/statm", "re");
    if (file && fscanf(file, "%*u %lu", &pages) != 1)
        pages = 0;
    if (file)
        fclose(file);
    return (uint64_t)pages * (uint64_t)sysconf(_SC_PAGESIZE);
}
