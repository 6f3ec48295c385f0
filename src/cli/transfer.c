/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One copy at a time on a reactor of the calling thread.
 *
 * Signals come in through a descriptor, so that an interruption is an event like any other: the copy is cancelled, and what
 * is under way comes back first. A server that has stopped answering never lets it come back: after TRANSFER_PATIENCE
 * the connection is hung up. Once a signal was noticed the next one ends the process at once, as it does by default: what
 * is left then is recognised and removed by the next backup.
 */
#include "cli/transfer.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "driver/nbd.h"
#include "driver/null.h"
#include "driver/qcow2/qcow2.h"
#include "io/ring.h"
#include "job/image.h"

static void stop_signals(sigset_t *signals)
{
    sigemptyset(signals);
    sigaddset(signals, SIGINT);
    sigaddset(signals, SIGTERM);
}

bool transfer_interrupted(struct transfer *transfer)
{
    struct signalfd_siginfo info;
    sigset_t signals;
    if (transfer->interrupted || read(transfer->signal_fd, &info, sizeof info) != sizeof info)
        return transfer->interrupted;
    transfer->interrupted = true;
    stop_signals(&signals);
    sigprocmask(SIG_UNBLOCK, &signals, NULL);
    return true;
}

/* The node, if it is one that may have to be hung up. */
static struct node *remote(struct node *node)
{
    return node && strcmp(node->ops->driver, "nbd") == 0 ? node : NULL;
}

static void end_copy(struct transfer *transfer)
{
    if (!transfer->copy && !transfer->requesting)
        return;
    if (transfer->copy)
        copy_cancel(transfer->copy);
    if (!io_timer_armed(&transfer->patience))
        io_timer_set(transfer->io, &transfer->patience, io_now_ns(transfer->io) + TRANSFER_PATIENCE_NS);
}

static void patience_over(struct io_timer *timer)
{
    struct transfer *transfer = container_of(timer, struct transfer, patience);
    for (unsigned i = 0; i < 2 && (transfer->copy || transfer->requesting); i++)
        if (transfer->hang_up[i])
            nbd_node_hang_up(transfer->hang_up[i]);
    if (transfer->blocked_fd >= 0)
        shutdown(transfer->blocked_fd, SHUT_RDWR);
}

static void signal_came(struct io_op *op, int64_t result)
{
    struct transfer *transfer = container_of(op, struct transfer, signal_op);
    transfer->signal_armed = false;
    if (result == -ECANCELED || !transfer_interrupted(transfer))
        return;
    end_copy(transfer);
    if (transfer->blocked_fd >= 0)
        shutdown(transfer->blocked_fd, SHUT_RDWR);
}

static void arm_watch(struct transfer *transfer);

static void watch_came(struct io_op *op, int64_t result)
{
    struct transfer *transfer = container_of(op, struct transfer, watch_op);
    transfer->watch_armed = false;
    if (result == -ECANCELED || !transfer->copy)
        return;
    if (transfer->watched(transfer->watch_context))
        arm_watch(transfer);
    else
        end_copy(transfer);
}

static void arm_watch(struct transfer *transfer)
{
    if (transfer->watch_fd < 0 || transfer->watch_armed)
        return;
    transfer->watch_armed = true;
    transfer->watch_op.done = watch_came;
    io_poll(transfer->io, &transfer->watch_op, transfer->watch_fd, POLLIN);
}

static void arm_signal(struct transfer *transfer)
{
    if (transfer->signal_armed || transfer->interrupted)
        return;
    transfer->signal_armed = true;
    transfer->signal_op.done = signal_came;
    io_poll(transfer->io, &transfer->signal_op, transfer->signal_fd, POLLIN);
}

int transfer_open(struct transfer *transfer, bool json, struct error *err)
{
    sigset_t signals;
    memset(transfer, 0, sizeof *transfer);
    transfer->json = json;
    transfer->watch_fd = transfer->blocked_fd = -1;
    stop_signals(&signals);
    sigprocmask(SIG_BLOCK, &signals, NULL); /* before the reactor has threads, which inherit it */
    transfer->signal_fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
    if (transfer->signal_fd < 0)
        return error_set(err, errno, "signals can't be waited for: %s", error_name(errno));
    int status = ring_create(&transfer->io, err);
    if (status < 0)
        close(transfer->signal_fd);
    transfer->patience.fire = patience_over;
    return status;
}

/* The loop has what the nodes and the watches left in it, until nothing more comes. */
static void settled(struct io_timer *timer)
{
    ring_quit(container_of(timer, struct transfer, patience)->io);
}

void transfer_close(struct transfer *transfer)
{
    if (transfer->signal_armed)
        io_cancel(transfer->io, &transfer->signal_op);
    if (transfer->watch_armed)
        io_cancel(transfer->io, &transfer->watch_op);
    transfer->patience.fire = settled;
    io_timer_set(transfer->io, &transfer->patience, io_now_ns(transfer->io) + NS_PER_MS);
    ring_run(transfer->io);
    ring_destroy(transfer->io);
    close(transfer->signal_fd);
}

static void block_done(struct io_op *op, int64_t result)
{
    struct transfer *transfer = container_of(op, struct transfer, block_op);
    (void)result;
    transfer->blocked_fd = -1;
    ring_quit(transfer->io);
}

void transfer_block(struct transfer *transfer, int64_t (*work)(void *argument), void *argument, int fd)
{
    arm_signal(transfer);
    transfer->blocked_fd = fd;
    transfer->block_op.done = block_done;
    if (transfer->interrupted)
        io_timer_set(transfer->io, &transfer->patience, io_now_ns(transfer->io) + TRANSFER_PATIENCE_NS);
    io_work(transfer->io, &transfer->block_op, work, argument);
    ring_run(transfer->io);
    io_timer_cancel(transfer->io, &transfer->patience);
}

static void request_done(struct request *req, int status)
{
    struct transfer *transfer = container_of(req, struct transfer, request);
    transfer->status = status;
    transfer->requesting = false;
    ring_quit(transfer->io);
}

int transfer_request(struct transfer *transfer, struct node *node, struct request *req)
{
    assert(!transfer->copy && !transfer->requesting);
    transfer->request = *req;
    transfer->request.done = request_done;
    transfer->requesting = true;
    transfer->hang_up[0] = remote(node);
    transfer->hang_up[1] = NULL;
    arm_signal(transfer);
    node_submit(node, &transfer->request);
    ring_run(transfer->io);
    io_timer_cancel(transfer->io, &transfer->patience);
    *req = transfer->request;
    return transfer->status;
}

static void qcow2_opened(void *argument, struct node *image, const struct error *err)
{
    struct transfer *transfer = argument;
    transfer->opened = image;
    if (!image)
        transfer->err = *err;
    ring_quit(transfer->io);
}

int transfer_open_qcow2(struct transfer *transfer, const char *path, struct node **image, struct error *err)
{
    struct node *file, *nothing;
    struct qcow2_info info;
    int status = image_open(transfer->io, path, true, &file, err);
    if (status < 0)
        return status;
    if (qcow2_open(file, true, qcow2_opened, transfer) < 0)
        transfer->err.code = 0;
    else
        ring_run(transfer->io);
    if (!transfer->opened) {
        node_destroy(file);
        *err = transfer->err;
        return err->code ? error_prefix(err, "%s", path) : error_set(err, ENOMEM, "no memory to open %s", path);
    }
    qcow2_info(transfer->opened, &info);
    nothing = info.backing_name[0] ? null_create(transfer->io, info.size_bytes) : NULL;
    if (nothing)
        qcow2_backing_set(transfer->opened, nothing);
    *image = transfer->opened;
    transfer->opened = NULL;
    return 0;
}

static void copy_progress(void *context, uint64_t done_bytes, uint64_t total_bytes, uint64_t data_bytes)
{
    struct transfer *transfer = context;
    transfer->data_bytes = data_bytes;
    progress_show(&transfer->progress, io_now_ns(transfer->io), done_bytes, total_bytes, data_bytes);
}

static void copy_mismatch(void *context, struct range extent)
{
    struct transfer *transfer = context;
    transfer->mismatch(transfer->copy_context, extent);
}

static int copy_record(void *context, const struct copy_run *runs, uint64_t count)
{
    struct transfer *transfer = context;
    return transfer->record(transfer->copy_context, runs, count);
}

static bool copy_proved(void *context, uint64_t extent, uint8_t *hash)
{
    struct transfer *transfer = context;
    return transfer->proved(transfer->copy_context, extent, hash);
}

static void copy_done(void *context, int status, const struct error *err)
{
    struct transfer *transfer = context;
    transfer->copy = NULL;
    transfer->status = status;
    transfer->err = *err;
    ring_quit(transfer->io);
}

int transfer_copy(struct transfer *transfer, const char *point, const char *disk, const struct copy_options *options,
                  uint64_t *data_bytes, struct error *err)
{
    struct copy_options own = *options;
    assert(!transfer->copy);
    transfer->mismatch = options->mismatch;
    transfer->copy_context = options->context;
    own.io = transfer->io;
    own.mismatch = options->mismatch ? copy_mismatch : NULL;
    transfer->record = options->record;
    own.record = options->record ? copy_record : NULL;
    transfer->proved = options->proved;
    own.proved = options->proved ? copy_proved : NULL;
    own.progress = copy_progress;
    own.done = copy_done;
    own.context = transfer;
    transfer->hang_up[0] = remote(options->source);
    transfer->hang_up[1] = remote(options->records);
    progress_begin(&transfer->progress, transfer->json, point, disk, io_now_ns(transfer->io));
    transfer->copy = copy_start(&own);
    if (!transfer->copy)
        return error_set(err, ENOMEM, "no memory for the buffers of a copy");
    arm_signal(transfer);
    arm_watch(transfer);
    if (transfer_interrupted(transfer) || (transfer->watch_fd >= 0 && !transfer->watched(transfer->watch_context)))
        end_copy(transfer);
    ring_run(transfer->io);
    io_timer_cancel(transfer->io, &transfer->patience);
    progress_end(&transfer->progress);
    *data_bytes = transfer->data_bytes;
    *err = transfer->err;
    return transfer->status;
}
