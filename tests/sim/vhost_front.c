/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The VMM of vhost_sim: its connection and messages, memory, rings and eventfds. A message is sent and answered while the
 * world goes on; the guest is in the rings meanwhile, and hears calls on the VMM's reactor.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/probe.h"
#include "vhost_sim.h"

#define USER_ADDRESS UINT64_C(0x7f0000000000)
#define ADDRESS "unix:/run/vda"
enum { CANARY = 0xa5, VMM_PROCESS = 100, ANSWER_BYTES = 320, RING_SIZE_MAX = 64 };

struct waiting { /* for an operation */
    struct io_op op;
    bool done;
    int64_t result;
};

/* ---- eventfds ---- */

static void event_start(struct sim_event *event)
{
    struct io *io = event->sim->front.io;
    event->busy = true;
    if (event->is_call)
        io_event_wait(io, &event->op, event->fd);
    else
        io_event_signal(io, &event->op, event->fd);
}

static void event_free_if_idle(struct sim_event *event)
{
    if (!event->dropped || event->busy)
        return;
    io_close(event->sim->front.io, event->fd);
    free(event);
}

static void event_ended(struct io_op *op, int64_t result)
{
    struct sim_event *event = container_of(op, struct sim_event, op);
    event->busy = false;
    if (event->dropped) {
        event_free_if_idle(event);
        return;
    }
    if (result < 0)
        sim_fail(event->sim, "an eventfd says %lld", (long long)result);
    if (event->is_call)
        guest_reap(event->sim, event->queue);
    if (event->is_call || event->again)
        event_start(event);
    event->again = false;
}

/* As the VMM. */
static struct sim_event *event_create(struct sim *sim, unsigned queue, bool is_call)
{
    struct sim_event *event = calloc(1, sizeof *event);
    assert_non_null(event);
    *event = (struct sim_event){.op = {.done = event_ended},
                                .sim = sim,
                                .queue = queue,
                                .fd = world_event(sim->stage->world),
                                .is_call = is_call};
    if (is_call)
        event_start(event);
    return event;
}

static void event_drop(struct sim_event *event)
{
    if (!event)
        return;
    event->dropped = true;
    if (event->busy && event->is_call)
        io_cancel(event->sim->front.io, &event->op);
    event_free_if_idle(event);
}

void front_kick(struct sim *sim, unsigned queue)
{
    struct sim_event *kick = sim->front.queues[queue].kick;
    if (!kick)
        return;
    struct world *world = sim->stage->world;
    if (sim->in_device) {
        sim->front.queues[queue].must_kick = true;
        return;
    }
    world_act_as(world, sim->front.io);
    if (kick->busy)
        kick->again = true;
    else
        event_start(kick);
    world_act_as(world, NULL);
}

/* ---- messages ---- */

static void ended(struct io_op *op, int64_t result)
{
    struct waiting *waiting = container_of(op, struct waiting, op);
    waiting->done = true;
    waiting->result = result;
}

static int64_t wait_for(struct sim *sim, struct waiting *waiting)
{
    while (!waiting->done)
        if (!sim_step(sim))
            sim_fail(sim, "the VMM waits for a message for ever");
    return waiting->result;
}

static bool gone(struct sim *sim, const char *what)
{
    if (!sim->stage->dead)
        sim_fail(sim, "the daemon has ended the connection: %s", what);
    return false;
}

static bool send_all(struct sim *sim, void *bytes, size_t length, const int *fds, unsigned fd_count)
{
    struct io_packet packet = {.fd_count = fd_count};
    if (fd_count > 0)
        memcpy(packet.fds, fds, fd_count * sizeof *fds);
    for (size_t sent = 0; sent < length; packet.fd_count = 0) {
        struct waiting waiting = {.op = {.done = ended}};
        packet.bytes = (char *)bytes + sent;
        packet.length = length - sent;
        world_act_as(sim->stage->world, sim->front.io);
        io_send_packet(sim->front.io, &waiting.op, sim->front.fd, &packet);
        world_act_as(sim->stage->world, NULL);
        int64_t result = wait_for(sim, &waiting);
        if (result <= 0)
            return false;
        sent += (size_t)result;
    }
    return true;
}

static bool receive_all(struct sim *sim, void *bytes, size_t length, int *fd)
{
    for (size_t got = 0; got < length;) {
        struct waiting waiting = {.op = {.done = ended}};
        struct io_packet packet = {.bytes = (char *)bytes + got, .length = length - got};
        world_act_as(sim->stage->world, sim->front.io);
        io_recv_packet(sim->front.io, &waiting.op, sim->front.fd, &packet);
        world_act_as(sim->stage->world, NULL);
        int64_t result = wait_for(sim, &waiting);
        if (packet.fd_count > 0)
            *fd = packet.fds[0];
        if (result <= 0)
            return false;
        got += (size_t)result;
    }
    return true;
}

/* Sends; when there is an answer, it is put where `answer` is (NULL: success is what is expected). */
static bool ask_with(struct sim *sim, enum vhost_request_id id, const void *payload, uint32_t size, const int *fds,
                     unsigned fd_count, void *answer, uint32_t answer_size, int *answer_fd)
{
    struct {
        struct vhost_header header;
        uint8_t payload[ANSWER_BYTES];
    } message = {.header = {id, VHOST_VERSION, size}};
    bool acknowledged = !answer && (sim->front.protocol & VHOST_BIT(VHOST_PROTOCOL_REPLY_ACK));
    uint64_t result;
    int fd = -1;
    if (acknowledged)
        message.header.flags |= VHOST_NEED_REPLY;
    if (size > 0)
        memcpy(message.payload, payload, size);
    if (!send_all(sim, &message, sizeof message.header + size, fds, fd_count))
        return gone(sim, "nothing can be sent");
    if (!answer && !acknowledged)
        return true;
    if (!receive_all(sim, &message.header, sizeof message.header, &fd))
        return gone(sim, "a message has no answer");
    if (message.header.request != id || message.header.size != (answer ? answer_size : sizeof result))
        sim_fail(sim, "the answer to message %u is of %u, with %u bytes", id, message.header.request,
                 message.header.size);
    if (!receive_all(sim, answer ? answer : &result, message.header.size, &fd))
        return gone(sim, "an answer has no end");
    if (!answer && result != 0)
        sim_fail(sim, "message %u was refused", id);
    if (answer_fd)
        *answer_fd = fd;
    return true;
}

static bool tell(struct sim *sim, enum vhost_request_id id, const void *payload, uint32_t size)
{
    return ask_with(sim, id, payload, size, NULL, 0, NULL, 0, NULL);
}

static bool tell_with(struct sim *sim, enum vhost_request_id id, const void *payload, uint32_t size, int fd)
{
    return ask_with(sim, id, payload, size, &fd, 1, NULL, 0, NULL);
}

static bool ask(struct sim *sim, enum vhost_request_id id, void *word)
{
    return ask_with(sim, id, NULL, 0, NULL, 0, word, sizeof(uint64_t), NULL);
}

/* ---- memory ---- */

static void region_create(struct sim *sim, unsigned index, uint64_t guest, uint64_t size)
{
    struct sim_region *region = &sim->front.regions[index];
    const uint64_t bytes = size + UINT64_C(2) * SIM_PAGE;
    *region = (struct sim_region){.guest = guest, .size = size, .there = true, .told = true};
    region->fd = memfd_create("guest", MFD_CLOEXEC);
    assert_true(region->fd >= 0 && ftruncate(region->fd, (off_t)bytes) == 0);
    region->file = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, region->fd, 0);
    region->shadow = malloc(bytes);
    assert_true(region->file != MAP_FAILED && region->shadow != NULL);
    void *at = mmap(sim->front.base + guest, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, region->fd,
                    SIM_PAGE);
    assert_true(at == sim->front.base + guest);
    memset(region->file, CANARY, bytes);
    migration_wrote(sim, guest, size);
    memcpy(region->shadow, region->file, bytes);
}

/* Nobody may touch it any more: at once, or when the next connection has its first answer. */
static void region_drop(struct sim *sim, struct sim_region *region, bool at_rest)
{
    if (!region->there)
        return;
    region->there = region->told = false;
    guest_retire(sim, region, at_rest);
    free(region->shadow);
    close(region->fd);
    void *at = mmap(sim->front.base + region->guest, region->size, PROT_NONE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
    assert_true(at == sim->front.base + region->guest);
}

static struct vhost_region describe(const struct sim_region *region)
{
    return (struct vhost_region){region->guest, region->size, USER_ADDRESS + region->guest, SIM_PAGE};
}

static bool tell_region(struct sim *sim, enum vhost_request_id id, const struct sim_region *region)
{
    struct vhost_one_region one = {0, describe(region)};
    if (id == VHOST_REM_MEM_REG && sim_chance(sim, 512))
        return tell(sim, id, &one, sizeof one);
    return tell_with(sim, id, &one, sizeof one, region->fd);
}

static bool tell_table(struct sim *sim)
{
    struct {
        struct vhost_memory head;
        struct vhost_region regions[SIM_REGIONS];
    } table = {{0, 0}, {{0}}};
    int fds[SIM_REGIONS];
    for (unsigned i = 0; i < SIM_REGIONS; i++) {
        const struct sim_region *region = &sim->front.regions[i];
        if (!region->there)
            continue;
        fds[table.head.count] = region->fd;
        table.regions[table.head.count++] = describe(region);
    }
    return ask_with(sim, VHOST_SET_MEM_TABLE, &table,
                    (uint32_t)(sizeof table.head + table.head.count * sizeof table.regions[0]), fds, table.head.count,
                    NULL, 0, NULL);
}

static bool tell_memory(struct sim *sim)
{
    if (!sim->slots_of_memory || sim_chance(sim, 300))
        return tell_table(sim);
    for (unsigned i = 0; i < SIM_REGIONS; i++)
        if (sim->front.regions[i].there && !tell_region(sim, VHOST_ADD_MEM_REG, &sim->front.regions[i]))
            return false;
    return true;
}

/* The region comes or goes; requests must not lie in it. */
static bool plug(struct sim *sim)
{
    struct sim_region *region = &sim->front.regions[SIM_PLUGGED];
    bool alive;
    if (guest_uses_plugged(sim) || sim->retired_count + 4 > SIM_RETIRED)
        return true;
    if (!region->there) {
        uint64_t word; /* without acknowledgements: it is known when the next message is answered */
        region_create(sim, SIM_PLUGGED, SIM_PLUGGED_AT, SIM_PLUGGED_BYTES);
        region->told = false;
        alive = sim->slots_of_memory ? tell_region(sim, VHOST_ADD_MEM_REG, region) : tell_table(sim);
        alive = alive && ask(sim, VHOST_GET_FEATURES, &word);
        region->told = true; /* or the next connection begins with it */
        return alive;
    }
    struct sim_region old = *region;
    region->there = region->told = false; /* no request is made there from now on */
    if (sim->slots_of_memory)
        alive = tell_region(sim, VHOST_REM_MEM_REG, &old);
    else
        alive = tell_table(sim);
    *region = old;
    region_drop(sim, region, alive && (sim->front.protocol & VHOST_BIT(VHOST_PROTOCOL_REPLY_ACK)));
    return alive;
}

/* ---- rings ---- */

static struct driver_place place_of(unsigned queue)
{
    uint64_t at = queue * (uint64_t)SIM_RING_BYTES;
    return (struct driver_place){at, at + 0x1000, at + 0x2000};
}

static void driver_begin(struct sim *sim, unsigned index)
{
    struct sim_queue *queue = &sim->front.queues[index];
    struct driver_place place = place_of(index);
    driver_init(&queue->driver, sim->front.base, &place, queue->size, sim->packed, sim->event_idx);
    driver_want_calls(&queue->driver, 0);
    migration_wrote(sim, place.descriptors, SIM_RING_BYTES);
    queue->base = sim->packed ? (sim_chance(sim, 512) ? 0x80008000 : 0x8000) : 0;
}

/* Where the device would go on if nothing were under way. */
static uint32_t base_at_rest(const struct sim *sim, unsigned index)
{
    const struct driver *driver = &sim->front.queues[index].driver;
    uint32_t at = (uint32_t)(driver->used | (sim->packed ? driver->used_wrap << 15 : 0));
    return sim->packed ? at | at << 16 : at;
}

static bool tell_event(struct sim *sim, enum vhost_request_id id, unsigned index, const struct sim_event *event)
{
    uint64_t word = event ? index : index | VHOST_VRING_NO_FD;
    return event ? tell_with(sim, id, &word, sizeof word, event->fd) : tell(sim, id, &word, sizeof word);
}

/* Another one in its place, or none. */
static void renew(struct sim *sim, struct sim_event **event, unsigned index, bool call, bool some)
{
    world_act_as(sim->stage->world, sim->front.io);
    event_drop(*event);
    *event = some ? event_create(sim, index, call) : NULL;
    world_act_as(sim->stage->world, NULL);
}

static bool tell_addresses(struct sim *sim, unsigned index)
{
    const struct driver_place place = place_of(index);
    const struct vhost_vring_addr addr = {.index = index,
                                          .flags = sim->migration.on ? VHOST_VRING_F_LOG : 0,
                                          .descriptors = USER_ADDRESS + place.descriptors,
                                          .available = USER_ADDRESS + place.available,
                                          .used = USER_ADDRESS + place.used,
                                          .log = sim->migration.on ? place.used : 0};
    return tell(sim, VHOST_SET_VRING_ADDR, &addr, sizeof addr);
}

bool front_start_ring(struct sim *sim, unsigned index)
{
    struct sim_front *front = &sim->front;
    struct sim_queue *queue = &front->queues[index];
    struct vhost_vring_state size = {index, queue->size}, base = {index, queue->base}, enable = {index, 1};
    if (!queue->call || sim_chance(sim, 300))
        renew(sim, &queue->call, index, true, true);
    if (!queue->kick || sim_chance(sim, 300))
        renew(sim, &queue->kick, index, false, !sim_chance(sim, 100));
    queue->running = tell(sim, VHOST_SET_VRING_NUM, &size, sizeof size) &&
                     tell(sim, VHOST_SET_VRING_BASE, &base, sizeof base) && tell_addresses(sim, index) &&
                     tell_event(sim, VHOST_SET_VRING_CALL, index, queue->call) &&
                     tell_event(sim, VHOST_SET_VRING_KICK, index, queue->kick) &&
                     (front->stays_disabled || tell(sim, VHOST_SET_VRING_ENABLE, &enable, sizeof enable));
    return queue->running;
}

static bool any_runs(const struct sim *sim)
{
    for (unsigned i = 0; i < sim->front.queue_count; i++)
        if (sim->front.queues[i].running)
            return true;
    return false;
}

static bool halt_ring(struct sim *sim, unsigned index)
{
    struct sim_queue *queue = &sim->front.queues[index];
    struct vhost_vring_state state = {index, 0};
    if (!ask_with(sim, VHOST_GET_VRING_BASE, &state, sizeof state, NULL, 0, &state, sizeof state, NULL))
        return false;
    queue->running = false;
    queue->base = state.num;
    return true;
}

bool front_stop_ring(struct sim *sim, unsigned index)
{
    if (!halt_ring(sim, index))
        return false;
    guest_reap(sim, index);
    if (sim->migration.on && !any_runs(sim)) /* whoever stops all has left, for all that can be known */
        shots_left(sim);
    return true;
}

bool front_halt(struct sim *sim)
{
    sim->front.guest_stopped = true;
    for (unsigned i = 0; i < sim->front.queue_count; i++) /* nor does it hear calls */
        renew(sim, &sim->front.queues[i].call, i, true, false);
    for (unsigned i = 0; i < sim->front.queue_count; i++)
        if (!halt_ring(sim, i))
            return false;
    return true;
}

bool front_start_all(struct sim *sim)
{
    if (!front_tell_log(sim))
        return false;
    sim->front.guest_stopped = false;
    for (unsigned i = 0; i < sim->front.queue_count; i++)
        if (!front_start_ring(sim, i))
            return false;
    return true;
}

/* What it has said of the ring is true if it has taken all that a predecessor had. */
static void check_base(const struct sim *sim, unsigned index)
{
    const struct sim_queue *queue = &sim->front.queues[index];
    if (queue->base != base_at_rest(sim, index))
        sim_fail(sim, "queue %u stops at 0x%x, and at 0x%x all of it was returned", index, queue->base,
                 base_at_rest(sim, index));
}

static bool restart_ring(struct sim *sim, unsigned index)
{
    bool stopped = sim->front.guest_stopped;
    sim->front.guest_stopped = true;
    if (!front_stop_ring(sim, index))
        return false;
    if (!sim->inflight)
        check_base(sim, index);
    sim->front.guest_stopped = stopped;
    return front_start_ring(sim, index);
}

/* Rings that were stopped begin anew: what was taken was returned, and nothing else. */
static void load_driver_anew(struct sim *sim)
{
    PROBE(vhost_sim_driver_loaded_anew);
    guest_forget(sim, MODEL_NEVER);
    sim->ring_is_broken = false;
    for (unsigned i = 0; i < sim->front.queue_count; i++)
        driver_begin(sim, i);
}

bool front_stop_all(struct sim *sim)
{
    uint64_t zero = 0;
    sim->front.guest_stopped = true;
    for (unsigned i = 0; i < sim->front.queue_count; i++)
        if (!front_stop_ring(sim, i))
            return false;
    if (sim->status && sim_chance(sim, 512)) {
        if (!tell(sim, VHOST_SET_STATUS, &zero, sizeof zero) ||
            !tell(sim, VHOST_SET_FEATURES, &sim->front.features, sizeof sim->front.features))
            return false;
    }
    if (sim_chance(sim, 400))
        load_driver_anew(sim);
    sim->front.guest_stopped = false;
    for (unsigned i = 0; i < sim->front.queue_count; i++)
        if (!front_start_ring(sim, i))
            return false;
    return true;
}

/* ---- the log of a migration ---- */

static bool tell_log(struct sim *sim)
{
    const struct sim_migration *migration = &sim->migration;
    const struct vhost_log log = {SIM_LOG_BYTES, migration->offset};
    struct vhost_log answer;
    return ask_with(sim, VHOST_SET_LOG_BASE, &log, sizeof log, &migration->fd, 1, &answer, sizeof answer, NULL);
}

/* The daemon has done what it was told, with or without acknowledgements, when the next message is answered. */
static bool log_is_known(struct sim *sim)
{
    struct sim_migration *migration = &sim->migration;
    uint64_t word;
    if (!ask(sim, VHOST_GET_FEATURES, &word))
        return false;
    migration->marked = migration->on && any_runs(sim);
    migration->unmarked = !migration->on && !migration->sticks && any_runs(sim);
    return true;
}

bool front_tell_log(struct sim *sim)
{
    struct sim_front *front = &sim->front;
    const uint64_t log_all = VHOST_BIT(VHOST_F_LOG_ALL);
    sim->migration.marked = sim->migration.unmarked = false;
    front->features = sim->migration.on ? front->features | log_all : front->features & ~log_all;
    if ((sim->migration.on && !tell_log(sim)) ||
        !tell(sim, VHOST_SET_FEATURES, &front->features, sizeof front->features))
        return false;
    for (unsigned i = 0; i < front->queue_count; i++)
        if (front->queues[i].running && !tell_addresses(sim, i))
            return false;
    return log_is_known(sim);
}

/* ---- the in-flight region ---- */

static bool get_inflight(struct sim *sim)
{
    struct sim_front *front = &sim->front;
    struct vhost_inflight wanted = {.queues = (uint16_t)front->queue_count, .queue_size = RING_SIZE_MAX};
    int fd = -1;
    if (!ask_with(sim, VHOST_GET_INFLIGHT_FD, &wanted, sizeof wanted, NULL, 0, &front->inflight, sizeof wanted, &fd))
        return false;
    if (fd < 0)
        sim_fail(sim, "GET_INFLIGHT_FD without a descriptor");
    if (front->inflight_map)
        munmap(front->inflight_map, front->inflight.size);
    if (front->inflight_fd >= 0)
        close(front->inflight_fd);
    front->inflight_fd = dup(fd);
    world_act_as(sim->stage->world, front->io);
    io_close(front->io, fd);
    world_act_as(sim->stage->world, NULL);
    front->inflight_map = mmap(NULL, front->inflight.size, PROT_READ, MAP_SHARED, front->inflight_fd, 0);
    assert_true(front->inflight_map != MAP_FAILED);
    return true;
}

static bool tell_inflight(struct sim *sim)
{
    struct sim_front *front = &sim->front;
    if (!sim->inflight)
        return true;
    if (front->inflight_fd < 0 && !get_inflight(sim))
        return false;
    return tell_with(sim, VHOST_SET_INFLIGHT_FD, &front->inflight, sizeof front->inflight, front->inflight_fd);
}

/* As the protocol lays it out: the version at 8, entries of 16 bytes at 16, or (packed) of 32 at 32, each with its mark in
 * front. */
bool front_inflight_is_empty(const struct sim *sim)
{
    const struct sim_front *front = &sim->front;
    const size_t part = front->inflight.size / front->inflight.queues, entry = sim->packed ? 32 : 16;
    for (unsigned q = 0; q < front->queue_count; q++) {
        const char *at = front->inflight_map + q * part;
        for (unsigned i = 0; at[8] != 0 && i < front->queues[q].size; i++)
            if (at[entry * (i + 1)] != 0)
                return false;
    }
    return true;
}

/* ---- connections ---- */

static bool negotiate(struct sim *sim)
{
    struct sim_front *front = &sim->front;
    uint64_t offered, protocol = 0, wanted, owner = 0;
    if (!ask(sim, VHOST_GET_FEATURES, &offered))
        return false;
    guest_settle_retired(sim); /* C14: what earlier connections left is settled */
    if (!sim->inflight) {
        guest_forget(sim, MODEL_UNKNOWN);
        sim->ring_is_broken = false;
        for (unsigned i = 0; i < front->queue_count; i++)
            driver_begin(sim, i);
    }
    model_check_all(sim);
    wanted = offered & ~(VHOST_BIT(VIRTIO_F_RING_PACKED) | VHOST_BIT(VIRTIO_F_EVENT_IDX) |
                         VHOST_BIT(VIRTIO_F_INDIRECT_DESC) | VHOST_BIT(VHOST_F_LOG_ALL));
    wanted |= sim->migration.on ? VHOST_BIT(VHOST_F_LOG_ALL) : 0;
    wanted |= sim->packed ? VHOST_BIT(VIRTIO_F_RING_PACKED) : 0;
    wanted |= sim->event_idx ? VHOST_BIT(VIRTIO_F_EVENT_IDX) : 0;
    wanted |= sim->indirect ? VHOST_BIT(VIRTIO_F_INDIRECT_DESC) : 0;
    front->protocol = 0;
    if (!ask(sim, VHOST_GET_PROTOCOL_FEATURES, &protocol))
        return false;
    protocol &= ~(sim->reply_ack ? 0 : VHOST_BIT(VHOST_PROTOCOL_REPLY_ACK));
    if (!tell(sim, VHOST_SET_PROTOCOL_FEATURES, &protocol, sizeof protocol))
        return false;
    front->protocol = protocol;
    front->features = wanted;
    return tell(sim, VHOST_SET_OWNER, &owner, 0) && tell(sim, VHOST_SET_FEATURES, &wanted, sizeof wanted);
}

bool front_connect(struct sim *sim)
{
    struct sim_front *front = &sim->front;
    world_act_as(sim->stage->world, front->io);
    front->fd = world_connect(sim->stage->world, ADDRESS);
    world_act_as(sim->stage->world, NULL);
    if (front->fd < 0)
        sim_fail(sim, "the VMM cannot connect: %d", front->fd);
    sim->migration.marked = sim->migration.unmarked = false;
    sim->result.connections++;
    front->stays_disabled = sim->inflight && sim->reset_device && sim_chance(sim, 80);
    if (!negotiate(sim) || !tell_memory(sim) || !tell_inflight(sim) || (sim->migration.on && !tell_log(sim)))
        return false;
    for (unsigned i = 0; i < front->queue_count; i++) {
        if (sim->inflight) /* what a VMM knows of the ring; the region says more */
            front->queues[i].base = base_at_rest(sim, i);
        if (!front_start_ring(sim, i))
            return false;
    }
    front->guest_stopped = false;
    if (!log_is_known(sim))
        return false;
    if (!front->stays_disabled)
        return true;
    front->stays_disabled = false; /* the guest resets before what was left has been done again */
    PROBE(vhost_sim_reset_with_chains_left);
    return front_reset(sim, MODEL_UNKNOWN);
}

void front_disconnect(struct sim *sim)
{
    struct sim_front *front = &sim->front;
    if (front->fd < 0)
        return;
    world_act_as(sim->stage->world, front->io);
    io_close(front->io, front->fd);
    world_act_as(sim->stage->world, NULL);
    front->fd = -1;
    for (unsigned i = 0; i < front->queue_count; i++)
        front->queues[i].running = false;
    front->guest_stopped = !sim->inflight; /* its rings begin anew */
}

static void choose_rings(struct sim *sim)
{
    struct sim_front *front = &sim->front;
    front->queue_count = 1 + (unsigned)sim_below(sim, SIM_QUEUES);
    front->queues = calloc(SIM_QUEUES, sizeof *front->queues);
    assert_non_null(front->queues);
    for (unsigned i = 0; i < front->queue_count; i++) {
        front->queues[i].size = sim->packed ? (uint16_t)(5 + sim_below(sim, RING_SIZE_MAX - 4))
                                            : (uint16_t)(8u << sim_below(sim, 4));
        driver_begin(sim, i);
    }
}

void front_create(struct sim *sim)
{
    struct sim_front *front = &sim->front;
    const unsigned process = VMM_PROCESS + sim->vmms++;
    *front = (struct sim_front){.process = process, .fd = -1, .inflight_fd = -1, .guest_stopped = true};
    front->io = world_reactor(sim->stage->world, "vmm", process);
    front->base = mmap(NULL, SIM_MEMORY_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    assert_true(front->base != MAP_FAILED);
    region_create(sim, 0, 0, SIM_REGION_BYTES);
    region_create(sim, 1, SIM_REGION_BYTES, SIM_REGION_BYTES);
    if (sim_chance(sim, 512))
        region_create(sim, SIM_PLUGGED, SIM_PLUGGED_AT, SIM_PLUGGED_BYTES);
    choose_rings(sim);
    sim->ring_is_broken = false;
}

void front_end(struct sim *sim)
{
    struct sim_front *front = &sim->front;
    for (unsigned i = 0; i < SIM_REGIONS; i++)
        region_drop(sim, &front->regions[i], false);
    if (front->inflight_map)
        munmap(front->inflight_map, front->inflight.size);
    if (front->inflight_fd >= 0)
        close(front->inflight_fd);
    munmap(front->base, SIM_MEMORY_BYTES);
    free(front->queues);
    front->queues = NULL;
    front->queue_count = 0;
}

/* kill -9 of the VMM: requests under way may have happened, and its memory is there until they are over. */
void front_kill(struct sim *sim)
{
    if (guest_busy(sim) > 0)
        PROBE(vhost_sim_vmm_died_with_requests);
    world_kill(sim->stage->world, sim->front.process);
    guest_forget(sim, MODEL_UNKNOWN);
    migration_over(sim);
    front_end(sim);
    front_create(sim);
}

bool front_reset(struct sim *sim, enum model_end how)
{
    struct sim_front *front = &sim->front;
    front->guest_stopped = true;
    if (!tell(sim, VHOST_RESET_DEVICE, NULL, 0))
        return false;
    uint64_t word; /* without acknowledgements: it is over when the next message is answered */
    if (!ask(sim, VHOST_GET_FEATURES, &word))
        return false;
    for (unsigned i = 0; i < front->queue_count; i++) {
        guest_reap(sim, i);
        front->queues[i].running = false;
    }
    if (sim->migration.on)
        shots_left(sim);
    guest_forget(sim, how);
    sim->result.resets++;
    sim->ring_is_broken = false;
    for (unsigned i = 0; i < front->queue_count; i++)
        driver_begin(sim, i);
    front->guest_stopped = false;
    if (!tell(sim, VHOST_SET_FEATURES, &front->features, sizeof front->features))
        return false;
    if (sim->inflight && sim_chance(sim, 512) && !get_inflight(sim))
        return false;
    if (!tell_inflight(sim))
        return false;
    for (unsigned i = 0; i < front->queue_count; i++)
        if (!front_start_ring(sim, i))
            return false;
    return true;
}

/* ---- other messages ---- */

static bool ask_config(struct sim *sim)
{
    struct {
        struct vhost_config head;
        struct virtio_blk_config config;
    } wanted = {{0, sizeof wanted.config, 0}, {0}};
    if (!ask_with(sim, VHOST_GET_CONFIG, &wanted, sizeof wanted, NULL, 0, &wanted, sizeof wanted, NULL))
        return false;
    if (wanted.config.capacity != SIM_SECTORS)
        sim_fail(sim, "the disk has %llu sectors", (unsigned long long)wanted.config.capacity);
    return true;
}

static bool disable_for_a_while(struct sim *sim, unsigned index)
{
    struct vhost_vring_state state = {index, 0};
    if (!tell(sim, VHOST_SET_VRING_ENABLE, &state, sizeof state))
        return false;
    sim_run_for(sim, sim_below(sim, NS_PER_MS));
    state.num = 1;
    return tell(sim, VHOST_SET_VRING_ENABLE, &state, sizeof state);
}

bool front_act(struct sim *sim)
{
    const unsigned index = (unsigned)sim_below(sim, sim->front.queue_count);
    struct sim_queue *queue = &sim->front.queues[index];
    uint64_t word;
    switch (sim_below(sim, 8)) {
    case 0:
        return ask_config(sim);
    case 1:
        return ask(sim, VHOST_GET_QUEUE_NUM, &word);
    case 2:
        renew(sim, &queue->call, index, true, true);
        return tell_event(sim, VHOST_SET_VRING_CALL, index, queue->call);
    case 3:
        renew(sim, &queue->kick, index, false, !sim_chance(sim, 100));
        return tell_event(sim, VHOST_SET_VRING_KICK, index, queue->kick);
    case 4:
        return tell_table(sim);
    case 5:
        return plug(sim);
    case 6:
        return disable_for_a_while(sim, index);
    default:
        return restart_ring(sim, index);
    }
}
