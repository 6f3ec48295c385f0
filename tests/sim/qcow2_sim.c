/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The qcow2 driver over the file driver on a simulated machine: images of every shape, with and without something behind
 * them, seeded requests side by side, short and failed I/O, and deaths at any moment: of the process, or of the power.
 *
 *   qcow2_sim --seeds N     N seeds must pass, every probe of the driver must have been reached, and each deliberate fault
 *                           of it must be caught by some seed (--no-mutants: without these; --mutant NAME: only this one)
 *   qcow2_sim --seeds A-B   these seeds
 *   qcow2_sim --seed N      one seed
 *
 * The oracle: after a death qcow2_check.c finds no error in the image (clusters may leak), and the driver opens it again.
 * After a power loss each byte is as it was at the last flush that succeeded, or as some write since then made it; so data
 * that was flushed is there, and what was never written is what lies behind. When the process was killed that holds for an
 * image that is written back; one that is written through has all that was answered: each byte is as the last write made
 * it, or as one made it that was under way. Without a death it is as the last write made it, and after a last flush no
 * cluster leaks either, whatever failed before, unless the driver could not but let it (a probe says so).
 *
 * The disk grows now and then (qcow2_growth.c): after a death it has the old size or the new one, the new one if it was
 * told to have it, and what was added is zero.
 *
 * Besides the random lives short stories are told again and again, each time with a death a few disk operations later;
 * of --seed N, one operation later.
 */
#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/limits.h"
#include "base/probe.h"
#include "driver/file.h"
#include "driver/qcow2/internal.h"
#include "qcow2_check.h"
#include "qcow2_scenes.h"
#include "qcow2_sim.h"

extern struct probe __start_fleece_probes[], __stop_fleece_probes[];
extern struct mutant __start_fleece_mutants[], __stop_fleece_mutants[];

void run_fail(const struct run *run, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fprintf(stderr, "qcow2_sim: seed %llu: ", (unsigned long long)run->seed);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    exit(1);
}

static int fault(void *context, const struct world_io *io)
{
    struct run *run = context;
    run->operations = io->number;
    if (run->error_per_1024 && io->kind == WORLD_WRITE && io->range.start == 0 && world_chance(run->world, 256))
        return -EIO; /* the header */
    if (run->error_per_1024 && io->kind == WORLD_WRITE && run->image && qcow2_of(run->image)->grow &&
        world_chance(run->world, 200))
        return -EIO; /* of the larger table, perhaps */
    if (io->kind == WORLD_SYNC && run->image && qcow2_of(run->image)->page_max < LIMIT_QCOW2_PAGES)
        return 0; /* no page that is dirty would ever go again, and nobody could read */
    bool harmless = io->kind == WORLD_READ && world_chance(run->world, 4);
    return harmless ? -EINTR : world_chance(run->world, run->error_per_1024) ? -EIO : 0;
}

/* Images. */

/* Version 2: no features, counts of 16 bits, no zero clusters. */
static bool is_old(const struct run *run)
{
    return run->seed % 7 == 3;
}

/* Any shape that the driver writes; QEMU makes them too, but not here. */
static void choose_shape(struct run *run)
{
    struct qcow2_header *header = &run->header;
    static const uint32_t bits[] = {9, 12, 12, 16, 14};
    unsigned shape = run->few_pages || run->grows ? 0 : (unsigned)below(run, 5);
    header->version = is_old(run) ? 2 : 3;
    header->cluster_bits = bits[shape];
    header->extended_l2 = shape == 4 && !is_old(run);
    header->refcount_order = run->grows ? 4 + (uint32_t)below(run, 3) : (uint32_t)below(run, 7);
    header->zstd = header->cluster_bits >= 12 && below(run, 2);
    header->has_backing = below(run, 2);
    if (is_old(run)) {
        header->refcount_order = 4;
        header->zstd = false;
    }
    run->compress = header->zstd && below(run, 4) > 0 && header->refcount_order > 3;
    run->size = 512 * (1 + below(run, header->cluster_bits == 16 ? 2000 : 800));
    if (run->few_pages)
        run->size = 800 * 512;
    run->base_size = header->has_backing ? 512 * (1 + below(run, run->size / 512 + 100)) : 0;
    header->size_bytes = run->size;
    run->max_size = run->size + 512 * below(run, 200);
    if (header->has_backing) {
        strcpy(header->info.backing_name, "base");
        strcpy(header->info.backing_format, "raw");
    }
}

/* header | refcount table | L1 table | refcount blocks, with its counts */
static void make_image(struct run *run)
{
    struct qcow2_header *header = &run->header;
    uint32_t bits = header->cluster_bits;
    uint64_t cluster = UINT64_C(1) << bits, per_block = (cluster * 8) >> header->refcount_order;
    struct error err;
    header->l1_entries = qcow2_l1_entries(run->size, bits, header->extended_l2);
    uint64_t blocks_in_all = !run->grows && below(run, 2) ? (200 * run->size / cluster + 4096) / per_block + 1 : 1;
    header->reftable_clusters = (blocks_in_all * 8 + cluster - 1) >> bits;
    header->reftable_offset = cluster;
    header->l1_offset = cluster * (1 + header->reftable_clusters);
    uint64_t first = header->l1_offset / cluster + ((header->l1_entries * 8 + cluster - 1) >> bits), blocks = 1;
    while (blocks * per_block < first + blocks)
        blocks++;
    uint64_t length = (first + blocks) * cluster;
    uint8_t *bytes = calloc(1, length), *counts = bytes + first * cluster;
    if (qcow2_header_build(header, bytes, cluster < 4096 ? cluster : 4096, &err) < 0)
        run_fail(run, "%s", err.text);
    if (is_old(run))
        qcow2_make_old(bytes, cluster < 4096 ? cluster : 4096);
    for (uint64_t i = 0; i < blocks; i++)
        store_be64(bytes + cluster + i * 8, (first + i) * cluster);
    for (uint64_t i = 0; i < first + blocks; i++) {
        unsigned width = 1u << header->refcount_order;
        if (width < 8)
            counts[i * width / 8] |= (uint8_t)(1u << (i * width % 8));
        else
            counts[(i + 1) * width / 8 - 1] = 1;
    }
    uint64_t end = length, covered = (header->reftable_clusters << bits) / 8 * per_block * cluster;
    if (covered <= 8 * MIB && (run->grows || below(run, 4) > 0)) /* the table is too small soon */
        end = covered - cluster * below(run, run->grows ? 20 : 60);
    run->file = world_file_create(run->world, "image", end > length ? end : length, below(run, 2) ? 512 : 4096, false);
    world_file_fill(run->file, 0, bytes, length);
    free(bytes);
}

static void make_base(struct run *run)
{
    uint8_t *bytes = calloc(1, run->base_size + 1);
    for (uint64_t i = 0; i < run->base_size; i++)
        bytes[i] = below(run, 3) ? (uint8_t)(i / 512 % 250 + 1) : 0;
    struct world_file *base = world_file_create(run->world, "base", run->base_size, 512, false);
    world_file_fill(base, 0, bytes, run->base_size);
    memcpy(run->flushed, bytes, run->base_size < run->size ? run->base_size : run->size);
    memcpy(run->now, run->flushed, run->size);
    free(bytes);
}

static void opened(void *argument, struct node *image, const struct error *err)
{
    struct run *run = argument;
    run->answered = true;
    run->image = image;
    if (!image && !run->error_per_1024)
        run_fail(run, "%s", err->text);
}

static bool is_answered(void *argument)
{
    return ((struct run *)argument)->answered;
}

/* A new process opens the image. false: an I/O error. */
static bool open_image(struct run *run)
{
    struct error err;
    struct node *file, *base;
    struct file_options options = {.path = "image", .growable = true, .page_cache = below(run, 4) == 0};
    run->io = world_reactor(run->world, "disk", ++run->process);
    world_act_as(run->world, run->io);
    if (file_open(run->io, &options, &file, &err) < 0)
        run_fail(run, "%s", err.text);
    run->answered = false;
    qcow2_open(file, false, opened, run);
    world_act_as(run->world, NULL);
    if (!world_run_until(run->world, is_answered, run, 600 * NS_PER_S))
        run_fail(run, "the image never opened");
    world_act_as(run->world, run->io);
    if (!run->image) {
        node_destroy(file);
        return false;
    }
    run_growth_opened(run);
    struct qcow2 *image = qcow2_of(run->image);
    if (run->few_pages || below(run, 2)) { /* the bounds of small images are never reached */
        image->page_max = run->few_pages || below(run, 2) ? 10 : 48;
        image->freed_max = l2_page_entries(image) + 2;
        if (image->freed_max < LIMIT_QCOW2_POOL_RUNS * 3 / 2)
            image->freed_max = LIMIT_QCOW2_POOL_RUNS * 3 / 2;
    }
    image->pool.batch = 2 + below(run, 6);
    image->pool.batch_max = 16 + below(run, 100);
    run->write_back = run->compress || below(run, 2) == 0;
    if (run->write_back)
        qcow2_write_back_set(run->image);
    if (run->compress)
        qcow2_compress_set(run->image);
    if (run->header.has_backing) {
        if (file_open(run->io, &(struct file_options){.path = "base", .read_only = true, .page_cache = true}, &base,
                      &err) < 0)
            run_fail(run, "%s", err.text);
        qcow2_backing_set(run->image, base);
    }
    return true;
}

/* Requests. */

static void job_done(struct request *req, int status)
{
    struct job *job = (struct job *)(void *)req;
    if (job->done)
        run_fail(job->run, "a request completed twice");
    job->done = true;
    job->status = status;
    job->run->pending--;
}

static bool nothing_pending(void *argument)
{
    return ((struct run *)argument)->pending == 0;
}

static void submit(struct run *run, struct job *job)
{
    job->run = run;
    job->done = false;
    job->req.done = job_done;
    run->pending++;
    node_submit(run->image, &job->req);
    if (job->done)
        run_fail(run, "a request completed inside node_submit()");
}

static void finish(struct run *run)
{
    world_act_as(run->world, NULL);
    if (!world_run_until(run->world, nothing_pending, run, 60 * NS_PER_S))
        run_fail(run, "%u requests never completed", run->pending);
    world_act_as(run->world, run->io);
}

static struct range random_range(struct run *run)
{
    uint64_t cluster = UINT64_C(1) << run->header.cluster_bits, unit = below(run, 2) ? 512 : below(run, 2) ? 4096 : 1;
    uint64_t length = 1 + below(run, below(run, 3) ? 6000 : 150000), start = below(run, run->size);
    if (run->compress && below(run, 2)) {
        unit = cluster;
        length = cluster * (1 + below(run, 3));
    }
    start = round_down(start, unit);
    length = round_up(length, unit);
    length = length < run->size - start ? length : run->size - start;
    return (struct range){start, length < 300000 ? length : 300000};
}

static void fragment(struct run *run, struct job *job)
{
    unsigned char *at = job->memory;
    size_t left = job->req.range.length;
    bool many = below(run, 4) == 0;
    job->req.iov = job->iov;
    while (left > 0) {
        size_t length = left;
        if (job->req.iov_count < 23 && many)
            length = 1 + below(run, left < 5000 ? left : 5000);
        job->iov[job->req.iov_count++] = (struct iovec){at, length};
        at += length;
        left -= length;
    }
}

static void random_job(struct run *run, struct job *job, bool only_writes)
{
    static const enum request_kind kinds[] = {
        REQUEST_WRITE,        REQUEST_WRITE,        REQUEST_WRITE,       REQUEST_WRITE,        REQUEST_WRITE,
        REQUEST_WRITE_ZEROES, REQUEST_WRITE_ZEROES, REQUEST_DISCARD,     REQUEST_WRITE_ZEROES, REQUEST_READ,
        REQUEST_READ,         REQUEST_FLUSH,        REQUEST_BLOCK_STATUS};
    *job = (struct job){.memory = job->memory, .value = (unsigned char)(1 + run->values++ % 255)};
    job->req.kind = kinds[below(run, only_writes ? 9 : 13)];
    if (job->req.kind == REQUEST_FLUSH)
        return;
    job->req.range = random_range(run);
    job->req.extents = job->extents;
    job->req.extent_max = 1 + (unsigned)below(run, EXTENTS);
    if (request_is_write(&job->req) && below(run, 20) == 0)
        job->req.flags = REQUEST_FUA;
    if (job->req.kind == REQUEST_WRITE_ZEROES && below(run, 8) == 0)
        job->req.flags |= REQUEST_NO_HOLE;
    if (job->req.kind == REQUEST_READ || job->req.kind == REQUEST_WRITE) {
        memset(job->memory, job->req.kind == REQUEST_WRITE ? job->value : 0xEE, job->req.range.length);
        if (run->compress && job->req.kind == REQUEST_WRITE && below(run, 3) == 0) /* noise does not get smaller */
            for (uint64_t i = 0; i < job->req.range.length; i++)
                job->memory[i] = (unsigned char)below(run, 256);
        fragment(run, job);
    }
}

/* The oracle. */

static unsigned char value_of(const struct job *job, uint64_t at)
{
    return job->req.kind == REQUEST_WRITE ? job->memory[at - job->req.range.start] : 0;
}

static bool covers(const struct job *job, uint64_t at)
{
    return request_is_write(&job->req) && at - job->req.range.start < job->req.range.length;
}

static bool may_be(const struct run *run, uint64_t at, unsigned char value)
{
    return run->may[at][value / 8] >> (value % 8) & 1;
}

/* What the requests of this batch may have left. */
static void note_writes(struct run *run)
{
    for (unsigned i = 0; i < run->jobs_used; i++) {
        const struct job *job = &run->jobs[i];
        if (!request_is_write(&job->req))
            continue;
        for (uint64_t at = job->req.range.start; at < range_end(job->req.range); at++) {
            unsigned char value = value_of(job, at);
            run->may[at][value / 8] |= (unsigned char)(1 << value % 8);
        }
    }
}

static void check_statuses(struct run *run)
{
    for (unsigned i = 0; i < run->jobs_used; i++) {
        const struct job *job = &run->jobs[i];
        if (job->status != 0 && !run->error_per_1024)
            run_fail(run, "request %u of kind %d failed with %d", i, job->req.kind, job->status);
        run->failed |= job->status != 0;
        if (job->req.kind != REQUEST_READ || job->status != 0)
            continue;
        for (uint64_t at = job->req.range.start; at < range_end(job->req.range); at++) {
            unsigned char got = job->memory[at - job->req.range.start];
            if (got != run->now[at] && !may_be(run, at, got))
                run_fail(run, "byte %llu was read as %u, it is %u", (unsigned long long)at, got, run->now[at]);
        }
    }
}

static void read_back(struct run *run, unsigned char *to)
{
    struct job *job = &run->jobs[0];
    for (uint64_t at = 0; at < run->size; at += job->req.range.length) {
        for (unsigned tries = 0;; tries++) {
            uint64_t length = run->size - at < 256 * KIB ? run->size - at : 256 * KIB;
            *job = (struct job){.memory = job->memory, .iov = {{to + at, length}}};
            job->req = (struct request){.kind = REQUEST_READ, .range = {at, length}, .iov = job->iov, .iov_count = 1};
            submit(run, job);
            finish(run);
            if (job->status == 0)
                break;
            if (!run->error_per_1024 || tries == 100)
                run_fail(run, "reading back failed with %d", job->status);
        }
    }
}

/* Whether some request of the batch may have made the byte so, or left it. */
static bool allowed_by_batch(const struct run *run, uint64_t at, unsigned char value)
{
    bool overwritten = false;
    for (unsigned i = 1; i < run->jobs_used; i++) {
        const struct job *job = &run->jobs[i];
        if (!covers(job, at))
            continue;
        if (value_of(job, at) == value)
            return true;
        overwritten |= job->done && job->status == 0 && job->req.kind != REQUEST_DISCARD; /* that is but a hint */
    }
    return !overwritten && value == run->now[at];
}

static void check_now(struct run *run, enum time time)
{
    unsigned char *got = calloc(1, run->size);
    read_back(run, got);
    for (uint64_t at = 0; at < run->size; at++) {
        bool allowed = time == SINCE_FLUSH ? got[at] == run->flushed[at] || may_be(run, at, got[at])
                                           : allowed_by_batch(run, at, got[at]);
        if (!allowed)
            run_fail(run, "byte %llu is %u, it was %u, and %u at the last flush%s", (unsigned long long)at, got[at],
                     run->now[at], run->flushed[at], time == SINCE_FLUSH ? " before the power was lost" : "");
    }
    memcpy(run->now, got, run->size);
    free(got);
}

static void check_image(struct run *run, bool exact)
{
    struct qcow2_verdict verdict;
    qcow2_check(world_file_bytes(run->file), world_file_size(run->file), &verdict);
    if (verdict.error[0])
        run_fail(run, "%s", verdict.error);
    if (exact && verdict.leaks > 0)
        run_fail(run, "%u clusters leak", verdict.leaks);
}

/* How often clusters leaked that could not be given back. */
static unsigned leaks_told(void)
{
    unsigned told = 0;
    for (const struct probe *probe = __start_fleece_probes; probe < __stop_fleece_probes; probe++)
        if (strcmp(probe->name, "qcow2_freed_leaked") == 0 || strcmp(probe->name, "qcow2_write_leaked") == 0)
            told += (unsigned)probe->hits;
    return told;
}

/* Whether all that became free has been counted down in the file. Of two tables of which the header may name either, the
 * other one leaks. */
static bool is_all_given_back(const struct run *run)
{
    const struct qcow2 *image = qcow2_of(run->image);
    const bool is_either = image->grow || image->l1_move;
    return image->freed_count == 0 && image->dirty_count == 0 && !is_either && leaks_told() == run->leaks_told;
}

/* A flush of its own; what is there now is what must be there later. */
static bool flush(struct run *run, bool last)
{
    struct job *job = &run->jobs[0];
    *job = (struct job){.memory = job->memory, .req = {.kind = REQUEST_FLUSH, .flags = last ? REQUEST_LAST : 0}};
    submit(run, job);
    finish(run);
    if (job->status != 0) {
        run->failed = true;
        if (!run->error_per_1024)
            run_fail(run, "a flush failed with %d", job->status);
        return false;
    }
    memcpy(run->flushed, run->now, run->size);
    memset(run->may, 0, run->size * sizeof *run->may);
    return true;
}

static void run_batch(struct run *run)
{
    bool only_writes = below(run, 6) == 0;
    run->jobs_used = only_writes ? JOBS : 1 + (unsigned)below(run, JOBS);
    for (unsigned i = 1; i < run->jobs_used; i++)
        random_job(run, &run->jobs[i], only_writes);
    run->jobs[0].req.kind = REQUEST_FLUSH; /* it is for other things */
    run->jobs[0].status = 0;
    note_writes(run);
    const bool grows = below(run, 3) == 0;
    for (unsigned i = 1; i < run->jobs_used; i++)
        submit(run, &run->jobs[i]);
    if (grows)
        run_growth(run);
    finish(run);
    check_statuses(run);
    if (grows)
        run_growth_settle(run);
    check_now(run, run->failed ? SINCE_FLUSH : OF_BATCH);
    if (below(run, 2) && flush(run, false)) {
        world_act_as(run->world, NULL);
        world_run_for(run->world, NS_PER_S); /* what became free is counted down behind the flush */
        world_act_as(run->world, run->io);
        check_image(run, run->write_back && !run->crashed && !run->failed);
    }
}

/* FUA alone makes what it wrote stable. */
static void check_fua(struct run *run)
{
    struct job *job = &run->jobs[1];
    do {
        random_job(run, job, true);
    } while (job->req.kind == REQUEST_DISCARD);
    job->req.flags = REQUEST_FUA;
    run->jobs_used = 2;
    note_writes(run);
    submit(run, job);
    finish(run);
    if (job->status != 0)
        return;
    for (uint64_t at = job->req.range.start; at < range_end(job->req.range); at++) {
        run->flushed[at] = run->now[at] = value_of(job, at);
        memset(run->may[at], 0, sizeof run->may[at]);
    }
}

/* The process's memory is lost with it. */
static void die(struct run *run, enum death death)
{
    world_act_as(run->world, NULL);
    if (death == DIES_OF_POWER) {
        world_power_loss(run->world);
    } else {
        world_kill(run->world, run->process);
        world_run_for(run->world, 5 * NS_PER_S); /* until what the kernel has of it has landed */
    }
    run->killed = death == DIES_OF_KILL && !run->write_back;
    run->pending = 0;
    run->crashed = true;
    run->image = NULL;
    check_image(run, false);
}

static void submit_jobs(struct run *run, unsigned count)
{
    run->jobs_used = 1 + count;
    for (unsigned i = 1; i < run->jobs_used; i++)
        random_job(run, &run->jobs[i], false);
    note_writes(run);
    for (unsigned i = 1; i < run->jobs_used; i++)
        submit(run, &run->jobs[i]);
    world_act_as(run->world, NULL);
}

/* With requests under way. */
static void die_at_work(struct run *run)
{
    if (below(run, 3) == 0)
        check_fua(run);
    submit_jobs(run, (unsigned)below(run, JOBS));
    if (below(run, 3) == 0) {
        world_act_as(run->world, run->io);
        run_growth(run);
        world_act_as(run->world, NULL);
    }
    world_run_for(run->world, below(run, below(run, 2) ? 5 * NS_PER_MS : NS_PER_MS));
    if (run->write_back && below(run, 2)) { /* while its mappings go to the file */
        struct job *job = &run->jobs[0];
        *job = (struct job){.memory = job->memory, .req = {.kind = REQUEST_FLUSH}};
        world_act_as(run->world, run->io);
        submit(run, job);
        world_act_as(run->world, NULL);
        world_run_for(run->world, below(run, 2 * NS_PER_MS));
    }
    die(run, below(run, 2) ? DIES_OF_KILL : DIES_OF_POWER);
}

/* What there is now may be of some time before; from here on it is what is there. */
static void check_after_death(struct run *run)
{
    check_now(run, run->killed && !run->failed ? OF_BATCH : SINCE_FLUSH);
    for (uint64_t at = 0; at < run->size; at++)
        run->may[at][run->now[at] / 8] |= (unsigned char)(1 << run->now[at] % 8);
    run->killed = false;
    run->jobs_used = 1;
}

static void run_life(struct run *run)
{
    if (!open_image(run))
        return;
    if (run->crashed)
        check_after_death(run);
    for (unsigned batch = 0; batch < BATCHES; batch++)
        run_batch(run);
}

static void end_life(struct run *run, bool last)
{
    bool clean = last || below(run, 3) == 0;
    if (!run->image)
        return;
    if (!clean) {
        die_at_work(run);
        return;
    }
    bool flushed = flush(run, true);
    run->crashed |= !flushed; /* what is not flushed may be lost with the node */
    run->may_leak |= !is_all_given_back(run);
    node_destroy(run->image);
    run->image = NULL;
    world_act_as(run->world, NULL);
    world_run_for(run->world, NS_PER_S);
    if (flushed)
        check_image(run, !run->crashed && !run->may_leak);
}

static struct run *run_create(uint64_t seed, bool grows)
{
    struct run *run = calloc(1, sizeof *run);
    run->seed = seed;
    run->leaks_told = leaks_told();
    run->grows = grows;
    run->few_pages = !grows && seed % 6 == 5; /* far fewer than all requests together need */
    run->stop_at = UINT64_MAX;
    run->world = world_create(&(struct world_options){.seed = seed,
                                                      .power = true,
                                                      .short_per_1024 = seed % 3 ? 30 : 0,
                                                      .stall_per_1024 = seed % 2 ? 30 : 0,
                                                      .context = run,
                                                      .fault = fault});
    choose_shape(run);
    run->flushed = calloc(1, run->max_size);
    run->now = calloc(1, run->max_size);
    run->may = calloc(run->max_size, sizeof *run->may);
    make_image(run);
    if (run->header.has_backing)
        make_base(run);
    for (unsigned i = 0; i < JOBS; i++)
        run->jobs[i].memory = aligned_alloc(4096, 512 * KIB);
    return run;
}

static void run_destroy(struct run *run)
{
    world_destroy(run->world, NULL);
    for (unsigned i = 0; i < JOBS; i++)
        free(run->jobs[i].memory);
    free(run->flushed);
    free(run->now);
    free(run->may);
    free(run);
}

static bool nothing_pending_or_time(void *argument)
{
    const struct run *run = argument;
    return (run->pending == 0 && !run->growth.busy) || run->operations >= run->stop_at;
}

/* A few requests, a flush, a few more, and the death. false: it would come after the end. */
static bool tell_story(uint64_t seed, uint64_t operation, enum death death)
{
    struct run *run = run_create(seed, seed % 2 == 0);
    open_image(run);
    submit_jobs(run, STORY_JOBS);
    finish(run);
    check_statuses(run);
    check_now(run, OF_BATCH);
    flush(run, false);
    run->stop_at = run->operations + operation;
    submit_jobs(run, STORY_JOBS);
    world_act_as(run->world, run->io);
    run_growth(run);
    world_act_as(run->world, NULL);
    world_run_until(run->world, nothing_pending_or_time, run, 3600 * NS_PER_S);
    bool in_time = run->operations >= run->stop_at;
    world_act_as(run->world, run->io);
    die(run, death);
    open_image(run);
    check_after_death(run);
    run_batch(run);
    flush(run, true);
    node_destroy(run->image);
    world_act_as(run->world, NULL);
    world_run_for(run->world, NS_PER_S);
    check_image(run, false);
    run_destroy(run);
    return in_time;
}

/* `step`: 1 for a death after each operation; or after each second, third, ... one, others for other seeds. */
static void tell_stories(uint64_t seed, unsigned step)
{
    for (enum death death = 0; death < DEATHS; death++)
        for (uint64_t operation = 1 + (seed + (uint64_t)death) % step; operation < STORY_OPERATIONS; operation += step)
            if (!tell_story(seed, operation, death))
                break;
}

static void run_seed(uint64_t seed)
{
    bool grows = seed % 10 == 7;
    struct run *run = run_create(seed, grows);
    run->error_per_1024 = below(run, 5) == 0 || grows ? 3 : 0;
    for (unsigned life = 0; life < LIVES; life++) {
        run_life(run);
        end_life(run, life == LIVES - 1);
    }
    run_destroy(run);
}

struct seeds {
    uint64_t first, last;
};

static void run_seeds(struct seeds seeds)
{
    if (seeds.first == 1)
        qcow2_scenes();
    for (uint64_t seed = seeds.first; seed <= seeds.last; seed++) {
        run_seed(seed);
        if (seed <= STORIES)
            tell_stories(seed, STORY_STEP);
    }
}

/* Probes and deliberate faults of the driver. */

static bool of_the_driver(const char *name)
{
    return strncmp(name, "qcow2_", 6) == 0;
}

static unsigned count_unreached(void)
{
    unsigned unreached = 0;
    for (const struct probe *probe = __start_fleece_probes; probe < __stop_fleece_probes; probe++) {
        if (of_the_driver(probe->name) && probe->hits == 0) {
            fprintf(stderr, "qcow2_sim: the probe %s was never reached\n", probe->name);
            unreached++;
        }
    }
    return unreached;
}

static bool is_caught(struct mutant *mutant, struct seeds seeds, bool quiet)
{
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        if (quiet && !freopen("/dev/null", "w", stderr))
            _exit(0);
        mutant->on = true;
        setitimer(ITIMER_PROF, &(struct itimerval){.it_value.tv_sec = 300}, NULL); /* of the processor */
        run_seeds(seeds);
        _exit(0);
    }
    int status = 0;
    bool ended = child > 0 && waitpid(child, &status, 0) == child;
    bool caught = ended && !(WIFEXITED(status) && WEXITSTATUS(status) == 0) &&
                  !(WIFSIGNALED(status) && WTERMSIG(status) == SIGPROF);
    printf("%-32s %s\n", mutant->name, caught ? "caught" : "NOT CAUGHT");
    fflush(stdout);
    return caught;
}

/* N: from 1 on; or A-B. */
static struct seeds seeds_of(const char *text)
{
    char *end;
    struct seeds seeds = {1, strtoull(text, &end, 10)};
    if (*end == '-')
        seeds = (struct seeds){seeds.last, strtoull(end + 1, &end, 10)};
    return *end == '\0' && seeds.first > 0 ? seeds : (struct seeds){1, 0};
}

int main(int argc, char **argv)
{
    const char *only = argc == 5 && strcmp(argv[3], "--mutant") == 0 ? argv[4] : NULL;
    bool with_mutants = argc != 4 || strcmp(argv[3], "--no-mutants") != 0;
    struct seeds seeds = argc == 3 + !with_mutants + (only ? 2 : 0) ? seeds_of(argv[2]) : (struct seeds){1, 0};
    if (seeds.last < seeds.first || (strcmp(argv[1], "--seeds") != 0 && strcmp(argv[1], "--seed") != 0)) {
        fprintf(stderr, "usage: qcow2_sim --seeds N|A-B [--no-mutants | --mutant NAME] | --seed N\n");
        return 2;
    }
    if (strcmp(argv[1], "--seed") == 0) {
        run_seed(seeds.last);
        tell_stories(seeds.last, 1);
        return 0;
    }
    unsigned wrong = 0, mutants = 0;
    for (struct mutant *mutant = __start_fleece_mutants; mutant < __stop_fleece_mutants; mutant++) {
        if (with_mutants && of_the_driver(mutant->name) && (!only || strcmp(mutant->name, only) == 0)) {
            mutants++;
            wrong += !is_caught(mutant, seeds, !only);
        }
    }
    if (only)
        return wrong == 0 && mutants == 1 ? 0 : 1;
    run_seeds(seeds);
    wrong += count_unreached();
    printf("qcow2_sim: %llu seeds passed, %u deliberate faults tried, %u things wrong\n",
           (unsigned long long)(seeds.last - seeds.first + 1), mutants, wrong);
    return wrong == 0 ? 0 : 1;
}
