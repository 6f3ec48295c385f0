// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A life of a guest with the manners of each VMM (vmm.c): it starts, works on each of its rings, looks at the
 * configuration again, is paused, is reset, loses the connection with requests under way and starts anew, as far as the
 * VMM does such things.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "conform.h"

enum { PAUSE_MS = 30, DATA = 4096 };

static bool has_what_it_needs(struct scene *scene, const struct vmm *vmm)
{
    const uint64_t features = vmm->needs_features & ~scene->front->offered;
    const uint64_t protocol = vmm->needs_protocol & ~scene->front->protocol_offered;
    return !(features | protocol) || scene_fail(scene, "not offered: features 0x%llx, protocol features 0x%llx",
                                                (unsigned long long)features, (unsigned long long)protocol);
}

static bool all_rings_work(struct scene *scene)
{
    for (unsigned i = 0; i < scene->front->ring_count; i++)
        if (!scene_works(scene, i))
            return false;
    return true;
}

static bool config_is_the_same(struct scene *scene)
{
    struct channel_reply reply;
    if (front_get_config(scene->front, 0, sizeof(struct blk_config), &reply) != 0)
        return scene_fail(scene, "%s", scene->front->error);
    return memcmp(reply.payload.config.bytes, &scene->front->config, sizeof(struct blk_config)) == 0 ||
           scene_fail(scene, "the configuration is another while rings run");
}

/* Two writes that nobody waits for. */
static bool submit_two(struct scene *scene)
{
    static const char data[DATA];
    struct blk_request *requests[] = {&scene->request, &scene->other};
    struct ring *ring = &scene->front->rings[0];
    for (unsigned i = 0; i < 2; i++) {
        struct blk_command write = {.type = BLK_WRITE, .sector = 8 * i, .out = data, .out_bytes = DATA};
        blk_lay_out(requests[i], &write);
        if (blk_submit(requests[i], ring) != 0)
            return scene_fail(scene, "no room for a request");
    }
    ring_kick(ring);
    return true;
}

static bool reap_two(struct scene *scene, const char *when)
{
    for (unsigned i = 0; i < 2; i++) {
        void *token;
        uint32_t written;
        int waited = blk_wait(scene->front, &scene->front->rings[0], FRONT_TIMEOUT_MS, &token, &written);
        if (waited != 0)
            return scene_fail(scene, "request %u of 2 after %s: %s", i, when, strerror(-waited));
        const uint8_t status = blk_finish(token, NULL, 0);
        if (status != BLK_OK)
            return scene_fail(scene, "a request ended with status %u after %s", status, when);
    }
    return true;
}

/* Nobody kicks when the VM goes on. */
static bool survives_pause(struct scene *scene)
{
    struct front_end *front = scene->front;
    if (front_enable_rings(front, false) != 0)
        return scene_fail(scene, "%s", front->error);
    if (!submit_two(scene))
        return false;
    poll(NULL, 0, PAUSE_MS);
    if (ring_has_used(&front->rings[0]))
        return scene_fail(scene, "a request was answered while the VM was paused");
    if (front_enable_rings(front, true) != 0)
        return scene_fail(scene, "%s", front->error);
    return reap_two(scene, "a pause");
}

/* The driver of the next boot has rings elsewhere, and nothing is left in flight. */
static bool survives_reset(struct scene *scene)
{
    struct front_end *front = scene->front;
    if (front_reset(front) != 0)
        return scene_fail(scene, "%s", front->error);
    for (unsigned i = 0; i < front->ring_count; i++) {
        const struct ring old = front->rings[i];
        ring_fini(&front->rings[i]);
        if (ring_init(&front->rings[i], &front->memory, i, i, old.size, old.packed, old.event_idx) != 0)
            return scene_fail(scene, "a ring: %s", strerror(errno));
    }
    if (front->inflight_fd >= 0)
        close(front->inflight_fd);
    front->inflight_fd = -1;
    return (front_start(front) == 0 || scene_fail(scene, "after a reset: %s", front->error)) && all_rings_work(scene);
}

static bool survives_reconnect(struct scene *scene)
{
    if (!submit_two(scene))
        return false;
    if (front_reconnect(scene->front, FRONT_TIMEOUT_MS) != 0)
        return scene_fail(scene, "connecting again: %s", scene->front->error);
    return reap_two(scene, "a reconnect") && all_rings_work(scene);
}

static bool live(struct scene *scene, const char *name)
{
    const struct vmm *vmm = vmm_find(name);
    const struct front_options options = {.vmm = vmm};
    for (unsigned lives = 0; lives < 2; lives++) {
        if (!scene_started_with(scene, &options) || !has_what_it_needs(scene, vmm) || !all_rings_work(scene) ||
            !config_is_the_same(scene))
            return false;
        if (vmm->pauses && !survives_pause(scene))
            return false;
        for (unsigned i = 0; vmm->resets && i < 2; i++)
            if (!survives_reset(scene))
                return false;
        if (vmm->reconnects && !survives_reconnect(scene))
            return false;
    }
    return true;
}

static bool like_qemu(struct scene *scene)
{
    return live(scene, "qemu");
}

static bool like_cloud_hypervisor(struct scene *scene)
{
    return live(scene, "cloud-hypervisor");
}

static bool like_firecracker(struct scene *scene)
{
    return live(scene, "firecracker");
}

static bool like_firecracker_unsafe(struct scene *scene)
{
    return live(scene, "firecracker-unsafe");
}

static bool like_crosvm(struct scene *scene)
{
    return live(scene, "crosvm");
}

const struct conform_case conform_vmms[] = {{"like-qemu", like_qemu},
                                            {"like-cloud-hypervisor", like_cloud_hypervisor},
                                            {"like-firecracker", like_firecracker},
                                            {"like-firecracker-unsafe", like_firecracker_unsafe},
                                            {"like-crosvm", like_crosvm},
                                            {0}};
