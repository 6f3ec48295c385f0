/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Unfinished points are folders `.tmp-` + 16 random digits. Such a name alone proves nothing: the folder is ours if
 *  - its manifest.json says that it is a point of Fleece, in whatever state (the first thing that is ever put into it), or
 *  - it is empty, or holds an empty manifest.json and nothing else: a kill between mkdir and the first write, or a power
 *    loss just after; nothing of value to anybody can be in there.
 * One that a backup may go on with is removed by the next backup only, which knows whether anybody wants that.
 * It is removed only if every file in it has the name of one that a point has. Otherwise all of it is kept, and said.
 */
#include "set/leftover.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/name.h"
#include "set/json_file.h"
#include "set/resume.h"

struct contents {
    unsigned files; /* besides the manifest */
    bool manifest, manifest_empty;
    char strange[NAME_MAX + 1]; /* a file that no point has; empty: none */
};

bool leftover_name_valid(const char *name)
{
    size_t prefix = strlen(UNFINISHED_PREFIX);
    return strlen(name) == UNFINISHED_NAME_BYTES - 1 && strncmp(name, UNFINISHED_PREFIX, prefix) == 0 &&
           strspn(name + prefix, "0123456789abcdef") == UNFINISHED_NAME_BYTES - 1 - prefix;
}

/* An image or the hashes of a disk, what says how it can go on, or a manifest on its way. */
static bool is_point_file(const char *name)
{
    char disk[NAME_MAX + 1];
    snprintf(disk, sizeof disk, "%s", name);
    char *suffix = strrchr(disk, '.');
    if (strcmp(name, MANIFEST_NEW_FILE) == 0 || strcmp(name, RESUME_FILE) == 0)
        return true;
    if (!suffix || (strcmp(suffix, RAW_SUFFIX) != 0 && strcmp(suffix, QCOW2_SUFFIX) != 0 &&
                    strcmp(suffix, HASHES_SUFFIX) != 0 && strcmp(suffix, RESUME_SUFFIX) != 0))
        return false;
    *suffix = '\0';
    return name_check("", disk, NULL) == 0;
}

static DIR *folder_open(int directory, const char *name)
{
    int fd = openat(directory, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    DIR *folder = fd < 0 ? NULL : fdopendir(fd);
    if (fd >= 0 && !folder)
        close(fd);
    return folder;
}

/* The next entry but "." and "..". */
static const char *folder_next(DIR *folder)
{
    const struct dirent *entry;
    while ((entry = readdir(folder)) != NULL)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            return entry->d_name;
    return NULL;
}

static void folder_look(DIR *folder, struct contents *contents)
{
    const char *name;
    memset(contents, 0, sizeof *contents);
    while ((name = folder_next(folder)) != NULL) {
        struct stat stat;
        bool regular = fstatat(dirfd(folder), name, &stat, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(stat.st_mode);
        bool manifest = regular && strcmp(name, MANIFEST_FILE) == 0;
        if (manifest) {
            contents->manifest = true;
            contents->manifest_empty = stat.st_size == 0;
        } else if (!regular || !is_point_file(name)) {
            snprintf(contents->strange, sizeof contents->strange, "%s", name);
        } else {
            contents->files++;
        }
    }
}

static bool folder_is_ours(DIR *folder, const struct contents *contents)
{
    struct manifest_unfinished unfinished;
    struct error err;
    json_t *json = NULL;
    if (!contents->manifest || contents->manifest_empty)
        return contents->files == 0;
    if (json_file_load(dirfd(folder), MANIFEST_FILE, MANIFEST_FILE, &json, &err) < 0)
        return false;
    bool ours = manifest_recognise(json, &unfinished) == 0;
    json_decref(json);
    return ours;
}

/* Opens a folder that is ours as a whole. NULL: -errno in *status, and why. */
static DIR *open_ours(const struct set *set, const char *name, int *status, char *reason, size_t size)
{
    struct contents contents;
    DIR *folder = folder_open(set_directory(set), name);
    if (!folder) {
        *status = -errno;
        snprintf(reason, size, "it can't be opened: %s", error_name(*status));
        return NULL;
    }
    folder_look(folder, &contents);
    if (!contents.strange[0] && folder_is_ours(folder, &contents))
        return folder;
    closedir(folder);
    *status = -EEXIST;
    if (contents.strange[0])
        snprintf(reason, size, "it holds '%.80s', which no backup makes", contents.strange);
    else
        snprintf(reason, size, "it has no %s that says it is an unfinished backup", MANIFEST_FILE);
    return NULL;
}

int leftover_check(const struct set *set, const char *name, char *reason, size_t size)
{
    int status = 0;
    DIR *folder = open_ours(set, name, &status, reason, size);
    if (folder)
        closedir(folder);
    return status;
}

int leftover_remove(const struct set *set, const char *name, char *reason, size_t size)
{
    int status = 0;
    const char *file;
    DIR *folder = open_ours(set, name, &status, reason, size);
    if (!folder)
        return status;
    rewinddir(folder); /* the manifest, which says whose it is, goes last */
    while ((file = folder_next(folder)) != NULL)
        if (strcmp(file, MANIFEST_FILE) != 0)
            unlinkat(dirfd(folder), file, 0);
    unlinkat(dirfd(folder), MANIFEST_FILE, 0);
    closedir(folder);
    if (unlinkat(set_directory(set), name, AT_REMOVEDIR) == 0)
        return 0;
    int code = errno;
    snprintf(reason, size, "it can't be removed: %s", error_name(code));
    return -code;
}

/* A backup that was killed just after its point became visible has left this in it. */
static void tidy_point(const struct set *set, const char *point)
{
    int fd = openat(set_directory(set), point, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return;
    if (unlinkat(fd, RESUME_FILE, 0) == 0)
        fsync(fd);
    close(fd);
}

static bool is_resumable(const struct set *set, const char *name)
{
    struct resume_plan *plan = malloc(sizeof *plan);
    struct error err;
    bool resumable = plan && resume_plan_load(set, name, plan, &err) == 0;
    free(plan);
    return resumable;
}

void leftover_sweep(const struct set *set, const char *own, bool keep_resumable, struct leftover_report *report)
{
    DIR *folder = folder_open(set_directory(set), ".");
    const char *name;
    memset(report, 0, sizeof *report);
    while (folder && (name = folder_next(folder)) != NULL) {
        char reason[sizeof report->kept_reason], found[UNFINISHED_NAME_BYTES];
        if (point_name_valid(name))
            tidy_point(set, name);
        if (!leftover_name_valid(name) || strcmp(name, own) == 0)
            continue;
        memcpy(found, name, sizeof found);
        if (keep_resumable && is_resumable(set, found)) {
            report->resumable++;
            memcpy(report->resumable_name, found, sizeof found);
            continue;
        }
        if (leftover_remove(set, found, reason, sizeof reason) == 0) {
            report->removed++;
            continue;
        }
        report->kept++;
        memcpy(report->kept_name, found, sizeof found);
        memcpy(report->kept_reason, reason, sizeof reason);
    }
    if (folder)
        closedir(folder);
}

void leftover_describe_owner(const struct set *set, char *text, size_t size)
{
    DIR *folder = folder_open(set_directory(set), ".");
    const char *name;
    text[0] = '\0';
    while (folder && (name = folder_next(folder)) != NULL) {
        struct manifest_unfinished owner;
        struct error err;
        json_t *json = NULL;
        char path[NAME_MAX + 32];
        if (!leftover_name_valid(name))
            continue;
        snprintf(path, sizeof path, "%s/%s", name, MANIFEST_FILE);
        if (json_file_load(set_directory(set), path, path, &json, &err) == 0 && manifest_recognise(json, &owner) == 0 &&
            owner.pid)
            snprintf(text, size, " (process %llu on host %s, since %s)", (unsigned long long)owner.pid, owner.host,
                     owner.started);
        json_decref(json);
    }
    if (folder)
        closedir(folder);
}
