/* SPDX-License-Identifier: GPL-2.0-or-later */
/* One seed of the many lives: its character, its lives and deaths. See lives.h. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

#include "base/probe.h"
#include "lives.h"

enum { LIVES = 4, STEPS = 400 };

/* What is stuck comes back. */
static void let_go(struct lives *lives)
{
    lives->stage->held_count = 0;
    world_let_go_all(lives->stage->world);
}

void lives_wait(struct lives *lives, const bool *done)
{
    for (unsigned steps = 1; !*done && !lives->stage->dead; steps++) {
        const bool held = lives->stage->held_count > 0;
        if (!world_step(lives->stage->world) && !held)
            lives_fail(lives, "nothing happens any more, and something is waited for");
        if (held && steps % 64 == 0)
            let_go(lives);
    }
}

/* ---- character ---- */

static struct stage_options choose_character(struct lives *lives)
{
    const uint64_t seed = lives->options.seed;
    struct stage_options options = {.disk_count = STAGE_DISKS, .restartable = true, .seed = seed};
    lives->tracked = seed % 2 == 0;
    lives->regions = lives->tracked ? 1 + (unsigned)(seed / 2 % 3) : 1;
    lives->discards = seed % 5 != 0;
    lives->tight = seed % 7 < 3;
    lives->faults = seed % 11 < 3;
    lives->bitmaps = seed % 13 < 6;
    lives->releases = seed % 4 != 3;
    options.copy_on_read = seed % 3 == 1;
    options.tracked = lives->tracked;
    options.disk_bytes = lives->tracked ? 9 * STAGE_DISK_BYTES : STAGE_DISK_BYTES;
    options.segments = lives->tight ? 3 + (unsigned)(seed % 5) : 0;
    options.cache_segments = seed % 17 % 3 == 0 ? 0 : lives->tight ? 2 + (unsigned)(seed % 6) : 200;
    if (options.cache_segments == 0)
        lives->faults = false;
    else if (!lives->tight)
        options.segments = 3 + (unsigned)(seed % 6);
    if (lives->tight || lives->faults)
        options.cbw_timeout_ns = (1 + seed % 40) * NS_PER_MS;
    return options;
}

/* The devices of the cache files fail, are full, or what is sent there gets stuck. */
static void choose_faults(struct lives *lives)
{
    static const int failures[] = {-EIO, -ENOSPC, 0};
    lives->stage->cache_fail_with = failures[lives_below(lives, 3)];
    lives->stage->cache_faults_per_1024 = lives->faults && lives_chance(lives, 600)
                                              ? 1 + (unsigned)lives_below(lives, 60)
                                              : 0;
}

/* ---- lives ---- */

static void pause_for_long(struct lives *lives)
{
    if (lives->client.step != CLIENT_IDLE)
        return;
    lives->client.forgiven = true;
    let_go(lives);
    world_run_for(lives->stage->world, LEASE_GRACE_DEFAULT_NS + NS_PER_S);
}

static void live(struct lives *lives, unsigned steps)
{
    struct stage *stage = lives->stage;
    for (unsigned i = 0; i < steps && !stage->dead; i++) {
        const uint64_t what = lives_below(lives, 100);
        snapshots_settle(lives);
        if (what < 1)
            growth_act(lives);
        else if (what < 50)
            guest_act(lives);
        else if (what < 80)
            snapshots_act(lives);
        else
            backup_act(lives);
        if (!stage->dead && stage->held_count > 0 && lives_chance(lives, 60))
            let_go(lives);
        if (!stage->dead && lives_chance(lives, lives->client.forgiven ? 12 : 1))
            pause_for_long(lives);
        if (!stage->dead)
            world_run_for(stage->world, lives_below(lives, 300 * NS_PER_US));
    }
    snapshots_settle(lives);
}

/* It is about to die while snapshots end. */
static void end_some(struct lives *lives)
{
    if (lives->stage->dead || !lives_chance(lives, 300))
        return;
    PROBE(restart_death_while_snapshots_end);
    snapshots_end_some(lives);
    world_run_for(lives->stage->world, lives_below(lives, 60 * NS_PER_US));
    snapshots_settle(lives);
}

/* It dies, and perhaps again while it starts; whether the power was lost. */
static bool die(struct lives *lives)
{
    struct stage *stage = lives->stage;
    bool power_lost = false;
    end_some(lives);
    for (unsigned again = 0; again == 0 || stage->dead; again++) {
        const bool power = lives->tracked && lives_chance(lives, 300);
        const bool in_a_tick = stage->dead;
        if (power)
            stage_lose_power(stage);
        else
            stage_kill(stage);
        power_lost = power_lost || power;
        lives->result.deaths++;
        lives->result.power_losses += power;
        lives_trace(lives, "%s", power ? "the power is lost" : "kill -9");
        if (again > 0)
            PROBE(restart_death_in_the_start);
        if (in_a_tick)
            PROBE(restart_death_in_a_tick);
        choose_faults(lives);
        stage->moments = 0;
        stage->die_at = lives_chance(lives, 340) ? 1 + lives_below(lives, lives->tracked ? 400 : 120) : 0;
        stage_restart(stage);
    }
    stage->die_at = 0;
    return power_lost;
}

static void check_everything(struct lives *lives, bool power_lost)
{
    growths_died(lives);
    guest_after_death(lives, power_lost);
    snapshots_died(lives, power_lost);
    backup_check_checkpoints(lives);
    backup_died(lives);
    snapshots_check_all(lives);
}

static void finish(struct lives *lives)
{
    struct stage *stage = lives->stage;
    stage->cache_faults_per_1024 = 0;
    let_go(lives);
    live(lives, 50);
    backup_finish(lives);
    guest_wait(lives);
    stage_settle(stage);
    snapshots_settle(lives);
    snapshots_check_all(lives);
    stage_destroy_vm(stage);
    stage_settle(stage);
    if (!lives->tracked)
        assert_int_equal(world_named_memory(stage->world), 0);
}

struct lives_result lives_run(const struct lives_options *options)
{
    struct lives *lives = calloc(1, sizeof *lives);
    assert_non_null(lives);
    lives->options = *options;
    const struct stage_options with = choose_character(lives);
    void *state = (void *)(uintptr_t)&with;
    assert_int_equal(stage_set_up(&state), 0);
    lives->stage = state;
    lives->stage->owner = lives;
    lives->blocks = lives->stage->disk_bytes / STAGE_BLOCK + LIVES_ADDED;
    for (unsigned i = 0; i < STAGE_DISKS; i++) {
        lives->captured.sectors[i] = calloc(lives->blocks * LIVES_SECTORS, sizeof(uint32_t));
        lives->captured.recorded[i] = calloc(lives->blocks, sizeof(bool));
        assert_true(lives->captured.sectors[i] && lives->captured.recorded[i]);
    }
    guest_begin(lives);
    choose_faults(lives);
    for (unsigned life = 0; life < LIVES; life++) {
        lives->stage->moments = 0;
        lives->stage->die_at = 1 + lives_below(lives, lives->tracked ? 6000 : 2500);
        live(lives, options->steps ? options->steps : STEPS);
        check_everything(lives, die(lives));
    }
    finish(lives);
    lives->result.hash = world_hash(lives->stage->world);
    stage_tear_down(&state);
    snapshots_end(lives);
    backup_end(lives);
    guest_end(lives);
    const struct lives_result result = lives->result;
    free(lives);
    return result;
}
