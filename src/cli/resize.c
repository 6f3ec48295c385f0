/* SPDX-License-Identifier: GPL-2.0-or-later */
/* fleece resize: a disk grows while it is served. */
#include <getopt.h>
#include <stdio.h>

#include "base/error.h"
#include "base/name.h"
#include "cli/reply.h"

static int resize_run(struct cli *cli, int argc, char **argv)
{
    static const struct option options[] = {{NULL, 0, NULL, 0}};
    uint64_t size = 0;
    struct error err;
    int option = getopt_long(argc, argv, ":", options, NULL);
    if (option != -1)
        return cli_usage_option(cli, option, argv);
    const int words = argc - optind;
    if (words < 1 || words > 2)
        return cli_usage(cli, "resize wants a disk, and the size that it is to get, unless its device has it already");
    if (words == 2 && size_parse("size", argv[optind + 1], &size, &err) < 0)
        return cli_usage(cli, "%s", err.text);
    if (words == 2 && size == 0)
        return cli_usage(cli, "size 0 is not right: it must be more");
    json_t *arguments = json_pack("{s:s}", "device", argv[optind]), *result = NULL;
    if (size > 0)
        json_object_set_new(arguments, "size", json_integer((json_int_t)size));
    int code = cli_execute_once(cli, "block_resize", arguments, &result);
    if (code == CLI_DONE && cli->json) {
        json_object_set_new(result, "disk", json_string(argv[optind]));
        cli_print_json(result);
    } else if (code == CLI_DONE) {
        printf("disk %s has %lld bytes\n", argv[optind],
               (long long)json_integer_value(json_object_get(result, "size")));
    }
    json_decref(arguments);
    json_decref(result);
    return code;
}

const struct cli_command cli_resize = {
    .name = "resize",
    .arguments = "DISK [SIZE]",
    .summary = "make a disk larger while it is served, or take over the new size of its device",
    .run = resize_run,
};
