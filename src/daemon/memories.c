/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A VM that has another name than when its daemon was killed, or a disk that has moved to another VM.
 *
 * Memory that outlives the daemon lies in a folder by the VM's name. Under another name it would not be found: the snapshots
 * would hold their memory for good, and when the VM had its old name again they would be served over a disk that has been
 * written since (R4, R7). So at each start the folders of all VMs of this user are looked through for what belongs to the
 * disks that are served now, by device and inode of their files, and that moves here. What becomes of it is decided where it
 * always is: it is adopted, or buried with the reason.
 *
 *     DISK.track                       one disk's bitmaps; also under another name of the disk
 *     DISK.map, DISK.slots; snapshots  all of a table's disks, and the table last: after a crash the next start goes on
 *     push.N                           a job whose disks are all here; also under another number
 *
 * The disks' locks are held, so no daemon that served them is alive. Disks that are read-only may have several users, and
 * move nothing. Whose memory it is, is read without its lock, lest the start of another VM finds it taken. Where the same
 * is here already, the other one goes. It goes, too, where numbers are all that is known of a disk's file (network file
 * systems, devices before Linux 5.15): under one name of the VM and the disk that is enough, under another it may be a
 * stranger's.
 */
#include "daemon/memories.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "track/span.h"
#include "vm/push_record.h"
#include "vm/snapshot_table.h"

#define TRACK_SUFFIX ".track"

struct move {
    const struct disks *disks;
    const char *from, *to; /* folders */
};

/*
 * The number of the disk that this is the file of; -1: none. `*sure`: by more than numbers that a network's file system has
 * again for another file when it is mounted anew; then whoever adopts the memory sees whether the file was changed.
 */
static int disk_of(const struct disks *disks, uint64_t device, uint64_t inode, bool *sure)
{
    for (unsigned i = 0; i < disks->opened; i++) {
        const struct disk_identity is = disks_identify(disks, i);
        if (is.size_bytes == 0 || disks->options->disks[i].read_only || is.device != device || is.inode != inode)
            continue;
        *sure = is.local || is.instance != 0;
        return (int)i;
    }
    return -1;
}

/* Nobody will adopt it. What lies in our own folder has the right name of the VM, and stays. */
static void drop_file(const struct move *move, const char *name)
{
    char path[PATH_MAX];
    if (strcmp(move->from, move->to) != 0 &&
        (size_t)snprintf(path, sizeof path, "%s/%s", move->from, name) < sizeof path && unlink(path) == 0)
        log_warning("'%s' is lost: on this file system it can't be known whether it is of the same disk", path);
}

/* Returns whether it was there. */
static bool move_file(const struct move *move, const char *name, const char *as)
{
    char from[PATH_MAX], to[PATH_MAX];
    if ((size_t)snprintf(from, sizeof from, "%s/%s", move->from, name) >= sizeof from ||
        (size_t)snprintf(to, sizeof to, "%s/%s", move->to, as) >= sizeof to || access(from, F_OK) < 0 ||
        strcmp(from, to) == 0)
        return false;
    (void)mkdir(move->to, 0700);
    if (link(from, to) < 0 && errno != EEXIST)
        log_warning("'%s' can't be moved to '%s': %s", from, to, error_name(errno));
    (void)unlink(from);
    return true;
}

/* The beginning of a file of ours; another daemon may have it. Returns how much there is. */
static size_t read_head(const struct move *move, const char *name, void *head, size_t size)
{
    char path[PATH_MAX];
    struct stat st;
    if ((size_t)snprintf(path, sizeof path, "%s/%s", move->from, name) >= sizeof path)
        return 0;
    const int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return 0;
    ssize_t got = fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_uid == geteuid() ? pread(fd, head, size, 0) : 0;
    close(fd);
    return got > 0 ? (size_t)got : 0;
}

static bool move_track(const struct move *move, const char *name)
{
    uint64_t head[MEMORY_HEAD_BYTES / sizeof(uint64_t)], device, inode;
    char as[LIMIT_NAME_BYTES + sizeof TRACK_SUFFIX];
    if (span_memory_owner(head, read_head(move, name, head, sizeof head), &device, &inode) < 0)
        return false;
    bool sure = false;
    const int disk = disk_of(move->disks, device, inode, &sure);
    if (disk < 0)
        return false;
    if (!sure) {
        drop_file(move, name);
        return false;
    }
    snprintf(as, sizeof as, "%s" TRACK_SUFFIX, move->disks->options->disks[disk].name);
    return move_file(move, name, as);
}

static bool move_snapshots(const struct move *move)
{
    uint64_t head[MEMORY_HEAD_BYTES / sizeof(uint64_t)];
    struct snapshot_table_disk disks[LIMIT_DISKS];
    const int count = snapshot_table_owners(head, read_head(move, "snapshots", head, sizeof head), disks);
    bool ours = false, sure = true;
    for (int i = 0; i < count && sure; i++)
        ours = disk_of(move->disks, disks[i].identity.device, disks[i].identity.inode, &sure) >= 0 || ours;
    for (int i = 0; i < count && ours; i++) {
        static const char *const suffixes[] = {"map", "slots"};
        for (unsigned j = 0; j < 2; j++) {
            char name[LIMIT_NAME_BYTES + 8];
            snprintf(name, sizeof name, "%.*s.%s", LIMIT_NAME_BYTES, disks[i].name, suffixes[j]);
            if (sure)
                (void)move_file(move, name, name);
            else
                drop_file(move, name);
        }
    }
    if (ours && !sure)
        drop_file(move, "snapshots");
    return ours && sure && move_file(move, "snapshots", "snapshots");
}

/* To the first name for a job's record that is free in our folder: in one step, for two names would be two jobs. */
static bool move_record(const struct move *move, const char *name)
{
    char from[PATH_MAX], to[PATH_MAX];
    if ((size_t)snprintf(from, sizeof from, "%s/%s", move->from, name) >= sizeof from)
        return false;
    (void)mkdir(move->to, 0700);
    for (unsigned i = 0; i < LIMIT_JOBS; i++) {
        if ((size_t)snprintf(to, sizeof to, "%s/push.%u", move->to, i) >= sizeof to)
            return false;
        if (access(to, F_OK) < 0 && rename(from, to) == 0)
            return true;
    }
    log_warning("'%s' can't be moved to '%s'", from, move->to);
    return false;
}

/* A job's record moves with the snapshots; where those can't be moved, it is looked for nowhere else than where it is. It
 * may get another number, if the job of another VM has its own; whoever asked for it is told how it ended. */
static bool move_push(const struct move *move, const char *name)
{
    uint64_t head[MEMORY_HEAD_BYTES / sizeof(uint64_t)];
    struct snapshot_table_disk disks[LIMIT_DISKS];
    if (strcmp(move->from, move->to) == 0)
        return false;
    const int count = push_record_owners(head, read_head(move, name, head, sizeof head), disks);
    bool ours = count > 0, sure = true;
    for (int i = 0; i < count && ours && sure; i++)
        ours = disk_of(move->disks, disks[i].identity.device, disks[i].identity.inode, &sure) >= 0;
    return ours && sure && move_record(move, name);
}

static bool ends_with(const char *name, const char *suffix)
{
    const size_t length = strlen(name), end = strlen(suffix);
    return length > end && strcmp(name + length - end, suffix) == 0;
}

static void look_through(const struct move *move, const char *vm)
{
    bool moved = false;
    DIR *folder = opendir(move->from);
    if (!folder)
        return;
    for (const struct dirent *entry; (entry = readdir(folder));) {
        if (ends_with(entry->d_name, TRACK_SUFFIX))
            moved = move_track(move, entry->d_name) || moved;
        else if (strcmp(entry->d_name, "snapshots") == 0)
            moved = move_snapshots(move) || moved;
        else if (strncmp(entry->d_name, "push.", 5) == 0)
            moved = move_push(move, entry->d_name) || moved;
    }
    closedir(folder);
    (void)rmdir(move->from); /* unless something is in it */
    if (moved)
        log_info("what a killed daemon of VM %s has left in memory of these disks is this VM's now", vm);
}

void memories_take_over(const struct disks *disks, const char *folder)
{
    char all[PATH_MAX], from[PATH_MAX];
    snprintf(all, sizeof all, "%s", folder);
    char *slash = strrchr(all, '/');
    if (!slash)
        return;
    *slash = '\0';
    struct stat st;
    DIR *parent = lstat(all, &st) == 0 && S_ISDIR(st.st_mode) && st.st_uid == geteuid() ? opendir(all) : NULL;
    if (!parent)
        return; /* there is none; or somebody else has made it in our name, which whoever makes memory there reports */
    for (const struct dirent *entry; (entry = readdir(parent));) {
        const struct move move = {disks, from, folder};
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        if ((size_t)snprintf(from, sizeof from, "%s/%s", all, entry->d_name) < sizeof from)
            look_through(&move, entry->d_name);
    }
    closedir(parent);
}
