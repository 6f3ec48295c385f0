/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A session of vhost-user, with its export on a real reactor, over a node that answers when the test says so; the guest's
 * rings are those of ring_driver.c. One front-end is connected and ring 0 runs when a test begins.
 */
#ifndef TESTS_UNIT_VHOST_SCENE_H
#define TESTS_UNIT_VHOST_SCENE_H

#include "export/vhost_user/message.h"
#include "export/vhost_user/server.h"
#include "export/vhost_user/virtqueue.h"
#include "io/ring.h"
#include "ring_driver.h"

enum {
    MEMORY_BYTES = 1 << 20,
    QUEUE_SIZE = 2048,
    DATA_AT = 0x40000,
    OTHER_DATA_AT = 0x50000,
    OTHER_SECTOR = 8,
    INFLIGHT_BYTES = 1 << 17
};
#define USER_ADDRESS UINT64_C(0x7f0000000000)

extern const struct driver_place scene_ring_place;

struct scene {
    struct io *io;
    bool beside; /* on the reactor of another scene */
    struct node node;
    struct list held; /* requests that the node keeps */
    unsigned held_count;
    struct vhost_export *export;
    bool started, ended;
    char folder[32], socket[64];
    int fd, memory_fd, inflight_fd, kick, call, new_call; /* inflight_fd: -1: there is none */
    char *memory;
    struct driver driver;
    struct io_timer timer, tick;
    uint64_t until_ns;
    unsigned looks;
    uint64_t seen, most; /* requests: up to the last tick; in one of them */
    bool (*reached)(struct scene *scene);
};

/* All requests that the node keeps are done. */
void scene_let_go(struct scene *scene);
/* Until that, or for so long. */
void scene_run(struct scene *scene, bool (*reached)(struct scene *scene), uint64_t for_ns);
/* Fails after a while. */
void scene_run_until(struct scene *scene, bool (*reached)(struct scene *scene));
/* Long enough for whatever would come. */
void scene_run_on(struct scene *scene);
bool scene_has_answer(struct scene *scene);
bool scene_holds_one(struct scene *scene);
bool scene_holds_all(struct scene *scene);
bool scene_is_ended(struct scene *scene);
void scene_ended(void *argument); /* for vhost_export_end() */
/* A message; its answer; both, for one that must be acknowledged. fd: -1: none. */
void scene_tell(struct scene *scene, enum vhost_request_id id, const void *payload, uint32_t size, int fd);
void scene_answer(struct scene *scene, enum vhost_request_id id, void *payload, uint32_t size);
void scene_ask(struct scene *scene, enum vhost_request_id id, const void *payload, uint32_t size, int fd);
void scene_connect(struct scene *scene);
void scene_start_ring(struct scene *scene); /* as scene->driver has it: split or packed */
/* A write of a sector in ring 0; and until it has arrived at the node, where it stays. */
void scene_add_write(struct scene *scene);
void scene_write_sector(struct scene *scene);
/* ... and has been returned as it should. */
bool scene_request_is_returned(struct scene *scene);

int scene_begin(void **state);
/* Another disk on the reactor of `first`; ends before that. NULL: it could not be made. */
struct scene *scene_begin_beside(struct scene *first);
int scene_end(void **state);

#endif
