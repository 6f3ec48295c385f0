/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Checkpoints, and how disks are tracked, in words: for commands and for the status. Keeps nothing. */
#include "control/describe.h"

static const char *state_name(enum checkpoint_state state)
{
    switch (state) {
    case CHECKPOINT_PENDING:
        return "pending";
    case CHECKPOINT_COMMITTED:
        return "committed";
    case CHECKPOINT_INVALID:
        return "invalid";
    }
    return "?";
}

json_t *describe_checkpoint_id(const struct checkpoint_id *id)
{
    return json_pack("{s:s, s:s, s:o, s:I}", "name", id->name, "uuid", id->uuid, "created",
                     describe_time(id->created_wall_ns), "created-ns", (json_int_t)id->created_wall_ns);
}

/* Its part on one disk. */
static json_t *describe_part(const struct vm_checkpoint_disk *disk)
{
    json_t *json = json_pack("{s:s, s:s}", "disk", disk->disk, "state",
                             disk->present ? state_name(disk->state) : "absent");
    if (json && disk->present) {
        json_object_set_new(json, "changed", json_integer((json_int_t)disk->changed_bytes));
        json_object_set_new(json, "memory-bytes", json_integer((json_int_t)disk->memory_bytes));
        json_object_set_new(json, "file-bytes", json_integer((json_int_t)disk->file_bytes));
    }
    if (json && disk->reason)
        json_object_set_new(json, "reason", describe_text(disk->reason));
    return json;
}

json_t *describe_checkpoints(const struct vm_checkpoints *checkpoints)
{
    json_t *array = json_array();
    for (unsigned i = 0; i < checkpoints->count; i++) {
        const struct vm_checkpoint *checkpoint = &checkpoints->checkpoints[i];
        json_t *json = describe_checkpoint_id(&checkpoint->id), *disks = json_array();
        for (unsigned n = 0; n < checkpoints->disk_count; n++)
            json_array_append_new(disks, describe_part(&checkpoint->disks[n]));
        json_object_set_new(json, "state", json_string(state_name(checkpoint->state)));
        json_object_set_new(json, "disks", disks);
        json_array_append_new(array, json);
    }
    return array;
}

static const char *recovery_name(enum tracker_recovery recovery)
{
    switch (recovery) {
    case TRACKER_NEW:
        return "new";
    case TRACKER_CLEAN:
        return "clean";
    case TRACKER_ADOPTED:
        return "adopted";
    case TRACKER_REPLAYED:
        return "replayed";
    case TRACKER_VOID:
        return "void";
    }
    return "?";
}

json_t *describe_tracking(const struct vm_tracking_disk *disk)
{
    const struct tracker_counters *counts = &disk->counters;
    const struct {
        const char *name;
        uint64_t value;
    } counters[] = {
        {"granularity", disk->granularity_bytes}, {"slots", counts->slots},
        {"active", counts->active_now},           {"activations", counts->activations},
        {"log-writes", counts->log_writes},       {"page-writes", counts->page_writes},
        {"super-writes", counts->super_writes},   {"syncs", counts->syncs},
        {"writes-parked", counts->writes_parked},
    };
    const char *state = disk->tracked ? "on" : disk->reason ? "invalid" : "off";
    json_t *json = json_pack("{s:s}", "state", state);
    if (json && disk->reason)
        json_object_set_new(json, "reason", describe_text(disk->reason));
    if (!json || !disk->tracked)
        return json;
    json_object_set_new(json, "recovery", json_string(recovery_name(disk->recovery)));
    for (size_t i = 0; i < sizeof counters / sizeof *counters; i++)
        json_object_set_new(json, counters[i].name, json_integer((json_int_t)counters[i].value));
    return json;
}
