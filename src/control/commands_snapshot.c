/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Commands about snapshots. */
#include "control/command.h"

#include <stdio.h>

#include "control/client.h"
#include "control/describe.h"

static const struct control_argument create_arguments[] = {
    {.name = "name", .kind = CONTROL_STRING},
    {.name = "lease", .kind = CONTROL_BOOLEAN},
    {.name = "read-once", .kind = CONTROL_STRING},
    {.name = "drain-timeout-ms", .kind = CONTROL_INTEGER, .min = 1, .max = (json_int_t)(CUT_TOTAL_MAX_NS / NS_PER_MS)},
    {.name = NULL},
};

static const struct control_argument delete_arguments[] = {
    {.name = "name", .kind = CONTROL_STRING, .required = true},
    {.name = NULL},
};

/* Where the view of each disk can be read: [{"disk", "export", "uri"}]. */
static json_t *views(const struct control_host *host, const char *snapshot_name)
{
    json_t *array = json_array();
    for (unsigned i = 0; i < vm_disk_count(host->vm); i++) {
        const char *disk = vm_disk(host->vm, i)->name;
        char export[2 * LIMIT_NAME_BYTES + 2];
        snprintf(export, sizeof export, "%s@%s", disk, snapshot_name);
        json_array_append_new(array, json_pack("{s:s, s:s, s:I, s:o}", "disk", disk, "export", export, "size",
                                               (json_int_t)vm_disk(host->vm, i)->node.size_bytes, "uri",
                                               describe_uri(host, export)));
    }
    return array;
}

static void snapshot_create_done(void *argument, struct snapshot *snapshot, const struct error *err)
{
    struct control_request *request = argument;
    if (!snapshot) {
        control_fail_with(request, err);
        return;
    }
    struct snapshot_info info;
    snapshot_info(snapshot, &info);
    json_t *result = describe_snapshot(snapshot);
    if (result)
        json_object_set_new(result, "exports", views(&request->server->host, info.name));
    control_return(request, result);
}

static void snapshot_create(struct control_request *request)
{
    json_int_t drain_ms = json_integer_value(json_object_get(request->arguments, "drain-timeout-ms"));
    bool lease = json_is_true(json_object_get(request->arguments, "lease"));
    const char *read_once = control_argument_text(request, "read-once");
    struct snapshot_options options = {
        .name = control_argument_text(request, "name"),
        .drain_ns = (uint64_t)drain_ms * NS_PER_MS,
        .lease = lease ? request->client->lease : NULL,
    };
    if (read_once && !describe_read_once_parse(read_once, &options.read_once)) {
        control_fail(request, "GenericError", "Parameter 'read-once' is '%.100s': off, disconnect or eager is right",
                     read_once);
        return;
    }
    vm_snapshot_create(request->server->host.vm, &options, snapshot_create_done, request);
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

static void query_snapshots(struct control_request *request)
{
    control_return(request, describe_snapshots(request->server->host.vm));
}

const struct control_command control_commands_snapshot[] = {
    {.name = "fleece-snapshot-create", .arguments = create_arguments, .run = snapshot_create},
    {.name = "fleece-snapshot-delete", .arguments = delete_arguments, .run = snapshot_delete},
    {.name = "fleece-query-snapshots", .run = query_snapshots},
    {.name = NULL},
};
