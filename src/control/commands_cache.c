/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Commands about the fleecing cache: its budgets, and what a backup will need of it. */
#include "control/command.h"

#include "control/client.h"
#include "control/describe.h"
#include "vm/cache_watch.h"

static const struct control_argument resize_arguments[] = {
    {.name = "ram", .kind = CONTROL_INTEGER, .min = 1, .max = (json_int_t)FLEECE_RAM_MAX},
    {.name = "max", .kind = CONTROL_INTEGER, .min = 1, .max = (json_int_t)FLEECE_DISK_CACHE_MAX},
    {.name = NULL},
};

static const struct control_argument estimate_arguments[] = {
    {.name = "speed", .kind = CONTROL_INTEGER, .min = 1, .max = (json_int_t)TIB},
    {.name = NULL},
};

static uint64_t argument_bytes(const struct control_request *request, const char *name)
{
    return (uint64_t)json_integer_value(json_object_get(request->arguments, name));
}

static void resize_done(void *argument, const struct error *err)
{
    struct control_request *request = argument;
    if (err)
        control_fail_with(request, err);
    else
        control_return(request, json_object());
}

static void cache_resize(struct control_request *request)
{
    uint64_t ram = argument_bytes(request, "ram"), max = argument_bytes(request, "max");
    if (ram || max)
        vm_cache_resize(request->server->host.vm, ram, max, resize_done, request);
    else
        control_fail(request, "GenericError", "say what to resize: 'ram', 'max' or both");
}

static void estimate_done(void *argument, const struct vm_status *status)
{
    struct control_request *request = argument;
    uint64_t speed = argument_bytes(request, "speed");
    struct vm_backup_estimate estimate;
    if (!status) {
        control_return(request, NULL);
        return;
    }
    vm_estimate_backup(request->server->host.vm, status, speed ? speed : BACKUP_SPEED_DEFAULT, &estimate);
    control_return(request,
                   json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:b, s:b}", "size",
                             (json_int_t)estimate.size_bytes, "speed", (json_int_t)estimate.speed, "seconds",
                             (json_int_t)estimate.seconds, "write-rate", (json_int_t)estimate.write_rate, "observed-ms",
                             (json_int_t)(estimate.observed_ns / NS_PER_MS), "bytes", (json_int_t)estimate.bytes,
                             "bytes-unreleased", (json_int_t)estimate.bytes_unreleased, "bytes-free",
                             (json_int_t)estimate.bytes_free, "fits", estimate.bytes <= estimate.bytes_free,
                             "fits-unreleased", estimate.bytes_unreleased <= estimate.bytes_free));
}

static void estimate_backup(struct control_request *request)
{
    vm_status_query(request->server->host.vm, estimate_done, request);
}

const struct control_command control_commands_cache[] = {
    {.name = "fleece-cache-resize", .arguments = resize_arguments, .run = cache_resize},
    {.name = "fleece-estimate-backup", .arguments = estimate_arguments, .run = estimate_backup},
    {.name = NULL},
};
