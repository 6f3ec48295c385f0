/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Shared memory on tmpfs. A store into a page that tmpfs cannot allocate is a SIGBUS, and a kernel read into
 * it EFAULT, so every byte is fallocated before it is touched (C13): a full tmpfs is then an ENOSPC at
 * shm_grow().
 *
 * Memory with a name is a file in a folder on tmpfs that is ours alone: what a crash leaves there is adopted by the next
 * daemon of the same boot, under a lock on the very description that is mapped. Memory without a name ends with the process.
 *
 * The latter is an O_TMPFILE of /dev/shm, whose size limit is the administrator's say about memory of this
 * kind. Where /dev/shm is missing, is not tmpfs (a container that mounts a disk there) or refuses us, it is a
 * memfd: the same kind of memory, bounded only by what the machine has. The address range is reserved in full
 * at creation, so that nothing ever moves; the file is as long as the range and sparse.
 */
#include "io/shm.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/limits.h"

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

static int shm_map(struct io_shm *shm, int fd, uint64_t reserve_bytes, struct error *err)
{
    void *base = mmap(NULL, reserve_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
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

static int shm_path(const struct io_shm_name *name, char path[PATH_MAX], struct error *err)
{
    if ((size_t)snprintf(path, PATH_MAX, "%s/%s", name->folder, name->file) < PATH_MAX)
        return 0;
    return error_set(err, ENAMETOOLONG, "the name of the shared memory '%.64s' is too long", name->file);
}

/* Made if it is not there; on tmpfs, a folder and not a link, ours alone. */
static int own_folder(const char *folder, struct error *err)
{
    struct statfs fs;
    struct stat stat;
    if (mkdir(folder, 0700) < 0 && errno != EEXIST)
        return error_set(err, errno, "cannot make '%s': %s", folder, error_name(errno));
    int fd = open(folder, O_DIRECTORY | O_NOFOLLOW | O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return error_set(err, errno, "cannot open '%s': %s", folder, error_name(errno));
    bool ours = fstatfs(fd, &fs) == 0 && fs.f_type == TMPFS_MAGIC && fstat(fd, &stat) == 0 &&
                stat.st_uid == geteuid() && (stat.st_mode & 0077) == 0;
    close(fd);
    return ours ? 0 : error_set(err, ENOTSUP, "'%s' is not a folder on tmpfs that is ours alone", folder);
}

/* A VM's folder lies in one for all VMs of the user, which somebody else could have made before us. */
static int check_folder(const char *folder, struct error *err)
{
    char parent[PATH_MAX];
    const char *slash = strrchr(folder, '/');
    const size_t length = slash ? (size_t)(slash - folder) : 0;
    if (length > 0 && length < sizeof parent) {
        memcpy(parent, folder, length);
        parent[length] = '\0';
        if (strcmp(parent, "/dev/shm") != 0) {
            int status = own_folder(parent, err);
            if (status < 0)
                return status;
        }
    }
    return own_folder(folder, err);
}

/* A folder goes with what was last in it; else it stays. So it may go while somebody else, of another VM even, is about to
 * put something into it: open_named() makes it again. */
static void drop_folder(const char *folder)
{
    char parent[PATH_MAX];
    const char *slash = strrchr(folder, '/');
    if (rmdir(folder) < 0 || !slash || (size_t)(slash - folder) >= sizeof parent)
        return;
    memcpy(parent, folder, (size_t)(slash - folder));
    parent[slash - folder] = '\0';
    if (strcmp(parent, "/dev/shm") != 0)
        (void)rmdir(parent);
}

/* One description at a time has the memory: the lock goes with it, and so with the process. */
static int shm_lock(int fd, const char *path, struct error *err)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    if (fcntl(fd, F_OFD_SETLK, &lock) == 0)
        return 0;
    int code = errno == EACCES ? EAGAIN : errno;
    return error_set(err, code, "'%s' is in use by another process", path);
}

static int make_named(const struct io_shm_name *name, const char *path, struct error *err)
{
    int status = check_folder(name->folder, err);
    if (status < 0)
        return status;
    (void)unlink(path);
    int fd = open(path, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC | O_NOFOLLOW, 0600);
    return fd >= 0 ? fd : error_set(err, errno, "cannot make '%s': %s", path, error_name(errno));
}

static int open_named(const struct io_shm_name *name, struct error *err)
{
    char path[PATH_MAX];
    int status = shm_path(name, path, err);
    if (status < 0)
        return status;
    int fd = make_named(name, path, err);
    for (unsigned tries = 1; fd == -ENOENT && tries < LIMIT_SHM_FOLDER_TRIES; tries++)
        fd = make_named(name, path, err);
    if (fd >= 0 && (status = shm_lock(fd, path, err)) < 0) {
        close(fd);
        return status;
    }
    return fd;
}

int shm_create(struct io *io, struct io_shm *shm, const struct io_shm_name *name, uint64_t reserve_bytes,
               struct error *err)
{
    (void)io;
    assert(reserve_bytes > 0);
    int fd = name ? open_named(name, err) : open_tmpfs_file();
    if (fd < 0)
        return name ? fd
                    : error_set(err, errno, "no shared memory, neither in /dev/shm nor by memfd_create: %s",
                                error_name(errno));
    if (ftruncate(fd, (off_t)reserve_bytes) < 0) {
        int error = errno;
        close(fd);
        return error_set(err, error, "cannot reserve %llu bytes of shared memory: %s",
                         (unsigned long long)reserve_bytes, error_name(error));
    }
    int status = shm_map(shm, fd, reserve_bytes, err);
    if (status < 0 && name)
        shm_remove(io, name);
    return status;
}

int shm_adopt(struct io *io, struct io_shm *shm, const struct io_shm_name *name, struct error *err)
{
    (void)io;
    char path[PATH_MAX];
    struct stat stat;
    int status = shm_path(name, path, err);
    if (status < 0)
        return status;
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return error_set(err, errno, "cannot open '%s': %s", path, error_name(errno));
    if (fstat(fd, &stat) < 0 || !S_ISREG(stat.st_mode) || stat.st_uid != geteuid() || stat.st_size <= 0)
        status = error_set(err, EINVAL, "'%s' is not a file of ours", path);
    else if ((status = check_folder(name->folder, err)) == 0)
        status = shm_lock(fd, path, err);
    if (status == 0)
        return shm_map(shm, fd, (uint64_t)stat.st_size, err);
    close(fd);
    return status;
}

void shm_remove(struct io *io, const struct io_shm_name *name)
{
    (void)io;
    char path[PATH_MAX];
    if (shm_path(name, path, NULL) == 0)
        (void)unlink(path);
    drop_folder(name->folder);
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
