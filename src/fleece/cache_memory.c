/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The layout of the memory, in pages:
 *
 *     header        two pages: whose it is, how places are numbered, how far they were used, which cache file
 *     needed sets   of each snapshot (needed_memory.c): a byte for each chunk of bits, then a page for each chunk;
 *                   then the same for what it needed at its cut, if it is limited to what had changed
 *     records       a word for each place: block << EPOCH_BITS | epoch, 0: nothing is there
 *
 * The records are the keys of the map (block_map.c) themselves: one store makes a block visible after its data is in the
 * slot (C2), one store takes it away before the slot is used again (C12), and nothing is ever written twice. The rest of the
 * map is private, and made anew from the records.
 *
 * Each byte is grown before it is touched (C13): records with the segments that they are of, in large steps. The header
 * says first how far that went, so that nobody who adopts it touches a hole.
 *
 * A crash at any point leaves records that are right, or none. What is adopted must be of this boot, of this layout and of
 * the session of the table of snapshots; and the locks of disk and cache file must have been taken before, for reads of the
 * killed daemon may still have been landing in its slots (C10).
 */
#include "fleece/cache_memory.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/bitmap.h"

#define MEMORY_MAGIC "FLEECEMM"
#define HEADER_PAGES_BYTES (2 * SHM_PAGE_BYTES)

enum { MEMORY_VERSION = 3 };

struct cache_memory_header {
    char magic[8]; /* last: without it nothing else counts */
    uint32_t version;
    uint32_t has_file;
    uint8_t boot[BOOT_ID_BYTES];
    uint8_t session[CACHE_SESSION_BYTES];
    struct cache_memory_plan plan;
    atomic_uint segments_end[PLACE_KINDS];
    atomic_ullong sequence;
    atomic_ullong disk_bytes, next_bytes; /* next: that the disk may have by now; 0: it has disk_bytes */
    uint64_t point_bytes[LIMIT_SNAPSHOTS];
    struct cache_file_id file;
};
_Static_assert(sizeof(struct cache_memory_header) <= HEADER_PAGES_BYTES, "two pages");

void cache_memory_init(struct cache_memory *memory, struct io *io, const char *folder, const char *disk,
                       const uint8_t session[CACHE_SESSION_BYTES])
{
    *memory = (struct cache_memory){.io = io, .folder = folder};
    memcpy(memory->session, session, sizeof memory->session);
    snprintf(memory->map_file, sizeof memory->map_file, "%s.map", disk);
    snprintf(memory->slots_file, sizeof memory->slots_file, "%s.slots", disk);
}

static struct io_shm_name map_name(const struct cache_memory *memory)
{
    return (struct io_shm_name){memory->folder, memory->map_file};
}

struct io_shm_name cache_memory_slots(const struct cache_memory *memory)
{
    return (struct io_shm_name){memory->folder, memory->slots_file};
}

uint32_t cache_memory_base(const struct cache_memory_plan *plan, unsigned kind)
{
    uint64_t base = 0;
    for (unsigned i = 0; i < kind; i++)
        base += round_up((uint64_t)plan->segments_max[i] * plan->slots_per_segment, CACHE_PLACES_ALIGNMENT);
    return base < UINT32_MAX ? (uint32_t)base : UINT32_MAX;
}

static uint64_t chunks_of(const struct cache_memory_plan *plan)
{
    uint64_t blocks = round_up(plan->room_bytes, UINT64_C(1) << plan->block_shift) >> plan->block_shift;
    return blocks / BITMAP_CHUNK_BITS + 1;
}

/* Finds the parts; returns how long it all is. */
static uint64_t lay_out(struct cache_memory *memory, const struct cache_memory_plan *plan)
{
    memory->states_bytes = round_up(chunks_of(plan), SHM_PAGE_BYTES);
    memory->needed_at = HEADER_PAGES_BYTES;
    memory->needed_stride = memory->states_bytes + chunks_of(plan) * SHM_PAGE_BYTES;
    memory->keys_at = memory->needed_at + NEEDED_SETS * memory->needed_stride;
    return memory->keys_at + (uint64_t)cache_memory_base(plan, PLACE_KINDS) * sizeof(uint64_t);
}

static struct range keys_range(const struct cache_memory *memory, enum place_kind kind, uint64_t from, uint64_t to)
{
    uint64_t start = memory->keys_at + (uint64_t)cache_memory_base(&memory->header->plan, kind) * sizeof(uint64_t);
    return (struct range){start + from, to - from};
}

int cache_memory_create(struct cache_memory *memory, const struct cache_memory_plan *plan, uint64_t disk_bytes,
                        const struct cache_file_id *file, struct error *err)
{
    const struct io_shm_name name = map_name(memory);
    int status = io_shm_create(memory->io, &memory->shm, &name, lay_out(memory, plan), err);
    if (status < 0)
        return status;
    memory->header = (struct cache_memory_header *)(void *)memory->shm.base;
    memory->keys = (uint64_t *)(void *)(memory->shm.base + memory->keys_at);
    status = io_shm_grow(memory->io, &memory->shm, (struct range){0, HEADER_PAGES_BYTES});
    if (status < 0) {
        cache_memory_destroy(memory);
        return error_set(err, -status, "no shared memory for the records of a fleecing cache: %s", error_name(status));
    }
    struct cache_memory_header *header = memory->header;
    *header = (struct cache_memory_header){.version = MEMORY_VERSION, .has_file = file != NULL, .plan = *plan};
    atomic_store(&header->disk_bytes, disk_bytes);
    io_boot_id(memory->io, header->boot);
    memcpy(header->session, memory->session, sizeof header->session);
    if (file)
        header->file = *file;
    atomic_thread_fence(memory_order_release);
    memcpy(header->magic, MEMORY_MAGIC, sizeof header->magic);
    return 0;
}

/* What is wrong with it; NULL: nothing. */
static const char *check(struct cache_memory *memory)
{
    const struct cache_memory_header *header = memory->header;
    const struct cache_memory_plan *plan = &header->plan;
    uint8_t boot[BOOT_ID_BYTES];
    if (memcmp(header->magic, MEMORY_MAGIC, sizeof header->magic) != 0)
        return "it was not finished";
    if (header->version != MEMORY_VERSION)
        return "another version of the daemon made it";
    io_boot_id(memory->io, boot);
    if (memcmp(header->boot, boot, sizeof boot) != 0)
        return "it is of an earlier boot";
    if (memcmp(header->session, memory->session, sizeof header->session) != 0)
        return "it is of other snapshots";
    if (plan->block_shift < 9 || plan->block_shift > 30 || plan->slots_per_segment == 0 ||
        plan->slots_per_segment > LIMIT_SEGMENT_SLOTS || lay_out(memory, plan) != memory->shm.reserved_bytes)
        return "its layout is not right";
    for (unsigned kind = 0; kind < PLACE_KINDS; kind++)
        if (header->segments_end[kind] > plan->segments_max[kind])
            return "it says that more was used than there is";
    return NULL;
}

static uint64_t bytes_for(const struct cache_memory *memory, enum place_kind kind, uint32_t end)
{
    const struct cache_memory_plan *plan = &memory->header->plan;
    uint64_t most = (cache_memory_base(plan, kind + 1u) - cache_memory_base(plan, kind)) * sizeof(uint64_t);
    uint64_t bytes = round_up((uint64_t)end * plan->slots_per_segment * sizeof(uint64_t), RECORDS_GROW_BYTES);
    return bytes < most ? bytes : most;
}

int cache_memory_adopt(struct cache_memory *memory, struct error *err)
{
    const struct io_shm_name name = map_name(memory);
    int status = io_shm_adopt(memory->io, &memory->shm, &name, err);
    if (status < 0)
        return status;
    memory->header = (struct cache_memory_header *)(void *)memory->shm.base;
    const char *wrong = "it was not finished";
    if (memory->shm.reserved_bytes >= HEADER_PAGES_BYTES &&
        io_shm_grow(memory->io, &memory->shm, (struct range){0, HEADER_PAGES_BYTES}) == 0) /* it may not be there yet */
        wrong = check(memory);
    if (wrong)
        return error_set(err, EINVAL, "the shared memory %s can't be used: %s", memory->map_file, wrong);
    memory->keys = (uint64_t *)(void *)(memory->shm.base + memory->keys_at);
    for (unsigned kind = 0; kind < PLACE_KINDS; kind++)
        memory->grown[kind] = bytes_for(memory, kind, memory->header->segments_end[kind]);
    memory->adopted = true;
    return 0;
}

void cache_memory_remove(struct io *io, const char *folder, const char *disk)
{
    struct cache_memory memory;
    const uint8_t session[CACHE_SESSION_BYTES] = {0};
    cache_memory_init(&memory, io, folder, disk, session);
    const struct io_shm_name map = map_name(&memory), slots = cache_memory_slots(&memory);
    io_shm_remove(io, &slots);
    io_shm_remove(io, &map);
}

void cache_memory_destroy(struct cache_memory *memory)
{
    const struct io_shm_name map = map_name(memory), slots = cache_memory_slots(memory);
    if (!memory->header)
        return;
    io_shm_remove(memory->io, &slots);
    io_shm_remove(memory->io, &map);
    io_shm_destroy(memory->io, &memory->shm);
    memory->header = NULL;
    memory->adopted = false;
}

struct cache_memory_plan cache_memory_plan(const struct cache_memory *memory)
{
    return memory->header->plan;
}

const struct cache_file_id *cache_memory_file(const struct cache_memory *memory)
{
    return memory->header->has_file ? &memory->header->file : NULL;
}

void cache_memory_announce_growth(struct cache_memory *memory, uint64_t disk_bytes)
{
    if (memory)
        atomic_store(&memory->header->next_bytes, disk_bytes);
}

void cache_memory_grow(struct cache_memory *memory, uint64_t disk_bytes)
{
    if (memory)
        atomic_store(&memory->header->disk_bytes, disk_bytes);
}

int cache_memory_check_disk(struct cache_memory *memory, uint64_t disk_bytes, struct error *err)
{
    const uint64_t had = atomic_load(&memory->header->disk_bytes), next = atomic_load(&memory->header->next_bytes);
    if ((disk_bytes != had && disk_bytes != next) || disk_bytes > memory->header->plan.room_bytes)
        return error_set(err, EINVAL, "the disk has %llu bytes, and had %llu", (unsigned long long)disk_bytes,
                         (unsigned long long)had);
    atomic_store(&memory->header->disk_bytes, disk_bytes);
    return 0;
}

void cache_memory_note_point(struct cache_memory *memory, unsigned number, uint64_t size_bytes)
{
    memory->header->point_bytes[number] = size_bytes;
}

uint64_t cache_memory_point(const struct cache_memory *memory, unsigned number)
{
    return memory->header->point_bytes[number];
}

int cache_memory_reach(struct cache_memory *memory, enum place_kind kind, uint32_t end)
{
    if (!memory || end <= atomic_load(&memory->header->segments_end[kind]))
        return 0;
    const uint64_t bytes = bytes_for(memory, kind, end);
    if (bytes > memory->grown[kind]) {
        int status = io_shm_grow(memory->io, &memory->shm, keys_range(memory, kind, memory->grown[kind], bytes));
        if (status < 0)
            return status;
        memory->grown[kind] = bytes;
    }
    atomic_store(&memory->header->segments_end[kind], end);
    return 0;
}

uint32_t cache_memory_reached(const struct cache_memory *memory, enum place_kind kind)
{
    return atomic_load(&memory->header->segments_end[kind]);
}

void cache_memory_note_sequence(struct cache_memory *memory, uint64_t sequence)
{
    if (memory)
        atomic_store(&memory->header->sequence, sequence);
}

uint64_t cache_memory_sequence(const struct cache_memory *memory)
{
    return atomic_load(&memory->header->sequence);
}
