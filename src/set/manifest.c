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
#include "set/hashes.h"
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

/* One of two words; *index says which. */
static int field_word(const json_t *object, const char *where, const char *key, const char *const *words,
                      unsigned *index, struct error *err)
{
    char text[LIMIT_NAME_BYTES + 1];
    int status = json_field_text(object, where, key, text, sizeof text, err);
    if (status < 0)
        return status;
    for (*index = 0; *index < 2; ++*index)
        if (strcmp(text, words[*index]) == 0)
            return 0;
    return error_set(err, EINVAL, "the field '%s%s' is '%s', neither '%s' nor '%s'", where, key, text, words[0],
                     words[1]);
}

static int field_time(const json_t *object, const char *key, char *text, struct error *err)
{
    int status = json_field_text(object, "", key, text, POINT_TIME_BYTES, err);
    if (status == 0 && !point_time_valid(text))
        status = error_set(err, EINVAL, "the field '%s' is '%s', not a time such as 2026-11-22T06:05:45Z", key, text);
    return status;
}

static int parent_from_json(const json_t *json, const char *where, struct manifest_parent *parent, struct error *err)
{
    const json_t *object = json_object_get(json, "parent");
    char inside[64];
    if (!json_is_object(object))
        return error_set(err, EINVAL, "the field '%sparent' of an incremental image is not an object", where);
    snprintf(inside, sizeof inside, "%sparent.", where);
    int status = json_field_text(object, inside, "point", parent->point, sizeof parent->point, err);
    if (status == 0 && !point_name_valid(parent->point))
        status = error_set(err, EINVAL, "the field '%spoint' is '%s', not the name of a point", inside, parent->point);
    return status == 0 ? json_field_uuid(object, inside, "snapshot", parent->snapshot, err) : status;
}

/* What proves the image as a file; the first manifests of version 2 don't say it. */
static int proof_from_json(const json_t *json, const char *where, struct manifest_disk *disk, struct error *err)
{
    int status = 0;
    if (json_object_get(json, "image-length"))
        status = json_field_number(json, where, "image-length", INT64_MAX, &disk->image_bytes, err);
    if (status == 0 && disk->format == MANIFEST_QCOW2 && json_object_get(json, "tables-sha256"))
        status = field_hexadecimal(json, where, "tables-sha256", disk->tables_sha256, err);
    return status;
}

/* What version 2 says besides: the kind of the image, and what follows from it. */
static int kind_from_json(const json_t *json, const char *where, struct manifest_disk *disk, struct error *err)
{
    static const char *const formats[] = {"raw", "qcow2"}, *const kinds[] = {"full", "incremental"};
    unsigned format = MANIFEST_RAW, kind = 0;
    int status = field_word(json, where, "format", formats, &format, err);
    if (status == 0)
        status = field_word(json, where, "kind", kinds, &kind, err);
    if (status == 0)
        status = json_field_number(json, where, "captured", disk->size_bytes, &disk->captured_bytes, err);
    if (status < 0)
        return status;
    disk->format = (enum manifest_format)format;
    disk->incremental = kind == 1;
    if (disk->incremental && disk->format != MANIFEST_QCOW2)
        return error_set(err, EINVAL, "the field '%sformat' is 'raw', but an incremental image is 'qcow2'", where);
    if (!disk->incremental && disk->captured_bytes != disk->size_bytes)
        return error_set(err, EINVAL, "the field '%scaptured' of a full image is %llu, not the size %llu", where,
                         (unsigned long long)disk->captured_bytes, (unsigned long long)disk->size_bytes);
    if (disk->incremental)
        status = parent_from_json(json, where, &disk->parent, err);
    else if (json_object_get(json, "reason"))
        status = json_field_text(json, where, "reason", disk->reason, sizeof disk->reason, err);
    return status == 0 ? proof_from_json(json, where, disk, err) : status;
}

static int disk_from_json(const json_t *json, unsigned version, const char *where, struct manifest_disk *disk,
                          struct error *err)
{
    uint64_t extent_bytes;
    int status = field_name(json, where, "name", disk->name, err);
    if (status == 0)
        status = json_field_number(json, where, "size", LIMIT_DISK_BYTES, &disk->size_bytes, err);
    if (status == 0 && version == 1) {
        disk->captured_bytes = disk->size_bytes;
        status = json_field_is(json, where, "format", "raw", err);
    } else if (status == 0) {
        status = kind_from_json(json, where, disk, err);
    }
    if (status == 0)
        status = json_field_number(json, where, "data", disk->captured_bytes, &disk->data_bytes, err);
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
        int status = disk_from_json(disk, manifest->version, where, &manifest->disks[i], err);
        if (status == 0)
            status = disk_is_unique(manifest, i, err);
        if (status < 0)
            return status;
    }
    manifest->disk_count = (unsigned)count;
    return 0;
}

static int checkpoint_from_json(const json_t *json, struct manifest_checkpoint *checkpoint, struct error *err)
{
    const json_t *object = json_object_get(json, "checkpoint");
    if (!object)
        return 0;
    if (!json_is_object(object))
        return error_set(err, EINVAL, "the field 'checkpoint' is not an object");
    int status = field_name(object, "checkpoint.", "name", checkpoint->name, err);
    return status == 0 ? json_field_uuid(object, "checkpoint.", "uuid", checkpoint->uuid, err) : status;
}

static const char *const consistencies[] = {
    [MANIFEST_NOT_SAID] = "",
    [MANIFEST_CRASH] = "crash",
    [MANIFEST_HOOKS] = "hooks",
    [MANIFEST_GUEST_AGENT] = "guest-agent",
};

int manifest_consistency_parse(const char *name, enum manifest_consistency *consistency)
{
    for (unsigned i = MANIFEST_CRASH; i <= MANIFEST_GUEST_AGENT; i++)
        if (strcmp(name, consistencies[i]) == 0) {
            *consistency = (enum manifest_consistency)i;
            return 0;
        }
    return -EINVAL;
}

const char *manifest_consistency_name(enum manifest_consistency consistency)
{
    return consistencies[consistency];
}

static int consistency_from_json(const json_t *json, enum manifest_consistency *consistency, struct error *err)
{
    char name[LIMIT_NAME_BYTES + 1];
    if (!json_object_get(json, "consistent"))
        return 0;
    int status = json_field_text(json, "", "consistent", name, sizeof name, err);
    if (status == 0 && manifest_consistency_parse(name, consistency) < 0)
        status = error_set(err, EINVAL, "the field 'consistent' is '%s': crash, hooks or guest-agent is right", name);
    return status;
}

int manifest_from_json(const json_t *json, struct manifest *manifest, struct error *err)
{
    uint64_t version = 0;
    memset(manifest, 0, sizeof *manifest);
    int status = json_field_is(json, "", "format", MANIFEST_FORMAT, err);
    if (status == 0)
        status = json_field_number(json, "", "version", INT32_MAX, &version, err);
    if (status == 0 && (version < MANIFEST_VERSION_OLDEST || version > MANIFEST_VERSION))
        status = error_set(err, ENOTSUP, "it has version %llu; this fleece reads versions %d to %d",
                           (unsigned long long)version, MANIFEST_VERSION_OLDEST, MANIFEST_VERSION);
    manifest->version = (unsigned)version;
    if (status == 0)
        status = json_field_is(json, "", "state", "complete", err);
    if (status == 0)
        status = field_name(json, "", "vm", manifest->vm, err);
    if (status == 0)
        status = json_field_text(json, "", "tool", manifest->tool, sizeof manifest->tool, err);
    if (status == 0)
        status = field_time(json, "created", manifest->created, err);
    if (status == 0)
        status = json_field_uuid(json, "", "snapshot", manifest->snapshot, err);
    if (status == 0 && version >= 2)
        status = checkpoint_from_json(json, &manifest->checkpoint, err);
    if (status == 0 && version >= 2)
        status = consistency_from_json(json, &manifest->consistency, err);
    return status == 0 ? disks_from_json(json, manifest, err) : status;
}

/* The SHA-256 of the object as compact text with sorted keys, without the field `sha256`. */
static int hash_fields(const json_t *json, char *sha256)
{
    uint8_t hash[COPY_HASH_BYTES];
    json_t *others = json_copy((json_t *)(uintptr_t)json);
    json_object_del(others, "sha256");
    char *text = json_dumps(others, JSON_COMPACT | JSON_SORT_KEYS);
    int status = text && gnutls_hash_fast(GNUTLS_DIG_SHA256, text, strlen(text), hash) == 0 ? 0 : -ENOMEM;
    if (status == 0)
        hashes_sha256_text(hash, sha256);
    free(text);
    json_decref(others);
    return status;
}

int manifest_add_hash(json_t *json)
{
    char sha256[SHA256_TEXT_BYTES];
    int status = hash_fields(json, sha256);
    return status == 0 && json_object_set_new(json, "sha256", json_string(sha256)) < 0 ? -ENOMEM : status;
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

const char *manifest_format_name(enum manifest_format format)
{
    return format == MANIFEST_RAW ? "raw" : "qcow2";
}

/* What version 2 says of a disk besides. */
static int add_kind(json_t *json, const struct manifest_disk *disk)
{
    int status = json_object_set_new(json, "kind", json_string(disk->incremental ? "incremental" : "full"));
    if (status == 0)
        status = json_object_set_new(json, "captured", json_integer((json_int_t)disk->captured_bytes));
    if (status == 0 && disk->incremental)
        status = json_object_set_new(
            json, "parent", json_pack("{s:s, s:s}", "point", disk->parent.point, "snapshot", disk->parent.snapshot));
    if (status == 0 && disk->reason[0])
        status = json_object_set_new(json, "reason", json_string(disk->reason));
    if (status == 0 && disk->image_bytes)
        status = json_object_set_new(json, "image-length", json_integer((json_int_t)disk->image_bytes));
    if (status == 0 && disk->tables_sha256[0])
        status = json_object_set_new(json, "tables-sha256", json_string(disk->tables_sha256));
    return status;
}

static json_t *disk_to_json(const struct manifest_disk *disk, unsigned version)
{
    json_t *json = json_pack(
        "{s:s, s:I, s:I, s:s, s:s, s:I, s:s, s:s}", "name", disk->name, "size", (json_int_t)disk->size_bytes, "data",
        (json_int_t)disk->data_bytes, "format", manifest_format_name(disk->format), "image", disk->image, "extent",
        (json_int_t)MANIFEST_EXTENT_BYTES, "hashes", disk->hashes, "hashes-sha256", disk->hashes_sha256);
    if (json && version >= 2 && add_kind(json, disk) < 0) {
        json_decref(json);
        return NULL;
    }
    return json;
}

json_t *manifest_to_json(const struct manifest *manifest)
{
    json_t *disks = json_array();
    for (unsigned i = 0; i < manifest->disk_count; i++)
        json_array_append_new(disks, disk_to_json(&manifest->disks[i], manifest->version));
    json_t *json = json_pack("{s:s, s:i, s:s, s:s, s:s, s:s, s:s}", "format", MANIFEST_FORMAT, "version",
                             (int)manifest->version, "state", "complete", "vm", manifest->vm, "tool", manifest->tool,
                             "created", manifest->created, "snapshot", manifest->snapshot);
    bool well = json && json_array_size(disks) == manifest->disk_count;
    if (well && manifest->consistency)
        well = json_object_set_new(json, "consistent", json_string(manifest_consistency_name(manifest->consistency))) ==
               0;
    if (well && manifest->checkpoint.name[0])
        well = json_object_set_new(
                   json, "checkpoint",
                   json_pack("{s:s, s:s}", "name", manifest->checkpoint.name, "uuid", manifest->checkpoint.uuid)) == 0;
    if (well && json_object_set(json, "disks", disks) == 0 && manifest_add_hash(json) == 0) {
        json_decref(disks);
        return json;
    }
    json_decref(disks);
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
