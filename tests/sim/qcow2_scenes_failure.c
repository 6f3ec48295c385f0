/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Writes that fail, and what becomes of the clusters that they had taken. */
#include "qcow2_scenes.h"

#include <errno.h>

#include "qcow2_scene.h"

/* New clusters: over nothing, or over the base; with edges that are copied; in two tables. And again, over what is there. */
static void write_here_and_there(struct scene *scene)
{
    for (unsigned i = 0; i < 8; i++) {
        const uint64_t at = (i % 4 + 1) * TABLE_BYTES - 2 * CLUSTER - 100,
                       length = i % 2 ? 5 * CLUSTER : TABLE_BYTES / 2;
        scene_start(scene, i == 5 ? REQUEST_WRITE_ZEROES : REQUEST_WRITE, at, length);
        if (i % 3 == 2)
            scene_go_on(scene);
    }
    scene_go_on(scene);
}

/* One change of the file fails. Nothing leaks when the image is closed; after a sync that failed, which fails for good, it
 * can't be. false: there are fewer changes. */
static bool one_change_fails(enum shape shape, uint64_t clusters, int status, uint64_t number)
{
    struct scene *scene = scene_begin("a failed write gives back", shape, number, clusters);
    scene->bad_number = number;
    scene->bad_status = status;
    write_here_and_there(scene);
    scene_start(scene, REQUEST_FLUSH, 0, 0);
    scene_go_on(scene);
    const bool more = scene->changes >= number;
    for (unsigned i = 0; i < scene->used; i++)
        if (!scene->steps[i].done)
            scene_fail(scene, "request %u never ended", scene->steps[i].value);
    scene_check(scene);
    if (scene->bad_for_good) {
        scene_kill(scene);
        scene_end(scene);
    } else {
        scene_end_exact(scene);
    }
    return more;
}

/* A page of a table that could not be written, and can't be the next time either: so the next commit fails. And there is
 * something for that to free. */
static void break_next_commit(struct scene *scene)
{
    scene_expect(scene, scene_start(scene, REQUEST_WRITE, 0, 8 * CLUSTER), 0);
    scene_expect(scene, scene_start(scene, REQUEST_WRITE, 2 * TABLE_BYTES, CLUSTER), 0);
    scene_expect(scene, scene_start(scene, REQUEST_FLUSH, 0, 0), 0);
    scene_expect(scene, scene_start(scene, REQUEST_DISCARD, 0, CLUSTER), 0);
    const uint64_t table = load_be64(world_file_bytes(scene->file) + L1_AT + 2 * 8) & QCOW2_PLACE_MASK;
    scene->fails = (struct pick){WORLD_WRITE, {table, CLUSTER}};
    scene->fail_times = 2;
    scene_expect(scene, scene_start(scene, REQUEST_WRITE, 2 * TABLE_BYTES + CLUSTER, CLUSTER), -EIO);
}

/* Data is on its way beside its table when there is no room to note what the table frees, and no commit makes any. The
 * clusters are nobody else's before that data has landed. */
static void table_fails_beside_data(void)
{
    struct scene *scene = scene_begin("a table fails beside its data", THROUGH, 1, FIRST_FREE);
    struct qcow2 *image = qcow2_of(scene->image);
    const unsigned freed_max = image->freed_max;
    break_next_commit(scene);
    image->freed_max = image->freed_count;
    scene->hold = (struct pick){WORLD_WRITE, {image->pool.ready[0].first * CLUSTER, CLUSTER}};
    const struct step *failing = scene_start(scene, REQUEST_WRITE, 16 * CLUSTER, CLUSTER);
    image->freed_max = freed_max;
    scene_go_on(scene);
    if (world_held(scene->world) != 1 || scene->fail_times > 0 || failing->done)
        scene_fail(scene, "the table did not fail beside its data");
    scene_expect(scene, scene_start(scene, REQUEST_FLUSH, 0, 0), 0);
    const struct step *other = scene_start(scene, REQUEST_WRITE, TABLE_BYTES, TABLE_BYTES);
    scene_expect(scene, other, 0);
    scene_forget_hooks(scene);
    world_let_go_all(scene->world);
    scene_expect(scene, failing, -EIO);
    if (!scene_reads_as(scene, other->req.range, other->value))
        scene_fail(scene, "data that failed is in somebody else's cluster");
    if (!scene_reads_as(scene, failing->req.range, 0))
        scene_fail(scene, "what failed has been mapped");
    scene_end_exact(scene);
}

/* There is no room to note what a failed write gives back: it has it behind the next commit; or that fails, too, and then
 * they leak. */
static void no_room_to_give_back(bool commit_fails)
{
    struct scene *scene = scene_begin("no room to give back", OVER_BASE, 1, FIRST_FREE);
    struct qcow2 *image = qcow2_of(scene->image);
    const unsigned freed_max = image->freed_max;
    break_next_commit(scene);
    scene->fail_times = commit_fails;
    image->freed_max = LIMIT_QCOW2_PACK_CLUSTERS + 1; /* when nothing else is there */
    scene->changes = 0;
    scene->bad_number = 1;
    scene->bad_status = -EIO;
    scene_expect(scene, scene_start(scene, REQUEST_WRITE, TABLE_BYTES / 2, CLUSTER), -EIO);
    image->freed_max = freed_max;
    if (commit_fails)
        scene_end(scene);
    else
        scene_end_exact(scene);
}

void qcow2_failure_scenes(void)
{
    static const uint64_t ends[] = {FIRST_FREE, PER_BLOCK - 20, COVERED - 20};
    for (unsigned i = 0; i < 3 * 3 * 2; i++)
        for (uint64_t number = 1; one_change_fails(i % 3, ends[i / 3 % 3], i / 9 ? -ENOSPC : -EIO, number);)
            number++;
    table_fails_beside_data();
    no_room_to_give_back(false);
    no_room_to_give_back(true);
}
