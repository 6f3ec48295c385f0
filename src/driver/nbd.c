/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A node over libnbd's asynchronous calls.
 *
 * libnbd does its own socket calls and is a state machine: nbd_aio_pread() and friends queue a command and send what the
 * socket takes; nbd_aio_notify_read/write() tell it that the socket is ready. So the reactor only watches the socket, one
 * shot at a time and separately for each direction, and only while a command is under way: an idle node has no operation
 * in the ring and can be destroyed at once. A connection that is lost while it is idle is noticed by the next request.
 *
 * One request becomes one command for each piece of memory of at most the server's limit, so that data never passes
 * through a buffer of ours. `pending` counts its commands; the request completes with the last of them, with the first
 * error that came.
 *
 * libnbd holds the handle's lock while it calls back, so a callback may not call libnbd: it only counts, and moves a
 * request whose last command is done to `settled`. Whoever called libnbd then runs nbd_turn(): it completes what has
 * settled (or sends the flush that stands in for FUA at a server without FUA) and watches the socket again.
 *
 * When the connection dies libnbd fails every command with ENOTCONN through its callback; new commands are refused by
 * libnbd, which is the same error here. There is no reconnect: what a snapshot's export was may not be there any more.
 */
#include "driver/nbd.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "driver/nbd_connect.h"

struct nbd_watch { /* one direction of the socket */
    struct nbd_node *nbd;
    struct io_op op;
    bool armed;
};

struct nbd_node {
    struct node node;
    struct nbd_handle *handle;
    struct nbd_watch readable, writable;
    unsigned requests; /* under way */
    struct list settled;
    struct nbd_dirty_maps maps;
    uint64_t piece_bytes; /* longest data of one command */
    bool has_allocation, has_residence, can_zero, can_flush, can_fua;
    bool issuing; /* a command is being handed to libnbd */
    bool doomed;  /* destroyed, but the ring still has a watch */
};

struct nbd_progress { /* lies in the request's leaf_scratch */
    struct nbd_node *nbd;
    unsigned pending; /* commands, and one more while they are being issued */
    int status;
    bool flush_follows;
};
_Static_assert(sizeof(struct nbd_progress) <= sizeof(((struct request *)0)->leaf_scratch), "fits into the request");

static const char zeroes[NBD_ZERO_BYTES]; /* for servers without WRITE_ZEROES */

static struct nbd_progress *progress_of(struct request *req)
{
    return (struct nbd_progress *)(void *)req->leaf_scratch;
}

static struct nbd_node *node_of(struct node *node)
{
    return container_of(node, struct nbd_node, node);
}

/* --- the socket */

static void nbd_turn(struct nbd_node *nbd);

static void nbd_free(struct nbd_node *nbd)
{
    nbd_close(nbd->handle);
    free(nbd);
}

static bool nbd_lost(struct nbd_node *nbd)
{
    return nbd_aio_is_dead(nbd->handle) == 1 || nbd_aio_is_closed(nbd->handle) == 1;
}

static void watch_done(struct io_op *op, int64_t result)
{
    struct nbd_watch *watch = container_of(op, struct nbd_watch, op);
    struct nbd_node *nbd = watch->nbd;
    watch->armed = false;
    if (nbd->doomed) {
        if (!nbd->readable.armed && !nbd->writable.armed)
            nbd_free(nbd);
        return;
    }
    /* Errors and hang-ups are found by the read or write itself. libnbd must hear of nothing that it does not wait for. */
    unsigned direction = result == -ECANCELED ? 0 : nbd_aio_get_direction(nbd->handle);
    if (watch == &nbd->readable && (direction & LIBNBD_AIO_DIRECTION_READ))
        nbd_aio_notify_read(nbd->handle);
    else if (watch == &nbd->writable && (direction & LIBNBD_AIO_DIRECTION_WRITE))
        nbd_aio_notify_write(nbd->handle);
    nbd_turn(nbd);
}

static void watch_arm(struct nbd_watch *watch, int fd, short events)
{
    if (watch->armed)
        return;
    watch->armed = true;
    watch->op.done = watch_done;
    io_poll(watch->nbd->node.io, &watch->op, fd, events);
}

static void watch_disarm(struct nbd_watch *watch)
{
    if (watch->armed)
        io_cancel(watch->nbd->node.io, &watch->op);
}

static void nbd_watch_socket(struct nbd_node *nbd)
{
    if (nbd_lost(nbd)) { /* a watch would keep the socket open */
        watch_disarm(&nbd->readable);
        watch_disarm(&nbd->writable);
        return;
    }
    if (nbd->requests == 0)
        return;
    unsigned direction = nbd_aio_get_direction(nbd->handle);
    int fd = nbd_aio_get_fd(nbd->handle);
    if (direction & LIBNBD_AIO_DIRECTION_READ)
        watch_arm(&nbd->readable, fd, POLLIN);
    if (direction & LIBNBD_AIO_DIRECTION_WRITE)
        watch_arm(&nbd->writable, fd, POLLOUT);
}

/* --- commands */

/* One command less. Called from libnbd's callbacks, too, so it calls nothing of libnbd. */
static void progress_drop(struct request *req, int status)
{
    struct nbd_progress *progress = progress_of(req);
    assert(progress->pending > 0);
    if (progress->status == 0)
        progress->status = status;
    if (--progress->pending == 0)
        list_append(&progress->nbd->settled, &req->link);
}

/* 1 retires the command. Not while it is being issued: when the connection dies just then, libnbd 1.14 still reads the
 * cookie of the command, for its return value, after it has called us. Such a command is freed with the handle. */
static int command_done(void *request, int *error)
{
    const struct nbd_node *nbd = progress_of(request)->nbd;
    progress_drop(request, -*error);
    return nbd->issuing ? 0 : 1;
}

static int extents_arrived(void *request, const char *context, uint64_t offset, uint32_t *entries, size_t entry_count,
                           int *error)
{
    struct request *req = request;
    const char *wanted = NBD_ALLOCATION_CONTEXT;
    uint32_t known = EXTENT_HOLE | EXTENT_ZERO;
    if (req->flags & REQUEST_RESIDENCE) {
        wanted = NBD_RESIDENCE_CONTEXT;
        known = RESIDENCE_ALL;
    } else if (req->flags & REQUEST_DIRTY) {
        wanted = progress_of(req)->nbd->maps.contexts[req->dirty_map];
        known = EXTENT_DIRTY;
    }
    (void)error;
    if (strcmp(context, wanted) != 0 || offset != req->range.start)
        return 0;
    uint64_t left = req->range.length;
    req->extent_count = 0;
    for (size_t i = 0; i + 1 < entry_count && left > 0; i += 2) {
        uint64_t length = entries[i] < left ? entries[i] : left;
        left -= length;
        if (length > 0 && !request_add_extent(req, length, entries[i + 1] & known))
            break;
    }
    return 0;
}

/* Around every call that hands a command to libnbd. */
static void command_begin(struct nbd_node *nbd, struct request *req)
{
    progress_of(req)->pending++;
    nbd->issuing = true;
}

/* Counts a command that was just handed to libnbd, unless it was refused. false: no use to go on. */
static bool command_issued(struct request *req, int64_t cookie)
{
    struct nbd_progress *progress = progress_of(req);
    progress->nbd->issuing = false;
    if (cookie >= 0)
        return true;
    int code = nbd_get_errno();
    progress_drop(req, nbd_lost(progress->nbd) || code == 0 ? -ENOTCONN : -code);
    return false;
}

static bool issue_data(struct nbd_node *nbd, struct request *req, void *memory, uint64_t offset, uint64_t length)
{
    nbd_completion_callback done = {.callback = command_done, .user_data = req};
    uint32_t flags = (req->flags & REQUEST_FUA) && nbd->can_fua ? LIBNBD_CMD_FLAG_FUA : 0;
    command_begin(nbd, req);
    if (req->kind == REQUEST_READ)
        return command_issued(req, nbd_aio_pread(nbd->handle, memory, length, offset, done, 0));
    return command_issued(req, nbd_aio_pwrite(nbd->handle, memory, length, offset, done, flags));
}

static void issue_fragments(struct nbd_node *nbd, struct request *req)
{
    uint64_t offset = req->range.start;
    for (unsigned i = 0; i < req->iov_count; i++) {
        for (size_t at = 0; at < req->iov[i].iov_len;) {
            size_t left = req->iov[i].iov_len - at, length = left < nbd->piece_bytes ? left : nbd->piece_bytes;
            if (!issue_data(nbd, req, (char *)req->iov[i].iov_base + at, offset, length))
                return;
            at += length;
            offset += length;
        }
    }
    assert(offset == range_end(req->range));
}

/* Discards and zeroes: no data on the wire, so only the 32 bits of a length limit a command. */
static void issue_ranges(struct nbd_node *nbd, struct request *req)
{
    nbd_completion_callback done = {.callback = command_done, .user_data = req};
    bool as_data = req->kind == REQUEST_WRITE_ZEROES && !nbd->can_zero;
    uint64_t longest = as_data ? sizeof zeroes : 1 * GIB;
    uint32_t flags = (req->flags & REQUEST_FUA) && nbd->can_fua ? LIBNBD_CMD_FLAG_FUA : 0;
    if (longest > nbd->piece_bytes && as_data)
        longest = nbd->piece_bytes;
    if (req->flags & REQUEST_NO_HOLE)
        flags |= LIBNBD_CMD_FLAG_NO_HOLE;
    if (req->flags & REQUEST_FAST_ZERO)
        flags |= LIBNBD_CMD_FLAG_FAST_ZERO;
    for (uint64_t at = req->range.start; at < range_end(req->range);) {
        uint64_t left = range_end(req->range) - at, length = left < longest ? left : longest;
        int64_t cookie = 0;
        if (as_data) {
            if (!issue_data(nbd, req, (void *)(uintptr_t)zeroes, at, length))
                return;
        } else {
            command_begin(nbd, req);
            if (req->kind == REQUEST_DISCARD)
                cookie = nbd_aio_trim(nbd->handle, length, at, done, flags & LIBNBD_CMD_FLAG_FUA);
            else
                cookie = nbd_aio_zero(nbd->handle, length, at, done, flags);
            if (!command_issued(req, cookie))
                return;
        }
        at += length;
    }
}

static void issue_flush(struct nbd_node *nbd, struct request *req)
{
    nbd_completion_callback done = {.callback = command_done, .user_data = req};
    if (!nbd->can_flush)
        return;
    command_begin(nbd, req);
    command_issued(req, nbd_aio_flush(nbd->handle, done, 0));
}

static void issue_block_status(struct nbd_node *nbd, struct request *req)
{
    assert(req->extents && req->extent_max > 0);
    req->extent_count = 0;
    bool answered = nbd->has_allocation || (req->flags & REQUEST_DIRTY);
    if (req->flags & REQUEST_RESIDENCE)
        answered = nbd->has_residence;
    if (!answered) { /* all may be data, and lie where it always was, for all that the server says */
        req->extents[req->extent_count++] = (struct block_extent){req->range.length, 0};
        return;
    }
    nbd_completion_callback done = {.callback = command_done, .user_data = req};
    nbd_extent_callback extents = {.callback = extents_arrived, .user_data = req};
    uint32_t flags = (req->flags & REQUEST_ONE) || req->extent_max == 1 ? LIBNBD_CMD_FLAG_REQ_ONE : 0;
    uint64_t length = req->range.length < 2 * GIB ? req->range.length : 2 * GIB;
    command_begin(nbd, req);
    command_issued(req, nbd_aio_block_status(nbd->handle, length, req->range.start, extents, done, flags));
}

/* --- requests */

static void nbd_settle(struct nbd_node *nbd, struct request *req)
{
    struct nbd_progress *progress = progress_of(req);
    if (progress->flush_follows && progress->status == 0) {
        progress->flush_follows = false;
        progress->pending = 1;
        issue_flush(nbd, req);
        progress_drop(req, 0);
        return;
    }
    if (req->kind == REQUEST_BLOCK_STATUS && progress->status == 0 && req->extent_count == 0)
        progress->status = -EPROTO; /* the server answered without an extent */
    nbd->requests--;
    request_complete(req, progress->status);
}

/* After every call to libnbd: what it has finished, then what it waits for. */
static void nbd_turn(struct nbd_node *nbd)
{
    struct list_node *link;
    while ((link = list_take_first(&nbd->settled)) != NULL)
        nbd_settle(nbd, container_of(link, struct request, link));
    nbd_watch_socket(nbd);
}

static int refused(const struct nbd_node *nbd, const struct request *req)
{
    if (req->kind == REQUEST_DISCARD && !nbd->node.can_discard)
        return -EOPNOTSUPP;
    if (req->kind == REQUEST_WRITE_ZEROES && (req->flags & REQUEST_FAST_ZERO) && !nbd->node.can_fast_zero)
        return -EOPNOTSUPP;
    return 0;
}

static void nbd_submit(struct node *node, struct request *req)
{
    struct nbd_node *nbd = node_of(node);
    struct nbd_progress *progress = progress_of(req);
    bool wants_flush = request_is_write(req) && (req->flags & REQUEST_FUA) && !nbd->can_fua;
    *progress = (struct nbd_progress){.nbd = nbd, .pending = 1, .flush_follows = wants_flush};
    nbd->requests++;
    progress->status = refused(nbd, req);
    if (progress->status == 0) {
        switch (req->kind) {
        case REQUEST_READ:
        case REQUEST_WRITE:
            issue_fragments(nbd, req);
            break;
        case REQUEST_WRITE_ZEROES:
        case REQUEST_DISCARD:
            issue_ranges(nbd, req);
            break;
        case REQUEST_FLUSH:
            issue_flush(nbd, req);
            break;
        case REQUEST_BLOCK_STATUS:
            issue_block_status(nbd, req);
            break;
        }
    }
    progress_drop(req, 0);
    nbd_turn(nbd);
}

void nbd_node_hang_up(struct node *node)
{
    struct nbd_node *nbd = node_of(node);
    assert(io_on_owner(node->io));
    int fd = nbd_lost(nbd) ? -1 : nbd_aio_get_fd(nbd->handle);
    if (fd >= 0) /* libnbd finds the end of the stream, and a watch wakes up for it */
        shutdown(fd, SHUT_RDWR);
}

static void nbd_destroy(struct node *node)
{
    struct nbd_node *nbd = node_of(node);
    assert(nbd->requests == 0 && !nbd->doomed);
    if (nbd_aio_is_ready(nbd->handle) == 1)
        nbd_aio_disconnect(nbd->handle, 0); /* the polite end; it needs no answer */
    nbd->doomed = true;
    watch_disarm(&nbd->readable);
    watch_disarm(&nbd->writable);
    if (!nbd->readable.armed && !nbd->writable.armed)
        nbd_free(nbd);
}

/* --- open */

/* What a snapshot's export says of itself beyond what every export does. */
static void take_snapshot_facts(struct nbd_node *nbd)
{
    int64_t block_bytes = nbd_get_block_size(nbd->handle, LIBNBD_SIZE_PREFERRED);
    nbd->node.dirty_maps = nbd->maps.names;
    nbd->node.dirty_map_count = nbd->maps.count;
    nbd->has_residence = nbd_can_meta_context(nbd->handle, NBD_RESIDENCE_CONTEXT) == 1;
    if (!nbd->has_residence)
        return;
    if (block_bytes >= (int64_t)BLOCK_BYTES_MIN && block_bytes <= (int64_t)BLOCK_BYTES_MAX)
        nbd->node.block_bytes = (uint32_t)block_bytes;
    nbd->node.can_release = nbd->node.read_only && nbd->node.can_discard;
}

static int take_facts(struct nbd_node *nbd, const char *uri, bool read_only, struct error *err)
{
    struct nbd_handle *handle = nbd->handle;
    int64_t size = nbd_get_size(handle), least = nbd_get_block_size(handle, LIBNBD_SIZE_MINIMUM),
            most = nbd_get_block_size(handle, LIBNBD_SIZE_MAXIMUM);
    if (size < 0 || (uint64_t)size > LIMIT_DISK_BYTES)
        return error_set(err, EFBIG, "NBD export %s has a size of %lld bytes; at most %llu are supported", uri,
                         (long long)size, (unsigned long long)LIMIT_DISK_BYTES);
    if (least > 1)
        return error_set(err, ENOTSUP, "NBD export %s takes requests in units of %lld bytes only; 1 is supported", uri,
                         (long long)least);
    if (!read_only && nbd_is_read_only(handle) == 1)
        return error_set(err, EROFS, "NBD export %s is read-only", uri);
    nbd->piece_bytes = most > 0 && (uint64_t)most < LIMIT_REQUEST_BYTES ? (uint64_t)most : LIMIT_REQUEST_BYTES;
    nbd->has_allocation = nbd_can_meta_context(handle, NBD_ALLOCATION_CONTEXT) == 1;
    nbd->can_zero = nbd_can_zero(handle) == 1;
    nbd->can_flush = nbd_can_flush(handle) == 1;
    nbd->can_fua = nbd_can_fua(handle) == 1;
    nbd->node.size_bytes = (uint64_t)size;
    nbd->node.alignment_bytes = 1;
    nbd->node.read_only = read_only;
    nbd->node.can_discard = nbd_can_trim(handle) == 1;
    nbd->node.can_fast_zero = nbd_can_fast_zero(handle) == 1;
    take_snapshot_facts(nbd);
    return 0;
}

static const struct node_ops nbd_ops = {.driver = "nbd", .submit = nbd_submit, .destroy = nbd_destroy};

static int open_node(struct io *io, const char *uri, bool read_only, bool allocation, const atomic_bool *stop,
                     struct node **node, struct error *err)
{
    struct nbd_node *nbd = calloc(1, sizeof *nbd);
    struct nbd_handle *handle = nbd ? nbd_create() : NULL;
    if (!handle) {
        free(nbd);
        return error_set(err, ENOMEM, "no memory for a connection to NBD export %s", uri);
    }
    nbd->handle = handle;
    nbd->node.ops = &nbd_ops;
    nbd->node.io = io;
    nbd->readable.nbd = nbd->writable.nbd = nbd;
    list_init(&nbd->settled);
    int status = nbd_connect(io, handle, uri, allocation, stop, &nbd->maps, err);
    if (status == 0)
        status = take_facts(nbd, uri, read_only, err);
    if (status < 0) {
        nbd_free(nbd);
        return status;
    }
    *node = &nbd->node;
    return 0;
}

int nbd_node_open(struct io *io, const char *uri, bool read_only, struct node **node, struct error *err)
{
    return open_node(io, uri, read_only, true, NULL, node, err);
}

int nbd_node_open_until(struct io *io, const char *uri, bool read_only, const atomic_bool *stop, struct node **node,
                        struct error *err)
{
    return open_node(io, uri, read_only, true, stop, node, err);
}

int nbd_node_open_records(struct io *io, const char *uri, struct node **node, struct error *err)
{
    int status = open_node(io, uri, true, false, NULL, node, err);
    if (status == 0 && !node_of(*node)->has_residence && (*node)->dirty_map_count == 0) {
        node_destroy(*node);
        *node = NULL;
    }
    return status;
}
