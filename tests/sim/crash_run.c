/* SPDX-License-Identifier: GPL-2.0-or-later */
/* One seed of the crash simulation: its character, its lives, and what comes between them. See crash.h. */
#include <stdlib.h>
#include <string.h>

#include "crash.h"
#include "track/sidecar_format.h"

uint64_t crash_sidecar_bytes(const struct crash_sim *sim)
{
    return tracker_sidecar_bytes(sim->size, sim->granularity);
}

static void choose_character(struct crash_sim *sim)
{
    sim->granularity = crash_chance(sim, 100) ? 8192 : 4096;
    uint64_t extents = crash_chance(sim, 400) ? 34 + crash_below(sim, 40) : 15 + crash_below(sim, 20);
    sim->size = extents * 1024 * sim->granularity - 4096 * crash_below(sim, 30);
    sim->max_size = sim->size + CRASH_ADDED_EXTENTS * 1024 * sim->granularity;
    sim->slots = LIMIT_TRACK_SLOTS_MIN + (unsigned)crash_below(sim, 4);
    sim->alignment = crash_chance(sim, 300) ? 4096 : 512;
    sim->block_device = crash_chance(sim, 200);
    bool sound = crash_chance(sim, 512);
    sim->sidecar_faults = !sound && crash_chance(sim, 400);
    sim->sidecar_stalls = !sound && crash_chance(sim, 400);
    sim->disk_faults = !sound && crash_chance(sim, 200);
    sim->memory_faults = !sound && crash_chance(sim, 200);
    sim->tampers = crash_chance(sim, 400);
    sim->large = crash_chance(sim, 100);
    sim->guests_max = 1 + (unsigned)crash_below(sim, CRASH_GUESTS);
    sim->spot_count = 4 + (unsigned)crash_below(sim, CRASH_SPOTS - 4);
    for (unsigned i = 0; i < sim->spot_count; i++)
        sim->spots[i] = round_down(crash_below(sim, sim->size - 32 * CRASH_SECTOR), 4096);
}

static void begin(struct crash_sim *sim)
{
    struct world_options options = {
        .seed = sim->options.seed,
        .trace = sim->options.trace,
        .power = true,
        .short_per_1024 = sim->options.seed % 4 == 0 ? 40 : 0,
        .stall_per_1024 = sim->options.seed % 3 == 0 ? 20 : 0,
        .context = sim,
        .fault = crash_fault,
        .gate = crash_gate,
        .moment = crash_moment,
        .landed = crash_landed,
    };
    sim->world = world_create(&options);
    choose_character(sim);
    world_file_create(sim->world, CRASH_DISK, sim->size, sim->alignment, sim->block_device);
    uint64_t sectors = sim->max_size / CRASH_SECTOR;
    sim->sectors = calloc(sectors + 1, sizeof *sim->sectors);
    sim->touched = calloc(sectors + 1, sizeof *sim->touched);
    sim->stamps = calloc(sim->max_size / sim->granularity + 2, sizeof *sim->stamps);
    if (!sim->sectors || !sim->touched || !sim->stamps)
        abort();
    crash_trace(sim, "a disk of %llu bytes, granularity %llu, %u slots%s%s%s%s%s%s", (unsigned long long)sim->size,
                (unsigned long long)sim->granularity, sim->slots, sim->block_device ? ", device" : "",
                sim->sidecar_faults ? ", faults of the sidecar" : "", sim->sidecar_stalls ? ", stalls" : "",
                sim->disk_faults ? ", faults of the disk" : "", sim->memory_faults ? ", little memory" : "",
                sim->tampers ? ", tampering" : "");
}

static void choose_death(struct crash_sim *sim)
{
    static const enum crash_death deaths[] = {DEATH_NONE,    DEATH_KILL,  DEATH_KILL,  DEATH_IN_TICK, DEATH_IN_TICK,
                                              DEATH_IN_TICK, DEATH_POWER, DEATH_POWER, DEATH_POWER,   DEATH_POWER};
    sim->death = deaths[crash_below(sim, sizeof deaths / sizeof deaths[0])];
    sim->moves = 4 + crash_below(sim, crash_chance(sim, 200) ? 160 : 60);
    uint64_t steps = crash_chance(sim, 220) ? 50 : sim->moves * 8; /* the former: recovery, and a bit more */
    sim->death_in = crash_below(sim, sim->death == DEATH_IN_TICK ? steps * 5 : steps);
}

bool crash_has_memory(const struct crash_sim *sim)
{
    bool any = false; /* without checkpoints there is nothing to remember */
    for (struct crash_checkpoint *checkpoint = sim->checkpoints; checkpoint; checkpoint = checkpoint->next)
        any = any || (checkpoint->recorded && !checkpoint->remove_asked && !checkpoint->invalid);
    return any && sim->was_killed && !sim->excuse && sim->tamper == TAMPER_NONE;
}

static void check_recovery(struct crash_sim *sim)
{
    enum tracker_recovery recovery = tracker_recovery(sim->life->tracker);
    sim->result.recovered[recovery]++;
    crash_trace(sim, "recovery: %d", (int)recovery);
    if (crash_has_memory(sim) && recovery != TRACKER_ADOPTED)
        crash_fail(sim, "the memory of a killed daemon is not adopted: recovery %d", (int)recovery);
    if (sim->memory_lost && recovery == TRACKER_ADOPTED)
        crash_fail(sim, "memory is adopted after a power loss (C11)");
    if (sim->was_clean && !sim->excuse && recovery != TRACKER_CLEAN)
        crash_fail(sim, "after a close in good order: recovery %d", (int)recovery);
    if (recovery == TRACKER_VOID && !sim->excuse)
        crash_fail(sim, "everything is void, though nothing has failed: %s",
                   tracker_invalid_reason(sim->life->tracker));
}

/* Whether tracking may be relied on: nobody has changed anything in a way that can't be noticed. */
static bool is_trusted(const struct crash_sim *sim)
{
    if (sim->tamper == TAMPER_NONE || sim->tamper == TAMPER_BITS || sim->tamper == TAMPER_CUT_SIDECAR)
        return true;
    for (struct crash_checkpoint *checkpoint = sim->checkpoints; checkpoint; checkpoint = checkpoint->next)
        if (!checkpoint->invalid)
            return false;
    return sim->tamper != TAMPER_SIZE && sim->tamper != TAMPER_OLD_SIDECAR;
}

/* Right after a restart. */
static bool check_everything(struct crash_sim *sim)
{
    check_recovery(sim);
    checkpoints_after_restart(sim);
    if (sim->tamper != TAMPER_SIZE)
        guest_check_disk(sim);
    sim->result.states += sim->crashed;
    bool trusted = is_trusted(sim);
    if (trusted)
        oracle_check(sim, true);
    sim->memory_lost = false;
    sim->crashed = sim->power_lost = sim->must_be_invalid = sim->was_clean = sim->damaged = false;
    sim->born = true;
    sim->was_killed = !tracker_invalid_reason(sim->life->tracker);
    sim->last_open = sim->life->process;
    return trusted;
}

static void live(struct crash_sim *sim)
{
    bool open = life_begin(sim), trusted = true;
    if (open) {
        trusted = check_everything(sim);
        if (trusted)
            life_main(sim);
    }
    if (!sim->life->dead)
        life_close(sim);
    if (sim->life)
        life_end_by_death(sim);
    bool malformed = !open && !sim->crashed;
    if (malformed || !trusted || sim->condemned || (sim->excuse && crash_chance(sim, 400)) ||
        (!sim->born && crash_chance(sim, 512))) {
        checkpoints_forget_all(sim);
        tamper_reset(sim);
    }
}

static void finish(struct crash_sim *sim)
{
    checkpoints_forget_all(sim);
    world_run_for(sim->world, 10 * NS_PER_S);
    sim->result.hash = world_hash(sim->world);
    if (world_destroy(sim->world, NULL) != 0) {
        fprintf(stderr, "track_crash: seed %llu: something is left over\n", (unsigned long long)sim->options.seed);
        exit(1);
    }
    free(sim->sectors);
    free(sim->touched);
    free(sim->stamps);
    free(sim->log);
    free(sim->log_numbers);
    free(sim->old_disk.bytes);
    free(sim->old_sidecar.bytes);
}

struct crash_result crash_run(const struct crash_options *options)
{
    struct crash_sim *sim = calloc(1, sizeof *sim);
    if (!sim)
        abort();
    sim->options = *options;
    begin(sim);
    for (uint64_t lives = 10 + crash_below(sim, 8); lives > 0; lives--) {
        choose_death(sim);
        live(sim);
        if (crash_chance(sim, 100))
            tamper_copy(sim);
        if (crash_chance(sim, 60))
            tamper_clock(sim);
        if (crash_chance(sim, 180))
            tamper_between(sim);
    }
    finish(sim);
    struct crash_result result = sim->result;
    free(sim);
    return result;
}
