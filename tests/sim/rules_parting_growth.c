/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A disk grows, and in each moment of that its guest stops to go on elsewhere, or its VMM hangs up; and in each moment after
 * that its daemon is killed. A disk that grows goes on growing (away.c); its size is the old one or the new one for all who
 * know it, what it gains is dirty (C22), and nobody waits for anybody for ever.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "site.h"
#include "vm/checkpoints.h"
#include "vm/vm_private.h"

enum { NEW_BYTES = 2 * STAGE_DISK_BYTES, ADDED = STAGE_DISK_BYTES / STAGE_BLOCK + 3, NEVER = 0 };

struct story {
    struct stage *stage;
    struct site site;
    bool answered, grown, checkpoint;
    unsigned told; /* front-ends, of a size */
};

static void checkpoint_made(void *argument, const struct checkpoint_id *id, const struct error *err)
{
    struct story *story = argument;
    assert_true(id && !err);
    story->checkpoint = true;
}

static void make_checkpoint(void *argument)
{
    struct story *story = argument;
    vm_checkpoint_create(story->stage->vm, "c", checkpoint_made, story);
}

static void grow_ended(void *argument, uint64_t size_bytes, const struct error *err)
{
    struct story *story = argument;
    story->answered = true;
    story->grown = !err && size_bytes == NEW_BYTES;
}

static void grow(void *argument)
{
    struct story *story = argument;
    story->answered = story->grown = false;
    vm_disk_grow(story->stage->vm, "vda", NEW_BYTES, grow_ended, story);
}

static void tell_fronts(void *context, const struct disk *disk, uint64_t old_bytes, uint64_t size_bytes)
{
    struct story *story = ((struct stage *)context)->owner;
    assert_true(old_bytes == STAGE_DISK_BYTES && size_bytes == NEW_BYTES);
    vhost_exports_resized(&story->site.exports, disk);
    story->told++;
}

static void check_size(const struct stage *stage, uint64_t size_bytes)
{
    assert_int_equal(stage->disks[0]->node.size_bytes, size_bytes);
    assert_int_equal(stage->disks[0]->leaf->size_bytes, size_bytes);
    assert_int_equal(world_file_size(stage->files[0]), size_bytes);
}

/* The guest is here, and uses what was added; a snapshot since the checkpoint has that, or all. */
static void check_goes_on(struct story *story)
{
    struct stage *stage = story->stage;
    struct snapshot_disk_info info;
    const struct snapshot_options options = {.since = "c"};
    check_size(stage, NEW_BYTES);
    front_write(&story->site, 0, ADDED, 70);
    STAGE_STEP_UNTIL(stage, front_has_written(&story->site.fronts[0]));
    struct stage_snapshot *snapshot = stage_create_with(stage, "s", &options);
    stage_settle(stage);
    assert_true(snapshot->created);
    snapshot_disk_info(vm_snapshot_find(stage->vm, "s"), 0, &info);
    assert_true(info.incremental && info.dirty_bytes >= NEW_BYTES - STAGE_DISK_BYTES);
    front_write(&story->site, 0, ADDED, 71);
    STAGE_STEP_UNTIL(stage, front_has_written(&story->site.fronts[0]));
    assert_int_equal(stage_value(stage, snapshot, 0, ADDED), 70);
    assert_int_equal(world_file_bytes(stage->files[0])[(size_t)ADDED * STAGE_BLOCK], 71);
}

static void check_death(struct story *story)
{
    struct stage *stage = story->stage;
    site_restart(&story->site);
    const uint64_t size_bytes = stage->disks[0]->node.size_bytes;
    assert_true(size_bytes == STAGE_DISK_BYTES || size_bytes == NEW_BYTES);
    check_size(stage, size_bytes);
    world_call(stage->control, grow, story); /* takes over what is there, or grows */
    stage_settle(stage);
    assert_true(story->answered && story->grown);
    check_goes_on(story);
}

static void check_life(struct story *story, bool hangs_up)
{
    struct stage *stage = story->stage;
    stage_settle(stage);
    assert_true(story->answered && story->grown);
    assert_int_equal(story->told, 1);
    assert_int_equal(story->site.exports.away, !hangs_up);
    for (unsigned i = 0; i < STAGE_DISKS; i++) {
        if (hangs_up) {
            front_connect(&story->site, i);
            front_set_up(&story->site, i, true);
            front_start(&story->site, i);
        } else {
            assert_true(story->site.fronts[i].answered);
            front_go_on(&story->site, i);
        }
    }
    stage_settle(stage);
    check_goes_on(story);
}

/* True: it had grown by then. */
static bool part_after(unsigned steps, bool hangs_up, unsigned die_after)
{
    const struct stage_options options = {.disk_count = 2, .restartable = true, .tracked = true};
    void *state = (void *)(uintptr_t)&options;
    struct story story = {.told = 0};
    assert_int_equal(stage_set_up(&state), 0);
    struct stage *stage = story.stage = state;
    stage->owner = &story;
    stage->vm->options.hooks.disk_grown = tell_fronts;
    site_begin(&story.site, stage, true);
    world_call(stage->control, make_checkpoint, &story);
    STAGE_STEP_UNTIL(stage, story.checkpoint);
    stage_settle(stage);
    world_call(stage->control, grow, &story);
    for (unsigned i = 0; i < steps; i++)
        (void)world_step(stage->world);
    const bool had_grown = story.answered;
    for (unsigned i = 0; i < STAGE_DISKS; i++) {
        if (hangs_up)
            front_hang_up(&story.site, &story.site.fronts[i]);
        else
            front_stop(&story.site, i);
    }
    for (unsigned i = 1; i < die_after; i++)
        (void)world_step(stage->world);
    if (die_after != NEVER)
        check_death(&story);
    else
        check_life(&story, hangs_up);
    site_end(&story.site);
    stage_tear_down(&state);
    return had_grown;
}

static void in_each_moment(bool hangs_up)
{
    unsigned steps = 0;
    for (bool had_grown = false; !had_grown; steps++) {
        had_grown = part_after(steps, hangs_up, NEVER);
        (void)part_after(steps, hangs_up, 1 + steps * 7 % 29);
    }
    assert_true(steps > 10);
}

static void c22_the_guest_stops(void **state)
{
    (void)state;
    in_each_moment(false);
}

static void c22_the_vmm_hangs_up(void **state)
{
    (void)state;
    in_each_moment(true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(c22_the_guest_stops),
        cmocka_unit_test(c22_the_vmm_hangs_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
