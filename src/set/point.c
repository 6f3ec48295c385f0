/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How a point comes into being:
 *
 *   mkdir .tmp-RANDOM; manifest.json with "state": "unfinished" (who, since when), durable
 *   the images, the files of hashes, what lets an interrupted backup go on (resume.c)
 *   fsync the images; manifest.json.new, durable; rename to manifest.json; fsync the folder
 *   rename the folder to its time; fsync the set's folder; remove resume.json
 *
 * At every moment the folder is recognised by what manifest.json says (leftover.c), and only the last rename makes it
 * visible, when all of it is on stable storage. If the very last fsync fails the rename is taken back, as far as the file
 * system still lets us: what can't be promised is not shown.
 *
 * A complete manifest beside a resume.json, under a hidden name, is a backup that was killed just before that rename:
 * whoever goes on with it has only that to do. Points that prune makes or removes have hidden names and complete manifests
 * for a moment, too, but never a resume.json: where one was left in a visible point it goes, durably, before anything
 * else (leftover.c).
 *
 * A point that is there is made anew in the same way, but that the last rename exchanges both folders: at every moment there
 * is one whole point of that name, and what the other name then holds is a left-over like any, whether we get to remove
 * it or not. A point that is to go is first renamed like one, too.
 */
#include "set/point.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "set/json_file.h"
#include "set/qcow2_check.h"
#include "set/resume.h"

struct point {
    struct set *set;
    int folder;
    bool finished; /* its manifest is complete */
    char name[UNFINISHED_NAME_BYTES];
};

static void point_free(struct point *point)
{
    close(point->folder);
    free(point);
}

void point_leave(struct point *point)
{
    set_note_point(point->set); /* so that the set stays, even if this would have been its first one */
    point_free(point);
}

int point_folder(const struct point *point)
{
    return point->folder;
}

void point_file_path(const struct point *point, const char *file, char *path, size_t size)
{
    snprintf(path, size, "%s/%s/%s", set_path(point->set), point->name, file);
}

void point_abandon(struct point *point)
{
    char reason[LIMIT_ERROR_BYTES];
    leftover_remove(point->set, point->name, reason, sizeof reason);
    fsync(set_directory(point->set));
    point_free(point);
}

/* The path of a file of the point, for sentences. */
static void show(const struct point *point, const char *file, char *shown)
{
    point_file_path(point, file, shown, PATH_MAX);
}

/* Says who makes the point: into the manifest's place, or (as `file`) over what is there. */
static int write_mark(struct point *point, const char *file, uint64_t now_seconds, struct error *err)
{
    struct manifest_unfinished unfinished = {.pid = (uint64_t)getpid()};
    char shown[PATH_MAX];
    snprintf(unfinished.vm, sizeof unfinished.vm, "%s", set_vm(point->set));
    point_time_format(unfinished.started, now_seconds);
    if (gethostname(unfinished.host, sizeof unfinished.host) < 0)
        strcpy(unfinished.host, "unknown");
    unfinished.host[sizeof unfinished.host - 1] = '\0';
    for (char *at = unfinished.host; *at; at++)
        if (*at < ' ' || *at > '~') /* JSON takes only UTF-8 */
            *at = '?';
    show(point, MANIFEST_FILE, shown);
    json_t *json = manifest_unfinished_to_json(&unfinished);
    if (!json)
        return error_set(err, ENOMEM, "no memory for %s", shown);
    unlinkat(point->folder, MANIFEST_NEW_FILE, 0);
    int status = json_file_create(point->folder, file, shown, json, err);
    json_decref(json);
    if (status == 0 && strcmp(file, MANIFEST_FILE) != 0 &&
        renameat(point->folder, file, point->folder, MANIFEST_FILE) < 0)
        status = error_set(err, errno, "can't write %s: %s", shown, error_name(errno));
    if (status == 0 && (fsync(point->folder) < 0 || fsync(set_directory(point->set)) < 0))
        status = error_set(err, errno, "can't write %s: %s", shown, error_name(errno));
    return status;
}

/* A name for an unfinished point: name[UNFINISHED_NAME_BYTES]. */
static int make_name(char *name, struct error *err)
{
    uint64_t number;
    if (getrandom(&number, sizeof number, 0) != sizeof number)
        return error_set(err, EIO, "no random numbers for the name of a folder");
    snprintf(name, UNFINISHED_NAME_BYTES, UNFINISHED_PREFIX "%016llx", (unsigned long long)number);
    return 0;
}

static int make_folder(struct point *point, struct error *err)
{
    int status = make_name(point->name, err);
    if (status < 0)
        return status;
    if (mkdirat(set_directory(point->set), point->name, 0700) < 0)
        return error_set(err, errno, "can't make a folder in '%s': %s", set_path(point->set), error_name(errno));
    point->folder = openat(set_directory(point->set), point->name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (point->folder < 0) {
        int code = errno;
        unlinkat(set_directory(point->set), point->name, AT_REMOVEDIR);
        return error_set(err, code, "can't open a folder in '%s': %s", set_path(point->set), error_name(code));
    }
    return 0;
}

int point_begin(struct set *set, uint64_t now_seconds, struct point **point, struct leftover_report *report,
                struct error *err)
{
    struct point *made = calloc(1, sizeof *made);
    if (!made)
        return error_set(err, ENOMEM, "no memory for a backup point");
    made->set = set;
    int status = make_folder(made, err);
    if (status < 0) {
        free(made);
        return status;
    }
    status = write_mark(made, MANIFEST_FILE, now_seconds, err);
    if (status < 0) {
        point_abandon(made);
        return status;
    }
    if (report)
        leftover_sweep(set, made->name, false, report);
    *point = made;
    return 0;
}

int point_add_disk(struct point *point, const char *name, enum manifest_format format, struct manifest_disk *disk,
                   char *image_path, size_t size, struct error *err)
{
    assert(strlen(name) <= LIMIT_NAME_BYTES);
    memset(disk, 0, sizeof *disk);
    strcpy(disk->name, name);
    disk->format = format;
    snprintf(disk->image, sizeof disk->image, "%s%s", name, format == MANIFEST_RAW ? RAW_SUFFIX : QCOW2_SUFFIX);
    snprintf(disk->hashes, sizeof disk->hashes, "%s" HASHES_SUFFIX, name);
    if ((size_t)snprintf(image_path, size, "%s/%s/%s", set_path(point->set), point->name, disk->image) >= size)
        return error_set(err, ENAMETOOLONG, "the path of the backup set is too long: %zu bytes",
                         strlen(set_path(point->set)));
    return 0;
}

int point_write_hashes(struct point *point, struct manifest_disk *disk, const struct hashes *hashes, struct error *err)
{
    char shown[PATH_MAX];
    assert(hashes->size_bytes == disk->size_bytes && (hashes->masks != NULL) == disk->incremental);
    disk->captured_bytes = hashes_captured_bytes(hashes);
    show(point, disk->hashes, shown);
    unlinkat(point->folder, disk->hashes, 0); /* of the backup that this one goes on with, whose disk was done */
    return hashes_write(point->folder, disk->hashes, shown, hashes, disk->hashes_sha256, err);
}

struct first_damage {
    uint64_t file_offset;
    char what[LIMIT_ERROR_BYTES / 2];
};

static void note_damage(void *context, uint64_t file_offset, const char *what)
{
    struct first_damage *damage = context;
    if (damage->what[0])
        return;
    damage->file_offset = file_offset;
    snprintf(damage->what, sizeof damage->what, "%s", what);
}

static int hash_tables(int fd, struct manifest_disk *disk, struct error *err)
{
    struct first_damage damage = {0};
    struct qcow2_check_options options = {.fd = fd, .allow_leaks = true, .damage = note_damage, .context = &damage};
    uint8_t sha256[COPY_HASH_BYTES];
    int status = qcow2_check(&options, sha256, err);
    if (status == 0 && damage.what[0])
        status = error_set(err, EBADMSG, "what was written is wrong at byte %llu: %s",
                           (unsigned long long)damage.file_offset, damage.what);
    if (status == 0)
        hashes_sha256_text(sha256, disk->tables_sha256);
    return status;
}

int point_note_image(const struct point *point, struct manifest_disk *disk, struct error *err)
{
    char shown[PATH_MAX];
    struct stat stat;
    show(point, disk->image, shown);
    int fd = openat(point->folder, disk->image, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return error_set(err, errno, "%s can't be opened: %s", shown, error_name(errno));
    int status = fstat(fd, &stat) < 0 ? error_set(err, errno, "it can't be read: %s", error_name(errno)) : 0;
    if (status == 0 && disk->format == MANIFEST_QCOW2)
        status = hash_tables(fd, disk, err);
    if (status == 0)
        disk->image_bytes = (uint64_t)stat.st_size;
    close(fd);
    return status < 0 ? error_prefix(err, "%s", shown) : 0;
}

int point_resume(struct set *set, const char *folder, bool finished, uint64_t now_seconds, struct point **point,
                 struct leftover_report *report, struct error *err)
{
    struct point *made = calloc(1, sizeof *made);
    if (!made)
        return error_set(err, ENOMEM, "no memory for a backup point");
    made->set = set;
    snprintf(made->name, sizeof made->name, "%s", folder);
    made->folder = openat(set_directory(set), folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    int status = 0;
    if (made->folder < 0)
        status = error_set(err, errno, "%s/%s can't be opened: %s", set_path(set), folder, error_name(errno));
    else if (!finished)
        status = write_mark(made, MANIFEST_NEW_FILE, now_seconds, err);
    if (status < 0) {
        if (made->folder >= 0)
            close(made->folder);
        free(made);
        return status;
    }
    made->finished = finished;
    leftover_sweep(set, made->name, false, report);
    *point = made;
    return 0;
}

static int sync_image(const struct point *point, const char *file, struct error *err)
{
    char shown[PATH_MAX];
    int fd = openat(point->folder, file, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    int code = fd < 0 || fsync(fd) < 0 ? errno : 0;
    if (fd >= 0)
        close(fd);
    show(point, file, shown);
    return code ? error_set(err, code, "can't make %s durable: %s", shown, error_name(code)) : 0;
}

static int write_manifest(const struct point *point, const struct manifest *manifest, struct error *err)
{
    char shown[PATH_MAX];
    show(point, MANIFEST_FILE, shown);
    json_t *json = manifest_to_json(manifest);
    struct manifest *again = malloc(sizeof *again);
    int status = json && again ? manifest_from_json(json, again, err)
                               : error_set(err, ENOMEM, "no memory for %s", shown);
    free(again);
    if (status == 0) /* what we could not read ourselves is not written */
        status = json_file_create(point->folder, MANIFEST_NEW_FILE, shown, json, err);
    json_decref(json);
    if (status == 0 &&
        (renameat(point->folder, MANIFEST_NEW_FILE, point->folder, MANIFEST_FILE) < 0 || fsync(point->folder) < 0))
        status = error_set(err, errno, "can't write %s: %s", shown, error_name(errno));
    return status;
}

/* The first name of that second which nothing has. The set is locked: nobody takes it meanwhile. */
static int free_name(const struct point *point, const char *time, char *name, struct error *err)
{
    for (unsigned number = 1; number <= LIMIT_POINTS_PER_SECOND; number++) {
        point_name_make(name, time, number);
        if (faccessat(set_directory(point->set), name, F_OK, AT_SYMLINK_NOFOLLOW) < 0)
            return 0;
    }
    return error_set(err, EEXIST, "the backup set '%s' has %d points of %s already", set_path(point->set),
                     LIMIT_POINTS_PER_SECOND, time);
}

static int make_visible(struct point *point, const char *name, struct error *err)
{
    int directory = set_directory(point->set);
    if (renameat(directory, point->name, directory, name) < 0)
        return error_set(err, errno, "can't rename %s to %s in '%s': %s", point->name, name, set_path(point->set),
                         error_name(errno));
    if (fsync(directory) == 0)
        return 0;
    int code = errno;
    renameat(directory, name, directory, point->name);
    return error_set(err, code, "can't make point %s of '%s' durable: %s", name, set_path(point->set),
                     error_name(code));
}

/* What is of no use to a finished point. */
static void remove_logs(const struct point *point, const struct manifest *manifest)
{
    char name[LIMIT_NAME_BYTES + sizeof RESUME_SUFFIX];
    for (unsigned i = 0; i < manifest->disk_count; i++) {
        snprintf(name, sizeof name, "%s%s", manifest->disks[i].name, RESUME_SUFFIX);
        unlinkat(point->folder, name, 0);
    }
}

int point_finish(struct point *point, struct manifest *manifest, struct error *err)
{
    int status = 0;
    manifest->version = MANIFEST_VERSION;
    strcpy(manifest->vm, set_vm(point->set));
    strcpy(manifest->tool, "fleece " FLEECE_VERSION);
    for (unsigned i = 0; i < manifest->disk_count && status == 0; i++)
        status = sync_image(point, manifest->disks[i].image, err);
    if (status == 0)
        status = write_manifest(point, manifest, err);
    point->finished = status == 0;
    return status;
}

int point_publish(struct point *point, struct manifest *manifest, char *name, struct error *err)
{
    int status = point->finished ? 0 : point_finish(point, manifest, err);
    if (status == 0)
        status = free_name(point, manifest->created, name, err);
    if (status == 0) {
        remove_logs(point, manifest);
        status = make_visible(point, name, err);
    }
    if (status == 0) {
        if (unlinkat(point->folder, RESUME_FILE, 0) == 0)
            fsync(point->folder); /* if that fails it goes later (leftover.c) */
        set_note_point(point->set);
        point_free(point);
    }
    return status;
}

/* --- a point that is there */

static int link_file(const struct point *point, int from, const char *from_name, const char *file, struct error *err)
{
    if (linkat(from, file, point->folder, file, 0) == 0)
        return 0;
    return error_set(err, errno, "can't link %s/%s/%s to the new folder of its point: %s", set_path(point->set),
                     from_name, file, error_name(errno));
}

int point_link_disk(struct point *point, const char *from, const struct manifest_disk *disk, struct error *err)
{
    int folder = openat(set_directory(point->set), from, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (folder < 0)
        return error_set(err, errno, "%s/%s can't be opened: %s", set_path(point->set), from, error_name(errno));
    int status = link_file(point, folder, from, disk->image, err);
    if (status == 0)
        status = link_file(point, folder, from, disk->hashes, err);
    close(folder);
    return status;
}

static int exchange(const struct point *point, const char *name, struct error *err)
{
    int directory = set_directory(point->set);
    if (renameat2(directory, point->name, directory, name, RENAME_EXCHANGE) < 0)
        return error_set(err, errno, "can't exchange %s and %s in '%s': %s", point->name, name, set_path(point->set),
                         error_name(errno));
    if (fsync(directory) == 0)
        return 0;
    int code = errno;
    renameat2(directory, point->name, directory, name, RENAME_EXCHANGE);
    return error_set(err, code, "can't make point %s of '%s' durable: %s", name, set_path(point->set),
                     error_name(code));
}

int point_replace(struct point *point, struct manifest *manifest, const char *name, struct error *err)
{
    int status = point_finish(point, manifest, err);
    if (status == 0)
        status = exchange(point, name, err);
    if (status == 0)
        point_abandon(point); /* its name is now that of the old one */
    return status;
}

int point_remove(struct set *set, const char *name, struct error *err)
{
    char hidden[UNFINISHED_NAME_BYTES], reason[LIMIT_ERROR_BYTES / 2];
    int status = leftover_check(set, name, reason, sizeof reason);
    if (status < 0)
        return error_set(err, -status, "point %s of '%s' can't be removed: %s", name, set_path(set), reason);
    status = make_name(hidden, err);
    if (status < 0)
        return status;
    if (renameat(set_directory(set), name, set_directory(set), hidden) < 0 || fsync(set_directory(set)) < 0)
        return error_set(err, errno, "point %s of '%s' can't be removed: %s", name, set_path(set), error_name(errno));
    status = leftover_remove(set, hidden, reason, sizeof reason);
    return status < 0 ? error_set(err, -status, "%s of '%s' can't be removed: %s", hidden, set_path(set), reason) : 0;
}
