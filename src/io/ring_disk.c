/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Files and block devices. What the ring can do goes through the ring; lseek() and the ioctls of block
 * devices can only block, so they run on the helper threads. Descriptors' file positions are nobody's:
 * lseek() is used for its answer.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/ring_internal.h"

int ring_open(struct io *io, const char *path, int flags, mode_t mode)
{
    (void)io;
    int fd;
    do {
        fd = open(path, flags | O_CLOEXEC, mode);
    } while (fd < 0 && errno == EINTR);
    return fd < 0 ? -errno : fd;
}

/* The kernel says it since 6.1, for most file systems; else the sector size of a device, and a page for
 * files. */
static uint32_t direct_alignment(struct ring *ring, int fd, const struct io_stat *stat)
{
    struct statx said;
    if (!ring->masked && statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &said) == 0 && (said.stx_mask & STATX_DIOALIGN) &&
        said.stx_dio_offset_align) {
        return said.stx_dio_offset_align > said.stx_dio_mem_align ? said.stx_dio_offset_align : said.stx_dio_mem_align;
    }
    int sector_bytes;
    if (stat->is_block_device && ioctl(fd, BLKSSZGET, &sector_bytes) == 0 && sector_bytes > 0)
        return (uint32_t)sector_bytes;
    return 4096;
}

int ring_stat(struct io *io, int fd, struct io_stat *stat)
{
    struct stat st;
    if (fstat(fd, &st) != 0)
        return -errno;
    *stat = (struct io_stat){.size_bytes = (uint64_t)st.st_size,
                             .alignment_bytes = 1,
                             .is_block_device = S_ISBLK(st.st_mode),
                             .is_regular = S_ISREG(st.st_mode),
                             .is_directory = S_ISDIR(st.st_mode),
                             .device = S_ISBLK(st.st_mode) ? st.st_rdev : st.st_dev,
                             .inode = st.st_ino,
                             .mtime_ns = (uint64_t)st.st_mtim.tv_sec * NS_PER_S + (uint64_t)st.st_mtim.tv_nsec,
                             .ctime_ns = (uint64_t)st.st_ctim.tv_sec * NS_PER_S + (uint64_t)st.st_ctim.tv_nsec};
    if (stat->is_block_device && ioctl(fd, BLKGETSIZE64, &stat->size_bytes) != 0)
        return -errno;
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0)
        return -errno;
    if (flags & O_DIRECT)
        stat->alignment_bytes = direct_alignment(ring_of(io), fd, stat);
    return 0;
}

int ring_truncate(struct io *io, int fd, uint64_t size_bytes)
{
    (void)io;
    int result;
    do {
        result = ftruncate(fd, (off_t)size_bytes) == 0 ? 0 : -errno;
    } while (result == -EINTR);
    return result;
}

static struct flock lock_of(uint64_t start, uint64_t length, bool exclusive)
{
    return (struct flock){
        .l_type = exclusive ? F_WRLCK : F_RDLCK, .l_whence = SEEK_SET, .l_start = (off_t)start, .l_len = (off_t)length};
}

int ring_lock(struct io *io, int fd, uint64_t start, uint64_t length, bool exclusive)
{
    (void)io;
    struct flock lock = lock_of(start, length, exclusive);
    if (fcntl(fd, F_OFD_SETLK, &lock) == 0)
        return 0;
    return errno == EACCES ? -EAGAIN : -errno;
}

int ring_lock_test(struct io *io, int fd, uint64_t start, uint64_t length, bool exclusive)
{
    (void)io;
    struct flock lock = lock_of(start, length, exclusive);
    if (fcntl(fd, F_OFD_GETLK, &lock) != 0)
        return -errno;
    return lock.l_type == F_UNLCK ? 0 : -EAGAIN;
}

void ring_readv(struct io *io, struct io_op *op, int fd, const struct iovec *iov, unsigned iov_count, uint64_t offset)
{
    io_uring_prep_readv(ring_begin(ring_of(io), op), fd, iov, iov_count, offset);
}

void ring_writev(struct io *io, struct io_op *op, int fd, const struct iovec *iov, unsigned iov_count, uint64_t offset,
                 unsigned flags)
{
    int kernel_flags = flags & IO_WRITE_DSYNC ? RWF_DSYNC : 0;
    struct io_uring_sqe *sqe = ring_begin(ring_of(io), op);
    io_uring_prep_writev2(sqe, fd, iov, iov_count, offset, kernel_flags);
    if (flags & IO_WRITE_APART)
        sqe->flags |= IOSQE_ASYNC;
}

void ring_datasync(struct io *io, struct io_op *op, int fd)
{
    io_uring_prep_fsync(ring_begin(ring_of(io), op), fd, IORING_FSYNC_DATASYNC);
}

static int64_t work_discard(void *argument)
{
    struct ring_op *mine = argument;
    uint64_t span[2] = {mine->range.start, mine->range.length};
    if (ioctl(mine->fd, BLKDISCARD, span) == 0)
        return 0;
    return errno == ENOTTY ? -EOPNOTSUPP : -errno; /* not a block device */
}

void ring_allocate(struct io *io, struct io_op *op, int fd, enum io_allocate_mode mode, struct range range)
{
    if (mode == IO_DISCARD) {
        struct ring_op *mine = ring_op_of(op);
        mine->fd = fd;
        mine->range = range;
        ring_work(ring_of(io), op, work_discard, mine);
        return;
    }
    int kernel_mode = FALLOC_FL_KEEP_SIZE | (mode == IO_PUNCH_HOLE ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE);
    io_uring_prep_fallocate(ring_begin(ring_of(io), op), fd, kernel_mode, (off_t)range.start, (off_t)range.length);
}

/* Block devices know no holes: lseek() refuses the question, and everything is data. */
static int64_t device_extent(int fd, uint64_t offset, struct io_extent *extent)
{
    if (ioctl(fd, BLKGETSIZE64, &extent->end) != 0)
        return -errno;
    return offset < extent->end ? 0 : -ENXIO;
}

static int64_t work_extent(void *argument)
{
    struct ring_op *mine = argument;
    struct io_extent *extent = mine->extent;
    uint64_t offset = mine->range.start;
    struct stat st;
    if (fstat(mine->fd, &st) != 0)
        return -errno;
    extent->hole = false;
    if (S_ISBLK(st.st_mode))
        return device_extent(mine->fd, offset, extent);
    if (offset >= (uint64_t)st.st_size)
        return -ENXIO;
    extent->end = (uint64_t)st.st_size;
    off_t data = lseek(mine->fd, (off_t)offset, SEEK_DATA);
    if (data < 0 && errno == ENXIO) { /* no data from here to the end */
        extent->hole = true;
        return 0;
    }
    if (data < 0)
        return errno == EINVAL ? 0 : -errno; /* a file system without the notion: all of it is data */
    if ((uint64_t)data > offset) {
        extent->hole = true;
        extent->end = (uint64_t)data;
        return 0;
    }
    off_t hole = lseek(mine->fd, (off_t)offset, SEEK_HOLE);
    if (hole < 0)
        return errno == ENXIO ? 0 : -errno;
    /* Somebody may have punched here between the two questions: then it is a hole, said as data to be safe.
     */
    if ((uint64_t)hole > offset)
        extent->end = (uint64_t)hole;
    return 0;
}

void ring_extent(struct io *io, struct io_op *op, int fd, uint64_t offset, struct io_extent *extent)
{
    struct ring_op *mine = ring_op_of(op);
    mine->fd = fd;
    mine->range = (struct range){offset, 0};
    mine->extent = extent;
    ring_work(ring_of(io), op, work_extent, mine);
}
