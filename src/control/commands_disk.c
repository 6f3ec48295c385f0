/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Commands about disks: QEMU's name and arguments; a disk is its own node. */
#include "control/command.h"

#include <errno.h>

#include "control/client.h"

static const struct control_argument resize_arguments[] = {
    {.name = "device", .kind = CONTROL_STRING},
    {.name = "node-name", .kind = CONTROL_STRING},
    {.name = "size", .kind = CONTROL_INTEGER, .min = 1, .max = (json_int_t)LIMIT_DISK_BYTES},
    {.name = NULL},
};

static void resize_done(void *argument, uint64_t size_bytes, const struct error *err)
{
    struct control_request *request = argument;
    if (err)
        control_fail(request, err->code == ENODEV ? "DeviceNotFound" : "GenericError", "%s", err->text);
    else
        control_return(request, json_pack("{s:I}", "size", (json_int_t)size_bytes));
}

static void block_resize(struct control_request *request)
{
    const char *device = control_argument_text(request, "device"), *node = control_argument_text(request, "node-name");
    const json_int_t size = json_integer_value(json_object_get(request->arguments, "size"));
    if (!device == !node)
        control_fail(request, "GenericError", "name one disk, as 'device' or as 'node-name'");
    else
        vm_disk_grow(request->server->host.vm, device ? device : node, (uint64_t)size, resize_done, request);
}

const struct control_command control_commands_disk[] = {
    {.name = "block_resize", .arguments = resize_arguments, .run = block_resize},
    {.name = NULL},
};
