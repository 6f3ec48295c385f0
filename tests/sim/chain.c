/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Dependent writes over two disks (L2): number n goes to the first disk, and only when that is acknowledged to the second
 * one; then n+1. Of any instant at all it holds that first >= second >= first-1; so it must hold of every snapshot. And
 * a snapshot has at least what was acknowledged before its creation was called, and nothing that was issued after that
 * returned.
 */
#include <string.h>

#include "sim.h"

static void chain_done(struct request *req, int status);

static void chain_write(struct chain *chain)
{
    struct sim_disk *disk = chain->disks[chain->side];
    for (unsigned i = 0; i < sizeof(chain->sector) / 8; i++)
        memcpy(chain->sector + 8 * i, &chain->number, 8);
    chain->iov = (struct iovec){chain->sector, sizeof(chain->sector)};
    chain->req = (struct request){.kind = REQUEST_WRITE,
                                  .range = {chain->offset, sizeof(chain->sector)},
                                  .iov = &chain->iov,
                                  .iov_count = 1,
                                  .done = chain_done};
    chain->issued[chain->side] = chain->number;
    chain->issued_ns = world_now(chain->sim->world);
    oracle_touch(disk, chain->req.range);
    node_submit(&disk->disk->node, &chain->req);
}

static void chain_crossed(struct io_message *message)
{
    chain_write(container_of(message, struct chain, cross));
}

static void chain_next(struct chain *chain)
{
    chain->side = chain->side == 0 ? 1 : 0;
    if (chain->side == 0) {
        if (chain->sim->requests_left == 0) {
            chain->busy = false;
            return;
        }
        chain->number++;
    }
    if (chain->disks[0]->io == chain->disks[1]->io) {
        chain_write(chain);
        return;
    }
    chain->cross.deliver = chain_crossed;
    io_post(chain->disks[chain->side]->io, &chain->cross);
}

static void chain_done(struct request *req, int status)
{
    struct chain *chain = container_of(req, struct chain, req);
    struct sim_disk *disk = chain->disks[chain->side];
    if (status != 0)
        sim_fail(chain->sim, "%s: a dependent write failed with %d", disk->name, status);
    if (memcmp(world_file_bytes(disk->file) + chain->offset, chain->sector, sizeof(chain->sector)) != 0)
        sim_fail(chain->sim, "%s: a dependent write was acknowledged and is not on the disk", disk->name);
    memcpy(disk->model + chain->offset, chain->sector, sizeof(chain->sector));
    bitmaps_written(disk, chain->req.range, chain->issued_ns);
    disk->counters.writes++;
    disk->counters.written_bytes += sizeof(chain->sector);
    chain->acknowledged[chain->side] = chain->number;
    chain_next(chain);
}

void chains_create(struct sim *sim)
{
    sim->chain_count = SIM_CHAINS;
    for (unsigned i = 0; i < sim->chain_count; i++) {
        struct chain *chain = &sim->chains[i];
        unsigned first = (unsigned)sim_below(sim, sim->disk_count);
        chain->sim = sim;
        chain->offset = 512 * i;
        chain->disks[0] = &sim->disks[first];
        chain->disks[1] = &sim->disks[(first + 1) % sim->disk_count];
    }
}

void chain_start(struct chain *chain)
{
    chain->number = 1;
    chain->busy = true;
    chain_write(chain);
}

void chains_note_first(struct sim *sim, struct sim_snapshot *snapshot)
{
    for (unsigned i = 0; i < sim->chain_count; i++)
        memcpy(snapshot->first[i], sim->chains[i].acknowledged, sizeof(snapshot->first[i]));
}

void chains_note_last(struct sim *sim, struct sim_snapshot *snapshot)
{
    for (unsigned i = 0; i < sim->chain_count; i++)
        memcpy(snapshot->last[i], sim->chains[i].issued, sizeof(snapshot->last[i]));
}

static uint64_t number_in(const struct sim_snapshot *snapshot, const struct chain *chain, unsigned side)
{
    uint64_t number;
    memcpy(&number, snapshot->parts[chain->disks[side]->index].image + chain->offset, 8);
    return number;
}

void chains_check(struct sim *sim, const struct sim_snapshot *snapshot)
{
    for (unsigned i = 0; i < sim->chain_count; i++) {
        const struct chain *chain = &sim->chains[i];
        uint64_t numbers[2] = {number_in(snapshot, chain, 0), number_in(snapshot, chain, 1)};
        for (unsigned side = 0; side < 2; side++)
            if (numbers[side] < snapshot->first[i][side] || numbers[side] > snapshot->last[i][side])
                sim_fail(sim,
                         "snapshot %s has write %llu of %s; %llu was acknowledged before it was asked for, %llu issued "
                         "before it was there",
                         snapshot->name, (unsigned long long)numbers[side], chain->disks[side]->name,
                         (unsigned long long)snapshot->first[i][side], (unsigned long long)snapshot->last[i][side]);
        if (numbers[0] < numbers[1] || numbers[1] + 1 < numbers[0])
            sim_fail(sim, "snapshot %s is not one instant: %s has write %llu, %s, which was written after it, %llu",
                     snapshot->name, chain->disks[0]->name, (unsigned long long)numbers[0], chain->disks[1]->name,
                     (unsigned long long)numbers[1]);
    }
}
