/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What happens to the VM at random moments, on the control thread: snapshots are asked for (with a lease or without, with
 * short and long drains, with names that are taken), deleted, lose their client, also while they are made; a write gets
 * stuck in the disk; threads hang for a while.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sim.h"

static struct sim_snapshot *snapshot_new(struct sim *sim, const char *name)
{
    struct sim_snapshot *snapshot = calloc(1, sizeof(*snapshot));
    if (snapshot == NULL)
        abort();
    snapshot->sim = sim;
    snprintf(snapshot->name, sizeof(snapshot->name), "%s", name);
    list_append(&sim->snapshots, &snapshot->link);
    sim->alive++;
    return snapshot;
}

struct sim_snapshot *sim_snapshot_find(struct sim *sim, const char *name)
{
    list_each (link, &sim->snapshots) {
        struct sim_snapshot *snapshot = container_of(link, struct sim_snapshot, link);
        if (strcmp(snapshot->name, name) == 0 && !snapshot->ended && !snapshot->duplicate)
            return snapshot;
    }
    return NULL;
}

void sim_snapshot_ended(struct sim_snapshot *snapshot)
{
    struct sim *sim = snapshot->sim;
    if (snapshot->views != 0 || snapshot->ended)
        sim_fail(sim, "snapshot %s ended before its exports, or twice", snapshot->name);
    snapshot->ended = true;
    sim->alive--;
    list_remove(&snapshot->link);
    oracle_free_images(snapshot);
    free(snapshot);
}

/* Whether a snapshot may be refused for this reason. */
static bool may_be_refused(const struct sim_snapshot *snapshot, int code)
{
    const struct sim *sim = snapshot->sim;
    if (snapshot->duplicate)
        return code == EEXIST || (code == ESHUTDOWN && sim->stopping);
    switch (code) {
    case ETIMEDOUT:
        return snapshot->may_time_out || snapshot->ending; /* told of the one or the other */
    case EACCES:                                           /* of a cache file */
        return sim->cache.refused > 0;
    case EINVAL:
        return snapshot->no_bitmap;
    case ENOSPC:
        return sim->may_break || sim->cache.refused > 0;
    case EADDRINUSE:
        return snapshot->publish_failed;
    case ECANCELED: /* its client is gone */
        return snapshot->ending && snapshot->leased;
    case ESHUTDOWN:
        return sim->stopping;
    default:
        return false;
    }
}

static void check_info(struct sim *sim, const struct sim_snapshot *snapshot, const struct snapshot *created)
{
    struct snapshot_info info;
    snapshot_info(created, &info);
    if (strcmp(info.name, snapshot->name) != 0 || info.state != SNAPSHOT_LIVE || info.leased != snapshot->leased ||
        info.cut_attempts == 0 || strlen(info.uuid) != 36)
        sim_fail(sim, "snapshot %s says something wrong of itself", snapshot->name);
    if (vm_snapshot_find(sim->vm, snapshot->name) != created)
        sim_fail(sim, "snapshot %s was created and cannot be found", snapshot->name);
}

static void create_done(void *argument, struct snapshot *created, const struct error *err)
{
    struct sim_snapshot *snapshot = argument;
    struct sim *sim = snapshot->sim;
    if (snapshot->answered)
        sim_fail(sim, "the creation of %s was answered twice", snapshot->name);
    snapshot->answered = true;
    sim->creating--;
    bitmaps_limited(sim, snapshot);
    sim_trace(sim, "create %s: %s", snapshot->name, created != NULL ? "done" : err->text);
    if (created == NULL) {
        if (err->text[0] == 0 || !may_be_refused(snapshot, err->code))
            sim_fail(sim, "snapshot %s was refused for no good reason: %s (%d)", snapshot->name, err->text, err->code);
        sim->refused++;
        sim_snapshot_ended(snapshot);
        return;
    }
    if (snapshot->duplicate || snapshot->ending)
        sim_fail(sim, "snapshot %s was created, and should have been refused", snapshot->name);
    if (!snapshot->images_taken)
        sim_fail(sim, "snapshot %s was created, and never published", snapshot->name);
    snapshot->live = true;
    sim->created++;
    sim->last_created = sim->last_created || (sim->requests_left < 60 && sim->attempts >= 3);
    chains_note_last(sim, snapshot);
    chains_check(sim, snapshot);
    check_info(sim, snapshot, created);
}

static void create(struct sim *sim)
{
    char name[24];
    struct sim_snapshot *taken = list_empty(&sim->snapshots) ? NULL
                                                             : list_first(&sim->snapshots, struct sim_snapshot, link);
    bool duplicate = taken != NULL && !taken->duplicate && sim_chance(sim, 50);
    snprintf(name, sizeof(name), "s%u", sim->names);
    struct sim_snapshot *snapshot = snapshot_new(sim, duplicate ? taken->name : name);
    struct snapshot_options options = {.name = snapshot->name};
    snapshot->duplicate = duplicate;
    sim->names += !duplicate;
    if (sim_chance(sim, 256)) {
        snapshot->leased = true;
        options.lease = snapshot;
    }
    if (sim->impatient && sim_chance(sim, 512)) {
        options.drain_ns = (1 + sim_below(sim, 20)) * NS_PER_MS / (sim_chance(sim, 512) ? 1 : 10);
        snapshot->may_time_out = true;
        if (sim_chance(sim, 700))
            options.total_ns = options.drain_ns + sim_below(sim, 4) * NS_PER_MS;
    }
    struct node *targets[SIM_DISKS];
    if (sim_chance(sim, sim->alive == 1 ? 400 : 100)) { /* alone, it is the only one that needs anything */
        if (!sim->waits_for_targets)                    /* as long as a write may wait at all */
            sim->patience_ns += sim->cbw_timeout_ns > 0 ? sim->cbw_timeout_ns : CBW_TIMEOUT_DEFAULT_NS;
        sim->waits_for_targets = true;
        for (unsigned i = 0; i < sim->disk_count; i++)
            targets[i] = target_create(snapshot, &sim->disks[i]);
        options.through = targets;
        options.through_always = sim_chance(sim, 512);
    }
    if (!duplicate && sim_chance(sim, 200))
        options.bitmap = bitmaps_limit(sim, snapshot);
    chains_note_first(sim, snapshot);
    sim->creating++;
    sim->attempts += !duplicate;
    sim_trace(sim, "create %s (drain %llu us)", snapshot->name, (unsigned long long)(options.drain_ns / 1000));
    vm_snapshot_create(sim->vm, &options, create_done, snapshot);
}

static struct sim_snapshot *random_snapshot(struct sim *sim)
{
    if (sim->alive == 0)
        return NULL;
    uint64_t index = sim_below(sim, sim->alive);
    list_each (link, &sim->snapshots) {
        if (index-- == 0)
            return container_of(link, struct sim_snapshot, link);
    }
    return NULL;
}

static void delete_done(void *argument, const struct error *err)
{
    struct sim *sim = argument;
    if (err != NULL)
        sim_fail(sim, "a snapshot was not deleted: %s", err->text);
}

static void refused_done(void *argument, const struct error *err)
{
    struct sim *sim = argument;
    if (err == NULL || (err->code != EBUSY && err->code != ENOENT) || err->text[0] == 0)
        sim_fail(sim, "a snapshot that is not there, or not ready, was deleted");
}

static void delete_one(struct sim *sim, struct sim_snapshot *snapshot)
{
    if (snapshot == NULL || snapshot->duplicate)
        return;
    if (!snapshot->live || snapshot->ending) {
        vm_snapshot_delete(sim->vm, snapshot->name, refused_done, sim);
        return;
    }
    sim_trace(sim, "delete %s", snapshot->name);
    snapshot->ending = true;
    vm_snapshot_delete(sim->vm, snapshot->name, delete_done, sim);
}

static void end_lease(struct sim *sim, struct sim_snapshot *snapshot)
{
    if (snapshot == NULL || !snapshot->leased || snapshot->duplicate)
        return;
    sim_trace(sim, "lease of %s ends", snapshot->name);
    snapshot->ending = true;
    vm_lease_end(sim->vm, snapshot);
}

void director_delete_all(struct sim *sim)
{
    list_each_safe (link, &sim->snapshots)
        delete_one(sim, container_of(link, struct sim_snapshot, link));
}

static void stick_or_not(struct sim *sim)
{
    if (sim->stuck != 0 && world_now(sim->world) >= sim->stuck_until) {
        world_let_go(sim->world, sim->stuck);
        sim->stuck = 0;
    } else if (sim->stuck == 0 && sim->sticks && sim_chance(sim, 64)) {
        sim->stick_next = true;
        sim->stick_kind = sim_chance(sim, 512) ? WORLD_READ : WORLD_WRITE; /* of a copy, or of anybody */
        sim->stuck_until = world_now(sim->world) + sim_below(sim, 30 * NS_PER_MS);
    }
}

void director_stick_no_more(struct sim *sim)
{
    sim->sticks = sim->stick_next = false;
    if (sim->stuck != 0)
        world_let_go(sim->world, sim->stuck);
    sim->stuck = 0;
}

static void stall_somebody(struct sim *sim)
{
    uint64_t until = world_now(sim->world) + sim_below(sim, 10 * NS_PER_MS);
    unsigned index = (unsigned)sim_below(sim, sim->reactor_count + 1);
    if (index == sim->reactor_count) /* a control thread may hang for long: nobody waits for it */
        until += sim_below(sim, 60 * NS_PER_MS);
    sim_trace(sim, "stall of reactor %u", index);
    world_stall(index == sim->reactor_count ? sim->control : sim->reactors[index], until);
}

static void status_ignored(void *argument, const struct vm_status *status)
{
    struct sim *sim = argument;
    if (status == NULL || status->disk_count != sim->disk_count)
        sim_fail(sim, "the status knows another number of disks");
}

static void director_act(struct sim *sim)
{
    uint64_t dice = sim_below(sim, 64);
    if (dice < 24) {
        if (sim->alive < (sim->tight ? 1 : SIM_ALIVE))
            create(sim);
    } else if (dice < 36) {
        delete_one(sim, random_snapshot(sim));
    } else if (dice < 42) {
        end_lease(sim, random_snapshot(sim));
    } else if (dice < 46) {
        vm_status_query(sim->vm, status_ignored, sim);
    } else if (dice < 56) {
        bitmaps_act(sim);
    } else if (dice < 58) {
        if (sim->stalls)
            stall_somebody(sim);
    } else if (dice < 60) {
        growth_act(sim);
    }
}

static void director_tick(struct io_timer *timer)
{
    struct sim *sim = container_of(timer, struct sim, director);
    stick_or_not(sim);
    cache_let_go(sim, sim->requests_left == 0 || sim_waits_for_last(sim));
    if (!sim->last_created)
        director_act(sim);
    io_timer_set(sim->control, timer,
                 world_now(sim->world) + sim_below(sim, sim_slow(sim) ? 20 * NS_PER_MS : 800 * NS_PER_US));
}

void director_stop(struct sim *sim)
{
    sim->stopping = true;
    io_timer_cancel(sim->control, &sim->director);
}

void director_start(struct sim *sim)
{
    sim->director.fire = director_tick;
    io_timer_set(sim->control, &sim->director, world_now(sim->world) + sim_below(sim, 100 * NS_PER_US));
}
