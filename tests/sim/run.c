/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One seed from its beginning to its end: the machine, its disks and their content, the VM; then everybody acts until
 * the guests have made all their requests; then the VM ends, sometimes after all its snapshots were deleted in good
 * order (and the status must say so), sometimes in the middle of their making and reading. Nothing may be left over.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sim.h"
#include "driver/file.h"
#include "runner.h"
#include "sim_leaf.h"

#define NEWS_NS (30 * NS_PER_MS)    /* of a break to the control thread, however slow threads are */
#define EVENTS_MAX_PER_REQUEST 1000 /* beyond that they go round in circles */

void sim_fail(const struct sim *sim, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    runner_fail("vm_sim", sim->options.seed, world_now(sim->world), format, arguments);
}

void sim_trace(const struct sim *sim, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    if (sim->options.trace)
        runner_trace(world_now(sim->world), format, arguments);
    va_end(arguments);
}

/* Makes reads fail, of copies, of readers and of the guest: all of a disk that is going bad. Chains are spared. */
static int fault(void *context, const struct world_io *io)
{
    struct sim *sim = context;
    unsigned per_1024 = sim->tight && sim->requests_left < 40 ? 200 : 4;
    if (cache_is_file(sim, io->file))
        return cache_fault(sim, io);
    if (!sim->faults || io->range.start < SIM_RESERVED || !sim_chance(sim, per_1024))
        return 0;
    struct guest *guest = sim_guest_of(sim, sim_leaf_request(io->op));
    if (guest != NULL) {
        guest->faulted = true;
        return -EIO;
    }
    if (io->kind != WORLD_READ && io->kind != WORLD_EXTENT)
        return 0;
    for (unsigned i = 0; i < sim->disk_count; i++)
        sim->disks[i].read_faults += sim->disks[i].file == io->file;
    if (io->kind == WORLD_READ)
        sim->may_break = true;
    return -EIO;
}

static bool gate(void *context, const struct world_io *io)
{
    struct sim *sim = context;
    if (cache_is_file(sim, io->file))
        return cache_gate(sim, io);
    if (!sim->stick_next || io->kind != sim->stick_kind)
        return false;
    sim->stick_next = false;
    sim->stuck = io->number;
    sim->stuck_file = io->file;
    sim->stuck_range = io->range;
    sim_trace(sim, "operation %llu gets stuck", (unsigned long long)io->number);
    return true;
}

static void landed(void *context, const struct world_io *io, int64_t result)
{
    struct sim *sim = context;
    if (result > 0 && io->kind == WORLD_WRITE && cache_is_file(sim, io->file))
        cache_check(sim);
}

/* What the reactors have to say to one another takes long, compared with what the control thread says. */
static uint64_t delay(void *context, struct io *from, struct io *to)
{
    struct sim *sim = context;
    return sim->tight && from != sim->control && to != sim->control ? sim_below(sim, 30 * NS_PER_MS) : 0;
}

static void disk_create_content(struct sim_disk *disk)
{
    struct sim *sim = disk->sim;
    if ((disk->model = calloc(1, disk->max_size)) == NULL || (disk->loose = calloc(1, disk->max_size)) == NULL)
        abort();
    for (uint64_t at = SIM_RESERVED; at < disk->size; at += 16 * KIB) {
        uint64_t length = disk->size - at < 16 * KIB ? disk->size - at : 16 * KIB;
        if (!sim->huge && sim_chance(sim, 512))
            continue;
        memset(disk->model + at, (int)(1 + sim_below(sim, 255)), length);
        world_file_fill(disk->file, at, disk->model + at, length);
    }
}

static void disk_open_leaf(struct sim_disk *disk)
{
    struct sim *sim = disk->sim;
    struct file_options options = {.path = disk->name, .page_cache = sim_chance(sim, 256)};
    struct error err = {0};
    world_act_as(sim->world, sim->file_driver ? sim->control : disk->io);
    int status = sim->file_driver ? file_open(disk->io, &options, &disk->leaf, &err)
                                  : sim_leaf_open(disk->io, disk->name, &disk->leaf);
    if (status != 0)
        sim_fail(sim, "cannot open %s: %s", disk->name, err.text);
    world_act_as(sim->world, NULL);
}

static void disk_create_one(struct sim *sim, unsigned index, uint64_t size)
{
    struct sim_disk *disk = &sim->disks[index];
    disk->sim = sim;
    disk->index = index;
    disk->size = size;
    disk->max_size = round_up(size + (size < MIB ? size : 256 * KIB), 512);
    snprintf(disk->name, sizeof(disk->name), "vd%c", 'a' + index);
    disk->io = sim->reactors[sim_below(sim, sim->reactor_count)];
    disk->block_device = size % 512 == 0 && sim_chance(sim, 256);
    disk->file = world_file_create(sim->world, disk->name, size, 512, disk->block_device);
    disk_create_content(disk);
    disk->touched = calloc(disk->max_size / sim->block_bytes + 2, sizeof(uint32_t));
    disk->preserved = calloc(disk->max_size / sim->block_bytes + 2, sizeof(uint32_t));
    if (disk->touched == NULL || disk->preserved == NULL)
        abort();
    disk_open_leaf(disk);
    guests_create(disk);
    bitmaps_create(disk);
}

/*
 * Sizes, blocks, room and troubles of this run. Some seeds have a size of their own, for what small runs do not reach:
 * more slots than one sweep step, more copies than the pool has, more blocks than one status query looks at.
 */
static uint64_t choose_sizes(struct sim *sim)
{
    uint64_t special = sim->options.seed % 1000, dice = sim_below(sim, 8);
    sim->huge = sim->options.seed % 500 == 9;
    sim->coarse = special == 6;
    sim->many = sim->options.seed % 500 == 8;
    sim->large = special == 7 || sim->many;
    sim->block_bytes = sim->large || sim->huge ? 512 : dice == 0 ? 4096 : dice < 4 ? 1024 : 512;
    if (sim->coarse) /* longer than a request may be */
        sim->block_bytes = 2 * MIB;
    sim->longest = sim->many                 ? 256 * KIB
                   : sim->large || sim->huge ? 192 * KIB
                   : sim->coarse             ? 64 * KIB
                   : sim->block_bytes == 512 ? 12 * KIB
                                             : 8 * sim->block_bytes;
    sim->readers_max = sim_chance(sim, 64) ? SIM_READERS : 4;
    sim->guests_max = sim->many ? SIM_GUESTS : sim_chance(sim, 256) ? 24 : 9;
    sim->disk_count = sim->large || sim->huge ? 2 : 2 + (unsigned)sim_below(sim, SIM_DISKS - 1);
    uint64_t total = 0;
    for (unsigned i = 0; i < sim->disk_count; i++) {
        uint64_t size = sim->huge || sim->coarse ? 9 * MIB
                        : sim->many              ? 6 * MIB
                        : sim->large             ? 3 * MIB
                                                 : 32 * KIB << sim_below(sim, 3);
        size += sim_chance(sim, 512) ? 0 : sim_chance(sim, 512) ? 512 * sim_below(sim, 128) : sim_below(sim, 64 * KIB);
        total += round_up(size, 64 * KIB);
        disk_create_one(sim, i, size);
    }
    return total;
}

/* How much the cache may take, and what happens when that is not enough. */
static void choose_room(struct sim *sim, uint64_t total)
{
    sim->segment_bytes = (sim->coarse ? 2 : 64) * sim->block_bytes;
    uint64_t charge = sim->segment_bytes + 2 * 64 * LIMIT_MAP_BYTES_PER_SLOT;
    uint64_t segments = sim->disk_count + (sim->tight ? 0 : sim_below(sim, 12));
    cache_choose(sim, total);
    sim->copy_on_read = sim_chance(sim, 300);
    sim->cbw_timeout_ns = !sim->tight && sim_chance(sim, 300) ? 0 : (1 + sim_below(sim, 20)) * NS_PER_MS;
    sim->ram_bytes = sim->plenty_of_ram ? 2 * SIM_ALIVE * total + 8 * MIB : segments * charge;
    if (sim->cache.plenty) /* the map of what is in the files is in RAM */
        sim->ram_bytes += sim->cache.max_bytes / sim->block_bytes * LIMIT_MAP_BYTES_PER_SLOT;
    if (!sim->plenty_of_ram && !(sim->cache.plenty && cache_is_sound(sim))) /* else nobody waits for long */
        sim->patience_ns += sim->cbw_timeout_ns > 0 ? sim->cbw_timeout_ns : CBW_TIMEOUT_DEFAULT_NS;
    sim->may_break = !sim->plenty_of_ram && (!sim->cache.plenty || sim->cbw_timeout_ns > 0);
    if (sim->plenty_of_ram && sim_chance(sim, 64)) { /* the budget has room, and tmpfs has none */
        world_limit_shm(sim->world, sim->segment_bytes * (sim->disk_count + sim_below(sim, 8)));
        sim->may_break = true;
    }
}

static void choose_character(struct sim *sim)
{
    uint64_t total = choose_sizes(sim);
    sim->tight = sim->options.seed % 16 == 13; /* breaks go on until the end */
    sim->faults = !sim->file_driver && (sim->tight || sim_chance(sim, 256));
    sim->sticks = !sim->many && sim_chance(sim, 512);
    sim->stalls = !sim->many && sim_chance(sim, 256);
    /* how long a request may take: a slow disk, copies of old blocks, the hold of a cut; three times what was seen */
    sim->patience_ns = (60 + (sim->sticks ? 80 : 0) + (sim->stalls ? 120 : 0)) * NS_PER_MS + 3000 * sim->message_ns;
    sim->impatient = !sim->large && sim_chance(sim, 256);
    sim->plenty_of_ram = sim->large || sim->huge || sim->coarse || (!sim->tight && sim_chance(sim, 512));
    sim->releases = !sim->huge && sim_chance(sim, 400);
    sim->residence = sim_chance(sim, 512);
    choose_room(sim, total);
    world_act_as(sim->world, sim->control);
    struct vm_options options = {.name = "sim",
                                 .ram_bytes = sim->ram_bytes,
                                 .disk_bytes = sim->cache.max_bytes,
                                 .cbw_timeout_ns = sim->cbw_timeout_ns,
                                 .copy_on_read = sim->copy_on_read,
                                 .block_bytes = sim->block_bytes,
                                 .segment_bytes = sim->segment_bytes,
                                 .hooks = sim_hooks};
    options.hooks.context = sim;
    sim->vm = vm_create(sim->control, &options);
    struct error err = {0};
    for (unsigned i = 0; i < sim->disk_count; i++) {
        if (vm_add_disk(sim->vm, sim->disks[i].name, sim->disks[i].leaf, 0, &err) != 0)
            sim_fail(sim, "vm_add_disk: %s", err.text);
        sim->disks[i].disk = vm_disk(sim->vm, i);
    }
    if (vm_start(sim->vm, &err) != 0)
        sim_fail(sim, "vm_start: %s", err.text);
    world_act_as(sim->world, NULL);
}

static void start_disk(void *argument)
{
    guests_start(argument);
}

static void start_chain(void *argument)
{
    chain_start(argument);
}

static void start_director(void *argument)
{
    director_start(argument);
}

/* Whether the guests have come to rest. */
static bool guests_rest(const struct sim *sim)
{
    for (unsigned i = 0; i < sim->disk_count; i++)
        if (sim->disks[i].guests_busy > 0)
            return false;
    for (unsigned i = 0; i < sim->chain_count; i++)
        if (sim->chains[i].busy)
            return false;
    return true;
}

static void status_known(void *argument, const struct vm_status *status)
{
    struct sim *sim = argument;
    sim->status = *status;
    sim->status_known = true;
}

static void ask_status(void *argument)
{
    struct sim *sim = argument;
    vm_status_query(sim->vm, status_known, sim);
}

static void vm_gone(void *argument)
{
    struct sim *sim = argument;
    if (sim->destroyed)
        sim_fail(sim, "the end of the VM was told twice");
    sim->destroyed = true;
}

static void end_vm(void *argument)
{
    struct sim *sim = argument;
    director_stop(sim);
    sim_trace(sim, "the VM ends with %u snapshots, %u of them in the making", sim->alive, sim->creating);
    list_each (link, &sim->snapshots)
        container_of(link, struct sim_snapshot, link)->ending = true;
    vm_destroy(sim->vm, vm_gone, sim);
}

static void stop_director(void *argument)
{
    director_stop(argument);
}

static void delete_all(void *argument)
{
    director_delete_all(argument);
}

static bool guests_are_done(const struct sim *sim)
{
    return guests_rest(sim) && sim->attempts >= 3;
}

static bool nothing_in_the_making(const struct sim *sim)
{
    return sim->creating == 0;
}

static bool no_snapshots(const struct sim *sim)
{
    return sim->alive == 0;
}

static bool status_is_known(const struct sim *sim)
{
    return sim->status_known;
}

static bool vm_is_gone(const struct sim *sim)
{
    return sim->destroyed;
}

static void run_until(struct sim *sim, bool (*condition)(const struct sim *sim), const char *what)
{
    unsigned requests = sim->options.requests;
    while (!condition(sim)) {
        if (!world_step(sim->world))
            sim_fail(sim, "nothing happens any more, and there is still to come: %s", what);
        if (world_events(sim->world) > (uint64_t)EVENTS_MAX_PER_REQUEST * (requests + 3000))
            sim_fail(sim, "%llu events, and there is still to come: %s", (unsigned long long)world_events(sim->world),
                     what);
    }
}

/* Readers go on, slowly; whatever broke is known then. */
static void let_news_arrive(struct sim *sim)
{
    sim->slow_until = UINT64_MAX;
    if (sim->stalls) /* the last thread that hangs comes back */
        world_run_for(sim->world, 80 * NS_PER_MS);
    uint64_t begin = world_now(sim->world);
    sim->slow_until = begin + 2 * NEWS_NS;
    world_run_for(sim->world, 2 * NEWS_NS);
    oracle_check_broken(sim, begin + NEWS_NS);
}

static void run_to_the_end(struct sim *sim)
{
    run_until(sim, guests_are_done, "the end of the guests' requests");
    cache_let_go(sim, true);
    director_stick_no_more(sim);
    if (!sim->tight && sim_chance(sim, 640)) {
        world_call(sim->control, stop_director, sim);
        run_until(sim, nothing_in_the_making, "the answer to a creation");
        let_news_arrive(sim);
        world_call(sim->control, delete_all, sim);
        run_until(sim, no_snapshots, "the end of all snapshots");
        world_call(sim->control, ask_status, sim);
        run_until(sim, status_is_known, "the status");
        oracle_check_status(sim);
    }
    world_call(sim->control, end_vm, sim);
    run_until(sim, vm_is_gone, "the end of the VM");
    if (sim->cache.open != 0)
        sim_fail(sim, "the VM is gone, and %u cache files are left", sim->cache.open);
    if (sim->alive != 0 || sim->creating != 0 || !list_empty(&sim->views))
        sim_fail(sim, "the VM is gone, and %u snapshots of it have not ended", sim->alive);
    oracle_check_model(sim);
}

static void clean_up(struct sim *sim)
{
    for (unsigned i = 0; i < sim->disk_count; i++) {
        guests_destroy(&sim->disks[i]);
        bitmaps_destroy(&sim->disks[i]);
        free(sim->disks[i].model);
        free(sim->disks[i].captured);
        free(sim->disks[i].touched);
        free(sim->disks[i].preserved);
        free(sim->disks[i].loose);
    }
}

uint64_t sim_run(const struct sim_options *options)
{
    struct sim *sim = aligned_alloc(4096, round_up(sizeof(*sim), 4096)); /* the same alignment in every process */
    if (sim == NULL)
        abort();
    memset(sim, 0, sizeof(*sim));
    sim->options = *options;
    if (sim->options.requests == 0)
        sim->options.requests = 2000;
    sim->requests_left = sim->options.requests;
    list_init(&sim->snapshots);
    list_init(&sim->views);
    sim->message_ns = options->seed % 8 == 5 ? 200 * NS_PER_US : 2 * NS_PER_US; /* slow threads, or busy ones */
    sim->file_driver = options->seed % 4 == 2; /* else a leaf that is simple, and fast */
    struct world_options world = {.seed = options->seed,
                                  .trace = options->trace,
                                  .context = sim,
                                  .stall_per_1024 = 16,
                                  .short_per_1024 = sim->file_driver ? 64 : 0,
                                  .message_ns = sim->message_ns,
                                  .fault = fault,
                                  .gate = gate,
                                  .landed = landed,
                                  .delay = delay};
    sim->world = world_create(&world);
    sim->control = world_reactor(sim->world, "control", 0);
    sim->reactor_count = 1 + (unsigned)sim_below(sim, SIM_REACTORS);
    for (unsigned i = 0; i < sim->reactor_count; i++) {
        char name[16];
        snprintf(name, sizeof(name), "io%u", i);
        sim->reactors[i] = world_reactor(sim->world, name, 0);
    }
    choose_character(sim);
    chains_create(sim);
    for (unsigned i = 0; i < sim->disk_count; i++)
        world_call(sim->disks[i].io, start_disk, &sim->disks[i]);
    for (unsigned i = 0; i < sim->chain_count; i++)
        world_call(sim->chains[i].disks[0]->io, start_chain, &sim->chains[i]);
    world_call(sim->control, start_director, sim);
    run_to_the_end(sim);
    uint64_t hash = world_hash(sim->world);
    clean_up(sim);
    unsigned left = world_destroy(sim->world, stderr);
    if (left != 0)
        sim_fail(sim, "%u things are left over (R7)", left);
    free(sim);
    return hash;
}
