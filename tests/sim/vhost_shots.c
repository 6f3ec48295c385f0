/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Snapshots of the disk in vhost_sim, taken, read and ended while the guest goes on; see vhost_sim.h. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/probe.h"
#include "vhost_sim.h"

void __real_cut_start(struct cut *cut);
void __wrap_cut_start(struct cut *cut);
void __real_disk_release(struct disk *disk);
void __wrap_disk_release(struct disk *disk);

static struct sim *sim_of(struct io *io)
{
    const struct stage *stage = world_context(world_of(io));
    return stage->owner;
}

void __wrap_cut_start(struct cut *cut)
{
    struct sim *sim = sim_of(cut->io);
    sim->cut = cut;
    sim->is_captured = false;
    __real_cut_start(cut);
}

/* The cut is done, nothing is in flight, and what was held starts only after this step: the disk is as it was at the cut. */
void __wrap_disk_release(struct disk *disk)
{
    struct sim *sim = sim_of(disk->node.io);
    if (sim->cut && atomic_load(&sim->cut->state) == CUT_DONE) {
        if (guest_busy(sim) > 0)
            PROBE(vhost_sim_cut_under_load);
        memcpy(sim->captured, world_file_bytes(sim->stage->files[0]), STAGE_DISK_BYTES);
        sim->is_captured = true;
    }
    __real_disk_release(disk);
}

static unsigned alive(const struct sim *sim)
{
    unsigned count = 0;
    for (unsigned i = 0; i < sim->shot_count; i++)
        count += !sim->shots[i].over;
    return count;
}

void shots_take(struct sim *sim)
{
    char name[16];
    if (sim->creating || alive(sim) == SIM_SHOTS_ALIVE || sim->shot_count == SIM_SHOTS)
        return;
    snprintf(name, sizeof name, "s%u", sim->shot_count);
    struct sim_shot *shot = &sim->shots[sim->shot_count++];
    sim->creating = true;
    shot->snapshot = stage_create(sim->stage, name, 0);
    sim_trace(sim, "snapshot %s is asked for", name);
}

void shots_settle(struct sim *sim)
{
    for (unsigned i = 0; i < sim->shot_count; i++) {
        struct sim_shot *shot = &sim->shots[i];
        if (shot->over || (shot->ending && shot->snapshot->deleted)) {
            shot->over = true;
            continue;
        }
        if (shot->there || !shot->snapshot->answered)
            continue;
        sim->creating = false;
        shot->there = shot->snapshot->created;
        shot->over = !shot->there;
        sim_trace(sim, "snapshot %s: %s", shot->snapshot->name, shot->there ? "there" : shot->snapshot->text);
        if (!shot->left && !shot->there && !sim->migration.on && strstr(shot->snapshot->text, "migrates"))
            sim_fail(sim, "the VM is here, and snapshot %s is not taken: %s", shot->snapshot->name,
                     shot->snapshot->text);
        if (shot->left && (shot->there || (!sim->failed && !sim->tight && !strstr(shot->snapshot->text, "migrates"))))
            sim_fail(sim, "snapshot %s was being made when the VM left: %s", shot->snapshot->name,
                     shot->there ? "it is there" : shot->snapshot->text);
        if (!shot->there)
            continue;
        if (!sim->is_captured)
            sim_fail(sim, "snapshot %s is there, and no disk was cut for it (C2)", shot->snapshot->name);
        shot->image = malloc(STAGE_DISK_BYTES);
        assert_non_null(shot->image);
        memcpy(shot->image, sim->captured, STAGE_DISK_BYTES);
        sim->cut = NULL;
        sim->result.shots++;
    }
}

static struct sim_shot *any(struct sim *sim)
{
    struct sim_shot *shot = sim->shot_count > 0 ? &sim->shots[sim_below(sim, sim->shot_count)] : NULL;
    return shot && shot->there && !shot->ending && !shot->over && shot->snapshot->views[0] ? shot : NULL;
}

static void check(struct sim *sim, struct sim_shot *shot, uint64_t block, uint64_t count)
{
    struct stage_request read = {.done = false};
    stage_read(sim->stage, &read, shot->snapshot->views[0], block, count);
    while (!read.done && !sim->stage->dead)
        if (!sim_step(sim))
            sim_fail(sim, "a read of snapshot %s never ends", shot->snapshot->name);
    if (!read.done)
        return;
    sim->result.checks++;
    if (read.status == 0 && memcmp(read.buffer, shot->image + block * STAGE_BLOCK, count * STAGE_BLOCK) != 0)
        sim_fail(sim, "snapshot %s is not as the disk was at its cut, at block %llu (R1)", shot->snapshot->name,
                 (unsigned long long)block);
    if (read.status != 0 && !sim->tight && !sim->failed)
        sim_fail(sim, "snapshot %s broke though there is room, and no device fails: %d", shot->snapshot->name,
                 read.status);
}

void shots_act(struct sim *sim)
{
    const uint64_t what = sim_below(sim, 100);
    struct sim_shot *shot = any(sim);
    if (what < 35) {
        shots_take(sim);
    } else if (shot && what < 50) {
        sim_trace(sim, "snapshot %s is to end", shot->snapshot->name);
        shot->ending = true;
        stage_delete(sim->stage, shot->snapshot);
    } else if (shot) {
        const uint64_t count = 1 + sim_below(sim, 4);
        check(sim, shot, sim_below(sim, STAGE_DISK_BYTES / STAGE_BLOCK - count + 1), count);
    }
}

/* What is left of it, in this daemon or the next one, answers nothing but errors. */
static void check_left(struct sim *sim, struct sim_shot *shot)
{
    struct stage_request read = {.done = false};
    if (!shot->snapshot->views[0] || shot->snapshot->deleted)
        return;
    stage_read(sim->stage, &read, shot->snapshot->views[0], sim_below(sim, STAGE_DISK_BYTES / STAGE_BLOCK), 1);
    while (!read.done && !sim->stage->dead)
        if (!sim_step(sim))
            sim_fail(sim, "a read of snapshot %s never ends", shot->snapshot->name);
    if (read.done && read.status == 0)
        sim_fail(sim, "snapshot %s is served, and its VM has left (R4)", shot->snapshot->name);
}

/* The daemon died in mid-migration: the VM might have gone on elsewhere, so nobody may read the snapshot. */
static bool is_forsaken(const struct sim *sim, const struct sim_shot *shot)
{
    struct snapshot_info info = {0};
    const struct snapshot *snapshot = sim->stage->dead ? NULL : vm_snapshot_find(sim->stage->vm, shot->snapshot->name);
    if (snapshot)
        snapshot_info(snapshot, &info);
    return info.reason && strstr(info.reason, "ended while the VM migrated");
}

void shots_left(struct sim *sim)
{
    shots_settle(sim);
    for (unsigned i = 0; i < sim->shot_count && !sim->stage->dead; i++) {
        struct sim_shot *shot = &sim->shots[i];
        if (shot->over || shot->ending)
            continue;
        if (!shot->there) { /* it is being made: nobody is told that it is there */
            PROBE(vhost_sim_left_in_the_making);
            shot->left = true;
            continue;
        }
        if (!shot->snapshot->broken && !is_forsaken(sim, shot))
            sim_fail(sim, "the VM has left, and snapshot %s lives on", shot->snapshot->name);
        if (!strstr(shot->snapshot->reason, "migrates"))
            PROBE(vhost_sim_left_broken_before);
        shot->left = shot->over = true;
        check_left(sim, shot);
    }
}

void shots_check_none_is_taken(struct sim *sim)
{
    if (sim->stage->dead || sim->creating || sim->shot_count == SIM_SHOTS)
        return;
    struct stage_snapshot *snapshot = stage_create(sim->stage, "late", 0);
    if (!snapshot->answered || snapshot->created || !strstr(snapshot->text, "migrates"))
        sim_fail(sim, "a snapshot is taken of a VM that has left: %s", snapshot->text);
    sim->stage->snapshot_count--; /* it was refused at once, so its place is free */
    *snapshot = (struct stage_snapshot){.answered = false};
}

void shots_died(struct sim *sim, bool migrated, bool stayed)
{
    for (unsigned i = 0; i < sim->shot_count; i++) {
        struct sim_shot *shot = &sim->shots[i];
        const bool here = shot->snapshot->views[0] != NULL;
        if (shot->over)
            continue;
        if (!shot->there && here)
            sim_fail(sim, "%s is there, and nobody was told of it (C2)", shot->snapshot->name);
        if (shot->there && !shot->ending && !here && !sim->forgetful)
            sim_fail(sim, "%s is not there any more (C11)", shot->snapshot->name);
        if (shot->ending && here)
            sim_fail(sim, "%s was to end, and is there again (C12)", shot->snapshot->name);
        const bool forsaken = here && is_forsaken(sim, shot);
        if (forsaken && stayed)
            sim_fail(sim, "%s broke for a migration, and there is none", shot->snapshot->name);
        if (here && migrated && !forsaken && !shot->left && !sim->tight && !sim->failed)
            sim_fail(sim, "%s lives on, and its VM may have been elsewhere meanwhile (R4)", shot->snapshot->name);
        shot->left = shot->left || forsaken;
        if (here)
            PROBE(vhost_sim_snapshot_adopted);
        if (shot->ending)
            PROBE(vhost_sim_snapshot_ended_before_death);
        shot->over = !here || forsaken;
    }
    for (unsigned i = 0; i < sim->shot_count; i++)
        if (sim->shots[i].left)
            check_left(sim, &sim->shots[i]);
    sim->creating = false;
    sim->cut = NULL;
}

void shots_check_all(struct sim *sim)
{
    for (unsigned i = 0; i < sim->shot_count && !sim->stage->dead; i++) {
        struct sim_shot *shot = &sim->shots[i];
        for (uint64_t at = sim_below(sim, 4);
             shot->there && !shot->ending && !shot->over && !sim->stage->dead && at < STAGE_DISK_BYTES / STAGE_BLOCK;
             at += 1 + sim_below(sim, 8))
            check(sim, shot, at, 1);
    }
}

void shots_end(struct sim *sim)
{
    for (unsigned i = 0; i < sim->shot_count; i++)
        free(sim->shots[i].image);
}
