/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The VM of vhost_sim migrates. Its VMM switches the log on and copies memory again and again, page by page, as the guest
 * and the device dirty it. Then it gives up, or stops its guest and the rings: by then the copy must equal the memory, all
 * snapshots must have ended for that reason, and no new one is taken. What comes next is what may come: the guest goes on
 * here, its VMM ends, or the daemon is killed, or ends in good order and another one serves it.
 *
 * What the guest writes marks itself (migration_wrote(), as KVM would); what the device writes is marked in the log, or
 * missing in the copy.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/probe.h"
#include "vhost_sim.h"

void migration_init(struct sim *sim)
{
    sim->migration = (struct sim_migration){.fd = -1, .unmarked = true, .copy = calloc(1, SIM_MEMORY_BYTES)};
    assert_non_null(sim->migration.copy);
}

static void drop_log(struct sim_migration *migration)
{
    if (migration->fd < 0)
        return;
    munmap(migration->file, SIM_PAGE + SIM_LOG_BYTES);
    close(migration->fd);
    migration->fd = -1;
}

void migration_over(struct sim *sim)
{
    sim->migration.on = false;
}

void migration_fini(struct sim *sim)
{
    drop_log(&sim->migration);
    free(sim->migration.copy);
}

void migration_wrote(struct sim *sim, uint64_t at, uint64_t length)
{
    for (uint64_t page = at / SIM_PAGE; length > 0 && page <= (at + length - 1) / SIM_PAGE; page++)
        sim->migration.dirty[page / 8] |= (uint8_t)(1u << page % 8);
}

/* A new log each time, somewhere in its file; all memory is dirty. */
static bool begin(struct sim *sim)
{
    struct sim_migration *migration = &sim->migration;
    drop_log(migration);
    migration->fd = memfd_create("log", MFD_CLOEXEC);
    assert_true(migration->fd >= 0 && ftruncate(migration->fd, SIM_PAGE + SIM_LOG_BYTES) == 0);
    migration->file = mmap(NULL, SIM_PAGE + SIM_LOG_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, migration->fd, 0);
    assert_true(migration->file != MAP_FAILED);
    migration->offset = sim_chance(sim, 512) ? SIM_PAGE : 0;
    migration->on = true;
    sim_trace(sim, "the VM begins to migrate");
    if (guest_busy(sim) > 0)
        PROBE(vhost_sim_log_under_load);
    const bool alive = front_tell_log(sim);
    memset(migration->dirty, 0xff, sizeof migration->dirty); /* what is written from here on is marked */
    return alive;
}

static void copy_page(struct sim *sim, uint64_t page)
{
    for (unsigned i = 0; i < SIM_REGIONS; i++) {
        const struct sim_region *region = &sim->front.regions[i];
        const uint64_t at = page * SIM_PAGE;
        if (region->there && at >= region->guest && at < region->guest + region->size)
            memcpy(sim->migration.copy + at, sim->front.base + at, SIM_PAGE);
    }
}

/* First the marks are taken, then the pages copied. */
static void copy_dirty(struct sim *sim)
{
    struct sim_migration *migration = &sim->migration;
    uint8_t *const log = migration->file + migration->offset;
    for (uint64_t i = 0; i < SIM_LOG_BYTES; i++) {
        const uint8_t bits = migration->dirty[i] | log[i];
        migration->dirty[i] = log[i] = 0;
        for (unsigned bit = 0; bit < 8; bit++)
            if (bits >> bit & 1)
                copy_page(sim, i * 8 + bit);
    }
}

static void check_copy(struct sim *sim)
{
    for (unsigned i = 0; i < SIM_REGIONS; i++) {
        const struct sim_region *region = &sim->front.regions[i];
        for (uint64_t at = region->guest; region->there && at < region->guest + region->size; at += SIM_PAGE)
            if (memcmp(sim->migration.copy + at, sim->front.base + at, SIM_PAGE) != 0)
                sim_fail(sim, "the page at 0x%llx was written by the device and not marked", (unsigned long long)at);
    }
    sim->result.migrations++;
}

/* Its guest has stopped, and the VM may be elsewhere. Whatever it does next, it finds what was returned. */
static void go_on(struct sim *sim)
{
    for (unsigned i = 0; i < sim->front.queue_count; i++)
        guest_reap(sim, i);
    switch (sim_below(sim, 4)) {
    case 0:
        PROBE(vhost_sim_vmm_ended_away);
        front_kill(sim);
        (void)front_connect(sim);
        return;
    case 1:
        PROBE(vhost_sim_death_away);
        run_die(sim);
        return;
    case 2:
        PROBE(vhost_sim_ended_away);
        run_end(sim);
        return;
    default:
        (void)front_start_all(sim);
    }
}

static void switch_over(struct sim *sim)
{
    if (sim->retired_count + 8 > SIM_RETIRED)
        return;
    if (sim_chance(sim, 512))
        shots_take(sim);
    sim_run_for(sim, sim_below(sim, 100 * NS_PER_US));
    sim_trace(sim, "the guest stops, and the VM may go on elsewhere");
    if (sim->stage->dead || !front_halt(sim))
        return;
    copy_dirty(sim);
    check_copy(sim);
    shots_left(sim);
    shots_check_none_is_taken(sim);
    if (sim->stage->dead)
        return;
    sim->migration.on = sim_chance(sim, 300); /* QEMU keeps its log until the guest goes on */
    go_on(sim);
}

void migration_act(struct sim *sim)
{
    const uint64_t what = sim_below(sim, 100);
    if (!sim->migration.on) {
        if (what < 30)
            (void)begin(sim);
    } else if (what < 70) {
        copy_dirty(sim);
    } else if (what < 78) {
        sim_trace(sim, "the migration is given up");
        sim->migration.on = false;
        (void)front_tell_log(sim);
        PROBE(vhost_sim_migration_given_up);
    } else if (what < 84) {
        (void)begin(sim); /* another log in the place of this one */
    } else {
        switch_over(sim);
    }
}
