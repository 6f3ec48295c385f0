/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Disks of the simulated VM grow at random moments, to the end of a block or into one, beside snapshots, guests and
 * operations on dirty bitmaps. What they lie on fails to grow, or its flush fails. Some have grown further meanwhile, and
 * are refused.
 */
#include <errno.h>

#include "sim.h"
#include "sim_leaf.h"

/* Whether a growth may fail for this reason. */
static bool may_fail(const struct sim_disk *disk, int code)
{
    const struct sim *sim = disk->sim;
    switch (code) {
    case ENOSPC: /* below */
    case EIO:
        return !sim->file_driver;
    case EBUSY: /* operations on dirty bitmaps, for as long as that */
        return sim->bitmaps_out > 0;
    case ENOTSUP: /* it has become larger meanwhile */
        return disk->grow_to < disk->size;
    case ESHUTDOWN:
        return sim->stopping;
    default:
        return false;
    }
}

static void grown(void *argument, uint64_t size_bytes, const struct error *err)
{
    struct sim_disk *disk = argument;
    struct sim *sim = disk->sim;
    sim_trace(sim, "%s has grown: %s", disk->name, err != NULL ? err->text : "done");
    if (err != NULL && (err->text[0] == 0 || !may_fail(disk, err->code)))
        sim_fail(sim, "%s does not grow for no good reason: %s (%d)", disk->name, err->text, err->code);
    if (err == NULL && (size_bytes != disk->grow_to || disk->size != size_bytes))
        sim_fail(sim, "%s was said to have grown to %llu bytes, and did not", disk->name,
                 (unsigned long long)size_bytes);
    if (disk->disk->node.size_bytes != disk->size || world_file_size(disk->file) != disk->size)
        sim_fail(sim, "%s has %llu bytes, and what it lies on %llu", disk->name,
                 (unsigned long long)disk->disk->node.size_bytes, (unsigned long long)world_file_size(disk->file));
    disk->grow_to = 0;
}

void growth_act(struct sim *sim)
{
    struct sim_disk *disk = &sim->disks[sim_below(sim, sim->disk_count)];
    const uint64_t room = (disk->max_size - disk->size) / 512;
    if (disk->block_device || disk->grow_to != 0 || room == 0)
        return;
    const uint64_t most = sim_chance(sim, 512) ? 8 : 64; /* many times rather than far */
    disk->grow_to = round_down(disk->size, 512) + 512 * (1 + sim_below(sim, room < most ? room : most));
    if (disk->grow_to > disk->max_size)
        disk->grow_to = disk->max_size;
    if (!sim->file_driver && sim_chance(sim, 128))
        sim_leaf_fail_growth(disk->leaf, sim_chance(sim, 512) ? -ENOSPC : -EIO);
    sim_trace(sim, "%s is to grow to %llu bytes", disk->name, (unsigned long long)disk->grow_to);
    vm_disk_grow(sim->vm, disk->name, disk->grow_to, grown, disk);
}
