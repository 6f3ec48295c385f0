// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The model is the content of the first `size` bytes of the disk. It is learned by reading them; from then on every read
 * must find what it says. Requests in flight do not overlap, unless both are reads: then the model is exact. A
 * discarded sector holds its old bytes or zeroes from then on, until it is written.
 *
 * With `reconnect` a back-end that hangs up is awaited, and gets the in-flight region back. Nothing is submitted again:
 * whatever was in flight must be completed by the new back-end, once, with the right data. A ring notices a buffer that
 * comes back twice; one that never comes is a hang. At the end all is read again, through the same rings.
 *
 * With `migrate` a log is switched on and off, memory is copied by its marks, and the rings are stopped with requests in
 * flight: then the copy must be whole, and the guest goes on (migration.h).
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "migration.h"
#include "model.h"

enum { REQUEST_BYTES = 256 << 10, SEGMENTS = 4, HANG_MS = 120000, RETURN_MS = 120000 };

struct extent {
    uint64_t sector;
    uint32_t sectors;
};

struct work {
    struct blk_request request;
    uint32_t type;
    struct extent extents[SEGMENTS]; /* a read and a write have one */
    unsigned extent_count;
    char *data; /* what is written, or room for what is read */
    bool busy, learning;
};

struct model {
    const struct model_options *options;
    struct front_end *front;
    struct rng rng;
    struct work *works;
    unsigned in_flight, pieces;
    uint64_t sectors;
    char *content;
    uint8_t *maybe_zero, *writing, *reading; /* by sector */
    uint64_t submitted, completed, reconnects, counts[16];
    uint64_t next_sector; /* of a pass over all */
    struct migration migration;
    bool gone;      /* the VM is elsewhere */
    bool keeps_log; /* it is to migrate until it is asked to part */
};

static int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static bool is_free(const struct model *m, const struct extent *extent, bool write)
{
    for (uint64_t i = extent->sector; i < extent->sector + extent->sectors; i++)
        if (m->writing[i] || (write && m->reading[i]))
            return false;
    return true;
}

static void hold(struct model *m, const struct extent *extent, bool write, int by)
{
    for (uint64_t i = extent->sector; i < extent->sector + extent->sectors; i++)
        (write ? m->writing : m->reading)[i] = (uint8_t)((write ? m->writing : m->reading)[i] + by);
}

/* A free stretch, often small, sometimes large, sometimes aligned; false: none found. */
static bool choose_extent(struct model *m, struct extent *extent, uint32_t most, bool write)
{
    for (unsigned tries = 0; tries < 20; tries++) {
        uint32_t sectors = 1 + (uint32_t)rng_below(&m->rng, rng_below(&m->rng, 4) ? 16 : most);
        if (sectors > most)
            sectors = most;
        *extent = (struct extent){rng_below(&m->rng, m->sectors - sectors + 1), sectors};
        if (rng_below(&m->rng, 2))
            extent->sector &= ~UINT64_C(7);
        if (rng_below(&m->rng, 32) == 0)
            extent->sector = m->sectors - sectors;
        if (is_free(m, extent, write))
            return true;
    }
    return false;
}

static uint32_t choose_type(struct model *m)
{
    unsigned dice = (unsigned)rng_below(&m->rng, 100);
    if (dice < 8 && front_has(m->front, FEATURE_DISCARD))
        return BLK_DISCARD;
    if (dice < 18 && front_has(m->front, FEATURE_WRITE_ZEROES))
        return BLK_WRITE_ZEROES;
    if (dice < 24 && front_has(m->front, FEATURE_FLUSH))
        return BLK_FLUSH;
    if (dice < 26)
        return BLK_GET_ID;
    return dice < 62 ? BLK_WRITE : BLK_READ;
}

static bool wipes(uint32_t type)
{
    return type == BLK_DISCARD || type == BLK_WRITE_ZEROES;
}

static uint32_t smaller(uint64_t a, uint64_t b)
{
    return (uint32_t)(a < b ? a : b);
}

/* Extents of a request, held; false: none is free. */
static bool choose_extents(struct model *m, struct work *work)
{
    const struct blk_config *config = &m->front->config;
    bool write = work->type != BLK_READ;
    uint32_t most = smaller(REQUEST_BYTES / SECTOR, m->sectors / 4), wanted = 1;
    work->extent_count = 0;
    if (work->type == BLK_FLUSH || work->type == BLK_GET_ID)
        return true;
    if (wipes(work->type)) {
        uint32_t sectors = work->type == BLK_DISCARD ? config->max_discard_sectors : config->max_write_zeroes_sectors;
        uint32_t segments = work->type == BLK_DISCARD ? config->max_discard_seg : config->max_write_zeroes_seg;
        most = smaller(smaller(sectors, 4096), m->sectors / 4);
        wanted = 1 + (uint32_t)rng_below(&m->rng, smaller(segments ? segments : 1, SEGMENTS));
    }
    while (work->extent_count < wanted && choose_extent(m, &work->extents[work->extent_count], most, write))
        hold(m, &work->extents[work->extent_count++], write, 1);
    return work->extent_count > 0;
}

/* What the device reads of a discard or a write of zeroes. */
static uint32_t fill_segments(struct model *m, struct work *work)
{
    struct blk_segment segments[SEGMENTS];
    for (unsigned i = 0; i < work->extent_count; i++) {
        uint32_t unmap = work->type == BLK_WRITE_ZEROES && rng_below(&m->rng, 2) ? BLK_UNMAP : 0;
        segments[i] = (struct blk_segment){work->extents[i].sector, work->extents[i].sectors, unmap};
    }
    memcpy(work->data, segments, work->extent_count * sizeof(segments[0]));
    return work->extent_count * (uint32_t)sizeof(segments[0]);
}

static bool submit(struct model *m, struct work *work, struct ring *ring)
{
    struct blk_command command = {.type = work->type, .out = work->data};
    uint32_t bytes = work->extent_count ? work->extents[0].sectors * SECTOR : 0;
    if (!wipes(work->type) && work->extent_count)
        command.sector = work->extents[0].sector;
    if (work->type == BLK_WRITE) {
        if (rng_below(&m->rng, 16) == 0)
            memset(work->data, 0, bytes);
        else
            rng_fill(&m->rng, work->data, bytes);
        command.out_bytes = bytes;
    } else if (work->type == BLK_READ) {
        command.in_bytes = bytes;
    } else if (work->type == BLK_GET_ID) {
        command.in_bytes = BLK_ID_BYTES;
    } else if (wipes(work->type)) {
        command.out_bytes = fill_segments(m, work);
    }
    enum tables tables = !front_has(m->front, FEATURE_INDIRECT) ? TABLES_NONE
                         : m->options->mixed && !ring->packed   ? TABLES_MIXED
                                                                : TABLES_WHOLE;
    if (migration_is_on(&m->migration)) /* before the device can see it: it may be answered at once */
        migration_wrote_request(&m->migration, &work->request, ring);
    blk_lay_out_randomly(&work->request, &command, &m->rng, m->pieces, tables);
    if (blk_submit(&work->request, ring) != 0)
        return false;
    work->busy = true;
    m->in_flight++;
    m->submitted++;
    m->counts[work->type]++;
    return true;
}

static void release(struct model *m, struct work *work)
{
    for (unsigned i = 0; i < work->extent_count; i++)
        hold(m, &work->extents[i], work->type != BLK_READ, -1);
}

/* The index of the first wrong sector of a read, or -1. */
static int64_t first_wrong(const struct model *m, const struct work *work)
{
    static const char zeroes[SECTOR];
    const struct extent *extent = &work->extents[0];
    for (uint32_t i = 0; i < extent->sectors; i++) {
        const char *got = work->data + i * SECTOR;
        uint64_t at = extent->sector + i;
        if (memcmp(got, m->content + at * SECTOR, SECTOR) != 0 &&
            !(m->maybe_zero[at] && memcmp(got, zeroes, SECTOR) == 0))
            return i;
    }
    return -1;
}

/* What a completed request did to the model. */
static void apply(struct model *m, const struct work *work)
{
    for (unsigned i = 0; i < work->extent_count; i++) {
        const struct extent *extent = &work->extents[i];
        if (work->type == BLK_DISCARD) {
            memset(m->maybe_zero + extent->sector, 1, extent->sectors);
            continue;
        }
        if (work->type == BLK_WRITE || work->learning)
            memcpy(m->content + extent->sector * SECTOR, work->data, extent->sectors * SECTOR);
        if (work->type == BLK_WRITE_ZEROES)
            memset(m->content + extent->sector * SECTOR, 0, extent->sectors * SECTOR);
        if (work->type != BLK_READ)
            memset(m->maybe_zero + extent->sector, 0, extent->sectors);
    }
}

static bool complete(struct model *m, struct work *work, uint32_t written)
{
    uint64_t sector = work->extent_count ? work->extents[0].sector : 0;
    uint32_t sectors = work->extent_count ? work->extents[0].sectors : 0;
    unsigned ring = work->request.ring->index;
    uint8_t status = blk_finish(&work->request, work->data, work->type == BLK_READ ? sectors * SECTOR : 0);
    if (status != BLK_OK || written > work->request.writable_bytes) {
        fprintf(stderr,
                "vhost_client: request %llu (type %u, sector %llu, %u sectors, ring %u, %u+%u fragments%s): status %u, "
                "%u of %u bytes are said to be written\n",
                (unsigned long long)m->completed, work->type, (unsigned long long)sector, sectors, ring,
                work->request.readable, work->request.count - work->request.readable,
                work->request.indirect ? ", indirect" : "", status, written, work->request.writable_bytes);
        return false;
    }
    int64_t wrong = work->type == BLK_READ && !work->learning ? first_wrong(m, work) : -1;
    if (wrong >= 0) {
        fprintf(stderr, "vhost_client: request %llu (a read of %u sectors at %llu, ring %u): sector %llu is wrong\n",
                (unsigned long long)m->completed, sectors, (unsigned long long)sector, ring,
                (unsigned long long)sector + (unsigned long long)wrong);
        return false;
    }
    apply(m, work);
    release(m, work);
    work->busy = work->learning = false;
    m->in_flight--;
    m->completed++;
    return true;
}

/* Everything that has been used. */
static bool reap(struct model *m)
{
    for (unsigned i = 0; i < m->front->ring_count; i++) {
        void *token;
        uint32_t written;
        int status;
        while ((status = ring_take(&m->front->rings[i], &token, &written)) == 1)
            if (!complete(m, token, written))
                return false;
        if (status < 0) {
            fprintf(stderr, "vhost_client: ring %u: a buffer was used that was not given, or was used before\n", i);
            return false;
        }
    }
    return true;
}

static bool come_back(struct model *m)
{
    if (!m->options->reconnect) {
        fprintf(stderr, "vhost_client: the back-end hung up with %u requests in flight\n", m->in_flight);
        return false;
    }
    if (!reap(m))
        return false;
    int status;
    int64_t end = now_ms() + RETURN_MS;
    do {
        status = front_reconnect(m->front, (int)(end - now_ms()));
    } while ((status == -ECONNRESET || status == -EPIPE) && now_ms() < end);
    if (status != 0)
        fprintf(stderr, "vhost_client: after the back-end was gone: %s\n", m->front->error);
    m->reconnects++;
    return status == 0;
}

/* Until something is used, or the back-end is gone and back. */
static bool wait_for_any(struct model *m)
{
    struct pollfd wait[FRONT_QUEUES + 1];
    unsigned count = m->front->ring_count;
    bool used = false;
    for (unsigned i = 0; i < count; i++) {
        wait[i] = (struct pollfd){m->front->rings[i].call_fd, POLLIN, 0};
        used |= ring_arm(&m->front->rings[i]);
        if (migration_is_on(&m->migration))
            migration_wrote_wish(&m->migration, &m->front->rings[i]);
    }
    wait[count] = (struct pollfd){m->front->socket, POLLIN, 0};
    if (used)
        return true;
    if (poll(wait, count + 1, HANG_MS) == 0) {
        fprintf(stderr, "vhost_client: no answer to %u requests in flight for %d s\n", m->in_flight, HANG_MS / 1000);
        return false;
    }
    for (unsigned i = 0; i < count; i++)
        if (wait[i].revents)
            ring_drain_call(&m->front->rings[i]);
    return wait[count].revents ? come_back(m) : true;
}

static struct work *idle_work(struct model *m)
{
    for (unsigned i = 0; i < m->options->depth; i++)
        if (!m->works[i].busy)
            return &m->works[i];
    return NULL;
}

static struct ring *any_ring(struct model *m)
{
    return &m->front->rings[rng_below(&m->rng, m->front->ring_count)];
}

/* One more random request, if there is room for it. */
static bool submit_random(struct model *m)
{
    struct work *work = idle_work(m);
    if (!work)
        return false;
    work->type = choose_type(m);
    if (!choose_extents(m, work))
        return false;
    if (submit(m, work, any_ring(m)))
        return true;
    release(m, work);
    return false;
}

/* The next piece of a pass over the whole model, by reading. */
static bool submit_pass(struct model *m, bool learning)
{
    struct work *work = idle_work(m);
    if (!work || m->next_sector == m->sectors)
        return false;
    work->type = BLK_READ;
    work->extents[0] = (struct extent){m->next_sector, smaller(m->sectors - m->next_sector, REQUEST_BYTES / SECTOR)};
    work->extent_count = 1;
    hold(m, &work->extents[0], false, 1);
    work->learning = learning;
    if (submit(m, work, any_ring(m))) {
        m->next_sector += work->extents[0].sectors;
        return true;
    }
    release(m, work);
    return false;
}

static void kick_all(struct model *m)
{
    for (unsigned i = 0; i < m->front->ring_count; i++)
        ring_kick(&m->front->rings[i]);
}

static bool settle(struct model *m, unsigned most)
{
    kick_all(m);
    while (m->in_flight > most)
        if (!reap(m) || (m->in_flight > most && !wait_for_any(m)))
            return false;
    return true;
}

static bool read_all(struct model *m, bool learning)
{
    for (m->next_sector = 0; m->next_sector < m->sectors;) {
        if (!submit_pass(m, learning) && !settle(m, m->in_flight ? m->in_flight - 1 : 0))
            return false;
    }
    return settle(m, 0);
}

/* --- a migration */

static bool migration_fails(struct model *m, int status)
{
    if (status == -ECONNRESET || status == -EPIPE)
        return come_back(m);
    fprintf(stderr, "vhost_client: migration: %s\n", m->front->error);
    return false;
}

/* What the caller says, when there is one to ask: false: the VM is elsewhere; "migrate": it goes on, and so does its log. */
static bool stays(struct model *m)
{
    char line[64];
    if (!m->options->part)
        return true;
    puts("parted");
    fflush(stdout);
    m->gone = !fgets(line, sizeof(line), stdin);
    m->keeps_log = !m->gone && strcmp(line, "migrate\n") == 0;
    return !m->gone;
}

/* The guest stops in the midst of its requests, and goes on where it was. */
static bool switch_over(struct model *m)
{
    struct front_end *front = m->front;
    uint32_t base[FRONT_QUEUES];
    int status = 0;
    for (unsigned i = 0; status == 0 && i < front->ring_count; i++)
        status = front_stop_ring(front, &front->rings[i], &base[i]);
    if (status != 0)
        return migration_fails(m, status);
    const uint64_t missing = migration_missing(&m->migration);
    if (missing != UINT64_MAX) {
        fprintf(stderr, "vhost_client: the page at 0x%llx was written by the device and not marked\n",
                (unsigned long long)missing);
        return false;
    }
    if (!stays(m))
        return true;
    for (unsigned i = 0; status == 0 && i < front->ring_count; i++)
        status = front_set_up_ring(front, &front->rings[i], base[i]);
    return status == 0 || migration_fails(m, status);
}

/* A line of the standard input, or its end. */
static bool is_asked_to_part(const struct model *m)
{
    char line[64];
    struct pollfd wait = {STDIN_FILENO, POLLIN, 0};
    return m->options->part && poll(&wait, 1, 0) == 1 && fgets(line, sizeof(line), stdin);
}

static bool migrate(struct model *m)
{
    const bool asked = is_asked_to_part(m);
    const uint64_t dice = rng_below(&m->rng, 100);
    int status = asked && !migration_is_on(&m->migration) ? migration_log(&m->migration, true) : 0;
    if (status == 0 && asked)
        return switch_over(m);
    if (!migration_is_on(&m->migration))
        status = status == 0 && dice < 30 ? migration_log(&m->migration, true) : status;
    else if (dice < 60)
        migration_copy(&m->migration);
    else if (dice < 70 && !m->keeps_log)
        status = migration_log(&m->migration, dice < 65); /* anew, or no more */
    else if (dice < 85 && !m->options->part)
        return switch_over(m);
    return status == 0 || migration_fails(m, status);
}

/* Once more, with whatever is in flight. */
static bool migrate_at_last(struct model *m)
{
    const int status = migration_is_on(&m->migration) ? 0 : migration_log(&m->migration, true);
    return status == 0 ? switch_over(m) : migration_fails(m, status);
}

static bool run(struct model *m)
{
    if (!read_all(m, true))
        return false;
    for (uint64_t end = m->submitted + m->options->requests; m->submitted < end;) {
        unsigned batch = 1 + (unsigned)rng_below(&m->rng, m->options->depth);
        while (batch-- > 0 && m->submitted < end && submit_random(m))
            if (rng_below(&m->rng, 4) == 0)
                kick_all(m);
        if (m->options->migrate) {
            kick_all(m);
            if (!migrate(m))
                return false;
            if (m->gone)
                return true;
        }
        if (!settle(m, (unsigned)rng_below(&m->rng, m->options->depth)))
            return false;
    }
    if (m->options->migrate && !m->options->part && !migrate_at_last(m))
        return false;
    return settle(m, 0) && read_all(m, false);
}

static void model_init(struct model *m, const struct model_options *options, struct front_end *front)
{
    uint64_t sectors = front->config.capacity, wanted = (options->size ? options->size : 16 << 20) / SECTOR;
    *m = (struct model){.options = options, .front = front, .rng = {options->seed}};
    m->sectors = sectors < wanted ? sectors : wanted;
    m->content = calloc(m->sectors, SECTOR);
    m->maybe_zero = calloc(m->sectors, 1);
    m->writing = calloc(m->sectors, 1);
    m->reading = calloc(m->sectors, 1);
    m->works = calloc(options->depth, sizeof(*m->works));
    unsigned most = front_has(front, FEATURE_SEG_MAX) && front->config.seg_max ? front->config.seg_max : 126;
    most = most < options->front.queue_size - 2 ? most : options->front.queue_size - 2;
    m->pieces = most < BLK_FRAGMENTS / 2 ? most : BLK_FRAGMENTS / 2;
    bool adjacent = options->across && front->memory.count > 1 && options->front.gap == 0;
    for (unsigned i = 0; i < options->depth; i++) {
        bool across = adjacent &&
                      i == 0; /* before anything was taken of the region behind: rings come from their own */
        across = across && front->memory.regions[front->memory.count - 1].taken == 0;
        blk_request_init(&m->works[i].request, &front->memory, across ? front->memory.count - 2 : i, REQUEST_BYTES,
                         across);
        m->works[i].data = malloc(REQUEST_BYTES);
    }
}

static void model_fini(struct model *m)
{
    for (unsigned i = 0; i < m->options->depth; i++)
        free(m->works[i].data);
    free(m->works);
    free(m->content);
    free(m->maybe_zero);
    free(m->writing);
    free(m->reading);
}

static void report(const struct model *m)
{
    printf("{\"requests\": %llu, \"reads\": %llu, \"writes\": %llu, \"discards\": %llu, \"zeroes\": %llu, \"flushes\": "
           "%llu, "
           "\"reconnects\": %llu, \"switches\": %llu, \"pages_copied\": %llu, \"queues\": %u, \"ring\": \"%s\", "
           "\"seed\": %llu}\n",
           (unsigned long long)m->completed, (unsigned long long)m->counts[BLK_READ],
           (unsigned long long)m->counts[BLK_WRITE], (unsigned long long)m->counts[BLK_DISCARD],
           (unsigned long long)m->counts[BLK_WRITE_ZEROES], (unsigned long long)m->counts[BLK_FLUSH],
           (unsigned long long)m->reconnects, (unsigned long long)m->migration.checks,
           (unsigned long long)m->migration.pages_copied, m->front->ring_count,
           m->options->front.packed ? "packed" : "split", (unsigned long long)m->options->seed);
}

int model_run(const char *path, const struct model_options *given)
{
    struct model_options options = *given;
    struct front_end *front = calloc(1, sizeof(*front));
    unsigned regions = options.front.regions ? options.front.regions : 1;
    options.front.region_bytes = ((uint64_t)(options.depth / regions + 2) * (REQUEST_BYTES + (64 << 10)) + (1 << 20)) &
                                 ~UINT64_C(4095);
    int status = front_open(front, path, &options.front);
    if (status == 0 && (front->config.capacity < 64 || options.front.queue_size < 8))
        status = front_fail(front, -EINVAL, "the disk or the ring is too small");
    if (status != 0) {
        fprintf(stderr, "vhost_client: %s: %s\n", path, front->error);
    } else {
        struct model m;
        model_init(&m, &options, front);
        status = migration_init(&m.migration, front) == 0 && run(&m) ? 0 : -EIO;
        if (status == 0)
            report(&m);
        else
            fprintf(stderr, "vhost_client: seed %llu, %llu requests were completed\n", (unsigned long long)options.seed,
                    (unsigned long long)m.completed);
        migration_fini(&m.migration);
        model_fini(&m);
    }
    front_close(front);
    free(front);
    return status == 0 ? 0 : 1;
}
