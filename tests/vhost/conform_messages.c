// SPDX-License-Identifier: GPL-2.0-or-later
/* Messages: what each must be answered with, wrong headers, sizes and descriptors, connections that end anywhere. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "conform.h"

static bool features(struct scene *scene)
{
    if (!scene_negotiated(scene))
        return false;
    static const struct {
        unsigned bit;
        const char *name;
    } wanted[] = {{FEATURE_FLUSH, "VIRTIO_BLK_F_FLUSH"},
                  {FEATURE_INDIRECT, "VIRTIO_F_INDIRECT_DESC"},
                  {FEATURE_EVENT_IDX, "VIRTIO_F_EVENT_IDX"}};
    for (unsigned i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++)
        if (!(scene->front->offered >> wanted[i].bit & 1))
            return scene_fail(scene, "%s is not offered", wanted[i].name);
    return true;
}

static bool protocol_features(struct scene *scene)
{
    if (!scene_negotiated(scene))
        return false;
    static const struct {
        unsigned bit;
        const char *name;
    } wanted[] = {{PROTOCOL_MQ, "MQ"},
                  {PROTOCOL_REPLY_ACK, "REPLY_ACK"},
                  {PROTOCOL_CONFIG, "CONFIG"},
                  {PROTOCOL_INFLIGHT_SHMFD, "INFLIGHT_SHMFD"}};
    for (unsigned i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++)
        if (!(scene->front->protocol_offered >> wanted[i].bit & 1))
            return scene_fail(scene, "VHOST_USER_PROTOCOL_F_%s is not offered", wanted[i].name);
    return true;
}

/* The protocol's features may be asked for before SET_FEATURES, and the virtio features again later. */
static bool features_again(struct scene *scene)
{
    if (!scene_started(scene))
        return false;
    struct channel_reply reply;
    if (front_ask(scene->front, MSG_GET_FEATURES, NULL, 0, &reply) != 0)
        return scene_fail(scene, "%s", scene->front->error);
    if (reply.payload.u64 != scene->front->offered)
        return scene_fail(scene, "GET_FEATURES said 0x%llx, and now 0x%llx", (unsigned long long)scene->front->offered,
                          (unsigned long long)reply.payload.u64);
    return scene_works(scene, 0);
}

static bool unoffered_features(struct scene *scene)
{
    if (!scene_negotiated(scene))
        return false;
    uint64_t wrong = scene->front->features | (~scene->front->offered & UINT64_C(0x00ff00ff00ff00ff));
    int taken = scene_send(scene, MSG_SET_FEATURES, &wrong, sizeof(wrong), NULL, 0);
    if (taken < 0)
        return false;
    return taken == 0 || scene_fail(scene, "SET_FEATURES 0x%llx was accepted, of which only 0x%llx are offered",
                                    (unsigned long long)wrong, (unsigned long long)scene->front->offered);
}

static bool queue_number(struct scene *scene)
{
    if (!scene_negotiated(scene))
        return false;
    struct front_end *front = scene->front;
    if (front->queues_max < 1)
        return scene_fail(scene, "GET_QUEUE_NUM says %llu", (unsigned long long)front->queues_max);
    if (front_has(front, FEATURE_MQ) && front->config.num_queues != front->queues_max)
        return scene_fail(scene, "num_queues is %u, GET_QUEUE_NUM says %llu", front->config.num_queues,
                          (unsigned long long)front->queues_max);
    return true;
}

/* The answer is as long as the question, and says the same: firmware asks for 8 bytes, Firecracker for 60. */
static bool config_sizes(struct scene *scene)
{
    if (!scene_negotiated(scene))
        return false;
    if (!front_has_protocol(scene->front, PROTOCOL_CONFIG))
        return scene_skip(scene, "CONFIG is not offered");
    const uint8_t *all = (const uint8_t *)&scene->front->config;
    for (uint32_t offset = 0; offset < 60; offset += offset < 4 ? 1 : 7) {
        for (uint32_t size = 1; offset + size <= 60; size++) {
            struct channel_reply reply;
            if (front_get_config(scene->front, offset, size, &reply) != 0)
                return scene_fail(scene, "%u bytes at %u: %s", size, offset, scene->front->error);
            if (reply.header.size != 12 + size || reply.payload.config.size != size)
                return scene_fail(scene, "%u bytes at %u are asked for, the answer has %u bytes and says %u", size,
                                  offset, reply.header.size - 12, reply.payload.config.size);
            if (memcmp(reply.payload.config.bytes, all + offset, size) != 0)
                return scene_fail(scene, "%u bytes at %u are not those of the whole", size, offset);
        }
    }
    return true;
}

/* Outside of it: no bytes, or padded with zeroes, or closed; then all goes on. */
static bool config_outside(struct scene *scene)
{
    static const struct {
        uint32_t offset, size;
    } asked[] = {{0, 0},   {0, 256},  {60, 196},       {255, 1},        {256, 1},
                 {0, 257}, {4096, 8}, {UINT32_MAX, 8}, {8, UINT32_MAX}, {UINT32_MAX, UINT32_MAX}};
    for (unsigned i = 0; i < sizeof(asked) / sizeof(asked[0]); i++) {
        if (!scene_negotiated(scene))
            return false;
        if (!front_has_protocol(scene->front, PROTOCOL_CONFIG))
            return scene_skip(scene, "CONFIG is not offered");
        struct channel_reply reply;
        int status = front_get_config(scene->front, asked[i].offset, asked[i].size, &reply);
        if (status != 0 && status != -ECONNRESET && status != -EPIPE)
            return scene_fail(scene, "%u bytes at %u: %s", asked[i].size, asked[i].offset, scene->front->error);
        if (status == 0 && reply.header.size != 0 && reply.header.size != 12 && reply.header.size != 12 + asked[i].size)
            return scene_fail(scene, "%u bytes at %u: the answer has %u bytes of payload", asked[i].size,
                              asked[i].offset, reply.header.size);
        if (!scene_answers_or_closed(scene))
            return false;
    }
    return true;
}

/* The capacity can't be written. */
static bool config_read_only(struct scene *scene)
{
    if (!scene_negotiated(scene))
        return false;
    if (!front_has_protocol(scene->front, PROTOCOL_CONFIG))
        return scene_skip(scene, "CONFIG is not offered");
    struct wire_config config = {0, 8, 0, {1, 1, 1, 1}};
    int taken = scene_send(scene, MSG_SET_CONFIG, &config, 12 + 8, NULL, 0);
    if (taken < 0)
        return false;
    if (taken > 0)
        return scene_fail(scene, "SET_CONFIG of the capacity was accepted");
    uint64_t before = scene->front->config.capacity;
    if (!scene_negotiated(scene))
        return false;
    return scene->front->config.capacity == before || scene_fail(scene, "SET_CONFIG changed the capacity");
}

static bool without_acks(struct scene *scene)
{
    struct front_options options = scene->options->front;
    options.protocol_off |= 1 << PROTOCOL_REPLY_ACK;
    return scene_started_with(scene, &options) && scene_works(scene, 0);
}

/* A front-end that can't have its own channel, in-flight region or configuration. */
static bool without_protocol_features(struct scene *scene)
{
    if (!scene_negotiated(scene))
        return false;
    struct blk_config config = scene->front->config;
    struct front_options options = scene->options->front;
    options.protocol_off = UINT64_MAX;
    if (!scene_started_with(scene, &options))
        return false;
    scene->front->config = config;
    return scene_works(scene, 0);
}

static bool unknown_messages(struct scene *scene)
{
    static const uint32_t unknown[] = {0, 19, 20, 22, 23, 26, 27, 33, 35, 41, 42, 43, 99, 65536, UINT32_MAX};
    uint8_t payload[40] = {0};
    for (unsigned i = 0; i < sizeof(unknown) / sizeof(unknown[0]); i++) {
        for (uint32_t size = 0; size <= 40; size += 20) {
            if (!scene_negotiated(scene))
                return false;
            int taken = scene_send(scene, unknown[i], payload, size, NULL, 0);
            if (taken < 0)
                return false;
            if (taken > 0)
                return scene_fail(scene, "message %u was accepted", unknown[i]);
        }
    }
    return true;
}

/* Postcopy needs a back-end that can be stopped in mid-access: ours is none, says so, and ends the connection of a front-end
 * that begins with it all the same, before its rings run or while they do. */
static bool postcopy(struct scene *scene)
{
    enum { PAGEFAULT = 8, ADVISE = 28, LISTEN = 29, END = 30 };
    if (!scene_negotiated(scene))
        return false;
    if (scene->front->protocol_offered >> PAGEFAULT & 1)
        return scene_skip(scene, "postcopy is offered");
    uint64_t wrong = scene->front->protocol | UINT64_C(1) << PAGEFAULT;
    int taken = scene_send(scene, MSG_SET_PROTOCOL_FEATURES, &wrong, sizeof(wrong), NULL, 0);
    for (uint32_t message = ADVISE; taken == 0 && message <= END; message++) {
        for (unsigned runs = 0; taken == 0 && runs < 2; runs++) {
            if (runs ? !scene_started(scene) || !scene_works(scene, 0) : !scene_negotiated(scene))
                return false;
            taken = scene_send(scene, message, NULL, 0, NULL, 0);
        }
    }
    return taken == 0 || (taken > 0 && scene_fail(scene, "postcopy was accepted, which is not offered"));
}

static bool header_flags(struct scene *scene)
{
    static const uint32_t flags[] = {0, 2, 3, WIRE_REPLY, WIRE_REPLY | WIRE_VERSION, 0xfffffff0, UINT32_MAX};
    for (unsigned i = 0; i < sizeof(flags) / sizeof(flags[0]); i++) {
        struct channel_reply reply;
        if (!scene_negotiated(scene))
            return false;
        channel_send(scene->front->socket, MSG_GET_FEATURES, flags[i], NULL, 0, NULL, 0);
        int status = channel_receive(scene->front->socket, &reply, 300);
        if (status != 0 && status != -ECONNRESET && status != -ETIMEDOUT)
            return scene_fail(scene, "flags 0x%x: %s", flags[i], strerror(-status));
    }
    return true;
}

static bool sizes_too_large(struct scene *scene)
{
    static const uint32_t sizes[] = {513, 4096, 65536, 1u << 31, UINT32_MAX};
    static const uint32_t requests[] = {MSG_GET_FEATURES, MSG_SET_FEATURES, MSG_SET_MEM_TABLE, MSG_GET_CONFIG, 99};
    static const char bytes[8192];
    for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        for (unsigned r = 0; r < sizeof(requests) / sizeof(requests[0]); r++) {
            if (!scene_negotiated(scene))
                return false;
            struct wire_header header = {requests[r], WIRE_VERSION | WIRE_NEED_REPLY, sizes[i]};
            channel_send_raw(scene->front->socket, &header, WIRE_HEADER_BYTES, NULL, 0);
            channel_send_raw(scene->front->socket, bytes, sizes[i] < sizeof(bytes) ? sizes[i] : sizeof(bytes), NULL, 0);
        }
    }
    return true;
}

/* Each message with a payload that is shorter, or longer, than what it says. */
static bool sizes_wrong(struct scene *scene)
{
    static const struct {
        uint32_t request, right;
    } messages[] = {{MSG_GET_FEATURES, 0},     {MSG_SET_FEATURES, 8},          {MSG_SET_OWNER, 0},
                    {MSG_SET_MEM_TABLE, 40},   {MSG_SET_VRING_NUM, 8},         {MSG_SET_VRING_ADDR, 40},
                    {MSG_SET_VRING_BASE, 8},   {MSG_GET_VRING_BASE, 8},        {MSG_SET_VRING_KICK, 8},
                    {MSG_SET_VRING_CALL, 8},   {MSG_SET_VRING_ERR, 8},         {MSG_SET_VRING_ENABLE, 8},
                    {MSG_GET_CONFIG, 72},      {MSG_SET_CONFIG, 72},           {MSG_GET_INFLIGHT_FD, 24},
                    {MSG_SET_INFLIGHT_FD, 24}, {MSG_ADD_MEM_REG, 40},          {MSG_REM_MEM_REG, 40},
                    {MSG_SET_STATUS, 8},       {MSG_SET_PROTOCOL_FEATURES, 8}, {MSG_SET_BACKEND_REQ_FD, 0},
                    {MSG_SET_LOG_BASE, 16}};
    static const uint8_t payload[WIRE_PAYLOAD_MAX];
    for (unsigned i = 0; i < sizeof(messages) / sizeof(messages[0]); i++) {
        uint32_t sizes[] = {0, 1, messages[i].right - 1, messages[i].right + 1, messages[i].right + 200};
        for (unsigned s = 0; s < sizeof(sizes) / sizeof(sizes[0]); s++) {
            if (sizes[s] > WIRE_PAYLOAD_MAX || sizes[s] == messages[i].right)
                continue;
            if (!scene_negotiated(scene))
                return false;
            channel_send(scene->front->socket, messages[i].request, WIRE_VERSION | WIRE_NEED_REPLY, payload, sizes[s],
                         NULL, 0);
        }
    }
    return true;
}

static bool connect_and_close(struct scene *scene)
{
    for (unsigned i = 0; i < 200; i++) {
        int fd = channel_connect(scene->path, FRONT_TIMEOUT_MS);
        if (fd < 0)
            return scene_fail(scene, "connection %u: %s", i, strerror(-fd));
        close(fd);
    }
    return true;
}

/* The messages of a whole start, as bytes, of which the last one is cut anywhere. */
static bool close_within_messages(struct scene *scene)
{
    static const struct {
        uint32_t request, size;
    } messages[] = {{MSG_GET_FEATURES, 0},   {MSG_GET_PROTOCOL_FEATURES, 0}, {MSG_SET_FEATURES, 8},
                    {MSG_SET_MEM_TABLE, 40}, {MSG_SET_VRING_ADDR, 40},       {MSG_GET_CONFIG, 72},
                    {MSG_SET_VRING_KICK, 8}, {MSG_GET_INFLIGHT_FD, 24}};
    for (unsigned i = 0; i < sizeof(messages) / sizeof(messages[0]); i++) {
        uint8_t bytes[WIRE_HEADER_BYTES + 72] = {0};
        struct wire_header header = {messages[i].request, WIRE_VERSION, messages[i].size};
        memcpy(bytes, &header, sizeof(header));
        for (uint32_t cut = 1; cut <= WIRE_HEADER_BYTES + messages[i].size; cut += cut < 14 ? 1 : 9) {
            int fd = channel_connect(scene->path, FRONT_TIMEOUT_MS);
            if (fd < 0)
                return scene_fail(scene, "connecting: %s", strerror(-fd));
            channel_send_raw(fd, bytes, cut, NULL, 0);
            close(fd);
        }
    }
    return true;
}

/* A message that comes a byte at a time is a message. */
static bool slow_messages(struct scene *scene)
{
    if (!scene_negotiated(scene))
        return false;
    uint8_t bytes[WIRE_HEADER_BYTES + 8];
    struct wire_header header = {MSG_SET_FEATURES, WIRE_VERSION, 8};
    memcpy(bytes, &header, sizeof(header));
    memcpy(bytes + WIRE_HEADER_BYTES, &scene->front->features, 8);
    for (unsigned i = 0; i < sizeof(bytes); i++) {
        if (channel_send_raw(scene->front->socket, bytes + i, 1, NULL, 0) != 0)
            return scene_fail(scene, "closed after %u bytes of a message", i);
        usleep(1000);
    }
    return scene_answers(scene);
}

/* All at once, without waiting for answers. */
static bool messages_in_a_row(struct scene *scene)
{
    if (!scene_negotiated(scene))
        return false;
    struct wire_header row[50];
    for (unsigned i = 0; i < 50; i++)
        row[i] = (struct wire_header){MSG_GET_FEATURES, WIRE_VERSION, 0};
    if (channel_send_raw(scene->front->socket, row, sizeof(row), NULL, 0) != 0)
        return scene_fail(scene, "closed");
    for (unsigned i = 0; i < 50; i++) {
        struct channel_reply reply;
        int status = channel_receive(scene->front->socket, &reply, FRONT_TIMEOUT_MS);
        if (status != 0 || reply.header.request != MSG_GET_FEATURES)
            return scene_fail(scene, "answer %u of 50: %s", i, status ? strerror(-status) : "another message's");
    }
    return true;
}

/* Are all copies of the pipe's writing end closed? */
static bool pipe_ends(int reading)
{
    struct pollfd wait = {reading, POLLIN, 0};
    return poll(&wait, 1, FRONT_TIMEOUT_MS) == 1 && (wait.revents & POLLHUP);
}

/* Messages that want no descriptor get some: they are closed at once, not kept. */
static bool unwanted_descriptors(struct scene *scene)
{
    static const uint32_t requests[] = {MSG_GET_FEATURES, MSG_SET_OWNER, MSG_GET_QUEUE_NUM, MSG_GET_PROTOCOL_FEATURES,
                                        99};
    static const unsigned counts[] = {1, 2, 8, 9, 32, CHANNEL_FDS};
    for (unsigned i = 0; i < sizeof(requests) / sizeof(requests[0]); i++) {
        for (unsigned c = 0; c < sizeof(counts) / sizeof(counts[0]); c++) {
            int fds[CHANNEL_FDS], ends[2];
            if (!scene_negotiated(scene))
                return false;
            if (pipe2(ends, O_CLOEXEC) != 0)
                return scene_fail(scene, "pipe: %s", strerror(errno));
            for (unsigned f = 0; f < counts[c]; f++)
                fds[f] = ends[1];
            channel_send(scene->front->socket, requests[i], WIRE_VERSION, NULL, 0, fds, counts[c]);
            close(ends[1]);
            bool closed = pipe_ends(ends[0]);
            close(ends[0]);
            if (!closed)
                return scene_fail(scene, "message %u with %u descriptors: they stay open", requests[i], counts[c]);
        }
    }
    return true;
}

/* Descriptors that come with the second half of a message, and between messages. */
static bool late_descriptors(struct scene *scene)
{
    if (!scene_negotiated(scene))
        return false;
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0)
        return scene_fail(scene, "pipe: %s", strerror(errno));
    struct wire_header header = {MSG_SET_FEATURES, WIRE_VERSION, 8};
    channel_send_raw(scene->front->socket, &header, 6, NULL, 0);
    usleep(10000);
    channel_send_raw(scene->front->socket, (char *)&header + 6, 6, &ends[1], 1);
    usleep(10000);
    channel_send_raw(scene->front->socket, &scene->front->features, 8, &ends[1], 1);
    close(ends[1]);
    scene_answers_or_closed(scene);
    scene_end(scene);
    bool closed = pipe_ends(ends[0]);
    close(ends[0]);
    return closed || scene_fail(scene, "they stay open after the connection");
}

/* What a connection gave is given back when it ends. */
static bool descriptors_end_with_connection(struct scene *scene)
{
    int ends[2];
    uint64_t index = 0;
    if (!scene_started(scene) || !scene_works(scene, 0))
        return false;
    if (pipe2(ends, O_CLOEXEC) != 0)
        return scene_fail(scene, "pipe: %s", strerror(errno));
    front_tell(scene->front, MSG_SET_VRING_ERR, &index, sizeof(index), &ends[1], 1);
    close(ends[1]);
    int memory = fcntl(scene->front->memory.regions[0].fd, F_DUPFD_CLOEXEC, 3);
    scene_end(scene);
    bool closed = pipe_ends(ends[0]), unmapped = false;
    close(ends[0]);
    for (unsigned i = 0; i < 6000 && !unmapped; i++) {
        unmapped = fcntl(memory, F_ADD_SEALS, F_SEAL_WRITE) == 0; /* EBUSY while anybody maps it for writing */
        usleep(10000);
    }
    close(memory);
    if (!closed)
        return scene_fail(scene, "the error descriptor stays open after the connection");
    return unmapped || scene_fail(scene, "guest memory stays mapped after the connection");
}

/* A second connection to the same disk waits or is refused; the first one does not suffer. */
static bool second_connection(struct scene *scene)
{
    if (!scene_started(scene) || !scene_works(scene, 0))
        return false;
    int fds[8];
    for (unsigned i = 0; i < 8; i++) {
        fds[i] = channel_connect(scene->path, 200);
        if (fds[i] >= 0)
            channel_send(fds[i], i % 2 ? MSG_SET_OWNER : MSG_GET_FEATURES, WIRE_VERSION, NULL, 0, NULL, 0);
    }
    bool good = scene_works(scene, 0);
    for (unsigned i = 0; i < 8; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    return good && scene_works(scene, 0);
}

static bool status_and_reset(struct scene *scene)
{
    if (!scene_started(scene) || !scene_works(scene, 0))
        return false;
    bool status = front_has_protocol(scene->front, PROTOCOL_STATUS),
         reset = front_has_protocol(scene->front, PROTOCOL_RESET_DEVICE);
    if (!status && !reset)
        return scene_skip(scene, "neither STATUS nor RESET_DEVICE is offered");
    if (status) {
        struct channel_reply reply;
        if (front_tell_u64(scene->front, MSG_SET_STATUS, 15) != 0 ||
            front_ask(scene->front, MSG_GET_STATUS, NULL, 0, &reply) != 0)
            return scene_fail(scene, "%s", scene->front->error);
        if (reply.payload.u64 != 15)
            return scene_fail(scene, "the status is %llu, not 15 as it was set", (unsigned long long)reply.payload.u64);
    }
    if (!reset)
        return scene_works(scene, 0);
    if (front_tell(scene->front, MSG_RESET_DEVICE, NULL, 0, NULL, 0) != 0 || front_start(scene->front) != 0)
        return scene_fail(scene, "%s", scene->front->error);
    return scene_works(scene, 0);
}

const struct conform_case conform_messages[] = {
    {"features", features},
    {"protocol-features", protocol_features},
    {"features-again", features_again},
    {"unoffered-features", unoffered_features},
    {"queue-number", queue_number},
    {"config-sizes", config_sizes},
    {"config-outside", config_outside},
    {"config-read-only", config_read_only},
    {"without-acks", without_acks},
    {"without-protocol-features", without_protocol_features},
    {"unknown-messages", unknown_messages},
    {"postcopy", postcopy},
    {"header-flags", header_flags},
    {"sizes-too-large", sizes_too_large},
    {"sizes-wrong", sizes_wrong},
    {"connect-and-close", connect_and_close},
    {"close-within-messages", close_within_messages},
    {"slow-messages", slow_messages},
    {"messages-in-a-row", messages_in_a_row},
    {"unwanted-descriptors", unwanted_descriptors},
    {"late-descriptors", late_descriptors},
    {"descriptors-end-with-connection", descriptors_end_with_connection},
    {"second-connection", second_connection},
    {"status-and-reset", status_and_reset},
    {0},
};
