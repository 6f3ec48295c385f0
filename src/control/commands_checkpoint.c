/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Commands about checkpoints. One that is made with a snapshot is an argument of fleece-snapshot-create; here are those
 * that are made alone, and what becomes of all of them. A checkpoint or a disk that is not there is a DeviceNotFound.
 */
#include "control/command.h"

#include <errno.h>

#include "control/client.h"
#include "control/describe.h"

static const struct control_argument create_arguments[] = {
    {.name = "name", .kind = CONTROL_STRING, .required = true},
    {.name = NULL},
};

static const struct control_argument commit_arguments[] = {
    {.name = "uuid", .kind = CONTROL_STRING, .required = true},
    {.name = NULL},
};

static const struct control_argument delete_arguments[] = {
    {.name = "name", .kind = CONTROL_STRING},
    {.name = "uuid", .kind = CONTROL_STRING},
    {.name = NULL},
};

static const struct control_argument reset_arguments[] = {
    {.name = "disk", .kind = CONTROL_STRING, .required = true},
    {.name = NULL},
};

static struct vm *request_vm(const struct control_request *request)
{
    return request->server->host.vm;
}

static void checkpoint_fail(struct control_request *request, const struct error *err)
{
    bool missing = err->code == ENOENT || err->code == ENODEV;
    control_fail(request, missing ? "DeviceNotFound" : "GenericError", "%s", err->text);
}

static void checkpoint_done(void *argument, const struct error *err)
{
    struct control_request *request = argument;
    if (err)
        checkpoint_fail(request, err);
    else
        control_return(request, json_object());
}

static void checkpoint_created(void *argument, const struct checkpoint_id *id, const struct error *err)
{
    struct control_request *request = argument;
    if (!id) {
        checkpoint_fail(request, err);
        return;
    }
    json_t *result = describe_checkpoint_id(id);
    if (result)
        json_object_set_new(result, "state", json_string("committed"));
    control_return(request, result);
}

static void run_create(struct control_request *request)
{
    vm_checkpoint_create(request_vm(request), control_argument_text(request, "name"), checkpoint_created, request);
}

static void run_commit(struct control_request *request)
{
    vm_checkpoint_commit(request_vm(request), control_argument_text(request, "uuid"), checkpoint_done, request);
}

static void run_delete(struct control_request *request)
{
    const char *name = control_argument_text(request, "name"), *uuid = control_argument_text(request, "uuid");
    if (!name == !uuid)
        control_fail(request, "GenericError", "fleece-checkpoint-delete takes either 'name' or 'uuid', not %s",
                     name ? "both" : "neither");
    else
        vm_checkpoint_delete(request_vm(request), name ? name : uuid, checkpoint_done, request);
}

static void run_reset(struct control_request *request)
{
    vm_checkpoint_reset(request_vm(request), control_argument_text(request, "disk"), checkpoint_done, request);
}

static void checkpoints_known(void *argument, const struct vm_checkpoints *checkpoints)
{
    control_return(argument, checkpoints ? describe_checkpoints(checkpoints) : NULL);
}

static void query_checkpoints(struct control_request *request)
{
    vm_checkpoints_query(request_vm(request), checkpoints_known, request);
}

const struct control_command control_commands_checkpoint[] = {
    {.name = "fleece-checkpoint-create", .arguments = create_arguments, .run = run_create},
    {.name = "fleece-checkpoint-commit", .arguments = commit_arguments, .run = run_commit},
    {.name = "fleece-checkpoint-delete", .arguments = delete_arguments, .run = run_delete},
    {.name = "fleece-checkpoint-reset", .arguments = reset_arguments, .run = run_reset},
    {.name = "fleece-query-checkpoints", .run = query_checkpoints},
    {.name = NULL},
};
