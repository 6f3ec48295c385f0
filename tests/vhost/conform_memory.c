// SPDX-License-Identifier: GPL-2.0-or-later
/* Guest memory: tables of regions, right and wrong, changed under requests in flight; files that shrink. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "conform.h"

enum { DATA = 64 << 10, SHORT_WAIT_MS = 2000, PAGE = 4096 };

/* Sends a table of `count` regions that are all `region`, however many that is, with descriptors. As scene_send(). */
static int send_table(struct scene *scene, uint32_t count, const struct wire_region *region, const int *fds,
                      unsigned fd_count)
{
    struct wire_memory table = {.count = count};
    unsigned sent = count < 8 ? count : 8;
    for (unsigned i = 0; i < sent; i++) {
        table.regions[i] = *region;
        table.regions[i].guest += i * region->size;
        table.regions[i].user += i * region->size;
    }
    return scene_send(scene, MSG_SET_MEM_TABLE, &table, 8 + sent * (uint32_t)sizeof(*region), fds, fd_count);
}

/* A fresh connection with memory of its own that the back-end does not know yet. */
static bool with_memory(struct scene *scene, struct wire_region *region)
{
    if (!scene_negotiated(scene))
        return false;
    if (front_make_memory(scene->front) != 0 ||
        front_tell_u64(scene->front, MSG_SET_FEATURES, scene->front->features) != 0)
        return scene_fail(scene, "%s", scene->front->error);
    *region = guest_region_wire(&scene->front->memory, 0);
    return true;
}

static bool table_count(struct scene *scene)
{
    static const uint32_t counts[] = {9, 64, 255, 9000, 1u << 31, UINT32_MAX};
    for (unsigned i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
        struct wire_region region;
        if (!with_memory(scene, &region))
            return false;
        int fds[8];
        for (unsigned f = 0; f < 8; f++)
            fds[f] = scene->front->memory.regions[0].fd;
        region.size = PAGE;
        int taken = send_table(scene, counts[i], &region, fds, 8);
        if (taken != 0)
            return taken > 0 ? scene_fail(scene, "a table of %u regions with 8 descriptors was accepted", counts[i])
                             : false;
    }
    return true;
}

static bool table_descriptors(struct scene *scene)
{
    static const struct {
        uint32_t regions;
        unsigned fds;
    } cases[] = {{1, 0}, {2, 1}, {8, 7}, {1, 2}, {2, 8}, {0, 1}};
    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct wire_region region;
        if (!with_memory(scene, &region))
            return false;
        int fds[8];
        for (unsigned f = 0; f < 8; f++)
            fds[f] = scene->front->memory.regions[0].fd;
        region.size = PAGE;
        int taken = send_table(scene, cases[i].regions, &region, fds, cases[i].fds);
        if (taken != 0)
            return taken > 0 ? scene_fail(scene, "%u regions with %u descriptors were accepted", cases[i].regions,
                                          cases[i].fds)
                             : false;
    }
    return true;
}

/* Regions that can't be. */
static bool table_impossible(struct scene *scene)
{
    struct wire_region good;
    static const char *const names[] = {"size 0",
                                        "a guest range past 2^64",
                                        "a user range past 2^64",
                                        "an offset past 2^63",
                                        "an offset behind the end of the file",
                                        "a size of 2^63",
                                        "more than the file has"};
    for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (!with_memory(scene, &good))
            return false;
        struct wire_region bad = good;
        if (i == 0)
            bad.size = 0;
        else if (i == 1)
            bad.guest = UINT64_MAX - PAGE + 1;
        else if (i == 2)
            bad.user = UINT64_MAX - PAGE + 1;
        else if (i == 3)
            bad.offset = UINT64_MAX - PAGE + 1;
        else if (i == 4)
            bad.offset = good.size * 16;
        else if (i == 5)
            bad.size = UINT64_C(1) << 63;
        else
            bad.size = good.size * 16;
        int taken = send_table(scene, 1, &bad, &scene->front->memory.regions[0].fd, 1);
        if (taken != 0)
            return taken > 0 ? scene_fail(scene, "a region with %s was accepted", names[i]) : false;
    }
    return true;
}

static bool table_overlap(struct scene *scene)
{
    struct wire_region region;
    if (!with_memory(scene, &region))
        return false;
    struct wire_memory table = {.count = 2, .regions = {region, region}};
    table.regions[1].user += UINT64_C(1) << 40;
    int fds[] = {scene->front->memory.regions[0].fd, scene->front->memory.regions[0].fd};
    int taken = scene_send(scene, MSG_SET_MEM_TABLE, &table, 8 + 2 * sizeof(region), fds, 2);
    if (taken > 0)
        return scene_fail(scene, "two regions at the same guest address were accepted");
    return taken == 0;
}

/* Descriptors that are no memory. */
static bool table_other_files(struct scene *scene)
{
    int ends[2], pair[2];
    if (pipe2(ends, O_CLOEXEC) != 0 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0)
        return scene_fail(scene, "pipe: %s", strerror(errno));
    int sealed = memfd_create("sealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    int fds[] = {ends[0],
                 pair[0],
                 open("/", O_RDONLY | O_CLOEXEC),
                 open("/dev/null", O_RDWR | O_CLOEXEC),
                 eventfd(0, EFD_CLOEXEC),
                 open("/", O_PATH | O_CLOEXEC),
                 sealed};
    static const char *const names[] = {"a pipe",     "a socket", "a folder",     "/dev/null",
                                        "an eventfd", "a path",   "a sealed file"};
    bool good = ftruncate(sealed, 16 << 20) == 0 && fcntl(sealed, F_ADD_SEALS, F_SEAL_WRITE) == 0;
    for (unsigned i = 0; good && i < sizeof(fds) / sizeof(fds[0]); i++) {
        struct wire_region region;
        good = with_memory(scene, &region);
        int taken = good ? send_table(scene, 1, &region, &fds[i], 1) : 0;
        if (taken != 0)
            good = taken > 0 ? scene_fail(scene, "%s was accepted as memory", names[i]) : false;
    }
    for (unsigned i = 0; i < sizeof(fds) / sizeof(fds[0]); i++)
        close(fds[i]);
    close(ends[1]);
    close(pair[1]);
    return good;
}

static bool many_regions(struct scene *scene)
{
    struct front_options options = scene->options->front;
    options.regions = 8;
    options.region_bytes = 4 << 20;
    options.gap = 1 << 20;
    return scene_started_with(scene, &options) && scene_works(scene, 0);
}

/* A fragment whose range begins in one region and ends in the next. */
static bool buffer_across_regions(struct scene *scene)
{
    struct front_options options = scene->options->front;
    options.regions = 2;
    options.region_bytes = 8 << 20;
    if (!scene_started_with(scene, &options))
        return false;
    struct front_end *front = scene->front;
    struct guest_memory *memory = &front->memory;
    uint64_t header = guest_take(memory, 0, 17, 16), border = memory->regions[1].guest,
             table = guest_take(memory, 0, 3 * 16, 16);
    char *data = guest_at(memory, border - DATA / 2);
    static char written[DATA];
    for (unsigned i = 0; i < (front_has(front, FEATURE_INDIRECT) ? 4 : 2); i++) {
        bool read = i % 2;
        struct blk_header head = {read ? BLK_READ : BLK_WRITE, 0, 0};
        struct fragment fragments[] = {{header, 16, false}, {border - DATA / 2, DATA, read}, {header + 16, 1, true}};
        void *token;
        uint32_t length;
        if (!read)
            rng_fill(&scene->rng, written, DATA);
        memcpy(data, written, DATA);
        if (read)
            memset(data, 0, DATA);
        memcpy(guest_at(memory, header), &head, sizeof(head));
        ring_add(&front->rings[0], fragments, 3, i < 2 ? 0 : table, 0, scene);
        ring_kick(&front->rings[0]);
        int status = blk_wait(front, &front->rings[0], FRONT_TIMEOUT_MS, &token, &length);
        if (status != 0 || *(uint8_t *)guest_at(memory, header + 16) != BLK_OK)
            return scene_fail(scene, "a %s%s: %s", read ? "read" : "write", i < 2 ? "" : " through an indirect table",
                              status ? strerror(-status) : "an error");
        if (memcmp(data, written, DATA) != 0)
            return scene_fail(scene, "what was read is not what was written");
    }
    return true;
}

static bool slots(struct scene *scene)
{
    struct front_options options = scene->options->front;
    options.by_slots = true;
    options.regions = 3;
    options.region_bytes = 8 << 20;
    if (!scene_started_with(scene, &options) || !scene_works(scene, 0))
        return false;
    struct wire_one_region last = {0, guest_region_wire(&scene->front->memory, 2)}, none = last;
    if (front_tell(scene->front, MSG_REM_MEM_REG, &last, sizeof(last), NULL, 0) != 0)
        return scene_fail(scene, "%s", scene->front->error);
    if (!scene_works(scene, 0))
        return false;
    if (front_tell(scene->front, MSG_ADD_MEM_REG, &last, sizeof(last), &scene->front->memory.regions[2].fd, 1) != 0)
        return scene_fail(scene, "%s", scene->front->error);
    if (!scene_works(scene, 0))
        return false;
    none.region.guest += UINT64_C(1) << 40;
    int taken = scene_send(scene, MSG_REM_MEM_REG, &none, sizeof(none), NULL, 0);
    return taken == 0 || (taken > 0 && scene_fail(scene, "a region that isn't there was removed"));
}

/* More slots than GET_MAX_MEM_SLOTS says; each is a page. */
static bool too_many_slots(struct scene *scene)
{
    struct wire_region region;
    if (!with_memory(scene, &region))
        return false;
    if (!front_has_protocol(scene->front, PROTOCOL_CONFIGURE_MEM_SLOTS))
        return scene_skip(scene, "memory slots are not offered");
    struct channel_reply reply;
    if (front_ask(scene->front, MSG_GET_MAX_MEM_SLOTS, NULL, 0, &reply) != 0)
        return scene_fail(scene, "%s", scene->front->error);
    uint64_t most = reply.payload.u64;
    if (most < 8 || most > 4096)
        return scene_fail(scene, "%llu slots", (unsigned long long)most);
    for (uint64_t i = 0; i <= most + 2; i++) {
        struct wire_one_region one = {0, {i * 2 * PAGE, PAGE, region.user + i * 2 * PAGE, 0}};
        int taken = scene_send(scene, MSG_ADD_MEM_REG, &one, sizeof(one), &scene->front->memory.regions[0].fd, 1);
        if (taken < 0)
            return false;
        if (taken != (i < most))
            return scene_fail(scene, "slot %llu of %llu was %s", (unsigned long long)i + 1, (unsigned long long)most,
                              taken ? "accepted" : "refused");
        if (taken == 0)
            break;
    }
    return true;
}

/* Memory is plugged in under load: requests in flight are not lost, and the new region is of use. */
static bool table_under_load(struct scene *scene)
{
    struct front_options options = scene->options->front;
    options.regions = 2;
    options.region_bytes = 8 << 20;
    if (!scene_started_with(scene, &options))
        return false;
    struct front_end *front = scene->front;
    for (unsigned round = 0; round < 50; round++) {
        static char data[DATA];
        void *token;
        uint32_t written;
        struct blk_command write = {.type = BLK_WRITE, .sector = 0, .out = data, .out_bytes = sizeof(data)};
        blk_lay_out(&scene->other, &write);
        blk_submit(&scene->other, &front->rings[0]);
        ring_kick(&front->rings[0]);
        front->memory.count = 1 + round % 2;
        if (front_share_memory(front) != 0)
            return scene_fail(scene, "%s", front->error);
        int status = blk_wait(front, &front->rings[0], FRONT_TIMEOUT_MS, &token, &written);
        uint8_t result = blk_finish(&scene->other, NULL, 0);
        if (status != 0 || result != BLK_OK)
            return scene_fail(scene, "round %u: the write in flight: %s", round,
                              status ? strerror(-status) : "an error");
    }
    front->memory.count = 2;
    return scene_works(scene, 0);
}

/* The region of requests in flight goes away: whatever becomes of them, nobody else suffers. */
static bool memory_removed_in_flight(struct scene *scene)
{
    for (unsigned round = 0; round < 20; round++) {
        struct front_options options = scene->options->front;
        options.regions = 2;
        options.region_bytes = 16 << 20;
        if (!scene_started_with(scene, &options))
            return false;
        struct front_end *front = scene->front;
        uint64_t header = guest_take(&front->memory, 0, 17, 16), data = guest_take(&front->memory, 1, 1 << 20, PAGE);
        struct blk_header kind = {round % 2 ? BLK_READ : BLK_WRITE, 0, 0};
        memcpy(guest_at(&front->memory, header), &kind, sizeof(kind));
        struct fragment fragments[] = {{header, 16, false}, {data, 1 << 20, round % 2}, {header + 16, 1, true}};
        for (unsigned i = 0; i < 16; i++)
            ring_add(&front->rings[0], fragments, 3, 0, 0, scene);
        ring_kick(&front->rings[0]);
        usleep(100 * (round % 10));
        unsigned keep = round < 10 ? 0 : 1; /* also the region with the rings, or only the data's */
        struct wire_memory table = {.count = keep, .regions = {guest_region_wire(&front->memory, 0)}};
        if (scene_send(scene, MSG_SET_MEM_TABLE, &table, 8 + keep * 32, &front->memory.regions[0].fd, keep) < 0)
            return false;
        usleep(2000);
        if (!scene_answers_or_closed(scene))
            return false;
    }
    return true;
}

/* A file that is shorter than its region, from the beginning. */
static bool truncated_before(struct scene *scene)
{
    struct wire_region region;
    for (unsigned i = 0; i < 2; i++) {
        if (!with_memory(scene, &region))
            return false;
        if (i == 0 && ftruncate(scene->front->memory.regions[0].fd, 0) != 0)
            return scene_fail(scene, "ftruncate: %s", strerror(errno));
        int taken = send_table(scene, 1, &region, &scene->front->memory.regions[0].fd, 1);
        if (taken < 0)
            return false;
        if (i == 0) {
            if (taken > 0)
                return scene_fail(scene, "a region larger than its file was accepted");
            continue;
        }
        if (ftruncate(scene->front->memory.regions[0].fd, 0) != 0)
            return scene_fail(scene, "ftruncate: %s", strerror(errno));
        front_set_up_ring(scene->front, &scene->front->rings[0], ring_base(&scene->front->rings[0]));
        ring_kick_always(&scene->front->rings[0]);
        usleep(20000);
        if (!scene_answers_or_closed(scene))
            return false;
    }
    return true;
}

/* All of guest memory vanishes under a running ring, with requests in flight or without. */
static bool truncated_running(struct scene *scene)
{
    for (unsigned round = 0; round < 6; round++) {
        if (!scene_started(scene) || !scene_works(scene, 0))
            return false;
        struct front_end *front = scene->front;
        static char data[DATA];
        struct blk_command write = {.type = BLK_WRITE, .out = data, .out_bytes = sizeof(data)};
        struct blk_command read = {.type = BLK_READ, .in_bytes = 1 << 20};
        blk_lay_out(&scene->request, &write);
        blk_lay_out(&scene->other, &read);
        if (round >= 2) {
            blk_submit(&scene->request, &front->rings[0]);
            blk_submit(&scene->other, &front->rings[0]);
        }
        if (round >= 4)
            ring_kick(&front->rings[0]);
        if (ftruncate(front->memory.regions[0].fd, 0) != 0)
            return scene_fail(scene, "ftruncate: %s", strerror(errno));
        ring_kick_always(&front->rings[0]);
        usleep(20000);
        if (!scene_answers_or_closed(scene))
            return false;
    }
    return true;
}

/* Only what a request points to vanishes: the request fails, or all of it stops; it is not said to be done. */
static bool truncated_data(struct scene *scene)
{
    for (unsigned round = 0; round < 2; round++) {
        struct front_options options = scene->options->front;
        options.regions = 2;
        options.region_bytes = 8 << 20;
        if (!scene_started_with(scene, &options) || !scene_works(scene, 0))
            return false;
        struct front_end *front = scene->front;
        uint64_t header = guest_take(&front->memory, 0, 17, 16), data = guest_take(&front->memory, 1, DATA, PAGE);
        struct blk_header kind = {round ? BLK_READ : BLK_WRITE, 0, 8};
        memcpy(guest_at(&front->memory, header), &kind, sizeof(kind));
        *(uint8_t *)guest_at(&front->memory, header + 16) = BLK_NO_STATUS;
        if (ftruncate(front->memory.regions[1].fd, 0) != 0)
            return scene_fail(scene, "ftruncate: %s", strerror(errno));
        struct fragment fragments[] = {{header, 16, false}, {data, DATA, round}, {header + 16, 1, true}};
        int status = scene_offer(scene, fragments, 3, SHORT_WAIT_MS);
        if (status == 0 && *(uint8_t *)guest_at(&front->memory, header + 16) == BLK_OK)
            return scene_fail(scene, "a %s of memory that is gone ended well", round ? "read" : "write");
        if (!scene_answers_or_closed(scene))
            return false;
    }
    return true;
}

const struct conform_case conform_memory[] = {
    {"table-count", table_count},
    {"table-descriptors", table_descriptors},
    {"table-impossible", table_impossible},
    {"table-overlap", table_overlap},
    {"table-other-files", table_other_files},
    {"many-regions", many_regions},
    {"buffer-across-regions", buffer_across_regions},
    {"slots", slots},
    {"too-many-slots", too_many_slots},
    {"table-under-load", table_under_load},
    {"memory-removed-in-flight", memory_removed_in_flight},
    {"truncated-before", truncated_before},
    {"truncated-running", truncated_running},
    {"truncated-data", truncated_data},
    {0},
};
