/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "site.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <cmocka.h>

enum { MEMORY_BYTES = 0x10000, LOG_BYTES = 4096, RING = 8 };

void site_started(void *argument, const struct error *err)
{
    struct site *site = argument;
    assert_null(err);
    site->started = true;
}

static void ended(void *argument)
{
    ((struct site *)argument)->ended = true;
}

void site_options(struct site *site, struct stage *stage, const char *where)
{
    *site = (struct site){.stage = stage, .options = {.disk_count = STAGE_DISKS, .vhost_user_count = STAGE_DISKS}};
    for (unsigned i = 0; i < STAGE_DISKS; i++) {
        snprintf(site->options.disks[i].name, sizeof site->options.disks[i].name, "vd%c", 'a' + i);
        snprintf(site->options.vhost_users[i].disk, sizeof site->options.vhost_users[i].disk, "vd%c", 'a' + i);
        snprintf(site->sockets[i], sizeof site->sockets[i], "/%s/vd%c", where, 'a' + i);
        site->options.vhost_users[i].socket = site->sockets[i];
    }
}

static void sent(struct io_op *op, int64_t result)
{
    struct front *front = container_of(op, struct front, send);
    front->sent = true;
    front->closed = front->closed || result <= 0;
}

static void received(struct io_op *op, int64_t result)
{
    struct front *front = container_of(op, struct front, receive);
    front->answered = true;
    front->receiving = false;
    front->closed = front->closed || result <= 0;
}

void front_send(struct site *site, struct front *front, enum vhost_request_id id, const void *payload, uint32_t size,
                int fd, bool has_answer)
{
    front->sent = front->answered = false;
    front->message.header = (struct vhost_header){id, VHOST_VERSION, size};
    if (size > 0)
        memcpy(front->message.payload, payload, size);
    front->out = (struct io_packet){
        .bytes = &front->message, .length = sizeof front->message.header + size, .fds = {fd}, .fd_count = fd >= 0};
    world_act_as(site->stage->world, front->io);
    io_send_packet(front->io, &front->send, front->fd, &front->out);
    front->receiving = has_answer;
    if (has_answer)
        io_recv(front->io, &front->receive, front->fd, &front->answer, sizeof front->answer);
    world_act_as(site->stage->world, NULL);
    STAGE_STEP_UNTIL(site->stage, front->sent);
}

void front_tell(struct site *site, struct front *front, enum vhost_request_id id, const void *payload, uint32_t size,
                int fd)
{
    front_send(site, front, id, payload, size, fd, false);
    assert_false(front->closed);
}

void front_connect(struct site *site, unsigned disk)
{
    struct front *front = &site->fronts[disk];
    char address[40];
    snprintf(address, sizeof address, "unix:%s", site->sockets[disk]);
    world_act_as(site->stage->world, front->io);
    front->fd = world_connect(site->stage->world, address);
    world_act_as(site->stage->world, NULL);
    assert_true(front->fd >= 0);
    front->closed = false;
}

void front_hang_up(struct site *site, struct front *front)
{
    world_act_as(site->stage->world, front->io);
    io_shutdown(front->io, front->fd);
    world_act_as(site->stage->world, NULL);
    STAGE_STEP_UNTIL(site->stage, !front->receiving);
    world_act_as(site->stage->world, front->io);
    io_close(front->io, front->fd);
    world_act_as(site->stage->world, NULL);
    front->fd = -1;
}

void front_set_up(struct site *site, unsigned disk, bool logging)
{
    struct front *front = &site->fronts[disk];
    uint64_t protocol = VHOST_BIT(VHOST_PROTOCOL_LOG_SHMFD);
    struct {
        struct vhost_memory head;
        struct vhost_region region;
    } memory = {{1, 0}, {0, MEMORY_BYTES, 0x7000000, 0}};
    struct vhost_log log = {LOG_BYTES, 0};
    struct vhost_vring_state size = {0, RING}, base = {0, front->next};
    struct vhost_vring_addr addr = {
        .descriptors = 0x7000000, .available = 0x7001000, .used = 0x7002000, .flags = logging ? VHOST_VRING_F_LOG : 0};
    addr.log = logging ? 0x2000 : 0;
    front->features = VHOST_BIT(VIRTIO_F_VERSION_1) | VHOST_BIT(VHOST_F_PROTOCOL_FEATURES) |
                      (logging ? VHOST_BIT(VHOST_F_LOG_ALL) : 0);
    front_tell(site, front, VHOST_SET_PROTOCOL_FEATURES, &protocol, sizeof protocol, -1);
    front_tell(site, front, VHOST_SET_FEATURES, &front->features, sizeof front->features, -1);
    front_tell(site, front, VHOST_SET_MEM_TABLE, &memory, sizeof memory, front->memory_fd);
    if (logging) {
        front_send(site, front, VHOST_SET_LOG_BASE, &log, sizeof log, front->log_fd, true);
        STAGE_STEP_UNTIL(site->stage, front->answered);
    }
    front_tell(site, front, VHOST_SET_VRING_NUM, &size, sizeof size, -1);
    front_tell(site, front, VHOST_SET_VRING_BASE, &base, sizeof base, -1);
    front_tell(site, front, VHOST_SET_VRING_ADDR, &addr, sizeof addr, -1);
}

void front_start(struct site *site, unsigned disk)
{
    uint64_t kick = VHOST_VRING_NO_FD;
    struct vhost_vring_state on = {0, 1};
    front_tell(site, &site->fronts[disk], VHOST_SET_VRING_KICK, &kick, sizeof kick, -1);
    front_tell(site, &site->fronts[disk], VHOST_SET_VRING_ENABLE, &on, sizeof on, -1);
}

void front_stop(struct site *site, unsigned disk)
{
    struct vhost_vring_state state = {0, 0};
    front_send(site, &site->fronts[disk], VHOST_GET_VRING_BASE, &state, sizeof state, -1, true);
}

void front_go_on(struct site *site, unsigned disk)
{
    struct front *front = &site->fronts[disk];
    struct vhost_vring_state base = {0, front->next};
    front_tell(site, front, VHOST_SET_VRING_BASE, &base, sizeof base, -1);
    front_start(site, disk);
}

/* Header, data, status. */
void front_write_blocks(struct site *site, unsigned disk, uint64_t block, unsigned count, uint8_t value)
{
    struct front *front = &site->fronts[disk];
    const uint64_t header[2] = {1, block * (STAGE_BLOCK / 512)};
    const struct {
        uint64_t address;
        uint32_t length;
        uint16_t flags, next;
    } chain[] = {{0x3000, 16, 1, 1}, {0x4000, count * STAGE_BLOCK, 1, 2}, {0x3100, 1, 2, 0}};
    memcpy(front->memory + 0x3000, header, sizeof header);
    memset(front->memory + 0x4000, value, count * STAGE_BLOCK);
    front->memory[0x3100] = 0x55;
    memcpy(front->memory, chain, sizeof chain);
    uint16_t *const available = (uint16_t *)(void *)(front->memory + 0x1000);
    available[2 + front->next % RING] = 0;
    available[1] = ++front->next;
}

void front_write(struct site *site, unsigned disk, uint64_t block, uint8_t value)
{
    front_write_blocks(site, disk, block, 1, value);
}

bool front_has_written(const struct front *front)
{
    return ((const uint16_t *)(const void *)(front->memory + 0x2000))[1] == front->next && front->memory[0x3100] == 0;
}

void front_forget(struct front *front)
{
    ((uint16_t *)(void *)(front->memory + 0x2000))[1] = front->next;
}

void site_fronts(struct site *site, unsigned process)
{
    for (unsigned i = 0; i < STAGE_DISKS; i++) {
        struct front *front = &site->fronts[i];
        *front = (struct front){.send.done = sent, .receive.done = received, .fd = -1};
        front->io = world_reactor(site->stage->world, "vmm", process);
        front->memory_fd = memfd_create("guest", MFD_CLOEXEC);
        front->log_fd = memfd_create("log", MFD_CLOEXEC);
        assert_int_equal(ftruncate(front->memory_fd, MEMORY_BYTES) | ftruncate(front->log_fd, LOG_BYTES), 0);
        front->memory = mmap(NULL, MEMORY_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, front->memory_fd, 0);
        assert_true(front->memory != MAP_FAILED);
        front_connect(site, i);
    }
}

static void site_serve(struct site *site)
{
    struct stage *stage = site->stage;
    world_act_as(stage->world, stage->control);
    vhost_exports_start(&site->exports, stage->control, stage->vm, NULL, &site->options, NULL, site_started, site);
    world_act_as(stage->world, NULL);
    STAGE_STEP_UNTIL(stage, site->started);
}

void site_begin(struct site *site, struct stage *stage, bool migrates)
{
    site_options(site, stage, "here");
    site->migrates = migrates;
    site_serve(site);
    site_fronts(site, SITE_VMM);
    for (unsigned i = 0; i < STAGE_DISKS; i++) {
        front_set_up(site, i, site->migrates);
        front_start(site, i);
    }
    stage_settle(stage);
}

void site_restart(struct site *site)
{
    struct stage *stage = site->stage;
    stage_kill(stage);
    for (unsigned i = 0; i < STAGE_DISKS; i++)
        if (site->fronts[i].fd >= 0)
            front_hang_up(site, &site->fronts[i]);
    stage_restart(stage);
    site->exports = (struct vhost_exports){0};
    site->started = false;
    site_serve(site);
    for (unsigned i = 0; i < STAGE_DISKS; i++) {
        front_forget(&site->fronts[i]);
        front_connect(site, i);
        front_set_up(site, i, site->migrates);
        front_start(site, i);
    }
    stage_settle(stage);
}

void front_free(struct site *site, struct front *front)
{
    if (front->fd >= 0)
        front_hang_up(site, front);
    close(front->memory_fd);
    close(front->log_fd);
    munmap(front->memory, MEMORY_BYTES);
}

void site_stop(struct site *site)
{
    world_act_as(site->stage->world, site->stage->control);
    vhost_exports_stop(&site->exports, ended, site);
    world_act_as(site->stage->world, NULL);
}

void site_end(struct site *site)
{
    for (unsigned i = 0; i < STAGE_DISKS; i++)
        front_free(site, &site->fronts[i]);
    site_stop(site);
    STAGE_STEP_UNTIL(site->stage, site->ended);
    world_kill(site->stage->world, SITE_VMM);
}
