/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Tables of a guest's memory: small, sorted, copied for each change. The mappings in them are counted (shared_map). */
#include "export/vhost_user/memory.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/range.h"
#include "export/vhost_user/memory_table.h"

static int check_region(const struct guest_memory *from, const struct guest_region *region, struct error *err)
{
    if (region->size_bytes == 0)
        return error_set(err, EINVAL, "the region of guest memory at 0x%llx is empty",
                         (unsigned long long)region->guest_address);
    if (region->size_bytes > UINT64_MAX - region->guest_address ||
        region->size_bytes > UINT64_MAX - region->user_address)
        return error_set(err, EINVAL,
                         "the region of guest memory at 0x%llx (at 0x%llx in the VMM) has 0x%llx bytes, which "
                         "go beyond the last address",
                         (unsigned long long)region->guest_address, (unsigned long long)region->user_address,
                         (unsigned long long)region->size_bytes);
    if (from && from->count == LIMIT_GUEST_REGIONS)
        return error_set(err, EINVAL, "guest memory has %d regions already, which is the most", LIMIT_GUEST_REGIONS);
    uint64_t all_bytes = 0;
    for (unsigned i = 0; from && i < from->count; i++)
        all_bytes += from->entries[i].size_bytes;
    if (region->size_bytes > LIMIT_GUEST_MEMORY_BYTES - all_bytes)
        return error_set(err, EINVAL,
                         "the region of guest memory at 0x%llx has 0x%llx bytes; all together have 0x%llx at most",
                         (unsigned long long)region->guest_address, (unsigned long long)region->size_bytes,
                         (unsigned long long)LIMIT_GUEST_MEMORY_BYTES);
    const struct range range = {region->guest_address, region->size_bytes};
    for (unsigned i = 0; from && i < from->count; i++) {
        const struct guest_memory_entry *entry = &from->entries[i];
        if (range_overlaps(range, (struct range){entry->guest_address, entry->size_bytes}))
            return error_set(err, EINVAL,
                             "the region of guest memory at 0x%llx with 0x%llx bytes overlaps that at 0x%llx",
                             (unsigned long long)region->guest_address, (unsigned long long)region->size_bytes,
                             (unsigned long long)entry->guest_address);
    }
    return 0;
}

static struct guest_memory *table_create(unsigned count, struct error *err)
{
    struct guest_memory *memory = calloc(1, sizeof *memory + count * sizeof memory->entries[0]);
    if (memory)
        *memory = (struct guest_memory){.references = 1};
    else
        error_set(err, ENOMEM, "no memory");
    return memory;
}

static void append(struct guest_memory *memory, const struct guest_memory_entry *entry)
{
    memory->entries[memory->count++] = *entry;
    shared_map_ref(entry->map);
}

struct guest_memory *guest_memory_with(struct guest_memory *from, const struct guest_region *region, int fd,
                                       struct error *err)
{
    if (check_region(from, region, err) < 0)
        return NULL;
    const unsigned count = from ? from->count : 0;
    struct guest_memory *memory = table_create(count + 1, err);
    struct shared_map *map = memory ? shared_map_create(fd, region->file_offset, region->size_bytes, err) : NULL;
    if (!map) {
        free(memory);
        return NULL;
    }
    const struct guest_memory_entry entry = {.guest_address = region->guest_address,
                                             .size_bytes = region->size_bytes,
                                             .user_address = region->user_address,
                                             .host = map->base,
                                             .map = map};
    unsigned i = 0;
    while (i < count && from->entries[i].guest_address < entry.guest_address)
        append(memory, &from->entries[i++]);
    append(memory, &entry);
    while (i < count)
        append(memory, &from->entries[i++]);
    shared_map_unref(map);
    return memory;
}

struct guest_memory *guest_memory_without(struct guest_memory *from, const struct guest_region *region,
                                          struct error *err)
{
    unsigned gone = 0;
    while (gone < from->count && (from->entries[gone].guest_address != region->guest_address ||
                                  from->entries[gone].user_address != region->user_address ||
                                  from->entries[gone].size_bytes != region->size_bytes))
        gone++;
    if (gone == from->count) {
        error_set(err, ENOENT, "there is no region of guest memory at 0x%llx (at 0x%llx in the VMM) with 0x%llx bytes",
                  (unsigned long long)region->guest_address, (unsigned long long)region->user_address,
                  (unsigned long long)region->size_bytes);
        return NULL;
    }
    struct guest_memory *memory = table_create(from->count - 1, err);
    for (unsigned i = 0; memory && i < from->count; i++)
        if (i != gone)
            append(memory, &from->entries[i]);
    return memory;
}

struct guest_memory *guest_memory_ref(struct guest_memory *memory)
{
    assert(memory->references > 0);
    memory->references++;
    return memory;
}

void guest_memory_unref(struct guest_memory *memory)
{
    if (!memory)
        return;
    assert(memory->references > 0);
    if (--memory->references > 0)
        return;
    for (unsigned i = 0; i < memory->count; i++)
        shared_map_unref(memory->entries[i].map);
    free(memory);
}

unsigned guest_memory_region_count(const struct guest_memory *memory)
{
    return memory->count;
}

uint64_t guest_memory_end(const struct guest_memory *memory)
{
    if (!memory || memory->count == 0)
        return 0;
    const struct guest_memory_entry *last = &memory->entries[memory->count - 1];
    return last->guest_address + last->size_bytes;
}

const struct guest_memory_entry *guest_memory_find(const struct guest_memory *memory, uint64_t guest_address)
{
    unsigned low = 0, high = memory->count; /* entries[low .. high) may have it */
    while (low < high) {
        const unsigned middle = (low + high) / 2;
        const struct guest_memory_entry *entry = &memory->entries[middle];
        if (guest_address < entry->guest_address)
            high = middle;
        else if (guest_address - entry->guest_address >= entry->size_bytes)
            low = middle + 1;
        else
            return entry;
    }
    return NULL;
}

int guest_memory_fragments(const struct guest_memory *memory, uint64_t guest_address, uint64_t length,
                           struct iovec *iov, unsigned max)
{
    unsigned count = 0;
    if (length > UINT64_MAX - guest_address)
        return -EFAULT;
    while (length > 0) {
        const struct guest_memory_entry *entry = guest_memory_find(memory, guest_address);
        if (!entry)
            return -EFAULT;
        if (count == max)
            return -E2BIG;
        const uint64_t at = guest_address - entry->guest_address, rest = entry->size_bytes - at;
        const uint64_t part = length < rest ? length : rest;
        iov[count++] = (struct iovec){entry->host + at, part};
        guest_address += part;
        length -= part;
    }
    return (int)count;
}

int guest_memory_read(const struct guest_memory *memory, uint64_t guest_address, void *to, uint64_t length)
{
    while (length > 0) {
        struct iovec part;
        const int status = guest_memory_fragments(memory, guest_address, length, &part, 1);
        if (status < 0 && status != -E2BIG)
            return status;
        memcpy(to, part.iov_base, part.iov_len);
        to = (char *)to + part.iov_len;
        guest_address += part.iov_len;
        length -= part.iov_len;
    }
    return 0;
}

void *guest_memory_at(const struct guest_memory *memory, uint64_t user_address, uint64_t length, uint64_t alignment)
{
    for (unsigned i = 0; i < memory->count; i++) {
        const struct guest_memory_entry *entry = &memory->entries[i];
        const uint64_t at = user_address - entry->user_address;
        if (at < entry->size_bytes && length <= entry->size_bytes - at) {
            char *host = entry->host + at;
            return ((uintptr_t)host & (alignment - 1)) == 0 ? host : NULL;
        }
    }
    return NULL;
}

uint64_t guest_memory_address(const struct guest_memory *memory, const void *host)
{
    for (unsigned i = 0; i < memory->count; i++) {
        const struct guest_memory_entry *entry = &memory->entries[i];
        const uint64_t at = (uintptr_t)host - (uintptr_t)entry->host;
        if (at < entry->size_bytes)
            return entry->guest_address + at;
    }
    assert(false && "a place in the guest's memory");
    return 0;
}

bool guest_memory_is_torn(const struct guest_memory *memory)
{
    if (!shared_map_any_torn())
        return false;
    for (unsigned i = 0; i < memory->count; i++)
        if (shared_map_is_torn(memory->entries[i].map))
            return true;
    return false;
}
