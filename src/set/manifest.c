/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The manifest is the only thing that says what a point holds, and it may have been damaged or written by somebody else:
 * everything in it is checked before it is used. File names have no '/' and only harmless characters, so that a manifest
 * can never point out of its folder; no two disks share a name or a file. A hash over all fields finds what still looks
 * right, a digit of a time or a letter of a name.
 */
#include "set/manifest.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <gnutls/crypto.h>

#include "base/name.h"
#include "set/json_file.h"

static bool all_of(const char *text, const char *allowed)
{
    return text[strspn(text, allowed)] == '\0';
}

static int field_name(const json_t *object, const char *where, const char *key, char *text, struct error *err)
{
    char what[64];
    int status = json_field_text(object, where, key, text, LIMIT_NAME_BYTES + 1, err);
    snprintf(what, sizeof what, "the field '%s%s':", where, key);
    return status < 0 ? status : name_check(what, text, err);
}

static int field_file(const json_t *object, const char *where, const char *key, char *text, struct error *err)
{
    static const char allowed[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
    int status = json_field_text(object, where, key, text, LIMIT_IMAGE_NAME_BYTES + 1, err);
    if (status < 0)
        return status;
    if (text[0] == '\0' || !all_of(text, allowed) || strcmp(text, ".") == 0 || strcmp(text, "..") == 0 ||
        strcmp(text, MANIFEST_FILE) == 0)
        return error_set(err, EINVAL,
                         "the field '%s%s' is '%s', not the name of a file of the point: A-Z a-z 0-9 . _ - and no '/'",
                         where, key, text);
    return 0;
}

static int field_hexadecimal(const json_t *object, const char *where, const char *key, char *text, struct error *err)
{
    int status = json_field_text(object, where, key, text, SHA256_TEXT_BYTES, err);
    if (status == 0 && (strlen(text) != SHA256_TEXT_BYTES - 1 || !all_of(text, "0123456789abcdef")))
        status = error_set(err, EINVAL, "the field '%s%s' is not a SHA-256: 64 digits of 0-9 a-f", where, key);
    return status;
}

static int field_time(const json_t *object, const char *key, char *text, struct error *err)
{
    int status = json_field_text(object, "", key, text, POINT_TIME_BYTES, err);
    if (status == 0 && !point_time_valid(text))
        status = error_set(err, EINVAL, "the field '%s' is '%s', not a time such as 2026-11-22T06:05:45Z", key, text);
    return status;
}

static int field_uuid(const json_t *object, const char *key, char *text, struct error *err)
{
    int status = json_field_text(object, "", key, text, UUID_TEXT_BYTES, err);
    bool right = status == 0 && strlen(text) == UUID_TEXT_BYTES - 1 && all_of(text, "0123456789abcdef-");
    for (unsigned i = 0; right && i < UUID_TEXT_BYTES - 1; i++)
        right = (text[i] == '-') == (i == 8 || i == 13 || i == 18 || i == 23);
    if (status == 0 && !right)
        status = error_set(err, EINVAL, "the field '%s' is '%s', not a UUID", key, text);
    return status;
}

static int disk_from_json(const json_t *json, const char *where, struct manifest_disk *disk, struct error *err)
{
    uint64_t extent_bytes;
    int status = field_name(json, where, "name", disk->name, err);
    if (status == 0)
        status = json_field_number(json, where, "size", LIMIT_DISK_BYTES, &disk->size_bytes, err);
    if (status == 0)
        status = json_field_number(json, where, "data", disk->size_bytes, &disk->data_bytes, err);
    if (status == 0)
        status = json_field_is(json, where, "format", "raw", err);
    if (status == 0)
        status = field_file(json, where, "image", disk->image, err);
    if (status == 0)
        status = field_file(json, where, "hashes", disk->hashes, err);
    if (status == 0)
        status = field_hexadecimal(json, where, "hashes-sha256", disk->hashes_sha256, err);
    if (status == 0)
        status = json_field_number(json, where, "extent", LIMIT_DISK_BYTES, &extent_bytes, err);
    if (status == 0 && extent_bytes != MANIFEST_EXTENT_BYTES)
        status = error_set(err, EINVAL, "the field '%sextent' is %llu, not %llu", where,
                           (unsigned long long)extent_bytes, (unsigned long long)MANIFEST_EXTENT_BYTES);
    return status;
}

/* A disk against those before it. */
static int disk_is_unique(const struct manifest *manifest, unsigned index, struct error *err)
{
    const struct manifest_disk *disk = &manifest->disks[index];
    if (strcmp(disk->image, disk->hashes) == 0)
        return error_set(err, EINVAL, "the fields 'disks[%u].image' and 'disks[%u].hashes' name the same file '%s'",
                         index, index, disk->image);
    for (unsigned i = 0; i < index; i++) {
        const struct manifest_disk *other = &manifest->disks[i];
        if (strcmp(disk->name, other->name) == 0)
            return error_set(err, EINVAL, "the fields 'disks[%u].name' and 'disks[%u].name' are both '%s'", i, index,
                             disk->name);
        if (strcmp(disk->image, other->image) == 0 || strcmp(disk->image, other->hashes) == 0 ||
            strcmp(disk->hashes, other->image) == 0 || strcmp(disk->hashes, other->hashes) == 0)
            return error_set(err, EINVAL, "'disks[%u]' and 'disks[%u]' name the same file", i, index);
    }
    return 0;
}

static int disks_from_json(const json_t *json, struct manifest *manifest, struct error *err)
{
    const json_t *disks = json_object_get(json, "disks");
    size_t count = json_array_size(disks);
    if (!json_is_array(disks) || count < 1 || count > LIMIT_DISKS)
        return error_set(err, EINVAL, "the field 'disks' is not a list of 1 to %d disks", LIMIT_DISKS);
    for (unsigned i = 0; i < count; i++) {
        const json_t *disk = json_array_get(disks, i);
        char where[32];
        snprintf(where, sizeof where, "disks[%u].", i);
        if (!json_is_object(disk))
            return error_set(err, EINVAL, "the field 'disks[%u]' is not an object", i);
        int status = disk_from_json(disk, where, &manifest->disks[i], err);
        if (status == 0)
            status = disk_is_unique(manifest, i, err);
        if (status < 0)
            return status;
    }
    manifest->disk_count = (unsigned)count;
    return 0;
}

int manifest_from_json(const json_t *json, struct manifest *manifest, struct error *err)
{
    uint64_t version = 0;
    memset(manifest, 0, sizeof *manifest);
    int status = json_field_is(json, "", "format", MANIFEST_FORMAT, err);
    if (status == 0)
        status = json_field_number(json, "", "version", INT32_MAX, &version, err);
    if (status == 0 && version != MANIFEST_VERSION)
        status = error_set(err, ENOTSUP, "it has version %llu; this fleece reads version %d",
                           (unsigned long long)version, MANIFEST_VERSION);
    if (status == 0)
        status = json_field_is(json, "", "state", "complete", err);
    if (status == 0)
        status = field_name(json, "", "vm", manifest->vm, err);
    if (status == 0)
        status = json_field_text(json, "", "tool", manifest->tool, sizeof manifest->tool, err);
    if (status == 0)
        status = field_time(json, "created", manifest->created, err);
    if (status == 0)
        status = field_uuid(json, "snapshot", manifest->snapshot, err);
    return status == 0 ? disks_from_json(json, manifest, err) : status;
}

/* The SHA-256 of the object as compact text with sorted keys, without the field `sha256`. */
static int hash_fields(const json_t *json, char *sha256)
{
    static const char digits[] = "0123456789abcdef";
    uint8_t hash[SHA256_TEXT_BYTES / 2];
    json_t *others = json_copy((json_t *)(uintptr_t)json);
    json_object_del(others, "sha256");
    char *text = json_dumps(others, JSON_COMPACT | JSON_SORT_KEYS);
    int status = text && gnutls_hash_fast(GNUTLS_DIG_SHA256, text, strlen(text), hash) == 0 ? 0 : -ENOMEM;
    for (unsigned i = 0; status == 0 && i < sizeof hash; i++) {
        sha256[2 * i] = digits[hash[i] >> 4];
        sha256[2 * i + 1] = digits[hash[i] & 15];
    }
    sha256[SHA256_TEXT_BYTES - 1] = '\0';
    free(text);
    json_decref(others);
    return status;
}

int manifest_check_hash(const json_t *json, struct error *err)
{
    char right[SHA256_TEXT_BYTES], found[SHA256_TEXT_BYTES];
    int status = field_hexadecimal(json, "", "sha256", found, err);
    if (status < 0)
        return status;
    if (hash_fields(json, right) < 0)
        return error_set(err, ENOMEM, "no memory for its SHA-256");
    if (strcmp(found, right) != 0)
        return error_set(err, EBADMSG, "it is damaged: its fields have not the SHA-256 that the field 'sha256' says");
    return 0;
}

json_t *manifest_to_json(const struct manifest *manifest)
{
    json_t *disks = json_array();
    for (unsigned i = 0; i < manifest->disk_count; i++) {
        const struct manifest_disk *disk = &manifest->disks[i];
        json_array_append_new(disks,
                              json_pack("{s:s, s:I, s:I, s:s, s:s, s:I, s:s, s:s}", "name", disk->name, "size",
                                        (json_int_t)disk->size_bytes, "data", (json_int_t)disk->data_bytes, "format",
                                        "raw", "image", disk->image, "extent", (json_int_t)MANIFEST_EXTENT_BYTES,
                                        "hashes", disk->hashes, "hashes-sha256", disk->hashes_sha256));
    }
    json_t *json = json_pack("{s:s, s:i, s:s, s:s, s:s, s:s, s:s, s:o}", "format", MANIFEST_FORMAT, "version",
                             MANIFEST_VERSION, "state", "complete", "vm", manifest->vm, "tool", manifest->tool,
                             "created", manifest->created, "snapshot", manifest->snapshot, "disks", disks);
    char sha256[SHA256_TEXT_BYTES];
    if (json && json_array_size(disks) == manifest->disk_count && hash_fields(json, sha256) == 0 &&
        json_object_set_new(json, "sha256", json_string(sha256)) == 0)
        return json;
    json_decref(json);
    return NULL;
}

json_t *manifest_unfinished_to_json(const struct manifest_unfinished *unfinished)
{
    return json_pack("{s:s, s:i, s:s, s:s, s:I, s:s, s:s}", "format", MANIFEST_FORMAT, "version", MANIFEST_VERSION,
                     "state", "unfinished", "vm", unfinished->vm, "pid", (json_int_t)unfinished->pid, "host",
                     unfinished->host, "started", unfinished->started);
}

int manifest_recognise(const json_t *json, struct manifest_unfinished *unfinished)
{
    struct error err;
    memset(unfinished, 0, sizeof *unfinished);
    int status = json_field_is(json, "", "format", MANIFEST_FORMAT, &err);
    if (status < 0 || json_field_is(json, "", "state", "unfinished", &err) < 0)
        return status;
    if (field_name(json, "", "vm", unfinished->vm, &err) < 0 ||
        json_field_number(json, "", "pid", INT32_MAX, &unfinished->pid, &err) < 0 ||
        json_field_text(json, "", "host", unfinished->host, sizeof unfinished->host, &err) < 0 ||
        field_time(json, "started", unfinished->started, &err) < 0)
        memset(unfinished, 0, sizeof *unfinished);
    return 0;
}

const struct manifest_disk *manifest_disk_find(const struct manifest *manifest, const char *name)
{
    for (unsigned i = 0; i < manifest->disk_count; i++)
        if (strcmp(manifest->disks[i].name, name) == 0)
            return &manifest->disks[i];
    return NULL;
}
