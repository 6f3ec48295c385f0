/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The file driver: a raw image or a block device as the leaf of a disk.
 *
 *   file.c           opening; where a request goes and how it ends
 *   file_lock.c      locks against other programs, and against what a killed daemon still has under way
 *   file_order.c     which writes must wait for which
 *   file_transfer.c  reads and writes of data, of any alignment
 *   file_zero.c      write zeroes, discard
 *   file_status.c    block status
 *   file_grow.c      a larger size while it is used
 *
 * Reads and block status start at once. Writes of all kinds pass file_order.c first, so that a read-modify-write never
 * undoes another write. A request that needs a bounce buffer may wait for one; it holds its place in the order then, and
 * those who have a buffer wait for nobody, so all of them go on.
 *
 * A request moves through the phases of enum file_phase by the table below.
 *
 * Failures are the request's own and end it with -errno; what part of a failed write landed is unknown, as with any
 * disk. A failed sync is different: the kernel may have dropped what it could not write and say success the next time.
 * So it is never retried, and every later flush fails: what is lost stays said (R6). The same holds for a failed FUA
 * write through the page cache.
 */
#include "driver/file.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "base/probe.h"
#include "driver/file_internal.h"

#define ZFS_MAGIC 0x2fc12fc1 /* which the kernel's headers lack */

#define PAGE_BYTES 4096u

#define TO(phase) (1u << (phase))
static const uint32_t allowed_moves[] = {
    [FILE_BEGIN] = TO(FILE_STRAIGHT) | TO(FILE_READ) | TO(FILE_READ_HEAD) | TO(FILE_READ_TAIL) | TO(FILE_WRITE) |
                   TO(FILE_PUNCH) | TO(FILE_ZERO_RANGE) | TO(FILE_ZERO_DATA) | TO(FILE_DISCARD) | TO(FILE_SYNC) |
                   TO(FILE_STATUS) | TO(FILE_END),
    [FILE_STRAIGHT] = TO(FILE_READ) | TO(FILE_READ_HEAD) | TO(FILE_READ_TAIL) | TO(FILE_WRITE) | TO(FILE_END),
    [FILE_READ] = TO(FILE_END),
    [FILE_READ_HEAD] = TO(FILE_READ_TAIL) | TO(FILE_WRITE) | TO(FILE_END),
    [FILE_READ_TAIL] = TO(FILE_WRITE) | TO(FILE_END),
    /* after the first edge of zeroes comes the second */
    [FILE_WRITE] = TO(FILE_READ_HEAD) | TO(FILE_READ_TAIL) | TO(FILE_WRITE) | TO(FILE_SYNC) | TO(FILE_END),
    [FILE_PUNCH] = TO(FILE_ZERO_RANGE) | TO(FILE_ZERO_DATA) | TO(FILE_READ_HEAD) | TO(FILE_READ_TAIL) | TO(FILE_WRITE) |
                   TO(FILE_SYNC) | TO(FILE_END),
    [FILE_ZERO_RANGE] = TO(FILE_ZERO_DATA) | TO(FILE_READ_HEAD) | TO(FILE_READ_TAIL) | TO(FILE_WRITE) | TO(FILE_SYNC) |
                        TO(FILE_END),
    [FILE_ZERO_DATA] = TO(FILE_READ_HEAD) | TO(FILE_READ_TAIL) | TO(FILE_WRITE) | TO(FILE_SYNC) | TO(FILE_END),
    [FILE_DISCARD] = TO(FILE_SYNC) | TO(FILE_END),
    [FILE_SYNC] = TO(FILE_END),
    [FILE_STATUS] = TO(FILE_END),
    [FILE_END] = 0,
};

void file_move(struct file_op *op, enum file_phase phase)
{
    assert(allowed_moves[op->phase] & TO(phase));
    op->phase = (uint8_t)phase;
}

bool file_retry(struct file_op *op, int64_t result)
{
    return (result == -EINTR || result == -EAGAIN) && op->retries++ < LIMIT_DISK_RETRIES;
}

void file_finish(struct request *req, int status)
{
    struct file_op *op = file_op_of(req);
    bool ordered = list_linked(&req->link);
    file_move(op, FILE_END);
    /* A failed write through the page cache that was to be stable has taken the report of other writes' loss away. */
    if (status == -EIO && (req->flags & REQUEST_FUA) && range_end(req->range) > op->file->cached_start)
        op->file->sync_failed = true;
    if (op->bounce)
        file_bounce_release(op);
    if (ordered)
        file_order_leave(req);
    request_complete(req, status);
}

static void sync_done(struct io_op *io_op, int64_t result);

static void start_sync(struct request *req)
{
    struct file_op *op = file_op_of(req);
    file_move(op, FILE_SYNC);
    if (op->file->sync_failed) {
        PROBE(file_sync_failed_before);
        file_finish(req, -EIO);
        return;
    }
    req->op.done = sync_done;
    io_datasync(op->file->node.io, &req->op, op->file->fd);
}

static void sync_done(struct io_op *io_op, int64_t result)
{
    struct request *req = container_of(io_op, struct request, op);
    struct file_node *file = file_op_of(req)->file;
    if (result < 0) {
        PROBE(file_sync_failed);
        file->sync_failed = !MUTANT(file_sync_failure_forgotten);
    } else if (file->sync_failed) {
        result = -EIO; /* began before the failure of another one was known: it may have hidden the same loss */
    }
    file_finish(req, (int)result);
}

void file_finish_synced(struct request *req)
{
    if ((req->flags & REQUEST_FUA) && !MUTANT(file_fua_zeroes_not_synced))
        start_sync(req);
    else
        file_finish(req, 0);
}

void file_start_write(struct request *req)
{
    if (req->kind == REQUEST_WRITE) {
        file_start_transfer(req);
    } else if (req->kind == REQUEST_WRITE_ZEROES) {
        file_start_zeroes(req);
    } else {
        assert(req->kind == REQUEST_DISCARD);
        file_start_discard(req);
    }
}

/* Where the data of a growing file ends once the range has been written: to the end of its last block. */
static uint64_t file_end_with(const struct file_node *file, struct range range)
{
    uint64_t end = range_end(file_touched(file, range));
    return end > file->node.end_bytes ? end : file->node.end_bytes;
}

static void file_submit(struct node *node, struct request *req)
{
    struct file_node *file = (struct file_node *)(void *)node; /* node is its first member */
    struct file_op *op = file_op_of(req);
    *op = (struct file_op){.file = file, .phase = FILE_BEGIN};
    if (node->growable && request_is_write(req) && req->kind != REQUEST_DISCARD)
        node->end_bytes = file_end_with(file, req->range);
    switch (req->kind) {
    case REQUEST_READ:
        file_start_transfer(req);
        break;
    case REQUEST_WRITE:
    case REQUEST_WRITE_ZEROES:
        file_order_enter(req, file_has_edges(file, req->range));
        break;
    case REQUEST_DISCARD:
        file_order_enter(req, false);
        break;
    case REQUEST_FLUSH:
        start_sync(req);
        break;
    case REQUEST_BLOCK_STATUS:
        file_start_status(req);
        break;
    }
}

static void file_free(struct file_node *file)
{
    if (file->tail_fd >= 0)
        io_close(file->node.io, file->tail_fd);
    if (file->fd >= 0)
        io_close(file->node.io, file->fd);
    bounce_pool_fini(&file->bounce);
    free(file->zeroes);
    free(file);
}

static void file_destroy(struct node *node)
{
    struct file_node *file = (struct file_node *)(void *)node;
    assert(list_empty(&file->writes) && file->writes_exclusive == 0 && file->writes_waiting == 0);
    file_free(file);
}

static const struct node_ops file_ops = {
    .driver = "file", .submit = file_submit, .destroy = file_destroy, .extend = file_extend, .grow = file_grow};

/* Opening. */

static int open_failed(const struct file_options *options, int code, struct error *err)
{
    const char *path = options->path;
    switch (-code) {
    case ENOENT:
        return error_set(err, ENOENT, "disk \"%s\": no such file", path);
    case EACCES:
    case EPERM:
    case EROFS:
        return error_set(err, -code, "disk \"%s\" cannot be opened for %s: %s", path,
                         options->read_only ? "reading" : "reading and writing", error_name(code));
    case EEXIST:
        return error_set(err, EEXIST, "file \"%s\" exists already", path);
    case EISDIR:
        return error_set(err, EISDIR, "disk \"%s\" is a directory, not an image file or a block device", path);
    case EBUSY:
        return error_set(err, EBUSY, "disk \"%s\" is in use: the block device is mounted or claimed by another program",
                         path);
    case EINVAL:
        if (!options->page_cache)
            return error_set(err, EINVAL,
                             "disk \"%s\": its file system has no direct I/O, use the page cache (cache=writeback)",
                             path);
        break;
    default:
        break;
    }
    return error_set(err, -code, "disk \"%s\" cannot be opened: %s", path, error_name(code));
}

/* What the path is, without waiting for the other end of a pipe and without locks or claims. */
static int look_at(struct io *io, const struct file_options *options, struct io_stat *stat, struct error *err)
{
    int fd = io_open(io, options->path, O_RDONLY | O_NONBLOCK, 0);
    if (fd < 0)
        return open_failed(options, fd, err);
    int result = io_stat(io, fd, stat);
    if (result < 0)
        result = error_set(err, -result, "disk \"%s\": %s", options->path, error_name(result));
    else if (stat->is_directory)
        result = open_failed(options, -EISDIR, err);
    else if (!stat->is_regular && !stat->is_block_device)
        result = error_set(err, ENOTBLK, "disk \"%s\" is neither an image file nor a block device", options->path);
    else if (stat->is_block_device && !options->read_only)
        result = file_lock_await(io, fd, options, err); /* a dead daemon's claim would refuse the open below */
    io_close(io, fd);
    return result;
}

static int open_main(struct file_node *file, const struct file_options *options, struct io_stat *stat,
                     struct error *err)
{
    struct io *io = file->node.io;
    int flags = (options->read_only ? O_RDONLY : O_RDWR) | (options->page_cache ? 0 : O_DIRECT);
    if (options->adopt) {
        assert(!options->read_only && !options->create);
    } else if (options->create) {
        flags |= O_CREAT | O_EXCL;
    } else {
        int result = look_at(io, options, stat, err);
        if (result < 0)
            return result;
        if (stat->is_block_device && !options->read_only)
            flags |= O_EXCL;
    }
    file->fd = options->adopt ? options->fd : io_open(io, options->path, flags, 0600);
    if (file->fd < 0)
        return open_failed(options, file->fd, err);
    int result = options->create ? io_truncate(io, file->fd, options->size_bytes) : 0;
    if (result < 0)
        return error_set(err, -result, "file \"%s\" cannot be made %llu bytes long: %s", options->path,
                         (unsigned long long)options->size_bytes, error_name(result));
    result = file_lock(io, file->fd, options, 0, err); /* before the size is believed */
    if (result < 0)
        return result;
    result = io_stat(io, file->fd, stat);
    return result < 0 ? error_set(err, -result, "disk \"%s\": %s", options->path, error_name(result)) : 0;
}

static int check_measures(const struct file_options *options, const struct io_stat *stat, struct error *err)
{
    uint32_t alignment = stat->alignment_bytes;
    if (stat->size_bytes == 0 && !options->growable)
        return error_set(err, EINVAL, "disk \"%s\" has size 0", options->path);
    if (stat->size_bytes > LIMIT_DISK_BYTES)
        return error_set(err, EFBIG, "disk \"%s\" has %llu bytes, the limit is %llu", options->path,
                         (unsigned long long)stat->size_bytes, (unsigned long long)LIMIT_DISK_BYTES);
    if (alignment > LIMIT_ALIGNMENT_BYTES || (alignment & (alignment - 1)) != 0)
        return error_set(err, EINVAL,
                         "disk \"%s\" wants direct I/O aligned to %u bytes, the limit is %d: use the page cache "
                         "(cache=writeback)",
                         options->path, alignment, LIMIT_ALIGNMENT_BYTES);
    return 0;
}

/* The path may lead to another file by now: half a disk in each would be neither. */
static int open_same(struct file_node *file, const struct file_options *options, int flags, struct error *err)
{
    struct io *io = file->node.io;
    struct io_stat is, tail;
    file->tail_fd = io_open(io, options->path, flags, 0);
    if (file->tail_fd < 0)
        return open_failed(options, file->tail_fd, err);
    int result = io_stat(io, file->fd, &is);
    if (result == 0)
        result = io_stat(io, file->tail_fd, &tail);
    if (result < 0)
        return error_set(err, -result, "disk \"%s\": %s", options->path, error_name(result));
    if (is.device != tail.device || is.inode != tail.inode)
        return error_set(err, ESTALE, "disk \"%s\" became another file while it was opened", options->path);
    return file_lock(io, file->tail_fd, options, 1, err);
}

static int open_tail(struct file_node *file, const struct file_options *options, struct error *err)
{
    uint64_t size = file->node.size_bytes;
    if (file->node.growable) {
        file->node.end_bytes = size;
        file->node.size_bytes = size = LIMIT_GROWABLE_BYTES;
    }
    file->tail_start = size;
    file->cached_start = options->page_cache ? 0 : size;
    if (size % file->alignment_bytes == 0)
        return 0;
    file->tail_start = file->cached_start = round_down(size, file->space_bytes);
    return open_same(file, options, options->read_only ? O_RDONLY : O_RDWR, err);
}

static int file_init(struct file_node *file, const struct file_options *options, struct error *err)
{
    struct io_stat stat;
    int result = open_main(file, options, &stat, err);
    if (result == 0)
        result = check_measures(options, &stat, err);
    if (result < 0)
        return result;
    file->is_block_device = stat.is_block_device;
    file->alignment_bytes = stat.alignment_bytes;
    file->space_bytes = options->page_cache && stat.is_regular ? 1 : PAGE_BYTES;
    file->node.size_bytes = stat.size_bytes;
    file->node.alignment_bytes = stat.alignment_bytes;
    file->node.read_only = options->read_only;
    file->node.growable = options->growable && stat.is_regular;
    file->node.can_discard = !options->read_only;
    file->node.can_fast_zero = !options->read_only && stat.is_regular;
    for (unsigned i = 0; i < FILE_ZERO_FRAGMENTS; i++)
        file->zero_iov[i] = (struct iovec){file->zeroes, FILE_ZERO_BYTES};
    return open_tail(file, options, err);
}

int file_open(struct io *io, const struct file_options *options, struct node **node, struct error *err)
{
    struct file_node *file = calloc(1, sizeof *file);
    if (!file)
        return error_set(err, ENOMEM, "no memory for disk \"%s\"", options->path);
    file->node.ops = &file_ops;
    file->node.io = io;
    file->fd = file->tail_fd = -1;
    list_init(&file->writes);
    file->zeroes = aligned_alloc(LIMIT_ALIGNMENT_BYTES, FILE_ZERO_BYTES);
    int pool = bounce_pool_init(&file->bounce);
    if (!file->zeroes || pool < 0) {
        free(file->zeroes);
        if (pool == 0)
            bounce_pool_fini(&file->bounce);
        free(file);
        return error_set(err, ENOMEM, "no memory for the buffers of disk \"%s\"", options->path);
    }
    memset(file->zeroes, 0, FILE_ZERO_BYTES);
    int result = file_init(file, options, err);
    if (result < 0) {
        if (options->adopt)
            file->fd = -1;
        file_free(file);
        return result;
    }
    *node = &file->node;
    return 0;
}

int file_stat(const struct node *node, struct io_stat *stat)
{
    const struct file_node *file = container_of(node, struct file_node, node);
    return io_stat(node->io, file->fd, stat);
}

void file_write_apart(struct node *node)
{
    assert(node->ops == &file_ops);
    container_of(node, struct file_node, node)->apart = true;
}

int file_descriptor(const struct node *node)
{
    assert(node->ops == &file_ops);
    return container_of(node, struct file_node, node)->fd;
}

static bool has_local_times(const struct stat *st, const struct statfs *fs)
{
    static const long types[] = {BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, F2FS_SUPER_MAGIC, OVERLAYFS_SUPER_MAGIC,
                                 TMPFS_MAGIC,       XFS_SUPER_MAGIC,  ZFS_MAGIC};
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++)
        if (S_ISREG(st->st_mode) && (unsigned long)fs->f_type == (unsigned long)types[i])
            return true;
    return false;
}

bool file_has_local_times(const char *path)
{
    struct statfs fs;
    struct stat st;
    return path && stat(path, &st) == 0 && statfs(path, &fs) == 0 && has_local_times(&st, &fs);
}

bool file_descriptor_has_local_times(int fd)
{
    struct statfs fs;
    struct stat st;
    return fstat(fd, &st) == 0 && fstatfs(fd, &fs) == 0 && has_local_times(&st, &fs);
}
