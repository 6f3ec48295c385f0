// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The log of a run; see log.h. On disk: one header of LOG_HEADER_BYTES, then entries. A writer maps a window of entries at
 * a time and grows the file window by window; what is not written yet reads as LOG_END.
 */
#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { LOG_HEADER_BYTES = 4096, LOG_WINDOW_BYTES = 24 * 65536 };

_Static_assert(sizeof(struct log_entry) == 24, "entries are packed without holes");

static const char log_magic[8] = {'F', 'L', 'S', 'T', 'L', 'O', 'G', '1'};

struct log_header {
    char magic[8];
    struct log_plan plan;
};

struct log {
    int fd;
    uint64_t window_start; /* in the file */
    struct log_entry *window;
    size_t used; /* entries of the window */
};

uint64_t log_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint64_t common_divisor(uint64_t a, uint64_t b)
{
    while (b != 0) {
        uint64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

bool log_plan_finish(struct log_plan *plan)
{
    plan->slots = plan->region_bytes / plan->writers / plan->record_bytes;
    if (plan->slots < 2 * (uint64_t)plan->queue)
        return false;
    /* Near the golden section: neighbours in time lie far from one another on the disk. */
    plan->stride = plan->slots * 618 / 1000 | 1;
    while (common_divisor(plan->stride, plan->slots) != 1)
        plan->stride++;
    return true;
}

uint64_t log_plan_offset(const struct log_plan *plan, uint32_t writer, uint64_t sequence)
{
    /* Both factors are below slots, which is below 2^32 for every region that fits a test. */
    uint64_t slot = (sequence - 1) % plan->slots * plan->stride % plan->slots;
    return plan->region_start + (writer * plan->slots + slot) * plan->record_bytes;
}

/* --- writing */

static int log_next_window(struct log *log)
{
    uint64_t start = log->window != NULL ? log->window_start + LOG_WINDOW_BYTES : 0;
    if (ftruncate(log->fd, (off_t)(LOG_HEADER_BYTES + start + LOG_WINDOW_BYTES)) != 0)
        return -1;
    /* Windows are multiples of the page size, like the header: 24 * 65536 bytes. */
    void *window = mmap(NULL, LOG_WINDOW_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, log->fd,
                        (off_t)(LOG_HEADER_BYTES + start));
    if (window == MAP_FAILED)
        return -1;
    if (log->window != NULL)
        munmap(log->window, LOG_WINDOW_BYTES);
    log->window = window;
    log->window_start = start;
    log->used = 0;
    return 0;
}

struct log *log_create(const char *path, const struct log_plan *plan)
{
    struct log *log = calloc(1, sizeof(*log));
    if (log == NULL)
        return NULL;
    struct log_header header = {.plan = *plan};
    memcpy(header.magic, log_magic, sizeof(log_magic));
    log->fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (log->fd < 0 || pwrite(log->fd, &header, sizeof(header), 0) != (ssize_t)sizeof(header) ||
        log_next_window(log) != 0) {
        int code = errno;
        if (log->fd >= 0)
            close(log->fd);
        free(log);
        errno = code;
        return NULL;
    }
    return log;
}

void log_append(struct log *log, enum log_kind kind, uint32_t disk, uint32_t writer, uint64_t sequence)
{
    if (log->used == LOG_WINDOW_BYTES / sizeof(struct log_entry) && log_next_window(log) != 0) {
        perror("stamp: the log cannot grow");
        abort();
    }
    struct log_entry *entry = &log->window[log->used++];
    entry->sequence = sequence;
    entry->disk = (uint16_t)disk;
    entry->writer = (uint16_t)writer;
    entry->time_ns = log_now_ns();
    __atomic_store_n(&entry->kind, kind, __ATOMIC_RELEASE);
}

int log_finish(struct log *log)
{
    /* The unused rest of the window stays: a judge may have it mapped. */
    munmap(log->window, LOG_WINDOW_BYTES);
    int result = close(log->fd);
    free(log);
    return result;
}

/* --- reading */

static bool history_note(struct log_history *history, const struct log_entry *entry)
{
    if (entry->kind == LOG_ISSUED) {
        if (entry->sequence != history->count + 1)
            return false;
        if (history->count == history->room) {
            history->room = history->room == 0 ? 1024 : 2 * history->room;
            history->issued_ns = realloc(history->issued_ns, history->room * sizeof(uint64_t));
            history->acknowledged_ns = realloc(history->acknowledged_ns, history->room * sizeof(uint64_t));
            if (history->issued_ns == NULL || history->acknowledged_ns == NULL)
                abort();
        }
        history->issued_ns[history->count] = entry->time_ns;
        history->acknowledged_ns[history->count++] = UINT64_MAX;
        return true;
    }
    if (entry->sequence < 1 || entry->sequence > history->count)
        return false;
    if (entry->kind == LOG_ACKNOWLEDGED)
        history->acknowledged_ns[entry->sequence - 1] = entry->time_ns;
    else
        history->failed++;
    return true;
}

static bool log_load_mapped(const char *bytes, uint64_t size, const char *path, struct log_content *content,
                            char *error, size_t error_size)
{
    const struct log_header *header = (const void *)bytes;
    content->plan = header->plan;
    const struct log_plan *plan = &content->plan;
    if (memcmp(header->magic, log_magic, sizeof(log_magic)) != 0 || plan->disks < 1 || plan->disks > LOG_DISKS_MAX ||
        plan->writers < 1 || plan->writers > LOG_WRITERS_MAX || plan->slots < 1 ||
        (plan->record_bytes != 512 && plan->record_bytes != 4096)) {
        snprintf(error, error_size, "%s is not a log of stamp", path);
        return false;
    }
    content->histories = calloc((size_t)plan->disks * plan->writers, sizeof(struct log_history));
    if (content->histories == NULL)
        abort();
    const struct log_entry *entries = (const void *)(bytes + LOG_HEADER_BYTES);
    uint64_t count = (size - LOG_HEADER_BYTES) / sizeof(*entries);
    for (uint64_t i = 0; i < count; i++) {
        uint32_t kind = __atomic_load_n(&entries[i].kind, __ATOMIC_ACQUIRE);
        if (kind == LOG_END)
            return true;
        struct log_entry entry = entries[i];
        entry.kind = kind;
        if (kind > LOG_FAILED || entry.disk >= plan->disks || entry.writer >= plan->writers ||
            !history_note(&content->histories[entry.disk * plan->writers + entry.writer], &entry)) {
            snprintf(error, error_size, "%s: entry %llu makes no sense", path, (unsigned long long)i);
            return false;
        }
    }
    return true;
}

bool log_load(const char *path, struct log_content *content, char *error, size_t size)
{
    *content = (struct log_content){0};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat stat;
    if (fd < 0 || fstat(fd, &stat) != 0) {
        snprintf(error, size, "%s: %s", path, strerror(errno));
        if (fd >= 0)
            close(fd);
        return false;
    }
    if (stat.st_size < LOG_HEADER_BYTES) {
        snprintf(error, size, "%s is not a log of stamp: it has only %lld bytes", path, (long long)stat.st_size);
        close(fd);
        return false;
    }
    void *bytes = mmap(NULL, (size_t)stat.st_size, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (bytes == MAP_FAILED) {
        snprintf(error, size, "%s: %s", path, strerror(errno));
        return false;
    }
    bool good = log_load_mapped(bytes, (uint64_t)stat.st_size, path, content, error, size);
    munmap(bytes, (size_t)stat.st_size);
    return good;
}

void log_content_free(struct log_content *content)
{
    if (content->histories != NULL) {
        for (size_t i = 0; i < (size_t)content->plan.disks * content->plan.writers; i++) {
            free(content->histories[i].issued_ns);
            free(content->histories[i].acknowledged_ns);
        }
    }
    free(content->histories);
    *content = (struct log_content){0};
}
