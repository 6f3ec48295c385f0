/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Some descriptors put whoever holds them at the mercy of somebody else. A file of FUSE asks its server, who need not
 * answer, when it is looked at (fstat, fstatfs), polled, mapped and touched, and even when it is closed (flush); so do those
 * of network file systems. A socket of a network may linger: its last close waits for the other side, for as long as its
 * maker has said. A device does as its driver likes. A reactor that did any of this would stop with all its disks.
 *
 * So what is asked here is what the kernel answers by itself. statx() with AT_STATX_DONT_SYNC asks no server. Seals are a
 * thing of shmem and hugetlbfs only (memfds among them). Of other files: what lies on a block device is local; without one
 * the mount tells, and one that is not among ours (somebody's own mount namespace) is not believed. FUSE over a block device
 * needs the administrator, who is not the attacker here.
 *
 * Everything without a type is of the kernel's own making (eventfds, but also timers, epoll, …): it has neither a server nor
 * a close that waits.
 */
#include "io/stranger.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>

static bool is_unix_socket(int fd)
{
    int domain;
    socklen_t length = sizeof domain;
    return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &length) == 0 && domain == AF_UNIX;
}

static bool is_local(const char *type)
{
    static const char *const types[] = {"bcachefs", "btrfs", "overlay", "ramfs", "zfs"};
    for (unsigned i = 0; i < sizeof types / sizeof types[0]; i++)
        if (strcmp(type, types[i]) == 0)
            return true;
    return false;
}

/* The file system of a mount of ours, without asking it. */
static bool mount_is_local(uint64_t mount)
{
    FILE *file = fopen("/proc/self/mountinfo", "re");
    char *line = NULL, type[16];
    size_t room = 0;
    bool local = false;
    while (file && getline(&line, &room, file) > 0) {
        const char *rest = strtoull(line, NULL, 10) == mount ? strstr(line, " - ") : NULL;
        if (!rest)
            continue;
        local = sscanf(rest, " - %15s", type) == 1 && is_local(type);
        break;
    }
    free(line);
    if (file)
        fclose(file);
    return local;
}

bool stranger_is_harmless(int fd)
{
    struct statx what;
    if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE | STATX_MNT_ID, &what) < 0)
        return false;
    switch (what.stx_mode & S_IFMT) {
    case 0:
    case S_IFIFO:
        return true;
    case S_IFSOCK:
        return is_unix_socket(fd);
    case S_IFREG:
        return fcntl(fd, F_GET_SEALS) >= 0 || what.stx_dev_major != 0 ||
               ((what.stx_mask & STATX_MNT_ID) && mount_is_local(what.stx_mnt_id));
    default:
        return false;
    }
}
