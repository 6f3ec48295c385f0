/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "vhost_scene.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* --- the node */

static void hold(struct node *node, struct request *req)
{
    struct scene *scene = container_of(node, struct scene, node);
    list_append(&scene->held, &req->link);
    scene->held_count++;
}

void scene_let_go(struct scene *scene)
{
    while (!list_empty(&scene->held)) {
        struct request *req = container_of(list_take_first(&scene->held), struct request, link);
        scene->held_count--;
        request_complete(req, 0);
    }
}

static const struct node_ops holding_ops = {.driver = "holding", .submit = hold};

/* --- the loop */

enum { LOOKS = 150 }; /* at least, so that a process that was away has its ticks, too */

static void look(struct io_timer *timer)
{
    struct scene *scene = container_of(timer, struct scene, timer);
    scene->looks++;
    const bool over = io_now_ns(scene->io) >= scene->until_ns && (scene->reached || scene->looks >= LOOKS);
    if ((scene->reached && scene->reached(scene)) || over)
        ring_quit(scene->io);
    else
        io_timer_set(scene->io, timer, io_now_ns(scene->io) + 100 * NS_PER_US);
}

void scene_run(struct scene *scene, bool (*reached)(struct scene *scene), uint64_t for_ns)
{
    scene->reached = reached;
    scene->looks = 0;
    scene->until_ns = io_now_ns(scene->io) + for_ns;
    io_timer_set(scene->io, &scene->timer, 0);
    ring_run(scene->io);
}

void scene_run_until(struct scene *scene, bool (*reached)(struct scene *scene))
{
    scene_run(scene, reached, 60 * NS_PER_S);
    assert_true(reached(scene));
}

/* Long enough for whatever would come, in time and in ticks. */
void scene_run_on(struct scene *scene)
{
    scene_run(scene, NULL, 20 * NS_PER_MS);
}

bool scene_has_answer(struct scene *scene)
{
    struct pollfd ready = {.fd = scene->fd, .events = POLLIN};
    return poll(&ready, 1, 0) > 0;
}

bool scene_holds_one(struct scene *scene)
{
    return scene->held_count == 1;
}

bool scene_holds_all(struct scene *scene)
{
    return scene->held_count == LIMIT_VHOST_REQUESTS;
}

static bool is_started(struct scene *scene)
{
    return scene->started;
}

bool scene_is_ended(struct scene *scene)
{
    return scene->ended;
}

/* --- the front-end */

void scene_tell(struct scene *scene, enum vhost_request_id id, const void *payload, uint32_t size, int fd)
{
    struct vhost_header header = {id, VHOST_VERSION | VHOST_NEED_REPLY, size};
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = {{0}};
    struct iovec iov[2] = {{&header, sizeof header}, {(void *)(uintptr_t)payload, size}};
    struct msghdr message = {.msg_iov = iov, .msg_iovlen = 2};
    if (fd >= 0) {
        message.msg_control = control.bytes;
        message.msg_controllen = sizeof control.bytes;
        struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
        *rights = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof fd), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
        memcpy(CMSG_DATA(rights), &fd, sizeof fd);
    }
    assert_int_equal(sendmsg(scene->fd, &message, MSG_NOSIGNAL), sizeof header + size);
}

void scene_answer(struct scene *scene, enum vhost_request_id id, void *payload, uint32_t size)
{
    struct vhost_header header;
    scene_run_until(scene, scene_has_answer);
    assert_int_equal(recv(scene->fd, &header, sizeof header, MSG_WAITALL), sizeof header);
    assert_int_equal(header.request, id);
    assert_int_equal(header.flags, VHOST_VERSION | VHOST_REPLY);
    assert_int_equal(header.size, size);
    assert_int_equal(recv(scene->fd, payload, size, MSG_WAITALL), size);
}

void scene_ask(struct scene *scene, enum vhost_request_id id, const void *payload, uint32_t size, int fd)
{
    uint64_t result = 99;
    scene_tell(scene, id, payload, size, fd);
    scene_answer(scene, id, &result, sizeof result);
    assert_int_equal(result, 0);
}

void scene_connect(struct scene *scene)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path, scene->socket);
    scene->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(scene->fd, (struct sockaddr *)&address, sizeof address), 0);
}

const struct driver_place scene_ring_place = {0, 0x10000, 0x20000};

void scene_start_ring(struct scene *scene)
{
    uint64_t features = VHOST_BIT(VIRTIO_F_VERSION_1) | VHOST_BIT(VIRTIO_BLK_F_FLUSH) |
                        VHOST_BIT(VIRTIO_BLK_F_WRITE_ZEROES) | VHOST_BIT(VHOST_F_PROTOCOL_FEATURES);
    uint64_t protocol = VHOST_BIT(VHOST_PROTOCOL_REPLY_ACK) | VHOST_BIT(VHOST_PROTOCOL_RESET_DEVICE) |
                        VHOST_BIT(VHOST_PROTOCOL_INFLIGHT) | VHOST_BIT(VHOST_PROTOCOL_STATUS);
    struct {
        struct vhost_memory head;
        struct vhost_region region;
    } table = {{1, 0}, {0, MEMORY_BYTES, USER_ADDRESS, 0}};
    struct vhost_inflight inflight = {.size = INFLIGHT_BYTES, .queues = 1, .queue_size = QUEUE_SIZE};
    struct vhost_vring_state size = {0, QUEUE_SIZE}, base = {0, 0}, enable = {0, 1};
    if (scene->driver.packed) {
        features |= VHOST_BIT(VIRTIO_F_RING_PACKED);
        base.num = 0x80008000; /* both wrap bits */
    }
    struct vhost_vring_addr addr = {.descriptors = USER_ADDRESS + scene_ring_place.descriptors,
                                    .available = USER_ADDRESS + scene_ring_place.available,
                                    .used = USER_ADDRESS + scene_ring_place.used};
    uint64_t index = 0;
    scene_ask(scene, VHOST_SET_PROTOCOL_FEATURES, &protocol, sizeof protocol, -1);
    scene_ask(scene, VHOST_SET_FEATURES, &features, sizeof features, -1);
    scene_ask(scene, VHOST_SET_MEM_TABLE, &table, sizeof table, scene->memory_fd);
    if (scene->inflight_fd >= 0)
        scene_ask(scene, VHOST_SET_INFLIGHT_FD, &inflight, sizeof inflight, scene->inflight_fd);
    scene_ask(scene, VHOST_SET_VRING_NUM, &size, sizeof size, -1);
    scene_ask(scene, VHOST_SET_VRING_BASE, &base, sizeof base, -1);
    scene_ask(scene, VHOST_SET_VRING_ADDR, &addr, sizeof addr, -1);
    scene_ask(scene, VHOST_SET_VRING_CALL, &index, sizeof index, scene->call);
    scene_ask(scene, VHOST_SET_VRING_KICK, &index, sizeof index, scene->kick);
    scene_ask(scene, VHOST_SET_VRING_ENABLE, &enable, sizeof enable, -1);
}

void scene_add_write(struct scene *scene)
{
    struct virtio_blk_header *header = (void *)(scene->memory + DATA_AT);
    *header = (struct virtio_blk_header){.type = VIRTIO_BLK_T_OUT, .sector = 3};
    const struct part parts[] = {
        {DATA_AT, sizeof *header, false}, {DATA_AT + 512, 512, false}, {DATA_AT + 1024, 1, true}};
    scene->memory[DATA_AT + 1024] = 77;
    assert_true(driver_add(&scene->driver, parts, 3, 0, 5));
    driver_show(&scene->driver);
    if (driver_must_kick(&scene->driver))
        assert_int_equal(eventfd_write(scene->kick, 1), 0);
}

/* A write of a sector, which arrives at the node and stays there. */
void scene_write_sector(struct scene *scene)
{
    scene_add_write(scene);
    scene_run_until(scene, scene_holds_one);
}

bool scene_request_is_returned(struct scene *scene)
{
    uint32_t cookie, written;
    if (!driver_get(&scene->driver, &cookie, &written))
        return false;
    assert_int_equal(cookie, 5);
    assert_int_equal(written, 1);
    assert_int_equal(scene->memory[DATA_AT + 1024], VIRTIO_BLK_S_OK);
    return true;
}

static void started(void *argument, const struct error *err)
{
    struct scene *scene = argument;
    if (err)
        fail_msg("%s", err->text);
    scene->started = true;
}

void scene_ended(void *argument)
{
    ((struct scene *)argument)->ended = true;
}

static int begin(struct scene *scene)
{
    strcpy(scene->folder, "/tmp/fleece-vhost-XXXXXX");
    if (!mkdtemp(scene->folder))
        return -1;
    snprintf(scene->socket, sizeof scene->socket, "%s/s", scene->folder);
    scene->node = (struct node){.ops = &holding_ops, .io = scene->io, .size_bytes = 1 << 20, .alignment_bytes = 512};
    list_init(&scene->held);
    scene->timer.fire = look;
    scene->memory_fd = memfd_create("guest", MFD_CLOEXEC);
    if (ftruncate(scene->memory_fd, MEMORY_BYTES) != 0)
        return -1;
    scene->memory = mmap(NULL, MEMORY_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, scene->memory_fd, 0);
    scene->kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    scene->call = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    const struct vhost_export_hooks nobody = {0}; /* migrates */
    scene->export = vhost_export_create(scene->io, &scene->node, true, "vda", scene->socket, &nobody);
    vhost_export_start(scene->export, started, scene);
    scene_run_until(scene, is_started);
    scene_connect(scene);
    scene->inflight_fd = -1;
    driver_init(&scene->driver, scene->memory, &scene_ring_place, QUEUE_SIZE, false, false);
    scene_start_ring(scene);
    return 0;
}

int scene_begin(void **state)
{
    struct scene *scene = calloc(1, sizeof *scene);
    struct error err;
    *state = scene;
    return ring_create(&scene->io, &err) < 0 ? -1 : begin(scene);
}

struct scene *scene_begin_beside(struct scene *first)
{
    struct scene *scene = calloc(1, sizeof *scene);
    scene->io = first->io;
    scene->beside = true;
    return begin(scene) < 0 ? NULL : scene;
}

int scene_end(void **state)
{
    struct scene *scene = *state;
    scene_let_go(scene);
    if (!scene->ended) {
        vhost_export_end(scene->export, scene_ended, scene);
        scene_run_until(scene, scene_is_ended);
    }
    if (!scene->beside)
        ring_destroy(scene->io);
    close(scene->fd);
    close(scene->memory_fd);
    close(scene->kick);
    close(scene->call);
    munmap(scene->memory, MEMORY_BYTES);
    rmdir(scene->folder);
    free(scene);
    return 0;
}
