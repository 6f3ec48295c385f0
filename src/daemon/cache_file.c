/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Making, recognising and removing cache files.
 *
 * A crash at any moment must leave nothing that the next start can't recognise by its header (R7). So a file gets its
 * header first and its name last: it is made without a name (O_TMPFILE), locked, given its header and its size, made
 * durable, and only then linked into the folder. Where a file system has no unnamed files, it begins under a name of its
 * own kind, NAME.new; it is renamed when it is complete. A crash may leave it there empty, or all zeroes: such a file of
 * our own user, without a lock, is the one thing that goes without a header, as nothing can be
 * lost with it.
 *
 * Names are no proof, only a filter. What a left-over is, its header says: magic, sum, version and the VM's name; and the
 * lock says that nobody lives who uses it (C10; the lock is on the description that carries the I/O). Opening a stranger's
 * file must do no harm: no link is followed, no pipe is waited for, nothing is opened for writing.
 */
#include "daemon/cache_file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "base/range.h"
#include "driver/file.h"
#include "fleece/disk_tier.h"

static const char suffix[] = ".fleece-cache", unfinished[] = ".new";

uint64_t cache_file_segment_bytes(uint64_t block_bytes)
{
    return block_bytes > SEGMENT_BYTES_DEFAULT ? block_bytes : SEGMENT_BYTES_DEFAULT;
}

/* --- making */

/* The OFD lock of the driver, which finds it taken by the very description that it adopts. */
static int take_lock(int fd)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = (off_t)FILE_LOCK_BYTE, .l_len = 1};
    return fcntl(fd, F_OFD_SETLK, &lock) < 0 ? -errno : 0;
}

static int open_new(const char *path, int flags)
{
    int fd = open(path, flags | O_RDWR | O_CLOEXEC, 0600);
    return fd < 0 ? -errno : fd;
}

/* How many segments the file has addresses for, with room to grow as far as the file system allows. */
static int set_size(const struct cache_file_plan *plan, int fd, uint64_t *segments)
{
    uint64_t segment_bytes = cache_file_segment_bytes(plan->block_bytes);
    for (uint64_t headroom = CACHE_FILE_HEADROOM; headroom > 0; headroom--) {
        uint64_t bytes = plan->max_bytes * headroom;
        if (bytes > FLEECE_DISK_CACHE_MAX)
            bytes = FLEECE_DISK_CACHE_MAX;
        *segments = (bytes - CACHE_HEADER_BYTES) / (CACHE_HEADER_BYTES + segment_bytes);
        if (ftruncate(fd, (off_t)disk_tier_file_bytes(segment_bytes, *segments)) == 0)
            return 0;
        if (errno != EFBIG)
            break;
    }
    return -errno;
}

static int write_header(const struct cache_file_plan *plan, uint64_t segments, int fd)
{
    struct cache_file_header *header = aligned_alloc(CACHE_HEADER_BYTES, sizeof *header);
    if (!header)
        return -ENOMEM;
    *header = (struct cache_file_header){
        .magic = CACHE_FILE_MAGIC,
        .version = htole32(CACHE_VERSION),
        .header_bytes = htole32((uint32_t)CACHE_HEADER_BYTES),
        .block_bytes = htole32((uint32_t)plan->block_bytes),
        .slots_per_segment = htole32((uint32_t)(cache_file_segment_bytes(plan->block_bytes) / plan->block_bytes)),
        .segments_max = htole32((uint32_t)segments),
        .disk_bytes = htole64(plan->disk_bytes),
        .created_ns = htole64(plan->created_ns),
    };
    memcpy(header->uuid, plan->uuid, sizeof header->uuid);
    memcpy(header->vm, plan->vm, strnlen(plan->vm, sizeof header->vm));
    memcpy(header->disk, plan->disk, strnlen(plan->disk, sizeof header->disk));
    header->crc = htole32(cache_header_crc(header));
    ssize_t written = pwrite(fd, header, sizeof *header, 0);
    int status = written == (ssize_t)sizeof *header ? 0 : written < 0 ? -errno : -ENOSPC;
    free(header);
    return status;
}

/* Gives the file all that makes it one of ours; it has no name yet, or one that says that it is unfinished. */
static int complete(const struct cache_file_plan *plan, struct cache_file *file)
{
    uint64_t segments;
    struct stat st;
    int status = take_lock(file->fd);
    if (status == 0)
        status = set_size(plan, file->fd, &segments);
    if (status == 0)
        status = write_header(plan, segments, file->fd);
    if (status < 0)
        return status;
    if (fdatasync(file->fd) < 0 || fstat(file->fd, &st) < 0)
        return -errno;
    file->device = st.st_dev;
    file->inode = st.st_ino;
    file->can_punch = fallocate(file->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)CACHE_HEADER_BYTES,
                                (off_t)CACHE_HEADER_BYTES) == 0;
    /* At last, and not by open(), which may make a file and then say that there is no direct I/O. */
    file->direct = fcntl(file->fd, F_SETFL, O_DIRECT) == 0;
    return 0;
}

/* The name number `i`; -ENAMETOOLONG. */
static int name_file(const struct cache_file_plan *plan, unsigned i, const char *ending, char *path)
{
    char number[16] = "";
    if (i > 0)
        snprintf(number, sizeof number, "-%u", i);
    int length = snprintf(path, PATH_MAX, "%s/%s.%s%s%s%s", plan->folder, plan->vm, plan->disk, suffix, number, ending);
    return length < PATH_MAX ? 0 : -ENAMETOOLONG;
}

static int try_link(const char *from, const char *path)
{
    return linkat(AT_FDCWD, from, AT_FDCWD, path, AT_SYMLINK_FOLLOW) < 0 ? -errno : 0;
}

/* Where there are no hard links, a rename that replaces nothing. */
static int try_rename(const char *from, const char *path)
{
    int status = renameat2(AT_FDCWD, from, AT_FDCWD, path, RENAME_NOREPLACE) < 0 ? -errno : 0;
    if (status != -EINVAL)
        return status;
    status = try_link(from, path);
    if (status == 0)
        unlink(from);
    return status;
}

/* Gives the complete file the first name that nobody has. */
static int publish(const struct cache_file_plan *plan, const char *from, int (*try)(const char *from, const char *path),
                   struct cache_file *file)
{
    int status = -EEXIST;
    for (unsigned i = 0; i < LIMIT_CACHE_FILE_NAMES && status == -EEXIST; i++) {
        status = name_file(plan, i, "", file->path);
        if (status == 0)
            status = try(from, file->path);
    }
    return status;
}

static int make_unnamed(const struct cache_file_plan *plan, struct cache_file *file)
{
    char self[64];
    file->fd = open_new(plan->folder, O_TMPFILE);
    if (file->fd < 0)
        return file->fd == -EISDIR || file->fd == -ENOENT ? -EOPNOTSUPP
                                                          : file->fd; /* kernels that don't know the flag */
    int status = complete(plan, file);
    snprintf(self, sizeof self, "/proc/self/fd/%d", file->fd);
    if (status == 0)
        status = publish(plan, self, try_link, file);
    if (status < 0)
        close(file->fd);
    return status == -ENOENT || status == -EPERM ? -EOPNOTSUPP : status; /* no /proc; no links */
}

static int make_named(const struct cache_file_plan *plan, struct cache_file *file)
{
    char path[PATH_MAX];
    file->fd = -EEXIST;
    for (unsigned i = 0; i < LIMIT_CACHE_FILE_NAMES && file->fd == -EEXIST; i++) {
        int status = name_file(plan, i, unfinished, path);
        if (status < 0)
            return status;
        file->fd = open_new(path, O_CREAT | O_EXCL | O_NOFOLLOW);
    }
    if (file->fd < 0)
        return file->fd;
    int status = complete(plan, file);
    if (status == 0)
        status = publish(plan, path, try_rename, file);
    if (status < 0) {
        unlink(path);
        close(file->fd);
    }
    return status;
}

int cache_file_make(const struct cache_file_plan *plan, struct cache_file *file, struct error *err)
{
    int status = plan->named_at_once ? -EOPNOTSUPP : make_unnamed(plan, file);
    if (status == -EOPNOTSUPP)
        status = make_named(plan, file);
    if (status == -EEXIST)
        return error_set(err, EEXIST, "no cache file for disk %s in %s: the names %s.%s%s to …-%d are all taken",
                         plan->disk, plan->folder, plan->vm, plan->disk, suffix, LIMIT_CACHE_FILE_NAMES - 1);
    if (status < 0)
        return error_set(err, -status, "no cache file of %llu bytes for disk %s can be made in %s: %s",
                         (unsigned long long)plan->max_bytes, plan->disk, plan->folder, error_name(status));
    return 0;
}

/* --- adopting */

/* Open, with its header in *header. */
static int open_left(const struct cache_file_id *id, struct cache_file *file, struct cache_file_header *header,
                     struct stat *st)
{
    file->fd = open(id->path, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (file->fd < 0)
        return -errno;
    if (fstat(file->fd, st) < 0 || !S_ISREG(st->st_mode) || st->st_dev != id->device || st->st_ino != id->inode)
        return -ESTALE;
    return pread(file->fd, header, sizeof *header, 0) == (ssize_t)sizeof *header ? 0 : -EIO;
}

static int lock_left(const struct cache_file *file, uint64_t patience_ns)
{
    int status;
    while ((status = take_lock(file->fd)) == -EAGAIN && patience_ns >= LOCK_POLL_NS) {
        nanosleep(&(struct timespec){.tv_nsec = (long)LOCK_POLL_NS}, NULL);
        patience_ns -= LOCK_POLL_NS;
    }
    return status;
}

int cache_file_adopt(const struct cache_file_plan *plan, const struct cache_file_id *id, uint64_t patience_ns,
                     struct cache_file *file, struct error *err)
{
    struct cache_file_header header;
    char disk[sizeof header.disk] = "";
    struct stat st;
    int status = open_left(id, file, &header, &st);
    memcpy(disk, plan->disk, strnlen(plan->disk, sizeof disk));
    if (status == 0 &&
        (memcmp(header.magic, CACHE_FILE_MAGIC, CACHE_MAGIC_BYTES) != 0 ||
         header.crc != htole32(cache_header_crc(&header)) || header.version != htole32(CACHE_VERSION) ||
         memcmp(header.uuid, id->uuid, sizeof header.uuid) != 0 || memcmp(header.disk, disk, sizeof disk) != 0))
        status = -EINVAL;
    if (status == 0)
        status = lock_left(file, patience_ns);
    if (status < 0) {
        if (file->fd >= 0)
            close(file->fd);
        return error_set(err, -status, "the cache file %.300s of disk %s: %s", id->path, plan->disk,
                         status == -EINVAL ? "its header is not what it was" : error_name(status));
    }
    memcpy(file->path, id->path, sizeof file->path);
    file->device = st.st_dev;
    file->inode = st.st_ino;
    /* Beyond the end, where nothing is. */
    file->can_punch = fallocate(file->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                (off_t)round_up((uint64_t)st.st_size, CACHE_HEADER_BYTES),
                                (off_t)CACHE_HEADER_BYTES) == 0;
    file->direct = fcntl(file->fd, F_SETFL, O_DIRECT) == 0;
    return 0;
}

/* --- removing */

int cache_file_unlink(const struct cache_file *file)
{
    struct stat st;
    if (lstat(file->path, &st) < 0)
        return errno == ENOENT ? 0 : -errno;
    if (st.st_dev != file->device || st.st_ino != file->inode)
        return 0; /* somebody has put another one there */
    return unlink(file->path) < 0 && errno != ENOENT ? -errno : 0;
}

/* Whether the name could be that of a cache file of the VM: "VM.DISK.fleece-cache", "…-N", "….new". */
static bool name_fits(const char *name, const char *vm)
{
    size_t length = strlen(vm);
    const char *end = NULL;
    if (strncmp(name, vm, length) != 0 || name[length] != '.')
        return false;
    for (const char *next = name + length; (next = strstr(next, suffix)); next++)
        end = next; /* the last: a disk may be called so, too */
    if (!end)
        return false;
    end += sizeof suffix - 1;
    if (*end == '-')
        end += 1 + strspn(end + 1, "0123456789");
    return *end == 0 || strcmp(end, unfinished) == 0;
}

enum kind { STRANGERS, LEFT_OVER, IN_USE };

static bool is_locked(int fd)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = (off_t)FILE_LOCK_BYTE, .l_len = 1};
    return fcntl(fd, F_OFD_GETLK, &lock) < 0 || lock.l_type != F_UNLCK;
}

static bool has_our_header(int fd, const char *vm)
{
    struct cache_file_header header;
    char name[sizeof header.vm] = "";
    memcpy(name, vm, strnlen(vm, sizeof name));
    return pread(fd, &header, sizeof header, 0) == (ssize_t)sizeof header &&
           memcmp(header.magic, CACHE_FILE_MAGIC, CACHE_MAGIC_BYTES) == 0 &&
           header.crc == htole32(cache_header_crc(&header)) && header.version == htole32(CACHE_VERSION) &&
           memcmp(header.vm, name, sizeof name) == 0;
}

/* Ends in ".new", and what has space in it is a block of zeroes at most. */
static bool is_unfinished(int fd, const char *name, const struct stat *st)
{
    static const char zeroes[CACHE_HEADER_BYTES];
    char block[CACHE_HEADER_BYTES];
    size_t length = strlen(name), ending = sizeof unfinished - 1;
    if (st->st_uid != geteuid() || length <= ending || strcmp(name + length - ending, unfinished) != 0 ||
        st->st_blocks * 512 > (blkcnt_t)(2 * sizeof block))
        return false;
    ssize_t bytes = pread(fd, block, sizeof block, 0);
    return bytes >= 0 && memcmp(block, zeroes, (size_t)bytes) == 0 &&
           (st->st_size <= bytes || st->st_blocks * 512 <= (blkcnt_t)sizeof block);
}

/* A left-over's descriptor stays open in *opened. */
static enum kind recognise(int folder, const char *name, const char *vm, int *opened, struct stat *st)
{
    enum kind kind = STRANGERS;
    if (fstatat(folder, name, st, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISREG(st->st_mode))
        return STRANGERS; /* not even opened: a device's open may do something */
    int fd = openat(folder, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return STRANGERS;
    if (fstat(fd, st) == 0 && S_ISREG(st->st_mode) && (has_our_header(fd, vm) || is_unfinished(fd, name, st)))
        kind = is_locked(fd) ? IN_USE : LEFT_OVER;
    if (kind == LEFT_OVER)
        *opened = fd;
    else
        close(fd);
    return kind;
}

/* 0, or -errno: it is not gone. */
static int remove_name(int folder, const char *name, const struct stat *st)
{
    struct stat now;
    if (fstatat(folder, name, &now, AT_SYMLINK_NOFOLLOW) < 0)
        return -errno;
    if (now.st_dev != st->st_dev || now.st_ino != st->st_ino)
        return -ESTALE; /* somebody has put another one there */
    return unlinkat(folder, name, 0) < 0 ? -errno : 0;
}

static bool is_kept(const struct cache_sweep *sweep, int folder, const char *name)
{
    struct stat st;
    if (fstatat(folder, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return false;
    for (unsigned i = 0; i < sweep->kept_count; i++)
        if (sweep->kept[i].device == st.st_dev && sweep->kept[i].inode == st.st_ino)
            return true;
    return false;
}

static void sweep_name(struct cache_sweep *sweep, int folder, const char *folder_name, const char *name)
{
    struct stat st;
    enum kind kind;
    int fd = -1;
    if (is_kept(sweep, folder, name))
        return;
    while ((kind = recognise(folder, name, sweep->vm, &fd, &st)) == IN_USE && sweep->patience_ns >= LOCK_POLL_NS) {
        nanosleep(&(struct timespec){.tv_nsec = (long)LOCK_POLL_NS}, NULL);
        sweep->patience_ns -= LOCK_POLL_NS;
    }
    if (kind == IN_USE)
        log_warning("cache file %s/%s stays: another process uses it", folder_name, name);
    if (kind != LEFT_OVER)
        return;
    int status = remove_name(folder, name, &st);
    if (status < 0)
        log_warning("cache file %s/%s, left behind by a killed daemon, can't be removed: %s", folder_name, name,
                    error_name(status));
    else
        log_info("removed the cache file %s/%s, left behind by a killed daemon", folder_name, name);
    if (status == 0 && sweep->removed_count < LIMIT_DISKS)
        sweep->removed[sweep->removed_count++] = fd;
    else
        close(fd);
}

void cache_file_sweep(struct cache_sweep *sweep, const char *folder)
{
    DIR *dir = opendir(folder);
    if (!dir)
        return; /* whoever needs the folder says so */
    for (const struct dirent *entry; (entry = readdir(dir));)
        if (name_fits(entry->d_name, sweep->vm))
            sweep_name(sweep, dirfd(dir), folder, entry->d_name);
    closedir(dir);
}
