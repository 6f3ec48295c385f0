/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Commands about snapshots. */
#include "control/command.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "control/client.h"
#include "control/describe.h"

static const struct control_argument create_arguments[] = {
    {.name = "name", .kind = CONTROL_STRING},
    {.name = "lease", .kind = CONTROL_BOOLEAN},
    {.name = "bitmap", .kind = CONTROL_STRING},
    {.name = "durability", .kind = CONTROL_STRING},
    {.name = "read-once", .kind = CONTROL_STRING},
    {.name = "consistency", .kind = CONTROL_STRING},
    {.name = "drain-timeout-ms", .kind = CONTROL_INTEGER, .min = 1, .max = (json_int_t)(CUT_TOTAL_MAX_NS / NS_PER_MS)},
    {.name = "checkpoint", .kind = CONTROL_STRING},
    {.name = "since", .kind = CONTROL_STRING},
    {.name = "maps", .kind = CONTROL_ARRAY},
    {.name = "grace", .kind = CONTROL_INTEGER, .min = 0, .max = (json_int_t)(LEASE_GRACE_MAX_NS / NS_PER_S)},
    {.name = NULL},
};

static const struct control_argument lease_arguments[] = {
    {.name = "uuid", .kind = CONTROL_STRING, .required = true},
    {.name = NULL},
};

static const struct control_argument delete_arguments[] = {
    {.name = "name", .kind = CONTROL_STRING, .required = true},
    {.name = NULL},
};

static const struct control_argument residence_arguments[] = {
    {.name = "snapshot", .kind = CONTROL_STRING, .required = true},
    {.name = "disk", .kind = CONTROL_STRING, .required = true},
    {.name = "offset", .kind = CONTROL_INTEGER, .min = 0, .max = (json_int_t)LIMIT_DISK_BYTES},
    {.name = "length", .kind = CONTROL_INTEGER, .min = 1, .max = (json_int_t)LIMIT_DISK_BYTES},
    {.name = NULL},
};

static void snapshot_create_done(void *argument, struct snapshot *snapshot, const struct error *err)
{
    struct control_request *request = argument;
    if (!snapshot) {
        control_fail_with(request, err);
        return;
    }
    json_t *result = describe_snapshot(snapshot), *checkpoint = json_object_get(result, "checkpoint");
    if (checkpoint) /* nobody can have committed it before it is named here */
        json_object_set_new(checkpoint, "state", json_string("pending"));
    if (result)
        json_object_set_new(result, "exports", describe_views(&request->server->host, snapshot));
    control_return(request, result);
}

/* The argument `maps` into names[LIMIT_SNAPSHOT_MAPS]. False: it has been answered. */
static bool read_maps(struct control_request *request, const char **names, unsigned *count)
{
    const json_t *maps = json_object_get(request->arguments, "maps");
    const size_t size = json_array_size(maps);
    if (size > LIMIT_SNAPSHOT_MAPS) {
        control_fail(request, "GenericError", "Parameter 'maps' has %zu members, but must have at most %d", size,
                     LIMIT_SNAPSHOT_MAPS);
        return false;
    }
    for (size_t i = 0; i < size; i++) {
        names[i] = json_string_value(json_array_get(maps, i));
        if (names[i])
            continue;
        control_fail(request, "GenericError", "Parameter 'maps': member %zu must be the name or UUID of a checkpoint",
                     i);
        return false;
    }
    *count = (unsigned)size;
    return true;
}

/* False: it has been answered. */
static bool read_durability(struct control_request *request, bool *ephemeral)
{
    const char *durability = control_argument_text(request, "durability");
    *ephemeral = durability && strcmp(durability, "ephemeral") == 0;
    if (!durability || *ephemeral || strcmp(durability, "restartable") == 0)
        return true;
    control_fail(request, "GenericError", "Parameter 'durability' is '%.100s': restartable or ephemeral is right",
                 durability);
    return false;
}

static void snapshot_create(struct control_request *request)
{
    json_int_t drain_ms = json_integer_value(json_object_get(request->arguments, "drain-timeout-ms"));
    bool lease = json_is_true(json_object_get(request->arguments, "lease"));
    const char *read_once = control_argument_text(request, "read-once"), *maps[LIMIT_SNAPSHOT_MAPS];
    const char *consistency = control_argument_text(request, "consistency");
    const json_t *grace = json_object_get(request->arguments, "grace");
    struct snapshot_options options = {
        .name = control_argument_text(request, "name"),
        .drain_ns = (uint64_t)drain_ms * NS_PER_MS,
        .lease = lease ? request->client->lease : NULL,
        .bitmap = control_argument_text(request, "bitmap"),
        .since = control_argument_text(request, "since"),
        .checkpoint = control_argument_text(request, "checkpoint"),
        .maps = maps,
        .grace_ns = (uint64_t)json_integer_value(grace) * NS_PER_S,
    };
    if (read_once && !describe_read_once_parse(read_once, &options.read_once)) {
        control_fail(request, "GenericError", "Parameter 'read-once' is '%.100s': off, disconnect or eager is right",
                     read_once);
        return;
    }
    if (consistency && !describe_consistency_parse(consistency, &options.consistency)) {
        control_fail(request, "GenericError", "Parameter 'consistency' is '%.100s': auto, crash or required is right",
                     consistency);
        return;
    }
    if (options.since && options.bitmap) {
        control_fail(request, "GenericError",
                     "Parameters 'since' and 'bitmap' both say what the snapshot needs: give one");
        return;
    }
    if (grace && !lease) {
        control_fail(request, "GenericError", "Parameter 'grace' is about a lease: it needs 'lease' to be true");
        return;
    }
    if (read_durability(request, &options.ephemeral) && read_maps(request, maps, &options.map_count))
        vm_snapshot_create(request->server->host.vm, &options, snapshot_create_done, request);
}

static void snapshot_lease(struct control_request *request)
{
    struct vm *vm = request->server->host.vm;
    struct error err = {0};
    const char *uuid = control_argument_text(request, "uuid");
    if (vm_snapshot_lease(vm, uuid, request->client->lease, &err) < 0) {
        control_fail_with(request, &err);
        return;
    }
    struct snapshot *snapshot = NULL;
    struct snapshot_info info;
    do {
        snapshot = vm_snapshot_next(vm, snapshot);
        snapshot_info(snapshot, &info);
    } while (strcmp(info.uuid, uuid) != 0);
    json_t *result = describe_snapshot(snapshot);
    if (result)
        json_object_set_new(result, "exports", describe_views(&request->server->host, snapshot));
    control_return(request, result);
}

static void snapshot_delete_done(void *argument, const struct error *err)
{
    struct control_request *request = argument;
    if (err && err->code)
        control_fail_with(request, err);
    else
        control_return(request, json_object());
}

static void snapshot_delete(struct control_request *request)
{
    vm_snapshot_delete(request->server->host.vm, control_argument_text(request, "name"), snapshot_delete_done, request);
}

/* ---- where blocks are */

static json_t *residence_names(uint32_t flags)
{
    static const struct {
        uint32_t flag;
        const char *name;
    } names[] = {{RESIDENCE_CHANGED, "changed"},
                 {RESIDENCE_RAM, "ram"},
                 {RESIDENCE_CACHE, "cache"},
                 {RESIDENCE_ZERO, "zero"},
                 {RESIDENCE_RELEASED, "released"}};
    json_t *array = json_array();
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (flags & names[i].flag)
            json_array_append_new(array, json_string(names[i].name));
    return array;
}

/* request->partial: {"offset": where the extents begin, "end": of the range}. */
static void residence_done(void *argument, int status, const struct block_extent *extents, unsigned count)
{
    struct control_request *request = argument;
    json_int_t at = json_integer_value(json_object_get(request->partial, "offset"));
    json_int_t end = json_integer_value(json_object_get(request->partial, "end"));
    const char *name = control_argument_text(request, "snapshot");
    if (status < 0) {
        control_fail(request, "GenericError", "snapshot '%s' is broken or ending: %s", name, error_name(status));
        return;
    }
    json_t *array = json_array();
    for (unsigned i = 0; i < count; i++) {
        json_array_append_new(array, json_pack("{s:I, s:I, s:o}", "offset", at, "length", (json_int_t)extents[i].length,
                                               "residence", residence_names(extents[i].flags)));
        at += (json_int_t)extents[i].length;
    }
    json_t *result = json_pack("{s:o}", "extents", array);
    if (result && at < end)
        json_object_set_new(result, "next", json_integer(at));
    control_return(request, result);
}

static bool residence_range(struct control_request *request, uint64_t size, struct range *range)
{
    const json_t *length = json_object_get(request->arguments, "length");
    range->start = (uint64_t)json_integer_value(json_object_get(request->arguments, "offset"));
    range->length = range->start < size ? size - range->start : 0;
    if (length)
        range->length = (uint64_t)json_integer_value(length);
    if (range->length > 0 && range_within(*range, size))
        return true;
    control_fail(request, "GenericError", "offset %llu and length %llu are not within disk '%s' of %llu bytes",
                 (unsigned long long)range->start, (unsigned long long)range->length,
                 control_argument_text(request, "disk"), (unsigned long long)size);
    return false;
}

static void query_residence(struct control_request *request)
{
    struct vm *vm = request->server->host.vm;
    const char *name = control_argument_text(request, "snapshot"), *disk = control_argument_text(request, "disk");
    struct snapshot *snapshot = vm_snapshot_find(vm, name);
    struct range range;
    unsigned i = 0;
    while (i < vm_disk_count(vm) && strcmp(vm_disk(vm, i)->name, disk) != 0)
        i++;
    if (!snapshot || i == vm_disk_count(vm)) {
        control_fail(request, "DeviceNotFound", "there is no %s '%.100s'", snapshot ? "disk" : "snapshot",
                     snapshot ? disk : name);
        return;
    }
    if (!residence_range(request, snapshot_size(snapshot, i), &range))
        return;
    request->partial = json_pack("{s:I, s:I}", "offset", (json_int_t)range.start, "end", (json_int_t)range_end(range));
    int status = request->partial ? vm_residence_query(vm, snapshot, i, range, residence_done, request) : -ENOMEM;
    if (status < 0)
        control_fail(request, "GenericError", "snapshot '%s' can't be asked: %s", name,
                     status == -EBUSY ? "it is being made or deleted" : error_name(status));
}

static void query_snapshots(struct control_request *request)
{
    control_return(request, describe_snapshots(request->server->host.vm));
}

const struct control_command control_commands_snapshot[] = {
    {.name = "fleece-snapshot-create", .arguments = create_arguments, .run = snapshot_create},
    {.name = "fleece-snapshot-delete", .arguments = delete_arguments, .run = snapshot_delete},
    {.name = "fleece-snapshot-lease", .arguments = lease_arguments, .run = snapshot_lease},
    {.name = "fleece-query-snapshots", .run = query_snapshots},
    {.name = "fleece-query-residence", .arguments = residence_arguments, .run = query_residence},
    {.name = NULL},
};
