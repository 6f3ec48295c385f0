/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Inside of control/: one connection, and what the server is made of. */
#ifndef FLEECE_CONTROL_CLIENT_H
#define FLEECE_CONTROL_CLIENT_H

#include "control/command.h"
#include "control/message.h"
#include "control/server.h"

struct control_server {
    struct io *io;
    struct control_host host;
    struct list clients;  /* struct control_client */
    struct list requests; /* struct control_request */
    unsigned client_count;
    uint64_t next_lease;
    int listener; /* -1: none */
    bool accepting;
    struct io_op accept;
    struct io_timer accept_retry;
    bool stopping;
    void (*destroyed)(void *argument); /* set: ends as soon as nothing is under way */
    void *destroyed_argument;
    struct io_task finish;
};

struct output { /* bytes in a growing buffer */
    char *bytes;
    size_t used, room;
};

struct control_client {
    struct control_server *server;
    struct list_node link;
    int fd;
    const void *lease; /* names this connection to the VM; never used twice */
    bool negotiated;
    bool finishing;                  /* nothing more is read or executed; hangs up when the output has been sent */
    bool ended;                      /* the peer sent its last byte */
    bool hung_up;                    /* freed as soon as nothing is under way */
    struct control_request *request; /* being executed */
    struct message_reader reader;
    /* The kernel's while `receiving`: the reader's own bytes move when a message is taken out. */
    char input[LIMIT_CONTROL_INPUT_BYTES];
    struct io_op receive, transmit;
    bool receiving, transmitting;
    struct output queued, sending; /* `sending` is with the kernel, from `sent` on */
    size_t sent;
    struct iovec iov;
    struct io_timer deadline; /* negotiation, or the end of finishing */
    struct io_task process;
};

/* Takes over the descriptor, greets and listens to it. With a refusal: says it and hangs up. */
void client_create(struct control_server *server, int fd, const char *refusal);
/* Queues a message; takes over `message`. Events that exceed the limit end the connection. */
void client_send(struct control_client *client, json_t *message, bool is_event);
/* Queues {"error"} for something that was no command. */
void client_send_error(struct control_client *client, const char *class, const char *text);
/* A request of the client was answered. */
void client_answered(struct control_client *client);
/* No more commands; hangs up when the output is sent, in CONTROL_FLUSH_NS at most. */
void client_finish(struct control_client *client);
/* Sends an event to every client that has negotiated; takes over `data` (may be NULL). */
void server_emit(struct control_server *server, const char *event, json_t *data);
/* Looks whether a server that is being destroyed may end. */
void server_check_finished(struct control_server *server);

#endif
