/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A file of a set may be anybody's: it is opened without following a link or waiting for a pipe, measured, read whole within
 * its bound, and only then parsed; duplicate keys are refused. Nothing is written here, so a crash leaves nothing.
 */
#include "set/json_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int json_text_load(const char *text, size_t length, json_t **object, struct error *err)
{
    json_error_t where;
    if (memchr(text, '\0', length)) /* the parser overlooks some */
        return error_set(err, EINVAL, "it is not JSON: it has a byte 0 in it");
    json_t *json = json_loadb(text, length, JSON_REJECT_DUPLICATES, &where);
    if (!json)
        return error_set(err, EINVAL, "it is not JSON: line %d, column %d: %s", where.line, where.column, where.text);
    if (!json_is_object(json)) {
        json_decref(json);
        return error_set(err, EINVAL, "it holds no JSON object");
    }
    *object = json;
    return 0;
}

/* All of a small file into *text (free() it). */
static int read_small(int directory, const char *name, char **text, size_t *length, struct error *err)
{
    int fd = openat(directory, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0 && errno == ELOOP)
        return error_set(err, ELOOP, "it is a symbolic link, which is not followed");
    if (fd < 0)
        return error_set(err, errno, "it can't be opened: %s", error_name(errno));
    struct stat stat;
    int status = 0;
    *text = NULL;
    *length = 0;
    if (fstat(fd, &stat) < 0)
        status = error_set(err, errno, "it can't be read: %s", error_name(errno));
    else if (!S_ISREG(stat.st_mode))
        status = error_set(err, EINVAL, "it is not a regular file");
    else if (stat.st_size > LIMIT_SET_JSON_BYTES)
        status = error_set(err, EFBIG, "it has %lld bytes; at most %d are read", (long long)stat.st_size,
                           LIMIT_SET_JSON_BYTES);
    else if (!(*text = malloc(LIMIT_SET_JSON_BYTES)))
        status = error_set(err, ENOMEM, "no memory to read it");
    while (status == 0 && *length < LIMIT_SET_JSON_BYTES) {
        ssize_t got = read(fd, *text + *length, LIMIT_SET_JSON_BYTES - *length);
        if (got == 0)
            break;
        if (got > 0)
            *length += (size_t)got;
        else if (errno != EINTR)
            status = error_set(err, errno, "it can't be read: %s", error_name(errno));
    }
    close(fd);
    return status;
}

int json_file_load(int directory, const char *name, const char *shown, json_t **object, struct error *err)
{
    char *text = NULL;
    size_t length = 0;
    int status = read_small(directory, name, &text, &length, err);
    if (status == 0)
        status = json_text_load(text, length, object, err);
    free(text);
    return status < 0 ? error_prefix(err, "%s", shown) : 0;
}

static int write_all(int fd, const char *text, size_t length)
{
    while (length > 0) {
        ssize_t written = write(fd, text, length);
        if (written < 0 && errno != EINTR)
            return -errno;
        if (written > 0) {
            text += written;
            length -= (size_t)written;
        }
    }
    return fsync(fd) < 0 ? -errno : 0;
}

int json_file_create(int directory, const char *name, const char *shown, const json_t *object, struct error *err)
{
    char *text = json_dumps(object, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
    if (!text)
        return error_set(err, ENOMEM, "no memory to write %s", shown);
    int fd = openat(directory, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    int status = fd < 0 ? -errno : write_all(fd, text, strlen(text));
    if (fd >= 0 && close(fd) < 0 && status == 0)
        status = -errno;
    free(text);
    return status < 0 ? error_set(err, -status, "can't write %s: %s", shown, error_name(status)) : 0;
}

/* The field, or the sentence that it is missing. */
static const json_t *field(const json_t *object, const char *where, const char *key, struct error *err)
{
    const json_t *value = json_object_get(object, key);
    if (!value)
        error_set(err, EINVAL, "the field '%s%s' is missing", where, key);
    return value;
}

int json_field_text(const json_t *object, const char *where, const char *key, char *text, size_t size,
                    struct error *err)
{
    const json_t *value = field(object, where, key, err);
    if (!value)
        return -EINVAL;
    if (!json_is_string(value))
        return error_set(err, EINVAL, "the field '%s%s' is not a text", where, key);
    if (json_string_length(value) >= size)
        return error_set(err, EINVAL, "the field '%s%s' has %zu bytes; at most %zu are right", where, key,
                         json_string_length(value), size - 1);
    memcpy(text, json_string_value(value), json_string_length(value) + 1);
    return 0;
}

int json_field_number(const json_t *object, const char *where, const char *key, uint64_t most, uint64_t *number,
                      struct error *err)
{
    const json_t *value = field(object, where, key, err);
    if (!value)
        return -EINVAL;
    if (!json_is_integer(value))
        return error_set(err, EINVAL, "the field '%s%s' is not a whole number", where, key);
    json_int_t found = json_integer_value(value);
    if (found < 0 || (uint64_t)found > most)
        return error_set(err, EINVAL, "the field '%s%s' is %lld; 0 to %llu are right", where, key, (long long)found,
                         (unsigned long long)most);
    *number = (uint64_t)found;
    return 0;
}

int json_field_uuid(const json_t *object, const char *where, const char *key, char *uuid, struct error *err)
{
    int status = json_field_text(object, where, key, uuid, UUID_TEXT_BYTES, err);
    bool right = status == 0 && strlen(uuid) == UUID_TEXT_BYTES - 1 &&
                 strspn(uuid, "0123456789abcdef-") == UUID_TEXT_BYTES - 1;
    for (unsigned i = 0; right && i < UUID_TEXT_BYTES - 1; i++)
        right = (uuid[i] == '-') == (i == 8 || i == 13 || i == 18 || i == 23);
    if (status == 0 && !right)
        status = error_set(err, EINVAL, "the field '%s%s' is '%s', not a UUID", where, key, uuid);
    return status;
}

int json_field_is(const json_t *object, const char *where, const char *key, const char *right, struct error *err)
{
    char text[LIMIT_NAME_BYTES + 1];
    int status = json_field_text(object, where, key, text, sizeof text, err);
    if (status == 0 && strcmp(text, right) != 0)
        status = error_set(err, EINVAL, "the field '%s%s' is '%s', not '%s'", where, key, text, right);
    return status;
}
