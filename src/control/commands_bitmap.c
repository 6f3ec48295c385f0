/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Commands about dirty bitmaps: QEMU's names, arguments and meaning; `node` is the name of a disk. */
#include "control/command.h"

#include <errno.h>

#include "control/client.h"
#include "vm/bitmaps.h"

static const struct control_argument add_arguments[] = {
    {.name = "node", .kind = CONTROL_STRING, .required = true},
    {.name = "name", .kind = CONTROL_STRING, .required = true},
    {.name = "granularity",
     .kind = CONTROL_INTEGER,
     .min = (json_int_t)BITMAP_GRANULARITY_MIN,
     .max = (json_int_t)BITMAP_GRANULARITY_MAX},
    {.name = "persistent", .kind = CONTROL_BOOLEAN},
    {.name = "disabled", .kind = CONTROL_BOOLEAN},
    {.name = NULL},
};

static const struct control_argument one_arguments[] = {
    {.name = "node", .kind = CONTROL_STRING, .required = true},
    {.name = "name", .kind = CONTROL_STRING, .required = true},
    {.name = NULL},
};

static const struct control_argument merge_arguments[] = {
    {.name = "node", .kind = CONTROL_STRING, .required = true},
    {.name = "target", .kind = CONTROL_STRING, .required = true},
    {.name = "bitmaps", .kind = CONTROL_ARRAY, .required = true},
    {.name = NULL},
};

static const struct control_argument ranges_arguments[] = {
    {.name = "node", .kind = CONTROL_STRING, .required = true},
    {.name = "name", .kind = CONTROL_STRING, .required = true},
    {.name = "offset", .kind = CONTROL_INTEGER, .min = 0, .max = (json_int_t)LIMIT_DISK_BYTES},
    {.name = NULL},
};

static struct vm *request_vm(const struct control_request *request)
{
    return request->server->host.vm;
}

static struct vm_bitmap bitmap_meant(const struct control_request *request, const char *name)
{
    return (struct vm_bitmap){control_argument_text(request, "node"), control_argument_text(request, name)};
}

/* A disk that is not there is QEMU's DeviceNotFound; a bitmap that is not there a GenericError. */
static void bitmap_fail(struct control_request *request, const struct error *err)
{
    control_fail(request, err->code == ENODEV ? "DeviceNotFound" : "GenericError", "%s", err->text);
}

static void bitmap_done(void *argument, const struct error *err)
{
    struct control_request *request = argument;
    if (err)
        bitmap_fail(request, err);
    else
        control_return(request, json_object());
}

static void run_add(struct control_request *request)
{
    if (json_is_true(json_object_get(request->arguments, "persistent"))) {
        control_fail(request, "GenericError",
                     "dirty bitmap '%.80s' can't be persistent: bitmaps are kept in memory only, and are gone when the "
                     "daemon ends",
                     control_argument_text(request, "name"));
        return;
    }
    json_int_t granularity = json_integer_value(json_object_get(request->arguments, "granularity"));
    bool disabled = json_is_true(json_object_get(request->arguments, "disabled"));
    vm_bitmap_add(request_vm(request), bitmap_meant(request, "name"), (uint64_t)granularity, !disabled, bitmap_done,
                  request);
}

static void run_remove(struct control_request *request)
{
    vm_bitmap_remove(request_vm(request), bitmap_meant(request, "name"), bitmap_done, request);
}

static void run_clear(struct control_request *request)
{
    vm_bitmap_clear(request_vm(request), bitmap_meant(request, "name"), bitmap_done, request);
}

static void run_enable(struct control_request *request)
{
    vm_bitmap_enable(request_vm(request), bitmap_meant(request, "name"), true, bitmap_done, request);
}

static void run_disable(struct control_request *request)
{
    vm_bitmap_enable(request_vm(request), bitmap_meant(request, "name"), false, bitmap_done, request);
}

/* "NAME" (of the target's disk), or {"node": DISK, "name": NAME}. False: it is neither. */
static bool source_read(const struct control_request *request, const json_t *value, struct vm_bitmap *source)
{
    if (json_is_string(value)) {
        *source = (struct vm_bitmap){control_argument_text(request, "node"), json_string_value(value)};
        return true;
    }
    const char *node = json_string_value(json_object_get(value, "node"));
    const char *name = json_string_value(json_object_get(value, "name"));
    *source = (struct vm_bitmap){node, name};
    return node && name && json_object_size(value) == 2;
}

static void run_merge(struct control_request *request)
{
    struct vm_bitmap sources[LIMIT_BITMAP_SOURCES];
    const json_t *list = json_object_get(request->arguments, "bitmaps");
    size_t count = json_array_size(list);
    if (count > LIMIT_BITMAP_SOURCES) {
        control_fail(request, "GenericError", "Parameter 'bitmaps' has %zu members, but must have at most %d", count,
                     LIMIT_BITMAP_SOURCES);
        return;
    }
    for (size_t i = 0; i < count; i++) {
        if (!source_read(request, json_array_get(list, i), &sources[i])) {
            control_fail(request, "GenericError",
                         "Parameter 'bitmaps': member %zu must be a name, or an object of 'node' and 'name'", i);
            return;
        }
    }
    vm_bitmap_merge(request_vm(request), bitmap_meant(request, "target"), sources, (unsigned)count, bitmap_done,
                    request);
}

static void ranges_done(void *argument, const struct range *ranges, unsigned count, uint64_t next,
                        const struct error *err)
{
    struct control_request *request = argument;
    if (err) {
        bitmap_fail(request, err);
        return;
    }
    json_t *array = json_array();
    for (unsigned i = 0; i < count; i++)
        json_array_append_new(array, json_pack("{s:I, s:I}", "offset", (json_int_t)ranges[i].start, "length",
                                               (json_int_t)ranges[i].length));
    control_return(request, json_pack("{s:o, s:I}", "ranges", array, "next", (json_int_t)next));
}

static void query_ranges(struct control_request *request)
{
    uint64_t from = (uint64_t)json_integer_value(json_object_get(request->arguments, "offset"));
    vm_bitmap_ranges(request_vm(request), bitmap_meant(request, "name"), from, ranges_done, request);
}

const struct control_command control_commands_bitmap[] = {
    {.name = "block-dirty-bitmap-add", .arguments = add_arguments, .run = run_add},
    {.name = "block-dirty-bitmap-remove", .arguments = one_arguments, .run = run_remove},
    {.name = "block-dirty-bitmap-clear", .arguments = one_arguments, .run = run_clear},
    {.name = "block-dirty-bitmap-enable", .arguments = one_arguments, .run = run_enable},
    {.name = "block-dirty-bitmap-disable", .arguments = one_arguments, .run = run_disable},
    {.name = "block-dirty-bitmap-merge", .arguments = merge_arguments, .run = run_merge},
    {.name = "fleece-query-dirty-ranges", .arguments = ranges_arguments, .run = query_ranges},
    {.name = NULL},
};
