/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The reactor of a command that moves data: it runs copies one after another on the calling thread, shows their
 * progress and ends them early for SIGINT and SIGTERM, which are blocked from transfer_open() on and noticed in
 * transfer_copy() and transfer_interrupted().
 */
#ifndef FLEECE_CLI_TRANSFER_H
#define FLEECE_CLI_TRANSFER_H

#include "cli/progress.h"
#include "io/io.h"
#include "job/copy.h"

struct transfer {
    struct io *io;
    bool json;
    /* Also wakes a copy: a descriptor that becomes readable while it runs. `watched` returns false to end the copy. */
    int watch_fd; /* -1: none */
    bool (*watched)(void *context);
    void *watch_context;
    /* Private: */
    int signal_fd;
    bool interrupted;
    struct io_op signal_op, watch_op;
    bool signal_armed, watch_armed, requesting;
    struct io_timer patience;
    struct progress progress;
    struct copy *copy;
    void (*mismatch)(void *context, struct range extent);
    int (*record)(void *context, const struct copy_run *runs, uint64_t count);
    bool (*proved)(void *context, uint64_t extent, uint8_t *hash);
    void *copy_context;      /* of the three */
    struct node *hang_up[2]; /* NBD nodes that may never answer */
    int blocked_fd;          /* the socket that transfer_block() is about; -1: none */
    struct io_op block_op;
    uint64_t data_bytes;
    int status;
    struct error err;
    struct request request; /* of transfer_request() */
    struct node *opened;    /* by transfer_open_qcow2() */
};

int transfer_open(struct transfer *transfer, bool json, struct error *err);
void transfer_close(struct transfer *transfer);

/* Whether SIGINT or SIGTERM came. */
bool transfer_interrupted(struct transfer *transfer);

/* Runs work(argument), which blocks on the socket `fd`, on a helper thread. When a signal comes, or came before and the
 * work lasts longer than is polite, the socket is shut down both ways. */
void transfer_block(struct transfer *transfer, int64_t (*work)(void *argument), void *argument, int fd);

/* Submits a request to a node of this reactor and waits for it; an NBD node that does not answer after an interruption is
 * hung up. 0 or -errno. `req`: what is asked for; afterwards, what was answered. */
int transfer_request(struct transfer *transfer, struct node *node, struct request *req);

/* Opens a qcow2 image to be read, by itself: where it has nothing there are zeroes, whatever it says lies below. */
int transfer_open_qcow2(struct transfer *transfer, const char *path, struct node **image, struct error *err);

/*
 * Runs one copy to its end. Fills in the io, the callbacks and the context; options->mismatch, record and proved get
 * options->context. An NBD source that does not come back after an interruption is hung up. 0, or -errno with the
 * sentence; -ECANCELED when it was interrupted or the watch ended it. *data_bytes: what was not zero.
 */
int transfer_copy(struct transfer *transfer, const char *point, const char *disk, const struct copy_options *options,
                  uint64_t *data_bytes, struct error *err);

#endif
