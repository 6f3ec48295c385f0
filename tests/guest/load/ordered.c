// SPDX-License-Identifier: GPL-2.0-or-later
/* Dependent writes over two disks: n goes to the second only when it is durable on the first, and n + 1 to the first only
 * when n is durable on the second. One instant of both holds first >= second >= first - 1. */
#include "load.h"
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BLOCK 4096

static int open_device(const char *path)
{
    int fd = open(path, O_RDWR | O_DIRECT | O_DSYNC);
    if (fd < 0)
        load_die("opening %s", path);
    return fd;
}

static void put(int fd, uint64_t *block, uint64_t n)
{
    block[0] = n;
    if (pwrite(fd, block, BLOCK, 0) != BLOCK)
        load_die("writing %llu", (unsigned long long)n);
}

void load_ordered(const char *name, const char *first, const char *second)
{
    static uint64_t block[BLOCK / sizeof(uint64_t)] __attribute__((aligned(BLOCK)));
    int a = open_device(first), b = open_device(second);
    if (pread(a, block, BLOCK, 0) != BLOCK)
        load_die("reading %s", first);
    for (uint64_t n = block[0] ? block[0] : 1;; n++) {
        put(a, block, n);
        put(b, block, n);
        load_say(name, n);
        load_pause(1);
    }
}
