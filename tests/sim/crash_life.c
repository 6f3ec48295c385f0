/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One life of the daemon, as far as one disk goes: it takes the locks (the fence, C10), opens the tracker, serves the guest,
 * makes checkpoints, and is closed or killed. What a killed process had stays in memory: nobody may free it.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "crash.h"
#include "driver/file.h"
#include "track/sidecar_format.h"

/* So that the memory of killed processes counts as no leak. */
static struct crash_life *graveyard;

/* Faults of the machine. */

static bool is_sidecar(const struct crash_sim *sim, const struct world_io *io)
{
    return io->file == world_file_find(sim->world, CRASH_SIDECAR);
}

static enum crash_io io_class(const struct world_io *io)
{
    if (io->kind == WORLD_SYNC)
        return CRASH_SYNC;
    if (io->kind != WORLD_WRITE)
        return CRASH_IOS;
    uint64_t block = io->range.start / SIDECAR_BLOCK_BYTES;
    return block < SIDECAR_LOG_AT ? CRASH_SUPER : block < SIDECAR_AREAS_AT ? CRASH_LOG : CRASH_PAGE;
}

void crash_landed(void *context, const struct world_io *io, int64_t result)
{
    struct crash_sim *sim = context;
    (void)result;
    if (sim->life && io->io == sim->life->io && is_sidecar(sim, io) && io_class(io) != CRASH_IOS)
        sim->under_way[io_class(io)]--;
}

int crash_fault(void *context, const struct world_io *io)
{
    struct crash_sim *sim = context;
    if (!sim->life) /* somebody else: crash_tamper.c */
        return 0;
    if (is_sidecar(sim, io)) {
        if (io_class(io) != CRASH_IOS)
            sim->under_way[io_class(io)]++;
        bool lasts = world_now(sim->world) < sim->failing_until;
        if (!sim->sidecar_faults || (!lasts && !crash_chance(sim, 12)))
            return 0;
        sim->excuse = true;
        crash_trace(sim, "operation %llu of the sidecar fails", (unsigned long long)io->number);
        return io->kind == WORLD_WRITE && crash_chance(sim, 512) ? -ENOSPC : -EIO;
    }
    if (!sim->disk_faults || !crash_chance(sim, 4))
        return 0;
    sim->excuse = sim->excuse || io->kind == WORLD_SYNC || io->kind == WORLD_READ;
    crash_trace(sim, "operation %llu of the disk fails", (unsigned long long)io->number);
    return -EIO;
}

bool crash_gate(void *context, const struct world_io *io)
{
    struct crash_sim *sim = context;
    uint64_t now = world_now(sim->world);
    if (!sim->life || !sim->sidecar_stalls || now >= sim->stalled_until || sim->stuck_count == CRASH_STUCK ||
        !is_sidecar(sim, io))
        return false;
    if (sim->stalled_until - now > 2 * NS_PER_S)
        sim->excuse = true;
    sim->stuck[sim->stuck_count] = io->number;
    sim->stuck_until[sim->stuck_count++] = sim->stalled_until;
    crash_trace(sim, "operation %llu of the sidecar gets stuck", (unsigned long long)io->number);
    return true;
}

void crash_moment(void *context)
{
    struct crash_sim *sim = context;
    if (!sim->life || sim->life->dead || sim->death != DEATH_IN_TICK || sim->death_in-- > 0)
        return;
    sim->life->dead = true;
    crash_trace(sim, "kill -9 in the middle of a tick");
    world_die(sim->world);
}

/* Returns when the next one is to be let go; a while from now, if there is none. */
static uint64_t let_go_stuck(struct crash_sim *sim, bool all)
{
    uint64_t next = world_now(sim->world) + 10 * NS_PER_MS;
    for (unsigned i = 0; i < sim->stuck_count;) {
        if (!all && world_now(sim->world) < sim->stuck_until[i]) {
            i++;
            continue;
        }
        world_let_go(sim->world, sim->stuck[i]);
        sim->stuck[i] = sim->stuck[--sim->stuck_count];
        sim->stuck_until[i] = sim->stuck_until[sim->stuck_count];
    }
    for (unsigned i = 0; i < sim->stuck_count; i++)
        next = sim->stuck_until[i] < next ? sim->stuck_until[i] : next;
    return next;
}

/* Steps. */

bool life_step(struct crash_sim *sim)
{
    struct crash_life *life = sim->life;
    if (life->dead)
        return false;
    if ((sim->death == DEATH_KILL || sim->death == DEATH_POWER) && sim->death_in-- == 0) {
        life->dead = true;
        return false;
    }
    uint64_t until = let_go_stuck(sim, false);
    if (world_next(sim->world) > until)
        world_run_for(sim->world, until - world_now(sim->world));
    else
        world_step(sim->world);
    return !life->dead;
}

bool life_wait(struct crash_sim *sim, bool (*condition)(struct crash_life *life), uint64_t timeout_ns)
{
    uint64_t end = world_now(sim->world) + timeout_ns;
    while (!condition(sim->life)) {
        if (!life_step(sim) || world_now(sim->world) > end)
            return false;
    }
    return true;
}

/* Hooks of the tracker. */

static struct disk_identity identify(void *context)
{
    struct crash_life *life = context;
    struct io_stat stat;
    if (io_stat(life->io, life->stat_fd, &stat) < 0)
        return (struct disk_identity){0};
    struct disk_identity identity = {
        .size_bytes = stat.size_bytes, .device = stat.device, .inode = stat.inode, .local = !stat.is_block_device};
    if (!stat.is_block_device) { /* a write to a device does not touch its node */
        identity.mtime_ns = stat.mtime_ns;
        identity.ctime_ns = stat.ctime_ns;
    }
    return identity;
}

static int condemn(void *context, const char *reason)
{
    struct crash_life *life = context;
    if (!life->sim->excuse)
        crash_fail(life->sim, "the sidecar is condemned, though nothing has failed: %s", reason);
    crash_trace(life->sim, "the sidecar is condemned: %s", reason);
    life->sim->condemned = true;
    return 0;
}

static void invalidated(void *context, const char *reason)
{
    struct crash_life *life = context;
    if (!life->sim->excuse)
        crash_fail(life->sim, "tracking has ended, though nothing has failed: %s", reason);
    crash_trace(life->sim, "tracking has ended: %s", reason);
    life->invalidated = true;
    checkpoints_invalidated(life->sim);
}

/* Beginning. */

static void open_tracker(struct crash_life *life)
{
    struct crash_sim *sim = life->sim;
    struct tracker_options options = {
        .sidecar = life->sidecar,
        .create = life->created,
        .granularity_bytes = sim->granularity,
        .slots = sim->slots,
        .memory = {"/dev/shm/fleece-sim", "vda"},
        .identity = identify(life),
        .identify = identify,
        .identify_context = life,
        .condemn = condemn,
        .condemn_context = life,
        .invalidated = invalidated,
        .invalidated_context = life,
    };
    life->tracker = tracker_create(life->disk, &options);
    life->sidecar = NULL;
    if (!life->tracker)
        crash_fail(sim, "no memory for the tracker");
    life_op(life, ACT_OPEN, NULL);
}

static void open_files(void *argument)
{
    struct crash_life *life = argument;
    struct crash_sim *sim = life->sim;
    struct file_options options = {.path = CRASH_DISK, .lock_wait_ns = 30 * NS_PER_S};
    if (file_open(life->io, &options, &life->leaf, &life->err) < 0)
        crash_fail(sim, "%s", life->err.text);
    life->disk = disk_create("vda", life->leaf);
    life->stat_fd = io_open(life->io, CRASH_DISK, O_RDONLY, 0);
    life->created = !world_file_find(sim->world, CRASH_SIDECAR);
    options = (struct file_options){.path = CRASH_SIDECAR,
                                    .lock_wait_ns = 30 * NS_PER_S,
                                    .create = life->created,
                                    .size_bytes = life->created ? crash_sidecar_bytes(sim) : 0};
    if (file_open(life->io, &options, &life->sidecar, &life->err) < 0) {
        if (!sim->damaged && sim->born)
            crash_fail(sim, "%s", life->err.text);
        life->open_failed = true;
        return;
    }
    open_tracker(life);
}

static bool is_open(struct crash_life *life)
{
    return life->open || life->open_failed;
}

bool life_begin(struct crash_sim *sim)
{
    struct crash_life *life = calloc(1, sizeof *life);
    if (!life)
        abort();
    *life = (struct crash_life){.sim = sim, .process = (unsigned)++sim->result.lives, .next = graveyard};
    graveyard = life;
    life->io = world_reactor(sim->world, "fleeced", life->process);
    sim->life = life;
    world_limit_shm(sim->world, 0);
    memset(sim->under_way, 0, sizeof sim->under_way);
    crash_trace(sim, "life %u begins", life->process);
    world_call(life->io, open_files, life);
    if (life->dead || !life_wait(sim, is_open, 120 * NS_PER_S)) {
        if (!life->dead)
            crash_fail(sim, "tracker_open() is not done after 120 s");
        return false;
    }
    return !life->open_failed;
}

/* Living. */

static void call_guest(void *argument)
{
    guest_act(argument);
}

static void call_checkpoint(void *argument)
{
    checkpoint_act(argument);
}

static void call_growth(void *argument)
{
    growth_act(argument);
}

static void misfortune(struct crash_sim *sim)
{
    if (sim->sidecar_stalls && crash_chance(sim, 512)) {
        uint64_t length = crash_chance(sim, 256) ? crash_below(sim, 40 * NS_PER_S) : crash_below(sim, 20 * NS_PER_MS);
        sim->stalled_until = world_now(sim->world) + length;
    } else if (sim->sidecar_faults && crash_chance(sim, 512)) {
        sim->failing_until = world_now(sim->world) + crash_below(sim, 2 * NS_PER_S);
    } else if (sim->memory_faults) {
        bool full = crash_chance(sim, 512);
        world_limit_shm(sim->world, full ? 4096 : 0);
        sim->excuse = sim->excuse || full;
    }
}

/* The guest does nothing for a while. */
static void rest(struct crash_sim *sim)
{
    uint64_t end = world_now(sim->world) + crash_below(sim, 2 * NS_PER_S);
    while (world_now(sim->world) < end && life_step(sim))
        ;
    if ((sim->death == DEATH_KILL || sim->death == DEATH_IN_TICK) && crash_chance(sim, 512)) {
        sim->death = DEATH_KILL;
        sim->death_in = 0;
    }
}

void life_main(struct crash_sim *sim)
{
    struct crash_life *life = sim->life;
    for (uint64_t moves = sim->moves; moves > 0 && !life->dead; moves--) {
        uint64_t dice = crash_below(sim, 64);
        if (dice < 44)
            world_call(life->io, call_guest, life);
        else if (dice < 56)
            world_call(life->io, call_checkpoint, life);
        else if (dice == 56)
            oracle_check(sim, false);
        else if (dice == 57)
            rest(sim);
        else if (dice == 58)
            tamper_copy(sim);
        else if (dice == 59)
            misfortune(sim);
        else if (dice == 60)
            world_call(life->io, call_growth, life);
        for (uint64_t steps = crash_below(sim, 14); steps > 0 && !life->dead; steps--)
            life_step(sim);
    }
}

/* Ending. */

static void record(void *argument)
{
    struct crash_life *life = argument;
    life_op(life, ACT_RECORD, life->making);
}

static bool is_idle(struct crash_life *life)
{
    return life->guests_busy == 0 && life->ops_busy == 0 && !life->growing && !life->holding;
}

static void destroy(void *argument)
{
    struct crash_life *life = argument;
    if (life->tracker)
        tracker_destroy(life->tracker);
    life->tracker = NULL;
    disk_destroy(life->disk);
    io_close(life->io, life->stat_fd);
}

static void start_close(void *argument)
{
    struct crash_life *life = argument;
    if (life->making && !life->making->cut)
        checkpoint_abandon(life);
    life_op(life, ACT_CLOSE, NULL);
}

static bool is_closed(struct crash_life *life)
{
    return life->closed;
}

/* In good order, unless death comes first. */
void life_close(struct crash_sim *sim)
{
    struct crash_life *life = sim->life;
    sim->stalled_until = 0;
    if (life->making && life->making->cut && !life->making->record_asked && life->ops_busy < CRASH_OPS)
        world_call(life->io, record, life);
    if (!life_wait(sim, is_idle, 200 * NS_PER_S)) {
        if (!life->dead)
            crash_fail(sim, "%u requests of the guest and %u of the tracker are never done", life->guests_busy,
                       life->ops_busy);
        return;
    }
    sim->was_killed = false; /* from here on memory may have been removed */
    if (life->open)
        world_call(life->io, start_close, life);
    else
        life->closed = true;
    if (life->dead || !life_wait(sim, is_closed, 100 * NS_PER_S)) {
        if (!life->dead)
            crash_fail(sim, "tracker_close() is never done");
        return;
    }
    sim->death = DEATH_NONE;
    sim->was_clean = life->open;
    sim->memory_lost = false;
    world_call(life->io, destroy, life);
    world_kill(sim->world, life->process); /* nothing of it is left: its reactor only */
    let_go_stuck(sim, true);
    sim->life = NULL;
    crash_trace(sim, "life %u has ended in good order", life->process);
}

void life_end_by_death(struct crash_sim *sim)
{
    struct crash_life *life = sim->life;
    bool power = sim->death == DEATH_POWER;
    death_note(sim);
    if (life->open) {
        sim->death_ns = world_now(sim->world);
        sim->busy_ns = life->guests_busy > 0 || life->ops_busy > 0 ? sim->death_ns : sim->busy_ns;
    }
    if (sim->death == DEATH_KILL)
        world_kill(sim->world, life->process);
    sim->life = NULL;
    sim->stuck_count = 0; /* they go on by themselves */
    sim->stalled_until = sim->failing_until = 0;
    if (!power && crash_chance(sim, 100)) { /* first this, then that */
        world_run_for(sim->world, crash_below(sim, 4 * NS_PER_S));
        power = true;
    }
    crash_trace(sim, "life %u has ended by %s", life->process, power ? "power loss" : "kill -9");
    sim->memory_lost = power;
    if (power) {
        world_power_loss(sim->world);
        sim->power_lost = true;
        sim->was_killed = false;
    }
    sim->was_clean = false;
    sim->crashed = true;
    guests_forget(life, power);
    sim->death = DEATH_NONE;
}
