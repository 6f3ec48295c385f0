/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Images of version 2, over a base: their header ends after 72 bytes, and what lies where later ones have their features is
 * the name of the base. There are no zero clusters: zeroes are data, and a discard would show the base.
 */
#include "qcow2_scenes.h"

#include <errno.h>
#include <string.h>

#include "qcow2_scene.h"

/* What was zeroed stays so, and nothing else became zero. */
static void zeroes_are_data(bool power)
{
    struct scene *scene = scene_begin("zeroes in version 2", OLD_OVER_BASE, 1, FIRST_FREE);
    const struct range zeroed = {TABLE_BYTES - 700, 3000}, discarded = {4 * TABLE_BYTES, 8 * CLUSTER};
    scene_expect(scene, scene_start(scene, REQUEST_WRITE_ZEROES, zeroed.start, zeroed.length), 0);
    scene_expect(scene, scene_start(scene, REQUEST_DISCARD, discarded.start, discarded.length), 0);
    scene->flags = REQUEST_FAST_ZERO;
    scene_expect(scene, scene_start(scene, REQUEST_WRITE_ZEROES, discarded.start, discarded.length), -EOPNOTSUPP);
    scene->flags = 0;
    scene_expect(scene, scene_start(scene, REQUEST_FLUSH, 0, 0), 0);
    if (power)
        scene_lose_power(scene);
    else
        scene_kill(scene);
    if (!scene_reads_as(scene, zeroed, 0))
        scene_fail(scene, "the zeroes are lost");
    if (!scene_reads_as(scene, (struct range){zeroed.start - CLUSTER, CLUSTER}, OF_BASE) ||
        !scene_reads_as(scene, (struct range){range_end(zeroed), CLUSTER}, OF_BASE) ||
        !scene_reads_as(scene, discarded, OF_BASE))
        scene_fail(scene, "the base does not show any more");
    scene_end(scene);
}

/* What no image of this version has is damage: the flag of zero clusters is a reserved bit. */
static void zero_flag_is_refused(void)
{
    struct scene *scene = scene_begin("a zero flag in version 2", OLD_OVER_BASE, 1, FIRST_FREE);
    scene_expect(scene, scene_start(scene, REQUEST_WRITE, 0, 2 * CLUSTER), 0);
    scene_expect(scene, scene_start(scene, REQUEST_FLUSH, 0, 0), 0);
    scene_kill(scene);
    const uint64_t table = load_be64(world_file_bytes(scene->file) + L1_AT) & QCOW2_PLACE_MASK;
    uint8_t entry[8];
    memcpy(entry, world_file_bytes(scene->file) + table, sizeof entry);
    entry[7] |= QCOW2_ALL_ZERO;
    world_file_fill(scene->file, table, entry, sizeof entry);
    scene_expect(scene, scene_start(scene, REQUEST_READ, 0, CLUSTER), -EIO);
    scene_expect(scene, scene_start(scene, REQUEST_WRITE, 0, CLUSTER), -EIO);
    scene_expect(scene, scene_start(scene, REQUEST_WRITE, CLUSTER, CLUSTER), 0);
    scene_expect(scene, scene_start(scene, REQUEST_FLUSH, 0, 0), 0);
    entry[7] &= (uint8_t)~QCOW2_ALL_ZERO;
    world_file_fill(scene->file, table, entry, sizeof entry);
    scene_kill(scene);
    scene_end(scene);
}

void qcow2_old_scenes(void)
{
    zeroes_are_data(false);
    zeroes_are_data(true);
    zero_flag_is_refused();
}
