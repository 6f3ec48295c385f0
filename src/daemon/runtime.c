/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One daemon per VM, and what the last one left.
 *
 * The folder holds a file `lock`, on which the daemon has a flock. Its text is a head line of our own, the process and a
 * line for each socket with device and inode number:
 *
 *     fleeced runtime 1
 *     pid 4711
 *     socket 24 1093 /run/fleece/web1/nbd.sock
 *
 * The order that must not change: the lock is taken first; then, and only then, what the record names is removed, and of
 * that only sockets with the very device and inode (a new socket of somebody else under the same name stays). A socket
 * of a killed daemon can't be told from a live one by connecting: its ring's accept may hold it open for seconds. A file
 * `lock` without our head line is somebody else's, and is left alone.
 *
 * At the end the lock file is removed while the lock is held; whoever opened it before finds, once it has the lock, that
 * the file is no longer the one in the folder, and starts again. A killed daemon frees the lock at the end of its exit,
 * after its memory, which may take a moment: a held lock is tried for CLAIM_WAIT_NS, and as long as the caller wants to
 * wait for locks while its holder is seen to be dying.
 */
#include "daemon/runtime.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libgen.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/limits.h"
#include "base/place.h"

static const char head[] = "fleeced runtime 1\n";

/* Makes the folder and the one above it. -ESTALE: one vanished meanwhile, with the end of another daemon. */
static int make_folder(const char *folder, struct error *err)
{
    char above[PATH_MAX];
    snprintf(above, sizeof above, "%s", folder);
    const char *parent = dirname(above);
    if (mkdir(parent, geteuid() == 0 ? 0755 : 0700) < 0 && errno != EEXIST)
        return error_set(err, errno, "can't make the run-time folder %s: %s%s", parent, error_name(errno),
                         geteuid() != 0 && !getenv("XDG_RUNTIME_DIR") ? "; XDG_RUNTIME_DIR is not set" : "");
    if (mkdir(folder, 0700) < 0 && errno != EEXIST)
        return error_set(err, errno == ENOENT ? ESTALE : errno, "can't make the run-time folder %s: %s", folder,
                         error_name(errno));
    struct stat st;
    if (lstat(folder, &st) < 0)
        return error_set(err, errno == ENOENT ? ESTALE : errno, "the run-time folder %s can't be used: %s", folder,
                         error_name(errno));
    if (!S_ISDIR(st.st_mode))
        return error_set(err, ENOTDIR, "the run-time folder %s can't be used: it is not a folder", folder);
    if (st.st_uid != geteuid() || (st.st_mode & 077) != 0)
        return error_set(err, EPERM, "the run-time folder %s can't be used: it must be ours alone (mode 0700)", folder);
    return 0;
}

/* The text of the record; empty when there is none. -EEXIST: the file is not ours. */
static int read_record(int fd, char *text, struct error *err, const char *path)
{
    ssize_t length = pread(fd, text, LIMIT_RUNTIME_RECORD_BYTES - 1, 0);
    if (length < 0)
        return error_set(err, errno, "can't read %s: %s", path, error_name(errno));
    text[length] = 0;
    if (length > 0 && strncmp(text, head, sizeof head - 1) != 0)
        return error_set(err, EEXIST, "%s is not a file of fleeced; it is left alone", path);
    return 0;
}

/* The process that holds the lock, by its record; 0: unknown. */
static long holder(const struct runtime *runtime)
{
    char text[LIMIT_RUNTIME_RECORD_BYTES];
    long pid = 0;
    struct error ignored;
    int fd = open(runtime->lock_path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    if (read_record(fd, text, &ignored, runtime->lock_path) == 0)
        (void)sscanf(text, "fleeced runtime 1 pid %ld", &pid);
    close(fd);
    return pid;
}

/* Whether the process is gone, a zombie, or has a SIGKILL waiting for it. */
static bool is_dying(long pid)
{
    char path[64], line[256];
    bool dying = false;
    unsigned long long pending;
    snprintf(path, sizeof path, "/proc/%ld/status", pid);
    FILE *file = fopen(path, "re");
    if (!file)
        return errno == ENOENT;
    while (!dying && fgets(line, sizeof line, file)) {
        if (strncmp(line, "State:\tZ", 8) == 0 || strncmp(line, "State:\tX", 8) == 0)
            dying = true;
        else if (sscanf(line, "SigPnd: %llx", &pending) == 1 || sscanf(line, "ShdPnd: %llx", &pending) == 1)
            dying = (pending >> (SIGKILL - 1)) & 1;
    }
    fclose(file);
    return dying;
}

static int held_by_other(const struct runtime *runtime, const char *vm, struct error *err)
{
    long pid = holder(runtime);
    if (pid > 0)
        return error_set(err, EBUSY, "VM %s is already served by process %ld (%s is locked)", vm, pid,
                         runtime->lock_path);
    return error_set(err, EBUSY, "VM %s is already served by another process (%s is locked)", vm, runtime->lock_path);
}

/* One try. 0: locked. -EAGAIN: somebody holds it. -ESTALE: the file or its folder vanished meanwhile, try again. */
static int take_lock(struct runtime *runtime, struct error *err)
{
    int status = make_folder(runtime->folder, err);
    if (status < 0)
        return status;
    runtime->lock_fd = open(runtime->lock_path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (runtime->lock_fd < 0)
        return error_set(err, errno == ENOENT ? ESTALE : errno, "can't open %s: %s", runtime->lock_path,
                         error_name(errno));
    struct stat mine, there;
    if (flock(runtime->lock_fd, LOCK_EX | LOCK_NB) < 0)
        return errno == EWOULDBLOCK ? -EAGAIN
                                    : error_set(err, errno, "can't lock %s: %s", runtime->lock_path, error_name(errno));
    if (fstat(runtime->lock_fd, &mine) < 0 || lstat(runtime->lock_path, &there) < 0 || mine.st_ino != there.st_ino ||
        mine.st_dev != there.st_dev)
        return error_set(err, ESTALE, "can't lock %s: it is replaced again and again", runtime->lock_path);
    return 0;
}

static void forget_lock(struct runtime *runtime)
{
    if (runtime->lock_fd >= 0)
        close(runtime->lock_fd);
    runtime->lock_fd = -1;
}

/* Removes the sockets that a record names, as far as they are the very same files. */
static void remove_recorded(char *text)
{
    char *rest = NULL;
    for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        uintmax_t device, inode;
        int path_at = 0;
        struct stat st;
        if (sscanf(line, "socket %ju %ju %n", &device, &inode, &path_at) != 2 || !path_at || line[path_at] != '/')
            continue;
        if (lstat(line + path_at, &st) == 0 && S_ISSOCK(st.st_mode) && st.st_dev == device && st.st_ino == inode)
            unlink(line + path_at);
    }
}

/* Tries as long as it may be worth it. 0, -EAGAIN when somebody else holds the lock, or an error with its text. */
static int await_lock(struct runtime *runtime, uint64_t wait_ns, struct error *err)
{
    for (uint64_t waited_ns = 0;; waited_ns += CLAIM_POLL_NS) {
        int status = take_lock(runtime, err);
        if (status != -EAGAIN && status != -ESTALE)
            return status;
        forget_lock(runtime);
        if (waited_ns >= CLAIM_WAIT_NS && (waited_ns >= wait_ns || !is_dying(holder(runtime))))
            return status;
        nanosleep(&(struct timespec){.tv_nsec = (long)CLAIM_POLL_NS}, NULL);
    }
}

int runtime_claim(struct runtime *runtime, const char *vm, uint64_t wait_ns, struct error *err)
{
    runtime->lock_fd = -1;
    if (place_runtime(runtime->folder, sizeof runtime->folder, vm, NULL) < 0)
        return error_set(err, ENAMETOOLONG, "the path of the run-time folder of VM %s is too long", vm);
    snprintf(runtime->lock_path, sizeof runtime->lock_path, "%s/lock", runtime->folder);
    int status = await_lock(runtime, wait_ns, err);
    if (status == -EAGAIN)
        status = held_by_other(runtime, vm, err);
    char text[LIMIT_RUNTIME_RECORD_BYTES];
    if (status == 0)
        status = read_record(runtime->lock_fd, text, err, runtime->lock_path);
    if (status < 0) {
        forget_lock(runtime);
        return status;
    }
    remove_recorded(text);
    return runtime_record(runtime, NULL, 0, err);
}

int runtime_record(struct runtime *runtime, const char *const *paths, unsigned count, struct error *err)
{
    char text[LIMIT_RUNTIME_RECORD_BYTES];
    size_t used = (size_t)snprintf(text, sizeof text, "%spid %ld\n", head, (long)getpid());
    for (unsigned i = 0; i < count; i++) {
        struct stat st;
        if (strchr(paths[i], '\n') || lstat(paths[i], &st) < 0 || used + strlen(paths[i]) + 64 > sizeof text)
            continue;
        used += (size_t)snprintf(text + used, sizeof text - used, "socket %ju %ju %s\n", (uintmax_t)st.st_dev,
                                 (uintmax_t)st.st_ino, paths[i]);
    }
    if (ftruncate(runtime->lock_fd, 0) < 0 || pwrite(runtime->lock_fd, text, used, 0) != (ssize_t)used)
        return error_set(err, errno ? errno : EIO, "can't write %s: %s", runtime->lock_path, error_name(errno));
    return 0;
}

void runtime_release(struct runtime *runtime)
{
    char text[LIMIT_RUNTIME_RECORD_BYTES];
    struct error ignored;
    if (runtime->lock_fd < 0)
        return;
    if (read_record(runtime->lock_fd, text, &ignored, runtime->lock_path) == 0)
        remove_recorded(text);
    unlink(runtime->lock_path);
    rmdir(runtime->folder);
    rmdir(dirname(runtime->folder));
    forget_lock(runtime);
}
