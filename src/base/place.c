/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The one place that knows where a VM's files are by default. Root ignores $XDG_RUNTIME_DIR, which sudo may pass on. */
#include "base/place.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int place_runtime(char *path, size_t size, const char *vm, const char *file)
{
    const char *runtime = getenv("XDG_RUNTIME_DIR");
    if (geteuid() == 0 || !runtime || runtime[0] != '/')
        runtime = "/run";
    int length = snprintf(path, size, "%s/fleece/%s%s%s", runtime, vm, file ? "/" : "", file ? file : "");
    return length < 0 || (size_t)length >= size ? -ENAMETOOLONG : 0;
}

int place_memory(char *path, size_t size, const char *vm)
{
    int length = snprintf(path, size, "/dev/shm/fleece-%u/%s", (unsigned)geteuid(), vm);
    return length < 0 || (size_t)length >= size ? -ENAMETOOLONG : 0;
}

int place_state(char *path, size_t size, const char *vm)
{
    const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    int length;
    if (geteuid() == 0)
        length = snprintf(path, size, "/var/lib/fleece/%s", vm);
    else if (state && state[0] == '/')
        length = snprintf(path, size, "%s/fleece/%s", state, vm);
    else if (home && home[0] == '/')
        length = snprintf(path, size, "%s/.local/state/fleece/%s", home, vm);
    else
        return -ENOENT;
    return length < 0 || (size_t)length >= size ? -ENAMETOOLONG : 0;
}
