/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Shared memory on tmpfs. A store into a page that tmpfs cannot allocate is a SIGBUS, and a kernel read into
 * it EFAULT, so every byte is fallocated before it is touched (C13): a full tmpfs is then an ENOSPC at
 * shm_grow().
 *
 * The file is an O_TMPFILE of /dev/shm, whose size limit is the administrator's say about memory of this
 * kind. Where /dev/shm is missing, is not tmpfs (a container that mounts a disk there) or refuses us, it is a
 * memfd: the same kind of memory, bounded only by what the machine has. The address range is reserved in full
 * at creation, so that nothing ever moves; the file is as long as the range and sparse.
 */
#include "io/shm.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <unistd.h>

static int open_tmpfs_file(void)
{
    int fd = open("/dev/shm", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    struct statfs fs;
    if (fd >= 0 && fstatfs(fd, &fs) == 0 && fs.f_type == TMPFS_MAGIC)
        return fd;
    if (fd >= 0)
        close(fd);
    return memfd_create("fleece", MFD_CLOEXEC);
}

int shm_create(struct io *io, struct io_shm *shm, uint64_t reserve_bytes, struct error *err)
{
    (void)io;
    assert(reserve_bytes > 0);
    int fd = open_tmpfs_file();
    if (fd < 0)
        return error_set(err, errno, "no shared memory, neither in /dev/shm nor by memfd_create: %s",
                         error_name(errno));
    void *base = MAP_FAILED;
    if (ftruncate(fd, (off_t)reserve_bytes) == 0)
        base = mmap(NULL, reserve_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (base == MAP_FAILED) {
        int error = errno;
        close(fd);
        return error_set(err, error, "cannot reserve %llu bytes of shared memory: %s",
                         (unsigned long long)reserve_bytes, error_name(error));
    }
    madvise(base, reserve_bytes, MADV_DONTFORK);
    *shm = (struct io_shm){.base = base, .reserved_bytes = reserve_bytes, .fd = fd};
    return 0;
}

int shm_grow(struct io *io, struct io_shm *shm, struct range range)
{
    (void)io;
    assert(range_within(range, shm->reserved_bytes));
    int result;
    do {
        result = fallocate(shm->fd, 0, (off_t)range.start, (off_t)range.length) == 0 ? 0 : -errno;
    } while (result == -EINTR);
    return result;
}

void shm_populate(struct io *io, struct io_shm *shm, struct range range)
{
    (void)io;
    assert(range_within(range, shm->reserved_bytes));
#ifdef MADV_POPULATE_WRITE /* Linux 5.14; older ones map page by page, when each is touched */
    (void)madvise(shm->base + range.start, range.length, MADV_POPULATE_WRITE);
#endif
}

void shm_punch(struct io *io, struct io_shm *shm, struct range range)
{
    (void)io;
    assert(range_within(range, shm->reserved_bytes));
    /* A punch of tmpfs needs no memory and cannot fail but for a signal. */
    while (fallocate(shm->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)range.start, (off_t)range.length) != 0)
        assert(errno == EINTR);
}

void shm_destroy(struct io *io, struct io_shm *shm)
{
    (void)io;
    munmap(shm->base, shm->reserved_bytes);
    close(shm->fd);
    *shm = (struct io_shm){.fd = -1};
}
