/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The folder of a backup set.
 *
 * Whoever adds to a set holds an exclusive OFD lock on `fleece.json` for as long; readers need none, since a point never
 * changes once it is visible. A new set comes into being under that lock: the file is created empty, locked, and only then
 * written. So a file of no bytes in an otherwise empty folder is what an interrupted beginning leaves, and is completed;
 * anywhere else it is an error. A set that was made for a backup which then failed is removed again under the lock; whoever
 * opened the file just before finds, once it has the lock, that the file is no longer in the folder, and begins anew.
 *
 * A set of version 1 gets its id in a new file, which is locked before it takes the place of the old one: so the set is
 * never without a lock, and whoever opened the old file begins anew. A crash leaves the old file, or the new one whole.
 */
#include "set/set.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "set/hashes.h"
#include "set/json_file.h"
#include "set/leftover.h"

struct set {
    char *path;
    int directory;
    int lock; /* fleece.json, when opened to add; else -1 */
    char vm[LIMIT_NAME_BYTES + 1];
    char id[UUID_TEXT_BYTES]; /* empty: a set of version 1 */
    bool made_folder, made_set, has_new_point;
};

const char *set_path(const struct set *set)
{
    return set->path;
}

const char *set_vm(const struct set *set)
{
    return set->vm;
}

const char *set_id(const struct set *set)
{
    return set->id;
}

int set_directory(const struct set *set)
{
    return set->directory;
}

void set_note_point(struct set *set)
{
    set->has_new_point = true;
}

static void set_free(struct set *set)
{
    if (set->lock >= 0)
        close(set->lock);
    if (set->directory >= 0)
        close(set->directory);
    free(set->path);
    free(set);
}

void set_close(struct set *set)
{
    if (set->made_set && !set->has_new_point)
        unlinkat(set->directory, SET_FILE, 0);
    if (set->made_folder && !set->has_new_point)
        rmdir(set->path); /* fails when something is in it, which is right */
    set_free(set);
}

/* A set object with its folder open. */
static int set_create(const char *path, struct set **set, struct error *err)
{
    struct set *made = calloc(1, sizeof *made);
    if (!made || !(made->path = strdup(path))) {
        free(made);
        return error_set(err, ENOMEM, "no memory to open '%s'", path);
    }
    size_t length = strlen(made->path); /* "DIR/" reads better as "DIR" in sentences */
    while (length > 1 && made->path[length - 1] == '/')
        made->path[--length] = '\0';
    made->lock = -1;
    made->directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (made->directory >= 0) {
        *set = made;
        return 0;
    }
    int code = errno;
    set_free(made);
    if (code == ENOENT)
        return error_set(err, code, "there is no backup set at '%s': no such folder", path);
    if (code == ENOTDIR)
        return error_set(err, code, "'%s' is not a backup set: it is not a folder", path);
    return error_set(err, code, "the backup set '%s' can't be opened: %s", path, error_name(code));
}

/* Reads fleece.json. */
static int set_load(struct set *set, struct error *err)
{
    char shown[PATH_MAX];
    json_t *json = NULL;
    uint64_t version = 0;
    snprintf(shown, sizeof shown, "%s/%s", set->path, SET_FILE);
    if (faccessat(set->directory, SET_FILE, F_OK, AT_SYMLINK_NOFOLLOW) < 0 && errno == ENOENT)
        return error_set(err, ENOENT, "'%s' is not a backup set: it has no %s", set->path, SET_FILE);
    int status = json_file_load(set->directory, SET_FILE, shown, &json, err);
    if (status < 0)
        return status;
    status = json_field_is(json, "", "format", SET_FORMAT, err);
    if (status == 0)
        status = json_field_number(json, "", "version", INT32_MAX, &version, err);
    if (status == 0 && (version < SET_VERSION_OLDEST || version > SET_VERSION))
        status = error_set(err, ENOTSUP, "it has version %llu; this fleece reads versions %d to %d",
                           (unsigned long long)version, SET_VERSION_OLDEST, SET_VERSION);
    if (status == 0)
        status = json_field_text(json, "", "vm", set->vm, sizeof set->vm, err);
    if (status == 0 && version >= 2)
        status = json_field_uuid(json, "", "id", set->id, err);
    if (status == 0 && version >= 2)
        status = manifest_check_hash(json, err);
    json_decref(json);
    return status < 0 ? error_prefix(err, "%s", shown) : 0;
}

int set_open(const char *path, struct set **set, struct error *err)
{
    int status = set_create(path, set, err);
    if (status == 0 && (status = set_load(*set, err)) < 0) {
        set_free(*set);
        *set = NULL;
    }
    return status;
}

/* The first thing in the folder that is not `fleece.json`; name[0] is 0 if there is none. -errno. */
static int first_other_entry(const struct set *set, char *name, size_t size)
{
    int fd = openat(set->directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *folder = fd < 0 ? NULL : fdopendir(fd);
    if (!folder) {
        int code = errno;
        if (fd >= 0)
            close(fd);
        return -code;
    }
    const struct dirent *entry;
    name[0] = '\0';
    while ((entry = readdir(folder)) != NULL && name[0] == '\0')
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0 && strcmp(entry->d_name, SET_FILE) != 0)
            snprintf(name, size, "%s", entry->d_name);
    closedir(folder);
    return 0;
}

static int refuse_strange_folder(const struct set *set, struct error *err)
{
    char other[NAME_MAX + 1];
    int status = first_other_entry(set, other, sizeof other);
    if (status < 0)
        return error_set(err, -status, "the folder '%s' can't be read: %s", set->path, error_name(status));
    if (other[0])
        return error_set(err, ENOTEMPTY, "'%s' is neither a backup set nor empty: it has no %s, but '%.80s'", set->path,
                         SET_FILE, other);
    return 0;
}

/* 0 locked, 1 the file has just been removed: begin anew, -errno. */
static int set_lock(struct set *set, struct error *err)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    struct stat locked, present;
    set->lock = openat(set->directory, SET_FILE, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
    if (set->lock < 0)
        return error_set(err, errno, "can't open %s/%s to write: %s", set->path, SET_FILE, error_name(errno));
    if (fcntl(set->lock, F_OFD_SETLK, &lock) < 0) {
        char who[LIMIT_ERROR_BYTES / 2];
        if (errno != EAGAIN && errno != EACCES)
            return error_set(err, errno, "can't lock %s/%s: %s", set->path, SET_FILE, error_name(errno));
        leftover_describe_owner(set, who, sizeof who);
        return error_set(err, EBUSY, "another backup into '%s' is running%s", set->path, who);
    }
    if (fstat(set->lock, &locked) < 0)
        return error_set(err, errno, "can't read %s/%s: %s", set->path, SET_FILE, error_name(errno));
    if (!S_ISREG(locked.st_mode))
        return error_set(err, EINVAL, "%s/%s is not a regular file", set->path, SET_FILE);
    if (fstatat(set->directory, SET_FILE, &present, AT_SYMLINK_NOFOLLOW) == 0 && present.st_ino == locked.st_ino &&
        present.st_dev == locked.st_dev)
        return 0;
    close(set->lock);
    set->lock = -1;
    return 1;
}

/* A new random UUID (RFC 4122, version 4). */
static int make_id(char *id)
{
    uint8_t random[16];
    if (getrandom(random, sizeof random, 0) != sizeof random)
        return -EIO;
    random[6] = (uint8_t)(0x40 | (random[6] & 0x0f));
    random[8] = (uint8_t)(0x80 | (random[8] & 0x3f));
    for (unsigned i = 0; i < sizeof random; i++) {
        bool hyphen = i == 4 || i == 6 || i == 8 || i == 10;
        id += sprintf(id, hyphen ? "-%02x" : "%02x", random[i]);
    }
    return 0;
}

/* Writes the fields into `file`, which is locked and empty. */
static int set_write(const struct set *set, int file, const char *name, const char *vm, struct error *err)
{
    char id[UUID_TEXT_BYTES];
    if (make_id(id) < 0)
        return error_set(err, EIO, "no random numbers for the id of a backup set");
    json_t *json = json_pack("{s:s, s:i, s:s, s:s}", "format", SET_FORMAT, "version", SET_VERSION, "id", id, "vm", vm);
    char *text = json && manifest_add_hash(json) == 0 ? json_dumps(json, JSON_INDENT(2) | JSON_PRESERVE_ORDER) : NULL;
    json_decref(json);
    if (!text)
        return error_set(err, ENOMEM, "no memory for %s/%s", set->path, name);
    errno = ENOSPC; /* what a short write means */
    bool well = write(file, text, strlen(text)) == (ssize_t)strlen(text) && fsync(file) == 0 &&
                fsync(set->directory) == 0;
    int code = errno;
    free(text);
    return well ? 0 : error_set(err, code, "can't write %s/%s: %s", set->path, name, error_name(code));
}

/* From version 1 to 2, locked before and after. */
static int set_upgrade(struct set *set, struct error *err)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    int fd = openat(set->directory, SET_NEW_FILE, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK,
                    0600);
    if (fd < 0 || fcntl(fd, F_OFD_SETLK, &lock) < 0) {
        int code = errno;
        if (fd >= 0)
            close(fd);
        return error_set(err, code, "can't write %s/%s: %s", set->path, SET_NEW_FILE, error_name(code));
    }
    int status = set_write(set, fd, SET_NEW_FILE, set->vm, err);
    if (status == 0 &&
        (renameat(set->directory, SET_NEW_FILE, set->directory, SET_FILE) < 0 || fsync(set->directory) < 0))
        status = error_set(err, errno, "can't write %s/%s: %s", set->path, SET_FILE, error_name(errno));
    if (status < 0) {
        close(fd);
        return status;
    }
    close(set->lock);
    set->lock = fd;
    return set_load(set, err);
}

static int set_prepare(struct set *set, const char *vm, struct error *err)
{
    struct stat stat;
    int status = 1;
    while (status == 1) {
        if (faccessat(set->directory, SET_FILE, F_OK, AT_SYMLINK_NOFOLLOW) < 0 &&
            (status = refuse_strange_folder(set, err)) < 0)
            return status;
        status = set_lock(set, err);
    }
    if (status < 0)
        return status;
    if (fstat(set->lock, &stat) == 0 && stat.st_size == 0) {
        status = refuse_strange_folder(set, err);
        set->made_set |= status == 0;
        if (status == 0)
            status = set_write(set, set->lock, SET_FILE, vm, err);
    }
    if (status == 0)
        status = set_load(set, err);
    if (status == 0 && strcmp(set->vm, vm) != 0)
        status = error_set(err, EEXIST, "the backup set '%s' is of VM '%s', not of '%s'", set->path, set->vm, vm);
    return status == 0 && !set->id[0] ? set_upgrade(set, err) : status;
}

int set_open_to_add(const char *path, const char *vm, struct set **set, struct error *err)
{
    bool made_folder = mkdir(path, 0700) == 0;
    if (!made_folder && errno != EEXIST)
        return error_set(err, errno, "can't make the folder '%s': %s", path, error_name(errno));
    int status = set_create(path, set, err);
    if (status < 0)
        return status;
    (*set)->made_folder = made_folder;
    status = set_prepare(*set, vm, err);
    if (status < 0) {
        set_close(*set);
        *set = NULL;
    }
    return status;
}

/* Pruning exchanges folders, so that manifest and image of a reader might be of two of them. A file system without such
 * locks has readers that may be told of damage that is none, while a set is pruned there; nothing worse. */
static int lock_folder(struct set *set, int operation, const char *refusal, struct error *err)
{
    if (flock(set->directory, operation | LOCK_NB) == 0 || errno != EWOULDBLOCK)
        return 0;
    return error_set(err, EBUSY, "the backup set '%s' %s", set->path, refusal);
}

int set_begin_reading(struct set *set, struct error *err)
{
    return lock_folder(set, LOCK_SH, "is being pruned, which may be interrupted at any time", err);
}

int set_open_to_prune(const char *path, struct set **set, struct error *err)
{
    int status = 1;
    while (status == 1) { /* again when fleece.json was replaced just now */
        status = set_open(path, set, err);
        if (status < 0)
            return status;
        status = set_lock(*set, err);
        if (status == 0)
            status = lock_folder(*set, LOCK_EX, "is being read: by verify, restore or audit", err);
        if (status != 0) {
            set_free(*set);
            *set = NULL;
        }
    }
    return status;
}

/* --- points */

static int compare_names(const void *a, const void *b)
{
    return point_name_compare(a, b);
}

static int points_add(struct set_points *points, unsigned *room, const char *name)
{
    if (points->count == *room) {
        *room = *room ? 2 * *room : 64;
        void *names = realloc(points->names, *room * sizeof *points->names);
        if (!names)
            return -ENOMEM;
        points->names = names;
    }
    strcpy(points->names[points->count++], name);
    return points->count > LIMIT_POINTS ? -E2BIG : 0;
}

int set_points_list(const struct set *set, struct set_points *points, struct error *err)
{
    int fd = openat(set->directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), status = 0;
    DIR *folder = fd < 0 ? NULL : fdopendir(fd);
    const struct dirent *entry;
    unsigned room = 0;
    memset(points, 0, sizeof *points);
    if (!folder) {
        status = -errno;
        if (fd >= 0)
            close(fd);
        return error_set(err, -status, "the backup set '%s' can't be read: %s", set->path, error_name(status));
    }
    while (status == 0 && (entry = readdir(folder)) != NULL)
        if (point_name_valid(entry->d_name))
            status = points_add(points, &room, entry->d_name);
    closedir(folder);
    if (status < 0) {
        set_points_free(points);
        return error_set(err, -status, "the points of '%s' can't be listed: %s", set->path, error_name(status));
    }
    if (points->count > 0)
        qsort(points->names, points->count, sizeof *points->names, compare_names);
    return 0;
}

void set_points_free(struct set_points *points)
{
    free(points->names);
    memset(points, 0, sizeof *points);
}

int set_point_find(const struct set *set, const char *wanted, char *name, struct error *err)
{
    struct set_points points;
    bool latest = !wanted || strcmp(wanted, "latest") == 0, found = false;
    int status = set_points_list(set, &points, err);
    if (status < 0)
        return status;
    for (unsigned i = 0; i < points.count; i++) {
        if (latest ? i == points.count - 1 : strcmp(points.names[i], wanted) == 0) {
            strcpy(name, points.names[i]);
            found = true;
        }
    }
    set_points_free(&points);
    if (found)
        return 0;
    if (latest)
        return error_set(err, ENOENT, "the backup set '%s' has no point yet", set->path);
    return error_set(err, ENOENT, "the backup set '%s' has no point '%.80s'", set->path, wanted);
}

/* The folder of a point. */
static int point_folder(const struct set *set, const char *point, struct error *err)
{
    int fd = openat(set->directory, point, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return error_set(err, errno, "%s/%s can't be opened: %s", set->path, point, error_name(errno));
    return fd;
}

int set_manifest_load(const struct set *set, const char *point, struct manifest *manifest, struct error *err)
{
    char shown[PATH_MAX];
    struct error other;
    json_t *json = NULL;
    int folder = point_folder(set, point, err);
    if (folder < 0)
        return folder;
    snprintf(shown, sizeof shown, "%s/%s/%s", set->path, point, MANIFEST_FILE);
    int status = json_file_load(folder, MANIFEST_FILE, shown, &json, err);
    close(folder);
    if (status < 0)
        return status;
    status = manifest_from_json(json, manifest, err);
    if (status == 0 && strcmp(manifest->vm, set->vm) != 0)
        status = error_set(err, EINVAL, "the field 'vm' is '%s', but the set is of VM '%.64s'", manifest->vm, set->vm);
    if (status == 0 && strncmp(point, manifest->created, POINT_TIME_BYTES - 1) != 0)
        status = error_set(err, EINVAL, "the field 'created' is '%s', but the point is called '%s'", manifest->created,
                           point);
    if (status == 0)
        status = manifest_check_hash(json, err);
    if (status == -ENOTSUP && manifest_check_hash(json, &other) < 0)
        err->code = EBADMSG; /* not newer, but wrong */
    json_decref(json);
    return status < 0 ? error_prefix(err, "%s", shown) : 0;
}

int set_hashes_load(const struct set *set, const char *point, const struct manifest_disk *disk, struct hashes *hashes,
                    struct error *err)
{
    char shown[PATH_MAX];
    int folder = point_folder(set, point, err);
    if (folder < 0)
        return folder;
    snprintf(shown, sizeof shown, "%s/%s/%s", set->path, point, disk->hashes);
    int status = hashes_init(hashes, disk->size_bytes, disk->incremental, err);
    if (status == 0)
        status = hashes_read(folder, disk->hashes, shown, disk->hashes_sha256, hashes, err);
    if (status == 0 && hashes_captured_bytes(hashes) != disk->captured_bytes)
        status = error_set(err, EBADMSG, "%s is damaged: it is about %llu captured bytes; the manifest says %llu",
                           shown, (unsigned long long)hashes_captured_bytes(hashes),
                           (unsigned long long)disk->captured_bytes);
    close(folder);
    if (status < 0)
        hashes_fini(hashes);
    return status;
}

int set_image_find(const struct set *set, const char *point, const struct manifest_disk *disk, char *path, size_t size,
                   bool strict, struct error *err)
{
    uint64_t right = disk->format == MANIFEST_RAW ? disk->size_bytes : strict ? disk->image_bytes : 0;
    struct stat stat;
    if ((size_t)snprintf(path, size, "%s/%s/%s", set->path, point, disk->image) >= size)
        return error_set(err, ENAMETOOLONG, "the path of the image of %s is too long", disk->name);
    if (lstat(path, &stat) < 0)
        return error_set(err, errno, "the image %s of disk %s can't be read: %s", path, disk->name, error_name(errno));
    if (!S_ISREG(stat.st_mode))
        return error_set(err, EBADMSG, "the image %s of disk %s is not a regular file", path, disk->name);
    if ((right || disk->format == MANIFEST_RAW) && (uint64_t)stat.st_size != right)
        return error_set(err, EBADMSG, "the image %s of disk %s is damaged: it has %lld bytes, not %llu", path,
                         disk->name, (long long)stat.st_size, (unsigned long long)right);
    return 0;
}
