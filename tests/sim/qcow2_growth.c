/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The virtual disk grows. What was answered is so after any death, and what was not is either way; what is added reads as
 * zeroes, whatever the image had there, or its base. An attempt that fails, or is given up, may be taken back.
 */
#include "qcow2_sim.h"

static void answered(struct node_extension *extension, int status)
{
    struct growth *growth = container_of(extension, struct growth, extension);
    struct run *run = container_of(growth, struct run, growth);
    if (!growth->busy)
        run_fail(run, "an extension was answered twice");
    growth->busy = false;
    growth->status = status;
    if (status == 0 && extension->size_bytes == run->size)
        growth->other = 0;
    growth->is_other = status == 0 && growth->other;
    if (status < 0 && (!run->error_per_1024 || extension->error.code != -status))
        run_fail(run, "the disk does not grow (%d): %s", status, extension->error.text);
}

static void extend(struct run *run, uint64_t size)
{
    struct growth *growth = &run->growth;
    growth->extension = (struct node_extension){.size_bytes = size, .done = answered};
    growth->busy = true;
    growth->is_other = false;
    if (size != run->size)
        growth->other = size;
    run->image->ops->extend(run->image, &growth->extension);
    if (!growth->busy)
        run_fail(run, "an extension was answered inside the call");
}

static bool is_answered(void *argument)
{
    return !((struct run *)argument)->growth.busy;
}

static void wait_for_answer(struct run *run)
{
    world_act_as(run->world, NULL);
    if (!world_run_until(run->world, is_answered, run, 60 * NS_PER_S))
        run_fail(run, "an extension was never answered");
    world_act_as(run->world, run->io);
}

void run_growth(struct run *run)
{
    const uint64_t room = (run->max_size - run->size) / 512;
    if (run->growth.other) /* once more */
        extend(run, run->growth.other);
    else if (room > 0)
        extend(run, run->size + 512 * (1 + below(run, below(run, 3) ? room : room < 8 ? room : 8)));
}

void run_growth_settle(struct run *run)
{
    struct growth *growth = &run->growth;
    wait_for_answer(run);
    if (!growth->other)
        return;
    if (growth->status == 0 && below(run, 4) > 0) {
        run->image->ops->grow(run->image, growth->other);
        run->size = growth->other;
        *growth = (struct growth){0};
        return;
    }
    if (growth->status < 0)
        run->crashed = true; /* clusters may leak */
    if (growth->status < 0 && below(run, 3) == 0)
        return;
    extend(run, run->size);
    wait_for_answer(run);
    run->crashed |= growth->status < 0;
}

void run_growth_opened(struct run *run)
{
    struct growth *growth = &run->growth;
    const uint64_t size = run->image->size_bytes;
    if (size != run->size && size != growth->other)
        run_fail(run, "the disk has %llu bytes, not %llu", (unsigned long long)size, (unsigned long long)run->size);
    if (growth->is_other && size != growth->other)
        run_fail(run, "the disk has its old size, %llu, though it was told to have %llu", (unsigned long long)size,
                 (unsigned long long)growth->other);
    run->size = size;
    *growth = (struct growth){0};
}
