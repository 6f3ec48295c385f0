/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What writes of a guest cost the file: so many writes and syncs for so many requests at once, while there are clusters
 * that were counted ahead.
 *
 *     to clusters that are there                  themselves
 *     to new ones, over zeroes                    and two writes for a table: the first change, and all that came meanwhile
 *     to new ones, scattered over many tables     and at most one write for each
 *     to new ones, over a base                    and syncs before their tables, fewer than requests: they share them
 *     written back                                themselves, until a flush
 */
#include "qcow2_scenes.h"

#include <stdlib.h>

#include "qcow2_scene.h"

enum { AT_ONCE = 12, AHEAD = 64, SHARED = 9 };

struct cost {
    unsigned writes, syncs;
};

static struct step *write_again(struct scene *scene, unsigned number, uint64_t at)
{
    free(scene->steps[number].iov.iov_base);
    scene->steps[number].iov.iov_base = NULL;
    scene->used = number;
    return scene_start(scene, REQUEST_WRITE, at, CLUSTER);
}

static void count_writes(struct scene *scene, const char *where, uint64_t apart, struct cost most)
{
    const struct cost before = {scene->writes, scene->syncs};
    for (unsigned i = 0; i < AT_ONCE; i++)
        write_again(scene, i, 2 * CLUSTER + i * apart);
    for (unsigned i = 0; i < AT_ONCE; i++)
        scene_expect(scene, &scene->steps[i], 0);
    const struct cost cost = {scene->writes - before.writes, scene->syncs - before.syncs};
    if (cost.writes > most.writes || cost.syncs > most.syncs)
        scene_fail(scene, "%d writes to clusters that are %s: %u writes of the file and %u syncs, more than %u and %u",
                   AT_ONCE, where, cost.writes, cost.syncs, most.writes, most.syncs);
}

static void writes_at_once(enum shape shape, uint64_t seed, uint64_t apart, struct cost beside)
{
    struct scene *scene = scene_begin("what writes cost", shape, seed, FIRST_FREE);
    struct qcow2 *image = qcow2_of(scene->image);
    image->pool.batch = image->pool.batch_max = AHEAD;
    for (unsigned i = 0; i < TABLES; i++) /* all tables are there */
        scene_expect(scene, write_again(scene, 0, i * TABLE_BYTES), 0);
    count_writes(scene, "new", apart, (struct cost){AT_ONCE + beside.writes, beside.syncs});
    count_writes(scene, "there", apart, (struct cost){AT_ONCE, 0});
    scene_end_exact(scene);
}

void qcow2_cost_scenes(void)
{
    for (uint64_t seed = 1; seed <= 8; seed++) {
        writes_at_once(THROUGH, seed, CLUSTER, (struct cost){2, 0});
        writes_at_once(THROUGH, seed, TABLE_BYTES / 2, (struct cost){AT_ONCE, 0});
        writes_at_once(OVER_BASE, seed, CLUSTER, (struct cost){SHARED, SHARED});
        writes_at_once(WRITE_BACK, seed, CLUSTER, (struct cost){0, 0});
    }
}
