/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Disks are opened one after the other, on a helper thread, before anything is served; each may wait for the lock of a
 * killed daemon whose writes are still landing (C10). The first error ends it; what is open by then the daemon closes.
 */
#include "daemon/disks.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/log.h"
#include "driver/file.h"
#include "driver/null.h"
#include "job/image_chain.h"

#define ZFS_MAGIC 0x2fc12fc1 /* which the kernel's headers lack */

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

/* File systems of this machine alone. On others a server or another machine sets the times, by its own clock. */
static bool has_local_times(const char *path)
{
    static const long types[] = {BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, F2FS_SUPER_MAGIC, OVERLAYFS_SUPER_MAGIC,
                                 TMPFS_MAGIC,       XFS_SUPER_MAGIC,  ZFS_MAGIC};
    struct statfs fs;
    struct stat st;
    if (!path || stat(path, &st) < 0 || !S_ISREG(st.st_mode) || statfs(path, &fs) < 0)
        return false;
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++)
        if ((unsigned long)fs.f_type == (unsigned long)types[i])
            return true;
    return false;
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

int64_t disks_open(void *argument)
{
    struct disks *disks = argument;
    for (unsigned i = 0; i < disks->options->disk_count; i++) {
        int status = open_disk(disks, &disks->options->disks[i], disks->reactors[i % disks->reactor_count],
                               &disks->leaves[i], &disks->files[i]);
        if (status < 0)
            return status;
        disks->local[i] = has_local_times(disks->options->disks[i].path);
        disks->instances[i] = device_instance(disks->options->disks[i].path);
        disks->opened++;
    }
    return 0;
}
