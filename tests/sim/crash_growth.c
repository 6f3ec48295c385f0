/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The disk grows, as vm/growth.c has it: announced, extended, held, recorded; one at a time, and no checkpoint is made
 * meanwhile. To the model the file has its new size in the step in which it gets it, and the guest when the disk has it.
 */
#include "crash.h"

uint64_t life_disk_size(const struct crash_life *life)
{
    return life->disk->node.size_bytes;
}

/* What was added, and the granule of the old end, may be reported from now on. */
static void file_grown(struct crash_sim *sim, uint64_t size)
{
    const uint64_t first = (sim->size - 1) / sim->granularity, last = (size - 1) / sim->granularity;
    crash_trace(sim, "the file grows from %llu to %llu bytes", (unsigned long long)sim->size, (unsigned long long)size);
    sim->stamp++;
    for (uint64_t at = first; at <= last; at++)
        sim->stamps[at] = sim->stamp;
    sim->size = size;
}

static void take_place(struct io_task *task)
{
    struct crash_life *life = container_of(task, struct crash_life, cut);
    life->holding = false;
    disk_grow(life->disk, life->sim->size);
    tracker_grow(life->tracker);
    disk_release(life->disk);
    life_op(life, ACT_GROWN, NULL);
}

static void drained(void *context)
{
    struct crash_life *life = context;
    life->cut.run = take_place;
    io_task_queue(life->io, &life->cut);
}

static void extended(struct node_extension *extension, int status)
{
    struct crash_life *life = container_of(extension, struct crash_life, extension);
    if (status < 0)
        crash_fail(life->sim, "%s", extension->error.text);
    if (life->dead)
        return;
    file_grown(life->sim, extension->size_bytes);
    life->holding = true;
    disk_hold(life->disk, drained, life);
}

void growth_answered(struct crash_op *op)
{
    struct crash_life *life = op->life;
    struct crash_sim *sim = life->sim;
    if (op->act == ACT_GROWN || op->op.status < 0 || crash_chance(sim, 100)) { /* done, or not done after all */
        if (op->act == ACT_ANNOUNCE && op->op.status == 0)
            tracker_forgo_growth(life->tracker);
        if (op->act == ACT_GROWN)
            sim->grow_to = 0;
        life->growing = false;
        return;
    }
    life->extension = (struct node_extension){.size_bytes = sim->grow_to, .done = extended};
    life->leaf->ops->extend(life->leaf, &life->extension);
}

void growth_act(struct crash_life *life)
{
    struct crash_sim *sim = life->sim;
    const uint64_t room = (sim->max_size - sim->size) / sim->alignment;
    if (!life->open || life->making || life->growing || sim->block_device || life->ops_busy >= CRASH_OPS || room == 0)
        return;
    uint64_t units = 1 + crash_below(sim, crash_chance(sim, 300) ? room : room < 64 ? room : 64);
    if (crash_chance(sim, 300)) /* to the end of a granule or behind it: its last block may have been a part of one */
        units = 1;
    sim->grow_to = sim->size + units * sim->alignment;
    life->growing = true;
    life_op(life, ACT_ANNOUNCE, NULL);
}
