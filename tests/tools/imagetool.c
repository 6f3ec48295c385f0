/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The qcow2 driver as a program, for tests with qemu-img as the judge:
 *
 *   imagetool create IMAGE BYTES [BACKING_NAME FORMAT] [zstd]
 *   imagetool run IMAGE [zstd]    commands from stdin, one a line; all up to a flush run side by side, JOBS at once:
 *                                 w START LENGTH SEED | z START LENGTH | d START LENGTH | f
 *   imagetool read IMAGE OUTPUT   its whole content, as a raw file
 *   imagetool map IMAGE [top]     its block status: START LENGTH FLAGS
 *   imagetool load IMAGE RAW [zstd]  writes a raw file into it, a MiB at once, JOBS of them side by side
 */
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/limits.h"
#include "base/zero.h"
#include "driver/file.h"
#include "driver/qcow2/qcow2.h"
#include "io/ring.h"
#include "job/image_chain.h"

enum { JOBS = 8 };

struct job {
    struct request req; /* first */
    struct iovec iov;
    bool busy;
};

static struct tool {
    struct io *io;
    struct node *image;
    struct job jobs[JOBS];
    unsigned busy;
    int status;
    int fd; /* of the raw file */
} tool;

static void __attribute__((noreturn)) die(const char *what, const char *why)
{
    fprintf(stderr, "imagetool: %s: %s\n", what, why);
    exit(1);
}

static void job_done(struct request *req, int status)
{
    struct job *job = (struct job *)(void *)req;
    if (status < 0)
        die("request", error_name(status));
    if (req->kind == REQUEST_READ && !memory_is_zero(job->iov.iov_base, req->range.length) &&
        pwrite(tool.fd, job->iov.iov_base, req->range.length, (off_t)req->range.start) != (ssize_t)req->range.length)
        die("output", strerror(errno));
    job->busy = false;
    tool.busy--;
    ring_quit(tool.io);
}

static struct job *free_job(void)
{
    while (tool.busy == JOBS)
        ring_run(tool.io);
    unsigned i = 0;
    while (tool.jobs[i].busy)
        i++;
    return &tool.jobs[i];
}

static void finish(void)
{
    while (tool.busy > 0)
        ring_run(tool.io);
}

static void submit(struct job *job, enum request_kind kind, uint64_t start, uint64_t length)
{
    job->iov.iov_len = length;
    job->req = (struct request){
        .kind = kind, .range = {start, length}, .iov = &job->iov, .iov_count = 1, .done = job_done};
    job->busy = true;
    tool.busy++;
    node_submit(tool.image, &job->req);
}

static void flush(void)
{
    struct job *job = free_job();
    finish();
    job->busy = true;
    job->req = (struct request){.kind = REQUEST_FLUSH, .flags = REQUEST_LAST, .done = job_done};
    tool.busy++;
    node_submit(tool.image, &job->req);
    finish();
}

/* As tests/e2e/qcow2.py has it: each sector is its number and the seed, over and over. */
static void pattern(char *bytes, uint64_t start, uint64_t length, uint64_t seed)
{
    for (uint64_t i = 0; i < length; i++) {
        uint64_t words[2] = {htole64((start + i) / 512), htole64(seed)};
        bytes[i] = ((const char *)words)[(start + i) % 16];
    }
}

static void run_commands(void)
{
    char line[128], kind;
    unsigned long long start, length, seed;
    while (fgets(line, sizeof line, stdin)) {
        int fields = sscanf(line, "%c %llu %llu %llu", &kind, &start, &length, &seed);
        if (fields == 1 && kind == 'f') {
            flush();
            continue;
        }
        struct job *job = free_job();
        if (fields >= 3 && !range_within((struct range){start, length}, tool.image->size_bytes))
            die("beyond the image", line);
        if (fields == 4 && kind == 'w') {
            pattern(job->iov.iov_base, start, length, seed);
            submit(job, REQUEST_WRITE, start, length);
        } else if (fields == 3 && (kind == 'z' || kind == 'd')) {
            submit(job, kind == 'z' ? REQUEST_WRITE_ZEROES : REQUEST_DISCARD, start, length);
        } else {
            die("command", line);
        }
    }
}

static void read_all(void)
{
    uint64_t size = tool.image->size_bytes;
    if (ftruncate(tool.fd, (off_t)size) < 0)
        die("output", strerror(errno));
    for (uint64_t at = 0; at < size; at += LIMIT_REQUEST_BYTES)
        submit(free_job(), REQUEST_READ, at, size - at < LIMIT_REQUEST_BYTES ? size - at : LIMIT_REQUEST_BYTES);
    finish();
}

static void load_all(void)
{
    uint64_t size = tool.image->size_bytes;
    for (uint64_t at = 0; at < size; at += LIMIT_REQUEST_BYTES) {
        struct job *job = free_job();
        uint64_t length = size - at < LIMIT_REQUEST_BYTES ? size - at : LIMIT_REQUEST_BYTES;
        if (pread(tool.fd, job->iov.iov_base, length, (off_t)at) != (ssize_t)length)
            die("input", strerror(errno));
        if (!memory_is_zero(job->iov.iov_base, length))
            submit(job, REQUEST_WRITE, at, length);
    }
    flush();
}

static void map_answered(struct request *req, int status)
{
    tool.status = status;
    (void)req;
    ring_quit(tool.io);
}

static void map_all(bool top)
{
    static struct block_extent extents[LIMIT_STATUS_EXTENTS];
    uint64_t at = 0, size = tool.image->size_bytes;
    while (at < size) {
        struct request req = {.kind = REQUEST_BLOCK_STATUS,
                              .flags = top ? REQUEST_TOP : 0,
                              .range = {at, size - at},
                              .extents = extents,
                              .extent_max = LIMIT_STATUS_EXTENTS,
                              .done = map_answered};
        node_submit(tool.image, &req);
        ring_run(tool.io);
        if (tool.status < 0)
            die("map", error_name(tool.status));
        for (unsigned i = 0; i < req.extent_count; at += extents[i++].length)
            printf("%llu %llu %u\n", (unsigned long long)at, (unsigned long long)extents[i].length, extents[i].flags);
    }
}

static void created(void *argument, int status, const struct error *err)
{
    if (status < 0)
        die(argument, err->text);
    ring_quit(tool.io);
}

static void create(char **arguments, int count)
{
    struct qcow2_create_options options = {.size_bytes = strtoull(arguments[1], NULL, 10)};
    struct file_options file_options = {.path = arguments[0], .create = true, .growable = true};
    struct node *file;
    struct error err;
    if (count >= 4) {
        options.backing_name = arguments[2];
        options.backing_format = arguments[3];
    }
    if (count == 3 || count == 5)
        options.compression = QCOW2_ZSTD;
    if (file_open(tool.io, &file_options, &file, &err) < 0)
        die("file", err.text);
    qcow2_create(file, &options, created, arguments[0]);
    ring_run(tool.io);
    node_destroy(file);
}

static void open_image(const char *path, bool read_only, bool zstd)
{
    struct error err;
    struct image_chain_options options = {.io = tool.io, .path = path, .folder = ".", .read_only = read_only};
    if (image_chain_open(&options, &tool.image, &err) < 0)
        die(path, err.text);
    if (zstd) {
        qcow2_write_back_set(tool.image);
        qcow2_compress_set(tool.image);
    }
}

int main(int argc, char **argv)
{
    struct error err;
    const char *verb = argc > 2 ? argv[1] : "";
    bool zstd = strcmp(argv[argc - 1], "zstd") == 0;
    if (ring_create(&tool.io, &err) < 0)
        die("ring", err.text);
    for (unsigned i = 0; i < JOBS; i++)
        tool.jobs[i].iov.iov_base = aligned_alloc(4096, LIMIT_REQUEST_BYTES);
    if (strcmp(verb, "create") == 0 && argc > 3) {
        create(argv + 2, argc - 2);
    } else if (strcmp(verb, "run") == 0) {
        open_image(argv[2], false, zstd);
        run_commands();
        flush();
    } else if (strcmp(verb, "read") == 0 && argc == 4) {
        open_image(argv[2], true, false);
        tool.fd = open(argv[3], O_RDWR | O_CREAT | O_TRUNC, 0600);
        read_all();
    } else if (strcmp(verb, "map") == 0) {
        open_image(argv[2], true, false);
        map_all(argc > 3);
    } else if (strcmp(verb, "load") == 0 && argc > 3) {
        open_image(argv[2], false, zstd);
        tool.fd = open(argv[3], O_RDONLY);
        load_all();
    } else {
        fprintf(stderr, "usage: imagetool create|run|read|map|load IMAGE ...\n");
        return 2;
    }
    if (tool.image)
        node_destroy(tool.image);
    for (unsigned i = 0; i < JOBS; i++)
        free(tool.jobs[i].iov.iov_base);
    ring_destroy(tool.io);
    return 0;
}
