/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Events about snapshots and the cache. SHUTDOWN is sent by the server itself. */
#include "control/client.h"
#include "control/describe.h"

void control_event_cache_threshold(struct control_server *server, unsigned percent, const struct vm_cache_fill *fill)
{
    json_t *data = describe_fill(fill);
    json_object_set_new(data, "percent", json_integer(percent));
    server_emit(server, "FLEECE_CACHE_THRESHOLD", data);
}

void control_event_snapshot_created(struct control_server *server, const struct snapshot *snapshot)
{
    struct snapshot_info info;
    snapshot_info(snapshot, &info);
    server_emit(
        server, "FLEECE_SNAPSHOT_CREATED",
        json_pack("{s:s, s:s, s:I}", "name", info.name, "uuid", info.uuid, "hold-ns", (json_int_t)info.hold_ns));
}

void control_event_snapshot_broken(struct control_server *server, const struct snapshot *snapshot)
{
    struct snapshot_info info;
    snapshot_info(snapshot, &info);
    server_emit(server, "FLEECE_SNAPSHOT_BROKEN",
                json_pack("{s:s, s:s, s:o}", "name", info.name, "uuid", info.uuid, "reason",
                          describe_text(info.reason ? info.reason : "no reason was given")));
}

void control_event_snapshot_deleted(struct control_server *server, const char *name, const char *uuid)
{
    server_emit(server, "FLEECE_SNAPSHOT_DELETED", json_pack("{s:s, s:s}", "name", name, "uuid", uuid));
}
