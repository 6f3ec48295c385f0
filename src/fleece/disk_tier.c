/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Places in a cache file. spill.c says how segments get there.
 *
 * A segment of the file is absent (a hole; nothing of the budget), or present:
 *   in use     some of its slots are taken;
 *   idle       none is; it waits to be punched, and is the first to be used again until then;
 *   punching   the file system is giving its space back;
 *   kept       punching it failed, or the file cannot be punched: its space stays used until the file goes. It is used
 *              again, and not punched again.
 * Present segments that hold nothing are closed in the pool. The budget is charged for exactly the present segments, from
 * before the first byte is written until the punch has completed: so the space that the file takes never passes it.
 *
 * One piece at a time is punched: the kernel would not do two of one file at once anyway. What becomes idle meanwhile is
 * merged into the next piece, as long as pieces do not hold up reads and spills of the file: their length follows from
 * how long they take. A punch that never comes back holds its own segments; those that are idle can still be used.
 *
 * Crash: the file is a left-over, and goes by its header; or it is adopted, with the records of its places (cache_memory.c).
 * Then every segment that was ever used counts as present, and those that hold nothing are punched. Which of these are holes
 * already nobody knows: so the budget is charged for all, beyond its cap if need be, and no new ones are had until the
 * punches have brought it below. But only when what holds something has been charged for on all disks: that must fit.
 */
#include <assert.h>
#include <errno.h>
#include <sys/mman.h>

#include "base/probe.h"
#include "fleece/disk_tier_internal.h"

static uint64_t segment_file_bytes(const struct disk_tier *tier)
{
    return CACHE_HEADER_BYTES + ((uint64_t)tier->pool.slots_per_segment << tier->block_shift);
}

uint64_t disk_tier_file_bytes(uint64_t segment_bytes, uint64_t segments)
{
    return CACHE_HEADER_BYTES + segments * (CACHE_HEADER_BYTES + segment_bytes);
}

uint32_t disk_tier_segments_max(uint64_t file_bytes, uint64_t segment_bytes, unsigned block_shift)
{
    const uint64_t slots = segment_bytes >> block_shift, most = (SLOT_NONE - 1) / slots;
    if (file_bytes < disk_tier_file_bytes(segment_bytes, 1))
        return 0;
    uint64_t segments = (file_bytes - CACHE_HEADER_BYTES) / (CACHE_HEADER_BYTES + segment_bytes);
    return (uint32_t)(segments < most ? segments : most);
}

int disk_tier_init(struct disk_tier *tier, struct io *io, const struct disk_tier_options *options, struct error *err)
{
    uint64_t slots = options->segment_bytes >> options->block_shift;
    uint64_t least = disk_tier_file_bytes(options->segment_bytes, 1);
    assert(slots > 0 && slots <= LIMIT_SEGMENT_SLOTS);
    *tier = (struct disk_tier){.io = io,
                               .file = options->file,
                               .budget = options->budget,
                               .memory = options->memory,
                               .block_shift = options->block_shift,
                               .punch_bytes = PUNCH_FIRST_BYTES};
    /* Through the page cache an error of writing back comes when nobody asks, and the block reads as something else. */
    if (options->file->alignment_bytes == 1)
        tier->write_flags = REQUEST_FUA;
    if (options->file->size_bytes < least)
        return error_set(err, EINVAL, "the cache file has %llu bytes, the least is %llu",
                         (unsigned long long)options->file->size_bytes, (unsigned long long)least);
    const uint32_t segments = disk_tier_segments_max(options->file->size_bytes, options->segment_bytes,
                                                     options->block_shift);
    size_t set_bytes = index_set_bytes(segments);
    tier->sets_bytes = 2 * set_bytes;
    tier->sets = mmap(NULL, tier->sets_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
                      0);
    if (tier->sets == MAP_FAILED)
        return error_set(err, ENOMEM, "no memory for the lists of a cache file");
    if (slot_pool_init(&tier->pool, segments, (uint32_t)slots) < 0) {
        munmap(tier->sets, tier->sets_bytes);
        tier->sets_bytes = 0; /* disk_tier_fini() may still be called */
        return error_set(err, ENOMEM, "no memory for the slots of a cache file");
    }
    index_set_init(&tier->idle, segments, tier->sets);
    index_set_init(&tier->kept, segments, (char *)tier->sets + set_bytes);
    return 0;
}

void disk_tier_fini(struct disk_tier *tier)
{
    assert(tier->writes == 0 && tier->punches == 0 && !list_linked(&tier->quiet_task.link));
    budget_give(tier->budget, tier->pool.segments_present * segment_file_bytes(tier));
    slot_pool_fini(&tier->pool);
    if (tier->sets_bytes)
        munmap(tier->sets, tier->sets_bytes);
    *tier = (struct disk_tier){0};
}

uint64_t disk_tier_segment_offset(const struct disk_tier *tier, uint32_t segment)
{
    return CACHE_HEADER_BYTES + segment * segment_file_bytes(tier);
}

uint64_t disk_tier_offset(const struct disk_tier *tier, uint32_t slot)
{
    uint32_t segment = slot / tier->pool.slots_per_segment, in_segment = slot % tier->pool.slots_per_segment;
    return disk_tier_segment_offset(tier, segment) + CACHE_HEADER_BYTES + ((uint64_t)in_segment << tier->block_shift);
}

uint32_t disk_tier_slots_max(const struct disk_tier *tier)
{
    return tier->pool.segments_max * tier->pool.slots_per_segment;
}

bool disk_tier_has_room(const struct disk_tier *tier, uint32_t slots)
{
    const struct slot_pool *pool = &tier->pool;
    uint32_t segment;
    if (tier->idle_count + tier->kept_count > 0)
        return true;
    if (slot_pool_next_absent(pool, &segment) &&
        atomic_load(&tier->budget->used_bytes) + segment_file_bytes(tier) <= tier->budget->max_bytes)
        return true;
    return pool->slots_free >= slots;
}

/* Segments that hold nothing. */

static bool take_from(struct index_set *set, uint32_t *count, uint32_t *segment)
{
    if (!index_set_lowest(set, segment))
        return false;
    index_set_remove(set, *segment);
    (*count)--;
    return true;
}

bool disk_tier_claim(struct disk_tier *tier, uint32_t *segment)
{
    if (tier->kept_count + tier->idle_count > 0)
        PROBE(tier_segment_used_again);
    if (take_from(&tier->kept, &tier->kept_count, segment) || take_from(&tier->idle, &tier->idle_count, segment)) {
        slot_pool_open(&tier->pool, *segment);
    } else {
        if (!slot_pool_next_absent(&tier->pool, segment) ||
            cache_memory_reach(tier->memory, PLACE_FILE, *segment + 1) < 0 ||
            (!budget_take(tier->budget, segment_file_bytes(tier)) && !MUTANT(cache_files_overdrawn)))
            return false;
        slot_pool_add(&tier->pool, *segment);
    }
    slot_pool_take_segment(&tier->pool, *segment);
    return true;
}

static void start_quiet(struct disk_tier *tier);

static void punch_done(struct request *req, int status)
{
    struct punch *punch = container_of(req, struct punch, request);
    struct disk_tier *tier = container_of(punch, struct disk_tier, punch);
    uint64_t took_ns = io_now_ns(tier->io) - punch->since_ns;
    if (took_ns > PUNCH_LONG_NS)
        tier->punch_bytes = req->range.length / 2;
    else if (took_ns < PUNCH_SHORT_NS)
        tier->punch_bytes = tier->punch_bytes < LIMIT_PUNCH_BYTES / 2 ? tier->punch_bytes * 2 : LIMIT_PUNCH_BYTES;
    for (uint32_t i = punch->first; i < punch->first + punch->count; i++) {
        if (status == 0) {
            slot_pool_drop(&tier->pool, i);
        } else {
            index_set_add(&tier->kept, i);
            tier->kept_count++;
        }
    }
    if (status == 0) {
        budget_give(tier->budget, req->range.length);
        tier->punched_bytes += req->range.length;
    } else {
        PROBE(tier_punch_failed);
        tier->punches_failed++;
    }
    punch->count = 0;
    tier->punches--;
    disk_tier_settle(tier);
    if (tier->punched)
        tier->punched(tier->context);
}

/* The lowest run of idle segments, as far as one piece goes. */
static void punch_begin(struct disk_tier *tier)
{
    uint64_t longest = tier->punch_bytes / segment_file_bytes(tier);
    uint32_t first, count = 0;
    if (!index_set_lowest(&tier->idle, &first))
        return;
    do {
        index_set_remove(&tier->idle, first + count++);
    } while (count < longest && first + count < tier->pool.segments_end && index_set_has(&tier->idle, first + count));
    tier->idle_count -= count;
    tier->punches++;
    tier->punch = (struct punch){
        .first = first,
        .count = count,
        .since_ns = io_now_ns(tier->io),
        .request = {.kind = REQUEST_DISCARD,
                    .flags = REQUEST_NO_HINT, /* the budget counts on it */
                    .range = {disk_tier_segment_offset(tier, first), count * segment_file_bytes(tier)},
                    .done = punch_done},
    };
    node_submit(tier->file, &tier->punch.request);
}

void disk_tier_settle(struct disk_tier *tier)
{
    bool about_to_go = tier->quiet && tier->pool.slots_used == 0; /* the file: all of it at once */
    if (tier->punches == 0 && !about_to_go)
        punch_begin(tier);
    if (tier->quiet)
        start_quiet(tier);
}

/* The segment is present and holds nothing. */
static void segment_emptied(struct disk_tier *tier, uint32_t segment)
{
    if (!tier->pool.segments[segment].closed)
        slot_pool_close(&tier->pool, segment);
    if (tier->file->can_discard) {
        index_set_add(&tier->idle, segment);
        tier->idle_count++;
    } else {
        index_set_add(&tier->kept, segment);
        tier->kept_count++;
    }
}

void disk_tier_give(struct disk_tier *tier, uint32_t slot)
{
    if (slot_pool_give(&tier->pool, slot) > 0 && !MUTANT(segment_in_use_is_idle))
        return;
    segment_emptied(tier, slot / tier->pool.slots_per_segment);
    disk_tier_settle(tier);
}

/* Adoption. */

int disk_tier_adopt(struct disk_tier *tier, uint32_t segments)
{
    assert(tier->pool.segments_end == 0);
    tier->sequence = cache_memory_sequence(tier->memory);
    tier->adopting = segments;
    return budget_take(tier->budget, segments * segment_file_bytes(tier)) ? 0 : -ENOSPC;
}

void disk_tier_adopt_slot(struct disk_tier *tier, uint32_t slot)
{
    slot_pool_adopt(&tier->pool, slot);
}

void disk_tier_adopt_end(struct disk_tier *tier)
{
    assert(tier->pool.segments_present <= tier->adopting);
    budget_give(tier->budget, (tier->adopting - tier->pool.segments_present) * segment_file_bytes(tier));
    tier->adopting = 0;
}

void disk_tier_adopted(struct disk_tier *tier, uint32_t end)
{
    assert(end <= tier->pool.segments_max);
    for (uint32_t segment = 0; segment < end; segment++) {
        if (segment < tier->pool.segments_end && tier->pool.segments[segment].present)
            continue;
        PROBE(restart_old_space_punched);
        budget_charge(tier->budget, segment_file_bytes(tier));
        slot_pool_add(&tier->pool, segment);
        segment_emptied(tier, segment);
    }
    disk_tier_settle(tier);
}

/* Quiet. */

static void quiet_run(struct io_task *task)
{
    struct disk_tier *tier = container_of(task, struct disk_tier, quiet_task);
    if (tier->writes > 0 || tier->punches > 0)
        return; /* the last of them comes here again */
    void (*quiet)(void *context) = tier->quiet;
    tier->quiet = NULL;
    quiet(tier->quiet_context);
}

static void start_quiet(struct disk_tier *tier)
{
    if (tier->writes > 0 || tier->punches > 0)
        return;
    tier->quiet_task.run = quiet_run;
    io_task_queue(tier->io, &tier->quiet_task);
}

void disk_tier_when_quiet(struct disk_tier *tier, void (*quiet)(void *context), void *context)
{
    assert(!tier->quiet);
    tier->quiet = quiet;
    tier->quiet_context = context;
    start_quiet(tier);
}
