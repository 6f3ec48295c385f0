/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fleece push: a job of the daemon's that copies disks to files or NBD exports, started, watched and, on an interruption,
 * cancelled from here. The job is the daemon's: it goes on when this process is killed, and its end shows in events.
 *
 * It also goes on when the daemon is killed and started again, or ends for the next one. So a connection that is lost
 * without a word of the job's end, which comes before an orderly end of the daemon, too, is made anew when the daemon is
 * back, and the job is watched on; it stays there for a while when it is over by then.
 *
 * The job gets its name here, so that it can be cancelled even when the answer to the command that starts it has not come.
 */
#include "cli/command.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/name.h"
#include "cli/reply.h"
#include "cli/transfer.h"
#include "fleece/fleece.h"

struct push {
    struct cli *cli;
    struct fleece *fleece;
    struct transfer transfer;
    struct progress progress;
    json_t *arguments, *disks; /* disks: as query-block-jobs showed them last */
    char job[LIMIT_NAME_BYTES + 1], label[LIMIT_NAME_BYTES + 1];
    bool cancelling, over, cancelled, warned;
    bool came_back;                /* after its death: then we dismiss the job */
    bool left;                     /* interrupted while the daemon was gone */
    char consistent[16];           /* how its snapshot is */
    char error[LIMIT_ERROR_BYTES]; /* empty: it went well */
    uint64_t done_bytes, total_bytes, data_bytes, started_ns;
};

struct execution { /* of the command that starts it, on a helper thread */
    struct push *push;
    char *arguments, *reply;
    char error[FLEECE_ERROR_BYTES];
};

static int64_t start_blocking(void *argument)
{
    struct execution *execution = argument;
    execution->reply = fleece_execute(execution->push->fleece, "fleece-push", execution->arguments, execution->error);
    return 0;
}

/* NULL: no such job any more, or the connection is gone. */
static json_t *execute(struct push *push, const char *command, json_t *arguments)
{
    char error[FLEECE_ERROR_BYTES];
    char *text = arguments ? json_dumps(arguments, JSON_COMPACT) : NULL;
    char *reply = fleece_execute(push->fleece, command, text, error);
    json_t *result = reply ? json_loads(reply, JSON_DECODE_ANY, NULL) : NULL;
    json_decref(arguments);
    free(text);
    free(reply);
    return result;
}

static void cancel(struct push *push)
{
    push->cancelling = true;
    json_decref(execute(push, "job-cancel", json_pack("{s:s}", "id", push->job)));
}

/* As query-jobs shows it, to be freed; NULL: it is not there. */
static json_t *find_job(struct push *push)
{
    json_t *jobs = execute(push, "query-jobs", NULL), *job, *found = NULL;
    size_t i;
    json_array_foreach (jobs, i, job)
        if (!found && strcmp(cli_text(job, "id"), push->job) == 0)
            found = json_incref(job);
    json_decref(jobs);
    return found;
}

static bool job_is_there(struct push *push)
{
    json_t *job = find_job(push);
    json_decref(job);
    return job != NULL;
}

/* What the daemon says of the cut, once. */
static void note_cut(struct push *push, const json_t *said)
{
    if (push->consistent[0] || !json_object_get(said, "consistent"))
        return;
    snprintf(push->consistent, sizeof push->consistent, "%s", cli_text(said, "consistent"));
    if (!json_object_get(said, "consistent-reason"))
        return;
    push->warned = true;
    cli_warn("what is pushed is crash-consistent: %s", cli_text(said, "consistent-reason"));
}

/* How far the job is. */
static void look(struct push *push)
{
    json_t *jobs = execute(push, "query-block-jobs", NULL), *job, *disk;
    size_t i, k;
    json_array_foreach (jobs, i, job) {
        if (strcmp(cli_text(job, "device"), push->job) != 0)
            continue;
        json_decref(push->disks);
        push->disks = json_incref(json_object_get(job, "disks"));
        push->done_bytes = (uint64_t)json_integer_value(json_object_get(job, "offset"));
        push->total_bytes = (uint64_t)json_integer_value(json_object_get(job, "len"));
        note_cut(push, job); /* if the answer to the command that started it was lost */
        push->data_bytes = 0;
        json_array_foreach (push->disks, k, disk)
            push->data_bytes += (uint64_t)json_integer_value(json_object_get(disk, "data"));
        progress_show(&push->progress, io_now_ns(push->transfer.io), push->done_bytes, push->total_bytes,
                      push->data_bytes);
    }
    json_decref(jobs);
}

static void take_event(struct push *push, const json_t *event)
{
    const json_t *data = json_object_get(event, "data");
    const char *name = cli_text(event, "event");
    bool completed = strcmp(name, "BLOCK_JOB_COMPLETED") == 0, cancelled = strcmp(name, "BLOCK_JOB_CANCELLED") == 0;
    if ((!completed && !cancelled) || strcmp(cli_text(data, "device"), push->job) != 0)
        return;
    push->over = true;
    push->cancelled = cancelled;
    push->done_bytes = (uint64_t)json_integer_value(json_object_get(data, "offset"));
    if (json_object_get(data, "error"))
        snprintf(push->error, sizeof push->error, "%s", cli_text(data, "error"));
    else if (cancelled)
        snprintf(push->error, sizeof push->error, "job '%s' was cancelled", push->job);
}

/* All that have come. Returns whether more can come. */
static bool drain_events(struct push *push, char *error)
{
    char *text;
    while (!push->over && (text = fleece_event(push->fleece, 0, error)) != NULL) {
        json_t *event = json_loads(text, 0, NULL);
        take_event(push, event);
        json_decref(event);
        free(text);
    }
    return !error[0];
}

/* ---- the daemon's death and its return ---- */

static void end_with(struct push *push, const char *sentence)
{
    push->over = true;
    snprintf(push->error, sizeof push->error, "%s", sentence);
}

/* A failed command does not say whether it was that. */
static bool connection_is_lost(struct push *push)
{
    char error[FLEECE_ERROR_BYTES];
    char *text = fleece_execute(push->fleece, "query-version", NULL, error);
    free(text);
    return !text;
}

/* Connects again when there is a daemon; false: not in time, or interrupted. One interruption cancels the job, when there is
 * somebody who does; a second one ends this process. */
static bool connect_again(struct push *push)
{
    struct pollfd fd = {.fd = push->transfer.signal_fd, .events = POLLIN};
    const uint64_t end_ns = io_now_ns(push->transfer.io) + PUSH_RETURN_NS;
    fleece_close(push->fleece);
    push->fleece = NULL;
    while (!push->fleece && io_now_ns(push->transfer.io) < end_ns) {
        poll(&fd, 1, PUSH_POLL_MS);
        if (!push->cancelling && transfer_interrupted(&push->transfer)) {
            push->left = true;
            return false;
        }
        push->fleece = cli_connect_again(push->cli);
    }
    return push->fleece != NULL;
}

/* The connection is lost: watches on with the next daemon, if the job is there. */
static void come_back(struct push *push)
{
    char error[FLEECE_ERROR_BYTES] = "";
    (void)drain_events(push, error);
    if (push->over)
        return;
    cli_note("the daemon is gone: waiting until it is back");
    json_t *job = NULL;
    while (!job && connect_again(push)) {
        job = find_job(push);
        if (!job && !connection_is_lost(push))
            break;
    }
    if (!push->fleece) {
        end_with(push, error);
        return;
    }
    if (!job) {
        end_with(push, "the daemon was started again, and has no such job any more: it is not known how it ended");
        return;
    }
    cli_note("the daemon is back: job '%s' is %s", push->job, cli_text(job, "status"));
    push->came_back = true;
    push->done_bytes = (uint64_t)json_integer_value(json_object_get(job, "current-progress"));
    look(push);
    if (strcmp(cli_text(job, "status"), "concluded") == 0)
        end_with(push, json_object_get(job, "error") ? cli_text(job, "error") : "");
    else if (push->cancelling)
        cancel(push);
    json_decref(job);
}

/* ---- watching ---- */

static void watch(struct push *push)
{
    progress_begin(&push->progress, push->cli->json, NULL, push->label, io_now_ns(push->transfer.io));
    for (look(push); !push->over; look(push)) {
        struct pollfd fds[] = {{.fd = fleece_descriptor(push->fleece), .events = POLLIN},
                               {.fd = push->transfer.signal_fd, .events = POLLIN}};
        char error[FLEECE_ERROR_BYTES] = "";
        if (!drain_events(push, error) && !push->over)
            come_back(push);
        if (push->over)
            break;
        poll(fds, 2, PUSH_POLL_MS);
        if (!push->cancelling && transfer_interrupted(&push->transfer))
            cancel(push);
    }
    progress_end(&push->progress);
}

/* The command that starts the job; on an interruption it is cancelled by its name, on a connection of its own. */
static int start(struct push *push)
{
    struct execution execution = {.push = push, .arguments = json_dumps(push->arguments, JSON_COMPACT)};
    transfer_block(&push->transfer, start_blocking, &execution, fleece_descriptor(push->fleece));
    free(execution.arguments);
    bool began = execution.reply != NULL;
    json_t *reply = began ? json_loads(execution.reply, 0, NULL) : NULL;
    note_cut(push, reply);
    json_decref(reply);
    free(execution.reply);
    if (!began && !transfer_interrupted(&push->transfer) && connection_is_lost(push)) {
        come_back(push);
        return CLI_DONE;
    }
    if (!transfer_interrupted(&push->transfer))
        return began ? CLI_DONE : cli_fail("%s", execution.error);
    fleece_close(push->fleece); /* the interruption has shut it down */
    push->fleece = NULL;
    if (cli_connect(push->cli, &push->fleece) == CLI_DONE) {
        cancel(push);
        for (unsigned i = 0; i < TRANSFER_PATIENCE_NS / NS_PER_MS / PUSH_POLL_MS && job_is_there(push); i++)
            poll(NULL, 0, PUSH_POLL_MS);
    }
    cli_fail("interrupted: the push was cancelled");
    return CLI_INTERRUPTED;
}

static int report(struct push *push)
{
    char text[16];
    double seconds = (double)(io_now_ns(push->transfer.io) - push->started_ns) / (double)NS_PER_S;
    if (push->left) {
        cli_fail("interrupted while the daemon was gone: when it is back, it goes on with job '%s'", push->job);
        return CLI_INTERRUPTED;
    }
    if (push->cancelling && (push->cancelled || (push->came_back && push->error[0]))) {
        cli_fail("interrupted: the push was cancelled");
        return CLI_INTERRUPTED;
    }
    if (push->error[0])
        return cli_fail("%s", push->error);
    if (push->cli->json) {
        json_t *line = json_pack("{s:s, s:s, s:f, s:I, s:s}", "event", "done", "job", push->job, "seconds", seconds,
                                 "size", (json_int_t)push->done_bytes, "consistent", push->consistent);
        cli_print_json(line);
        json_decref(line);
    } else
        printf("pushed %s: %s, in %.1f s\n", push->label, size_format(text, push->done_bytes), seconds);
    return push->warned ? CLI_WARNING : CLI_DONE;
}

/* --- the command line */

/* "DISK=FILE|URI" becomes a member of "targets"; files are meant from here, and the daemon may run elsewhere. */
static int take_target(struct push *push, const char *text)
{
    const char *equals = strchr(text, '=');
    char disk[LIMIT_NAME_BYTES + 1], where[2 * PATH_MAX], here[PATH_MAX];
    struct error err;
    if (!equals || equals == text || !equals[1] || (size_t)(equals - text) > LIMIT_NAME_BYTES)
        return cli_usage(push->cli, "--to '%s' is not right: DISK=FILE or DISK=NBD-URI", text);
    snprintf(disk, sizeof disk, "%.*s", (int)(equals - text), text);
    if (name_check("disk name", disk, &err) < 0)
        return cli_usage(push->cli, "%s", err.text);
    bool as_it_is = equals[1] == '/' || strstr(equals + 1, "://");
    if (!as_it_is && !getcwd(here, sizeof here))
        return cli_fail("the current folder can't be named: %s", error_name(errno));
    int length = snprintf(where, sizeof where, "%s%s%s", as_it_is ? "" : here, as_it_is ? "" : "/", equals + 1);
    if (length < 0 || (size_t)length >= sizeof where)
        return cli_usage(push->cli, "--to: the target of disk %s has %d bytes; %zu are right at most", disk, length,
                         sizeof where - 1);
    json_t *target = json_pack("{s:s, s:s}", "disk", disk, "target", where);
    if (!target)
        return cli_usage(push->cli, "--to '%s' is not UTF-8", text);
    json_t *targets = json_object_get(push->arguments, "targets");
    json_array_append_new(targets, target);
    if (json_array_size(targets) == 1)
        snprintf(push->label, sizeof push->label, "%s", disk);
    else
        snprintf(push->label, sizeof push->label, "%zu disks", json_array_size(targets));
    return CLI_DONE;
}

static int take_options(struct push *push, int argc, char **argv)
{
    static const struct option options[] = {
        {"to", required_argument, NULL, 't'},     {"speed", required_argument, NULL, 's'},
        {"bitmap", required_argument, NULL, 'b'}, {"job", required_argument, NULL, 'j'},
        {"mode", required_argument, NULL, 'm'},   {"consistency", required_argument, NULL, 'C'},
        {"force", no_argument, NULL, 'f'},        {"no-advice", no_argument, NULL, 'a'},
        {"no-release", no_argument, NULL, 'r'},   {NULL, 0, NULL, 0}};
    struct error err;
    uint64_t speed;
    int option, code = CLI_DONE;
    optind = 0;
    while (code == CLI_DONE && (option = getopt_long(argc, argv, ":", options, NULL)) != -1) {
        if (option == 't')
            code = take_target(push, optarg);
        else if (option == 's' &&
                 (size_parse("--speed", optarg, &speed, &err) < 0 || speed == 0 || speed > THROTTLE_RATE_MAX))
            code = cli_usage(push->cli, "--speed '%s' is not right: bytes a second, from 1 to 1T", optarg);
        else if (option == 's')
            json_object_set_new(push->arguments, "speed", json_integer((json_int_t)speed));
        else if ((option == 'b' || option == 'j') &&
                 name_check(option == 'b' ? "name of a dirty bitmap" : "job name", optarg, &err) < 0)
            code = cli_usage(push->cli, "%s", err.text);
        else if (option == 'b')
            json_object_set_new(push->arguments, "bitmap", json_string(optarg));
        else if (option == 'm' && strcmp(optarg, "both") != 0 && strcmp(optarg, "ram") != 0 &&
                 strcmp(optarg, "plain") != 0)
            code = cli_usage(push->cli, "--mode '%s' is not right: both, ram or plain", optarg);
        else if (option == 'm')
            json_object_set_new(push->arguments, "mode", json_string(optarg));
        else if (option == 'C' && !cli_is_consistency(optarg))
            code = cli_usage(push->cli, "--consistency '%s' is not right: auto, crash or required", optarg);
        else if (option == 'C')
            json_object_set_new(push->arguments, "consistency", json_string(optarg));
        else if (option == 'j')
            snprintf(push->job, sizeof push->job, "%s", optarg);
        else if (option == 'f')
            json_object_set_new(push->arguments, "force", json_true());
        else if (option == 'a' || option == 'r')
            json_object_set_new(push->arguments, option == 'a' ? "advice" : "release", json_false());
        else
            code = cli_usage_option(push->cli, option, argv);
    }
    if (code == CLI_DONE && optind < argc)
        code = cli_usage(push->cli, "push takes no argument: '%s'; say --to DISK=FILE", argv[optind]);
    if (code == CLI_DONE && json_array_size(json_object_get(push->arguments, "targets")) == 0)
        code = cli_usage(push->cli, "say where to: --to DISK=FILE or --to DISK=NBD-URI");
    return code;
}

static int choose_job(struct push *push)
{
    uint32_t number = 0;
    if (!push->job[0]) {
        if (getrandom(&number, sizeof number, 0) != sizeof number)
            return cli_fail("no random number for the name of the job");
        snprintf(push->job, sizeof push->job, "push-%08" PRIx32, number);
    }
    json_object_set_new(push->arguments, "job-id", json_string(push->job));
    return CLI_DONE;
}

static int push_go(struct push *push)
{
    struct error err;
    int code = cli_connect(push->cli, &push->fleece);
    if (code != CLI_DONE)
        return code;
    if (transfer_open(&push->transfer, push->cli->json, &err) < 0) {
        code = cli_fail("%s", err.text);
    } else {
        push->started_ns = io_now_ns(push->transfer.io);
        code = start(push);
        if (code == CLI_DONE && !push->over)
            watch(push);
        if (code == CLI_DONE && push->came_back && push->fleece)
            json_decref(execute(push, "job-dismiss", json_pack("{s:s}", "id", push->job)));
        if (code == CLI_DONE)
            code = report(push);
        transfer_close(&push->transfer);
    }
    if (push->fleece)
        fleece_close(push->fleece);
    return code;
}

static int push_run(struct cli *cli, int argc, char **argv)
{
    struct push push = {.cli = cli, .arguments = json_pack("{s:[]}", "targets")};
    int code = take_options(&push, argc, argv);
    if (code == CLI_DONE)
        code = choose_job(&push);
    if (code == CLI_DONE)
        code = push_go(&push);
    json_decref(push.arguments);
    json_decref(push.disks);
    return code;
}

const struct cli_command cli_push = {
    .name = "push",
    .arguments = "--to DISK=FILE|NBD-URI … [--speed BYTES] [--bitmap NAME] [--mode both|ram|plain] "
                 "[--consistency auto|crash|required] [--force] [--job NAME] [--no-advice] [--no-release]",
    .summary = "have the daemon copy disks, as they are at one instant, to files or NBD exports",
    .run = push_run,
};
