// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The log of a migration. The truth is a copy of all memory, made while the ring is disabled and holds requests: what
 * differs from it when they have been used the device has written, since the driver writes nothing meanwhile (it looks at
 * the used ring without asking for interrupts). Each such page must be marked, and no page that the device had no business
 * in.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "conform.h"

enum { PAGE = 4096, REQUESTS = 12, ROUNDS = 12, DATA = 48 << 10, SLOW_MS = 60000, SPARE = 16 };
/* In which the device asks for kicks again, as a rule: one more write to be marked. */
enum { IDLE_US = 1000 };

struct log {
    int fd;
    uint8_t *bits;
    uint64_t bytes, offset; /* where it begins in its file */
};

static uint64_t bytes_for(uint64_t guest_end)
{
    return (guest_end + 8 * PAGE - 1) / (8 * PAGE);
}

static bool log_make(struct scene *scene, struct log *log, uint64_t bytes, uint64_t offset)
{
    *log = (struct log){.fd = memfd_create("log", MFD_CLOEXEC), .bytes = bytes, .offset = offset};
    if (log->fd < 0 || ftruncate(log->fd, (off_t)(offset + bytes)) != 0)
        return scene_fail(scene, "a memfd: %s", strerror(errno));
    char *at = mmap(NULL, offset + bytes, PROT_READ | PROT_WRITE, MAP_SHARED, log->fd, 0);
    if (at == MAP_FAILED)
        return scene_fail(scene, "mmap: %s", strerror(errno));
    log->bits = (uint8_t *)at + offset;
    return true;
}

static void log_free(struct log *log)
{
    if (log->bits)
        munmap(log->bits - log->offset, log->offset + log->bytes);
    if (log->fd >= 0)
        close(log->fd);
    *log = (struct log){.fd = -1};
}

static bool log_has(const struct log *log, uint64_t page)
{
    return __atomic_load_n(&log->bits[page / 8], __ATOMIC_SEQ_CST) >> page % 8 & 1;
}

static bool log_is_empty(const struct log *log)
{
    for (uint64_t i = 0; i < log->bytes; i++)
        if (__atomic_load_n(&log->bits[i], __ATOMIC_SEQ_CST))
            return false;
    return true;
}

/* As QEMU does it: what was marked, and the log is empty again. */
static void log_take(struct log *log, uint8_t *into)
{
    for (uint64_t i = 0; i < log->bytes; i++)
        into[i] |= __atomic_exchange_n(&log->bits[i], 0, __ATOMIC_SEQ_CST);
}

/* As scene_send(). It is answered with what it says itself, which cloud-hypervisor waits for; QEMU takes anything. */
static int tell_log(struct scene *scene, const struct log *log, uint64_t bytes)
{
    struct wire_log what = {bytes, log->offset};
    struct channel_reply reply;
    int socket = scene->front->socket;
    int status = channel_send(socket, MSG_SET_LOG_BASE, WIRE_VERSION | WIRE_NEED_REPLY, &what, sizeof(what), &log->fd,
                              1);
    if (status == 0)
        status = channel_receive(socket, &reply, FRONT_TIMEOUT_MS);
    if (status == -ECONNRESET || status == -EPIPE)
        return 0;
    if (status == 0 && reply.fd >= 0)
        close(reply.fd);
    if (status == 0 && reply.header.size == sizeof(what) && memcmp(reply.payload.bytes, &what, sizeof(what)) == 0)
        return 1;
    scene_fail(scene, "SET_LOG_BASE: the answer is not what was asked");
    return -1;
}

static int tell_ring(struct scene *scene, const struct ring *ring, bool logged, uint64_t log_address)
{
    struct wire_addr addr = {.index = ring->index,
                             .flags = logged ? WIRE_LOG_USED : 0,
                             .descriptor = guest_user(ring->memory, ring->descriptors),
                             .used = guest_user(ring->memory, ring->device_area),
                             .available = guest_user(ring->memory, ring->driver_area),
                             .log = log_address};
    return scene_send(scene, MSG_SET_VRING_ADDR, &addr, sizeof(addr), NULL, 0);
}

static bool log_all(struct scene *scene, bool on)
{
    uint64_t features = scene->front->features | (on ? UINT64_C(1) << FEATURE_LOG_ALL : 0);
    return front_tell_u64(scene->front, MSG_SET_FEATURES, features) == 0 ||
           scene_fail(scene, "%s", scene->front->error);
}

static bool needs_log(struct scene *scene)
{
    if (!front_has_protocol(scene->front, PROTOCOL_LOG_SHMFD) || !(scene->front->offered >> FEATURE_LOG_ALL & 1))
        return scene_skip(scene, "logging is not offered");
    return true;
}

/* Two regions with a gap, so that a guest address is not a place in a file. */
static bool started(struct scene *scene, bool packed)
{
    struct front_options options = scene->options->front;
    options.packed = packed;
    options.queue_size = 512; /* a page has not all of a ring */
    options.regions = 2;
    options.gap = 3 << 20;
    return scene_started_with(scene, &options) && needs_log(scene);
}

/* The log covers all memory and, behind that, a few pages more. The used ring counts at `used`. */
static bool begin_log(struct scene *scene, struct log *log, uint64_t used)
{
    struct front_end *front = scene->front;
    if (!log_make(scene, log, bytes_for(front->memory.span) + SPARE, 12288))
        return false;
    if (tell_log(scene, log, log->bytes) != 1 || !log_all(scene, true) ||
        tell_ring(scene, &front->rings[0], true, used) != 1)
        return scene->error[0] ? false : scene_fail(scene, "the log was refused");
    return true;
}

/* --- what was written, and what was marked */

struct truth {
    char *copy;
    uint8_t *marked, *allowed; /* as the log: a bit a page */
    uint64_t pages, log_bytes;
};

static void allow(struct truth *truth, uint64_t address, uint64_t length)
{
    for (uint64_t page = address / PAGE; length && page <= (address + length - 1) / PAGE; page++)
        truth->allowed[page / 8] |= (uint8_t)(1u << page % 8);
}

/* Pages of memory, region by region; those of gaps are not there. */
static bool page_is_there(const struct guest_memory *memory, uint64_t page)
{
    for (unsigned i = 0; i < memory->count; i++)
        if (page * PAGE >= memory->regions[i].guest && page * PAGE < memory->regions[i].guest + memory->regions[i].size)
            return true;
    return false;
}

static void truth_copy(struct truth *truth, const struct guest_memory *memory)
{
    for (unsigned i = 0; i < memory->count; i++)
        memcpy(truth->copy + memory->regions[i].guest, guest_at(memory, memory->regions[i].guest),
               memory->regions[i].size);
}

static void truth_init(struct truth *truth, const struct guest_memory *memory, const struct log *log)
{
    *truth = (struct truth){.copy = calloc(1, memory->span),
                            .marked = calloc(1, log->bytes),
                            .allowed = calloc(1, log->bytes),
                            .pages = memory->span / PAGE,
                            .log_bytes = log->bytes};
}

static void truth_free(struct truth *truth)
{
    free(truth->copy);
    free(truth->marked);
    free(truth->allowed);
}

/* The first page that was written and is not marked; UINT64_MAX: there is none. */
static uint64_t truth_missing(const struct truth *truth, const struct guest_memory *memory)
{
    for (uint64_t page = 0; page < truth->pages; page++)
        if (page_is_there(memory, page) && !(truth->marked[page / 8] >> page % 8 & 1) &&
            memcmp(truth->copy + page * PAGE, guest_at(memory, page * PAGE), PAGE) != 0)
            return page;
    return UINT64_MAX;
}

/* What is marked comes after what is written: asks again for a while. */
static bool truth_holds(struct scene *scene, struct truth *truth, struct log *log, uint64_t *pages)
{
    const struct guest_memory *memory = &scene->front->memory;
    uint64_t missing = UINT64_MAX;
    for (unsigned ms = 0; ms < SLOW_MS; ms++) {
        log_take(log, truth->marked);
        missing = truth_missing(truth, memory);
        if (missing == UINT64_MAX)
            break;
        usleep(1000);
    }
    if (missing != UINT64_MAX)
        return scene_fail(scene, "the device wrote to the page at 0x%llx and did not mark it",
                          (unsigned long long)missing * PAGE);
    for (uint64_t i = 0; i < truth->log_bytes; i++) {
        if (truth->marked[i] & ~truth->allowed[i])
            return scene_fail(scene, "one of the 8 pages at 0x%llx was marked, where nothing is the device's to write",
                              (unsigned long long)i * 8 * PAGE);
        *pages += (unsigned)__builtin_popcount(truth->marked[i]);
    }
    return true;
}

/* --- a batch of requests in a ring that is not looked at */

/* What the device is to write is not there by chance, nor is a status. */
static void spoil(struct scene *scene, const struct blk_request *request)
{
    for (unsigned f = request->readable; f < request->count; f++)
        rng_fill(&scene->rng, guest_at(request->memory, request->fragments[f].address), request->fragments[f].length);
    const struct fragment *last = &request->fragments[request->count - 1];
    *(uint8_t *)guest_at(request->memory, last->address + last->length - 1) = BLK_NO_STATUS;
}

static bool make_batch(struct scene *scene, struct blk_request *requests, struct truth *truth)
{
    struct front_end *front = scene->front;
    struct ring *ring = &front->rings[0];
    static char data[DATA];
    for (unsigned i = 0; i < REQUESTS; i++) {
        uint32_t bytes = (1 + (uint32_t)rng_below(&scene->rng, DATA / SECTOR)) * SECTOR;
        struct blk_command command = {.type = BLK_READ, .in_bytes = bytes};
        uint64_t kind = rng_below(&scene->rng, 8);
        if (kind == 0)
            command = (struct blk_command){.type = BLK_WRITE, .out = data, .out_bytes = bytes};
        else if (kind == 1)
            command = (struct blk_command){.type = BLK_GET_ID, .in_bytes = BLK_ID_BYTES};
        else if (kind == 2)
            command.type = 999;
        command.sector = kind == 3 ? front->config.capacity
                                   : rng_below(&scene->rng, front->config.capacity - DATA / SECTOR);
        rng_fill(&scene->rng, data, bytes);
        blk_lay_out_randomly(&requests[i], &command, &scene->rng, 40, TABLES_WHOLE);
        for (unsigned f = requests[i].readable; f < requests[i].count; f++)
            allow(truth, requests[i].fragments[f].address, requests[i].fragments[f].length);
        spoil(scene, &requests[i]);
        int status = blk_submit(&requests[i], ring);
        if (status == -ENOSPC)
            break;
        if (status != 0)
            return scene_fail(scene, "ring_add: %s", strerror(-status));
    }
    return true;
}

/* Waits without a write of ours to memory. */
static bool take_all(struct scene *scene)
{
    struct ring *ring = &scene->front->rings[0];
    for (unsigned ms = 0; ring->pending > 0 && ms < SLOW_MS; ms++) {
        void *token;
        uint32_t written;
        int status;
        while ((status = ring_take(ring, &token, &written)) == 1)
            ((struct blk_request *)token)->ring = NULL;
        if (status < 0)
            return scene_fail(scene, "a buffer was used that was not given");
        if (ring->pending > 0)
            usleep(1000);
    }
    usleep(IDLE_US);
    return ring->pending == 0 || scene_fail(scene, "%u requests were not answered", ring->pending);
}

static bool run_batch(struct scene *scene, struct blk_request *requests, struct truth *truth, struct log *log,
                      uint64_t *pages)
{
    struct front_end *front = scene->front;
    memset(truth->marked, 0, truth->log_bytes);
    if (front_tell_state(front, MSG_SET_VRING_ENABLE, 0, 0) != 0)
        return scene_fail(scene, "%s", front->error);
    if (!make_batch(scene, requests, truth))
        return false;
    log_take(log, truth->marked); /* of the batch before */
    memset(truth->marked, 0, truth->log_bytes);
    truth_copy(truth, &front->memory);
    if (front_tell_state(front, MSG_SET_VRING_ENABLE, 0, 1) != 0)
        return scene_fail(scene, "%s", front->error);
    return take_all(scene) && truth_holds(scene, truth, log, pages);
}

static bool model(struct scene *scene, bool packed)
{
    struct log log = {.fd = -1};
    struct blk_request requests[REQUESTS];
    struct truth truth;
    uint64_t pages = 0;
    if (!started(scene, packed))
        return false;
    const struct ring *ring = &scene->front->rings[0];
    for (unsigned i = 0; i < REQUESTS; i++)
        blk_request_init(&requests[i], &scene->front->memory, i, DATA, false);
    bool good = begin_log(scene, &log, ring->device_area);
    truth_init(&truth, &scene->front->memory, &log);
    for (unsigned round = 0; good && round < ROUNDS; round++) {
        memset(truth.allowed, 0, truth.log_bytes);
        allow(&truth, ring->device_area, packed ? 4 : 6 + 8 * ring->size);
        if (packed)
            allow(&truth, ring->descriptors, 16 * ring->size);
        good = run_batch(scene, requests, &truth, &log, &pages);
    }
    truth_free(&truth);
    log_free(&log);
    if (good && pages < ROUNDS)
        return scene_fail(scene, "only %llu pages were marked in %u rounds", (unsigned long long)pages, ROUNDS);
    return good;
}

static bool log_split(struct scene *scene)
{
    return model(scene, false);
}

static bool log_packed(struct scene *scene)
{
    return model(scene, true);
}

/* --- what is marked when a ring has stopped */

/* A VMM takes the log for the last time when it has the bases of the rings: what was written by then is in it. */
static bool stop_round(struct scene *scene, struct blk_request *requests, struct truth *truth, struct log *log,
                       bool by_status)
{
    struct front_end *front = scene->front;
    struct ring *ring = &front->rings[0];
    uint64_t zero = 0;
    uint32_t base;
    if (front_tell_state(front, MSG_SET_VRING_ENABLE, 0, 0) != 0 || !make_batch(scene, requests, truth))
        return false;
    memset(truth->marked, 0, truth->log_bytes);
    truth_copy(truth, &front->memory);
    if (front_tell_state(front, MSG_SET_VRING_ENABLE, 0, 1) != 0)
        return false;
    usleep((unsigned)rng_below(&scene->rng, 300));
    if ((by_status && channel_send(front->socket, MSG_SET_STATUS, WIRE_VERSION, &zero, sizeof(zero), NULL, 0) != 0) ||
        front_stop_ring(front, ring, &base) != 0)
        return false;
    log_take(log, truth->marked);
    uint64_t missing = truth_missing(truth, &front->memory);
    if (missing != UINT64_MAX)
        return scene_fail(scene, "the page at 0x%llx was not marked when the ring had stopped",
                          (unsigned long long)missing * PAGE);
    return log_all(scene, true) && front_set_up_ring(front, ring, base) == 0 &&
           tell_ring(scene, ring, true, ring->device_area) == 1 && take_all(scene);
}

static bool stop_marked(struct scene *scene, bool packed, bool by_status)
{
    struct log log = {.fd = -1};
    struct blk_request requests[REQUESTS];
    struct truth truth;
    if (!started(scene, packed))
        return false;
    struct front_end *front = scene->front;
    if (by_status && !front_has_protocol(front, PROTOCOL_STATUS))
        return scene_skip(scene, "STATUS is not offered");
    for (unsigned i = 0; i < REQUESTS; i++)
        blk_request_init(&requests[i], &front->memory, i, DATA, false);
    bool good = begin_log(scene, &log, front->rings[0].device_area);
    truth_init(&truth, &front->memory, &log);
    for (unsigned round = 0; good && round < 2 * ROUNDS; round++)
        good = stop_round(scene, requests, &truth, &log, by_status);
    truth_free(&truth);
    log_free(&log);
    if (!good && !scene->error[0])
        scene_fail(scene, "%s", front->error);
    return good;
}

static bool log_stop_split(struct scene *scene)
{
    return stop_marked(scene, false, false);
}

static bool log_stop_packed(struct scene *scene)
{
    return stop_marked(scene, true, false);
}

static bool log_stop_by_status(struct scene *scene)
{
    return stop_marked(scene, false, true) && stop_marked(scene, true, true);
}

/* --- where the used ring counts */

/* It may be outside of memory, and then its pages are marked there. */
static bool log_address(struct scene *scene)
{
    struct log log = {.fd = -1};
    if (!started(scene, false))
        return false;
    const uint64_t used = scene->front->memory.span + 2 * PAGE;
    bool good = begin_log(scene, &log, used);
    if (good)
        good = scene_works(scene, 0);
    bool there = false;
    for (unsigned ms = 0; good && !there && ms < SLOW_MS; ms++) {
        there = log_has(&log, used / PAGE);
        if (!there)
            usleep(1000);
    }
    if (good && !there)
        good = scene_fail(scene, "the used ring was not marked where it counts");
    if (good && log_has(&log, scene->front->rings[0].device_area / PAGE))
        good = scene_fail(scene, "the used ring was marked where it lies, not where it counts");
    /* Without the flag it is not logged at all. */
    if (good && tell_ring(scene, &scene->front->rings[0], false, used) != 1)
        good = scene_fail(scene, "a ring that is not logged was refused");
    for (unsigned i = 0; good && i < 2; i++) { /* what the first leaves is marked, or not, after it was answered */
        uint8_t *gone = calloc(1, log.bytes);
        good = scene_works(scene, 0);
        if (good && i == 1 && log_has(&log, used / PAGE))
            good = scene_fail(scene, "the used ring was marked without the flag");
        log_take(&log, gone);
        free(gone);
    }
    log_free(&log);
    return good;
}

static bool log_address_behind(struct scene *scene)
{
    struct log log = {.fd = -1};
    if (!started(scene, false) || !begin_log(scene, &log, scene->front->rings[0].device_area))
        return false;
    int taken = tell_ring(scene, &scene->front->rings[0], true, log.bytes * 8 * PAGE);
    log_free(&log);
    return taken == 0 || (taken > 0 && scene_fail(scene, "a used ring that counts behind the log was accepted"));
}

/* --- logs that can't be */

static bool log_wrong(struct scene *scene)
{
    static const char *const names[] = {"no bytes", "more bytes than its file", "2^60 bytes",
                                        "an offset behind its file", "less than memory"};
    for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        struct log log = {.fd = -1};
        if (!started(scene, false) || !log_all(scene, true))
            return false;
        uint64_t need = bytes_for(scene->front->memory.span);
        if (!log_make(scene, &log, need, 0))
            return false;
        uint64_t bytes = i == 0 ? 0 : i == 1 ? need * 1024 : i == 2 ? UINT64_C(1) << 60 : i == 4 ? need - 1 : need;
        log.offset = i == 3 ? UINT64_C(1) << 40 : 0;
        int taken = tell_log(scene, &log, bytes);
        log.offset = 0;
        log_free(&log);
        if (taken != 0)
            return taken > 0 ? scene_fail(scene, "a log with %s was accepted", names[i]) : false;
    }
    return true;
}

/* Memory that comes while the log is used must be covered. */
static bool log_outgrown(struct scene *scene)
{
    struct log log = {.fd = -1};
    if (!started(scene, false))
        return false;
    struct front_end *front = scene->front;
    if (!front_has_protocol(front, PROTOCOL_CONFIGURE_MEM_SLOTS))
        return scene_skip(scene, "memory slots are not offered");
    if (!begin_log(scene, &log, front->rings[0].device_area))
        return false;
    struct wire_one_region more = {0, guest_region_wire(&front->memory, 0)};
    more.region.guest = (log.bytes + 1) * 8 * PAGE;
    more.region.user += front->memory.span;
    int taken = scene_send(scene, MSG_ADD_MEM_REG, &more, sizeof(more), &front->memory.regions[0].fd, 1);
    log_free(&log);
    return taken == 0 || (taken > 0 && scene_fail(scene, "memory that the log does not cover was accepted"));
}

/* The front-end cuts its log short: the connection goes, and nothing else. */
static bool log_cut_short(struct scene *scene)
{
    struct log log = {.fd = -1};
    if (!started(scene, false) || !begin_log(scene, &log, scene->front->rings[0].device_area))
        return false;
    if (ftruncate(log.fd, 0) != 0)
        return scene_fail(scene, "ftruncate: %s", strerror(errno));
    bool hung_up = false;
    for (unsigned i = 0; i < 64 && !hung_up; i++) {
        struct blk_command read = {.type = BLK_READ, .in_bytes = PAGE};
        char in[PAGE];
        hung_up = blk_do(scene->front, &scene->front->rings[0], &scene->request, &read, in) == -ECONNRESET;
    }
    log.bits = NULL; /* not to be touched any more */
    log_free(&log);
    return hung_up || scene_fail(scene, "a log that was cut short is still used");
}

/* --- a log that comes, goes and changes */

/* Swapped again and again while requests are in flight: the logs together have it all. */
static bool log_swapped(struct scene *scene)
{
    struct log logs[2] = {{.fd = -1}, {.fd = -1}};
    struct blk_request requests[REQUESTS];
    struct truth truth;
    uint64_t pages = 0;
    if (!started(scene, false) || !begin_log(scene, &logs[0], scene->front->rings[0].device_area) ||
        !log_make(scene, &logs[1], logs[0].bytes, 0))
        return false;
    struct front_end *front = scene->front;
    for (unsigned i = 0; i < REQUESTS; i++)
        blk_request_init(&requests[i], &front->memory, i, DATA, false);
    truth_init(&truth, &front->memory, &logs[0]);
    bool good = true;
    for (unsigned round = 0; good && round < ROUNDS; round++) {
        memset(truth.allowed, 0xff, truth.log_bytes);
        good = front_tell_state(front, MSG_SET_VRING_ENABLE, 0, 0) == 0 && make_batch(scene, requests, &truth);
        memset(truth.marked, 0, truth.log_bytes);
        truth_copy(&truth, &front->memory);
        good = good && front_tell_state(front, MSG_SET_VRING_ENABLE, 0, 1) == 0;
        for (unsigned i = 0; good && i < 4; i++) {
            good = tell_log(scene, &logs[(i + 1) % 2], logs[0].bytes) == 1;
            log_take(&logs[i % 2], truth.marked);
        }
        good = good && take_all(scene) && truth_holds(scene, &truth, &logs[0], &pages);
    }
    truth_free(&truth);
    for (unsigned i = 0; i < 2; i++)
        log_free(&logs[i]);
    if (!good && !scene->error[0])
        scene_fail(scene, "%s", front->error);
    return good;
}

/* A migration that was given up: nothing is marked any more; and begins once more, with the log that was there. */
static bool log_off_and_on(struct scene *scene)
{
    struct log log = {.fd = -1};
    if (!started(scene, false) || !begin_log(scene, &log, scene->front->rings[0].device_area))
        return false;
    uint8_t *gone = calloc(1, log.bytes);
    bool good = scene_works(scene, 0) && log_all(scene, false);
    log_take(&log, gone);
    good = good && scene_works(scene, 0);
    if (good && !log_is_empty(&log))
        good = scene_fail(scene, "pages were marked without LOG_ALL");
    good = good && log_all(scene, true) && scene_works(scene, 0);
    if (good && log_is_empty(&log))
        good = scene_fail(scene, "no page was marked after LOG_ALL came back");
    free(gone);
    log_free(&log);
    return good;
}

static bool log_event(struct scene *scene)
{
    struct log log = {.fd = -1};
    if (!started(scene, false))
        return false;
    int event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    bool good = scene_send(scene, MSG_SET_LOG_FD, NULL, 0, &event, 1) == 1 ||
                scene_fail(scene, "SET_LOG_FD was refused");
    good = good && begin_log(scene, &log, scene->front->rings[0].device_area) && scene_works(scene, 0);
    struct pollfd wait = {event, POLLIN, 0};
    if (good && poll(&wait, 1, SLOW_MS) != 1)
        good = scene_fail(scene, "pages were marked, and the log's eventfd was not signalled");
    close(event);
    log_free(&log);
    return good;
}

/* An id has 20 bytes, whatever room a driver gives for it: the bits of 4 GiB would take a device a while, which is a
 * neighbour's time. The table of the fragments lies in the first page of what is taken. */
static bool log_of_an_id(struct scene *scene)
{
    enum { FRAGMENTS = 24, ROOM = 256 << 10 };
    struct log log = {.fd = -1};
    if (!started(scene, false) || !begin_log(scene, &log, scene->front->rings[0].device_area))
        return false;
    struct front_end *front = scene->front;
    uint64_t header = guest_take(&front->memory, 0, PAGE, PAGE), room = guest_take(&front->memory, 0, ROOM, PAGE);
    struct blk_header head = {BLK_GET_ID, 0, 0};
    struct fragment fragments[1 + FRAGMENTS + 1] = {{header, sizeof(head), false}};
    for (unsigned i = 0; i < FRAGMENTS; i++)
        fragments[1 + i] = (struct fragment){room, ROOM, true};
    fragments[1 + FRAGMENTS] = (struct fragment){header + sizeof(head), 1, true};
    memcpy(guest_at(&front->memory, header), &head, sizeof(head));
    int status = scene_offer(scene, fragments, 1 + FRAGMENTS + 1, FRONT_TIMEOUT_MS);
    bool good = status == 0 || scene_fail(scene, "an id into much room: %s", strerror(-status));
    if (good && !log_has(&log, room / PAGE))
        good = scene_fail(scene, "the id was written and its page not marked");
    for (uint64_t page = room / PAGE + 1; good && page < (room + ROOM) / PAGE; page++)
        if (log_has(&log, page))
            good = scene_fail(scene, "page %llu behind the id was marked", (unsigned long long)(page - room / PAGE));
    log_free(&log);
    return good;
}

/* The guest stops in mid-migration, and goes on here after all. */
static bool log_and_stay(struct scene *scene)
{
    struct log log = {.fd = -1};
    uint32_t base;
    if (!started(scene, false) || !begin_log(scene, &log, scene->front->rings[0].device_area))
        return false;
    struct front_end *front = scene->front;
    bool good = true;
    for (unsigned i = 0; good && i < 3; i++) {
        good = scene_works(scene, 0) && front_stop_ring(front, &front->rings[0], &base) == 0 &&
               front_set_up_ring(front, &front->rings[0], base) == 0;
    }
    log_free(&log);
    if (!good && !scene->error[0])
        scene_fail(scene, "%s", front->error);
    return good && scene_works(scene, 0);
}

/* --- memory that changes */

static bool started_by_slots(struct scene *scene)
{
    struct front_options options = scene->options->front;
    options.regions = 3;
    options.region_bytes = 8 << 20;
    options.gap = 3 << 20;
    options.by_slots = true;
    if (!scene_started_with(scene, &options) || !needs_log(scene))
        return false;
    if (!front_has_protocol(scene->front, PROTOCOL_CONFIGURE_MEM_SLOTS))
        return scene_skip(scene, "memory slots are not offered");
    return true;
}

static bool tell_region(struct scene *scene, uint32_t message)
{
    const struct guest_memory *memory = &scene->front->memory;
    struct wire_one_region last = {0, guest_region_wire(memory, 2)};
    const bool adds = message == MSG_ADD_MEM_REG;
    return scene_send(scene, message, &last, sizeof(last), adds ? &memory->regions[2].fd : NULL, adds) == 1 ||
           scene_fail(scene, "a region was not %s in mid-migration", adds ? "added" : "removed");
}

/* A read into the last region is there, and its page is marked in this log. */
static bool is_marked_in(struct scene *scene, struct log *log)
{
    struct guest_memory *memory = &scene->front->memory;
    const uint64_t header = guest_take(memory, 0, PAGE, PAGE), data = guest_take(memory, 2, PAGE, PAGE);
    const struct blk_header head = {BLK_READ, 0, 0};
    struct fragment fragments[] = {{header, sizeof(head), false}, {data, PAGE, true}, {header + sizeof(head), 1, true}};
    memcpy(guest_at(memory, header), &head, sizeof(head));
    *(uint8_t *)guest_at(memory, header + sizeof(head)) = BLK_NO_STATUS;
    const int status = scene_offer(scene, fragments, 3, FRONT_TIMEOUT_MS);
    if (status != 0 || *(uint8_t *)guest_at(memory, header + sizeof(head)) != 0)
        return scene_fail(scene, "a read into memory that was added: %s", strerror(-status));
    return (log_has(log, data / PAGE) && log_has(log, header / PAGE)) ||
           scene_fail(scene, "what was read into memory that was added was not marked");
}

/* A region goes and comes again while a migration's log is on, and between the two another log takes its place. */
static bool log_slots(struct scene *scene)
{
    struct log logs[2] = {{.fd = -1}, {.fd = -1}};
    if (!started_by_slots(scene) || !begin_log(scene, &logs[0], scene->front->rings[0].device_area) ||
        !log_make(scene, &logs[1], logs[0].bytes, 0))
        return false;
    bool good = true;
    for (unsigned i = 0; good && i < 4; i++) {
        good = tell_region(scene, MSG_REM_MEM_REG) && scene_works(scene, 0);
        if (good && i % 2 == 0)
            good = tell_log(scene, &logs[(i / 2 + 1) % 2], logs[0].bytes) == 1;
        good = good && tell_region(scene, MSG_ADD_MEM_REG) && is_marked_in(scene, &logs[(i / 2 + 1) % 2]);
    }
    for (unsigned i = 0; i < 2; i++)
        log_free(&logs[i]);
    return good;
}

/* One that goes with requests in flight that read into it: whatever becomes of them, what is written elsewhere is marked. */
static bool log_slot_removed(struct scene *scene)
{
    enum { READS = 16, BYTES = 256 << 10 };
    for (unsigned round = 0; round < 8; round++) {
        struct log log = {.fd = -1};
        struct truth truth;
        uint64_t pages = 0;
        uint32_t base;
        if (!started_by_slots(scene) || !begin_log(scene, &log, scene->front->rings[0].device_area))
            return false;
        struct guest_memory *memory = &scene->front->memory;
        struct ring *ring = &scene->front->rings[0];
        for (unsigned i = 0; i < READS; i++) {
            const uint64_t header = guest_take(memory, 0, PAGE, PAGE);
            const struct blk_header head = {BLK_READ, 0, i};
            struct fragment fragments[] = {{header, sizeof(head), false},
                                           {guest_take(memory, 2, BYTES, PAGE), BYTES, true},
                                           {header + sizeof(head), 1, true}};
            memcpy(guest_at(memory, header), &head, sizeof(head));
            *(uint8_t *)guest_at(memory, header + sizeof(head)) = BLK_NO_STATUS;
            ring_add(ring, fragments, 3, 0, 0, scene);
        }
        truth_init(&truth, memory, &log);
        memset(truth.allowed, 0xff, truth.log_bytes);
        truth_copy(&truth, memory);
        ring_kick_always(ring);
        usleep(100 * round);
        bool good = tell_region(scene, MSG_REM_MEM_REG);
        memory->count = 2; /* what is in the third is nobody's */
        good = good && front_stop_ring(scene->front, ring, &base) == 0 && truth_holds(scene, &truth, &log, &pages);
        memory->count = 3;
        truth_free(&truth);
        log_free(&log);
        if (!good)
            return scene->error[0] ? false : scene_fail(scene, "%s", scene->front->error);
    }
    return true;
}

const struct conform_case conform_log[] = {
    {"log-split", log_split},
    {"log-packed", log_packed},
    {"log-stop-split", log_stop_split},
    {"log-stop-packed", log_stop_packed},
    {"log-stop-by-status", log_stop_by_status},
    {"log-address", log_address},
    {"log-address-behind", log_address_behind},
    {"log-wrong", log_wrong},
    {"log-outgrown", log_outgrown},
    {"log-cut-short", log_cut_short},
    {"log-swapped", log_swapped},
    {"log-off-and-on", log_off_and_on},
    {"log-event", log_event},
    {"log-of-an-id", log_of_an_id},
    {"log-and-stay", log_and_stay},
    {"log-slots", log_slots},
    {"log-slot-removed", log_slot_removed},
    {NULL, NULL},
};
