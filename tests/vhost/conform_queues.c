// SPDX-License-Identifier: GPL-2.0-or-later
/* Setting rings up, also wrongly; stopping and starting them; the in-flight region; connections that end under load. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "conform.h"

enum { BATCH = 32, DATA = 4096, PAGE = 4096 };

/* Negotiated, features set, memory shared, one ring made that the back-end knows nothing of. */
static bool with_ring(struct scene *scene)
{
    if (!scene_negotiated(scene))
        return false;
    struct front_end *front = scene->front;
    if (front_make_memory(front) != 0 || front_tell_u64(front, MSG_SET_FEATURES, front->features) != 0 ||
        front_share_memory(front) != 0)
        return scene_fail(scene, "%s", front->error);
    blk_request_init(&scene->request, &front->memory, 0, 64 << 10, false);
    return true;
}

static bool must_refuse(struct scene *scene, int taken, const char *what, uint64_t value)
{
    if (taken > 0)
        return scene_fail(scene, "%s %llu was accepted", what, (unsigned long long)value);
    return taken == 0;
}

static bool ring_index(struct scene *scene)
{
    static const uint32_t indices[] = {16384, 1000, 256, 255, 128, UINT32_MAX, 1u << 31};
    static const uint32_t requests[] = {MSG_SET_VRING_NUM, MSG_SET_VRING_BASE, MSG_SET_VRING_ENABLE,
                                        MSG_SET_VRING_ADDR};
    for (unsigned i = 0; i < sizeof(indices) / sizeof(indices[0]); i++) {
        for (unsigned r = 0; r < sizeof(requests) / sizeof(requests[0]); r++) {
            if (!with_ring(scene))
                return false;
            struct wire_addr addr = {.index = indices[i]};
            struct wire_state state = {indices[i], requests[r] == MSG_SET_VRING_NUM ? 128 : 0};
            bool is_addr = requests[r] == MSG_SET_VRING_ADDR;
            int taken = scene_send(scene, requests[r], is_addr ? (void *)&addr : (void *)&state,
                                   is_addr ? sizeof(addr) : sizeof(state), NULL, 0);
            if (!must_refuse(scene, taken, "ring", indices[i]))
                return false;
        }
        if (!with_ring(scene))
            return false;
        struct wire_state state = {indices[i], 0};
        channel_send(scene->front->socket, MSG_GET_VRING_BASE, WIRE_VERSION, &state, sizeof(state), NULL, 0);
        channel_hung_up(scene->front->socket, 20);
    }
    return true;
}

/* In these the index has 8 bits, and the word more above. */
static bool ring_index_of_descriptors(struct scene *scene)
{
    static const uint64_t words[] = {255, 128, 64, UINT64_MAX, 0xff00, UINT64_C(1) << 63 | 200};
    static const uint32_t requests[] = {MSG_SET_VRING_KICK, MSG_SET_VRING_CALL, MSG_SET_VRING_ERR};
    for (unsigned i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        for (unsigned r = 0; r < 3; r++) {
            if (!with_ring(scene))
                return false;
            int taken = scene_send(scene, requests[r], &words[i], 8, &scene->front->rings[0].call_fd, 1);
            if (!must_refuse(scene, taken, "the word", words[i]))
                return false;
        }
    }
    return true;
}

static bool ring_size(struct scene *scene)
{
    static const uint32_t sizes[] = {0, 3, 100, 32769, 65536, 65537, 1u << 31, UINT32_MAX};
    for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        if (!with_ring(scene))
            return false;
        struct wire_state state = {0, sizes[i]};
        int taken = scene_send(scene, MSG_SET_VRING_NUM, &state, sizeof(state), NULL, 0);
        bool possible = scene->options->front.packed && sizes[i] > 0 && sizes[i] <= 32768; /* no power of two */
        if (taken < 0 || (!possible && !must_refuse(scene, taken, "a ring of size", sizes[i])))
            return false;
    }
    return true;
}

static bool ring_base_too_large(struct scene *scene)
{
    static const uint32_t bases[] = {65536, UINT32_MAX};
    for (unsigned i = 0; i < 2; i++) {
        if (!with_ring(scene))
            return false;
        struct wire_state state = {0, bases[i]};
        if (scene_send(scene, MSG_SET_VRING_BASE, &state, sizeof(state), NULL, 0) < 0)
            return false;
    }
    return true;
}

/* Addresses that are no place for a ring. Whether the message is refused or the ring never starts is the same to us. */
static bool ring_outside(struct scene *scene)
{
    for (unsigned kind = 0; kind < 8; kind++) {
        for (unsigned part = 0; part < 3; part++) {
            if (!with_ring(scene))
                return false;
            struct front_end *front = scene->front;
            struct ring *ring = &front->rings[0];
            uint64_t end = guest_user(&front->memory, front->memory.regions[0].guest + front->memory.regions[0].size);
            const uint64_t bad[] = {0,
                                    end,
                                    end - 16,
                                    UINT64_MAX - 15,
                                    end - 17,
                                    UINT64_C(1) << 63,
                                    guest_user(&front->memory, 0) - 16,
                                    guest_user(&front->memory, PAGE) + 1};
            struct wire_addr addr = {.descriptor = guest_user(&front->memory, ring->descriptors),
                                     .used = guest_user(&front->memory, ring->device_area),
                                     .available = guest_user(&front->memory, ring->driver_area)};
            *(part == 0 ? &addr.descriptor : part == 1 ? &addr.used : &addr.available) = bad[kind];
            front_tell_state(front, MSG_SET_VRING_NUM, 0, ring->size);
            front_tell_state(front, MSG_SET_VRING_BASE, 0, 0);
            int taken = scene_send(scene, MSG_SET_VRING_ADDR, &addr, sizeof(addr), NULL, 0);
            if (taken < 0)
                return false;
            uint64_t index = 0;
            front_tell(front, MSG_SET_VRING_CALL, &index, 8, &ring->call_fd, 1);
            front_tell(front, MSG_SET_VRING_KICK, &index, 8, &ring->kick_fd, 1);
            front_tell_state(front, MSG_SET_VRING_ENABLE, 0, 1);
            ring_kick_always(ring);
            usleep(1000);
            if (!scene_answers_or_closed(scene))
                return false;
        }
    }
    return true;
}

/* A kick before memory, before addresses, before anything. */
static bool kick_too_early(struct scene *scene)
{
    for (unsigned kind = 0; kind < 5; kind++) {
        if (!scene_negotiated(scene))
            return false;
        struct front_end *front = scene->front;
        uint64_t index = 0;
        if (front_make_memory(front) != 0)
            return scene_fail(scene, "%s", front->error);
        struct ring *ring = &front->rings[0];
        ring_kick_always(ring);
        if (kind >= 1)
            front_tell_u64(front, MSG_SET_FEATURES, front->features);
        if (kind == 2)
            front_share_memory(front);
        if (kind == 3) {
            front_tell_state(front, MSG_SET_VRING_NUM, 0, ring->size);
            front_tell_addr(front, ring);
        }
        if (kind == 4) {
            front_share_memory(front);
            front_tell_addr(front, ring); /* no size */
        }
        scene_send(scene, MSG_SET_VRING_KICK, &index, 8, &ring->kick_fd, 1);
        struct wire_state state = {0, 1};
        scene_send(scene, MSG_SET_VRING_ENABLE, &state, sizeof(state), NULL, 0);
        ring_kick_always(ring);
        usleep(1000);
        scene->error[0] = '\0';
        if (!scene_answers_or_closed(scene))
            return false;
    }
    return true;
}

/* Descriptors of rings: none where the word says one comes, two, other files. */
static bool ring_descriptors(struct scene *scene)
{
    static const uint32_t requests[] = {MSG_SET_VRING_KICK, MSG_SET_VRING_CALL, MSG_SET_VRING_ERR};
    int regular = memfd_create("regular", MFD_CLOEXEC), folder = open("/", O_RDONLY | O_CLOEXEC), ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0)
        return scene_fail(scene, "pipe: %s", strerror(errno));
    bool good = true;
    for (unsigned r = 0; good && r < 3; r++) {
        for (unsigned kind = 0; good && kind < 6; kind++) {
            good = with_ring(scene);
            int fds[] = {kind == 2 ? regular : kind == 3 ? folder : ends[1], ends[1]};
            uint64_t word = kind == 5 ? VRING_NO_FD : 0;
            int taken = good ? scene_send(scene, requests[r], &word, 8, fds, kind == 0 ? 0 : kind == 1 ? 2 : 1) : 0;
            if (kind == 0 && taken > 0)
                good = scene_fail(scene, "message %u without a descriptor was accepted, though its word says one comes",
                                  requests[r]);
            good = good && taken >= 0 && scene_answers_or_closed(scene);
        }
    }
    close(regular);
    close(folder);
    close(ends[0]);
    close(ends[1]);
    return good;
}

/* A pipe as the call descriptor fills up; nobody reads it. The back-end must not wait. */
static bool call_descriptor_full(struct scene *scene)
{
    if (!scene_started(scene))
        return false;
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0)
        return scene_fail(scene, "pipe: %s", strerror(errno));
    (void)!fcntl(ends[1], F_SETPIPE_SZ, PAGE);
    struct ring *ring = &scene->front->rings[0];
    uint64_t index = 0;
    int taken = scene_send(scene, MSG_SET_VRING_CALL, &index, 8, &ends[1], 1);
    close(ends[1]);
    bool good = taken >= 0;
    for (unsigned i = 0; good && taken > 0 && i < 2000; i++) {
        struct blk_command read = {.type = BLK_READ, .in_bytes = SECTOR};
        void *token;
        uint32_t written;
        blk_lay_out(&scene->request, &read);
        blk_submit(&scene->request, ring);
        ring_kick(ring);
        for (unsigned spin = 0; spin < 5000 && !ring_arm(ring); spin++)
            usleep(i ? 100 : 1000);
        if (ring_take(ring, &token, &written) != 1) {
            good = scene_fail(scene, "request %u was not answered", i);
            break;
        }
        blk_finish(&scene->request, NULL, 0);
    }
    close(ends[0]);
    return good && scene_answers_or_closed(scene);
}

/* No call descriptor at all: the driver polls. */
static bool polled_ring(struct scene *scene)
{
    if (!scene_started(scene))
        return false;
    uint64_t word = VRING_NO_FD;
    struct ring *ring = &scene->front->rings[0];
    if (front_tell(scene->front, MSG_SET_VRING_CALL, &word, 8, NULL, 0) != 0)
        return scene_fail(scene, "%s", scene->front->error);
    struct blk_command read = {.type = BLK_READ, .in_bytes = SECTOR};
    blk_lay_out(&scene->request, &read);
    blk_submit(&scene->request, ring);
    ring_kick(ring);
    for (unsigned i = 0; i < 5000 && !ring_has_used(ring); i++)
        usleep(1000);
    void *token;
    uint32_t written;
    if (ring_take(ring, &token, &written) != 1)
        return scene_fail(scene, "a request was not answered");
    return blk_finish(&scene->request, NULL, 0) == BLK_OK || scene_fail(scene, "a read failed");
}

/* Fills the ring with writes of a page each, all to the same page of the disk, from the same memory. */
static unsigned submit_batch(struct scene *scene, unsigned count)
{
    static char data[DATA];
    struct blk_command write = {.type = BLK_WRITE, .out = data, .out_bytes = sizeof(data)};
    unsigned given = 0;
    blk_lay_out(&scene->request, &write);
    while (given < count &&
           ring_add(&scene->front->rings[0], scene->request.fragments, scene->request.count, 0, 0, scene) == 0)
        given++;
    ring_kick(&scene->front->rings[0]);
    return given;
}

static bool take_batch(struct scene *scene, unsigned *taken, unsigned wanted)
{
    for (; *taken < wanted; ++*taken) {
        void *token;
        uint32_t written;
        int status = blk_wait(scene->front, &scene->front->rings[0], FRONT_TIMEOUT_MS, &token, &written);
        if (status != 0)
            return scene_fail(scene, "%u of %u requests were completed: %s", *taken, wanted, strerror(-status));
    }
    return true;
}

/* What QEMU before 8.2 does first, and it does not wait for an acknowledgement. */
static bool clear_status(struct scene *scene)
{
    uint64_t zero = 0;
    int status = channel_send(scene->front->socket, MSG_SET_STATUS, WIRE_VERSION, &zero, sizeof(zero), NULL, 0);
    return status == 0 || scene_fail(scene, "SET_STATUS: %s", strerror(-status));
}

/* GET_VRING_BASE under load: what was fetched is used before the answer, nothing after; the rest is done after a restart.
 * by_status: after a status of 0, which changes nothing of that. */
static bool restart(struct scene *scene, bool packed, bool by_status)
{
    struct front_options options = scene->options->front;
    options.packed = packed;
    if (!scene_started_with(scene, &options))
        return false;
    struct front_end *front = scene->front;
    if (by_status && !front_has_protocol(front, PROTOCOL_STATUS))
        return scene_skip(scene, "STATUS is not offered");
    struct ring *ring = &front->rings[0];
    for (unsigned round = 0; round < 30; round++) {
        unsigned given = submit_batch(scene, BATCH), taken = 0;
        usleep(round * 20);
        uint32_t base;
        if (by_status && !clear_status(scene))
            return false;
        if (front_stop_ring(front, ring, &base) != 0)
            return scene_fail(scene, "%s", front->error);
        void *token;
        uint32_t written;
        while (ring_take(ring, &token, &written) == 1)
            taken++;
        if (base != ring_base(ring))
            return scene_fail(scene, "round %u: stopped at 0x%x, but the used ring is at 0x%x", round, base,
                              ring_base(ring));
        usleep(2000);
        if (ring_has_used(ring))
            return scene_fail(scene, "round %u: a buffer was used after the ring was stopped", round);
        if ((by_status && front_tell_u64(front, MSG_SET_FEATURES, front->features) != 0) ||
            front_set_up_ring(front, ring, base) != 0)
            return scene_fail(scene, "%s", front->error);
        ring_kick_always(ring);
        if (!take_batch(scene, &taken, given))
            return false;
    }
    scene->request.ring = NULL;
    return scene_works(scene, 0);
}

static bool ring_restart(struct scene *scene)
{
    return restart(scene, scene->options->front.packed, false);
}

static bool status_restart_split(struct scene *scene)
{
    return restart(scene, false, true);
}

static bool status_restart_packed(struct scene *scene)
{
    return restart(scene, true, true);
}

/* A stopped ring's requests wait, kick or not. */
static bool stopped_ring_is_left_alone(struct scene *scene)
{
    if (!scene_started(scene) || !scene_works(scene, 0))
        return false;
    uint32_t base;
    if (front_stop_ring(scene->front, &scene->front->rings[0], &base) != 0)
        return scene_fail(scene, "%s", scene->front->error);
    unsigned given = submit_batch(scene, 4), taken = 0;
    ring_kick_always(&scene->front->rings[0]);
    usleep(50000);
    if (ring_has_used(&scene->front->rings[0]))
        return scene_fail(scene, "a stopped ring was worked on");
    if (!scene_answers(scene))
        return false;
    if (front_set_up_ring(scene->front, &scene->front->rings[0], base) != 0)
        return scene_fail(scene, "%s", scene->front->error);
    ring_kick_always(&scene->front->rings[0]);
    return take_batch(scene, &taken, given);
}

/* As a guest that boots again: the ring is stopped, other memory shared, and the ring begins at 0 elsewhere. */
static bool ring_moves(struct scene *scene)
{
    if (!scene_started(scene))
        return false;
    struct front_end *front = scene->front;
    for (unsigned i = 0; i < 20; i++) {
        uint32_t base;
        if (!scene_works(scene, 0))
            return false;
        if (front_stop_ring(front, &front->rings[0], &base) != 0)
            return scene_fail(scene, "%s", front->error);
        ring_fini(&front->rings[0]);
        guest_memory_fini(&front->memory);
        front->ring_count = 0;
        if (front_make_memory(front) != 0 || front_start(front) != 0)
            return scene_fail(scene, "%s", front->error);
        blk_request_init(&scene->request, &front->memory, 0, 64 << 10, false);
    }
    return scene_works(scene, 0);
}

static bool several_queues(struct scene *scene)
{
    struct front_options options = scene->options->front;
    options.queues = 4;
    if (!scene_started_with(scene, &options))
        return false;
    for (unsigned i = 0; i < 40; i++)
        if (!scene_works(scene, i % 4))
            return false;
    return true;
}

/* Only some of the queues are started, as firmware does it: the second one. */
static bool not_all_queues(struct scene *scene)
{
    if (!with_ring(scene))
        return false;
    struct front_end *front = scene->front;
    if (front->queues_max < 2)
        return scene_skip(scene, "one queue is offered");
    front->rings[0].index = 1;
    if (front_set_up_ring(front, &front->rings[0], ring_base(&front->rings[0])) != 0)
        return scene_fail(scene, "%s", front->error);
    return scene_works(scene, 0);
}

static bool small_rings(struct scene *scene)
{
    static const unsigned sizes[] = {4, 8, 16, 256, 1024};
    for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        struct front_options options = scene->options->front;
        options.queue_size = sizes[i];
        if (!scene_started_with(scene, &options))
            return false;
        for (unsigned n = 0; n < 20; n++)
            if (!scene_works(scene, 0))
                return false;
    }
    return true;
}

/* The used index passes 65535. */
static bool indices_wrap(struct scene *scene)
{
    if (!with_ring(scene))
        return false;
    struct front_end *front = scene->front;
    struct ring *ring = &front->rings[0];
    if (ring->packed)
        return scene_skip(scene, "of split rings");
    ring->avail_at = ring->used_at = 65530;
    *ring_avail_idx(ring) = 65530;
    uint16_t *used = guest_at(&front->memory, ring->device_area);
    used[1] = used[2 + 4 * ring->size] = 65530; /* its index, and what the device wants to be told of */
    if (front_set_up_ring(front, ring, 65530) != 0)
        return scene_fail(scene, "%s", front->error);
    for (unsigned i = 0; i < 20; i++)
        if (!scene_works(scene, 0))
            return false;
    return ring_used_idx(ring) < 65530 || scene_fail(scene, "the used index is %u", ring_used_idx(ring));
}

static bool disabled_ring(struct scene *scene)
{
    if (!scene_started(scene) || !scene_works(scene, 0))
        return false;
    for (unsigned i = 0; i < 5; i++)
        if (front_tell_state(scene->front, MSG_SET_VRING_ENABLE, 0, 0) != 0 ||
            front_tell_state(scene->front, MSG_SET_VRING_ENABLE, 0, 1) != 0)
            return scene_fail(scene, "%s", scene->front->error);
    return scene_works(scene, 0);
}

/* A connection ends with writes in flight. What a later connection writes to the same place stays. */
static bool disconnect_in_flight(struct scene *scene)
{
    for (unsigned round = 0; round < 20; round++) {
        char new[DATA], read_back[DATA];
        if (!scene_started(scene))
            return false;
        submit_batch(scene, BATCH);
        usleep(50 * round);
        scene_end(scene);
        if (!scene_started(scene))
            return false;
        struct front_end *front = scene->front;
        rng_fill(&scene->rng, new, sizeof(new));
        struct blk_command write = {.type = BLK_WRITE, .out = new, .out_bytes = sizeof(new)};
        struct blk_command read = {.type = BLK_READ, .in_bytes = sizeof(read_back)};
        if (blk_do(front, &front->rings[0], &scene->request, &write, NULL) != BLK_OK)
            return scene_fail(scene, "a write failed: %s", front->error);
        usleep(5000);
        if (blk_do(front, &front->rings[0], &scene->request, &read, read_back) != BLK_OK)
            return scene_fail(scene, "a read failed: %s", front->error);
        if (memcmp(new, read_back, sizeof(new)) != 0)
            return scene_fail(scene, "round %u: a write of the connection before landed on top of a newer one", round);
    }
    return true;
}

/* What is in flight when the connection breaks is completed by the next one, from the region, without a kick. */
static bool inflight_reconnect(struct scene *scene)
{
    for (unsigned round = 0; round < 20; round++) {
        if (!scene_started(scene))
            return false;
        struct front_end *front = scene->front;
        if (!front_has_protocol(front, PROTOCOL_INFLIGHT_SHMFD))
            return scene_skip(scene, "INFLIGHT_SHMFD is not offered");
        unsigned given = submit_batch(scene, BATCH), taken = 0;
        usleep(30 * round);
        front_disconnect(front);
        usleep(20000); /* what was submitted to the disk may be completed, or not */
        void *token;
        uint32_t written;
        while (ring_take(&front->rings[0], &token, &written) == 1)
            taken++;
        if (front_reconnect(front, FRONT_TIMEOUT_MS) != 0)
            return scene_fail(scene, "%s", front->error);
        if (!take_batch(scene, &taken, given))
            return false;
        usleep(2000);
        if (ring_has_used(&front->rings[0]))
            return scene_fail(scene, "a request was completed twice");
    }
    return true;
}

/* The region is made for as many descriptors as the device offers; firmware takes a ring of fewer. */
static bool inflight_of_larger_rings(struct scene *scene)
{
    if (!with_ring(scene))
        return false;
    struct front_end *front = scene->front;
    if (!front_has_protocol(front, PROTOCOL_INFLIGHT_SHMFD))
        return scene_skip(scene, "INFLIGHT_SHMFD is not offered");
    front->options.queue_size *= 2;
    if (front_share_inflight(front) != 0 ||
        front_set_up_ring(front, &front->rings[0], ring_base(&front->rings[0])) != 0)
        return scene_fail(scene, "%s", front->error);
    unsigned given = submit_batch(scene, BATCH), taken = 0;
    front_disconnect(front);
    return (front_reconnect(front, FRONT_TIMEOUT_MS) == 0 || scene_fail(scene, "%s", front->error)) &&
           take_batch(scene, &taken, given);
}

static bool inflight_sizes(struct scene *scene)
{
    static const struct wire_inflight wrong[] = {{0, 0, 0, 0, 0},         {0, 0, 1, 0, 0},      {0, 0, 0, 128, 0},
                                                 {0, 0, 65535, 65535, 0}, {0, 0, 1000, 128, 0}, {0, 0, 1, 65535, 0},
                                                 {0, 0, 1, 100, 0}};
    for (unsigned i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        if (!scene_negotiated(scene))
            return false;
        if (!front_has_protocol(scene->front, PROTOCOL_INFLIGHT_SHMFD))
            return scene_skip(scene, "INFLIGHT_SHMFD is not offered");
        struct channel_reply reply;
        int status = front_ask(scene->front, MSG_GET_INFLIGHT_FD, &wrong[i], sizeof(wrong[i]), &reply);
        if (status == 0 && reply.fd >= 0)
            close(reply.fd);
        if (status != 0 && status != -ECONNRESET && status != -EPIPE)
            return scene_fail(scene, "%u queues of %u: %s", wrong[i].queues, wrong[i].queue_size, scene->front->error);
        if (!scene_answers_or_closed(scene))
            return false;
    }
    return true;
}

/* Puts a file of our own in the place of the in-flight region's: the back-end's may be sealed. */
static bool replace_inflight(struct scene *scene, uint64_t size)
{
    struct front_end *front = scene->front;
    close(front->inflight_fd);
    front->inflight_fd = memfd_create("inflight", MFD_CLOEXEC);
    front->inflight.offset = 0;
    if (front->inflight_fd < 0 || ftruncate(front->inflight_fd, (off_t)size) != 0)
        return scene_fail(scene, "memfd: %s", strerror(errno));
    return true;
}

/* Random bytes in it; or such that look right at first: its version and size. */
static bool scribble_inflight(struct scene *scene, bool plausible)
{
    struct front_end *front = scene->front;
    uint64_t size = front->inflight.size;
    char *bytes = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, front->inflight_fd,
                       (off_t)front->inflight.offset);
    if (bytes == MAP_FAILED)
        return scene_fail(scene, "mmap: %s", strerror(errno));
    rng_fill(&scene->rng, bytes, size);
    if (plausible) {
        uint16_t version_and_size[] = {1, (uint16_t)front->rings[0].size};
        memset(bytes, 0, 8);
        memcpy(bytes + 8, version_and_size, sizeof(version_and_size));
        for (uint64_t at = 16; at < size; at++) /* flags and indices that are not all absurd */
            bytes[at] = (char)(bytes[at] & (at % 2 ? 0 : 0x7f));
    }
    munmap(bytes, size);
    return true;
}

/* What SET_INFLIGHT_FD gets in round `round`. */
static bool spoil_inflight(struct scene *scene, unsigned round, struct wire_inflight *region)
{
    struct front_end *front = scene->front;
    if (round == 0)
        region->size = UINT64_C(1) << 62;
    else if (round == 1)
        region->offset = region->size * 1000;
    else if (round == 2)
        region->size = 8;
    else if (round == 3)
        region->queues = 500;
    else if (round == 4)
        region->queue_size = 32768;
    else if (round == 5)
        region->offset = UINT64_MAX - 4095;
    else if (round == 6)
        return replace_inflight(scene, 0);
    else if (round == 7) /* and shrinks later */
        return replace_inflight(scene, front->inflight.size);
    else
        return scribble_inflight(scene, round % 2);
    return true;
}

/* A region that isn't one: too short, far away, nonsense in it, or one that shrinks while it is used. */
static bool inflight_nonsense(struct scene *scene)
{
    for (unsigned round = 0; round < 20; round++) {
        if (!with_ring(scene))
            return false;
        struct front_end *front = scene->front;
        if (!front_has_protocol(front, PROTOCOL_INFLIGHT_SHMFD))
            return scene_skip(scene, "INFLIGHT_SHMFD is not offered");
        if (front_share_inflight(front) != 0)
            return scene_fail(scene, "%s", front->error);
        struct wire_inflight region = front->inflight;
        if (!spoil_inflight(scene, round, &region))
            return false;
        if (scene_send(scene, MSG_SET_INFLIGHT_FD, &region, sizeof(region), &front->inflight_fd, 1) < 0)
            return false;
        if (front_set_up_ring(front, &front->rings[0], ring_base(&front->rings[0])) == 0) {
            if (round == 7 && ftruncate(front->inflight_fd, 0) != 0)
                return scene_fail(scene, "ftruncate: %s", strerror(errno));
            submit_batch(scene, 4);
            ring_kick_always(&front->rings[0]);
            usleep(5000);
        }
        if (!scene_answers_or_closed(scene))
            return false;
    }
    return true;
}

const struct conform_case conform_queues[] = {
    {"ring-index", ring_index},
    {"ring-index-of-descriptors", ring_index_of_descriptors},
    {"ring-size", ring_size},
    {"ring-base-too-large", ring_base_too_large},
    {"ring-outside", ring_outside},
    {"kick-too-early", kick_too_early},
    {"ring-descriptors", ring_descriptors},
    {"call-descriptor-full", call_descriptor_full},
    {"polled-ring", polled_ring},
    {"ring-restart", ring_restart},
    {"status-restart-split", status_restart_split},
    {"status-restart-packed", status_restart_packed},
    {"stopped-ring-is-left-alone", stopped_ring_is_left_alone},
    {"ring-moves", ring_moves},
    {"several-queues", several_queues},
    {"not-all-queues", not_all_queues},
    {"small-rings", small_rings},
    {"indices-wrap", indices_wrap},
    {"disabled-ring", disabled_ring},
    {"disconnect-in-flight", disconnect_in_flight},
    {"inflight-reconnect", inflight_reconnect},
    {"inflight-of-larger-rings", inflight_of_larger_rings},
    {"inflight-sizes", inflight_sizes},
    {"inflight-nonsense", inflight_nonsense},
    {0},
};
