/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The disk grows: on a bad disk, over what it once held, and while its tables are replaced. */
#include "qcow2_scenes.h"

#include <errno.h>

#include "base/limits.h"
#include "qcow2_scene.h"

static void extended(struct node_extension *extension, int status)
{
    container_of(extension, struct scene, extension)->extended = status;
}

static void extend(struct scene *scene, uint64_t size)
{
    scene->extension = (struct node_extension){.size_bytes = size, .done = extended};
    scene->extended = 1;
    world_act_as(scene->world, scene->io);
    scene->image->ops->extend(scene->image, &scene->extension);
    world_act_as(scene->world, NULL);
}

static void take_place(struct scene *scene)
{
    scene_go_on(scene);
    if (scene->extended != 0)
        scene_fail(scene, "the disk does not grow: %s", scene->extension.error.text);
    world_act_as(scene->world, scene->io);
    scene->image->ops->grow(scene->image, scene->extension.size_bytes);
    world_act_as(scene->world, NULL);
}

static void check_added(struct scene *scene, uint64_t from, uint64_t size)
{
    if (scene->image->size_bytes != size)
        scene_fail(scene, "the disk has %llu bytes", (unsigned long long)scene->image->size_bytes);
    for (uint64_t at = from; at < size; at += TABLE_BYTES) {
        const uint64_t left = size - at;
        if (!scene_reads_as(scene, (struct range){at, left < TABLE_BYTES ? left : TABLE_BYTES}, 0))
            scene_fail(scene, "what was added at %llu is not zero", (unsigned long long)at);
    }
}

/* One change of the file fails while the disk grows, or all from there on: it has one size or the other. false: as above. */
static bool grows_on_a_bad_disk(enum shape shape, uint64_t number, bool for_good, bool power)
{
    struct scene *scene = scene_begin("growing on a bad disk", shape, number, FIRST_FREE);
    struct step *before = scene_start(scene, REQUEST_WRITE, DISK_BYTES - CLUSTER, CLUSTER);
    scene_expect(scene, before, 0);
    scene_expect(scene, scene_start(scene, REQUEST_FLUSH, 0, 0), 0);
    scene->changes = 0;
    scene->bad_number = number;
    scene->bad_status = -EIO;
    scene->bad_for_good = for_good;
    extend(scene, GROWN_BYTES);
    struct step *meanwhile = scene_start(scene, REQUEST_WRITE, 2 * TABLE_BYTES, CLUSTER);
    scene_go_on(scene);
    const int status = scene->extended;
    const bool more = scene->changes >= number;
    scene->bad_number = scene->bad_for_good ? number : 0;
    if (status > 0 || !meanwhile->done)
        scene_fail(scene, "%s never ended", status > 0 ? "growing" : "the write");
    if (status < 0 && number % 2) {
        extend(scene, DISK_BYTES);
        scene_go_on(scene);
    }
    const bool back = status < 0 && scene->extended == 0;
    struct step *after = scene_start(scene, REQUEST_WRITE, 3 * TABLE_BYTES, CLUSTER);
    scene_go_on(scene);
    if (!after->done || (after->status < 0 && !scene->bad_for_good))
        scene_fail(scene, "the write after it: %d", after->status);
    const bool there[] = {true, meanwhile->status == 0 && !power, after->status == 0 && !power};
    const struct step *steps[] = {before, meanwhile, after};
    if (power)
        scene_lose_power(scene);
    else
        scene_kill(scene);
    const uint64_t size = scene->image->size_bytes;
    if ((size != DISK_BYTES && size != GROWN_BYTES) || (status == 0 && size == DISK_BYTES) ||
        (back && size != DISK_BYTES))
        scene_fail(scene, "the disk has %llu bytes", (unsigned long long)size);
    for (unsigned i = 0; i < 3; i++)
        if (there[i] && !scene_reads_as(scene, steps[i]->req.range, steps[i]->value))
            scene_fail(scene, "request %u was answered, and is lost", steps[i]->value);
    check_added(scene, DISK_BYTES, size);
    scene_end(scene);
    return more;
}

/* What a disk had behind its end before it was made smaller is gone. */
static void grows_over_old_data(enum shape shape, uint64_t lost)
{
    struct scene *scene = scene_begin("growing over old data", shape, 1, FIRST_FREE);
    const uint64_t small = DISK_BYTES - lost;
    for (unsigned i = 0; i < TABLES; i++)
        scene_expect(scene, scene_start(scene, REQUEST_WRITE, i * TABLE_BYTES, TABLE_BYTES), 0);
    scene_expect(scene, scene_start(scene, REQUEST_FLUSH, 0, 0), 0);
    uint8_t size[8];
    store_be64(size, small);
    world_file_fill(scene->file, 24, size, sizeof size);
    scene_kill(scene);
    extend(scene, GROWN_BYTES);
    take_place(scene);
    check_added(scene, small, GROWN_BYTES);
    if (!scene_reads_as(scene, (struct range){small - 200, 200}, scene->steps[TABLES - 1 - lost / TABLE_BYTES].value))
        scene_fail(scene, "what lies before the old end is gone");
    scene_lose_power(scene);
    check_added(scene, small, GROWN_BYTES);
    scene_end(scene);
}

/* The table of refcount blocks grows, too: one change of the header after the other. */
static void header_changes_twice(void)
{
    struct scene *scene = scene_begin("two changes of the header", THROUGH, 1, COVERED - 20);
    extend(scene, DISK_BYTES + CLUSTER);
    take_place(scene);
    scene->hold = (struct pick){WORLD_WRITE, {0, CLUSTER}};
    scene_start(scene, REQUEST_WRITE, 0, TABLE_BYTES);
    scene_go_on(scene);
    if (world_held(scene->world) != 1)
        scene_fail(scene, "the table of refcount blocks does not grow");
    extend(scene, DISK_BYTES + TABLE_BYTES); /* the L1 table is long enough */
    scene_go_on(scene);
    if (scene->extended != 1)
        scene_fail(scene, "the header was changed twice at the same time");
    scene->hold = (struct pick){0};
    world_let_go_all(scene->world);
    take_place(scene);
    scene_kill(scene);
    check_added(scene, DISK_BYTES, DISK_BYTES + TABLE_BYTES);
    scene_end(scene);
}

/* And the other way round: the L1 table gets another place while the table of refcount blocks does. */
static void header_is_taken_by_the_l1_table(void)
{
    struct scene *scene = scene_begin("two tables in the header", THROUGH, 1, COVERED - 20);
    scene->hold = (struct pick){WORLD_WRITE, {0, CLUSTER}};
    extend(scene, GROWN_BYTES);
    scene_go_on(scene);
    if (world_held(scene->world) != 1)
        scene_fail(scene, "the L1 table does not grow");
    struct step *step = scene_start(scene, REQUEST_WRITE, 2 * TABLE_BYTES, TABLE_BYTES);
    scene_go_on(scene);
    if (step->done)
        scene_fail(scene, "the table of refcount blocks did not have to grow");
    scene->hold = (struct pick){0};
    world_let_go_all(scene->world);
    take_place(scene);
    scene_expect(scene, step, 0);
    scene_kill(scene);
    check_added(scene, DISK_BYTES, GROWN_BYTES);
    if (!scene_reads_as(scene, step->req.range, step->value))
        scene_fail(scene, "what was written meanwhile is lost");
    scene_end(scene);
}

/* What an image can't have is refused, and nothing was changed. */
static void more_than_an_image_can_have(void)
{
    static const struct {
        uint64_t size;
        int status;
    } wrong[] = {{DISK_BYTES + 100, -EINVAL}, {LIMIT_DISK_BYTES + 512, -EFBIG}, {LIMIT_DISK_BYTES / 2, -EFBIG}};
    struct scene *scene = scene_begin("more than an image can have", THROUGH, 1, FIRST_FREE);
    scene->changes = 0;
    scene->bad_status = -EIO;
    for (unsigned i = 0; i < 3; i++) {
        extend(scene, wrong[i].size);
        scene_go_on(scene);
        if (scene->extended != wrong[i].status || scene->extension.error.code == 0)
            scene_fail(scene, "a size of %llu bytes: %d", (unsigned long long)wrong[i].size, scene->extended);
    }
    if (scene->changes > 0)
        scene_fail(scene, "a size that was refused changed the image");
    scene_end(scene);
}

void qcow2_growth_scenes(void)
{
    for (unsigned i = 0; i < 2 * 2 * 2; i++)
        for (uint64_t number = 1; grows_on_a_bad_disk(i % 2 ? OVER_BASE : THROUGH, number, i / 2 % 2, i / 4);)
            number++;
    grows_over_old_data(THROUGH, 100);
    grows_over_old_data(THROUGH, TABLE_BYTES + 100);
    grows_over_old_data(OVER_BASE, 5 * CLUSTER - 100);
    grows_over_old_data(OLD_OVER_BASE, 5 * CLUSTER - 100);
    grows_over_old_data(WRITE_BACK, 3 * TABLE_BYTES);
    header_changes_twice();
    header_is_taken_by_the_l1_table();
    more_than_an_image_can_have();
}
