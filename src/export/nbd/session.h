/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One connection in the transmission phase, on the reactor of its export's node: what session.c (receiving, life),
 * request.c and block_status.c (objects, commands without data), transfer.c (reads and writes) and reply.c (sending)
 * share. Everybody else uses the first three functions only.
 */
#ifndef FLEECE_EXPORT_NBD_SESSION_H
#define FLEECE_EXPORT_NBD_SESSION_H

#include "block/node.h"
#include "export/nbd/command.h"
#include "export/nbd/home.h"
#include "export/nbd/options.h"
#include "export/nbd/read_once.h"

enum nbd_session_state {
    NBD_SESSION_ARRIVING, /* waits for what earlier clients left behind (C14) */
    NBD_SESSION_SERVING,
    NBD_SESSION_SHUTTING, /* the export goes: new commands are answered ESHUTDOWN */
    NBD_SESSION_DRAINING, /* no more commands; what is under way is answered */
    NBD_SESSION_CLOSED,   /* nothing is sent any more; waits for operations and requests under way */
};

struct nbd_request { /* one command, or one piece of a large one; between two uses it is all zeroes */
    struct request block;
    struct list_node link; /* in a send queue, or spare */
    struct nbd_session *session;
    struct nbd_command command; /* of the client: the same in all pieces */
    struct nbd_request *whole;  /* for a piece: the command that it belongs to */
    /* BLOCK_STATUS: the context that is asked for, those after it, and the bytes of the reply so far. */
    unsigned context;
    uint32_t contexts_left, told;
    uint64_t released_bytes; /* ... that the reply calls released, from its beginning */
    unsigned pieces;         /* for a command in pieces: those under way */
    bool issued;             /* ... and no further one will come */
    struct nbd_refusal refusal;
    struct nbd_buffer buffer;
    struct iovec iov; /* the payload, in the buffer */
    uint8_t header[32];
    uint32_t header_length; /* 0: no header of its own */
    const void *payload;    /* to send behind it: in the buffer, or the text of a refusal */
    uint32_t payload_length;
};

struct nbd_session {
    struct io *io;
    struct nbd_home *home;
    int fd;
    enum nbd_session_state state;
    struct nbd_terms terms;
    struct list_node home_link, reactor_link, gate_link; /* gate: waiting or leaving */
    uint64_t gate;                                       /* departures to wait for; or the number of its own */
    bool admitted, half_closed, departed, settled;
    bool goodbye;                    /* DISC came when every reply had left */
    struct nbd_read_once *read_once; /* what its client has been sent; NULL: nothing is released for that */

    struct io_message arrive;
    struct io_op barrier, hangup;
    bool barrier_armed, hangup_armed;
    struct io_timer deadline;
    struct io_task work;

    struct nbd_window window;
    unsigned request_count; /* objects out: until their replies are sent */
    unsigned submitted;     /* of these, in the node */

    /* Receiving: input[start, end) is not understood yet. */
    struct io_op receive;
    bool receiving, receiving_payload, input_ended, input_was_full;
    bool active; /* since the last sweep */
    uint8_t *input;
    uint32_t input_size, input_start, input_end;
    struct nbd_buffer input_busy;

    /* The READ or WRITE being cut up or filled; parsing goes on behind it. */
    bool transferring;
    bool discarding; /* WRITE: its payload is thrown away; the answer is ready in `whole` */
    bool streaming;  /* READ: the reply is one run of bytes, sent piece by piece with nothing between */
    struct nbd_command transfer;
    uint32_t transfer_left;    /* bytes not in a piece yet */
    struct nbd_request *whole; /* NULL: not cut up (yet) */
    struct nbd_request *fill;  /* WRITE: the piece being received */
    uint32_t filled;

    /* Sending. */
    struct list replies; /* in order; the first ones may be under way */
    struct io_op send;
    struct io_task send_task;
    bool sending, send_moved; /* moved: since the last sweep */
    bool stalled;             /* the client takes nothing: nothing more is begun for it */
    struct list unread;       /* READs whose data was given up while it stalled, to be read again */
    uint32_t sent;            /* bytes of the first reply that are out already */
    struct iovec few[16];
    struct nbd_buffer many; /* holds more fragments, while sending */

    uint8_t small_input[LIMIT_NBD_INPUT_BYTES];
};

/* Server's thread: a session with `unread` bytes that came behind the handshake. NULL: no memory. */
struct nbd_session *nbd_session_create(struct nbd_home *home, int fd, const struct nbd_terms *terms, const void *unread,
                                       size_t unread_length);
/* Server's thread: hands it to the reactor of its export; it frees itself. */
void nbd_session_start(struct nbd_session *session);
/* Owner thread, as all below: the export goes. */
void nbd_session_shut(struct nbd_session *session);

/* For home.c: it may begin. */
void nbd_session_begin(struct nbd_session *session);
/* For home.c, once in a while: looks for buffers that the session does not need any more. */
void nbd_session_sweep(struct nbd_session *session);

/* Between the files of the session: */
/* The connection is of no use any more; drops everything that is not under way. */
void nbd_session_close(struct nbd_session *session);
/* Something was freed or has become possible: goes on with the input at the end of the tick. */
void nbd_session_wake(struct nbd_session *session);
/* A request object, zeroed but for the command; NULL: no room now, something under way will make some. */
struct nbd_request *nbd_request_get(struct nbd_session *session, const struct nbd_command *command);
bool nbd_request_get_buffer(struct nbd_request *request, uint64_t bytes);
void nbd_request_put_buffer(struct nbd_request *request);
void nbd_request_put(struct nbd_request *request);
/* Submits to the node; done gets the object, never inside the call. */
void nbd_request_submit(struct nbd_request *request, enum request_kind kind, struct range range, uint32_t flags,
                        void (*done)(struct request *block, int status));

/* request.c: a command that was checked and moves no data; false: no room for it now. */
bool nbd_command_submit(struct nbd_request *request);
/* block_status.c: one of these. */
bool nbd_block_status_submit(struct nbd_request *request);

enum nbd_step { NBD_STEP_ON, NBD_STEP_NEEDS_INPUT, NBD_STEP_BLOCKED };

/* transfer.c: begins a READ or WRITE that was checked; `error`: of a WRITE whose payload is to be thrown away. */
void nbd_transfer_begin(struct nbd_session *session, const struct nbd_command *command, struct nbd_request *refusal);
enum nbd_step nbd_transfer_step(struct nbd_session *session);
/* Where the payload may be received without a copy; length 0: nowhere. */
struct iovec nbd_transfer_room(struct nbd_session *session);
void nbd_transfer_received(struct nbd_session *session, uint32_t length);
void nbd_transfer_drop(struct nbd_session *session);
/* The data of a READ that waits to be sent is given up: it joins session->unread. And the first of those is read again. */
void nbd_transfer_give_up(struct nbd_request *request);
enum nbd_step nbd_transfer_read_again(struct nbd_session *session);

/* reply.c: a reply goes out (or nowhere, when closed); the object is put back when it is sent. */
void nbd_reply_init(struct nbd_session *session);
/* Whether the reply to its READ must be one run of bytes. */
bool nbd_reply_is_one_run(const struct nbd_request *request);
/* Without data: success, or the error with its sentence. */
void nbd_reply_status(struct nbd_request *request, struct nbd_refusal refusal);
/* The data of a READ in one piece; offset: of the data. last: no other chunk follows. */
void nbd_reply_data(struct nbd_request *request, uint64_t offset, uint32_t length, bool last);
/* The first piece of a reply that is one run of bytes, `total` in all; and a further one. */
void nbd_reply_stream_first(struct nbd_request *request, uint32_t length, uint32_t total);
void nbd_reply_stream_next(struct nbd_request *request, uint32_t length);
/* A whole reply: `length` bytes of chunks in the buffer. */
void nbd_reply_chunks(struct nbd_request *request, uint32_t length);
void nbd_reply_drop_all(struct nbd_session *session);
/* Once per sweep: a client that takes nothing keeps one reply; the memory of the others goes back. */
void nbd_reply_sweep(struct nbd_session *session);

#endif
