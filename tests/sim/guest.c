/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The guests: each disk has some of them, each with one request at a time, of every kind, anywhere, overlapping as it
 * happens. What each must see is told in sim.h. A request may fail only when the disk below was made to fail it, never
 * for the sake of a snapshot (R2), and completes exactly once.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "sim.h"

struct range sim_random_range(struct sim *sim, uint64_t size, uint64_t longest)
{
    uint64_t block = sim->block_bytes, dice = sim_below(sim, 16), first = SIM_RESERVED;
    uint64_t unit = dice < 8 ? 512 : dice < 12 ? block : 1;
    dice = sim_below(sim, 16);
    uint64_t most = dice < 9 ? 2 * block : dice < 14 ? 8 * block : longest;
    if (most > longest || ((sim->large || sim->huge) && (sim->many || (dice & 1) != 0)))
        most = longest;
    uint64_t length = 1 + sim_below(sim, most), start;
    dice = sim_below(sim, 16);
    if (dice < 6) /* a hot spot */
        start = first + sim_below(sim, 16 * block < size - first ? 16 * block : size - first);
    else
        start = first + sim_below(sim, size - first);
    start = round_down(start, unit);
    length = round_up(length, unit);
    if (start < first)
        start = first;
    if (length > longest)
        length = longest;
    if (dice == 15 && length < size - first) /* the tail */
        start = size - length;
    if (start + length > size) {
        if (start >= size)
            start = size - 1;
        length = size - start;
    }
    return (struct range){start, length};
}

struct range sim_random_place(struct sim *sim, const struct sim_disk *disk, uint64_t size, uint64_t longest)
{
    struct range stuck = sim->stuck_range;
    if (sim->stuck == 0 || sim->stuck_file != disk->file || stuck.start < SIM_RESERVED || stuck.length > longest ||
        range_end(stuck) > size || !sim_chance(sim, 128))
        return sim_random_range(sim, size, longest);
    return stuck;
}

void sim_slice(struct sim *sim, struct iovec *iov, unsigned *iov_count, uint8_t *buffer, uint64_t length)
{
    uint64_t cut = length > 1 && sim_chance(sim, 256) ? 1 + sim_below(sim, length - 1) : 0;
    *iov_count = 0;
    if (cut != 0)
        iov[(*iov_count)++] = (struct iovec){buffer, cut};
    iov[(*iov_count)++] = (struct iovec){buffer + cut, length - cut};
}

static void fill(struct sim *sim, uint8_t *buffer, uint64_t length)
{
    uint64_t word = world_random(sim->world) | 1, step = word << 8 | 0x51, rest = length % 8;
    for (uint64_t i = 0; i < length / 8; i++) {
        uint64_t value = word + i * step;
        memcpy(buffer + 8 * i, &value, 8);
    }
    memcpy(buffer + length - rest, &word, rest);
}

static enum request_kind random_kind(struct sim *sim)
{
    uint64_t dice = sim->many ? 10 + sim_below(sim, 54) : sim_below(sim, 64);
    if (sim->huge && dice >= 48 && dice < 58) /* a disk without holes: its status is one long extent */
        dice = 47;
    return dice < 16   ? REQUEST_READ
           : dice < 48 ? REQUEST_WRITE
           : dice < 54 ? REQUEST_WRITE_ZEROES
           : dice < 58 ? REQUEST_DISCARD
           : dice < 60 ? REQUEST_FLUSH
                       : REQUEST_BLOCK_STATUS;
}

static bool is_write(const struct guest *guest)
{
    return request_is_write(&guest->req);
}

/* Marks who races with whom. */
static void note_races(struct guest *guest)
{
    struct sim_disk *disk = guest->disk;
    for (unsigned i = 0; i < disk->guest_count; i++) {
        struct guest *other = &disk->guests[i];
        if (other == guest || !other->busy || !range_overlaps(guest->req.range, other->req.range))
            continue;
        if (is_write(guest)) {
            other->raced = true;
            other->raced_discard = other->raced_discard || guest->req.kind == REQUEST_DISCARD;
        }
        if (is_write(other)) {
            guest->raced = true;
            guest->raced_discard = guest->raced_discard || other->req.kind == REQUEST_DISCARD;
        }
    }
}

static void guest_done(struct request *req, int status);

static uint32_t random_flags(struct sim *sim, enum request_kind kind)
{
    uint32_t flags = 0;
    if (kind == REQUEST_BLOCK_STATUS)
        return sim_chance(sim, 512) ? REQUEST_ONE : 0;
    if (kind == REQUEST_READ || kind == REQUEST_FLUSH)
        return 0;
    if (sim_chance(sim, 128))
        flags |= REQUEST_FUA;
    if (kind == REQUEST_WRITE_ZEROES)
        flags |= (sim_chance(sim, 512) ? REQUEST_NO_HOLE : 0) | (sim_chance(sim, 256) ? REQUEST_FAST_ZERO : 0);
    return flags;
}

static void guest_issue(struct guest *guest)
{
    struct sim_disk *disk = guest->disk;
    struct sim *sim = disk->sim;
    struct request *req = &guest->req;
    if (sim->requests_left == 0) {
        disk->guests_busy--;
        return;
    }
    sim->requests_left--;
    enum request_kind kind = random_kind(sim);
    *req = (struct request){.kind = kind, .flags = random_flags(sim, kind), .done = guest_done};
    if (kind != REQUEST_FLUSH)
        req->range = sim_random_place(sim, disk, disk->size, sim->longest);
    if (kind == REQUEST_READ || kind == REQUEST_WRITE) {
        sim_slice(sim, guest->iov, &req->iov_count, guest->buffer, req->range.length);
        req->iov = guest->iov;
    }
    if (kind == REQUEST_WRITE && sim_chance(sim, sim->huge ? 0 : 100))
        memset(guest->buffer, 0, req->range.length);
    else if (kind == REQUEST_WRITE)
        fill(sim, guest->buffer, req->range.length);
    if (kind == REQUEST_BLOCK_STATUS) {
        req->extents = guest->extents;
        req->extent_max = 1 + (unsigned)sim_below(sim, SIM_EXTENTS);
        if (sim_chance(sim, 32))
            req->range = (struct range){0, disk->size};
    }
    guest->busy = true;
    guest->raced = guest->raced_discard = guest->faulted = false;
    guest->read_faults = disk->read_faults;
    note_races(guest);
    if (is_write(guest))
        oracle_touch(disk, req->range);
    sim_trace(sim, "%s guest %u issues kind %d [%llu +%llu] flags %u", disk->name, (unsigned)(guest - disk->guests),
              (int)kind, (unsigned long long)req->range.start, (unsigned long long)req->range.length, req->flags);
    guest->submitting = true;
    guest->issued_at = world_now(sim->world);
    node_submit(&disk->disk->node, req);
    guest->submitting = false;
}

static void guest_next(struct guest *guest);

static void guest_pause_over(struct io_timer *timer)
{
    struct guest *guest = container_of(timer, struct guest, pause);
    if (sim_waits_for_last(guest->disk->sim))
        guest_next(guest);
    else
        guest_issue(guest);
}

static void guest_next(struct guest *guest)
{
    struct sim *sim = guest->disk->sim;
    bool slow = sim_waits_for_last(sim) || (sim_slow(sim) && sim_chance(sim, 960));
    if (!slow && !sim_chance(sim, 200)) {
        guest_issue(guest);
        return;
    }
    guest->pause.fire = guest_pause_over;
    io_timer_set(guest->disk->io, &guest->pause,
                 world_now(sim->world) + sim_below(sim, sim_waits_for_last(sim) ? NS_PER_MS
                                                        : slow                  ? 30 * NS_PER_MS
                                                                                : 300 * NS_PER_US));
}

void sim_check_extents(const struct sim *sim, const struct request *req, const uint8_t *bytes, const char *whose)
{
    uint64_t at = req->range.start;
    if (req->extent_count == 0 || req->extent_count > req->extent_max)
        sim_fail(sim, "block status of %s: %u extents, room was for %u", whose, req->extent_count, req->extent_max);
    if ((req->flags & REQUEST_ONE) != 0 && req->extent_count > 1)
        sim_fail(sim, "block status of %s: one extent was asked for, %u came", whose, req->extent_count);
    for (unsigned i = 0; i < req->extent_count; i++) {
        const struct block_extent *extent = &req->extents[i];
        if (extent->length == 0 || extent->length > range_end(req->range) - at)
            sim_fail(sim, "block status of %s: extent %u at %llu has a length of %llu", whose, i,
                     (unsigned long long)at, (unsigned long long)extent->length);
        if ((extent->flags & EXTENT_ZERO) != 0 && bytes != NULL &&
            (bytes[at] != 0 || memcmp(bytes + at, bytes + at + 1, extent->length - 1) != 0))
            sim_fail(sim, "block status of %s: [%llu +%llu] is said to read as zeroes, and does not", whose,
                     (unsigned long long)at, (unsigned long long)extent->length);
        at += extent->length;
    }
}

/* A discard is done when its blocks are needed no more, or never. What is written after it cancels it. */
static void settle_loose(struct guest *guest, int status)
{
    uint8_t *loose = guest->disk->loose + guest->req.range.start;
    if (guest->req.kind == REQUEST_DISCARD)
        memset(loose, 1, guest->req.range.length);
    else if (status == 0 && !guest->raced_discard)
        memset(loose, 0, guest->req.range.length);
}

/* The write is acknowledged: what it wrote must be there, unless another one may have written on top. */
static void settle_write(struct guest *guest, int status)
{
    struct sim_disk *disk = guest->disk;
    struct range range = guest->req.range;
    uint8_t *model = disk->model + range.start;
    const uint8_t *truth = world_file_bytes(disk->file) + range.start;
    bool certain = status == 0 && !guest->raced && guest->req.kind != REQUEST_DISCARD;
    settle_loose(guest, status);
    if (status == 0 && guest->req.kind != REQUEST_DISCARD)
        bitmaps_written(disk, range, guest->issued_at);
    else if (guest->req.kind == REQUEST_DISCARD)
        bitmaps_issued(disk, range); /* it may be done at any time from now on */
    if (!certain) {
        memcpy(model, truth, range.length);
        return;
    }
    if (guest->req.kind == REQUEST_WRITE)
        memcpy(model, guest->buffer, range.length);
    else
        memset(model, 0, range.length);
    if (memcmp(model, truth, range.length) != 0)
        sim_fail(disk->sim, "%s: a write of [%llu +%llu] was acknowledged, and other data is on the disk", disk->name,
                 (unsigned long long)range.start, (unsigned long long)range.length);
}

static void settle_read(struct guest *guest)
{
    struct sim_disk *disk = guest->disk;
    struct range range = guest->req.range;
    if (guest->raced)
        return;
    if (guest->req.kind == REQUEST_BLOCK_STATUS) {
        sim_check_extents(disk->sim, &guest->req, range.start == 0 ? NULL : world_file_bytes(disk->file), disk->name);
        return;
    }
    if (memcmp(guest->buffer, disk->model + range.start, range.length) == 0)
        return;
    for (uint64_t i = 0; i < range.length; i++)
        if (!oracle_may_be(disk, range.start + i, guest->buffer[i]))
            sim_fail(disk->sim, "%s: the guest read [%llu +%llu] and got other data than it had written", disk->name,
                     (unsigned long long)range.start, (unsigned long long)range.length);
}

static void count(struct sim_disk *disk, const struct request *req, int status)
{
    struct disk_counters *counters = &disk->counters;
    if (status < 0) {
        counters->errors++;
        return;
    }
    counters->reads += req->kind == REQUEST_READ;
    counters->read_bytes += req->kind == REQUEST_READ ? req->range.length : 0;
    counters->writes += req->kind == REQUEST_WRITE;
    counters->written_bytes += req->kind == REQUEST_WRITE ? req->range.length : 0;
    counters->zeroes += req->kind == REQUEST_WRITE_ZEROES;
    counters->discards += req->kind == REQUEST_DISCARD;
    counters->flushes += req->kind == REQUEST_FLUSH;
}

static void guest_done(struct request *req, int status)
{
    struct guest *guest = container_of(req, struct guest, req);
    struct sim_disk *disk = guest->disk;
    struct sim *sim = disk->sim;
    sim_trace(sim, "%s guest %u done %d", disk->name, (unsigned)(guest - disk->guests), status);
    if (!guest->busy || guest->submitting)
        sim_fail(sim, "%s: a request of the guest was completed twice, or inside node_submit()", disk->name);
    bool refused = status == -EOPNOTSUPP && (req->flags & REQUEST_FAST_ZERO) != 0;
    if (status != 0 && !refused && !guest->faulted)
        sim_fail(sim, "%s: a request of the guest (kind %d) failed with %d, and the disk was not to blame (R2)",
                 disk->name, (int)req->kind, status);
    uint64_t waited_ns = world_now(sim->world) - guest->issued_at;
    if (waited_ns > sim->patience_ns)
        sim_fail(sim, "%s: a request of the guest took %llu us (R2)", disk->name,
                 (unsigned long long)(waited_ns / 1000));
    guest->busy = false;
    count(disk, req, status);
    if (is_write(guest))
        settle_write(guest, status);
    else if (status == 0 && req->kind != REQUEST_FLUSH)
        settle_read(guest);
    sim->requests_done++;
    guest_next(guest);
}

uint8_t *sim_buffer(struct sim *sim, uint64_t length, void **memory)
{
    if ((*memory = aligned_alloc(4096, round_up(length, 4096) + 4096)) == NULL)
        abort();
    return (uint8_t *)*memory + (sim_chance(sim, 512) ? 0 : 16 * sim_below(sim, 256));
}

struct guest *sim_guest_of(struct sim *sim, const struct request *req)
{
    for (unsigned i = 0; i < sim->disk_count; i++)
        for (unsigned k = 0; k < sim->disks[i].guest_count; k++)
            if (req == &sim->disks[i].guests[k].req ||
                req->iov == sim->disks[i].guests[k].iov) /* or a filter's for it */
                return &sim->disks[i].guests[k];
    return NULL;
}

void guests_create(struct sim_disk *disk)
{
    struct sim *sim = disk->sim;
    disk->guest_count = sim->many ? sim->guests_max : 2 + (unsigned)sim_below(sim, sim->guests_max - 1);
    for (unsigned i = 0; i < disk->guest_count; i++) {
        disk->guests[i].disk = disk;
        disk->guests[i].buffer = sim_buffer(sim, sim->longest, &disk->guests[i].memory);
    }
}

void guests_start(struct sim_disk *disk)
{
    disk->guests_busy = disk->guest_count;
    for (unsigned i = 0; i < disk->guest_count; i++)
        guest_next(&disk->guests[i]);
}

void guests_destroy(struct sim_disk *disk)
{
    for (unsigned i = 0; i < disk->guest_count; i++)
        free(disk->guests[i].memory);
}
