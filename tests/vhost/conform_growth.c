/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The disk grows under the guest, by a command of whoever runs the cases (--grow): the front-end hears of it over the
 * channel that it has given the back-end, whatever it makes of that, and the guest finds the new capacity.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "conform.h"

enum { STEP_BYTES = 1 << 20, STEP_SECTORS = STEP_BYTES / SECTOR, NEWS_MS = 60000 };
enum { BACKEND_CONFIG_CHANGE_MSG = 2 };

static uint64_t no_protocol(unsigned feature)
{
    return UINT64_C(1) << feature;
}

/* A guest at work; `off`: what is not negotiated. */
static bool begin(struct scene *scene, uint64_t off, bool channel)
{
    struct front_options options = scene->options->front;
    if (!scene->options->grow)
        return scene_skip(scene, "there is no --grow COMMAND");
    options.protocol_off |= off;
    if (!scene_started_with(scene, &options))
        return false;
    if (!front_has_protocol(scene->front, PROTOCOL_CONFIG))
        return scene_skip(scene, "CONFIG is not offered");
    if (channel && scene->front->backend_socket < 0)
        return scene_skip(scene, "BACKEND_REQ is not offered");
    return true;
}

static bool grow_to(struct scene *scene, uint64_t sectors)
{
    char command[1024];
    snprintf(command, sizeof command, "%s %llu >/dev/null", scene->options->grow, (unsigned long long)sectors * SECTOR);
    return system(command) == 0 || scene_fail(scene, "'%s' failed", command);
}

static bool capacity(struct scene *scene, uint64_t *sectors)
{
    struct channel_reply reply;
    if (front_get_config(scene->front, 0, sizeof *sectors, &reply) != 0)
        return scene_fail(scene, "%s", scene->front->error);
    memcpy(sectors, reply.payload.config.bytes, sizeof *sectors);
    return true;
}

/* The guest learns the capacity, and uses all of it. */
static bool has_grown(struct scene *scene, uint64_t wanted)
{
    uint64_t sectors = 0;
    char block[4096];
    if (!capacity(scene, &sectors))
        return false;
    if (sectors != wanted)
        return scene_fail(scene, "the capacity is %llu sectors, not %llu", (unsigned long long)sectors,
                          (unsigned long long)wanted);
    scene->front->config.capacity = sectors;
    memset(block, 'g', sizeof block);
    const struct blk_command last = {
        .type = BLK_WRITE, .sector = sectors - sizeof block / SECTOR, .out = block, .out_bytes = sizeof block};
    return scene_expect(scene, "a write at the new end", &last, BLK_OK) && scene_works(scene, 0);
}

static bool grow(struct scene *scene)
{
    const uint64_t wanted = scene->front->config.capacity + STEP_SECTORS;
    return grow_to(scene, wanted) && has_grown(scene, wanted);
}

/* One message; it asks for an answer only when those were negotiated, and gets it. */
static bool is_told(struct scene *scene)
{
    struct front_end *front = scene->front;
    struct channel_reply news;
    const int status = channel_receive(front->backend_socket, &news, NEWS_MS);
    if (status != 0)
        return scene_fail(scene, "the front-end is not told of the new capacity: %s", strerror(-status));
    const bool asks = news.header.flags & WIRE_NEED_REPLY;
    if (news.header.request != BACKEND_CONFIG_CHANGE_MSG || news.header.size != 0 || news.fd >= 0 ||
        (news.header.flags & ~(uint32_t)WIRE_NEED_REPLY) != WIRE_VERSION)
        return scene_fail(scene, "message %u with flags 0x%x and %u bytes is no news of the configuration",
                          news.header.request, news.header.flags, news.header.size);
    if (asks && !front_has_protocol(front, PROTOCOL_REPLY_ACK))
        return scene_fail(scene, "an answer is asked for, and REPLY_ACK was not negotiated");
    const uint64_t done = 0;
    if (asks && channel_send(front->backend_socket, news.header.request, WIRE_VERSION | WIRE_REPLY, &done, sizeof done,
                             NULL, 0) != 0)
        return scene_fail(scene, "the answer is not taken");
    return true;
}

static bool growth_told(struct scene *scene)
{
    return begin(scene, 0, true) && grow(scene) && is_told(scene) && grow(scene) && is_told(scene);
}

static bool growth_told_without_acks(struct scene *scene)
{
    return begin(scene, no_protocol(PROTOCOL_REPLY_ACK), true) && grow(scene) && is_told(scene);
}

/* What the back-end did not ask for: it may hang up the channel or ignore that, but not the guest. */
static bool growth_answered_unasked(struct scene *scene)
{
    const uint64_t nonsense = UINT64_MAX;
    if (!begin(scene, 0, true) || !grow(scene) || !is_told(scene))
        return false;
    for (unsigned i = 0; i < 4; i++)
        channel_send(scene->front->backend_socket, i, WIRE_VERSION | WIRE_REPLY, &nonsense, sizeof nonsense, NULL, 0);
    return grow(scene) && scene_answers(scene);
}

/* A front-end that never reads. */
static bool growth_unread(struct scene *scene)
{
    if (!begin(scene, 0, true))
        return false;
    for (unsigned i = 0; i < 4; i++)
        if (!grow(scene))
            return false;
    return scene_answers(scene);
}

static bool growth_channel_closed(struct scene *scene)
{
    struct front_end *front = scene->front;
    if (!begin(scene, 0, true))
        return false;
    close(front->backend_socket);
    close(front->backend_socket_to);
    front->backend_socket = front->backend_socket_to = -1;
    return grow(scene) && grow(scene) && scene_answers(scene);
}

/* Who gave no channel finds the capacity when he asks the next time. */
static bool growth_without_channel(struct scene *scene)
{
    return begin(scene, no_protocol(PROTOCOL_BACKEND_REQ), false) && grow(scene);
}

/* In steps, by another process. */
static pid_t grow_aside(struct scene *scene, uint64_t from, unsigned steps)
{
    const pid_t child = fork();
    if (child != 0)
        return child;
    for (unsigned i = 1; i <= steps; i++)
        if (!grow_to(scene, from + i * (uint64_t)STEP_SECTORS))
            _exit(1);
    _exit(0);
}

/* The capacity is asked for all the time, and always one that the disk had, never less than before. */
static bool growth_races(struct scene *scene)
{
    enum { STEPS = 5 };
    if (!begin(scene, 0, false))
        return false;
    const uint64_t from = scene->front->config.capacity;
    const pid_t child = grow_aside(scene, from, STEPS);
    uint64_t last = from, sectors = from;
    int status = 0;
    bool good = child > 0 || scene_fail(scene, "fork: %s", strerror(errno));
    bool ended = child <= 0;
    while (!ended) {
        ended = waitpid(child, &status, WNOHANG) == child;
        if (!good)
            continue;
        good = capacity(scene, &sectors);
        if (good &&
            (sectors < last || sectors > from + STEPS * (uint64_t)STEP_SECTORS || (sectors - from) % STEP_SECTORS != 0))
            good = scene_fail(scene, "the capacity was %llu sectors, and is %llu", (unsigned long long)last,
                              (unsigned long long)sectors);
        last = sectors;
    }
    if (good && status != 0)
        return scene_fail(scene, "'%s' failed", scene->options->grow);
    return good && has_grown(scene, from + STEPS * (uint64_t)STEP_SECTORS);
}

const struct conform_case conform_growth[] = {
    {"growth-told", growth_told},
    {"growth-told-without-acks", growth_told_without_acks},
    {"growth-answered-unasked", growth_answered_unasked},
    {"growth-unread", growth_unread},
    {"growth-channel-closed", growth_channel_closed},
    {"growth-without-channel", growth_without_channel},
    {"growth-races", growth_races},
    {NULL, NULL},
};
