/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The file driver over a simulated disk: seeded requests of any alignment, many at once, on disks of any size, with short
 * transfers, transient and lasting errors, calls that the kernel does not know, and a power loss or a kill -9 at the end.
 *
 *   file_sim --seeds N      N seeds must pass, every probe of the driver must have been reached, and each deliberate
 *                           fault of the driver must be caught by some seed (--no-mutants: without these)
 *   file_sim --seed N       one seed
 *
 * The oracle looks at the disk itself after each batch of requests that ran together: a byte that successful writes
 * cover has the value of one of them (so has one that failed ones cover, or it is as before); every other byte is as it
 * was. After a successful flush, or in the range of a successful FUA write, that must also hold after a power loss.
 */
#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/limits.h"
#include "base/probe.h"
#include "driver/file.h"
#include "world.h"

extern struct probe __start_fleece_probes[], __stop_fleece_probes[];
extern struct mutant __start_fleece_mutants[], __stop_fleece_mutants[];

enum { JOBS = 48, MEMORY = 160 * 1024, DISK_MAX = 512 * 1024, PATTERNS = 255, EXTENTS = 16 };

struct job {
    struct request req; /* first */
    struct run *run;
    struct iovec iov[4];
    unsigned char *memory;
    unsigned char value;
    int status;
    bool done;
};

struct run {
    uint64_t seed;
    struct world *world;
    struct io *io;
    struct world_file *file;
    struct node *node, *heir; /* heir: the next owner, in another process */
    uint64_t size;            /* of what is looked at: the disk, or more than a growing file has */
    unsigned large_per_4, error_per_1024, transient_per_1024, unsupported_per_1024;
    bool block_device, page_cache, growable, sync_failed;
    bool only_reads; /* of this batch: they never wait for one another, so they use up the buffers */
    unsigned pending, values;
    unsigned char *before;
    struct job jobs[JOBS];
    struct job single;
    struct run *next_dead;
};

/* What belonged to killed processes, so that it counts as no leak: their nodes cannot be destroyed any more. */
static struct run *graveyard;

static void __attribute__((format(printf, 2, 3), noreturn)) fail(const struct run *run, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fprintf(stderr, "file_sim: seed %llu: ", (unsigned long long)run->seed);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    exit(1);
}

static int fault(void *context, const struct world_io *io)
{
    struct run *run = context;
    if (io->kind != WORLD_SYNC && world_chance(run->world, run->transient_per_1024)) /* a sync is never repeated */
        return world_below(run->world, 2) ? -EINTR : -EAGAIN;
    if (io->kind == WORLD_ALLOCATE && world_chance(run->world, run->unsupported_per_1024))
        return -EOPNOTSUPP;
    return world_chance(run->world, run->error_per_1024) ? -EIO : 0;
}

/* Requests. */

static void job_done(struct request *req, int status)
{
    struct job *job = (struct job *)(void *)req;
    if (job->done)
        fail(job->run, "a request completed twice");
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
    node_submit(run->node, &job->req);
    if (job->done)
        fail(run, "a request completed inside node_submit()");
}

static void finish(struct run *run)
{
    world_act_as(run->world, NULL);
    if (!world_run_until(run->world, nothing_pending, run, 600 * NS_PER_S))
        fail(run, "%u requests never completed", run->pending);
    world_act_as(run->world, run->io);
}

static struct range random_range(struct run *run)
{
    uint64_t size = run->size;
    uint64_t length = 1 + world_below(run->world, world_below(run->world, 4) < run->large_per_4 ? 140000 : 9000);
    uint64_t start = world_below(run->world, size);
    if (world_below(run->world, 8) == 0) /* where the end of the disk is */
        start = size - 1 - world_below(run->world, size < 9000 ? size : 9000);
    if (world_below(run->world, 3) == 0) {
        start = round_down(start, 4096);
        length = round_up(length, 4096);
    }
    if (length > size - start)
        length = size - start;
    return (struct range){start, length};
}

static void fragment(struct run *run, struct job *job)
{
    unsigned char *at = job->memory + (world_below(run->world, 2) ? 0 : world_below(run->world, 1000));
    size_t left = job->req.range.length;
    job->req.iov = job->iov;
    while (left > 0) {
        size_t length = left;
        if (job->req.iov_count < 3 && world_below(run->world, 2))
            length = 1 + world_below(run->world, left);
        job->iov[job->req.iov_count++] = (struct iovec){at, length};
        at += length;
        left -= length;
    }
}

static void random_job(struct run *run, struct job *job)
{
    static const enum request_kind kinds[] = {
        REQUEST_READ,  REQUEST_READ,         REQUEST_WRITE,        REQUEST_WRITE,   REQUEST_WRITE,
        REQUEST_WRITE, REQUEST_WRITE_ZEROES, REQUEST_WRITE_ZEROES, REQUEST_DISCARD, REQUEST_FLUSH};
    static const uint32_t flags[] = {0, 0, 0, REQUEST_FUA};
    static const uint32_t zero_flags[] = {0, REQUEST_NO_HOLE, REQUEST_FAST_ZERO, REQUEST_FAST_ZERO | REQUEST_NO_HOLE};
    *job = (struct job){.memory = job->memory, .value = (unsigned char)(1 + run->values++ % PATTERNS)};
    job->req.kind = kinds[world_below(run->world, sizeof kinds / sizeof kinds[0])];
    if (run->only_reads)
        job->req.kind = REQUEST_READ;
    if (job->req.kind == REQUEST_FLUSH)
        return;
    job->req.range = random_range(run);
    if (request_is_write(&job->req))
        job->req.flags = flags[world_below(run->world, 4)];
    if (job->req.kind == REQUEST_WRITE_ZEROES)
        job->req.flags |= zero_flags[world_below(run->world, 4)];
    if (job->req.kind == REQUEST_READ || job->req.kind == REQUEST_WRITE) {
        memset(job->memory, job->req.kind == REQUEST_WRITE ? job->value : 0xEE, MEMORY);
        fragment(run, job);
    }
}

/* The oracle. */

/* What the disk holds: run->size bytes. Behind the end of a growing file there are zeroes. */
static const unsigned char *bytes_of(const struct run *run)
{
    static unsigned char bytes[DISK_MAX];
    uint64_t size = world_file_size(run->file) < run->size ? world_file_size(run->file) : run->size;
    memcpy(bytes, world_file_bytes(run->file), size);
    memset(bytes + size, 0, run->size - size);
    return bytes;
}

static bool covers(const struct job *job, uint64_t at)
{
    return request_is_write(&job->req) && at - job->req.range.start < job->req.range.length &&
           job->status != -EOPNOTSUPP;
}

/* Up to there the same jobs cover each byte from `at` on. */
static uint64_t next_edge(const struct run *run, uint64_t at)
{
    uint64_t next = run->size;
    for (unsigned i = 0; i < JOBS; i++) {
        const uint64_t edges[] = {run->jobs[i].req.range.start, range_end(run->jobs[i].req.range)};
        for (unsigned k = 0; k < 2; k++)
            if (edges[k] > at && edges[k] < next)
                next = edges[k];
    }
    return next;
}

static void check_piece(const struct run *run, const unsigned char *after, uint64_t at, uint64_t end)
{
    bool covered = false, anything = false, allowed[256] = {false};
    for (unsigned i = 0; i < JOBS; i++) {
        const struct job *job = &run->jobs[i];
        if (!covers(job, at))
            continue;
        covered |= job->status == 0 && job->req.kind != REQUEST_DISCARD;
        allowed[job->req.kind == REQUEST_WRITE ? job->value : 0] = true;
        anything |= job->req.kind == REQUEST_DISCARD && run->block_device; /* which may leave anything */
    }
    for (; at < end && !anything; at++)
        if (!allowed[after[at]] && (covered || after[at] != run->before[at]))
            fail(run, "byte %llu is %u, was %u", (unsigned long long)at, after[at], run->before[at]);
}

static void check_bytes(struct run *run)
{
    const unsigned char *after = bytes_of(run);
    uint64_t size = run->size;
    if (!run->growable && world_file_size(run->file) != size)
        fail(run, "the file has %llu bytes now, not %llu", (unsigned long long)world_file_size(run->file),
             (unsigned long long)size);
    for (uint64_t at = 0, end; at < size; at = end) {
        end = next_edge(run, at);
        check_piece(run, after, at, end);
    }
}

static void check_read(struct run *run, const struct job *reader)
{
    static unsigned char got[MEMORY];
    iov_copy_out(reader->req.iov, reader->req.iov_count, 0, got, reader->req.range.length);
    for (uint64_t i = 0; i < reader->req.range.length; i++) {
        uint64_t at = reader->req.range.start + i;
        bool touched = got[i] == run->before[at];
        for (unsigned k = 0; k < JOBS && !touched; k++)
            touched = covers(&run->jobs[k], at);
        if (!touched)
            fail(run, "byte %llu was read as %u, it is %u", (unsigned long long)at, got[i], run->before[at]);
    }
}

static void check_status(struct run *run, const struct job *job)
{
    bool not_fast = job->status == -EOPNOTSUPP && (job->req.flags & REQUEST_FAST_ZERO);
    bool sync_known_lost = job->status == -EIO && run->sync_failed && (job->req.flags & REQUEST_FUA);
    if (job->status != 0 && !run->error_per_1024 && !not_fast && !sync_known_lost)
        fail(run, "a request failed with %d", job->status);
    if (job->status != 0 && job->status != -EIO && !not_fast)
        fail(run, "a request failed with %d: nothing fails so", job->status);
    if (job->req.kind == REQUEST_FLUSH && run->sync_failed && job->status != -EIO)
        fail(run, "a flush succeeded after one had failed");
}

static void run_batch(struct run *run)
{
    run->only_reads = world_below(run->world, 6) == 0;
    for (unsigned i = 0; i < JOBS; i++)
        random_job(run, &run->jobs[i]);
    run->only_reads = false;
    for (unsigned i = 0; i < JOBS; i++)
        submit(run, &run->jobs[i]);
    finish(run);
    bool sync_failed = run->sync_failed;
    for (unsigned i = 0; i < JOBS; i++) {
        const struct job *job = &run->jobs[i];
        check_status(run, job);
        sync_failed |= job->req.kind == REQUEST_FLUSH && job->status != 0;
        if (job->req.kind == REQUEST_READ && job->status == 0)
            check_read(run, job);
    }
    run->sync_failed = sync_failed;
    check_bytes(run);
    memcpy(run->before, bytes_of(run), run->size);
}

static void check_block_status(struct run *run)
{
    struct block_extent extents[EXTENTS];
    struct job *job = &run->single;
    *job = (struct job){.req = {.kind = REQUEST_BLOCK_STATUS,
                                .range = random_range(run),
                                .extents = extents,
                                .extent_max = 1 + (unsigned)world_below(run->world, EXTENTS)}};
    submit(run, job);
    finish(run);
    if (job->status != 0) {
        check_status(run, job);
        return;
    }
    uint64_t at = job->req.range.start;
    for (unsigned i = 0; i < job->req.extent_count; i++) {
        if (extents[i].length == 0 || extents[i].length > range_end(job->req.range) - at)
            fail(run, "extent %u of the block status has length %llu", i, (unsigned long long)extents[i].length);
        for (uint64_t end = at + extents[i].length; at < end; at++)
            if ((extents[i].flags & EXTENT_ZERO) && run->before[at])
                fail(run, "byte %llu is said to be zero, it is %u", (unsigned long long)at, run->before[at]);
    }
    if (at == job->req.range.start ||
        (at < range_end(job->req.range) && job->req.extent_count < job->req.extent_max && !run->error_per_1024))
        fail(run, "the block status ends too early");
}

/* What is said to be durable survives: everything after a flush, or the range of a FUA write. */
static void lose_power(struct run *run)
{
    struct job *job = &run->jobs[0];
    struct range durable = {0, run->size};
    if (world_below(run->world, 2)) {
        *job = (struct job){.memory = job->memory, .req = {.kind = REQUEST_FLUSH}};
    } else {
        do {
            random_job(run, job);
        } while (job->req.kind != REQUEST_WRITE && job->req.kind != REQUEST_WRITE_ZEROES);
        job->req.flags |= REQUEST_FUA;
        durable = job->req.range;
    }
    submit(run, job);
    finish(run);
    check_status(run, job);
    memcpy(run->before, bytes_of(run), run->size);
    node_destroy(run->node);
    world_act_as(run->world, NULL);
    world_power_loss(run->world);
    if (job->status == 0 && memcmp(run->before + durable.start, bytes_of(run) + durable.start, durable.length) != 0)
        fail(run, "what was said to be durable is lost with the power");
}

/* kill -9 with requests under way: whoever has the lock then finds a disk that nobody changes any more (C10). */
static void kill_owner(struct run *run)
{
    for (unsigned i = 0; i < JOBS; i++) {
        random_job(run, &run->jobs[i]);
        submit(run, &run->jobs[i]);
    }
    world_act_as(run->world, NULL);
    world_run_for(run->world, world_below(run->world, 200 * NS_PER_US));
    world_kill(run->world, 1);
    struct io *heir = world_reactor(run->world, "heir", 2);
    world_act_as(run->world, heir);
    struct error err;
    struct file_options options = {
        .path = "disk", .lock_wait_ns = LOCK_WAIT_DEFAULT_NS, .page_cache = run->page_cache, .growable = run->growable};
    if (file_open(heir, &options, &run->heir, &err) < 0)
        fail(run, "%s", err.text);
    memcpy(run->before, bytes_of(run), run->size);
    world_act_as(run->world, NULL);
    world_run_for(run->world, 10 * NS_PER_S);
    if (memcmp(run->before, bytes_of(run), run->size) != 0)
        fail(run, "a write of a killed owner landed when another one had the lock");
    world_act_as(run->world, heir);
    node_destroy(run->heir);
    world_act_as(run->world, NULL);
}

static uint64_t random_size(struct run *run)
{
    static const uint64_t sizes[] = {1, 511, 513, 4095, 4097, 9000, 65536 + 17, DISK_MAX};
    uint64_t size = sizes[world_below(run->world, sizeof sizes / sizeof sizes[0])];
    if (run->large_per_4 == 3)
        size = DISK_MAX - world_below(run->world, 9000);
    else if (world_below(run->world, 2))
        size = 1 + world_below(run->world, DISK_MAX / 2);
    return run->block_device ? round_up(size, 4096) : size;
}

static unsigned one_of(struct run *run, unsigned a, unsigned b, unsigned c)
{
    uint64_t which = world_below(run->world, 3);
    return which == 0 ? a : which == 1 ? b : c;
}

static void run_seed(uint64_t seed)
{
    struct run *run = calloc(1, sizeof *run);
    run->seed = seed;
    run->world = world_create(&(struct world_options){
        .seed = seed, .power = true, .short_per_1024 = seed % 3 ? 60 : 0, .context = run, .fault = fault});
    run->io = world_reactor(run->world, "disk", 1);
    run->large_per_4 = one_of(run, 0, 1, 3);
    run->block_device = world_below(run->world, 4) == 0;
    run->page_cache = world_below(run->world, 5) == 0;
    run->file = world_file_create(run->world, "disk", random_size(run), world_below(run->world, 2) ? 512 : 4096,
                                  run->block_device);
    run->transient_per_1024 = one_of(run, 0, 10, 100);
    run->unsupported_per_1024 = one_of(run, 0, 200, 1024);
    run->error_per_1024 = one_of(run, 0, 0, 5);
    run->growable = !run->block_device && world_below(run->world, 3) == 0;
    run->size = run->growable ? DISK_MAX : world_file_size(run->file);
    run->before = calloc(1, run->size);
    for (unsigned i = 0; i < JOBS; i++)
        run->jobs[i].memory = aligned_alloc(4096, MEMORY);
    world_act_as(run->world, run->io);
    struct error err;
    struct file_options options = {.path = "disk", .page_cache = run->page_cache, .growable = run->growable};
    if (file_open(run->io, &options, &run->node, &err) < 0)
        fail(run, "%s", err.text);
    for (unsigned batch = 0; batch < 6; batch++) {
        run_batch(run);
        check_block_status(run);
    }
    bool killed = seed % 8 == 0;
    if (killed)
        kill_owner(run);
    else
        lose_power(run);
    if (world_destroy(run->world, NULL) != 0)
        fail(run, "something is left over");
    for (unsigned i = 0; i < JOBS; i++)
        free(run->jobs[i].memory);
    free(run->before);
    run->before = NULL;
    if (killed) {
        run->next_dead = graveyard;
        graveyard = run;
    } else {
        free(run);
    }
}

/* Probes and deliberate faults of the driver. */

static bool of_the_driver(const char *name)
{
    return strncmp(name, "file_", 5) == 0;
}

static unsigned count_unreached(void)
{
    unsigned unreached = 0;
    for (const struct probe *probe = __start_fleece_probes; probe < __stop_fleece_probes; probe++) {
        if (of_the_driver(probe->name) && probe->hits == 0) {
            fprintf(stderr, "file_sim: the probe %s was never reached\n", probe->name);
            unreached++;
        }
    }
    return unreached;
}

static bool is_caught(struct mutant *mutant, uint64_t seeds)
{
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        if (!freopen("/dev/null", "w", stderr))
            _exit(0);
        mutant->on = true;
        setitimer(ITIMER_PROF, &(struct itimerval){.it_value.tv_sec = 60}, NULL); /* of the processor */
        for (uint64_t seed = 1; seed <= seeds; seed++)
            run_seed(seed);
        _exit(0);
    }
    int status = 0;
    bool caught = child > 0 && waitpid(child, &status, 0) == child && !(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    printf("%-32s %s\n", mutant->name, caught ? "caught" : "NOT CAUGHT");
    return caught;
}

int main(int argc, char **argv)
{
    bool with_mutants = argc != 4 || strcmp(argv[3], "--no-mutants") != 0;
    uint64_t number = argc == 3 + !with_mutants ? strtoull(argv[2], NULL, 10) : 0;
    if (number == 0 || (strcmp(argv[1], "--seeds") != 0 && strcmp(argv[1], "--seed") != 0)) {
        fprintf(stderr, "usage: file_sim --seeds N [--no-mutants] | --seed N\n");
        return 2;
    }
    if (strcmp(argv[1], "--seed") == 0) {
        run_seed(number);
        return 0;
    }
    unsigned wrong = 0, mutants = 0;
    for (struct mutant *mutant = __start_fleece_mutants; mutant < __stop_fleece_mutants; mutant++) {
        if (with_mutants && of_the_driver(mutant->name)) {
            mutants++;
            wrong += !is_caught(mutant, number);
        }
    }
    for (uint64_t seed = 1; seed <= number; seed++)
        run_seed(seed);
    wrong += count_unreached();
    printf("file_sim: %llu seeds passed, %u deliberate faults tried, %u things wrong\n", (unsigned long long)number,
           mutants, wrong);
    return wrong == 0 ? 0 : 1;
}
