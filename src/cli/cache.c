/* SPDX-License-Identifier: GPL-2.0-or-later */
/* fleece cache: the budgets of the fleecing cache, and what a backup will need of it. */
#include "cli/reply.h"

#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/name.h"

/* Sizes into the command's arguments: each option that is given. */
static int size_options(struct cli *cli, int argc, char **argv, const struct option *options, json_t *arguments)
{
    struct error err;
    uint64_t bytes;
    int option, index;
    char what[32];
    optind = 0;
    while ((option = getopt_long(argc, argv, ":", options, &index)) != -1) {
        if (option != 's')
            return cli_usage_option(cli, option, argv);
        snprintf(what, sizeof what, "--%s", options[index].name);
        if (size_parse(what, optarg, &bytes, &err) < 0)
            return cli_usage(cli, "%s", err.text);
        if (bytes == 0)
            return cli_usage(cli, "%s 0 is not right: it must be more", what);
        json_object_set_new(arguments, options[index].name, json_integer((json_int_t)bytes));
    }
    return optind < argc ? cli_usage(cli, "cache %s takes no argument: '%s'", argv[0], argv[optind]) : CLI_DONE;
}

static int cache_resize(struct cli *cli, int argc, char **argv)
{
    static const struct option options[] = {
        {"ram", required_argument, NULL, 's'}, {"max", required_argument, NULL, 's'}, {NULL, 0, NULL, 0}};
    json_t *arguments = json_object(), *result = NULL;
    int code = size_options(cli, argc, argv, options, arguments);
    if (code == CLI_DONE && json_object_size(arguments) == 0)
        code = cli_usage(cli, "say what to resize: --ram SIZE, --max SIZE or both");
    if (code == CLI_DONE)
        code = cli_execute_once(cli, "fleece-cache-resize", arguments, &result);
    if (code == CLI_DONE && cli->json)
        cli_print_json(arguments);
    else if (code == CLI_DONE)
        printf("the fleecing cache has its new size\n");
    json_decref(arguments);
    json_decref(result);
    return code;
}

static uint64_t number_of(const json_t *object, const char *key)
{
    return (uint64_t)json_integer_value(json_object_get(object, key));
}

static const char *fits_of(const json_t *estimate, const char *key)
{
    return json_is_true(json_object_get(estimate, key)) ? "which fits" : "which does NOT fit";
}

static void print_estimate(const json_t *estimate)
{
    char text[3][16];
    printf("a backup of %s at %s/s takes about %" PRIu64 " s\n", size_format(text[0], number_of(estimate, "size")),
           size_format(text[1], number_of(estimate, "speed")), number_of(estimate, "seconds"));
    printf("the guest has written %s/s of different blocks in the last %" PRIu64 " s\n",
           size_format(text[0], number_of(estimate, "write-rate")), number_of(estimate, "observed-ms") / 1000);
    printf("cache needed at most: %s when what was copied is released, %s\n",
           size_format(text[0], number_of(estimate, "bytes")), fits_of(estimate, "fits"));
    printf("                      %s when it is not, %s\n",
           size_format(text[0], number_of(estimate, "bytes-unreleased")), fits_of(estimate, "fits-unreleased"));
    printf("cache free now: %s\n", size_format(text[0], number_of(estimate, "bytes-free")));
}

/* Exit code 3: it will hardly fit, even with releases. */
static int cache_estimate(struct cli *cli, int argc, char **argv)
{
    static const struct option options[] = {{"speed", required_argument, NULL, 's'}, {NULL, 0, NULL, 0}};
    json_t *arguments = json_object(), *estimate = NULL;
    int code = size_options(cli, argc, argv, options, arguments);
    if (code == CLI_DONE)
        code = cli_execute_once(cli, "fleece-estimate-backup", arguments, &estimate);
    if (code == CLI_DONE && cli->json)
        cli_print_json(estimate);
    else if (code == CLI_DONE)
        print_estimate(estimate);
    if (code == CLI_DONE && !json_is_true(json_object_get(estimate, "fits")))
        code = cli_warn("at this rate the fleecing cache is too small for a backup");
    json_decref(arguments);
    json_decref(estimate);
    return code;
}

static int cache_run(struct cli *cli, int argc, char **argv)
{
    if (argc < 2)
        return cli_usage(cli, "say what to do: estimate or resize");
    if (strcmp(argv[1], "estimate") == 0)
        return cache_estimate(cli, argc - 1, argv + 1);
    if (strcmp(argv[1], "resize") == 0)
        return cache_resize(cli, argc - 1, argv + 1);
    return cli_usage(cli, "unknown action '%s': estimate or resize", argv[1]);
}

const struct cli_command cli_cache = {
    .name = "cache",
    .arguments = "estimate [--speed SIZE] | resize [--ram SIZE] [--max SIZE]",
    .summary = "how much fleecing cache a backup will need; change its size",
    .run = cache_run,
};
