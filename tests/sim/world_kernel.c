/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Descriptors of the kernel's own: files of shared memory, which the code under test maps by itself. Their numbers are below
 * those of the world. What has travelled belongs to the process that received it, and is closed when that is killed.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "world_internal.h"

int kernel_copy(struct world *world, int fd)
{
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (copy < 0)
        world_violation(world, "descriptor %d is sent, which is not open", fd);
    return copy;
}

void kernel_give(struct world *world, int fd, unsigned process)
{
    if (world->kernel_count == WORLD_KERNEL_DESCRIPTORS)
        abort();
    world->kernel[world->kernel_count++] = (struct kernel_descriptor){fd, process};
}

void kernel_close(struct world *world, int fd)
{
    unsigned i = 0;
    while (i < world->kernel_count && world->kernel[i].fd != fd)
        i++;
    if (i < world->kernel_count) {
        world->kernel_count--;
        world->kernel[i] = world->kernel[world->kernel_count];
    }
    if (close(fd) != 0)
        world_violation(world, "descriptor %d of the kernel is not open", fd);
}

void kernel_kill(struct world *world, unsigned process)
{
    for (unsigned i = 0; i < world->kernel_count;) {
        if (world->kernel[i].process == process)
            kernel_close(world, world->kernel[i].fd);
        else
            i++;
    }
}

unsigned kernel_leftovers(const struct world *world, FILE *report)
{
    for (unsigned i = 0; i < world->kernel_count; i++)
        fprintf(report, "left over: descriptor %d of the kernel, of process %u\n", world->kernel[i].fd,
                world->kernel[i].process);
    return world->kernel_count;
}
