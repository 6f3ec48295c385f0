/* SPDX-License-Identifier: GPL-2.0-or-later */
/* One seed of vhost_sim: its character, what happens in it, the deaths of the daemon and of the VMM. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/probe.h"
#include "export/vhost_user/shared_map.h"
#include "export/vhost_user/virtqueue.h"
#include "vhost_sim.h"

enum { STEPS = 240, LOOK_AT_MEMORY_EVERY = 2048, MAPS = 512 };

/* What a request may take: the time-out of the cache, the fence of a killed daemon, the device. */
#define PATIENCE_NS (20 * NS_PER_S)

/* ---- memory that outlives the daemon: what it has mapped ---- */

struct shared_map *__real_shared_map_create(int fd, uint64_t offset, uint64_t size_bytes, struct error *err);
struct shared_map *__wrap_shared_map_create(int fd, uint64_t offset, uint64_t size_bytes, struct error *err);
void __real_shared_map_unref(struct shared_map *map);
void __wrap_shared_map_unref(struct shared_map *map);

static struct shared_map *maps[MAPS]; /* those of dead daemons, too: nobody unmaps them any more */

struct shared_map *__wrap_shared_map_create(int fd, uint64_t offset, uint64_t size_bytes, struct error *err)
{
    struct shared_map *map = __real_shared_map_create(fd, offset, size_bytes, err);
    unsigned i = 0;
    while (i < MAPS && maps[i])
        i++;
    assert_true(i < MAPS);
    maps[i] = map;
    return map;
}

void __wrap_shared_map_unref(struct shared_map *map)
{
    for (unsigned i = 0; map && map->references == 1 && i < MAPS; i++)
        if (maps[i] == map)
            maps[i] = NULL;
    __real_shared_map_unref(map);
}

static bool outlives(const struct stage *stage, const void *memory, size_t length)
{
    (void)stage;
    const char *start = memory;
    for (unsigned i = 0; i < MAPS; i++)
        if (maps[i] && start >= maps[i]->base && start + length <= maps[i]->base + maps[i]->size_bytes)
            return true;
    return false;
}

/* ---- time ---- */

bool __real_virtqueue_want_kicks(struct virtqueue *queue);
bool __wrap_virtqueue_want_kicks(struct virtqueue *queue);
static struct sim *racing; /* whose guest makes requests while the device falls asleep; NULL: nobody's */

/* What comes between the last look at a ring and the wish for kicks is not kicked for. */
bool __wrap_virtqueue_want_kicks(struct virtqueue *queue)
{
    if (racing && sim_chance(racing, 60)) {
        racing->in_device = true;
        guest_add_requests(racing, 2);
        racing->in_device = false;
    }
    return __real_virtqueue_want_kicks(queue);
}

static void send_kicks(struct sim *sim)
{
    for (unsigned i = 0; i < sim->front.queue_count; i++) {
        if (!sim->front.queues[i].must_kick)
            continue;
        sim->front.queues[i].must_kick = false;
        front_kick(sim, i);
    }
}

bool sim_step(struct sim *sim)
{
    send_kicks(sim);
    if (++sim->steps % LOOK_AT_MEMORY_EVERY == 0)
        guest_check_memory(sim);
    return world_step(sim->stage->world);
}

void sim_run_for(struct sim *sim, uint64_t duration_ns)
{
    const uint64_t until = world_now(sim->stage->world) + duration_ns;
    while (!sim->stage->dead && world_next(sim->stage->world) <= until)
        if (!sim_step(sim))
            return;
}

/* ---- the export ---- */

static void exports_started(void *argument, const struct error *err)
{
    struct sim *sim = argument;
    if (err)
        sim_fail(sim, "%s", err->text);
    sim->started = true;
}

static void exports_ended(void *argument)
{
    ((struct sim *)argument)->ended = true;
}

static bool wait_until(struct sim *sim, const bool *reached)
{
    while (!*reached && !sim->stage->dead)
        if (!sim_step(sim))
            sim_fail(sim, "the export neither begins nor ends");
    return *reached;
}

static void choose_options(struct options *options)
{
    static char socket[] = "/run/vda";
    *options = (struct options){.disk_count = 1, .vhost_user_count = 1};
    strcpy(options->disks[0].name, "vda");
    strcpy(options->vhost_users[0].disk, "vda");
    options->vhost_users[0].socket = socket;
}

/* As the daemon does: when all that is left of a predecessor is adopted or buried (C2). */
static bool serve(struct sim *sim)
{
    struct stage *stage = sim->stage;
    sim->started = sim->ended = false;
    sim->exports = calloc(1, sizeof *sim->exports); /* a killed daemon's stays as it is */
    assert_non_null(sim->exports);
    world_act_as(stage->world, stage->control);
    vhost_exports_start(sim->exports, stage->control, stage->vm, NULL, &sim->daemon, NULL, exports_started, sim);
    world_act_as(stage->world, NULL);
    return wait_until(sim, &sim->started);
}

static bool serve_no_more(struct sim *sim)
{
    world_act_as(sim->stage->world, sim->stage->control);
    vhost_exports_stop(sim->exports, exports_ended, sim);
    world_act_as(sim->stage->world, NULL);
    if (!wait_until(sim, &sim->ended))
        return false;
    free(sim->exports);
    return true;
}

/* ---- character ---- */

static struct stage_options choose_character(struct sim *sim)
{
    const uint64_t seed = sim->options.seed;
    struct stage_options options = {.disk_count = 1, .restartable = true, .seed = seed};
    sim->packed = seed % 2 == 0;
    sim->event_idx = seed / 2 % 2 == 0;
    sim->indirect = seed % 5 != 0;
    sim->inflight = seed % 3 != 0;
    sim->reply_ack = seed % 7 != 0;
    sim->slots_of_memory = seed % 11 < 6;
    sim->reset_device = seed % 13 < 9;
    sim->status = seed % 4 < 2;
    sim->tight = seed % 9 < 3;
    sim->migrates = seed % 17 < 6;
    choose_options(&sim->daemon);
    if (sim->tight) {
        options.segments = 3 + (unsigned)(seed % 5);
        options.cbw_timeout_ns = (1 + seed % 40) * NS_PER_MS;
    }
    if (seed % 6 == 0)
        options.short_per_1024 = 200;
    return options;
}

/* ---- deaths ---- */

static void hurry(struct sim *sim, unsigned steps)
{
    for (unsigned i = 0; i < steps && !sim->stage->dead; i++)
        if (!sim_step(sim))
            return;
}

static void note_death(const struct sim *sim, bool in_a_tick)
{
    if (guest_busy(sim) > 0)
        PROBE(vhost_sim_death_with_requests); /* C10: they land later, and are done once more */
    if (in_a_tick)
        PROBE(vhost_sim_death_in_a_tick);
    if (sim->creating)
        PROBE(vhost_sim_death_in_a_cut); /* C2 */
}

/* The daemon is dead, or is killed now, perhaps again while it starts and while the VMM connects. */
void run_die(struct sim *sim)
{
    struct stage *stage = sim->stage;
    for (unsigned i = 0; i < SIM_SLOTS; i++) /* what it has returned may not have been seen yet */
        sim->slots[i].may_fail = sim->slots[i].may_fail || sim->sync_failed;
    sim->failing = sim->sync_failed = false;
    shots_settle(sim);
    note_death(sim, stage->dead);
    const bool marked = sim->migration.marked, unmarked = sim->migration.unmarked;
    sim->migration.sticks = false;
    do {
        stage_kill(stage);
        front_disconnect(sim);
        sim->result.deaths++;
        sim_trace(sim, "kill -9");
        stage->moments = 0;
        stage->die_at = sim_chance(sim, 300) ? 1 + sim_below(sim, 600) : 0;
        stage_restart(stage);
        if (stage->dead)
            PROBE(vhost_sim_death_in_the_start);
    } while (stage->dead || !serve(sim) || !front_connect(sim) ||
             (sim->ring_is_broken && !front_reset(sim, MODEL_NEVER)));
    stage->die_at = 0;
    shots_died(sim, marked, unmarked);
    shots_check_all(sim);
}

static void choose_death(struct sim *sim)
{
    sim->stage->moments = 0;
    sim->stage->die_at = 1 + sim_below(sim, 4000);
}

/* ---- what happens ---- */

static bool end_exports(struct sim *sim)
{
    sim_trace(sim, "the exports end in good order");
    if (!serve_no_more(sim))
        return false;
    if (sim->inflight && !front_inflight_is_empty(sim))
        sim_fail(sim, "after an orderly end something is in flight");
    front_disconnect(sim);
    return true;
}

void run_end(struct sim *sim)
{
    (void)end_exports(sim);
    run_die(sim);
}

static void end_in_order(struct sim *sim)
{
    if (!end_exports(sim))
        return;
    PROBE(vhost_sim_ended_in_order);
    sim->migration.sticks = !sim->migration.unmarked; /* in the VM, which has not ended with its exports */
    if (serve(sim))
        (void)front_connect(sim);
}

static void connect_again(struct sim *sim)
{
    sim_trace(sim, "the VMM hangs up");
    front_disconnect(sim);
    if (sim_chance(sim, 512))
        hurry(sim, (unsigned)sim_below(sim, 60));
    if (!sim->stage->dead)
        (void)front_connect(sim);
}

static void vmm_dies(struct sim *sim)
{
    if (sim->retired_count + 8 > SIM_RETIRED)
        return;
    sim_trace(sim, "the VMM dies");
    front_kill(sim);
    (void)front_connect(sim);
}

/* A ring breaks, and the guest resets the device. */
static void guest_goes_wrong(struct sim *sim)
{
    if (!sim->reset_device)
        return;
    guest_break_ring(sim, (unsigned)sim_below(sim, sim->front.queue_count));
    hurry(sim, (unsigned)sim_below(sim, 200));
    if (sim->inflight && sim_chance(sim, 512) && !sim->stage->dead)
        connect_again(sim);
    if (!sim->stage->dead)
        (void)front_reset(sim, MODEL_NEVER);
}

static void disk_fails_for_a_while(struct sim *sim)
{
    static const enum world_kind kinds[] = {WORLD_READ, WORLD_WRITE, WORLD_SYNC};
    const enum world_kind kind = kinds[sim_below(sim, 3)];
    struct stage *stage = sim->stage;
    sim->sync_failed = sim->sync_failed || kind == WORLD_SYNC;
    sim->failing = sim->failed = true;
    for (unsigned i = 0; i < SIM_SLOTS; i++)
        sim->slots[i].may_fail = true;
    stage->fail_with = -EIO;
    stage_hold(stage, kind, 0);
    for (unsigned i = 0; i < 4 && !stage->dead; i++) {
        guest_add_requests(sim, 6);
        sim_run_for(sim, sim_below(sim, 200 * NS_PER_US));
    }
    if (!stage->dead)
        stage_hold_no_more(stage);
    sim->failing = false;
}

/* C13: what needs more memory meanwhile is refused or breaks; the guest goes on. */
static void tmpfs_is_full_for_a_while(struct sim *sim)
{
    sim->failed = sim->forgetful = true;
    world_limit_shm(sim->stage->world, world_shm_bytes(sim->stage->world) + 1 + sim_below(sim, 64) * SIM_PAGE);
    PROBE(vhost_sim_tmpfs_full);
    for (unsigned i = 0; i < 6 && !sim->stage->dead; i++) {
        guest_add_requests(sim, 8);
        shots_act(sim);
        sim_run_for(sim, sim_below(sim, 300 * NS_PER_US));
        shots_settle(sim);
    }
    world_limit_shm(sim->stage->world, 0);
}

static bool is_idle(struct sim *sim)
{
    return guest_busy(sim) == 0;
}

/* All that is under way comes back. */
static void settle(struct sim *sim)
{
    const uint64_t until = world_now(sim->stage->world) + PATIENCE_NS;
    while (!is_idle(sim) && !sim->stage->dead) {
        if (!sim_step(sim) || world_now(sim->stage->world) > until)
            sim_fail(sim, "%u requests never come back", guest_busy(sim));
    }
    if (!sim->stage->dead)
        guest_check_memory(sim);
}

static void act_rarely(struct sim *sim)
{
    switch (sim_below(sim, 9)) {
    case 0:
        connect_again(sim);
        return;
    case 1:
        vmm_dies(sim);
        return;
    case 2:
        end_in_order(sim);
        return;
    case 3:
        if (sim->reset_device)
            (void)front_reset(sim, MODEL_NEVER);
        return;
    case 4:
        (void)front_stop_all(sim);
        return;
    case 5:
        guest_goes_wrong(sim);
        return;
    case 6:
        disk_fails_for_a_while(sim);
        return;
    case 7:
        tmpfs_is_full_for_a_while(sim);
        return;
    default:
        run_die(sim);
    }
}

static void act(struct sim *sim)
{
    const uint64_t what = sim_below(sim, 1000);
    shots_settle(sim);
    if (what < 600)
        guest_add_requests(sim, 1 + (unsigned)sim_below(sim, 12));
    else if (what < 750)
        shots_act(sim);
    else if (what < 850)
        (void)front_act(sim);
    else if (what < 900)
        settle(sim);
    else if (what < 930)
        sim_run_for(sim, sim_below(sim, 3 * NS_PER_MS));
    else if (what < 970)
        act_rarely(sim);
    if (sim->migrates && !sim->stage->dead && sim_chance(sim, 200))
        migration_act(sim);
    if (sim->stage->dead)
        run_die(sim);
    sim_run_for(sim, sim_below(sim, 200 * NS_PER_US));
    if (sim->stage->dead)
        run_die(sim);
    if (sim->stage->die_at == 0 && sim_chance(sim, 30))
        choose_death(sim);
}

static void finish(struct sim *sim)
{
    struct stage *stage = sim->stage;
    stage->die_at = 0;
    settle(sim);
    stage_settle(stage);
    shots_settle(sim);
    shots_check_all(sim);
    model_check_all(sim);
    guest_check_memory(sim);
    assert_true(serve_no_more(sim));
    if (sim->inflight && !front_inflight_is_empty(sim))
        sim_fail(sim, "in the end something is in flight");
    stage_destroy_vm(stage);
    stage_settle(stage);
}

struct sim_result sim_run(const struct sim_options *options)
{
    struct sim *sim = calloc(1, sizeof *sim);
    assert_non_null(sim);
    sim->options = *options;
    const struct stage_options with = choose_character(sim);
    void *state = (void *)(uintptr_t)&with;
    memset(maps, 0, sizeof maps);
    assert_int_equal(stage_set_up(&state), 0);
    sim->stage = state;
    sim->stage->owner = sim;
    sim->stage->outlives = outlives;
    sim->sectors = calloc(SIM_SECTORS, sizeof *sim->sectors);
    sim->captured = malloc(STAGE_DISK_BYTES);
    assert_true(sim->sectors && sim->captured);
    model_begin(sim);
    migration_init(sim);
    assert_true(serve(sim));
    front_create(sim);
    assert_true(front_connect(sim));
    const unsigned steps = options->steps ? options->steps : STEPS;
    racing = sim;
    for (unsigned i = 0; i < steps; i++)
        act(sim);
    racing = NULL;
    finish(sim);
    sim->result.hash = world_hash(sim->stage->world);
    const struct sim_result result = sim->result;
    world_kill(sim->stage->world, sim->front.process);
    front_end(sim);
    migration_fini(sim);
    stage_tear_down(&state);
    guest_end(sim);
    shots_end(sim);
    free(sim->sectors);
    free(sim->captured);
    free(sim);
    return result;
}
