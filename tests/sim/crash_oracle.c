/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the tracker says has changed, against what has. See crash.h. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "crash.h"

void oracle_image(struct crash_sim *sim, struct crash_checkpoint *checkpoint)
{
    checkpoint->image_count = sim->touched_count;
    checkpoint->image = malloc((sim->touched_count + 1) * sizeof *checkpoint->image);
    if (!checkpoint->image)
        abort();
    const uint8_t *bytes = crash_disk_bytes(sim);
    for (uint32_t i = 0; i < sim->touched_count; i++)
        checkpoint->image[i] = sector_print(bytes, sim->touched[i]);
}

/* By granule, whether it is reported as changed; returns the bytes. */
static uint64_t read_changed(struct crash_sim *sim, const struct crash_checkpoint *checkpoint, uint8_t *changed)
{
    const struct tracker *tracker = sim->life->tracker;
    const uint64_t size = life_disk_size(sim->life);
    uint64_t at = 0, bytes = 0, rounds = 0;
    memset(changed, 0, sim->size / sim->granularity + 1);
    while (at < size) {
        struct range run = {0, 0};
        uint64_t next = at;
        int status = tracker_changed(tracker, checkpoint->id.uuid, at, &run, &next);
        if (status < 0)
            crash_fail(sim, "tracker_changed() of the valid checkpoint %s: %d", checkpoint->id.name, status);
        if (next <= at || next > size || (run.length > 0 && (run.start < at || range_end(run) > next)))
            crash_fail(sim, "tracker_changed() of %s at %llu goes on at %llu, run [%llu +%llu]", checkpoint->id.name,
                       (unsigned long long)at, (unsigned long long)next, (unsigned long long)run.start,
                       (unsigned long long)run.length);
        if (run.length > 0)
            memset(changed + run.start / sim->granularity, 1,
                   (range_end(run) - 1) / sim->granularity - run.start / sim->granularity + 1);
        bytes += run.length;
        at = next;
        if (++rounds > 4 * (size / sim->granularity) + 100)
            crash_fail(sim, "tracker_changed() does not come to an end");
    }
    return bytes;
}

static void check_added(struct crash_sim *sim, const struct crash_checkpoint *checkpoint, const uint8_t *changed)
{
    const uint64_t size = life_disk_size(sim->life);
    for (uint64_t at = (checkpoint->size - 1) / sim->granularity;
         size > checkpoint->size && at * sim->granularity < size; at++)
        if (!changed[at])
            crash_fail(sim, "granule %llu was added since checkpoint %s, and is not reported (C22)",
                       (unsigned long long)at, checkpoint->id.name);
}

static void check_superset(struct crash_sim *sim, const struct crash_checkpoint *checkpoint, const uint8_t *changed)
{
    const uint8_t *bytes = crash_disk_bytes(sim);
    for (uint32_t i = 0; i < sim->touched_count; i++) {
        uint64_t sector = sim->touched[i], before = i < checkpoint->image_count ? checkpoint->image[i] : 0;
        if (changed[sector * CRASH_SECTOR / sim->granularity] || sector_print(bytes, sector) == before)
            continue;
        crash_fail(sim,
                   "MISSED: sector %llu (extent %llu) was %016llx at checkpoint %s, is %016llx, and not reported (R5)",
                   (unsigned long long)sector, (unsigned long long)(sector * CRASH_SECTOR / (1024 * sim->granularity)),
                   (unsigned long long)before, checkpoint->id.name, (unsigned long long)sector_print(bytes, sector));
    }
}

/* What is reported without need, in how many extents; with `forgive` it counts as needed from now on. */
static void check_exact(struct crash_sim *sim, const struct crash_checkpoint *checkpoint, const uint8_t *changed,
                        bool forgive, uint8_t *extents)
{
    uint64_t granules = (sim->size + sim->granularity - 1) / sim->granularity;
    const uint8_t *next = changed;
    for (; (next = memchr(next, 1, granules - (uint64_t)(next - changed))); next++) {
        uint64_t at = (uint64_t)(next - changed);
        if (sim->stamps[at] > checkpoint->cut_stamp)
            continue;
        if (!forgive)
            crash_fail(sim,
                       "granule %llu (extent %llu) is reported as changed since checkpoint %s, and nobody touched it",
                       (unsigned long long)at, (unsigned long long)(at / 1024), checkpoint->id.name);
        extents[at / 1024] = 1;
    }
}

static void forgive_superset(struct crash_sim *sim, const uint8_t *extents)
{
    uint64_t granules = (sim->size + sim->granularity - 1) / sim->granularity;
    unsigned count = 0;
    sim->stamp++;
    for (uint64_t extent = 0; extent * 1024 < granules; extent++) {
        if (!extents[extent])
            continue;
        count++;
        for (uint64_t at = extent * 1024; at < granules && at < (extent + 1) * 1024; at++)
            sim->stamps[at] = sim->stamp;
    }
    if (count > sim->slots)
        crash_fail(sim, "after a power loss %u extents are reported in excess, the log has %u slots", count,
                   sim->slots);
}

void oracle_check(struct crash_sim *sim, bool fresh)
{
    struct crash_life *life = sim->life;
    struct checkpoint_info infos[LIMIT_CHECKPOINTS];
    unsigned known = tracker_checkpoints(life->tracker, infos, LIMIT_CHECKPOINTS);
    uint8_t *changed = malloc(sim->size / sim->granularity + 2), extents[CRASH_EXTENTS_MAX] = {0};
    /* Memory that was made from the log, by a daemon that was killed before it was done, is as good as the log. */
    bool forgive = fresh && (tracker_recovery(life->tracker) == TRACKER_REPLAYED || sim->power_lost);
    for (struct crash_checkpoint *checkpoint = sim->checkpoints; changed && checkpoint; checkpoint = checkpoint->next) {
        unsigned i = 0;
        while (i < known && strcmp(infos[i].id.uuid, checkpoint->id.uuid) != 0)
            i++;
        if (i == known) {
            if (checkpoint->recorded && !checkpoint->remove_asked)
                crash_fail(sim, "checkpoint %s has gone while it was used", checkpoint->id.name);
            continue;
        }
        struct range run;
        uint64_t next;
        bool voiding = tracker_changed(life->tracker, checkpoint->id.uuid, 0, &run, &next) == -ESTALE;
        if (infos[i].state == CHECKPOINT_INVALID || voiding) {
            if (!sim->excuse)
                crash_fail(sim, "checkpoint %s has become invalid, though nothing has failed", checkpoint->id.name);
            checkpoint->invalid = true;
            continue;
        }
        if (!checkpoint->recorded)
            continue;
        uint64_t bytes = read_changed(sim, checkpoint, changed);
        if (infos[i].changed_bytes < bytes ||
            infos[i].changed_bytes >= bytes + sim->granularity) /* the last one, whole */
            crash_fail(sim, "checkpoint %s is said to have %llu changed bytes, there are %llu", checkpoint->id.name,
                       (unsigned long long)infos[i].changed_bytes, (unsigned long long)bytes);
        check_superset(sim, checkpoint, changed);
        check_added(sim, checkpoint, changed);
        check_exact(sim, checkpoint, changed, forgive, extents);
        sim->result.checks++;
    }
    if (forgive)
        forgive_superset(sim, extents);
    free(changed);
}
