// SPDX-License-Identifier: GPL-2.0-or-later
/* A guest that remembers what it has written. Each thread has a stretch of the device to itself and one request under way at
 * a time; every sector it writes carries its place and the number of the write. What was acknowledged must be read back,
 * whatever happened to the connection meanwhile: an old write that lands on a newer one, or a lost one, is found. */
#include "load.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SECTOR 512
#define SECTOR_WORDS (SECTOR / sizeof(uint64_t))
#define MOST 32 /* sectors of one request */
#define THREADS_MAX 16

struct writer {
    pthread_t thread;
    const volatile sig_atomic_t *stop;
    int fd;
    uint64_t first, count; /* of its sectors */
    uint32_t *last;        /* for each of its sectors, the number of the last write; 0: none */
    uint64_t *buffer;
    uint32_t writes;
    uint64_t random;
};

static volatile sig_atomic_t stop_requested; /* a signal handler has no other way to say it */

static void on_signal(int number)
{
    (void)number;
    stop_requested = 1;
}

static void stamp(uint64_t *sector, uint64_t place, uint32_t number)
{
    for (size_t i = 0; i < SECTOR_WORDS; i++)
        sector[i] = number ? place << 32 ^ number ^ i * 0x0101010101ULL : 0;
}

/* Reads `count` sectors from place `from` of the writer's stretch and compares them with what was acknowledged. */
static void compare(struct writer *w, uint64_t from, uint64_t count)
{
    ssize_t size = (ssize_t)(count * SECTOR);
    if (pread(w->fd, w->buffer, (size_t)size, (off_t)((w->first + from) * SECTOR)) != size)
        load_die("reading sector %llu", (unsigned long long)(w->first + from));
    errno = 0;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t expected[SECTOR_WORDS];
        stamp(expected, w->first + from + i, w->last[from + i]);
        if (memcmp(expected, w->buffer + i * SECTOR_WORDS, SECTOR) != 0)
            load_die("sector %llu holds %llx; the last of %u writes that was acknowledged is %u",
                     (unsigned long long)(w->first + from + i), (unsigned long long)w->buffer[i * SECTOR_WORDS],
                     w->writes, w->last[from + i]);
    }
}

static void write_some(struct writer *w, uint64_t from, uint64_t count)
{
    ssize_t size = (ssize_t)(count * SECTOR);
    w->writes++;
    for (uint64_t i = 0; i < count; i++) {
        stamp(w->buffer + i * SECTOR_WORDS, w->first + from + i, w->writes);
        w->last[from + i] = w->writes;
    }
    if (pwrite(w->fd, w->buffer, (size_t)size, (off_t)((w->first + from) * SECTOR)) != size)
        load_die("writing sector %llu", (unsigned long long)(w->first + from));
}

static void *run(void *argument)
{
    struct writer *w = argument;
    while (!*w->stop) {
        uint64_t count = load_random(&w->random) % MOST + 1;
        uint64_t from = load_random(&w->random) % (w->count - count);
        if (load_random(&w->random) % 4 == 0)
            compare(w, from, count);
        else
            write_some(w, from, count);
        if (w->writes % 64 == 0 && fdatasync(w->fd) != 0)
            load_die("flushing");
        load_pause(2);
    }
    for (uint64_t from = 0; from < w->count; from += MOST)
        compare(w, from, w->count - from < MOST ? w->count - from : MOST);
    return NULL;
}

void load_blocks(const char *name, const char *device, unsigned threads)
{
    static struct writer writers[THREADS_MAX];
    int fd = open(device, O_RDWR | O_DIRECT);
    off_t size = fd < 0 ? -1 : lseek(fd, 0, SEEK_END);
    if (size < 0 || threads == 0 || threads > THREADS_MAX || size / SECTOR / threads <= MOST)
        load_die("%u threads on %s", threads, device);
    signal(SIGTERM, on_signal);
    uint64_t writes = 0;
    for (unsigned i = 0; i < threads; i++) {
        struct writer *w = &writers[i];
        *w = (struct writer){
            .stop = &stop_requested, .fd = fd, .count = (uint64_t)size / SECTOR / threads, .random = i + 1};
        w->first = w->count * i;
        w->last = calloc(w->count, sizeof *w->last);
        w->buffer = aligned_alloc(4096, MOST * SECTOR);
        if (!w->last || !w->buffer || pthread_create(&w->thread, NULL, run, w) != 0)
            load_die("starting thread %u", i);
    }
    for (unsigned i = 0; i < threads; i++) {
        pthread_join(writers[i].thread, NULL);
        writes += writers[i].writes;
    }
    load_say(name, writes);
}
