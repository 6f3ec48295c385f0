/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A target is checked by its words, opened on a helper thread, written by the copy engine, and kept or removed:
 *
 *     checked -> open (a new file's device and inode are noted) -> kept (its name is made durable) | removed
 *     taken over from a killed daemon -> open again, if it is the very same | removed
 *
 * Only a file that this target has made is ever removed, and only while its name still leads to it. So that this holds over
 * a kill in any moment (R7), a new file is made under a random name, which is noted before; then it is noted which file that
 * is; then it gets its own name, if that is free. What is noted is right in each of these moments: a file by the random name
 * is ours, and so is the noted one, by whichever name.
 *
 * A path may lead to another file at any time, so what a file is, is asked of the open descriptor, never of its path.
 *
 * What is opened again is written again, so it must not be a stranger's: its lock is taken first (when we have it, whatever
 * the dead daemon had under way has landed, C10), then device, inode and the time of its making are compared. Somebody may
 * have written into the very target while no daemon had it locked. What was released at the snapshot would be gone then, and
 * a copy with a hole be called whole. So either it can be seen that nobody did, or the job fails:
 *
 *   a file of this machine    has times. The time of each write is noted, and a file that was changed later than a dead
 *                             daemon's writes may land is not believed
 *   a device, a file whose    say nothing: what was released there makes the job fail. If nothing was, everything is
 *   times another machine     written once more, zeroes too, so what others wrote is gone
 *   sets, an NBD export
 *
 * Looked at and left: a device's count of written sectors in /sys (it does not tell our last writes, which came or did not,
 * from a stranger's, and is not counted at all by some drivers and for other partitions' openers); the kernel's change
 * counter of an inode (no system call tells it); a lease or a lock (nobody holds one while no daemon runs); a sample read
 * back (a sample proves nothing).
 *
 * What goes unseen: in a file of this machine, changes in place within PUSH_LANDING_NS of the daemon's last write, by a
 * program that does not mind the lock: late writes of our own have such times, too. It could write there a moment before
 * the kill just as well, which no copy can notice; and a kill must not end every push.
 */
#include "job/target.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/probe.h"
#include "driver/file.h"
#include "driver/nbd.h"
#include "job/image.h"

#define TEMPORARY_PREFIX ".fleece-push-"

static bool is_uri(const char *where)
{
    return where[0] != '/' && strstr(where, "://");
}

int target_check(const char *where, struct error *err)
{
    if (is_uri(where) && strncmp(where, "nbd", 3) != 0)
        return error_set(err, EINVAL, "target '%.200s' is neither a file nor an NBD URI (nbd://…, nbd+unix://…)",
                         where);
    if (!is_uri(where) && where[0] != '/')
        return error_set(err, EINVAL, "target '%.200s' must be an absolute path, or an NBD URI", where);
    return 0;
}

/* ---- which file it is ---- */

/* Of a descriptor (or a path, for a look without opening it; then nothing is known of which device it is). 0 or -errno. */
static int identify_at(int fd, const char *path, struct target_identity *is)
{
    struct statx stat;
    *is = (struct target_identity){0};
    if (statx(fd, path, path[0] ? 0 : AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_BTIME, &stat) < 0)
        return -errno;
    if (S_ISBLK(stat.stx_mode)) {
        is->device = makedev(stat.stx_rdev_major, stat.stx_rdev_minor);
        return 0;
    }
    is->device = makedev(stat.stx_dev_major, stat.stx_dev_minor);
    is->inode = stat.stx_ino;
    if (stat.stx_mask & STATX_BTIME)
        is->made_ns = (uint64_t)stat.stx_btime.tv_sec * NS_PER_S + stat.stx_btime.tv_nsec;
    return 0;
}

static int identify_open(int fd, struct target_identity *is)
{
    const int status = identify_at(fd, "", is);
    if (status == 0 && is->inode == 0 && ioctl(fd, BLKGETDISKSEQ, &is->instance) < 0) /* before Linux 5.15 */
        is->instance = 0;
    return status;
}

static bool is_same(const struct target_identity *is, const struct target_identity *was)
{
    return is->device == was->device && is->inode == was->inode && is->made_ns == was->made_ns &&
           is->instance == was->instance;
}

/* Whether that name leads to it now. A pipe that came in between is not waited for. */
static bool leads_to(const char *path, const struct target_identity *was)
{
    struct target_identity is;
    if (identify_at(AT_FDCWD, path, &is) < 0 || is.device != was->device || is.inode != was->inode)
        return false;
    if (is.inode != 0)
        return is_same(&is, was);
    const int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    const bool same = fd >= 0 && identify_open(fd, &is) == 0 && is_same(&is, was);
    if (fd >= 0)
        close(fd);
    return same;
}

/* What the open node is. 0, or -errno with a sentence. */
static int identify(struct target *target, struct target_identity *is, struct error *err)
{
    const int fd = file_descriptor(target->node), status = identify_open(fd, is);
    target->is_watched = file_descriptor_has_local_times(fd);
    target->may_hang = !target->is_watched && is->inode != 0;
    if (target->may_hang) /* FUSE lets a write wait for a flush, and with it the guest's disk */
        file_write_apart(target->node);
    return status < 0 ? error_set(err, -status, "target '%.300s': %s", target->where, error_name(status)) : 0;
}

/* ---- whether somebody else has written it ---- */

static int nobody_knows(const struct target *target, struct error *err)
{
    return error_set(
        err, ESTALE,
        "the copy can't go on after the end of the daemon: it can't be known whether '%.300s' still holds what "
        "it had got",
        target->where);
}

/* Since a dead daemon wrote it last; its lock is ours. 0, or -ESTALE. */
static int check_written(struct io *io, struct target *target, const struct target_options *options, struct error *err)
{
    struct statx stat;
    uint64_t clock_ns = 0, wall_ns = 0;
    if (!target->is_watched) {
        target->is_zero = false;
        return options->released ? nobody_knows(target, err) : 0;
    }
    if (options->written && target_written_when(options->written, &clock_ns, &wall_ns) < 0)
        return nobody_knows(target, err);
    if (wall_ns == 0)
        return 0;
    if (statx(file_descriptor(target->node), "", AT_EMPTY_PATH, STATX_BASIC_STATS, &stat) < 0)
        return error_set(err, errno, "target '%.300s': %s", target->where, error_name(errno));
    const uint64_t ctime_ns = (uint64_t)stat.stx_ctime.tv_sec * NS_PER_S + stat.stx_ctime.tv_nsec,
                   mtime_ns = (uint64_t)stat.stx_mtime.tv_sec * NS_PER_S + stat.stx_mtime.tv_nsec;
    if ((ctime_ns > mtime_ns ? ctime_ns : mtime_ns) > wall_ns + PUSH_LANDING_NS)
        return error_set(err, ESTALE, "somebody has changed target '%.300s' since the daemon was killed",
                         target->where);
    const int64_t ahead_then = (int64_t)(wall_ns - clock_ns), ahead_now = (int64_t)(io_wall_ns(io) - io_now_ns(io));
    if (ahead_now + (int64_t)WATCH_CLOCK_SLACK_NS < ahead_then)
        return error_set(
            err, ESTALE,
            "the machine's clock was set back since the daemon was killed, so that it can't be told whether "
            "somebody has changed target '%.200s'",
            target->where);
    return 0;
}

/* ---- a new file ---- */

static int temporary_path(const char *where, const char *nonce, char path[PATH_MAX])
{
    const char *slash = strrchr(where, '/');
    int length = snprintf(path, PATH_MAX, "%.*s/" TEMPORARY_PREFIX "%s", (int)(slash - where), where, nonce);
    return length < 0 || length >= PATH_MAX ? -ENAMETOOLONG : 0;
}

/* Gives a file its name, unless there is something by that name. Some file systems can do it one way, some the other. */
static int name_new(const char *from, const char *to)
{
    if (renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE) == 0)
        return 0;
    if (errno != EINVAL && errno != ENOSYS)
        return -errno;
    if (link(from, to) < 0)
        return -errno;
    unlink(from);
    return 0;
}

static int make_file(struct io *io, const struct target_options *options, struct target *target, struct error *err)
{
    struct target_note *note = target->note;
    char path[PATH_MAX];
    uuid_make(io, note->nonce);
    if (temporary_path(target->where, note->nonce, path) < 0)
        return error_set(err, ENAMETOOLONG, "target '%.300s': its name is too long", target->where);
    note->created = 1;
    target_note_store(note, TARGET_NAMING);
    int status = image_create(io, path, options->size_bytes, &target->node, err);
    if (status == -ENOENT)
        return error_set(err, ENOENT, "target '%.300s' can't be made: there is no such folder", target->where);
    if (status < 0)
        return error_prefix(err, "target '%.200s'", target->where);
    status = identify(target, &note->is, err);
    if (status < 0)
        return status;
    target_note_store(note, TARGET_KNOWN);
    status = name_new(path, target->where);
    target->is_zero = true;
    if (status == -EEXIST)
        return error_set(err, EEXIST, "target '%.300s' exists already: somebody has just made it", target->where);
    return status < 0 ? error_set(err, -status, "target '%.300s' can't be made: %s", target->where, error_name(status))
                      : 0;
}

/* ---- opening ---- */

static int check_size(const struct target *target, const struct target_options *options, struct error *err)
{
    if (target->node->size_bytes >= options->size_bytes)
        return 0;
    return error_set(err, ENOSPC, "target '%.300s' has %llu bytes, but the disk has %llu", target->where,
                     (unsigned long long)target->node->size_bytes, (unsigned long long)options->size_bytes);
}

static int open_file(struct io *io, const struct target_options *options, struct target *target, struct error *err)
{
    struct stat st;
    bool there = stat(target->where, &st) == 0;
    if (!there && errno != ENOENT)
        return error_set(err, errno, "target '%.300s': %s", target->where, error_name(errno));
    if (!there && options->existing)
        return error_set(err, ENOENT, "target '%.300s' does not exist: only the blocks that changed would be in it",
                         target->where);
    if (there && !options->existing && !options->force)
        return error_set(err, EEXIST, "target '%.300s' exists already: it is overwritten with 'force' only",
                         target->where);
    if (!there)
        return make_file(io, options, target, err);
    int status = image_open(io, target->where, false, &target->node, err);
    if (status == 0)
        status = identify(target, &target->note->is, err);
    if (status == 0)
        target_note_store(target->note, TARGET_KNOWN);
    return status;
}

int target_take_over(const char *where, struct target_note *note, struct target *target)
{
    assert(note);
    *target = (struct target){.where = strdup(where), .note = note, .is_nbd = is_uri(where)};
    target->is_zero = note->created || MUTANT(push_zeroes_believed);
    return target->where ? 0 : -ENOMEM;
}

int target_open(struct io *io, const struct target_options *options, struct target *target, struct error *err)
{
    if (target_take_over(options->where, options->note, target) < 0)
        return error_set(err, ENOMEM, "no memory for a target");
    int status = target->is_nbd ? nbd_node_open_until(io, target->where, false, options->stop, &target->node, err)
                                : open_file(io, options, target, err);
    return status < 0 ? status : check_size(target, options, err);
}

/* Somebody else may have the file's lock for a while: the dead daemon's writes, which still land. */
static int open_file_again(struct io *io, const struct target_options *options, struct target *target,
                           struct error *err)
{
    struct target_identity is;
    int status;
    for (uint64_t waited_ns = 0;; waited_ns += LOCK_POLL_NS) {
        if (!leads_to(target->where, &target->note->is))
            return error_set(err, ESTALE, "target '%.300s' is not there any more, or another file than before",
                             target->where);
        status = image_open(io, target->where, false, &target->node, err);
        if ((status != -EAGAIN && status != -EBUSY) || waited_ns >= LOCK_WAIT_DEFAULT_NS || atomic_load(options->stop))
            break;
        io_sleep(io, LOCK_POLL_NS);
    }
    if (status == 0)
        status = identify(target, &is, err);
    if (status == 0 && (!is_same(&is, &target->note->is) || !leads_to(target->where, &is)))
        return error_set(err, ESTALE, "target '%.300s' has become another file", target->where);
    return status < 0 ? status : check_written(io, target, options, err);
}

int target_open_again(struct io *io, const struct target_options *options, struct target *target, struct error *err)
{
    int status;
    if (target->is_nbd && options->released)
        status = nobody_knows(target, err);
    else if (target->is_nbd)
        status = nbd_node_open_until(io, target->where, false, options->stop, &target->node, err);
    else if (target_note_stage(target->note) != TARGET_KNOWN)
        return error_set(err, ESTALE, "target '%.300s' had not been opened", target->where);
    else
        status = open_file_again(io, options, target, err);
    return status < 0 ? status : check_size(target, options, err);
}

/* ---- the end ---- */

int target_keep(const struct target *target, struct error *err)
{
    char folder[PATH_MAX];
    if (!target->is_nbd && !leads_to(target->where, &target->note->is))
        return error_set(err, ESTALE, "target '%.300s' is not there any more, or another file than was written",
                         target->where);
    if (!target->note->created || strlen(target->where) >= sizeof folder)
        return 0;
    strcpy(folder, target->where);
    char *slash = strrchr(folder, '/');
    slash[slash == folder] = '\0';
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int status = fd < 0 || fsync(fd) < 0 ? -errno : 0;
    if (fd >= 0)
        close(fd);
    if (status < 0)
        return error_set(err, -status, "the name of target '%.300s' can't be made durable: %s", target->where,
                         error_name(status));
    return 0;
}

void target_remove(struct target *target)
{
    char path[PATH_MAX];
    const struct target_note *note = target->note;
    const int stage = note ? target_note_stage(note) : TARGET_UNTOUCHED;
    if (stage <= TARGET_UNTOUCHED || !note->created)
        return;
    if (stage == TARGET_KNOWN && leads_to(target->where, &note->is))
        unlink(target->where);
    if (temporary_path(target->where, note->nonce, path) == 0 && (stage == TARGET_NAMING || leads_to(path, &note->is)))
        unlink(path);
}

void target_fini(struct target *target)
{
    free(target->where);
    target->where = NULL;
}
