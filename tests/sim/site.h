/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A site: the vhost-user exports of a daemon on the stage, and the VMM of its VM, with a front-end for each disk: a split
 * ring of one queue, without kicks. The exports and their sessions are the real ones.
 */
#ifndef TESTS_SIM_SITE_H
#define TESTS_SIM_SITE_H

#include "daemon/vhost_exports.h"
#include "export/vhost_user/wire.h"
#include "stage.h"

enum { SITE_VMM = 100 /* its process */ };

struct front { /* of one disk: a split ring of one queue, at 0x0, 0x1000 and 0x2000; data from 0x3000 on */
    struct io *io;
    int fd, memory_fd, log_fd;
    char *memory;
    uint64_t features;
    uint16_t next; /* of what was made available */
    struct io_op send, receive;
    bool sent, receiving, answered, closed;
    struct {
        struct vhost_header header;
        uint8_t payload[64];
    } message, answer;
    struct io_packet out;
};

struct site { /* a daemon and the VMM of its VM */
    struct stage *stage;
    struct options options;
    struct vhost_exports exports;
    struct front fronts[STAGE_DISKS];
    char sockets[STAGE_DISKS][32];
    bool migrates, started, ended;
};

/* The disks of the stage at sockets in that folder; nobody serves them yet. */
void site_options(struct site *site, struct stage *stage, const char *where);
/* A VM with two disks that run; with a migration's log, or without. */
void site_begin(struct site *site, struct stage *stage, bool migrates);
/* The daemon is killed; another one serves its disks to the same VMM, as before. */
void site_restart(struct site *site);
/* The exports are told to end; site->ended. And: fronts, exports and VMM have ended. */
void site_stop(struct site *site);
void site_end(struct site *site);
/* For vhost_exports_start(): site->started. */
void site_started(void *argument, const struct error *err);
/* Front-ends in a process of their own, connected; and what one of them has, hung up on. */
void site_fronts(struct site *site, unsigned process);
void front_free(struct site *site, struct front *front);

void front_connect(struct site *site, unsigned disk);
void front_hang_up(struct site *site, struct front *front);
/* A message that has an answer or not: front->answered. And one that has none, and is sent. */
void front_send(struct site *site, struct front *front, enum vhost_request_id id, const void *payload, uint32_t size,
                int fd, bool has_answer);
void front_tell(struct site *site, struct front *front, enum vhost_request_id id, const void *payload, uint32_t size,
                int fd);
/* All up to a ring that only has to be started. */
void front_set_up(struct site *site, unsigned disk, bool logging);
void front_start(struct site *site, unsigned disk);
/* Asks; front->answered says when it has stopped. And the same ring once more. */
void front_stop(struct site *site, unsigned disk);
void front_go_on(struct site *site, unsigned disk);
/* Blocks by the ring, one write at a time. */
void front_write(struct site *site, unsigned disk, uint64_t block, uint8_t value);
void front_write_blocks(struct site *site, unsigned disk, uint64_t block, unsigned count, uint8_t value);
bool front_has_written(const struct front *front);
/* The guest begins anew, and waits for nothing that it had asked for. */
void front_forget(struct front *front);

#endif
