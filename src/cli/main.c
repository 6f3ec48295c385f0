/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The client: options before the command, the table of commands, and the way errors are said. */
#include "cli/command.h"

#include <getopt.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/name.h"
#include "fleece/fleece.h"

static const struct cli_command *const commands[] = {
    &cli_status, &cli_snapshot, &cli_checkpoint, &cli_bitmap,  &cli_cache, &cli_resize, &cli_backup,
    &cli_push,   &cli_list,     &cli_verify,     &cli_restore, &cli_prune, &cli_audit,  &cli_qmp,
};
static const char usage[] = "fleece [--vm VM | --control SOCKET] [--json] COMMAND …";

/* One line, whatever is in the names that it quotes. */
static void print_sentence(const char *kind, const char *format, va_list args)
{
    char *sentence = NULL;
    if (vasprintf(&sentence, format, args) < 0)
        return;
    for (char *at = sentence; *at; at++)
        if ((unsigned char)*at < ' ' || *at == 127)
            *at = '?';
    fprintf(stderr, "fleece: %s%s\n", kind, sentence);
    free(sentence);
}

int cli_fail(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    print_sentence("", format, args);
    va_end(args);
    return CLI_FAILED;
}

int cli_warn(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    print_sentence("warning: ", format, args);
    va_end(args);
    return CLI_WARNING;
}

void cli_note(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    print_sentence("note: ", format, args);
    va_end(args);
}

static void print_usage(const struct cli *cli, FILE *stream)
{
    if (cli->command)
        fprintf(stream, "usage: fleece [OPTION…] %s%s%s\n", cli->command->name, cli->command->arguments[0] ? " " : "",
                cli->command->arguments);
    else
        fprintf(stream, "usage: %s\n", usage);
}

int cli_usage(const struct cli *cli, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    print_sentence("", format, args);
    va_end(args);
    print_usage(cli, stderr);
    return CLI_USAGE;
}

int cli_usage_option(const struct cli *cli, int result, char *const *argv)
{
    if (result == ':')
        return cli_usage(cli, "option %s wants a value", argv[optind - 1]);
    const char *word = argv[optind - 1];
    if (cli->command &&
        (strcmp(word, "--json") == 0 || strncmp(word, "--vm", 4) == 0 || strncmp(word, "--control", 9) == 0))
        return cli_usage(cli, "option %s stands before the command", word);
    if (optopt != 0 && strncmp(word, "--", 2) == 0)
        return cli_usage(cli, "option %.*s takes no value", (int)strcspn(word, "="), word);
    if (optopt > ' ' && optopt < 127)
        return cli_usage(cli, "unknown option -%c", optopt);
    return cli_usage(cli, "unknown option %s", argv[optind - 1]);
}

int cli_connect(const struct cli *cli, struct fleece **fleece)
{
    char path[PATH_MAX], error[FLEECE_ERROR_BYTES];
    struct error err;
    if (!cli->vm && !cli->control)
        return cli_usage(cli, "say which VM is meant: --vm NAME or --control SOCKET");
    if (cli->vm && name_check("VM name", cli->vm, &err) < 0)
        return cli_usage(cli, "--vm: %s", err.text);
    if (!cli->control && fleece_default_socket(cli->vm, path, sizeof path) < 0)
        return cli_fail("the default path of the control socket of VM %s is too long; use --control", cli->vm);
    *fleece = fleece_open(cli->control ? cli->control : path, error);
    return *fleece ? CLI_DONE : cli_fail("%s", error);
}

struct fleece *cli_connect_again(const struct cli *cli)
{
    char path[PATH_MAX], error[FLEECE_ERROR_BYTES];
    if (!cli->control && fleece_default_socket(cli->vm, path, sizeof path) < 0)
        return NULL;
    return fleece_open(cli->control ? cli->control : path, error);
}

char *cli_execute(struct fleece *fleece, const char *command, const char *arguments)
{
    char error[FLEECE_ERROR_BYTES];
    char *text = fleece_execute(fleece, command, arguments, error);
    if (!text)
        cli_fail("%s", error);
    return text;
}

static int print_help(void)
{
    printf("usage: %s\n\n"
           "Live backup of the disks of running virtual machines.\n\n"
           "  --vm VM            the VM, by the name its daemon was given\n"
           "  --control SOCKET   the same, by the path of the daemon's control socket\n"
           "  --json             one JSON object a line on stdout\n"
           "  --help, --version\n\n",
           usage);
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        printf("  %s %s\n      %s\n", commands[i]->name, commands[i]->arguments, commands[i]->summary);
    printf("\nExit codes: 0 done, 1 failed, 2 wrong usage, 3 done with a warning, 130 interrupted. See "
           "fleece(1).\n");
    return CLI_DONE;
}

/* Output that did not reach its file is a failure, whatever the command said. */
static int flush_output(int code)
{
    if (fflush(stdout) == 0 && !ferror(stdout))
        return code;
    return code == CLI_DONE || code == CLI_WARNING ? cli_fail("can't write the output: %m") : code;
}

/* No name of anything begins with two hyphens. */
static bool asks_for_help(int argc, char **argv)
{
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++)
        if (strcmp(argv[i], "--help") == 0)
            return true;
    return false;
}

static int print_command_help(const struct cli *cli)
{
    print_usage(cli, stdout);
    printf("\n%s; see fleece(1).\n", cli->command->summary);
    return CLI_DONE;
}

static int run_command(struct cli *cli, int argc, char **argv)
{
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        if (strcmp(commands[i]->name, argv[0]) == 0) {
            cli->command = commands[i];
            optind = 0;
            if (asks_for_help(argc, argv))
                return flush_output(print_command_help(cli));
            return flush_output(commands[i]->run(cli, argc, argv));
        }
    }
    return cli_usage(cli, "unknown command '%s'; fleece --help lists them", argv[0]);
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"vm", required_argument, NULL, 'v'}, {"control", required_argument, NULL, 'c'},
        {"json", no_argument, NULL, 'j'},     {"help", no_argument, NULL, 'h'},
        {"version", no_argument, NULL, 'V'},  {NULL, 0, NULL, 0},
    };
    struct cli cli = {0};
    int option;
    signal(SIGPIPE, SIG_IGN);
    opterr = 0;
    while ((option = getopt_long(argc, argv, "+:h", options, NULL)) != -1) {
        switch (option) {
        case 'v':
            cli.vm = optarg;
            break;
        case 'c':
            cli.control = optarg;
            break;
        case 'j':
            cli.json = true;
            break;
        case 'h':
            return flush_output(print_help());
        case 'V':
            printf("fleece %s\n", FLEECE_VERSION);
            return flush_output(CLI_DONE);
        default:
            return cli_usage_option(&cli, option, argv);
        }
    }
    if (cli.control && !cli.control[0])
        return cli_usage(&cli, "--control is empty: it wants the path of a socket");
    if (cli.vm && cli.control)
        return cli_usage(&cli, "--vm and --control name the same thing; give one of them");
    if (optind == argc)
        return cli_usage(&cli, "no command given; fleece --help lists them");
    return run_command(&cli, argc - optind, argv + optind);
}
