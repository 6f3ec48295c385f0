/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Commands about exports. */
#include "control/command.h"

#include "control/client.h"
#include "control/describe.h"

/* Behind those of NBD; a disk may be in both, so the id says which. */
static void append_vhost_users(const struct control_host *host, json_t *array)
{
    size_t i;
    json_t *export, *exports = describe_vhost_users(host);
    json_array_foreach (exports, i, export) {
        const char *disk = json_string_value(json_object_get(export, "disk"));
        json_t *json = json_pack("{s:o, s:s, s:s, s:b}", "id", json_sprintf("vhost-user/%s", disk), "type",
                                 "vhost-user-blk", "node-name", disk, "shutting-down", 0);
        if (json)
            json_object_update(json, export);
        json_array_append_new(array, json);
    }
    json_decref(exports);
}

static void exports_known(void *argument, const struct nbd_server_status *status)
{
    struct control_request *request = argument;
    json_t *array = json_array();
    for (unsigned i = 0; status && i < status->export_count; i++) {
        json_t *export = describe_export(&request->server->host, &status->exports[i]);
        const char *name = status->exports[i].name;
        /* The members that QEMU's command has, and our own behind them. */
        json_t *json = json_pack("{s:s, s:s, s:s, s:b}", "id", name, "type", "nbd", "node-name", name, "shutting-down",
                                 0);
        if (json && export)
            json_object_update(json, export);
        json_decref(export);
        json_array_append_new(array, json);
    }
    append_vhost_users(&request->server->host, array);
    control_return(request, array);
}

static void query_block_exports(struct control_request *request)
{
    struct control_host *host = &request->server->host;
    host->exports_query(host->context, exports_known, request);
}

const struct control_command control_commands_export[] = {
    {.name = "query-block-exports", .run = query_block_exports},
    {.name = NULL},
};
