/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The NBD server in the simulated world, with a disk that answers when the test says so, and clients that say anything. */
#ifndef FLEECE_SIM_NBD_SCENE_H
#define FLEECE_SIM_NBD_SCENE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "export/nbd/server.h"
#include "export/nbd/wire.h"
#include "world.h"

enum { DISK_BYTES = 1 << 20, BLOCK = 4096, SEEDS = 300 };

struct disk { /* keeps requests until it is told to let them go */
    struct node node;
    struct list held;
    bool holding;
    unsigned submitted, held_count;
    bool released[DISK_BYTES / BLOCK]; /* of a view: by discards, as a snapshot's */
    unsigned releases;
    uint8_t bytes[DISK_BYTES];
};

struct client {
    struct io *io;
    int fd;
    bool connected, sending, receiving, over;
    uint8_t out[64 << 10], in[64 << 10];
    size_t out_start, out_end, in_end;
    struct iovec iov;
    struct io_op send, receive;
};

struct scene {
    struct world *world;
    struct io *server_io, *disk_io;
    struct nbd_server *server;
    struct disk disk;
    struct client clients[3];
};

/* Answers what it holds, the newest first, and holds no more. */
void disk_let_go(void *argument);
/* Sends what was said and not sent. On the clients' thread (world_act_as). */
void client_send(struct client *client);
/* The same, on any thread. */
void client_send_on(struct scene *scene, struct client *client);
/* Adds bytes to what the client will send. */
void say(struct client *client, const void *bytes, size_t length);
void say_command(struct client *client, enum nbd_command_type type, uint64_t offset, uint32_t length, uint64_t cookie,
                 int fill);
/* Connects; what was said already is sent: the whole handshake first. */
void connect_client(struct scene *scene, struct client *client);
/* For world_run_until(). */
bool client_has_sent(void *argument);
/* Waits until the other end knows. */
void hang_up(struct scene *scene, struct client *client);
/* How many simple replies have come, with their data when they are reads of a block. */
unsigned replies(const struct client *client, bool reads, uint32_t *last_error);
void set_flag(void *argument);
bool flag_is_set(void *argument);
/* Of a group of cmocka's tests, whose state is a scene. */
int scene_set_up(void **state);
int scene_tear_down(void **state);
/* view: the export is the view of a snapshot. Every client has said a plain handshake. */
void scene_begin_view(struct scene *scene, uint64_t seed, bool view, enum read_once read_once);
void scene_begin(struct scene *scene, uint64_t seed);
void scene_end(struct scene *scene);

#endif
