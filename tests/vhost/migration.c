// SPDX-License-Identifier: GPL-2.0-or-later
#include "migration.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096, PAGES_OF_BYTE = 8 };

int migration_init(struct migration *migration, struct front_end *front)
{
    struct front_log *log = &front->log;
    *migration = (struct migration){.front = front};
    log->bytes = (front->memory.span + PAGE * PAGES_OF_BYTE - 1) / (PAGE * PAGES_OF_BYTE);
    log->fd = memfd_create("log", MFD_CLOEXEC);
    if (log->fd < 0 || ftruncate(log->fd, (off_t)log->bytes) != 0)
        return -errno;
    migration->log = mmap(NULL, log->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, log->fd, 0);
    migration->wrote = calloc(1, log->bytes);
    migration->copy = calloc(1, front->memory.span);
    return migration->log == MAP_FAILED || !migration->wrote || !migration->copy ? -ENOMEM : 0;
}

void migration_fini(struct migration *migration)
{
    struct front_log *log = &migration->front->log;
    munmap(migration->log, log->bytes);
    close(log->fd);
    *log = (struct front_log){.on = false};
    free(migration->wrote);
    free(migration->copy);
}

int migration_log(struct migration *migration, bool on)
{
    migration->front->log.on = on;
    int status = front_tell_log(migration->front);
    if (on)
        memset(migration->wrote, 0xff, migration->front->log.bytes); /* what is written from here on is marked */
    return status;
}

void migration_wrote(struct migration *migration, uint64_t address, uint64_t length)
{
    for (uint64_t page = address / PAGE; length > 0 && page <= (address + length - 1) / PAGE; page++)
        migration->wrote[page / PAGES_OF_BYTE] |= (uint8_t)(1u << page % PAGES_OF_BYTE);
}

void migration_wrote_wish(struct migration *migration, const struct ring *ring)
{
    migration_wrote(migration, ring->driver_area, ring->packed ? 4 : 6 + 2 * (uint64_t)ring->size);
}

void migration_wrote_request(struct migration *migration, const struct blk_request *request, const struct ring *ring)
{
    migration_wrote(migration, request->arena, request->arena_bytes);
    migration_wrote(migration, request->table, 16 * (uint64_t)BLK_FRAGMENTS);
    migration_wrote(migration, ring->descriptors, 16 * (uint64_t)ring->size);
    migration_wrote_wish(migration, ring);
}

static bool is_there(const struct guest_memory *memory, uint64_t address)
{
    for (unsigned i = 0; i < memory->count; i++)
        if (address >= memory->regions[i].guest && address < memory->regions[i].guest + memory->regions[i].size)
            return true;
    return false;
}

void migration_copy(struct migration *migration)
{
    const struct guest_memory *memory = &migration->front->memory;
    for (uint64_t i = 0; i < migration->front->log.bytes; i++) {
        const uint8_t bits = migration->wrote[i] | __atomic_exchange_n(&migration->log[i], 0, __ATOMIC_SEQ_CST);
        migration->wrote[i] = 0;
        for (unsigned bit = 0; bit < PAGES_OF_BYTE; bit++) {
            const uint64_t address = (i * PAGES_OF_BYTE + bit) * PAGE;
            if (!(bits >> bit & 1) || !is_there(memory, address))
                continue;
            memcpy(migration->copy + address, guest_at(memory, address), PAGE);
            migration->pages_copied++;
        }
    }
}

uint64_t migration_missing(struct migration *migration)
{
    const struct guest_memory *memory = &migration->front->memory;
    migration_copy(migration);
    migration->checks++;
    for (uint64_t address = 0; address < memory->span; address += PAGE)
        if (is_there(memory, address) && memcmp(migration->copy + address, guest_at(memory, address), PAGE) != 0)
            return address;
    return UINT64_MAX;
}
