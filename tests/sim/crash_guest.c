/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The guest of the crash simulation: writes, zeroes, discards and flushes, and what it may rely on.
 *
 * A sector's numbers move so: at the submission of a request it gets `last`, and if another one is under way there, all
 * up to now are `racy`. An acknowledged request that is not racy moves `acknowledged` there; a flush that succeeds moves
 * `durable` to what was acknowledged when it was submitted. So a sector that holds an older request's data than
 * `acknowledged` after a kill, or than `durable` after a power loss, has lost a write.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "crash.h"

#define PRINT_MAGIC UINT64_C(0x5ec7000000000000)
#define PRINT_MASK UINT64_C(0xffff000000000000)

void sector_touch(struct crash_sim *sim, uint64_t number)
{
    struct sector *sector = &sim->sectors[number];
    if (sector->index == 0) {
        sim->touched[sim->touched_count++] = (uint32_t)number;
        sector->index = sim->touched_count;
    }
}

const uint8_t *crash_disk_bytes(const struct crash_sim *sim)
{
    return world_file_bytes(world_file_find(sim->world, CRASH_DISK));
}

static void fill(uint8_t *bytes, uint32_t number, uint64_t sector)
{
    uint64_t word = PRINT_MAGIC | number;
    for (unsigned i = 0; i < CRASH_SECTOR / 8; i++, word += sector << 33 | UINT64_C(0x100000000))
        memcpy(bytes + 8 * i, &word, 8);
}

static struct range sectors_of(const struct request *req)
{
    return (struct range){req->range.start / CRASH_SECTOR, req->range.length / CRASH_SECTOR};
}

static void stamp(struct crash_sim *sim, struct range range)
{
    for (uint64_t at = range.start / sim->granularity; at * sim->granularity < range_end(range); at++)
        sim->stamps[at] = sim->stamp;
}

void guests_restamp(struct crash_life *life)
{
    life->sim->stamp++;
    for (unsigned i = 0; i < CRASH_GUESTS; i++)
        if (life->guests[i].busy && request_is_write(&life->guests[i].req))
            stamp(life->sim, life->guests[i].req.range);
}

static void log_append(struct crash_sim *sim, struct range range, uint32_t number)
{
    if (sim->log_count == sim->log_room) {
        sim->log_room = sim->log_room ? 2 * sim->log_room : 1024;
        sim->log = realloc(sim->log, sim->log_room * sizeof *sim->log);
        sim->log_numbers = realloc(sim->log_numbers, sim->log_room * sizeof *sim->log_numbers);
        if (!sim->log || !sim->log_numbers)
            abort();
    }
    sim->log[sim->log_count] = range;
    sim->log_numbers[sim->log_count++] = number;
}

static void acknowledge(struct crash_sim *sim, struct crash_guest *guest)
{
    struct range sectors = sectors_of(&guest->req);
    sim->newest_acknowledged = guest->number;
    if (guest->req.kind == REQUEST_DISCARD)
        return; /* a hint */
    for (uint64_t at = sectors.start; at < range_end(sectors); at++) {
        struct sector *sector = &sim->sectors[at];
        if (guest->number <= sector->racy || guest->number != sector->last)
            continue;
        sector->acknowledged = guest->number;
        if (guest->req.flags & REQUEST_FUA)
            sector->durable = guest->number;
    }
    log_append(sim, sectors, guest->number);
}

static void flushed(struct crash_sim *sim, uint64_t log_end)
{
    for (; sim->log_flushed < log_end; sim->log_flushed++) {
        struct range sectors = sim->log[sim->log_flushed];
        uint32_t number = sim->log_numbers[sim->log_flushed];
        for (uint64_t at = sectors.start; at < range_end(sectors); at++) {
            struct sector *sector = &sim->sectors[at];
            if (number > sector->racy && number <= sector->acknowledged && number > sector->durable)
                sector->durable = number;
        }
    }
}

static void land(struct crash_sim *sim, const struct crash_guest *guest)
{
    struct range sectors = sectors_of(&guest->req);
    for (uint64_t at = sectors.start; at < range_end(sectors); at++)
        sim->sectors[at].flying--;
}

static void guest_done(struct request *req, int status)
{
    struct crash_guest *guest = container_of(req, struct crash_guest, req);
    struct crash_life *life = guest->life;
    struct crash_sim *sim = life->sim;
    uint64_t took = world_now(sim->world) - guest->issued_ns;
    if (status < 0 && !sim->disk_faults)
        crash_fail(sim, "request %u of the guest failed with %d", guest->number, status);
    if (took > CRASH_PATIENCE_NS)
        crash_fail(sim, "request %u of the guest took %.3f s", guest->number, (double)took / (double)NS_PER_S);
    crash_trace(sim, "guest: request %u is done: %d", guest->number, status);
    if (request_is_write(req)) {
        land(sim, guest);
        if (status == 0)
            acknowledge(sim, guest);
    } else if (req->kind == REQUEST_FLUSH && status == 0) {
        flushed(sim, guest->log_end);
    }
    free(guest->buffer);
    guest->buffer = NULL;
    guest->busy = false;
    life->guests_busy--;
    life->sim->busy_ns = world_now(life->sim->world);
}

static struct range choose_range(struct crash_sim *sim)
{
    const uint64_t size = life_disk_size(sim->life);
    uint64_t start = sim->spots[crash_below(sim, sim->spot_count)], length = CRASH_SECTOR * (1 + crash_below(sim, 12));
    if (crash_chance(sim, 128)) { /* one after the other through all extents */
        start = sim->sequential;
        sim->sequential = (sim->sequential + sim->granularity * 512) % (size - 16 * CRASH_SECTOR);
        sim->sequential = round_down(sim->sequential, CRASH_SECTOR);
    }
    if (sim->large && crash_chance(sim, 24))
        length = CRASH_SECTOR * (1 + crash_below(sim, 2048));
    start += CRASH_SECTOR * crash_below(sim, 8);
    if (start + length > size)
        start = size - length;
    return (struct range){start, length};
}

static void prepare_write(struct crash_sim *sim, struct crash_guest *guest)
{
    struct range sectors = sectors_of(&guest->req);
    for (uint64_t at = sectors.start; at < range_end(sectors); at++) {
        struct sector *sector = &sim->sectors[at];
        sector_touch(sim, at);
        if (sector->flying > 0)
            sector->racy = guest->number;
        sector->flying++;
        sector->last = guest->number;
        if (guest->req.kind != REQUEST_WRITE)
            sector->zeroed = guest->number;
        if (guest->req.kind == REQUEST_DISCARD && sim->block_device)
            sector->wild = guest->number;
        if (guest->buffer)
            fill(guest->buffer + (at - sectors.start) * CRASH_SECTOR, guest->number, at);
    }
    sim->stamp++;
    stamp(sim, guest->req.range);
}

static enum request_kind choose_kind(struct crash_sim *sim)
{
    uint64_t dice = crash_below(sim, 32);
    return dice < 24    ? REQUEST_WRITE
           : dice == 24 ? REQUEST_READ
           : dice < 27  ? REQUEST_WRITE_ZEROES
           : dice == 27 ? REQUEST_DISCARD
                        : REQUEST_FLUSH;
}

void guest_act(struct crash_life *life)
{
    struct crash_sim *sim = life->sim;
    unsigned place = 0;
    while (place < CRASH_GUESTS && life->guests[place].busy)
        place++;
    if (place >= sim->guests_max)
        return;
    struct crash_guest *guest = &life->guests[place];
    *guest = (struct crash_guest){.life = life, .busy = true, .issued_ns = world_now(sim->world)};
    struct request *req = &guest->req;
    req->kind = choose_kind(sim);
    req->done = guest_done;
    guest->number = ++sim->number;
    guest->log_end = sim->log_count;
    sim->result.writes++;
    life->guests_busy++;
    if (req->kind != REQUEST_FLUSH)
        req->range = choose_range(sim);
    if (req->kind == REQUEST_WRITE || req->kind == REQUEST_READ) {
        if (posix_memalign((void **)&guest->buffer, 4096, req->range.length) != 0)
            abort();
        guest->iov = (struct iovec){guest->buffer, req->range.length};
        req->iov = &guest->iov;
        req->iov_count = 1;
    }
    if (request_is_write(req)) {
        req->flags = crash_chance(sim, 64) ? REQUEST_FUA : 0;
        if (req->kind == REQUEST_WRITE_ZEROES && crash_chance(sim, 512))
            req->flags |= REQUEST_NO_HOLE;
        prepare_write(sim, guest);
    }
    crash_trace(sim, "guest: request %u, kind %d, [%llu +%llu]", guest->number, (int)req->kind,
                (unsigned long long)req->range.start, (unsigned long long)req->range.length);
    node_submit(&life->disk->node, req);
}

void guests_forget(struct crash_life *life, bool power_lost)
{
    struct crash_sim *sim = life->sim;
    for (unsigned i = 0; i < CRASH_GUESTS; i++) {
        struct crash_guest *guest = &life->guests[i];
        if (guest->busy && request_is_write(&guest->req))
            land(sim, guest);
        free(guest->buffer);
        guest->buffer = NULL;
        guest->busy = false;
    }
    life->guests_busy = 0;
    if (!power_lost)
        return;
    for (uint32_t i = 0; i < sim->touched_count; i++)
        sim->sectors[sim->touched[i]].acknowledged = sim->sectors[sim->touched[i]].durable;
    sim->log_flushed = sim->log_count;
}

void guest_sector_replaced(struct crash_sim *sim, uint64_t number, uint8_t bytes[CRASH_SECTOR])
{
    struct sector *sector = &sim->sectors[number];
    sector_touch(sim, number);
    sector->acknowledged = sector->durable = sector->last = ++sim->number;
    fill(bytes, sim->number, number);
}

static bool sector_is_right(const struct sector *sector, uint64_t number, const uint8_t *bytes)
{
    uint8_t expected[CRASH_SECTOR];
    uint64_t print;
    memcpy(&print, bytes, sizeof print);
    if (sector->wild >= sector->acknowledged && sector->wild > 0)
        return true;
    if (print == 0)
        return (sector->acknowledged == 0 || sector->zeroed >= sector->acknowledged) && bytes[CRASH_SECTOR - 1] == 0;
    if ((print & PRINT_MASK) != PRINT_MAGIC || (uint32_t)print < sector->acknowledged)
        return false;
    fill(expected, (uint32_t)print, number);
    return memcmp(expected + CRASH_SECTOR - 8, bytes + CRASH_SECTOR - 8, 8) == 0;
}

void guest_check_disk(struct crash_sim *sim)
{
    const uint8_t *bytes = crash_disk_bytes(sim);
    for (uint32_t i = 0; i < sim->touched_count; i++) {
        uint64_t at = sim->touched[i];
        const struct sector *sector = &sim->sectors[at];
        if (!sector_is_right(sector, at, bytes + at * CRASH_SECTOR))
            crash_fail(sim, "sector %llu holds %016llx, but request %u was acknowledged (R6)", (unsigned long long)at,
                       (unsigned long long)sector_print(bytes, at), sector->acknowledged);
    }
}
