// SPDX-License-Identifier: GPL-2.0-or-later
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "guest_memory.h"

enum { PAGE = 4096 };

/* `shared`: the file that holds all regions, or -1. */
static int region_map(struct guest_memory *memory, struct guest_region *region, int shared)
{
    region->fd = shared < 0 ? memfd_create("guest", MFD_CLOEXEC | MFD_ALLOW_SEALING)
                            : fcntl(shared, F_DUPFD_CLOEXEC, 0);
    if (region->fd < 0 || ftruncate(region->fd, (off_t)(region->offset + region->size)) != 0)
        return -errno;
    void *at = mmap(memory->base + region->guest, region->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
                    region->fd, (off_t)region->offset);
    return at == MAP_FAILED ? -errno : 0;
}

int guest_memory_init(struct guest_memory *memory, unsigned count, uint64_t region_bytes, uint64_t gap, bool one_file)
{
    assert(count >= 1 && count <= GUEST_REGIONS && region_bytes % PAGE == 0 && gap % PAGE == 0);
    *memory = (struct guest_memory){.count = count, .span = count * region_bytes + (count - 1) * gap};
    for (unsigned i = 0; i < count; i++)
        memory->regions[i].fd = -1;
    memory->base = mmap(NULL, memory->span, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory->base == MAP_FAILED) {
        memory->base = NULL;
        return -errno;
    }
    for (unsigned i = 0; i < count; i++) {
        struct guest_region *region = &memory->regions[i];
        region->guest = i * (region_bytes + gap);
        region->size = region->limit = region_bytes;
        region->offset = one_file ? i * region_bytes : i * 16 * PAGE; /* not all begin where their file begins */
        int status = region_map(memory, region, one_file && i > 0 ? memory->regions[0].fd : -1);
        if (status != 0) {
            guest_memory_fini(memory);
            return status;
        }
    }
    memory->regions[0].taken = PAGE; /* nobody's: address 0 is valid, but says "none" in our own structs */
    return 0;
}

void guest_memory_fini(struct guest_memory *memory)
{
    for (unsigned i = 0; i < memory->count; i++)
        if (memory->regions[i].fd >= 0)
            close(memory->regions[i].fd);
    if (memory->base)
        munmap(memory->base, memory->span);
    *memory = (struct guest_memory){0};
}

uint64_t guest_take(struct guest_memory *memory, unsigned number, uint64_t size, uint64_t alignment)
{
    struct guest_region *region = &memory->regions[number % memory->count];
    uint64_t start = (region->guest + region->taken + alignment - 1) / alignment * alignment;
    if (start + size > region->guest + region->limit) {
        fprintf(stderr, "guest memory: a region of %llu bytes is too small\n", (unsigned long long)region->size);
        exit(2);
    }
    region->taken = start + size - region->guest;
    return start;
}

uint64_t guest_take_across(struct guest_memory *memory, unsigned number, uint64_t size)
{
    struct guest_region *region = &memory->regions[number], *next = region + 1;
    assert(number + 1 < memory->count && next->guest == region->guest + region->size && next->taken == 0);
    assert(region->taken + size / 2 <= region->limit && size - size / 2 <= next->limit);
    region->limit -= size / 2;
    uint64_t start = region->guest + region->limit;
    next->taken = size - size / 2;
    return start;
}

struct wire_region guest_region_wire(const struct guest_memory *memory, unsigned number)
{
    const struct guest_region *region = &memory->regions[number];
    return (struct wire_region){region->guest, region->size, guest_user(memory, region->guest), region->offset};
}
