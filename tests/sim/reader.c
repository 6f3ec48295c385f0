/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The readers of a snapshot's view: each with one request at a time, at random places, or from the beginning to the end as
 * a backup does, which releases what it has read. Every byte must be that of the image, however long ago the guest has
 * overwritten it. What has been released fails with -ENODATA, exactly that; a broken or deleted snapshot answers errors.
 * Residence may say no more and no less than what the model knows.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "sim.h"

struct reader {
    struct sim *sim;
    struct sim_snapshot *snapshot;
    struct sim_disk *disk;
    struct node *node;
    struct readers *all;
    struct request req;
    struct iovec iov[3];
    struct block_extent extents[SIM_EXTENTS];
    uint8_t *buffer;
    void *memory;
    uint64_t longest;
    bool busy;
    bool releases;     /* the view can */
    bool consumes;     /* from the beginning to the end, releasing */
    bool release_next; /* ... what it has just read */
    uint64_t at;       /* where it is */
    uint64_t read_faults, issued_at;
    struct io_timer pause;
};

struct readers {
    unsigned count, out;
    bool stopping;
    void (*stopped)(void *argument);
    void *argument;
    struct reader each[];
};

static void reader_issue(struct reader *reader);

static void reader_stop(struct reader *reader)
{
    struct readers *all = reader->all;
    if (--all->out == 0)
        all->stopped(all->argument);
}

static void reader_pause_over(struct io_timer *timer)
{
    reader_issue(container_of(timer, struct reader, pause));
}

/* What readers find while the guests rest is soon known: no time is spent on it. */
static bool readers_lead(const struct sim *sim)
{
    return sim->reads_done > sim->requests_done + sim->requests_done / 2 + 100;
}

static void reader_pause(struct reader *reader)
{
    struct sim *sim = reader->sim;
    uint64_t longest = sim_slow(sim)          ? 10 * NS_PER_MS
                       : readers_lead(sim)    ? 2 * NS_PER_MS
                       : sim_chance(sim, 128) ? NS_PER_MS
                                              : 300 * NS_PER_US;
    reader->pause.fire = reader_pause_over;
    io_timer_set(reader->disk->io, &reader->pause, world_now(sim->world) + 1 + sim_below(sim, longest));
}

/* ---- what they must see ---- */

static struct sim_part *part_of(const struct reader *reader)
{
    return &reader->snapshot->parts[reader->disk->index];
}

static struct block_range blocks_of(const struct reader *reader)
{
    return range_to_blocks(reader->req.range, (unsigned)__builtin_ctzll(reader->sim->block_bytes));
}

/* Whether the block was released when the request was issued, and whether it may be by now. */
static bool was_gone(const struct reader *reader, uint64_t block)
{
    uint64_t released_ns = part_of(reader)->released_ns[block];
    return (released_ns != 0 && released_ns < reader->issued_at) || part_of(reader)->needs[block] == SIM_OUTSIDE;
}
static bool may_be_gone(const struct reader *reader, uint64_t block)
{
    const struct sim_part *part = part_of(reader);
    return part->asked_ns[block] != 0 || part->needs[block] != SIM_NEEDED || target_has(part->target, block);
}

static bool any_block(const struct reader *reader, bool (*is)(const struct reader *reader, uint64_t block))
{
    struct block_range blocks = blocks_of(reader);
    for (uint64_t block = blocks.first; block < block_range_end(blocks); block++)
        if (is(reader, block))
            return true;
    return false;
}

static void check_error(const struct reader *reader, int status)
{
    const struct sim *sim = reader->sim;
    struct sim_snapshot *snapshot = reader->snapshot;
    if (status == -ENODATA && any_block(reader, may_be_gone))
        return;
    bool faulted = reader->disk->read_faults != reader->read_faults;
    if (status == -EIO && !faulted && snapshot->failed_at == 0)
        snapshot->failed_at = world_now(sim->world);
    if (status == -EIO && (sim->may_break || faulted))
        return;
    if (status == -ESHUTDOWN && (snapshot->ending || !snapshot->live)) /* or taken back */
        return;
    sim_fail(sim, "a request (kind %d) to %s@%s failed with %d, for no reason", (int)reader->req.kind,
             reader->disk->name, snapshot->name, status);
}

static void check_data(const struct reader *reader)
{
    const struct range range = reader->req.range;
    const uint8_t *image = part_of(reader)->image;
    if (any_block(reader, was_gone))
        sim_fail(reader->sim, "%s@%s: a read of [%llu +%llu] succeeded, and a part of that was released",
                 reader->disk->name, reader->snapshot->name, (unsigned long long)range.start,
                 (unsigned long long)range.length);
    if (memcmp(reader->buffer, image + range.start, range.length) == 0)
        return;
    uint64_t at = 0;
    while (reader->buffer[at] == image[range.start + at])
        at++;
    sim_fail(reader->sim, "%s@%s: byte %llu of [%llu +%llu] is not what it was at the cut (R1)", reader->disk->name,
             reader->snapshot->name, (unsigned long long)(range.start + at), (unsigned long long)range.start,
             (unsigned long long)range.length);
}

/* What is described is needed: an answer ends before the first block that is not. */
static void check_status(const struct reader *reader)
{
    struct reader described = *reader;
    sim_check_extents(reader->sim, &reader->req, any_block(reader, may_be_gone) ? NULL : part_of(reader)->image,
                      reader->snapshot->name);
    described.req.range.length = 0;
    for (unsigned i = 0; i < reader->req.extent_count; i++)
        described.req.range.length += reader->req.extents[i].length;
    if (any_block(&described, was_gone))
        sim_fail(reader->sim, "%s@%s: block status of [%llu +%llu] describes a block that was released",
                 reader->disk->name, reader->snapshot->name, (unsigned long long)described.req.range.start,
                 (unsigned long long)described.req.range.length);
}

static bool is_zero(const uint8_t *bytes, uint64_t length)
{
    return bytes[0] == 0 && memcmp(bytes, bytes + 1, length - 1) == 0;
}

static const char *residence_fault(const struct reader *reader, uint64_t block, uint32_t flags)
{
    const struct sim_disk *disk = reader->disk;
    const struct sim_part *part = part_of(reader);
    uint64_t start = block * reader->sim->block_bytes, length = reader->sim->block_bytes;
    uint32_t places = flags & (RESIDENCE_RAM | RESIDENCE_CACHE | RESIDENCE_ZERO);
    if (start + length > part->size)
        length = part->size - start;
    if ((flags & RESIDENCE_RELEASED) != 0)
        return flags != RESIDENCE_RELEASED  ? "is released and somewhere"
               : may_be_gone(reader, block) ? NULL
                                            : "is said to be released";
    if (was_gone(reader, block))
        return "was released, and is not said to be";
    if ((places & (places - 1)) != 0)
        return "is in two places";
    if ((flags & RESIDENCE_CHANGED) == 0) {
        if (places != 0 && (places != RESIDENCE_RAM || !reader->sim->copy_on_read))
            return "has not changed, and is in the cache";
        if (memcmp(part->image + start, world_file_bytes(disk->file) + start, length) != 0)
            return "has changed, and is not said to have";
    } else if (disk->touched[block] <= part->cut) {
        return "is said to have changed, and has not been written since";
    }
    if (places == RESIDENCE_ZERO && !is_zero(part->image + start, length))
        return "is said to be zero, and is not";
    return NULL;
}

static void check_residence(const struct reader *reader)
{
    const struct request *req = &reader->req;
    const uint64_t block_bytes = reader->sim->block_bytes;
    uint64_t at = req->range.start;
    sim_check_extents(reader->sim, req, NULL, reader->snapshot->name);
    for (unsigned i = 0; i < req->extent_count; at += req->extents[i++].length)
        for (uint64_t block = at / block_bytes; block * block_bytes < at + req->extents[i].length; block++) {
            const char *fault = residence_fault(reader, block, req->extents[i].flags);
            if (fault != NULL)
                sim_fail(reader->sim, "residence of %s@%s: block %llu (flags %u) %s", reader->disk->name,
                         reader->snapshot->name, (unsigned long long)block, req->extents[i].flags, fault);
        }
}

/* Blocks that the range covers wholly; the disk's last one may be short. */
static struct block_range released_blocks(const struct reader *reader)
{
    const uint64_t block_bytes = reader->sim->block_bytes;
    struct range range = reader->req.range;
    uint64_t first = round_up(range.start, block_bytes) / block_bytes;
    uint64_t end = range_end(range) == reader->node->size_bytes ? round_up(range_end(range), block_bytes) / block_bytes
                                                                : range_end(range) / block_bytes;
    return (struct block_range){first, end > first ? end - first : 0};
}

static void note_release(struct reader *reader, uint64_t *times_ns)
{
    struct block_range blocks = released_blocks(reader);
    for (uint64_t block = blocks.first; block < block_range_end(blocks); block++)
        if (times_ns[block] == 0)
            times_ns[block] = world_now(reader->sim->world);
}

static void check_success(struct reader *reader)
{
    const struct sim *sim = reader->sim;
    const struct sim_snapshot *snapshot = reader->snapshot;
    /* from the news of a break to the last disk that obeys: a round that is under way, messages, and threads that hang */
    const uint64_t grace_ns = (sim->tight ? 260 : 40) * NS_PER_MS + 700 * sim->message_ns;
    if (reader->req.kind == REQUEST_DISCARD) {
        note_release(reader, part_of(reader)->released_ns);
        return;
    }
    if (snapshot->broken && reader->issued_at > snapshot->broken_at + grace_ns)
        sim_fail(sim, "a request to %s@%s, which is broken, did not fail (R4)", reader->disk->name, snapshot->name);
    if (reader->req.kind == REQUEST_READ)
        check_data(reader);
    else if ((reader->req.flags & REQUEST_RESIDENCE) != 0)
        check_residence(reader);
    else
        check_status(reader);
}

/* ---- what they do ---- */

static void reader_done(struct request *req, int status)
{
    struct reader *reader = container_of(req, struct reader, req);
    struct sim *sim = reader->sim;
    if (!reader->busy)
        sim_fail(sim, "a request to a snapshot was completed twice");
    reader->busy = false;
    sim->reads_done++;
    sim_trace(sim, "%s@%s kind %d [%llu +%llu] done %d", reader->disk->name, reader->snapshot->name, (int)req->kind,
              (unsigned long long)req->range.start, (unsigned long long)req->range.length, status);
    if (status < 0)
        check_error(reader, status);
    else
        check_success(reader);
    reader->release_next = reader->consumes && req->kind == REQUEST_READ && status == 0;
    if (reader->all->stopping)
        reader_stop(reader);
    else if (!sim_slow(sim) && !readers_lead(sim) && sim_chance(sim, reader->consumes ? 900 : 400))
        reader_issue(reader);
    else
        reader_pause(reader);
}

/* The next piece of a backup. False: it has come to the end. */
static bool next_piece(struct reader *reader)
{
    uint64_t rest = reader->node->size_bytes - reader->at, longest = reader->longest;
    if (rest == 0)
        return false;
    uint64_t length = sim_chance(reader->sim, 512) ? longest : round_up(1 + sim_below(reader->sim, longest), 512);
    reader->req.range = (struct range){reader->at, length < rest ? length : rest};
    if (reader->req.range.length > longest)
        reader->req.range.length = longest;
    reader->at += reader->req.range.length;
    return true;
}

static void choose_status(struct reader *reader)
{
    struct sim *sim = reader->sim;
    struct request *req = &reader->req;
    req->kind = REQUEST_BLOCK_STATUS;
    req->extents = reader->extents;
    req->extent_max = 1 + (unsigned)sim_below(sim, SIM_EXTENTS);
    req->flags = (sim_chance(sim, 256) ? REQUEST_ONE : 0) |
                 (sim->residence && reader->node->can_release && sim_chance(sim, 512) ? REQUEST_RESIDENCE : 0);
    if (sim_chance(sim, 64))
        req->range = (struct range){0, reader->node->size_bytes};
}

static void reader_choose(struct reader *reader)
{
    struct sim *sim = reader->sim;
    struct request *req = &reader->req;
    struct range last = req->range;
    *req = (struct request){.kind = REQUEST_READ, .done = reader_done};
    if (reader->release_next) {
        req->kind = REQUEST_DISCARD;
        req->range = last;
        return;
    }
    if (reader->consumes && next_piece(reader))
        return;
    req->range = sim_random_place(sim, reader->disk, reader->node->size_bytes, reader->longest);
    if (sim_chance(sim, 128)) { /* the chains' place, too */
        req->range.start = 0;
        req->range.length = 1 + sim_below(sim, reader->longest);
    }
    if (reader->releases && sim_chance(sim, sim->stuck != 0 ? 160 : 40))
        req->kind = REQUEST_DISCARD;
    else if (sim_chance(sim, 250))
        choose_status(reader);
}

static void reader_issue(struct reader *reader)
{
    struct sim *sim = reader->sim;
    if (reader->all->stopping) {
        reader_stop(reader);
        return;
    }
    reader_choose(reader);
    if (reader->req.kind == REQUEST_READ) {
        sim_slice(sim, reader->iov, &reader->req.iov_count, reader->buffer, reader->req.range.length);
        reader->req.iov = reader->iov;
    } else if (reader->req.kind == REQUEST_DISCARD) {
        note_release(reader, part_of(reader)->asked_ns);
    }
    reader->busy = true;
    reader->read_faults = reader->disk->read_faults;
    reader->issued_at = world_now(sim->world);
    node_submit(reader->node, &reader->req);
}

/* ---- life ---- */

struct readers *readers_create(struct sim *sim, struct sim_snapshot *snapshot, struct sim_disk *disk, struct node *node)
{
    unsigned count = 1 + (unsigned)sim_below(sim, sim->readers_max);
    if (sim->readers_max > 8 && sim_chance(sim, 512))
        count = sim->readers_max;
    struct readers *readers = calloc(1, sizeof(*readers) + count * sizeof(struct reader));
    if (readers == NULL)
        abort();
    readers->count = count;
    for (unsigned i = 0; i < count; i++) {
        struct reader *reader = &readers->each[i];
        *reader = (struct reader){.sim = sim, .snapshot = snapshot, .disk = disk, .node = node, .all = readers};
        reader->longest = sim->longest < node->size_bytes ? sim->longest : node->size_bytes;
        reader->releases = sim->releases && node->can_release;
        reader->consumes = i == 0 && reader->releases && sim_chance(sim, 512);
        reader->buffer = sim_buffer(sim, reader->longest, &reader->memory);
    }
    return readers;
}

void readers_start(struct readers *readers, void (*stopped)(void *argument), void *argument)
{
    readers->out = readers->count;
    readers->stopped = stopped;
    readers->argument = argument;
    for (unsigned i = 0; i < readers->count; i++) {
        if (sim_chance(readers->each[i].sim, 512))
            reader_issue(&readers->each[i]);
        else
            reader_pause(&readers->each[i]);
    }
}

void readers_stop(struct readers *readers)
{
    readers->stopping = true;
}

void readers_free(struct readers *readers)
{
    for (unsigned i = 0; i < readers->count; i++)
        free(readers->each[i].memory);
    free(readers);
}
