/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Commands about jobs: QEMU's names and meaning. job-… name a job by `id`, block-job-… by `device`, which is the same; the
 * errors of the latter have a class of their own, as they do in QEMU.
 */
#include "control/command.h"

#include <errno.h>
#include <string.h>

#include "control/client.h"
#include "control/describe.h"
#include "vm/push.h"

#define SPEED_MAX ((json_int_t)THROTTLE_RATE_MAX)

static const struct control_argument backup_arguments[] = {
    {.name = "job-id", .kind = CONTROL_STRING},
    {.name = "device", .kind = CONTROL_STRING, .required = true},
    {.name = "target", .kind = CONTROL_STRING, .required = true},
    {.name = "sync", .kind = CONTROL_STRING, .required = true},
    {.name = "speed", .kind = CONTROL_INTEGER, .min = 0, .max = SPEED_MAX},
    {.name = "bitmap", .kind = CONTROL_STRING},
    {.name = "bitmap-mode", .kind = CONTROL_STRING},
    {.name = "compress", .kind = CONTROL_BOOLEAN},
    {.name = "on-source-error", .kind = CONTROL_STRING},
    {.name = "on-target-error", .kind = CONTROL_STRING},
    {.name = "auto-finalize", .kind = CONTROL_BOOLEAN},
    {.name = "auto-dismiss", .kind = CONTROL_BOOLEAN},
    {.name = "force", .kind = CONTROL_BOOLEAN},
    {.name = "consistency", .kind = CONTROL_STRING},
    {.name = NULL},
};

static const struct control_argument push_arguments[] = {
    {.name = "targets", .kind = CONTROL_ARRAY, .required = true},
    {.name = "job-id", .kind = CONTROL_STRING},
    {.name = "speed", .kind = CONTROL_INTEGER, .min = 0, .max = SPEED_MAX},
    {.name = "bitmap", .kind = CONTROL_STRING},
    {.name = "mode", .kind = CONTROL_STRING},
    {.name = "advice", .kind = CONTROL_BOOLEAN},
    {.name = "release", .kind = CONTROL_BOOLEAN},
    {.name = "force", .kind = CONTROL_BOOLEAN},
    {.name = "auto-finalize", .kind = CONTROL_BOOLEAN},
    {.name = "auto-dismiss", .kind = CONTROL_BOOLEAN},
    {.name = "consistency", .kind = CONTROL_STRING},
    {.name = NULL},
};

static const struct control_argument id_arguments[] = {
    {.name = "id", .kind = CONTROL_STRING, .required = true},
    {.name = NULL},
};

static const struct control_argument device_arguments[] = {
    {.name = "device", .kind = CONTROL_STRING, .required = true},
    {.name = NULL},
};

static const struct control_argument device_cancel_arguments[] = {
    {.name = "device", .kind = CONTROL_STRING, .required = true},
    {.name = "force", .kind = CONTROL_BOOLEAN},
    {.name = NULL},
};

static const struct control_argument speed_arguments[] = {
    {.name = "device", .kind = CONTROL_STRING, .required = true},
    {.name = "speed", .kind = CONTROL_INTEGER, .required = true, .min = 0, .max = SPEED_MAX},
    {.name = NULL},
};

static bool turned_off(const struct control_request *request, const char *name)
{
    return json_is_false(json_object_get(request->arguments, name));
}

static bool turned_on(const struct control_request *request, const char *name)
{
    return json_is_true(json_object_get(request->arguments, name));
}

/* --- making one */

/* What both commands share. False: it is wrong, and the request has been answered. */
static bool read_options(struct control_request *request, struct push_options *options)
{
    const char *consistency = control_argument_text(request, "consistency");
    *options = (struct push_options){
        .job_id = control_argument_text(request, "job-id"),
        .bitmap = control_argument_text(request, "bitmap"),
        .speed = (uint64_t)json_integer_value(json_object_get(request->arguments, "speed")),
        .force = turned_on(request, "force"),
        .no_advice = turned_off(request, "advice"),
        .no_release = turned_off(request, "release"),
        .keep_concluded = turned_off(request, "auto-dismiss"),
        .wait_to_finalize = turned_off(request, "auto-finalize"),
    };
    if (!consistency || describe_consistency_parse(consistency, &options->consistency))
        return true;
    control_fail(request, "GenericError", "Parameter 'consistency' is '%.100s': auto, crash or required is right",
                 consistency);
    return false;
}

/* What of QEMU's arguments can't be honoured is refused with the reason. */
static int backup_check(const struct control_request *request, struct error *err)
{
    const char *sync = control_argument_text(request, "sync"), *mode = control_argument_text(request, "bitmap-mode"),
               *bitmap = control_argument_text(request, "bitmap");
    static const char *const errors[] = {"on-source-error", "on-target-error"};
    for (unsigned i = 0; i < 2; i++) {
        const char *action = control_argument_text(request, errors[i]);
        if (action && strcmp(action, "report") != 0)
            return error_set(err, EINVAL,
                             "Parameter '%s' must be 'report', not '%.40s': a job ends with its first error", errors[i],
                             action);
    }
    if (turned_on(request, "compress"))
        return error_set(err, EINVAL, "Parameter 'compress' can't be true: targets are raw images");
    if (strcmp(sync, "full") == 0 && !bitmap && !mode)
        return 0;
    if (strcmp(sync, "full") == 0)
        return error_set(err, EINVAL, "Parameters 'bitmap' and 'bitmap-mode' go with sync 'bitmap' only");
    if (strcmp(sync, "bitmap") == 0 && mode && strcmp(mode, "never") != 0 && strcmp(mode, "always") != 0 &&
        strcmp(mode, "on-success") != 0)
        return error_set(err, EINVAL, "Parameter 'bitmap-mode' must be 'never', not '%.40s'", mode);
    if (strcmp(sync, "incremental") == 0 || (strcmp(sync, "bitmap") == 0 && mode && strcmp(mode, "never") != 0))
        return error_set(err, EINVAL,
                         "a job does not clear its bitmap: use sync 'bitmap' with bitmap-mode 'never', and begin a new "
                         "bitmap for the next backup");
    if (strcmp(sync, "bitmap") != 0)
        return error_set(err, EINVAL, "Parameter 'sync' must be 'full' or 'bitmap', not '%.40s'%s", sync,
                         strcmp(sync, "none") == 0 ? ": for fleecing, fleece-snapshot-create takes a snapshot" : "");
    return bitmap ? 0 : error_set(err, EINVAL, "Parameter 'bitmap' is missing: sync 'bitmap' wants one");
}

static void backup_begun(void *argument, const struct job *job, const struct error *err)
{
    struct control_request *request = argument;
    if (job)
        control_return(request, json_object());
    else
        control_fail_with(request, err);
}

static void blockdev_backup(struct control_request *request)
{
    struct error err;
    if (backup_check(request, &err) < 0) {
        control_fail_with(request, &err);
        return;
    }
    const struct push_target target = {control_argument_text(request, "device"),
                                       control_argument_text(request, "target")};
    struct push_options options;
    if (!read_options(request, &options))
        return;
    options.targets = &target;
    options.target_count = 1;
    if (!options.job_id)
        options.job_id = target.disk;
    push_start(request->server->host.vm, request->server->host.jobs, &options, backup_begun, request);
}

static void push_begun(void *argument, const struct job *job, const struct error *err)
{
    struct control_request *request = argument;
    if (job)
        control_return(request, describe_push(job));
    else
        control_fail_with(request, err);
}

static int mode_of(const char *text, enum push_mode *mode)
{
    static const char *const names[] = {[PUSH_BOTH] = "both", [PUSH_RAM] = "ram", [PUSH_PLAIN] = "plain"};
    for (unsigned i = 0; text && i < sizeof names / sizeof *names; i++)
        if (strcmp(text, names[i]) == 0) {
            *mode = (enum push_mode)i;
            return 0;
        }
    return text ? -EINVAL : 0;
}

static void fleece_push(struct control_request *request)
{
    const json_t *array = json_object_get(request->arguments, "targets");
    struct push_target targets[LIMIT_DISKS];
    struct push_options options;
    if (!read_options(request, &options))
        return;
    if (json_array_size(array) > LIMIT_DISKS) {
        control_fail(request, "GenericError", "Parameter 'targets' has %zu members: a VM has at most %d disks",
                     json_array_size(array), LIMIT_DISKS);
        return;
    }
    for (size_t i = 0; i < json_array_size(array); i++) {
        const json_t *target = json_array_get(array, i);
        const char *disk = json_string_value(json_object_get(target, "disk")),
                   *where = json_string_value(json_object_get(target, "target"));
        if (!disk || !where || json_object_size(target) != 2) {
            control_fail(request, "GenericError",
                         "member %zu of Parameter 'targets' must be an object of two strings, 'disk' and 'target'", i);
            return;
        }
        targets[i] = (struct push_target){disk, where};
    }
    if (mode_of(control_argument_text(request, "mode"), &options.mode) < 0) {
        control_fail(request, "GenericError", "Parameter 'mode' must be 'both', 'ram' or 'plain', not '%.40s'",
                     control_argument_text(request, "mode"));
        return;
    }
    options.targets = targets;
    options.target_count = (unsigned)json_array_size(array);
    push_start(request->server->host.vm, request->server->host.jobs, &options, push_begun, request);
}

/* --- asking about them */

static void query_jobs(struct control_request *request)
{
    json_t *array = json_array();
    list_each (link, &request->server->host.jobs->jobs)
        json_array_append_new(array, describe_job(container_of(link, struct job, link)));
    control_return(request, array);
}

static void query_block_jobs(struct control_request *request)
{
    json_t *array = json_array();
    list_each (link, &request->server->host.jobs->jobs)
        json_array_append_new(array, describe_block_job(container_of(link, struct job, link)));
    control_return(request, array);
}

/* --- verbs */

static void answer(struct control_request *request, int status, const struct error *err)
{
    if (status < 0)
        control_fail_with(request, err);
    else
        control_return(request, json_object());
}

/* NULL: there is none, and the request has been answered. */
static struct job *job_meant(struct control_request *request)
{
    const char *id = control_argument_text(request, "id"), *device = control_argument_text(request, "device");
    struct job *job = job_find(request->server->host.jobs, id ? id : device);
    if (!job && id)
        control_fail(request, "GenericError", "Job not found");
    else if (!job)
        control_fail(request, "DeviceNotActive", "Block job '%.80s' not found", device);
    return job;
}

static void run_verb(struct control_request *request, enum job_verb verb)
{
    struct error err;
    struct job *job = job_meant(request);
    if (job)
        answer(request, job_verb(job, verb, &err), &err);
}

static void run_cancel(struct control_request *request)
{
    struct error err;
    struct job *job = job_meant(request);
    if (job) /* job-cancel is by force in QEMU, too */
        answer(request, job_cancel(job, control_argument_text(request, "id") || turned_on(request, "force"), &err),
               &err);
}

static void run_pause(struct control_request *request)
{
    run_verb(request, JOB_VERB_PAUSE);
}

static void run_resume(struct control_request *request)
{
    run_verb(request, JOB_VERB_RESUME);
}

static void run_finalize(struct control_request *request)
{
    run_verb(request, JOB_VERB_FINALIZE);
}

static void run_dismiss(struct control_request *request)
{
    run_verb(request, JOB_VERB_DISMISS);
}

static void run_set_speed(struct control_request *request)
{
    struct error err;
    struct job *job = job_meant(request);
    if (!job)
        return;
    uint64_t speed = (uint64_t)json_integer_value(json_object_get(request->arguments, "speed"));
    answer(request, job_set_speed(job, speed, &err), &err);
}

const struct control_command control_commands_job[] = {
    {.name = "blockdev-backup", .arguments = backup_arguments, .run = blockdev_backup},
    {.name = "fleece-push", .arguments = push_arguments, .run = fleece_push},
    {.name = "query-jobs", .run = query_jobs},
    {.name = "query-block-jobs", .run = query_block_jobs},
    {.name = "job-cancel", .arguments = id_arguments, .run = run_cancel},
    {.name = "job-pause", .arguments = id_arguments, .run = run_pause},
    {.name = "job-resume", .arguments = id_arguments, .run = run_resume},
    {.name = "job-finalize", .arguments = id_arguments, .run = run_finalize},
    {.name = "job-dismiss", .arguments = id_arguments, .run = run_dismiss},
    {.name = "block-job-cancel", .arguments = device_cancel_arguments, .run = run_cancel},
    {.name = "block-job-pause", .arguments = device_arguments, .run = run_pause},
    {.name = "block-job-resume", .arguments = device_arguments, .run = run_resume},
    {.name = "block-job-finalize", .arguments = id_arguments, .run = run_finalize},
    {.name = "block-job-dismiss", .arguments = id_arguments, .run = run_dismiss},
    {.name = "block-job-set-speed", .arguments = speed_arguments, .run = run_set_speed},
    {.name = NULL},
};
