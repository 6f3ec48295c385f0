/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A sidecar lies beside its disk's image, as IMAGE.fleece; in the state directory, as VM@DISK.fleece, for block devices
 * and where the folder of the image can't be written: no name has an @ in it, so no two disks of any VMs that share the
 * directory share a sidecar. Its presence opts the disk in; with track=on, or when the first
 * checkpoint is made, it is made; with track=off it is only opened to be made void (C11).
 *
 * A new one has no name until the tracker has written its superblock (sidecars_keep): a crash before leaves nothing (R7).
 * A sidecar that can't even be told to be void any more is removed; where that fails, a tombstone in the state directory,
 * VM@DISK.fleece-void, says so, and the next start removes both (C20). The same tombstone lies there while a VM migrates,
 * and is away, for a sidecar that does not go with it: were we killed then, our next daemon would not know of that.
 *
 * Everything that may block runs on a helper thread, one operation for each disk at a time.
 */
#include "daemon/sidecars.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "base/place.h"
#include "driver/file.h"
#include "track/sidecar_format.h"

static const char left_reason[] = "the VM has gone on elsewhere, and its sidecar is not beside its image";
static const char may_have_left[] =
    "the VM migrates: it may have gone on elsewhere, and its sidecar is not beside its image";

/* --- places */

/* Both places, as far as there are such. */
static void choose_places(struct sidecars *sidecars, struct sidecar *sidecar)
{
    const struct disk_options *disk = sidecar->disk;
    struct stat st;
    char *real = disk->path ? realpath(disk->path, NULL) : NULL;
    if (real && stat(real, &st) == 0 && S_ISREG(st.st_mode) &&
        (size_t)snprintf(sidecar->beside, PATH_MAX, "%s" SIDECAR_SUFFIX, real) >= PATH_MAX)
        sidecar->beside[0] = 0;
    if (sidecars->state_dir[0] && (size_t)snprintf(sidecar->in_state, PATH_MAX, "%s/%s@%s" SIDECAR_SUFFIX,
                                                   sidecars->state_dir, sidecars->options->vm, disk->name) >= PATH_MAX)
        sidecar->in_state[0] = 0;
    free(real);
}

void sidecars_init(struct sidecars *sidecars, struct io *control, const struct options *options,
                   const struct disks *disks)
{
    sidecars->control = control;
    sidecars->disks = disks;
    sidecars->options = options;
    if (options->state_dir)
        snprintf(sidecars->state_dir, sizeof sidecars->state_dir, "%s", options->state_dir);
    else if (place_state(sidecars->state_dir, sizeof sidecars->state_dir, options->vm) < 0)
        sidecars->state_dir[0] = 0;
    for (unsigned i = 0; i < options->disk_count; i++) {
        struct sidecar *sidecar = &sidecars->all[i];
        *sidecar = (struct sidecar){.disk = &options->disks[i], .index = i, .sidecars = sidecars, .fd = -1};
        choose_places(sidecars, sidecar);
    }
}

static struct sidecar *sidecar_of(struct sidecars *sidecars, const struct disk *disk)
{
    for (unsigned i = 0; i < sidecars->options->disk_count; i++)
        if (strcmp(sidecars->options->disks[i].name, disk->name) == 0)
            return &sidecars->all[i];
    assert(false && "a disk of the command line");
    return NULL;
}

const char *sidecars_path(const struct sidecars *sidecars, unsigned disk_index)
{
    const struct sidecar *sidecar = &sidecars->all[disk_index];
    if (sidecar->path[0])
        return sidecar->path;
    return sidecar->beside[0] ? sidecar->beside : sidecar->in_state;
}

static int sync_folder_of(const char *path)
{
    char copy[PATH_MAX];
    snprintf(copy, sizeof copy, "%s", path);
    int fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    int status = fsync(fd) < 0 ? -errno : 0;
    close(fd);
    return status;
}

static bool can_write_folder_of(const char *path)
{
    char copy[PATH_MAX];
    snprintf(copy, sizeof copy, "%s", path);
    return path[0] && access(dirname(copy), W_OK | X_OK) == 0;
}

/* The state directory is made when it is the default one and needed. */
static void make_state_dir(const struct sidecars *sidecars)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s", sidecars->state_dir);
    for (char *slash = path[0] ? strchr(path + 1, '/') : NULL; slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        (void)mkdir(path, 0700);
        *slash = '/';
    }
    (void)mkdir(path, 0700);
}

/* --- what the tracker asks for */

static struct disk_identity identify(void *context)
{
    const struct sidecar *sidecar = context;
    return disks_identify(sidecar->sidecars->disks, sidecar->index);
}

static void tombstone_path(const struct sidecar *sidecar, char path[PATH_MAX])
{
    if (!sidecar->in_state[0] || (size_t)snprintf(path, PATH_MAX, "%s-void", sidecar->in_state) >= PATH_MAX)
        path[0] = 0;
}

static int leave_tombstone(const struct sidecar *sidecar, const char *reason)
{
    char path[PATH_MAX];
    tombstone_path(sidecar, path);
    if (!path[0])
        return -ENOENT;
    make_state_dir(sidecar->sidecars);
    int fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return -errno;
    int status = dprintf(fd, "%s is void: %s\n", sidecar->path, reason) < 0 || fsync(fd) < 0 ? -errno : 0;
    close(fd);
    return status < 0 ? status : sync_folder_of(path);
}

/* On a helper thread: the sidecar takes no writes any more, so it goes. */
static int condemn(void *context, const char *reason)
{
    struct sidecar *sidecar = context;
    if (sidecar->fd >= 0)
        return 0; /* it has no name yet: nobody will find it */
    if ((unlink(sidecar->path) == 0 || errno == ENOENT) && sync_folder_of(sidecar->path) == 0)
        return 0;
    atomic_store(&sidecar->condemned, true); /* before it is there: remove_left_tombstone() */
    return leave_tombstone(sidecar, reason);
}

/* --- opening and making, on a helper thread */

/* What an earlier daemon said of it, wherever it lies: the tombstone goes when no sidecar is left. */
static int heed_tombstone(struct sidecar *sidecar)
{
    char tombstone[PATH_MAX];
    const char *places[] = {sidecar->beside, sidecar->in_state};
    tombstone_path(sidecar, tombstone);
    if (!tombstone[0] || access(tombstone, F_OK) < 0)
        return 0;
    for (unsigned i = 0; i < 2; i++) {
        if (!places[i][0] || (unlink(places[i]) < 0 && errno == ENOENT))
            continue;
        if (access(places[i], F_OK) == 0 || sync_folder_of(places[i]) < 0) {
            atomic_store(&sidecar->condemned, true);
            return error_set(&sidecar->err, ENOTSUP, "'%.200s' is void, as '%.200s' says, and can't be removed: %s",
                             places[i], tombstone, error_name(errno));
        }
    }
    log_warning("the checkpoints of disk %s are gone, as '%s' says", sidecar->disk->name, tombstone);
    (void)unlink(tombstone);
    return 0;
}

static int open_found(struct sidecar *sidecar, const char *path)
{
    struct stat st;
    if (lstat(path, &st) < 0)
        return -ENOENT;
    snprintf(sidecar->path, sizeof sidecar->path, "%s", path);
    if (!S_ISREG(st.st_mode))
        return error_set(&sidecar->err, ENOTSUP, "'%.300s' is no regular file: it can't be the sidecar of disk %s",
                         path, sidecar->disk->name);
    struct file_options options = {.path = path, .lock_wait_ns = sidecar->sidecars->options->lock_wait_ns};
    if (file_open(sidecar->reactor, &options, &sidecar->result.node, &sidecar->err) == 0)
        return 0;
    error_prefix(&sidecar->err, "the sidecar of disk %s", sidecar->disk->name);
    /* The disk is going to be written without it: nobody may believe it again (C11). */
    if (condemn(sidecar, sidecar->err.text) < 0)
        log_error("it could not be noted anywhere that the checkpoints of disk %s are void: %s", sidecar->disk->name,
                  sidecar->err.text);
    return -ENOTSUP;
}

/* A file without a name where it shall have one. -1 with errno. */
static int open_nameless(struct sidecar *sidecar, const char *path, char folder[static PATH_MAX])
{
    snprintf(folder, PATH_MAX, "%s", path);
    snprintf(sidecar->path, sizeof sidecar->path, "%s", path);
    return open(dirname(folder), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
}

/* Beside the disk; else, or where file systems have no files without a name (NFS, FUSE), in the state directory. */
static int make_new(struct sidecar *sidecar)
{
    const bool beside = can_write_folder_of(sidecar->beside);
    const uint64_t granularity = sidecar->disk->track_granularity;
    char folder[PATH_MAX];
    sidecar->fd = beside ? open_nameless(sidecar, sidecar->beside, folder) : -1;
    if (!beside || (sidecar->fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR))) {
        make_state_dir(sidecar->sidecars);
        if (!can_write_folder_of(sidecar->in_state))
            return error_set(
                &sidecar->err, ENOTSUP,
                "there is no folder that can be written for the sidecar of disk %s: name one with --state-dir",
                sidecar->disk->name);
        sidecar->fd = open_nameless(sidecar, sidecar->in_state, folder);
    }
    if (sidecar->fd < 0)
        return error_set(&sidecar->err, ENOTSUP, "the sidecar of disk %s can't be made in '%.300s': %s",
                         sidecar->disk->name, folder, error_name(errno));
    const uint64_t bytes = tracker_sidecar_bytes(node_size(sidecar->sidecars->disks->leaves[sidecar->index]),
                                                 granularity);
    struct file_options options = {.path = sidecar->path, .adopt = true, .fd = sidecar->fd};
    int status = ftruncate(sidecar->fd, (off_t)bytes) < 0 ? -errno : 0;
    if (status < 0)
        error_set(&sidecar->err, ENOTSUP, "the sidecar of disk %s can't have %llu bytes: %s", sidecar->disk->name,
                  (unsigned long long)bytes, error_name(status));
    else
        status = file_open(sidecar->reactor, &options, &sidecar->result.node, &sidecar->err);
    if (status < 0) {
        close(sidecar->fd);
        sidecar->fd = -1;
        return -sidecar->err.code;
    }
    sidecar->result.created = true;
    sidecar->result.granularity_bytes = granularity;
    return 0;
}

static int64_t open_blocking(void *argument)
{
    struct sidecar *sidecar = argument;
    const bool off = sidecar->disk->track == TRACK_OFF;
    int status = -ENOENT;
    if (!sidecar->sidecars->disks->files[sidecar->index])
        return error_set(&sidecar->err, ENOTSUP, "disk %s is neither a file nor a block device: it can't be tracked",
                         sidecar->disk->name);
    const char *places[] = {sidecar->beside, sidecar->in_state};
    if (heed_tombstone(sidecar) < 0)
        return -sidecar->err.code;
    for (unsigned i = 0; i < 2 && status == -ENOENT; i++)
        if (places[i][0])
            status = open_found(sidecar, places[i]);
    if (status == -ENOENT && off && sidecar->create)
        return error_set(&sidecar->err, ENOTSUP, "disk %s is served with track=off", sidecar->disk->name);
    if (status == -ENOENT && (sidecar->create || sidecar->disk->track == TRACK_ON))
        status = make_new(sidecar);
    if (status == -ENOENT)
        return 0;
    if (status < 0)
        return status;
    sidecar->found = true;
    sidecar->result.forbidden = off;
    sidecar->result.identity = identify(sidecar);
    sidecar->result.identify = identify;
    sidecar->result.condemn = condemn;
    sidecar->result.context = sidecar;
    return 0;
}

static void opened(struct io_op *op, int64_t result)
{
    struct sidecar *sidecar = container_of(op, struct sidecar, op);
    if (result < 0)
        sidecar->opened(sidecar->argument, NULL, &sidecar->err);
    else
        sidecar->opened(sidecar->argument, sidecar->found ? &sidecar->result : NULL, NULL);
}

void sidecars_open(void *context, const struct disk *disk, bool create,
                   void (*done)(void *argument, const struct vm_sidecar *sidecar, const struct error *err),
                   void *argument)
{
    struct sidecar *sidecar = sidecar_of(context, disk);
    sidecar->reactor = disk->node.io;
    sidecar->create = create;
    sidecar->found = false;
    sidecar->result = (struct vm_sidecar){0};
    sidecar->opened = done;
    sidecar->argument = argument;
    sidecar->op.done = opened;
    io_work(sidecar->sidecars->control, &sidecar->op, open_blocking, sidecar);
}

/* --- its name */

static bool stays_here(const struct sidecar *sidecar)
{
    return sidecar->in_state[0] && access(sidecar->in_state, F_OK) == 0 &&
           !(sidecar->beside[0] && access(sidecar->beside, F_OK) == 0);
}

static void mark_as_left(struct sidecar *sidecar)
{
    const bool lacks_one = stays_here(sidecar) && !atomic_load(&sidecar->condemned);
    int status = lacks_one ? leave_tombstone(sidecar, may_have_left) : 0;
    if (status < 0)
        log_error("it could not be noted that the checkpoints of disk %s are void when the VM migrates: %s",
                  sidecar->disk->name, error_name(status));
}

static int64_t keep_blocking(void *argument)
{
    struct sidecar *sidecar = argument;
    char self[64];
    snprintf(self, sizeof self, "/proc/self/fd/%d", sidecar->fd);
    int status = linkat(AT_FDCWD, self, AT_FDCWD, sidecar->path, AT_SYMLINK_FOLLOW) < 0 ? -errno : 0;
    if (status == 0)
        status = sync_folder_of(sidecar->path);
    if (status < 0)
        return error_set(&sidecar->err, ENOTSUP, "the sidecar '%.300s' can't get its name: %s", sidecar->path,
                         error_name(status));
    if (atomic_load(&sidecar->sidecars->away)) /* those that had their names by then were marked */
        mark_as_left(sidecar);
    return 0;
}

static void ended(struct io_op *op, int64_t result)
{
    struct sidecar *sidecar = container_of(op, struct sidecar, op);
    sidecar->fd = -1; /* the node's own */
    sidecar->ended(sidecar->argument, result < 0 ? &sidecar->err : NULL);
}

static void sidecar_work(struct sidecar *sidecar, int64_t (*work)(void *argument),
                         void (*done)(void *argument, const struct error *err), void *argument)
{
    sidecar->ended = done;
    sidecar->argument = argument;
    sidecar->op.done = ended;
    io_work(sidecar->sidecars->control, &sidecar->op, work, sidecar);
}

void sidecars_keep(void *context, const struct disk *disk, void (*done)(void *argument, const struct error *err),
                   void *argument)
{
    sidecar_work(sidecar_of(context, disk), keep_blocking, done, argument);
}

static int64_t remove_blocking(void *argument)
{
    struct sidecar *sidecar = argument;
    char tombstone[PATH_MAX];
    const char *places[] = {sidecar->beside, sidecar->in_state};
    tombstone_path(sidecar, tombstone);
    for (unsigned i = 0; i < 2; i++) {
        if (!places[i][0] || (unlink(places[i]) < 0 && errno == ENOENT))
            continue;
        if (access(places[i], F_OK) == 0 || sync_folder_of(places[i]) < 0)
            return error_set(&sidecar->err, EIO, "the sidecar '%.300s' can't be removed: %s", places[i],
                             error_name(errno));
    }
    if (tombstone[0])
        (void)unlink(tombstone);
    atomic_store(&sidecar->condemned, false);
    return 0;
}

void sidecars_remove(void *context, const struct disk *disk, void (*done)(void *argument, const struct error *err),
                     void *argument)
{
    sidecar_work(sidecar_of(context, disk), remove_blocking, done, argument);
}

/* --- a VM that goes on elsewhere */

/* What was condemned meanwhile stays so. */
static void remove_left_tombstone(struct sidecar *sidecar)
{
    char path[PATH_MAX];
    tombstone_path(sidecar, path);
    if (!path[0] || atomic_load(&sidecar->condemned))
        return;
    (void)unlink(path);
    if (atomic_load(&sidecar->condemned) && leave_tombstone(sidecar, "it takes no writes any more") < 0)
        log_error("it could not be noted anywhere that the checkpoints of disk %s are void", sidecar->disk->name);
}

static int64_t away_blocking(void *argument)
{
    struct sidecars *sidecars = argument;
    const bool away = atomic_load(&sidecars->away);
    for (unsigned i = 0; i < sidecars->options->disk_count; i++) {
        if (away)
            mark_as_left(&sidecars->all[i]);
        else
            remove_left_tombstone(&sidecars->all[i]);
    }
    return 0;
}

static void away_told(struct io_op *op, int64_t result)
{
    struct sidecars *sidecars = container_of(op, struct sidecars, telling);
    (void)result; /* what failed was logged */
    sidecars->told(sidecars->told_argument);
}

void sidecars_away(void *context, bool away, void (*done)(void *argument), void *argument)
{
    struct sidecars *sidecars = context;
    atomic_store(&sidecars->away, away);
    sidecars->told = done;
    sidecars->told_argument = argument;
    sidecars->telling.done = away_told;
    io_work(sidecars->control, &sidecars->telling, away_blocking, sidecars);
}

void sidecars_leave(struct sidecars *sidecars)
{
    for (unsigned i = 0; sidecars->options && i < sidecars->options->disk_count; i++) {
        struct sidecar *sidecar = &sidecars->all[i];
        if (!sidecar->path[0] || sidecar->fd >= 0 || strcmp(sidecar->path, sidecar->in_state) != 0)
            continue;
        if (access(sidecar->path, F_OK) < 0)
            continue;
        if (condemn(sidecar, left_reason) < 0)
            log_error("'%s' could not be removed, and not be said to be void either: %s", sidecar->path, left_reason);
        else
            log_info("the checkpoints of disk %s end here: %s", sidecar->disk->name, left_reason);
        if (access(sidecar->path, F_OK) < 0)
            remove_left_tombstone(sidecar);
    }
}
