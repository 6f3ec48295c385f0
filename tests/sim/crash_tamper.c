/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What is done to the files between two lives of the daemon, behind its back (C19): and what it must notice.
 *
 * After a close in good order the file's times, inode and size tell of everything that was done to a file; a device has no
 * times, there the samples must tell that the guest's last writes have been undone. After a crash only samples tell, of what
 * was written last before a checkpoint or a close: what they don't tell cannot be known, and the oracle does not ask.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "crash.h"

struct stranger { /* another program */
    struct crash_sim *sim;
    struct io *io;
    int fd;
    struct io_op op;
    struct iovec iov;
    uint64_t written;
    bool busy;
};

static void stranger_done(struct io_op *op, int64_t result)
{
    struct stranger *stranger = container_of(op, struct stranger, op);
    if (result <= 0)
        crash_fail(stranger->sim, "the stranger's write: %lld", (long long)result);
    stranger->written = (uint64_t)result;
    stranger->busy = false;
}

static bool stranger_is_done(void *argument)
{
    return !((struct stranger *)argument)->busy;
}

static void stranger_open(struct stranger *stranger, struct crash_sim *sim, const char *path)
{
    *stranger = (struct stranger){.sim = sim, .io = world_reactor(sim->world, "stranger", 1000)};
    world_run_for(sim->world, 5 * NS_PER_S); /* what the dead have left to the kernel has landed */
    if (crash_chance(sim, 300))
        world_run_for(sim->world, WATCH_LANDING_NS);
    world_act_as(sim->world, stranger->io);
    stranger->fd = io_open(stranger->io, path, O_RDWR, 0);
    world_act_as(sim->world, NULL);
}

static void stranger_write(struct stranger *stranger, uint64_t at, uint8_t *bytes, uint64_t length)
{
    for (uint64_t done = 0; done < length; done += stranger->written) {
        world_act_as(stranger->sim->world, stranger->io);
        stranger->op.done = stranger_done;
        stranger->iov = (struct iovec){bytes + done, length - done};
        stranger->busy = true;
        io_writev(stranger->io, &stranger->op, stranger->fd, &stranger->iov, 1, at + done, IO_WRITE_DSYNC);
        world_act_as(stranger->sim->world, NULL);
        if (!world_run_until(stranger->sim->world, stranger_is_done, stranger, 60 * NS_PER_S))
            crash_fail(stranger->sim, "the stranger's write is never done");
    }
}

static void stranger_close(struct stranger *stranger)
{
    world_act_as(stranger->sim->world, stranger->io);
    io_close(stranger->io, stranger->fd);
    world_act_as(stranger->sim->world, NULL);
    world_kill(stranger->sim->world, 1000);
}

/* Copies of earlier times. */

static void keep(struct crash_copy *copy, uint64_t size)
{
    copy->bytes = realloc(copy->bytes, size + 1);
    if (!copy->bytes)
        abort();
    copy->size = size;
}

static void keep_disk(struct crash_sim *sim)
{
    const uint8_t *bytes = world_file_bytes(world_file_find(sim->world, CRASH_DISK));
    keep(&sim->old_disk, (uint64_t)sim->touched_count * CRASH_SECTOR);
    for (uint32_t i = 0; i < sim->touched_count; i++)
        memcpy(sim->old_disk.bytes + (uint64_t)i * CRASH_SECTOR, bytes + (uint64_t)sim->touched[i] * CRASH_SECTOR,
               CRASH_SECTOR);
    sim->old_disk.number = sim->number;
}

static void keep_sidecar(struct crash_sim *sim)
{
    struct world_file *file = world_file_find(sim->world, CRASH_SIDECAR);
    if (!file || !sim->born)
        return;
    keep(&sim->old_sidecar, world_file_size(file));
    memcpy(sim->old_sidecar.bytes, world_file_bytes(file), world_file_size(file));
    sim->old_sidecar.number = sim->number;
    sim->old_sidecar.closed = !sim->life && sim->was_clean;
    sim->old_sidecar.life = sim->last_open;
}

void tamper_copy(struct crash_sim *sim)
{
    if (!sim->tampers)
        return;
    if (crash_chance(sim, 512))
        keep_disk(sim);
    else
        keep_sidecar(sim);
}

/* Deeds: each returns whether it has changed anything. */

static bool write_behind(struct crash_sim *sim)
{
    struct stranger stranger;
    uint8_t bytes[CRASH_SECTOR];
    stranger_open(&stranger, sim, CRASH_DISK);
    for (uint64_t count = 1 + crash_below(sim, 6); count > 0; count--) {
        uint64_t sector = sim->spots[crash_below(sim, sim->spot_count)] / CRASH_SECTOR + crash_below(sim, 8);
        guest_sector_replaced(sim, sector, bytes);
        stranger_write(&stranger, sector * CRASH_SECTOR, bytes, CRASH_SECTOR);
    }
    stranger_close(&stranger);
    return true;
}

static bool roll_back(struct crash_sim *sim)
{
    static uint8_t zeroes[CRASH_SECTOR];
    struct world_file *file = world_file_find(sim->world, CRASH_DISK);
    struct stranger stranger;
    bool changed = false;
    if (!sim->old_disk.bytes || sim->old_disk.number == sim->number)
        return false;
    stranger_open(&stranger, sim, CRASH_DISK);
    for (uint32_t i = 0; i < sim->touched_count; i++) {
        uint64_t at = (uint64_t)sim->touched[i] * CRASH_SECTOR, old_at = (uint64_t)i * CRASH_SECTOR;
        uint8_t *old = old_at < sim->old_disk.size ? sim->old_disk.bytes + old_at : zeroes;
        struct sector *sector = &sim->sectors[sim->touched[i]];
        sector->acknowledged = sector->durable = 0;
        if (memcmp(old, world_file_bytes(file) + at, CRASH_SECTOR) == 0)
            continue;
        changed = true;
        sim->newest_undone = sim->newest_undone || sector->last == sim->newest_acknowledged;
        stranger_write(&stranger, at, old, CRASH_SECTOR);
    }
    stranger_close(&stranger);
    return changed;
}

/* A copy of the disk, with a change, in another file. */
static bool exchange_disk(struct crash_sim *sim)
{
    if (sim->block_device)
        return false;
    world_run_for(sim->world, 5 * NS_PER_S);
    uint64_t bytes = (uint64_t)sim->touched_count * CRASH_SECTOR;
    uint8_t *copy = malloc(bytes + 1);
    if (!copy)
        abort();
    const uint8_t *from = world_file_bytes(world_file_find(sim->world, CRASH_DISK));
    for (uint32_t i = 0; i < sim->touched_count; i++)
        memcpy(copy + (uint64_t)i * CRASH_SECTOR, from + (uint64_t)sim->touched[i] * CRASH_SECTOR, CRASH_SECTOR);
    world_file_remove(sim->world, CRASH_DISK);
    struct world_file *file = world_file_create(sim->world, CRASH_DISK, sim->size, sim->alignment, false);
    for (uint32_t i = 0; i < sim->touched_count; i++)
        world_file_fill(file, (uint64_t)sim->touched[i] * CRASH_SECTOR, copy + (uint64_t)i * CRASH_SECTOR,
                        CRASH_SECTOR);
    free(copy);
    return write_behind(sim);
}

static bool truncate_file(struct crash_sim *sim, const char *path, uint64_t size)
{
    struct stranger stranger;
    stranger_open(&stranger, sim, path);
    world_act_as(sim->world, stranger.io);
    if (io_truncate(stranger.io, stranger.fd, size) < 0)
        crash_fail(sim, "the stranger cannot truncate");
    world_act_as(sim->world, NULL);
    stranger_close(&stranger);
    return true;
}

static bool change_size(struct crash_sim *sim)
{
    if (sim->block_device)
        return false;
    uint64_t by = 4096 * (1 + crash_below(sim, 200));
    uint64_t size = crash_chance(sim, 512) ? sim->size + by : sim->size - by;
    if (size == sim->grow_to) /* which would be ours */
        size += CRASH_SECTOR;
    for (uint64_t at = size / CRASH_SECTOR; at < sim->size / CRASH_SECTOR; at++)
        sim->sectors[at].acknowledged = sim->sectors[at].durable = 0;
    return truncate_file(sim, CRASH_DISK, size);
}

static bool restore_old_sidecar(struct crash_sim *sim)
{
    struct world_file *file = world_file_find(sim->world, CRASH_SIDECAR);
    struct stranger stranger;
    if (!sim->old_sidecar.bytes || world_file_size(file) != sim->old_sidecar.size ||
        memcmp(world_file_bytes(file), sim->old_sidecar.bytes, sim->old_sidecar.size) == 0)
        return false;
    stranger_open(&stranger, sim, CRASH_SIDECAR);
    stranger_write(&stranger, 0, sim->old_sidecar.bytes, sim->old_sidecar.size);
    stranger_close(&stranger);
    return true;
}

static bool flip_bits(struct crash_sim *sim)
{
    struct world_file *file = world_file_find(sim->world, CRASH_SIDECAR);
    struct stranger stranger;
    uint8_t sector[CRASH_SECTOR];
    stranger_open(&stranger, sim, CRASH_SIDECAR);
    for (uint64_t count = 1 + crash_below(sim, 4); count > 0; count--) {
        uint64_t end = crash_chance(sim, 700) ? 32 : world_file_size(file) / CRASH_SECTOR;
        uint64_t at = crash_below(sim, end) * CRASH_SECTOR;
        memcpy(sector, world_file_bytes(file) + at, CRASH_SECTOR);
        sector[crash_below(sim, CRASH_SECTOR)] ^= (uint8_t)(1 << crash_below(sim, 8));
        stranger_write(&stranger, at, sector, CRASH_SECTOR);
    }
    stranger_close(&stranger);
    return true;
}

static bool cut_sidecar(struct crash_sim *sim)
{
    uint64_t size = world_file_size(world_file_find(sim->world, CRASH_SIDECAR));
    return truncate_file(sim, CRASH_SIDECAR, CRASH_SECTOR * (1 + crash_below(sim, size / CRASH_SECTOR - 1)));
}

static bool tamper(struct crash_sim *sim, enum crash_tamper how)
{
    switch (how) {
    case TAMPER_NONE:
    case TAMPER_COUNT:
        return false;
    case TAMPER_WRITE:
        return write_behind(sim);
    case TAMPER_ROLLBACK:
        return roll_back(sim);
    case TAMPER_OTHER_DISK:
        return exchange_disk(sim);
    case TAMPER_SIZE:
        return change_size(sim);
    case TAMPER_OLD_SIDECAR:
        return restore_old_sidecar(sim);
    case TAMPER_BITS:
        return flip_bits(sim);
    case TAMPER_CUT_SIDECAR:
        return cut_sidecar(sim);
    }
    return false;
}

static bool was_quiet(const struct crash_sim *sim)
{
    return sim->death_ns - sim->busy_ns > 3 * WATCH_PERIOD_NS;
}

/* Whether the memory of a killed daemon tells that the disk's file has been written just now: it had been quiet, or its last
 * writes must have landed long ago. */
static bool is_watched(const struct crash_sim *sim, bool memory)
{
    return memory &&
           (was_quiet(sim) || world_now(sim->world) > sim->death_ns + WATCH_LANDING_NS + 2 * WATCH_CLOCK_SLACK_NS);
}

/* Whether it must be noticed. */
static bool is_noticed(const struct crash_sim *sim, enum crash_tamper how, bool memory)
{
    switch (how) {
    case TAMPER_NONE:
    case TAMPER_BITS: /* or it does no harm */
    case TAMPER_CUT_SIDECAR:
    case TAMPER_COUNT:
        return false;
    case TAMPER_SIZE:
        return true;
    case TAMPER_ROLLBACK:
        return sim->block_device ? sim->was_clean && sim->newest_undone : sim->was_clean || is_watched(sim, memory);
    case TAMPER_WRITE:
        return !sim->block_device && (sim->was_clean || is_watched(sim, memory));
    case TAMPER_OTHER_DISK:
        return true;
    case TAMPER_OLD_SIDECAR:
        if (memory) /* which is of a later open */
            return sim->old_sidecar.life < sim->last_open;
        return sim->was_clean && !sim->block_device && sim->old_sidecar.closed &&
               sim->old_sidecar.number < sim->newest_acknowledged;
    }
    return false;
}

/* What the dead have left to the kernel has landed. A disk that was written when its daemon died need not be believed when
 * the clock is set back. */
void tamper_clock(struct crash_sim *sim)
{
    if (!sim->tampers)
        return;
    world_run_for(sim->world, 5 * NS_PER_S);
    int64_t by = (int64_t)crash_below(sim, 7200 * NS_PER_S) - (int64_t)(3600 * NS_PER_S);
    world_set_clock(sim->world, by);
    sim->excuse = sim->excuse || (by < 0 && !was_quiet(sim));
    crash_trace(sim, "the clock is set by %lld s", (long long)by / (long long)NS_PER_S);
}

void tamper_between(struct crash_sim *sim)
{
    if (!sim->tampers || sim->tamper != TAMPER_NONE || !sim->born || sim->result.tampers >= CRASH_TAMPERS)
        return;
    enum crash_tamper how = (enum crash_tamper)(1 + crash_below(sim, TAMPER_COUNT - 1));
    bool memory = crash_has_memory(sim);
    sim->newest_undone = false;
    if (!tamper(sim, how))
        return;
    sim->result.tampers++;
    sim->tamper = how;
    sim->excuse = true;
    sim->damaged = how == TAMPER_BITS || how == TAMPER_CUT_SIDECAR;
    sim->must_be_invalid = is_noticed(sim, how, memory);
    crash_trace(sim, "behind our back: %d%s", (int)how, sim->must_be_invalid ? ", which must be noticed" : "");
}

void tamper_reset(struct crash_sim *sim)
{
    world_run_for(sim->world, 5 * NS_PER_S);
    crash_trace(sim, "the sidecar is thrown away");
    if (world_file_size(world_file_find(sim->world, CRASH_DISK)) != sim->size)
        truncate_file(sim, CRASH_DISK, sim->size);
    world_file_remove(sim->world, CRASH_SIDECAR);
    free(sim->old_sidecar.bytes);
    sim->old_sidecar = (struct crash_copy){.bytes = NULL};
    sim->condemned = sim->excuse = sim->must_be_invalid = sim->damaged = sim->born = false;
    sim->was_killed = sim->was_clean = false;
    sim->tamper = TAMPER_NONE;
}
