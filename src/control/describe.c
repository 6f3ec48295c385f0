/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What has several tellers is put into words here once: commands, their replies and events then agree. Keeps nothing. */
#include "control/describe.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/limits.h"
#include "vm/push.h"

json_t *describe_text(const char *text)
{
    json_t *json = json_string(text);
    if (json)
        return json;
    char plain[LIMIT_ERROR_BYTES];
    snprintf(plain, sizeof plain, "%s", text);
    for (char *byte = plain; *byte; byte++)
        if ((unsigned char)*byte >= 0x80)
            *byte = '?';
    return json_string(plain);
}

json_t *describe_version(void)
{
    int major = 0, minor = 0, micro = 0;
    sscanf(FLEECE_VERSION, "%d.%d.%d", &major, &minor, &micro);
    return json_pack("{s:{s:i, s:i, s:i}, s:s}", "fleece", "major", major, "minor", minor, "micro", micro, "package",
                     "fleece " FLEECE_VERSION);
}

json_t *describe_time(uint64_t wall_ns)
{
    char text[40];
    struct tm tm;
    time_t seconds = (time_t)(wall_ns / NS_PER_S);
    gmtime_r(&seconds, &tm);
    size_t length = strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(text + length, sizeof text - length, ".%06uZ", (unsigned)(wall_ns % NS_PER_S / NS_PER_US));
    return json_string(text);
}

static const char *state_name(enum snapshot_state state)
{
    switch (state) {
    case SNAPSHOT_CREATING:
        return "creating";
    case SNAPSHOT_LIVE:
        return "live";
    case SNAPSHOT_BROKEN:
        return "broken";
    case SNAPSHOT_DELETING:
        return "deleting";
    }
    return "?";
}

static const char *const read_once_names[] = {
    [READ_MANY] = "off", [READ_ONCE] = "disconnect", [READ_ONCE_EAGER] = "eager"};

bool describe_read_once_parse(const char *name, enum read_once *read_once)
{
    for (size_t i = 0; i < sizeof read_once_names / sizeof *read_once_names; i++)
        if (strcmp(name, read_once_names[i]) == 0) {
            *read_once = (enum read_once)i;
            return true;
        }
    return false;
}

static const char *const consistency_names[] = {
    [CONSISTENT_CRASH] = "crash", [CONSISTENT_HOOKS] = "hooks", [CONSISTENT_AGENT] = "guest-agent"};

bool describe_consistency_parse(const char *name, enum consistency_wish *wish)
{
    static const char *const names[] = {
        [CONSISTENCY_AUTO] = "auto", [CONSISTENCY_CRASH] = "crash", [CONSISTENCY_REQUIRED] = "required"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(name, names[i]) == 0) {
            *wish = (enum consistency_wish)i;
            return true;
        }
    return false;
}

json_t *describe_guest(const struct control_host *host)
{
    struct freezer_status status;
    host->guest(host->context, &status);
    if (!status.agent && !status.hook_folder && !status.trouble)
        return json_null();
    json_t *json = json_pack("{s:s, s:I}", "state", status.state, "freeze-timeout-ms",
                             (json_int_t)(status.timeout_ns / NS_PER_MS));
    if (json && status.agent)
        json_object_set_new(json, "agent", describe_text(status.agent));
    if (json && status.hook_folder)
        json_object_set_new(json, "hook-dir", describe_text(status.hook_folder));
    if (json && status.trouble)
        json_object_set_new(json, "reason", describe_text(status.trouble));
    return json;
}

/* How consistent it is, and what that cost. */
static void describe_consistency(json_t *json, enum consistency consistency, const char *reason, uint64_t frozen_ns)
{
    json_object_set_new(json, "consistent", json_string(consistency_names[consistency]));
    if (reason)
        json_object_set_new(json, "consistent-reason", describe_text(reason));
    if (frozen_ns)
        json_object_set_new(json, "frozen-us", json_integer((json_int_t)(frozen_ns / NS_PER_US)));
}

json_t *describe_snapshot(const struct snapshot *snapshot)
{
    struct snapshot_info info;
    snapshot_info(snapshot, &info);
    json_t *json = json_pack("{s:s, s:s, s:s, s:b, s:o, s:I, s:I, s:I, s:i}", "name", info.name, "uuid", info.uuid,
                             "state", state_name(info.state), "leased", info.leased, "created",
                             describe_time(info.created_wall_ns), "created-ns", (json_int_t)info.created_wall_ns,
                             "hold-ns", (json_int_t)info.hold_ns, "hold-us", (json_int_t)(info.hold_ns / NS_PER_US),
                             "attempts", (int)info.cut_attempts);
    if (json)
        json_object_set_new(json, "read-once", json_string(read_once_names[info.read_once]));
    if (json)
        json_object_set_new(json, "durability", json_string(info.restartable ? "restartable" : "ephemeral"));
    if (json && info.state != SNAPSHOT_CREATING)
        describe_consistency(json, info.consistency, info.consistency_reason, info.frozen_ns);
    if (json && info.bitmap)
        json_object_set_new(json, "bitmap", json_string(info.bitmap));
    if (json && info.since_uuid)
        json_object_set_new(json, "since", json_pack("{s:s, s:s}", "name", info.since_name, "uuid", info.since_uuid));
    if (json && info.checkpoint_uuid)
        json_object_set_new(json, "checkpoint",
                            json_pack("{s:s, s:s}", "name", info.checkpoint_name, "uuid", info.checkpoint_uuid));
    if (json && info.grace_left_ns)
        json_object_set_new(json, "grace-left-ms", json_integer((json_int_t)(info.grace_left_ns / NS_PER_MS)));
    if (json && info.reason)
        json_object_set_new(json, "reason", describe_text(info.reason));
    return json;
}

/* What the arguments `since` and `checkpoint` came to on one disk. */
static void describe_view_changes(json_t *json, const struct snapshot *snapshot, unsigned disk_index)
{
    struct snapshot_info info;
    struct snapshot_disk_info disk;
    snapshot_info(snapshot, &info);
    snapshot_disk_info(snapshot, disk_index, &disk);
    if (info.since_uuid)
        json_object_set_new(json, "incremental", json_boolean(disk.incremental));
    if (disk.incremental)
        json_object_set_new(json, "dirty", json_integer((json_int_t)disk.dirty_bytes));
    if (disk.reason)
        json_object_set_new(json, "reason", describe_text(disk.reason));
    if (info.checkpoint_uuid)
        json_object_set_new(json, "checkpoint", json_boolean(disk.checkpoint));
    if (disk.checkpoint_reason)
        json_object_set_new(json, "checkpoint-reason", describe_text(disk.checkpoint_reason));
}

json_t *describe_views(const struct control_host *host, const struct snapshot *snapshot)
{
    struct snapshot_info info;
    snapshot_info(snapshot, &info);
    json_t *array = json_array();
    for (unsigned i = 0; i < vm_disk_count(host->vm); i++) {
        const struct disk *disk = vm_disk(host->vm, i);
        char export[2 * LIMIT_NAME_BYTES + 2];
        snprintf(export, sizeof export, "%s@%s", disk->name, info.name);
        json_t *json = json_pack("{s:s, s:s, s:I, s:o}", "disk", disk->name, "export", export, "size",
                                 (json_int_t)snapshot_size(snapshot, i), "uri", describe_uri(host, export));
        if (json)
            describe_view_changes(json, snapshot, i);
        json_array_append_new(array, json);
    }
    return array;
}

json_t *describe_snapshots(const struct vm *vm)
{
    json_t *array = json_array();
    for (struct snapshot *s = vm_snapshot_next(vm, NULL); s; s = vm_snapshot_next(vm, s))
        json_array_append_new(array, describe_snapshot(s));
    return array;
}

json_t *describe_fill(const struct vm_cache_fill *fill)
{
    json_t *json = json_pack("{s:I, s:I, s:I}", "fill-bytes", (json_int_t)fill->bytes, "fill-bytes-max",
                             (json_int_t)fill->bytes_max, "fill-rate", (json_int_t)fill->rate);
    if (json && fill->seconds != UINT64_MAX)
        json_object_set_new(json, "seconds-to-full", json_integer((json_int_t)fill->seconds));
    return json;
}

/* QEMU's BlockDirtyInfo. */
static json_t *describe_bitmaps(const struct vm_disk_status *disk)
{
    json_t *array = json_array();
    for (unsigned i = 0; i < disk->bitmap_count; i++) {
        const struct dirty_bitmap_status *bitmap = &disk->bitmaps[i];
        json_array_append_new(array, json_pack("{s:s, s:I, s:I, s:b, s:b, s:b, s:b, s:I}", "name", bitmap->name,
                                               "count", (json_int_t)bitmap->dirty_bytes, "granularity",
                                               (json_int_t)bitmap->granularity_bytes, "recording", bitmap->recording,
                                               "busy", bitmap->busy, "persistent", false, "inconsistent",
                                               bitmap->inconsistent, "memory-bytes", (json_int_t)bitmap->memory_bytes));
    }
    return array;
}

json_t *describe_disk(const struct vm_disk_status *disk, const char *driver, const char *file)
{
    const struct {
        const char *name;
        uint64_t value;
    } counters[] = {
        {"size", disk->size_bytes},
        {"reads", disk->counters.reads},
        {"read-bytes", disk->counters.read_bytes},
        {"writes", disk->counters.writes},
        {"written-bytes", disk->counters.written_bytes},
        {"flushes", disk->counters.flushes},
        {"discards", disk->counters.discards},
        {"zeroes", disk->counters.zeroes},
        {"errors", disk->counters.errors},
        {"writes-in-flight", disk->writes_in_flight},
        {"writes-held", disk->writes_held},
        {"writes-parked", disk->writes_parked},
        {"blocks-preserved", disk->blocks_preserved},
        {"block-size", disk->block_bytes},
        {"ram-blocks", disk->ram_blocks},
        {"file-blocks", disk->file_blocks},
        {"zero-blocks", disk->zero_blocks},
        {"file-bytes", disk->file_bytes},
        {"spilled-bytes", disk->spilled_bytes},
        {"copies-in-flight", disk->copies_in_flight},
        {"cache-blocks", disk->cache_blocks_now},
        {"blocks-released", disk->blocks_released},
        {"blocks-released-in-part", disk->blocks_cut},
    };
    json_t *json = json_pack("{s:s, s:s, s:b}", "name", disk->name, "driver", driver, "copy-before-write",
                             disk->filtered);
    if (json && file)
        json_object_set_new(json, "file", describe_text(file));
    if (json)
        json_object_set_new(json, "dirty-bitmaps", describe_bitmaps(disk));
    for (size_t i = 0; json && i < sizeof counters / sizeof *counters; i++)
        json_object_set_new(json, counters[i].name, json_integer((json_int_t)counters[i].value));
    return json;
}

/* A path as it may stand in a URI's query. False: no room. */
static bool percent_encode(char *text, size_t size, const char *path)
{
    static const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~/";
    size_t used = 0;
    for (; *path; path++) {
        if (used + 4 > size)
            return false;
        if (strchr(plain, *path))
            text[used++] = *path;
        else
            used += (size_t)snprintf(text + used, size - used, "%%%02X", (unsigned char)*path);
    }
    text[used] = 0;
    return true;
}

json_t *describe_uri(const struct control_host *host, const char *export_name)
{
    char uri[1024], path[512];
    if (host->nbd_address_count == 0)
        return json_null();
    const char *address = host->nbd_addresses[0];
    if (strncmp(address, "tcp:", 4) == 0)
        snprintf(uri, sizeof uri, "nbd://%s/%s", address + 4, export_name);
    else if (percent_encode(path, sizeof path, address + 5))
        snprintf(uri, sizeof uri, "nbd+unix:///%s?socket=%s", export_name, path);
    else
        return json_null();
    return json_string(uri);
}

json_t *describe_read_once(const struct nbd_server_status *server)
{
    return json_pack("{s:I, s:I, s:I, s:I}", "read-once-sent-bytes", (json_int_t)server->read_once_sent_bytes,
                     "read-once-released-bytes", (json_int_t)server->read_once_released_bytes,
                     "read-once-forgotten-bytes", (json_int_t)server->read_once_forgotten_bytes,
                     "read-once-memory-bytes", (json_int_t)server->read_once_memory_bytes);
}

json_t *describe_export(const struct control_host *host, const struct nbd_export_status *export)
{
    return json_pack("{s:s, s:I, s:b, s:I, s:o}", "name", export->name, "size", (json_int_t) export->size_bytes,
                     "read-only", export->read_only, "connections", (json_int_t) export->connections, "uri",
                     describe_uri(host, export->name));
}

json_t *describe_vhost_users(const struct control_host *host)
{
    struct vhost_export_status status[LIMIT_DISKS];
    unsigned count = host->vhost_users(host->context, status);
    json_t *array = json_array();
    for (unsigned i = 0; i < count; i++)
        json_array_append_new(
            array, json_pack("{s:s, s:o, s:b, s:i, s:I, s:I, s:I, s:I, s:I}", "disk", status[i].disk, "socket",
                             describe_text(status[i].socket), "connected", status[i].connected, "queues",
                             (int)status[i].queues, "connections", (json_int_t)status[i].connections, "requests",
                             (json_int_t)status[i].requests, "kicks", (json_int_t)status[i].kicks, "calls",
                             (json_int_t)status[i].calls, "polled", (json_int_t)status[i].polled));
    return array;
}

json_t *describe_job(const struct job *job)
{
    json_t *json = json_pack("{s:s, s:s, s:s, s:I, s:I}", "id", job->id, "type", job->ops->type, "status",
                             job_state_name(job->state), "current-progress", (json_int_t)job->done_bytes,
                             "total-progress", (json_int_t)job->total_bytes);
    if (json && job->ended && job->status < 0)
        json_object_set_new(json, "error", describe_text(job->err.text));
    return json;
}

/* How the cut of a push went, when it has been made. */
static void describe_push_cut(json_t *json, const struct job *job)
{
    struct push_cut cut;
    if (!push_cut(job, &cut))
        return;
    json_object_set_new(json, "hold-ns", json_integer((json_int_t)cut.hold_ns));
    describe_consistency(json, cut.consistency, cut.consistency_reason, cut.frozen_ns);
}

json_t *describe_push(const struct job *job)
{
    json_t *json = json_pack("{s:s}", "job-id", job->id);
    if (json)
        describe_push_cut(json, job);
    return json;
}

json_t *describe_block_job(const struct job *job)
{
    struct push_disk_info info;
    json_t *disks = json_array();
    for (unsigned i = 0; push_disk_info(job, i, &info); i++)
        json_array_append_new(disks, json_pack("{s:s, s:o, s:I, s:I, s:I}", "disk", info.disk, "target",
                                               describe_text(info.target), "offset", (json_int_t)info.done_bytes, "len",
                                               (json_int_t)info.total_bytes, "data", (json_int_t)info.data_bytes));
    json_t *json = json_pack("{s:s, s:s, s:I, s:I, s:b, s:b, s:I, s:s, s:b, s:s, s:b, s:b, s:o}", "type",
                             job->ops->type, "device", job->id, "len", (json_int_t)job->total_bytes, "offset",
                             (json_int_t)job->done_bytes, "busy", job->state == JOB_RUNNING, "paused", job->user_paused,
                             "speed", (json_int_t)job->speed, "io-status", "ok", "ready", 0, "status",
                             job_state_name(job->state), "auto-finalize", job->auto_finalize, "auto-dismiss",
                             job->auto_dismiss, "disks", disks);
    if (json)
        describe_push_cut(json, job);
    if (json && job->ended && job->status < 0)
        json_object_set_new(json, "error", describe_text(job->err.text));
    return json;
}
