/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Commands about the daemon and its VM. */
#include "control/command.h"

#include <unistd.h>

#include "control/client.h"
#include "control/describe.h"
#include "vm/cache_watch.h"

static void query_version(struct control_request *request)
{
    control_return(request, describe_version());
}

static void query_commands(struct control_request *request)
{
    control_return(request, control_command_list());
}

static void query_status(struct control_request *request)
{
    control_return(request, json_pack("{s:s, s:b, s:b}", "status", "running", "running", 1, "singlestep", 0));
}

static void quit(struct control_request *request)
{
    struct control_host host = request->server->host;
    control_return(request, json_object());
    host.quit(host.context);
}

/* --- fleece-query-status: first what the reactors say about the disks and their tracking, then what the NBD server says. */

static json_t *strings(const char *const *texts, unsigned count)
{
    json_t *array = json_array();
    for (unsigned i = 0; i < count; i++)
        json_array_append_new(array, describe_text(texts[i]));
    return array;
}

static void status_has_exports(void *argument, const struct nbd_server_status *exports)
{
    struct control_request *request = argument;
    const struct control_host *host = &request->server->host;
    json_t *status = request->partial, *array = json_array();
    for (unsigned i = 0; exports && i < exports->export_count; i++)
        json_array_append_new(array, describe_export(host, &exports->exports[i]));
    json_object_set_new(status, "exports", array);
    json_object_set_new(status, "nbd-server",
                        json_pack("{s:I, s:I, s:I}", "connections", (json_int_t)(exports ? exports->connections : 0),
                                  "buffer-bytes", (json_int_t)(exports ? exports->buffer_bytes_now : 0),
                                  "buffer-bytes-peak", (json_int_t)(exports ? exports->buffer_bytes_peak : 0)));
    if (exports)
        json_object_update_new(json_object_get(status, "nbd-server"), describe_read_once(exports));
    json_object_set_new(status, "vhost-user", describe_vhost_users(host));
    json_object_set_new(status, "guest", describe_guest(host));
    json_object_set_new(status, "snapshots", describe_snapshots(host->vm));
    request->partial = NULL;
    control_return(request, status);
}

static void status_has_tracking(void *argument, const struct vm_checkpoints *checkpoints)
{
    struct control_request *request = argument;
    const struct control_host *host = &request->server->host;
    json_t *disks = json_object_get(request->partial, "disks");
    for (unsigned i = 0; checkpoints && i < checkpoints->disk_count; i++)
        json_object_set_new(json_array_get(disks, i), "tracking", describe_tracking(&checkpoints->disks[i]));
    host->exports_query(host->context, status_has_exports, request);
}

static void status_has_disks(void *argument, const struct vm_status *vm_status)
{
    struct control_request *request = argument;
    const struct control_host *host = &request->server->host;
    if (!vm_status) {
        control_return(request, NULL);
        return;
    }
    json_t *disks = json_array();
    for (unsigned i = 0; i < vm_status->disk_count; i++)
        json_array_append_new(
            disks, describe_disk(&vm_status->disks[i], vm_disk(host->vm, i)->leaf->ops->driver, host->disk_files[i]));
    json_t *cache = json_pack(
        "{s:I, s:I, s:I, s:I, s:I, s:I}", "bytes", (json_int_t)vm_status->cache_bytes_now, "bytes-peak",
        (json_int_t)vm_status->cache_bytes_peak, "bytes-max", (json_int_t)vm_status->cache_bytes_max, "file-bytes",
        (json_int_t)vm_status->file_bytes_now, "file-bytes-peak", (json_int_t)vm_status->file_bytes_peak,
        "file-bytes-max", (json_int_t)vm_status->file_bytes_max);
    struct vm_cache_fill fill;
    vm_cache_fill(host->vm, &fill);
    json_object_update_new(cache, describe_fill(&fill));
    request->partial = json_pack("{s:s, s:s, s:s, s:I, s:I, s:o, s:o, s:o, s:o}", "name", vm_name(host->vm), "version",
                                 FLEECE_VERSION, "status", "running", "pid", (json_int_t)getpid(), "rss-bytes",
                                 (json_int_t)host->rss_bytes(host->context), "nbd",
                                 strings(host->nbd_addresses, host->nbd_address_count), "reactors",
                                 strings(host->reactors, host->reactor_count), "disks", disks, "cache", cache);
    vm_checkpoints_query(host->vm, status_has_tracking, request);
}

static void fleece_query_status(struct control_request *request)
{
    vm_status_query(request->server->host.vm, status_has_disks, request);
}

const struct control_command control_commands_vm[] = {
    {.name = "query-version", .run = query_version},
    {.name = "query-commands", .run = query_commands},
    {.name = "query-status", .run = query_status},
    {.name = "fleece-query-status", .run = fleece_query_status},
    {.name = "quit", .run = quit},
    {.name = NULL},
};
