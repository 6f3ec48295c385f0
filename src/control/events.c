/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Events about disks, snapshots, checkpoints, the cache and jobs. SHUTDOWN is sent by the server itself. */
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

void control_event_disk_resized(struct control_server *server, const char *disk, uint64_t old_bytes,
                                uint64_t size_bytes)
{
    server_emit(
        server, "FLEECE_DISK_RESIZED",
        json_pack("{s:s, s:I, s:I}", "disk", disk, "size", (json_int_t)size_bytes, "old-size", (json_int_t)old_bytes));
}

void control_event_checkpoint(struct control_server *server, enum vm_checkpoint_event event,
                              const struct checkpoint_id *id, const char *disk, const char *reason)
{
    static const char *const names[] = {
        [VM_CHECKPOINT_CREATED] = "FLEECE_CHECKPOINT_CREATED",
        [VM_CHECKPOINT_COMMITTED] = "FLEECE_CHECKPOINT_COMMITTED",
        [VM_CHECKPOINT_DELETED] = "FLEECE_CHECKPOINT_DELETED",
        [VM_CHECKPOINT_INVALID] = "FLEECE_CHECKPOINT_INVALID",
    };
    json_t *data = id ? json_pack("{s:s, s:s}", "name", id->name, "uuid", id->uuid)
                      : json_pack("{s:s, s:o}", "disk", disk, "reason", describe_text(reason));
    server_emit(server, names[event], data);
}

/* ---- jobs: QEMU's events, in QEMU's order ---- */

static void job_status_changed(void *context, const struct job *job)
{
    server_emit(context, "JOB_STATUS_CHANGE",
                json_pack("{s:s, s:s}", "id", job->id, "status", job_state_name(job->state)));
}

static void job_pending(void *context, const struct job *job)
{
    server_emit(context, "BLOCK_JOB_PENDING", json_pack("{s:s, s:s}", "type", job->ops->type, "id", job->id));
}

static void job_finished(void *context, const struct job *job)
{
    json_t *data = json_pack("{s:s, s:s, s:I, s:I, s:I}", "type", job->ops->type, "device", job->id, "len",
                             (json_int_t)job->total_bytes, "offset", (json_int_t)job->done_bytes, "speed",
                             (json_int_t)job->speed);
    if (data && job->status < 0 && !job->cancelled)
        json_object_set_new(data, "error", describe_text(job->err.text));
    server_emit(context, job->cancelled ? "BLOCK_JOB_CANCELLED" : "BLOCK_JOB_COMPLETED", data);
}

static void job_has_io_error(void *context, const struct job *job, bool read)
{
    server_emit(
        context, "BLOCK_JOB_ERROR",
        json_pack("{s:s, s:s, s:s}", "device", job->id, "operation", read ? "read" : "write", "action", "report"));
}

struct job_hooks control_job_hooks(struct control_server *server)
{
    return (struct job_hooks){.context = server,
                              .status_changed = job_status_changed,
                              .pending = job_pending,
                              .finished = job_finished,
                              .io_error = job_has_io_error};
}
