/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How a backup is left so that it can go on (C24):
 *
 *   point begun, snapshot taken -> resume.json, durable -> copying; again and again: the image is flushed, then the log
 *   has lines about what is in it, durable, and only then the snapshot may forget that
 *
 * So what the snapshot has no more is in the log, and what is in the log is in the image. A line says a run of extents
 * that are alike (a hole of a terabyte is one line), and ends with a CRC of itself: the lines that were on their way
 * when the power failed may be there in parts, and are not needed, since nothing was released for them.
 *
 *   FIRST COUNT DATA MASK SHA256 CRC      decimal three times, 64 digits twice, 8 digits
 *
 * Whether the snapshot is still there, only the daemon can say, by its UUID. When everything is copied the manifest becomes
 * complete, before the snapshot is deleted: from then on it is not needed, and to go on means to make the point visible.
 */
#include "set/resume.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/crc32c.h"
#include "set/json_file.h"

/* --- the plan */

json_t *resume_plan_to_json(const struct resume_plan *plan)
{
    struct manifest *manifest = malloc(sizeof *manifest);
    if (!manifest)
        return NULL;
    *manifest = plan->manifest;
    for (unsigned i = 0; i < manifest->disk_count; i++) { /* as a manifest must have it, until it is known */
        struct manifest_disk *disk = &manifest->disks[i];
        memset(disk->hashes_sha256, '0', SHA256_TEXT_BYTES - 1);
        disk->hashes_sha256[SHA256_TEXT_BYTES - 1] = '\0';
        disk->captured_bytes = disk->incremental ? 0 : disk->size_bytes;
        disk->data_bytes = 0;
    }
    json_t *json = json_pack("{s:s, s:i, s:s, s:o}", "format", RESUME_FORMAT, "version", RESUME_VERSION,
                             "snapshot-name", plan->snapshot_name, "manifest", manifest_to_json(manifest));
    free(manifest);
    return json;
}

int resume_plan_from_json(const json_t *json, struct resume_plan *plan, struct error *err)
{
    const json_t *manifest = json_object_get(json, "manifest");
    uint64_t version = 0;
    int status = json_field_is(json, "", "format", RESUME_FORMAT, err);
    if (status == 0)
        status = json_field_number(json, "", "version", INT32_MAX, &version, err);
    if (status == 0 && version != RESUME_VERSION)
        status = error_set(err, ENOTSUP, "it has version %" PRIu64 "; this fleece reads version %d", version,
                           RESUME_VERSION);
    if (status == 0)
        status = json_field_text(json, "", "snapshot-name", plan->snapshot_name, sizeof plan->snapshot_name, err);
    if (status == 0 && !json_is_object(manifest))
        status = error_set(err, EINVAL, "the field 'manifest' is not an object");
    if (status == 0)
        status = manifest_from_json(manifest, &plan->manifest, err);
    return status == 0 ? manifest_check_hash(manifest, err) : status;
}

int resume_plan_save(const struct point *point, const struct resume_plan *plan, struct error *err)
{
    char shown[PATH_MAX];
    point_file_path(point, RESUME_FILE, shown, sizeof shown);
    json_t *json = resume_plan_to_json(plan);
    if (!json)
        return error_set(err, ENOMEM, "no memory for %s", shown);
    int status = json_file_create(point_folder(point), RESUME_FILE, shown, json, err);
    json_decref(json);
    if (status == 0 && fsync(point_folder(point)) < 0)
        status = error_set(err, errno, "can't write %s: %s", shown, error_name(errno));
    return status;
}

/* Whether the folder has the complete manifest of the backup that `plan` is about; then it takes the place of the planned
 * one. */
static bool load_complete(int folder, struct resume_plan *plan)
{
    struct manifest *manifest = malloc(sizeof *manifest);
    struct error err;
    json_t *json = NULL;
    bool complete = manifest && json_file_load(folder, MANIFEST_FILE, MANIFEST_FILE, &json, &err) == 0 &&
                    manifest_from_json(json, manifest, &err) == 0 && manifest_check_hash(json, &err) == 0 &&
                    strcmp(manifest->vm, plan->manifest.vm) == 0 &&
                    strcmp(manifest->snapshot, plan->manifest.snapshot) == 0;
    if (complete)
        plan->manifest = *manifest;
    json_decref(json);
    free(manifest);
    return complete;
}

int resume_plan_load(const struct set *set, const char *folder, struct resume_plan *plan, struct error *err)
{
    char shown[PATH_MAX];
    json_t *json = NULL;
    int fd = openat(set_directory(set), folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return error_set(err, errno, "%s/%s can't be opened: %s", set_path(set), folder, error_name(errno));
    snprintf(shown, sizeof shown, "%s/%s/%s", set_path(set), folder, RESUME_FILE);
    int status = json_file_load(fd, RESUME_FILE, shown, &json, err);
    if (status < 0) {
        close(fd);
        return status;
    }
    status = resume_plan_from_json(json, plan, err);
    if (status == 0 && strcmp(plan->manifest.vm, set_vm(set)) != 0)
        status = error_set(err, EINVAL, "the field 'vm' is '%s', but the set is of VM '%.64s'", plan->manifest.vm,
                           set_vm(set));
    plan->finished = status == 0 && load_complete(fd, plan);
    close(fd);
    json_decref(json);
    return status < 0 ? error_prefix(err, "%s", shown) : 0;
}

int resume_find(const struct set *set, char folder[UNFINISHED_NAME_BYTES], struct resume_plan *plan, struct error *err)
{
    int fd = openat(set_directory(set), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *entries = fd < 0 ? NULL : fdopendir(fd);
    const struct dirent *entry;
    int status = error_set(err, ENOENT, "'%s' has no interrupted backup that can go on", set_path(set));
    if (!entries && fd >= 0)
        close(fd);
    while (entries && status < 0 && (entry = readdir(entries)) != NULL) {
        struct error why;
        if (!leftover_name_valid(entry->d_name))
            continue;
        memcpy(folder, entry->d_name, UNFINISHED_NAME_BYTES);
        if (resume_plan_load(set, folder, plan, &why) == 0)
            status = 0;
        else if (why.code != ENOENT)
            *err = why;
    }
    if (entries)
        closedir(entries);
    return status;
}

/* --- lines */

static size_t add_hexadecimal(char *text, const uint8_t *bytes, size_t length)
{
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < length; i++) {
        text[2 * i] = digits[bytes[i] >> 4];
        text[2 * i + 1] = digits[bytes[i] & 15];
    }
    return 2 * length;
}

static bool take_hexadecimal(const char *text, uint8_t *bytes, size_t length)
{
    for (size_t i = 0; i < 2 * length; i++) {
        char digit = text[i];
        unsigned value = digit >= '0' && digit <= '9' ? (unsigned)(digit - '0') : (unsigned)(digit - 'a') + 10;
        if (value > 15)
            return false;
        bytes[i / 2] = (uint8_t)(i % 2 ? bytes[i / 2] | value : value << 4);
    }
    return true;
}

size_t resume_line_make(char *text, const struct resume_line *line)
{
    size_t length = (size_t)sprintf(text, "%" PRIu64 " %" PRIu64 " %" PRIu32 " ", line->first, line->count, line->data);
    length += add_hexadecimal(text + length, line->mask, sizeof line->mask);
    text[length++] = ' ';
    length += add_hexadecimal(text + length, line->sha256, sizeof line->sha256);
    return length + (size_t)sprintf(text + length, " %08" PRIx32 "\n", crc32c(0, text, length));
}

bool resume_line_parse(const char *text, size_t length, struct resume_line *line)
{
    char again[RESUME_LINE_BYTES], copy[RESUME_LINE_BYTES];
    int rest = 0;
    if (length >= sizeof copy)
        return false;
    memcpy(copy, text, length);
    copy[length] = '\0';
    /* 18 digits at most: no overflow, and more extents than any disk has */
    if (sscanf(copy, "%18" SCNu64 " %18" SCNu64 " %9" SCNu32 " %n", &line->first, &line->count, &line->data, &rest) !=
            3 ||
        rest <= 0 || (size_t)rest + 4 * COPY_HASH_BYTES + 11 != length)
        return false;
    if (!take_hexadecimal(copy + rest, line->mask, sizeof line->mask) ||
        !take_hexadecimal(copy + rest + 2 * COPY_MASK_BYTES + 1, line->sha256, sizeof line->sha256))
        return false;
    /* There is one text for each line, its CRC included. */
    return line->count > 0 && resume_line_make(again, line) == length && memcmp(again, copy, length) == 0;
}

/* --- the log of a disk */

/* A line about extents of the disk goes into the arrays. */
static bool take_line(struct resume_log *log, const struct resume_line *line, uint64_t *found)
{
    struct hashes *hashes = log->hashes;
    if (line->first >= hashes->count || line->count > hashes->count - line->first || line->data > COPY_EXTENT_BYTES)
        return false;
    for (uint64_t i = line->first; i < line->first + line->count; i++) {
        memcpy(hashes->sha256 + i * COPY_HASH_BYTES, line->sha256, COPY_HASH_BYTES);
        if (hashes->masks)
            memcpy(hashes->masks + i * COPY_MASK_BYTES, line->mask, COPY_MASK_BYTES);
        log->data[i] = line->data;
        *found += !log->already[i];
        log->already[i] = true;
    }
    return true;
}

/* Reads lines until one is not right, and cuts the file off there. */
static int take_lines(struct resume_log *log, uint64_t *found)
{
    int fd = dup(log->file);
    FILE *file = fd < 0 ? NULL : fdopen(fd, "r");
    char text[RESUME_LINE_BYTES + 1];
    struct resume_line line;
    off_t end = 0;
    if (!file) {
        int code = errno;
        if (fd >= 0)
            close(fd);
        return -code;
    }
    while (fgets(text, sizeof text, file) && resume_line_parse(text, strlen(text), &line) &&
           take_line(log, &line, found))
        end += (off_t)strlen(text);
    int status = ferror(file) ? -EIO : 0;
    fclose(file);
    if (status == 0 && (ftruncate(log->file, end) < 0 || lseek(log->file, end, SEEK_SET) < 0))
        status = -errno;
    return status;
}

int resume_log_open(struct point *point, const struct manifest_disk *disk, struct hashes *hashes, uint32_t *data,
                    bool *already, struct resume_log *log, uint64_t *found, struct error *err)
{
    char name[LIMIT_NAME_BYTES + sizeof RESUME_SUFFIX];
    struct stat stat;
    *log = (struct resume_log){.hashes = hashes, .data = data, .already = already};
    *found = 0;
    snprintf(name, sizeof name, "%s%s", disk->name, RESUME_SUFFIX);
    point_file_path(point, name, log->shown, sizeof log->shown);
    log->file = openat(point_folder(point), name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
    int status = log->file < 0 || fstat(log->file, &stat) < 0 ? -errno : 0;
    if (status == 0 && !S_ISREG(stat.st_mode))
        status = -EINVAL;
    if (status == 0)
        status = take_lines(log, found);
    if (status == 0 && fsync(point_folder(point)) < 0)
        status = -errno;
    if (status < 0 && log->file >= 0)
        close(log->file);
    return status < 0 ? error_set(err, -status, "%s can't be used: %s", log->shown, error_name(status)) : 0;
}

/* How many extents from `first` on, up to `most`, are all alike. */
static uint64_t alike(const struct resume_log *log, uint64_t first, uint64_t most)
{
    const struct hashes *hashes = log->hashes;
    uint64_t count = 1;
    while (count < most && log->data[first + count] == log->data[first] &&
           memcmp(hashes->sha256 + (first + count) * COPY_HASH_BYTES, hashes->sha256 + first * COPY_HASH_BYTES,
                  COPY_HASH_BYTES) == 0 &&
           (!hashes->masks || memcmp(hashes->masks + (first + count) * COPY_MASK_BYTES,
                                     hashes->masks + first * COPY_MASK_BYTES, COPY_MASK_BYTES) == 0))
        count++;
    return count;
}

static int write_all(int file, const char *text, size_t length)
{
    while (length > 0) {
        ssize_t written = write(file, text, length);
        if (written < 0 && errno != EINTR)
            return -errno;
        if (written > 0) {
            text += written;
            length -= (size_t)written;
        }
    }
    return 0;
}

int resume_log_add(struct resume_log *log, const struct copy_run *runs, uint64_t count)
{
    char text[RESUME_WRITE_BYTES];
    size_t length = 0;
    int status = 0;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t end = runs[i].first + runs[i].count;
        for (uint64_t at = runs[i].first; at < end;) {
            struct resume_line line = {at, alike(log, at, end - at), log->data[at], {0}, {0}};
            memcpy(line.sha256, log->hashes->sha256 + at * COPY_HASH_BYTES, COPY_HASH_BYTES);
            if (log->hashes->masks)
                memcpy(line.mask, log->hashes->masks + at * COPY_MASK_BYTES, COPY_MASK_BYTES);
            length += resume_line_make(text + length, &line);
            at += line.count;
            if (length > sizeof text - RESUME_LINE_BYTES) {
                status = write_all(log->file, text, length);
                length = 0;
            }
            if (status < 0)
                return status;
        }
    }
    status = write_all(log->file, text, length);
    return status == 0 && fsync(log->file) < 0 ? -errno : status;
}

void resume_log_close(struct resume_log *log)
{
    close(log->file);
}
