/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The file driver on the reactor and a real kernel: data against a model, sizes, status, locks, errors. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/limits.h"
#include "driver/file.h"
#include "driver/null.h"
#include "io/ring.h"

struct bench { /* a folder, a reactor, and a node under test */
    char folder[64], path[128];
    struct io *io;
    struct node *node;
};

static int bench_begin(void **state)
{
    struct bench *bench = calloc(1, sizeof *bench);
    strcpy(bench->folder, "/var/tmp/fleece-file-XXXXXX");
    struct error err;
    if (!mkdtemp(bench->folder) || ring_create(&bench->io, &err) < 0)
        return -1;
    snprintf(bench->path, sizeof bench->path, "%s/disk", bench->folder);
    *state = bench;
    return 0;
}

static int bench_end(void **state)
{
    struct bench *bench = *state;
    if (bench->node)
        node_destroy(bench->node);
    ring_destroy(bench->io);
    char command[128];
    snprintf(command, sizeof command, "rm -r %s", bench->folder);
    int result = system(command);
    free(bench);
    return result;
}

static void make_file(const char *path, uint64_t size_bytes)
{
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL, 0600);
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, (off_t)size_bytes), 0);
    close(fd);
}

static void open_node(struct bench *bench, bool page_cache)
{
    struct error err = {0};
    struct file_options options = {.path = bench->path, .page_cache = page_cache};
    if (file_open(bench->io, &options, &bench->node, &err) < 0)
        fail_msg("%s", err.text);
}

static void close_node(struct bench *bench)
{
    node_destroy(bench->node);
    bench->node = NULL;
}

/* Requests. */

struct job {
    struct request req; /* first */
    struct iovec iov[8];
    char *memory;
    unsigned char value;
    int status;
    bool done;
    unsigned *pending;
    struct io *io;
};

static void job_done(struct request *req, int status)
{
    struct job *job = (struct job *)(void *)req;
    assert_false(job->done);
    job->done = true;
    job->status = status;
    if (--*job->pending == 0)
        ring_quit(job->io);
}

static void run_jobs(struct bench *bench, struct job *jobs, unsigned count)
{
    unsigned pending = count;
    for (unsigned i = 0; i < count; i++) {
        jobs[i].pending = &pending;
        jobs[i].io = bench->io;
        jobs[i].done = false;
        jobs[i].req.done = job_done;
        node_submit(bench->node, &jobs[i].req);
        assert_false(jobs[i].done);
    }
    ring_run(bench->io);
    assert_int_equal(pending, 0);
}

static int run_one(struct bench *bench, struct job *job)
{
    run_jobs(bench, job, 1);
    return job->status;
}

static int run_simple(struct bench *bench, enum request_kind kind, uint32_t flags, struct range range, void *memory)
{
    struct job job = {.req = {.kind = kind, .flags = flags, .range = range, .iov = job.iov, .iov_count = 1},
                      .iov = {{memory, range.length}}};
    return run_one(bench, &job);
}

static void read_all(struct bench *bench, unsigned char *to)
{
    uint64_t size = bench->node->size_bytes;
    for (uint64_t at = 0; at < size; at += LIMIT_REQUEST_BYTES) {
        uint64_t length = size - at < LIMIT_REQUEST_BYTES ? size - at : LIMIT_REQUEST_BYTES;
        assert_int_equal(run_simple(bench, REQUEST_READ, 0, (struct range){at, length}, to + at), 0);
    }
}

/* Random concurrent requests against a model: a byte that one write covers has its value afterwards; several: one of
 * theirs; none: what it was. A discarded byte may be anything of the discard's and the others' doing. */

struct chance {
    uint64_t state;
};

static uint64_t chance_below(struct chance *chance, uint64_t below)
{
    chance->state = chance->state * 6364136223846793005u + 1442695040888963407u;
    return (chance->state >> 33) % below;
}

enum { BATCH = 40, JOB_MEMORY = 256 * 1024 };

static struct range random_range(struct chance *chance, uint64_t size)
{
    static const uint64_t lengths[] = {1, 100, 512, 700, 4096, 5000, 16384, 70000, 131072, 200000};
    uint64_t length = lengths[chance_below(chance, sizeof lengths / sizeof lengths[0])];
    if (chance_below(chance, 2))
        length = 1 + chance_below(chance, length);
    uint64_t start = chance_below(chance, size);
    if (chance_below(chance, 3) == 0) {
        start = round_down(start, 4096);
        length = round_up(length, 4096);
    }
    if (length > size - start)
        length = size - start;
    return (struct range){start, length};
}

static void random_job(struct chance *chance, struct job *job, uint64_t size, unsigned char value)
{
    static const enum request_kind kinds[] = {REQUEST_READ,  REQUEST_WRITE,        REQUEST_WRITE,  REQUEST_WRITE,
                                              REQUEST_WRITE, REQUEST_WRITE_ZEROES, REQUEST_DISCARD};
    static const uint32_t flags[] = {0, 0, 0, REQUEST_FUA, REQUEST_NO_HOLE};
    char *memory = job->memory;
    *job = (struct job){.memory = memory, .value = value};
    job->req.kind = kinds[chance_below(chance, sizeof kinds / sizeof kinds[0])];
    job->req.flags = flags[chance_below(chance, 5)];
    job->req.range = random_range(chance, size);
    if (job->req.kind != REQUEST_READ && job->req.kind != REQUEST_WRITE)
        return;
    size_t left = job->req.range.length;
    char *at = memory + (chance_below(chance, 2) ? 0 : chance_below(chance, 600)); /* often unaligned */
    job->req.iov = job->iov;
    while (left > 0) {
        size_t length = job->req.iov_count == 7 ? left : 1 + chance_below(chance, left);
        if (chance_below(chance, 2) || length > left)
            length = left;
        job->iov[job->req.iov_count++] = (struct iovec){at, length};
        at += length;
        left -= length;
    }
    memset(memory, job->req.kind == REQUEST_WRITE ? value : 0xEE, JOB_MEMORY);
}

static void check_byte(const struct job *jobs, unsigned char before, unsigned char after, uint64_t at)
{
    bool covered = false, allowed = false;
    for (unsigned i = 0; i < BATCH; i++) {
        const struct request *req = &jobs[i].req;
        if (!request_is_write(req) || at - req->range.start >= req->range.length)
            continue;
        if (req->kind != REQUEST_DISCARD)
            covered = true;
        allowed |= after == (req->kind == REQUEST_WRITE ? jobs[i].value : 0);
    }
    if (!allowed && (covered || after != before))
        fail_msg("byte %llu is %u, was %u", (unsigned long long)at, after, before);
}

static void check_read(const struct job *jobs, const struct job *reader, const unsigned char *before)
{
    unsigned char got[JOB_MEMORY];
    iov_copy_out(reader->req.iov, reader->req.iov_count, 0, got, reader->req.range.length);
    for (uint64_t i = 0; i < reader->req.range.length; i++) {
        uint64_t at = reader->req.range.start + i;
        bool touched = false;
        for (unsigned j = 0; j < BATCH && !touched; j++)
            touched = request_is_write(&jobs[j].req) && at - jobs[j].req.range.start < jobs[j].req.range.length;
        if (!touched && got[i] != before[at])
            fail_msg("read byte %llu as %u, it is %u", (unsigned long long)at, got[i], before[at]);
    }
}

static void run_batches(struct bench *bench, uint64_t seed, unsigned batches)
{
    struct chance chance = {seed};
    uint64_t size = bench->node->size_bytes;
    unsigned char *before = aligned_alloc(4096, round_up(size, 4096)),
                  *after = aligned_alloc(4096, round_up(size, 4096));
    struct job *jobs = calloc(BATCH, sizeof *jobs);
    for (unsigned i = 0; i < BATCH; i++)
        jobs[i].memory = aligned_alloc(4096, JOB_MEMORY);
    read_all(bench, before);
    for (unsigned batch = 0; batch < batches; batch++) {
        for (unsigned i = 0; i < BATCH; i++)
            random_job(&chance, &jobs[i], size, (unsigned char)(1 + (batch * BATCH + i) % 255));
        run_jobs(bench, jobs, BATCH);
        for (unsigned i = 0; i < BATCH; i++)
            assert_int_equal(jobs[i].status, 0);
        read_all(bench, after);
        for (uint64_t at = 0; at < size; at++)
            check_byte(jobs, before[at], after[at], at);
        for (unsigned i = 0; i < BATCH; i++)
            if (jobs[i].req.kind == REQUEST_READ)
                check_read(jobs, &jobs[i], before);
        unsigned char *swap = before;
        before = after;
        after = swap;
    }
    for (unsigned i = 0; i < BATCH; i++)
        free(jobs[i].memory);
    free(jobs);
    free(before);
    free(after);
}

/* What the driver says must be what others see in the file. */
static void compare_with_file(const char *path, const unsigned char *data, uint64_t size)
{
    int fd = open(path, O_RDONLY);
    struct stat st;
    assert_true(fd >= 0 && fstat(fd, &st) == 0);
    assert_int_equal(st.st_size, size); /* never grown */
    unsigned char *seen = malloc(size);
    for (uint64_t at = 0; at < size;) {
        ssize_t got = pread(fd, seen + at, size - at, (off_t)at);
        assert_true(got > 0);
        at += (uint64_t)got;
    }
    assert_memory_equal(seen, data, size);
    free(seen);
    close(fd);
}

static void random_requests_keep_every_byte(void **state)
{
    struct bench *bench = *state;
    static const uint64_t sizes[] = {1, 511, 512, 513, 4095, 4096, 4097, 12800, 262144, MIB + 17};
    for (unsigned i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        for (int page_cache = 0; page_cache < 2; page_cache++) {
            make_file(bench->path, sizes[i]);
            open_node(bench, page_cache);
            assert_int_equal(bench->node->size_bytes, sizes[i]);
            run_batches(bench, sizes[i] * 2 + (uint64_t)page_cache, sizes[i] > 300000 ? 6 : 30);
            unsigned char *data = aligned_alloc(4096, round_up(sizes[i], 4096));
            read_all(bench, data);
            close_node(bench);
            compare_with_file(bench->path, data, sizes[i]);
            free(data);
            unlink(bench->path);
        }
    }
}

static void status_tells_holes(void **state)
{
    struct bench *bench = *state;
    make_file(bench->path, MIB + 17);
    open_node(bench, false);
    static char data[65536];
    memset(data, 1, sizeof data);
    assert_int_equal(run_simple(bench, REQUEST_WRITE, 0, (struct range){131072, 65536}, data), 0);
    assert_int_equal(run_simple(bench, REQUEST_WRITE, 0, (struct range){196608, 65536}, data), 0);
    struct block_extent extents[8];
    struct job job = {
        .req = {.kind = REQUEST_BLOCK_STATUS, .range = {100, MIB - 100}, .extents = extents, .extent_max = 8}};
    assert_int_equal(run_one(bench, &job), 0);
    assert_int_equal(job.req.extent_count, 3);
    assert_int_equal(extents[0].length, 131072 - 100);
    assert_int_equal(extents[0].flags, EXTENT_HOLE | EXTENT_ZERO);
    assert_int_equal(extents[1].length, 131072);
    assert_int_equal(extents[1].flags, 0);
    assert_int_equal(extents[2].length, MIB - 262144);
    job.req.flags = REQUEST_ONE;
    assert_int_equal(run_one(bench, &job), 0);
    assert_int_equal(job.req.extent_count, 1);
    job.req.flags = 0;
    job.req.extent_max = 2;
    assert_int_equal(run_one(bench, &job), 0);
    assert_int_equal(job.req.extent_count, 2);
    /* Zeroes and discards give the space back; NO_HOLE keeps it. */
    assert_int_equal(run_simple(bench, REQUEST_WRITE_ZEROES, REQUEST_FAST_ZERO, (struct range){131072, 65536}, NULL),
                     0);
    assert_int_equal(run_simple(bench, REQUEST_DISCARD, 0, (struct range){196608, 32768}, NULL), 0);
    assert_int_equal(run_simple(bench, REQUEST_WRITE_ZEROES, REQUEST_NO_HOLE, (struct range){0, 65536}, NULL), 0);
    struct stat st;
    assert_int_equal(stat(bench->path, &st), 0);
    /* A map of pieces that lie apart takes some, too. */
    assert_in_range(st.st_blocks * 512, 32768 + 65536, 32768 + 65536 + 24576);
}

static void a_truncated_file_is_an_error(void **state)
{
    struct bench *bench = *state;
    make_file(bench->path, MIB);
    open_node(bench, false);
    assert_int_equal(truncate(bench->path, 10000), 0);
    static char data[65536];
    assert_int_equal(run_simple(bench, REQUEST_READ, 0, (struct range){0, 4096}, data), 0);
    assert_int_equal(run_simple(bench, REQUEST_READ, 0, (struct range){0, 65536}, data), -EIO);
    assert_int_equal(run_simple(bench, REQUEST_READ, 0, (struct range){65536, 65536}, data), -EIO);
    assert_int_equal(run_simple(bench, REQUEST_WRITE, 0, (struct range){65537, 7}, data), -EIO);
    assert_int_equal(run_simple(bench, REQUEST_READ, 0, (struct range){4097, 50}, data), 0);
}

struct extending {
    struct node_extension extension;
    struct bench *bench;
    int status;
};

static void extended(struct node_extension *extension, int status)
{
    struct extending *extending = container_of(extension, struct extending, extension);
    extending->status = status;
    ring_quit(extending->bench->io);
}

/* The size that the file has then; or -errno. */
static int64_t extend(struct bench *bench, uint64_t size)
{
    struct extending extending = {.extension = {.size_bytes = size, .done = extended}, .bench = bench, .status = 1};
    bench->node->ops->extend(bench->node, &extending.extension);
    assert_int_equal(extending.status, 1);
    ring_run(bench->io);
    return extending.status < 0 ? extending.status : (int64_t)extending.extension.size_bytes;
}

static uint64_t file_length(const struct bench *bench)
{
    struct stat st;
    assert_int_equal(stat(bench->path, &st), 0);
    return (uint64_t)st.st_size;
}

/* What was added and not used is taken back; what somebody else has added is his. */
static void a_file_gets_its_old_size_again(void **state)
{
    static const uint64_t old_sizes[] = {MIB, MIB + 1000};
    struct bench *bench = *state;
    static char data[4096];
    for (unsigned i = 0; i < 2; i++) {
        const uint64_t old = old_sizes[i];
        unlink(bench->path);
        make_file(bench->path, old);
        open_node(bench, false);
        assert_int_equal(extend(bench, old), old);
        assert_int_equal(extend(bench, 2 * MIB), 2 * MIB);
        assert_int_equal(extend(bench, old), old);
        assert_int_equal(file_length(bench), old);
        assert_int_equal(run_simple(bench, REQUEST_WRITE, 0, (struct range){old - 4096, 4096}, data), 0);
        assert_int_equal(extend(bench, 2 * MIB), 2 * MIB);
        assert_int_equal(truncate(bench->path, 3 * MIB), 0);
        assert_int_equal(extend(bench, old), old);
        assert_int_equal(file_length(bench), 3 * MIB);
        assert_int_equal(extend(bench, 2 * MIB), -EINVAL);
        assert_int_equal(extend(bench, 0), 3 * MIB);
        bench->node->ops->grow(bench->node, 3 * MIB);
        assert_int_equal(extend(bench, 3 * MIB), 3 * MIB);
        assert_int_equal(file_length(bench), 3 * MIB);
        close_node(bench);
    }
}

/* It grows, with a tail of odd size, which stays where it was, and without: what is written is there. */
static void a_file_grows(void **state)
{
    static const uint64_t old_sizes[] = {MIB, MIB + 1000, MIB - 1};
    struct bench *bench = *state;
    static char data[8192], read[8192];
    for (unsigned i = 0; i < 6; i++) {
        const uint64_t old = old_sizes[i / 2];
        uint64_t size = 0;
        unlink(bench->path);
        make_file(bench->path, old);
        open_node(bench, i % 2);
        assert_int_equal(extend(bench, 0), old % 512 ? -EINVAL : (int64_t)old);
        for (uint64_t step = 1; step <= 2; step++) {
            const uint64_t before = bench->node->size_bytes;
            size = 2 * MIB * step;
            assert_int_equal(extend(bench, size), size);
            assert_int_equal(bench->node->size_bytes, before);
            bench->node->ops->grow(bench->node, size);
            assert_int_equal(bench->node->size_bytes, 2 * MIB * step);
            memset(data, (int)('a' + i + step), sizeof data);
            for (unsigned place = 0; place < 3;
                 place++) { /* over the old end, behind it at an odd place, at the new end */
                const uint64_t at = place == 0 ? before - 4000 : place == 1 ? before + 40001 : size - 8192;
                const struct range range = {at, sizeof data};
                assert_int_equal(run_simple(bench, REQUEST_WRITE, place ? 0 : REQUEST_FUA, range, data), 0);
                memset(read, 0, sizeof read);
                assert_int_equal(run_simple(bench, REQUEST_READ, 0, range, read), 0);
                assert_memory_equal(read, data, sizeof data);
            }
        }
        assert_int_equal(extend(bench, 4 * MIB + 1), -EINVAL);
        assert_int_equal(extend(bench, LIMIT_DISK_BYTES + 512), -EFBIG);
        close_node(bench);
        open_node(bench, i % 2);
        assert_int_equal(bench->node->size_bytes, 4 * MIB);
        assert_int_equal(run_simple(bench, REQUEST_READ, 0, (struct range){4 * MIB - 8192, 8192}, read), 0);
        assert_memory_equal(read, data, sizeof data);
        close_node(bench);
    }
}

static void many_bounced_requests_wait_for_buffers(void **state)
{
    struct bench *bench = *state;
    enum { COUNT = 100, LENGTH = 100000 };
    make_file(bench->path, 16 * MIB);
    open_node(bench, false);
    struct job *jobs = calloc(COUNT, sizeof *jobs);
    for (unsigned i = 0; i < COUNT; i++) {
        jobs[i].memory = malloc(LENGTH);
        memset(jobs[i].memory, (int)i + 1, LENGTH);
        jobs[i].iov[0] = (struct iovec){jobs[i].memory, LENGTH};
        jobs[i].req = (struct request){
            .kind = REQUEST_WRITE, .range = {i * (LENGTH + 3) + 1, LENGTH}, .iov = jobs[i].iov, .iov_count = 1};
    }
    run_jobs(bench, jobs, COUNT);
    for (unsigned i = 0; i < COUNT; i++) {
        assert_int_equal(jobs[i].status, 0);
        jobs[i].req.kind = REQUEST_READ;
        memset(jobs[i].memory, 0, LENGTH);
    }
    run_jobs(bench, jobs, COUNT);
    for (unsigned i = 0; i < COUNT; i++) {
        assert_int_equal(jobs[i].status, 0);
        for (unsigned j = 0; j < LENGTH; j++)
            assert_int_equal((unsigned char)jobs[i].memory[j], i + 1);
        free(jobs[i].memory);
    }
    free(jobs);
    assert_int_equal(run_simple(bench, REQUEST_FLUSH, 0, (struct range){0, 0}, NULL), 0);
}

/* Each of them ends in the step that starts it: as many as there are must not lie on the stack. */
static void a_crowd_behind_one_write_goes_on(void **state)
{
    struct bench *bench = *state;
    enum { CROWD = 200000 };
    make_file(bench->path, 64 * KIB);
    open_node(bench, false);
    char byte = 'x';
    struct job *jobs = calloc(CROWD, sizeof *jobs);
    assert_non_null(jobs);
    jobs[0].iov[0] = (struct iovec){&byte, 1};
    jobs[0].req = (struct request){.kind = REQUEST_WRITE, .range = {0, 1}, .iov = jobs[0].iov, .iov_count = 1};
    for (unsigned i = 1; i < CROWD; i++)
        jobs[i].req = (struct request){.kind = REQUEST_DISCARD, .range = {1, 100}};
    run_jobs(bench, jobs, CROWD);
    for (unsigned i = 0; i < CROWD; i++)
        assert_int_equal(jobs[i].status, 0);
    free(jobs);
}

static void a_new_file_is_created(void **state)
{
    struct bench *bench = *state;
    struct error err = {0};
    struct file_options options = {.path = bench->path, .create = true, .size_bytes = 12345, .no_lock = true};
    assert_int_equal(file_open(bench->io, &options, &bench->node, &err), 0);
    char data[100];
    memset(data, 7, sizeof data);
    assert_int_equal(run_simple(bench, REQUEST_WRITE, 0, (struct range){12245, 100}, data), 0);
    struct stat st;
    assert_int_equal(stat(bench->path, &st), 0);
    assert_int_equal(st.st_size, 12345);
    assert_int_equal(st.st_mode & 0777, 0600);
    struct node *second;
    assert_int_equal(file_open(bench->io, &options, &second, &err), -EEXIST);
    assert_non_null(strstr(err.text, bench->path));
}

static int open_fails(struct bench *bench, const char *path, bool read_only, struct error *err)
{
    struct node *node;
    struct file_options options = {.path = path, .read_only = read_only};
    *err = (struct error){0};
    int result = file_open(bench->io, &options, &node, err);
    assert_true(result < 0);
    assert_int_equal(result, -err->code);
    assert_non_null(strstr(err->text, path));
    return result;
}

static void open_says_what_is_wrong(void **state)
{
    struct bench *bench = *state;
    struct error err;
    assert_int_equal(open_fails(bench, bench->path, false, &err), -ENOENT);
    assert_int_equal(open_fails(bench, bench->folder, false, &err), -EISDIR);
    assert_non_null(strstr(err.text, "directory"));
    assert_int_equal(open_fails(bench, bench->folder, true, &err), -EISDIR);
    make_file(bench->path, 0);
    assert_int_equal(open_fails(bench, bench->path, false, &err), -EINVAL);
    assert_non_null(strstr(err.text, "size 0"));
    assert_int_equal(open_fails(bench, "/dev/null", false, &err), -ENOTBLK);
    unlink(bench->path);
    assert_int_equal(mkfifo(bench->path, 0600), 0);
    assert_int_equal(open_fails(bench, bench->path, true, &err), -ENOTBLK); /* and does not wait for a writer */
    if (geteuid() == 0) {                                                   /* somebody who may not */
        char path[160];
        snprintf(path, sizeof path, "%s/secret", bench->folder);
        make_file(path, 4096);
        assert_int_equal(seteuid(65534), 0);
        int result = open_fails(bench, path, false, &err);
        assert_int_equal(seteuid(0), 0);
        assert_int_equal(result, -EACCES);
    }
}

/* As QEMU's tools treat a raw disk of a running VM: no copying and no writing. (Only `info` looks all the same.) */
static bool qemu_opens(const char *path)
{
    char copy[300], write[300];
    snprintf(copy, sizeof copy, "qemu-img convert -f raw -O raw %s %s.copy >/dev/null 2>&1", path, path);
    snprintf(write, sizeof write, "qemu-io -f raw -c 'read 0 512' %s >/dev/null 2>&1", path);
    bool copied = system(copy) == 0, written = system(write) == 0;
    assert_int_equal(copied, written);
    return copied;
}

static void locks_keep_others_out(void **state)
{
    struct bench *bench = *state;
    make_file(bench->path, MIB + 17);
    bool qemu = qemu_opens(bench->path);
    open_node(bench, false);
    struct error err;
    assert_int_equal(open_fails(bench, bench->path, false, &err), -EAGAIN);
    assert_non_null(strstr(err.text, "locked"));
    assert_int_equal(open_fails(bench, bench->path, true, &err), -EAGAIN);
    if (qemu)
        assert_false(qemu_opens(bench->path));
    close_node(bench);
    if (qemu)
        assert_true(qemu_opens(bench->path));
    struct file_options options = {.path = bench->path, .read_only = true};
    struct node *second;
    assert_int_equal(file_open(bench->io, &options, &bench->node, &err), 0); /* readers share */
    assert_int_equal(file_open(bench->io, &options, &second, &err), 0);
    node_destroy(second);
    assert_int_equal(open_fails(bench, bench->path, false, &err), -EAGAIN);
}

static void a_disk_that_qemu_has_open_is_refused(void **state)
{
    struct bench *bench = *state;
    if (system("qemu-storage-daemon --version >/dev/null 2>&1") != 0)
        skip();
    make_file(bench->path, MIB);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        char blockdev[200];
        snprintf(blockdev, sizeof blockdev, "driver=file,node-name=disk,filename=%s", bench->path);
        char export[200];
        snprintf(export, sizeof export, "type=nbd,id=e,node-name=disk,writable=on");
        char server[200];
        snprintf(server, sizeof server, "addr.type=unix,addr.path=%s/qsd", bench->folder);
        char ready[200];
        snprintf(ready, sizeof ready, "%s/ready", bench->folder);
        execlp("qemu-storage-daemon", "qemu-storage-daemon", "--blockdev", blockdev, "--nbd-server", server, "--export",
               export, "--pidfile", ready, (char *)NULL);
        _exit(127);
    }
    char ready[200];
    snprintf(ready, sizeof ready, "%s/ready", bench->folder);
    for (int tries = 0; access(ready, F_OK) != 0; tries++) {
        assert_true(tries < 12000);
        usleep(10000);
    }
    struct error err;
    struct node *node;
    struct file_options options = {.path = bench->path, .lock_wait_ns = 20 * NS_PER_S};
    uint64_t before_ns = io_now_ns(bench->io);
    int result = file_open(bench->io, &options, &node, &err);
    uint64_t waited_ns = io_now_ns(bench->io) - before_ns;
    kill(pid, SIGTERM);
    waitpid(pid, NULL, 0);
    assert_int_equal(result, -EAGAIN);
    assert_true(waited_ns < 15 * NS_PER_S); /* no waiting for what will not end */
    assert_non_null(strstr(err.text, "QEMU"));
}

struct waits {
    unsigned count;
    int order; /* the second one lets the owner of the lock die */
};

static void note_waiting(void *context, const char *path)
{
    struct waits *waits = context;
    (void)path;
    if (++waits->count == 2)
        assert_int_equal(write(waits->order, "x", 1), 1);
}

static void a_killed_owners_lock_is_waited_for(void **state)
{
    struct bench *bench = *state;
    make_file(bench->path, MIB + 17);
    int ready[2], order[2];
    assert_int_equal(pipe(ready) | pipe(order), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) { /* serves the disk until it is killed */
        char byte;
        close(order[1]);
        struct io *io;
        struct node *node;
        struct file_options options = {.path = bench->path};
        if (ring_start("victim", &io, NULL) < 0 || file_open(io, &options, &node, NULL) < 0 ||
            write(ready[1], "x", 1) != 1)
            _exit(1);
        (void)!read(order[0], &byte, 1);
        kill(getpid(), SIGKILL);
    }
    char byte;
    assert_int_equal(read(ready[0], &byte, 1), 1);
    close(ready[0]);
    close(ready[1]);
    close(order[0]);
    struct error err;
    struct waits waits = {.order = order[1]};
    struct file_options options = {
        .path = bench->path, .lock_wait_ns = 100 * NS_PER_MS, .waiting = note_waiting, .waiting_context = &waits};
    assert_int_equal(file_open(bench->io, &options, &bench->node, &err), -EAGAIN);
    assert_non_null(strstr(err.text, "0.1 s"));
    bench->node = NULL;
    options.lock_wait_ns = 120 * NS_PER_S;
    assert_int_equal(file_open(bench->io, &options, &bench->node, &err), 0);
    assert_int_equal(waits.count, 2); /* said once for each open */
    waitpid(pid, NULL, 0);
    close(order[1]);
}

/* Writes until it is killed, 100 at once. */
static void write_for_ever(const char *path, int ready)
{
    enum { COUNT = 100, LENGTH = 256 * 1024 };
    struct bench bench = {0};
    struct file_options options = {.path = path};
    if (ring_create(&bench.io, NULL) < 0 || file_open(bench.io, &options, &bench.node, NULL) < 0)
        _exit(1);
    struct job *jobs = calloc(COUNT, sizeof *jobs);
    for (unsigned round = 1;; round++) {
        for (unsigned i = 0; i < COUNT; i++) {
            char *memory = jobs[i].memory ? jobs[i].memory : aligned_alloc(4096, LENGTH);
            memset(memory, (int)(round & 0xff), LENGTH);
            jobs[i] = (struct job){.memory = memory,
                                   .iov = {{memory, LENGTH}},
                                   .req = {.kind = REQUEST_WRITE, .iov = jobs[i].iov, .iov_count = 1}};
            jobs[i].req.range = (struct range){(uint64_t)i * LENGTH, LENGTH};
        }
        run_jobs(&bench, jobs, COUNT);
        if (write(ready, "x", 1) != 1)
            _exit(1);
    }
}

static void a_killed_owners_writes_land_before_its_lock_is_free(void **state)
{
    struct bench *bench = *state;
    const uint64_t size = 100 * 256 * KIB;
    unsigned char *first = aligned_alloc(4096, size), *later = aligned_alloc(4096, size);
    make_file(bench->path, size);
    for (unsigned round = 0; round < 4; round++) {
        int ready[2];
        assert_int_equal(pipe(ready), 0);
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0)
            write_for_ever(bench->path, ready[1]);
        close(ready[1]);
        char byte;
        assert_int_equal(read(ready[0], &byte, 1), 1);
        usleep(3000 * round);
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
        close(ready[0]);
        struct error err;
        struct file_options options = {.path = bench->path, .lock_wait_ns = 120 * NS_PER_S};
        assert_int_equal(file_open(bench->io, &options, &bench->node, &err), 0);
        read_all(bench, first);
        usleep(150000);
        read_all(bench, later);
        assert_memory_equal(first, later, size);
        close_node(bench);
    }
    free(first);
    free(later);
}

static void null_forgets(void **state)
{
    struct bench *bench = *state;
    bench->node = null_create(bench->io, MIB);
    char data[512];
    memset(data, 1, sizeof data);
    assert_int_equal(run_simple(bench, REQUEST_WRITE, 0, (struct range){100, 512}, data), 0);
    assert_int_equal(run_simple(bench, REQUEST_READ, 0, (struct range){100, 512}, data), 0);
    for (unsigned i = 0; i < sizeof data; i++)
        assert_int_equal(data[i], 0);
}

static void block_devices_work(void **state)
{
    struct bench *bench = *state;
    char command[300], device[64] = "";
    make_file(bench->path, MIB + 512);
    snprintf(command, sizeof command, "losetup --show -f %s 2>/dev/null", bench->path);
    FILE *output = geteuid() == 0 ? popen(command, "r") : NULL;
    bool made = output && fgets(device, sizeof device, output);
    if (output)
        pclose(output);
    if (!made)
        skip();
    device[strcspn(device, "\n")] = '\0';
    struct error err = {0};
    struct file_options options = {.path = device};
    int result = file_open(bench->io, &options, &bench->node, &err);
    snprintf(command, sizeof command, "losetup -d %s", device); /* goes away when it is closed, whatever happens here */
    assert_int_equal(system(command), 0);
    if (result < 0)
        fail_msg("%s", err.text);
    assert_int_equal(bench->node->size_bytes, MIB + 512);
    open_fails(bench, device, false, &err);
    run_batches(bench, 4711, 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(random_requests_keep_every_byte, bench_begin, bench_end),
        cmocka_unit_test_setup_teardown(status_tells_holes, bench_begin, bench_end),
        cmocka_unit_test_setup_teardown(a_truncated_file_is_an_error, bench_begin, bench_end),
        cmocka_unit_test_setup_teardown(a_file_gets_its_old_size_again, bench_begin, bench_end),
        cmocka_unit_test_setup_teardown(a_file_grows, bench_begin, bench_end),
        cmocka_unit_test_setup_teardown(many_bounced_requests_wait_for_buffers, bench_begin, bench_end),
        cmocka_unit_test_setup_teardown(a_crowd_behind_one_write_goes_on, bench_begin, bench_end),
        cmocka_unit_test_setup_teardown(a_new_file_is_created, bench_begin, bench_end),
        cmocka_unit_test_setup_teardown(open_says_what_is_wrong, bench_begin, bench_end),
        cmocka_unit_test_setup_teardown(locks_keep_others_out, bench_begin, bench_end),
        cmocka_unit_test_setup_teardown(a_disk_that_qemu_has_open_is_refused, bench_begin, bench_end),
        cmocka_unit_test_setup_teardown(a_killed_owners_lock_is_waited_for, bench_begin, bench_end),
        cmocka_unit_test_setup_teardown(a_killed_owners_writes_land_before_its_lock_is_free, bench_begin, bench_end),
        cmocka_unit_test_setup_teardown(null_forgets, bench_begin, bench_end),
        cmocka_unit_test_setup_teardown(block_devices_work, bench_begin, bench_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
