// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A start has two halves. As soon as the VMM runs: owner, features, protocol features, number of queues, configuration. When
 * the guest's driver is ready: SET_FEATURES, memory, the in-flight region, the rings. The order within each is the VMM's.
 *
 * A reconnect hands over the in-flight region as it is. The base of each ring is then what has been used (QEMU), or what its
 * driver has made available (cloud-hypervisor), which is too much: the back-end finds in the region what it had fetched.
 * Nobody kicks: the guest has done so already, and the old back-end has read it.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "front_end.h"

int front_fail(struct front_end *front, int status, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(front->error, sizeof(front->error), format, arguments);
    va_end(arguments);
    return status;
}

bool front_has(const struct front_end *front, unsigned feature)
{
    return front->features >> feature & 1;
}

bool front_has_protocol(const struct front_end *front, unsigned feature)
{
    return front->protocol >> feature & 1;
}

static const char *reason_of(int status)
{
    return status == -ECONNRESET || status == -EPIPE ? "the back-end hung up" : strerror(-status);
}

static int receive_for(struct front_end *front, uint32_t request, struct channel_reply *reply)
{
    int status = channel_receive(front->socket, reply, FRONT_TIMEOUT_MS);
    if (status != 0)
        return front_fail(front, status, "no answer to message %u: %s", request, reason_of(status));
    if (reply->header.request == request && (reply->header.flags & 7) == (WIRE_REPLY | WIRE_VERSION))
        return 0;
    if (reply->fd >= 0)
        close(reply->fd);
    reply->fd = -1;
    return front_fail(front, -EPROTO, "the answer to message %u is message %u with flags 0x%x", request,
                      reply->header.request, reply->header.flags);
}

int front_tell(struct front_end *front, uint32_t request, const void *payload, uint32_t size, const int *fds,
               unsigned fd_count)
{
    bool ack = front_has_protocol(front, PROTOCOL_REPLY_ACK) && !front->options.no_ack &&
               front->options.vmm->acks != VMM_ACKS_NONE;
    int status = channel_send(front->socket, request, WIRE_VERSION | (ack ? WIRE_NEED_REPLY : 0), payload, size, fds,
                              fd_count);
    if (status != 0)
        return front_fail(front, status, "message %u: %s", request, reason_of(status));
    if (!ack)
        return 0;
    struct channel_reply reply;
    status = receive_for(front, request, &reply);
    if (status != 0)
        return status;
    if (reply.fd >= 0)
        close(reply.fd);
    if (reply.header.size != 8)
        return front_fail(front, -EPROTO, "the acknowledgement of message %u has %u bytes, not 8", request,
                          reply.header.size);
    if (reply.payload.u64 != 0)
        return front_fail(front, -EREMOTEIO, "message %u was refused with %llu", request,
                          (unsigned long long)reply.payload.u64);
    return 0;
}

int front_tell_u64(struct front_end *front, uint32_t request, uint64_t value)
{
    return front_tell(front, request, &value, sizeof(value), NULL, 0);
}

int front_tell_state(struct front_end *front, uint32_t request, uint32_t index, uint32_t num)
{
    struct wire_state state = {index, num};
    return front_tell(front, request, &state, sizeof(state), NULL, 0);
}

int front_tell_addr(struct front_end *front, const struct ring *ring)
{
    struct wire_addr addr = {.index = ring->index,
                             .flags = front->log.on ? WIRE_LOG_USED : 0,
                             .log = front->log.on ? ring->device_area : 0,
                             .descriptor = guest_user(ring->memory, ring->descriptors),
                             .used = guest_user(ring->memory, ring->device_area),
                             .available = guest_user(ring->memory, ring->driver_area)};
    return front_tell(front, MSG_SET_VRING_ADDR, &addr, sizeof(addr), NULL, 0);
}

static int tell_features(struct front_end *front)
{
    const uint64_t log_all = UINT64_C(1) << FEATURE_LOG_ALL;
    return front_tell_u64(front, MSG_SET_FEATURES, front->log.on ? front->features | log_all : front->features);
}

/* It is answered with what it says itself, acknowledgements or not. */
static int tell_log_base(struct front_end *front)
{
    struct wire_log log = {front->log.bytes, 0};
    struct channel_reply reply;
    if (!front->log.on)
        return 0;
    int status = channel_send(front->socket, MSG_SET_LOG_BASE, WIRE_VERSION, &log, sizeof(log), &front->log.fd, 1);
    if (status == 0)
        status = channel_receive(front->socket, &reply, FRONT_TIMEOUT_MS);
    if (status == 0 &&
        (reply.header.request != MSG_SET_LOG_BASE || memcmp(reply.payload.bytes, &log, sizeof(log)) != 0))
        status = -EPROTO;
    return status == 0 ? 0 : front_fail(front, status, "SET_LOG_BASE: %s", reason_of(status));
}

/* The log comes last, since that message is answered in any case: then all of it is so. */
int front_tell_log(struct front_end *front)
{
    int status = tell_features(front);
    for (unsigned i = 0; status == 0 && i < front->ring_count; i++)
        status = front_tell_addr(front, &front->rings[i]);
    return status == 0 ? tell_log_base(front) : status;
}

int front_ask(struct front_end *front, uint32_t request, const void *payload, uint32_t size,
              struct channel_reply *reply)
{
    bool ack = front_has_protocol(front, PROTOCOL_REPLY_ACK) && front->options.vmm->acks == VMM_ACKS_ANYTHING;
    int status = channel_send(front->socket, request, WIRE_VERSION | (ack ? WIRE_NEED_REPLY : 0), payload, size, NULL,
                              0);
    if (status != 0)
        return front_fail(front, status, "message %u: %s", request, reason_of(status));
    return receive_for(front, request, reply);
}

static int ask_u64(struct front_end *front, uint32_t request, uint64_t *value)
{
    struct channel_reply reply;
    int status = front_ask(front, request, NULL, 0, &reply);
    if (status != 0)
        return status;
    if (reply.fd >= 0)
        close(reply.fd);
    if (reply.header.size != 8)
        return front_fail(front, -EPROTO, "the answer to message %u has %u bytes, not 8", request, reply.header.size);
    *value = reply.payload.u64;
    return 0;
}

int front_get_config(struct front_end *front, uint32_t offset, uint32_t size, struct channel_reply *reply)
{
    struct wire_config config = {offset, size, front->options.vmm->config_flags, {0}};
    uint32_t bytes = size < sizeof(config.bytes) ? size : sizeof(config.bytes);
    int status = front_ask(front, MSG_GET_CONFIG, &config, 12 + bytes, reply);
    if (status == 0 && reply->fd >= 0)
        close(reply->fd);
    return status;
}

void front_defaults(struct front_options *options)
{
    options->vmm = options->vmm ? options->vmm : vmm_at(0);
    options->queues = options->queues ? options->queues : options->vmm->queues;
    options->queue_size = options->queue_size ? options->queue_size : options->vmm->queue_size;
    options->regions = options->regions ? options->regions : options->vmm->regions;
    options->region_bytes = options->region_bytes ? options->region_bytes : 16 << 20;
}

void front_init(struct front_end *front, const char *path, const struct front_options *options)
{
    *front = (struct front_end){
        .path = path, .socket = -1, .backend_socket = -1, .backend_socket_to = -1, .inflight_fd = -1};
    front->options = options ? *options : (struct front_options){0};
    front_defaults(&front->options);
}

int front_connect(struct front_end *front, int timeout_ms)
{
    int fd = channel_connect(front->path, timeout_ms);
    if (fd < 0)
        return front_fail(front, fd, "connecting: %s", strerror(-fd));
    front->socket = fd;
    return 0;
}

static int negotiate_protocol(struct front_end *front)
{
    int status = ask_u64(front, MSG_GET_PROTOCOL_FEATURES, &front->protocol_offered);
    if (status != 0)
        return status;
    uint64_t wanted = front->protocol_offered & front->options.vmm->protocol & ~front->options.protocol_off;
    status = front_tell_u64(front, MSG_SET_PROTOCOL_FEATURES, wanted);
    front->protocol = wanted;
    front->queues_max = 1;
    if (status == 0 && front_has_protocol(front, PROTOCOL_MQ))
        status = ask_u64(front, MSG_GET_QUEUE_NUM, &front->queues_max);
    return status;
}

static int open_backend_channel(struct front_end *front)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0)
        return front_fail(front, -errno, "socketpair: %s", strerror(errno));
    front->backend_socket = pair[0];
    front->backend_socket_to = pair[1];
    return front_tell(front, MSG_SET_BACKEND_REQ_FD, NULL, 0, &front->backend_socket_to, 1);
}

static int read_config(struct front_end *front)
{
    static const uint8_t whole[] = {sizeof(struct blk_config), 0};
    static const uint8_t pieces[] = {4, 4, 4, 4, 2, 1, 1, 4, 1, 1, 2, 4, 1,
                                     1, 2, 4, 4, 4, 4, 4, 1, 1, 1, 1, 0}; /* Linux' */
    uint32_t at = 0;
    for (const uint8_t *size = front->options.vmm->config_in_pieces ? pieces : whole; *size; at += *size++) {
        struct channel_reply reply;
        int status = front_get_config(front, at, *size, &reply);
        if (status != 0)
            return status;
        const struct wire_config *config = &reply.payload.config;
        if (reply.header.size != 12u + *size || config->offset != at || config->size != *size)
            return front_fail(
                front, -EPROTO,
                "asked for %u bytes of configuration at %u, the answer has %u of payload and says %u at %u", *size, at,
                reply.header.size, config->size, config->offset);
        memcpy((uint8_t *)&front->config + at, config->bytes, *size);
    }
    return 0;
}

/* GET_FEATURES, and what this guest takes of them. */
static int choose_features(struct front_end *front)
{
    int status = ask_u64(front, MSG_GET_FEATURES, &front->offered);
    if (status != 0)
        return status;
    uint64_t needed = UINT64_C(1) << FEATURE_VERSION_1 | UINT64_C(1) << FEATURE_PROTOCOL;
    if ((front->offered & needed) != needed)
        return front_fail(front, -EPROTO, "features 0x%llx: VERSION_1 or PROTOCOL_FEATURES is missing",
                          (unsigned long long)front->offered);
    uint64_t known = needed | 1u << FEATURE_SEG_MAX | 1u << FEATURE_RO | 1u << FEATURE_BLK_SIZE | 1u << FEATURE_FLUSH |
                     1u << FEATURE_TOPOLOGY | 1u << FEATURE_MQ | 1u << FEATURE_DISCARD | 1u << FEATURE_WRITE_ZEROES |
                     1u << FEATURE_INDIRECT | 1u << FEATURE_EVENT_IDX;
    if (front->options.packed)
        known |= UINT64_C(1) << FEATURE_PACKED;
    front->features = front->offered & front->options.vmm->features & known & ~front->options.features_off;
    if (front->options.packed && !front_has(front, FEATURE_PACKED))
        return front_fail(front, -EOPNOTSUPP, "packed rings are not offered");
    return 0;
}

static int set_owner(struct front_end *front)
{
    return front_tell(front, MSG_SET_OWNER, NULL, 0, NULL, 0);
}

int front_negotiate(struct front_end *front)
{
    const bool owner_first = front->options.vmm->owner_first;
    int status = owner_first ? set_owner(front) : 0;
    if (status == 0)
        status = choose_features(front);
    if (status == 0)
        status = negotiate_protocol(front);
    if (status == 0 && !owner_first)
        status = set_owner(front);
    if (status == 0 && front_has_protocol(front, PROTOCOL_BACKEND_REQ))
        status = open_backend_channel(front);
    if (status == 0 && front->options.queues > front->queues_max)
        status = front_fail(front, -EOPNOTSUPP, "%llu queues are offered, not %u",
                            (unsigned long long)front->queues_max, front->options.queues);
    if (status == 0 && front_has_protocol(front, PROTOCOL_CONFIG))
        status = read_config(front);
    return status;
}

/* What it knows from before is not asked for again. */
static int negotiate_from_memory(struct front_end *front)
{
    int status = set_owner(front);
    if (status == 0)
        status = choose_features(front);
    if (status == 0)
        status = front_tell_u64(front, MSG_SET_PROTOCOL_FEATURES, front->protocol_remembered);
    front->protocol = front->protocol_remembered;
    return status;
}

int front_make_memory(struct front_end *front)
{
    const struct front_options *o = &front->options;
    int status = guest_memory_init(&front->memory, o->regions, o->region_bytes, o->gap, o->vmm->one_file);
    if (status != 0)
        return front_fail(front, status, "guest memory: %s", strerror(-status));
    for (unsigned i = 0; i < o->queues; i++, front->ring_count++) {
        status = ring_init(&front->rings[i], &front->memory, i, i, o->queue_size, o->packed,
                           front_has(front, FEATURE_EVENT_IDX));
        if (status != 0)
            return front_fail(front, status, "a ring: %s", strerror(-status));
    }
    return 0;
}

static int share_slots(struct front_end *front)
{
    for (unsigned i = 0; i < front->memory.count; i++) {
        struct wire_one_region one = {0, guest_region_wire(&front->memory, i)};
        int status = front_tell(front, MSG_ADD_MEM_REG, &one, sizeof(one), &front->memory.regions[i].fd, 1);
        if (status != 0)
            return status;
    }
    return 0;
}

int front_share_memory(struct front_end *front)
{
    if (front->options.by_slots)
        return share_slots(front);
    struct wire_memory table = {.count = front->memory.count};
    int fds[GUEST_REGIONS];
    for (unsigned i = 0; i < table.count; i++) {
        table.regions[i] = guest_region_wire(&front->memory, i);
        fds[i] = front->memory.regions[i].fd;
    }
    return front_tell(front, MSG_SET_MEM_TABLE, &table, 8 + table.count * (uint32_t)sizeof(table.regions[0]), fds,
                      table.count);
}

static int get_inflight(struct front_end *front)
{
    struct wire_inflight wanted = {.queues = (uint16_t)front->options.queues,
                                   .queue_size = (uint16_t)front->options.queue_size};
    struct channel_reply reply;
    int status = front_ask(front, MSG_GET_INFLIGHT_FD, &wanted, sizeof(wanted), &reply);
    if (status != 0)
        return status;
    if (reply.fd < 0 || reply.header.size < 20 || reply.payload.inflight.size == 0) {
        if (reply.fd >= 0)
            close(reply.fd);
        return front_fail(front, -EPROTO, "GET_INFLIGHT_FD: %s descriptor, %u bytes of payload, a region of %llu bytes",
                          reply.fd < 0 ? "no" : "a", reply.header.size,
                          (unsigned long long)reply.payload.inflight.size);
    }
    front->inflight_fd = reply.fd;
    front->inflight = wanted;
    front->inflight.size = reply.payload.inflight.size;
    front->inflight.offset = reply.payload.inflight.offset;
    return 0;
}

int front_share_inflight(struct front_end *front)
{
    if (!front_has_protocol(front, PROTOCOL_INFLIGHT_SHMFD))
        return 0;
    int status = front->inflight_fd < 0 ? get_inflight(front) : 0;
    if (status != 0)
        return status;
    return front_tell(front, MSG_SET_INFLIGHT_FD, &front->inflight, sizeof(front->inflight), &front->inflight_fd, 1);
}

static int tell_size(struct front_end *front, const struct ring *ring)
{
    return front_tell_state(front, MSG_SET_VRING_NUM, ring->index, ring->size);
}

static int set_up_ring(struct front_end *front, struct ring *ring, uint32_t base)
{
    const struct vmm *vmm = front->options.vmm;
    uint64_t index = ring->index;
    int status = vmm->base_first ? front_tell_state(front, MSG_SET_VRING_BASE, ring->index, base) : 0;
    if (status == 0)
        status = front_tell_addr(front, ring);
    if (status == 0 && !vmm->base_first)
        status = front_tell_state(front, MSG_SET_VRING_BASE, ring->index, base);
    if (status == 0 && vmm->error_fd)
        status = front_tell(front, MSG_SET_VRING_ERR, &index, sizeof(index), &ring->err_fd, 1);
    if (status == 0)
        status = front_tell(front, MSG_SET_VRING_CALL, &index, sizeof(index), &ring->call_fd, 1);
    if (status == 0)
        status = front_tell(front, MSG_SET_VRING_KICK, &index, sizeof(index), &ring->kick_fd, 1);
    if (status == 0 && !vmm->enable_last)
        status = front_tell_state(front, MSG_SET_VRING_ENABLE, ring->index, 1);
    return status;
}

int front_set_up_ring(struct front_end *front, struct ring *ring, uint32_t base)
{
    int status = tell_size(front, ring);
    if (status == 0)
        status = set_up_ring(front, ring, base);
    if (status == 0 && front->options.vmm->enable_last)
        status = front_tell_state(front, MSG_SET_VRING_ENABLE, ring->index, 1);
    return status;
}

int front_enable_rings(struct front_end *front, bool enable)
{
    int status = 0;
    for (unsigned i = 0; status == 0 && i < front->ring_count; i++)
        status = front_tell_state(front, MSG_SET_VRING_ENABLE, front->rings[i].index, enable);
    return status;
}

static int set_up_rings(struct front_end *front)
{
    const struct vmm *vmm = front->options.vmm;
    int status = 0;
    for (unsigned i = 0; status == 0 && i < front->ring_count; i++) {
        struct ring *ring = &front->rings[i];
        uint32_t base = vmm->base_is_available ? *ring_avail_idx(ring) : ring_base(ring);
        if (!vmm->sizes_first)
            status = tell_size(front, ring);
        if (status == 0)
            status = set_up_ring(front, ring, base);
    }
    return status == 0 && vmm->enable_last ? front_enable_rings(front, true) : status;
}

int front_start(struct front_end *front)
{
    const struct vmm *vmm = front->options.vmm;
    int status = 0;
    if (front->options.by_slots && !front_has_protocol(front, PROTOCOL_CONFIGURE_MEM_SLOTS))
        return front_fail(front, -EOPNOTSUPP, "memory slots are not offered");
    if (!vmm->features_once || front->features_told != front->features)
        status = tell_features(front);
    front->features_told = front->features;
    if (status == 0)
        status = front_share_memory(front);
    if (status == 0)
        status = tell_log_base(front);
    for (unsigned i = 0; status == 0 && vmm->sizes_first && i < front->ring_count; i++)
        status = tell_size(front, &front->rings[i]);
    if (status == 0)
        status = front_share_inflight(front);
    return status == 0 ? set_up_rings(front) : status;
}

int front_reset(struct front_end *front)
{
    int status = 0;
    for (unsigned i = 0; status == 0 && i < front->ring_count; i++) {
        uint32_t base;
        status = front_tell_state(front, MSG_SET_VRING_ENABLE, front->rings[i].index, 0);
        if (status == 0)
            status = front_stop_ring(front, &front->rings[i], &base);
    }
    return status;
}

int front_open(struct front_end *front, const char *path, const struct front_options *options)
{
    front_init(front, path, options);
    int status = front_connect(front, FRONT_TIMEOUT_MS);
    if (status == 0)
        status = front_negotiate(front);
    if (status == 0)
        status = front_make_memory(front);
    if (status == 0)
        status = front_start(front);
    return status;
}

int front_stop_ring(struct front_end *front, struct ring *ring, uint32_t *base)
{
    struct wire_state state = {ring->index, 0};
    struct channel_reply reply;
    int status = front_ask(front, MSG_GET_VRING_BASE, &state, sizeof(state), &reply);
    if (status != 0)
        return status;
    if (reply.fd >= 0)
        close(reply.fd);
    if (reply.header.size != sizeof(state) || reply.payload.state.index != ring->index)
        return front_fail(front, -EPROTO, "GET_VRING_BASE of ring %u: %u bytes, ring %u", ring->index,
                          reply.header.size, reply.payload.state.index);
    *base = reply.payload.state.num;
    return 0;
}

void front_disconnect(struct front_end *front)
{
    int *fds[] = {&front->socket, &front->backend_socket, &front->backend_socket_to};
    for (unsigned i = 0; i < 3; i++) {
        if (*fds[i] >= 0)
            close(*fds[i]);
        *fds[i] = -1;
    }
    front->protocol = front->features_told = 0; /* the next connection negotiates anew */
}

int front_reconnect(struct front_end *front, int timeout_ms)
{
    uint64_t features = front->features;
    if (front->protocol) /* and not a connection that was lost before it had come so far */
        front->protocol_remembered = front->protocol;
    front_disconnect(front);
    int status = front_connect(front, timeout_ms);
    if (status == 0)
        status = front->options.vmm->remembers ? negotiate_from_memory(front) : front_negotiate(front);
    if (status == 0 && front->features != features)
        status = front_fail(front, -EPROTO, "features were 0x%llx and are 0x%llx after a reconnect",
                            (unsigned long long)features, (unsigned long long)front->features);
    front->features = features;
    return status == 0 ? front_start(front) : status;
}

void front_close(struct front_end *front)
{
    front_disconnect(front);
    for (unsigned i = 0; i < front->ring_count; i++)
        ring_fini(&front->rings[i]);
    front->ring_count = 0;
    if (front->inflight_fd >= 0)
        close(front->inflight_fd);
    front->inflight_fd = -1;
    guest_memory_fini(&front->memory);
}
