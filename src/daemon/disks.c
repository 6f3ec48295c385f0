/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Disks are opened one after the other, on a helper thread, before anything is served; each may wait for the lock of a
 * killed daemon whose writes are still landing (C10). The first error ends it; what is open by then the daemon closes.
 *
 * While another daemon has the disks, only what a front-end must know before it starts is looked at. What the opened disk
 * then tells holds; a size that has changed meanwhile the guest learns as it learns of any other.
 */
#include "daemon/disks.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "driver/file.h"
#include "driver/null.h"
#include "driver/qcow2/header.h"
#include "job/image_chain.h"

static void say_waiting(void *context, const char *path)
{
    const struct disks *disks = context;
    log_info("waiting up to %g s for the lock on %s", (double)disks->options->lock_wait_ns / (double)NS_PER_S, path);
}

/* What an overlay is on top of may lie anywhere, as in QEMU. */
static int open_qcow2(struct disks *disks, const struct disk_options *disk, struct io *io, struct node **leaf,
                      struct node **file)
{
    const struct image_chain_options options = {
        .io = io,
        .elsewhere = true,
        .path = disk->path,
        .read_only = disk->read_only,
        .page_cache = disk->page_cache,
        .lock_wait_ns = disks->options->lock_wait_ns,
        .waiting = say_waiting,
        .waiting_context = disks,
        .file = file,
    };
    int status = image_chain_open(&options, leaf, &disks->err);
    return status < 0 ? error_prefix(&disks->err, "--disk %s", disk->name) : 0;
}

static int open_disk(struct disks *disks, const struct disk_options *disk, struct io *io, struct node **leaf,
                     struct node **file_node)
{
    if (disk->qcow2)
        return open_qcow2(disks, disk, io, leaf, file_node);
    if (disk->null_driver) {
        *leaf = null_create(io, disk->size_bytes);
        if (!*leaf)
            return error_set(&disks->err, ENOMEM, "--disk %s: no memory", disk->name);
        (*leaf)->read_only = disk->read_only;
        return 0;
    }
    struct file_options options = {
        .path = disk->path,
        .read_only = disk->read_only,
        .page_cache = disk->page_cache,
        .lock_wait_ns = disks->options->lock_wait_ns,
        .waiting = say_waiting,
        .waiting_context = disks,
    };
    int status = file_open(io, &options, leaf, &disks->err);
    *file_node = *leaf;
    return status < 0 ? error_prefix(&disks->err, "--disk %s", disk->name) : 0;
}

/* The kernel's count of all block devices that ever were in this boot, as it was for this one. It stays while it is open. */
static uint64_t device_instance(const char *path)
{
    struct stat st;
    uint64_t number = 0;
    if (!path || stat(path, &st) < 0 || !S_ISBLK(st.st_mode))
        return 0;
    const int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return 0;
    if (ioctl(fd, BLKGETDISKSEQ, &number) < 0) /* before Linux 5.15 */
        number = 0;
    close(fd);
    return number;
}

/* A device's node is made anew at each boot, and its times tell of the node alone. */
struct disk_identity disks_identify(const struct disks *disks, unsigned index)
{
    struct io_stat stat;
    if (!disks->files[index] || file_stat(disks->files[index], &stat) < 0)
        return (struct disk_identity){0};
    struct disk_identity identity = {
        .size_bytes = stat.size_bytes, .device = stat.device, .instance = disks->instances[index]};
    if (stat.is_block_device)
        return identity;
    identity.inode = stat.inode;
    identity.mtime_ns = stat.mtime_ns;
    identity.ctime_ns = stat.ctime_ns;
    identity.local = disks->local[index];
    return identity;
}

/* The head of an image that is no pipe, which would keep us waiting: bytes, or -errno. */
static ssize_t read_head(const char *path, void *bytes, size_t length)
{
    struct stat st;
    const int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    ssize_t got = fstat(fd, &st) < 0 ? -errno : S_ISREG(st.st_mode) || S_ISBLK(st.st_mode) ? 0 : -EINVAL;
    if (got == 0 && (got = pread(fd, bytes, length, 0)) < 0)
        got = -errno;
    close(fd);
    return got;
}

/* The size that the header of a qcow2 image tells; what else it holds is looked at when the image is opened. */
static int look_at_qcow2(struct disks *disks, const struct disk_options *disk, struct node *stand_in)
{
    uint8_t header[QCOW2_SIZE_AT + sizeof(uint64_t)];
    const ssize_t got = read_head(disk->path, header, sizeof header);
    if (got < 0)
        return error_set(&disks->err, (int)-got, "--disk %s: image \"%.300s\" cannot be read: %s", disk->name,
                         disk->path, got == -EINVAL ? "it is neither a file nor a block device" : error_name((int)got));
    if (got < (ssize_t)sizeof header || load_be32(header) != QCOW2_MAGIC)
        return error_set(&disks->err, EINVAL, "--disk %s: \"%.300s\" is no qcow2 image", disk->name, disk->path);
    stand_in->size_bytes = load_be64(header + QCOW2_SIZE_AT);
    stand_in->alignment_bytes = (uint32_t)BLOCK_BYTES_MIN;
    if (stand_in->size_bytes == 0 || stand_in->size_bytes > LIMIT_DISK_BYTES)
        return error_set(&disks->err, EFBIG,
                         "--disk %s: image \"%.300s\": its disk has %llu bytes; 1 to %llu are right", disk->name,
                         disk->path, (unsigned long long)stand_in->size_bytes, (unsigned long long)LIMIT_DISK_BYTES);
    return 0;
}

static int look_at_file(struct disks *disks, const struct disk_options *disk, struct node *stand_in)
{
    const struct file_options options = {
        .path = disk->path, .read_only = true, .page_cache = disk->page_cache, .no_lock = true};
    struct node *file;
    int status = file_open(stand_in->io, &options, &file, &disks->err);
    if (status < 0)
        return error_prefix(&disks->err, "--disk %s", disk->name);
    stand_in->size_bytes = file->size_bytes;
    stand_in->alignment_bytes = file->alignment_bytes;
    node_destroy(file);
    return 0;
}

static bool is_same_file(const struct stat *one, const struct stat *other)
{
    if (S_ISBLK(one->st_mode) && S_ISBLK(other->st_mode))
        return one->st_rdev == other->st_rdev;
    return one->st_dev == other->st_dev && one->st_ino == other->st_ino;
}

/* Two disks on one image would wait for each other's lock; on one block device with two names there is not even that. */
static int check_image_is_its_own(struct disks *disks, unsigned index)
{
    const struct disk_options *disk = &disks->options->disks[index];
    struct stat stat_mine, stat_other;
    if (disk->null_driver || stat(disk->path, &stat_mine) < 0)
        return 0; /* who opens it says why */
    for (unsigned i = 0; i < index; i++) {
        const struct disk_options *other = &disks->options->disks[i];
        if (other->null_driver || (disk->read_only && other->read_only) || stat(other->path, &stat_other) < 0 ||
            !is_same_file(&stat_mine, &stat_other))
            continue;
        return error_set(&disks->err, EINVAL,
                         "--disk %s: \"%.300s\" is the image of disk %s as well; two disks can share one only if "
                         "both are read-only",
                         disk->name, disk->path, other->name);
    }
    return 0;
}

int64_t disks_look(void *argument)
{
    struct disks *disks = argument;
    for (unsigned i = 0; i < disks->options->disk_count; i++) {
        const struct disk_options *disk = &disks->options->disks[i];
        struct node *stand_in = &disks->stand_ins[i];
        *stand_in = (struct node){.io = disks->reactors[i % disks->reactor_count],
                                  .size_bytes = disk->size_bytes,
                                  .alignment_bytes = 1,
                                  .read_only = disk->read_only,
                                  .can_discard = !disk->read_only};
        int status = check_image_is_its_own(disks, i);
        if (status == 0 && disk->qcow2)
            status = look_at_qcow2(disks, disk, stand_in);
        else if (status == 0 && !disk->null_driver)
            status = look_at_file(disks, disk, stand_in);
        if (status < 0)
            return status;
    }
    return 0;
}

int64_t disks_open(void *argument)
{
    struct disks *disks = argument;
    for (unsigned i = 0; i < disks->options->disk_count; i++) {
        int status = check_image_is_its_own(disks, i);
        if (status == 0)
            status = open_disk(disks, &disks->options->disks[i], disks->reactors[i % disks->reactor_count],
                               &disks->leaves[i], &disks->files[i]);
        if (status < 0)
            return status;
        disks->local[i] = file_has_local_times(disks->options->disks[i].path);
        disks->instances[i] = device_instance(disks->options->disks[i].path);
        disks->opened++;
    }
    return 0;
}
