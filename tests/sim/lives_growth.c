/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Disks that grow during the many lives, and what they are when one of these ends. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

#include "base/probe.h"
#include "lives.h"

void __real_disk_grow(struct disk *disk, uint64_t size_bytes);
void __wrap_disk_grow(struct disk *disk, uint64_t size_bytes);

/* What was added counts as changed, and so does the block before, which may have been a part of one. */
static void take_size(struct lives_disk *disk, uint64_t size)
{
    for (uint64_t i = disk->size - 1; i < size; i++)
        disk->blocks[i].stamp = ++disk->lives->stamps;
    disk->size = size;
}

void __wrap_disk_grow(struct disk *disk, uint64_t size_bytes)
{
    const struct stage *stage = world_context(world_of(disk->node.io));
    struct lives *lives = stage->owner;
    struct lives_disk *mine = &lives->disks[disk->name[2] - 'a'];
    __real_disk_grow(disk, size_bytes);
    if (size_bytes != mine->grow_to * STAGE_BLOCK)
        lives_fail(lives, "disk %s grows to a size that nobody asked for", disk->name);
    lives_trace(lives, "disk %s grows to %llu blocks", disk->name, (unsigned long long)mine->grow_to);
    take_size(mine, mine->grow_to);
}

static void grown(void *argument, uint64_t size_bytes, const struct error *err)
{
    struct lives_disk *disk = argument;
    struct lives *lives = disk->lives;
    const bool busy = err && err->code == EBUSY && lives->bitmaps_out > 0;
    if (err && !busy)
        lives_fail(lives, "a disk does not grow: %s", err->text);
    if (!err && size_bytes != disk->size * STAGE_BLOCK)
        lives_fail(lives, "a disk was said to have grown, and did not");
    disk->grow_to = 0;
}

void growth_act(struct lives *lives)
{
    struct stage *stage = lives->stage;
    const unsigned index = (unsigned)lives_below(lives, STAGE_DISKS);
    struct lives_disk *disk = &lives->disks[index];
    const uint64_t room = lives->blocks - disk->size;
    if (disk->grow_to || room == 0 || lives_chance(lives, 512))
        return;
    disk->grow_to = disk->size + 1 + lives_below(lives, room < 12 ? room : 12);
    lives_trace(lives, "disk %u is to grow to %llu blocks", index, (unsigned long long)disk->grow_to);
    world_act_as(stage->world, stage->control);
    vm_disk_grow(stage->vm, index == 0 ? "vda" : "vdb", disk->grow_to * STAGE_BLOCK, grown, disk);
    world_act_as(stage->world, NULL);
}

void growths_died(struct lives *lives)
{
    for (unsigned i = 0; i < STAGE_DISKS; i++) {
        struct lives_disk *disk = &lives->disks[i];
        const uint64_t size = lives->stage->disks[i]->node.size_bytes / STAGE_BLOCK;
        if (disk->grow_to)
            PROBE(restart_death_while_a_disk_grows);
        if (size != disk->size && size != disk->grow_to)
            lives_fail(lives, "disk %u has %llu blocks, not %llu", i, (unsigned long long)size,
                       (unsigned long long)disk->size);
        if (size != disk->size) {
            PROBE(restart_growth_taken_over);
            take_size(disk, size);
        }
        disk->grow_to = 0;
    }
}

uint64_t growth_place(struct lives *lives, uint64_t size, uint64_t count)
{
    const uint64_t first = lives->stage->disk_bytes / STAGE_BLOCK;
    return size >= first + count && lives_chance(lives, 200) ? first + lives_below(lives, size - first - count + 1) : 0;
}
