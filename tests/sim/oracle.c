/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the oracle sees of the code under test without asking it: the linker puts these functions between cut.c, disk.c
 * and the VM (-Wl,--wrap). A disk that is released by a cut whose word says DONE is as it was at the cut: nothing was in
 * flight, and what was held starts only after this step.
 */
#include <stdlib.h>
#include <string.h>

#include "sim.h"
#include "vm/vm_private.h"

/* A hold ends at its deadline, whatever the control thread does (C3); a reactor itself may be late by a message or by
 * what keeps its thread. */
#define HOLD_SLACK_NS (20 * NS_PER_MS)

void __real_cut_start(struct cut *cut);
void __wrap_cut_start(struct cut *cut);
void __real_disk_grow(struct disk *disk, uint64_t size_bytes);
void __wrap_disk_grow(struct disk *disk, uint64_t size_bytes);
void __real_disk_release(struct disk *disk);
void __wrap_disk_release(struct disk *disk);

/* Whether some snapshot that may live has a use for the block. One that is being made counts from its cut on. */
static bool somebody_needs(const struct sim_disk *disk, uint64_t block)
{
    if (disk->captured != NULL)
        return true;
    list_each (link, &disk->sim->snapshots) {
        const struct sim_snapshot *snapshot = container_of(link, struct sim_snapshot, link);
        const struct sim_part *part = &snapshot->parts[disk->index];
        if (snapshot->images_taken && block * disk->sim->block_bytes < part->size && part->released_ns[block] == 0 &&
            part->needs[block] != SIM_OUTSIDE)
            return true;
    }
    return false;
}

void oracle_touch(struct sim_disk *disk, struct range range)
{
    unsigned shift = (unsigned)__builtin_ctzll(disk->sim->block_bytes);
    struct block_range blocks = range_to_blocks(range, shift);
    bitmaps_issued(disk, range);
    for (uint64_t block = blocks.first; block < block_range_end(blocks); block++) {
        disk->touched[block] = disk->cuts + 1;
        if (disk->preserved[block] != disk->cuts + 1 && somebody_needs(disk, block)) {
            disk->preserved[block] = disk->cuts + 1;
            disk->preserved_max++;
        }
    }
}

static struct sim_disk *find_disk(struct sim *sim, const struct disk *disk)
{
    for (unsigned i = 0; i < sim->disk_count; i++)
        if (sim->disks[i].disk == disk)
            return &sim->disks[i];
    sim_fail(sim, "a disk of somebody else is cut");
}

void __wrap_cut_start(struct cut *cut)
{
    struct sim *sim = world_context(world_of(cut->io));
    if (sim != NULL)
        sim->cut = cut;
    __real_cut_start(cut);
}

/* What was issued and is not acknowledged may be decided after the cut: it counts for the new epoch, too. */
static void touch_again(struct sim_disk *disk)
{
    for (unsigned i = 0; i < disk->guest_count; i++)
        if (disk->guests[i].busy && request_is_write(&disk->guests[i].req))
            oracle_touch(disk, disk->guests[i].req.range);
    for (unsigned i = 0; i < disk->sim->chain_count; i++) {
        const struct chain *chain = &disk->sim->chains[i];
        if (chain->busy && chain->disks[chain->side] == disk)
            oracle_touch(disk, chain->req.range);
    }
    uint64_t block = disk->sim->block_bytes; /* discards that may still be done: */
    for (const uint8_t *at = disk->loose; (at = memchr(at, 1, (size_t)(disk->loose + disk->size - at))) != NULL;) {
        uint64_t offset = (uint64_t)(at - disk->loose);
        oracle_touch(disk, (struct range){offset, 1});
        at = disk->loose + (disk->size - offset > block ? round_down(offset, block) + block : disk->size);
    }
}

void __wrap_disk_release(struct disk *disk)
{
    struct sim *sim = world_context(world_of(disk->node.io));
    if (sim == NULL || sim->cut == NULL || sim->vm->growing) { /* a growth takes turns with cuts */
        __real_disk_release(disk);
        return;
    }
    struct sim_disk *mine = find_disk(sim, disk);
    bool done = atomic_load(&sim->cut->state) == CUT_DONE;
    sim_trace(sim, "%s released, %s", mine->name, done ? "cut" : "not cut");
    if (world_now(sim->world) > sim->cut->deadline_ns + HOLD_SLACK_NS + 200 * sim->message_ns)
        sim_fail(sim, "%s was held %llu us beyond the deadline of the cut (C3)", mine->name,
                 (unsigned long long)((world_now(sim->world) - sim->cut->deadline_ns) / NS_PER_US));
    if (!done)
        sim->slow_until = world_now(sim->world) + CUT_RETRY_PAUSE_NS + 10 * NS_PER_MS;
    if (done) {
        if (mine->captured == NULL && (mine->captured = malloc(mine->max_size)) == NULL)
            abort();
        mine->captured_size = mine->size;
        memcpy(mine->captured, world_file_bytes(mine->file), mine->size);
        mine->cuts++;
        touch_again(mine);
        bitmaps_at_cut(mine);
    }
    __real_disk_release(disk);
}

void __wrap_disk_grow(struct disk *disk, uint64_t size_bytes)
{
    struct sim *sim = world_context(world_of(disk->node.io));
    struct sim_disk *mine = find_disk(sim, disk);
    const uint64_t old = mine->size;
    if (size_bytes != mine->grow_to)
        sim_fail(sim, "%s grows, and nobody asked for that", mine->name);
    __real_disk_grow(disk, size_bytes);
    sim_trace(sim, "%s grows from %llu to %llu bytes", mine->name, (unsigned long long)old,
              (unsigned long long)size_bytes);
    mine->size = size_bytes;
    mine->growths++;
    if (old % sim->block_bytes != 0) /* there is more of it now than what was read of it */
        mine->touched[old / sim->block_bytes] = mine->cuts + 1;
    bitmaps_grown(mine, old);
}

void oracle_take_images(struct sim *sim, struct sim_snapshot *snapshot)
{
    if (snapshot->images_taken)
        return;
    snapshot->images_taken = true;
    for (unsigned i = 0; i < sim->disk_count; i++) {
        struct sim_disk *disk = &sim->disks[i];
        struct sim_part *part = &snapshot->parts[i];
        if (disk->captured == NULL || disk->cuts != sim->disks[0].cuts)
            sim_fail(sim, "snapshot %s is published, and %s has not been cut for it (C2)", snapshot->name, disk->name);
        part->image = disk->captured;
        part->size = disk->captured_size;
        part->cut = disk->cuts;
        part->asked_ns = calloc(disk->max_size / sim->block_bytes + 2, sizeof(uint64_t));
        part->released_ns = calloc(disk->max_size / sim->block_bytes + 2, sizeof(uint64_t));
        if (part->asked_ns == NULL || part->released_ns == NULL)
            abort();
        disk->captured = NULL;
        bitmaps_take_needs(snapshot, disk);
    }
}

void oracle_free_images(struct sim_snapshot *snapshot)
{
    for (unsigned i = 0; i < SIM_DISKS; i++) {
        target_destroy(snapshot->parts[i].target);
        free(snapshot->parts[i].image);
        free(snapshot->parts[i].asked_ns);
        free(snapshot->parts[i].needs);
        free(snapshot->parts[i].released_ns);
    }
}

bool oracle_may_be(const struct sim_disk *disk, uint64_t at, uint8_t byte)
{
    return byte == disk->model[at] || (disk->loose[at] && (byte == 0 || disk->block_device));
}

/* At rest: the disk is what the guest was told. */
void oracle_check_model(struct sim *sim)
{
    for (unsigned i = 0; i < sim->disk_count; i++) {
        struct sim_disk *disk = &sim->disks[i];
        const uint8_t *truth = world_file_bytes(disk->file);
        if (world_file_size(disk->file) != disk->size)
            sim_fail(sim, "%s has %llu bytes now, and had %llu", disk->name,
                     (unsigned long long)world_file_size(disk->file), (unsigned long long)disk->size);
        if (memcmp(disk->model, truth, disk->size) == 0)
            continue;
        for (uint64_t at = 0; at < disk->size; at++)
            if (!oracle_may_be(disk, at, truth[at]))
                sim_fail(sim, "%s: at the end byte %llu is not what the guest has written", disk->name,
                         (unsigned long long)at);
    }
}

static void check_counters(struct sim *sim, const struct sim_disk *disk, const struct disk_counters *told)
{
    const struct disk_counters *mine = &disk->counters;
    const uint64_t pairs[][2] = {
        {mine->reads, told->reads},       {mine->read_bytes, told->read_bytes},
        {mine->writes, told->writes},     {mine->zeroes, told->zeroes},
        {mine->discards, told->discards}, {mine->written_bytes, told->written_bytes},
        {mine->flushes, told->flushes},   {mine->errors, told->errors},
    };
    static const char *const names[] = {"reads",    "read bytes",    "writes",  "zeroes",
                                        "discards", "written bytes", "flushes", "errors"};
    for (unsigned i = 0; i < sizeof(pairs) / sizeof(*pairs); i++)
        if (pairs[i][0] != pairs[i][1])
            sim_fail(sim, "%s counts %llu %s, the guest counted %llu", disk->name, (unsigned long long)pairs[i][1],
                     names[i], (unsigned long long)pairs[i][0]);
}

/* No guest request is under way and no snapshot is left. */
void oracle_check_status(struct sim *sim)
{
    if (sim->status.cache_bytes_now != 0)
        sim_fail(sim, "no snapshot is left, and the cache holds %llu bytes",
                 (unsigned long long)sim->status.cache_bytes_now);
    if (sim->status.cache_bytes_peak > sim->status.cache_bytes_max)
        sim_fail(sim, "the cache held %llu bytes, more than its budget of %llu",
                 (unsigned long long)sim->status.cache_bytes_peak, (unsigned long long)sim->status.cache_bytes_max);
    for (unsigned i = 0; i < sim->disk_count; i++) {
        const struct sim_disk *disk = &sim->disks[i];
        const struct vm_disk_status *told = &sim->status.disks[i];
        if (told->filtered || told->cache_blocks_now != 0 || told->copies_in_flight != 0 || told->writes_parked != 0 ||
            told->writes_held != 0 || told->writes_in_flight != 0)
            sim_fail(sim, "no snapshot and no request is left, and %s still has a filter, slots, copies or writes",
                     disk->name);
        if (told->blocks_preserved > disk->preserved_max)
            sim_fail(sim, "%s preserved %llu blocks; between two cuts at most %llu were written (R3)", disk->name,
                     (unsigned long long)told->blocks_preserved, (unsigned long long)disk->preserved_max);
        check_counters(sim, disk, &told->counters);
    }
}

void oracle_check_broken(struct sim *sim, uint64_t failed_before_ns)
{
    list_each (link, &sim->snapshots) {
        const struct sim_snapshot *snapshot = container_of(link, struct sim_snapshot, link);
        if (snapshot->live && !snapshot->broken && !snapshot->ending && snapshot->failed_at > 0 &&
            snapshot->failed_at < failed_before_ns)
            sim_fail(sim, "snapshot %s cannot be read, and nobody says that it is broken (R4)", snapshot->name);
    }
}
