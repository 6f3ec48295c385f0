/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Dirty bitmaps of the simulated VM: added, removed, cleared, switched on and off, merged, read, at random moments, and
 * snapshots that are limited to them.
 *
 * The model has two sets of blocks for each bitmap and disk. What a write that began while the bitmap was recording has
 * changed must be in the bitmap when the write is done (R5): `must`. What no write has touched since it was empty cannot be:
 * `may`. In between, while something is under way, either is right. The set that a limited snapshot needs is taken from
 * both at the cut, when nothing is in flight. One operation at a time; snapshots are made meanwhile.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sim.h"
#include "vm/bitmaps.h"

static const char *const names[SIM_BITMAPS] = {"b0", "b1", "b2"};

static uint64_t block_count(const struct sim_disk *disk)
{
    return disk->max_size / disk->sim->block_bytes + 1;
}

static void set_new(const struct sim_disk *disk, uint8_t **set)
{
    free(*set);
    if ((*set = calloc(1, block_count(disk))) == NULL)
        abort();
}

static void mark(const struct sim_disk *disk, uint8_t *set, struct range range, uint64_t unit)
{
    uint64_t end = round_up(range_end(range), unit);
    uint64_t first = round_down(range.start, unit) / disk->sim->block_bytes;
    end = end < disk->size ? end : disk->size;
    for (uint64_t block = first; block * disk->sim->block_bytes < end; block++)
        set[block] = 1;
}

/* What may reach the disk at any time: requests under way, and discards that were put off. */
static void mark_under_way(struct sim_disk *disk, uint8_t *set, uint64_t unit)
{
    for (unsigned i = 0; i < disk->guest_count; i++)
        if (disk->guests[i].busy && request_is_write(&disk->guests[i].req))
            mark(disk, set, disk->guests[i].req.range, unit);
    for (unsigned i = 0; i < disk->sim->chain_count; i++) {
        const struct chain *chain = &disk->sim->chains[i];
        if (chain->busy && chain->disks[chain->side] == disk)
            mark(disk, set, chain->req.range, unit);
    }
    const uint8_t *loose;
    for (uint64_t at = 0; at < disk->size && (loose = memchr(disk->loose + at, 1, disk->size - at)) != NULL;) {
        at = (uint64_t)(loose - disk->loose);
        mark(disk, set, (struct range){at, 1}, unit);
        at = round_down(at, unit) + unit; /* the rest of the unit is marked with it */
    }
}

void bitmaps_create(struct sim_disk *disk)
{
    for (unsigned i = 0; i < SIM_BITMAPS; i++) {
        struct sim_bitmap *bitmap = &disk->bitmaps[i];
        bitmap->disk = disk;
        bitmap->index = i;
        set_new(disk, &bitmap->must);
        set_new(disk, &bitmap->may);
        set_new(disk, &bitmap->pending);
        set_new(disk, &bitmap->merged);
        bitmap->granularity = disk->sim->block_bytes;
    }
}

void bitmaps_destroy(struct sim_disk *disk)
{
    for (unsigned i = 0; i < SIM_BITMAPS; i++) {
        free(disk->bitmaps[i].must);
        free(disk->bitmaps[i].may);
        free(disk->bitmaps[i].fresh);
        free(disk->bitmaps[i].pending);
        free(disk->bitmaps[i].merged);
        free(disk->captured_needs[i]);
    }
}

static bool is_source(const struct sim *sim, unsigned index)
{
    return sim->bitmaps_out > 0 && sim->bitmap_act == BITMAP_MERGE && sim->bitmap_source == index;
}

void bitmaps_issued(struct sim_disk *disk, struct range range)
{
    for (unsigned i = 0; i < SIM_BITMAPS; i++) {
        struct sim_bitmap *bitmap = &disk->bitmaps[i];
        if (bitmap->may_record || disk->sim->limiting[i] > 0 || is_source(disk->sim, i))
            mark(disk, bitmap->may, range, bitmap->granularity);
        if (bitmap->fresh != NULL)
            mark(disk, bitmap->fresh, range, bitmap->granularity);
    }
}

void bitmaps_written(struct sim_disk *disk, struct range range, uint64_t issued_ns)
{
    for (unsigned i = 0; i < SIM_BITMAPS; i++)
        if (disk->bitmaps[i].records_since_ns != 0 && disk->bitmaps[i].records_since_ns < issued_ns)
            mark(disk, disk->bitmaps[i].must, range, 1);
}

/* What was added is dirty in all of them, with the granule of the old end. */
void bitmaps_grown(struct sim_disk *disk, uint64_t old_size)
{
    const struct sim *sim = disk->sim;
    for (unsigned i = 0; i < SIM_BITMAPS; i++) {
        struct sim_bitmap *bitmap = &disk->bitmaps[i];
        const struct range added = {old_size - 1, disk->size - old_size + 1};
        mark(disk, bitmap->may, added, bitmap->granularity);
        if (bitmap->fresh != NULL)
            mark(disk, bitmap->fresh, added, bitmap->granularity);
        if (bitmap->exists && !(sim->bitmaps_out > 0 && sim->bitmap_of_act == i)) /* else it may come before or after */
            mark(disk, bitmap->must, (struct range){old_size, disk->size - old_size}, 1);
    }
}

/* ---- operations ---- */

static void or_into(const struct sim_disk *disk, uint8_t *into, const uint8_t *from)
{
    for (uint64_t i = 0; i < block_count(disk); i++)
        into[i] = into[i] | from[i];
}

static void prepare(struct sim *sim, struct sim_bitmap *bitmap)
{
    struct sim_disk *disk = bitmap->disk;
    struct sim_bitmap *source = &disk->bitmaps[sim->bitmap_source];
    switch (sim->bitmap_act) {
    case BITMAP_ADD:
        bitmap->granularity = sim->bitmap_granularity;
        set_new(disk, &bitmap->must);
        set_new(disk, &bitmap->may);
        bitmap->may_record = sim->bitmap_enable;
        mark_under_way(disk, bitmap->may, bitmap->granularity);
        break;
    case BITMAP_REMOVE:
    case BITMAP_CLEAR:
        set_new(disk, &bitmap->must);
        set_new(disk, &bitmap->fresh);
        mark_under_way(disk, bitmap->fresh, bitmap->granularity);
        bitmap->records_since_ns = 0;
        break;
    case BITMAP_ENABLE:
        if (sim->bitmap_enable) {
            bitmap->may_record = true;
            mark_under_way(disk, bitmap->may, bitmap->granularity);
        } else {
            bitmap->records_since_ns = 0;
        }
        break;
    case BITMAP_MERGE: /* the copy of the source notes what is written meanwhile, though the source be switched off */
        mark_under_way(disk, source->may, source->granularity);
        for (uint64_t i = 0; i < block_count(disk); i++)
            if (source->may[i])
                mark(disk, bitmap->may, (struct range){i * sim->block_bytes, 1}, bitmap->granularity);
        set_new(disk, &bitmap->pending);
        or_into(disk, bitmap->pending, source->must);
        break;
    case BITMAP_RANGES:
        set_new(disk, &bitmap->pending);
        or_into(disk, bitmap->pending, bitmap->must);
        break;
    }
}

static void settle(struct sim *sim, struct sim_bitmap *bitmap, bool done)
{
    struct sim_disk *disk = bitmap->disk;
    const uint64_t now = world_now(sim->world);
    switch (sim->bitmap_act) {
    case BITMAP_ADD:
        bitmap->exists = done;
        bitmap->enabled = sim->bitmap_enable;
        break;
    case BITMAP_REMOVE:
        bitmap->exists = bitmap->exists && !done;
        bitmap->enabled = bitmap->enabled && !done;
        break;
    case BITMAP_CLEAR:
        if (done)
            memcpy(bitmap->may, bitmap->fresh, block_count(disk));
        break;
    case BITMAP_ENABLE:
        bitmap->enabled = done ? sim->bitmap_enable : bitmap->enabled;
        break;
    case BITMAP_MERGE:
        memcpy(bitmap->merged, bitmap->pending, block_count(disk));
        prepare(sim, bitmap); /* what the source got meanwhile may be there as well; what it had then, must */
        if (done)
            or_into(disk, bitmap->must, bitmap->merged);
        break;
    case BITMAP_RANGES:
        break;
    }
    bitmap->may_record = bitmap->enabled;
    if (sim->bitmap_act != BITMAP_MERGE && sim->bitmap_act != BITMAP_RANGES)
        bitmap->records_since_ns = bitmap->exists && bitmap->enabled ? now : 0;
    free(bitmap->fresh);
    bitmap->fresh = NULL;
}

static void act_done(void *argument, const struct error *err)
{
    struct sim_bitmap *bitmap = argument;
    struct sim *sim = bitmap->disk->sim;
    bool busy = sim->limited_meanwhile && err != NULL && err->code == EBUSY;
    bool grown = sim->bitmap_act == BITMAP_MERGE && bitmap->growths != bitmap->disk->growths && err != NULL &&
                 err->code == EINVAL;
    if (err != NULL && !busy && !grown && !(err->code == ESHUTDOWN && sim->stopping))
        sim_fail(sim, "%s: operation %d on dirty bitmap %s was refused: %s", bitmap->disk->name, (int)sim->bitmap_act,
                 names[bitmap->index], err->text);
    settle(sim, bitmap, err == NULL);
    sim->bitmaps_out--;
}

static void ranges_done(void *argument, const struct range *ranges, unsigned count, uint64_t next,
                        const struct error *err)
{
    struct sim_bitmap *bitmap = argument;
    struct sim_disk *disk = bitmap->disk;
    struct sim *sim = disk->sim;
    uint8_t *told = NULL;
    if (err == NULL) {
        set_new(disk, &told);
        for (unsigned i = 0; i < count; i++)
            mark(disk, told, ranges[i], 1);
        for (uint64_t block = 0; block * sim->block_bytes < next && block * sim->block_bytes < disk->size; block++) {
            if (bitmap->pending[block] && !told[block])
                sim_fail(sim, "%s: block %llu was written, and is not in dirty bitmap %s (R5)", disk->name,
                         (unsigned long long)block, names[bitmap->index]);
            if (told[block] && !bitmap->may[block])
                sim_fail(sim, "%s: block %llu was not written, and is in dirty bitmap %s", disk->name,
                         (unsigned long long)block, names[bitmap->index]);
        }
        free(told);
    }
    act_done(bitmap, err);
}

static void act(struct sim *sim, struct sim_bitmap *bitmap)
{
    const struct vm_bitmap which = {bitmap->disk->name, names[bitmap->index]};
    const struct vm_bitmap source = {bitmap->disk->name, names[sim->bitmap_source]};
    prepare(sim, bitmap);
    bitmap->growths = bitmap->disk->growths;
    switch (sim->bitmap_act) {
    case BITMAP_ADD:
        vm_bitmap_add(sim->vm, which, sim->bitmap_granularity, sim->bitmap_enable, act_done, bitmap);
        break;
    case BITMAP_REMOVE:
        vm_bitmap_remove(sim->vm, which, act_done, bitmap);
        break;
    case BITMAP_CLEAR:
        vm_bitmap_clear(sim->vm, which, act_done, bitmap);
        break;
    case BITMAP_ENABLE:
        vm_bitmap_enable(sim->vm, which, sim->bitmap_enable, act_done, bitmap);
        break;
    case BITMAP_MERGE:
        vm_bitmap_merge(sim->vm, which, &source, 1, act_done, bitmap);
        break;
    case BITMAP_RANGES:
        vm_bitmap_ranges(sim->vm, which, 0, ranges_done, bitmap);
        break;
    }
}

/* Whether it is there on every disk. */
static bool exists(const struct sim *sim, unsigned index)
{
    for (unsigned i = 0; i < sim->disk_count; i++)
        if (!sim->disks[i].bitmaps[index].exists)
            return false;
    return true;
}

static bool exists_somewhere(const struct sim *sim, unsigned index)
{
    for (unsigned i = 0; i < sim->disk_count; i++)
        if (sim->disks[i].bitmaps[index].exists)
            return true;
    return false;
}

void bitmaps_act(struct sim *sim)
{
    unsigned index = (unsigned)sim_below(sim, SIM_BITMAPS);
    uint64_t dice = sim_below(sim, 16);
    if (sim->bitmaps_out > 0 || (sim->limiting[index] > 0 && !sim_chance(sim, 128)))
        return;
    sim->bitmap_source = (index + 1) % SIM_BITMAPS;
    sim->bitmap_enable = !sim_chance(sim, 200);
    sim->bitmap_granularity = sim_chance(sim, 512) ? sim->block_bytes : UINT64_C(512) << sim_below(sim, 6);
    if (!exists_somewhere(sim, index))
        sim->bitmap_act = BITMAP_ADD;
    else if (!exists(sim, index))
        return; /* its end came in the middle of an operation */
    else
        sim->bitmap_act = dice < 2 && sim->limiting[index] == 0          ? BITMAP_REMOVE
                          : dice < 5                                     ? BITMAP_CLEAR
                          : dice < 8                                     ? BITMAP_ENABLE
                          : dice < 11 && exists(sim, sim->bitmap_source) ? BITMAP_MERGE
                                                                         : BITMAP_RANGES;
    sim_trace(sim, "operation %d on dirty bitmap %s", (int)sim->bitmap_act, names[index]);
    sim->limited_meanwhile = sim->limiting[index] > 0;
    sim->bitmap_acts[index] += sim->bitmap_act != BITMAP_RANGES;
    sim->bitmap_of_act = index;
    sim->bitmaps_out = sim->disk_count;
    for (unsigned i = 0; i < sim->disk_count; i++)
        act(sim, &sim->disks[i].bitmaps[index]);
}

/* ---- snapshots ---- */

const char *bitmaps_limit(struct sim *sim, struct sim_snapshot *snapshot)
{
    unsigned index = (unsigned)sim_below(sim, SIM_BITMAPS);
    if (sim_chance(sim, 20)) {
        snapshot->no_bitmap = true;
        return "nosuch";
    }
    if (sim->bitmaps_out > 0 || !exists(sim, index))
        return NULL;
    snapshot->limit = index + 1;
    snapshot->limit_acts = sim->bitmap_acts[index];
    sim->limiting[index]++;
    for (unsigned i = 0; i < sim->disk_count; i++) {
        struct sim_bitmap *bitmap = &sim->disks[i].bitmaps[index];
        mark_under_way(bitmap->disk, bitmap->may, bitmap->granularity);
    }
    return names[index];
}

void bitmaps_limited(struct sim *sim, struct sim_snapshot *snapshot)
{
    if (snapshot->limit > 0)
        sim->limiting[snapshot->limit - 1]--;
    if (snapshot->limit > 0 && sim->bitmaps_out > 0 && sim->bitmap_of_act == snapshot->limit - 1)
        sim->limited_meanwhile = true;
}

void bitmaps_at_cut(struct sim_disk *disk)
{
    for (unsigned i = 0; i < SIM_BITMAPS; i++) {
        if (disk->sim->limiting[i] == 0)
            continue;
        set_new(disk, &disk->captured_needs[i]);
        for (uint64_t block = 0; block < block_count(disk); block++)
            disk->captured_needs[i][block] = disk->bitmaps[i].must[block]  ? SIM_NEEDED
                                             : disk->bitmaps[i].may[block] ? SIM_MAY_BE_NEEDED
                                                                           : SIM_OUTSIDE;
    }
}

void bitmaps_take_needs(struct sim_snapshot *snapshot, struct sim_disk *disk)
{
    struct sim_part *part = &snapshot->parts[disk->index];
    set_new(disk, &part->needs);
    memset(part->needs, SIM_NEEDED, block_count(disk));
    if (snapshot->limit == 0)
        return;
    unsigned index = snapshot->limit - 1;
    bool certain = snapshot->limit_acts == disk->sim->bitmap_acts[index];
    for (uint64_t block = 0; block < block_count(disk); block++)
        part->needs[block] = certain ? disk->captured_needs[index][block] : SIM_MAY_BE_NEEDED;
}
